"""What the wire and scarcity do to us: malformed segments, ICMP, silence, memory that runs out."""

import errno
import random
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from netstack.wire import tcp as wire
from tests.netstack.tcp.timeline import OURS, PEERS, Timeline

S = 1_000_000_000


# -- malformed -------------------------------------------------------------------------------------

@pytest.mark.parametrize("state", ["LISTEN", "ESTABLISHED"])
def test_wrong_checksum_is_dropped_in_silence(timeline, family, state):
    t = timeline(family)
    t.listen()
    if state == "ESTABLISHED":
        t.accept()
    t.mark()
    t.inject("S" if state == "LISTEN" else "A", payload=b"x", checksum=0x1234)
    t.quiet(1)
    assert t.verdicts() == {"tcp_checksum": 1} and t.counters() == {}       # RFC9293 MUST-3


def test_device_that_vouches_for_the_checksum_is_believed(timeline):
    t = timeline().accept()
    t.receive(bytes(t.build("A", payload=b"x", checksum=0x1234)), 1)
    assert t.verdicts() == {"delivered": 1}
    t.drain(0.04)


@pytest.mark.parametrize("octets, verdict", [
    (b"", "tcp_truncated"), (bytes(19), "tcp_truncated"), (bytes(12) + b"\x40" + bytes(7), "tcp_header_length"),
    (bytes(12) + b"\x60" + bytes(7), "tcp_header_length"), (bytes(12) + b"\xf0" + bytes(40), "tcp_header_length")])
def test_impossible_lengths_are_named(timeline, octets, verdict):
    t = timeline()
    t.receive(bytes(Ether(src="02:00:00:00:00:99", dst="02:00:00:00:00:01")
                    / IP(src=PEERS[4], dst=OURS[4], proto=6) / octets))
    t.quiet()
    assert t.verdicts() == {verdict: 1}


