"""Power cuts under load between a client nobody here wrote and the medium: nothing that was flushed is lost.

RUSTOSD_CUTS says how many (three; the long run has a hundred).
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lossless.loads import ROOT, Load, Ran, Verified, load

SECTORS = 8192
CUTS = int(os.environ.get("RUSTOSD_CUTS", "3"))


class Served:
    """Our server on a medium, in a process that can be killed."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.medium, self.socket = folder / "medium", folder / "nbd.sock"
        self.uri = f"nbd+unix:///disk?socket={self.socket}"
        self._options = options
        self._process: subprocess.Popen | None = None
        with self.medium.open("wb") as file:
            file.truncate(SECTORS * 512)

    def start(self) -> None:
        """Serve what is on the medium."""
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.lossless.server", str(self.medium), str(self.socket), *self._options], cwd=ROOT,
            stdout=subprocess.PIPE)
        assert self._process.stdout.readline() == b"ready\n"

    def cut(self) -> None:
        """What is not on the medium is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            self._process = None


def cut_under_load(served: Served, worker: Load, pause: random.Random, number: int) -> tuple[Ran, Verified]:
    """One round, which begins where the last one ended."""
    served.start()
    worker.connect(served.uri, connections=2)
    worker.begin_before_cut(number)
    time.sleep(pause.uniform(0.1, 0.4))
    served.cut()
    ran = worker.ended()
    served.start()
    verified = worker.verify(served.uri, cut=True)
    served.cut()
    return ran, verified


def cut_often(served: Served, cuts: int) -> None:
    pause = random.Random(1)
    forgotten = done = 0
    with load(SECTORS) as worker:
        for number in range(cuts):
            ran, verified = cut_under_load(served, worker, pause, number)
            assert (ran.wrong, verified.wrong, ran.stuck) == ([], [], 0), f"cut {number}"
            forgotten += verified.forgotten
            done += ran.done
    assert done > 50 * cuts and forgotten > 0, "nothing was at stake"


def test_what_was_flushed_survives_power_cuts(tmp_path: Path) -> None:
    cut_often(Served(tmp_path), CUTS)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_what_was_flushed_survives_a_hundred_power_cuts(tmp_path: Path) -> None:
    cut_often(Served(tmp_path), 100)


def test_a_disk_that_ignores_flushes_is_found_out(tmp_path: Path) -> None:
    served, pause = Served(tmp_path, "--lie"), random.Random(1)
    with load(SECTORS) as worker:
        assert any(cut_under_load(served, worker, pause, 1)[1].wrong for _ in range(5))
