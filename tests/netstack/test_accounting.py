"""Every received frame ends exactly once: a frame of each kind there is, and the name it ends with.

The table is the documentation of the verdicts of `netstack.verdict` from the outside. scapy makes the frames.
"""

import random
from collections import Counter

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, IPOption, UDPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6Unknown,
    IPerror6,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from netstack.verdict import LABELS
from tests.support.host import BROADCAST, MAC, PEER_MAC, PEER_V4, PEER_V6, V4, V6, Host

NOT_OF_RECEIVED_FRAMES = {
    "forwarded": "this host is no router yet",
    "device_refused": "drivers count it",
    "no_memory": "malloc does not fail on demand",
}
PORT, CLOSED = 80, 81
ETHER = Ether(src=PEER_MAC, dst=MAC)
SOLICITED_NODE, SOLICITED_MAC = "ff02::1:ff00:2", "33:33:ff:00:00:02"


# --- how frames are made ----------------------------------------------------------------------------------------------

def ip(family, /, *layers, **fields):
    """From the peer to us, as octets with all checksums right unless they are given."""
    packet = ETHER / (IP(src=PEER_V4, dst=V4) if family == 4 else IPv6(src=PEER_V6, dst=V6))
    for name, value in fields.items():
        setattr(packet.payload, name, value)
    for layer in layers:
        packet = packet / layer
    return packet


def cut(packet: Packet, octets: int) -> bytes:
    return bytes(packet)[:octets]


def poke(packet: Packet, at: int, *octets: int) -> bytes:
    """Other octets at a place of the frame, checksums left as they are."""
    frame = bytearray(bytes(packet))
    frame[at:at + len(octets)] = bytes(octets)
    return bytes(frame)


def echo(family, *, reply=False, size=8):
    if family == 4:
        return ICMP(type=0 if reply else 8, id=0x7777, seq=1) / Raw(bytes(size))
    return (ICMPv6EchoReply if reply else ICMPv6EchoRequest)(id=0x7777, seq=1, data=bytes(size))


def unreachable(family, *, quoted_source=None):
    """Port unreachable about a datagram of ours from port 7."""
    if family == 4:
        return ICMP(type=3, code=3) / IPerror(src=quoted_source or V4, dst=PEER_V4) / UDPerror(sport=7, dport=9)
    return ICMPv6DestUnreach(code=4) / IPerror6(src=quoted_source or V6, dst=PEER_V6) / UDPerror(sport=7, dport=9)


def solicit(target=V6, **fields):
    packet = Ether(src=PEER_MAC, dst=SOLICITED_MAC) / IPv6(src=PEER_V6, dst=SOLICITED_NODE, hlim=255)
    for name, value in fields.items():
        setattr(packet[IPv6], name, value)
    return packet / ICMPv6ND_NS(tgt=target) / ICMPv6NDOptSrcLLAddr(lladdr=PEER_MAC)


def advertise(target):
    return ip(6, ICMPv6ND_NA(tgt=target, R=0, S=1, O=1), ICMPv6NDOptDstLLAddr(lladdr=PEER_MAC), hlim=255)


# --- a host and what it needs for a case ------------------------------------------------------------------------------

class Served(Host):
    """A host that listens on PORT and UDP 7, knows its peer, and can have a connection with it."""

    def __init__(self, family, **options):
        super().__init__(**options)
        self.family = family
        self.know_peer()
        self.listener = self.stack.tcp.listen(None, PORT, 2)
        self.endpoint = self.stack.udp.bind(None, 7)
        self.handle = None
        self.seq = self.ack = 0

    def segment(self, flags, payload=b"", *, seq=0, ack=0, port=PORT, sport=4000, options=()):
        """A segment of the connection, `seq` and `ack` counted from what is next."""
        layer = TCP(sport=sport, dport=port, flags=flags, seq=(self.seq + seq) % 2**32, ack=(self.ack + ack) % 2**32,
                    options=list(options))
        return ip(self.family, layer / Raw(payload)) if payload else ip(self.family, layer)

    def open(self, options=()):
        """A connection from the peer."""
        assert self.receive(self.segment("S", options=options)) == "delivered"
        answer = next(packet[TCP] for packet in self.sent() if TCP in packet)
        self.seq, self.ack = 1, answer.seq + 1
        stamp = [("Timestamp", (1001, dict(answer.options)["Timestamp"][0]))] if options else []
        assert self.receive(self.segment("A", options=stamp)) == "delivered"
        (self.handle, _, _), = self.stack.tcp.ready()
        return self


