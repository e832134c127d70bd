"""Addresses of both families as one 16-octet value; text only at the edge."""

import ipaddress

import cython
from cython.cimports.cpython.bytes import PyBytes_AS_STRING
from cython.cimports.libc.stdint import uint8_t
from cython.cimports.libc.string import memcpy

_V4_PREFIX = b"\0" * 10 + b"\xff\xff"


@cython.cfunc
@cython.exceptval(-1, check=False)
def address_from(text: object, to: cython.pointer[Addr]) -> cython.int:
    """Parse an address into `to`. Raises ValueError for what is no IP address."""
    parsed = text if hasattr(text, "packed") else ipaddress.ip_address(text)
    packed: bytes = parsed.packed
    if len(packed) == 4:
        packed = _V4_PREFIX + packed
    memcpy(cython.address(to.octets[0]), PyBytes_AS_STRING(packed), 16)
    return 0


@cython.cfunc
def address_text(a: cython.pointer[cython.const[Addr]]) -> object:
    """The usual text: dotted quad, or RFC 5952 for IPv6."""
    if is_v4(a):
        return f"{a.octets[12]}.{a.octets[13]}.{a.octets[14]}.{a.octets[15]}"
    p: cython.pointer[uint8_t] = cython.cast(cython.pointer[uint8_t], cython.address(a.octets[0]))
    return str(ipaddress.IPv6Address(p[:16]))


def pack(text: object) -> bytes:
    """The 16 octets the stack uses for an address, IPv4 as ::ffff:a.b.c.d."""
    a: Addr
    address_from(text, cython.address(a))
    p: cython.pointer[uint8_t] = cython.address(a.octets[0])
    return p[:16]


def unpack(octets: bytes) -> str:
    """The text of 16 octets made by `pack`. Raises ValueError on another length."""
    a: Addr
    if len(octets) != 16:
        raise ValueError(f"an address has 16 octets, not {len(octets)}")
    memcpy(cython.address(a.octets[0]), PyBytes_AS_STRING(octets), 16)
    return address_text(cython.address(a))
