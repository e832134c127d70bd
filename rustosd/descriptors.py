"""Ends of socketpairs, and how they travel to other processes. Compiled: each connection that is handed out is one."""

import errno
import os

import cython
from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cython.cimports.libc.errno import EAGAIN
from cython.cimports.libc.errno import errno as c_errno
from cython.cimports.libc.string import memcpy, memset

if not cython.compiled:
    raise ImportError("rustosd.descriptors must be compiled: python setup.py build_ext --inplace")


@cython.final
@cython.cclass
class End:
    """One end of a socketpair. It is closed when nobody has it any more; nothing here ever waits."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __dealloc__(self) -> None:
        self.close()

    def fileno(self) -> int:
        """Its number; -1 once it is closed."""
        return self.fd

    @cython.ccall
    def close(self):
        """May be called twice."""
        if self.fd >= 0:
            close_descriptor(self.fd)
            self.fd = -1

    @cython.ccall
    def limit(self, octets: cython.int):
        """How much may lie between it and the other end, as SO_SNDBUF has it. Goes beyond the system's limit if it may."""
        if setsockopt(self.fd, SOL_SOCKET, SO_SNDBUFFORCE, cython.address(octets), cython.sizeof(octets)) < 0:
            setsockopt(self.fd, SOL_SOCKET, SO_SNDBUF, cython.address(octets), cython.sizeof(octets))

    @cython.ccall
    def send(self, octets: bytes):
        """Raises OSError."""
        send_now(self.fd, octets)

    @cython.ccall
    @cython.exceptval(check=False)
    def offer(self, octets: bytes) -> cython.bint:
        """Send octets if there is room for all of them; whether they went."""
        return send_octets(self.fd, PyBytes_AS_STRING(octets), len(octets), MSG_DONTWAIT | MSG_NOSIGNAL) == len(octets)

    @cython.ccall
    @cython.exceptval(check=False)
    def drain(self) -> cython.int:
        """Take octets that are there, and drop them; how many. There may be more than ROOM."""
        room: cython.char[ROOM]
        return cython.cast(cython.int, max(0, recv(self.fd, room, ROOM, MSG_DONTWAIT)))

    @cython.ccall
    @cython.exceptval(-1, check=True)
    def hand_over(self, octets: bytes, other: End) -> cython.bint:
        """Send octets, with another end for whoever reads them; it is closed here. Whether they went."""
        sent: cython.Py_ssize_t = send_with(self.fd, octets, other.fd)
        other.close()
        return sent == len(octets)


@cython.ccall
def make_pair(kind: cython.int, buffer_octets: cython.int) -> tuple:
    """Two ends of a socketpair of a type, each with so much room. Raises OSError (EMFILE, ENFILE)."""
    numbers: cython.int[2]
    if socketpair(AF_UNIX, kind | SOCK_CLOEXEC, 0, numbers) < 0:
        raise OSError(c_errno, os.strerror(c_errno))
    ours, theirs = End(numbers[0]), End(numbers[1])
    ours.limit(buffer_octets)
    theirs.limit(buffer_octets)
    return ours, theirs


@cython.ccall
def send_now(fd: cython.int, octets: bytes):
    """All of it, without waiting. Raises OSError."""
    if send_octets(fd, PyBytes_AS_STRING(octets), len(octets), MSG_DONTWAIT | MSG_NOSIGNAL) != len(octets):
        raise OSError(c_errno or errno.EAGAIN, os.strerror(c_errno))


@cython.cfunc
@cython.exceptval(check=False)
def send_with(fd: cython.int, octets: bytes, passed: cython.int) -> cython.Py_ssize_t:
    part: iovec
    message: msghdr
    room: cython.char[ROOM]
    control: cython.pointer[cmsghdr]
    memset(cython.address(message), 0, cython.sizeof(msghdr))
    memset(room, 0, ROOM)
    part.iov_base = PyBytes_AS_STRING(octets)
    part.iov_len = len(octets)
    message.msg_iov = cython.address(part)
    message.msg_iovlen = 1
    message.msg_control = room
    message.msg_controllen = CMSG_LEN(cython.sizeof(passed))
    control = CMSG_FIRSTHDR(cython.address(message))
    control.cmsg_level = SOL_SOCKET
    control.cmsg_type = SCM_RIGHTS
    control.cmsg_len = CMSG_LEN(cython.sizeof(passed))
    memcpy(CMSG_DATA(control), cython.address(passed), cython.sizeof(passed))
    return sendmsg(fd, cython.address(message), MSG_DONTWAIT | MSG_NOSIGNAL)


@cython.ccall
def receive_with(fd: cython.int, most: cython.int) -> tuple | None:
    """Octets that are there and the descriptor that came along (-1: none); None: there are none. Raises OSError.

    The descriptor is not inherited by programs we start.
    """
    part: iovec
    message: msghdr
    room: cython.char[ROOM]
    control: cython.pointer[cmsghdr]
    passed: cython.int = -1
    got: cython.Py_ssize_t
    data = PyBytes_FromStringAndSize(cython.NULL, most)
    memset(cython.address(message), 0, cython.sizeof(msghdr))
    part.iov_base = PyBytes_AS_STRING(data)
    part.iov_len = most
    message.msg_iov = cython.address(part)
    message.msg_iovlen = 1
    message.msg_control = room
    message.msg_controllen = CMSG_LEN(cython.sizeof(passed))
    got = recvmsg(fd, cython.address(message), MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
    if got < 0:
        if c_errno == EAGAIN:
            return None
        raise OSError(c_errno, os.strerror(c_errno))
    control = CMSG_FIRSTHDR(cython.address(message))
    if (control is not cython.NULL and control.cmsg_level == SOL_SOCKET and control.cmsg_type == SCM_RIGHTS
            and control.cmsg_len >= CMSG_LEN(cython.sizeof(passed))):
        memcpy(cython.address(passed), CMSG_DATA(control), cython.sizeof(passed))
    return data[:got], passed
