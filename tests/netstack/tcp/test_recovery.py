"""Congestion and loss recovery: slow start, fast retransmit, NewReno, SACK (RFC 5681, 6582, 6675, 3042, 2018)."""

import pytest

RTO = 0.2


def flight(t, segments, more=0):
    """So many segments of 1000 octets are out, and `more` wait behind them."""
    t.write(1000 * (segments + more))
    assert [seg.seq for seg in t.drain()] == [1 + 1000 * i for i in range(segments)]
    return t


def plain(timeline, segments=10, more=0):
    return flight(timeline().accept(mss=1000), segments, more)


def sacked(timeline, segments=10, more=0):
    return flight(timeline().accept(mss=1000, sack_ok=True), segments, more)


def seg(first, last=None):
    """The SACK block of segments first..last, counted from 1."""
    return 1000 * first - 999, 1000 * (last or first) + 1


def segment(n):
    """The sequence number of segment n."""
    return 1000 * n - 999


# -- the congestion window -------------------------------------------------------------------------

@pytest.mark.parametrize("mss, octets", [(100, 1000), (536, 5360), (1000, 10_000), (1460, 14_600)])
def test_initial_window_is_ten_segments(timeline, mss, octets):
    t = timeline().accept(mss=mss)
    assert t.info("cwnd") == octets             # RFC6928 2
    t.write(30_000)
    assert sum(len(s.payload) for s in t.drain()) == octets


def test_initial_window_of_large_segments_is_two(timeline):
    t = timeline(mtu=9000).accept(mss=8960)
    assert t.info("cwnd") == 2 * 8960


def test_slow_start_grows_by_what_is_acknowledged(timeline):
    t = plain(timeline, 10, 30)
    for i in range(10):
        t.inject("A", ack=segment(i + 2))
        t.expect("A", seq=segment(11 + 2 * i), length=1000)
        t.expect("A", seq=segment(12 + 2 * i), length=1000)
    assert t.info("cwnd") == 20_000


def test_slow_start_does_not_grow_while_the_application_is_the_limit(timeline):
    t = timeline().accept(mss=1000)
    for i in range(20):
        t.write(1000)
        t.expect("PA", seq=segment(i + 1))
        t.inject("A", ack=segment(i + 2))
    assert t.info("cwnd") == 10_000             # RFC7661 4.3, RFC9293: no growth without use


def test_congestion_avoidance_grows_by_one_segment_per_window(timeline):
    t = plain(timeline, 10, 60)
    t.after(RTO)
    t.drain()
    t.inject("A", ack=segment(11))
    t.drain()
    while t.info("cwnd") < 5000:
        t.feed(1, "A", ack=t.our_next)
    assert t.info("cwnd") == t.info("ssthresh") == 5000
    t.inject("A", ack=t.our_next)               # a whole window of it
    assert t.info("cwnd") == 6000
    t.drain()


def test_idle_restarts_from_the_initial_window(timeline):
    t = plain(timeline, 10, 10)
    t.inject("A", ack=segment(11))
    t.drain()
    t.inject("A", ack=t.our_next)
    assert t.info("cwnd") >= 20_000
    t.after(5)
    t.write(20_000)
    assert len(t.drain()) == 10                 # RFC5681 4.1


# -- fast retransmit without SACK ------------------------------------------------------------------

def test_third_duplicate_retransmits_and_halves(timeline, family):
    t = flight(timeline(family).accept(mss=1000), 10)
    for _ in range(2):
        t.inject("A", ack=1)
        t.quiet()
    t.inject("A", ack=1)
    t.expect("A", seq=1, length=1000)           # RFC5681 3.2
    assert (t.info("ssthresh"), t.info("cwnd"), t.info("recovery")) == (5000, 5000, "fast")
    t.inject("A", ack=segment(11))
    assert (t.info("cwnd"), t.info("recovery")) == (5000, None)
    assert t.counters() == {"tcp_octets_sent": 10_000, "tcp_retransmits": 1, "tcp_fast_retransmits": 1,
                            "tcp_duplicate_acks_received": 3}
    t.quiet(60)


