# ICMP (RFC 792, 1122, 1812) and ICMPv6 (RFC 4443): echo, errors out, errors in.
from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t
from netstack.ip cimport IpView
from netstack.net cimport Net
from netstack.wire.address cimport Addr

# What an error message we received says about a packet of ours.
cdef struct IcmpError:
    Addr source                 # of the quoted packet: us
    Addr destination            # the peer it was meant for
    uint16_t source_port
    uint16_t destination_port
    uint32_t sequence           # TCP: the quoted sequence number
    uint32_t mtu                # fragmentation needed / packet too big, else 0
    uint8_t protocol
    uint8_t kind                # IcmpKind
    uint8_t family

cpdef enum IcmpKind:
    UNREACHABLE_NET = 0
    UNREACHABLE_HOST
    UNREACHABLE_PROTOCOL
    UNREACHABLE_PORT
    UNREACHABLE_ADMIN
    UNREACHABLE_TOO_BIG         # fragmentation needed, packet too big
    TIME_EXCEEDED
    PARAMETER_PROBLEM

cpdef enum:
    ANSWER_ROWS = 256           # answers kept until Python takes them; the oldest goes first
    ANSWER_IDENTIFIERS = 64     # of the requests sent last: answers to others are not ours
    QUOTE_IPV4 = 548            # octets of the packet an error quotes: 576 in all (RFC 1812 4.3.2.3) ...
    QUOTE_IPV6 = 1232           # ... and 1280 in all (RFC 4443 2.4 (c)), less our IP and ICMP header

# What came back for an echo request of ours, the reply or an error about it; or an error about a UDP probe of ours.
cdef struct AnswerRow:
    Addr source                 # who sent it
    int64_t received_at
    uint32_t octets             # of the ICMP message; 0 for an error
    uint16_t identifier         # of a probe: its source port
    uint16_t sequence           # of a probe: its destination port
    uint8_t hop_limit           # as it arrived
    int16_t error               # IcmpKind, -1: a reply

# Made by the first request (Net.echoes, Net.probes), so that a stack that never asks does not pay for it.
cdef struct Answers:
    AnswerRow rows[ANSWER_ROWS]
    uint32_t first              # index of the oldest row
    uint32_t count
    uint16_t identifiers[ANSWER_IDENTIFIERS]
    uint32_t identifiers_used
    uint32_t identifiers_next

# A whole ICMP or ICMPv6 message but NDP. Returns a Verdict; when it is an error message about a packet of ours, `error` is
# filled and error.protocol != 0, for the caller to hand to TCP or UDP.
cdef int icmp_input(Net *net, const IpView *view, IcmpError *error) noexcept nogil
# Answer a packet with an error, if RFC 1122 3.2.2 / RFC 4443 2.4(e) and the rate limit allow: quotes as much of it as they say.
# kind: IcmpKind; pointer: for PARAMETER_PROBLEM the offending octet, for UNREACHABLE_TOO_BIG the MTU. True: sent.
cdef bint icmp_send_error(Net *net, const IpView *view, int kind, uint32_t pointer) noexcept nogil
# From now on errors about datagrams from this port are kept for `probe_answers`. False: no memory.
cdef bint icmp_expect_probes(Net *net, uint16_t port) noexcept nogil
# An echo request of ours with `identifier`, `sequence` and n payload octets (i & 0xFF). Returns 0 or the Verdict it was dropped for.
cdef int icmp_send_echo(Net *net, const Addr *destination, uint16_t identifier, uint16_t sequence, uint32_t n, uint8_t hop_limit) noexcept nogil
# Whether there are answers to our echo requests or probes.
cdef bint icmp_answered(const Net *net) noexcept nogil
