"""A task inside a program's address space that always stands still, and drops pages there when it is told to.

Linux lets nobody drop the pages of another process (MADV_DONTNEED). The helper shares the program's memory and nothing else: no
descriptors, no signals, not its process group. For each batch it runs a few instructions of ours and stops again.
"""

import contextlib
import os
import signal
import struct
from collections.abc import Sequence
from typing import Final

from rustosd.process import ptrace
from rustosd.process import syscalls as nr
from rustosd.process.notify import read_memory, write_memory
from rustosd.process.ptrace import Borrowed, Ended, Kind

RANGES_MOST: Final = 256
_ENTRY = struct.Struct("=QQq")                  # where, octets, what madvise returned
_CODE_OCTETS: Final = 4096
SCRATCH_OCTETS: Final = _CODE_OCTETS + 2 * 4096
_MADV_DONTNEED: Final = 4
_PROTECTION: Final = 7                          # read, write, execute
_SHARED_ANONYMOUS: Final = 0x21                 # so that it is not itself taken for the program's memory
_CODE: Final = bytes.fromhex(
    "488b3b"            # next: mov rdi, [rbx]          the range ...
    "488b7308"          #       mov rsi, [rbx + 8]
    "ba04000000"        #       mov edx, 4              MADV_DONTNEED
    "b81c000000"        #       mov eax, 28             madvise; r9 is the filter's cookie
    "0f05"              #       syscall
    "48894310"          #       mov [rbx + 16], rax     ... and how it went
    "4883c318"          #       add rbx, 24
    "48ffcd"            #       dec rbp
    "75e0"              #       jnz next
    "cc")               #       int3


class HelperDied(Exception):
    """The helper, or its program, was killed."""


class Helper:
    """The helper of one address space. Its supervisor traces it and nobody else knows of it."""

    def __init__(self, pid: int, scratch: int, cookie: int) -> None:
        self.pid, self._scratch, self._cookie = pid, scratch, cookie
        self.ended = False              # somebody has killed it, and its number may be another's

    @classmethod
    def start(cls, owner: Borrowed, cookie: int, former: "Helper | None" = None) -> "Helper":
        """A new one in the address space of a borrowed thread. `former`: the one that its parent had at the fork.

        Raises OSError, ptrace.Ended.
        """
        if former is not None:          # the mapping came with the fork
            with contextlib.suppress(OSError):
                owner.call(nr.MUNMAP, former._scratch, SCRATCH_OCTETS)
        scratch = owner.call(nr.MMAP, 0, SCRATCH_OCTETS, _PROTECTION, _SHARED_ANONYMOUS, -1, 0)
        write_memory(owner.tid, scratch, _CODE)
        # No exit signal: its parent, which is the program, does not see it when it waits for children.
        pid = owner.call(nr.CLONE, nr.CLONE_VM, 0, 0, 0, 0)
        ptrace.wait(pid)
        with Borrowed(pid, Kind.TRAPPED) as helper:
            helper.call(nr.CLOSE_RANGE, 0, 0xFFFF_FFFF, 0)
            helper.call(nr.SETPGID, 0, 0)
        return cls(pid, scratch, cookie)

    def drop(self, ranges: Sequence[tuple[int, int]]) -> list[int]:
        """Drop the pages of (start, octets); for each 0, or an errno. Raises HelperDied."""
        if self.ended:
            raise HelperDied
        results = []
        for first in range(0, len(ranges), RANGES_MOST):
            results += self._drop(ranges[first:first + RANGES_MOST])
        return results

    def _drop(self, ranges: Sequence[tuple[int, int]]) -> list[int]:
        table = self._scratch + _CODE_OCTETS
        try:
            write_memory(self.pid, table, b"".join(_ENTRY.pack(start, octets, 0) for start, octets in ranges))
            registers = ptrace.registers(self.pid)
            registers.rip, registers.rbx, registers.rbp = self._scratch, table, len(ranges)
            registers.r9, registers.orig_rax = self._cookie, 0xFFFF_FFFF_FFFF_FFFF
            ptrace.set_registers(self.pid, registers)
            ptrace.go_on(self.pid)
            while True:
                kind, number = ptrace.wait(self.pid)
                if kind is Kind.SIGNAL and number == signal.SIGTRAP:
                    break
                ptrace.go_on(self.pid)                  # a signal that somebody sent it
            told = read_memory(self.pid, table, len(ranges) * _ENTRY.size)
        except (Ended, OSError) as error:
            self.ended |= isinstance(error, Ended)
            raise HelperDied(str(error)) from None
        return [-result for _, _, result in _ENTRY.iter_unpack(told)]

    def end(self, parent: Borrowed | None = None) -> None:
        """It is needed no more. `parent`: the program, if it lives on, lest it keep the dead one."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, ptrace.WALL)
            self.ended = True
        if parent is not None:
            with contextlib.suppress(OSError):
                parent.call(nr.WAIT4, self.pid, 0, ptrace.WALL | os.WNOHANG, 0)
