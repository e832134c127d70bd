"""The network layer judged by scapy: what it accepts or refuses and why, which way it sends, what is on the wire."""

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import (
    HBHOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Pad1,
    PadN,
    RouterAlert,
)
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from netstack import ip, route
from netstack.neighbor import set_neighbor
from netstack.net import NetState
from netstack.wire.checksum import pseudo_header

SECRET = bytes(range(16))
OUR_MAC, OTHER_MAC, PEER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:99"
RX, TX, TSO4, TSO6 = 1, 2, 4, 8

unicast4 = st.ip_addresses(v=4).filter(lambda a: 0 < int(a) >> 24 < 224)
unicast6 = st.ip_addresses(v=6).filter(lambda a: not (a.is_multicast or a.ipv4_mapped or a.is_unspecified))
payloads = st.binary(max_size=64)


def build4(*layers, **fields):
    packet = IP(**{"src": "10.0.0.1", "dst": "10.0.0.2", "proto": 17, **fields})
    for layer in layers:
        packet = packet / layer
    return bytes(packet)


def with_checksum(header: bytes) -> bytes:
    """The packet with its IPv4 header checksum made right again."""
    size = max(20, (header[0] & 15) * 4)
    packet = bytearray(header)
    packet[10:12] = bytes(2)
    total = sum(int.from_bytes(packet[i:i + 2], "big") for i in range(0, min(size, len(packet)), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    packet[10:12] = (~total & 0xFFFF).to_bytes(2, "big")
    return bytes(packet)


def poke(packet: bytes, at: int, new: bytes) -> bytes:
    return with_checksum(packet[:at] + new + packet[at + len(new):])


# --- IPv4 in ----------------------------------------------------------------------------------------------------------

@given(source=unicast4, destination=st.ip_addresses(v=4), protocol=st.integers(0, 255), ttl=st.integers(0, 255),
       options=st.lists(st.sampled_from([b"\x01", b"\x94\x04\x00\x00", b"\x07\x07\x04\x00\x00\x00\x00", b"\x99\x02"]),
                        max_size=4), payload=payloads, padding=st.binary(max_size=20))
def test_a_good_ipv4_packet_is_read_as_it_was_written(source, destination, protocol, ttl, options, payload, padding):
    packet = build4(Raw(payload), src=str(source), dst=str(destination), proto=protocol, ttl=ttl,
                    options=[IPOption(option) for option in options])
    label, view = ip.dissect(packet + padding, 4)
    assert label == "delivered"
    assert view == {
        "source": str(source), "destination": str(destination), "family": 4, "protocol": protocol, "hop_limit": ttl,
        "header_length": len(packet) - len(payload), "payload": payload,
        "multicast": destination.is_multicast or str(destination) == "255.255.255.255",
    }


GOOD4 = build4(Raw(b"payload."))


@pytest.mark.parametrize("packet, verdict", [
    (b"", "ipv4_truncated"),
    (GOOD4[:19], "ipv4_truncated"),
    (poke(GOOD4, 0, b"\x55"), "ipv4_version"),
    (poke(GOOD4, 0, b"\x44"), "ipv4_header_length"),
    (poke(GOOD4, 0, b"\x4f"), "ipv4_truncated"),            # 60 octets of header in 28
    (poke(GOOD4, 2, b"\x00\x13"), "ipv4_total_length"),     # less than the header
    (poke(GOOD4, 2, b"\x00\x00"), "ipv4_total_length"),
    (poke(GOOD4, 2, b"\x00\x1d"), "ipv4_total_length"),     # one octet more than there is
    (GOOD4[:-1], "ipv4_total_length"),
    (GOOD4[:8] + b"\x01" + GOOD4[9:], "ipv4_checksum"),
    (build4(Raw(bytes(8)), flags="MF"), "ipv4_fragment"),
    (build4(Raw(bytes(8)), frag=1), "ipv4_fragment"),
    (build4(Raw(bytes(8)), flags="DF"), "delivered"),
    (build4(src="224.0.0.1"), "ipv4_source"),
    (build4(src="255.255.255.255"), "ipv4_source"),
    (build4(src="0.0.0.0"), "ipv4_source"),
    (build4(src="0.1.2.3", dst="255.255.255.255"), "ipv4_source"),
    (build4(src="0.0.0.0", dst="255.255.255.255"), "delivered"),        # DHCP
    (build4(src="0.0.0.0", dst="224.0.0.1"), "delivered"),              # IGMP
    (build4(options=[IPOption(b"\x83\x07\x04\x0a\x00\x00\x01")]), "ipv4_option"),      # loose source route
    (build4(options=[IPOption(b"\x89\x07\x04\x0a\x00\x00\x01")]), "ipv4_option"),      # strict source route
    (build4(options=[IPOption(b"\x01\x01\x01\x94")]), "ipv4_option"),                  # no room for its length
    (build4(options=[IPOption(b"\x94\x01\x00\x00")]), "ipv4_option"),
    (build4(options=[IPOption(b"\x94\x00\x00\x00")]), "ipv4_option"),
    (build4(options=[IPOption(b"\x94\x05\x00\x00")]), "ipv4_option"),
    (build4(options=[IPOption(b"\x00\x94\x05\x83")]), "delivered"),     # nothing counts after the end of the list
])
def test_a_bad_ipv4_packet_is_refused_by_name(packet, verdict):
    assert ip.dissect(packet, 4)[0] == verdict


@given(st.data(), st.integers(0, 59), st.integers(0, 255))
def test_a_damaged_ipv4_header_is_never_accepted(data, at, value):
    packet = build4(Raw(bytes(8)), options=[IPOption(b"\x94\x04\x00\x00")])
    at %= 24
    damaged = packet[:at] + bytes([value]) + packet[at + 1:]
    assert (ip.dissect(damaged, 4)[0] == "delivered") == (damaged == packet)


@given(st.binary(max_size=80), st.booleans())
def test_any_octets_end_in_an_ipv4_verdict(octets, repair):
    if repair and len(octets) >= 20:
        octets = with_checksum(b"\x45\x00" + len(octets).to_bytes(2, "big") + octets[4:])
    label, view = ip.dissect(octets, 4)
    assert label.startswith("ipv4_") if view is None else view["payload"] == octets[view["header_length"]:][
        :len(view["payload"])]


def test_a_super_segment_has_its_length():
    packet = build4(Raw(bytes(65515)))
    assert len(packet) == 65535
    assert len(ip.dissect(packet, 4)[1]["payload"]) == 65515


# --- IPv6 in ----------------------------------------------------------------------------------------------------------

@given(source=unicast6, destination=st.ip_addresses(v=6).filter(lambda a: not a.ipv4_mapped),
       protocol=st.integers(0, 255).filter(lambda n: n not in (0, 43, 44, 50, 51, 60, 135)),
       hop_limit=st.integers(0, 255), payload=payloads, padding=st.binary(max_size=20), hop_by_hop=st.booleans(),
       pads=st.integers(0, 3))
def test_a_good_ipv6_packet_is_read_as_it_was_written(source, destination, protocol, hop_limit, payload, padding,
                                                      hop_by_hop, pads):
    layers = [IPv6ExtHdrHopByHop(options=[RouterAlert(value=0), PadN(optdata=b"\0" * 9), Pad1()])] if hop_by_hop else []
    layers += [IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * pad)]) for pad in range(pads)]
    packet = IPv6(src=str(source), dst=str(destination), hlim=hop_limit)
    for layer in layers:
        packet = packet / layer
    last = packet.lastlayer()
    last.nh = protocol
    octets = bytes(packet / Raw(payload))
    label, view = ip.dissect(octets + padding, 6)
    assert label == "delivered"
    assert view == {
        "source": str(source), "destination": str(destination), "family": 6, "protocol": protocol,
        "hop_limit": hop_limit, "header_length": len(octets) - len(payload), "payload": payload,
        "multicast": destination.is_multicast,
    }


