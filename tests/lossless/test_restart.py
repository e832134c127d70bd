"""The daemon is killed under load and started again: what it had answered is there, and clients that reconnect go on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lossless.loads import load
from tests.peers.conftest import DAEMON, need
from tests.support.netns import Netns, unavailable

SECTORS = 8192
START_S = 60
CONFIG = """
[control]
socket = "{folder}/control.sock"
[host]
journal = "{folder}/journal.jsonl"
[crash]
directory = "{folder}/crash"
[nbd]
unix = "{folder}/nbd.sock"
[[disk]]
name = "disk0"
path = "{folder}/disk0.img"
size = "4MiB"
[[export]]
name = "disk0"
disk = "disk0"
"""


class Daemon:
    """One that can be killed and started again in the same place."""

    def __init__(self, folder: Path) -> None:
        self.netns, self.folder, self.socket = Netns(), folder, folder / "nbd.sock"
        self.uri = f"nbd+unix:///disk0?socket={self.socket}"
        self._process: subprocess.Popen | None = None
        (folder / "rustosd.toml").write_text(CONFIG.format(folder=folder))

    def start(self) -> None:
        """As a service manager would; returns once it serves."""
        with (self.folder / "log").open("ab") as log:
            self._process = self.netns.popen(sys.executable, "-c", DAEMON, "run", "-q", "--config",
                                             str(self.folder / "rustosd.toml"), stdout=log, stderr=log)
        limit = time.monotonic() + START_S
        while b'"event": "started"' not in (self.folder / "log").read_bytes():
            assert self._process.poll() is None and time.monotonic() < limit, (self.folder / "log").read_text()
            time.sleep(0.02)
        os.truncate(self.folder / "log", 0)

    def kill(self) -> None:
        """No time for last words."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill()
        self.netns.delete()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    if why := unavailable():
        pytest.skip(why)
    made = Daemon(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_what_was_answered_is_there_after_a_kill(daemon: Daemon) -> None:
    """The machine goes on, so not even what was not flushed is lost: the file has it."""
    done = 0
    with load(SECTORS) as worker:
        for _ in range(2):
            worker.connect(daemon.uri, connections=2)
            worker.begin()
            time.sleep(0.5)
            daemon.kill()
            ran = worker.ended()
            daemon.start()
            assert (ran.wrong, ran.stuck) == ([], 0)
            assert worker.verify(daemon.uri).wrong == []
            done += ran.done
    assert done > 100


def test_a_client_that_reconnects_goes_on(daemon: Daemon) -> None:
    """QEMU, whose requests wait for the server to come back and are sent again."""
    options = f"driver=nbd,server.type=unix,server.path={daemon.socket},export=disk0,reconnect-delay=60"
    with subprocess.Popen([need("qemu-io"), "--image-opts", options], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as client:
        def order(line: str, answer: str) -> None:
            client.stdin.write(line + "\n")
            client.stdin.flush()
            said = ""
            while answer not in said:
                piece = client.stdout.readline()
                assert piece and "failed" not in piece and "error" not in piece.lower(), said + piece
                said += piece

        order("write -P 1 0 1M", "wrote 1048576/1048576")
        daemon.kill()
        client.stdin.write("write -P 2 1M 1M\n")
        client.stdin.flush()
        daemon.start()
        order("flush", "wrote 1048576/1048576")
        order("read -P 1 0 1M", "read 1048576/1048576")
        order("read -P 2 1M 1M", "read 1048576/1048576")
        client.stdin.close()
