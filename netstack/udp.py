"""UDP (RFC 768, RFC 8200 8.1): endpoints, whom a datagram is for, and the way in and out of Python."""

import errno

import cython
from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cython.cimports.libc.stdint import int32_t, uint8_t, uint16_t, uint32_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.mm.hw import get16, put16, store16
from cython.cimports.netstack.counters import UDP_DATAGRAMS_RECEIVED, UDP_DATAGRAMS_SENT
from cython.cimports.netstack.icmp import (
    UNREACHABLE_ADMIN,
    UNREACHABLE_PORT,
    UNREACHABLE_PROTOCOL,
    UNREACHABLE_TOO_BIG,
    IcmpError,
    icmp_expect_probes,
)
from cython.cimports.netstack.ip import (
    HOP_LIMIT,
    IPV4_HEADER,
    IPV6_HEADER,
    PACKET_START,
    PROTOCOL_UDP,
    IpView,
    ip_send,
    path_resolve,
)
from cython.cimports.netstack.net import (
    NetState,
    Packet,
    is_local,
    packet_free,
    packet_new,
    queue_clear,
    queue_pop,
    queue_push,
    random_below,
)
from cython.cimports.netstack.verdict import (
    DELIVERED,
    NO_MEMORY,
    TOO_BIG,
    UDP_CHECKSUM,
    UDP_CHECKSUM_MISSING,
    UDP_LENGTH,
    UDP_PORT_CLOSED,
    UDP_QUEUE_FULL,
    UDP_TRUNCATED,
)
from cython.cimports.netstack.wire.address import (
    Addr,
    address_from,
    address_text,
    is_unspecified,
    is_v4,
    same_address,
)
from cython.cimports.netstack.wire.checksum import fold, sum_octets, sum_pseudo

from netstack.errors import unsent_error
from netstack.icmp import icmp_exception

_CACHED_ADDRESSES = 4096    # texts and addresses remembered; then it starts afresh


