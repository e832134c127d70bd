"""The network layer's halves for both families: judging what came in, finding the way out, writing the headers."""

import errno

import cython
from cython.cimports.cpython.bytes import PyBytes_AS_STRING
from cython.cimports.libc.stdint import int32_t, uint8_t, uint16_t, uint32_t
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.mm.frame import TSO4, TSO6, TX_CHECKSUM
from cython.cimports.mm.hw import get16, put16, put32, store16
from cython.cimports.netstack.neighbor import (
    Neighbor,
    neighbor_at,
    neighbor_find,
    neighbor_hold,
    neighbor_use,
    neighbors_create,
)
from cython.cimports.netstack.net import (
    ADDRESS_PREFERRED,
    LOOPBACK,
    MAX_ADDRESSES,
    MAX_INTERFACES,
    Interface,
    InterfaceAddress,
    Net,
    NetState,
    Packet,
    interface_address,
    is_local,
    is_subnet_broadcast,
    packet_new,
)
from cython.cimports.netstack.route import ROUTES, Route, common_prefix, route_lookup, routes_create
from cython.cimports.netstack.verdict import (
    IPV4_CHECKSUM,
    IPV4_FRAGMENT,
    IPV4_HEADER_LENGTH,
    IPV4_OPTION,
    IPV4_SOURCE,
    IPV4_TOTAL_LENGTH,
    IPV4_TRUNCATED,
    IPV4_VERSION,
    IPV6_EXTENSION_HEADER,
    IPV6_NOT_FOR_US,
    IPV6_PAYLOAD_LENGTH,
    IPV6_SOURCE,
    IPV6_TRUNCATED,
    IPV6_VERSION,
    NEIGHBOR_QUEUE_FULL,
    NO_ROUTE,
    NO_SOURCE_ADDRESS,
    TOO_BIG,
)
from cython.cimports.netstack.wire.address import (
    Addr,
    address_from,
    address_text,
    is_limited_broadcast,
    is_link_local,
    is_loopback,
    is_multicast,
    is_unspecified,
    is_v4,
    load_v4,
    load_v6,
    store_v4,
    store_v6,
)
from cython.cimports.netstack.wire.checksum import fold, sum_octets

from netstack.verdict import HELP, LABELS

ETHERTYPE_IPV4 = cython.declare(uint16_t, 0x0800)
ETHERTYPE_IPV6 = cython.declare(uint16_t, 0x86DD)
DONT_FRAGMENT = cython.declare(uint16_t, 0x4000)
MORE_OR_OFFSET = cython.declare(uint16_t, 0x3FFF)   # MF and the fragment offset: any of them set is a fragment
OPTION_END = cython.declare(uint8_t, 0)             # RFC 791 3.1
OPTION_NOP = cython.declare(uint8_t, 1)
OPTION_LSRR = cython.declare(uint8_t, 131)
OPTION_SSRR = cython.declare(uint8_t, 137)
NEXT_HOP_BY_HOP = cython.declare(uint8_t, 0)        # RFC 8200 4
NEXT_ROUTING = cython.declare(uint8_t, 43)
NEXT_FRAGMENT = cython.declare(uint8_t, 44)
NEXT_ESP = cython.declare(uint8_t, 50)
NEXT_AUTHENTICATION = cython.declare(uint8_t, 51)
NEXT_DESTINATION = cython.declare(uint8_t, 60)
NEXT_MOBILITY = cython.declare(uint8_t, 135)
OPTION_PAD1 = cython.declare(uint8_t, 0)            # RFC 8200 4.2
OPTION_PADN = cython.declare(uint8_t, 1)
OPTION_ROUTER_ALERT = cython.declare(uint8_t, 5)    # RFC 2711
MAX_EXTENSION_HEADERS = cython.declare(cython.int, 8)   # RFC 8504 5.3 lets a host have a limit


