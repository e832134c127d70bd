"""NBD from the client's side: the handshake, fixed newstyle, on a blocking socket. What follows is for whoever asked.

It agrees on simple replies and nothing else, for `rustosd.nbd.device` and for Linux's own client.
"""

import errno
import socket
import struct
from dataclasses import dataclass
from typing import Final

from rustosd.nbd import wire
from rustosd.nbd.negotiation import (
    FIXED_NEWSTYLE,
    GREETING,
    NO_ZEROES,
    OPTION_HEADER,
    OPTION_MAGIC,
    REPLY_HEADER,
    REPLY_MAGIC,
    Info,
    Option,
    Reply,
)

PATIENCE_S: Final = 10.0
_PAYLOAD_MOST: Final = 64 << 10
_REPLIES_MOST: Final = 64


class NbdRefused(OSError):
    """The server does not let us use the export, or is none; the message says why."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection in transmission, and what the server said of the export."""

    connection: socket.socket
    octets: int
    flags: int
    block_octets: int
    """What requests must be multiples of."""

    @property
    def read_only(self) -> bool:
        return bool(self.flags & wire.FLAG_READ_ONLY)

    @property
    def shareable(self) -> bool:
        """Whether several connections see each other's writes."""
        return bool(self.flags & wire.FLAG_CAN_MULTI_CONN)


def open_export(path: str, name: str) -> Opened:
    """Connect to an export on a unix socket. Raises NbdRefused, OSError that says what to do."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(PATIENCE_S)
    try:
        connection.connect(path)
        opened = negotiate(connection, name)
        connection.settimeout(None)
        return opened
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        raise OSError(errno.ECONNREFUSED, f"no NBD server answers on {path}: is rustosd running, with [nbd] enabled?") from None
    except TimeoutError:
        connection.close()
        raise OSError(errno.ETIMEDOUT, f"the NBD server on {path} does not answer") from None
    except BaseException:
        connection.close()
        raise


def negotiate(connection: socket.socket, name: str) -> Opened:
    """The handshake for an export on a connection that is just open. Raises NbdRefused, OSError."""
    greeting = _read(connection, 18)
    if greeting[:16] != GREETING + OPTION_MAGIC:
        raise NbdRefused(errno.EPROTO, "this is no NBD server of today: it does not speak the newstyle handshake")
    flags, = struct.unpack(">H", greeting[16:])
    if not flags & FIXED_NEWSTYLE:
        raise NbdRefused(errno.EPROTO, "this NBD server is too old: it has no fixed newstyle")
    connection.sendall(struct.pack(">I", FIXED_NEWSTYLE | flags & NO_ZEROES))
    wanted = name.encode()
    data = struct.pack(f">I{len(wanted)}sHH", len(wanted), wanted, 1, Info.BLOCK_SIZE)
    connection.sendall(OPTION_HEADER.pack(OPTION_MAGIC, Option.GO, len(data)) + data)
    octets, transmission, block_octets = -1, 0, 1
    for _ in range(_REPLIES_MOST):
        kind, payload = _reply(connection)
        if kind == Reply.ACK and octets >= 0:
            return Opened(connection, octets, transmission, block_octets)
        if kind & 0x80000000:
            why = payload.decode(errors="replace") or _named(kind)
            raise NbdRefused(errno.ENOENT if kind == Reply.ERR_UNKNOWN else errno.EACCES, f"export {name!r}: {why}")
        if kind == Reply.INFO and payload[:2] == struct.pack(">H", Info.EXPORT) and len(payload) == 12:
            octets, transmission = struct.unpack(">QH", payload[2:])
        elif kind == Reply.INFO and payload[:2] == struct.pack(">H", Info.BLOCK_SIZE) and len(payload) == 14:
            block_octets, = struct.unpack(">I", payload[2:6])
    raise NbdRefused(errno.EPROTO, f"export {name!r}: the server does not come to an end")


def _reply(connection: socket.socket) -> tuple[int, bytes]:
    magic, option, kind, length = REPLY_HEADER.unpack(_read(connection, REPLY_HEADER.size))
    if magic != REPLY_MAGIC or option != Option.GO or length > _PAYLOAD_MOST:
        raise NbdRefused(errno.EPROTO, "the NBD server's answer makes no sense")
    return kind, _read(connection, length)


def _read(connection: socket.socket, octets: int) -> bytes:
    data = bytearray()
    while len(data) < octets:
        part = connection.recv(octets - len(data))
        if not part:
            raise NbdRefused(errno.ECONNRESET, "the NBD server closed the connection: it may have too many already")
        data += part
    return bytes(data)


def _named(kind: int) -> str:
    try:
        return Reply(kind).name.lower()
    except ValueError:
        return f"error {kind:#x}"
