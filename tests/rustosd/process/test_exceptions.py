"""Exceptions that C programs raise on this processor: which one it was, what became of it, what is told of it."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rustosd.control.fault_protocol import FaultKind
from rustosd.process import report
from rustosd.process.backtrace import Unwinder
from rustosd.process.exceptions import KINDS, Exceptions
from tests.rustosd.process.traced import Traced

SOURCE = Path(__file__).parent / "programs" / "faults.c"
NULL, WILD = 0x8, 0x123456
CASES = {
    "divide": ("divide-error", 0, 0, signal.SIGFPE, "division by zero"),
    "breakpoint": ("breakpoint", 3, 0, signal.SIGTRAP, "breakpoint"),
    "overflow": ("overflow", 4, 0, signal.SIGSEGV, "overflow"),
    "opcode": ("invalid-opcode", 6, 0, signal.SIGILL, "not an instruction"),
    "segment": ("segment-not-present", 11, 4, signal.SIGBUS, "not present"),
    "stack": ("stack-segment", 12, 0, signal.SIGBUS, "stack address"),
    "privileged": ("general-protection", 13, 0, signal.SIGSEGV, "privileged instruction"),
    "non-canonical": ("general-protection", 13, 0, signal.SIGSEGV, "no address can be"),
    "alignment": ("alignment-check", 17, 0, signal.SIGBUS, "not aligned"),
    "simd": ("simd-error", 19, 0, signal.SIGFPE, "SSE"),
    "null": ("page-fault", 14, 4, signal.SIGSEGV, "read of 0x8: a null pointer"),
    "unmapped": ("page-fault", 14, 6, signal.SIGSEGV, "write to 0x123456, where nothing is mapped"),
    "read-only": ("page-fault", 14, None, signal.SIGSEGV, "anonymous memory, which is mapped r--p"),
    "no-execute": ("page-fault", 14, 0x15, signal.SIGSEGV, "which is mapped rw-p"),
    "truncated": ("page-fault", 14, 4, signal.SIGBUS, "which its file does not have"),
    "overflowing-stack": ("page-fault", 14, 6, signal.SIGSEGV, "beyond the end of the stack"),
    "handler-stack": ("unknown", None, None, signal.SIGSEGV, "signal's frame"),
}
"""By what the program is told: kind, trap number, error code (None: it depends), signal, words."""


@pytest.fixture(scope="module", params=["dynamic", "static"])
def program(request, tmp_path_factory):
    made = tmp_path_factory.mktemp("faults") / request.param
    more = ["-static"] if request.param == "static" else []
    subprocess.run(["gcc", "-O1", "-g", "-fomit-frame-pointer", "-pthread", *more, "-o", str(made), str(SOURCE)], check=True)
    return str(made)


class Judged:
    """A program run to its end, with the faults that ended processes of it."""

    def __init__(self, *argv, told=lambda fault: None, **more):
        self.faults = []

        def terminating(fault):
            self.faults.append(fault)
            told(fault)

        traced = Traced(*argv, **more)
        self.exceptions = Exceptions(traced.monitor.threads, terminating)
        traced.monitor.judge = self.exceptions.judge
        try:
            self.ready(traced)
            self.status = traced.run()
        finally:
            traced.end()
        assert not self.exceptions._doomed and not self.exceptions._swap and not traced.monitor.threads

    def ready(self, traced):
        """It is about to run."""


def test_the_protocol_has_every_kind():
    assert FaultKind.__args__ == KINDS


@pytest.mark.parametrize("what", CASES)
def test_it_is_told_apart_by_its_trap_number(program, what):
    kind, trap, code, number, words = CASES[what]
    run = Judged(program, what)
    (fault,) = run.faults
    assert run.status == -number
    assert (fault.kind, fault.trap, fault.info.number) == (kind, trap, number)
    assert words in fault.words and (code is None or fault.error_code == code)
    assert run.exceptions.counts == {(kind, "terminated"): 1}
    assert fault.address == {"null": NULL, "unmapped": WILD}.get(what, fault.address)


@pytest.mark.parametrize("what", ["divide", "opcode", "null", "breakpoint", "stack"])
def test_a_handler_gets_it_untouched(program, what):
    run = Judged(program, what, "handler")
    if what == "stack":         # no frame fits a stack that is nowhere
        assert (run.status, len(run.faults)) == (-signal.SIGSEGV, 1)
    else:
        assert (run.status, run.faults) == (42, [])
        assert run.exceptions.counts == {(CASES[what][0], "handled"): 1}
        assert run.exceptions.take_handled() == {CASES[what][0]: 1} and not run.exceptions.take_handled()


def test_a_handler_of_a_program_with_a_name_of_no_encoding_gets_it(program, tmp_path):
    odd = tmp_path / "überlangerer-ähnlicher"
    shutil.copy(program, odd)
    run = Judged(str(odd), "null", "handler")
    assert (run.status, run.faults) == (42, [])


@pytest.mark.parametrize("place", ["blocked", "ignored"])
def test_a_signal_that_is_blocked_or_ignored_does_not_help(program, place):
    run = Judged(program, "unmapped", place)
    assert (run.status, [fault.kind for fault in run.faults]) == (-signal.SIGSEGV, ["page-fault"])


def test_a_thread_takes_its_process_with_it(program):
    run = Judged(program, "segment", "thread")
    (fault,) = run.faults
    assert run.status == -signal.SIGBUS and fault.kind == "segment-not-present" and fault.tid != fault.process


def test_a_child_goes_alone(program):
    seen, end = os.pipe()
    run = Judged(program, "alignment", "fork", stdout=end)
    os.close(end)
    assert (run.status, os.read(seen, 10)) == (0, b"%d\n" % signal.SIGBUS)
    assert [fault.kind for fault in run.faults] == ["alignment-check"]
    os.close(seen)


def test_a_signal_that_somebody_sends_is_no_exception(program):
    run = Judged(program, "sent")
    assert (run.status, run.faults, run.exceptions.counts) == (-signal.SIGSEGV, [], {})


class Waiting(Judged):
    """A program whose thread waits, as for memory that does not come, and is told that it never will."""

    def ready(self, traced):
        traced.until(lambda: Path(f"/proc/{traced.pid}/syscall").read_text().startswith("34 "))     # pause
        self.exceptions.swap_fault(traced.pid, WILD, "disk0 answers EIO")
        traced.tidy = self.exceptions.tidy


def test_memory_that_cannot_be_brought_in_ends_who_waits_for_it(program):
    run = Waiting(program, "wait")
    (fault,) = run.faults
    assert (run.status, fault.kind, fault.address) == (-signal.SIGBUS, "swap-fault", WILD)
    assert fault.words == "memory at 0x123456 was swapped out and cannot be brought in: disk0 answers EIO"
    assert "back-trace" not in report.compose(fault) and run.exceptions.counts == {("swap-fault", "terminated"): 1}


def test_a_handler_of_bus_errors_is_told_where_memory_is_lost(program):
    seen, end = os.pipe()
    run = Waiting(program, "wait", "handler", stdout=end)
    os.close(end)
    assert (run.status, run.faults, os.read(seen, 20)) == (42, [], b"0x123456\n")
    assert run.exceptions.counts == {("swap-fault", "handled"): 1}
    os.close(seen)


def test_nobody_elses_thread_is_touched(program):
    class Stranger(Judged):
        def ready(self, traced):
            with pytest.raises(ProcessLookupError):
                self.exceptions.swap_fault(os.getpid(), WILD, "disk0 answers EIO")
            self.exceptions.tidy()

    assert Stranger(program, "null", "handler").status == 42


def test_who_does_not_hear_of_lost_memory_is_killed(program):
    run = Waiting(program, "wait", "blocked")
    assert (run.status, [fault.kind for fault in run.faults]) == (-signal.SIGKILL, ["swap-fault"])


def test_who_asks_for_lost_memory_again_and_again_has_no_more_time(program):
    class Asking(Waiting):
        def ready(self, traced):
            super().ready(traced)
            traced.tidy = lambda: traced.pid in traced.monitor.threads and self.exceptions.swap_fault(traced.pid, WILD, "again")

    run = Asking(program, "wait", "blocked")
    (fault,) = run.faults
    assert run.status == -signal.SIGKILL and fault.words.endswith("disk0 answers EIO")


def test_without_room_for_a_clone_the_signal_tells(program):
    """The trap number stays unknown, and the program ends as it would."""
    if os.geteuid() != 0:
        pytest.skip("needs root, who runs it as a user with no process to spare")

    def as_nobody():
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        os.setgroups([])
        os.setgid(65534)
        os.setuid(50_000 + os.getpid() % 10_000)        # nobody else's: a second run beside this one would count

    Path(program).parent.chmod(0o755)
    for folder in Path(program).parents[:3]:
        folder.chmod(folder.stat().st_mode | 0o011)
    run = Judged(program, "null", before=as_nobody)
    (fault,) = run.faults
    assert (run.status, fault.kind, fault.trap) == (-signal.SIGSEGV, "page-fault", None)
    assert "trap number unknown" in report.compose(fault)


def test_its_core_file_is_the_right_one(program, tmp_path):
    """A debugger that knows nothing of us sees the thread as the exception left it."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern != "core":
        pytest.skip(f"core files go elsewhere here: {pattern}")

    def with_core():
        os.chdir(tmp_path)
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    run = Judged(program, "unmapped", before=with_core)
    (core,) = tmp_path.glob("core*")
    octets = core.read_bytes()
    assert run.faults[0].registers.rip.to_bytes(8, "little") in octets


