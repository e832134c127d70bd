"""Who is on the link: one cache and one state machine for ARP (RFC 826) and Neighbor Discovery (RFC 4861).

An entry is made INCOMPLETE by the first packet for an address and holds packets until an answer comes. What was
heard is REACHABLE for a while, then STALE; a STALE one that is used again is asked (DELAY, PROBE) and goes when it
stays silent (RFC 4861 7.3.2). Every change that can make a cached path wrong changes `net.generation`.
"""

import errno

import cython
from cython.cimports.libc.stdint import INT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.netstack.counters import DAD_CONFLICTS, NEIGHBOR_EVICTIONS
from cython.cimports.netstack.link import (
    arp_reply,
    arp_request,
    is_own_mac,
    link_source,
    ndp_advertise,
    ndp_solicit,
)
from cython.cimports.netstack.net import (
    ADDRESS_DUPLICATE,
    ADDRESS_PREFERRED,
    ADDRESS_TENTATIVE,
    LOOPBACK,
    MAX_ADDRESSES,
    MAX_INTERFACES,
    Interface,
    InterfaceAddress,
    NetState,
    forget_paths,
    interface_address,
    interface_send,
    packet_unsent,
    queue_pop,
    queue_push,
    random_below,
    siphash,
)
from cython.cimports.netstack.verdict import (
    ANSWERED,
    ARP_ADDRESS_CONFLICT,
    ARP_MALFORMED,
    ARP_NOT_FOR_US,
    DELIVERED,
    INTERFACE_DOWN,
    NDP_ADDRESS_CONFLICT,
    NDP_HOP_LIMIT,
    NDP_IGNORED,
    NDP_MALFORMED,
    NDP_NOT_FOR_US,
    NEIGHBOR_QUEUE_FULL,
)
from cython.cimports.netstack.verdict import NEIGHBOR_FAILED as NEIGHBOR_FAILED_VERDICT
from cython.cimports.netstack.wire.address import (
    Addr,
    address_from,
    address_text,
    is_multicast,
    is_unspecified,
    is_v4,
    load_v4,
    load_v6,
    same_address,
)
from cython.cimports.netstack.wire.arp import ARP_REPLY, ARP_REQUEST, Arp, arp_parse, is_station, same_mac
from cython.cimports.netstack.wire.ndp import (
    NDP_NEIGHBOR_ADVERTISEMENT,
    NDP_NEIGHBOR_SOLICITATION,
    NDP_OVERRIDE,
    NDP_ROUTER,
    NDP_SOLICITED,
    Ndp,
    ndp_parse,
)

RETRANSMIT_NS = cython.declare(int64_t, 1_000_000_000)          # RFC 4861 10 RETRANS_TIMER; RFC 1122 2.3.2.1: no faster
DELAY_FIRST_PROBE_NS = cython.declare(int64_t, 5_000_000_000)   # RFC 4861 10
REACHABLE_REDRAW_NS = cython.declare(int64_t, 3_600_000_000_000)    # RFC 4861 6.3.4: at least every few hours
FAILED_NS = cython.declare(int64_t, 5_000_000_000)      # senders fail at once for so long, then it is asked again
ANNOUNCE_INTERVAL_NS = cython.declare(int64_t, 2_000_000_000)   # RFC 5227 1.1
DEFEND_INTERVAL_NS = cython.declare(int64_t, 10_000_000_000)    # RFC 5227 1.1


