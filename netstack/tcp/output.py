"""Sending: which octets may go now, and the segments that carry them (RFC 9293 3.8, 5681, 6675)."""

import cython
from cython.cimports.libc.errno import ENETUNREACH
from cython.cimports.libc.stdint import int32_t, int64_t, uint8_t, uint16_t, uint32_t
from cython.cimports.libc.string import memcpy
from cython.cimports.mm.frame import TSO4, TSO6, TX_CHECKSUM
from cython.cimports.mm.hw import store16
from cython.cimports.netstack.counters import (
    TCP_OCTETS_SENT, TCP_RESETS_SENT, TCP_RETRANSMITS, TCP_SEGMENTS_SENT, TCP_ZERO_WINDOW_PROBES)
from cython.cimports.netstack.ip import (
    HOP_LIMIT, PACKET_START, PROTOCOL_TCP, Path, ip_send, path_resolve, write_headers)
from cython.cimports.netstack.neighbor import Neighbor, neighbor_at, neighbor_hold, neighbor_use
from cython.cimports.netstack.net import LOOPBACK, Net, Packet, count, count_unsent, packet_new
from cython.cimports.netstack.tcp.congestion import congestion_restart, first_hole, pipe
from cython.cimports.netstack.tcp.ring import ring_parts
from cython.cimports.netstack.tcp.state import (
    CLOSE_WAIT, CLOSED, CLOSING, ESTABLISHED, FIN_WAIT_1, LAST_ACK, SEND_FIN, SYN_RECEIVED, SYN_SENT)
from cython.cimports.netstack.tcp.tcb import (
    F_ACK_NOW, F_CWND_LIMITED, F_DIRTY, F_FIN_QUEUED, F_FIN_SENT, F_KEEPALIVE_DUE, F_NODELAY, F_PROBE, F_RECOVERY,
    F_RETRANSMIT, F_RTO_RECOVERY, F_SACK, F_SCALE, F_SYN_DUE, F_TAIL_PROBE, F_TAIL_PROBED, F_TIMESTAMPS,
    receive_room, set_state, tcb_arm, tcb_dirty, tcb_reap)
from cython.cimports.netstack.verdict import NO_MEMORY, TCP_MULTICAST
from cython.cimports.netstack.wire.address import Addr, is_v4
from cython.cimports.netstack.wire.checksum import fold, sum_octets, sum_odd, sum_pseudo
from cython.cimports.netstack.wire.tcp import (
    ACK, FIN, PSH, RST, SYN, TCP_CHECKSUM_OFFSET, TCP_HEADER, Range, seq_le, seq_lt, seq_max, seq_min, write_header,
    write_sack, write_syn_options, write_timestamp)

