"""Which address of ours a datagram came to, and is to be sent from: the ancillary data of ip(7) and ipv6(7) (RFC 3542 6.2).

The kernel's interfaces are not the stack's, so a program is told of none of its own: INTERFACE is the loopback interface of
every network namespace. Which one it names when it sends is not looked at: the route says.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Final

from rustosd.client.wire import pack_address

INTERFACE: Final = 1
IP_PKTINFO, IPV6_RECVPKTINFO, IPV6_PKTINFO = 8, 49, 50
WANTS_V4, WANTS_V6 = (socket.IPPROTO_IP, IP_PKTINFO), (socket.IPPROTO_IPV6, IPV6_RECVPKTINFO)
_HEADER = struct.Struct("=Qii")         # struct cmsghdr: octets with it, level, type
_V4 = struct.Struct("=i4s4s")           # struct in_pktinfo: interface, local address, the header's destination
_V6 = struct.Struct("=16si")            # struct in6_pktinfo: address, interface
_ANY_V4 = pack_address("0.0.0.0")


def arrived(ours: bytes, options: Mapping[tuple[int, int], bytes], family: int) -> bytes:
    """What a socket with these options is told of a datagram that came to our address (16 octets)."""
    told = b""
    if _on(options, WANTS_V4) and ours.startswith(_ANY_V4[:12]):
        told += _one(socket.IPPROTO_IP, IP_PKTINFO, _V4.pack(INTERFACE, ours[12:], ours[12:]))
    if family == socket.AF_INET6 and _on(options, WANTS_V6):
        told += _one(socket.IPPROTO_IPV6, IPV6_PKTINFO, _V6.pack(ours, INTERFACE))
    return told


def source(control: bytes) -> bytes:
    """The address (16 octets) to send from, zeros if none is asked for. Raises OSError (EINVAL) for what cannot be."""
    asked = bytes(16)
    for level, kind, data in _messages(control):
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            if len(data) != _V4.size:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            asked = _ANY_V4[:12] + _V4.unpack(data)[1]
        elif (level, kind) == (socket.IPPROTO_IPV6, IPV6_PKTINFO):
            if len(data) < _V6.size:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            asked = _V6.unpack_from(data)[0]
    return bytes(16) if asked == _ANY_V4 else asked


def _on(options: Mapping[tuple[int, int], bytes], key: tuple[int, int]) -> bool:
    return any(options.get(key, b"")[:4])


def _one(level: int, kind: int, data: bytes) -> bytes:
    length = _HEADER.size + len(data)
    return _HEADER.pack(length, level, kind) + data + bytes(-length % 8)


def _messages(control: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Level, type and data of each message. Raises OSError (EINVAL) where one claims more than there is."""
    at = 0
    while at + _HEADER.size <= len(control):
        length, level, kind = _HEADER.unpack_from(control, at)
        if not _HEADER.size <= length <= len(control) - at:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        yield level, kind, control[at + _HEADER.size:at + length]
        at += length + -length % 8
