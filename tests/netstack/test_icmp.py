"""ICMP and ICMPv6: what peers see, what they must not see, and what their errors do to us."""

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    ICMPv6Unknown,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from netstack import icmp
from tests.support.host import BROADCAST, MAC, PEER_MAC, PEER_V4, PEER_V6, SECOND, V4, V6, Host


def frame(*layers, to=MAC):
    packet = Ether(src=PEER_MAC, dst=to)
    for layer in layers:
        packet /= layer
    return packet


def ip(family, source=None, to=None, **fields):
    if family == 4:
        return IP(src=source or PEER_V4, dst=to or V4, **fields)
    return IPv6(src=source or PEER_V6, dst=to or V6, **fields)


def echo(family, data=b"octets", identifier=7, sequence=9):
    return (ICMP(type=8, id=identifier, seq=sequence) if family == 4
            else ICMPv6EchoRequest(id=identifier, seq=sequence)) / data


def right_checksum(packet):
    """Whether scapy computes the same IP and ICMP checksums."""
    fresh = packet.copy()
    layer = fresh[IP] if IP in fresh else fresh[IPv6]
    if IP in fresh:
        del layer.chksum
        del layer.payload.chksum
    else:
        del layer.payload.cksum
    return bytes(fresh) == bytes(packet)


@pytest.fixture
def host():
    host = Host()
    host.know_peer()
    host.moved()
    return host


def us(family):
    return V4 if family == 4 else V6


def peer(family):
    return PEER_V4 if family == 4 else PEER_V6


both = pytest.mark.parametrize("family", [4, 6])


# --- echo -----------------------------------------------------------------------------------------------------------

@both
@pytest.mark.parametrize("size", [0, 1, 56, 57, 1400])
def test_echo_request_comes_back_from_the_address_that_was_asked(host, family, size):
    data = bytes(i & 0xFF for i in range(size))
    assert host.receive(frame(ip(family), echo(family, data))) == "answered"
    (reply,) = host.sent()
    layer = reply[IP] if family == 4 else reply[IPv6]
    assert (reply.dst, layer.src, layer.dst) == (PEER_MAC, us(family), peer(family))
    message = layer.payload
    assert (message.type, message.code, message.id, message.seq) == (0 if family == 4 else 129, 0, 7, 9)
    assert bytes(message)[8:] == data
    assert right_checksum(reply)
    assert host.moved() == {"answered": 1, "#icmp_echo_replies_sent": 1}


@both
def test_largest_echo_that_fits_the_mtu_is_answered(host, family):
    most = 1500 - (20 if family == 4 else 40) - 8
    assert host.receive(frame(ip(family), echo(family, bytes(most)))) == "answered"
    assert len(host.sent()[0]) == 1514


def test_echo_longer_than_the_mtu_of_the_way_back_is_dropped():
    host = Host(mtu=1280)
    host.know_peer()
    assert host.receive(frame(ip(4), echo(4, bytes(1400)))) == "too_big"
    assert host.sent() == []


@both
def test_octets_behind_the_packet_are_no_part_of_the_echo(host, family):
    padded = bytes(frame(ip(family), echo(family, b"abc"))) + bytes(20)
    assert host.receive(padded) == "answered"
    reply = host.sent()[0]
    assert bytes((reply[IP] if family == 4 else reply[IPv6]).payload)[8:] == b"abc"


@pytest.mark.parametrize(("to", "mac"), [
    ("10.77.0.255", BROADCAST), ("255.255.255.255", BROADCAST), ("224.0.0.1", "01:00:5e:00:00:01")])
def test_ipv4_echo_to_everybody_is_not_answered(host, to, mac):
    assert host.receive(frame(ip(4, to=to), echo(4), to=mac)) == "icmp_echo_multicast"
    assert host.moved() == {"icmp_echo_multicast": 1}


def test_ipv4_echo_from_a_broadcast_address_is_not_answered(host):
    assert host.receive(frame(ip(4, source="10.77.0.255"), echo(4))) == "ipv4_source"
    assert host.sent() == []


