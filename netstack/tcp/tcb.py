"""All connections and listeners of a stack: allocation, look-up, lists of work, life and death."""

import cython
from cython.cimports.libc.stdint import int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free, realloc
from cython.cimports.libc.string import memset
from cython.cimports.mm.histogram import histogram_add
from cython.cimports.netstack.counters import TCP_IMPOSSIBLE_TRANSITIONS, TCP_TIME_WAIT_RECYCLED
from cython.cimports.netstack.net import Net, count
from cython.cimports.netstack.tcp.ring import ring_release
from cython.cimports.netstack.tcp.state import (
    CLOSED, ESTABLISHED, RESET, SYN_RECEIVED, TIME_WAIT, TIMEOUT_2MSL, next_state)
from cython.cimports.netstack.timers import timer_clear, timer_set, timers_create, timers_destroy
from cython.cimports.netstack.wire.address import Addr, is_unspecified, is_v4, same_address

FIRST_SLOTS = cython.declare(uint32_t, 64)
FIN_WAIT_2_NS = cython.declare(int64_t, 60_000_000_000)


@cython.cfunc
@cython.exceptval(-1, check=False)
def table_create(t: cython.pointer[TcpTable], net: cython.pointer[Net], limits: cython.pointer[cython.const[TcpLimits]],
                 memory: uint64_t) -> cython.int:
    """Set up an empty table; `memory`: octets that all rings may hold together. Raises MemoryError."""
    i: cython.int
    buckets: uint32_t = 1024
    memset(t, 0, cython.sizeof(TcpTable))
    t.net = net
    t.limits = limits[0]
    t.budget.limit = memory
    while buckets < t.limits.connections and buckets < 1 << 20:
        buckets <<= 1
    t.bucket_mask = buckets - 1
    t.buckets = cython.cast(cython.pointer[int32_t], calloc(buckets, cython.sizeof(int32_t)))
    t.listeners = cython.cast(cython.pointer[Listener], calloc(t.limits.listeners, cython.sizeof(Listener)))
    if t.buckets is cython.NULL or t.listeners is cython.NULL:
        raise MemoryError("no memory for the connection table")
    memset(t.buckets, 0xFF, buckets * cython.sizeof(int32_t))
    memset(t.port_buckets, 0xFF, cython.sizeof(t.port_buckets))
    for i in range(32):
        t.dirty_head[i] = -1
        t.dirty_tail[i] = -1
    t.ready_head = -1
    t.ready_tail = -1
    timers_create(cython.address(t.timers), t.limits.connections)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def table_destroy(t: cython.pointer[TcpTable]) -> cython.void:
    """Free everything, without a word to any peer."""
    i: uint32_t
    c: cython.pointer[Tcb]
    for i in range(t.block_count):
        c = t.blocks[i]
        if c is not cython.NULL:
            free(c.send.octets)
            free(c.receive.octets)
            free(c.gaps)
            free(c.sacked)
            free(c)
    free(t.blocks)
    free(t.generations)
    free(t.free_slots)
    free(t.buckets)
    free(t.listeners)
    timers_destroy(cython.address(t.timers))
    memset(t, 0, cython.sizeof(TcpTable))


