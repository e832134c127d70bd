"""Whole messages on a blocking socket, without the GIL. Both return 0 or an errno: ETIMEDOUT when the socket has a limit."""

import cython
from cython.cimports.libc.errno import EAGAIN, ECONNRESET, EINTR, ETIMEDOUT, errno
from cython.cimports.libc.stdint import uint8_t, uint64_t
from cython.cimports.libc.string import memset
from cython.cimports.posix.uio import iovec
from cython.cimports.rustosd.sockets import MSG_NOSIGNAL, msghdr, sendmsg

if not cython.compiled:
    raise ImportError("rustosd.nbd.exchange must be compiled: python setup.py build_ext --inplace")


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def send_all(fd: cython.int, header: cython.pointer[cython.const[uint8_t]], header_octets: uint64_t,
             data: cython.pointer[cython.const[uint8_t]], octets: uint64_t) -> cython.int:
    """All of both."""
    parts: iovec[2]
    message: msghdr
    sent: cython.Py_ssize_t
    while header_octets + octets:
        parts[0].iov_base, parts[0].iov_len = cython.cast(cython.p_void, header), header_octets
        parts[1].iov_base, parts[1].iov_len = cython.cast(cython.p_void, data), octets
        memset(cython.address(message), 0, cython.sizeof(message))
        message.msg_iov, message.msg_iovlen = parts, 2 if octets else 1
        sent = sendmsg(fd, cython.address(message), MSG_NOSIGNAL)
        if sent < 0:
            if errno == EINTR:
                continue
            return ETIMEDOUT if errno == EAGAIN else errno
        if cython.cast(uint64_t, sent) >= header_octets:
            sent -= header_octets
            header_octets = 0
            data += sent
            octets -= sent
        else:
            header += sent
            header_octets -= sent
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def receive_all(fd: cython.int, data: cython.pointer[uint8_t], octets: uint64_t) -> cython.int:
    """All of it."""
    got: cython.Py_ssize_t
    while octets:
        got = recv(fd, data, octets, MSG_WAITALL)
        if got == 0:
            return ECONNRESET
        if got < 0:
            if errno == EINTR:
                continue
            return ETIMEDOUT if errno == EAGAIN else errno
        data += got
        octets -= got
    return 0