MS = cython.declare(int64_t, 1_000_000)
RTO_MAX_NS = cython.declare(int64_t, 60_000_000_000)    # RFC 6298 2.5: at least 60 s
PROBE_SLACK_NS = cython.declare(int64_t, 2_000_000)     # the loop's timer is no finer than 1 ms, at both ends
MAX_ACK_DELAY_NS = cython.declare(int64_t, 40_000_000)  # of a peer that delays ACKs: Linux's and ours
LARGEST = cython.declare(uint32_t, 65535)               # IP total length of a super-segment
EMITTED = cython.declare(cython.int, 1)
HELD = cython.declare(cython.int, 2)                    # waits for its neighbor; no frame now


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def timestamp_now(t: cython.pointer[cython.const[TcpTable]], c: cython.pointer[cython.const[Tcb]]) -> uint32_t:
    """Our timestamp clock: milliseconds from a secret offset (RFC 7323 5.4)."""
    return cython.cast(uint32_t, t.net.now // MS) + c.ts_offset


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def rto_now(t: cython.pointer[cython.const[TcpTable]], c: cython.pointer[cython.const[Tcb]]) -> int64_t:
    """The retransmission timeout, doubled once for each timeout in a row (RFC 6298 5.5)."""
    rto: int64_t = c.rto << min(cython.cast(cython.int, c.backoff), 16)
    return RTO_MAX_NS if rto > RTO_MAX_NS else rto


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def patience(t: cython.pointer[cython.const[TcpTable]], c: cython.pointer[cython.const[Tcb]]) -> int64_t:
    """How long to wait for an answer now: `rto_now`, but not beyond the user timeout of a peer that is silent already."""
    wait: int64_t = rto_now(t, c)
    if c.user_timeout_ms and c.backoff:
        wait = min(wait, max(c.stuck_at + c.user_timeout_ms * MS - t.net.now, MS))
    return wait


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def path_to_peer(net: cython.pointer[Net], path: cython.pointer[Path],
                 source: cython.pointer[cython.const[Addr]]) -> cython.int:
    """The way from `source` to path.destination. TCP never speaks to a group (RFC 9293 MUST-57, RFC 1122 4.2.3.10)."""
    verdict: cython.int = path_resolve(net, path, source)
    if verdict == 0 and path.neighbor < 0 and path.interface != LOOPBACK:
        path.generation = 0
        return TCP_MULTICAST
    return verdict


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def path_refresh(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.bint:
    """Look the way up again after routes, addresses or links changed."""
    source: Addr
    if cython.likely(c.path.generation == t.net.generation):
        return True
    source = c.path.source
    if path_to_peer(t.net, cython.address(c.path), cython.address(source)):
        c.path.source = source                  # the connection's identity, route or not
        c.path.generation = 0
        c.soft_error = ENETUNREACH
        return False
    fit_mss(c)
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def fit_mss(c: cython.pointer[Tcb]) -> cython.void:
    """Payload per segment: what the peer takes and the path carries, less our usual options (RFC 6691)."""
    headers: uint32_t = 40 if is_v4(cython.address(c.path.destination)) else 60
    room: uint32_t = c.path.mtu - headers if c.path.mtu > headers + 28 else 28     # RFC 791: MTUs are 68 and more
    if c.peer_mss and c.peer_mss < room:
        room = c.peer_mss
    if c.flags & F_TIMESTAMPS:
        room -= 12
    c.mss = cython.cast(uint16_t, room)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _window_field(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> uint16_t:
    """Announce the receive window: never shrunk, and opened only by worthwhile steps (RFC 9293 3.8.6.2.2)."""
    room: uint32_t = receive_room(t, c)
    edge: uint32_t = c.rcv_nxt + room
    step: uint32_t = min(c.rcv_limit >> 1, cython.cast(uint32_t, c.mss))
    unit: uint32_t = cython.cast(uint32_t, 1) << c.rcv_scale
    field: uint32_t
    if seq_lt(edge, c.rcv_edge + step):
        edge = seq_max(c.rcv_edge, c.rcv_nxt)
    field = edge - c.rcv_nxt
    if ((field + unit - 1) >> c.rcv_scale << c.rcv_scale) + c.receive.used <= c.rcv_limit + unit:
        field += unit - 1       # rounding down would take back what was promised
    field >>= c.rcv_scale
    if field > 65535:
        field = 65535
    c.rcv_edge = seq_max(c.rcv_edge, c.rcv_nxt + (field << c.rcv_scale))
    return cython.cast(uint16_t, field)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _sack_blocks(c: cython.pointer[Tcb], blocks: cython.pointer[Range], limit: uint32_t) -> uint32_t:
    """The range that changed last goes first, then the others (RFC 2018 4)."""
    n: uint32_t = 0
    i: uint32_t
    for i in range(c.gap_count):
        if seq_le(c.gaps[i].start, c.last_gap) and seq_lt(c.last_gap, c.gaps[i].end):
            blocks[0] = c.gaps[i]
            n = 1
            break
    for i in range(c.gap_count):
        if n >= limit:
            break
        if n and c.gaps[i].start == blocks[0].start:
            continue
        blocks[n] = c.gaps[i]
        n += 1
    return n


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _options(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], out: cython.pointer[uint8_t],
             flags: cython.int, n: uint32_t) -> uint32_t:
    """Write the options of one segment; returns their octets."""
    blocks: Range[4]
    used: uint32_t = 0
    headers: uint32_t
    if flags & SYN:
        headers = 40 if is_v4(cython.address(c.path.destination)) else 60
        return write_syn_options(
            out, cython.cast(uint16_t, min(c.path.mtu - headers, cython.cast(uint32_t, 65535 - 60))),
            (c.flags & F_SACK) != 0, (c.flags & F_TIMESTAMPS) != 0, timestamp_now(t, c), c.ts_recent,
            c.rcv_scale if c.flags & F_SCALE else -1)
    if c.flags & F_TIMESTAMPS:
        used = write_timestamp(out, timestamp_now(t, c), c.ts_recent)
    if n == 0 and c.gap_count and c.flags & F_SACK:
        headers = 44 if is_v4(cython.address(c.path.destination)) else 64
        used += write_sack(out + used, blocks, _sack_blocks(
            c, blocks, min(cython.cast(uint32_t, 3 if used else 4), (c.path.mtu - headers - used) >> 3)))
    return used


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _checksum(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], f: cython.pointer[TxFrame], at: uint32_t,
              length: uint32_t) -> cython.void:
    """Complete the checksum, or leave the pseudo header's sum for the device to go on from."""
    acc: uint32_t = sum_pseudo(cython.address(c.path.source), cython.address(c.path.destination), PROTOCOL_TCP, length)
    if t.net.interfaces[c.path.interface].features & TX_CHECKSUM:
        store16(cython.address(f.head[at + TCP_CHECKSUM_OFFSET]), ~fold(acc))
        f.checksum_start = cython.cast(uint16_t, at)
        f.checksum_offset = TCP_CHECKSUM_OFFSET
        return
    f.checksum_start = 0
    acc = sum_octets(cython.address(f.head[at]), f.head_length - at, acc)
    acc = sum_octets(f.part[0], f.part_length[0], acc)
    if f.part_length[1]:
        if f.part_length[0] & 1:
            acc = sum_odd(f.part[1], f.part_length[1], acc)
        else:
            acc = sum_octets(f.part[1], f.part_length[1], acc)
    store16(cython.address(f.head[at + TCP_CHECKSUM_OFFSET]), fold(acc))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _emit(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], f: cython.pointer[TxFrame], seq: uint32_t, n: uint32_t,
          flags: cython.int) -> cython.int:
    """Build the segment [seq, seq + n) of the send ring. 0: there is no way to the peer; else EMITTED or HELD."""
    at: uint32_t
    used: uint32_t
    neighbor: cython.pointer[Neighbor]
    if not path_refresh(t, c):
        return 0
    at = 34 if is_v4(cython.address(c.path.destination)) else 54
    used = _options(t, c, cython.address(f.head[at + TCP_HEADER]), flags, n)
    if flags & SYN:     # the window of a SYN is never scaled (RFC 7323 2.2)
        c.rcv_edge = c.rcv_nxt + min(c.rcv_limit, cython.cast(uint32_t, 65535))
        write_header(cython.address(f.head[at]), c.local_port, c.remote_port, seq, c.rcv_nxt, used,
                     cython.cast(uint8_t, flags), cython.cast(uint16_t, c.rcv_edge - c.rcv_nxt))
    else:
        write_header(cython.address(f.head[at]), c.local_port, c.remote_port, seq, c.rcv_nxt, used,
                     cython.cast(uint8_t, flags), _window_field(t, c))
    write_headers(t.net, cython.address(c.path), PROTOCOL_TCP, HOP_LIMIT, TCP_HEADER + used + n, f.head)
    f.head_length = cython.cast(uint16_t, at + TCP_HEADER + used)
    f.length = f.head_length + n
    f.l3_offset = 14
    f.family = 4 if at == 34 else 6
    f.segment_size = c.mss if n > c.mss else 0
    f.part_length[0] = 0
    f.part_length[1] = 0
    if n:
        f.part_length[0] = ring_parts(cython.address(c.send), seq - c.snd_una, n,
                                      cython.address(f.part[0]), cython.address(f.part[1]))
        f.part_length[1] = n - f.part_length[0]
    _checksum(t, c, f, at, TCP_HEADER + used + n)
    _acknowledged(t, c, flags)
    count(t.net, TCP_SEGMENTS_SENT, (n + c.mss - 1) // c.mss if n > c.mss else 1)
    if c.path.neighbor < 0:
        memcpy(f.head, c.path.mac, 6)
        return EMITTED
    neighbor = neighbor_at(t.net, c.path.neighbor)
    if cython.likely(neighbor_use(t.net, neighbor)):
        memcpy(f.head, neighbor.mac, 6)
        return EMITTED
    _hold(t, f, neighbor)
    return HELD


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _acknowledged(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], flags: cython.int) -> cython.void:
    """Every segment with ACK settles what was owed."""
    if flags & ACK:
        c.last_ack_sent = c.rcv_nxt
        c.unacked = 0
        c.ack_at = 0
        c.flags &= ~cython.cast(uint32_t, F_ACK_NOW)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _hold(t: cython.pointer[TcpTable], f: cython.pointer[TxFrame], neighbor: cython.pointer[Neighbor]) -> cython.void:
    """Copy a frame whose next hop is not known yet and let it wait there."""
    p: cython.pointer[Packet] = packet_new(f.length, 0)
    if p is cython.NULL:
        count_unsent(t.net, NO_MEMORY)
        return
    memcpy(p.octets, f.head, f.head_length)
    if f.part_length[0]:        # an unused part may be NULL
        memcpy(p.octets + f.head_length, f.part[0], f.part_length[0])
    if f.part_length[1]:
        memcpy(p.octets + f.head_length + f.part_length[0], f.part[1], f.part_length[1])
    p.length = f.length
    p.l3_offset = f.l3_offset
    p.family = f.family
    p.checksum_start = f.checksum_start
    p.checksum_offset = f.checksum_offset
    p.segment_size = f.segment_size
    neighbor_hold(t.net, neighbor, p)


