"""struct sockaddr as programs pass it: bounds first, OSError for what Linux refuses."""

import errno
import os
import socket
import struct
from functools import lru_cache
from typing import NamedTuple

LONGEST = 128                    # sizeof(struct sockaddr_storage)
_FAMILY = struct.Struct("=H")
_V4 = struct.Struct("=H2s4s8x")         # the port is in network order
_V6 = struct.Struct("=H2s4s16sI")
V4_LEAST = 16
_KNOWN = 256                     # the latest: programs ask for the same few again and again
V6_LEAST = 24                    # without sin6_scope_id, as of old (SIN6_LEN_RFC2133)


class Endpoint(NamedTuple):
    """A host and a port."""

    host: str
    port: int


def family_of(octets: bytes) -> int:
    """sa_family. Raises OSError (EINVAL)."""
    if len(octets) < _FAMILY.size:
        raise _error(errno.EINVAL)
    return _FAMILY.unpack_from(octets)[0]


@lru_cache(_KNOWN)
def parse(octets: bytes, family: int) -> Endpoint:
    """The endpoint that a socket of `family` is told; an IPv4-mapped one as IPv4. Raises OSError (EINVAL, EAFNOSUPPORT)."""
    named = family_of(octets)
    if len(octets) < (V4_LEAST if family == socket.AF_INET else V6_LEAST):
        raise _error(errno.EINVAL)
    if named != family:
        raise _error(errno.EAFNOSUPPORT)
    if family == socket.AF_INET:
        _, port, address = _V4.unpack_from(octets)
        return Endpoint(socket.inet_ntop(socket.AF_INET, address), int.from_bytes(port))
    _, port, _, address, scope = _V6.unpack(octets[:_V6.size].ljust(_V6.size, b"\0"))
    host = socket.inet_ntop(socket.AF_INET6, address).removeprefix("::ffff:")
    return Endpoint(f"{host}%{scope}" if scope and host.startswith("fe80:") else host, int.from_bytes(port))


@lru_cache(_KNOWN)
def emit(endpoint: Endpoint, family: int) -> bytes:
    """As a socket of `family` is told of it: IPv4 is mapped for an IPv6 socket."""
    port = endpoint.port.to_bytes(2)
    if family == socket.AF_INET:
        return _V4.pack(socket.AF_INET, port, socket.inet_aton("0.0.0.0" if endpoint.host in ("::", "") else endpoint.host))
    host, _, scope = endpoint.host.partition("%")
    if host in ("0.0.0.0", ""):
        host = "::"
    elif ":" not in host:
        host = f"::ffff:{host}"
    return _V6.pack(socket.AF_INET6, port, bytes(4), socket.inet_pton(socket.AF_INET6, host),
                    int(scope) if scope.isdigit() else 0)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