def build6(*layers, **fields):
    packet = IPv6(**{"src": "2001:db8::1", "dst": "2001:db8::2", **fields})
    for layer in layers:
        packet = packet / layer
    return bytes(packet)


GOOD6 = build6(UDP(sport=1, dport=2), Raw(b"data"))
OPTIONS = bytes([17, 0, 1, 4, 0, 0, 0, 0])      # a destination options header of one PadN, then UDP


def raw6(next_header: int, payload: bytes) -> bytes:
    return build6(Raw(payload), nh=next_header)


@pytest.mark.parametrize("packet, verdict", [
    (b"", "ipv6_truncated"),
    (GOOD6[:39], "ipv6_truncated"),
    (b"\x40" + GOOD6[1:], "ipv6_version"),
    (GOOD6[:-1], "ipv6_payload_length"),
    (GOOD6[:4] + b"\x00\x0d" + GOOD6[6:], "ipv6_payload_length"),
    (build6(UDP(), src="ff02::1"), "ipv6_source"),
    (build6(UDP(), src="::"), "ipv6_source"),
    (build6(UDP(), src="::", dst="ff02::1"), "delivered"),          # duplicate address detection
    (build6(UDP(), src="::ffff:10.0.0.1"), "ipv6_source"),
    (build6(UDP(), dst="::ffff:10.0.0.1"), "ipv6_not_for_us"),
    (build6(IPv6ExtHdrFragment(offset=1), UDP()), "ipv6_extension_header"),
    (build6(IPv6ExtHdrRouting(addresses=["2001:db8::3"]), UDP()), "ipv6_extension_header"),
    (build6(IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x1E)]), UDP()), "ipv6_extension_header"),
    (build6(IPv6ExtHdrDestOpt(options=[RouterAlert()]), UDP()), "ipv6_extension_header"),
    (build6(IPv6ExtHdrDestOpt(), IPv6ExtHdrHopByHop(), UDP()), "ipv6_extension_header"),    # not first
    (raw6(60, OPTIONS + bytes(8)), "delivered"),
    (raw6(60, OPTIONS[:7]), "ipv6_extension_header"),
    (raw6(60, b"\x11\x01" + OPTIONS[2:]), "ipv6_extension_header"),             # 16 octets long, 8 there
    (raw6(60, b"\x11\x00\x01\x05" + bytes(12)), "ipv6_extension_header"),       # the option leaves the header
    (raw6(60, b"\x11\x00\x00\x00\x00\x00\x00\x01" + bytes(8)), "ipv6_extension_header"),    # no length octet
    (raw6(60, (b"\x3c" + OPTIONS[1:]) * 7 + OPTIONS), "delivered"),
    (raw6(60, (b"\x3c" + OPTIONS[1:]) * 8 + OPTIONS), "ipv6_extension_header"),  # a header chain without sense
    (raw6(51, bytes(24)), "ipv6_extension_header"),
    (raw6(50, bytes(24)), "ipv6_extension_header"),
])
def test_a_bad_ipv6_packet_is_refused_by_name(packet, verdict):
    assert ip.dissect(packet, 6)[0] == verdict


