"""ICMP (RFC 792, 1122, 1812) and ICMPv6 (RFC 4443): echo, errors out, errors in.

Replies and errors that belong to echo requests of ours are kept for `rustosctl ping` in `Net.echoes`, errors about UDP
probes for `rustosctl traceroute` in `Net.probes`.
"""

import errno
import os

import cython
from cython.cimports.libc.stdint import int16_t, int64_t, uint8_t, uint16_t, uint32_t
from cython.cimports.libc.stdlib import calloc
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.mm.hw import get16, get32, put16, put32, store16
from cython.cimports.netstack.counters import (
    ICMP_ECHO_REPLIES_RECEIVED,
    ICMP_ECHO_REPLIES_SENT,
    ICMP_ERRORS_RECEIVED,
    ICMP_ERRORS_SENT,
    ICMP_ERRORS_SUPPRESSED,
)
from cython.cimports.netstack.ip import (
    HOP_LIMIT,
    IPV4_HEADER,
    IPV6_HEADER,
    PACKET_START,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    Path,
    ip_send,
    path_resolve,
    path_resolve_on,
)
from cython.cimports.netstack.net import LOOPBACK, NetState, Packet, count, is_local, packet_free, packet_new
from cython.cimports.netstack.verdict import (
    ANSWERED,
    DELIVERED,
    ICMP_CHECKSUM,
    ICMP_ECHO_MULTICAST,
    ICMP_TRUNCATED,
    ICMP_TYPE_UNKNOWN,
    ICMP_UNMATCHED,
    NO_MEMORY,
    TOO_BIG,
)
from cython.cimports.netstack.wire.address import (
    address_from,
    address_text,
    is_limited_broadcast,
    is_loopback,
    is_multicast,
    is_unspecified,
    is_v4,
    load_v4,
    load_v6,
    same_address,
)
from cython.cimports.netstack.wire.checksum import fold, sum_octets, sum_pseudo

from netstack.errors import unsent_error

SECOND_NS = cython.declare(int64_t, 1_000_000_000)
# type octets of ICMP (RFC 792) ...
V4_ECHO_REPLY = cython.declare(cython.int, 0)
V4_UNREACHABLE = cython.declare(cython.int, 3)
V4_SOURCE_QUENCH = cython.declare(cython.int, 4)
V4_REDIRECT = cython.declare(cython.int, 5)
V4_ECHO = cython.declare(cython.int, 8)
V4_TIME_EXCEEDED = cython.declare(cython.int, 11)
V4_PARAMETER_PROBLEM = cython.declare(cython.int, 12)
V4_TIMESTAMP = cython.declare(cython.int, 13)
V4_ADDRESS_MASK_REPLY = cython.declare(cython.int, 18)
# ... and ICMPv6 (RFC 4443)
V6_UNREACHABLE = cython.declare(cython.int, 1)
V6_TOO_BIG = cython.declare(cython.int, 2)
V6_TIME_EXCEEDED = cython.declare(cython.int, 3)
V6_PARAMETER_PROBLEM = cython.declare(cython.int, 4)
V6_ECHO = cython.declare(cython.int, 128)
V6_ECHO_REPLY = cython.declare(cython.int, 129)
V6_REDIRECT = cython.declare(cython.int, 137)


