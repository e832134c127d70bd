"""Receiving: trimming, reassembly in place, FIN, delayed and duplicate ACKs (RFC 9293 3.10.7.4, 5681 4.2, 2018)."""

import cython
from cython.cimports.libc.stdint import int64_t, uint16_t, uint32_t
from cython.cimports.libc.stdlib import malloc
from cython.cimports.netstack.counters import TCP_CHALLENGE_ACKS, TCP_OCTETS_RECEIVED, TCP_OUT_OF_ORDER
from cython.cimports.netstack.net import Net, count, random_below
from cython.cimports.netstack.tcp.ranges import ranges_add, ranges_cut
from cython.cimports.netstack.tcp.ring import ring_put, ring_reserve
from cython.cimports.netstack.tcp.state import (
    ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2, RCV_FIN, RCV_FIN_AND_ACK_OF_FIN, TIME_WAIT)
from cython.cimports.netstack.tcp.tcb import (
    F_ACK_NOW, F_EOF_TOLD, F_FIN_ARRIVED, F_FIN_SENT, MAX_RANGES, NEWS_EOF, NEWS_READABLE, set_state, tcb_dirty,
    tcb_news, tcb_time_wait)
from cython.cimports.netstack.verdict import (
    DELIVERED, TCP_DUPLICATE, TCP_MEMORY, TCP_OUT_OF_ORDER_FULL, TCP_OUT_OF_WINDOW)
from cython.cimports.netstack.wire.tcp import FIN, PSH, Range, seq_le, seq_lt, seq_max

