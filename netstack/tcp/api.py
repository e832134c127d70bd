"""TCP for the sockets above: listen, connect, read, write, close, and news about all of it."""

import errno
import os

import cython
from cython.cimports.cpython.buffer import (
    PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer)
from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cython.cimports.libc.stdint import int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.mm.histogram import histogram_row
from cython.cimports.mm.hw import put16
from cython.cimports.netstack.counters import TCP_ABORTS, TCP_ACTIVE_OPENS
from cython.cimports.netstack.net import count, is_local, random_below
from cython.cimports.netstack.tcp.congestion import pipe
from cython.cimports.netstack.tcp.input import tcb_open
from cython.cimports.netstack.tcp.output import path_to_peer, send_reset
from cython.cimports.netstack.tcp.ring import ring_drop, ring_get, ring_put, ring_release, ring_reserve
from cython.cimports.netstack.tcp.state import (
    ACTIVE_OPEN, CLOSED, CLOSING, FIN_WAIT_2, LISTEN, STATES, SYN_RECEIVED, SYN_SENT, TIME_WAIT)
from cython.cimports.netstack.tcp.tcb import (
    F_ACCEPTING, F_ACK_NOW, F_EOF_TOLD, F_FIN_ARRIVED, F_FIN_QUEUED, F_FOLLOWED, F_KEEPALIVE, F_NODELAY, F_READY,
    F_RECOVERY, F_RELEASED, F_REPORTED, F_RTO_RECOVERY, F_SACK, F_SCALE, F_SYN_DUE, F_TIMESTAMPS, F_WANT_WRITE, NEWS_ACCEPTED,
    NEWS_EOF, PORT_BUCKETS, TcpLimits, listener_find, receive_room, set_state, table_create, table_destroy, tcb_arm,
    tcb_close, tcb_dirty, tcb_enter, tcb_fin_wait_2, tcb_find, tcb_free, tcb_new, tcb_news, tcb_reap)
from cython.cimports.netstack.verdict import TCP_MULTICAST
from cython.cimports.netstack.wire.address import Addr, address_from, address_text, is_unspecified, is_v4, same_address
from cython.cimports.netstack.wire.tcp import seq_lt

from netstack.tcp.state import NAMES

# News bits of `Tcp.ready`.
EVENT_CONNECTED = 1     # an active open succeeded
EVENT_ACCEPTED = 2      # a listener has a new connection: `listener_of`
EVENT_READABLE = 4      # octets wait
EVENT_WRITABLE = 8      # after a short write: at least a quarter of the send buffer is free
EVENT_EOF = 16          # the peer has closed its side and everything was read
EVENT_CLOSED = 32       # the connection is over; the errno says how, 0 for cleanly

FIRST_EPHEMERAL = cython.declare(uint32_t, 49152)       # RFC 6335 6
EPHEMERAL_PORTS = cython.declare(uint32_t, 16384)
S = cython.declare(int64_t, 1_000_000_000)
IDLE_NS = cython.declare(int64_t, 1_000_000_000)
RECEIVE_LEAST = cython.declare(uint32_t, 4096)
MOST = cython.declare(uint32_t, 1 << 30)


@cython.cclass
class Follower:
    """Hears the news of one connection without Python objects in between, from within `Tcp.ready`: see `Tcp.follow`."""

    @cython.cfunc
    @cython.exceptval(check=False)
    def heard(self, news: cython.int, error: cython.int) -> cython.void:
        """EVENT_* bits, and the errno that comes with CLOSED."""


@cython.cclass
class Acceptor:
    """Hears of a listener's new connections in the same way: see `Tcp.accept_by`."""

    @cython.cfunc
    @cython.exceptval(check=False)
    def accepted(self, handle: object, news: cython.int, error: cython.int) -> cython.void:
        """What `Tcp.ready` tells of each else."""