# --- received packets -----------------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _options_v4(p: cython.pointer[cython.const[uint8_t]], n: uint32_t) -> cython.int:
    """Walk the options of an IPv4 header: 0 or IPV4_OPTION for lengths that do not add up and for source routes."""
    at: uint32_t = 0
    size: uint32_t
    while at < n and p[at] != OPTION_END:
        if p[at] == OPTION_NOP:
            at += 1
            continue
        if at + 2 > n or p[at] == OPTION_LSRR or p[at] == OPTION_SSRR:
            return IPV4_OPTION
        size = p[at + 1]
        if size < 2 or size > n - at:
            return IPV4_OPTION
        at += size
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ipv4_parse(view: cython.pointer[IpView], p: cython.pointer[cython.const[uint8_t]], n: uint32_t) -> cython.int:
    if n < IPV4_HEADER:
        return IPV4_TRUNCATED
    if p[0] >> 4 != 4:
        return IPV4_VERSION
    header: uint32_t = cython.cast(uint32_t, p[0] & 0xF) * 4
    total: uint32_t = get16(p + 2)
    if header < IPV4_HEADER:
        return IPV4_HEADER_LENGTH
    if header > n:
        return IPV4_TRUNCATED
    if fold(sum_octets(p, header, 0)) != 0:
        return IPV4_CHECKSUM
    if total < header or total > n:
        return IPV4_TOTAL_LENGTH
    load_v4(cython.address(view.source), p + 12)
    load_v4(cython.address(view.destination), p + 16)
    view.header = p
    view.header_length = header
    view.payload = p + header
    view.length = total - header
    view.protocol = p[9]
    view.hop_limit = p[8]
    view.family = 4
    view.multicast = is_multicast(cython.address(view.destination)) or is_limited_broadcast(
        cython.address(view.destination))
    # RFC 1122 3.2.1.3: 0/8 is a source only for hosts that do not know theirs, which ask everybody.
    if is_multicast(cython.address(view.source)) or is_limited_broadcast(cython.address(view.source)) or (
            p[12] == 0 and (not view.multicast or not is_unspecified(cython.address(view.source)))):
        return IPV4_SOURCE
    if header > IPV4_HEADER and _options_v4(p + IPV4_HEADER, header - IPV4_HEADER) != 0:
        return IPV4_OPTION
    if get16(p + 6) & MORE_OR_OFFSET:
        return IPV4_FRAGMENT
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _options_v6(p: cython.pointer[cython.const[uint8_t]], n: uint32_t, kind: uint8_t) -> cython.bint:
    """Whether an options header of `n` octets holds nothing but padding, and router alerts if it is hop-by-hop."""
    at: uint32_t = 2
    size: uint32_t
    while at < n:
        if p[at] == OPTION_PAD1:
            at += 1
            continue
        if at + 2 > n:
            return False
        size = p[at + 1]
        if size > n - at - 2:
            return False
        if p[at] != OPTION_PADN and (p[at] != OPTION_ROUTER_ALERT or kind != NEXT_HOP_BY_HOP or size != 2):
            return False
        at += 2 + size
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _extensions(view: cython.pointer[IpView]) -> cython.int:
    """Step over headers that ask for nothing: 0, or IPV6_EXTENSION_HEADER with the view at the one that does."""
    size: uint32_t
    count: cython.int = 0
    while True:
        if view.protocol == NEXT_FRAGMENT or view.protocol == NEXT_ROUTING or view.protocol == NEXT_AUTHENTICATION or (
                view.protocol == NEXT_ESP or view.protocol == NEXT_MOBILITY):
            return IPV6_EXTENSION_HEADER
        if view.protocol != NEXT_HOP_BY_HOP and view.protocol != NEXT_DESTINATION:
            return 0
        # hop-by-hop options come first or not at all (RFC 8200 4.1)
        if count == MAX_EXTENSION_HEADERS or view.length < 8 or (count > 0 and view.protocol == NEXT_HOP_BY_HOP):
            return IPV6_EXTENSION_HEADER
        size = 8 * (cython.cast(uint32_t, view.payload[1]) + 1)
        if size > view.length or not _options_v6(view.payload, size, view.protocol):
            return IPV6_EXTENSION_HEADER
        view.protocol = view.payload[0]
        view.payload += size
        view.header_length += size
        view.length -= size
        count += 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ipv6_parse(view: cython.pointer[IpView], p: cython.pointer[cython.const[uint8_t]], n: uint32_t) -> cython.int:
    if n < IPV6_HEADER:
        return IPV6_TRUNCATED
    if p[0] >> 4 != 6:
        return IPV6_VERSION
    length: uint32_t = get16(p + 4)
    if length > n - IPV6_HEADER:
        return IPV6_PAYLOAD_LENGTH
    load_v6(cython.address(view.source), p + 8)
    load_v6(cython.address(view.destination), p + 24)
    view.header = p
    view.header_length = IPV6_HEADER
    view.payload = p + IPV6_HEADER
    view.length = length
    view.protocol = p[6]
    view.hop_limit = p[7]
    view.family = 6
    view.multicast = is_multicast(cython.address(view.destination))
    # IPv4-mapped addresses must not come in over the wire: to us they would be IPv4 peers (RFC 6890, RFC 4942 2.2).
    if is_multicast(cython.address(view.source)) or is_v4(cython.address(view.source)) or (
            is_unspecified(cython.address(view.source)) and not view.multicast):
        return IPV6_SOURCE
    if is_v4(cython.address(view.destination)):
        return IPV6_NOT_FOR_US
    return _extensions(view)


