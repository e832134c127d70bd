"""What crosses the socketpairs between a program and the daemon, besides the octets of streams; both sides read it here.

A datagram travels behind HEADER: the other host's address and port (zeros from the program: the connected peer); from the
daemon an errno instead of data when something came back; and our own address, which it came to or is to be sent from (zeros
from the program: whichever the socket or the route has). A listening socket gets one ACCEPTED with one descriptor for
each connection: its id, the peer, and the address it was made to; who accepts it writes TAKEN to it first of all. Who was given
spare ends gets no descriptor with the next ones: the id is that of a spare one. An address is 16 octets, IPv4 as
::ffff:a.b.c.d (RFC 4291 2.5.5.2).
"""

import socket
import struct

HEADER = struct.Struct("!16sHH16s")         # address, port, errno, our address
ACCEPTED = struct.Struct("!8s16sH16sH")     # id; remote address and port; local address and port
TAKEN = b"\1"
MORE_MOST = 7                               # sockets that may come along with the one that was asked for
SPARES_MOST = 128                           # ends that a listening socket may have ahead
REQUEST_MOST = 4096                         # octets of one request on a session, and of its answer
_V4 = bytes(10) + b"\xff\xff"


def pack_address(host: str) -> bytes:
    """The 16 octets of an address literal. Raises OSError for what is none."""
    if ":" in host:
        return socket.inet_pton(socket.AF_INET6, host)
    return _V4 + socket.inet_pton(socket.AF_INET, host)


def unpack_address(octets: bytes) -> str:
    """The shortest text of 16 octets; IPv4 with dots alone."""
    if octets.startswith(_V4):
        return socket.inet_ntop(socket.AF_INET, octets[12:])
    return socket.inet_ntop(socket.AF_INET6, octets)