# --- messages in ----------------------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def icmp_input(net: cython.pointer[Net], view: cython.pointer[cython.const[IpView]],
               error: cython.pointer[IcmpError]) -> cython.int:
    """Take a message; its Verdict. error.protocol is not 0 when TCP or UDP must hear of it."""
    memset(error, 0, cython.sizeof(IcmpError))
    if view.length < 8:
        return ICMP_TRUNCATED
    if not view.checksum_ok and _checksum(view.payload, view.length, view.family, cython.address(view.source),
                                          cython.address(view.destination)) != 0:
        return ICMP_CHECKSUM
    kind: cython.int = view.payload[0]
    if kind == (V4_ECHO if view.family == 4 else V6_ECHO):
        return _answer_echo(net, view)
    if kind == (V4_ECHO_REPLY if view.family == 4 else V6_ECHO_REPLY):
        return _take_reply(net, view)
    kind = _error_kind(view)
    return ICMP_TYPE_UNKNOWN if kind < 0 else _take_error(net, view, kind, error)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _checksum(p: cython.pointer[cython.const[uint8_t]], n: uint32_t, family: uint8_t,
              source: cython.pointer[cython.const[Addr]], destination: cython.pointer[cython.const[Addr]]) -> uint16_t:
    """Of a whole message, in memory order: 0 when the message carries the right one."""
    acc: uint32_t = 0
    if family == 6:
        acc = sum_pseudo(source, destination, PROTOCOL_ICMPV6, n)
    return fold(sum_octets(p, n, acc))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _error_kind(view: cython.pointer[cython.const[IpView]]) -> cython.int:
    """The IcmpKind of an error message; -1: it is none that hosts act on (RFC 1122 3.2.2, RFC 6633)."""
    kind: cython.int = view.payload[0]
    code: cython.int = view.payload[1]
    if view.family == 4:
        if kind == V4_UNREACHABLE:
            return _unreachable_v4(code)
        if kind == V4_TIME_EXCEEDED:
            return TIME_EXCEEDED
        return PARAMETER_PROBLEM if kind == V4_PARAMETER_PROBLEM else -1
    if kind == V6_UNREACHABLE:
        return _unreachable_v6(code)
    if kind == V6_TOO_BIG:
        return UNREACHABLE_TOO_BIG
    if kind == V6_TIME_EXCEEDED:
        return TIME_EXCEEDED
    if kind == V6_PARAMETER_PROBLEM:
        return UNREACHABLE_PROTOCOL if code == 1 else PARAMETER_PROBLEM
    return -1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _unreachable_v4(code: cython.int) -> cython.int:
    """RFC 792, RFC 1122 3.2.2.1, RFC 1812 5.2.7.1."""
    if code == 0 or code == 5 or code == 6 or code == 11:
        return UNREACHABLE_NET
    if code == 1 or code == 7 or code == 8 or code == 12 or code == 14 or code == 15:
        return UNREACHABLE_HOST
    if code == 2:
        return UNREACHABLE_PROTOCOL
    if code == 3:
        return UNREACHABLE_PORT
    if code == 4:
        return UNREACHABLE_TOO_BIG
    return UNREACHABLE_ADMIN if code == 9 or code == 10 or code == 13 else -1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _unreachable_v6(code: cython.int) -> cython.int:
    """RFC 4443 3.1."""
    if code == 0:
        return UNREACHABLE_NET
    if code == 2 or code == 3:
        return UNREACHABLE_HOST
    if code == 4:
        return UNREACHABLE_PORT
    return UNREACHABLE_ADMIN if code == 1 or code == 5 or code == 6 else -1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _take_error(net: cython.pointer[Net], view: cython.pointer[cython.const[IpView]], kind: cython.int,
                error: cython.pointer[IcmpError]) -> cython.int:
    """Match an error with the packet of ours that it quotes: for TCP and UDP in `error`, for ping in the rows."""
    transport: cython.pointer[cython.const[uint8_t]] = _parse_quote(view, error)
    protocol: uint8_t = error.protocol
    error.protocol = 0
    if transport == cython.NULL:
        return ICMP_TRUNCATED
    if not is_local(net, cython.address(error.source)) or not same_address(
            cython.address(error.source), cython.address(view.destination)):
        return ICMP_UNMATCHED
    if protocol == PROTOCOL_TCP or protocol == PROTOCOL_UDP:
        error.source_port = get16(transport)
        error.destination_port = get16(transport + 2)
        error.sequence = get32(transport + 4) if protocol == PROTOCOL_TCP else 0
        error.kind = kind
        if kind == UNREACHABLE_TOO_BIG:
            error.mtu = get16(view.payload + 6) if view.family == 4 else get32(view.payload + 4)
        error.protocol = protocol
        if protocol == PROTOCOL_UDP and net.probes != cython.NULL:
            _keep(net, net.probes, view, error.source_port, error.destination_port, 0, kind)
        count(net, ICMP_ERRORS_RECEIVED, 1)
        return DELIVERED
    if protocol != (PROTOCOL_ICMP if view.family == 4 else PROTOCOL_ICMPV6) or transport[0] != (
            V4_ECHO if view.family == 4 else V6_ECHO):
        return ICMP_UNMATCHED
    if not _keep(net, net.echoes, view, get16(transport + 4), get16(transport + 6), 0, kind):
        return ICMP_UNMATCHED
    count(net, ICMP_ERRORS_RECEIVED, 1)
    return DELIVERED


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _parse_quote(view: cython.pointer[cython.const[IpView]],
                 error: cython.pointer[IcmpError]) -> cython.pointer[cython.const[uint8_t]]:
    """The quoted packet's addresses and protocol go to `error`; returns where its transport header starts.

    NULL: fewer than the 8 octets of it that every sender must quote, or no first fragment of a packet of the family.
    """
    p: cython.pointer[cython.const[uint8_t]] = view.payload + 8
    n: uint32_t = view.length - 8
    header: uint32_t = 40
    error.family = view.family
    if view.family == 6:
        if n < header + 8 or p[0] >> 4 != 6:
            return cython.NULL
        error.protocol = p[6]
        load_v6(cython.address(error.source), p + 8)
        load_v6(cython.address(error.destination), p + 24)
        return p + header
    if n < 20:
        return cython.NULL
    header = 4 * cython.cast(uint32_t, p[0] & 0x0F)
    if p[0] >> 4 != 4 or header < 20 or n < header + 8 or get16(p + 6) & 0x1FFF:
        return cython.NULL
    error.protocol = p[9]
    load_v4(cython.address(error.source), p + 12)
    load_v4(cython.address(error.destination), p + 16)
    return p + header


