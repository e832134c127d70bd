"""Windows: scaling, closing, probing, silly ones, Nagle, delayed ACKs, segment sizes (RFC 9293 3.7, 3.8, RFC 7323)."""

import errno

import pytest

RTO = 0.2


# -- scaling ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("offered, used", [(0, 0), (1, 1), (14, 14), (15, 14), (255, 14)])
def test_window_scale_of_the_peer_is_at_most_14(timeline, offered, used):
    t = timeline()
    t.listen()
    t.inject("S", seq=0, mss=1460, wscale=offered)
    t.expect("SA", wscale=5)
    t.inject("A", seq=1, ack=1, win=1000)
    t.news("ACCEPTED")
    assert t.info("send_window") == 1000 << used        # RFC7323 2.3
    assert t.info("window_scale") == (used, 5)


@pytest.mark.parametrize("buffer, scale, win", [
    (65535, 0, 65534), (65536, 1, 32767), (1 << 20, 5, 32768), (1 << 30, 14, 65535)])
def test_window_scale_of_ours_fits_the_buffer(timeline, buffer, scale, win):
    t = timeline(receive_buffer=buffer)
    t.listen()
    t.inject("S", seq=0, wscale=0)
    t.expect("SA", wscale=scale, win=65535)
    t.inject("A", seq=1, ack=1)
    t.inject("A", payload=b"x")
    t.expect("A", win=win)


def test_established_windows_are_scaled_both_ways(timeline):
    t = timeline().accept(wscale=7, win=100, mss=1000)
    assert t.info("send_window") == 12_800
    t.write(20_000)
    assert sum(len(seg.payload) for seg in t.drain()) == 10_000     # cwnd
    t.feed(1, "A", ack=10_001, win=50)
    assert t.info("in_flight") == 6000                              # 6400 octets and no splinter
    t.inject("A", ack=16_001, win=100, payload=1000)
    t.drain()
    assert t.info("receive_window") % 32 == 0


@pytest.mark.parametrize("seq, ack, updates", [
    (17, 1, True), (18, 1, True), (16, 1, False), (18, 0, False), (17, 0, False)])
def test_window_is_taken_from_newer_segments_only(timeline, seq, ack, updates):
    t = timeline().accept(mss=1000)
    t.write(1)
    t.expect("PA")
    t.inject("A", ack=1)
    t.inject("A", seq=seq, ack=ack & 0xFFFFFFFF if ack >= 0 else ack, win=4321, payload=b"ab" if seq != 17 else b"")
    t.drain()
    assert (t.info("send_window") == 4321) == updates       # RFC9293 3.10.7.4: SND.WL1, SND.WL2


# -- the peer's window closes ----------------------------------------------------------------------

def closed(timeline, octets=3000, **options):
    """`octets` were written, two segments went, and the window closed behind them."""
    t = timeline(**options).accept(mss=1000, win=2000)
    t.write(octets)
    t.expect("A", seq=1, length=1000)
    t.expect("A" if octets > 2000 else "PA", seq=1001, length=1000)
    t.inject("A", ack=2001, win=0)
    t.mark()
    return t


def test_closed_window_is_probed_with_back_off_for_ever(timeline):
    t = closed(timeline)
    gap, at = RTO, 0.0
    for _ in range(30):
        at += gap
        gap = min(2 * gap, 60)                      # RFC9293 MUST-36, SHLD-29, SHLD-30
        t.at(at)
        t.expect("A", seq=2001, length=1)
        t.inject("A", ack=2001, win=0)
    assert t.state() == "ESTABLISHED"               # RFC9293 MUST-37
    assert t.counters() == {"tcp_zero_window_probes": 30, "tcp_octets_sent": 1}


def test_closed_window_of_a_dead_peer_is_given_up(timeline):
    t = closed(timeline)
    for _ in range(15):
        t.wait()
        t.expect("A", seq=2001, length=1)
    t.wait()
    t.expect("RA", seq=2001)
    t.news("CLOSED", error=errno.ETIMEDOUT)


def test_closed_window_of_a_released_connection_is_not_probed_for_ever(timeline):
    t = closed(timeline)
    t.release()
    for _ in range(8):
        t.wait()
        t.expect("A", seq=2001, length=1)
        t.inject("A", ack=2001, win=0)
    t.wait()
    t.expect("RA", seq=2001)
    assert t.stack.connections() == []