# --- the way out ----------------------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _scope(a: cython.pointer[cython.const[Addr]]) -> cython.int:
    """The scope of an address as in RFC 6724 3.1 and 3.2: 2 link-local ... 14 global."""
    if is_v4(a):
        return 2 if is_link_local(a) or is_loopback(a) else 14
    if a.octets[0] == 0xFF:
        return a.octets[1] & 0xF
    return 2 if is_link_local(a) or is_loopback(a) else 14


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _prefer(own: cython.pointer[cython.const[InterfaceAddress]], best: cython.pointer[cython.const[InterfaceAddress]],
            near: cython.pointer[cython.const[Addr]]) -> cython.bint:
    """Whether `own` is a better source for `near` than `best`: RFC 6724 5, rules 2 and 8."""
    if best == cython.NULL:
        return True
    wanted: cython.int = _scope(near)
    scope: cython.int = _scope(cython.address(own.address))
    best_scope: cython.int = _scope(cython.address(best.address))
    if scope != best_scope:
        return (scope >= wanted) if scope < best_scope else (best_scope < wanted)
    base: cython.int = 96 if is_v4(cython.address(own.address)) else 0
    shared: cython.int = min(common_prefix(cython.address(own.address), near), base + own.prefix_length)
    return shared > min(common_prefix(cython.address(best.address), near), base + best.prefix_length)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _best_of(interface: cython.pointer[cython.const[Interface]], near: cython.pointer[cython.const[Addr]],
             best: cython.pointer[cython.const[InterfaceAddress]]) -> cython.pointer[cython.const[InterfaceAddress]]:
    """The interface's preferred address that suits `near` best, or `best` if none is better."""
    slot: cython.int
    own: cython.pointer[cython.const[InterfaceAddress]]
    for slot in range(MAX_ADDRESSES):
        own = cython.address(interface.addresses[slot])
        if own.state != ADDRESS_PREFERRED or is_v4(cython.address(own.address)) != is_v4(near):
            continue
        if not is_loopback(cython.address(own.address)) and _prefer(own, best, near):
            best = own
    return best


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _choose_source(net: cython.pointer[Net], interface: cython.pointer[cython.const[Interface]],
                   near: cython.pointer[cython.const[Addr]], source: cython.pointer[Addr]) -> cython.bint:
    """A source on the outgoing interface; if it has none, a global one of any other (it may be unnumbered)."""
    i: cython.int
    own: cython.pointer[cython.const[InterfaceAddress]] = _best_of(interface, near, cython.NULL)
    if own == cython.NULL:
        for i in range(MAX_INTERFACES):
            if net.interfaces[i] != cython.NULL:
                own = _best_of(net.interfaces[i], near, own)
        if own == cython.NULL or is_link_local(cython.address(own.address)):
            return False
    source[0] = own.address
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _interface_of(net: cython.pointer[Net], a: cython.pointer[cython.const[Addr]]) -> int32_t:
    """The interface (not loopback) that is up and has this address; -1: none."""
    i: cython.int
    for i in range(LOOPBACK + 1, MAX_INTERFACES):
        if net.interfaces[i] != cython.NULL and net.interfaces[i].up and (
                interface_address(net.interfaces[i], a) != cython.NULL):
            return i
    return -1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _first_link(net: cython.pointer[Net], near: cython.pointer[cython.const[Addr]]) -> int32_t:
    """The first interface that is up and has an address of the family; -1: none."""
    i: cython.int
    for i in range(LOOPBACK + 1, MAX_INTERFACES):
        if net.interfaces[i] != cython.NULL and net.interfaces[i].up and (
                _best_of(net.interfaces[i], near, cython.NULL) != cython.NULL):
            return i
    return -1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _group_mac(a: cython.pointer[cython.const[Addr]], mac: cython.pointer[uint8_t]) -> cython.void:
    """The Ethernet group of a multicast address: RFC 1112 6.4, RFC 2464 7."""
    if is_v4(a):
        mac[0] = 0x01
        mac[1] = 0x00
        mac[2] = 0x5E
        mac[3] = a.octets[13] & 0x7F
        mac[4] = a.octets[14]
        mac[5] = a.octets[15]
    else:
        mac[0] = mac[1] = 0x33
        memcpy(mac + 2, cython.address(a.octets[12]), 4)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def path_resolve(net: cython.pointer[Net], path: cython.pointer[Path],
                 bound: cython.pointer[cython.const[Addr]]) -> cython.int:
    return path_resolve_on(net, path, bound, -1)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def path_resolve_on(net: cython.pointer[Net], path: cython.pointer[Path], bound: cython.pointer[cython.const[Addr]],
                    interface: int32_t) -> cython.int:
    to: cython.pointer[cython.const[Addr]] = cython.address(path.destination)
    if bound != cython.NULL and is_unspecified(bound):
        bound = cython.NULL
    path.generation = 0
    path.neighbor = -1
    memset(path.mac, 0, 6)
    if is_unspecified(to) or (is_multicast(to) and _scope(to) < 2):     # RFC 4291 2.7: ff01::/16 never leaves a host
        return NO_ROUTE
    if bound != cython.NULL and (is_v4(bound) != is_v4(to) or not is_local(net, bound)):
        return NO_SOURCE_ADDRESS
    if is_local(net, to):
        path.source = to[0] if bound == cython.NULL else bound[0]
        path.interface = LOOPBACK
        path.mtu = net.interfaces[LOOPBACK].mtu
        path.generation = net.generation
        return 0
    next_hop: Addr
    verdict: cython.int = _find_link(net, path, bound, interface, cython.address(next_hop))
    if verdict != 0:
        return verdict
    return _address_link(net, path, cython.address(next_hop))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _find_link(net: cython.pointer[Net], path: cython.pointer[Path], bound: cython.pointer[cython.const[Addr]],
               interface: int32_t, next_hop: cython.pointer[Addr]) -> cython.int:
    """Fill interface, mtu and source of a path to another host, and say who is next: 0 or a Verdict."""
    to: cython.pointer[cython.const[Addr]] = cython.address(path.destination)
    everybody: cython.bint = is_multicast(to) or is_limited_broadcast(to)
    route: cython.pointer[cython.const[Route]] = route_lookup(net, to)
    next_hop[0] = to[0]
    if everybody or is_link_local(to):
        # These never leave the link, so the default route says no more than which interface to try (RFC 3927 2.6.2).
        if interface < 0 and bound != cython.NULL and not is_loopback(bound):
            interface = _interface_of(net, bound)
        if interface >= 0 and (route == cython.NULL or route.interface != interface):
            route = cython.NULL
        elif route != cython.NULL:
            interface = route.interface
        else:
            interface = _first_link(net, to)
        if route != cython.NULL and not everybody and route.length > (96 if is_v4(to) else 0) and (
                not is_unspecified(cython.address(route.gateway))):
            next_hop[0] = route.gateway
    elif route != cython.NULL:
        interface = route.interface
        if not is_unspecified(cython.address(route.gateway)):
            next_hop[0] = route.gateway
    else:
        return NO_ROUTE
    if interface < 0 or interface >= MAX_INTERFACES or net.interfaces[interface] == cython.NULL:
        return NO_ROUTE
    link: cython.pointer[Interface] = net.interfaces[interface]
    if not link.up:
        return NO_ROUTE
    path.interface = cython.cast(uint8_t, interface)
    path.mtu = link.mtu
    if bound != cython.NULL:
        # Loopback addresses stay inside (RFC 1122 3.2.1.3), link-local ones on their link (RFC 4291 2.5.6).
        if interface != LOOPBACK and (
                is_loopback(bound) or (is_link_local(bound) and interface_address(link, bound) == cython.NULL)):
            return NO_SOURCE_ADDRESS
        path.source = bound[0]
    elif route != cython.NULL and not is_unspecified(cython.address(route.source)) and (
            is_local(net, cython.address(route.source))):
        path.source = route.source
    else:
        # IPv4 speaks from the subnet of the next hop; IPv6 routers have link-local addresses, which say nothing.
        if is_v4(to):
            to = next_hop
        if not _choose_source(net, link, to, cython.address(path.source)):
            return NO_SOURCE_ADDRESS
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _address_link(net: cython.pointer[Net], path: cython.pointer[Path],
                  next_hop: cython.pointer[cython.const[Addr]]) -> cython.int:
    """Fill MAC or neighbor of a path whose interface is known and make it valid: 0 or a Verdict."""
    if is_multicast(cython.address(path.destination)):
        _group_mac(cython.address(path.destination), path.mac)
    elif is_limited_broadcast(next_hop) or is_subnet_broadcast(net.interfaces[path.interface], next_hop):
        memset(path.mac, 0xFF, 6)
    elif path.interface != LOOPBACK:
        if net.neighbors != cython.NULL:
            path.neighbor = neighbor_find(net, path.interface, next_hop)
        if path.neighbor < 0:
            return NEIGHBOR_QUEUE_FULL
    path.generation = net.generation
    return 0


