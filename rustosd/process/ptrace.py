"""ptrace(2) for a supervisor that owns its programs: stops, registers, signals, and system calls in a stopped thread.

Everything here is for x86-64, and for the thread that seized the tracee: the kernel lets no other one in. A tracee that was
killed meanwhile is ProcessLookupError or `Ended`, whichever comes first.
"""

import contextlib
import ctypes
import errno
import os
import signal
import struct
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple, Self

from rustosd.process.notify import read_memory

WALL: Final = 0x4000_0000           # __WALL: threads and clones, too
_CONT, _SYSCALL = 7, 24
_GETREGS, _SETREGS = 12, 13
_GETEVENTMSG, _GETSIGINFO, _SETSIGINFO = 0x4201, 0x4202, 0x4203
_SEIZE, _INTERRUPT, _LISTEN = 0x4206, 0x4207, 0x4208
_GETSIGMASK, _SETSIGMASK = 0x420A, 0x420B
_SYSGOOD, _FORK, _VFORK, _CLONE, _EXEC, _SECCOMP, _EXITKILL = 0x1, 0x2, 0x4, 0x8, 0x10, 0x80, 0x10_0000
_OPTIONS: Final = _SYSGOOD | _FORK | _VFORK | _CLONE | _EXEC | _SECCOMP | _EXITKILL
_MASK_OCTETS: Final = 8
_EVERY_SIGNAL: Final = b"\xff" * _MASK_OCTETS
_EVENT_STOP: Final = 128
_SYSCALL_STOP: Final = signal.SIGTRAP | 0x80
STOP_SIGNALS: Final = frozenset((signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU))
SYSCALL_INSTRUCTION: Final = b"\x0f\x05"
_ERRNO_MOST: Final = 4095
_AT_SYSINFO_EHDR: Final = 33        # auxiliary vector: where the vDSO is
_VDSO_OCTETS: Final = 8192
USER_CODE_64: Final = 0x33          # cs of 64-bit code
# What the kernel leaves in rax for a call that is to be made again (include/linux/errno.h), and the call that goes on.
_RESTARTS: Final = frozenset(-number & 0xFFFF_FFFF_FFFF_FFFF for number in (512, 513, 514))
_RESTART_BLOCK: Final = -516 & 0xFFFF_FFFF_FFFF_FFFF
_RESTART_SYSCALL: Final = 219

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Kind(Enum):
    """What waitpid(2) has to tell of a tracee. It has stopped, unless it has ended."""

    ENDED = "ended"
    SIGNAL = "signal"           # about to be delivered; whoever goes on decides whether it is
    SYSCALL = "syscall"         # at the entry or the end of a call, when it was let go by `Borrowed`
    FORK = "fork"
    VFORK = "vfork"
    CLONE = "clone"
    EXEC = "exec"               # the new program is there and has not run an instruction
    CALL = "call"               # a system call that its filter tells us about, before it is carried out
    STOPPED = "stopped"         # with its whole process, by SIGSTOP and its like
    TRAPPED = "trapped"         # new, interrupted, or not stopped any more


_EVENTS: Final = {1: Kind.FORK, 2: Kind.VFORK, 3: Kind.CLONE, 4: Kind.EXEC, 7: Kind.CALL}
IN_A_CALL: Final = frozenset((Kind.FORK, Kind.VFORK, Kind.CLONE, Kind.EXEC))
"""Stops in the middle of a system call."""


class Registers(ctypes.Structure):
    """struct user_regs_struct (sys/user.h)."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in (
        "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax",
        "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"))

    def copy(self) -> "Registers":
        return Registers.from_buffer_copy(self)

    def items(self) -> Iterator[tuple[str, int]]:
        """(name, value) in the kernel's order."""
        return ((name, getattr(self, name)) for name, _ in self._fields_)


class SignalInfo(NamedTuple):
    """A siginfo_t: what of it says why, and all of it."""

    number: int
    code: int
    address: int            # si_addr of a fault; for a signal that somebody sent, his process and user
    raw: bytes


class Ended(Exception):
    """The tracee has ended while we waited for it; `status` is waitpid's, which tells it once only."""

    def __init__(self, tid: int, status: int) -> None:
        super().__init__(f"thread {tid} has ended")
        self.tid, self.status = tid, status