CASES: list = []


def case(verdict, *families, **options):
    """A case of the table: the function gets a host and returns the frame that ends so; what it sends before ends otherwise."""
    def enter(make):
        for family in families or (4, 6):
            name = f"{verdict}-{make.__name__}-v{family}"
            CASES.append(pytest.param(verdict, make, family, options, id=name))
        return make

    return enter


def table(verdict, family, **frames):
    """Cases that need nothing but the frame."""
    for name, frame in frames.items():
        CASES.append(pytest.param(verdict, lambda host, frame=frame: frame, family, {}, id=f"{verdict}-{name}-v{family}"))


# --- Ethernet and ARP -------------------------------------------------------------------------------------------------

GOOD4, GOOD6 = ip(4, UDP(dport=7)), ip(6, UDP(dport=7))

table("ethernet_truncated", 4, nothing=b"", thirteen=bytes(13))
table("ethernet_oversize", 4, too_long=bytes(ETHER) + bytes(65553))
table("ethernet_type_unknown", 4, vlan=Ether(src=PEER_MAC, dst=MAC, type=0x8100) / Raw(bytes(46)),
      length_field=Ether(src=PEER_MAC, dst=MAC, type=46) / Raw(bytes(46)))
table("arp_malformed", 4, short=cut(ETHER / ARP(), 41), of_another_protocol=ETHER / ARP(ptype=0x86DD),
      from_a_group=ETHER / ARP(hwsrc=BROADCAST, psrc=PEER_V4, pdst=V4))
table("arp_not_for_us", 4,
      other_target=Ether(src=PEER_MAC, dst=BROADCAST) / ARP(hwsrc=PEER_MAC, psrc="10.77.0.8", pdst="10.77.0.9"))
table("arp_address_conflict", 4, claim=Ether(src=PEER_MAC, dst=BROADCAST) / ARP(hwsrc=PEER_MAC, psrc=V4, pdst=V4))
table("answered", 4, arp_request=Ether(src=PEER_MAC, dst=BROADCAST) / ARP(hwsrc=PEER_MAC, psrc=PEER_V4, pdst=V4))
table("delivered", 4, arp_reply=ETHER / ARP(op=2, hwsrc=PEER_MAC, psrc=PEER_V4, hwdst=MAC, pdst=V4))


@case("ethernet_not_for_us")
def other_mac(host):
    packet = ip(host.family, UDP(dport=7))
    packet.dst = "02:00:00:00:00:77"
    return packet


@case("interface_down")
def link_down(host):
    host.stack.set_link(host.index, False)
    return ip(host.family, UDP(dport=7))


# --- IP ---------------------------------------------------------------------------------------------------------------

table("ipv4_truncated", 4, header=cut(GOOD4, 14 + 19), options=poke(GOOD4, 14, 0x4F))
table("ipv4_version", 4, six=poke(GOOD4, 14, 0x65))
table("ipv4_header_length", 4, sixteen=poke(GOOD4, 14, 0x44))
table("ipv4_total_length", 4, beyond_the_frame=ip(4, UDP(dport=7), len=100), below_the_header=ip(4, UDP(dport=7), len=19))
table("ipv4_checksum", 4, wrong=ip(4, UDP(dport=7), chksum=1))
table("ipv4_option", 4, source_route=ip(4, UDP(dport=7), options=[IPOption(b"\x83\x07\x04\x0a\x4d\x00\x01\x00")]))
table("ipv4_fragment", 4, first=ip(4, UDP(dport=7), flags="MF"), last=ip(4, UDP(dport=7), frag=100))
table("ipv4_source", 4, ours=ip(4, UDP(dport=7), src=V4), loopback=ip(4, UDP(dport=7), src="127.0.0.1"),
      group=ip(4, UDP(dport=7), src="224.0.0.1"), unspecified=ip(4, UDP(dport=7), src="0.0.0.0"),
      broadcast=ip(4, UDP(dport=7), src="10.77.0.255"))