# --- sending --------------------------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def write_headers(net: cython.pointer[Net], path: cython.pointer[cython.const[Path]], protocol: uint8_t,
                  hop_limit: uint8_t, n: uint32_t, out: cython.pointer[uint8_t]) -> uint32_t:
    ip: cython.pointer[uint8_t] = out + ETHERNET_HEADER
    length: uint32_t
    memcpy(out + 6, net.interfaces[path.interface].mac, 6)
    if not is_v4(cython.address(path.destination)):
        put16(out + 12, ETHERTYPE_IPV6)
        length = min(n, 0xFFFF)
        put32(ip, cython.cast(uint32_t, 0x60000000))
        put16(ip + 4, cython.cast(uint16_t, length))
        ip[6] = protocol
        ip[7] = hop_limit
        store_v6(ip + 8, cython.address(path.source))
        store_v6(ip + 24, cython.address(path.destination))
        return ETHERNET_HEADER + IPV6_HEADER
    put16(out + 12, ETHERTYPE_IPV4)
    length = min(n + IPV4_HEADER, 0xFFFF)
    put16(ip, 0x4500)
    put16(ip + 2, cython.cast(uint16_t, length))
    if protocol == PROTOCOL_TCP:
        put16(ip + 4, 0)
        put16(ip + 6, DONT_FRAGMENT)
    else:
        put16(ip + 4, net.ip_id)
        put16(ip + 6, 0)
        net.ip_id += 1
    ip[8] = hop_limit
    ip[9] = protocol
    store16(ip + 10, 0)
    store_v4(ip + 12, cython.address(path.source))
    store_v4(ip + 16, cython.address(path.destination))
    store16(ip + 10, fold(sum_octets(ip, IPV4_HEADER, 0)))
    return ETHERNET_HEADER + IPV4_HEADER


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _complete_checksum(p: cython.pointer[Packet], protocol: uint8_t) -> cython.void:
    """Do what the device cannot: sum the transport, with the pseudo header's sum already in its place."""
    at: cython.pointer[uint8_t] = cython.address(p.octets[0]) + p.start + p.checksum_start
    value: uint16_t = fold(sum_octets(at, p.length - p.checksum_start, 0))
    if value == 0 and protocol == PROTOCOL_UDP:
        value = 0xFFFF      # RFC 768: zero means no checksum
    store16(at + p.checksum_offset, value)
    p.checksum_start = 0
    p.checksum_offset = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ip_send(net: cython.pointer[Net], p: cython.pointer[Packet], path: cython.pointer[cython.const[Path]],
            protocol: uint8_t, hop_limit: uint8_t) -> cython.int:
    fresh: Path
    verdict: cython.int
    if path.generation != net.generation:
        fresh.destination = path.destination
        verdict = path_resolve_on(net, cython.address(fresh), cython.address(path.source), path.interface)
        if verdict != 0:
            return packet_unsent(net, p, verdict)
        path = cython.address(fresh)
    i: cython.pointer[Interface] = net.interfaces[path.interface]
    v4: cython.bint = is_v4(cython.address(path.destination))
    headers: uint32_t = ETHERNET_HEADER + (IPV4_HEADER if v4 else IPV6_HEADER)
    if p.start < headers:
        return packet_unsent(net, p, TOO_BIG)
    if p.segment_size:
        if not i.features & (TSO4 if v4 else TSO6):
            return packet_unsent(net, p, TOO_BIG)
    elif p.length + headers - ETHERNET_HEADER > path.mtu:
        return packet_unsent(net, p, TOO_BIG)
    if p.checksum_offset:
        if i.features & TX_CHECKSUM:
            p.checksum_start += cython.cast(uint16_t, headers)
        else:
            _complete_checksum(p, protocol)
    out: cython.pointer[uint8_t] = cython.address(p.octets[0]) + p.start - headers
    write_headers(net, path, protocol, hop_limit, p.length, out)
    p.start -= headers
    p.length += headers
    p.l3_offset = ETHERNET_HEADER
    p.family = 4 if v4 else 6
    if path.neighbor < 0:
        memcpy(out, path.mac, 6)
        return interface_send(net, path.interface, p)
    neighbor: cython.pointer[Neighbor] = neighbor_at(net, path.neighbor)
    if not neighbor_use(net, neighbor):
        memset(out, 0, 6)
        return neighbor_hold(net, neighbor, p)
    memcpy(out, neighbor.mac, 6)
    return interface_send(net, path.interface, p)


