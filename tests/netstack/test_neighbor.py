"""Neighbors: ARP and NDP as a peer on the link sees them, and the state machine in virtual time."""

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6Unknown,
    IPv6,
    in6_chksum,
)
from scapy.layers.l2 import ARP, Ether

from netstack import neighbor
from tests.support.host import BROADCAST, MAC, PEER_MAC, PEER_V4, PEER_V6, SECOND, V4, V6, Host

OTHER_MAC = "02:00:00:00:00:09"
SOLICITED_NODE, SOLICITED_MAC = "ff02::1:ff00:2", "33:33:ff:00:00:02"
PEER_LINK_LOCAL = "fe80::1"


def arp(op="who-has", *, mac=PEER_MAC, ip=PEER_V4, target=V4, to=BROADCAST, target_mac="00:00:00:00:00:00", **fields):
    return Ether(src=mac, dst=to) / ARP(op=op, hwsrc=mac, psrc=ip, hwdst=target_mac, pdst=target, **fields)


def arp_answer(mac=PEER_MAC, ip=PEER_V4):
    return arp("is-at", mac=mac, ip=ip, to=MAC, target_mac=MAC)


def solicit(target=V6, *, mac=PEER_MAC, source=PEER_V6, to=SOLICITED_NODE, to_mac=SOLICITED_MAC, hop_limit=255,
            options=None, code=0):
    packet = Ether(src=mac, dst=to_mac) / IPv6(src=source, dst=to, hlim=hop_limit) / ICMPv6ND_NS(tgt=target, code=code)
    if options is None:
        options = b"" if source == "::" else ICMPv6NDOptSrcLLAddr(lladdr=mac)
    return packet / options


def advertise(target=PEER_V6, *, mac=PEER_MAC, source=None, to=V6, to_mac=MAC, hop_limit=255, router=0, solicited=1,
              override=1, options=None):
    packet = Ether(src=mac, dst=to_mac) / IPv6(src=source or target, dst=to, hlim=hop_limit)
    packet /= ICMPv6ND_NA(tgt=target, R=router, S=solicited, O=override)
    return packet / (ICMPv6NDOptDstLLAddr(lladdr=mac) if options is None else options)


@pytest.fixture
def host():
    return Host()


def reachable(address=PEER_V4):
    """A host that knows a neighbor; returns it with what that took already counted."""
    host = Host()
    host.ping(address)
    assert host.receive(arp_answer() if address == PEER_V4 else advertise()) == "delivered"
    host.sent()
    assert host.neighbor(address)["state"] == "reachable"
    host.moved()
    return host


# --- ARP: what others ask and say -----------------------------------------------------------------------------------

def test_request_for_our_address_is_answered_and_its_sender_remembered(host):
    assert host.receive(arp()) == "answered"
    (reply,) = host.sent()
    assert (reply.src, reply.dst) == (MAC, PEER_MAC)
    assert (reply[ARP].op, reply[ARP].hwsrc, reply[ARP].psrc, reply[ARP].hwdst, reply[ARP].pdst) == (
        2, MAC, V4, PEER_MAC, PEER_V4)
    row = host.neighbor(PEER_V4)
    assert (row["state"], row["mac"], row["idle_ns"]) == ("stale", PEER_MAC, None)
    assert host.moved() == {"answered": 1, "#arp_replies_sent": 1}


def test_request_for_somebody_else_is_ignored_and_remembered_by_nobody(host):
    assert host.receive(arp(target="10.77.0.9")) == "arp_not_for_us"
    assert host.sent() == [] and host.stack.neighbors() == []
    assert host.moved() == {"arp_not_for_us": 1}


def test_request_for_somebody_else_updates_a_neighbor_we_know():
    host = reachable()
    generation = host.state.generation
    assert host.receive(arp(mac=OTHER_MAC, target="10.77.0.9")) == "delivered"
    assert host.neighbor(PEER_V4)["mac"] == OTHER_MAC
    assert host.neighbor(PEER_V4)["state"] == "stale"
    assert host.state.generation != generation
    assert host.moved() == {"delivered": 1}


