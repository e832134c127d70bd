"""Tapes: what frames become in pcapng, read back by scapy and by our own reader; what a full tape does."""

import io
import random
import socket

import pytest
from scapy.all import IP, UDP, Ether, PcapNgReader

from mm.frame import RxBurst, TxBurst
from netstack.bpf import BpfProgram
from netstack.verdict import LABELS
from rustosd.capture import pcapng
from rustosd.capture.pcapng import MalformedCapture, Reader, Tally
from rustosd.capture.tape import Drained, Tape
from rustosd.cli.libpcap import FilterError, compiled
from tests.support.host import BROADCAST, MAC, PEER_MAC, PEER_V4, V4, Host

TIME_NS = 1_800_000_000_123_456_789
KIB = 1024


def new_tape(octets=64 * KIB, **options):
    """A tape with its first blocks, for interface 1 of the stack."""
    tape = Tape(octets, **options)
    assert tape.put(pcapng.section("tests"))
    assert tape.put(pcapng.interface("eth7", "the seventh", bytes(6), options.get("snap_octets", 262144), "udp"))
    tape.follow({1: 0})
    return tape


def sent(*frames, parts=False):
    burst = TxBurst()
    for frame in frames:
        burst.append(*((frame[:14], frame[14:20], frame[20:]) if parts else (frame[:14], frame[14:])))
    return burst


def drained(tape):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        octets = b""
        while tape.used:
            assert tape.drain(ours.fileno()) != Drained.GONE
            octets += theirs.recv(1 << 20)
        return octets


def read(octets):
    return Reader().feed(octets)[1]


@pytest.mark.parametrize("length", [14, 15, 16, 17, 60, 1514, 60000])
def test_a_frame_in_parts_is_whole_in_the_capture(length):
    frame, tape = random.Random(length).randbytes(length), new_tape(128 * KIB)
    tape.sent(1, TIME_NS, sent(frame, parts=True), 1)
    octets = drained(tape)
    (packet,) = read(octets)
    assert (packet.octets, packet.length, packet.time_ns) == (frame, length, TIME_NS)
    assert (packet.interface, packet.direction, packet.dropped, packet.lost) == ("eth7", "out", None, 0)
    raw, metadata = PcapNgReader(io.BytesIO(octets))._read_packet(1 << 20)
    assert raw == frame and metadata.wirelen == length and metadata.tsresol == 10**9
    assert (metadata.tshigh << 32 | metadata.tslow) == TIME_NS and metadata.ifname == b"eth7" and metadata.direction == 2


def test_what_came_in_has_its_direction_reception_and_reason():
    host, tape = Host(), new_tape()
    host.know_peer()
    burst = RxBurst()
    burst.keep_ends(True)
    good = Ether(dst=MAC, src=PEER_MAC) / IP(src=PEER_V4, dst=V4)
    frames = [bytes(frame) for frame in (
        good / UDP(dport=9), good / UDP(dport=9, chksum=1), Ether(dst="02:00:00:00:00:77", src=PEER_MAC) / IP(),
        Ether(dst=BROADCAST, src=PEER_MAC, type=0x9999), Ether(dst="01:00:5e:00:00:07", src=PEER_MAC, type=0x9999))]
    for frame in frames:
        burst.append(frame)
    host.stack.receive(host.index, host.now, burst)
    tape.received(1, TIME_NS, burst)
    octets = drained(tape)
    packets = read(octets)
    assert [packet.octets for packet in packets] == frames and {packet.direction for packet in packets} == {"in"}
    assert [packet.dropped for packet in packets] == [
        "udp_port_closed", "udp_checksum", "ethernet_not_for_us", "ethernet_type_unknown", "ethernet_type_unknown"]
    source, receptions, comments = PcapNgReader(io.BytesIO(octets)), [], []
    for _ in frames:
        _, metadata = source._read_packet(1 << 20)
        comments.append(metadata.comments)
    at = octets.index(frames[0]) + len(frames[0])
    assert comments[1] == [b"dropped: udp_checksum"] and octets[at + -len(frames[0]) % 4 + 4] == 1 | 1 << 2
    for frame in frames:
        at = octets.index(frame) + len(frame) + -len(frame) % 4
        receptions.append(octets[at + 4] >> 2)
    assert receptions == [1, 1, 4, 3, 2]


def test_frames_taken_in_have_no_ends_unless_somebody_asks():
    host, burst, tape = Host(), RxBurst(), new_tape()
    burst.append(bytes(60))
    host.stack.receive(host.index, host.now, burst)
    tape.received(1, TIME_NS, burst)
    assert burst.ends_kept() == [] and tape.tally(0) == Tally(0, 0, 0)
    burst.keep_ends(True)
    host.stack.receive(host.index, host.now, burst)
    assert [LABELS[end] for end in burst.ends_kept()] == ["ethernet_not_for_us"]


def test_what_the_device_refused_was_not_sent():
    tape, reader = new_tape(), Reader()
    burst = sent(*(bytes([n]) * 60 for n in range(3)))
    assert burst.refuse() == 3 and burst.refused == 7 and len(burst) == 0
    tape.sent(1, TIME_NS, burst, 3)
    assert [packet.dropped for packet in reader.feed(drained(tape))[1]] == ["device_refused"] * 3
    burst.forget_refused()
    tape.sent(1, TIME_NS, burst, 3)
    assert [packet.dropped for packet in reader.feed(drained(tape))[1]] == [None] * 3


