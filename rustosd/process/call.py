"""One system call that waits for its answer, and the small things every handler does with it. Compiled: it runs per call."""

import errno
import os
import socket
import struct
import traceback

import cython
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t

from rustosd.process.notify import LONGEST, write_memory
from rustosd.process.sockaddr import LONGEST as NAME_LONGEST
from rustosd.process.sockaddr import emit
from rustosd.process.threads import inode_of

if not cython.compiled:
    raise ImportError("rustosd.process.call must be compiled: python setup.py build_ext --inplace")

_LENGTH = struct.Struct("=I")
_POINTERS = struct.Struct("=QQ")                    # struct iovec
_MESSAGE = struct.Struct("=QI4xQQQQi4x")            # struct msghdr: name, its length, iov, how many, control, its length, flags
_VECTORS_MOST = 1024                                # UIO_MAXIOV
_CONTROL_MOST = 4096
MESSAGE_OCTETS = _MESSAGE.size
NAME_LENGTH_AT = 8
CONTROL_LENGTH_AT = 40


@cython.final
@cython.cclass
class Call:
    """A call of a supervised thread. It is answered once; what comes too late goes nowhere."""

    def __cinit__(self) -> None:
        self.end = -1

    def __dealloc__(self) -> None:
        self.let_go()

    @cython.cfunc
    @cython.exceptval(check=False)
    def let_go(self) -> cython.void:
        """Close the duplicate, if nobody has borrowed it."""
        if self.end >= 0:
            close_descriptor(self.end)
            self.end = -1

    @property
    def fd(self) -> cython.int:
        """The first argument, as the kernel sees an int."""
        return cython.cast(cython.int, self.words[0])

    @cython.ccall
    @cython.exceptval(check=False)
    def int(self, index: cython.int) -> cython.int:
        """An argument that is an int."""
        return cython.cast(cython.int, self.words[index])

    @cython.ccall
    @cython.exceptval(check=False)
    def pointer(self, index: cython.int) -> uint64_t:
        """An argument that is a pointer, or a size."""
        return self.words[index]

    @property
    def valid(self) -> bool:
        """Whether somebody waits for the answer."""
        return self.notifications.valid(self.id)

    @cython.ccall
    def answer(self, value: int64_t = 0):
        """The call returns this."""
        self.notifications._send(self.id, value, 0, 0)

    @cython.ccall
    def refuse(self, number: cython.int):
        """The call fails with this errno."""
        self.notifications._send(self.id, 0, -number, 0)

    def fail(self, wrong: Exception) -> None:
        """The call fails with the errno of an OSError; with EIO for what should never be raised, which is told on stderr.

        None but LookupError is raised by a call that was over before it was answered; the answer goes nowhere then.
        """
        failed = isinstance(wrong, OSError)
        self.refuse((wrong.errno if failed else 0) or errno.EIO)
        if not failed and not isinstance(wrong, LookupError):
            traceback.print_exception(wrong)

    @cython.ccall
    def proceed(self):
        """The kernel carries it out."""
        self.notifications.proceed(self.id)

    @cython.ccall
    def give(self, fd: cython.int, close_on_exec: cython.bint):
        """Raises LookupError, OSError; see `Notifications.give`."""
        return self.notifications.give(self.id, fd, close_on_exec)

    def replace(self, fd: cython.int, number: uint32_t, close_on_exec: cython.bint) -> None:
        """Raises LookupError, OSError; see `Notifications.replace`."""
        self.notifications.replace(self.id, fd, number, close_on_exec)

    def borrow(self, inode: uint64_t) -> int:
        """A duplicate of the descriptor, the caller's to close. Raises OSError (EBADF) when it is not that socket any more."""
        end: cython.int = self.end
        self.end = -1
        if end < 0:
            end = self.threads.duplicate(self.thread, self.fd)
            if inode_of(end) != inode:
                close_descriptor(end)
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return end

    # The caller's memory. A pointer is read once: what it points to may change while we look.

    @cython.ccall
    def read(self, address: uint64_t, octets: uint64_t) -> bytes:
        """Raises OSError (EFAULT)."""
        return read_memory(self.thread, address, octets)

    def write(self, address: uint64_t, data: bytes) -> None:
        """Raises OSError (EFAULT)."""
        write_memory(self.thread, address, data)

    @cython.ccall
    def read_name(self, address: uint64_t, length: cython.int) -> bytes:
        """A struct sockaddr. Raises OSError (EINVAL, EFAULT)."""
        if not 0 <= length <= NAME_LONGEST:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return read_memory(self.thread, address, length)

    @cython.ccall
    def write_name(self, endpoint: object, family: object):
        """A struct sockaddr where the second argument says, as `write_sized` by the third. Raises OSError."""
        self.write_sized(self.words[1], self.words[2], emit(endpoint, family))

    @cython.ccall
    def write_sized(self, address: uint64_t, length_at: uint64_t, octets: bytes):
        """As much as there is room for, and how long it is. Raises OSError (EFAULT, EINVAL)."""
        length: uint32_t = len(octets)
        room: int64_t = self.room(length_at)
        self.write_both(address, octets, min(room, length), length_at, length, room != length)

    @cython.ccall
    def write_option(self, octets: bytes):
        """The value of getsockopt(2), cut to the room there is, and how long it is then. Raises OSError (EFAULT, EINVAL)."""
        room: int64_t = self.room(self.words[4])
        length: uint32_t = min(room, len(octets))
        self.write_both(self.words[3], octets, length, self.words[4], length, room != length)

    @cython.cfunc
    @cython.exceptval(-1, check=True)
    def room(self, length_at: uint64_t) -> int64_t:
        """The socklen_t there. Raises OSError (EFAULT, EINVAL)."""
        length: uint32_t = 0
        local: iovec
        remote: iovec
        local.iov_base = cython.address(length)
        remote.iov_base = cython.cast(cython.p_void, length_at)
        local.iov_len = remote.iov_len = 4
        if process_vm_readv(self.thread, cython.address(local), 1, cython.address(remote), 1, 0) != 4:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        if length > 0x7FFF_FFFF:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return length

    @cython.cfunc
    def write_both(self, address: uint64_t, octets: bytes, count: uint32_t, length_at: uint64_t, length: uint32_t,
                   differs: cython.bint):
        """The first `count` octets, and a length elsewhere, in one go. A length that is there already takes no second page."""
        local: iovec[2]
        remote: iovec[2]
        pieces: cython.int = 2 if differs else 1
        local[0].iov_base = cython.cast(cython.p_void, cython.cast(cython.p_char, octets))
        remote[0].iov_base = cython.cast(cython.p_void, address)
        local[0].iov_len = remote[0].iov_len = count
        local[1].iov_base = cython.address(length)
        remote[1].iov_base = cython.cast(cython.p_void, length_at)
        local[1].iov_len = remote[1].iov_len = 4
        if process_vm_writev(self.thread, local, pieces, remote, pieces, 0) != count + 4 * (pieces - 1):
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))

    def message(self, address: uint64_t) -> "Message":
        """A struct msghdr. Raises OSError (EFAULT, EMSGSIZE, EINVAL)."""
        return Message(self, address, *_MESSAGE.unpack(self.read(address, _MESSAGE.size)))