def test_address_probe_for_our_address_is_answered_without_an_entry(host):
    # RFC 5227 2.1.1: the sender has no address yet
    assert host.receive(arp(ip="0.0.0.0")) == "answered"
    (reply,) = host.sent()
    assert reply[ARP].psrc == V4 and reply[ARP].pdst == "0.0.0.0" and reply.dst == PEER_MAC
    assert host.stack.neighbors() == []


def test_answer_nobody_asked_for_makes_no_entry(host):
    assert host.receive(arp_answer()) == "arp_not_for_us"
    assert host.stack.neighbors() == []


def test_our_own_request_that_comes_back_is_no_conflict(host):
    assert host.receive(arp(mac=MAC, ip=V4, target=V4)) == "arp_not_for_us"
    assert host.moved() == {"arp_not_for_us": 1}


@pytest.mark.parametrize("frame", [
    arp(hwtype=6, hwlen=6), arp(ptype=0x86DD, plen=4), arp(hwlen=8), arp(plen=16), arp(op=3), arp(op=0),
    arp(mac="01:00:5e:00:00:01"), arp(mac="00:00:00:00:00:00"), arp(mac=BROADCAST),
    arp(ip="224.0.0.1"), arp(ip="255.255.255.255"), arp(ip="127.0.0.1"), arp(target="224.0.0.1"), arp(target="0.0.0.0"),
    arp("is-at", ip="0.0.0.0", to=MAC),
    bytes(arp())[:41], bytes(arp())[:14],
], ids=lambda frame: frame.summary() if hasattr(frame, "summary") else f"{len(frame)} octets")
def test_malformed_arp_is_dropped(host, frame):
    assert host.receive(frame) == "arp_malformed"
    assert host.sent() == [] and host.stack.neighbors() == []
    assert host.moved() == {"arp_malformed": 1}


def test_claim_on_our_address_is_counted_and_contradicted_every_ten_seconds_at_most(host):
    claim = arp(mac=OTHER_MAC, ip=V4, target=V4)
    assert host.receive(claim, claim) == ["arp_address_conflict"] * 2
    (defence,) = host.sent()
    assert defence.dst == BROADCAST and defence[ARP].psrc == defence[ARP].pdst == V4 and defence[ARP].hwsrc == MAC
    host.advance(9.9)
    host.receive(claim)
    assert host.sent() == []
    host.advance(0.2)
    host.receive(claim)
    assert len(host.sent()) == 1
    assert host.moved() == {"arp_address_conflict": 4, "#arp_requests_sent": 2}
    assert host.stack.neighbors() == []


# --- ARP: what we ask -----------------------------------------------------------------------------------------------

def test_new_address_is_announced_twice_two_seconds_apart():
    # RFC 5227 2.3
    host = Host(addresses=[], settled=False)
    host.stack.add_address(host.index, "10.77.0.2/24")
    for wait in (1.9, 0.1, 60):
        announcements = [frame for frame in host.sent() if ARP in frame]
        assert len(announcements) == (wait != 0.1), wait
        assert all(a.dst == BROADCAST and a[ARP].op == 1 and a[ARP].psrc == a[ARP].pdst == V4 for a in announcements)
        host.advance(wait)
    assert host.sent() == []


def test_packet_waits_for_the_answer_and_then_goes_to_it(host):
    host.ping(PEER_V4)
    (request,) = host.sent()
    assert (request.dst, request[ARP].op, request[ARP].pdst, request[ARP].psrc) == (BROADCAST, 1, PEER_V4, V4)
    assert host.neighbor(PEER_V4) == {
        "address": PEER_V4, "interface": host.index, "mac": None, "state": "incomplete", "router": False, "waiting": 1,
        "idle_ns": 0}
    assert host.receive(arp_answer()) == "delivered"
    (packet,) = host.sent()
    assert (packet.src, packet.dst, packet[IP].dst) == (MAC, PEER_MAC, PEER_V4)
    assert (host.neighbor(PEER_V4)["state"], host.neighbor(PEER_V4)["waiting"]) == ("reachable", 0)
    assert host.moved() == {"delivered": 1, "#arp_requests_sent": 1}


def test_request_heard_while_we_ask_is_an_answer_that_proves_less(host):
    host.ping(PEER_V4)
    host.receive(arp())
    frames = host.sent()
    assert [ARP in frame for frame in frames] == [True, False, True]
    # RFC 4861 7.3.3: a packet went to a STALE neighbor
    assert host.neighbor(PEER_V4)["state"] == "delay"