def test_first_duplicates_let_new_segments_out(timeline):
    t = plain(timeline, 10, 10)
    t.inject("A", ack=1)
    t.expect("A", seq=segment(11), length=1000)     # RFC3042 2
    t.inject("A", ack=1)
    t.expect("A", seq=segment(12), length=1000)
    t.inject("A", ack=1)
    t.expect("A", seq=1, length=1000)
    assert t.info("ssthresh") == 5000               # RFC5681 3.2 step 2: without what limited transmit sent
    for _ in range(4):
        t.inject("A", ack=1)
        t.quiet()
    for n in range(13, 17):                         # inflated: each one more duplicate, one more segment
        t.inject("A", ack=1)
        t.expect("A", seq=segment(n), length=1000)


@pytest.mark.parametrize("field", [{"payload": b"data"}, {"win": 60_000}])
def test_what_carries_news_is_no_duplicate(timeline, field):
    t = plain(timeline)
    for i in range(6):
        fields = {"win": 60_000 + i} if "win" in field else field
        assert not any(s.payload for s in t.feed(1, "A", ack=1, **fields))
    assert "tcp_duplicate_acks_received" not in t.counters()


def test_duplicates_with_nothing_in_flight_do_nothing(timeline):
    t = timeline().accept(mss=1000)
    for _ in range(10):
        t.inject("A", ack=1)
    t.quiet()
    assert t.counters() == {} and t.info("cwnd") == 10_000


def test_partial_ack_retransmits_the_next_hole_at_once(timeline):
    t = plain(timeline)                             # 1, 4 and 8 are lost
    for _ in range(3):
        t.inject("A", ack=1)
    t.expect("A", seq=segment(1))
    for _ in range(4):
        t.inject("A", ack=1)
    t.inject("A", ack=segment(4))                   # RFC6582 3.2 step 3
    t.expect("A", seq=segment(4), length=1000)
    t.quiet()
    assert t.info("recovery") == "fast"
    t.inject("A", ack=segment(8))
    t.expect("A", seq=segment(8), length=1000)
    t.inject("A", ack=segment(11))
    assert (t.info("recovery"), t.info("cwnd")) == (None, 5000)
    assert t.counters()["tcp_fast_retransmits"] == 1
    t.quiet(60)


def test_echoes_of_an_old_recovery_do_not_start_another(timeline):
    t = plain(timeline, 10, 20)
    t.feed(3, "A", ack=1)
    recover = t.our_next
    t.inject("A", ack=recover)
    t.drain()
    assert t.info("recovery") is None
    sent = t.feed(3, "A", ack=recover)              # RFC6582 3.2 step 1: they cover no more than `recover`
    assert all(s.seq > recover for s in sent)
    assert t.info("recovery") is None and t.info("cwnd") == 5000
    sent = t.feed(4, "A", ack=recover + 1000)
    assert recover + 1000 in [s.seq for s in sent]
    assert t.info("recovery") == "fast"


def test_timeout_in_fast_recovery_starts_over(timeline):
    t = plain(timeline)
    assert [s.seq for s in t.feed(5, "A", ack=1)] == [1]
    t.at(RTO)
    t.expect("A", seq=1, length=1000)
    assert (t.info("recovery"), t.info("cwnd")) == ("rto", 1000)
    for _ in range(5):                              # RFC6582 4: no fast retransmit before all of it is acknowledged
        t.inject("A", ack=1)
    t.quiet()
    t.inject("A", ack=segment(11))
    assert t.info("recovery") is None
    t.quiet(60)


# -- with SACK -------------------------------------------------------------------------------------

def test_sack_third_duplicate_retransmits(timeline):
    t = sacked(timeline)
    for n in (2, 3):
        t.inject("A", ack=1, sack=[seg(2, n)])
        t.quiet()
    t.inject("A", ack=1, sack=[seg(2, 4)])
    t.expect("A", seq=1, length=1000)
    assert (t.info("ssthresh"), t.info("cwnd"), t.info("recovery")) == (5000, 5000, "fast")
    t.inject("A", ack=segment(11))
    assert (t.info("cwnd"), t.info("recovery")) == (5000, None)
    assert t.counters() == {"tcp_octets_sent": 10_000, "tcp_retransmits": 1, "tcp_fast_retransmits": 1,
                            "tcp_duplicate_acks_received": 3}