# -- blocks ---------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _grow(t: cython.pointer[TcpTable]) -> cython.bint:
    """Double the number of slots, up to the limit."""
    old: uint32_t = t.block_count
    new: uint32_t = old * 2 if old else FIRST_SLOTS
    i: uint32_t
    blocks: cython.pointer[cython.pointer[Tcb]]
    generations: cython.pointer[uint32_t]
    slots: cython.pointer[int32_t]
    if new > t.limits.connections:
        new = t.limits.connections
    if new <= old:
        return False
    blocks = cython.cast(cython.pointer[cython.pointer[Tcb]], realloc(t.blocks, new * cython.sizeof(cython.p_void)))
    if blocks is cython.NULL:
        return False
    t.blocks = blocks
    generations = cython.cast(cython.pointer[uint32_t], realloc(t.generations, new * cython.sizeof(uint32_t)))
    if generations is cython.NULL:
        return False
    t.generations = generations
    slots = cython.cast(cython.pointer[int32_t], realloc(t.free_slots, new * cython.sizeof(int32_t)))
    if slots is cython.NULL:
        return False
    t.free_slots = slots
    for i in range(old, new):
        t.blocks[i] = cython.NULL
        t.generations[i] = 0
        t.free_slots[t.free_count] = cython.cast(int32_t, new - 1 - (i - old))
        t.free_count += 1
    t.block_count = new
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _recycle_time_wait(t: cython.pointer[TcpTable], spare: cython.pointer[Tcb]) -> cython.bint:
    """Close one connection in TIME-WAIT, not `spare`, that its application let go of; looks at some slots only."""
    _step: cython.int
    c: cython.pointer[Tcb]
    for _step in range(1024):
        t.time_wait_hand += 1
        if t.time_wait_hand >= t.block_count:
            t.time_wait_hand = 0
        c = t.blocks[t.time_wait_hand]
        if c is not cython.NULL and c is not spare and c.state == TIME_WAIT and c.flags & F_RELEASED:
            count(t.net, TCP_TIME_WAIT_RECYCLED, 1)
            tcb_close(t, c, 0)
            tcb_reap(t, c)
            return True
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tcb_new(t: cython.pointer[TcpTable]) -> cython.pointer[Tcb]:
    """A zeroed block in state CLOSED, not findable yet; recycles TIME-WAIT before it gives up."""
    c: cython.pointer[Tcb]
    index: int32_t
    if t.free_count == 0 and not _grow(t) and not (t.time_wait_count and _recycle_time_wait(t, cython.NULL)):
        return cython.NULL
    if t.free_count == 0:       # the recycled one is still on a list
        return cython.NULL
    c = cython.cast(cython.pointer[Tcb], calloc(1, cython.sizeof(Tcb)))
    if c is cython.NULL:
        return cython.NULL
    t.free_count -= 1
    index = t.free_slots[t.free_count]
    t.blocks[index] = c
    t.count += 1
    c.index = index
    c.generation = t.generations[index]
    c.listener = -1
    c.hash_next = -2
    c.dirty_next = -1
    c.ready_next = -1
    c.opened_at = t.net.now
    c.keepalive_idle_s, c.keepalive_interval_s, c.keepalive_probes = KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES
    return c


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tcb_free(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """Give a closed block's slot back. It must be on no list."""
    timer_clear(cython.address(t.timers), c.index)
    t.generations[c.index] = (t.generations[c.index] + 1) & 0xFFFFFF
    t.blocks[c.index] = cython.NULL
    t.free_slots[t.free_count] = cython.cast(int32_t, c.index)
    t.free_count += 1
    t.count -= 1
    ring_release(cython.address(c.send), cython.address(t.budget))
    ring_release(cython.address(c.receive), cython.address(t.budget))
    free(c.gaps)
    free(c.sacked)
    free(c)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _bucket(t: cython.pointer[TcpTable], remote: cython.pointer[cython.const[Addr]],
            local: cython.pointer[cython.const[Addr]], ports: uint32_t) -> uint32_t:
    """Keyed, so that a peer cannot choose ports that collide."""
    h: uint64_t = t.net.key.k0 ^ remote.word[0] ^ (local.word[0] << 1)
    h = (h ^ remote.word[1]) * cython.cast(uint64_t, 0x9E3779B97F4A7C15)
    h = ((h ^ (h >> 29)) + (local.word[1] ^ t.net.key.k1)) * cython.cast(uint64_t, 0xBF58476D1CE4E5B9)
    h = ((h ^ (h >> 32)) + ports) * cython.cast(uint64_t, 0x94D049BB133111EB)
    return cython.cast(uint32_t, h >> 32) & t.bucket_mask


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tcb_enter(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """Make it findable; its addresses and ports must not change afterwards."""
    b: uint32_t = _bucket(t, cython.address(c.path.destination), cython.address(c.path.source),
                          (cython.cast(uint32_t, c.remote_port) << 16) | c.local_port)
    c.hash_next = t.buckets[b]
    t.buckets[b] = cython.cast(int32_t, c.index)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _leave(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """The reverse of tcb_enter."""
    b: uint32_t
    at: cython.pointer[int32_t]
    if c.hash_next == -2:
        return
    b = _bucket(t, cython.address(c.path.destination), cython.address(c.path.source),
                (cython.cast(uint32_t, c.remote_port) << 16) | c.local_port)
    at = cython.address(t.buckets[b])
    while at[0] >= 0:
        if at[0] == cython.cast(int32_t, c.index):
            at[0] = c.hash_next
            break
        at = cython.address(t.blocks[at[0]].hash_next)
    c.hash_next = -2


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tcb_find(t: cython.pointer[TcpTable], remote: cython.pointer[cython.const[Addr]],
             local: cython.pointer[cython.const[Addr]], remote_port: uint16_t,
             local_port: uint16_t) -> cython.pointer[Tcb]:
    """The connection between two sockets, or NULL."""
    i: int32_t = t.buckets[_bucket(t, remote, local, (cython.cast(uint32_t, remote_port) << 16) | local_port)]
    c: cython.pointer[Tcb]
    while i >= 0:
        c = t.blocks[i]
        if (c.remote_port == remote_port and c.local_port == local_port
                and same_address(cython.address(c.path.destination), remote)
                and same_address(cython.address(c.path.source), local)):
            return c
        i = c.hash_next
    return cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def listener_find(t: cython.pointer[TcpTable], local: cython.pointer[cython.const[Addr]],
                  port: uint16_t) -> cython.pointer[Listener]:
    """Who listens on a local address and port: the one bound to the address goes before the ones bound to any."""
    i: int32_t = t.port_buckets[port % PORT_BUCKETS]
    found: cython.pointer[Listener] = cython.NULL
    x: cython.pointer[Listener]
    while i >= 0:
        x = cython.address(t.listeners[i])
        i = x.next
        if x.port != port:
            continue
        if x.any_family:
            if found is cython.NULL:
                found = x
        elif same_address(cython.address(x.local), local):
            return x
        elif is_unspecified(cython.address(x.local)) and is_v4(cython.address(x.local)) == is_v4(local):
            found = x
    return found


# -- lists of work --------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tcb_dirty(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """Queue it for its interface's next `transmit`; once is enough."""
    i: uint8_t = c.path.interface
    if c.flags & F_DIRTY:
        return
    c.flags |= F_DIRTY
    c.dirty_next = -1
    if t.dirty_tail[i] < 0:
        t.dirty_head[i] = cython.cast(int32_t, c.index)
    else:
        t.blocks[t.dirty_tail[i]].dirty_next = cython.cast(int32_t, c.index)
    t.dirty_tail[i] = cython.cast(int32_t, c.index)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tcb_news(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], news: cython.int) -> cython.void:
    """Remember something for the application; nothing once it has let go."""
    if c.flags & F_RELEASED:
        return
    c.news |= news
    if c.flags & F_READY:
        return
    c.flags |= F_READY
    c.ready_next = -1
    if t.ready_tail < 0:
        t.ready_head = cython.cast(int32_t, c.index)
    else:
        t.blocks[t.ready_tail].ready_next = cython.cast(int32_t, c.index)
    t.ready_tail = cython.cast(int32_t, c.index)
    t.ready_count += 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tcb_arm(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """Tell the heap the earliest of the block's deadlines, unless it will wake up before that anyway."""
    at: int64_t = 0
    if c.rto_at:
        at = c.rto_at
    if c.tail_at and (at == 0 or c.tail_at < at):
        at = c.tail_at
    if c.persist_at and (at == 0 or c.persist_at < at):
        at = c.persist_at
    if c.ack_at and (at == 0 or c.ack_at < at):
        at = c.ack_at
    if c.close_at and (at == 0 or c.close_at < at):
        at = c.close_at
    if c.keepalive_at and (at == 0 or c.keepalive_at < at):
        at = c.keepalive_at
    if c.idle_at and (at == 0 or c.idle_at < at):
        at = c.idle_at
    if at and (c.wake_at == 0 or at < c.wake_at):   # a later one is found when the earlier one fires
        c.wake_at = at
        timer_set(cython.address(t.timers), c.index, at)


# -- life and death -------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def set_state(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], event: cython.int) -> cython.bint:
    """Follow an arrow of the state machine; keeps count of embryos and of TIME-WAIT, and time of handshakes."""
    to: cython.int = next_state(c.state, event)
    parent: cython.pointer[Listener]
    if to < 0:
        count(t.net, TCP_IMPOSSIBLE_TRANSITIONS, 1)
        return False
    if c.listener >= 0 and (c.state == SYN_RECEIVED) != (to == SYN_RECEIVED):
        parent = cython.address(t.listeners[c.listener])
        if to == SYN_RECEIVED:
            parent.embryos += 1
        else:
            parent.embryos -= 1
    if c.state == TIME_WAIT:
        t.time_wait_count -= 1
    if to == TIME_WAIT:
        t.time_wait_count += 1
    if to == ESTABLISHED:
        histogram_add(cython.address(t.handshake[1 if c.flags & F_PASSIVE else 0]),
                      cython.cast(uint64_t, t.net.now - c.opened_at))
    c.state = cython.cast(uint8_t, to)
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tcb_time_wait(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """(Re)start the 2 MSL timer; nothing else runs in TIME-WAIT. A full house recycles an older one."""
    c.rto_at = 0
    c.tail_at = 0
    c.persist_at = 0
    c.keepalive_at = 0
    c.ack_at = 0
    c.close_at = t.net.now + t.limits.time_wait_ns
    if c.send.size:
        ring_release(cython.address(c.send), cython.address(t.budget))
    tcb_arm(t, c)
    if t.time_wait_count > t.limits.time_wait:
        _recycle_time_wait(t, c)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tcb_fin_wait_2(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """The peer of a connection without an application has a minute to close its side, as Linux's tcp_fin_timeout."""
    c.close_at = t.net.now + FIN_WAIT_2_NS
    tcb_arm(t, c)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tcb_close(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], error: cython.int) -> cython.void:
    """Enter CLOSED. Unread octets stay readable until release, after a reset too (as Linux). The caller reaps the block."""
    if c.state == CLOSED:
        return
    if c.flags & F_ACCEPTING:
        c.flags &= ~cython.cast(uint32_t, F_ACCEPTING)
        t.listeners[c.listener].waiting -= 1
    set_state(t, c, TIMEOUT_2MSL if c.state == TIME_WAIT else RESET)
    _leave(t, c)
    c.rto_at = 0
    c.tail_at = 0
    c.persist_at = 0
    c.ack_at = 0
    c.close_at = 0
    c.keepalive_at = 0
    c.idle_at = 0
    tcb_arm(t, c)
    c.error = error
    ring_release(cython.address(c.send), cython.address(t.budget))
    if c.receive.used == 0 or c.flags & F_RELEASED:
        ring_release(cython.address(c.receive), cython.address(t.budget))
    free(c.gaps)
    free(c.sacked)
    c.gaps = cython.NULL
    c.sacked = cython.NULL
    c.gap_count = 0
    c.sacked_count = 0
    if c.flags & F_PASSIVE and not c.flags & F_REPORTED:    # the application never heard of it
        c.flags |= F_RELEASED
    tcb_news(t, c, NEWS_CLOSED)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tcb_reap(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """Free a block that is closed, released and on no list; whoever takes one off a list calls this."""
    if c.state == CLOSED and c.flags & F_RELEASED and not c.flags & (F_DIRTY | F_READY):
        tcb_free(t, c)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def receive_room(t: cython.pointer[cython.const[TcpTable]], c: cython.pointer[cython.const[Tcb]]) -> uint32_t:
    """How many octets beyond rcv_nxt we are willing to take now."""
    room: uint32_t = c.rcv_limit - c.receive.used if c.rcv_limit > c.receive.used else 0
    spare: uint64_t
    if cython.unlikely(t.budget.used + (t.budget.limit >> 2) > t.budget.limit):
        spare = (t.budget.limit - t.budget.used) >> 4 if t.budget.limit > t.budget.used else 0
        if spare < room:
            room = cython.cast(uint32_t, spare)
    return room