def decode(status: int) -> tuple[Kind, int]:
    """What a status of waitpid(2) tells, and the signal number where there is one."""
    if not os.WIFSTOPPED(status):
        return Kind.ENDED, 0
    number, event = os.WSTOPSIG(status), status >> 16
    if event == _EVENT_STOP:
        return Kind.STOPPED if number in STOP_SIGNALS else Kind.TRAPPED, number
    if event:
        return _EVENTS[event], number
    return (Kind.SYSCALL if number == _SYSCALL_STOP else Kind.SIGNAL), number


def seize(pid: int) -> None:
    """Become the tracer of a thread, and of all that it starts; if we die, they are killed. Raises OSError."""
    _ptrace(_SEIZE, pid, 0, _OPTIONS)


def go_on(tid: int, number: int = 0) -> None:
    """Let a stopped tracee run, with this signal delivered. Raises ProcessLookupError."""
    _ptrace(_CONT, tid, 0, number)


def go_on_to_call_end(tid: int) -> None:
    """Let who stands before a call (Kind.CALL) carry it out, up to its end (Kind.SYSCALL). Raises ProcessLookupError."""
    _ptrace(_SYSCALL, tid)


def listen(tid: int) -> None:
    """Leave a tracee stopped with its process, and hear of it when it goes on. Raises ProcessLookupError."""
    _ptrace(_LISTEN, tid)


def interrupt(tid: int) -> None:
    """Have it stop (Kind.TRAPPED) as soon as it can; do not wait for it: that may be never. Raises ProcessLookupError."""
    _ptrace(_INTERRUPT, tid)


def event_message(tid: int) -> int:
    """The new thread of a fork, vfork or clone; who called exec. Raises ProcessLookupError."""
    message = ctypes.c_ulong()
    _ptrace(_GETEVENTMSG, tid, 0, ctypes.addressof(message))
    return message.value


def registers(tid: int) -> Registers:
    """Of a stopped tracee. Raises ProcessLookupError."""
    found = Registers()
    _ptrace(_GETREGS, tid, 0, ctypes.addressof(found))
    return found


def set_registers(tid: int, to: Registers) -> None:
    """Raises ProcessLookupError."""
    _ptrace(_SETREGS, tid, 0, ctypes.addressof(to))


def signal_info(tid: int) -> SignalInfo:
    """Of the signal that a tracee has stopped for. Raises ProcessLookupError."""
    raw = ctypes.create_string_buffer(128)
    _ptrace(_GETSIGINFO, tid, 0, ctypes.addressof(raw))
    number, _, code = struct.unpack_from("=iii", raw)
    return SignalInfo(number, code, *struct.unpack_from("=Q", raw, 16), raw.raw)


def set_signal_info(tid: int, raw: bytes) -> None:
    """What the signal's handler shall be told. Raises ProcessLookupError."""
    octets = ctypes.create_string_buffer(raw, 128)
    _ptrace(_SETSIGINFO, tid, 0, ctypes.addressof(octets))


def set_mask(tid: int, mask: bytes) -> None:
    """Which signals a stopped tracee has blocked. Raises ProcessLookupError."""
    octets = ctypes.create_string_buffer(mask, _MASK_OCTETS)
    _ptrace(_SETSIGMASK, tid, _MASK_OCTETS, ctypes.addressof(octets))


def syscall_instruction(tid: int) -> int:
    """Where in its memory there is one. Raises OSError; ProcessLookupError: it was killed."""
    try:
        with open(f"/proc/{tid}/auxv", "rb") as vector:
            vdso = dict(struct.iter_unpack("=QQ", vector.read())).get(_AT_SYSINFO_EHDR, 0)
        if (at := read_memory(tid, vdso, _VDSO_OCTETS).find(SYSCALL_INSTRUCTION)) >= 0:
            return vdso + at
    except (OSError, struct.error):
        pass                            # it has none, or has moved it away
    maps = ""
    with contextlib.suppress(FileNotFoundError):
        maps = Path(f"/proc/{tid}/maps").read_text(errors="replace")
    if not maps:                        # it has no memory any more, or is gone
        raise ProcessLookupError(errno.ESRCH, f"thread {tid} was killed")
    for line in maps.splitlines():
        start, _, end = line.split(" ", 1)[0].partition("-")
        if line.split()[1][2] == "x" and not line.endswith("[vsyscall]"):
            octets = read_memory(tid, int(start, 16), min(int(end, 16) - int(start, 16), 1 << 20))
            if (at := octets.find(SYSCALL_INSTRUCTION)) >= 0:
                return int(start, 16) + at
    raise OSError(14, f"thread {tid} has no system call instruction in its memory")