def test_sack_of_three_segments_at_once_is_enough(timeline):
    t = sacked(timeline)
    t.inject("A", ack=1, sack=[seg(2, 4)])          # RFC6675 5 (2): IsLost (HighACK + 1)
    t.expect("A", seq=1, length=1000)


def test_sack_beside_an_advancing_ack_counts(timeline):
    t = sacked(timeline)
    t.inject("A", ack=segment(3), sack=[seg(4, 6)])     # RFC6675 2: "even if it ... moves the cumulative point"
    t.expect("A", seq=segment(3), length=1000)
    assert t.info("recovery") == "fast"


def test_sack_beside_data_counts(timeline):
    t = sacked(timeline)
    t.inject("A", ack=1, sack=[seg(2, 4)], payload=b"both ways")
    t.expect("A", seq=1, length=1000)
    t.drain(0.04)


def test_duplicates_that_sack_nothing_new_do_not_count(timeline):
    t = sacked(timeline)
    for _ in range(5):
        t.inject("A", ack=1)
        t.inject("A", ack=1, sack=[seg(2)])
    t.quiet()
    assert t.counters()["tcp_duplicate_acks_received"] == 1


def test_sack_first_duplicates_let_new_segments_out(timeline):
    t = sacked(timeline, 10, 5)
    t.inject("A", ack=1, sack=[seg(2)])
    t.expect("A", seq=segment(11), length=1000)
    t.inject("A", ack=1, sack=[seg(2, 3)])
    t.expect("A", seq=segment(12), length=1000)


def test_sack_many_holes_are_filled_as_the_pipe_drains(timeline):
    t = sacked(timeline)                            # 1, 3, 5 and 7 are lost
    t.inject("A", ack=1, sack=[seg(2)])
    t.inject("A", ack=1, sack=[seg(4), seg(2)])
    t.quiet()
    t.inject("A", ack=1, sack=[seg(6), seg(4), seg(2)])
    t.expect("A", seq=segment(1), length=1000)
    assert t.info("pipe") == 7000                   # 10 - 3 SACKed - 1 lost + 1 sent again
    t.inject("A", ack=1, sack=[seg(8), seg(6), seg(4)])
    assert t.info("pipe") == 5000                   # 3 is lost too
    t.quiet()
    t.inject("A", ack=1, sack=[seg(8, 9), seg(6), seg(4)])
    t.expect("A", seq=segment(3), length=1000)      # RFC6675 5 (C)
    t.expect("A", seq=segment(5), length=1000)
    t.inject("A", ack=1, sack=[seg(8, 10), seg(6), seg(4)])
    t.expect("A", seq=segment(7), length=1000)
    t.quiet()
    t.inject("A", ack=segment(3), sack=[seg(8, 10), seg(6), seg(4)])
    t.inject("A", ack=segment(7), sack=[seg(8, 10)])
    t.quiet()
    assert t.info("recovery") == "fast"
    t.inject("A", ack=segment(11))
    assert (t.info("recovery"), t.info("cwnd")) == (None, 5000)
    assert t.counters() == {"tcp_octets_sent": 10_000, "tcp_retransmits": 4, "tcp_fast_retransmits": 1,
                            "tcp_duplicate_acks_received": 6}
    t.quiet(60)


def test_sack_new_data_go_before_holes_that_may_not_be_lost(timeline):
    t = sacked(timeline, 10, 4)                     # 1 and 9 are missing
    t.inject("A", ack=1, sack=[seg(10), seg(2, 8)])
    t.expect("A", seq=segment(1), length=1000)
    for n in (11, 12, 13):                          # RFC6675 4 NextSeg (2)
        t.expect("A", seq=segment(n), length=1000)
    assert t.info("pipe") == 5000                   # 1, 9 and the new ones


def test_sack_a_hole_that_may_not_be_lost_goes_when_there_is_nothing_else(timeline):
    t = sacked(timeline)
    t.inject("A", ack=1, sack=[seg(10), seg(2, 8)])
    t.expect("A", seq=segment(1), length=1000)
    t.expect("A", seq=segment(9), length=1000)      # RFC6675 4 NextSeg (3)
    t.quiet()
    assert t.info("pipe") == 3000                   # 9 counts twice: SetPipe (a) and (b)


