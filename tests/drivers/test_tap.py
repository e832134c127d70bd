"""The TAP driver against the Linux kernel, in a network namespace, and against a hostile peer over a socket pair."""

import random
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from drivers.nic import GONE
from drivers.tap import Tap
from mm.frame import BURST, MAX_FRAME, Feature, RxBurst, TxBurst
from tests.support.netns import Netns

OURS = bytes.fromhex("02000000000a")
THEIRS = bytes.fromhex("02000000000b")
TEST_PROTOCOL = 0x88B5      # IEEE 802 local experimental: the kernel leaves it alone
OFFLOAD = Feature.RX_CHECKSUM | Feature.TX_CHECKSUM | Feature.TSO4 | Feature.TSO6
SIZES = [14, 15, 59, 60, 61, 64, 127, 128, 129, 141, 1013, 1014, 1015, 1499, 1500, 1514, 1515, 4096, 9014, 65534, 65535]
NEEDS_CSUM, DATA_VALID = 1, 2
TCPV4, UDP, TCPV6, ECN = 1, 3, 4, 0x80


def ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True)


def open_tap(offload: bool, mtu: int = 65521) -> Tap:
    """A TAP whose kernel side is up and says nothing on its own."""
    tap = Tap.open("t0", OURS, offload=offload)
    Path("/proc/sys/net/ipv6/conf/t0/disable_ipv6").write_text("1")
    ip("link", "set", "t0", "address", THEIRS.hex(":"), "mtu", str(mtu), "up")
    return tap


def raw_socket() -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind(("t0", TEST_PROTOCOL))
    sock.settimeout(5)
    return sock


def frame_of(size: int, dice: random.Random) -> bytes:
    return OURS + THEIRS + TEST_PROTOCOL.to_bytes(2, "big") + dice.randbytes(size - 14)


def drain(tap: Tap, at_least: int = 0) -> list[bytes]:
    """All frames that wait; TAP hands frames over within the sender's system call, so nothing is ever late."""
    burst, frames = RxBurst(), []
    while tap.receive(burst) > 0:
        frames += burst.frames_bytes()
    assert len(frames) >= at_least
    return frames


# The kernel's frames and ours, whole and in order.

def kernel_to_us(offload: bool) -> None:
    tap, dice = open_tap(offload), random.Random(1)
    sent = [frame_of(size, dice) for size in [*SIZES, *(dice.randint(14, 2000) for _ in range(200))]]
    with raw_socket() as kernel:
        for frame in sent:
            kernel.send(frame)
    assert drain(tap) == sent
    statistics = tap.statistics()
    assert (statistics["rx_frames"], statistics["rx_octets"]) == (len(sent), sum(map(len, sent)))
    assert statistics["rx_dropped"] == 0


def us_to_kernel(offload: bool) -> None:
    tap, dice = open_tap(offload), random.Random(2)
    sent = []
    with raw_socket() as kernel:
        for size in [*SIZES, *(dice.randint(14, 2000) for _ in range(200))]:
            frame = frame_of(size, dice)
            one = dice.randint(14, min(128, size))
            two = dice.choice([one, size, dice.randint(one, size)])
            burst = TxBurst()
            burst.append(frame[:one], frame[one:two], frame[two:])
            assert tap.transmit(burst) == 0 and len(burst) == 0
            assert kernel.recv(1 << 17) == frame
            sent.append(frame)
    statistics = tap.statistics()
    assert (statistics["tx_frames"], statistics["tx_octets"]) == (len(sent), sum(map(len, sent)))


def burst_by_burst(offload: bool) -> None:
    tap, dice, burst = open_tap(offload), random.Random(3), RxBurst()
    sent = [frame_of(100, dice) for _ in range(BURST + 7)]
    with raw_socket() as kernel:
        for frame in sent:
            kernel.send(frame)
    assert tap.receive(burst) == BURST and burst.frames_bytes() == sent[:BURST]
    assert tap.receive(burst) == 7 and burst.frames_bytes() == sent[BURST:]
    assert tap.receive(burst) == 0 and len(burst) == 0


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain"])
@pytest.mark.parametrize("body", [kernel_to_us, us_to_kernel, burst_by_burst])
def test_frames(netns, body, offload):
    netns.call(body, offload)
    assert netns.links() == []