DELAYED_ACK_NS = cython.declare(int64_t, 40_000_000)    # RFC 1122 4.2.3.2 allows 500 ms; 40 ms as Linux
QUICK_ANSWER_NS = cython.declare(int64_t, 4_000_000)    # by then most servers have answered a request
IDLE_NS = cython.declare(int64_t, 1_000_000_000)
SECOND = cython.declare(int64_t, 1_000_000_000)
ANSWER_NS = cython.declare(int64_t, 500_000_000)        # as Linux's tcp_invalid_ratelimit
DUPLICATE_ACKS_OWED = cython.declare(uint16_t, 8)       # at most so many per burst


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def receive_data(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], s: cython.pointer[Segment]) -> cython.int:
    """Take what is new and in the window. A FIN whose data did not fit is struck from `s`."""
    skip: uint32_t
    distance: uint32_t
    n: uint32_t = s.length
    keep: uint32_t = c.receive.used
    if cython.unlikely(seq_lt(s.seq, c.rcv_nxt)):
        skip = c.rcv_nxt - s.seq
        if skip >= n:
            owe_ack(t, c)
            return TCP_DUPLICATE
        s.seq += skip
        s.payload += skip
        n -= skip
    distance = s.seq - c.rcv_nxt
    if cython.unlikely(seq_lt(c.rcv_edge, s.seq + n)):
        n = c.rcv_edge - s.seq
        s.flags &= ~cython.cast(cython.int, FIN)
        owe_ack(t, c)
    if cython.unlikely(c.flags & F_FIN_ARRIVED and seq_lt(c.fin_seq, s.seq + n)):      # nothing follows a FIN
        n = c.fin_seq - s.seq if seq_lt(s.seq, c.fin_seq) else 0
        owe_ack(t, c)
    s.length = n
    if n == 0:
        return TCP_OUT_OF_WINDOW
    if c.gap_count:
        keep += c.gaps[c.gap_count - 1].end - c.rcv_nxt
    elif keep == 0:
        c.receive.head = 0      # start over at the front: the cache is warm there
    if not ring_reserve(cython.address(c.receive), max(c.receive.used + distance + n, keep), keep,
                        cython.address(t.budget)):
        s.flags &= ~cython.cast(cython.int, FIN)
        return TCP_MEMORY
    if c.idle_at == 0:
        c.idle_at = t.net.now + IDLE_NS
    if cython.unlikely(distance):
        return _beyond_gap(t, c, s, distance)
    ring_put(cython.address(c.receive), c.receive.used, s.payload, n)
    _advance(t, c, n)
    _acknowledge(t, c, s)
    return DELIVERED


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _advance(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], n: uint32_t) -> cython.void:
    """n octets at rcv_nxt are in the ring: they, and whatever they joined up with, can be read."""
    before: uint32_t = c.rcv_nxt
    c.rcv_nxt += n
    if cython.unlikely(c.gap_count != 0):
        while c.gap_count and seq_le(c.gaps[0].start, c.rcv_nxt):   # the segment may reach over one range into the next
            c.rcv_nxt = seq_max(c.rcv_nxt, c.gaps[0].end)
            ranges_cut(c.gaps, cython.address(c.gap_count), c.rcv_nxt)
        c.flags |= F_ACK_NOW        # RFC 5681 4.2: when a gap is filled, all or in part
        c.acks_owed = 0             # duplicates of this ACK would tell of a loss where there is none
    n = c.rcv_nxt - before
    c.receive.used += n
    c.octets_received += n
    count(t.net, TCP_OCTETS_RECEIVED, n)
    tcb_news(t, c, NEWS_READABLE)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _acknowledge(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], s: cython.pointer[Segment]) -> cython.void:
    """Every second full segment at once, else within the delay (RFC 9293 3.8.6.3).

    While the connection is young every segment is acknowledged at once, for it opens the peer's window; but for a request,
    which is pushed and small: its answer carries the ACK, if it comes soon.
    """
    delay: int64_t = DELAYED_ACK_NS
    size: uint32_t = s.segment_size if s.segment_size else s.length
    if size > c.rcv_mss:
        c.rcv_mss = cython.cast(uint16_t, min(size, cython.cast(uint32_t, 65535)))
    c.unacked += s.length
    if c.quick_acks:
        c.quick_acks -= 1
        delay = QUICK_ANSWER_NS
        if s.flags & PSH == 0 or s.length >= c.mss:
            c.flags |= F_ACK_NOW
    if c.unacked >= 2 * cython.cast(uint32_t, c.rcv_mss):
        c.flags |= F_ACK_NOW
    if c.flags & F_ACK_NOW:
        tcb_dirty(t, c)
    elif c.ack_at == 0:
        c.ack_at = t.net.now + delay


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _owe_duplicate(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """One duplicate ACK more: the peer counts them (RFC 5681 4.2)."""
    if c.acks_owed < DUPLICATE_ACKS_OWED:
        c.acks_owed += 1
    c.flags |= F_ACK_NOW
    tcb_dirty(t, c)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _beyond_gap(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], s: cython.pointer[Segment],
                distance: uint32_t) -> cython.int:
    """Keep octets that came too early where they will be read, and say so with a duplicate ACK."""
    added: cython.int
    if c.gaps is cython.NULL:
        c.gaps = cython.cast(cython.pointer[Range], malloc(MAX_RANGES * cython.sizeof(Range)))
        if c.gaps is cython.NULL:
            return TCP_MEMORY
    added = ranges_add(c.gaps, cython.address(c.gap_count), MAX_RANGES, s.seq, s.seq + s.length)
    if added > 0:
        ring_put(cython.address(c.receive), c.receive.used + distance, s.payload, s.length)
        count(t.net, TCP_OUT_OF_ORDER, 1)
    if added >= 0:
        c.last_gap = s.seq
    _owe_duplicate(t, c)
    if added < 0:
        s.flags &= ~cython.cast(cython.int, FIN)
        return TCP_OUT_OF_ORDER_FULL
    return DELIVERED if added else TCP_DUPLICATE


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def receive_fin(t: cython.pointer[TcpTable], c: cython.pointer[Tcb],
                s: cython.pointer[cython.const[Segment]]) -> cython.bint:
    """Note where the FIN is; once all before it has come, the peer's side is closed. True: that was new."""
    fresh: cython.bint = False
    end: uint32_t = s.seq + s.length
    if s.flags & FIN and not c.flags & F_FIN_ARRIVED:
        if seq_lt(end, c.gaps[c.gap_count - 1].end if c.gap_count else c.rcv_nxt):
            return False            # octets from beyond it are here already: one of the two is a lie
        c.fin_seq = end
        c.flags |= F_FIN_ARRIVED
        fresh = True
        if s.length == 0 and end != c.rcv_nxt:
            _owe_duplicate(t, c)
    if not c.flags & F_FIN_ARRIVED or c.rcv_nxt != c.fin_seq:
        return fresh
    if c.state == ESTABLISHED or c.state == FIN_WAIT_2:
        set_state(t, c, RCV_FIN)
    elif c.state == FIN_WAIT_1:
        set_state(t, c, RCV_FIN_AND_ACK_OF_FIN if c.flags & F_FIN_SENT and c.snd_una == c.snd_max else RCV_FIN)
    else:
        return fresh
    c.rcv_nxt += 1
    c.flags |= F_ACK_NOW
    tcb_dirty(t, c)
    if c.state == TIME_WAIT:
        tcb_time_wait(t, c)
    if c.receive.used == 0:
        c.flags |= F_EOF_TOLD
        tcb_news(t, c, NEWS_EOF)
    return True


# -- ACKs that answer what is not acceptable -------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def owe_ack(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """Tell the peer where we are."""
    c.flags |= F_ACK_NOW
    tcb_dirty(t, c)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _may_answer(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.bint:
    """One in half a second and connection: two ends that disagree must not acknowledge each other for ever."""
    if c.answered_at and t.net.now - c.answered_at < ANSWER_NS:
        return False
    c.answered_at = t.net.now
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def answer(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], s: cython.pointer[cython.const[Segment]]) -> cython.void:
    """ACK a segment that is not acceptable (RFC 9293 3.10.7.4); one with data or FIN asks for it, and no ACK has these."""
    if s.length or s.flags & FIN or _may_answer(t, c):
        owe_ack(t, c)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def challenge(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """A challenge ACK: the true peer will answer with an exact RST, a forger cannot."""
    net: cython.pointer[Net] = t.net
    if net.now - net.challenge_tokens_at >= SECOND:
        net.challenge_tokens_at = net.now
        # Half the limit to one and a half: a number that can be counted down to tells of others' connections (CVE-2016-5696).
        net.challenge_tokens = ((net.challenge_acks_per_second + 1) >> 1) + random_below(net, net.challenge_acks_per_second)
    if net.challenge_tokens == 0 or not _may_answer(t, c):
        return
    net.challenge_tokens -= 1
    count(net, TCP_CHALLENGE_ACKS, 1)
    owe_ack(t, c)