@pytest.mark.parametrize("family", [4, 6])
def test_echo_to_us_in_a_broadcast_frame_is_not_answered(host, family):
    assert host.receive(frame(ip(family), echo(family), to=BROADCAST)) == "icmp_echo_multicast"
    assert host.sent() == []


@pytest.mark.parametrize(("source", "answer_from"), [(PEER_V6, V6), ("fe80::1", "fe80::ff:fe00:2")])
def test_ipv6_echo_to_all_nodes_is_answered_from_a_unicast_address(host, source, answer_from):
    # RFC 4443 4.2
    host.stack.set_neighbor(host.index, source, PEER_MAC)
    packet = frame(ip(6, source=source, to="ff02::1"), echo(6), to="33:33:00:00:00:01")
    assert host.receive(packet) == "answered"
    (reply,) = host.sent()
    assert (reply[IPv6].src, reply[IPv6].dst, reply.dst) == (answer_from, source, PEER_MAC)
    assert right_checksum(reply)


def test_echo_from_a_host_we_do_not_know_waits_for_its_mac():
    host = Host()
    assert host.receive(frame(ip(4), echo(4))) == "answered"
    (request,) = host.sent()
    assert request.type == 0x0806


def test_echo_we_have_no_way_to_answer_says_so():
    host = Host()
    assert host.receive(frame(ip(4, source="192.0.2.1"), echo(4))) == "no_route"
    assert host.sent() == []


# --- bad input ------------------------------------------------------------------------------------------------------

@both
def test_wrong_checksum_is_dropped(host, family):
    octets = bytearray(bytes(frame(ip(family), echo(family))))
    octets[-1] ^= 0x40
    assert host.receive(bytes(octets)) == "icmp_checksum"
    assert host.sent() == []


@both
def test_truncated_message_is_dropped(host, family):
    nh = {"proto": 1} if family == 4 else {"nh": 58}
    for n in range(8):
        assert host.receive(frame(ip(family, **nh), Raw(b"\x08\x00\xf7\xff\0\0\0"[:n]))) == "icmp_truncated"
    assert host.sent() == []


@pytest.mark.parametrize(("family", "kind"), [
    *((4, kind) for kind in (1, 2, 4, 5, 9, 10, 13, 15, 17, 30, 40, 255)),
    *((6, kind) for kind in (0, 5, 100, 127, 130, 131, 132, 138, 143, 200, 255))])
def test_unknown_types_are_dropped_by_name(host, family, kind):
    # RFC 1122 3.2.2, RFC 4443 2.4 (b); source quench is obsolete (RFC 6633), redirects are for routes nobody set
    v6 = ICMPv6Unknown(type=kind, code=0, msgbody=bytes(20))
    message = ICMP(type=kind, code=0) / bytes(20) if family == 4 else v6
    assert host.receive(frame(ip(family), message)) == "icmp_type_unknown"
    assert host.moved() == {"icmp_type_unknown": 1}


@settings(max_examples=300, deadline=None)
@given(family=st.sampled_from([4, 6]), kind=st.integers(0, 255), code=st.integers(0, 20), body=st.binary(max_size=120),
       to_us=st.booleans())
def test_any_message_is_judged(family, kind, code, body, to_us):
    host = Host()
    if to_us and len(body) > 30:       # make the quote look like a packet of ours, so that its parser goes on
        quote = bytes(ip(family, source=us(family), to=peer(family)))
        body = body[:4] + quote + body[4:]
    message = (ICMP(type=kind, code=code) / Raw(body) if family == 4
               else ICMPv6Unknown(type=kind, code=code, msgbody=body))
    host.ping(peer(family))
    host.receive(frame(ip(family), message))
    assert sum(host.stack.verdicts().values()) == 1
    host.stack.ping_replies()


# --- errors out -----------------------------------------------------------------------------------------------------

def unwrap(family, reply):
    """(type, code, quoted octets) of an error."""
    message = bytes(reply[IP].payload if family == 4 else reply[IPv6].payload)
    return message[0], message[1], message[8:]


