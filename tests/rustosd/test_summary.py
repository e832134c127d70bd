"""Frames in one line: `tcpdump -nS` is the judge where it is installed, of captures that we have written."""

import random
import shutil
import subprocess

import pytest
from scapy.all import (
    ARP,
    ICMP,
    IP,
    TCP,
    UDP,
    Dot1Q,
    Ether,
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    Raw,
)

from mm.frame import TxBurst
from rustosd.capture import pcapng
from rustosd.capture.tape import Tape
from rustosd.cli.summary import summary
from tests.rustosd.capture.test_tape import drained

E = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
V4, V6 = E / IP(src="10.77.0.1", dst="10.77.0.2"), E / IPv6(src="fd77::1", dst="fd77::2")
QUOTED, QUOTED6 = (IP(src="10.77.0.2", dst="10.77.0.1") / UDP(sport=5, dport=99) / b"abcdefgh",
                   IPv6(src="fd77::2", dst="fd77::1") / UDP(sport=5, dport=99) / b"abcdefgh")
SYN = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (123, 0)), ("NOP", None), ("WScale", 7)]
# As tcpdump has them, but that it goes on about what is in well-known ports.
LIKE_TCPDUMP = {
    "arp request": E / ARP(op=1, psrc="10.77.0.1", pdst="10.77.0.2", hwsrc="02:00:00:00:00:01"),
    "arp reply": E / ARP(op=2, psrc="10.77.0.1", pdst="10.77.0.2", hwsrc="02:00:00:00:00:01"),
    "syn": V4 / TCP(sport=40000, dport=4711, flags="S", seq=4294967295, window=64240, options=SYN),
    "syn ack": V6 / TCP(sport=4711, dport=40000, flags="SA", seq=7, ack=8, options=SYN),
    "ack": V4 / TCP(sport=40000, dport=4711, flags="A", seq=1, ack=99),
    "data": V6 / TCP(sport=40000, dport=4711, flags="PA", seq=4294967290, ack=99) / Raw(b"x" * 20),
    "fin": V4 / TCP(sport=40000, dport=4711, flags="FA", seq=5, ack=99),
    "reset": V4 / TCP(sport=40000, dport=4711, flags="R", seq=5),
    "sack": V4 / TCP(sport=40000, dport=4711, flags="A", ack=9,
                     options=[("NOP", None), ("NOP", None), ("SAck", (10, 20, 30, 40))]),
    "ecn": V4 / TCP(sport=40000, dport=4711, flags="SEC", seq=1),
    "udp": V4 / UDP(sport=40000, dport=4711) / Raw(b"x" * 33),
    "udp6": V6 / UDP(sport=40000, dport=4711),
    "echo": V4 / ICMP(type=8, id=7, seq=9) / Raw(b"x" * 56),
    "echo reply": V4 / ICMP(type=0, id=7, seq=9) / Raw(b"x" * 56),
    "echo6": V6 / ICMPv6EchoRequest(id=7, seq=9, data=b"x" * 8),
    "echo6 reply": V6 / ICMPv6EchoReply(id=7, seq=9),
    "port unreachable": V4 / ICMP(type=3, code=3) / QUOTED,
    "host unreachable": V4 / ICMP(type=3, code=1) / QUOTED,
    "net unreachable": V4 / ICMP(type=3, code=0) / QUOTED,
    "protocol unreachable": V4 / ICMP(type=3, code=2) / QUOTED,
    "prohibited": V4 / ICMP(type=3, code=13) / QUOTED,
    "fragmentation needed": V4 / ICMP(type=3, code=4, nexthopmtu=1400) / QUOTED,
    "time exceeded": V4 / ICMP(type=11, code=0) / QUOTED,
    "port unreachable 6": V6 / ICMPv6DestUnreach(code=4) / QUOTED6,
    "no route 6": V6 / ICMPv6DestUnreach(code=0) / QUOTED6,
    "prohibited 6": V6 / ICMPv6DestUnreach(code=1) / QUOTED6,
    "address unreachable 6": V6 / ICMPv6DestUnreach(code=3) / QUOTED6,
    "too big 6": V6 / ICMPv6PacketTooBig(mtu=1280) / QUOTED6,
    "solicitation": V6 / ICMPv6ND_NS(tgt="fd77::2"),
    "advertisement": V6 / ICMPv6ND_NA(tgt="fd77::2"),
    "router solicitation": V6 / ICMPv6ND_RS(),
}
OUR_WORDS = {
    "vlan": (E / Dot1Q(vlan=7) / IP(src="10.77.0.1", dst="10.77.0.2") / ICMP(id=1, seq=2),
             "vlan 7, IP 10.77.0.1 > 10.77.0.2: ICMP echo request, id 1, seq 2, length 8"),
    "time exceeded 6": (V6 / ICMPv6TimeExceeded(code=0) / QUOTED6,
                        "IP6 fd77::1 > fd77::2: ICMP6, time exceeded in-transit, length 64"),
    "lldp": (Ether(src="02:00:00:00:00:01", dst="01:80:c2:00:00:0e", type=0x88CC) / Raw(bytes(46)),
             "02:00:00:00:00:01 > 01:80:c2:00:00:0e, ethertype 0x88cc, length 60"),
    "later fragment": (E / IP(src="10.77.0.1", dst="10.77.0.2", frag=5, proto=17) / Raw(bytes(20)),
                       "IP 10.77.0.1 > 10.77.0.2: fragment at 40, udp"),
    "other protocol": (E / IP(src="10.77.0.1", dst="10.77.0.2", proto=253) / Raw(bytes(20)),
                       "IP 10.77.0.1 > 10.77.0.2: ip-proto-253, length 20"),
    "half a header": (bytes(V4 / TCP())[:40], "IP 10.77.0.1 > 10.77.0.2: tcp [truncated], length 20"),
    "half an address": (bytes(V4)[:20], "02:00:00:00:00:01 > 02:00:00:00:00:02, length 20 [truncated]"),
    "nothing": (b"abc", "length 3 [truncated]"),
}