def test_sack_retransmission_lost_again_waits_for_the_timer(timeline):
    t = sacked(timeline)
    t.inject("A", ack=1, sack=[seg(2, 10)])
    t.expect("A", seq=1)
    t.at(RTO)
    t.expect("A", seq=1, length=1000)
    assert (t.info("recovery"), t.info("cwnd")) == ("rto", 1000)
    t.inject("A", ack=segment(11))
    t.quiet(60)


def test_timeout_forgets_sacks_for_the_peer_may_have_reneged(timeline):
    t = sacked(timeline)
    t.inject("A", ack=1, sack=[seg(2, 3), seg(5, 10)])
    t.expect("A", seq=segment(1))
    t.expect("A", seq=segment(4))
    t.at(RTO)
    t.expect("A", seq=segment(1), length=1000)      # RFC2018 8
    t.inject("A", ack=segment(2))                   # it has thrown the others away
    t.expect("A", seq=segment(2), length=1000)
    t.expect("A", seq=segment(3), length=1000)
    t.inject("A", ack=segment(4))
    for n in (4, 5, 6, 7):
        t.expect("A", seq=segment(n), length=1000)


def test_timeout_skips_what_is_sacked_anew(timeline):
    t = sacked(timeline, 10, 2)
    t.drain(0.1)                                    # the tail loss probe
    t.wait()
    t.expect("A", seq=segment(1), length=1000)
    t.inject("A", ack=segment(2), sack=[seg(3, 5), seg(7, 10)])
    t.expect("A", seq=segment(2), length=1000)
    t.expect("A", seq=segment(6), length=1000)
    t.inject("A", ack=segment(11))
    t.expect("A", seq=segment(11), length=1000)
    t.expect("PA", seq=segment(12), length=1000)


@pytest.mark.parametrize("blocks", [
    [(9001, 9001)], [(9001, 8001)], [(10_001, 11_001)], [(9001, 10_002)], [(-5000, 1)], [(-5000, 9001)],
    [(1, 9001)], [(0x80000000, 0x80000001)], [(2001, 1001), (5001, 3001)]])
def test_sack_blocks_that_cannot_be_are_passed_over(timeline, blocks):
    t = sacked(timeline)
    for _ in range(4):
        t.inject("A", ack=1, sack=blocks)
    t.quiet()
    assert t.info("pipe") == 10_000 and t.info("recovery") is None
    assert t.counters() == {"tcp_octets_sent": 10_000}


def test_sack_of_what_is_acknowledged_is_passed_over(timeline):
    t = sacked(timeline)
    t.inject("A", ack=segment(6))
    for _ in range(4):
        t.inject("A", ack=segment(6), sack=[seg(1)])        # D-SACK (RFC 2883 4)
        t.inject("A", ack=segment(6), sack=[seg(5, 6)])
    t.quiet()
    assert t.info("recovery") is None and t.info("pipe") == 5000


def test_sack_without_negotiation_is_ignored(timeline):
    t = plain(timeline)
    t.inject("A", ack=1, sack=[seg(2, 10)])
    t.quiet()
    assert t.info("pipe") == 9000                   # it is a duplicate ACK and no more


def test_sack_scoreboard_takes_32_ranges_and_no_more(timeline):
    t = timeline().accept(mss=100, sack_ok=True)
    while t.info("cwnd") < 8000:
        t.write(8000)
        t.drain()
        while t.info("in_flight"):
            t.feed(1, "A", ack=t.our_next)
    base = t.our_next
    t.write(8000)
    assert len(t.drain()) == 80
    sent = []
    for i in range(1, 80, 2):
        sent += t.feed(1, "A", ack=base, sack=[(base + 100 * i, base + 100 * i + 100)])
    assert [s.seq for s in sent] == sorted(s.seq for s in sent)
    sent += t.feed(40, "A", ack=base)
    assert t.info("recovery") == "fast"
    t.inject("A", ack=base + 8000)
    t.quiet(60)