def test_broadcast_answer_proves_less_than_one_to_us(host):
    host.ping(PEER_V4)
    host.receive(arp("is-at", to=BROADCAST))
    assert host.neighbor(PEER_V4)["state"] == "delay"


def test_silence_is_asked_three_times_then_every_waiting_packet_fails(host):
    for sequence in range(3):
        host.ping(PEER_V4, sequence)
    asked = []
    for _ in range(6):
        asked.append(len([f for f in host.sent() if ARP in f]))
        host.advance(1)
    assert asked == [1, 1, 1, 0, 0, 0]
    assert host.neighbor(PEER_V4)["state"] == "failed"
    assert host.moved() == {"#arp_requests_sent": 3, "unsent_neighbor_failed": 3}


def test_failed_neighbor_fails_at_once_for_five_seconds_and_is_asked_again_after(host):
    host.ping(PEER_V4)
    host.advance(3)
    host.sent()
    host.moved()
    with pytest.raises(OSError) as caught:
        host.ping(PEER_V4)
    assert caught.value.errno == errno.EHOSTUNREACH
    assert host.sent() == []
    assert host.moved() == {"unsent_neighbor_failed": 1}
    host.advance(5)
    assert host.neighbor(PEER_V4) is None
    host.ping(PEER_V4)
    assert len(host.sent()) == 1


def test_failed_neighbor_that_speaks_up_is_used_again(host):
    host.ping(PEER_V4)
    host.advance(3)
    host.sent()
    host.receive(arp())
    host.sent()
    host.ping(PEER_V4)
    (packet,) = host.sent()
    assert packet.dst == PEER_MAC


def test_oldest_of_too_many_waiting_packets_goes(host):
    for sequence in range(neighbor.NEIGHBOR_WAITING + 2):
        host.ping(PEER_V4, sequence)
    host.receive(arp_answer())
    packets = [frame for frame in host.sent() if IP in frame]
    assert [packet["ICMP"].seq for packet in packets] == list(range(2, neighbor.NEIGHBOR_WAITING + 2))
    assert host.moved() == {"delivered": 1, "#arp_requests_sent": 1, "unsent_neighbor_queue_full": 2}


# --- NDP: what others ask and say -----------------------------------------------------------------------------------

def test_solicitation_is_answered_and_its_sender_remembered(host):
    assert host.receive(solicit()) == "answered"
    (reply,) = host.sent()
    assert (reply.src, reply.dst, reply[IPv6].src, reply[IPv6].dst) == (MAC, PEER_MAC, V6, PEER_V6)
    assert reply[IPv6].hlim == 255
    na = reply[ICMPv6ND_NA]
    assert (na.R, na.S, na.O, na.tgt, na[ICMPv6NDOptDstLLAddr].lladdr) == (0, 1, 1, V6, MAC)
    checksum = na.cksum
    del na.cksum
    assert Ether(bytes(reply))[ICMPv6ND_NA].cksum == checksum
    assert (host.neighbor(PEER_V6)["state"], host.neighbor(PEER_V6)["mac"]) == ("stale", PEER_MAC)
    assert host.moved() == {"answered": 1, "#ndp_advertisements_sent": 1}


def test_unicast_solicitation_without_option_is_answered_to_the_frame_source(host):
    # RFC 4861 7.2.4 allows to leave the option out of a unicast reachability probe
    assert host.receive(solicit(to=V6, to_mac=MAC, options=b"")) == "answered"
    (reply,) = host.sent()
    assert reply.dst == PEER_MAC
    assert host.stack.neighbors() == []


@pytest.mark.parametrize("mac", ["03:00:00:00:00:99", BROADCAST])
def test_solicitation_from_no_station_is_not_answered(host, mac):
    assert host.receive(solicit(to=V6, to_mac=MAC, mac=mac, options=b"")) == "ndp_malformed"    # the answer would go to a group
    assert host.sent() == []