@given(st.binary(max_size=120), st.booleans(), st.sampled_from([0, 60, 17]))
@settings(max_examples=300)
def test_any_octets_end_in_an_ipv6_verdict(octets, repair, next_header):
    if repair and len(octets) >= 40:
        octets = b"\x60\0\0\0" + (len(octets) - 40).to_bytes(2, "big") + bytes([next_header]) + octets[7:]
    label, view = ip.dissect(octets, 6)
    assert label.startswith("ipv6_") if view is None else octets[view["header_length"]:].startswith(view["payload"])


# --- the way out ------------------------------------------------------------------------------------------------------

def make_state(features=0, mtu=1500):
    """eth0 (1): 10.77.0.2/24 with the default gateway 10.77.0.1 and IPv6; eth1 (2): 192.168.5.2/24; both up."""
    state = NetState(SECRET)
    ip.create_tables(state)
    eth0 = state.add_interface("eth0", OUR_MAC, mtu, features)
    eth1 = state.add_interface("eth1", OTHER_MAC, 9000, features)
    for index, address in ((eth0, "10.77.0.2/24"), (eth1, "192.168.5.2/24")):
        state.add_address(index, address)
        state.set_up(index, True)
    route.add_route(state, "10.77.0.0/24", None, eth0, kind="connected")
    route.add_route(state, "192.168.5.0/24", None, eth1, kind="connected")
    route.add_route(state, "0.0.0.0/0", "10.77.0.1", eth0)
    return state


def way(state, destination, **options):
    path = ip.path_to(state, destination, **options)
    return path["interface"], path["source"], path["next_hop"] or path["mac"]