# --- datagrams in ---------------------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def udp_input(t: cython.pointer[UdpTable], view: cython.pointer[cython.const[IpView]]) -> cython.int:
    """Give a datagram to its endpoint; its Verdict."""
    p: cython.pointer[cython.const[uint8_t]] = view.payload
    if view.length < UDP_HEADER:
        return UDP_TRUNCATED
    length: uint32_t = get16(p + 4)
    if length < UDP_HEADER or length > view.length:
        return UDP_LENGTH
    if not view.checksum_ok:
        if get16(p + 6) == 0:
            if view.family == 6:
                return UDP_CHECKSUM_MISSING
        elif fold(sum_octets(p, length, sum_pseudo(
                cython.address(view.source), cython.address(view.destination), PROTOCOL_UDP, length))) != 0:
            return UDP_CHECKSUM
    id: int32_t = _endpoint_for(t, get16(p + 2), cython.address(view.destination), get16(p),
                                cython.address(view.source))
    if id < 0:
        return UDP_PORT_CLOSED
    return _queue(t, id, view, length - UDP_HEADER)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _queue(t: cython.pointer[UdpTable], id: int32_t, view: cython.pointer[cython.const[IpView]],
           n: uint32_t) -> cython.int:
    """Copy a datagram's n octets of data to the end of an endpoint's queue."""
    e: cython.pointer[UdpEndpoint] = cython.address(t.endpoints[id])
    memory: uint32_t = n + cython.cast(uint32_t, cython.sizeof(Packet))
    if e.received.count == e.received.limit or e.queued_octets + memory > e.octet_limit:
        e.dropped += 1
        return UDP_QUEUE_FULL
    q: cython.pointer[Packet] = packet_new(n, 0)
    if q == cython.NULL:
        e.dropped += 1
        return NO_MEMORY
    q.length = n
    q.port = get16(view.payload)
    q.source = view.source
    q.destination = view.destination
    memcpy(q.octets, view.payload + UDP_HEADER, n)
    queue_push(cython.address(e.received), q)
    e.queued_octets += memory
    e.rx_datagrams += 1
    e.rx_octets += n
    t.net.counters[cython.cast(cython.int, UDP_DATAGRAMS_RECEIVED)] += 1
    _make_ready(t, id)
    return DELIVERED


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _make_ready(t: cython.pointer[UdpTable], id: int32_t) -> cython.void:
    """Put an endpoint on the ready list, on which each is at most once."""
    if not t.endpoints[id].ready_queued:
        t.endpoints[id].ready_queued = True
        t.ready[t.ready_count] = id
        t.ready_count += 1


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _bucket(t: cython.pointer[UdpTable], port: uint16_t) -> cython.pointer[int32_t]:
    return cython.address(t.buckets[port & (UDP_BUCKETS - 1)])


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _endpoint_for(t: cython.pointer[UdpTable], port: uint16_t, local: cython.pointer[cython.const[Addr]],
                  remote_port: uint16_t, remote: cython.pointer[cython.const[Addr]]) -> int32_t:
    """The most specific endpoint for a datagram: connected, then bound to the address, then to any; -1: none."""
    e: cython.pointer[UdpEndpoint]
    best: int32_t = -1
    best_score: cython.int = -1
    score: cython.int
    id: int32_t = _bucket(t, port)[0]
    while id >= 0:
        e = cython.address(t.endpoints[id])
        score = _score(e, port, local, remote_port, remote)
        if score > best_score:
            best = id
            best_score = score
        id = e.next
    return best


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _score(e: cython.pointer[UdpEndpoint], port: uint16_t, local: cython.pointer[cython.const[Addr]],
           remote_port: uint16_t, remote: cython.pointer[cython.const[Addr]]) -> cython.int:
    """How specific an endpoint is for a datagram, 0 to 6; -1: the datagram is not for it."""
    score: cython.int = 0
    if e.local_port != port:
        return -1
    if e.remote_port:
        if e.remote_port != remote_port or not same_address(cython.address(e.remote), remote):
            return -1
        score = 4
    if not is_unspecified(cython.address(e.local)):
        return score + 2 if same_address(cython.address(e.local), local) else -1
    if is_v4(cython.address(e.local)):
        return score + 1 if is_v4(local) else -1
    return -1 if e.v6only and is_v4(local) else score


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def udp_error(t: cython.pointer[UdpTable], error: cython.pointer[cython.const[IcmpError]]) -> cython.void:
    """Note an ICMP error for the connected endpoint whose datagram it quotes; passing trouble is not worth telling
    (RFC 1122 4.1.3.3, 4.2.3.9)."""
    e: cython.pointer[UdpEndpoint]
    if error.kind != UNREACHABLE_PORT and error.kind != UNREACHABLE_PROTOCOL and (
            error.kind != UNREACHABLE_ADMIN and error.kind != UNREACHABLE_TOO_BIG):
        return
    id: int32_t = _endpoint_for(t, error.source_port, cython.address(error.source), error.destination_port,
                                cython.address(error.destination))
    if id < 0:
        return
    e = cython.address(t.endpoints[id])
    if e.remote_port:
        e.error = error.kind + 1
        _make_ready(t, id)


