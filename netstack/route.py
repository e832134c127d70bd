"""Which way a packet goes: longest-prefix match for both families."""

import errno
import ipaddress

import cython
from cython.cimports.libc.stdint import int32_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free, realloc
from cython.cimports.mm.hw import get64, put64
from cython.cimports.netstack.net import MAX_INTERFACES, Net, NetState, forget_paths, own_address
from cython.cimports.netstack.wire.address import Addr, address_from, address_text, is_unspecified, is_v4

_FIRST_CAPACITY = cython.declare(uint32_t, 16)
_V4_BITS = cython.declare(uint8_t, 96)      # of the prefix that all IPv4 addresses share
_ANY_METRIC = cython.declare(uint32_t, 0xFFFFFFFF)      # of route_remove; no route has it
_KINDS = {ROUTE_CONNECTED: "connected", ROUTE_STATIC: "static", ROUTE_LOCAL: "local"}


# --- bits -----------------------------------------------------------------------------------------------------------

@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _leading_zeros(x: uint64_t) -> cython.int:
    n: cython.int = 0
    step: cython.int = 32
    if x == 0:
        return 64
    while step:
        if x >> (64 - step) == 0:
            n += step
            x <<= step
        step >>= 1
    return n


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _common_bits(hi: uint64_t, lo: uint64_t, other_hi: uint64_t, other_lo: uint64_t) -> cython.int:
    return _leading_zeros(hi ^ other_hi) if hi != other_hi else 64 + _leading_zeros(lo ^ other_lo)


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _bit(hi: uint64_t, lo: uint64_t, at: uint8_t) -> cython.int:
    """Bit `at` of 128, 0 the most significant."""
    if at < 64:
        return cython.cast(cython.int, (hi >> (63 - at)) & 1)
    return cython.cast(cython.int, (lo >> (127 - at)) & 1)


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _mask(length: cython.int) -> uint64_t:
    """The first `length` bits of a word; all of them from 64 on, none below 1."""
    if length <= 0:
        return 0
    return ~cython.cast(uint64_t, 0) << (64 - length if length < 64 else 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def common_prefix(a: cython.pointer[cython.const[Addr]], b: cython.pointer[cython.const[Addr]]) -> cython.int:
    return _common_bits(get64(cython.address(a.octets[0])), get64(cython.address(a.octets[8])),
                        get64(cython.address(b.octets[0])), get64(cython.address(b.octets[8])))


# --- the table ------------------------------------------------------------------------------------------------------

@cython.cfunc
@cython.exceptval(-1, check=False)
def routes_create(net: cython.pointer[Net], limit: uint32_t) -> cython.int:
    """Give the state an empty table for up to `limit` routes; it goes with the state."""
    if net.routes != cython.NULL:
        raise ValueError("there is a route table already")
    if not 1 <= limit <= 1 << 29:
        raise ValueError(f"a route table holds 1 to {1 << 29} routes, not {limit}")
    t: cython.pointer[RouteTable] = cython.cast(cython.pointer[RouteTable], calloc(1, cython.sizeof(RouteTable)))
    if t == cython.NULL:
        raise MemoryError
    t.root[0] = t.root[1] = t.free_node = t.free_entry = -1
    t.limit = limit
    net.routes = t
    net.routes_free = routes_destroy
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def routes_destroy(net: cython.pointer[Net]) -> cython.void:
    t: cython.pointer[RouteTable] = cython.cast(cython.pointer[RouteTable], net.routes)
    if t == cython.NULL:
        return
    net.routes = cython.NULL
    free(t.nodes)
    free(t.entries)
    free(t)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _grow(t: cython.pointer[RouteTable]) -> cython.bint:
    """More room, and with it more free entries and nodes. A trie of n prefixes has less than n forks."""
    capacity: cython.size_t = min(t.capacity * 2 if t.capacity else _FIRST_CAPACITY, t.limit)
    if capacity == t.capacity:
        return False
    entries: cython.pointer[RouteEntry] = cython.cast(
        cython.pointer[RouteEntry], realloc(t.entries, capacity * cython.sizeof(RouteEntry)))
    if entries == cython.NULL:
        return False
    t.entries = entries
    nodes: cython.pointer[RouteNode] = cython.cast(
        cython.pointer[RouteNode], realloc(t.nodes, capacity * 2 * cython.sizeof(RouteNode)))
    if nodes == cython.NULL:
        return False
    t.nodes = nodes
    i: int32_t = cython.cast(int32_t, capacity) - 1
    while i >= cython.cast(int32_t, t.capacity):
        t.entries[i].in_use = False
        t.entries[i].next = t.free_entry
        t.free_entry = i
        _free_node(t, 2 * i + 1)
        _free_node(t, 2 * i)
        i -= 1
    t.capacity = cython.cast(uint32_t, capacity)
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _free_node(t: cython.pointer[RouteTable], index: int32_t) -> cython.void:
    t.nodes[index].child[0] = t.free_node
    t.free_node = index


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _new_node(t: cython.pointer[RouteTable], hi: uint64_t, lo: uint64_t, length: uint8_t) -> int32_t:
    index: int32_t = t.free_node
    node: cython.pointer[RouteNode] = cython.address(t.nodes[index])
    t.free_node = node.child[0]
    node.mask[0] = _mask(length)
    node.mask[1] = _mask(cython.cast(cython.int, length) - 64)
    node.key[0] = hi & node.mask[0]
    node.key[1] = lo & node.mask[1]
    node.child[0] = node.child[1] = node.first = -1
    node.length = length
    return index


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _matches(node: cython.pointer[cython.const[RouteNode]], hi: uint64_t, lo: uint64_t) -> cython.bint:
    return (((hi ^ node.key[0]) & node.mask[0]) | ((lo ^ node.key[1]) & node.mask[1])) == 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def route_lookup(net: cython.pointer[cython.const[Net]],
                 destination: cython.pointer[cython.const[Addr]]) -> cython.pointer[cython.const[Route]]:
    t: cython.pointer[RouteTable] = cython.cast(cython.pointer[RouteTable], net.routes)
    best: cython.pointer[cython.const[Route]] = cython.NULL
    if t == cython.NULL:
        return best
    hi: uint64_t = get64(cython.address(destination.octets[0]))
    lo: uint64_t = get64(cython.address(destination.octets[8]))
    index: int32_t = t.root[is_v4(destination)]
    at: int32_t
    node: cython.pointer[RouteNode]
    route: cython.pointer[cython.const[Route]]
    while index >= 0:
        node = cython.address(t.nodes[index])
        if not _matches(node, hi, lo):
            break
        at = node.first
        while at >= 0:
            route = cython.address(t.entries[at].route)
            if net.interfaces[route.interface] != cython.NULL and net.interfaces[route.interface].up:
                best = route
                break
            at = t.entries[at].next
        if node.length >= 128:
            break
        index = node.child[_bit(hi, lo, node.length)]
    return best


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _node_for(t: cython.pointer[RouteTable], family: cython.int, hi: uint64_t, lo: uint64_t,
              length: uint8_t) -> int32_t:
    """The node of a prefix, made if there is none; needs two free nodes."""
    link: cython.pointer[int32_t] = cython.address(t.root[family])
    node: cython.pointer[RouteNode]
    index: int32_t
    fork: int32_t
    common: cython.int
    while link[0] >= 0:
        index = link[0]
        node = cython.address(t.nodes[index])
        common = _common_bits(hi, lo, node.key[0], node.key[1])
        common = min(common, node.length, length)
        if common < node.length:
            # The paths part here: a new node above, which is the prefix itself or a fork of the two.
            fork = _new_node(t, hi, lo, cython.cast(uint8_t, common))
            t.nodes[fork].child[_bit(node.key[0], node.key[1], cython.cast(uint8_t, common))] = index
            link[0] = fork
            if common == length:
                return fork
            index = fork
            node = cython.address(t.nodes[index])
        elif common == length:
            return index
        link = cython.address(node.child[_bit(hi, lo, node.length)])
    link[0] = _new_node(t, hi, lo, length)
    return link[0]


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _find(t: cython.pointer[RouteTable], family: cython.int, hi: uint64_t, lo: uint64_t, length: uint8_t,
          parent: cython.pointer[cython.pointer[int32_t]]) -> cython.pointer[int32_t]:
    """The link to the node of a prefix, NULL if there is none; `parent` the link to its parent, NULL at the root."""
    link: cython.pointer[int32_t] = cython.address(t.root[family])
    node: cython.pointer[RouteNode]
    parent[0] = cython.NULL
    while link[0] >= 0:
        node = cython.address(t.nodes[link[0]])
        if node.length > length or not _matches(node, hi, lo):
            break
        if node.length == length:
            return link
        parent[0] = link
        link = cython.address(node.child[_bit(hi, lo, node.length)])
    return cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _splice(t: cython.pointer[RouteTable], link: cython.pointer[int32_t]) -> cython.bint:
    """Take out a node without routes unless it is a fork of two. True: its place is empty now."""
    index: int32_t = link[0]
    node: cython.pointer[RouteNode] = cython.address(t.nodes[index])
    if node.first >= 0 or (node.child[0] >= 0 and node.child[1] >= 0):
        return False
    link[0] = node.child[0] if node.child[0] >= 0 else node.child[1]
    _free_node(t, index)
    return link[0] < 0


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _family(prefix: cython.pointer[cython.const[Addr]], length: uint8_t) -> cython.int:
    return 1 if length >= _V4_BITS and is_v4(prefix) else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def route_insert(net: cython.pointer[Net], route: cython.pointer[cython.const[Route]]) -> cython.int:
    t: cython.pointer[RouteTable] = cython.cast(cython.pointer[RouteTable], net.routes)
    if t == cython.NULL or route.length > 128 or route.interface >= MAX_INTERFACES or route.metric == _ANY_METRIC:
        return -1
    hi: uint64_t = get64(cython.address(route.prefix.octets[0])) & _mask(route.length)
    lo: uint64_t = get64(cython.address(route.prefix.octets[8])) & _mask(cython.cast(cython.int, route.length) - 64)
    family: cython.int = _family(cython.address(route.prefix), route.length)
    parent: cython.pointer[int32_t]
    link: cython.pointer[int32_t] = _find(t, family, hi, lo, route.length, cython.address(parent))
    at: int32_t = t.nodes[link[0]].first if link != cython.NULL else -1
    replaced: cython.int = 0
    while at >= 0 and (t.entries[at].route.metric != route.metric or t.entries[at].route.interface != route.interface):
        at = t.entries[at].next
    if at >= 0:
        replaced = 1
    else:
        if t.free_entry < 0 and not _grow(t):
            return -1
        at = t.free_entry
        t.free_entry = t.entries[at].next
        t.entries[at].in_use = True
        t.count += 1
        link = cython.address(t.nodes[_node_for(t, family, hi, lo, route.length)].first)
        while link[0] >= 0 and t.entries[link[0]].route.metric <= route.metric:
            link = cython.address(t.entries[link[0]].next)
        t.entries[at].next = link[0]
        link[0] = at
    t.entries[at].route = route[0]
    put64(cython.address(t.entries[at].route.prefix.octets[0]), hi)
    put64(cython.address(t.entries[at].route.prefix.octets[8]), lo)
    forget_paths(net)
    return replaced


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def route_remove(net: cython.pointer[Net], prefix: cython.pointer[cython.const[Addr]], length: uint8_t,
                 interface: cython.int, metric: uint32_t) -> cython.int:
    t: cython.pointer[RouteTable] = cython.cast(cython.pointer[RouteTable], net.routes)
    if t == cython.NULL or length > 128:
        return 0
    hi: uint64_t = get64(cython.address(prefix.octets[0])) & _mask(length)
    lo: uint64_t = get64(cython.address(prefix.octets[8])) & _mask(cython.cast(cython.int, length) - 64)
    parent: cython.pointer[int32_t]
    node_link: cython.pointer[int32_t] = _find(t, _family(prefix, length), hi, lo, length, cython.address(parent))
    if node_link == cython.NULL:
        return 0
    removed: cython.int = 0
    at: int32_t
    link: cython.pointer[int32_t] = cython.address(t.nodes[node_link[0]].first)
    entry: cython.pointer[RouteEntry]
    while link[0] >= 0:
        at = link[0]
        entry = cython.address(t.entries[at])
        if (interface >= 0 and entry.route.interface != interface) or (
                metric != _ANY_METRIC and entry.route.metric != metric):
            link = cython.address(entry.next)
            continue
        link[0] = entry.next
        entry.in_use = False
        entry.next = t.free_entry
        t.free_entry = at
        t.count -= 1
        removed += 1
    if removed:
        if _splice(t, node_link) and parent != cython.NULL:
            _splice(t, parent)      # a fork of two that has lost one of them
        forget_paths(net)
    return removed


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def routes_forget_interface(net: cython.pointer[Net], interface: cython.int) -> cython.void:
    """Remove all routes over an interface; takes time in proportion to the table."""
    t: cython.pointer[RouteTable] = cython.cast(cython.pointer[RouteTable], net.routes)
    if t == cython.NULL:
        return
    at: uint32_t
    for at in range(t.capacity):
        if t.entries[at].in_use and t.entries[at].route.interface == interface:
            route_remove(net, cython.address(t.entries[at].route.prefix), t.entries[at].route.length, interface,
                         t.entries[at].route.metric)


# --- the Python face ------------------------------------------------------------------------------------------------

@cython.cfunc
def _route_row(r: cython.pointer[cython.const[Route]]) -> dict:
    bits: cython.int = r.length
    if _family(cython.address(r.prefix), r.length):
        bits -= _V4_BITS
    gateway: object = None if is_unspecified(cython.address(r.gateway)) else address_text(cython.address(r.gateway))
    source: object = None if is_unspecified(cython.address(r.source)) else address_text(cython.address(r.source))
    return {"prefix": f"{address_text(cython.address(r.prefix))}/{bits}", "gateway": gateway,
            "interface": r.interface, "source": source, "metric": r.metric, "kind": _KINDS.get(r.kind, str(r.kind))}


@cython.cfunc
def route_rows(net: cython.pointer[cython.const[Net]]) -> list:
    t: cython.pointer[RouteTable] = cython.cast(cython.pointer[RouteTable], net.routes)
    rows: list = []
    at: uint32_t
    if t != cython.NULL:
        for at in range(t.capacity):
            if t.entries[at].in_use:
                rows.append(_route_row(cython.address(t.entries[at].route)))
    return sorted(rows, key=_row_order)


def _row_order(row):
    network = ipaddress.ip_network(row["prefix"])
    return network.version, network.network_address, network.prefixlen, row["metric"], row["interface"]


@cython.cfunc
@cython.exceptval(-1, check=False)
def _prefix_from(text: object, prefix: cython.pointer[Addr], length: cython.pointer[uint8_t]) -> cython.int:
    network: object = ipaddress.ip_network(text)
    if network.version == 6 and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
        raise ValueError(f"{text} holds IPv4-mapped addresses: write it as an IPv4 prefix")
    address_from(network.network_address, prefix)
    length[0] = network.prefixlen + (96 if network.version == 4 else 0)
    return 0


def create_routes(state: NetState, limit: int = ROUTES) -> None:
    """Give the state an empty table for up to `limit` routes. Raises ValueError when it has one."""
    routes_create(state.net, limit)


def add_route(state: NetState, prefix: str, gateway: str | None, interface: int, metric: int = 0,
              source: str | None = None, kind: str = "static") -> bool:
    """Add a route, or replace the one of the same prefix, metric and interface. True: replaced.

    `gateway`: None for what is on the link; `source`: the own address to prefer; the lowest `metric` wins.
    Raises ValueError for what is no route, OSError (ENOSPC) when the table is full.
    """
    r: Route
    _prefix_from(prefix, cython.address(r.prefix), cython.address(r.length))
    for name, address, to_source in (("gateway", gateway, False), ("source", source, True)):
        a: Addr
        a.word[0] = a.word[1] = 0
        if address is not None:
            address_from(address, cython.address(a))
            ip = ipaddress.ip_address(address)
            if ip.version != ipaddress.ip_network(prefix).version:
                raise ValueError(f"{name} {address} and prefix {prefix} are of different families")
            if ip.is_multicast or ip.is_unspecified or ip.is_loopback:
                raise ValueError(f"{address} cannot be the {name} of a route")
            if to_source != (own_address(state.net, cython.address(a)) != cython.NULL):
                raise ValueError(f"{name} {address} is {'not ' if to_source else ''}an address of this stack")
        if to_source:
            r.source = a
        else:
            r.gateway = a
    if not 0 <= interface < MAX_INTERFACES or state.net.interfaces[cython.cast(cython.int, interface)] == cython.NULL:
        raise ValueError(f"there is no interface {interface}")
    if not 0 <= metric < _ANY_METRIC:
        raise ValueError(f"a metric is 0 to {_ANY_METRIC - 1}, not {metric}")
    kinds = [value for value, name in _KINDS.items() if name == kind]
    if not kinds:
        raise ValueError(f"a route is {', '.join(_KINDS.values())}, not {kind}")
    r.interface, r.metric, r.kind = interface, metric, kinds[0]
    result: cython.int = route_insert(state.net, cython.address(r))
    if result < 0:
        raise OSError(errno.ENOSPC, f"no room for the route to {prefix}")
    return result == 1


def remove_route(state: NetState, prefix: str, interface: int = -1, metric: int | None = None) -> int:
    """Remove the routes to exactly this prefix, of one interface or metric if given; returns how many went."""
    a: Addr
    length: uint8_t
    _prefix_from(prefix, cython.address(a), cython.address(length))
    if metric is not None and not 0 <= metric < _ANY_METRIC:
        return 0
    return route_remove(state.net, cython.address(a), length, interface, _ANY_METRIC if metric is None else metric)


def forget_interface(state: NetState, interface: int) -> None:
    """Remove all routes over an interface."""
    routes_forget_interface(state.net, interface)


def routes(state: NetState) -> list:
    """A row per route: prefix, gateway, interface, source, metric, kind; by family, prefix and metric."""
    return route_rows(state.net)


def lookup(state: NetState, destination: object) -> dict | None:
    """The row of the route a destination takes, None without one."""
    a: Addr
    address_from(destination, cython.address(a))
    r: cython.pointer[cython.const[Route]] = route_lookup(state.net, cython.address(a))
    return None if r == cython.NULL else _route_row(r)