def test_ipv4_ways():
    state = make_state()
    nobody, everybody = "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"
    assert way(state, "10.77.0.9") == (1, "10.77.0.2", "10.77.0.9")             # on the link
    assert way(state, "192.168.5.9") == (2, "192.168.5.2", "192.168.5.9")
    assert way(state, "8.8.8.8") == (1, "10.77.0.2", "10.77.0.1")               # by the gateway
    assert way(state, "8.8.8.8", source="192.168.5.2") == (1, "192.168.5.2", "10.77.0.1")
    assert way(state, "10.77.0.2") == (0, "10.77.0.2", nobody)                  # our own: to ourselves from itself
    assert way(state, "192.168.5.2", source="10.77.0.2") == (0, "10.77.0.2", nobody)
    assert way(state, "127.0.0.1") == (0, "127.0.0.1", nobody)
    assert way(state, "127.5.5.5") == (0, "127.5.5.5", nobody)
    assert way(state, "10.77.0.255") == (1, "10.77.0.2", everybody)
    assert way(state, "192.168.5.255") == (2, "192.168.5.2", everybody)
    assert way(state, "192.168.6.255") == (1, "10.77.0.2", "10.77.0.1")         # somebody else's broadcast address
    assert way(state, "255.255.255.255") == (1, "10.77.0.2", everybody)
    assert way(state, "255.255.255.255", interface=2) == (2, "192.168.5.2", everybody)
    assert way(state, "255.255.255.255", source="192.168.5.2") == (2, "192.168.5.2", everybody)
    assert way(state, "224.129.2.3") == (1, "10.77.0.2", "01:00:5e:01:02:03")   # RFC 1112 6.4: 23 bits
    assert way(state, "239.255.255.250", interface=2) == (2, "192.168.5.2", "01:00:5e:7f:ff:fa")
    assert way(state, "169.254.1.1")[2] == "169.254.1.1"                        # RFC 3927 2.6.2: never to a router
    assert ip.path_to(state, "192.168.5.9")["mtu"] == 9000
    assert ip.path_to(state, "10.77.0.2")["mtu"] == 65535


@pytest.mark.parametrize("destination, source, complaint", [
    ("0.0.0.0", None, "no route"), ("::", None, "no route"), ("2001:db8::1", None, "no route"),
    ("fe80::1", None, "no route"), ("ff02::1", None, "no route"),
    ("8.8.8.8", "10.77.0.3", "source"), ("8.8.8.8", "127.0.0.1", "source"), ("8.8.8.8", "::1", "source"),
    ("::1", "10.77.0.2", "source"),
])
def test_where_there_is_no_way(destination, source, complaint):
    state = make_state()
    with pytest.raises(OSError, match=complaint):
        ip.path_to(state, destination, source=source)


def test_an_address_that_is_not_yet_proven_unique_is_never_a_source():
    state = make_state()
    state.add_address(1, "2001:db8::2/64")
    route.add_route(state, "2001:db8::/64", None, 1)
    with pytest.raises(OSError, match="source"):
        ip.path_to(state, "2001:db8::9")
    with pytest.raises(OSError, match="source"):
        ip.path_to(state, "2001:db8::9", source="2001:db8::2")
    state.add_address(0, "2001:db8:5::1/128")       # an address of the host itself serves an unnumbered link
    assert way(state, "2001:db8::9") == (1, "2001:db8:5::1", "2001:db8::9")


def test_the_source_is_of_the_subnet_of_the_gateway():
    state = make_state()
    state.add_address(1, "8.8.4.2/24")      # nearer to the destination, but its router is another
    route.add_route(state, "8.8.8.0/24", "10.77.0.1", 1)
    assert way(state, "8.8.8.8") == (1, "10.77.0.2", "10.77.0.1")
    route.add_route(state, "8.8.9.0/24", "10.77.0.1", 1, source="8.8.4.2")
    assert way(state, "8.8.9.9") == (1, "8.8.4.2", "10.77.0.1")
    state.remove_address(1, "8.8.4.2/24")           # a preferred source that is gone is no source
    assert way(state, "8.8.9.9") == (1, "10.77.0.2", "10.77.0.1")