@both
def test_closed_port_is_unreachable_and_the_packet_is_quoted(host, family):
    packet = frame(ip(family), UDP(sport=5000, dport=9), b"hello")
    assert host.receive(packet) == "udp_port_closed"
    (reply,) = host.sent()
    layer = reply[IP] if family == 4 else reply[IPv6]
    assert (layer.src, layer.dst, reply.dst) == (us(family), peer(family), PEER_MAC)
    assert unwrap(family, reply) == ((3, 3) if family == 4 else (1, 4)) + (bytes(packet)[14:],)
    assert right_checksum(reply)
    assert host.moved() == {"udp_port_closed": 1, "#icmp_errors_sent": 1}


@both
def test_unknown_protocol_is_unreachable(host, family):
    packet = frame(ip(family, **({"proto": 99} if family == 4 else {"nh": 99})), Raw(b"12345678"))
    assert host.receive(packet) == "ip_protocol_unknown"
    kind, code, quote = unwrap(family, host.sent()[0])
    assert ((kind, code) == (3, 2)) if family == 4 else ((kind, code) == (4, 1))
    assert quote == bytes(packet)[14:]


def test_unknown_next_header_is_pointed_at(host):
    host.receive(frame(ip(6, nh=99), Raw(b"12345678")))
    assert host.sent()[0][ICMPv6ParamProblem].ptr == 6


@both
def test_long_packet_is_quoted_as_far_as_the_error_may_be_long(host, family):
    packet = frame(ip(family), UDP(sport=5000, dport=9), bytes(1400))
    host.receive(packet)
    (reply,) = host.sent()
    whole = 576 if family == 4 else 1280    # RFC 1812 4.3.2.3, RFC 4443 2.4 (c)
    assert len(reply) == 14 + whole
    quote = unwrap(family, reply)[2]
    assert quote == bytes(packet)[14:14 + len(quote)]
    assert right_checksum(reply)


@pytest.mark.parametrize("packet", [
    frame(ip(4, to="10.77.0.255"), UDP(dport=9), to=BROADCAST),
    frame(ip(4, to="255.255.255.255"), UDP(dport=9), to=BROADCAST),
    frame(ip(4, to="224.0.0.1"), UDP(dport=9), to="01:00:5e:00:00:01"),
    frame(ip(4), UDP(dport=9), to=BROADCAST),
    frame(ip(4, source="0.0.0.0", to="255.255.255.255"), UDP(dport=9), to=BROADCAST),
    frame(ip(6, to="ff02::1"), UDP(dport=9), to="33:33:00:00:00:01"),
    frame(ip(6), UDP(dport=9), to="33:33:00:00:00:01"),
    frame(ip(6, source="::", to="ff02::1"), UDP(dport=9), to="33:33:00:00:00:01"),
], ids=lambda packet: packet.summary())
def test_no_error_goes_to_or_about_groups(host, packet):
    # RFC 1122 3.2.2, RFC 4443 2.4 (e)
    assert host.receive(packet) == "udp_port_closed"
    assert host.sent() == []
    assert host.moved() == {"udp_port_closed": 1}


@pytest.mark.parametrize("packet", [
    frame(ip(4), ICMP(type=3, code=3), IP(src=V4, dst=PEER_V4, proto=99), b"12345678"),
    frame(ip(4), ICMP(type=40, code=0), b"12345678"),
    frame(ip(6), ICMPv6DestUnreach(code=4), IPv6(src=V6, dst=PEER_V6, nh=99), b"12345678"),
    frame(ip(6), ICMPv6Unknown(type=100, code=0, msgbody=bytes(8))),
    frame(ip(4, frag=3), UDP(dport=9)),
], ids=lambda packet: packet.summary())
def test_no_error_answers_an_error_or_a_later_fragment(host, packet):
    host.receive(packet)
    assert host.sent() == []
    assert "#icmp_errors_sent" not in host.moved()


