"""A segment arrives: RFC 9293 3.10.7 in its order, with RFC 5961's checks and RFC 7323's."""

import cython
from cython.cimports.libc.errno import (
    EACCES, ECONNREFUSED, ECONNRESET, EHOSTUNREACH, EMSGSIZE, ENETUNREACH, ENOPROTOOPT)
from cython.cimports.libc.stdint import int32_t, int64_t, uint16_t, uint32_t, uint64_t
from cython.cimports.netstack.counters import (
    TCP_CONNECT_FAILURES, TCP_PASSIVE_OPENS,
    TCP_RESETS_RECEIVED, TCP_SEGMENTS_RECEIVED)
from cython.cimports.netstack.icmp import (
    UNREACHABLE_ADMIN, UNREACHABLE_HOST, UNREACHABLE_PORT, UNREACHABLE_PROTOCOL, UNREACHABLE_TOO_BIG)
from cython.cimports.netstack.ip import PROTOCOL_TCP
from cython.cimports.netstack.net import count, siphash
from cython.cimports.netstack.tcp.acks import process_ack, process_ack_of_syn
from cython.cimports.netstack.tcp.congestion import congestion_open
from cython.cimports.netstack.tcp.output import fit_mss, path_to_peer, reply_reset, send_reset
from cython.cimports.netstack.tcp.receive import answer, challenge, owe_ack, receive_data, receive_fin
from cython.cimports.netstack.tcp.state import (
    CLOSED, CLOSING, ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2, LAST_ACK, LISTEN, RCV_ACK_OF_FIN, RCV_ACK_OF_SYN, RCV_SYN,
    RCV_SYN_ACK, SYN_RECEIVED, SYN_SENT, TIME_WAIT)
from cython.cimports.netstack.tcp.tcb import (
    F_ACCEPTING, F_ACK_NOW, F_FIN_ARRIVED, F_FIN_SENT, F_KEEPALIVE, F_PASSIVE, F_RELEASED, F_REPORTED, F_SACK,
    F_SCALE, F_SYN_DUE, F_TIMESTAMPS, NEWS_ACCEPTED, NEWS_CONNECTED, listener_find, set_state, tcb_arm, tcb_close,
    tcb_dirty, tcb_enter, tcb_fin_wait_2, tcb_find, tcb_free, tcb_new, tcb_news, tcb_reap, tcb_time_wait)
from cython.cimports.netstack.verdict import (
    DELIVERED, TCP_ACK_UNACCEPTABLE, TCP_AFTER_CLOSE, TCP_BACKLOG_FULL, TCP_CHECKSUM, TCP_DUPLICATE,
    TCP_FLAGS, TCP_MULTICAST, TCP_NO_CONNECTION, TCP_OUT_OF_WINDOW, TCP_PAWS, TCP_PORT_CLOSED, TCP_RESET_CHALLENGED,
    TCP_SYN_CHALLENGED, TCP_TABLE_FULL)
from cython.cimports.netstack.wire.checksum import fold, sum_octets, sum_pseudo
from cython.cimports.netstack.wire.tcp import ACK, FIN, RST, SYN, URG, Segment, segment_parse, seq_le, seq_lt, seq_max