# --- echo -----------------------------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _answer_echo(net: cython.pointer[Net], view: cython.pointer[cython.const[IpView]]) -> cython.int:
    """Send the same octets back from the address that was asked.

    Broadcast and multicast ones stay unanswered in IPv4 (RFC 1122 3.2.2.6); IPv6 answers its groups from an address
    of the interface (RFC 4443 4.2).
    """
    path: Path
    bound: cython.pointer[cython.const[Addr]] = cython.address(view.destination)
    if (view.multicast or view.link_multicast) and (view.family == 4 or not view.multicast):
        return ICMP_ECHO_MULTICAST
    if view.multicast:
        bound = cython.NULL
    verdict: cython.int = _resolve_reply(net, view, bound, cython.address(path))
    if verdict != 0:
        return verdict
    if view.length + (IPV4_HEADER if view.family == 4 else IPV6_HEADER) > path.mtu:
        return TOO_BIG
    p: cython.pointer[Packet] = _message(view.length)
    if p == cython.NULL:
        return NO_MEMORY
    out: cython.pointer[uint8_t] = cython.address(p.octets[p.start])
    memcpy(out, view.payload, view.length)
    out[0] = V4_ECHO_REPLY if view.family == 4 else V6_ECHO_REPLY
    verdict = _send(net, p, cython.address(path), HOP_LIMIT)
    if verdict != 0:
        return verdict
    count(net, ICMP_ECHO_REPLIES_SENT, 1)
    return ANSWERED


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _resolve_reply(net: cython.pointer[Net], view: cython.pointer[cython.const[IpView]],
                   bound: cython.pointer[cython.const[Addr]], path: cython.pointer[Path]) -> cython.int:
    """The way back to the source of a packet; 0 or a Verdict. Never to a group or a broadcast address."""
    memset(path, 0, cython.sizeof(Path))
    path.destination = view.source
    verdict: cython.int = path_resolve_on(net, path, bound, view.interface)
    if verdict == 0 and path.neighbor < 0 and path.interface != LOOPBACK:
        return ICMP_ECHO_MULTICAST
    return verdict


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _message(n: uint32_t) -> cython.pointer[Packet]:
    """A new packet for a message of n octets; NULL: no memory."""
    p: cython.pointer[Packet] = packet_new(PACKET_START + n, PACKET_START)
    if p != cython.NULL:
        p.length = n
    return p


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _send(net: cython.pointer[Net], p: cython.pointer[Packet], path: cython.pointer[cython.const[Path]],
          hop_limit: uint8_t) -> cython.int:
    """Put the checksum in and send; 0 or the Verdict it was dropped for."""
    out: cython.pointer[uint8_t] = cython.address(p.octets[p.start])
    family: uint8_t = 4 if is_v4(cython.address(path.destination)) else 6
    store16(out + 2, 0)
    store16(out + 2, _checksum(out, p.length, family, cython.address(path.source), cython.address(path.destination)))
    return ip_send(net, p, path, PROTOCOL_ICMP if family == 4 else PROTOCOL_ICMPV6, hop_limit)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _take_reply(net: cython.pointer[Net], view: cython.pointer[cython.const[IpView]]) -> cython.int:
    if not _keep(net, net.echoes, view, get16(view.payload + 4), get16(view.payload + 6), view.length, -1):
        return ICMP_UNMATCHED
    count(net, ICMP_ECHO_REPLIES_RECEIVED, 1)
    return DELIVERED


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _keep(net: cython.pointer[Net], answers: cython.p_void, view: cython.pointer[cython.const[IpView]], identifier: uint16_t,
          sequence: uint16_t, octets: uint32_t, error: cython.int) -> cython.bint:
    """Add a row for Python; False when nobody asked with this identifier."""
    a: cython.pointer[Answers] = cython.cast(cython.pointer[Answers], answers)
    if a == cython.NULL or not _is_asking(a, identifier):
        return False
    row: cython.pointer[AnswerRow] = cython.address(a.rows[(a.first + a.count) % ANSWER_ROWS])
    if a.count == ANSWER_ROWS:
        a.first = (a.first + 1) % ANSWER_ROWS
    else:
        a.count += 1
    row.source = view.source
    row.received_at = net.now
    row.octets = octets
    row.identifier = identifier
    row.sequence = sequence
    row.hop_limit = view.hop_limit
    row.error = cython.cast(int16_t, error)
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _is_asking(a: cython.pointer[Answers], identifier: uint16_t) -> cython.bint:
    i: uint32_t
    for i in range(a.identifiers_used):
        if a.identifiers[i] == identifier:
            return True
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _ask_as(answers: cython.pointer[cython.p_void], identifier: uint16_t) -> cython.bint:
    """From now on answers with this identifier are ours; False: no memory."""
    a: cython.pointer[Answers] = cython.cast(cython.pointer[Answers], answers[0])
    if a == cython.NULL:
        a = cython.cast(cython.pointer[Answers], calloc(1, cython.sizeof(Answers)))
        if a == cython.NULL:
            return False
        answers[0] = a
    if not _is_asking(a, identifier):
        a.identifiers[a.identifiers_next] = identifier
        a.identifiers_next = (a.identifiers_next + 1) % ANSWER_IDENTIFIERS
        if a.identifiers_used < ANSWER_IDENTIFIERS:
            a.identifiers_used += 1
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def icmp_expect_probes(net: cython.pointer[Net], port: uint16_t) -> cython.bint:
    return _ask_as(cython.address(net.probes), port)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def icmp_send_echo(net: cython.pointer[Net], destination: cython.pointer[cython.const[Addr]], identifier: uint16_t,
                   sequence: uint16_t, n: uint32_t, hop_limit: uint8_t) -> cython.int:
    """Send an echo request with n octets of data; 0, or the Verdict it was dropped for."""
    path: Path
    i: uint32_t
    family: uint8_t = 4 if is_v4(destination) else 6
    memset(cython.address(path), 0, cython.sizeof(Path))
    path.destination = destination[0]
    verdict: cython.int = path_resolve(net, cython.address(path), cython.NULL)
    if verdict == 0 and (n > 65535 or 8 + n + (IPV4_HEADER if family == 4 else IPV6_HEADER) > path.mtu):
        verdict = TOO_BIG
    p: cython.pointer[Packet] = cython.NULL
    if verdict == 0:
        p = _message(8 + n)
        if p == cython.NULL or not _ask_as(cython.address(net.echoes), identifier):
            verdict = NO_MEMORY
    if verdict != 0:
        net.unsent[verdict] += 1
        packet_free(p)
        return verdict
    out: cython.pointer[uint8_t] = cython.address(p.octets[p.start])
    out[0] = V4_ECHO if family == 4 else V6_ECHO
    out[1] = 0
    put16(out + 4, identifier)
    put16(out + 6, sequence)
    for i in range(n):
        out[8 + i] = cython.cast(uint8_t, i)
    return _send(net, p, cython.address(path), hop_limit)