def test_closed_window_reopened_sends_at_once(timeline):
    t = closed(timeline)
    t.at(RTO)
    t.expect("A", seq=2001, length=1)
    t.inject("A", ack=2001, win=0)
    t.at(0.3)
    t.inject("A", ack=2001, win=5000)
    t.expect("PA", seq=2001, length=1000)
    t.inject("A", ack=3001, win=5000)
    t.quiet(3600)
    assert t.info("rto_ns") == 200_000_000          # the probes' back-off is not the timer's


def test_closed_window_reopened_in_answer_to_a_probe(timeline):
    t = closed(timeline)
    t.at(RTO)
    t.expect("A", seq=2001, length=1)
    t.inject("A", ack=2002, win=5000)               # it took the octet, and the update had been lost
    t.expect("PA", seq=2002, length=999)


def test_closed_window_peer_takes_the_probes_octets(timeline):
    t = closed(timeline, 2003)
    for seq in (2001, 2002, 2003):
        t.wait()
        t.expect("A", seq=seq, length=1)
        t.inject("A", ack=seq + 1, win=0)
    t.quiet(3600)
    assert t.info("unsent") == 0 and t.info("octets_sent") == 2003


def test_closed_window_acks_are_still_acceptable_to_the_peer(timeline):
    """After a refused probe SND.NXT is beyond the peer's window: an ACK from there would be thrown away."""
    t = closed(timeline)
    t.at(RTO)
    t.expect("A", seq=2001, length=1)
    t.inject("A", ack=2001, win=0, payload=2000)
    t.after(0.04)
    t.expect("A", seq=2001, ack=2017)
    t.abort()
    t.expect("RA", seq=2001)


def test_closed_window_over_what_is_in_flight_probes_instead_of_giving_up(timeline):
    t = timeline(retransmissions=3).accept(mss=1000)
    t.write(2000)
    t.drain()
    t.inject("A", ack=1, win=0)
    for _ in range(12):
        t.wait()
        t.expect("A", seq=1, length=1)
        t.inject("A", ack=1, win=0)
    t.inject("A", ack=1, win=10_000)
    t.expect("A", seq=1, length=1000)
    t.inject("A", ack=1001, win=10_000)
    t.expect("PA", seq=1001, length=1000)
    t.inject("A", ack=2001)
    t.quiet(3600)


def test_shrunk_window_is_filled_by_the_retransmission(timeline):
    t = timeline().accept(mss=1000)
    t.write(2000)
    t.drain()
    t.inject("A", ack=1, win=100)
    t.at(RTO)
    t.expect("A", seq=1, length=100)                # RFC9293 SHLD-16: a shrunk window is not the peer's death
    t.inject("A", ack=101, win=100)
    t.expect("A", seq=101, length=100)
    t.inject("A", ack=2001)
    t.quiet(3600)


# -- silly windows, Nagle --------------------------------------------------------------------------

def test_small_window_is_not_filled_with_a_splinter_before_the_override(timeline):
    t = timeline().accept(mss=1000)
    t.inject("A", win=500)
    t.write(3000)
    t.quiet(RTO - 1e-6)                             # RFC9293 MUST-38, SHLD-? 3.8.6.2.1
    t.after(1e-6)
    t.expect("A", seq=1, length=500)


def test_small_window_of_a_small_peer_is_filled_by_halves(timeline):
    t = timeline().accept(mss=1000, win=600)
    t.write(3000)
    t.expect("A", seq=1, length=600)
    t.inject("A", ack=601, win=299)
    t.quiet(0.1)
    t.inject("A", ack=601, win=300)
    t.expect("A", seq=601, length=300)


def test_nagle_holds_a_small_segment_while_something_is_in_flight(timeline):
    t = timeline().accept(mss=1000)
    t.write(b"a")
    t.expect("PA", seq=1, payload=b"a")
    t.write(b"b")
    t.write(b"c")
    t.quiet(0.1)                                    # RFC9293 SHLD-7
    t.inject("A", ack=2)
    t.expect("PA", seq=2, payload=b"bc")