S = cython.declare(int64_t, 1_000_000_000)
RTO_INITIAL_NS = cython.declare(int64_t, 1_000_000_000)             # RFC 6298 2.1
TS_RECENT_LIFE_NS = cython.declare(int64_t, 24 * 86400 * 1_000_000_000)     # RFC 7323 5.5
DEFAULT_MSS_V4 = cython.declare(uint16_t, 536)                      # RFC 9293 3.7.1
DEFAULT_MSS_V6 = cython.declare(uint16_t, 1220)
LEAST_MSS = cython.declare(uint16_t, 88)    # an MSS of nearly nothing would make us send nearly only headers
QUICK_ACKS = cython.declare(uint16_t, 16)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tcp_input(t: cython.pointer[TcpTable], view: cython.pointer[cython.const[IpView]]) -> cython.int:
    """Check a segment, find its connection, and let it have its effect. Returns how it ended."""
    s: Segment
    verdict: cython.int
    c: cython.pointer[Tcb]
    if view.multicast or view.link_multicast:
        return TCP_MULTICAST
    verdict = segment_parse(cython.address(s), view.payload, view.length)
    if verdict:
        return verdict
    if not view.checksum_ok and fold(sum_octets(view.payload, view.length, sum_pseudo(
            cython.address(view.source), cython.address(view.destination), PROTOCOL_TCP, view.length))):
        return TCP_CHECKSUM
    s.segment_size = view.segment_size
    count(t.net, TCP_SEGMENTS_RECEIVED,
          (s.length + s.segment_size - 1) // s.segment_size if s.segment_size and s.length else 1)
    c = tcb_find(t, cython.address(view.source), cython.address(view.destination), s.source_port, s.destination_port)
    if cython.unlikely(c is cython.NULL):
        return _no_connection(t, view, cython.address(s))
    if c.state == TIME_WAIT and _reopens(t, c, cython.address(s)):
        return _reopen(t, c, view, cython.address(s))
    if c.state == SYN_SENT:
        verdict = _in_syn_sent(t, c, view, cython.address(s))
    else:
        verdict = _in_connection(t, c, view, cython.address(s))
    tcb_reap(t, c)
    return verdict


# -- connections begin ----------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _reopens(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], s: cython.pointer[Segment]) -> cython.bint:
    """May this SYN start a new incarnation out of TIME-WAIT (RFC 9293 MAY-2, RFC 6191 2)?"""
    if (s.flags & (SYN | ACK | RST | FIN) != SYN
            or listener_find(t, cython.address(c.path.source), c.local_port) is cython.NULL):
        return False
    if c.flags & F_TIMESTAMPS and s.has_timestamp and s.ts_value != c.ts_recent:
        return seq_lt(c.ts_recent, s.ts_value)
    return seq_lt(c.rcv_nxt, s.seq)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _reopen(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], view: cython.pointer[cython.const[IpView]],
            s: cython.pointer[Segment]) -> cython.int:
    """End a TIME-WAIT early; the next incarnation's numbers begin beyond all that this one used (RFC 9293 MAY-2)."""
    used: uint32_t = c.snd_max
    verdict: cython.int
    tcb_close(t, c, 0)
    tcb_reap(t, c)
    verdict = _no_connection(t, view, s)
    if verdict == DELIVERED:
        c = tcb_find(t, cython.address(view.source), cython.address(view.destination), s.source_port, s.destination_port)
        if c is not cython.NULL and seq_le(c.iss, used):
            _start_at(c, used + 65536)
    return verdict


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _no_connection(t: cython.pointer[TcpTable], view: cython.pointer[cython.const[IpView]],
                   s: cython.pointer[Segment]) -> cython.int:
    """CLOSED and LISTEN (RFC 9293 3.10.7.1 and 3.10.7.2)."""
    listener: cython.pointer[Listener] = listener_find(t, cython.address(view.destination), s.destination_port)
    if listener is cython.NULL:
        reply_reset(t, view, s)
        return TCP_PORT_CLOSED
    if s.flags & RST:
        return TCP_NO_CONNECTION
    if s.flags & ACK:
        reply_reset(t, view, s)
        return TCP_NO_CONNECTION
    if s.flags & (SYN | FIN) != SYN or s.source_port == 0:
        return TCP_FLAGS
    if listener.embryos >= t.limits.embryos or listener.waiting + listener.held >= listener.backlog:
        return TCP_BACKLOG_FULL
    return _passive_open(t, listener, view, s)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _passive_open(t: cython.pointer[TcpTable], listener: cython.pointer[Listener],
                  view: cython.pointer[cython.const[IpView]], s: cython.pointer[Segment]) -> cython.int:
    """A SYN for a listener: an embryo in SYN-RECEIVED that owes a SYN-ACK."""
    c: cython.pointer[Tcb] = tcb_new(t)
    if c is cython.NULL:
        return TCP_TABLE_FULL
    c.path.destination = view.source
    c.path.interface = view.interface
    verdict: cython.int = path_to_peer(t.net, cython.address(c.path), cython.address(view.destination))
    if verdict:
        tcb_free(t, c)
        return verdict
    c.local_port = s.destination_port
    c.remote_port = s.source_port
    c.listener = cython.cast(int32_t, listener - t.listeners)
    c.flags = F_PASSIVE
    tcb_open(t, c)
    _take_syn(t, c, s)
    c.flags |= F_SYN_DUE
    c.state = LISTEN
    set_state(t, c, RCV_SYN)
    tcb_enter(t, c)
    tcb_dirty(t, c)
    return DELIVERED


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def initial_sequence(t: cython.pointer[TcpTable], c: cython.pointer[cython.const[Tcb]]) -> uint32_t:
    """ISN = M + F(addresses, ports, secret), M ticking about every 4 us (RFC 6528 3)."""
    return cython.cast(uint32_t, siphash(
        cython.address(t.net.key), c.path.source.word[0], c.path.source.word[1], c.path.destination.word[0],
        c.path.destination.word[1], (cython.cast(uint64_t, c.local_port) << 16) | c.remote_port)
    ) + cython.cast(uint32_t, t.net.now >> 12)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _start_at(c: cython.pointer[Tcb], iss: uint32_t) -> cython.void:
    """Set where our sequence numbers begin; nothing was sent yet."""
    c.iss = iss
    c.snd_una = iss
    c.snd_nxt = iss
    c.snd_max = iss
    c.snd_wl2 = iss
    c.recover = iss
    c.high_rxt = iss


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tcb_open(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """Everything a new connection starts with, whoever opened it."""
    v4: cython.bint = c.path.destination.word[0] == 0 and c.path.destination.octets[10] == 0xFF
    _start_at(c, initial_sequence(t, c))
    c.ts_offset = cython.cast(uint32_t, siphash(
        cython.address(t.net.key), c.path.source.word[1], c.path.destination.word[0], c.path.destination.word[1],
        (cython.cast(uint64_t, c.local_port) << 16) | c.remote_port, 7323))
    c.rcv_limit = t.limits.receive_buffer
    while c.rcv_limit >> c.rcv_scale > 65535 and c.rcv_scale < 14:
        c.rcv_scale += 1
    c.flags |= F_SACK | F_TIMESTAMPS | F_SCALE
    c.rto = RTO_INITIAL_NS
    c.quick_acks = QUICK_ACKS
    c.peer_mss = DEFAULT_MSS_V4 if v4 else DEFAULT_MSS_V6
    fit_mss(c)
    congestion_open(c)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _take_syn(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], s: cython.pointer[Segment]) -> cython.void:
    """What the peer's SYN says: its sequence number and which options both sides can use."""
    c.irs = s.seq
    c.rcv_nxt = s.seq + 1
    c.rcv_up = c.rcv_nxt
    c.last_ack_sent = c.rcv_nxt
    if s.mss:
        c.peer_mss = s.mss if s.mss > LEAST_MSS else LEAST_MSS
    if s.has_window_scale:
        c.snd_scale = s.window_scale
    else:
        c.flags &= ~cython.cast(uint32_t, F_SCALE)
        c.rcv_scale = 0
        if c.rcv_limit > 65535:
            c.rcv_limit = 65535
    c.rcv_edge = c.rcv_nxt + min(c.rcv_limit, cython.cast(uint32_t, 65535))    # as our own SYN says
    if not s.sack_permitted:
        c.flags &= ~cython.cast(uint32_t, F_SACK)
    if s.has_timestamp:
        c.ts_recent = s.ts_value
        c.ts_recent_at = t.net.now
    else:
        c.flags &= ~cython.cast(uint32_t, F_TIMESTAMPS)
    c.snd_wnd = s.window        # a SYN's window is not scaled
    c.snd_wnd_max = s.window
    c.snd_wl1 = s.seq
    c.snd_wl2 = s.ack if s.flags & ACK else c.iss
    fit_mss(c)
    congestion_open(c)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _in_syn_sent(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], view: cython.pointer[cython.const[IpView]],
                 s: cython.pointer[Segment]) -> cython.int:
    """RFC 9293 3.10.7.3."""
    if s.flags & ACK and (seq_le(s.ack, c.iss) or seq_lt(c.snd_max, s.ack)):
        reply_reset(t, view, s)
        return TCP_ACK_UNACCEPTABLE
    if s.flags & RST:
        if not s.flags & ACK:
            return TCP_NO_CONNECTION
        count(t.net, TCP_RESETS_RECEIVED, 1)
        count(t.net, TCP_CONNECT_FAILURES, 1)
        tcb_close(t, c, ECONNREFUSED)
        return DELIVERED
    if not s.flags & SYN:
        return TCP_FLAGS
    _take_syn(t, c, s)
    if not s.flags & ACK:       # simultaneous open (RFC 9293 figure 7)
        c.snd_nxt = c.iss
        set_state(t, c, RCV_SYN)
        c.flags |= F_SYN_DUE
        tcb_dirty(t, c)
        return DELIVERED
    set_state(t, c, RCV_SYN_ACK)
    process_ack_of_syn(t, c, s)
    c.close_at = 0
    c.flags |= F_ACK_NOW | F_REPORTED
    tcb_news(t, c, NEWS_CONNECTED)
    tcb_dirty(t, c)
    if s.length or s.flags & FIN:       # data with the SYN-ACK
        s.seq += 1
        receive_data(t, c, s)
        if s.flags & FIN:
            receive_fin(t, c, s)
    tcb_arm(t, c)
    return DELIVERED