@cython.cfunc
@cython.exceptval(-1, check=False)
def neighbors_create(net: cython.pointer[Net], limit: uint32_t) -> cython.int:
    """Give `net` an empty cache of at most `limit` entries. Raises MemoryError."""
    buckets: uint32_t = 16
    while buckets < limit:
        buckets *= 2
    t: cython.pointer[NeighborTable] = cython.cast(
        cython.pointer[NeighborTable], calloc(1, cython.sizeof(NeighborTable)))
    if t == cython.NULL:
        raise MemoryError("no memory for the neighbor table")
    t.entries = cython.cast(cython.pointer[Neighbor], calloc(limit, cython.sizeof(Neighbor)))
    t.buckets = cython.cast(cython.pointer[int32_t], calloc(buckets, cython.sizeof(int32_t)))
    if t.entries == cython.NULL or t.buckets == cython.NULL:
        free(t.entries)
        free(t.buckets)
        free(t)
        raise MemoryError(f"no memory for {limit} neighbors")
    t.limit = limit
    t.mask = buckets - 1
    memset(t.buckets, 0xFF, buckets * cython.sizeof(int32_t))
    t.free = -1
    t.wake_at = INT64_MAX
    t.defended_at = -DEFEND_INTERVAL_NS
    net.neighbors = t
    net.neighbors_free = neighbors_destroy
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def neighbors_destroy(net: cython.pointer[Net]) -> cython.void:
    """Free the cache and every packet that waits in it."""
    t: cython.pointer[NeighborTable] = _table(net)
    i: uint32_t
    if t == cython.NULL:
        return
    for i in range(t.top):
        _drop_waiting(net, cython.address(t.entries[i]), NEIGHBOR_FAILED_VERDICT)
    free(t.entries)
    free(t.buckets)
    free(t)
    net.neighbors = cython.NULL


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _table(net: cython.pointer[cython.const[Net]]) -> cython.pointer[NeighborTable]:
    return cython.cast(cython.pointer[NeighborTable], net.neighbors)


# --- the table ------------------------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _bucket(net: cython.pointer[Net], interface: uint32_t,
            address: cython.pointer[cython.const[Addr]]) -> cython.pointer[int32_t]:
    t: cython.pointer[NeighborTable] = _table(net)
    h: uint64_t = siphash(cython.address(net.key), address.word[0], address.word[1], interface, 0, 0)
    return cython.address(t.buckets[h & t.mask])


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _lookup(net: cython.pointer[Net], interface: uint32_t,
            address: cython.pointer[cython.const[Addr]]) -> cython.pointer[Neighbor]:
    """The entry of an address; NULL: there is none."""
    t: cython.pointer[NeighborTable] = _table(net)
    i: int32_t = _bucket(net, interface, address)[0]
    n: cython.pointer[Neighbor]
    while i >= 0:
        n = cython.address(t.entries[i])
        if n.interface == interface and same_address(cython.address(n.address), address):
            return n
        i = n.next
    return cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _create(net: cython.pointer[Net], interface: uint32_t, address: cython.pointer[cython.const[Addr]],
            unresolved: cython.bint) -> cython.pointer[Neighbor]:
    """A new INCOMPLETE entry; NULL: no room. `unresolved`: it will stay so until somebody answers."""
    t: cython.pointer[NeighborTable] = _table(net)
    n: cython.pointer[Neighbor]
    i: int32_t
    if unresolved and t.unresolved >= (t.limit + 1) // 2 and not _evict(net, True):
        return cython.NULL
    if t.count == t.limit and not _evict(net, False):
        return cython.NULL
    if t.free >= 0:
        i = t.free
        t.free = t.entries[i].next
    else:
        i = t.top
        t.top += 1
    n = cython.address(t.entries[i])
    memset(n, 0, cython.sizeof(Neighbor))
    n.address = address[0]
    n.interface = interface
    n.waiting.limit = NEIGHBOR_WAITING
    n.due = INT64_MAX
    bucket: cython.pointer[int32_t] = _bucket(net, interface, address)
    n.next = bucket[0]
    bucket[0] = i
    t.count += 1
    _enter(net, n, NEIGHBOR_INCOMPLETE, INT64_MAX)
    return n


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _evict(net: cython.pointer[Net], unresolved: cython.bint) -> cython.bint:
    """Release the least recently used entry that nobody waits for; `unresolved`: among those without an answer only."""
    t: cython.pointer[NeighborTable] = _table(net)
    oldest: cython.pointer[Neighbor] = cython.NULL
    n: cython.pointer[Neighbor]
    used: int64_t
    oldest_used: int64_t = INT64_MAX
    i: uint32_t
    for i in range(t.top):
        n = cython.address(t.entries[i])
        if n.state == NEIGHBOR_FREE or n.state == NEIGHBOR_PERMANENT or n.waiting.count:
            continue
        if unresolved and not _is_unresolved(n):
            continue
        used = -1 if n.state == NEIGHBOR_FAILED else n.used
        if used < oldest_used:
            oldest = n
            oldest_used = used
    if oldest == cython.NULL:
        return False
    net.counters[cython.cast(cython.int, NEIGHBOR_EVICTIONS)] += 1
    _release(net, oldest, NEIGHBOR_FAILED_VERDICT)
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _release(net: cython.pointer[Net], n: cython.pointer[Neighbor], verdict: cython.int) -> cython.void:
    """Take an entry out of the table; what still waited ends with `verdict`."""
    t: cython.pointer[NeighborTable] = _table(net)
    index: int32_t = cython.cast(int32_t, n - t.entries)
    link: cython.pointer[int32_t] = _bucket(net, n.interface, cython.address(n.address))
    _drop_waiting(net, n, verdict)
    while link[0] != index:
        link = cython.address(t.entries[link[0]].next)
    link[0] = n.next
    _enter(net, n, NEIGHBOR_FREE, INT64_MAX)
    n.next = t.free
    t.free = index
    t.count -= 1
    forget_paths(net)


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _is_unresolved(n: cython.pointer[cython.const[Neighbor]]) -> cython.bint:
    """Without a MAC to send to."""
    return n.state == NEIGHBOR_INCOMPLETE or n.state == NEIGHBOR_FAILED


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _enter(net: cython.pointer[Net], n: cython.pointer[Neighbor], state: uint8_t, due: int64_t) -> cython.void:
    """Change the state; the state machine acts on it again at `due`."""
    t: cython.pointer[NeighborTable] = _table(net)
    t.unresolved -= _is_unresolved(n)
    if state != n.state:
        n.probes = 0
    n.state = state
    n.due = due
    t.unresolved += _is_unresolved(n)
    if due < t.wake_at:
        t.wake_at = due