@cython.final
@cython.cclass
class Tcp:
    """All TCP connections of one stack.

    Connections are named by handles, integers that are never reused while anyone could remember them. A handle is
    valid from `connect` or the ACCEPTED news until `release`; a stale one raises ValueError.
    Limits: `connections`, `listeners`, `embryos` (half-open per listener), `time_wait` in entries; `send_buffer`,
    `receive_buffer` (per connection) and `memory` (all together) in octets; `time_wait_ns` is 2 MSL.
    """

    def __cinit__(self, state: NetState, *, connections: int = 65536, listeners: int = 256, embryos: int = 1024,
                  time_wait: int = 16384, send_buffer: int = 1 << 20, receive_buffer: int = 1 << 20,
                  memory: int = 512 << 20, retransmissions: int = 15, time_wait_ns: int = 60_000_000_000,
                  rto_min_ns: int = 200_000_000):
        limits: TcpLimits
        self.state = state
        limits.connections = connections
        limits.listeners = listeners
        limits.embryos = embryos
        limits.time_wait = time_wait
        limits.send_buffer = send_buffer
        limits.receive_buffer = receive_buffer
        limits.retransmissions = retransmissions
        limits.time_wait_ns = time_wait_ns
        limits.rto_min_ns = rto_min_ns
        self.followers = []
        self.acceptors = [None] * listeners
        table_create(cython.address(self.table), state.net, cython.address(limits), memory)

    def __dealloc__(self):
        table_destroy(cython.address(self.table))

    def set_limits(self, *, time_wait: int, send_buffer: int, receive_buffer: int, memory: int, time_wait_ns: int) -> None:
        """Change those limits that need no larger table. A connection keeps the receive buffer it began with."""
        limits: cython.pointer[TcpLimits] = cython.address(self.table.limits)
        limits.time_wait = time_wait
        limits.send_buffer = send_buffer
        limits.receive_buffer = receive_buffer
        limits.time_wait_ns = time_wait_ns
        self.table.budget.limit = memory

    @cython.cfunc
    def _at(self, handle: object) -> cython.pointer[Tcb]:
        """The block behind a handle."""
        c: cython.pointer[Tcb] = self._any(handle)
        if c is cython.NULL or c.flags & F_RELEASED:
            raise ValueError(f"no connection {handle}")
        return c

    @cython.cfunc
    @cython.exceptval(check=False)
    def _any(self, handle: uint64_t) -> cython.pointer[Tcb]:
        """The block behind a handle, also when the application has let go of it; NULL: it is gone."""
        index: uint32_t = cython.cast(uint32_t, handle & 0xFFFFFFFF)
        if index < self.table.block_count and self.table.blocks[index] is not cython.NULL and (
                self.table.blocks[index].generation == handle >> 32):
            return self.table.blocks[index]
        return cython.NULL

    # -- listeners ---------------------------------------------------------------------------------

    def listen(self, host: str | None, port: int, backlog: int = 128) -> int:
        """Accept connections to `host` (None: any; "0.0.0.0" or "::": any of one family) and `port` (0: pick one).

        Raises OSError: EADDRINUSE, EADDRNOTAVAIL, or EMFILE when all listeners are in use.
        """
        t: cython.pointer[TcpTable] = cython.address(self.table)
        local: Addr
        i: cython.int
        chosen: cython.int = -1
        if not 0 <= port <= 65535:
            raise ValueError(f"port {port} is not within 0 to 65535")
        memset(cython.address(local), 0, cython.sizeof(Addr))
        if host:
            address_from(host, cython.address(local))
            if not is_unspecified(cython.address(local)) and not is_local(self.state.net, cython.address(local)):
                raise OSError(errno.EADDRNOTAVAIL, f"{host} is not an address of this stack")
        if port == 0:
            port = self.free_port()
        for i in range(t.limits.listeners):
            if not t.listeners[i].in_use:
                chosen = i
            elif t.listeners[i].port == port and _clash(
                    cython.address(t.listeners[i]), cython.address(local), not host):
                raise OSError(errno.EADDRINUSE, f"port {port} is already listened on")
        if chosen < 0:
            raise OSError(errno.EMFILE, f"all {t.limits.listeners} listeners are in use")
        self._start_listener(cython.address(t.listeners[chosen]), chosen, cython.address(local), port, backlog,
                             not host)
        return chosen | cython.cast(int64_t, t.listeners[chosen].generation) << 32

    @cython.cfunc
    def _start_listener(self, x: cython.pointer[Listener], index: cython.int, local: cython.pointer[Addr],
                        port: cython.int, backlog: cython.int, any_family: cython.bint):
        t: cython.pointer[TcpTable] = cython.address(self.table)
        x.local = local[0]
        x.port = cython.cast(uint16_t, port)
        x.in_use = 1
        x.any_family = any_family
        x.backlog = max(backlog, 1)
        x.embryos = 0
        x.waiting = 0
        x.held = 0
        x.next = t.port_buckets[port % PORT_BUCKETS]
        t.port_buckets[port % PORT_BUCKETS] = index

    def free_port(self) -> int:
        """A random ephemeral port that nobody listens on (RFC 6056 3.3.1). Raises OSError (EADDRINUSE)."""
        i: uint32_t
        k: uint32_t
        port: uint32_t
        taken: cython.bint
        start: uint32_t = random_below(self.state.net, EPHEMERAL_PORTS)
        for i in range(EPHEMERAL_PORTS):
            port = FIRST_EPHEMERAL + (start + i) % EPHEMERAL_PORTS
            taken = False
            for k in range(self.table.limits.listeners):
                if self.table.listeners[k].in_use and self.table.listeners[k].port == port:
                    taken = True
            if not taken:
                return port
        raise OSError(errno.EADDRINUSE, "no ephemeral port is free")

    @cython.cfunc
    def _listener(self, handle: object) -> cython.pointer[Listener]:
        n: uint64_t = handle
        index: uint32_t = cython.cast(uint32_t, n & 0xFFFFFFFF)
        if (index < self.table.limits.listeners and self.table.listeners[index].in_use
                and self.table.listeners[index].generation == n >> 32):
            return cython.address(self.table.listeners[index])
        raise ValueError(f"no listener {handle}")

    def close_listener(self, handle: int) -> None:
        """Stop listening; connections nobody was told of yet are reset."""
        t: cython.pointer[TcpTable] = cython.address(self.table)
        x: cython.pointer[Listener] = self._listener(handle)
        index: int32_t = cython.cast(int32_t, x - t.listeners)
        at: cython.pointer[int32_t] = cython.address(t.port_buckets[x.port % PORT_BUCKETS])
        i: uint32_t
        c: cython.pointer[Tcb]
        while at[0] != index:
            at = cython.address(t.listeners[at[0]].next)
        at[0] = x.next
        for i in range(t.block_count):
            c = t.blocks[i]
            if c is cython.NULL or c.listener != index:
                continue
            if c.state == SYN_RECEIVED or c.flags & F_ACCEPTING:
                c.flags &= ~cython.cast(uint32_t, F_REPORTED)
                send_reset(t, c)
                tcb_close(t, c, errno.ECONNABORTED)
            c.listener = -1
            tcb_reap(t, c)
        x.in_use = 0
        x.generation = (x.generation + 1) & 0xFFFFFF
        self.acceptors[index] = None

    def set_backlog(self, handle: int, backlog: int) -> None:
        """As of `listen`, from now on."""
        self._listener(handle).backlog = max(1, backlog)

    @cython.cfunc
    def accept_by(self, handle: object, acceptor: Acceptor):
        """From now on new connections of a listener are told to `acceptor`, not by `ready`."""
        self.acceptors[self._listener(handle) - self.table.listeners] = acceptor

    @cython.ccall
    def set_held(self, handle: object, count: cython.int):
        """So many connections of a listener were told of and wait elsewhere: they count against its backlog."""
        self._listener(handle).held = count

    def listener_port(self, handle: int) -> int:
        """The port it listens on."""
        return self._listener(handle).port

    def listener_of(self, handle: int) -> int | None:
        """Whose child a connection is; None when it was opened actively or the listener is gone."""
        c: cython.pointer[Tcb] = self._at(handle)
        if c.listener < 0:
            return None
        return c.listener | cython.cast(int64_t, self.table.listeners[c.listener].generation) << 32

    # -- opening -----------------------------------------------------------------------------------

    def connect(self, now: int, host: str, port: int, source_host: str | None = None, source_port: int = 0) -> int:
        """Begin an active open; CONNECTED or CLOSED news tells how it went.

        Raises OSError: ENETUNREACH (no route), EADDRNOTAVAIL (no such source address, or no port left), EADDRINUSE
        (this very connection exists), ENOBUFS (the connection table is full).
        """
        t: cython.pointer[TcpTable] = cython.address(self.table)
        bound: Addr
        c: cython.pointer[Tcb]
        self.state.net.now = now
        if not 0 < port <= 65535 or not 0 <= source_port <= 65535:
            raise ValueError(f"port {port if not 0 < port <= 65535 else source_port} is not a port")
        memset(cython.address(bound), 0, cython.sizeof(Addr))
        if source_host:
            address_from(source_host, cython.address(bound))
            if not is_unspecified(cython.address(bound)) and not is_local(self.state.net, cython.address(bound)):
                raise OSError(errno.EADDRNOTAVAIL, f"{source_host} is not an address of this stack")
        c = tcb_new(t)
        if c is cython.NULL:
            raise OSError(errno.ENOBUFS, f"all {t.limits.connections} connections are in use")
        try:
            self._resolve(c, host, cython.address(bound))
            c.remote_port = cython.cast(uint16_t, port)
            self._choose_port(c, source_port)
        except BaseException:
            tcb_free(t, c)
            raise
        tcb_open(t, c)
        c.flags |= F_SYN_DUE
        set_state(t, c, ACTIVE_OPEN)
        count(t.net, TCP_ACTIVE_OPENS, 1)
        tcb_enter(t, c)
        tcb_dirty(t, c)
        return c.index | cython.cast(int64_t, c.generation) << 32

    @cython.cfunc
    def _resolve(self, c: cython.pointer[Tcb], host: str, bound: cython.pointer[Addr]):
        """Fill the block's path. Raises OSError when there is no way."""
        address_from(host, cython.address(c.path.destination))
        if is_unspecified(cython.address(c.path.destination)):      # as Linux: the loopback address
            address_from("127.0.0.1" if is_v4(cython.address(c.path.destination)) else "::1",
                         cython.address(c.path.destination))
        verdict: cython.int = path_to_peer(self.state.net, cython.address(c.path), bound)
        if verdict == TCP_MULTICAST:
            raise OSError(errno.ENETUNREACH, f"{host} is a broadcast or multicast address: TCP needs one host")
        if verdict:
            raise OSError(errno.ENETUNREACH, f"no route to {host}: add one, or an address of its family")

    @cython.cfunc
    def _choose_port(self, c: cython.pointer[Tcb], source_port: cython.int):
        """Bind the given port, or a random one that is free towards this peer (RFC 6056 3.3.1)."""
        i: uint32_t
        start: uint32_t
        t: cython.pointer[TcpTable] = cython.address(self.table)
        if source_port:
            c.local_port = cython.cast(uint16_t, source_port)
            if tcb_find(t, cython.address(c.path.destination), cython.address(c.path.source), c.remote_port,
                        c.local_port) is not cython.NULL:
                raise OSError(errno.EADDRINUSE, f"a connection from port {source_port} to there exists")
            return
        start = random_below(t.net, EPHEMERAL_PORTS)
        for i in range(EPHEMERAL_PORTS):
            c.local_port = cython.cast(uint16_t, FIRST_EPHEMERAL + (start + i) % EPHEMERAL_PORTS)
            if (listener_find(t, cython.address(c.path.source), c.local_port) is cython.NULL
                    and tcb_find(t, cython.address(c.path.destination), cython.address(c.path.source), c.remote_port,
                                 c.local_port) is cython.NULL):
                return
        raise OSError(errno.EADDRNOTAVAIL, "every ephemeral port is in use towards that peer")

    # -- data --------------------------------------------------------------------------------------

    @cython.cfunc
    def follow(self, handle: object, follower: Follower):
        """From now on until the handle is released, news of the connection are told to `follower`, not by `ready`."""
        c: cython.pointer[Tcb] = self._at(handle)
        if c.index >= cython.cast(uint32_t, len(self.followers)):
            self.followers.extend([None] * (self.table.block_count - len(self.followers)))
        self.followers[c.index] = follower
        c.flags |= F_FOLLOWED

    def ready(self) -> list:
        """(handle, news bits, errno) of each connection with news since the last call, but those that are followed."""
        t: cython.pointer[TcpTable] = cython.address(self.table)
        c: cython.pointer[Tcb]
        out: list = []
        while t.ready_head >= 0:
            c = self.take_ready()
            if self.serve(c):
                continue
            out.append((c.index | cython.cast(int64_t, c.generation) << 32, c.news, c.error))
            self.told(c)
        return out

    @cython.cfunc
    @cython.exceptval(check=False)
    def tell_followers(self) -> cython.bint:
        """Tell the news of the connections that are followed; whether others have news, which stay for `ready`, in order."""
        t: cython.pointer[TcpTable] = cython.address(self.table)
        c: cython.pointer[Tcb]
        head: int32_t = -1
        tail: int32_t = -1
        while t.ready_head >= 0:
            c = self.take_ready()
            if self.serve(c):
                continue
            if tail < 0:
                head = cython.cast(int32_t, c.index)
            else:
                t.blocks[tail].ready_next = cython.cast(int32_t, c.index)
            tail = cython.cast(int32_t, c.index)
            c.ready_next = -1
            t.ready_count += 1
        t.ready_head = head
        t.ready_tail = tail
        return head >= 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def take_ready(self) -> cython.pointer[Tcb]:
        """The first of those with news, out of their queue."""
        t: cython.pointer[TcpTable] = cython.address(self.table)
        c: cython.pointer[Tcb] = t.blocks[t.ready_head]
        t.ready_head = c.ready_next
        if c.ready_next < 0:
            t.ready_tail = -1
        t.ready_count -= 1
        return c

    @cython.cfunc
    @cython.exceptval(check=False)
    def serve(self, c: cython.pointer[Tcb]) -> cython.bint:
        """Whether the news need not be told by `ready`: there is a follower, or nobody to hear them."""
        follower: Follower
        news: cython.int = c.news
        if not c.flags & (F_RELEASED | F_FOLLOWED):
            return news & NEWS_ACCEPTED and c.listener >= 0 and self.pass_on(c)
        c.news = 0
        c.flags &= ~cython.cast(uint32_t, F_READY)
        if c.flags & F_RELEASED:
            tcb_reap(cython.address(self.table), c)
        else:
            follower = cython.cast(Follower, self.followers[c.index])
            follower.heard(news, c.error)
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def pass_on(self, c: cython.pointer[Tcb]) -> cython.bint:
        """Tell of a new connection whoever accepts those of its listener; whether there is somebody."""
        acceptor: Acceptor
        news: cython.int = c.news
        if self.acceptors[c.listener] is None:
            return False
        acceptor = cython.cast(Acceptor, self.acceptors[c.listener])
        self.told(c)
        acceptor.accepted(c.index | cython.cast(int64_t, c.generation) << 32, news, c.error)
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def told(self, c: cython.pointer[Tcb]) -> cython.void:
        """Its news are told: it leaves its listener's queue."""
        if c.flags & F_ACCEPTING:
            self.table.listeners[c.listener].waiting -= 1
        c.flags &= ~cython.cast(uint32_t, F_ACCEPTING | F_READY)
        c.news = 0

    @property
    def pending(self) -> int:
        """How many connections have news."""
        return self.table.ready_count

    def read(self, handle: int, most: cython.Py_ssize_t = 262144) -> bytes:
        """Up to `most` octets in order; b"" when none wait. EOF news follows the last octet before a FIN."""
        c: cython.pointer[Tcb] = self._at(handle)
        n: uint32_t = cython.cast(uint32_t, min(most, cython.cast(cython.Py_ssize_t, c.receive.used)))
        if n == 0:
            return b""
        out: bytes = PyBytes_FromStringAndSize(cython.NULL, n)
        ring_get(cython.address(c.receive), 0, cython.cast(cython.pointer[uint8_t], PyBytes_AS_STRING(out)), n)
        self._consumed(c, n)
        return out

    def read_into(self, handle: int, buffer: object) -> int:
        """The same into a writable buffer; returns the octets stored."""
        c: cython.pointer[Tcb] = self._at(handle)
        view: Py_buffer
        n: uint32_t
        PyObject_GetBuffer(buffer, cython.address(view), PyBUF_SIMPLE | PyBUF_WRITABLE)
        n = cython.cast(uint32_t, min(view.len, cython.cast(cython.Py_ssize_t, c.receive.used)))
        if n:
            ring_get(cython.address(c.receive), 0, cython.cast(cython.pointer[uint8_t], view.buf), n)
            self._consumed(c, n)
        PyBuffer_Release(cython.address(view))
        return n

    @cython.cfunc
    def _consumed(self, c: cython.pointer[Tcb], n: uint32_t):
        """n octets were read: open the window if that is worth a segment, tell of EOF if they were the last."""
        t: cython.pointer[TcpTable] = cython.address(self.table)
        open_: uint32_t
        grown: uint32_t
        step: uint32_t
        ring_drop(cython.address(c.receive), n)
        if c.state == CLOSED:
            if c.receive.used == 0:
                ring_release(cython.address(c.receive), cython.address(t.budget))
        else:
            open_ = c.rcv_edge - c.rcv_nxt if seq_lt(c.rcv_nxt, c.rcv_edge) else 0
            grown = receive_room(t, c) - open_ if receive_room(t, c) > open_ else 0
            step = min(c.rcv_limit >> 1, cython.cast(uint32_t, c.mss))     # as _window_field opens it
            # An ACK that is due tells of it as well; a peer with more to send has room for two segments, which get one at once.
            if (grown >= step and (grown >= c.rcv_limit >> 2 or open_ < 2 * cython.cast(uint32_t, c.mss))
                    and not (c.ack_at and open_ >= 4 * cython.cast(uint32_t, c.mss))):
                c.flags |= F_ACK_NOW
                tcb_dirty(t, c)
        if c.receive.used == 0 and c.flags & F_FIN_ARRIVED and c.rcv_nxt == c.fin_seq + 1 and not c.flags & F_EOF_TOLD:
            c.flags |= F_EOF_TOLD
            tcb_news(t, c, NEWS_EOF)

    def unread(self, handle: int) -> int:
        """Octets that wait to be read."""
        return self._at(handle).receive.used

    def write(self, handle: int, data: object) -> int:
        """Queue octets of any buffer; returns how many were taken, and WRITABLE news follows a short write.

        Raises BrokenPipeError when this side is closed already or the connection is over.
        """
        c: cython.pointer[Tcb] = self._at(handle)
        view: Py_buffer
        n: uint32_t
        if c.flags & F_FIN_QUEUED or c.state == CLOSED:
            raise BrokenPipeError(errno.EPIPE, "this side of the connection is closed")
        PyObject_GetBuffer(data, cython.address(view), PyBUF_SIMPLE)
        n = self._reserve(c, cython.cast(uint32_t, min(view.len, cython.cast(cython.Py_ssize_t, MOST))))
        if n:
            ring_put(cython.address(c.send), c.send.used, cython.cast(cython.pointer[uint8_t], view.buf), n)
        self._queued(c, n, n < view.len)
        PyBuffer_Release(cython.address(view))
        return n

    @cython.cfunc
    @cython.exceptval(check=False)
    def _reserve(self, c: cython.pointer[Tcb], n: uint32_t) -> uint32_t:
        t: cython.pointer[TcpTable] = cython.address(self.table)
        n = min(n, t.limits.send_buffer - c.send.used if t.limits.send_buffer > c.send.used else 0)
        if c.send.used == 0:
            c.send.head = 0
        if n and not ring_reserve(cython.address(c.send), c.send.used + n, c.send.used, cython.address(t.budget)):
            n = min(n, c.send.size - c.send.used)
        return n

    @cython.cfunc
    @cython.exceptval(check=False)
    def _queued(self, c: cython.pointer[Tcb], n: uint32_t, more: cython.bint) -> cython.void:
        t: cython.pointer[TcpTable] = cython.address(self.table)
        c.send.used += n
        if n:
            tcb_dirty(t, c)
        if more:
            c.flags |= F_WANT_WRITE
        if (n or more) and c.idle_at == 0:      # no memory, perhaps with nothing in flight: the clock tells WRITABLE then
            c.idle_at = t.net.now + IDLE_NS
            tcb_arm(t, c)

    def unsent(self, handle: int) -> int:
        """Octets queued or in flight: written and not acknowledged."""
        return self._at(handle).send.used

    # -- closing -----------------------------------------------------------------------------------

    def shutdown(self, handle: int) -> None:
        """Close this side: FIN follows what is queued. Reading goes on. A second call changes nothing."""
        c: cython.pointer[Tcb] = self._at(handle)
        if c.state == CLOSED or c.flags & F_FIN_QUEUED:
            return
        c.flags |= F_FIN_QUEUED
        tcb_dirty(cython.address(self.table), c)

    @cython.ccall
    def abort(self, handle: object):
        """Reset the connection and release the handle."""
        self._abort(self._at(handle))

    def cut(self, handle: int) -> None:
        """As `abort`, also for a connection that no application has any more, or none yet."""
        c: cython.pointer[Tcb] = self._any(handle)
        if c is cython.NULL:
            raise ValueError(f"no connection {handle}")
        self._abort(c)

    @cython.cfunc
    def _abort(self, c: cython.pointer[Tcb]):
        t: cython.pointer[TcpTable] = cython.address(self.table)
        if c.state != CLOSED:
            count(t.net, TCP_ABORTS, 1)
            if c.state < CLOSING:       # RFC 9293 3.10.5: later the peer has nothing to lose
                send_reset(t, c)
        self._let_go(c)
        tcb_close(t, c, errno.ECONNABORTED)
        tcb_reap(t, c)

    @cython.ccall
    def release(self, handle: object):
        """The application is done with it. What was written still goes out, then FIN; unread octets make it a reset."""
        t: cython.pointer[TcpTable] = cython.address(self.table)
        c: cython.pointer[Tcb] = self._at(handle)
        self._let_go(c)
        if c.state == SYN_SENT:
            tcb_close(t, c, 0)
        elif c.receive.used and c.state != CLOSED and c.state != TIME_WAIT:
            # RFC 9293 3.6.1: the peer must learn they were not read
            send_reset(t, c)
            tcb_close(t, c, 0)
        elif c.state != CLOSED:
            if not c.flags & F_FIN_QUEUED:
                c.flags |= F_FIN_QUEUED
                tcb_dirty(t, c)
            if c.state == FIN_WAIT_2:
                tcb_fin_wait_2(t, c)
        if c.state == CLOSED or c.state == TIME_WAIT:
            ring_release(cython.address(c.receive), cython.address(t.budget))
        tcb_reap(t, c)

    @cython.cfunc
    def _let_go(self, c: cython.pointer[Tcb]):
        if c.flags & F_FOLLOWED:
            self.followers[c.index] = None
            c.flags &= ~cython.cast(uint32_t, F_FOLLOWED)
        c.flags |= F_RELEASED
        c.news = 0

    # -- options and facts -------------------------------------------------------------------------

    def set_nodelay(self, handle: int, on: bool) -> None:
        """Switch Nagle's algorithm off or on."""
        c: cython.pointer[Tcb] = self._at(handle)
        if on:
            c.flags |= F_NODELAY
            tcb_dirty(cython.address(self.table), c)
        else:
            c.flags &= ~cython.cast(uint32_t, F_NODELAY)

    def set_keepalive(self, handle: int, on: bool) -> None:
        """Probe an idle peer, if not told else after two hours, and give it up after nine probes 75 s apart (RFC 9293 3.8.4).

        The first time counts from the last time that the stack heard of: it may be early by as long as nothing happened.
        """
        c: cython.pointer[Tcb] = self._at(handle)
        if not on:
            c.flags &= ~cython.cast(uint32_t, F_KEEPALIVE)
            c.keepalive_at = 0
        elif not c.flags & F_KEEPALIVE:
            c.flags |= F_KEEPALIVE
            c.keepalive_at = self.state.net.now + c.keepalive_idle_s * S
            tcb_arm(cython.address(self.table), c)

    def set_keepalive_idle(self, handle: int, seconds: int) -> None:
        """How long nothing comes before the first probe, 1 to 32,767 s; it may be due at once."""
        c: cython.pointer[Tcb] = self._at(handle)
        before: cython.int = c.keepalive_idle_s
        c.keepalive_idle_s = min(max(seconds, 1), 32767)
        if c.keepalive_at and c.probes == 0:
            c.keepalive_at = max(c.keepalive_at + (c.keepalive_idle_s - before) * S, self.state.net.now)
            tcb_arm(cython.address(self.table), c)

    def set_keepalive_interval(self, handle: int, seconds: int) -> None:
        """How long to wait for an answer before the next probe, 1 to 32,767 s."""
        self._at(handle).keepalive_interval_s = min(max(seconds, 1), 32767)

    def set_keepalive_probes(self, handle: int, count: int) -> None:
        """How many probes without an answer are enough to give the peer up, 1 to 127."""
        self._at(handle).keepalive_probes = min(max(count, 1), 127)

    def set_user_timeout(self, handle: int, milliseconds: int) -> None:
        """How long what was sent, or a closed window, or keepalive's probes may go without an answer (RFC 9293 3.8.3);
        0: as many timeouts and probes as are usual.
        """
        self._at(handle).user_timeout_ms = min(max(milliseconds, 0), MOST)

    def set_receive_buffer(self, handle: int, octets: int) -> None:
        """How many octets may stay unread: 4096 to the `receive_buffer` of all. What the peer was promised stays promised."""
        c: cython.pointer[Tcb] = self._at(handle)
        most: uint32_t = self.table.limits.receive_buffer if c.flags & F_SCALE else 65535
        c.rcv_limit = min(max(RECEIVE_LEAST, cython.cast(uint32_t, min(max(octets, 0), 1 << 30))),
                          min(most, self.table.limits.receive_buffer))

    def local(self, handle: int) -> tuple:
        """(host, port) of our end."""
        c: cython.pointer[Tcb] = self._at(handle)
        return address_text(cython.address(c.path.source)), c.local_port

    def remote(self, handle: int) -> tuple:
        """(host, port) of the peer."""
        c: cython.pointer[Tcb] = self._at(handle)
        return address_text(cython.address(c.path.destination)), c.remote_port

    @cython.ccall
    def ends(self, handle: object) -> bytes:
        """Address (16 octets, IPv4 as ::ffff:a.b.c.d) and port, in network order, of the peer and then of our end."""
        c: cython.pointer[Tcb] = self._at(handle)
        octets: uint8_t[36]
        memcpy(octets, c.path.destination.octets, 16)
        put16(cython.address(octets[16]), c.remote_port)
        memcpy(cython.address(octets[18]), c.path.source.octets, 16)
        put16(cython.address(octets[34]), c.local_port)
        return cython.cast(cython.p_char, octets)[:36]

    def info(self, handle: int) -> dict:
        """All that is known of one connection; times in ns, sizes in octets."""
        return _row(self._at(handle))

    def details(self, handle: int, now: int64_t) -> dict:
        """As `info`, also of a connection without an application, and with what takes longer to read than a line.

        `timers`: name -> ns from `now` until it runs out, of those that run. Raises ValueError.
        """
        c: cython.pointer[Tcb] = self._any(handle)
        if c is cython.NULL:
            raise ValueError(f"no connection {handle}")
        running = {"retransmission": c.rto_at, "tail_loss_probe": c.tail_at, "zero_window_probe": c.persist_at,
                   "delayed_ack": c.ack_at, "close": c.close_at, "keepalive": c.keepalive_at}
        row = _row(c)
        row.update({
            "age_ns": max(now - c.opened_at, 0), "peer_mss": c.peer_mss, "nodelay": bool(c.flags & F_NODELAY),
            "keepalive": bool(c.flags & F_KEEPALIVE),
            "send_memory": c.send.size, "send_limit": self.table.limits.send_buffer,
            "receive_memory": c.receive.size, "receive_limit": c.rcv_limit,
            "out_of_order_ranges": c.gap_count, "sacked_ranges": c.sacked_count,
            "soft_error": os.strerror(c.soft_error) if c.soft_error else None,
            "timers": {name: at - now for name, at in running.items() if at},
        })
        return row

    def connections(self) -> list:
        """One `info` for each connection, those without an application included."""
        t: cython.pointer[TcpTable] = cython.address(self.table)
        i: uint32_t
        return [_row(t.blocks[i]) for i in range(t.block_count) if t.blocks[i] is not cython.NULL]

    def busiest(self, most: int = 64, lately: bool = False) -> list:
        """One `info` for each of the connections that have moved the most octets, at most 64, the busiest first.

        `lately`: since the last call that asked for this. However many there are, it stays cheap enough to ask once a second.
        """
        t: cython.pointer[TcpTable] = cython.address(self.table)
        chosen: uint32_t[MAX_BUSIEST]
        moved: uint64_t[MAX_BUSIEST]
        own: uint64_t
        limit: cython.int = max(0, min(most, MAX_BUSIEST))
        since: cython.bint = lately
        n: cython.int = 0
        k: cython.int
        i: uint32_t
        for i in range(t.block_count):
            if t.blocks[i] is cython.NULL:
                continue
            own = t.blocks[i].octets_sent + t.blocks[i].octets_received
            if since:
                own -= t.blocks[i].octets_marked
                t.blocks[i].octets_marked += own
            if n < limit:
                n += 1
            elif n == 0 or own <= moved[n - 1]:
                continue
            k = n - 1
            while k > 0 and moved[k - 1] < own:
                chosen[k] = chosen[k - 1]
                moved[k] = moved[k - 1]
                k -= 1
            chosen[k] = i
            moved[k] = own
        return [_row(t.blocks[chosen[k]]) for k in range(n)]

    def states(self) -> dict:
        """How many connections are in each state: name -> count."""
        t: cython.pointer[TcpTable] = cython.address(self.table)
        counts: uint32_t[STATES]
        i: uint32_t
        memset(counts, 0, cython.sizeof(counts))
        for i in range(t.block_count):
            if t.blocks[i] is not cython.NULL:
                counts[t.blocks[i].state] += 1
        return {NAMES[i]: counts[i] for i in range(STATES) if i != LISTEN}

    def histograms(self) -> dict:
        """Times in ns, each a row as `mm.histogram.Histogram.row`: round_trip, handshake_active, handshake_passive."""
        t: cython.pointer[TcpTable] = cython.address(self.table)
        return {"round_trip": histogram_row(cython.address(t.round_trip)),
                "handshake_active": histogram_row(cython.address(t.handshake[0])),
                "handshake_passive": histogram_row(cython.address(t.handshake[1]))}

    def listeners(self) -> list:
        """One row for each listener."""
        i: uint32_t
        rows: list = []
        for i in range(self.table.limits.listeners):
            if self.table.listeners[i].in_use:
                x: cython.pointer[Listener] = cython.address(self.table.listeners[i])
                rows.append({"host": None if x.any_family else address_text(cython.address(x.local)), "port": x.port,
                             "backlog": x.backlog, "half_open": x.embryos,
                             "waiting": x.waiting + x.held})
        return rows

    def usage(self) -> dict:
        """How full the bounded things are."""
        t: cython.pointer[TcpTable] = cython.address(self.table)
        return {"connections": t.count, "connections_limit": t.limits.connections, "time_wait": t.time_wait_count,
                "time_wait_limit": t.limits.time_wait, "buffer_octets": t.budget.used,
                "buffer_octets_limit": t.budget.limit, "block_octets": cython.sizeof(Tcb)}