# -- what to send ---------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _count_octets(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], seq: uint32_t, n: uint32_t) -> cython.void:
    """Count what of [seq, seq + n) was never sent before."""
    if seq_lt(c.snd_max, seq + n):
        n = seq + n - seq_max(seq, c.snd_max)
        count(t.net, TCP_OCTETS_SENT, n)
        c.octets_sent += n


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _sent(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], seq: uint32_t, payload: uint32_t,
          control: uint32_t) -> cython.void:
    """Account for a segment: `payload` octets from `seq` on, and 1 for SYN or FIN."""
    end: uint32_t = seq + payload + control
    if seq_lt(seq, c.snd_max):
        c.retransmits += 1
        if c.flags & (F_RECOVERY | F_RTO_RECOVERY):
            c.high_rxt = seq_max(c.high_rxt, seq + payload)
        count(t.net, TCP_RETRANSMITS, 1)
        if c.timed_at and seq_lt(seq, c.timed_seq):     # Karn's rule: what is sent twice is not timed
            c.timed_at = 0
    elif c.timed_at == 0:
        c.timed_at = t.net.now
        c.timed_seq = end
    if payload:
        _count_octets(t, c, seq, payload)
    if seq_lt(c.snd_nxt, end):
        c.snd_nxt = end
    if seq_lt(c.snd_max, end):
        c.snd_max = end
    if c.rto_at == 0:
        c.rto_at = t.net.now + rto_now(t, c)
    tail_arm(t, c)
    c.persist_at = 0
    c.sent_at = t.net.now


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tail_arm(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """(Re)start the timer of the tail loss probe, where it is earlier than the retransmission's (RFC 8985 7.2)."""
    wait: int64_t = 2 * c.srtt + PROBE_SLACK_NS
    c.tail_at = 0
    if (c.srtt == 0 or c.flags & (F_SACK | F_RECOVERY | F_RTO_RECOVERY) != F_SACK or c.send.used == 0
            or (c.flags & F_TAIL_PROBED and c.sacked_count == 0) or c.state < ESTABLISHED or c.snd_una == c.snd_max):
        return
    if c.snd_max - c.snd_una <= c.mss:
        wait += MAX_ACK_DELAY_NS
    if t.net.now + wait < c.rto_at:
        c.tail_at = t.net.now + wait


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _send_syn(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], f: cython.pointer[TxFrame]) -> cython.int:
    """SYN, or SYN-ACK in SYN-RECEIVED."""
    done: cython.int
    c.flags &= ~cython.cast(uint32_t, F_SYN_DUE | F_ACK_NOW)
    done = _emit(t, c, f, c.iss, 0, SYN if c.state == SYN_SENT else SYN | ACK)
    _sent(t, c, c.iss, 0, 1)
    tcb_arm(t, c)
    return done


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _acceptable(c: cython.pointer[cython.const[Tcb]]) -> uint32_t:
    """The number of a segment without data: snd_max, or, where a probe or a shrunk window left that, the window's edge."""
    if c.state == SYN_RECEIVED:
        return c.snd_max
    return seq_min(c.snd_max, c.snd_una + c.snd_wnd)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _send_ack(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], f: cython.pointer[TxFrame]) -> cython.int:
    """A segment without data."""
    done: cython.int
    if c.acks_owed:
        c.acks_owed -= 1
    done = _emit(t, c, f, c.snd_una - 1 if c.flags & F_KEEPALIVE_DUE else _acceptable(c), 0, ACK)
    c.flags &= ~cython.cast(uint32_t, F_KEEPALIVE_DUE)
    if done == 0:
        c.acks_owed = 0
        c.flags &= ~cython.cast(uint32_t, F_ACK_NOW)
    return done


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _retransmission(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], seq: cython.pointer[uint32_t]) -> uint32_t:
    """Octets loss recovery wants sent again, from seq[0] on; 0: none now (RFC 6675 5, RFC 6582 3.2)."""
    end: uint32_t
    if c.flags & F_RETRANSMIT:
        c.flags &= ~cython.cast(uint32_t, F_RETRANSMIT)
        end = seq_min(c.snd_una + c.mss, seq_min(c.snd_una + c.send.used, c.snd_max))
        if c.sacked_count:
            end = seq_min(end, c.sacked[0].start)
        if seq_lt(c.snd_una, end):
            seq[0] = c.snd_una
            c.head_again = c.snd_max
            return end - c.snd_una
    return _hole(t, c, seq, True)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _hole(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], seq: cython.pointer[uint32_t],
          lost: cython.bint) -> uint32_t:
    """Octets of the next hole between SACKed ranges, if cwnd has room for them; one segment if they may not be lost."""
    end: uint32_t
    limit: uint32_t
    in_flight: uint32_t
    hole: Range
    if c.flags & (F_RECOVERY | F_SACK) != F_RECOVERY | F_SACK:
        return 0
    in_flight = pipe(c)
    if in_flight + c.mss > c.cwnd or not first_hole(c, cython.address(hole), lost):
        return 0
    limit = c.cwnd - in_flight
    limit -= limit % c.mss
    limit = min(limit, _super_size(t, c)) if lost else c.mss
    end = seq_min(seq_min(hole.end, c.snd_una + c.send.used), hole.start + limit)
    if not seq_lt(hole.start, end):
        return 0
    seq[0] = hole.start
    if hole.start == c.snd_una:
        c.head_again = c.snd_max
    return end - hole.start


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _tail(c: cython.pointer[Tcb], seq: cython.pointer[uint32_t]) -> uint32_t:
    """Octets of the tail loss probe, if it is due: the last segment, when nothing new may go instead (RFC 8985 7.3)."""
    end: uint32_t = seq_min(c.snd_una + c.send.used, c.snd_max)
    if not c.flags & F_TAIL_PROBE:
        return 0
    c.flags &= ~cython.cast(uint32_t, F_TAIL_PROBE)
    if c.flags & (F_RECOVERY | F_RTO_RECOVERY) or not seq_lt(c.snd_una, end):
        return 0
    seq[0] = seq_max(c.snd_una, end - c.mss)
    return end - seq[0]


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _super_size(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> uint32_t:
    """The most payload one frame may carry: one MSS, or a multiple where the device splits.

    Never more than a quarter of the window: a frame may be lost whole, and only what follows it tells of that.
    """
    most: uint32_t
    v4: cython.bint = is_v4(cython.address(c.path.destination))
    if not t.net.interfaces[c.path.interface].features & (TSO4 if v4 else TSO6):
        return c.mss
    most = min(LARGEST - 100, min(c.cwnd, c.snd_wnd_max) >> 2)
    return most - most % c.mss if most > c.mss else c.mss


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _new_data(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> uint32_t:
    """Octets from snd_nxt on that windows, Nagle and silly-window avoidance let go now (RFC 9293 3.7.4, 3.8.6.2.1)."""
    offset: uint32_t
    available: uint32_t
    window: uint32_t
    congestion: uint32_t
    can: uint32_t
    in_flight: uint32_t
    i: uint32_t
    for i in range(c.sacked_count):     # after a timeout: skip what the peer already has
        if seq_le(c.sacked[i].start, c.snd_nxt) and seq_lt(c.snd_nxt, c.sacked[i].end):
            c.snd_nxt = c.sacked[i].end
    offset = c.snd_nxt - c.snd_una
    if offset >= c.send.used:
        return 0
    available = c.send.used - offset
    for i in range(c.sacked_count):
        if seq_lt(c.snd_nxt, c.sacked[i].start):
            available = min(available, c.sacked[i].start - c.snd_nxt)
            break
    window = c.snd_wnd - offset if c.snd_wnd > offset else 0
    in_flight = pipe(c)
    if c.snd_una == c.snd_max and t.net.now - c.sent_at > rto_now(t, c):
        congestion_restart(c)
    congestion = c.cwnd - in_flight if c.cwnd > in_flight else 0
    can = min(available, min(window, congestion))
    c.flags &= ~cython.cast(uint32_t, F_CWND_LIMITED)
    if congestion < available and congestion <= window:
        c.flags |= F_CWND_LIMITED
    if can >= c.mss:
        can = min(can, _super_size(t, c))
        if can > c.mss:
            can -= can % c.mss
        return can
    if can and can == available and (
            c.flags & (F_NODELAY | F_FIN_QUEUED) or c.snd_nxt == c.snd_una or c.snd_nxt != c.snd_max):
        return can
    if can and window <= congestion and (can >= c.snd_wnd_max >> 1 or (offset == 0 and c.flags & F_RTO_RECOVERY)):
        return can              # the window is small, or shrank below what was sent already
    if c.rto_at == 0 and c.persist_at == 0:     # nothing in flight will bring an ACK: keep asking
        c.persist_at = t.net.now + rto_now(t, c)
        tcb_arm(t, c)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _fin_due(c: cython.pointer[Tcb], end: uint32_t) -> cython.bint:
    """Does the FIN follow directly on a segment that ends at `end`?"""
    if not c.flags & F_FIN_QUEUED or end != c.snd_una + c.send.used:
        return False
    if c.state == ESTABLISHED or c.state == CLOSE_WAIT:     # it takes room in the window; alone it probes a closed one
        return seq_lt(end, c.snd_una + c.snd_wnd) or end == c.snd_una
    if c.state == FIN_WAIT_1 or c.state == CLOSING or c.state == LAST_ACK:
        return seq_lt(c.snd_nxt, c.snd_max) and c.snd_wnd != 0     # a timeout took snd_nxt back before it
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _send_data(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], f: cython.pointer[TxFrame]) -> cython.int:
    """A segment with data or FIN, if one is due."""
    seq: uint32_t = 0
    n: uint32_t = _retransmission(t, c, cython.address(seq))
    fin: cython.bint
    flags: cython.int = ACK
    done: cython.int
    if n == 0:
        n = _new_data(t, c)
        seq = c.snd_nxt
        if n == 0:
            n = _hole(t, c, cython.address(seq), False)
        if n == 0:
            n = _tail(c, cython.address(seq))
    fin = _fin_due(c, seq + n)
    if n == 0 and not fin:
        return _send_probe(t, c, f) if c.flags & F_PROBE else 0
    c.flags &= ~cython.cast(uint32_t, F_PROBE | F_TAIL_PROBE)
    if fin:
        flags |= FIN
        c.flags |= F_FIN_SENT
        if c.state == ESTABLISHED or c.state == CLOSE_WAIT:
            set_state(t, c, SEND_FIN)
    if n and seq + n == c.snd_una + c.send.used:
        flags |= PSH
    done = _emit(t, c, f, seq, n, flags)
    _sent(t, c, seq, n, 1 if fin else 0)
    tcb_arm(t, c)
    return done


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _send_probe(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], f: cython.pointer[TxFrame]) -> cython.int:
    """What fits the window, at least one octet, on the persist timer's clock (RFC 9293 3.8.6.1).

    snd_nxt stays: the peer may well refuse the octets, and sending goes on from here when its window opens.
    """
    n: uint32_t = min(min(c.send.used, max(c.snd_wnd, 1)), cython.cast(uint32_t, c.mss))
    flags: cython.int = ACK
    done: cython.int
    c.flags &= ~cython.cast(uint32_t, F_PROBE)
    if n == 0 and c.flags & F_FIN_SENT and c.snd_una != c.snd_max:
        flags = ACK | FIN       # all that is left
    elif n == 0:
        return 0
    if c.rto_at:
        return 0
    count(t.net, TCP_ZERO_WINDOW_PROBES, 1)
    _count_octets(t, c, c.snd_una, n)
    c.snd_nxt = c.snd_una
    c.snd_max = seq_max(c.snd_max, c.snd_una + n)
    c.timed_at = 0
    done = _emit(t, c, f, c.snd_una, n, flags)
    c.persist_at = t.net.now + patience(t, c)
    tcb_arm(t, c)
    return done


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _next_segment(t: cython.pointer[TcpTable], c: cython.pointer[Tcb], f: cython.pointer[TxFrame]) -> cython.int:
    """The next segment of one connection: EMITTED, HELD, or 0 when it has nothing (more) to send."""
    done: cython.int = 0
    if c.state == CLOSED:
        return 0
    if c.state == SYN_SENT or c.state == SYN_RECEIVED:
        if c.flags & F_SYN_DUE:
            return _send_syn(t, c, f)
        if c.state == SYN_RECEIVED and c.flags & F_ACK_NOW:
            return _send_ack(t, c, f)
        return 0
    if c.acks_owed > 1:         # duplicate ACKs go out one by one: the peer counts them (RFC 5681 4.2)
        done = _send_ack(t, c, f)
        if done:
            return done
    done = _send_data(t, c, f)  # without a way to the peer this starts the timer that tries again
    if done == 0 and (c.flags & (F_ACK_NOW | F_KEEPALIVE_DUE) or c.acks_owed):
        done = _send_ack(t, c, f)
    return done


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tcp_transmit(t: cython.pointer[TcpTable], interface: uint32_t, frames: cython.pointer[TxFrame],
                 capacity: uint32_t) -> uint32_t:
    """Serve the interface's connections in turn until the burst is full or none has anything to send."""
    n: uint32_t = 0
    done: cython.int
    c: cython.pointer[Tcb]
    while n < capacity and t.dirty_head[interface] >= 0:
        c = t.blocks[t.dirty_head[interface]]
        t.dirty_head[interface] = c.dirty_next
        if c.dirty_next < 0:
            t.dirty_tail[interface] = -1
        c.flags &= ~cython.cast(uint32_t, F_DIRTY)
        if c.state != CLOSED:
            path_refresh(t, c)
            if c.path.interface != interface:   # its route moved
                tcb_dirty(t, c)
                continue
        while True:
            if n == capacity:
                tcb_dirty(t, c)
                break
            done = _next_segment(t, c, cython.address(frames[n]))
            if done == 0:
                break
            if done == EMITTED:
                n += 1
        tcb_reap(t, c)
    return n