# --- errors out -----------------------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def icmp_send_error(net: cython.pointer[Net], view: cython.pointer[cython.const[IpView]], kind: cython.int,
                    pointer: uint32_t) -> cython.bint:
    """Answer a packet with an error unless the RFCs or the rate limit forbid it; True: sent."""
    path: Path
    own: cython.pointer[cython.const[Addr]] = cython.address(view.destination)
    if not _may_complain(view):
        return False
    if not _take_token(net):
        count(net, ICMP_ERRORS_SUPPRESSED, 1)
        return False
    if not is_local(net, own):
        own = cython.NULL
    if _resolve_reply(net, view, own, cython.address(path)) != 0:
        return False
    headers: uint32_t = (IPV4_HEADER if view.family == 4 else IPV6_HEADER) + 8
    most: uint32_t = QUOTE_IPV4 if view.family == 4 else QUOTE_IPV6
    quoted: uint32_t = min(min(view.header_length + view.length, most), path.mtu - headers)
    p: cython.pointer[Packet] = _message(8 + quoted)
    if p == cython.NULL:
        return False
    out: cython.pointer[uint8_t] = cython.address(p.octets[p.start])
    put32(out, 0)
    put32(out + 4, 0)
    if view.family == 4:
        _write_kind_v4(out, kind, pointer)
    else:
        _write_kind_v6(out, kind, pointer)
    memcpy(out + 8, view.header, quoted)
    if _send(net, p, cython.address(path), HOP_LIMIT) != 0:
        return False
    count(net, ICMP_ERRORS_SENT, 1)
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _may_complain(view: cython.pointer[cython.const[IpView]]) -> cython.bint:
    """Not about errors or later fragments, nor groups: RFC 1122 3.2.2, RFC 1812 4.3.2.7, RFC 4443 2.4 (e)."""
    source: cython.pointer[cython.const[Addr]] = cython.address(view.source)
    if view.multicast or view.link_multicast or is_multicast(source) or is_limited_broadcast(source):
        return False
    if is_unspecified(source) or (is_loopback(source) and view.interface != LOOPBACK):
        return False
    if view.family == 4:
        if get16(view.header + 6) & 0x1FFF:
            return False
        if view.protocol != PROTOCOL_ICMP:
            return True
        # the queries; of a type nobody knows one cannot tell that it is no error
        return view.length > 0 and (view.payload[0] == V4_ECHO or view.payload[0] == V4_ECHO_REPLY or (
            view.payload[0] >= V4_TIMESTAMP and view.payload[0] <= V4_ADDRESS_MASK_REPLY))
    if view.protocol != PROTOCOL_ICMPV6:
        return True
    return view.length > 0 and view.payload[0] >= V6_ECHO and view.payload[0] != V6_REDIRECT


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _take_token(net: cython.pointer[Net]) -> cython.bint:
    """The rate limit: a second's worth at once, then evenly (RFC 4443 2.4 (f)).

    `icmp_tokens_at` is when the bucket is full again (the generic cell rate algorithm), so it starts full.
    """
    if net.icmp_errors_per_second == 0:
        return False
    full_at: int64_t = max(net.icmp_tokens_at, net.now) + SECOND_NS // net.icmp_errors_per_second
    if full_at - net.now > SECOND_NS:
        return False
    net.icmp_tokens_at = full_at
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _write_kind_v4(out: cython.pointer[uint8_t], kind: cython.int, pointer: uint32_t) -> cython.void:
    out[0] = V4_UNREACHABLE
    if kind == UNREACHABLE_TOO_BIG:
        out[1] = 4
        put16(out + 6, min(pointer, 0xFFFF))        # RFC 1191 4
    elif kind == UNREACHABLE_ADMIN:
        out[1] = 13
    elif kind == TIME_EXCEEDED:
        out[0] = V4_TIME_EXCEEDED
    elif kind == PARAMETER_PROBLEM:
        out[0] = V4_PARAMETER_PROBLEM
        out[4] = cython.cast(uint8_t, min(pointer, 0xFF))
    else:
        out[1] = kind       # net, host, protocol, port are the codes 0 to 3


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _write_kind_v6(out: cython.pointer[uint8_t], kind: cython.int, pointer: uint32_t) -> cython.void:
    out[0] = V6_UNREACHABLE
    if kind == UNREACHABLE_HOST:
        out[1] = 3
    elif kind == UNREACHABLE_PORT:
        out[1] = 4
    elif kind == UNREACHABLE_ADMIN:
        out[1] = 1
    elif kind == UNREACHABLE_TOO_BIG:
        out[0] = V6_TOO_BIG
        put32(out + 4, pointer)
    elif kind == TIME_EXCEEDED:
        out[0] = V6_TIME_EXCEEDED
    elif kind == PARAMETER_PROBLEM:
        out[0] = V6_PARAMETER_PROBLEM
        put32(out + 4, pointer)
    elif kind == UNREACHABLE_PROTOCOL:
        out[0] = V6_PARAMETER_PROBLEM       # RFC 4443 3.4: unrecognized next header
        out[1] = 1
        put32(out + 4, pointer if pointer else 6)