# --- datagrams out --------------------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def udp_send(t: cython.pointer[UdpTable], e: cython.pointer[UdpEndpoint], to: cython.pointer[cython.const[Addr]],
             port: uint16_t, data: cython.pointer[cython.const[cython.char]], n: cython.Py_ssize_t) -> cython.int:
    """Send n octets; 0 or the Verdict they were dropped for."""
    verdict: cython.int = 0
    if e.path.generation != t.net.generation or not same_address(cython.address(e.path.destination), to):
        e.path.destination = to[0]
        verdict = path_resolve(t.net, cython.address(e.path), cython.address(e.local))
    return _send_along(t, e, cython.address(e.path), verdict, port, data, n)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def udp_send_from(t: cython.pointer[UdpTable], e: cython.pointer[UdpEndpoint], source: cython.pointer[cython.const[Addr]],
                  to: cython.pointer[cython.const[Addr]], port: uint16_t, data: cython.pointer[cython.const[cython.char]],
                  n: cython.Py_ssize_t) -> cython.int:
    """As udp_send, from a given address of the host."""
    path: Path
    path.destination = to[0]
    return _send_along(t, e, cython.address(path), path_resolve(t.net, cython.address(path), source), port, data, n)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _send_along(t: cython.pointer[UdpTable], e: cython.pointer[UdpEndpoint], path: cython.pointer[Path], verdict: cython.int,
                port: uint16_t, data: cython.pointer[cython.const[cython.char]], n: cython.Py_ssize_t) -> cython.int:
    """Send n octets along a path, if resolving it gave no `verdict`."""
    net: cython.pointer[Net] = t.net
    to: cython.pointer[cython.const[Addr]] = cython.address(path.destination)
    p: cython.pointer[Packet] = cython.NULL
    if verdict == 0 and UDP_HEADER + n + (IPV4_HEADER if is_v4(to) else IPV6_HEADER) > path.mtu:
        verdict = TOO_BIG
    if verdict == 0:
        p = packet_new(PACKET_START + UDP_HEADER + cython.cast(uint32_t, n), PACKET_START)
        if p == cython.NULL:
            verdict = NO_MEMORY
    if verdict != 0:
        net.unsent[verdict] += 1
        return verdict
    length: uint32_t = UDP_HEADER + cython.cast(uint32_t, n)
    out: cython.pointer[uint8_t] = cython.address(p.octets[PACKET_START])
    p.length = length
    put16(out, e.local_port)
    put16(out + 2, port)
    put16(out + 4, length)
    # the sum of the pseudo header alone: the device completes it, or ip_send where the device cannot
    store16(out + 6, cython.cast(uint16_t, ~fold(sum_pseudo(cython.address(path.source), to, PROTOCOL_UDP, length))))
    p.checksum_offset = 6
    memcpy(out + UDP_HEADER, data, n)
    verdict = ip_send(net, p, path, PROTOCOL_UDP, e.hop_limit)
    if verdict == 0:
        e.tx_datagrams += 1
        e.tx_octets += n
        net.counters[cython.cast(cython.int, UDP_DATAGRAMS_SENT)] += 1
    return verdict


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def udp_speaks_to(e: cython.pointer[cython.const[UdpEndpoint]], to: cython.pointer[cython.const[Addr]]) -> cython.bint:
    """An endpoint bound to `::` speaks both families, if it is not for one only, any other its own."""
    return is_v4(cython.address(e.local)) == is_v4(to) or (
        is_unspecified(cython.address(e.local)) and not is_v4(cython.address(e.local)) and not e.v6only)


# --- datagrams to the application -----------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def udp_first(e: cython.pointer[UdpEndpoint]) -> cython.pointer[Packet]:
    return e.received.head


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def udp_drop(e: cython.pointer[UdpEndpoint]) -> cython.void:
    p: cython.pointer[Packet] = queue_pop(cython.address(e.received))
    e.queued_octets -= p.length + cython.cast(uint32_t, cython.sizeof(Packet))
    packet_free(p)


# --- ports ----------------------------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _in_use(t: cython.pointer[UdpTable], local: cython.pointer[cython.const[Addr]], port: uint16_t,
            reuse: cython.bint, v6only: cython.bint) -> cython.bint:
    """Whether an endpoint that does not share has this port on this address, or on any when one of both is any."""
    e: cython.pointer[UdpEndpoint]
    id: int32_t = _bucket(t, port)[0]
    while id >= 0:
        e = cython.address(t.endpoints[id])
        id = e.next
        if (e.local_port == port and not (reuse and e.reuse)
                and _overlap(cython.address(e.local), e.v6only, local, v6only)):
            return True
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _overlap(a: cython.pointer[cython.const[Addr]], a_only: cython.bint, b: cython.pointer[cython.const[Addr]],
             b_only: cython.bint) -> cython.bint:
    """Whether a datagram can be for both: `::` stands for both families, if it is not only for one, 0.0.0.0 for its own."""
    return same_address(a, b) or _stands_for(a, a_only, b) or _stands_for(b, b_only, a)


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _stands_for(any_host: cython.pointer[cython.const[Addr]], v6only: cython.bint,
                other: cython.pointer[cython.const[Addr]]) -> cython.bint:
    """Whether one address is any, and the other may be of these."""
    if not is_unspecified(any_host):
        return False
    return is_v4(other) if is_v4(any_host) else not (v6only and is_v4(other))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _ephemeral_port(t: cython.pointer[UdpTable], local: cython.pointer[cython.const[Addr]],
                    v6only: cython.bint) -> uint16_t:
    """A free port, the first from a random one on (RFC 6056 3.3.1); 0: all are taken."""
    start: uint32_t = random_below(t.net, EPHEMERAL_COUNT)
    port: uint16_t
    i: cython.int
    for i in range(EPHEMERAL_COUNT):
        port = cython.cast(uint16_t, EPHEMERAL_FIRST + (start + i) % EPHEMERAL_COUNT)
        if not _in_use(t, local, port, False, v6only):
            return port
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _open(t: cython.pointer[UdpTable], local: cython.pointer[cython.const[Addr]], port: uint16_t, reuse: cython.bint,
          v6only: cython.bint) -> int32_t:
    """Take a free endpoint, of which there is one, and put it in front of its chain."""
    id: int32_t = t.free
    if id >= 0:
        t.free = t.endpoints[id].next
    else:
        id = t.top
        t.top += 1
    e: cython.pointer[UdpEndpoint] = cython.address(t.endpoints[id])
    memset(e, 0, cython.sizeof(UdpEndpoint))
    e.local = local[0]
    e.local_port = port
    e.reuse = reuse
    e.v6only = v6only
    e.hop_limit = HOP_LIMIT
    e.in_use = True
    e.octet_limit = UDP_QUEUE_OCTETS
    e.received.limit = UDP_QUEUE_DATAGRAMS
    e.next = _bucket(t, port)[0]
    _bucket(t, port)[0] = id
    t.count += 1
    return id


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _close(t: cython.pointer[UdpTable], id: int32_t) -> cython.void:
    """Give an endpoint back with all it holds."""
    e: cython.pointer[UdpEndpoint] = cython.address(t.endpoints[id])
    link: cython.pointer[int32_t] = _bucket(t, e.local_port)
    i: uint32_t = 0
    while link[0] != id:
        link = cython.address(t.endpoints[link[0]].next)
    link[0] = e.next
    queue_clear(cython.address(e.received))
    if e.ready_queued:
        while t.ready[i] != cython.cast(uint32_t, id):
            i += 1
        t.ready_count -= 1
        t.ready[i] = t.ready[t.ready_count]
    e.in_use = False
    e.next = t.free
    t.free = id
    t.count -= 1