def test_the_longest_match_and_the_scope_choose_among_several():
    state = make_state()
    state.add_address(1, "10.77.0.3/16")
    state.add_address(1, "10.99.0.2/16")
    state.add_address(1, "169.254.7.7/16")
    for prefix in ("10.99.0.0/16", "10.77.0.0/16", "169.254.0.0/16", "172.16.0.0/12"):
        route.add_route(state, prefix, None, 1)
    assert way(state, "10.99.1.1")[1] == "10.99.0.2"
    assert way(state, "10.77.0.9")[1] == "10.77.0.2"        # 24 bits of prefix match, not 16
    assert way(state, "10.77.9.9")[1] == "10.77.0.2"        # as far as both match: the first
    assert way(state, "169.254.1.1")[1] == "169.254.7.7"
    assert way(state, "172.16.0.1")[1] == "10.77.0.2"       # never a link-local source to a global destination


def with_ipv6():
    state = make_state()
    for index, address in ((1, "fe80::2/64"), (1, "2001:db8::2/64"), (1, "fd77::2/64"), (2, "fe80::3/64"),
                           (2, "2001:db8:5::2/64")):
        state.add_address(index, address, detect=False)
        network = str(ipaddress.ip_interface(address).network)
        route.add_route(state, network, None, index, metric=index, kind="connected")
    route.add_route(state, "::/0", "fe80::1", 1)
    return state


def test_ipv6_ways():
    state = with_ipv6()
    nobody = "00:00:00:00:00:00"
    assert way(state, "2001:db8::9") == (1, "2001:db8::2", "2001:db8::9")
    assert way(state, "fd77::9") == (1, "fd77::2", "fd77::9")
    assert way(state, "2600::1") == (1, "2001:db8::2", "fe80::1")       # not the router's scope: the destination's
    assert way(state, "2001:db8:5::9") == (2, "2001:db8:5::2", "2001:db8:5::9")
    assert way(state, "2001:db8::2") == (0, "2001:db8::2", nobody)
    assert way(state, "::1") == (0, "::1", nobody)
    # link-local: the interface that is asked for, the one of the source, the best route
    assert way(state, "fe80::9") == (1, "fe80::2", "fe80::9")
    assert way(state, "fe80::9", interface=2) == (2, "fe80::3", "fe80::9")
    assert way(state, "fe80::9", source="fe80::3") == (2, "fe80::3", "fe80::9")
    assert way(state, "fe80::9", source="2001:db8:5::2") == (2, "2001:db8:5::2", "fe80::9")
    # groups: RFC 2464 7; a source of the group's scope
    assert way(state, "ff02::1:ff00:9") == (1, "fe80::2", "33:33:ff:00:00:09")
    assert way(state, "ff02::fb", interface=2) == (2, "fe80::3", "33:33:00:00:00:fb")
    assert way(state, "ff0e::1:2:3")[2] == "33:33:00:02:00:03"
    assert way(state, "ff0e::1:2:3")[1] in ("2001:db8::2", "fd77::2")
    for destination, source in (("2600::1", "fe80::3"), ("2600::1", "::1"), ("2001:db8::9", "10.77.0.2")):
        with pytest.raises(OSError, match="source"):
            ip.path_to(state, destination, source=source)
    with pytest.raises(OSError, match="no route"):
        ip.path_to(state, "ff01::1")


def test_ipv6_leaves_as_scapy_would_write_it():
    state = with_ipv6()
    set_neighbor(state, 1, "2001:db8::9", PEER_MAC)
    for complete in (True, False):
        segment = datagram("2001:db8::2", "2001:db8::9", b"six", complete)
        assert ip.send_packet(state, "2001:db8::9", 17, segment, checksum_offset=0 if complete else 6) == "delivered"
        (frame,) = state.take_output(1)
        packet = Ether(frame)
        assert frame == rebuilt(frame)
        assert (packet.src, packet.dst, packet[IPv6].src, packet[IPv6].hlim) == (OUR_MAC, PEER_MAC, "2001:db8::2", 64)
        assert ip.dissect(frame[14:], 6)[1]["payload"][8:] == b"six"
    assert ip.send_packet(state, "2001:db8::9", 17, bytes(1461)) == "too_big"


