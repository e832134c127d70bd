"""Timers: retransmission, persist, delayed ACK, keepalive, 2 MSL, and giving idle memory back."""

import cython
from cython.cimports.libc.errno import ETIMEDOUT
from cython.cimports.libc.stdint import int64_t, uint32_t
from cython.cimports.netstack.counters import (
    TCP_ABORTS, TCP_CONNECT_FAILURES, TCP_DELAYED_ACKS, TCP_RETRANSMIT_TIMEOUTS, TCP_TAIL_PROBES)
from cython.cimports.netstack.net import count
from cython.cimports.netstack.tcp.congestion import congestion_lost, congestion_timeout
from cython.cimports.netstack.tcp.output import patience, rto_now, send_reset
from cython.cimports.netstack.tcp.ring import ring_release
from cython.cimports.netstack.tcp.state import CLOSED, SYN_RECEIVED, SYN_SENT
from cython.cimports.netstack.tcp.tcb import (
    F_ACK_NOW, F_KEEPALIVE_DUE, F_PROBE, F_RELEASED, F_SYN_DUE, F_TAIL_PROBE, F_TAIL_PROBED, F_WANT_WRITE,
    NEWS_WRITABLE, Tcb, tcb_arm, tcb_close, tcb_dirty, tcb_news, tcb_reap)
from cython.cimports.netstack.timers import timer_clear, timers_next, timers_top