table("ipv4_not_for_us", 4, other=ip(4, UDP(dport=7), dst="10.77.0.9"), loopback=ip(4, UDP(dport=7), dst="127.0.0.1"),
      group_we_are_not_in=ip(4, UDP(dport=7), dst="224.0.0.251"))
table("ipv6_truncated", 6, header=cut(GOOD6, 14 + 39))
table("ipv6_version", 6, four=poke(GOOD6, 14, 0x45))
table("ipv6_payload_length", 6, beyond_the_frame=ip(6, UDP(dport=7), plen=100))
table("ipv6_extension_header", 6, fragment=ip(6, IPv6ExtHdrFragment(m=1), UDP(dport=7)),
      routing=ip(6, IPv6ExtHdrRouting(), UDP(dport=7)), cut_off=ip(6, Raw(bytes(4)), nh=60))
table("ipv6_source", 6, ours=ip(6, UDP(dport=7), src=V6), loopback=ip(6, UDP(dport=7), src="::1"),
      mapped=ip(6, UDP(dport=7), src="::ffff:10.77.0.1"), group=ip(6, UDP(dport=7), src="ff02::1"))
table("ipv6_not_for_us", 6, other=ip(6, UDP(dport=7), dst="fd77::9"), loopback=ip(6, UDP(dport=7), dst="::1"),
      group_we_are_not_in=ip(6, UDP(dport=7), dst="ff02::fb"))
table("ip_protocol_unknown", 4, sctp=ip(4, Raw(bytes(16)), proto=132), icmp_of_the_other_family=ip(4, Raw(bytes(16)), proto=58))
table("ip_protocol_unknown", 6, sctp=ip(6, Raw(bytes(16)), nh=132), icmp_of_the_other_family=ip(6, Raw(bytes(16)), nh=1))
table("delivered", 6, behind_destination_options=ip(6, IPv6ExtHdrDestOpt(), UDP(dport=7)))


# --- ICMP and Neighbor Discovery --------------------------------------------------------------------------------------

@case("answered")
def echo_request(host):
    return ip(host.family, echo(host.family))


@case("delivered")
def echo_reply_to_our_request(host):
    host.ping(PEER_V4 if host.family == 4 else PEER_V6)
    return ip(host.family, echo(host.family, reply=True))


@case("icmp_unmatched")
def echo_reply_nobody_asked_for(host):
    return ip(host.family, echo(host.family, reply=True))


@case("icmp_truncated")
def icmp_of_seven_octets(host):
    return ip(host.family, Raw(b"\x80" + bytes(6)), **({"proto": 1} if host.family == 4 else {"nh": 58}))


@case("icmp_checksum")
def icmp_with_a_wrong_checksum(host):
    return poke(ip(host.family, echo(host.family)), 36 if host.family == 4 else 56, 0x12, 0x34)


@case("delivered")
def error_about_our_datagram(host):
    return ip(host.family, unreachable(host.family))


@case("icmp_unmatched")
def error_about_a_packet_of_others(host):
    return ip(host.family, unreachable(host.family, quoted_source="10.77.0.9" if host.family == 4 else "fd77::9"))


@case("too_big")
def echo_request_above_the_mtu_of_the_answer(host):
    return ip(host.family, echo(host.family, size=2000))


@case("no_route")
def echo_request_from_where_no_route_leads(host):
    return ip(host.family, echo(host.family), src="192.0.2.1" if host.family == 4 else "2001:db8::1")


@case("no_source_address", 6, settled=False)
def echo_request_to_all_nodes_while_all_our_addresses_are_tentative(host):
    packet = ip(6, echo(6), dst="ff02::1")
    packet.dst = "33:33:00:00:00:01"
    return packet


@case("neighbor_failed")
def echo_request_from_who_does_not_answer(host):
    address = "10.77.0.50" if host.family == 4 else "fd77::50"
    assert host.receive(ip(host.family, echo(host.family), src=address)) == "answered"      # it waits for the neighbor
    host.advance(4)
    return ip(host.family, echo(host.family), src=address)


@case("neighbor_queue_full", neighbors=2)
def echo_request_when_the_neighbor_table_is_full(host):
    return ip(host.family, echo(host.family), src="10.77.0.50" if host.family == 4 else "fd77::50")