def test_super_segments_go_only_where_they_are_split():
    plain, able, half = with_peer(), with_peer(features=TX | TSO4 | TSO6), with_peer(features=TX | TSO6)
    for state, outcome in ((plain, "too_big"), (half, "too_big"), (able, "delivered")):
        assert ip.send_packet(state, "10.77.0.9", 6, bytes(60000), segment_size=1448) == outcome
    (frame,) = able.take_output(1)
    assert len(frame) == 60034 and Ether(frame)[IP].len == 60020
    assert plain.unsent()["too_big"] == 1


def test_a_link_that_goes_down_changes_the_way():
    state = make_state()
    route.add_route(state, "0.0.0.0/0", "192.168.5.1", 2, metric=10)
    assert way(state, "8.8.8.8")[2] == "10.77.0.1"
    state.set_up(1, False)
    assert way(state, "8.8.8.8") == (2, "192.168.5.2", "192.168.5.1")
    assert way(state, "10.77.0.9") == (2, "192.168.5.2", "192.168.5.1")
    assert way(state, "10.77.0.2") == (0, "10.77.0.2", "00:00:00:00:00:00")     # still ours
    with pytest.raises(OSError):
        ip.path_to(state, "255.255.255.255", interface=1)


def test_without_room_for_another_neighbor_there_is_an_error():
    state = NetState(SECRET)
    ip.create_tables(state, neighbors=4)
    state.add_interface("eth0", OUR_MAC, 1500)
    state.add_address(1, "10.0.0.1/8")
    state.set_up(1, True)
    route.add_route(state, "10.0.0.0/8", None, 1)
    for i in range(4):
        set_neighbor(state, 1, f"10.0.1.{i}", PEER_MAC)
    with pytest.raises(OSError, match="wait"):
        ip.path_to(state, "10.0.2.1")
    assert way(state, "10.0.1.2") == (1, "10.0.0.1", "10.0.1.2")


# --- sending ----------------------------------------------------------------------------------------------------------

def with_peer(features=0, mtu=1500):
    state = make_state(features, mtu)
    set_neighbor(state, 1, "10.77.0.9", PEER_MAC)
    set_neighbor(state, 1, "10.77.0.1", PEER_MAC)
    return state


def rebuilt(frame: bytes) -> bytes:
    """The frame as scapy writes it with lengths and checksums computed anew."""
    packet = Ether(frame)
    for layer, fields in ((IP, ("len", "chksum", "ihl")), (IPv6, ("plen",)), (UDP, ("len", "chksum")),
                          (TCP, ("chksum",)), (ICMP, ("chksum",))):
        if layer in packet:
            for field in fields:
                delattr(packet[layer], field)
    return bytes(packet)


def datagram(source, destination, payload, complete=True):
    """A UDP header and payload; not complete: with only the pseudo header's sum in the checksum field."""
    layer, header = (IPv6, 40) if ":" in destination else (IP, 20)
    octets = bytes(layer(src=source, dst=destination) / UDP(sport=5, dport=7) / Raw(payload))[header:]
    if not complete:
        partial = pseudo_header(source, destination, 17, len(octets))
        while partial >> 16:
            partial = (partial & 0xFFFF) + (partial >> 16)
        octets = octets[:6] + partial.to_bytes(2, "little") + octets[8:]
    return octets


@given(payload=st.binary(max_size=1472), complete=st.booleans())
def test_what_is_sent_is_what_scapy_would_write(payload, complete):
    state = with_peer()
    segment = datagram("10.77.0.2", "10.77.0.9", payload, complete)
    offset = 0 if complete else 6
    assert ip.send_packet(state, "10.77.0.9", 17, segment, hop_limit=9, checksum_offset=offset) == "delivered"
    (frame,) = state.take_output(1)
    assert frame == rebuilt(frame)
    packet = Ether(frame)
    assert (packet.src, packet.dst, packet.type) == (OUR_MAC, PEER_MAC, 0x0800)
    assert (packet[IP].src, packet[IP].dst, packet[IP].ttl) == ("10.77.0.2", "10.77.0.9", 9)
    assert bytes(packet[UDP].payload) == payload
    assert ip.dissect(frame[14:], 4)[0] == "delivered"