def test_the_back_trace_has_the_functions_that_the_compiler_left_no_frame_pointers_in(program):
    found = []
    run = Judged(program, "null", "thread",
                 told=lambda fault: found.extend(Unwinder(fault.tid, fault.registers, fault.maps).frames()))
    assert run.faults
    names = [frame.function for frame in found]
    assert names[:2] == ["raise_it", "thread"]
    if program.endswith("static"):
        assert names[2:] == ["start_thread", "__clone3"] or "clone" in names[-1]
    else:
        assert all("libc" in frame.file for frame in found[2:]) and len(found) > 2


def test_a_call_of_what_is_no_code_is_traced_to_who_made_it(program):
    found = []
    Judged(program, "no-execute", told=lambda fault: found.extend(Unwinder(fault.tid, fault.registers, fault.maps).frames()))
    names = [frame.function for frame in found]
    assert names[0] == "" and {"raise_it", "main"} & set(names[1:3])


def test_the_report_says_all_and_nothing_a_terminal_obeys(program, tmp_path):
    odd = tmp_path / "a\x1b[31mred\n name"
    os.link(program, odd) if os.stat(program).st_dev == tmp_path.stat().st_dev else odd.write_bytes(Path(program).read_bytes())
    odd.chmod(0o755)
    told = []
    run = Judged(str(odd), "unmapped", told=lambda fault: told.append(
        (report.compose(fault, [(7, 42, 3)]), report.summary(fault), report.program_of(fault))))
    (text, summary, name), = told
    assert run.status == -signal.SIGSEGV
    assert summary == "page fault (#PF): write to 0x123456, where nothing is mapped" and name == "a?[31mred? name"
    for part in ("trap 14, error code 0x6, CR2 0x123456", "rip ", "raise_it+", "Max open files", "connect(3, ...)",
                 "=== stack ===", "=== mappings ===", "SIGSEGV, code 1 SEGV_MAPERR"):
        assert part in text, part
    assert re.fullmatch(r"[\n -~]*", text) and len(text) <= report.TEXT_MOST


def test_python_is_traced_through_its_libraries():
    found = []
    run = Judged(sys.executable, "-S", "-c", "import ctypes; ctypes.string_at(0)",
                 told=lambda fault: found.extend(Unwinder(fault.tid, fault.registers, fault.maps).frames()))
    assert run.status == -signal.SIGSEGV and len(found) > 8