# --- the Python face ------------------------------------------------------------------------------------------------

@cython.final
@cython.cclass
class Udp:
    """The UDP endpoints of one stack, at most `limit` of them, known by small integers.

    Hosts are text ("10.0.0.1", "fe80::1"), None or "" for any. An id that is not open raises OSError (EBADF).
    """

    def __cinit__(self, state: NetState, limit: uint32_t = 4096):
        self.state = state
        self._hosts = {}
        self._texts = {}
        t: cython.pointer[UdpTable] = cython.address(self.table)
        t.net = state.net
        t.limit = limit
        t.free = -1
        t.endpoints = cython.cast(cython.pointer[UdpEndpoint], calloc(limit, cython.sizeof(UdpEndpoint)))
        t.buckets = cython.cast(cython.pointer[int32_t], calloc(UDP_BUCKETS, cython.sizeof(int32_t)))
        t.ready = cython.cast(cython.pointer[uint32_t], calloc(limit, cython.sizeof(uint32_t)))
        if t.endpoints == cython.NULL or t.buckets == cython.NULL or t.ready == cython.NULL:
            raise MemoryError(f"no memory for {limit} UDP endpoints")
        memset(t.buckets, 0xFF, UDP_BUCKETS * cython.sizeof(int32_t))

    def __dealloc__(self):
        i: uint32_t
        for i in range(self.table.top):
            queue_clear(cython.address(self.table.endpoints[i].received))
        free(self.table.endpoints)
        free(self.table.buckets)
        free(self.table.ready)

    def __len__(self):
        return self.table.count

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _at(self, id: object) -> cython.int:
        """The index of an open endpoint. Raises OSError."""
        i: cython.Py_ssize_t = id
        if i < 0 or i >= self.table.top or not self.table.endpoints[i].in_use:
            raise OSError(errno.EBADF, f"there is no UDP endpoint {id}")
        return i

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _look_up(self, host: object) -> cython.int:
        """Leave the address of a host in `_host_address`. Raises ValueError."""
        if host is self._host and host is not None:
            return 0
        octets: object = self._hosts.get(host)
        if octets is None:
            address_from(host or "::", cython.address(self._host_address))
            if len(self._hosts) >= _CACHED_ADDRESSES:
                self._hosts.clear()
            self._hosts[host] = PyBytes_FromStringAndSize(
                cython.cast(cython.p_char, cython.address(self._host_address)), 16)
        else:
            memcpy(cython.address(self._host_address), PyBytes_AS_STRING(octets), 16)
        self._host = host
        return 0

    @cython.cfunc
    def _text(self, a: cython.pointer[cython.const[Addr]]) -> object:
        if self._sender_text is not None and same_address(a, cython.address(self._sender)):
            return self._sender_text
        octets: bytes = PyBytes_FromStringAndSize(cython.cast(cython.p_char, a), 16)
        text: object = self._texts.get(octets)
        if text is None:
            text = address_text(a)
            if len(self._texts) >= _CACHED_ADDRESSES:
                self._texts.clear()
            self._texts[octets] = text
        self._sender = a[0]
        self._sender_text = text
        return text

    def bind(self, host: str | None, port: int, reuse: bool = False, v6only: bool = False) -> int:
        """Open an endpoint on an address of ours and return its id; port 0 picks a random ephemeral one.

        Any address: `::` (or None) for both families, with `v6only` for IPv6 alone, 0.0.0.0 for IPv4. `reuse` lets endpoints
        that all ask for it share a port; the newest of equally specific ones gets the datagrams. Raises ValueError for what is
        no address or port, OSError: EADDRINUSE, EADDRNOTAVAIL (not ours, or still tentative), EMFILE (the table is full).
        """
        t: cython.pointer[UdpTable] = cython.address(self.table)
        chosen: cython.int = _checked_port(port, 0)
        self._look_up(host)
        local: Addr = self._host_address
        if not is_unspecified(cython.address(local)) and not is_local(t.net, cython.address(local)):
            raise OSError(errno.EADDRNOTAVAIL, f"{host} is not an address of this stack")
        if t.count == t.limit:
            raise OSError(errno.EMFILE, f"all {t.limit} UDP endpoints are in use")
        if chosen == 0:
            chosen = _ephemeral_port(t, cython.address(local), v6only)
            if chosen == 0:
                raise OSError(errno.EADDRINUSE, "all ephemeral UDP ports are in use")
        elif _in_use(t, cython.address(local), chosen, reuse, v6only):
            raise OSError(errno.EADDRINUSE, f"UDP port {chosen} is in use")
        return _open(t, cython.address(local), chosen, reuse, v6only)

    def connect(self, id: int, host: str, port: int) -> None:
        """Exchange datagrams with one peer only, from the address that leads there if none was bound.

        Raises ValueError, OSError: ENETUNREACH, EADDRNOTAVAIL, EAFNOSUPPORT (the endpoint has the other family).
        """
        e: cython.pointer[UdpEndpoint] = cython.address(self.table.endpoints[self._at(id)])
        remote_port: cython.int = _checked_port(port, 1)
        self._look_up(host)
        to: Addr = self._host_address
        _check_family(e, cython.address(to), host)
        e.path.destination = to
        verdict: cython.int = path_resolve(self.table.net, cython.address(e.path), cython.address(e.local))
        if verdict != 0:
            raise unsent_error(verdict, host)
        if is_unspecified(cython.address(e.local)):
            e.local = e.path.source
        e.remote = to
        e.remote_port = remote_port
        e.error = 0

    def send(self, id: int, data: object, host: str | None = None, port: int = 0) -> None:
        """Send one datagram of a bytes-like object, to the connected peer when no host is given.

        Raises the ICMP error that came back for an earlier one (ConnectionRefusedError ...), once; ValueError; OSError:
        EMSGSIZE, ENETUNREACH, EHOSTUNREACH, EADDRNOTAVAIL, EDESTADDRREQ, ENETDOWN; BlockingIOError when the device's
        queue is full. A datagram may still be lost later without a word, as is UDP's way.
        """
        e: cython.pointer[UdpEndpoint] = cython.address(self.table.endpoints[self._at(id)])
        to: Addr
        to_port: cython.int
        if e.error:
            raise self._take_error(id)
        if host is None:
            if e.remote_port == 0:
                raise OSError(errno.EDESTADDRREQ, f"UDP endpoint {id} is not connected: say where to send")
            to = e.remote
            to_port = e.remote_port
        else:
            to_port = _checked_port(port, 1)
            self._look_up(host)
            to = self._host_address
            _check_family(e, cython.address(to), host)
        octets: bytes = data if type(data) is bytes else bytes(memoryview(data))
        verdict: cython.int = udp_send(cython.address(self.table), e, cython.address(to), to_port,
                                       PyBytes_AS_STRING(octets), PyBytes_GET_SIZE(octets))
        if verdict != 0:
            raise unsent_error(verdict, host or address_text(cython.address(to)))

    def receive(self, id: int, most: int = 64) -> list:
        """Take up to `most` datagrams as (data, host, port) of their senders; an endpoint with more stays ready."""
        e: cython.pointer[UdpEndpoint] = cython.address(self.table.endpoints[self._at(id)])
        p: cython.pointer[Packet]
        rows: list = []
        left: cython.int = most
        while left > 0:
            p = udp_first(e)
            if p == cython.NULL:
                return rows
            left -= 1
            try:
                rows.append((PyBytes_FromStringAndSize(cython.cast(cython.p_char, p.octets), p.length),
                             self._text(cython.address(p.source)), p.port))
            finally:
                udp_drop(e)
        if e.received.count:
            _make_ready(cython.address(self.table), id)
        return rows

    def ready(self) -> list:
        """The ids of endpoints that got datagrams or an error since the last call."""
        i: uint32_t
        t: cython.pointer[UdpTable] = cython.address(self.table)
        ids: list = []
        for i in range(t.ready_count):
            t.endpoints[t.ready[i]].ready_queued = False
            ids.append(t.ready[i])
        t.ready_count = 0
        return ids

    def error(self, id: int) -> OSError | None:
        """Take the ICMP error that came back for a connected endpoint, as the exception it stands for."""
        return self._take_error(id) if self.table.endpoints[self._at(id)].error else None

    def _take_error(self, id: int) -> OSError:
        e: cython.pointer[UdpEndpoint] = cython.address(self.table.endpoints[self._at(id)])
        kind: cython.int = e.error - 1
        e.error = 0
        return icmp_exception(kind, f"{address_text(cython.address(e.remote))} port {e.remote_port}")

    def probe(self, id: int, hop_limit: int) -> None:
        """From now on send with this hop limit, 1 to 255, and keep what ICMP errors say of what this port has sent:
        `netstack.icmp.probe_answers`. Raises ValueError, MemoryError."""
        e: cython.pointer[UdpEndpoint] = cython.address(self.table.endpoints[self._at(id)])
        if not 1 <= hop_limit <= 255:
            raise ValueError(f"a hop limit is 1 to 255, not {hop_limit}")
        if not icmp_expect_probes(self.table.net, e.local_port):
            raise MemoryError("no memory for the answers to probes")
        e.hop_limit = hop_limit

    def close(self, id: int) -> None:
        """Give an endpoint back; what it had not delivered is gone, and its id may be used again."""
        self._at(id)
        _close(cython.address(self.table), id)

    def local(self, id: int) -> tuple:
        """The (host, port) an endpoint is bound to."""
        e: cython.pointer[UdpEndpoint] = cython.address(self.table.endpoints[self._at(id)])
        return address_text(cython.address(e.local)), e.local_port

    def remote(self, id: int) -> tuple | None:
        """The (host, port) an endpoint is connected to, None when it is not."""
        e: cython.pointer[UdpEndpoint] = cython.address(self.table.endpoints[self._at(id)])
        return (address_text(cython.address(e.remote)), e.remote_port) if e.remote_port else None

    def rows(self) -> list:
        """A dict per endpoint: id, local, local_port, remote and remote_port (None: not connected), what waits for
        the application (queued, queued_octets of memory), and what went through."""
        rows: list = []
        i: uint32_t
        e: cython.pointer[UdpEndpoint]
        for i in range(self.table.top):
            e = cython.address(self.table.endpoints[i])
            if not e.in_use:
                continue
            rows.append({
                "id": i, "local": address_text(cython.address(e.local)), "local_port": e.local_port,
                "remote": address_text(cython.address(e.remote)) if e.remote_port else None,
                "remote_port": e.remote_port or None,
                "queued": e.received.count, "queued_octets": e.queued_octets, "dropped": e.dropped,
                "rx_datagrams": e.rx_datagrams, "rx_octets": e.rx_octets,
                "tx_datagrams": e.tx_datagrams, "tx_octets": e.tx_octets,
            })
        return rows


@cython.cfunc
@cython.inline
@cython.exceptval(-1, check=False)
def _checked_port(port: object, least: cython.int) -> cython.int:
    if not least <= port <= 65535:
        raise ValueError(f"a UDP port is {least} to 65535, not {port}")
    return port


@cython.cfunc
@cython.inline
@cython.exceptval(-1, check=False)
def _check_family(e: cython.pointer[UdpEndpoint], to: cython.pointer[cython.const[Addr]], host: object) -> cython.int:
    if udp_speaks_to(e, to):
        return 0
    raise OSError(errno.EAFNOSUPPORT, f"{host} is of another family than {address_text(cython.address(e.local))}")