@pytest.mark.parametrize("octets", [4096, 8192])
def test_a_tape_goes_round_and_round(octets):
    tape, draw = new_tape(octets), random.Random(octets)
    reader, seen, expected = Reader(), [], []
    reader.feed(drained(tape))
    for _ in range(500):
        frame = draw.randbytes(draw.randint(14, 1514))
        tape.sent(1, TIME_NS, sent(frame, parts=True), 1)
        expected.append(frame)
        if draw.random() < 0.5 or tape.used > octets - 1600:
            seen += [packet.octets for packet in reader.feed(drained(tape))[1]]
    seen += [packet.octets for packet in reader.feed(drained(tape))[1]]
    assert seen == expected and tape.tally(0) == Tally(500, 500, 0)


def test_a_full_tape_loses_frames_and_says_so_with_the_next():
    tape = new_tape(4096)
    for _ in range(10):
        tape.sent(1, TIME_NS, sent(bytes(1000)), 1)
    kept = read(drained(tape))
    assert 0 < len(kept) < 10 and tape.tally(0) == Tally(10, 10, 10 - len(kept))
    tape.sent(1, TIME_NS, sent(bytes(60)), 1)
    tape.sent(1, TIME_NS, sent(bytes(60)), 1)
    reader = Reader()
    reader.names = ["eth7"]
    assert [packet.lost for packet in reader.feed(drained(tape))[1]] == [10 - len(kept), 0]


def test_a_capture_is_full_after_so_many_frames():
    tape = new_tape(limit=2)
    for _ in range(4):
        tape.sent(1, TIME_NS, sent(bytes(60)), 1)
    assert len(read(drained(tape))) == 2 and tape.left == 0 and tape.tally(0) == Tally(2, 2, 0)


def test_snap_length_cuts_the_octets_and_not_the_length():
    tape = new_tape(snap_octets=33)
    tape.sent(1, TIME_NS, sent(bytes(range(200)), parts=True), 1)
    octets = drained(tape)
    (packet,) = read(octets)
    assert packet.octets == bytes(range(33)) and packet.length == 200
    raw, metadata = PcapNgReader(io.BytesIO(octets))._read_packet(1 << 20)
    assert len(raw) == 33 and metadata.wirelen == 200


def test_the_filter_sees_all_of_a_frame_that_is_cut():
    frame = bytes(Ether() / IP(dst="10.0.0.9") / UDP(dport=53))
    try:
        program = BpfProgram(compiled("udp dst port 53", 262144))
    except FilterError as error:
        pytest.skip(str(error))
    tape = new_tape(snap_octets=14, program=program)
    tape.sent(1, TIME_NS, sent(frame, bytes(Ether() / IP() / UDP(dport=54)), parts=True), 2)
    assert [packet.octets for packet in read(drained(tape))] == [frame[:14]]
    assert tape.tally(0) == Tally(2, 1, 0)


def test_only_the_direction_interface_and_reasons_asked_for():
    burst = RxBurst()
    burst.keep_ends(True)
    host = Host()
    for frame in bytes(13), bytes(60):
        burst.append(frame)
    host.stack.receive(host.index, host.now, burst)
    for options, kept in (({"incoming": False}, 1), ({"outgoing": False}, 2), ({}, 3),
                          ({"reasons": {"ethernet_truncated"}}, 1), ({"reasons": {"no_route"}}, 0)):
        tape = new_tape(**options)
        tape.received(1, TIME_NS, burst)
        tape.received(2, TIME_NS, burst)
        tape.sent(1, TIME_NS, sent(bytes(60)), 1)
        tape.sent(-1, TIME_NS, sent(bytes(60)), 1)
        tape.sent(99, TIME_NS, sent(bytes(60)), 1)
        assert len(read(drained(tape))) == kept, options


def test_statistics_are_the_last_blocks_and_make_a_capture_complete():
    tape, reader = new_tape(), Reader()
    tape.put(pcapng.statistics(0, TIME_NS, TIME_NS + 1, Tally(5, 4, 3)))
    octets = drained(tape)
    for i in range(len(octets)):
        assert not reader.complete
        reader.feed(octets[i:i + 1])
    assert reader.complete and reader.tallies == {"eth7": Tally(5, 4, 3)}


@pytest.mark.parametrize("octets", [bytes(12), b"\x06\0\0\0\x0d\0\0\0" + bytes(8), b"\x06\0\0\0\xff\xff\xff\x7f" + bytes(8),
                                    b"\x06\0\0\0\x20\0\0\0" + bytes(24)])
def test_a_reader_refuses_what_is_no_capture(octets):
    with pytest.raises(MalformedCapture):
        Reader().feed(octets)


def test_a_tape_says_what_sizes_are_possible():
    for octets in (0, 2048, 5000):
        with pytest.raises(ValueError, match="a power of two from 4096 on"):
            Tape(octets)
    with pytest.raises(ValueError, match="has no interface 32"):
        new_tape().follow({1: 32})
    assert not new_tape(4096).put(bytes(4096))


def test_a_reader_that_is_gone_is_noticed():
    tape = new_tape()
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        assert tape.drain(ours.fileno()) == Drained.GONE
