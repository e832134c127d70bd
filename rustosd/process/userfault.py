"""Makes a program a userfaultfd, whoever it is, and fetches it: only a task in its memory can, for it is of who makes it.

Root may by a system call. Others may by /dev/userfaultfd, which they cannot open: they are sent ours, use it once, and do not
have it any more when they go on.
"""

import contextlib
import errno
import os
import socket
import struct
from pathlib import Path
from typing import Final

from mm.paging.userfault import FLAGS
from rustosd.process import syscalls as nr
from rustosd.process.notify import read_memory, write_memory
from rustosd.process.ptrace import Borrowed

DEVICE: Final = "/dev/userfaultfd"
UNPRIVILEGED: Final = "vm.unprivileged_userfaultfd=1"
_UNPRIVILEGED_FILE: Final = "/proc/sys/vm/unprivileged_userfaultfd"
_IOC_NEW: Final = 0xAA00
_PAGE: Final = 4096
_READ_WRITE, _SHARED_ANONYMOUS = 3, 0x21
# Where in a page of the program's: two descriptors, struct msghdr, struct iovec, an octet, struct cmsghdr with a descriptor.
_ENDS_AT, _HEADER_AT, _VECTOR_AT, _OCTET_AT, _CONTROL_AT = 0, 64, 128, 160, 192
_CONTROL_OCTETS: Final = 24


def why_not() -> str:
    """Why programs of other users cannot have one here; empty: they can."""
    with contextlib.suppress(OSError):
        if Path(_UNPRIVILEGED_FILE).read_text().strip() != "0":
            return ""
    return "" if os.access(DEVICE, os.R_OK | os.W_OK) else (
        f"the memory of programs of other users than root is limited only with {DEVICE} (Linux 6.1 or later), "
        f"or with {UNPRIVILEGED} (sysctl)")


def make(thread: Borrowed, pid: int, cookie: int) -> int:
    """A borrowed thread's userfaultfd, ours alone. Raises OSError, ptrace.Ended."""
    process = os.pidfd_open(pid)
    try:
        try:
            number = thread.call(nr.USERFAULTFD, FLAGS, cookie)
        except PermissionError:
            number = _by_device(thread, process, cookie)
        try:
            return nr.call(nr.PIDFD_GETFD, process, number, 0)
        finally:
            thread.call(nr.CLOSE, number)
    finally:
        os.close(process)


def _by_device(thread: Borrowed, process: int, cookie: int) -> int:
    """The number of a new userfaultfd in the program. Raises OSError."""
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        page = thread.call(nr.MMAP, 0, _PAGE, _READ_WRITE, _SHARED_ANONYMOUS, -1, 0)
        try:
            theirs = _pass(thread, process, cookie, page, device)
        finally:
            thread.call(nr.MUNMAP, page, _PAGE)
        try:
            return thread.call(nr.IOCTL, theirs, _IOC_NEW, FLAGS)
        finally:
            thread.call(nr.CLOSE, theirs)
    finally:
        os.close(device)


def _pass(thread: Borrowed, process: int, cookie: int, page: int, fd: int) -> int:
    """The number that a descriptor of ours has in the program, for which a page of its memory is used. Raises OSError."""
    thread.call(nr.SOCKETPAIR, socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0, page + _ENDS_AT)
    ends = struct.unpack("=ii", read_memory(thread.tid, page + _ENDS_AT, 8))
    try:
        with socket.socket(fileno=nr.call(nr.PIDFD_GETFD, process, ends[0], 0)) as ours:
            socket.send_fds(ours, [b"x"], [fd])
        write_memory(thread.tid, page + _VECTOR_AT, struct.pack("=QQ", page + _OCTET_AT, 1))
        write_memory(thread.tid, page + _HEADER_AT, struct.pack("=QQQQQQQ", 0, 0, page + _VECTOR_AT, 1, page + _CONTROL_AT,
                                                                _CONTROL_OCTETS, 0))
        thread.call(nr.RECVMSG, ends[1], page + _HEADER_AT, socket.MSG_CMSG_CLOEXEC, 0, 0, cookie)
        length, level, kind, number = struct.unpack("=QiiI", read_memory(thread.tid, page + _CONTROL_AT, 20))
        if (length, level, kind) != (20, socket.SOL_SOCKET, socket.SCM_RIGHTS):
            raise OSError(errno.EPROTO, "the program did not get the descriptor that it was sent")
        return number
    finally:
        for end in ends:
            thread.call(nr.CLOSE, end)