@cython.cfunc
def _clash(x: cython.pointer[Listener], local: cython.pointer[Addr], any_family: cython.bint) -> cython.bint:
    """Would two listeners of one port be told apart? Same address, or both bound to any of a family they share."""
    if x.any_family or any_family:
        return (x.any_family and any_family) or (is_unspecified(cython.address(x.local)) and is_unspecified(local))
    return same_address(cython.address(x.local), local)


@cython.cfunc
def _row(c: cython.pointer[Tcb]) -> dict:
    return {
        "handle": c.index | cython.cast(int64_t, c.generation) << 32, "state": NAMES[c.state],
        "local_host": address_text(cython.address(c.path.source)), "local_port": c.local_port,
        "remote_host": address_text(cython.address(c.path.destination)), "remote_port": c.remote_port,
        "interface": c.path.interface, "iss": c.iss, "irs": c.irs, "released": bool(c.flags & F_RELEASED),
        "unread": c.receive.used, "unsent": c.send.used, "in_flight": c.snd_max - c.snd_una,
        "octets_sent": c.octets_sent, "octets_received": c.octets_received, "retransmits": c.retransmits,
        "srtt_ns": c.srtt, "rttvar_ns": c.rttvar, "rto_ns": c.rto, "backoff": c.backoff, "mss": c.mss,
        "cwnd": c.cwnd, "ssthresh": None if c.ssthresh >= 1 << 30 else c.ssthresh, "pipe": pipe(c),
        "send_window": c.snd_wnd, "receive_window": (c.rcv_edge - c.rcv_nxt) & 0xFFFFFFFF,
        "sack": bool(c.flags & F_SACK), "timestamps": bool(c.flags & F_TIMESTAMPS),
        "window_scale": (c.snd_scale, c.rcv_scale) if c.flags & F_SCALE else None,
        "recovery": "rto" if c.flags & F_RTO_RECOVERY else "fast" if c.flags & F_RECOVERY else None,
        "opened_at": c.opened_at, "error": os.strerror(c.error) if c.error else None,
    }
