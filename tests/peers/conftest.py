"""A real daemon in a network namespace of its own, with the namespace's Linux kernel as its peer."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.netns import Netns, unavailable

V4, V6 = "10.77.0.2", "fd77::2"
START_S = STOP_S = 60
DAEMON = "from rustosd.cli.daemon import main; main()"
CONTROL = "from rustosd.cli.control import main; main()"
CONFIG = """
[control]
socket = "{folder}/control.sock"
[host]
journal = "{folder}/journal.jsonl"
[crash]
directory = "{folder}/crash"
[metrics]
listen = "127.0.0.1:9477"
socket = "{folder}/metrics.sock"
[[disk]]
name = "disk0"
path = "{folder}/disks/disk0.img"
size = "64MiB"
"""


def need(tool: str) -> str:
    """The tool's path; skips the test where it is not installed."""
    found = shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin")
    if not found:
        pytest.skip(f"needs {tool}: scripts/test installs it when run as root")
    return found


def url(host: str, path: str) -> str:
    """http://host/path with the brackets IPv6 wants."""
    return f"http://[{host}]{path}" if ":" in host else f"http://{host}{path}"


class Peer:
    """The daemon with little besides its default configuration, and the kernel on the other side of its TAP."""

    begins_with: tuple[str, ...] = ()
    """Words in front of the daemon's own."""

    def __init__(self, folder: Path, more: str = ""):
        self.netns = Netns()
        self.control = folder / "control.sock"
        self.log = folder / "log"
        config = folder / "rustosd.toml"
        config.write_text(CONFIG.format(folder=folder) + more)
        with self.log.open("wb") as log:
            self.process = self.netns.popen(*self.begins_with, sys.executable, "-c", DAEMON, "run", "--config", str(config),
                                            stdout=log, stderr=log)

    def wait_until_up(self) -> None:
        """Until both families answer (IPv6 after duplicate address detection). Raises AssertionError after START_S."""
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            if all(self.netns.run("ping", "-c1", "-W1", host, check=False).returncode == 0 for host in (V4, V6)):
                return
            time.sleep(0.1)
        raise AssertionError(f"not up after {START_S} s:\n{self.log.read_text()}")

    def ctl(self, *argv: str) -> dict:
        """What `rustosctl ARGV --json` answers."""
        done = self.netns.run(sys.executable, "-c", CONTROL, "--socket", str(self.control), *argv, "--json")
        return json.loads(done.stdout)

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, by its name with labels."""
        text = self.netns.run("curl", "-sf", url(V4, "/metrics")).stdout
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
                for line in text.splitlines() if line and not line.startswith("#")}

    def resident_octets(self) -> int:
        """The daemon's resident set."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def traces(self) -> list[str]:
        """The log's lines of exceptions that nobody expected: they are caught in places where everything must go on."""
        return [line for line in self.log.read_text(errors="replace").splitlines() if '"exception": [' in line]

    def close(self) -> None:
        """End the daemon as a service manager would, and the namespace with it. It must not have said of a bug meanwhile."""
        try:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                self.process.wait(STOP_S)
        finally:
            self.process.kill()
            self.process.wait()
            self.netns.delete()
        assert not self.traces(), self.traces()


@pytest.fixture(scope="module")
def more_config() -> str:
    """What a module's daemon is to have besides; a module has a fixture of this name of its own for that."""
    return ""


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory, more_config: str) -> Iterator[Peer]:
    """One daemon for all tests of a module."""
    if why := unavailable():
        pytest.skip(why)
    for tool in ("ping", "curl"):
        need(tool)
    running = Peer(tmp_path_factory.mktemp("peer"), more_config)
    try:
        running.wait_until_up()
        yield running
    finally:
        running.close()