# --- what the sending side calls ------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def neighbor_find(net: cython.pointer[Net], interface: uint32_t,
                  address: cython.pointer[cython.const[Addr]]) -> int32_t:
    """The index of an address's entry, made INCOMPLETE when it is new; -1: no room."""
    n: cython.pointer[Neighbor] = _lookup(net, interface, address)
    if n == cython.NULL:
        n = _create(net, interface, address, True)
        if n == cython.NULL:
            return -1
        n.used = net.now
    return cython.cast(int32_t, n - _table(net).entries)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def neighbor_at(net: cython.pointer[cython.const[Net]], index: int32_t) -> cython.pointer[Neighbor]:
    """The entry behind an index of `neighbor_find`, valid while `net.generation` stays."""
    return cython.address(_table(net).entries[index])


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def neighbor_use(net: cython.pointer[Net], n: cython.pointer[Neighbor]) -> cython.bint:
    """Whether `n.mac` may be sent to now; a STALE entry is going to be asked (RFC 4861 7.3.3)."""
    n.used = net.now
    if n.state == NEIGHBOR_REACHABLE:
        return True
    if n.state == NEIGHBOR_STALE:
        _enter(net, n, NEIGHBOR_DELAY, net.now + DELAY_FIRST_PROBE_NS)
    return not _is_unresolved(n)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def neighbor_hold(net: cython.pointer[Net], n: cython.pointer[Neighbor], p: cython.pointer[Packet]) -> cython.int:
    """Keep a frame until the address is known; the oldest of too many goes (RFC 1122 2.3.2.2, RFC 4861 7.2.2)."""
    if n.state == NEIGHBOR_FAILED:
        packet_unsent(net, p, NEIGHBOR_FAILED_VERDICT)
        return NEIGHBOR_FAILED_VERDICT
    if n.state != NEIGHBOR_INCOMPLETE:
        memcpy(cython.address(p.octets[p.start]), n.mac, 6)
        interface_send(net, n.interface, p)
        return 0
    if n.waiting.count == n.waiting.limit:
        packet_unsent(net, queue_pop(cython.address(n.waiting)), NEIGHBOR_QUEUE_FULL)
    queue_push(cython.address(n.waiting), p)
    if n.probes == 0:
        _probe(net, n)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def neighbor_confirm(net: cython.pointer[Net], index: int32_t) -> cython.void:
    """A higher layer knows that what we sent arrived (RFC 4861 7.3.1)."""
    if index < 0:
        return
    n: cython.pointer[Neighbor] = neighbor_at(net, index)
    if n.state >= NEIGHBOR_REACHABLE and n.state <= NEIGHBOR_PROBE:
        _enter(net, n, NEIGHBOR_REACHABLE, net.now + _reachable_ns(net))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _reachable_ns(net: cython.pointer[Net]) -> int64_t:
    """30 s times 0.5 to 1.5, so that neighbors do not probe each other in step (RFC 4861 6.3.2)."""
    t: cython.pointer[NeighborTable] = _table(net)
    if t.reachable_ns == 0 or net.now >= t.reachable_until:
        t.reachable_ns = (15_000 + cython.cast(int64_t, random_below(net, 30_001))) * 1_000_000
        t.reachable_until = net.now + REACHABLE_REDRAW_NS
    return t.reachable_ns


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _learn(net: cython.pointer[Net], n: cython.pointer[Neighbor], mac: cython.pointer[cython.const[uint8_t]],
           confirmed: cython.bint) -> cython.void:
    """Take a neighbor's MAC; `confirmed`: it answered us, so it also hears us."""
    unresolved: cython.bint = _is_unresolved(n)
    changed: cython.bint = unresolved or not same_mac(n.mac, mac)
    if n.state == NEIGHBOR_PERMANENT:
        return
    if changed:
        forget_paths(net)
        memcpy(n.mac, mac, 6)
    if confirmed:
        _enter(net, n, NEIGHBOR_REACHABLE, net.now + _reachable_ns(net))
    elif changed:
        _enter(net, n, NEIGHBOR_STALE, INT64_MAX)
    if unresolved:
        _send_waiting(net, n)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _send_waiting(net: cython.pointer[Net], n: cython.pointer[Neighbor]) -> cython.void:
    p: cython.pointer[Packet] = queue_pop(cython.address(n.waiting))
    while p != cython.NULL:
        neighbor_use(net, n)
        memcpy(cython.address(p.octets[p.start]), n.mac, 6)
        interface_send(net, n.interface, p)
        p = queue_pop(cython.address(n.waiting))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _drop_waiting(net: cython.pointer[Net], n: cython.pointer[Neighbor], verdict: cython.int) -> cython.void:
    p: cython.pointer[Packet] = queue_pop(cython.address(n.waiting))
    while p != cython.NULL:
        packet_unsent(net, p, verdict)
        p = queue_pop(cython.address(n.waiting))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _probe(net: cython.pointer[Net], n: cython.pointer[Neighbor]) -> cython.void:
    """Ask for a neighbor once, all of the link or (PROBE) itself alone, and see again in a second."""
    source: Addr
    to: cython.pointer[uint8_t] = n.mac if n.state == NEIGHBOR_PROBE else cython.NULL
    n.probes += 1
    _enter(net, n, n.state, net.now + RETRANSMIT_NS)
    if not _source_of_first(net, n, cython.address(source)) and not link_source(
            net, n.interface, cython.address(n.address), cython.address(source)):
        return
    if is_v4(cython.address(n.address)):
        arp_request(net, n.interface, to, cython.address(source), cython.address(n.address))
    else:
        ndp_solicit(net, n.interface, to, cython.address(source), cython.address(n.address))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _source_of_first(net: cython.pointer[Net], n: cython.pointer[Neighbor],
                     source: cython.pointer[Addr]) -> cython.bint:
    """The source of the packet that waits longest, if it may be used on this link (RFC 4861 7.2.2)."""
    p: cython.pointer[Packet] = n.waiting.head
    if p == cython.NULL or p.family == 0 or net.interfaces[n.interface] == cython.NULL:
        return False
    if p.family == 4:
        load_v4(source, cython.address(p.octets[p.start + p.l3_offset + 12]))
    else:
        load_v6(source, cython.address(p.octets[p.start + p.l3_offset + 8]))
    own: cython.pointer[InterfaceAddress] = interface_address(net.interfaces[n.interface], source)
    return own != cython.NULL and own.state == ADDRESS_PREFERRED