def as_tcpdump(frames, folder):
    tape, file = Tape(1 << 20), folder / "frames.pcapng"
    tape.put(pcapng.section("tests") + pcapng.interface("eth0", "", None, 262144, ""))
    tape.follow({0: 0})
    for frame in frames:
        burst = TxBurst()
        burst.append(frame[:14], frame[14:])
        tape.sent(0, 0, burst, 1)
    file.write_bytes(drained(tape))
    program = shutil.which("tcpdump") or shutil.which("tcpdump", path="/usr/sbin:/sbin")
    if program is None:
        pytest.skip("needs tcpdump: scripts/test installs it when run as root")
    done = subprocess.run([program, "-nStr", str(file)], capture_output=True, text=True, check=True, timeout=60)
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


def test_lines_are_those_of_tcpdump(tmp_path):
    frames = {name: bytes(frame) for name, frame in LIKE_TCPDUMP.items()}
    lines = as_tcpdump(frames.values(), tmp_path)
    assert {name: summary(frame, len(frame)) for name, frame in frames.items()} == dict(zip(frames, lines, strict=True))


@pytest.mark.parametrize("name", OUR_WORDS)
def test_lines_in_our_own_words(name):
    frame, line = OUR_WORDS[name]
    assert summary(bytes(frame), len(bytes(frame))) == line


def test_a_frame_that_was_cut_still_tells_its_length():
    frame = bytes(V4 / TCP(sport=1, dport=2, flags="A", ack=3) / Raw(bytes(1000)))
    assert summary(frame[:60], len(frame)).endswith("length 1000")


def test_damaged_frames_have_a_line_too():
    draw = random.Random(3)
    for frame in LIKE_TCPDUMP.values():
        octets = bytes(frame)
        for length in range(len(octets) + 1):
            assert summary(octets[:length], len(octets))
        for _ in range(50):
            damaged = bytearray(octets)
            damaged[draw.randrange(len(octets))] = draw.randrange(256)
            line = summary(bytes(damaged), len(octets))
            assert line and "\n" not in line
