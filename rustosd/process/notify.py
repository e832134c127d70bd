"""What can be done about a system call of a supervised program that waits. Compiled: it runs per call.

A call may be over before it is answered, because a signal interrupted it or its process was killed; then whatever is
answered goes nowhere, which `_send` does not mind, and `give` tells by LookupError.
"""

import errno
import os

import cython
from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cython.cimports.libc.errno import ENOENT
from cython.cimports.libc.errno import errno as c_errno
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.posix.signal import SIG_SETMASK, sigfillset, sigprocmask, sigset_t

if not cython.compiled:
    raise ImportError("rustosd.process.notify must be compiled: python setup.py build_ext --inplace")

LONGEST = 1 << 20
"""Octets of one `read_memory`: what a program may make us hold at a time."""

assert cython.sizeof(seccomp_notif) == 80 and cython.sizeof(seccomp_notif_resp) == 24
assert cython.sizeof(seccomp_notif_addfd) == 24


@cython.final
@cython.cclass
class Notifications:
    """The listener of a seccomp filter. `fd` is readable while calls wait; it belongs to the caller."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        ioctl(fd, RUSTOSD_NOTIF_SET_FLAGS, RUSTOSD_NOTIF_SYNC_WAKE_UP)      # an older kernel refuses, and is slower

    def waiting(self) -> bool:
        """Whether a call waits: `receive` will not block."""
        look: pollfd
        look.fd = self.fd
        look.events = POLLIN
        look.revents = 0
        return poll(cython.address(look), 1, 0) > 0 and look.revents & POLLIN != 0

    @cython.ccall
    def proceed(self, id: uint64_t):
        """The kernel carries the call out. Not for anything that was decided by the program's memory: it may change."""
        self._send(id, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE)

    def valid(self, id: uint64_t) -> bool:
        """Whether the program still waits for the answer."""
        return ioctl(self.fd, SECCOMP_IOCTL_NOTIF_ID_VALID, cython.address(id)) == 0

    @cython.ccall
    def give(self, id: uint64_t, fd: cython.int, close_on_exec: cython.bint):
        """Give the program a descriptor of ours, and return its number from the call. Which one it is.

        Raises LookupError when the call is over, OSError (EMFILE) when the program has as many as it may.
        """
        return self._add(id, fd, SECCOMP_ADDFD_FLAG_SEND, 0, close_on_exec)

    def replace(self, id: uint64_t, fd: cython.int, number: uint32_t, close_on_exec: cython.bint) -> None:
        """Put a descriptor of ours in the place of one of the program's. Raises as `give`; the call is not answered yet."""
        self._add(id, fd, SECCOMP_ADDFD_FLAG_SETFD, number, close_on_exec)

    @cython.cfunc
    def _add(self, id: uint64_t, fd: cython.int, flags: uint32_t, number: uint32_t, close_on_exec: cython.bint):
        request: seccomp_notif_addfd
        result: cython.int
        request.id = id
        request.flags = flags
        request.srcfd = fd
        request.newfd = number
        request.newfd_flags = O_CLOEXEC if close_on_exec else 0
        # A signal to us in the middle of it would let the call return 0, and no descriptor.
        every: sigset_t
        before: sigset_t
        sigfillset(cython.address(every))
        sigprocmask(SIG_SETMASK, cython.address(every), cython.address(before))
        result = ioctl(self.fd, SECCOMP_IOCTL_NOTIF_ADDFD, cython.address(request))
        error: cython.int = c_errno
        sigprocmask(SIG_SETMASK, cython.address(before), cython.NULL)
        if result < 0:
            if error == ENOENT:
                raise LookupError("the call is over")
            raise OSError(error, os.strerror(error))
        return result

    @cython.cfunc
    def _send(self, id: uint64_t, value: int64_t, error: cython.int, flags: uint32_t) -> cython.void:
        response: seccomp_notif_resp
        response.id = id
        response.val = value
        response.error = error
        response.flags = flags
        ioctl(self.fd, SECCOMP_IOCTL_NOTIF_SEND, cython.address(response))


@cython.ccall
def read_memory(pid: cython.int, address: uint64_t, octets: uint64_t) -> bytes:
    """Octets of a thread's memory, all of them. Raises OSError (EFAULT; ENOMEM for more than LONGEST)."""
    local: iovec
    remote: iovec
    if octets > LONGEST:
        raise OSError(errno.ENOMEM, f"at most {LONGEST} octets at a time")
    data = PyBytes_FromStringAndSize(cython.NULL, octets)
    local.iov_base = PyBytes_AS_STRING(data)
    remote.iov_base = cython.cast(cython.p_void, address)
    local.iov_len = remote.iov_len = octets
    if octets and process_vm_readv(pid, cython.address(local), 1, cython.address(remote), 1, 0) != octets:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
    return data


def write_memory(pid: cython.int, address: uint64_t, data: bytes) -> None:
    """Raises OSError (EFAULT); some of it may have been written then."""
    local: iovec
    remote: iovec
    octets: cython.size_t = len(data)
    local.iov_base = PyBytes_AS_STRING(data)
    remote.iov_base = cython.cast(cython.p_void, address)
    local.iov_len = remote.iov_len = octets
    if octets and process_vm_writev(pid, cython.address(local), 1, cython.address(remote), 1, 0) != octets:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