# --- the Python face ------------------------------------------------------------------------------------------------

def create_tables(state: NetState, routes: int = ROUTES, neighbors: int = NEIGHBORS) -> None:
    """Give the state its route and neighbor tables, with bounds. Raises ValueError, MemoryError."""
    routes_create(state.net, routes)
    neighbors_create(state.net, neighbors)


@cython.cfunc
@cython.exceptval(-1, check=False)
def _resolve(state: NetState, path: cython.pointer[Path], destination: object, source: object,
             interface: int32_t) -> cython.int:
    bound: Addr
    address_from(destination, cython.address(path.destination))
    bound.word[0] = bound.word[1] = 0
    if source is not None:
        address_from(source, cython.address(bound))
    verdict: cython.int = path_resolve_on(state.net, path, cython.address(bound), interface)
    if verdict == NO_ROUTE:
        raise OSError(errno.ENETUNREACH, f"{destination}: {HELP[verdict]}")
    if verdict == NO_SOURCE_ADDRESS:
        raise OSError(errno.EADDRNOTAVAIL, f"{destination}: {HELP[verdict]}")
    if verdict:
        raise OSError(errno.ENOBUFS, f"{destination}: {HELP[verdict]}")
    return 0


def path_to(state: NetState, destination: object, source: object = None, interface: int = -1) -> dict:
    """The way a packet would take: destination, source, interface, mtu, next_hop (None: nobody to ask), mac.

    `source`: the own address to use; `interface`: for destinations that are only known on a link. Raises OSError
    (ENETUNREACH, EADDRNOTAVAIL, ENOBUFS) when there is none.
    """
    path: Path
    _resolve(state, cython.address(path), destination, source, interface)
    mac: cython.pointer[uint8_t] = path.mac
    next_hop: object = None
    if path.neighbor >= 0:
        next_hop = address_text(cython.address(neighbor_at(state.net, path.neighbor).address))
    return {"destination": address_text(cython.address(path.destination)),
            "source": address_text(cython.address(path.source)), "interface": path.interface, "mtu": path.mtu,
            "next_hop": next_hop, "mac": None if next_hop else mac[:6].hex(":")}


