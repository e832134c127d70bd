"""Starts `load` in the interpreter that has libnbd, here or in the lab's guest, and gives it orders."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.netns import Netns

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3"
PATIENCE_S = 20.0
DURABLE = ("flush", "fua", "zero_fua")
"""The kinds of requests that leave less at stake."""


@dataclass
class Ran:
    """What became of some requests."""

    done: int
    errors: dict[str, int]      # "read: 5": how many reads ended with errno 5
    wrong: list[str]
    stuck: int                  # requests that never ended


@dataclass
class Verified:
    """What is on the disk."""

    wrong: list[str]
    forgotten: int              # sectors that lost an answered, unflushed change
    sectors: int


class LoadFailed(Exception):
    """The load could not do what it was told."""


def need_libnbd() -> None:
    """Skip the test where there is none."""
    if not Path(PYTHON).exists() or subprocess.run([PYTHON, "-c", "import nbd"], capture_output=True).returncode:
        pytest.skip("needs libnbd for Debian's python3: scripts/test installs python3-libnbd when run as root")


class Load:
    """A load that runs; its requests are made by `run`, or by `begin` and `ended` while the test does something to the disk."""

    def __init__(self, process: subprocess.Popen, **made: Any) -> None:
        self._process = process
        self._send(made)

    def enter(self, netns: Netns | None) -> None:
        """From now on connect inside this network namespace; None: in the one we are in."""
        self._send({"do": "enter", "namespace": str(netns.path) if netns else f"/proc/{os.getpid()}/ns/net"})
        self._answer()

    def connect(self, uri: str, connections: int = 1, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """Open the export; what it can do. Raises LoadFailed."""
        self._send({"do": "connect", "uri": uri, "connections": connections, "patience_s": patience_s})
        return self._answer()

    def run(self, operations: int, depth: int = 16, seconds: float = 60, without: Sequence[str] = ()) -> Ran:
        """Random requests of all kinds but those `without`, until that many have ended, nobody answers, or the time is over."""
        self.begin(operations, depth, seconds, without=without)
        return self.ended()

    def begin(self, operations: int = 1_000_000, depth: int = 16, seconds: float = 60, slack_s: float = 30,
              without: Sequence[str] = ()) -> None:
        """As `run`, without waiting for the end. Requests under way when the time is over have `slack_s` to end."""
        self._send({"do": "run", "operations": operations, "depth": depth, "seconds": seconds, "slack_s": slack_s,
                    "without": list(without)})

    def begin_before_cut(self, number: int, without: Sequence[str] = (), **limits: float) -> None:
        """As `begin`, before power cut `number`. Before every other one nothing is flushed, so that something is at stake."""
        self.begin(without=without if number % 2 else [*without, *DURABLE], **limits)

    def ended(self) -> Ran:
        """Wait for the end of what `begin` began."""
        return Ran(**self._answer())

    def verify(self, uri: str, *, cut: bool = False, patience_s: float = PATIENCE_S) -> Verified:
        """Compare all sectors with what they may hold; with `cut` as after a loss of power. Raises LoadFailed."""
        self._send({"do": "verify", "uri": uri, "cut": cut, "patience_s": patience_s})
        return Verified(**self._answer())

    def _send(self, order: dict[str, Any]) -> None:
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise LoadFailed(f"the load ended with status {self._process.wait(10)}; its own words are above")
        if "error" in (answer := json.loads(line)):
            raise LoadFailed(answer["error"])
        return answer


@contextmanager
def load(sectors: int = 8192, seed: int = 1, unit: int = 1) -> Iterator[Load]:
    """A load on this machine; see `tests.lossless.load.Load`."""
    need_libnbd()
    process = subprocess.Popen([PYTHON, "-m", "tests.lossless.load"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True)
    try:
        yield Load(process, sectors=sectors, seed=seed, unit=unit)
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()


class Nbdkit:
    """nbdkit on a file, with a cache in front that only a flush empties: `cut` is a loss of power."""

    def __init__(self, folder: Path, octets: int, cache: str = "writeback") -> None:
        if not shutil.which("nbdkit"):
            pytest.skip("needs nbdkit: scripts/test installs it when run as root")
        self.folder, self.cache = folder, cache
        self.store = folder / "store"
        self.socket = folder / "nbdkit.sock"
        self._process: subprocess.Popen | None = None
        with self.store.open("wb") as file:
            file.truncate(octets)

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.socket}"

    def start(self) -> None:
        """Serve what the store holds."""
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            ["nbdkit", "--foreground", "--exit-with-parent", "--unix", str(self.socket), "--filter=cache", "file",
             str(self.store), f"cache={self.cache}"], env={**os.environ, "TMPDIR": str(self.folder)})

    def cut(self) -> None:
        """What was written and not flushed is gone."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