# -- connections go on ----------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _in_connection(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], view: cython.pointer[cython.const[IpView]],
                   s: cython.pointer[Segment]) -> cython.int:
    """RFC 9293 3.10.7.4, checks first, effects after."""
    verdict: cython.int
    if c.state == SYN_RECEIVED and s.flags & (SYN | RST) == SYN and s.seq == c.irs:
        if not s.flags & ACK:           # the SYN again: our SYN-ACK was lost
            c.flags |= F_SYN_DUE
            tcb_dirty(t, c)
            return TCP_DUPLICATE
        s.seq += 1                      # simultaneous open: the peer's SYN-ACK acknowledges our SYN
        s.flags &= ~cython.cast(cython.int, SYN)
        s.window >>= c.snd_scale        # it is not scaled (RFC 7323 2.2), and will be taken as if it were
    if c.flags & F_TIMESTAMPS and not s.flags & RST:
        verdict = _check_timestamp(t, c, s)
        if verdict:
            return verdict
    if s.flags & (SYN | RST) == SYN:    # wherever it lies (RFC 5961 4.2)
        challenge(t, c)
        return TCP_SYN_CHALLENGED
    verdict = _check_sequence(t, c, s)
    if verdict:
        if verdict == TCP_DUPLICATE and _acks_news(c, s):
            s.length = 0
            s.flags &= ~cython.cast(cython.int, FIN)
            _effects(t, c, view, s)
        return verdict
    if s.flags & RST:
        return _reset(t, c, s)
    if not s.flags & ACK:
        return TCP_FLAGS
    if c.flags & F_TIMESTAMPS and seq_le(s.seq, c.last_ack_sent):       # RFC 7323 4.3
        c.ts_recent = s.ts_value
        c.ts_recent_at = t.net.now
    if c.state == SYN_RECEIVED:
        verdict = _establish(t, c, view, s)
        if verdict:
            return verdict
    elif seq_lt(c.snd_max, s.ack) or seq_lt(s.ack, c.snd_una - c.snd_wnd_max):
        challenge(t, c)                 # RFC 5961 5.2
        return TCP_ACK_UNACCEPTABLE
    return _effects(t, c, view, s)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _acks_news(c: cython.pointer[cython.const[Tcb]], s: cython.pointer[cython.const[Segment]]) -> cython.bint:
    """Does a duplicate of what came lately acknowledge more than we knew?

    RFC 9293 drops it whole. But two ends that both lost the other's ACKs only repeat themselves, and each ignored all the
    other says: BSD goes on to the ACK here, and so do we.
    """
    return (s.flags & ACK and c.state >= ESTABLISHED and c.rcv_nxt - s.seq <= c.rcv_limit
            and seq_lt(c.snd_una, s.ack) and seq_le(s.ack, c.snd_max))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _effects(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], view: cython.pointer[cython.const[IpView]],
             s: cython.pointer[Segment]) -> cython.int:
    """An acceptable segment: acknowledgment, data, FIN."""
    verdict: cython.int
    process_ack(t, c, s)
    if c.state >= FIN_WAIT_1 and c.flags & F_FIN_SENT and c.snd_una == c.snd_max:
        _fin_acknowledged(t, c)
        if c.state == CLOSED:
            return DELIVERED
    if s.flags & URG and s.urgent:      # urgent data are delivered in line (RFC 6093 6)
        c.rcv_up = seq_max(c.rcv_up, s.seq + s.urgent)
    verdict = DELIVERED
    if s.length:
        if c.state != ESTABLISHED and c.state != FIN_WAIT_1 and c.state != FIN_WAIT_2:
            owe_ack(t, c)               # beyond the peer's own FIN
            verdict = TCP_AFTER_CLOSE
        elif c.flags & F_RELEASED:      # nobody will read it (RFC 9293 3.6.1, RFC 2525 2.17)
            send_reset(t, c)
            tcb_close(t, c, ECONNRESET)
            return TCP_AFTER_CLOSE
        else:
            verdict = receive_data(t, c, s)
    if (s.flags & FIN or c.flags & F_FIN_ARRIVED) and receive_fin(t, c, s):
        verdict = DELIVERED
    if c.flags & F_KEEPALIVE:
        c.keepalive_at = t.net.now + c.keepalive_idle_s * S
        c.probes = 0
    tcb_arm(t, c)
    return verdict


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _check_timestamp(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], s: cython.pointer[Segment]) -> cython.int:
    """PAWS (RFC 7323 5): 0, or the verdict of a segment from the past."""
    if not s.has_timestamp:
        return TCP_PAWS                 # RFC 7323 3.2
    if cython.likely(seq_le(c.ts_recent, s.ts_value)):
        return 0
    if t.net.now - c.ts_recent_at > TS_RECENT_LIFE_NS:
        return 0
    answer(t, c, s)
    return TCP_PAWS


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _check_sequence(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], s: cython.pointer[Segment]) -> cython.int:
    """Is any of it in the window? 0, or the verdict; what is not acceptable is answered with an ACK."""
    window: uint32_t = c.rcv_edge - c.rcv_nxt if seq_lt(c.rcv_nxt, c.rcv_edge) else 0
    length: uint32_t = s.length
    if s.flags & SYN:           # beside RST only
        length += 1
    if s.flags & FIN:
        length += 1
    if cython.likely(s.seq == c.rcv_nxt):
        if length == 0 or window:
            return 0
        s.length = 0            # a closed window: the data go, ACK and RST count (RFC 9293 3.10.7.4)
        s.flags &= ~cython.cast(cython.int, FIN)
        owe_ack(t, c)
        return 0
    if length == 0:             # a sender that has filled the window acknowledges from its edge; RST has no such excuse
        if seq_lt(c.rcv_nxt, s.seq) and seq_lt(s.seq, c.rcv_nxt + window + (0 if s.flags & RST else 1)):
            return 0
    elif window and seq_lt(s.seq, c.rcv_nxt + window) and seq_lt(c.rcv_nxt, s.seq + length):
        return 0
    if s.flags & RST:
        return TCP_OUT_OF_WINDOW
    if c.state == TIME_WAIT and s.flags & FIN:
        tcb_time_wait(t, c)     # our last ACK was lost: the wait begins again
    answer(t, c, s)
    return TCP_DUPLICATE if seq_le(s.seq + length, c.rcv_nxt) else TCP_OUT_OF_WINDOW


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _reset(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], s: cython.pointer[Segment]) -> cython.int:
    """RST in the window counts only at its left edge; elsewhere it is challenged (RFC 5961 3.2)."""
    if s.seq != c.rcv_nxt:
        challenge(t, c)
        return TCP_RESET_CHALLENGED
    count(t.net, TCP_RESETS_RECEIVED, 1)
    if c.state == SYN_RECEIVED:
        tcb_close(t, c, ECONNREFUSED)
    elif c.state >= CLOSING:
        tcb_close(t, c, 0)
    else:
        tcb_close(t, c, ECONNRESET)
    return DELIVERED


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _establish(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], view: cython.pointer[cython.const[IpView]],
               s: cython.pointer[Segment]) -> cython.int:
    """The ACK of our SYN in SYN-RECEIVED. 0, or the verdict when it is not."""
    listener: cython.pointer[Listener]
    if seq_le(s.ack, c.snd_una) or seq_lt(c.snd_max, s.ack):
        reply_reset(t, view, s)
        return TCP_ACK_UNACCEPTABLE
    if c.listener >= 0:
        listener = cython.address(t.listeners[c.listener])
        if listener.waiting + listener.held >= listener.backlog:    # the application is behind: the peer will try again
            return TCP_BACKLOG_FULL
        listener.waiting += 1
        c.flags |= F_ACCEPTING
        count(t.net, TCP_PASSIVE_OPENS, 1)
    set_state(t, c, RCV_ACK_OF_SYN)
    process_ack_of_syn(t, c, s)
    c.close_at = 0
    c.flags |= F_REPORTED
    tcb_news(t, c, NEWS_ACCEPTED if c.listener >= 0 else NEWS_CONNECTED)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _fin_acknowledged(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """Our FIN has arrived."""
    if c.state == FIN_WAIT_1:
        set_state(t, c, RCV_ACK_OF_FIN)
        c.rto_at = 0
        if c.flags & F_RELEASED:
            tcb_fin_wait_2(t, c)
    elif c.state == CLOSING:
        set_state(t, c, RCV_ACK_OF_FIN)
        tcb_time_wait(t, c)
    elif c.state == LAST_ACK:
        tcb_close(t, c, 0)


# -- ICMP -----------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _errno_of(kind: cython.int) -> int32_t:
    """As Linux maps unreachable codes (RFC 1122 4.2.3.9 tells hard from soft)."""
    if kind == UNREACHABLE_PORT:
        return ECONNREFUSED
    if kind == UNREACHABLE_PROTOCOL:
        return ENOPROTOOPT
    if kind == UNREACHABLE_ADMIN:
        return EACCES
    if kind == UNREACHABLE_TOO_BIG:
        return EMSGSIZE
    if kind == UNREACHABLE_HOST:
        return EHOSTUNREACH
    return ENETUNREACH


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tcp_error(t: cython.pointer[TcpTable], error: cython.pointer[cython.const[IcmpError]]) -> cython.void:
    """Unreachable ends a connection that is being opened; later it is only remembered (RFC 5927 6)."""
    c: cython.pointer[Tcb] = tcb_find(t, cython.address(error.destination), cython.address(error.source),
                                      error.destination_port, error.source_port)
    if c is cython.NULL or seq_lt(error.sequence, c.snd_una) or not seq_lt(error.sequence, c.snd_max):
        return
    c.soft_error = _errno_of(error.kind)
    if c.state == SYN_SENT and error.kind <= UNREACHABLE_ADMIN:
        count(t.net, TCP_CONNECT_FAILURES, 1)
        tcb_close(t, c, c.soft_error)
