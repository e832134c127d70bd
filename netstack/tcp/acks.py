"""Acknowledgments: RFC 9293 3.10.7.4 step 5, RTT by RFC 6298, SACK by RFC 2018 and 6675."""

import cython
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import malloc
from cython.cimports.mm.histogram import histogram_add
from cython.cimports.netstack.neighbor import neighbor_confirm
from cython.cimports.netstack.tcp.congestion import congestion_acked, congestion_duplicate
from cython.cimports.netstack.tcp.output import rto_now, tail_arm, timestamp_now
from cython.cimports.netstack.tcp.ranges import ranges_add, ranges_cut
from cython.cimports.netstack.tcp.ring import ring_drop
from cython.cimports.netstack.tcp.tcb import (
    F_FIN_QUEUED, F_NEW_SACK, F_RECOVERY, F_SACK, F_TAIL_PROBED, F_TIMESTAMPS, F_WANT_WRITE, MAX_RANGES,
    NEWS_WRITABLE, tcb_dirty, tcb_news)
from cython.cimports.netstack.wire.tcp import FIN, SYN, Range, seq_le, seq_lt

MS = cython.declare(int64_t, 1_000_000)
GRANULARITY_NS = cython.declare(int64_t, 1_000_000)     # G of RFC 6298: the loop's timer
RTO_MAX_NS = cython.declare(int64_t, 60_000_000_000)
RTO_AFTER_LOST_SYN_NS = cython.declare(int64_t, 3_000_000_000)     # RFC 6298 5.7


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _measure(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], rtt: int64_t) -> cython.void:
    """A round-trip time sample, ns (RFC 6298 2)."""
    deviation: int64_t
    if rtt < 0:
        return
    histogram_add(cython.address(t.round_trip), cython.cast(uint64_t, rtt))
    if c.srtt == 0:
        c.srtt = rtt if rtt else 1
        c.rttvar = rtt >> 1
    else:
        deviation = c.srtt - rtt if c.srtt > rtt else rtt - c.srtt
        c.rttvar += (deviation - c.rttvar) >> 2
        c.srtt += (rtt - c.srtt) >> 3
    c.rto = c.srtt + max(4 * c.rttvar, GRANULARITY_NS)
    if c.rto < t.limits.rto_min_ns:
        c.rto = t.limits.rto_min_ns
    if c.rto > RTO_MAX_NS:
        c.rto = RTO_MAX_NS


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _measure_by_ack(t: cython.pointer[TcpTable], c: cython.pointer[Tcb],
                    s: cython.pointer[cython.const[Segment]]) -> cython.void:
    """From the timed segment, or, while things are sent twice, from the timestamp echo (RFC 7323 4.1).

    An echo from before the last timeout is no sample: were only the ACK lost, it would hold the timeout itself, and every
    loss would stretch the next one.
    """
    rtt: int64_t
    if c.timed_at:
        if seq_le(c.timed_seq, s.ack):
            _measure(t, c, t.net.now - c.timed_at)
            c.timed_at = 0
    elif c.flags & F_TIMESTAMPS and s.ts_echo:
        rtt = cython.cast(int64_t, timestamp_now(t, c) - s.ts_echo) * MS
        if c.timeout_at == 0 or rtt <= t.net.now - c.timeout_at + MS:
            _measure(t, c, rtt)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def process_ack_of_syn(t: cython.pointer[TcpTable], c: cython.pointer[Tcb],
                       s: cython.pointer[cython.const[Segment]]) -> cython.void:
    """Our SYN is acknowledged: the sequence space of the data begins."""
    c.snd_una = c.iss + 1
    if seq_lt(c.snd_nxt, c.snd_una):
        c.snd_nxt = c.snd_una
    c.high_rxt = c.snd_una
    c.recover = c.iss
    if c.backoff == 0:
        _measure_by_ack(t, c, s)
    else:
        c.rto = RTO_AFTER_LOST_SYN_NS
        if c.backoff > 1:           # RFC 6928 2
            c.cwnd = c.mss
    c.timed_at = 0
    c.backoff = 0
    c.rto_at = 0
    c.snd_wnd = s.window if s.flags & SYN else s.window << c.snd_scale
    c.snd_wnd_max = c.snd_wnd
    c.snd_wl1 = s.seq
    c.snd_wl2 = s.ack
    tcb_dirty(t, c)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _take_sack(c: cython.pointer[Tcb], s: cython.pointer[cython.const[Segment]]) -> cython.void:
    """Enter the blocks on the scoreboard; those below snd_una (D-SACK) or beyond snd_max are passed over."""
    i: uint32_t
    for i in range(s.sack_count):
        if (not seq_lt(s.sack[i].start, s.sack[i].end) or seq_le(s.sack[i].start, s.ack)
                or seq_le(s.sack[i].start, c.snd_una) or seq_lt(c.snd_max, s.sack[i].end)):
            continue
        if c.sacked is cython.NULL:
            c.sacked = cython.cast(cython.pointer[Range], malloc(MAX_RANGES * cython.sizeof(Range)))
            if c.sacked is cython.NULL:
                return
        if ranges_add(c.sacked, cython.address(c.sacked_count), MAX_RANGES, s.sack[i].start, s.sack[i].end) > 0:
            c.flags |= F_NEW_SACK


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _is_duplicate(c: cython.pointer[cython.const[Tcb]], s: cython.pointer[cython.const[Segment]],
                  window_before: uint32_t) -> cython.bint:
    """Does it only tell that something arrived out of order (RFC 5681 2; with SACK, RFC 6675 2)?"""
    if c.snd_una == c.snd_max or not c.rto_at:
        return False
    if c.flags & F_SACK:        # whatever else it carries
        return c.flags & F_NEW_SACK != 0
    return s.ack == c.snd_una and not s.length and not s.flags & FIN and c.snd_wnd == window_before


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def process_ack(t: cython.pointer[TcpTable], c: cython.pointer[Tcb],
                s: cython.pointer[cython.const[Segment]]) -> cython.void:
    """Take windows, SACK blocks and the acknowledgment number of an acceptable segment."""
    before: uint32_t = c.snd_wnd
    fresh: cython.bint
    c.flags &= ~cython.cast(uint32_t, F_NEW_SACK)
    if s.sack_count and c.flags & F_SACK:
        _take_sack(c, s)
    if seq_le(c.snd_una, s.ack) and (
            seq_lt(c.snd_wl1, s.seq) or (c.snd_wl1 == s.seq and seq_le(c.snd_wl2, s.ack))):
        c.snd_wnd = s.window << c.snd_scale
        c.snd_wnd_max = max(c.snd_wnd_max, c.snd_wnd)
        c.snd_wl1 = s.seq
        c.snd_wl2 = s.ack
    if seq_lt(c.snd_una, s.ack):
        _advance(t, c, s)
        fresh = c.flags & (F_SACK | F_NEW_SACK) == F_SACK | F_NEW_SACK and _is_duplicate(c, s, before)
    else:
        fresh = _is_duplicate(c, s, before)
    if fresh:
        congestion_duplicate(t, c)
        tail_arm(t, c)
        tcb_dirty(t, c)
    if c.persist_at:
        c.probes = 0                # the peer lives, even if its window is closed: RFC 9293 MUST-37
        if c.snd_wnd > before:
            c.persist_at = 0
            c.backoff = 0
    if c.snd_wnd != before or c.flags & F_RECOVERY:
        tcb_dirty(t, c)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _advance(t: cython.pointer[TcpTable], c: cython.pointer[Tcb],
             s: cython.pointer[cython.const[Segment]]) -> cython.void:
    """snd_una moves to s.ack: drop what has arrived, let the rest out."""
    octets: uint32_t = s.ack - c.snd_una
    room: uint32_t
    if c.backoff:
        if c.persist_at == 0:       # Karn: backed off until there is a new measurement (RFC 6298 5)
            c.rto = rto_now(t, c)
        c.backoff = 0
    _measure_by_ack(t, c, s)
    ring_drop(cython.address(c.send), min(octets, c.send.used))     # one more than used when it covers the FIN
    c.snd_una = s.ack
    if seq_lt(c.snd_nxt, c.snd_una):
        c.snd_nxt = c.snd_una
    if c.sacked_count:
        ranges_cut(c.sacked, cython.address(c.sacked_count), c.snd_una)
    c.probes = 0
    c.soft_error = 0
    congestion_acked(t, c, octets)
    c.rto_at = t.net.now + rto_now(t, c) if c.snd_una != c.snd_max else 0
    c.flags &= ~cython.cast(uint32_t, F_TAIL_PROBED)
    tail_arm(t, c)
    if c.path.neighbor >= 0 and c.path.generation == t.net.generation:
        neighbor_confirm(t.net, c.path.neighbor)
    if c.flags & F_WANT_WRITE:
        room = t.limits.send_buffer - c.send.used if t.limits.send_buffer > c.send.used else 0     # the limit may be lowered
        if room >= t.limits.send_buffer >> 2:
            c.flags &= ~cython.cast(uint32_t, F_WANT_WRITE)
            tcb_news(t, c, NEWS_WRITABLE)
    if c.send.used or c.flags & F_FIN_QUEUED:
        tcb_dirty(t, c)