# Super-segments, both ways, through the kernel's own TCP.

class Peer:
    """The far end of one kernel TCP connection, played by hand."""

    def __init__(self, tap: Tap, family: int) -> None:
        self.tap, self.family = tap, family
        self.network = IP(src="10.9.0.2", dst="10.9.0.1") if family == 4 else IPv6(src="fd09::2", dst="fd09::1")
        self.ethernet = Ether(src=OURS, dst=THEIRS)
        self.rx, self.tx = RxBurst(), TxBurst()

    def send(self, packet) -> None:
        self.tx.append(b"", bytes(packet))
        assert self.tap.transmit(self.tx) == 0

    def answer_neighbor(self) -> None:
        for asked in map(Ether, drain(self.tap)):
            if ARP in asked:
                self.send(self.ethernet / ARP(op=2, hwsrc=OURS, psrc="10.9.0.2", hwdst=THEIRS, pdst="10.9.0.1"))
            elif ICMPv6ND_NS in asked and asked[ICMPv6ND_NS].tgt == "fd09::2":
                self.send(self.ethernet / self.network / ICMPv6ND_NA(tgt="fd09::2", R=0, S=1, O=1)
                          / ICMPv6NDOptDstLLAddr(lladdr=OURS.hex(":")))

    def establish(self) -> socket.socket:
        """The kernel connects to us; returns its socket."""
        kernel = socket.socket(socket.AF_INET if self.family == 4 else socket.AF_INET6)
        kernel.setblocking(False)
        kernel.connect_ex(("10.9.0.2" if self.family == 4 else "fd09::2", 7))
        self.answer_neighbor()
        (syn,) = [packet for packet in map(Ether, drain(self.tap)) if TCP in packet]
        self.tcp = TCP(sport=7, dport=syn[TCP].sport, seq=1000, ack=syn[TCP].seq + 1, window=65535)
        answer = self.tcp.copy()
        answer.flags, answer.options = "SA", [("MSS", 1400), ("WScale", 7)]
        self.send(self.ethernet / self.network / answer)
        self.tcp.seq += 1
        drain(self.tap)
        kernel.settimeout(5)
        kernel.getpeername()
        return kernel


def super_segments(family: int) -> None:
    tap = Tap.open("t0", OURS)
    assert tap.features == OFFLOAD
    ip("link", "set", "t0", "address", THEIRS.hex(":"), "up")
    ip("addr", "add", "10.9.0.1/24", "dev", "t0")
    ip("addr", "add", "fd09::1/64", "dev", "t0", "nodad")
    peer = Peer(tap, family)
    kernel = peer.establish()

    # Linux to us: its initial window of ten segments comes in fewer frames (how many depends on the round-trip time).
    data = random.Random(4).randbytes(14000)
    kernel.sendall(data)
    tap.receive(peer.rx)
    frames = map(Ether, peer.rx.frames_bytes())
    rows = [row for row in zip(frames, peer.rx.segment_sizes(), peer.rx.flags(), strict=True) if TCP in row[0]]
    assert b"".join(bytes(frame[TCP].payload) for frame, _, _ in rows) == data
    assert 1 <= len(rows) < 10
    for packet, size, flags in rows:
        assert size == (1400 if len(packet[TCP].payload) > 1400 else 0)
        assert flags == Feature.RX_CHECKSUM
    assert tap.statistics()["rx_super_segments"] == sum(size > 0 for _, size, _ in rows)

    # Us to Linux: 60,000 octets in one write, and neither side sums a checksum.
    data = random.Random(5).randbytes(60000)
    peer.tcp.flags, peer.tcp.ack = "A", peer.tcp.ack + 14000
    whole = bytes(peer.ethernet / peer.network / peer.tcp / data)
    l4 = 34 if family == 4 else 54
    addresses = whole[26:34] if family == 4 else whole[22:54]
    head = bytearray(whole[:l4 + 20])
    head[l4 + 16:l4 + 18] = folded_sum(addresses + struct.pack("!HI", 6, 20 + len(data)))
    peer.tx.append(bytes(head), data[:10001], data[10001:], segment_size=1400, checksum_start=l4, checksum_offset=16,
                   family=family)
    assert tap.transmit(peer.tx) == 0
    received = b""
    while len(received) < len(data):
        received += kernel.recv(1 << 17)
    assert received == data
    assert tap.statistics()["tx_super_segments"] == 1