# --- messages in ----------------------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def arp_input(net: cython.pointer[Net], interface: uint32_t, frame: cython.pointer[cython.const[uint8_t]],
              length: uint32_t) -> cython.int:
    """A received ARP frame: keep the cache right, answer for our addresses (RFC 826, RFC 1122 2.3.2, RFC 5227)."""
    a: Arp
    if length < 14 or not arp_parse(cython.address(a), frame + 14, length - 14):
        return ARP_MALFORMED
    if net.interfaces[interface] == cython.NULL or is_own_mac(net, a.sender_mac):
        return ARP_NOT_FOR_US
    own: cython.pointer[InterfaceAddress] = interface_address(net.interfaces[interface], cython.address(a.sender))
    if own != cython.NULL:
        _defend(net, interface, own)
        return ARP_ADDRESS_CONFLICT
    own = interface_address(net.interfaces[interface], cython.address(a.target))
    for_us: cython.bint = own != cython.NULL and own.state == ADDRESS_PREFERRED
    n: cython.pointer[Neighbor] = cython.NULL
    if not is_unspecified(cython.address(a.sender)):
        n = _lookup(net, interface, cython.address(a.sender))
        if n == cython.NULL and for_us and a.operation == ARP_REQUEST:
            n = _create(net, interface, cython.address(a.sender), False)
    if n != cython.NULL:
        # only an answer sent to us alone proves that the neighbor hears us
        _learn(net, n, a.sender_mac, for_us and a.operation == ARP_REPLY and not frame[0] & 1)
    if for_us and a.operation == ARP_REQUEST:
        arp_reply(net, interface, cython.address(a))
        return ANSWERED
    return ARP_NOT_FOR_US if n == cython.NULL else DELIVERED


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _defend(net: cython.pointer[Net], interface: uint32_t, own: cython.pointer[InterfaceAddress]) -> cython.void:
    """Contradict a claim on our address, at most every 10 s so that two claimants do not shout (RFC 5227 2.4 (c))."""
    t: cython.pointer[NeighborTable] = _table(net)
    if own.state == ADDRESS_PREFERRED and net.now - t.defended_at >= DEFEND_INTERVAL_NS:
        t.defended_at = net.now
        arp_request(net, interface, cython.NULL, cython.address(own.address), cython.address(own.address))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ndp_input(net: cython.pointer[Net], interface: uint32_t, frame: cython.pointer[cython.const[uint8_t]],
              l3: cython.pointer[cython.const[uint8_t]], icmp: cython.pointer[cython.const[uint8_t]],
              n: uint32_t) -> cython.int:
    """A received Neighbor Discovery message whose IPv6 header and checksum are good (RFC 4861 6 to 8)."""
    m: Ndp
    source: Addr
    destination: Addr
    if l3[7] != 255:
        return NDP_HOP_LIMIT
    load_v6(cython.address(source), l3 + 8)
    load_v6(cython.address(destination), l3 + 24)
    if not ndp_parse(cython.address(m), cython.address(source), cython.address(destination), icmp, n):
        return NDP_MALFORMED
    if net.interfaces[interface] == cython.NULL or is_own_mac(net, frame + 6):
        return NDP_NOT_FOR_US       # RFC 4862 5.4.3: a probe of ours that came back is no duplicate
    if m.type == NDP_NEIGHBOR_SOLICITATION:
        return _solicitation(net, interface, frame + 6, cython.address(source), cython.address(m))
    if m.type == NDP_NEIGHBOR_ADVERTISEMENT:
        return _advertisement(net, interface, cython.address(m))
    return NDP_IGNORED


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _solicitation(net: cython.pointer[Net], interface: uint32_t, from_mac: cython.pointer[cython.const[uint8_t]],
                  source: cython.pointer[cython.const[Addr]], m: cython.pointer[Ndp]) -> cython.int:
    """Somebody asks for `m.target` (RFC 4861 7.2.3, 7.2.4; RFC 4862 5.4.3)."""
    own: cython.pointer[InterfaceAddress] = interface_address(net.interfaces[interface], cython.address(m.target))
    n: cython.pointer[Neighbor]
    if own == cython.NULL or own.state == ADDRESS_DUPLICATE:
        return NDP_NOT_FOR_US
    if own.state == ADDRESS_TENTATIVE:
        return _duplicate(net, own) if is_unspecified(source) else NDP_NOT_FOR_US
    if interface_address(net.interfaces[interface], source) != cython.NULL:
        return NDP_ADDRESS_CONFLICT
    if m.has_mac and not is_own_mac(net, m.mac):
        n = _lookup(net, interface, source)
        if n == cython.NULL:
            n = _create(net, interface, source, False)
        if n != cython.NULL:
            _learn(net, n, m.mac, False)
        from_mac = m.mac
    elif not is_station(from_mac):
        return NDP_MALFORMED        # an answer to a group MAC would go to everybody
    ndp_advertise(net, interface, from_mac, source, cython.address(m.target))
    return ANSWERED


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _advertisement(net: cython.pointer[Net], interface: uint32_t, m: cython.pointer[Ndp]) -> cython.int:
    """Somebody says where `m.target` is (RFC 4861 7.2.5)."""
    own: cython.pointer[InterfaceAddress] = interface_address(net.interfaces[interface], cython.address(m.target))
    if own != cython.NULL:
        return _duplicate(net, own) if own.state == ADDRESS_TENTATIVE else NDP_ADDRESS_CONFLICT
    n: cython.pointer[Neighbor] = _lookup(net, interface, cython.address(m.target))
    if n == cython.NULL:
        return NDP_NOT_FOR_US
    if _is_unresolved(n):
        if not m.has_mac:
            return NDP_NOT_FOR_US
    elif m.has_mac and not m.flags & NDP_OVERRIDE and not same_mac(m.mac, n.mac):
        # another answer than we know, and it says itself that it is the weaker one
        if n.state == NEIGHBOR_REACHABLE:
            _enter(net, n, NEIGHBOR_STALE, INT64_MAX)
        return DELIVERED
    n.is_router = (m.flags & NDP_ROUTER) != 0
    if not m.has_mac:
        memcpy(m.mac, n.mac, 6)
    _learn(net, n, m.mac, (m.flags & NDP_SOLICITED) != 0)
    return DELIVERED


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _duplicate(net: cython.pointer[Net], own: cython.pointer[InterfaceAddress]) -> cython.int:
    """Another node has, or wants, an address we are trying: it is not ours (RFC 4862 5.4.5)."""
    own.state = ADDRESS_DUPLICATE
    own.probes_left = 0
    own.probe_at = INT64_MAX
    net.counters[cython.cast(cython.int, DAD_CONFLICTS)] += 1
    forget_paths(net)
    return NDP_ADDRESS_CONFLICT


