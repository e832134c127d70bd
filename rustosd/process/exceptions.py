"""Exceptions of the processor in traced programs: told apart by their true trap number, and what becomes of each.

Two tiers. What the program handles itself (it has a handler, and the signal is not blocked) is delivered untouched, and
counted. Everything else is recorded and ends the process by the signal that Linux has for it, just as without us.

siginfo does not tell all of them apart: #SS and #NP are both SIGBUS with SI_KERNEL. The kernel writes trap number, error code
and CR2 into the frame that it makes for a signal's handler. So a clone of the stopped thread, which shares its memory and
nothing else, is given that signal on a stack of its own; the thread itself is not touched.
"""

import contextlib
import errno
import os
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from rustosd.process import inventory, ptrace
from rustosd.process import syscalls as nr
from rustosd.process.notify import read_memory, write_memory
from rustosd.process.ptrace import USER_CODE_64, Borrowed, Kind, Registers, SignalInfo

_SI_KERNEL: Final = 0x80
_BUS_ADRERR, _BUS_MCEERR_AO = 2, 5
_FAULT_SIGNALS: Final = frozenset((signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGTRAP))
_TRAP_CODES: Final = frozenset((1, 2, 4, _SI_KERNEL))       # of SIGTRAP: breakpoint, trace, hardware breakpoint, int3
_SCRATCH_OCTETS: Final = 65536
_ACTION_AT: Final = 64
_STACK_AT: Final = 4096
_SA_FLAGS: Final = 0x0C00_0004              # SA_ONSTACK, SA_RESTORER, SA_SIGINFO
_GREGS_AT: Final = 40                       # in a ucontext_t (sys/ucontext.h)
_GREGS = struct.Struct("=23Q")
_GREG_ERROR, _GREG_TRAP, _GREG_CR2 = 19, 20, 22
_PAGE_FAULT: Final = 14
_NULL_PAGE: Final = 4096
_STACK_NEAR: Final = 16 << 20
_SWAP_PATIENCE_S: Final = 1.0


@dataclass(frozen=True)
class Trap:
    """A row of the processor's table (Intel SDM 3A, 6.15) and the signals that Linux sends for it."""

    kind: str
    mnemonic: str
    words: str
    signals: tuple[int, ...]


TRAPS: Final = {
    0: Trap("divide-error", "#DE", "division by zero, or a quotient that does not fit", (signal.SIGFPE,)),
    1: Trap("debug", "#DB", "debug exception", (signal.SIGTRAP,)),
    3: Trap("breakpoint", "#BP", "breakpoint without a debugger", (signal.SIGTRAP,)),
    4: Trap("overflow", "#OF", "overflow", (signal.SIGSEGV,)),
    5: Trap("bound-range", "#BR", "index out of bounds", (signal.SIGSEGV,)),
    6: Trap("invalid-opcode", "#UD", "not an instruction of this processor", (signal.SIGILL,)),
    11: Trap("segment-not-present", "#NP", "segment that is not present", (signal.SIGBUS,)),
    12: Trap("stack-segment", "#SS", "stack address that no address can be", (signal.SIGBUS,)),
    13: Trap("general-protection", "#GP", "privileged instruction, or an address that no address can be", (signal.SIGSEGV,)),
    14: Trap("page-fault", "#PF", "page fault", (signal.SIGSEGV, signal.SIGBUS)),
    16: Trap("x87-error", "#MF", "floating-point exception of the x87", (signal.SIGFPE,)),
    17: Trap("alignment-check", "#AC", "address that is not aligned", (signal.SIGBUS,)),
    19: Trap("simd-error", "#XM", "floating-point exception of SSE or AVX", (signal.SIGFPE,)),
}
SWAP_FAULT: Final = "swap-fault"
UNKNOWN: Final = "unknown"
KINDS: Final = (*(trap.kind for trap in TRAPS.values()), SWAP_FAULT, UNKNOWN)
"""All that a record can be about."""
_BY_SIGINFO: Final = {
    (signal.SIGFPE, 1): 0, (signal.SIGILL, 2): 6, (signal.SIGILL, 1): 6, (signal.SIGSEGV, 1): 14, (signal.SIGSEGV, 2): 14,
    (signal.SIGSEGV, _SI_KERNEL): 13, (signal.SIGBUS, 1): 17, (signal.SIGBUS, 2): 14, (signal.SIGTRAP, _SI_KERNEL): 3,
    (signal.SIGTRAP, 1): 1, (signal.SIGTRAP, 2): 1, (signal.SIGTRAP, 4): 1}
