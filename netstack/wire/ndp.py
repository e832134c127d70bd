"""Neighbor Discovery messages (RFC 4861), bytes only; what they do to the cache is in `netstack.neighbor`."""

import cython
from cython.cimports.libc.stdint import uint8_t, uint32_t
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.mm.hw import store16
from cython.cimports.netstack.wire.address import (
    is_link_local,
    is_multicast,
    is_unspecified,
    load_v6,
    same_address,
    store_v6,
)
from cython.cimports.netstack.wire.arp import is_station
from cython.cimports.netstack.wire.checksum import fold, sum_octets, sum_pseudo

OPTION_SOURCE_MAC = cython.declare(cython.int, 1)
OPTION_TARGET_MAC = cython.declare(cython.int, 2)
ICMPV6 = cython.declare(uint8_t, 58)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ndp_parse(to: cython.pointer[Ndp], source: cython.pointer[cython.const[Addr]],
              destination: cython.pointer[cython.const[Addr]],
              p: cython.pointer[cython.const[uint8_t]], n: uint32_t) -> cython.bint:
    """Fill `to` from a message; False when RFC 4861 says to discard it silently."""
    memset(to, 0, cython.sizeof(Ndp))
    if n < 8 or p[1] != 0 or is_multicast(source):
        return False
    to.type = p[0]
    fixed: uint32_t = _fixed_length(p[0])
    if fixed == 0 or n < fixed:
        return False
    wanted: cython.int = OPTION_SOURCE_MAC
    if to.type >= NDP_NEIGHBOR_ADVERTISEMENT:
        wanted = OPTION_TARGET_MAC
    if to.type >= NDP_NEIGHBOR_SOLICITATION:
        load_v6(cython.address(to.target), p + 8)
        if is_unspecified(cython.address(to.target)) or is_multicast(cython.address(to.target)):
            return False
    if not _walk_options(to, wanted, p + fixed, n - fixed):
        return False
    if to.type == NDP_NEIGHBOR_ADVERTISEMENT:
        to.flags = p[4] & (NDP_ROUTER | NDP_SOLICITED | NDP_OVERRIDE)
        return not (is_multicast(destination) and to.flags & NDP_SOLICITED)
    if to.type == NDP_ROUTER_ADVERTISEMENT or to.type == NDP_REDIRECT:
        return is_link_local(source)
    if is_unspecified(source):
        # RFC 4861 7.1.1: duplicate address detection asks a solicited-node group and cannot name a source
        return not to.has_mac and (to.type == NDP_ROUTER_SOLICITATION or is_solicited_node(destination))
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _fixed_length(kind: uint8_t) -> uint32_t:
    """Octets before the options; 0: no Neighbor Discovery message."""
    if kind == NDP_ROUTER_SOLICITATION:
        return 8
    if kind == NDP_ROUTER_ADVERTISEMENT:
        return 16
    if kind == NDP_NEIGHBOR_SOLICITATION or kind == NDP_NEIGHBOR_ADVERTISEMENT:
        return 24
    return 40 if kind == NDP_REDIRECT else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _walk_options(to: cython.pointer[Ndp], wanted: cython.int,
                  p: cython.pointer[cython.const[uint8_t]], n: uint32_t) -> cython.bint:
    """Find the link-layer address option of a kind; False when any option is empty, cut off or names no station."""
    length: uint32_t
    while n:
        if n < 8:
            return False
        length = cython.cast(uint32_t, p[1]) * 8
        if length == 0 or length > n:
            return False
        if p[0] == wanted:
            if length != 8 or not is_station(p + 2):
                return False
            memcpy(to.mac, p + 2, 6)
            to.has_mac = 1
        p += length
        n -= length
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ndp_emit(message: cython.pointer[cython.const[Ndp]], source: cython.pointer[cython.const[Addr]],
             destination: cython.pointer[cython.const[Addr]], out: cython.pointer[uint8_t]) -> uint32_t:
    """Write a neighbor solicitation or advertisement, its option when has_mac, and the checksum."""
    n: uint32_t = 24
    memset(out, 0, NDP_LENGTH_MAX)
    out[0] = message.type
    out[4] = message.flags
    store_v6(out + 8, cython.address(message.target))
    if message.has_mac:
        out[24] = OPTION_SOURCE_MAC if message.type == NDP_NEIGHBOR_SOLICITATION else OPTION_TARGET_MAC
        out[25] = 1
        memcpy(out + 26, message.mac, 6)
        n = 32
    store16(out + 2, fold(sum_octets(out, n, sum_pseudo(source, destination, ICMPV6, n))))
    return n


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def solicited_node(to: cython.pointer[Addr], address: cython.pointer[cython.const[Addr]]) -> cython.void:
    """The multicast group on which an address is solicited."""
    memset(to, 0, cython.sizeof(Addr))
    to.octets[0] = 0xFF
    to.octets[1] = 0x02
    to.octets[11] = 0x01
    to.octets[12] = 0xFF
    memcpy(cython.address(to.octets[13]), cython.address(address.octets[13]), 3)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def is_solicited_node(a: cython.pointer[cython.const[Addr]]) -> cython.bint:
    """Whether an address is any solicited-node group."""
    group: Addr
    solicited_node(cython.address(group), a)
    return same_address(cython.address(group), a)
