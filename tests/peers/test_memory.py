"""Programs whose memory is limited, on a real daemon: they find what they put there, and the daemon tells how it goes."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.peers.conftest import V4, Peer, need
from tests.peers.test_programs import Running, command, run, wait_for
from tests.rustosd.process.test_memory import GROW, HOLD, PROGRAMS, pytestmark  # noqa: F401  (skipped where paging cannot be)

MIB = 1 << 20


@pytest.fixture(scope="module")
def more_config(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f'[swap]\npath = "{tmp_path_factory.mktemp("swap")}"\nsize = "4GiB"\n'


def _pager(supervisor: int) -> int:
    """Its pager's process."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    pager, = (int(child) for child in children if b"rustosd.process.pager" in Path(f"/proc/{child}/cmdline").read_bytes())
    return pager


def _swap_file(pager: int) -> Path:
    """The nameless file that a pager has open. It opens and closes others all the time."""
    for fd in Path(f"/proc/{pager}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if fd.readlink().name.endswith("(deleted)"):
                return fd
    raise AssertionError("it has no file for swap")


def test_a_program_with_four_times_its_limit_and_what_is_told_of_it(peer: Peer) -> None:
    options = ("--memory", "12M", "--memory-max", "20M")
    process = peer.netns.popen(*command(peer, sys.executable, "-c", HOLD, "alone", options=options), stdout=subprocess.PIPE,
                               text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        limit = time.monotonic() + 60
        while True:
            programs = peer.ctl("memory")["memory"]
            if programs and programs[0]["spaces"] and programs[0]["spaces"][0]["swapped_octets"] > 24 * MIB:
                break
            assert time.monotonic() < limit, programs
            time.sleep(0.1)
        one = programs[0]
        assert (one["limit_octets"], one["most_octets"]) == (12 * MIB, 20 * MIB)
        assert one["resident_octets"] < 24 * MIB
        swap, = peer.ctl("swap")["swap"]
        assert swap["used_octets"] > 24 * MIB and swap["encryption"]
        running = [row for row in peer.ctl("ps")["processes"] if row["group"]]
        assert [row["pid"] for row in running] == [one["spaces"][0]["pid"]]         # neither pager nor helper
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM


def test_its_exit_status_and_output_are_its_own(peer: Peer) -> None:
    done = run(peer, sys.executable, "-c", GROW + "\nraise SystemExit(7)", "40", options=("--memory", "12M"))
    assert (done.returncode, done.stdout) == (7, "whole\n")


def test_a_pager_that_is_killed_is_told_on_stderr(peer: Peer) -> None:
    process = peer.netns.popen(*command(peer, sys.executable, "-c", HOLD, "alone", options=("--memory", "12M")),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    os.kill(_pager(process.pid), signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert "the pager of this program has ended" in told


@pytest.mark.parametrize(("harm", "why"), [
    ("overwritten", "is not what was written"),
    ("cut short", "Input/output error|is not what was written")])       # which: whether pages have been written behind the hole
def test_swap_that_goes_wrong_ends_who_needs_the_page_and_is_told_as_a_fault(peer: Peer, harm: str, why: str) -> None:
    script = f"{sys.executable} -c '{HOLD}' alone; echo ended $?; cat /proc/self/comm"
    process = peer.netns.popen(*command(peer, "sh", "-c", script, options=("--memory", "12M", "--memory-max", "20M")),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    swap = _swap_file(_pager(process.pid))
    if harm == "cut short":
        os.truncate(swap, 0)
    else:
        with open(swap, "r+b", buffering=0) as file:
            for _ in range(64):
                file.write(os.urandom(MIB))
    printed, told = process.communicate(timeout=60)
    assert re.fullmatch(r"ended (135|137)\ncat\n", printed)        # nobody else ended
    assert process.returncode == 0
    row = peer.ctl("faults", "list")["faults"][0]
    assert (row["kind"], row["signal"]) == ("swap-fault", "SIGBUS")
    assert re.search(why, row["words"]) and re.search(why, told)


def test_a_program_of_another_user_is_limited_by_what_root_opens_for_it(peer: Peer, tmp_path: Path) -> None:
    program = tmp_path / "stress"
    subprocess.run(["gcc", "-O2", "-pthread", "-o", program, PROGRAMS / "stress.c"], check=True)
    for path in (program, *program.parents[:4]):
        path.chmod(path.stat().st_mode | 0o055)
    process = peer.netns.popen(*command(peer, str(program), "2", "6", "48", "fork",
                                        options=("--memory", "12M", "--memory-max", "20M", "--user", "nobody")),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 60
    swapped = 0
    while swapped == 0 and process.poll() is None:
        assert time.monotonic() < limit
        swapped = sum(space["swapped_octets"] for group in peer.ctl("memory")["memory"] for space in group["spaces"])
        time.sleep(0.1)
    printed, told = process.communicate(timeout=60)
    assert (process.returncode, printed.strip()[-7:]) == (0, "wrong 0"), told
    assert swapped and "is not limited" not in told


@pytest.mark.parametrize(("options", "why"), [
    (("--memory", "1M"), "at least 4M"), (("--memory", "64M", "--memory-max", "32M"), "is not more than"),
    (("--memory-max", "32M"), "goes with --memory"), (("--memory", "64M", "--untraced"), "must be traced"),
    (("--memory", "much"), "is no amount of octets")])
def test_limits_that_cannot_be_are_refused(peer: Peer, options: tuple[str, ...], why: str) -> None:
    done = run(peer, "true", options=options)
    assert done.returncode != 0
    assert why in re.sub(r"[\s│|]+", " ", done.stdout + done.stderr)


@pytest.mark.parametrize(("keys", "limit"), [
    (12_000, 4), pytest.param(1_000_000, 256, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_redis_with_four_times_its_limit_has_every_value(peer: Peer, keys: int, limit: int, tmp_path: Path) -> None:
    """As many operations as twice the keys: each is set once and read once, out of order."""
    need("redis-server")
    client = Path(__file__).with_name("redis_values.py")
    argv = ("redis-server", "--port", "6402", "--save", "", "--protected-mode", "no")
    with Running(peer, *argv, port=6402, options=("--memory", f"{limit}M")) as server:
        done = peer.netns.run(sys.executable, str(client), V4, "6402", str(keys), timeout=1500)
        assert done.stdout == f"set {keys}, read {keys}, wrong 0\n"
        wait_for(lambda: peer.ctl("memory")["memory"][0]["spaces"][0]["swapped_octets"] > 2 * limit * MIB,
                 "most of it is not in swap")
        peer.netns.run("redis-cli", "-h", V4, "-p", "6402", "shutdown", "nosave", check=False)
        assert server.process.wait(30) == 0