def test_errors_are_limited_in_rate():
    host = Host(icmp_errors_per_second=10)
    host.know_peer()
    host.moved()
    packet = frame(ip(4), UDP(dport=9))
    for _ in range(25):
        host.receive(packet)
    assert len(host.sent()) == 10
    assert host.moved() == {"udp_port_closed": 25, "#icmp_errors_sent": 10, "#icmp_errors_suppressed": 15}
    host.advance(0.35)
    for _ in range(10):
        host.receive(packet)
    assert len(host.sent()) == 3
    host.advance(30)
    for _ in range(25):
        host.receive(packet)
    assert len(host.sent()) == 10, "no more than a second's worth is saved up"


def test_no_errors_at_all_when_the_rate_is_none():
    host = Host(icmp_errors_per_second=0)
    host.know_peer()
    assert host.receive(frame(ip(4), UDP(dport=9))) == "udp_port_closed"
    assert host.sent() == []


# --- errors in, for UDP ---------------------------------------------------------------------------------------------

def connected(host, family):
    """A UDP endpoint connected to the peer's port 4000, and the packet it sent."""
    id = host.stack.udp.bind(None, 5000)
    host.stack.udp.connect(id, peer(family), 4000)
    host.stack.udp.send(id, b"ping")
    (sent,) = host.sent()
    host.moved()
    return id, (sent[IP] if family == 4 else sent[IPv6])


@pytest.mark.parametrize(("error", "expected"), [
    (ICMP(type=3, code=3), ConnectionRefusedError), (ICMP(type=3, code=2), errno.ENOPROTOOPT),
    (ICMP(type=3, code=13), errno.EHOSTUNREACH), (ICMP(type=3, code=4, nexthopmtu=1400), errno.EMSGSIZE),
    (ICMP(type=3, code=0), None), (ICMP(type=3, code=1), None), (ICMP(type=11, code=0), None), (ICMP(type=12), None),
    (ICMPv6DestUnreach(code=4), ConnectionRefusedError), (ICMPv6DestUnreach(code=1), errno.EHOSTUNREACH),
    (ICMPv6ParamProblem(code=1), errno.ENOPROTOOPT), (ICMPv6PacketTooBig(mtu=1400), errno.EMSGSIZE),
    (ICMPv6DestUnreach(code=0), None), (ICMPv6DestUnreach(code=3), None), (ICMPv6TimeExceeded(), None),
], ids=lambda x: x.summary() if hasattr(x, "summary") else "")
def test_error_about_a_datagram_reaches_its_connected_endpoint(host, error, expected):
    family = 4 if ICMP in error else 6
    id, sent = connected(host, family)
    assert host.receive(frame(ip(family), error, sent)) == "delivered"
    assert host.moved() == {"delivered": 1, "#icmp_errors_received": 1}
    assert host.stack.udp.ready() == ([id] if expected else [])
    e = host.stack.udp.error(id)
    if expected is None:
        assert e is None
    elif isinstance(expected, int):
        assert e.errno == expected
    else:
        assert type(e) is expected and (peer(family)) in str(e)
    assert host.stack.udp.error(id) is None


@both
def test_pending_error_is_raised_by_the_next_send_once(host, family):
    id, sent = connected(host, family)
    error = ICMP(type=3, code=3) if family == 4 else ICMPv6DestUnreach(code=4)
    host.receive(frame(ip(family), error, sent))
    with pytest.raises(ConnectionRefusedError):
        host.stack.udp.send(id, b"again")
    host.stack.udp.send(id, b"again")
    assert len(host.sent()) == 1


@both
@pytest.mark.parametrize("octets", range(0, 49))
def test_quote_is_used_from_eight_transport_octets_on(host, family, octets):
    id, sent = connected(host, family)
    error = ICMP(type=3, code=3) if family == 4 else ICMPv6DestUnreach(code=4)
    header = 20 if family == 4 else 40
    verdict = host.receive(frame(ip(family), error, Raw(bytes(sent)[:octets])))
    assert verdict == ("delivered" if octets >= header + 8 else "icmp_truncated")
    assert (host.stack.udp.error(id) is not None) == (octets >= header + 8)