def test_duplicate_address_probe_for_our_address_is_answered_to_all_nodes(host):
    assert host.receive(solicit(source="::")) == "answered"
    (reply,) = host.sent()
    assert (reply.dst, reply[IPv6].dst) == ("33:33:00:00:00:01", "ff02::1")
    assert (reply[ICMPv6ND_NA].S, reply[ICMPv6ND_NA].O, reply[ICMPv6ND_NA].tgt) == (0, 1, V6)
    assert host.stack.neighbors() == []
    assert host.moved() == {"answered": 1, "#ndp_advertisements_sent": 1}


def test_solicitation_for_an_address_with_the_same_group_is_not_for_us(host):
    assert host.receive(solicit("fd99::2")) == "ndp_not_for_us"
    assert host.moved() == {"ndp_not_for_us": 1}


def option(kind, octets, length=None):
    body = bytes([kind, length if length is not None else (len(octets) + 2) // 8]) + octets
    return body


@pytest.mark.parametrize(("frame", "verdict"), [
    (solicit(hop_limit=254), "ndp_hop_limit"),
    (advertise(hop_limit=64), "ndp_hop_limit"),
    (solicit(code=1), "ndp_malformed"),
    (solicit("ff02::1"), "ndp_malformed"),
    (solicit("::"), "ndp_malformed"),
    (solicit(source="::", to=V6, to_mac=MAC), "ipv6_source"),
    (solicit(source="::", to="ff02::1", to_mac="33:33:00:00:00:01"), "ndp_malformed"),
    (solicit(source="::", options=ICMPv6NDOptSrcLLAddr(lladdr=PEER_MAC)), "ndp_malformed"),
    (solicit(options=option(1, bytes(6), 0)), "ndp_malformed"),
    (solicit(options=option(14, bytes(6), 2)), "ndp_malformed"),
    (solicit(options=option(14, b"")), "ndp_malformed"),
    (solicit(options=option(1, bytes(14))), "ndp_malformed"),
    (solicit(options=ICMPv6NDOptSrcLLAddr(lladdr="33:33:00:00:00:01")), "ndp_malformed"),
    (solicit(options=ICMPv6NDOptSrcLLAddr(lladdr="00:00:00:00:00:00")), "ndp_malformed"),
    (advertise("ff02::1", source=PEER_V6), "ndp_malformed"),
    (advertise(to="ff02::1", to_mac="33:33:00:00:00:01", solicited=1), "ndp_malformed"),
    (advertise(options=option(2, bytes(6), 0)), "ndp_malformed"),
])
def test_invalid_ndp_is_dropped(host, frame, verdict):
    # RFC 4861 7.1.1, 7.1.2
    assert host.receive(frame) == verdict
    assert host.sent() == [] and host.stack.neighbors() == []
    assert host.moved() == {verdict: 1}


@pytest.mark.parametrize("cut", [4, 8, 23])
def test_short_ndp_is_dropped(host, cut):
    whole = solicit(options=b"")
    body = bytearray(bytes(whole[ICMPv6ND_NS])[:cut])
    body[2:4] = bytes(2)
    headers = Ether(src=PEER_MAC, dst=SOLICITED_MAC) / IPv6(src=PEER_V6, dst=SOLICITED_NODE, hlim=255, nh=58)
    body[2:4] = in6_chksum(58, headers[IPv6], bytes(body)).to_bytes(2, "big")
    assert host.receive(headers / bytes(body)) == "ndp_malformed"


def test_unknown_options_are_stepped_over(host):
    assert host.receive(solicit(options=ICMPv6NDOptMTU() / ICMPv6NDOptSrcLLAddr(lladdr=OTHER_MAC))) == "answered"
    assert host.neighbor(PEER_V6)["mac"] == OTHER_MAC


def test_wrong_checksum_is_no_ndp(host):
    frame = bytearray(bytes(solicit()))
    frame[-1] ^= 1
    assert host.receive(bytes(frame)) == "icmp_checksum"


@pytest.mark.parametrize("message", [
    ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=PEER_MAC), ICMPv6ND_RA(),
    ICMPv6ND_Redirect(tgt=PEER_LINK_LOCAL, dst="fd99::1"),
], ids=["solicitation", "advertisement", "redirect"])
def test_router_messages_have_no_effect(host, message):
    generation, routes = host.state.generation, host.stack.routes()
    frame = Ether(src=PEER_MAC, dst="33:33:00:00:00:01") / IPv6(src=PEER_LINK_LOCAL, dst="ff02::1", hlim=255) / message
    assert host.receive(frame) == "ndp_ignored"
    assert host.moved() == {"ndp_ignored": 1}
    assert (host.state.generation, host.stack.routes(), host.stack.neighbors()) == (generation, routes, [])
    frame[IPv6].src = PEER_V6       # RFC 4861 6.1.2, 8.1: only a router on the link may say so
    if not message.haslayer(ICMPv6ND_RS):
        frame[IPv6].remove_payload()
        assert host.receive(frame / message) == "ndp_malformed"


# RFC 4861 7.2.5 and appendix C: what an advertisement does to an entry that has a MAC
@pytest.mark.parametrize(("state", "solicited", "override", "mac", "after", "mac_after"), [
    ("reachable", 1, 0, PEER_MAC, "reachable", PEER_MAC),
    ("stale", 1, 0, PEER_MAC, "reachable", PEER_MAC),
    ("stale", 1, 1, OTHER_MAC, "reachable", OTHER_MAC),
    ("reachable", 1, 1, OTHER_MAC, "reachable", OTHER_MAC),
    ("reachable", 0, 1, OTHER_MAC, "stale", OTHER_MAC),
    ("reachable", 0, 1, PEER_MAC, "reachable", PEER_MAC),
    ("reachable", 1, 0, OTHER_MAC, "stale", PEER_MAC),
    ("reachable", 0, 0, OTHER_MAC, "stale", PEER_MAC),
    ("stale", 1, 0, OTHER_MAC, "stale", PEER_MAC),
    ("stale", 0, 0, PEER_MAC, "stale", PEER_MAC),
    ("stale", 1, 1, None, "reachable", PEER_MAC),
    ("stale", 1, 0, None, "reachable", PEER_MAC),
])
def test_advertisement_about_a_known_neighbor(state, solicited, override, mac, after, mac_after):
    host = reachable(PEER_V6)
    if state == "stale":
        host.advance(46)
    assert host.neighbor(PEER_V6)["state"] == state
    generation = host.state.generation
    frame = advertise(mac=mac or PEER_MAC, solicited=solicited, override=override, options=None if mac else b"")
    assert host.receive(frame) == "delivered"
    row = host.neighbor(PEER_V6)
    assert (row["state"], row["mac"]) == (after, mac_after)
    assert (host.state.generation != generation) == (mac_after != PEER_MAC)


@pytest.mark.parametrize(("solicited", "options", "after"), [(1, None, "reachable"), (0, None, "delay"),
                                                             (1, b"", "incomplete")])
def test_advertisement_about_a_neighbor_we_look_for(host, solicited, options, after):
    host.ping(PEER_V6)
    host.sent()
    assert host.receive(advertise(solicited=solicited, override=0, options=options)) == (
        "ndp_not_for_us" if after == "incomplete" else "delivered")
    assert host.neighbor(PEER_V6)["state"] == after
    assert [ICMPv6EchoRequest in frame for frame in host.sent()] == ([] if after == "incomplete" else [True])


def test_advertisement_says_who_is_a_router():
    host = reachable(PEER_V6)
    assert not host.neighbor(PEER_V6)["router"]
    host.receive(advertise(router=1))
    assert host.neighbor(PEER_V6)["router"]
    host.receive(advertise(router=0))
    assert not host.neighbor(PEER_V6)["router"]


def test_advertisement_nobody_asked_for_makes_no_entry(host):
    assert host.receive(advertise(solicited=0, to="ff02::1", to_mac="33:33:00:00:00:01")) == "ndp_not_for_us"
    assert host.stack.neighbors() == []


# --- NDP: what we ask -----------------------------------------------------------------------------------------------

def test_unknown_neighbor_is_solicited_from_the_address_of_the_packet(host):
    host.ping(PEER_V6)
    (frame,) = host.sent()
    assert (frame.dst, frame[IPv6].src, frame[IPv6].dst) == ("33:33:ff:00:00:01", V6, "ff02::1:ff00:1")
    assert frame[IPv6].hlim == 255
    assert frame[ICMPv6ND_NS].tgt == PEER_V6 and frame[ICMPv6NDOptSrcLLAddr].lladdr == MAC
    host.receive(advertise())
    (packet,) = host.sent()
    assert packet.dst == PEER_MAC and packet[IPv6].dst == PEER_V6
    assert host.moved() == {"delivered": 1, "#ndp_solicitations_sent": 1}


def test_silent_ipv6_neighbor_is_solicited_three_times(host):
    host.ping(PEER_V6)
    host.advance(10)
    assert [ICMPv6ND_NS in frame for frame in host.sent()] == [True] * 3
    assert host.moved() == {"#ndp_solicitations_sent": 3, "unsent_neighbor_failed": 1}


# --- reachability in time -------------------------------------------------------------------------------------------

def test_reachable_becomes_stale_after_15_to_45_seconds():
    host = reachable()
    host.advance(14.9)
    assert host.neighbor(PEER_V4)["state"] == "reachable"
    host.advance(30.2)
    assert host.neighbor(PEER_V4)["state"] == "stale"
    assert host.stack.wake_at() is None and host.sent() == []


def test_reachable_time_differs_between_hosts():
    times = set()
    for seed in range(5):
        host = Host()
        host.stack = type(host.stack)(bytes([seed]) * 16, now=host.now)
        host.state = host.stack.state
        host.index = host.stack.add_interface("tap0", bytes.fromhex(MAC.replace(":", "")), 1500, link_local=False)
        host.stack.add_address(host.index, "10.77.0.2/24")
        host.advance(3)
        host.ping(PEER_V4)
        host.receive(arp_answer())
        times.add(host.stack.wake_at() - host.now)
        host.advance(1)
        times.add(host.stack.wake_at() - host.now + SECOND)
    assert len(times - {SECOND}) >= 4
    assert all(14 * SECOND < t < 46 * SECOND for t in times - {SECOND})


@pytest.mark.parametrize("address", [PEER_V4, PEER_V6])
def test_stale_neighbor_in_use_is_probed_by_unicast_and_goes_when_silent(address):
    host = reachable(address)
    host.advance(46)
    host.moved()
    generation = host.state.generation
    host.ping(address)
    assert len(host.sent()) == 1, "a STALE neighbor's MAC is used"
    assert host.neighbor(address)["state"] == "delay"
    host.advance(4.9)
    assert host.sent() == []
    for wait in (0.2, 1, 1):
        host.advance(wait)
        (probe,) = host.sent()
        assert probe.dst == PEER_MAC and (ARP in probe or ICMPv6ND_NS in probe)
        assert ICMPv6ND_NS not in probe or probe[IPv6].dst == PEER_V6
        assert host.neighbor(address)["state"] == "probe"
    host.ping(address)
    assert len(host.sent()) == 1, "PROBE still sends"
    host.advance(1)
    assert host.neighbor(address) is None and host.sent() == []
    assert host.state.generation != generation
    label = "#arp_requests_sent" if address == PEER_V4 else "#ndp_solicitations_sent"
    assert host.moved() == {label: 3}


def test_answer_to_a_probe_makes_it_reachable_again():
    host = reachable()
    host.advance(46)
    host.ping(PEER_V4)
    host.advance(5)
    host.receive(arp_answer())
    assert host.neighbor(PEER_V4)["state"] == "reachable"
    host.sent()
    host.advance(14)
    assert host.sent() == [] and host.neighbor(PEER_V4)["state"] == "reachable"


# --- our IPv6 addresses ---------------------------------------------------------------------------------------------

def fresh(address=f"{V6}/64"):
    """A host whose IPv6 address was added this instant."""
    host = Host(addresses=[])
    host.stack.add_address(host.index, address)
    return host


def state_of(host, address=f"{V6}/64"):
    return next(row["state"] for row in host.stack.addresses() if row["address"] == address)


def test_new_ipv6_address_is_probed_and_usable_after_a_second():
    host = fresh()
    (probe,) = host.sent()
    assert (probe.dst, probe[IPv6].src, probe[IPv6].dst) == (SOLICITED_MAC, "::", SOLICITED_NODE)
    assert probe[ICMPv6ND_NS].tgt == V6 and ICMPv6NDOptSrcLLAddr not in probe
    assert state_of(host) == "tentative"
    assert host.receive(solicit()) == "ndp_not_for_us", "RFC 4862 5.4.3: not answered yet"
    host.advance(0.99)
    assert state_of(host) == "tentative"
    generation = host.state.generation
    host.advance(0.02)
    assert state_of(host) == "preferred" and host.state.generation != generation
    assert host.receive(solicit()) == "answered"


@pytest.mark.parametrize("frame", [
    solicit(source="::", mac=OTHER_MAC),
    advertise(V6, mac=OTHER_MAC, to="ff02::1", to_mac="33:33:00:00:00:01", solicited=0),
], ids=["another prober", "the owner"])
def test_address_that_another_has_is_never_used(frame):
    host = fresh()
    host.moved()
    assert host.receive(frame) == "ndp_address_conflict"
    host.advance(10)
    assert state_of(host) == "duplicate"
    assert host.moved() == {"ndp_address_conflict": 1, "#dad_conflicts": 1}
    assert host.receive(solicit()) == "ndp_not_for_us" or not host.state.is_own(V6)
    assert not host.state.is_own(V6)


def test_our_own_probe_that_comes_back_is_no_duplicate():
    host = fresh()
    (probe,) = host.sent()
    assert host.receive(bytes(probe)) == "ndp_not_for_us"
    host.advance(1)
    assert state_of(host) == "preferred"


def test_claim_on_our_address_in_use_changes_nothing(host):
    claim = advertise(V6, source=PEER_LINK_LOCAL, mac=OTHER_MAC, to="ff02::1", to_mac="33:33:00:00:00:01", solicited=0)
    assert host.receive(claim) == "ndp_address_conflict"
    assert state_of(host) == "preferred" and host.stack.neighbors() == []
    assert host.moved() == {"ndp_address_conflict": 1}


def test_link_that_comes_back_starts_detection_and_announcements_again(host):
    host.stack.set_link(host.index, False)
    host.stack.set_link(host.index, True)
    assert state_of(host) == "tentative"
    kinds = sorted(type(frame.payload).__name__ for frame in host.sent())
    assert kinds == ["ARP", "IPv6", "IPv6"]
    host.advance(1)
    assert state_of(host) == "preferred"


def test_address_added_while_the_link_is_down_waits_for_it():
    host = Host(addresses=[])
    host.stack.set_link(host.index, False)
    host.stack.add_address(host.index, f"{V6}/64")
    host.advance(10)
    assert state_of(host) == "tentative" and host.stack.wake_at() is None
    host.stack.set_link(host.index, True)
    host.advance(1)
    assert state_of(host) == "preferred"


# --- bounds ---------------------------------------------------------------------------------------------------------

def test_strangers_cannot_push_out_neighbors_in_use():
    host = Host(neighbors=8)
    host.ping(PEER_V4)
    host.receive(arp_answer())
    host.sent()
    host.moved()
    for n in range(50, 80):
        assert host.receive(arp(mac=f"02:00:00:00:01:{n:02x}", ip=f"10.77.0.{n}")) == "answered"
    assert len(host.stack.neighbors()) == 8
    assert host.neighbor(PEER_V4)["mac"] == PEER_MAC
    assert len(host.sent()) == 30
    assert host.moved() == {"answered": 30, "#arp_replies_sent": 30, "#neighbor_evictions": 23}


def test_asking_for_addresses_nobody_has_takes_half_the_table():
    host = Host(neighbors=8)
    for n in range(50, 60):
        host.receive(arp(mac=f"02:00:00:00:01:{n:02x}", ip=f"10.77.0.{n}"))
    host.sent()
    for n in range(100, 104):
        host.ping(f"10.77.0.{n}")
    with pytest.raises(OSError) as caught:
        host.ping("10.77.0.104")
    assert caught.value.errno == errno.ENOBUFS
    states = [row["state"] for row in host.stack.neighbors()]
    assert (states.count("stale"), states.count("incomplete")) == (4, 4)
    host.advance(3)
    host.ping("10.77.0.104")        # pushes out one that failed
    states = [row["state"] for row in host.stack.neighbors()]
    assert (states.count("stale"), states.count("incomplete"), states.count("failed")) == (4, 1, 3)


# --- operators ------------------------------------------------------------------------------------------------------

def test_fixed_neighbor_is_used_at_once_and_believes_nobody(host):
    host.stack.set_neighbor(host.index, PEER_V4, PEER_MAC)
    host.receive(arp(mac=OTHER_MAC))
    host.receive(arp_answer(mac=OTHER_MAC))
    host.sent()
    host.ping(PEER_V4)
    (packet,) = host.sent()
    assert packet.dst == PEER_MAC
    host.advance(100)
    assert host.neighbor(PEER_V4)["state"] == "permanent" and host.sent() == []


def test_fixing_a_neighbor_releases_what_waits_for_it(host):
    host.ping(PEER_V6)
    host.sent()
    host.stack.set_neighbor(host.index, PEER_V6, PEER_MAC)
    (packet,) = host.sent()
    assert packet.dst == PEER_MAC


def test_removed_neighbor_is_looked_for_again():
    host = reachable()
    assert host.stack.remove_neighbor(host.index, PEER_V4)
    assert not host.stack.remove_neighbor(host.index, PEER_V4)
    host.ping(PEER_V4)
    (request,) = host.sent()
    assert ARP in request


@pytest.mark.parametrize(("interface", "address", "mac", "error"), [
    (1, "10.77.0.1", "02:00:00:00:00", ValueError), (1, "10.77.0.1", "nonsense", ValueError),
    (1, "10.77.0.1", "01:00:5e:00:00:01", ValueError), (1, "224.0.0.1", PEER_MAC, ValueError),
    (1, "0.0.0.0", PEER_MAC, ValueError), (1, "10.77.0", PEER_MAC, ValueError),
    (0, "10.77.0.1", PEER_MAC, OSError), (9, "10.77.0.1", PEER_MAC, OSError), (99, "10.77.0.1", PEER_MAC, OSError),
])
def test_neighbor_that_cannot_be_is_refused(host, interface, address, mac, error):
    with pytest.raises(error):
        host.stack.set_neighbor(interface, address, mac)


def test_link_that_goes_takes_learned_neighbors_along_and_its_removal_all(host):
    host.stack.set_neighbor(host.index, PEER_V4, PEER_MAC)
    host.ping(PEER_V6)
    host.moved()
    host.stack.set_link(host.index, False)
    assert [row["address"] for row in host.stack.neighbors()] == [PEER_V4]
    assert host.moved()["unsent_interface_down"] >= 1
    host.stack.remove_interface(host.index)
    assert host.stack.neighbors() == []


# --- whatever comes -------------------------------------------------------------------------------------------------

CORPUS = [bytes(frame) for frame in (
    arp(), arp(ip="0.0.0.0"), arp_answer(), arp(mac=OTHER_MAC, ip=V4), solicit(), solicit(source="::"), advertise(),
    advertise(solicited=0, override=0, mac=OTHER_MAC))]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(CORPUS), st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)),
                                                            max_size=3),
                          st.integers(0, 100), st.floats(0, 20)), max_size=12))