@pytest.mark.parametrize("ts, size", [(None, 1000), (77, 988)])
def test_nagle_lets_full_segments_go_and_knows_of_timestamps(timeline, ts, size):
    t = timeline().accept(mss=1000, ts=ts)
    t.write(3 * size)
    for i in range(3):
        t.expect("A" if i < 2 else "PA", seq=1 + i * size, length=size)
    t.write(size - 1)
    t.quiet(0.1)
    t.write(1)
    t.expect("PA", seq=1 + 3 * size, length=size)


def test_nodelay_sends_at_once(timeline):
    t = timeline().accept(mss=1000)
    t.write(b"a")
    t.expect("PA", seq=1)
    t.write(b"b")
    t.quiet()
    t.tcp.set_nodelay(t.handle, True)               # RFC9293 MUST-17
    t._collect()
    t.expect("PA", seq=2, payload=b"b")
    t.write(b"c")
    t.expect("PA", seq=3, payload=b"c")
    t.tcp.set_nodelay(t.handle, False)
    t.write(b"d")
    t.quiet(0.1)


# -- our window ------------------------------------------------------------------------------------

def test_unread_octets_close_the_window_and_reading_opens_it_by_worthwhile_steps(timeline):
    t = timeline(receive_buffer=4000).accept(mss=1000, quick=True)
    for i in range(4):
        t.inject("A", payload=1000)
        t.expect("A", ack=1001 + 1000 * i, win=3000 - 1000 * i)
    t.inject("A", payload=b"p")                     # a probe
    t.expect("A", ack=4001, win=0)                  # RFC9293 MUST-35
    t.peer_next = 4001
    t.read(999, most=999)
    t.quiet(1)                                      # RFC9293 MUST-39: no silly window
    t.read(1, most=1)
    t.expect("A", ack=4001, win=1000)
    t.inject("A", payload=b"p")
    t.expect("A", ack=4002, win=999)


def test_window_never_shrinks_though_memory_runs_short(timeline):
    t = timeline(receive_buffer=8000, memory=8192).accept(mss=1000, quick=True)
    edge = 8001
    for i in range(8):
        t.inject("A", payload=1000)
        seg = t.expect("A", ack=1001 + 1000 * i)
        assert seg.ack + seg.win >= edge            # RFC9293 SHLD-14
        edge = seg.ack + seg.win


def test_scaled_window_is_not_stretched_by_dribbling(timeline):
    """Rounding up may promise a unit more than there is room for, but not again and again."""
    t = timeline(receive_buffer=1 << 20).accept(mss=1460, wscale=0)
    room = (1 << 20) - 5
    while room:
        n = min(room, 40_000)
        t.receive(bytes(t.build("A", payload=bytes(n))), 0, 1460)
        t.drain(0.04)
        room -= n
    for _ in range(50):
        t.inject("A", seq=t.peer_next, payload=bytes(30))
        t.drain(0.04)
        t.peer_next = t.info("octets_received") + 1
    assert t.info("unread") <= (1 << 20) + 32


def test_window_is_full_acks_from_its_edge_are_taken(timeline):
    """A sender that has filled the window goes on acknowledging from there; Linux's does."""
    t = timeline(receive_buffer=2000).accept(mss=1000)
    t.write(b"hello")
    t.expect("PA")
    t.inject("A", seq=t.peer_next + t.info("receive_window"), ack=6)
    assert t.info("unsent") == 0 and t.verdicts() == {"delivered": 1}


# -- delayed ACKs ----------------------------------------------------------------------------------

def test_first_segments_are_acknowledged_at_once(timeline):
    t = timeline().accept(quick=True)
    for i in range(16):
        t.inject("A", payload=100)
        t.expect("A", ack=101 + 100 * i)
    t.inject("A", payload=100)
    t.quiet(0.039)
    t.after(0.001)
    t.expect("A", ack=1701)


def test_first_request_is_acknowledged_by_its_answer(timeline):
    t = timeline(receive_buffer=1 << 20).accept(wscale=7, quick=True)
    t.inject("PA", payload=100)
    t.read(100)                                     # and the SYN could not offer all of the window
    t.quiet(0.003)
    t.write(b"answer")
    t.expect("PA", ack=101, length=6)
    t.inject("A", ack=7)
    t.quiet(1)


@pytest.mark.parametrize("push", ["A", "PA"])
def test_first_request_without_an_answer_is_acknowledged_soon(timeline, push):
    t = timeline().accept(quick=True)
    t.inject("PA", payload=100)
    t.quiet(0.004 - 1e-6)
    t.after(1e-6)
    t.expect("A", ack=101)
    t.inject("PA", payload=100)
    t.inject(push, payload=100)                     # the second one that is not acknowledged
    t.expect("A", ack=301)