class Borrowed:
    """A stopped tracee, lent to us for system calls that it did not make. Afterwards it stands still as it was before.

    Its signals wait meanwhile. It is not single-stepped, so the kernel's record of its last exception stays.
    `kind`: of the stop it was found in.
    """

    def __init__(self, tid: int, kind: Kind) -> None:
        self.tid = tid
        self.born: list[int] = []           # threads that calls of ours have made; they stop at their first instruction
        self.ran = False                    # it has made a call: it stands at the end of one, wherever it stood before
        self._held_back: list[int] = []
        self._stops = False                 # it was told to: SIGSTOP cannot be blocked
        self._finish = kind in IN_A_CALL
        self.instruction = syscall_instruction(tid)

    def __enter__(self) -> Self:
        mask = ctypes.create_string_buffer(_MASK_OCTETS)
        _ptrace(_GETSIGMASK, self.tid, _MASK_OCTETS, ctypes.addressof(mask))
        self._mask = mask.raw
        set_mask(self.tid, _EVERY_SIGNAL)
        if self._finish:
            self._run_to_syscall_stop()
        self.found = registers(self.tid)
        return self

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(ProcessLookupError):       # it was killed
            set_registers(self.tid, _restarting(self.found))
            set_mask(self.tid, self._mask)
            for number in self._held_back:
                os.kill(self.tid, number)
            if self._stops:                 # it says itself whether it still is to, which a SIGCONT may have changed
                interrupt(self.tid)

    def call(self, number: int, *arguments: int) -> int:
        """What the call returns. Raises OSError as it fails; Ended."""
        made = self.found.copy()
        made.rip, made.rax, made.orig_rax = self.instruction, number, 0xFFFF_FFFF_FFFF_FFFF
        for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False):
            setattr(made, name, value & 0xFFFF_FFFF_FFFF_FFFF)
        set_registers(self.tid, made)
        self._run_to_syscall_stop()         # its entry
        self._run_to_syscall_stop()         # its end
        result = ctypes.c_int64(registers(self.tid).rax).value
        if -_ERRNO_MOST <= result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    def _run_to_syscall_stop(self) -> None:
        self.ran = True
        number = 0
        while True:
            _ptrace(_SYSCALL, self.tid, 0, number if number in STOP_SIGNALS else 0)
            kind, number = wait(self.tid)
            if kind is Kind.SYSCALL:
                return
            if kind in IN_A_CALL:
                self.born.append(event_message(self.tid))
            elif kind is Kind.STOPPED:
                self._stops, number = True, 0
            elif kind is Kind.SIGNAL and number not in STOP_SIGNALS:
                self._held_back.append(number)


def wait(tid: int) -> tuple[Kind, int]:
    """Wait for the next stop of one tracee. Raises Ended."""
    _, status = os.waitpid(tid, WALL)
    kind, number = decode(status)
    if kind is Kind.ENDED:
        raise Ended(tid, status)
    return kind, number


def run_to_syscall_stop(tid: int, number: int = 0) -> None:
    """Let it run, with this signal delivered, to a system call. Raises Ended; OSError (EINTR): something else stops it."""
    _ptrace(_SYSCALL, tid, 0, number)
    kind, number = wait(tid)
    if kind is not Kind.SYSCALL:
        raise OSError(4, f"thread {tid} has stopped otherwise: {kind.value} {number}")


def _restarting(found: Registers) -> Registers:
    """Registers of an interrupted call as the kernel makes them when it returns to the program without a signal's handler."""
    if ctypes.c_int64(found.orig_rax).value < 0 or found.rax not in (*_RESTARTS, _RESTART_BLOCK):
        return found
    made = found.copy()
    made.rax = _RESTART_SYSCALL if found.rax == _RESTART_BLOCK else found.orig_rax
    made.rip -= len(SYSCALL_INSTRUCTION)
    made.orig_rax = 0xFFFF_FFFF_FFFF_FFFF
    return made


def _ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, tid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