@pytest.mark.parametrize(("quoted", "verdict"), [
    (IP(src="10.77.0.7", dst=PEER_V4) / UDP(sport=5000, dport=4000), "icmp_unmatched"),
    (IP(src="127.0.0.1", dst=PEER_V4) / UDP(sport=5000, dport=4000), "icmp_unmatched"),
    (IP(src=V4, dst=PEER_V4, proto=99) / Raw(bytes(8)), "icmp_unmatched"),
    (IP(src=V4, dst=PEER_V4, frag=1) / UDP(sport=5000, dport=4000), "icmp_truncated"),
    (IP(src=V4, dst=PEER_V4, ihl=4) / UDP(sport=5000, dport=4000), "icmp_truncated"),
    (IP(src=V4, dst=PEER_V4, ihl=15) / UDP(sport=5000, dport=4000), "icmp_truncated"),
    (IP(src=V4, dst=PEER_V4, version=6) / UDP(sport=5000, dport=4000), "icmp_truncated"),
    (IPv6(src=V6, dst=PEER_V6) / UDP(sport=5000, dport=4000), "icmp_truncated"),
    (IP(src=V4, dst="10.77.0.9") / UDP(sport=5000, dport=4000), "delivered"),
    (IP(src=V4, dst=PEER_V4) / UDP(sport=5001, dport=4000), "delivered"),
    (IP(src=V4, dst=PEER_V4) / UDP(sport=5000, dport=4001), "delivered"),
    (IP(src=V4, dst=PEER_V4) / ICMP(type=8, id=1), "icmp_unmatched"),
    (IP(src=V4, dst=PEER_V4) / ICMP(type=0, id=0x7777), "icmp_unmatched"),
], ids=lambda x: x.summary() if hasattr(x, "summary") else "")
def test_error_about_what_we_did_not_send_harms_nobody(host, quoted, verdict):
    id, _ = connected(host, 4)
    assert host.receive(frame(ip(4), ICMP(type=3, code=3), quoted)) == verdict
    assert host.stack.udp.error(id) is None and host.stack.udp.ready() == []


def test_error_sent_to_another_address_than_it_quotes_is_not_believed():
    host = Host(addresses=[f"{V4}/24", "10.77.0.3/24"])
    host.know_peer()
    id, sent = connected(host, 4)
    assert sent.src == V4
    assert host.receive(frame(ip(4, to="10.77.0.3"), ICMP(type=3, code=3), sent)) == "icmp_unmatched"
    assert host.stack.udp.error(id) is None


@both
def test_error_about_tcp_is_taken(host, family):
    quote = ip(family, source=us(family), to=peer(family)) / TCP(sport=1, dport=2)
    error = ICMP(type=3, code=1) if family == 4 else ICMPv6DestUnreach(code=3)
    assert host.receive(frame(ip(family), error, quote)) == "delivered"


# --- ping -----------------------------------------------------------------------------------------------------------

@both
@pytest.mark.parametrize("size", [0, 56, 1000])
def test_ping_sends_a_request_and_keeps_the_reply(host, family, size):
    host.ping(peer(family), 3, size, 17)
    (request,) = host.sent()
    layer = request[IP] if family == 4 else request[IPv6]
    message = layer.payload
    assert (layer.src, layer.dst) == (us(family), peer(family))
    assert (layer.ttl if family == 4 else layer.hlim) == 17
    assert (message.type, message.id, message.seq) == (8 if family == 4 else 128, 0x7777, 3)
    assert bytes(message)[8:] == bytes(i & 0xFF for i in range(size))
    assert right_checksum(request)
    host.advance(0.25)
    reply = ICMP(type=0, id=0x7777, seq=3) if family == 4 else ICMPv6EchoReply(id=0x7777, seq=3)
    limit = {"ttl": 61} if family == 4 else {"hlim": 61}
    assert host.receive(frame(ip(family, **limit), reply / bytes(size))) == "delivered"
    assert host.stack.ping_replies() == [(0x7777, 3, peer(family), host.now, 61, 8 + size, None)]
    assert host.stack.ping_replies() == []
    assert host.moved() == {"delivered": 1, "#icmp_echo_replies_received": 1}