def test_any_frames_in_any_order_end_once_and_time_goes_on(frames):
    host = Host(neighbors=4)
    for octets, changes, cut, wait in frames:
        frame = bytearray(octets)
        for at, value in changes:
            if at < len(frame):
                frame[at] = value
        host.receive(bytes(frame[:cut] if cut < 60 else frame))
        try:
            host.ping(PEER_V4 if wait < 10 else PEER_V6)
        except OSError as e:
            assert e.errno in (errno.EHOSTUNREACH, errno.ENOBUFS)
        host.advance(wait)
        assert len(host.stack.neighbors()) <= 4
        host.sent()
    assert sum(host.stack.verdicts().values()) == len(frames)


@settings(max_examples=200, deadline=None)
@given(kind=st.integers(133, 137), body=st.binary(max_size=80),
       source=st.sampled_from([PEER_V6, PEER_LINK_LOCAL, "::"]))
def test_any_ndp_body_is_judged(kind, body, source):
    host = Host()
    frame = Ether(src=PEER_MAC, dst=SOLICITED_MAC) / IPv6(src=source, dst=SOLICITED_NODE, hlim=255)
    assert host.receive(frame / ICMPv6Unknown(type=kind, code=0, msgbody=body)) in {
        "ndp_malformed", "ndp_not_for_us", "ndp_ignored", "answered", "delivered", "icmp_truncated", "icmp_checksum",
        "ndp_address_conflict"}