def folded_sum(octets: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total.to_bytes(2, "big")


@pytest.mark.parametrize("family", [4, 6])
def test_super_segments(netns, family):
    netns.call(super_segments, family)


def wrong_checksum_is_not_vouched_for() -> None:
    """A checksum error in what the kernel forwards is ours to find: only NEEDS_CSUM and DATA_VALID vouch."""
    tap = open_tap(True)
    packet = Ether(src=THEIRS, dst=OURS) / IP(src="10.9.0.1", dst="10.9.0.2") / TCP(chksum=1)
    with raw_socket() as kernel:
        kernel.send(bytes(packet))
    burst = RxBurst()
    assert tap.receive(burst) == 1 and burst.flags() == [0]


def test_wrong_checksum_is_not_vouched_for(netns):
    netns.call(wrong_checksum_is_not_vouched_for)


# What the device says about a frame is checked before it is believed. The device is one end of a socket pair.

@pytest.fixture
def wire():
    """A Tap with offload and the far end of its descriptor."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ours, theirs:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    tap = Tap(ours.detach(), "wire", OURS)
    yield tap, theirs
    tap.close()
    theirs.close()


def header(flags=0, gso_type=0, hdr_len=0, gso_size=0, csum_start=0, csum_offset=0) -> bytes:
    return struct.pack("=BBHHHH", flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)


def packet_of(ethertype: int, size: int = 200) -> bytes:
    return bytes(12) + ethertype.to_bytes(2, "big") + bytes(size - 14)


IPV4, IPV6 = packet_of(0x0800), packet_of(0x86DD)
TAGGED = bytes(12) + bytes.fromhex("8100000586dd") + bytes(182)


@pytest.mark.parametrize(("octets", "reason"), [
    pytest.param(header()[:1], "too_short", id="no header"),
    pytest.param(header()[:9], "too_short", id="part of the header"),
    pytest.param(header(), "too_short", id="no frame"),
    pytest.param(header() + IPV4[:13], "too_short", id="no ethertype"),
    pytest.param(header() + bytes(MAX_FRAME + 1), "too_long", id="an octet too long"),
    pytest.param(header() + bytes(MAX_FRAME + 5000), "too_long", id="far too long"),
    pytest.param(header(NEEDS_CSUM, UDP, 0, 100) + IPV4, "gso_type", id="UDP fragments"),
    pytest.param(header(NEEDS_CSUM, 0x7F, 0, 100) + IPV4, "gso_type", id="unknown kind"),
    pytest.param(header(NEEDS_CSUM, ECN, 0, 100) + IPV4, "gso_type", id="ECN alone"),
    pytest.param(header(NEEDS_CSUM, TCPV4, 0, 0) + IPV4, "gso_size", id="segments of nothing"),
    pytest.param(header(NEEDS_CSUM, TCPV4, 0, 201) + IPV4, "gso_size", id="segment above the frame"),
    pytest.param(header(NEEDS_CSUM, TCPV4, 0, 65535) + IPV4, "gso_size", id="largest segment"),
    pytest.param(header(NEEDS_CSUM, TCPV4, 0, 100) + IPV6, "gso_family", id="TCPv4 in IPv6"),
    pytest.param(header(NEEDS_CSUM, TCPV6, 0, 100) + IPV4, "gso_family", id="TCPv6 in IPv4"),
    pytest.param(header(NEEDS_CSUM, TCPV4, 0, 100) + TAGGED, "gso_family", id="TCPv4 in tagged IPv6"),
    pytest.param(header(NEEDS_CSUM, TCPV4, 0, 10) + packet_of(0x8100, 14), "gso_family", id="tag cut off"),
    pytest.param(header(0, TCPV4, 0, 100) + IPV4, "gso_checksum", id="nobody vouches"),
    pytest.param(header(NEEDS_CSUM, 0, 0, 0, 183, 16) + IPV4, "checksum_range", id="one octet behind the end"),
    pytest.param(header(NEEDS_CSUM, 0, 0, 0, 65535, 65535) + IPV4, "checksum_range", id="largest offsets"),
])
def test_hostile_header(wire, octets, reason):
    tap, far = wire
    good = header() + IPV4
    for datagram in (octets, good):
        far.send(datagram)
    burst = RxBurst()
    assert tap.receive(burst) == 1 and burst.frames_bytes() == [IPV4]
    assert tap.statistics() == {
        "rx_frames": 1, "rx_octets": 200, "rx_dropped": 1, "tx_frames": 0, "tx_octets": 0, "tx_dropped": 0,
        "rx_super_segments": 0, "tx_super_segments": 0, f"rx_dropped_{reason}": 1}


@pytest.mark.parametrize(("octets", "segment_size", "vouched"), [
    pytest.param(header() + IPV4, 0, False, id="plain"),
    pytest.param(header(NEEDS_CSUM, 0, 0, 0, 182, 16) + IPV4, 0, True, id="checksum in the last octets"),
    pytest.param(header(DATA_VALID) + IPV4, 0, True, id="verified"),
    pytest.param(header(0xFC) + IPV4, 0, False, id="unknown flags"),
    pytest.param(header(NEEDS_CSUM, TCPV4, 65535, 200) + IPV4, 200, True, id="absurd hdr_len is but a hint"),
    pytest.param(header(DATA_VALID, TCPV6 | ECN, 0, 1) + IPV6, 1, True, id="ECN"),
    pytest.param(header(NEEDS_CSUM, TCPV6, 0, 100) + TAGGED, 100, True, id="tagged"),
    pytest.param(header() + bytes(MAX_FRAME), 0, False, id="largest"),
])
def test_header_is_applied(wire, octets, segment_size, vouched):
    tap, far = wire
    far.send(octets)
    burst = RxBurst()
    assert tap.receive(burst) == 1 and burst.frames_bytes() == [octets[10:]]
    assert burst.segment_sizes() == [segment_size]
    assert burst.flags() == [Feature.RX_CHECKSUM if vouched else 0]


@given(st.lists(st.tuples(st.binary(min_size=10, max_size=10), st.binary(max_size=300)), max_size=20))
def test_every_datagram_is_a_frame_or_a_counted_drop(datagrams):
    ours, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    tap = Tap(ours.detach(), "wire", OURS)
    for parts in datagrams:
        far.send(b"".join(parts))
    burst = RxBurst()
    tap.receive(burst)
    bodies = iter(body for _header, body in datagrams)
    assert all(frame in bodies for frame in burst.frames_bytes())       # a subsequence, each bit-exact
    assert len(burst) + tap.statistics()["rx_dropped"] == len(datagrams)
    tap.close()
    far.close()


def test_a_flood_of_bad_frames_does_not_hold_receive(wire):
    tap, far = wire
    far.setblocking(False)
    sent = 0
    try:
        while True:
            far.send(b"bad")
            sent += 1
    except BlockingIOError:
        pass
    assert sent > 2 * BURST
    assert tap.receive(RxBurst()) == 0
    assert tap.statistics()["rx_dropped"] == 2 * BURST


def test_super_segments_fill_bursts_in_order(wire):
    tap, far = wire
    sent = [bytes([i]) * MAX_FRAME for i in range(10)]
    got, burst = [], RxBurst()
    for frame in sent:
        far.send(header() + frame)
        if frame[0] % 5 == 4:
            while tap.receive(burst):
                got += burst.frames_bytes()
    assert got == sent


# Refusals, the link, and the end.

def test_full_device_refuses_and_counts(wire):
    tap, _far = wire
    burst, taken = TxBurst(), 0
    while True:
        burst.append(IPV4[:64], bytes(60000))
        if tap.transmit(burst):
            break
        taken += 1
    statistics = tap.statistics()
    assert (statistics["tx_frames"], statistics["tx_dropped"]) == (taken, 1)
    assert statistics["tx_dropped_EAGAIN"] == 1


def test_far_end_closed_is_gone(wire):
    tap, far = wire
    far.send(header() + IPV4)
    far.close()
    burst = RxBurst()
    assert tap.receive(burst) == 1, "what came before the end is delivered"
    assert tap.receive(burst) == GONE and not tap.link_up


def link_states() -> None:
    tap, burst = Tap.open("t0", OURS), TxBurst()
    assert not tap.link_up
    burst.append(b"", IPV4)
    burst.append(b"", IPV4)
    assert tap.transmit(burst) == 2 and tap.statistics()["tx_dropped_EIO"] == 2
    ip("link", "set", "t0", "up")
    assert tap.link_up
    burst.append(b"", IPV4)
    assert tap.transmit(burst) == 0
    ip("link", "delete", "t0")
    assert not tap.link_up
    burst.append(b"", IPV4)
    assert tap.transmit(burst) == 1 and tap.statistics()["tx_dropped_EBADFD"] == 1
    assert tap.receive(RxBurst()) == GONE


def test_link_states(netns):
    netns.call(link_states)


def disappears_when_closed_or_forgotten() -> None:
    tap = Tap.open("t0", OURS)
    tap.close()
    tap.close()
    assert tap.fileno() == -1 and tap.receive(RxBurst()) == GONE and not tap.link_up
    tap = Tap.open("tap%d", OURS)
    assert tap.name == "tap0"
    assert {name for _, name in socket.if_nameindex()} == {"lo", "tap0"}
    del tap
    assert {name for _, name in socket.if_nameindex()} == {"lo"}


def test_disappears_when_closed_or_forgotten(netns):
    netns.call(disappears_when_closed_or_forgotten)


# Opening: what is wrong, and what to do next.

def open_again() -> None:
    keep = Tap.open("t0", OURS)
    Tap.open(keep.name, OURS)


def test_name_in_use(netns):
    with pytest.raises(OSError, match=r"t0 exists already.*`ip link delete t0`"):
        netns.call(open_again)


def test_no_device_file():
    with pytest.raises(FileNotFoundError, match="modprobe tun"):
        Tap.open("t0", OURS, path="/nonexistent/tun")


def test_path_is_something_else():
    with pytest.raises(OSError, match="/dev/null is no TUN/TAP device"):
        Tap.open("t0", OURS, path="/dev/null")


def test_no_permission(netns: Netns):
    program = ("from drivers.tap import Tap\n"
               "try: Tap.open('t0', bytes(6))\n"
               "except PermissionError as error: print(error)")
    done = netns.run("setpriv", "--bounding-set", "-net_admin", sys.executable, "-c", program)
    assert "run as root or with CAP_NET_ADMIN" in done.stdout


@pytest.mark.parametrize("name", ["", "sixteen-octets-x", "a/b", "a b", "..", "ünïcödé-näme"])
def test_impossible_name(name):
    with pytest.raises(ValueError, match="no interface name"):
        Tap.open(name, OURS)


def test_impossible_mac():
    with pytest.raises(ValueError, match="no unicast MAC"):
        Tap(0, "t0", bytes.fromhex("01005e000001"))
