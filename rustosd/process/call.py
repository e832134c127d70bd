"""One system call that waits for its answer, and the small things every handler does with it."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Final

from rustosd.process import sockaddr
from rustosd.process.notify import LONGEST, read_memory, write_memory
from rustosd.process.sockaddr import Endpoint

if TYPE_CHECKING:
    from rustosd.process.notify import Notifications

_LENGTH = struct.Struct("=I")
_POINTERS = struct.Struct("=QQ")                    # struct iovec
_MESSAGE = struct.Struct("=QI4xQQQQi4x")            # struct msghdr: name, its length, iov, how many, control, its length, flags
_VECTORS_MOST: Final = 1024                         # UIO_MAXIOV
MESSAGE_OCTETS: Final = _MESSAGE.size
NAME_LENGTH_AT: Final = 8
CONTROL_LENGTH_AT: Final = 40


class Call:
    """A call of a supervised thread. It is answered once; what comes too late goes nowhere."""

    __slots__ = ("_notifications", "arguments", "id", "number", "thread")

    def __init__(self, notifications: Notifications, id: int, thread: int, number: int, arguments: tuple[int, ...]) -> None:
        self._notifications = notifications
        self.id, self.thread, self.number, self.arguments = id, thread, number, arguments

    @property
    def fd(self) -> int:
        """The first argument, as the kernel sees an int."""
        return _int(self.arguments[0])

    def int(self, index: int) -> int:
        """An argument that is an int."""
        return _int(self.arguments[index])

    @property
    def valid(self) -> bool:
        """Whether somebody waits for the answer."""
        return self._notifications.valid(self.id)

    def answer(self, value: int = 0) -> None:
        self._notifications.answer(self.id, value)

    def refuse(self, number: int) -> None:
        self._notifications.refuse(self.id, number)

    def proceed(self) -> None:
        self._notifications.proceed(self.id)

    def give(self, fd: int, close_on_exec: bool) -> int:
        """Raises LookupError, OSError; see `Notifications.give`."""
        return self._notifications.give(self.id, fd, close_on_exec)

    def replace(self, fd: int, number: int, close_on_exec: bool) -> None:
        """Raises LookupError, OSError; see `Notifications.replace`."""
        self._notifications.replace(self.id, fd, number, close_on_exec)

    # The caller's memory. A pointer is read once: what it points to may change while we look.

    def read(self, address: int, octets: int) -> bytes:
        """Raises OSError (EFAULT)."""
        return read_memory(self.thread, address, octets)

    def write(self, address: int, data: bytes) -> None:
        """Raises OSError (EFAULT)."""
        write_memory(self.thread, address, data)

    def read_name(self, address: int, length: int) -> bytes:
        """A struct sockaddr. Raises OSError (EINVAL, EFAULT)."""
        if not 0 <= length <= sockaddr.LONGEST:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return self.read(address, length)

    def write_name(self, address: int, length_at: int, endpoint: Endpoint, family: int) -> None:
        """A struct sockaddr where the caller has room for so much of it, and its whole length. Raises OSError."""
        octets = sockaddr.emit(endpoint, family)
        self.write_sized(address, length_at, octets)

    def write_sized(self, address: int, length_at: int, octets: bytes) -> None:
        """As much as there is room for, and how long it is. Raises OSError (EFAULT, EINVAL)."""
        room, = _LENGTH.unpack(self.read(length_at, _LENGTH.size))
        if room > 0x7FFF_FFFF:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.write(address, octets[:room])
        self.write(length_at, _LENGTH.pack(len(octets)))

    def write_option(self, octets: bytes) -> None:
        """The value of getsockopt(2), cut to the room there is. Raises OSError."""
        room, = _LENGTH.unpack(self.read(self.arguments[4], _LENGTH.size))
        if room > 0x7FFF_FFFF:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        octets = octets[:room]
        self.write(self.arguments[3], octets)
        self.write(self.arguments[4], _LENGTH.pack(len(octets)))

    def message(self, address: int) -> Message:
        """A struct msghdr. Raises OSError (EFAULT, EMSGSIZE, EINVAL)."""
        return Message(self, address, *_MESSAGE.unpack(self.read(address, _MESSAGE.size)))


class Message:
    """What a struct msghdr of a caller says; its fields are copies."""

    def __init__(self, call: Call, at: int, name: int, name_length: int, vectors: int, count: int, control: int,
                 control_length: int, _flags: int) -> None:
        self._call, self._at = call, at
        self.name, self.name_length = name, name_length
        self.control_length = control_length if control else 0
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

    def finish(self, name: bytes, flags: int) -> None:
        """Write what recvmsg(2) tells besides the data. Raises OSError (EFAULT)."""
        if self.name:
            self._call.write(self.name, name[:self.name_length])
            self._call.write(self._at + NAME_LENGTH_AT, _LENGTH.pack(len(name)))
        self._call.write(self._at + CONTROL_LENGTH_AT, struct.pack("=Qi", 0, flags))


def _int(value: int) -> int:
    value &= 0xFFFF_FFFF
    return value - (1 << 32) if value & 0x8000_0000 else value
