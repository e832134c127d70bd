"""Programs whose memory is limited, on a real daemon: they find what they put there, and the daemon tells how it goes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.peers.conftest import V4, Peer, need
from tests.peers.test_programs import Running, command, run
from tests.rustosd.process.test_memory import GROW, HOLD, pytestmark  # noqa: F401  (skipped where paging cannot be)

MIB = 1 << 20


@pytest.fixture(scope="module")
def more_config(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f'[swap]\npath = "{tmp_path_factory.mktemp("swap")}"\nsize = "4GiB"\n'


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
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    pager, = (int(child) for child in children if b"rustosd.process.pager" in Path(f"/proc/{child}/cmdline").read_bytes())
    os.kill(pager, signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert "the pager of this program has ended" in told


@pytest.mark.parametrize(("options", "why"), [
    (("--memory", "1M"), "at least 4M"), (("--memory", "64M", "--memory-max", "32M"), "is not more than"),
    (("--memory-max", "32M"), "goes with --memory"), (("--memory", "64M", "--untraced"), "must be traced"),
    (("--memory", "much"), "is no amount of octets")])
def test_limits_that_cannot_be_are_refused(peer: Peer, options: tuple[str, ...], why: str) -> None:
    done = run(peer, "true", options=options)
    assert done.returncode != 0
    assert why in re.sub(r"[\s│|]+", " ", done.stdout + done.stderr)


@pytest.mark.parametrize(("keys", "limit"), [(12_000, 4), pytest.param(1_000_000, 256, marks=pytest.mark.long)])
def test_redis_with_four_times_its_limit_has_every_value(peer: Peer, keys: int, limit: int, tmp_path: Path) -> None:
    """As many operations as twice the keys: each is set once and read once, out of order."""
    need("redis-server")
    client = Path(__file__).with_name("redis_values.py")
    argv = ("redis-server", "--port", "6402", "--save", "", "--protected-mode", "no")
    with Running(peer, *argv, port=6402, options=("--memory", f"{limit}M")) as server:
        done = peer.netns.run(sys.executable, str(client), V4, "6402", str(keys), timeout=280)
        assert done.stdout == f"set {keys}, read {keys}, wrong 0\n"
        one, = peer.ctl("memory")["memory"]
        assert one["spaces"][0]["swapped_octets"] > 2 * limit * MIB
        peer.netns.run("redis-cli", "-h", V4, "-p", "6402", "shutdown", "nosave", check=False)
        assert server.process.wait(30) == 0