def test_retransmission_is_not_sent_after_the_recovery_has_ended(timeline):
    """Three duplicates and the ACK that ends it all come in one burst: nothing is left to be sent again."""
    t = plain(timeline)
    with t.burst():
        for _ in range(3):
            t.inject("A", ack=1)
        t.inject("A", ack=segment(11))
    t.quiet(60)
    assert "tcp_retransmits" not in t.counters()


# -- tail loss probes (RFC 8985 7) -----------------------------------------------------------------

def test_tail_unanswered_sends_its_last_segment_again(timeline):
    t = sacked(timeline, 3)
    assert t.wait() == pytest.approx(0.002)         # twice the round-trip time, of nothing here, and the timers' grain
    t.expect("PA", seq=segment(3), length=1000)
    t.quiet(RTO - 1e-6)                             # RFC8985 7.3: the probe has its whole timeout
    t.after(1e-6)
    t.expect("A", seq=segment(1), length=1000)
    assert t.counters() == {"tcp_octets_sent": 3000, "tcp_retransmits": 2, "tcp_retransmit_timeouts": 1,
                            "tcp_tail_probes": 1}


def test_tail_of_one_segment_waits_for_a_delayed_ack(timeline):
    t = sacked(timeline, 1)
    assert t.wait() == pytest.approx(0.042)
    t.expect("PA", seq=1, length=1000)
    t.inject("A", ack=segment(2))
    t.quiet(60)


def test_tail_behind_a_closed_window_is_probed_too(timeline):
    t = timeline().accept(mss=1000, sack_ok=True, win=2000)
    t.write(5000)
    t.expect("A", seq=1)
    t.expect("A", seq=segment(2))
    t.wait()
    t.expect("A", seq=segment(2), length=1000)      # RFC8985 7.3: nothing new may go instead


@pytest.mark.parametrize("make", ["plain", "sacked"])
def test_tail_is_probed_with_sack_only_and_not_for_a_fin(timeline, make):
    t = timeline().accept(mss=1000, sack_ok=make == "sacked")
    if make == "plain":
        t.write(3000)
        t.drain()
    else:
        t.shutdown()
        t.expect("FA")
    t.quiet(RTO - 1e-6)
    t.drain(1e-6)
    assert "tcp_tail_probes" not in t.counters()


def test_tail_unanswered_with_later_octets_sacked_takes_the_head_for_lost(timeline):
    t = sacked(timeline, 4)
    t.at(0.001)
    t.inject("A", ack=1, sack=[seg(2)])             # too little for RFC 6675's IsLost
    assert t.wait() == pytest.approx(0.003)
    t.expect("A", seq=1, length=1000)
    assert t.info("recovery") == "fast" and t.info("ssthresh") == 2000
    t.inject("A", ack=segment(5))
    t.quiet(60)
    assert t.counters() == {"tcp_octets_sent": 4000, "tcp_retransmits": 1, "tcp_fast_retransmits": 1,
                            "tcp_duplicate_acks_received": 1}


def test_tail_probe_answered_by_a_sack_repairs_without_a_timeout(timeline):
    t = sacked(timeline, 4)                         # all of it lost
    t.wait()
    t.expect("PA", seq=segment(4), length=1000)
    t.inject("A", ack=1, sack=[seg(4)])
    t.wait(0.01)
    t.expect("A", seq=segment(1), length=1000)
    t.inject("A", ack=segment(2), sack=[seg(4)])
    t.expect("A", seq=segment(2), length=1000)
    t.inject("A", ack=segment(3), sack=[seg(4)])
    t.expect("A", seq=segment(3), length=1000)
    t.inject("A", ack=segment(5))
    t.quiet(60)
    assert "tcp_retransmit_timeouts" not in t.counters()


def test_retransmission_lost_again_is_noticed_when_later_segments_arrive(timeline):
    t = sacked(timeline, 10, 30)
    sent = t.feed(1, "A", ack=1, sack=[seg(2, 10)])
    assert sent[0].seq == 1 and sent[1].seq == segment(11)
    last = len(sent) + 9
    sent = t.feed(1, "A", ack=1, sack=[seg(2, last)])
    assert sent[0].seq == 1                         # what went after it arrived, and it did not