"""The trap that a signal's number and code tell, where the frame cannot be had."""


class FrameUnreadable(Exception):
    """The kernel could not be made to write a signal frame: a limit of processes, or the thread was killed."""


class Frame(NamedTuple):
    """What the kernel keeps of a thread's last exception."""

    trap: int
    error_code: int
    cr2: int


@dataclass(frozen=True)
class Fault:
    """One exception of one thread, in a stopped state."""

    tid: int
    process: int
    kind: str                       # one of KINDS
    info: SignalInfo
    registers: Registers
    maps: str                       # /proc/PID/maps
    frame: Frame | None = None      # None: only the siginfo is known
    why: str = ""                   # of a swap fault: what failed

    @property
    def trap(self) -> int | None:
        return self.frame.trap if self.frame else None

    @property
    def error_code(self) -> int | None:
        return self.frame.error_code if self.frame else None

    @property
    def address(self) -> int | None:
        """The address that was accessed, where the exception has one."""
        if self.frame is not None and self.trap == _PAGE_FAULT:
            return self.frame.cr2
        return self.info.address if self.info.code != _SI_KERNEL else None

    @property
    def title(self) -> str:
        """What it is called: "page fault (#PF)"."""
        name = self.kind.replace("-", " ")
        trap = next((trap for trap in TRAPS.values() if trap.kind == self.kind), None)
        return f"{name} ({trap.mnemonic})" if trap else name

    @property
    def words(self) -> str:
        """What has happened, for a person."""
        if self.kind == SWAP_FAULT:
            return f"memory at {self.address:#x} was swapped out and cannot be brought in: {self.why}"
        if self.kind == UNKNOWN:
            return "the kernel could not go on with it: most likely a signal's frame did not fit its stack"
        if self.kind != "page-fault":
            return next(trap.words for trap in TRAPS.values() if trap.kind == self.kind)
        return _page_fault_words(self)