def test_a_udp_checksum_of_zero_is_sent_as_ones():
    state = with_peer()
    zero = datagram("10.77.0.2", "10.77.0.9", bytes(2))
    segment = datagram("10.77.0.2", "10.77.0.9", zero[6:8], complete=False)    # cancels itself out
    ip.send_packet(state, "10.77.0.9", 17, segment, checksum_offset=6)
    (frame,) = state.take_output(1)
    assert Ether(frame)[UDP].chksum == 0xFFFF and frame == rebuilt(frame)


def test_a_device_that_completes_checksums_is_left_to_it():
    state = with_peer(features=TX)
    segment = datagram("10.77.0.2", "10.77.0.9", b"data", complete=False)
    ip.send_packet(state, "10.77.0.9", 17, segment, checksum_offset=6)
    (frame,) = state.take_output(1)
    assert frame[34:] == segment


def test_only_tcp_forbids_fragments():
    state = with_peer()
    for protocol in (6, 17, 17, 1):
        assert ip.send_packet(state, "10.77.0.9", protocol, bytes(20)) == "delivered"
    tcp, *others = [Ether(frame)[IP] for frame in state.take_output(1)]
    assert tcp.flags == "DF" and tcp.id == 0
    assert all(other.flags == 0 for other in others)
    assert [(other.id - others[0].id) & 0xFFFF for other in others] == [0, 1, 2]


def test_loopback_frames_are_like_all_others():
    state = make_state()
    state.add_address(0, "2001:db8::1/128")
    for to, segment in (("10.77.0.2", datagram("10.77.0.2", "10.77.0.2", b"x")), ("::1", datagram("::1", "::1", b"y")),
                        ("2001:db8::1", datagram("2001:db8::1", "2001:db8::1", b"z"))):
        assert ip.send_packet(state, to, 17, segment) == "delivered"
    frames = state.take_output(0)
    assert [frame[:12] for frame in frames] == [bytes(12)] * 3
    assert [Ether(frame).type for frame in frames] == [0x0800, 0x86DD, 0x86DD]
    assert all(frame == rebuilt(frame) for frame in frames)
    assert [ip.dissect(frame[14:], 4 if i == 0 else 6)[0] for i, frame in enumerate(frames)] == ["delivered"] * 3


def test_groups_need_no_neighbor():
    state = make_state()
    for to, mac in (("224.0.0.251", "01:00:5e:00:00:fb"), ("255.255.255.255", "ff:ff:ff:ff:ff:ff"),
                    ("10.77.0.255", "ff:ff:ff:ff:ff:ff")):
        assert ip.send_packet(state, to, 17, datagram("10.77.0.2", to, b"hello")) == "delivered"
        (frame,) = state.take_output(1)
        assert Ether(frame).dst == mac and frame == rebuilt(frame)


def test_what_is_too_big_or_finds_no_room_is_counted():
    state = with_peer()
    assert ip.send_packet(state, "10.77.0.9", 17, bytes(1481)) == "too_big"
    assert ip.send_packet(state, "10.77.0.9", 17, bytes(1480)) == "delivered"
    for _ in range(1023):
        assert ip.send_packet(state, "10.77.0.9", 17, bytes(8)) == "delivered"
    assert ip.send_packet(state, "10.77.0.9", 17, bytes(8)) == "interface_queue_full"
    assert {label: n for label, n in state.unsent().items() if n} == {"too_big": 1, "interface_queue_full": 1}
    state.set_up(1, False)          # what waited for the device will never leave
    assert state.unsent()["interface_down"] == 1024
    assert state.take_output(1) == []


def test_a_packet_for_an_unknown_neighbor_waits_and_asks():
    state = make_state()
    assert ip.send_packet(state, "10.77.0.50", 17, datagram("10.77.0.2", "10.77.0.50", b"held")) == "delivered"
    frames = [Ether(frame) for frame in state.take_output(1)]
    assert [frame.type for frame in frames] == [0x0806]
    assert (frames[0].psrc, frames[0].pdst, frames[0].dst) == ("10.77.0.2", "10.77.0.50", "ff:ff:ff:ff:ff:ff")


def test_an_offset_beyond_the_packet_is_refused():
    state = with_peer()
    with pytest.raises(ValueError, match="not within"):
        ip.send_packet(state, "10.77.0.9", 17, bytes(8), checksum_offset=7)
    with pytest.raises(ValueError):
        ip.dissect(b"", 5)
