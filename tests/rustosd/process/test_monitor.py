"""Lives of processes under a monitor: each is told once, none is changed by it, nothing stays behind."""

import contextlib
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rustosd.process import inventory
from tests.rustosd.process.traced import LIMIT_S, Traced
from tests.support.descriptors import open_descriptors

SOURCE = Path(__file__).parent / "programs" / "lives.c"
OWNER = """\
import os, sys, time
from tests.rustosd.process.traced import Traced
one = Traced("sh", "-c", "setsid sleep 1000 & exec sleep 1000")
one.until(lambda: one.monitor.life["execs"] == 3)
print(one.pid, *one.monitor.threads, flush=True)
one.run()
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    made = tmp_path_factory.mktemp("lives") / "lives"
    subprocess.run(["gcc", "-O1", "-pthread", "-o", str(made), str(SOURCE)], check=True)
    return str(made)


@pytest.mark.parametrize(("what", "life"), [
    ("nothing", {}), ("fork", {"forks": 1}), ("vfork", {"vforks": 1}), ("threads", {"threads": 20}),
    ("exec-in-thread", {"threads": 2, "execs": 2}), ("orphan", {"forks": 2}), ("zombies", {"forks": 50}),
])
def test_what_is_started_is_told_and_ends_as_on_linux(program, what, life):
    traced = Traced(program, what)
    forked, executed, gone = [], [], []
    traced.monitor.on_fork.append(lambda parent, child, kind: forked.append((child, kind)))
    traced.monitor.on_exec.append(executed.append)
    traced.monitor.on_exit.append(lambda pid, _status: gone.append(pid))
    assert traced.run() == 0
    started = sum(life.get(kind, 0) for kind in ("forks", "vforks", "clones"))
    counted = {kind: count for kind, count in traced.monitor.life.items() if kind != "signals"}
    assert counted == {"execs": 1, "exits": 1 + started} | life
    assert sorted(gone) == sorted([traced.pid, *(child for child, _ in forked)])
    assert {kind + "s" for _, kind in forked} == {kind for kind in life if kind in ("forks", "vforks", "clones")}
    assert executed == [traced.pid] * counted["execs"]
    assert not traced.monitor.threads and not traced.monitor._early and not traced.monitor._names


@pytest.mark.parametrize("what", ["fork", "threads", "vfork"])
def test_a_name_of_no_encoding_changes_nothing(program, tmp_path, what):
    """Linux cuts a name off behind 15 octets, also in the middle of a character."""
    odd = tmp_path / "überlangerer-ähnlicher"
    shutil.copy(program, odd)
    traced = Traced(str(odd), what)
    assert traced.run() == 0
    assert {end.name for end in traced.monitor.ended} == {"überlangerer-\ufffd"}


def test_a_process_made_by_clone_is_one_whatever_it_shares(program):
    traced = Traced(program, "clone")
    assert traced.run() == 0
    assert traced.monitor.life["forks"] + traced.monitor.life["clones"] == 1 and traced.monitor.life["exits"] == 2


def test_how_the_last_ones_ended_is_known(program):
    traced = Traced("sh", "-c", "(kill -9 $(sh -c 'echo $PPID')); (exit 7); true")
    traced.run()
    ends = [str(end) for end in traced.monitor.ended]
    assert "SIGKILL" in ends and "exit status 7" in ends and traced.monitor.ended[-1].pid == traced.pid


def test_who_is_killed_while_it_forks_leaves_nobody_standing(program):
    """A child whose parent was killed before it could tell of it is let go all the same."""
    for _ in range(20):
        traced = Traced("sh", "-c", "while :; do (true) & done")
        traced.until(lambda traced=traced: traced.monitor.life["forks"] > 5)
        os.kill(traced.pid, signal.SIGKILL)
        assert traced.run() == -signal.SIGKILL


def many(program, count):
    descriptors, processes = len(open_descriptors()), set(inventory.below(os.getpid()))
    traced = Traced(program, "many", str(count))
    assert traced.run() == 0
    assert traced.monitor.life["vforks"] == count and traced.monitor.life["exits"] == count + 1
    assert not traced.monitor.threads and not traced.monitor.started and not traced.monitor._names
    assert set(inventory.below(os.getpid())) <= processes and len(open_descriptors()) == descriptors


def test_two_hundred_starts_leave_nothing(program):
    many(program, 200)


@pytest.mark.long
def test_ten_thousand_starts_leave_nothing(program):
    many(program, 10_000)


def test_without_its_supervisor_everything_ends():
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        pids = list(map(int, owner.stdout.readline().split()))
        assert len(pids) >= 3
        owner.kill()
    limit = time.monotonic() + LIMIT_S
    while any(_lives(pid) for pid in pids):
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_stopped_program_stands_until_it_is_told_to_go_on():
    traced = Traced("sh", "-c", "kill -STOP $$; exit 5")
    traced.until(lambda: traced.pid in traced.monitor.stopped)
    assert traced.status is None
    os.kill(traced.pid, signal.SIGCONT)
    assert traced.run() == 5 and not traced.monitor.stopped


def test_job_control_on_a_terminal():
    """bash has jobs: Ctrl-Z stops one, fg brings it back, Ctrl-C ends it."""
    master, slave = pty.openpty()

    def session():
        signal.signal(signal.SIGINT, signal.SIG_DFL)    # ignored below a shell's &, and jobs inherit it
        os.setsid()
        import fcntl
        import termios
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.dup2(0, 2)

    traced = Traced("bash", "--norc", "--noediting", "-i", stdin=slave, stdout=slave, before=session)
    os.close(slave)
    os.set_blocking(master, False)
    said = bytearray()

    def says(text):
        def look():
            with contextlib.suppress(BlockingIOError):
                said.extend(os.read(master, 4096))
            return text in said
        traced.until(look)
        said.clear()

    def write(text):
        os.write(master, text)

    write(b"PS1=; echo rea''dy\n")
    says(b"ready")
    write(b"sh -c 'echo beg''un; exec sleep 1000'\n")
    says(b"begun")
    traced.until(lambda: "sleep" in traced.monitor._names.values())
    write(b"\x1a")
    says(b"Stopped")
    write(b"jobs; echo list''ed\n")
    says(b"listed")
    write(b"fg\n")
    job = next(pid for pid, name in traced.monitor._names.items() if name == "sleep")
    traced.until(lambda: os.tcgetpgrp(master) == os.getpgid(job) and job not in traced.monitor.stopped)
    write(b"\x03")
    traced.until(lambda: job not in traced.monitor.threads)
    write(b"echo stat''us=$?\n")
    says(b"status=130")
    write(b"exit 3\n")
    assert traced.run() == 3
    os.close(master)


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