def test_first_full_segments_are_acknowledged_at_once_though_they_are_pushed(timeline):
    t = timeline().accept(mss=1000, quick=True)
    for i in range(3):
        t.inject("PA", payload=1000)                # the peer's window is to open
        t.expect("A", ack=1001 + 1000 * i)


def test_ack_is_delayed_40_ms(timeline):
    t = timeline().accept()
    t.inject("A", payload=100)
    t.quiet(0.04 - 1e-6)                            # RFC9293 MUST-40: less than 0.5 s
    t.after(1e-6)
    t.expect("A", ack=117)
    assert t.counters() == {"tcp_octets_received": 100, "tcp_delayed_acks": 1}


def test_every_second_full_segment_is_acknowledged(timeline):
    t = timeline().accept()
    for i in range(5):
        t.inject("A", payload=1460)
        t.quiet()
        t.inject("A", payload=1460)
        t.expect("A", ack=17 + 2920 * (i + 1))      # RFC9293 SHLD-19
    t.inject("A", payload=1460)
    t.after(0.04)
    t.expect("A", ack=17 + 2920 * 5 + 1460)


def test_super_segment_counts_as_what_it_was_made_of(timeline):
    t = timeline().accept()
    t.receive(bytes(t.build("A", payload=2920)), 0, 1460)
    t.expect("A", ack=2937)
    assert t.stack.counters()["tcp_segments_received"] == 2 + 16 + 2


def test_ack_rides_on_data(timeline):
    t = timeline().accept()
    t.inject("A", payload=100)
    t.after(0.01)
    t.write(b"answer")
    t.expect("PA", ack=117)
    t.inject("A", ack=7)
    t.quiet(1)
    assert "tcp_delayed_acks" not in t.counters()


def test_delay_begins_with_the_first_segment_it_is_for(timeline):
    t = timeline().accept()
    t.inject("A", payload=10)
    t.at(0.03)
    t.inject("A", payload=5)
    t.at(0.04)
    t.expect("A", ack=32)
    t.quiet(1)


# -- segment sizes ---------------------------------------------------------------------------------

@pytest.mark.parametrize("mss, ts, size", [
    (1460, None, 1460), (9000, None, 1460), (9000, 5, 1448), (65535, None, 1460), (88, None, 88), (10, None, 88),
    (0, None, 536), (1, 5, 76)])
def test_segments_fit_the_mtu_and_the_peer(timeline, mss, ts, size):
    """A peer that asks for less than 88 octets gets 88: headers alone would be a way to drown us."""
    t = timeline().accept(mss=mss, ts=ts)
    t.write(5000)
    assert t.expect("A", seq=1, length=size)        # RFC9293 MUST-16, RFC6691
    t.drain()


@pytest.mark.parametrize("mtu, size", [(68, 28), (296, 256), (576, 536), (9000, 8960)])
def test_segments_fit_any_mtu(timeline, mtu, size):
    t = timeline(mtu=mtu).accept(mss=65000)
    t.write(20_000)
    t.expect("A", seq=1, length=size)
    t.drain()


def test_v6_segments_fit_the_mtu(timeline):
    t = timeline(6, mtu=1280).accept(mss=9000)
    t.write(5000)
    t.expect("A", seq=1, length=1220)
    t.drain()


@pytest.mark.parametrize("family, features", [(4, 2 | 4), (6, 2 | 8)])
def test_super_segments_are_whole_multiples_within_windows(timeline, family, features):
    t = timeline(family, features=features).accept(mss=1000, wscale=7, win=60_000)
    t.write(10_500)
    sizes = [(len(seg.payload), seg.size) for seg in t.drain()]
    assert sizes == [(2000, 1000)] * 5              # a quarter of cwnd at most, and nothing smaller behind it
    t.inject("A", ack=10_001, win=60_000)
    seg = t.expect("PA", seq=10_001, length=500)
    assert seg.size == 0


def test_device_without_tso_gets_single_segments(timeline):
    t = timeline(features=2).accept(mss=1000)
    t.write(10_000)
    assert [(len(seg.payload), seg.size) for seg in t.drain()] == [(1000, 0)] * 10