# -- resets ---------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _reset_packet(t: cython.pointer[TcpTable], path: cython.pointer[cython.const[Path]], local: uint16_t,
                  remote: uint16_t, seq: uint32_t, ack: uint32_t, flags: cython.int) -> cython.void:
    """Queue a bare RST."""
    p: cython.pointer[Packet] = packet_new(PACKET_START + TCP_HEADER, PACKET_START)
    at: cython.pointer[uint8_t]
    if p is cython.NULL:
        count_unsent(t.net, NO_MEMORY)
        return
    p.length = TCP_HEADER
    at = p.octets + PACKET_START
    write_header(at, local, remote, seq, ack, 0, cython.cast(uint8_t, flags), 0)
    store16(at + TCP_CHECKSUM_OFFSET, fold(sum_octets(at, TCP_HEADER, sum_pseudo(
        cython.address(path.source), cython.address(path.destination), PROTOCOL_TCP, TCP_HEADER))))
    count(t.net, TCP_RESETS_SENT, 1)
    count(t.net, TCP_SEGMENTS_SENT, 1)
    ip_send(t.net, p, path, PROTOCOL_TCP, HOP_LIMIT)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def reply_reset(t: cython.pointer[TcpTable], view: cython.pointer[cython.const[IpView]],
                s: cython.pointer[cython.const[Segment]]) -> cython.void:
    """RST with the numbers RFC 9293 3.10.7.1 gives; never in answer to RST."""
    path: Path
    length: uint32_t = s.length
    if s.flags & RST:
        return
    path.destination = view.source
    path.interface = view.interface
    if path_to_peer(t.net, cython.address(path), cython.address(view.destination)):
        return
    if s.flags & ACK:
        _reset_packet(t, cython.address(path), s.destination_port, s.source_port, s.ack, 0, RST)
        return
    if s.flags & SYN:
        length += 1
    if s.flags & FIN:
        length += 1
    _reset_packet(t, cython.address(path), s.destination_port, s.source_port, 0, s.seq + length, RST | ACK)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def send_reset(t: cython.pointer[TcpTable], c: cython.pointer[Tcb]) -> cython.void:
    """Tell the peer of a synchronized connection that it is over."""
    if c.state >= SYN_RECEIVED and path_refresh(t, c):
        _reset_packet(t, cython.address(c.path), c.local_port, c.remote_port, _acceptable(c), c.rcv_nxt,
                      RST | ACK)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tcp_forget_interface(t: cython.pointer[TcpTable], interface: uint32_t) -> cython.void:
    """Move everything off an interface that is gone; loopback, always served, sends it on to where it belongs."""
    i: uint32_t
    c: cython.pointer[Tcb]
    next_one: int32_t
    for i in range(t.block_count):
        c = t.blocks[i]
        if c is not cython.NULL and c.path.interface == interface:
            c.path.interface = LOOPBACK
            c.path.generation = 0
    next_one = t.dirty_head[interface]
    t.dirty_head[interface] = -1
    t.dirty_tail[interface] = -1
    while next_one >= 0:
        c = t.blocks[next_one]
        next_one = c.dirty_next
        c.flags &= ~cython.cast(uint32_t, F_DIRTY)
        tcb_dirty(t, c)
