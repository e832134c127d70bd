"""Paging compiled with AddressSanitizer and UndefinedBehaviorSanitizer, in short runs of what the ordinary build does long."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import sanitize
from tests.rustosd.process.paged import FEW, PAGER, Paged
from tests.rustosd.process.test_memory import FORKS_MANY, MIB, built
from tests.rustosd.process.test_memory import pytestmark as where_paging_can_be

pytestmark = [
    where_paging_can_be, pytest.mark.timeout(900),      # the first time it builds for a minute or two
    pytest.mark.skipif(sanitize.runtime() is None, reason="gcc's libasan is not installed (Debian: package gcc)")]
REGIONS = ("every_page_comes_back or one_damaged or only_read or system_calls or share_a_file or full_leaves"
           " or not_answered_for or never_made_up")


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return sanitize.environment()


@pytest.fixture
def prefix(environment: dict[str, str]) -> Iterator[tuple[str, ...]]:
    """Words in front of a command that is to run on the sanitized build."""
    yield ("env", *(f"{name}={environment[name]}" for name in (
        "PYTHONPATH", "PYTHONSAFEPATH", "LD_PRELOAD", "ASAN_OPTIONS", "UBSAN_OPTIONS")))


def test_memory_of_our_own(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=append", "-k", REGIONS,
         "tests/mm/test_region.py"], cwd=sanitize.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert re.search(r"\d+ passed, \d+ deselected", done.stdout) and "skipped" not in done.stdout


def test_programs_that_fork_and_move_their_memory(prefix: tuple[str, ...], tmp_path: Path,
                                                  capfd: pytest.CaptureFixture[str]) -> None:
    with open(tmp_path / "output", "w+") as file:
        one = Paged(built("stress", tmp_path), "2", "4", "40", "often", soft=16 * MIB, hard=24 * MIB, folder=tmp_path,
                    stdout=file.fileno(), pager=(*prefix, *PAGER))
        try:
            status = one.run()
            assert (status, one.lost, one.gave_up) == (0, [], ""), capfd.readouterr().err[-4000:]
            assert one.swap_total("out_octets") > 4 * MIB
            assert one.unclaimed_slots() == 0
        finally:
            one.end()
        file.seek(0)
        assert re.search(r"forks [1-9].* wrong 0$", file.read().strip())


def test_more_programs_than_a_pager_can_look_after(prefix: tuple[str, ...], tmp_path: Path,
                                                   capfd: pytest.CaptureFixture[str]) -> None:
    one = Paged(sys.executable, "-c", FORKS_MANY, "24", soft=16 * MIB, hard=24 * MIB, folder=tmp_path, pager=(*prefix, *FEW))
    try:
        one.run()
        one.until(lambda: not one.turn())
        assert one.gave_up == "", capfd.readouterr().err[-4000:]
        assert one.unclaimed_slots() == 0
    finally:
        one.end()