def test_reply_nobody_waits_for_is_unmatched(host):
    assert host.receive(frame(ip(4), ICMP(type=0, id=5))) == "icmp_unmatched"
    host.ping(PEER_V4)
    assert host.receive(frame(ip(4), ICMP(type=0, id=5))) == "icmp_unmatched"
    assert host.stack.ping_replies() == []


@pytest.mark.parametrize(("error", "text"), [
    (ICMP(type=11, code=0), "time exceeded"), (ICMP(type=3, code=1), "host unreachable"),
    (ICMP(type=3, code=0), "network unreachable"), (ICMP(type=3, code=9), "administratively prohibited"),
    (ICMPv6TimeExceeded(), "time exceeded"), (ICMPv6DestUnreach(code=3), "host unreachable"),
    (ICMPv6PacketTooBig(mtu=1300), "packet too big"), (ICMPv6ParamProblem(), "parameter problem"),
], ids=lambda x: x.summary() if hasattr(x, "summary") else "")
def test_error_about_a_ping_is_kept_with_its_sender(host, error, text):
    family = 4 if ICMP in error else 6
    router = "10.77.0.254" if family == 4 else "fd77::fe"
    host.ping(peer(family), 5)
    (request,) = host.sent()
    assert host.receive(frame(ip(family, source=router), error, request.payload)) == "delivered"
    ((identifier, sequence, source, at, _, octets, what),) = host.stack.ping_replies()
    assert (identifier, sequence, source, at, octets, what) == (0x7777, 5, router, host.now, 0, text)


def test_only_the_last_replies_are_kept(host):
    host.ping(PEER_V4)
    for sequence in range(icmp.ANSWER_ROWS + 10):
        host.receive(frame(ip(4), ICMP(type=0, id=0x7777, seq=sequence)))
    replies = host.stack.ping_replies()
    assert [row[1] for row in replies] == list(range(10, icmp.ANSWER_ROWS + 10))


def test_identifiers_of_long_ago_are_forgotten(host):
    for identifier in range(icmp.ANSWER_IDENTIFIERS + 1):
        host.stack.ping_send(host.now, PEER_V4, identifier, 0)
    assert host.receive(frame(ip(4), ICMP(type=0, id=0))) == "icmp_unmatched"
    assert host.receive(frame(ip(4), ICMP(type=0, id=1))) == "delivered"


@pytest.mark.parametrize(("target", "size", "code"), [
    ("192.0.2.1", 8, errno.ENETUNREACH), ("2001:db8::1", 8, errno.ENETUNREACH), (PEER_V4, 1473, errno.EMSGSIZE),
    (PEER_V6, 1453, errno.EMSGSIZE), (PEER_V4, 4_000_000_000, errno.EMSGSIZE), ("0.0.0.0", 8, errno.ENETUNREACH)])
def test_ping_that_cannot_go_says_why(host, target, size, code):
    with pytest.raises(OSError) as caught:
        host.ping(target, size=size)
    assert caught.value.errno == code
    assert target in str(caught.value)
    assert sum(host.moved().values()) == 1


def test_ping_of_what_is_no_address_is_refused(host):
    with pytest.raises(ValueError):
        host.ping("10.77.0")


def test_ping_over_loopback(host):
    for target in ("127.0.0.1", "::1", V4, V6):
        host.ping(target)
        while host.stack.loop(host.now):
            pass
        ((_, _, source, *_),) = host.stack.ping_replies()
        assert source == target
    assert host.sent() == []


def test_first_ping_to_a_silent_neighbor_is_lost_the_next_is_told():
    host = Host()
    host.ping("10.77.0.9")
    host.advance(3)
    with pytest.raises(OSError) as caught:
        host.ping("10.77.0.9")
    assert caught.value.errno == errno.EHOSTUNREACH
    assert host.now > SECOND
