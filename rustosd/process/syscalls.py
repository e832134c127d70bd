"""System calls by number, as x86-64 has them (arch/x86/entry/syscalls/syscall_64.tbl)."""

import ctypes
import os
import platform
from typing import Final

SOCKET: Final = 41
CONNECT: Final = 42
ACCEPT: Final = 43
SENDTO: Final = 44
RECVFROM: Final = 45
SENDMSG: Final = 46
RECVMSG: Final = 47
SHUTDOWN: Final = 48
BIND: Final = 49
LISTEN: Final = 50
GETSOCKNAME: Final = 51
GETPEERNAME: Final = 52
SOCKETPAIR: Final = 53
SETSOCKOPT: Final = 54
GETSOCKOPT: Final = 55
ACCEPT4: Final = 288
RECVMMSG: Final = 299
SENDMMSG: Final = 307
SECCOMP: Final = 317
IO_URING_SETUP: Final = 425
IO_URING_ENTER: Final = 426
IO_URING_REGISTER: Final = 427

NAMES: Final = {number: name.lower() for name, number in list(globals().items()) if name.isupper() and isinstance(number, int)}
MMAP: Final = 9
MPROTECT: Final = 10
MUNMAP: Final = 11
BRK: Final = 12
RT_SIGACTION: Final = 13
IOCTL: Final = 16
MREMAP: Final = 25
MADVISE: Final = 28
SHMAT: Final = 30
CLOSE: Final = 3
CLONE: Final = 56
FORK: Final = 57
EXECVE: Final = 59
WAIT4: Final = 61
SETPGID: Final = 109
SIGALTSTACK: Final = 131
REMAP_FILE_PAGES: Final = 216
TGKILL: Final = 234
KCMP: Final = 312
USERFAULTFD: Final = 323
PKEY_MPROTECT: Final = 329
CLONE3: Final = 435
CLOSE_RANGE: Final = 436
PIDFD_GETFD: Final = 438
PROCESS_MADVISE: Final = 440
CLONE_VM: Final = 0x100
AUDIT_ARCH: Final = 0xC000003E          # AUDIT_ARCH_X86_64
X32_BIT: Final = 0x4000_0000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_libc.unshare.argtypes = [ctypes.c_int]


def check_machine() -> None:
    """Raises OSError on a machine whose calls are not in this table."""
    if platform.machine() != "x86_64":
        raise OSError(38, f"programs can be run on x86-64 only, this is {platform.machine()}; "
                          "use rustosd.client in the program instead")


def call(number: int, *arguments: int) -> int:
    """A system call by number. Raises OSError."""
    return _checked(_libc.syscall(ctypes.c_long(number), *(ctypes.c_void_p(value) for value in arguments)))


def prctl(option: int, *arguments: int) -> int:
    """prctl(2). Raises OSError."""
    return _checked(_libc.prctl(option, *arguments, *(0,) * (4 - len(arguments))))


def unshare(flags: int) -> None:
    """unshare(2). Raises OSError."""
    _checked(_libc.unshare(flags))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
