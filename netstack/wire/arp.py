"""ARP packets (RFC 826), bytes only; who may believe them is decided in `netstack.neighbor`."""

import cython
from cython.cimports.libc.stdint import uint8_t, uint32_t
from cython.cimports.libc.string import memcpy
from cython.cimports.mm.hw import get16, put16, put32
from cython.cimports.netstack.wire.address import (
    is_limited_broadcast,
    is_loopback,
    is_multicast,
    is_unspecified,
    load_v4,
    store_v4,
)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def arp_parse(to: cython.pointer[Arp], p: cython.pointer[cython.const[uint8_t]], n: uint32_t) -> cython.bint:
    """Fill `to` from a packet; False when it is malformed or names a sender that cannot be.

    An unspecified sender is legal in a request: an address probe (RFC 5227 2.1.1).
    """
    if n < ARP_LENGTH:
        return False
    if get16(p) != 1 or get16(p + 2) != 0x0800 or p[4] != 6 or p[5] != 4:
        return False
    to.operation = get16(p + 6)
    if to.operation != ARP_REQUEST and to.operation != ARP_REPLY:
        return False
    memcpy(to.sender_mac, p + 8, 6)
    load_v4(cython.address(to.sender), p + 14)
    memcpy(to.target_mac, p + 18, 6)
    load_v4(cython.address(to.target), p + 24)
    if not is_station(to.sender_mac) or _no_host(cython.address(to.sender)) or _no_host(cython.address(to.target)):
        return False
    if is_unspecified(cython.address(to.target)):
        return False
    return to.operation == ARP_REQUEST or not is_unspecified(cython.address(to.sender))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _no_host(a: cython.pointer[cython.const[Addr]]) -> cython.bint:
    return is_multicast(a) or is_limited_broadcast(a) or is_loopback(a)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def arp_emit(a: cython.pointer[cython.const[Arp]], out: cython.pointer[uint8_t]) -> cython.void:
    """Write the 28 octets of a packet."""
    put32(out, cython.cast(uint32_t, 0x00010800))
    put16(out + 4, 0x0604)
    put16(out + 6, a.operation)
    memcpy(out + 8, a.sender_mac, 6)
    store_v4(out + 14, cython.address(a.sender))
    memcpy(out + 18, a.target_mac, 6)
    store_v4(out + 24, cython.address(a.target))