class Exceptions:
    """The judge of a monitor's signals. `terminating(fault)` is told of one that ends its process, before it does.

    `threads`: those that are traced, with their processes.
    """

    def __init__(self, threads: Mapping[int, int], terminating: Callable[[Fault], None],
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()       # (kind, outcome): terminated or handled
        self._handled: Counter[str] = Counter()
        self._threads = threads
        self._terminating = terminating
        self._clock = clock
        self._doomed: dict[int, SignalInfo] = {}                # threads whose signal is on its way once more
        self._swap: dict[int, tuple[int, str, float]] = {}      # threads that wait for memory: address, why, until when

    def judge(self, tid: int, number: int) -> int:
        """Which signal a thread gets that has stopped for one; 0: none now. Raises ProcessLookupError, ptrace.Ended."""
        if (doomed := self._doomed.get(tid)) is not None and doomed.number == number:
            del self._doomed[tid]
            ptrace.set_signal_info(tid, doomed.raw)
            return number
        if number not in _FAULT_SIGNALS:
            return number
        info = ptrace.signal_info(tid)
        swap = self._swap.pop(tid, None) if number == signal.SIGBUS and info.code <= 0 else None
        if swap is not None:
            info = _bus_error(info, swap[0])
            ptrace.set_signal_info(tid, info.raw)
        elif info.code <= 0 or (number == signal.SIGTRAP and info.code not in _TRAP_CODES) or (
                number == signal.SIGBUS and info.code == _BUS_MCEERR_AO):
            return number                                       # somebody has sent it
        if _has_handler(tid, number):
            kind = SWAP_FAULT if swap else _kind_of(_BY_SIGINFO.get((number, info.code)))
            self.counts[kind, "handled"] += 1
            self._handled[kind] += 1
            return number
        if swap is not None:
            fault = Fault(tid, self._threads.get(tid, tid), SWAP_FAULT, info, ptrace.registers(tid), inventory.maps(tid),
                          why=swap[1])
        else:
            fault = self._look(tid, info)
        return self.terminate_current_process(fault)

    def terminate_current_process(self, reason: Fault) -> int:
        """Record why the process of a stopped thread ends; the signal that ends it."""
        self.counts[reason.kind, "terminated"] += 1
        self._terminating(reason)
        return reason.info.number

    def swap_fault(self, tid: int, address: int, why: str) -> None:
        """The memory that a thread waits for cannot be brought in.

        It gets SIGBUS as Linux sends it for a swap device's error, which its handler may take; without one it ends. A thread
        that waits inside the kernel asks for the page again and again and takes no signal: a second after it was told first it
        is killed. Raises ProcessLookupError: it is none of ours, or has ended.
        """
        if tid not in self._threads:
            raise ProcessLookupError(errno.ESRCH, f"thread {tid} is none of ours")
        if tid not in self._swap:
            nr.call(nr.TGKILL, self._threads[tid], tid, signal.SIGBUS)
            self._swap[tid] = (address, why, self._clock() + _SWAP_PATIENCE_S)
        else:
            self._end_unaware(tid)

    def take_handled(self) -> Counter[str]:
        """How many exceptions programs have handled since the last time, by kind."""
        handled, self._handled = self._handled, Counter()
        return handled

    def tidy(self) -> None:
        """Now and then: end who did not notice a swap fault, and forget who has ended."""
        for tid in [tid for tid in self._doomed if not os.path.exists(f"/proc/{tid}")]:
            del self._doomed[tid]
        for tid in list(self._swap):
            if tid not in self._threads:
                del self._swap[tid]
            else:
                self._end_unaware(tid)

    def _end_unaware(self, tid: int) -> None:
        """Kill who was told of lost memory and took no notice, once that is long enough."""
        address, why, limit = self._swap[tid]
        if self._clock() < limit:
            return
        del self._swap[tid]
        info = _bus_error(SignalInfo(signal.SIGBUS, 0, 0, bytes(128)), address)
        self.counts[SWAP_FAULT, "terminated"] += 1
        self._terminating(Fault(tid, self._threads[tid], SWAP_FAULT, info, Registers(), inventory.maps(tid), why=why))
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._threads[tid], signal.SIGKILL)

    def _look(self, tid: int, info: SignalInfo) -> Fault:
        registers, process = ptrace.registers(tid), self._threads.get(tid, tid)
        maps = inventory.maps(tid)
        frame = None
        if registers.cs == USER_CODE_64:
            with contextlib.suppress(FrameUnreadable):
                frame = self._frame(tid, info)
        trap = frame.trap if frame else _BY_SIGINFO.get((info.number, info.code))
        if frame and info.number not in (TRAPS[trap].signals if trap in TRAPS else ()):
            frame, trap = None, None        # left from an earlier exception: this signal is the kernel's own
        return Fault(tid, process, _kind_of(trap), info, registers, maps, frame)

    def _frame(self, tid: int, info: SignalInfo) -> Frame:
        """Raises FrameUnreadable, ProcessLookupError, ptrace.Ended."""
        try:
            with Borrowed(tid, Kind.SIGNAL) as thread:
                try:
                    return _frame_of_clone(thread, info.number)
                finally:
                    if thread.ran:      # it stands at a call's end now: what it is told there comes as a signal of its own
                        self._doomed[tid] = info
        except ProcessLookupError:
            raise
        except OSError as error:
            raise FrameUnreadable(str(error)) from None


def _frame_of_clone(thread: Borrowed, number: int) -> Frame:
    """What the kernel knows of the exception that a thread got a signal for. Raises OSError; ptrace.Ended: the thread has."""
    scratch = thread.call(nr.MMAP, 0, _SCRATCH_OCTETS, 3, 0x22, -1, 0)      # private, anonymous; it goes with the process
    clone = thread.call(nr.CLONE, nr.CLONE_VM, 0, 0, 0, 0)
    try:
        ptrace.wait(clone)
        return _made_frame(clone, number, scratch)
    except (ptrace.Ended, ProcessLookupError) as ended:
        raise OSError(errno.EIO, f"the clone was killed: {ended}") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(clone, signal.SIGKILL)