# --- time -----------------------------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def neighbors_advance(net: cython.pointer[Net]) -> cython.void:
    """Do what is due by `net.now`; afterwards `neighbors_wake_at` is later than it."""
    t: cython.pointer[NeighborTable] = _table(net)
    n: cython.pointer[Neighbor]
    i: uint32_t
    interface: cython.int
    slot: cython.int
    wake_at: int64_t = INT64_MAX
    if net.now < t.wake_at:
        return
    for i in range(t.top):
        n = cython.address(t.entries[i])
        if n.due <= net.now and n.state != NEIGHBOR_FREE:
            _act(net, n)
        wake_at = min(wake_at, n.due)
    for interface in range(MAX_INTERFACES):
        if net.interfaces[interface] != cython.NULL:
            for slot in range(MAX_ADDRESSES):
                wake_at = min(wake_at, _act_on_address(
                    net, interface, cython.address(net.interfaces[interface].addresses[slot])))
    t.wake_at = wake_at


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def neighbors_wake_at(net: cython.pointer[cython.const[Net]]) -> int64_t:
    """When `neighbors_advance` next has something to do; never too late, INT64_MAX: never."""
    return _table(net).wake_at


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _act(net: cython.pointer[Net], n: cython.pointer[Neighbor]) -> cython.void:
    """The time of a state is up (RFC 4861 7.3.3)."""
    if n.state == NEIGHBOR_REACHABLE:
        _enter(net, n, NEIGHBOR_STALE, INT64_MAX)
    elif n.state == NEIGHBOR_DELAY:
        _enter(net, n, NEIGHBOR_PROBE, INT64_MAX)
        _probe(net, n)
    elif n.state == NEIGHBOR_FAILED:
        _release(net, n, NEIGHBOR_FAILED_VERDICT)
    elif n.probes < NEIGHBOR_SOLICITATIONS:
        _probe(net, n)
    elif n.state == NEIGHBOR_PROBE:
        _release(net, n, NEIGHBOR_FAILED_VERDICT)        # the next packet asks the whole link
    else:
        _drop_waiting(net, n, NEIGHBOR_FAILED_VERDICT)
        _enter(net, n, NEIGHBOR_FAILED, net.now + FAILED_NS)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _act_on_address(net: cython.pointer[Net], interface: uint32_t, own: cython.pointer[InterfaceAddress]) -> int64_t:
    """Take the next step of duplicate address detection or of the announcements; returns when the one after is due."""
    none: Addr
    if own.state != ADDRESS_TENTATIVE and not (own.state == ADDRESS_PREFERRED and own.probes_left):
        return INT64_MAX
    if own.probe_at > net.now:
        return own.probe_at
    if not net.interfaces[interface].up:
        own.probe_at = INT64_MAX        # neighbor_start_address begins anew when the link comes back
        return INT64_MAX
    if own.state == ADDRESS_PREFERRED:
        arp_request(net, interface, cython.NULL, cython.address(own.address), cython.address(own.address))
        own.probes_left -= 1
        own.probe_at = net.now + ANNOUNCE_INTERVAL_NS if own.probes_left else INT64_MAX
    elif own.probes_left:
        memset(cython.address(none), 0, cython.sizeof(Addr))
        ndp_solicit(net, interface, cython.NULL, cython.address(none), cython.address(own.address))
        own.probes_left -= 1
        own.probe_at = net.now + RETRANSMIT_NS
    else:
        own.state = ADDRESS_PREFERRED
        own.probe_at = INT64_MAX
        forget_paths(net)
    return own.probe_at


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def neighbor_start_address(net: cython.pointer[Net], interface: uint32_t, slot: uint32_t) -> cython.void:
    """Begin to use an address: when it was added, and again when the link of its interface came up.

    IPv4 is usable at once and announced twice (RFC 5227 2.3); IPv6 is TENTATIVE until a probe went unanswered for a
    second (RFC 4862 5.4), on an interface that is down until it comes up. Loopback addresses need neither.
    """
    i: cython.pointer[Interface] = net.interfaces[interface]
    own: cython.pointer[InterfaceAddress] = cython.address(i.addresses[slot])
    v4: cython.bint = is_v4(cython.address(own.address))
    own.probes_left = 0
    own.probe_at = INT64_MAX
    own.state = ADDRESS_PREFERRED if v4 or interface == LOOPBACK else ADDRESS_TENTATIVE
    forget_paths(net)
    if interface == LOOPBACK or not i.up:
        return
    own.probes_left = ARP_ANNOUNCEMENTS if v4 else DAD_PROBES
    own.probe_at = net.now
    _table(net).wake_at = min(_table(net).wake_at, _act_on_address(net, interface, own))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def neighbors_forget_interface(net: cython.pointer[Net], interface: uint32_t) -> cython.void:
    """Release what was learned on an interface; what an operator put there goes only with the interface itself."""
    t: cython.pointer[NeighborTable] = _table(net)
    n: cython.pointer[Neighbor]
    gone: cython.bint = net.interfaces[interface] == cython.NULL
    i: uint32_t
    for i in range(t.top):
        n = cython.address(t.entries[i])
        if n.state != NEIGHBOR_FREE and n.interface == interface and (gone or n.state != NEIGHBOR_PERMANENT):
            _release(net, n, INTERFACE_DOWN)