# --- the Python face ------------------------------------------------------------------------------------------------

_KINDS = {
    UNREACHABLE_NET: (errno.ENETUNREACH, "network unreachable"),
    UNREACHABLE_HOST: (errno.EHOSTUNREACH, "host unreachable"),
    UNREACHABLE_PROTOCOL: (errno.ENOPROTOOPT, "protocol unreachable"),
    UNREACHABLE_PORT: (errno.ECONNREFUSED, "port unreachable"),
    UNREACHABLE_ADMIN: (errno.EHOSTUNREACH, "administratively prohibited"),
    UNREACHABLE_TOO_BIG: (errno.EMSGSIZE, "packet too big"),
    TIME_EXCEEDED: (errno.EHOSTUNREACH, "time exceeded"),
    PARAMETER_PROBLEM: (errno.EPROTO, "parameter problem"),
}


def icmp_exception(kind: int, host: object = None) -> OSError:
    """The exception for an ICMP error (IcmpKind) about a packet to `host`, such as ConnectionRefusedError."""
    code, text = _KINDS[kind]
    return OSError(code, os.strerror(code) + (f": {host}: {text}" if host else f": {text}"))


def send_echo(state: NetState, now: int64_t, host: object, identifier: uint16_t, sequence: uint16_t, size: uint32_t,
              hop_limit: uint8_t = 64) -> None:
    """Send an echo request with `size` octets of data (octet i is i mod 256) to an address.

    Raises ValueError for what is no address, OSError when it cannot go: ENETUNREACH, EADDRNOTAVAIL, EHOSTUNREACH,
    EMSGSIZE, ENETDOWN, EAGAIN. While the next hop is being looked for, it waits, and may end as an unsent packet.
    """
    destination: Addr
    address_from(host, cython.address(destination))
    state.net.now = now
    verdict: cython.int = icmp_send_echo(state.net, cython.address(destination), identifier, sequence, size, hop_limit)
    if verdict != 0:
        raise unsent_error(verdict, host)