@case("interface_queue_full")
def echo_request_when_the_device_takes_nothing(host):
    host.receive(*[ip(host.family, echo(host.family))] * (1024 - host.stack.interfaces()[host.index]["output_queued"]))
    return ip(host.family, echo(host.family))


table("icmp_type_unknown", 4, timestamp=ip(4, ICMP(type=13)), source_quench=ip(4, ICMP(type=4)))
table("icmp_type_unknown", 6, private=ip(6, ICMPv6Unknown(type=200, msgbody=bytes(8))))
table("icmp_truncated", 4, quote_cut_off=ip(4, ICMP(type=3, code=1) / Raw(b"E" + bytes(18))))
table("icmp_truncated", 6, quote_cut_off=ip(6, ICMPv6DestUnreach(code=0) / Raw(b"\x60" + bytes(38))))
table("icmp_echo_multicast", 4, broadcast=Ether(src=PEER_MAC, dst=BROADCAST) / IP(src=PEER_V4, dst="10.77.0.255") / echo(4),
      in_a_broadcast_frame=Ether(src=PEER_MAC, dst=BROADCAST) / IP(src=PEER_V4, dst=V4) / echo(4))
table("answered", 6, solicitation=solicit())
table("ndp_hop_limit", 6, from_afar=solicit(hlim=254))
table("ndp_malformed", 6, of_a_group=solicit("ff02::1"), code=ip(6, ICMPv6ND_NS(tgt=V6, code=1), hlim=255))
table("ndp_not_for_us", 6, other_target=solicit("fd77::9"), about_nobody_we_know=advertise("fd77::50"))
table("ndp_address_conflict", 6, claim=advertise(V6))
table("ndp_ignored", 6, router=ip(6, ICMPv6ND_RA(), src="fe80::1", hlim=255))


@case("delivered", 6)
def advertisement_we_asked_for(host):
    host.ping("fd77::50")
    return advertise("fd77::50")


# --- UDP --------------------------------------------------------------------------------------------------------------

@case("delivered")
def datagram(host):
    return ip(host.family, UDP(dport=7) / b"data")


@case("udp_truncated")
def udp_header_cut_off(host):
    return ip(host.family, Raw(bytes(7)), **({"proto": 17} if host.family == 4 else {"nh": 17}))


@case("udp_length")
def udp_length_beyond_the_packet(host):
    return ip(host.family, UDP(dport=7, len=9))


@case("udp_checksum")
def udp_with_a_wrong_checksum(host):
    return ip(host.family, UDP(dport=7, chksum=0x1234))


@case("udp_port_closed")
def datagram_for_nobody(host):
    return ip(host.family, UDP(dport=9))


@case("udp_queue_full")
def datagram_for_who_does_not_read(host):
    host.receive(*[ip(host.family, UDP(dport=7))] * 2048)
    return ip(host.family, UDP(dport=7))


table("delivered", 4, without_a_checksum=ip(4, UDP(dport=7, chksum=0)))
table("udp_checksum_missing", 6, zero=ip(6, UDP(dport=7, chksum=0)))


# --- TCP --------------------------------------------------------------------------------------------------------------

SYN_OPTIONS = (("MSS", 1460), ("Timestamp", (1000, 0)))


@case("delivered")
def syn(host):
    return host.segment("S")


@case("tcp_truncated")
def tcp_header_cut_off(host):
    return ip(host.family, Raw(bytes(19)), **({"proto": 6} if host.family == 4 else {"nh": 6}))


@case("tcp_header_length")
def tcp_header_beyond_the_segment(host):
    return ip(host.family, TCP(dport=PORT, dataofs=6))


@case("tcp_checksum")
def tcp_with_a_wrong_checksum(host):
    return ip(host.family, TCP(dport=PORT, chksum=0x1234))


@case("tcp_multicast")
def tcp_in_a_broadcast_frame(host):
    packet = host.segment("S")
    packet.dst = BROADCAST
    return packet


@case("tcp_port_closed")
def syn_for_nobody(host):
    return host.segment("S", port=CLOSED)


@case("tcp_no_connection")
def ack_out_of_the_blue(host):
    return host.segment("A")


