"""Calls in stopped programs: they are carried out, and the program does not notice."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rustosd.process import ptrace
from rustosd.process import syscalls as nr
from rustosd.process.notify import read_memory, write_memory
from rustosd.process.ptrace import Kind
from tests.rustosd.process.traced import Traced

GETPID, MMAP, KILL = 39, 9, 62


@pytest.fixture
def at_exec():
    """Runs a program, with something done at its exec."""
    traced = []

    def run(*argv, act):
        one = Traced(*argv)
        traced.append(one)
        one.monitor.on_exec.append(act)
        return one.run()

    yield run
    for one in traced:
        one.end()


def test_calls_at_exec_are_the_programs_and_leave_it_as_it_was(at_exec):
    def act(pid):
        before = bytes(ptrace.registers(pid))
        with ptrace.Borrowed(pid, Kind.EXEC) as thread:
            assert thread.call(GETPID) == pid
            place = thread.call(MMAP, 0, 8192, 3, 0x22, -1, 0)
            write_memory(pid, place, b"found")
            assert read_memory(pid, place, 5) == b"found"
            with pytest.raises(OSError) as refused:
                thread.call(MMAP, 0, 0, 3, 0x22, -1, 0)
            assert refused.value.errno == errno.EINVAL
        after = ptrace.registers(pid)
        after.orig_rax = ptrace.Registers.from_buffer_copy(before).orig_rax
        assert bytes(after)[:80] == before[:80] and after.rip == ptrace.Registers.from_buffer_copy(before).rip

    assert at_exec("sh", "-c", "exit 7", act=act) == 7


def test_an_interrupted_call_is_made_again():
    """A read that waits on a pipe, interrupted and lent: it gets its octets, and no errno of the kernel's own."""
    out, end = os.pipe()
    inner, feed = os.pipe()
    program = "import os; os.write(1, b'r'); print(os.read(0, 10), flush=True)"
    one = Traced(sys.executable, "-S", "-c", program, stdin=inner, stdout=end)
    os.close(end)
    os.set_blocking(out, False)
    seen = bytearray()

    def ready():
        with contextlib.suppress(BlockingIOError):
            seen.extend(os.read(out, 100))
        return b"r" in seen and "read" in Path(f"/proc/{one.pid}/wchan").read_text()

    one.until(ready)
    calls = []

    def trapped(tid, _number):
        with ptrace.Borrowed(tid, Kind.TRAPPED) as thread:
            calls.append(thread.call(GETPID))
        ptrace.go_on(tid)

    one.monitor._verbs[Kind.TRAPPED] = trapped
    for count in range(3):
        ptrace.interrupt(one.pid)
        one.until(lambda count=count: len(calls) > count)
    os.write(feed, b"octets")
    assert one.run() == 0 and calls == [one.pid] * 3
    assert b"b'octets'" in bytes(seen) + os.read(out, 100)


def test_signals_wait_until_the_call_is_done(at_exec):
    def act(pid):
        with ptrace.Borrowed(pid, Kind.EXEC) as thread:
            assert thread.call(KILL, pid, signal.SIGUSR1) == 0
            os.kill(pid, signal.SIGUSR2)
            assert thread.call(GETPID) == pid

    assert at_exec("true", act=act) in (-signal.SIGUSR1, -signal.SIGUSR2)


@pytest.mark.parametrize("calls", [0, 1], ids=["unseen", "seen"])
def test_who_is_stopped_and_goes_on_meanwhile_runs(at_exec, calls):
    def act(pid):
        with ptrace.Borrowed(pid, Kind.EXEC) as thread:
            os.kill(pid, signal.SIGSTOP)
            assert thread.call(GETPID) == pid
            os.kill(pid, signal.SIGCONT)
            for _ in range(calls):
                assert thread.call(GETPID) == pid

    assert at_exec("true", act=act) == 0


def test_who_is_stopped_meanwhile_stands_until_it_goes_on():
    def act(pid):
        with ptrace.Borrowed(pid, Kind.EXEC) as thread:
            os.kill(pid, signal.SIGSTOP)
            assert thread.call(GETPID) == pid

    one = Traced("true")
    one.monitor.on_exec.append(act)
    one.until(lambda: one.pid in one.monitor.stopped)
    os.kill(one.pid, signal.SIGCONT)
    assert one.run() == 0


def test_who_is_killed_meanwhile_has_ended(at_exec):
    def act(pid):
        with ptrace.Borrowed(pid, Kind.EXEC) as thread:
            os.kill(pid, signal.SIGKILL)
            thread.call(GETPID)

    assert at_exec("true", act=act) == -signal.SIGKILL


def test_a_clone_made_for_us_stands_at_its_first_instruction(at_exec):
    def act(pid):
        with ptrace.Borrowed(pid, Kind.EXEC) as thread:
            child = thread.call(nr.CLONE, nr.CLONE_VM, 0, 0, 0, 0)
            assert thread.born == [child] and ptrace.wait(child)[0] is Kind.TRAPPED
            with ptrace.Borrowed(child, Kind.TRAPPED) as other:
                assert other.call(GETPID) == child
            os.kill(child, signal.SIGKILL)
            with pytest.raises(ptrace.Ended):
                ptrace.wait(child)

    assert at_exec("true", act=act) == 0


def test_what_somebody_traces_already_is_refused():
    with subprocess.Popen(["sleep", "60"]) as process:
        ptrace.seize(process.pid)
        with pytest.raises(PermissionError):
            ptrace.seize(process.pid)
        process.kill()


def test_who_was_killed_has_nothing_to_lend_reaped_or_not():
    with subprocess.Popen(["sleep", "60"]) as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError):
            ptrace.Borrowed(process.pid, Kind.TRAPPED)
    with pytest.raises(ProcessLookupError):
        ptrace.Borrowed(process.pid, Kind.TRAPPED)