def echo_replies(state: NetState) -> list:
    """What came back for our echo requests since the last call, oldest first; at most the last ANSWER_ROWS.

    Tuples of identifier, sequence, address of who answered, time of arrival (ns), hop limit on arrival, octets of the
    ICMP message, and None or what an error says ("time exceeded", "host unreachable" ...).
    """
    return _taken(state.net.echoes)


def probe_answers(state: NetState) -> list:
    """The errors that came back for our UDP probes, as `echo_replies`: the identifier is a probe's source port, the
    sequence its destination port."""
    return _taken(state.net.probes)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def icmp_answered(net: cython.pointer[cython.const[Net]]) -> cython.bint:
    """Whether `echo_replies` or `probe_answers` has something to tell."""
    return _any(net.echoes) or _any(net.probes)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _any(answers: cython.p_void) -> cython.bint:
    return answers != cython.NULL and cython.cast(cython.pointer[Answers], answers).count != 0


@cython.cfunc
def _taken(answers: cython.p_void) -> list:
    a: cython.pointer[Answers] = cython.cast(cython.pointer[Answers], answers)
    row: cython.pointer[AnswerRow]
    rows: list = []
    while a != cython.NULL and a.count:
        row = cython.address(a.rows[a.first])
        a.first = (a.first + 1) % ANSWER_ROWS
        a.count -= 1
        rows.append((row.identifier, row.sequence, address_text(cython.address(row.source)), row.received_at,
                     row.hop_limit, row.octets, None if row.error < 0 else _KINDS[row.error][1]))
    return rows
