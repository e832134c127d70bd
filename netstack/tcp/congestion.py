"""How much may be in the network, and what is taken for lost (RFC 5681, NewReno RFC 6582, SACK RFC 6675)."""

import cython
from cython.cimports.libc.stdint import uint32_t
from cython.cimports.netstack.net import count
from cython.cimports.netstack.tcp.tcb import F_CWND_LIMITED, F_RECOVERY, F_RETRANSMIT, F_RTO_RECOVERY, F_SACK
from cython.cimports.netstack.counters import TCP_DUPLICATE_ACKS_RECEIVED, TCP_FAST_RETRANSMITS
from cython.cimports.netstack.tcp.ranges import ranges_octets
from cython.cimports.netstack.wire.tcp import seq_le, seq_lt, seq_max, seq_min

DUPLICATE_THRESHOLD = cython.declare(uint32_t, 3)       # RFC 5681 3.2
INITIAL_SEGMENTS = cython.declare(uint32_t, 10)         # RFC 6928 2
CWND_MAX = cython.declare(uint32_t, 1 << 30)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def congestion_open(c: cython.pointer[Tcb]) -> cython.void:
    """The initial window, with no slow-start threshold yet."""
    c.cwnd = _initial_window(c)
    c.ssthresh = CWND_MAX
    c.recover = c.iss
    c.high_rxt = c.snd_una


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def congestion_restart(c: cython.pointer[Tcb]) -> cython.void:
    """What cwnd knew of the network is stale: no more than an initial window at once (RFC 5681 4.1)."""
    c.cwnd = min(c.cwnd, _initial_window(c))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _initial_window(c: cython.pointer[cython.const[Tcb]]) -> uint32_t:
    """RFC 6928 2."""
    return min(INITIAL_SEGMENTS * c.mss, max(cython.cast(uint32_t, 14600), 2 * cython.cast(uint32_t, c.mss)))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _grow(c: cython.pointer[Tcb], octets: uint32_t) -> cython.void:
    """Slow start or congestion avoidance by octets acknowledged; none while the window does not limit (RFC 7661)."""
    if not c.flags & F_CWND_LIMITED or c.cwnd >= CWND_MAX:
        return
    if c.cwnd < c.ssthresh:
        # The whole count, not RFC 3465's two segments: receivers with GRO acknowledge 64 KiB at once.
        c.cwnd = min(c.cwnd + octets, max(c.ssthresh, c.cwnd + c.mss))
        return
    c.acked_in_avoidance += octets
    if c.acked_in_avoidance >= c.cwnd:
        c.acked_in_avoidance -= c.cwnd
        c.cwnd += c.mss


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def congestion_acked(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], octets: uint32_t) -> cython.void:
    """New octets are acknowledged: grow, or go on with or end the recovery."""
    segments: uint32_t
    if c.flags & F_RECOVERY:
        if seq_le(c.recover, c.snd_una):
            c.flags &= ~cython.cast(uint32_t, F_RECOVERY | F_RETRANSMIT)
            c.cwnd = max(c.ssthresh, 2 * cython.cast(uint32_t, c.mss))
            c.duplicates = 0
        elif not c.flags & F_SACK:      # a partial ACK: the next hole is at snd_una (RFC 6582 3.2 step 3)
            segments = octets // c.mss      # one of them was sent again, the others have each caused a duplicate ACK
            if segments > 1:
                c.duplicates -= min(segments - 1, c.duplicates)
            c.flags |= F_RETRANSMIT
        else:
            c.head_again = c.snd_max
            if seq_le(c.high_rxt, c.snd_una):   # what a partial ACK stops at is lost, whatever little is SACKed above it
                c.flags |= F_RETRANSMIT
        return
    c.duplicates = 0
    if c.flags & F_RTO_RECOVERY:
        c.flags |= F_CWND_LIMITED
        if seq_le(c.recover, c.snd_una):
            c.flags &= ~cython.cast(uint32_t, F_RTO_RECOVERY)
    elif seq_lt(c.recover, c.snd_una):      # keep up, or they look like the future after 2 GiB
        c.recover = c.snd_una - 1
        c.high_rxt = c.snd_una
    _grow(c, octets)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def congestion_duplicate(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """A duplicate ACK; the third, or SACKed octets enough to call snd_una lost, begin fast retransmit."""
    count(t.net, TCP_DUPLICATE_ACKS_RECEIVED, 1)
    c.duplicates += 1
    if c.flags & F_RECOVERY and _lost_again(c):
        c.flags |= F_RETRANSMIT
    if c.flags & (F_RECOVERY | F_RTO_RECOVERY):
        return
    if c.duplicates < DUPLICATE_THRESHOLD and not (c.sacked_count and _lost_before(c, 0)):
        return
    if not c.flags & F_SACK and seq_le(c.snd_una, c.recover):   # RFC 6582 3.2 step 1: echoes of an older recovery
        return
    congestion_lost(t, c)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def congestion_lost(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """What lies at snd_una is lost: halve the window, send it again, and recover up to snd_max (RFC 5681 3.2, 6675 5)."""
    in_network: uint32_t = min(c.snd_max - c.snd_una, c.cwnd)   # without what limited transmit sent
    c.ssthresh = max(in_network >> 1, 2 * cython.cast(uint32_t, c.mss))
    c.cwnd = c.ssthresh
    c.acked_in_avoidance = 0
    c.recover = c.snd_max
    c.high_rxt = c.snd_una
    c.timed_at = 0
    c.tail_at = 0
    c.flags |= F_RECOVERY | F_RETRANSMIT
    count(t.net, TCP_FAST_RETRANSMITS, 1)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _lost_again(c: cython.pointer[cython.const[Tcb]]) -> cython.bint:
    """Did what was sent after the retransmission at snd_una arrive, and it not? RFC 6675 would wait for a timeout."""
    last: uint32_t
    if c.sacked_count == 0:
        return False
    last = c.sacked[c.sacked_count - 1].end
    return seq_lt(c.head_again + 2 * cython.cast(uint32_t, c.mss), last)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def congestion_timeout(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """Back to one segment; everything is sent again but what the peer SACKs anew (RFC 5681 3.1, RFC 2018 8)."""
    if c.backoff == 0:
        c.ssthresh = max((c.snd_max - c.snd_una) >> 1, 2 * cython.cast(uint32_t, c.mss))
    c.cwnd = c.mss
    c.acked_in_avoidance = 0
    c.recover = c.snd_max
    c.snd_nxt = c.snd_una
    c.high_rxt = c.snd_una
    c.sacked_count = 0
    c.duplicates = 0
    c.timed_at = 0
    c.timeout_at = t.net.now
    c.flags &= ~cython.cast(uint32_t, F_RECOVERY | F_RETRANSMIT)
    c.flags |= F_RTO_RECOVERY


# -- the scoreboard -------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _lost_before(c: cython.pointer[cython.const[Tcb]], i: uint32_t) -> cython.bint:
    """Is the hole before SACKed range `i` lost? Three ranges or over two segments lie above it (RFC 6675 4, IsLost)."""
    if c.sacked_count - i >= DUPLICATE_THRESHOLD:
        return True
    return ranges_octets(cython.address(c.sacked[i]), c.sacked_count - i) > (
        DUPLICATE_THRESHOLD - 1) * cython.cast(uint32_t, c.mss)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def pipe(c: cython.pointer[cython.const[Tcb]]) -> uint32_t:
    """Octets thought to be in the network: neither SACKed nor lost, plus what was sent again (RFC 6675 4 SetPipe)."""
    total: uint32_t
    gone: uint32_t
    start: uint32_t
    again: uint32_t
    i: uint32_t
    if c.snd_nxt != c.snd_max:              # after a timeout only what went out since counts
        total = c.snd_nxt - c.snd_una
        for i in range(c.sacked_count):
            if seq_lt(c.sacked[i].start, c.snd_nxt):
                total -= seq_min(c.sacked[i].end, c.snd_nxt) - c.sacked[i].start
        return total
    total = c.snd_max - c.snd_una
    if c.sacked_count == 0:
        gone = c.duplicates * c.mss if not c.flags & F_SACK else 0
        return total - gone if gone < total else 0
    start = c.snd_una
    for i in range(c.sacked_count):
        if _lost_before(c, i):
            total -= c.sacked[i].start - start
        again = seq_min(c.high_rxt, c.sacked[i].start)
        if seq_lt(start, again):
            total += again - start
        total -= c.sacked[i].end - c.sacked[i].start
        start = c.sacked[i].end
    return total


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def first_hole(c: cython.pointer[cython.const[Tcb]], hole: cython.pointer[Range], lost: cython.bint) -> cython.bint:
    """The first octets that were not sent again in this recovery: lost ones (RFC 6675 4 NextSeg rule 1), or any (rule 3)."""
    start: uint32_t = c.snd_una
    i: uint32_t
    for i in range(c.sacked_count):
        start = seq_max(start, c.high_rxt)
        if seq_lt(start, c.sacked[i].start):
            if lost and not _lost_before(c, i):
                return False
            hole.start = start
            hole.end = c.sacked[i].start
            return True
        start = c.sacked[i].end
    return False