IDLE_NS = cython.declare(int64_t, 1_000_000_000)
S = cython.declare(int64_t, 1_000_000_000)
MS = cython.declare(int64_t, 1_000_000)
SYN_RETRANSMISSIONS = cython.declare(cython.int, 7)         # 1+2+4+...+60 s: R2 of 3 minutes (RFC 9293 MUST-23)
SYN_ACK_RETRANSMISSIONS = cython.declare(cython.int, 5)     # an embryo nobody answers for goes after about a minute
ORPHAN_PROBES = cython.declare(cython.int, 8)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tcp_wake_at(t: cython.pointer[cython.const[TcpTable]]) -> int64_t:
    """The earliest deadline, or an earlier time at which one was due that moved since."""
    return timers_next(cython.address(t.timers))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tcp_advance(t: cython.pointer[TcpTable]) -> cython.void:
    """Do all that is due by net.now; afterwards nothing is."""
    c: cython.pointer[Tcb]
    while timers_next(cython.address(t.timers)) <= t.net.now:
        c = t.blocks[timers_top(cython.address(t.timers))]
        timer_clear(cython.address(t.timers), c.index)
        c.wake_at = 0
        _due(t, c)
        if c.state != CLOSED:
            tcb_arm(t, c)
        tcb_reap(t, c)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _due(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """Every deadline of one connection that has passed."""
    now: int64_t = t.net.now
    if c.close_at and c.close_at <= now:
        tcb_close(t, c, 0)
        return
    if c.ack_at and c.ack_at <= now:
        c.ack_at = 0
        c.flags |= F_ACK_NOW
        count(t.net, TCP_DELAYED_ACKS, 1)
        tcb_dirty(t, c)
    if c.tail_at and c.tail_at <= now:
        _tail_timeout(t, c)
    if c.rto_at and c.rto_at <= now:
        _retransmission_timeout(t, c)
    elif c.persist_at and c.persist_at <= now:
        _persist_timeout(t, c)
    if c.state != CLOSED and c.keepalive_at and c.keepalive_at <= now:
        _keepalive(t, c)
    if c.state != CLOSED and c.idle_at and c.idle_at <= now:
        _give_back(t, c)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _give_up(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """The peer does not answer: ETIMEDOUT, or what ICMP said meanwhile."""
    count(t.net, TCP_ABORTS, 1)
    if c.state == SYN_SENT:
        count(t.net, TCP_CONNECT_FAILURES, 1)
    tcb_close(t, c, c.soft_error if c.soft_error else ETIMEDOUT)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _retransmission_timeout(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """RFC 6298 5.4 to 5.7; R2 is a number of timeouts, or the application's own time (RFC 9293 3.8.3)."""
    limit: cython.int = t.limits.retransmissions
    count(t.net, TCP_RETRANSMIT_TIMEOUTS, 1)
    if c.state == SYN_SENT:
        limit = SYN_RETRANSMISSIONS
    elif c.state == SYN_RECEIVED:
        limit = SYN_ACK_RETRANSMISSIONS
    elif c.user_timeout_ms:
        limit = 256                         # whatever `backoff` is, time decides
    if c.backoff >= limit or _is_overdue(t, c):
        _give_up(t, c)
        return
    if c.backoff == 0:
        c.stuck_at = t.net.now - rto_now(t, c)
    if c.state == SYN_SENT or c.state == SYN_RECEIVED:
        c.backoff += 1
        c.timed_at = 0
        c.flags |= F_SYN_DUE
        c.rto_at = t.net.now + patience(t, c)
        tcb_dirty(t, c)
        return
    congestion_timeout(t, c)
    c.backoff = min(c.backoff + 1, 255)
    if c.snd_wnd == 0:                      # the window closed over what was in flight: probe, do not give up
        c.rto_at = 0
        c.persist_at = t.net.now + patience(t, c)
        return
    c.rto_at = t.net.now + patience(t, c)
    tcb_dirty(t, c)


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _is_overdue(t: cython.pointer[cython.const[TcpTable]], c: cython.pointer[cython.const[Tcb]]) -> cython.bint:
    """Whether there was no answer for as long as the application is willing to wait."""
    return c.user_timeout_ms != 0 and c.backoff != 0 and t.net.now - c.stuck_at >= c.user_timeout_ms * MS


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _tail_timeout(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """Two round trips brought nothing (more): probe, or, knowing of later octets that arrived, take the head for lost."""
    c.tail_at = 0
    c.rto_at = t.net.now + rto_now(t, c)    # RFC 8985 7.3: the probe has its whole timeout
    if c.sacked_count:                      # RFC 8985 6.2 step 5, with more patience
        congestion_lost(t, c)
    else:
        c.flags |= F_TAIL_PROBE | F_TAIL_PROBED
        count(t.net, TCP_TAIL_PROBES, 1)
    tcb_dirty(t, c)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _persist_timeout(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """Ask again whether the window is open: while the peer answers and an application waits (RFC 9293 MUST-37)."""
    overdue: cython.bint = _is_overdue(t, c)
    c.persist_at = 0
    if c.backoff == 0:
        c.stuck_at = t.net.now
    if c.backoff < 16:
        c.backoff += 1
    if overdue or c.probes >= t.limits.retransmissions or (c.flags & F_RELEASED and c.backoff > ORPHAN_PROBES):
        send_reset(t, c)
        _give_up(t, c)
        return
    if c.probes < 255:
        c.probes += 1
    c.flags |= F_PROBE
    tcb_dirty(t, c)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _keepalive(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """An old, empty segment that any living peer answers (RFC 9293 3.8.4)."""
    silent_s: int64_t
    if c.snd_una != c.snd_max:          # data in flight ask already
        c.keepalive_at = t.net.now + c.keepalive_interval_s * S
        return
    silent_s = c.keepalive_idle_s + c.probes * c.keepalive_interval_s
    if c.probes and (silent_s * 1000 >= c.user_timeout_ms if c.user_timeout_ms else c.probes >= c.keepalive_probes):
        send_reset(t, c)
        _give_up(t, c)
        return
    c.probes = min(c.probes + 1, 255)
    c.flags |= F_KEEPALIVE_DUE
    c.keepalive_at = t.net.now + c.keepalive_interval_s * S
    tcb_dirty(t, c)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _give_back(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """Free rings that are empty: an idle connection is its control block and nothing else."""
    c.idle_at = 0
    if c.flags & F_WANT_WRITE and c.send.used <= t.limits.send_buffer - (t.limits.send_buffer >> 2):
        c.flags &= ~cython.cast(uint32_t, F_WANT_WRITE)     # the write was short for want of memory: try again
        tcb_news(t, c, NEWS_WRITABLE)
    if c.send.used == 0 and c.send.size:
        ring_release(cython.address(c.send), cython.address(t.budget))
    if c.receive.used == 0 and c.gap_count == 0 and c.receive.size:
        ring_release(cython.address(c.receive), cython.address(t.budget))
    if c.send.size or c.receive.size:
        c.idle_at = t.net.now + IDLE_NS