@case("tcp_flags")
def syn_and_fin(host):
    return host.segment("SF")


@case("tcp_backlog_full")
def syn_for_who_does_not_accept(host):
    for port in (4001, 4002):
        host.seq = host.ack = 0
        host.receive(host.segment("S", sport=port))
        host.ack = next(packet[TCP].seq for packet in host.sent() if TCP in packet) + 1
        host.receive(host.segment("A", seq=1, sport=port))
    return host.segment("S")


@case("tcp_table_full", tcp={"connections": 1})
def syn_when_every_connection_is_in_use(host):
    host.open()
    return host.segment("S", sport=4001)


@case("delivered")
def data(host):
    return host.open().segment("PA", b"data")


@case("tcp_duplicate")
def data_again(host):
    host.receive(host.open().segment("PA", b"data"))
    return host.segment("PA", b"data")


@case("tcp_out_of_window")
def data_beyond_the_window(host):
    return host.open().segment("A", b"data", seq=1 << 30)


@case("tcp_paws")
def data_with_an_old_timestamp(host):
    return host.open(SYN_OPTIONS).segment("A", b"data", options=[("Timestamp", (500, 0))])


@case("tcp_ack_unacceptable")
def ack_of_what_was_never_sent(host):
    return host.open().segment("A", ack=1000)


@case("tcp_reset_challenged")
def reset_inside_the_window(host):
    return host.open().segment("R", seq=100)


@case("delivered")
def reset_in_sequence(host):
    return host.open().segment("R")


@case("tcp_syn_challenged")
def syn_on_a_connection(host):
    return host.open().segment("S", seq=100)


@case("tcp_out_of_order_full")
def data_beyond_the_33rd_gap(host):
    host.open()
    for i in range(32):
        host.receive(host.segment("A", b"x", seq=10 + 2 * i))
    return host.segment("A", b"x", seq=10 + 2 * 32)


@case("tcp_memory", tcp={"memory": 2048})
def data_there_is_no_memory_for(host):
    host.open()
    host.stack.tcp.write(host.handle, bytes(100))       # takes it all
    return host.segment("A", b"data")


@case("tcp_after_close")
def data_for_an_application_that_is_gone(host):
    host.open()
    host.stack.tcp.release(host.handle)
    return host.segment("A", b"data")


# --- the law ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("verdict, make, family, options", CASES)
def test_frame_ends_once_and_by_its_name(verdict, make, family, options):
    host = Served(family, **options)
    frame = make(host)
    host.moved()
    received = host.stack.interfaces()[host.index]["rx_frames"]
    assert host.receive(frame) == verdict
    ended = {label: count for label, count in host.moved().items() if label in LABELS}
    assert ended == {verdict: 1}
    assert host.stack.interfaces()[host.index]["rx_frames"] == received + 1


def test_every_verdict_of_received_frames_is_in_the_table():
    shown = {parameters.values[0] for parameters in CASES}
    assert shown | NOT_OF_RECEIVED_FRAMES.keys() == set(LABELS)
    assert not shown & NOT_OF_RECEIVED_FRAMES.keys()


@pytest.mark.parametrize("seed", range(5))
def test_sum_over_all_verdicts_is_the_number_of_frames(seed):
    """All frames of the table that need no story, in any order and number, on one host that goes on working."""
    rng = random.Random(seed)
    host = Served(4)
    cases = [parameters.values for parameters in CASES]
    plain = [(verdict, make) for verdict, make, _, _ in cases if make.__name__ == "<lambda>"]
    chosen = rng.choices([(verdict, make(host)) for verdict, make in plain], k=400)
    host.moved()
    ends = host.receive(*[frame for _, frame in chosen])
    assert Counter(ends) == Counter(verdict for verdict, _ in chosen)
    assert sum(host.stack.verdicts().values()) == sum(row["rx_frames"] for row in host.stack.interfaces())
    assert host.receive(ip(4, echo(4))) == "answered"


def test_frames_of_an_interface_that_is_gone_stay_counted():
    host = Served(4)
    host.receive(ip(4, UDP(dport=7)), ip(4, UDP(dport=9)))
    before = host.stack.verdicts()
    host.stack.remove_interface(host.index)
    assert host.stack.verdicts() == before