@pytest.mark.parametrize("mac", ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"])
def test_group_frames_are_no_tcp(timeline, mac):
    t = timeline()
    t.listen()
    packet = t.build("S", seq=0)
    packet.dst = mac
    t.receive(bytes(packet))
    t.quiet()
    assert t.verdicts() == {"tcp_multicast": 1}     # RFC9293 MUST-57


@pytest.mark.parametrize("options", [
    [("NOP", None)] * 40, [(2, b"")], [(2, b"\x05")], [(254, b"x" * 30)], [(3, b"\x0e\x0e")], [(8, b"1234567")],
    [(5, b"")], [(5, b"1234567")], [(5, b"12345678" * 4)], [("EOL", None), ("MSS", 5)]])
def test_odd_options_do_not_matter(timeline, options):
    t = timeline()
    t.listen()
    t.inject("S", seq=0, raw_options=options)       # RFC9293 MUST-5, MUST-6, MUST-7
    t.expect("SA", seq=0, ack=1)
    t.inject("A", seq=1, ack=1)
    t.news("ACCEPTED")


def test_option_of_length_0_or_1_ends_the_list():
    for length in (0, 1):
        segment = bytes(12) + b"\x70\x02" + bytes(6) + bytes([9, length, 2, 4, 1, 0, 0, 0])
        assert wire.parse(segment)["mss"] is None   # RFC9293 MUST-7


uint32 = st.integers(0, 2 ** 32 - 1)
uint16 = st.integers(0, 2 ** 16 - 1)
plain_options = st.fixed_dictionaries({
    "timestamp": st.none() | st.tuples(uint32, uint32),
    "sack": st.lists(st.tuples(uint32, uint32), max_size=3).map(tuple)})
syn_options = st.fixed_dictionaries({
    "mss": st.integers(1, 65535), "window_scale": st.none() | st.integers(0, 14), "sack_permitted": st.booleans(),
    "timestamp": st.none() | st.tuples(uint32, uint32)})


@given(ports=st.tuples(uint16, uint16), seq=uint32, ack=uint32, flags=st.integers(0, 255), window=uint16,
       payload=st.binary(max_size=100), options=plain_options | syn_options)
def test_parse_is_the_inverse_of_emit_and_scapy_agrees(ports, seq, ack, flags, window, payload, options):
    segment = wire.emit(*ports, seq, ack, flags, window, payload, **options)
    found = wire.parse(segment)
    expected = {"source_port": ports[0], "destination_port": ports[1], "seq": seq, "ack": ack, "flags": flags,
                "window": window, "urgent": 0, "payload": payload, "mss": None, "window_scale": None,
                "sack_permitted": False, "sack": (), "timestamp": None, **options}
    assert found == {**expected, "sack": list(expected["sack"])}
    theirs = TCP(segment)
    assert (theirs.sport, theirs.dport, theirs.seq, theirs.ack, int(theirs.flags) & 0xFF, theirs.window) == (
        *ports, seq, ack, flags, window)
    assert bytes(theirs.payload) == payload
    named = dict(o for o in theirs.options if o[0] not in ("NOP", "EOL"))
    assert named.get("MSS") == options.get("mss") and named.get("Timestamp") == expected["timestamp"]
    assert named.get("WScale") == options.get("window_scale") and ("SAckOK" in named) == expected["sack_permitted"]
    assert named.get("SAck", ()) == tuple(edge for block in expected["sack"] for edge in block)


@settings(max_examples=200)
@given(st.binary(max_size=80) | st.builds(lambda a, b: a[:12] + bytes([b << 4]) + a[13:], st.binary(
    min_size=20, max_size=80), st.integers(5, 15)))
def test_any_octets_get_a_verdict_or_a_segment(octets):
    found = wire.parse(octets)
    if isinstance(found, str):
        assert found == ("tcp_truncated" if len(octets) < 20 else "tcp_header_length")
    else:
        assert octets.endswith(found["payload"]) and len(found["sack"]) <= 4
        assert found["window_scale"] is None or found["window_scale"] <= 14


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2 ** 32), sack=st.booleans(), ts=st.none() | st.integers(0, 2 ** 32 - 1))
def test_any_nonsense_in_sequence_leaves_the_stack_sane(seed, sack, ts):
    """Flags, numbers and options at random, near the edges that matter; the invariants are `finish`'s."""
    dice = random.Random(seed)
    t = Timeline(challenge_acks_per_second=5)
    t.accept(sack_ok=sack, ts=ts, mss=dice.choice([88, 536, 1460]), wscale=dice.choice([None, 0, 3, 14]))
    for _ in range(40):
        flags = "".join(f for f in "FSRPAU" if dice.random() < (0.8 if f == "A" else 0.15))
        t.inject(flags, seq=t.peer_next + dice.choice([0, 0, 0, -1, 1, -5, 100, 65535, 70_000, 2 ** 31]),
                 ack=t.our_next + dice.choice([0, 0, 0, -1, 1, -500, 5, 2 ** 31]), win=dice.choice([0, 1, 500, 65535]),
                 payload=dice.choice([0, 0, 1, 100, 1460]), urgent=dice.choice([0, 3]),
                 sack=[(t.our_next - 300, t.our_next - dice.choice([0, 100, 300, 400]))] if dice.random() < 0.3 else ())
        t.peer_next = t.our_next = 0
        for row in t.stack.connections():
            t.peer_next, t.our_next = row["octets_received"] + 1, row["octets_sent"] + 1
        if t.handle is not None and dice.random() < 0.3:
            with suppress(BrokenPipeError):
                t.tcp.write(t.handle, bytes(dice.choice([1, 100, 5000])))
        if t.handle is not None and dice.random() < 0.1:
            dice.choice([t.tcp.shutdown, t.tcp.read, t.tcp.read])(t.handle)
        if dice.random() < 0.5:
            t._run_until(t._now + dice.choice([0, S // 100, S, 100 * S]))
        t.tcp.ready()
        t._collect()
        t.outbox.clear()
        t.written.clear()
    t.finish()


# -- ICMP ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("code, error", [
    (0, errno.ENETUNREACH), (1, errno.EHOSTUNREACH), (2, errno.ENOPROTOOPT), (3, errno.ECONNREFUSED),
    (13, errno.EACCES)])
def test_syn_sent_unreachable_ends_it(timeline, code, error):
    t = timeline()
    t.connect()
    t.expect("S")
    t.icmp(code, 0)
    t.news("CLOSED", error=error)               # RFC1122 4.2.3.9, RFC5927 6
    t.quiet(200)
    assert t.counters() == {"tcp_active_opens": 1, "tcp_connect_failures": 1, "icmp_errors_received": 1}


def test_syn_sent_v6_port_unreachable_refuses(timeline):
    t = timeline(6)
    t.connect()
    t.expect("S")
    t.icmp(4, 0)
    t.news("CLOSED", error=errno.ECONNREFUSED)


@pytest.mark.parametrize("quoted", [-1, 1, 1000])
def test_syn_sent_unreachable_about_other_numbers_is_ignored(timeline, quoted):
    t = timeline()
    t.connect()
    t.expect("S")
    t.icmp(3, quoted)
    t.news()
    assert t.state() == "SYN_SENT"


@pytest.mark.parametrize("code", [0, 1, 2, 3, 13])
def test_established_unreachable_is_only_remembered(timeline, code):
    t = timeline().accept()
    t.write(b"hello")
    t.expect("PA")
    t.icmp(code, 1)                             # RFC9293 MUST-56
    t.news()
    assert t.state() == "ESTABLISHED"
    t.inject("A", ack=6)
    t.quiet(10)


def test_time_exceeded_is_only_remembered(timeline):
    t = timeline()
    t.connect()
    t.expect("S")
    t.icmp(0, 0, kind=11)
    t.news()
    assert t.state() == "SYN_SENT"


def test_source_quench_is_ignored(timeline):
    t = timeline().accept()
    t.write(b"hello")
    t.expect("PA")
    t.icmp(0, 1, kind=4)                        # RFC9293 MUST-55
    assert t.state() == "ESTABLISHED" and t.info("cwnd") == 14_600


# -- keepalive -------------------------------------------------------------------------------------

def test_keepalive_is_off_unless_asked_for(timeline):
    t = timeline().accept()
    t.quiet(30 * 86400)                         # RFC9293 MUST-25


def test_keepalive_probes_an_idle_peer_after_two_hours(timeline, family):
    t = timeline(family).accept()
    t.tcp.set_keepalive(t.handle, True)
    for hour in (2, 4, 6):
        t.at(hour * 3600)                       # RFC9293 MUST-28
        t.expect("A", seq=0, ack=17, length=0)
        t.inject("A", seq=17, ack=1)
        t.quiet()
    t.at(7 * 3600)
    t.inject("A", payload=b"alive")
    t.after(0.04)
    t.expect("A")
    t.at(9 * 3600)
    t.expect("A", seq=0)
    t.inject("A", ack=1)
    t.tcp.set_keepalive(t.handle, False)
    t.quiet(86400)


def test_keepalive_gives_up_a_silent_peer_after_nine_probes(timeline):
    t = timeline().accept()
    t.tcp.set_keepalive(t.handle, True)
    for i in range(9):
        t.at(7200 + 75 * i)
        t.expect("A", seq=0, ack=17)
    t.at(7200 + 75 * 9)
    t.expect("RA", seq=1, ack=17)
    t.news("CLOSED", error=errno.ETIMEDOUT)


def test_keepalive_waits_while_data_ask_already(timeline):
    t = timeline().accept()
    t.tcp.set_keepalive(t.handle, True)
    t.at(7199.9)
    t.write(b"x")
    t.expect("PA", seq=1)
    for wait in (0.2, 0.4, 0.8):
        t.after(wait)
        t.expect("PA", seq=1)
    t.inject("A", ack=2)
    t.quiet(7000)


def test_keepalive_goes_by_the_times_it_is_told(timeline):
    t = timeline().accept()
    t.tcp.set_keepalive(t.handle, True)
    t.at(10)
    t.tcp.set_keepalive_idle(t.handle, 30)      # counts from when something came last
    t.tcp.set_keepalive_interval(t.handle, 5)
    t.tcp.set_keepalive_probes(t.handle, 3)
    t.quiet(19.9)
    for i in range(3):
        t.at(30 + 5 * i)
        t.expect("A", seq=0, ack=17)
    t.at(45)
    t.expect("RA", seq=1, ack=17)
    t.news("CLOSED", error=errno.ETIMEDOUT)


def test_keepalive_times_may_be_told_before_it_is_switched_on(timeline):
    t = timeline().accept()
    t.tcp.set_keepalive_idle(t.handle, 30)
    t.quiet(100)
    t.inject("A", ack=1)
    t.tcp.set_keepalive(t.handle, True)
    t.quiet(10)
    t.tcp.set_keepalive(t.handle, True)         # again changes nothing
    t.after(20)
    t.expect("A", seq=0)
    t.inject("A", ack=1)
    t.after(30)
    t.expect("A", seq=0)


def test_an_idle_time_that_is_over_already_probes_at_once(timeline):
    t = timeline().accept()
    t.tcp.set_keepalive(t.handle, True)
    t.at(100)
    t.tcp.set_keepalive_idle(t.handle, 30)
    t.after(0)
    t.expect("A", seq=0)


@pytest.mark.parametrize(("wanted", "idle"), [(0, 1), (-5, 1), (1 << 40, 32767)])
def test_keepalive_times_out_of_range_are_brought_into_it(timeline, wanted, idle):
    t = timeline().accept()
    t.tcp.set_keepalive_idle(t.handle, wanted)
    t.tcp.set_keepalive(t.handle, True)
    t.quiet(idle - 0.1)
    t.after(0.1)
    t.expect("A", seq=0)


def test_keepalive_gives_up_by_the_user_timeout_if_there_is_one(timeline):
    t = timeline().accept()
    t.tcp.set_keepalive_idle(t.handle, 30)
    t.tcp.set_keepalive_interval(t.handle, 10)
    t.tcp.set_user_timeout(t.handle, 45_000)
    t.tcp.set_keepalive(t.handle, True)
    for i in range(2):
        t.at(30 + 10 * i)
        t.expect("A", seq=0)
    t.at(50)
    t.expect("RA", seq=1)
    t.news("CLOSED", error=errno.ETIMEDOUT)


# -- user timeout (RFC 9293 3.8.3, RFC 5482) --------------------------------------------------------

def test_data_without_an_answer_are_given_up_at_the_user_timeout(timeline):
    t = timeline().accept()
    t.tcp.set_user_timeout(t.handle, 1000)
    t.write(b"hello")
    t.expect("PA", seq=1)
    for wait in (0.2, 0.4):                     # 0.6 s; the next would be at 1.4
        t.after(wait)
        t.expect("PA", seq=1)
    t.quiet(0.39)
    t.after(0.02)
    t.news("CLOSED", error=errno.ETIMEDOUT)


def test_a_user_timeout_may_be_longer_than_retransmissions_go_on_without(timeline):
    t = timeline().accept()
    t.tcp.set_user_timeout(t.handle, 86_400_000)
    t.write(b"hello")
    t.expect("PA", seq=1)
    assert len(t.drain(86_000)) > 1000 and t.state() == "ESTABLISHED"
    t.drain(500)
    t.news("CLOSED", error=errno.ETIMEDOUT)


def test_an_answer_begins_the_user_timeout_anew(timeline):
    t = timeline().accept()
    t.tcp.set_user_timeout(t.handle, 1000)
    for start, waits in ((1, (0.2, 0.4)), (6, (0.8,))):     # Karn: backed off until there is a new measurement
        t.write(b"hello")
        t.expect("PA", seq=start)
        for wait in waits:
            t.after(wait)
            t.expect("PA", seq=start)
        if start == 1:
            t.inject("A", ack=6)
            t.quiet(5)
    t.quiet(0.19)
    t.after(0.02)
    t.news("CLOSED", error=errno.ETIMEDOUT)


def test_a_window_that_stays_closed_is_given_up_at_the_user_timeout(timeline):
    t = timeline().accept()
    t.tcp.set_user_timeout(t.handle, 5000)
    t.inject("A", ack=1, win=0)
    t.write(b"hello")
    probes = 0
    while t.state() == "ESTABLISHED" and t.now < 60:
        t.wait()
        (sent,) = t.drain()
        if "R" in str(sent):
            break
        probes += 1
        t.inject("A", ack=1, win=0)          # it lives, and takes nothing
    assert probes > 2 and 4.9 < t.now < 6
    t.news("CLOSED", error=errno.ETIMEDOUT)


def test_a_connection_that_is_not_answered_is_given_up_at_the_user_timeout(timeline):
    t = timeline()
    t.connect()
    t.tcp.set_user_timeout(t.handle, 2500)
    t.expect("S")
    t.at(1)
    t.expect("S")
    t.quiet(1.49)
    t.after(0.02)
    t.news("CLOSED", error=errno.ETIMEDOUT)


# -- memory ----------------------------------------------------------------------------------------

def test_memory_exhausted_drops_data_and_recovers(timeline):
    t = timeline(memory=4096).accept()
    for ack in (1477, 2937):
        t.inject("A", payload=1460)
        t.after(0.04)
        t.expect("A", ack=ack)                  # the ring is 4096 octets now, all there are
    t.inject("A", seq=2937, payload=1460)
    t.inject("A", seq=2937 + 1460, payload=1460)
    t.peer_next = 2937
    t.quiet(0.1)
    assert t.verdicts() == {"delivered": 2, "tcp_memory": 2}
    assert t.tcp.usage()["buffer_octets"] == 4096
    t.read(2920)
    t.drain()
    t.inject("A", payload=1460)
    t.drain(0.04)
    t.read(1460)
    t.drain()
    t.after(3)
    assert t.tcp.usage()["buffer_octets"] == 0      # an idle connection holds no buffers


def test_memory_exhausted_by_others_makes_writes_short_until_it_is_there(timeline):
    t = timeline(memory=4096).accept()
    t.inject("A", payload=1460)
    t.after(0.04)
    t.expect("A")
    t.inject("A", payload=1460)
    t.after(0.04)
    t.expect("A")
    t.tcp.ready()
    t.write(b"no room", taken=0)
    t.drain(2)
    t.news("WRITABLE")                          # nothing is in flight whose ACK could bring it
    t.write(b"no room", taken=0)
    t.read(2920)
    t.drain(3)
    t.news("WRITABLE")
    t.write(b"room")
    t.expect("PA", payload=b"room")
    t.inject("A", ack=5)


def test_memory_nearly_exhausted_announces_smaller_windows(timeline):
    t = timeline(memory=65536, receive_buffer=60_000).accept(quick=True)
    t.receive(bytes(t.build("A", payload=bytes(40_000))), 0, 1460)
    seg = t.expect("A", ack=40_001)
    assert seg.win == 20_000                    # never less than was promised
    t.inject("A", payload=1000)
    assert t.expect("A", ack=41_001).win == 19_000
    t.read(41_000)
    t.drain()
    assert t.info("receive_window") < 25_000


def test_writable_is_told_when_a_quarter_of_the_buffer_is_free(timeline):
    t = timeline(send_buffer=8000).accept(mss=1000)
    t.write(10_000, taken=8000)
    t.drain()
    t.inject("A", ack=1001)
    t.news()
    t.inject("A", ack=2001)
    t.news("WRITABLE")
    t.inject("A", ack=8001)
    t.news()


def test_idle_connections_hold_no_buffers(timeline):
    t = timeline().accept()
    t.write(b"x")
    t.expect("PA")
    t.inject("A", ack=2, payload=b"y")
    t.read(b"y")
    t.after(0.04)
    t.expect("A")
    assert t.tcp.usage()["buffer_octets"] == 4096
    t.quiet(3)
    assert t.tcp.usage()["buffer_octets"] == 0
    t.write(b"z")
    t.expect("PA", payload=b"z")