class Message:
    """What a struct msghdr of a caller says; its fields are copies."""

    def __init__(self, call: Call, at: int, name: int, name_length: int, vectors: int, count: int, control: int,
                 control_length: int, _flags: int) -> None:
        self._call, self._at = call, at
        self.name, self.name_length = name, name_length
        self._control, self._control_length = (control, control_length) if control else (0, 0)
        if count > _VECTORS_MOST:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        self._pieces = list(_POINTERS.iter_unpack(call.read(vectors, count * _POINTERS.size)))
        self.octets = sum(length for _, length in self._pieces)

    def gather(self) -> bytes:
        """The data to be sent. Raises OSError (EFAULT, EMSGSIZE)."""
        if self.octets > LONGEST:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        return b"".join(self._call.read(address, length) for address, length in self._pieces if length)

    def scatter(self, data: bytes) -> None:
        """Put what was received where it belongs. Raises OSError (EFAULT)."""
        for address, length in self._pieces:
            if not data:
                break
            self._call.write(address, data[:length])
            data = data[length:]

    def control(self) -> bytes:
        """The ancillary data to be sent. Raises OSError (EFAULT, ENOBUFS)."""
        if self._control_length > _CONTROL_MOST:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return self._call.read(self._control, self._control_length) if self._control_length else b""

    def finish(self, name: bytes, flags: int, control: bytes = b"") -> None:
        """Write what recvmsg(2) tells besides the data, as far as there is room for it. Raises OSError (EFAULT)."""
        if self.name:
            self._call.write(self.name, name[:self.name_length])
            self._call.write(self._at + NAME_LENGTH_AT, _LENGTH.pack(len(name)))
        if len(control) > self._control_length:
            control, flags = control[:0], flags | socket.MSG_CTRUNC
        if control:
            self._call.write(self._control, control)
        self._call.write(self._at + CONTROL_LENGTH_AT, struct.pack("=Qi", len(control), flags))