# --- operators ------------------------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def neighbor_set(net: cython.pointer[Net], interface: uint32_t, address: cython.pointer[cython.const[Addr]],
                 mac: cython.pointer[cython.const[uint8_t]]) -> cython.int:
    """Make a PERMANENT entry; 0, or -1 when the table is full of entries in use."""
    n: cython.pointer[Neighbor] = _lookup(net, interface, address)
    if n == cython.NULL:
        n = _create(net, interface, address, False)
        if n == cython.NULL:
            return -1
    memcpy(n.mac, mac, 6)
    _enter(net, n, NEIGHBOR_PERMANENT, INT64_MAX)
    _send_waiting(net, n)
    forget_paths(net)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def neighbor_remove(net: cython.pointer[Net], interface: uint32_t,
                    address: cython.pointer[cython.const[Addr]]) -> cython.bint:
    """Forget an entry of any state; False: there was none."""
    n: cython.pointer[Neighbor] = _lookup(net, interface, address)
    if n == cython.NULL:
        return False
    _release(net, n, NEIGHBOR_FAILED_VERDICT)
    return True


_STATES = ("free", "incomplete", "reachable", "stale", "delay", "probe", "failed", "permanent")


@cython.cfunc
def neighbor_rows(net: cython.pointer[cython.const[Net]]) -> list:
    """A dict for each entry, ordered by interface and address."""
    t: cython.pointer[NeighborTable] = _table(net)
    n: cython.pointer[Neighbor]
    rows: list = []
    i: uint32_t
    for i in range(t.top):
        n = cython.address(t.entries[i])
        if n.state == NEIGHBOR_FREE:
            continue
        octets: bytes = n.mac[:6]
        rows.append({
            "address": address_text(cython.address(n.address)),
            "interface": n.interface,
            "mac": None if _is_unresolved(n) else octets.hex(":"),
            "state": _STATES[n.state],
            "router": n.is_router != 0,
            "waiting": n.waiting.count,
            "idle_ns": net.now - n.used if n.used else None,
        })
    rows.sort(key=lambda row: (row["interface"], ":" in row["address"], row["address"]))
    return rows