def send_packet(state: NetState, destination: object, protocol: int, payload: bytes, hop_limit: int = HOP_LIMIT,
                source: object = None, checksum_offset: int = 0, segment_size: int = 0) -> str:
    """Send one IP packet with this transport header and data; returns "delivered" or the label of what it ended in.

    `checksum_offset`, if not 0: where in it the transport checksum goes, which holds the pseudo header's sum so far.
    `segment_size`, if not 0: a TCP super-segment for the device to split into so many octets of data each.
    Raises OSError as path_to does, MemoryError.
    """
    path: Path
    n: uint32_t = len(payload)
    _resolve(state, cython.address(path), destination, source, -1)
    if checksum_offset and not 0 < checksum_offset <= len(payload) - 2:
        raise ValueError(f"a checksum at {checksum_offset} is not within {len(payload)} octets")
    p: cython.pointer[Packet] = packet_new(PACKET_START + n, PACKET_START)
    if p == cython.NULL:
        raise MemoryError
    memcpy(cython.address(p.octets[0]) + PACKET_START, PyBytes_AS_STRING(payload), n)
    p.length = n
    p.checksum_offset = checksum_offset
    p.segment_size = segment_size
    return LABELS[ip_send(state.net, p, cython.address(path), protocol, hop_limit)]


def dissect(packet: bytes, family: int) -> tuple:
    """Judge an IP packet as the stack does: (verdict label, the fields of an accepted one as a dict, else None)."""
    view: IpView
    verdict: cython.int
    p: cython.pointer[uint8_t] = cython.cast(cython.pointer[uint8_t], PyBytes_AS_STRING(packet))
    if family == 4:
        verdict = ipv4_parse(cython.address(view), p, len(packet))
    elif family == 6:
        verdict = ipv6_parse(cython.address(view), p, len(packet))
    else:
        raise ValueError(f"a family is 4 or 6, not {family}")
    if verdict:
        return LABELS[verdict], None
    payload: cython.pointer[cython.const[uint8_t]] = view.payload
    return LABELS[0], {
        "source": address_text(cython.address(view.source)),
        "destination": address_text(cython.address(view.destination)), "family": view.family,
        "protocol": view.protocol, "hop_limit": view.hop_limit, "header_length": view.header_length,
        "payload": payload[:view.length], "multicast": bool(view.multicast),
    }