def _made_frame(clone: int, number: int, scratch: int) -> Frame:
    """Have the kernel make a signal frame for a clone, and read it. Raises OSError, ptrace.Ended."""
    with Borrowed(clone, Kind.TRAPPED) as thread:
        stack = struct.pack("=QIIQ", scratch + _STACK_AT, 0, 0, _SCRATCH_OCTETS - _STACK_AT)
        # Its handler is a system call instruction, where it stops again.
        action = struct.pack("=QQQQ", thread.instruction, _SA_FLAGS, thread.instruction, 0)
        write_memory(clone, scratch, stack.ljust(_ACTION_AT, b"\0") + action)
        thread.call(nr.SIGALTSTACK, scratch, 0)
        thread.call(nr.RT_SIGACTION, number, scratch + _ACTION_AT, 0, 8)
        ptrace.set_mask(clone, (~(1 << number - 1) & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little"))
        ptrace.go_on(clone, number)
        stopped = ptrace.wait(clone)
        if stopped != (Kind.SIGNAL, number):
            raise OSError(errno.EIO, f"the clone has stopped otherwise: {stopped}")
        ptrace.run_to_syscall_stop(clone, number)
        found = ptrace.registers(clone)
        if not scratch <= found.rsp < scratch + _SCRATCH_OCTETS:
            raise OSError(errno.EIO, "the frame is not where it belongs")
        values = _GREGS.unpack(read_memory(clone, found.rdx + _GREGS_AT, _GREGS.size))
        os.kill(clone, signal.SIGKILL)
        return Frame(values[_GREG_TRAP], values[_GREG_ERROR], values[_GREG_CR2])


def _bus_error(info: SignalInfo, address: int) -> SignalInfo:
    """What Linux tells of memory whose swap device has failed: SIGBUS, BUS_ADRERR."""
    head = struct.pack("=iiiiQ", signal.SIGBUS, 0, _BUS_ADRERR, 0, address)
    return SignalInfo(signal.SIGBUS, _BUS_ADRERR, address, head + info.raw[len(head):])


def _has_handler(tid: int, number: int) -> bool:
    """Whether the program takes the signal; at an exception the kernel has removed a handler that is blocked already."""
    with contextlib.suppress(OSError):
        return bool(int(inventory.status(tid)["SigCgt"], 16) >> (number - 1) & 1)
    return False


def _kind_of(trap: int | None) -> str:
    return TRAPS[trap].kind if trap in TRAPS else UNKNOWN


def _page_fault_words(fault: Fault) -> str:
    """In the words of the error code (Intel SDM 3A, 4.7)."""
    code, address = fault.error_code, fault.address or 0
    place = f"{address:#x}"
    if code is None:
        return f"access to {place}"
    access = "execution of" if code & 0x10 else "write to" if code & 0x2 else "read of"
    if fault.info.number == signal.SIGBUS:
        return f"{access} {place}, which its file does not have (it was cut short, or cannot be read)"
    if code & 0x20:
        return f"{access} {place}, which a protection key forbids"
    if address < _NULL_PAGE:
        return f"{access} {place}: a null pointer"
    region = _region_of(address, fault.maps)
    if region is not None:
        return f"{access} {place} in {region}"
    if 0 <= fault.registers.rsp - address < _STACK_NEAR or 0 <= address - fault.registers.rsp < _STACK_NEAR // 16:
        return f"{access} {place}, beyond the end of the stack: it is full"
    return f"{access} {place}, where nothing is mapped"


def _region_of(address: int, maps: str) -> str | None:
    """The mapping around an address, in words; None: there is none."""
    for line in maps.splitlines():
        start, _, end = line.partition(" ")[0].partition("-")
        if int(start, 16) <= address < int(end, 16):
            fields = line.split(None, 5)
            return f"{fields[5] if len(fields) > 5 else 'anonymous memory'}, which is mapped {fields[1]}"
    return None