def neighbors(state: NetState) -> list:
    """The cache as dicts: address, interface (index), mac (None: unknown), state, router, waiting packets, and idle_ns
    since a packet went there (None: never)."""
    return neighbor_rows(state.net)


def set_neighbor(state: NetState, interface: int, address: object, mac: str) -> None:
    """Fix the MAC of an on-link address. Raises ValueError for what is no address, OSError (ENODEV, ENOSPC)."""
    a: Addr
    octets: bytes = _mac_octets(mac)
    address_from(address, cython.address(a))
    if is_multicast(cython.address(a)) or is_unspecified(cython.address(a)):
        raise ValueError(f"{address} is not the address of one neighbor")
    if not _has_link(state, interface):
        raise OSError(errno.ENODEV, f"interface {interface} has no neighbors")
    if neighbor_set(state.net, interface, cython.address(a), octets) < 0:
        raise OSError(errno.ENOSPC, "the neighbor table is full of entries in use")


def remove_neighbor(state: NetState, interface: int, address: object) -> bool:
    """Forget an address, learned or fixed; False when it was not known. Raises ValueError, OSError (ENODEV)."""
    a: Addr
    address_from(address, cython.address(a))
    if not _has_link(state, interface):
        raise OSError(errno.ENODEV, f"interface {interface} has no neighbors")
    return neighbor_remove(state.net, interface, cython.address(a))


@cython.cfunc
def _has_link(state: NetState, interface: int) -> bool:
    return LOOPBACK < interface < MAX_INTERFACES and (
        state.net.interfaces[cython.cast(cython.int, interface)] != cython.NULL)


@cython.cfunc
def _mac_octets(mac: str) -> bytes:
    try:
        octets: bytes = bytes.fromhex(mac.replace(":", "").replace("-", ""))
    except ValueError:
        octets = b""
    if len(octets) != 6 or not is_station(octets):
        raise ValueError(f"{mac!r} is not the MAC of one station, such as 02:00:00:00:00:01")
    return octets
