"""Octets that come early, late, twice or overlapping; SACK blocks; sequence numbers that wrap (RFC 9293 3.4, RFC 2018)."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netstack.tcp.ranges import Ranges
from tests.netstack.tcp.timeline import Timeline

STREAM = random.Random(7).randbytes(200_000)


def data(t, start, end, **fields):
    """Octets start..end of the stream arrive; the stream begins at the peer's sequence number 17."""
    t.inject("A", seq=17 + start, payload=STREAM[start:end], ack=t.our_next, **fields)


# -- gaps ------------------------------------------------------------------------------------------

def test_early_segment_is_acknowledged_at_once_and_kept(timeline, family):
    t = timeline(family).accept()
    data(t, 100, 200)
    t.expect("A", ack=17)                       # RFC5681 4.2: an immediate duplicate ACK
    t.news()
    data(t, 0, 100)
    t.expect("A", ack=217)                      # RFC5681 4.2: at once when a gap is filled
    t.news("READABLE")
    t.read(STREAM[:200])
    assert t.verdicts() == {"delivered": 2}
    assert t.counters() == {"tcp_octets_received": 200, "tcp_out_of_order": 1}


def test_every_early_segment_of_a_burst_gets_its_duplicate_ack(timeline):
    t = timeline().accept()
    with t.burst():
        for i in range(1, 6):
            data(t, 100 * i, 100 * i + 100)
    for _ in range(5):
        t.expect("A", ack=17)                   # the peer counts them: RFC5681 3.2
    t.quiet()


def test_burst_that_closes_its_own_gap_gets_one_ack(timeline):
    """Eight duplicates of the last ACK would make a peer without SACK send again what was never lost."""
    t = timeline().accept()
    with t.burst():
        for i in (1, 2, 3, 4, 5, 0):
            data(t, 100 * i, 100 * i + 100)
    t.expect("A", ack=617)
    t.quiet(1)


def test_gap_partly_filled_is_acknowledged_at_once(timeline):
    t = timeline().accept()
    data(t, 300, 400)
    t.expect("A", ack=17)
    data(t, 0, 100)
    t.expect("A", ack=117)
    data(t, 100, 200)
    t.expect("A", ack=217)
    data(t, 200, 300)
    t.expect("A", ack=417)
    t.read(STREAM[:400])


@pytest.mark.parametrize("first, second, acked", [
    ((0, 100), (50, 150), 150), ((0, 100), (0, 150), 150), ((50, 150), (0, 100), 150), ((50, 150), (0, 150), 150),
    ((50, 100), (0, 150), 150), ((0, 150), (50, 100), 150), ((0, 100), (0, 100), 100), ((50, 100), (0, 50), 100),
    ((50, 100), (0, 51), 100), ((50, 100), (0, 200), 200)])
def test_overlaps_give_the_stream_once(timeline, first, second, acked):
    t = timeline().accept()
    data(t, *first)
    t.drain()
    data(t, *second)
    t.drain(0.04)
    assert t.info("octets_received") == 16 + acked
    t.read(STREAM[:acked])


def test_data_across_the_right_edge_are_cut_there(timeline):
    t = timeline(receive_buffer=3000).accept(quick=True)
    t.inject("A", payload=2000)
    t.expect("A", ack=2001, win=1000)
    t.inject("FA", payload=1500)
    t.expect("A", ack=3001, win=0)              # RFC9293 3.10.7.4: trimmed, and the FIN with what follows
    assert t.state() == "ESTABLISHED"
    assert len(t.read()) == 3000
    t.expect("A", ack=3001, win=3000)


def test_early_data_across_the_right_edge_are_cut_there(timeline):
    t = timeline(receive_buffer=3000).accept(quick=True)
    t.inject("A", seq=2001, payload=1460)
    t.expect("A", ack=1)
    t.inject("A", seq=1, payload=1000)
    t.expect("A", ack=1001)
    t.inject("A", seq=1001, payload=1000)
    t.expect("A", ack=3001, win=0)


def test_more_than_32_gaps_are_refused_and_nothing_is_lost(timeline):
    t = timeline().accept()
    for i in range(40):
        data(t, 20 * i + 10, 20 * i + 20)
        t.expect("A", ack=17)
    assert t.verdicts() == {"delivered": 32, "tcp_out_of_order_full": 8}
    for i in range(40):
        data(t, 20 * i, 20 * i + 20)
        t.drain(0.04)
    t.read(STREAM[:800])


def test_early_duplicate_is_answered_with_a_duplicate_ack(timeline):
    t = timeline().accept(sack_ok=True)
    data(t, 100, 200)
    t.expect("A", ack=17, sack=[(117, 217)])
    data(t, 120, 180)
    t.expect("A", ack=17, sack=[(117, 217)])
    assert t.verdicts() == {"delivered": 1, "tcp_duplicate": 1}


# -- SACK blocks -----------------------------------------------------------------------------------

def test_sack_tells_of_the_newest_range_first(timeline):
    t = timeline().accept(sack_ok=True)
    data(t, 100, 200)
    t.expect("A", ack=17, sack=[(117, 217)])
    data(t, 500, 600)
    t.expect("A", ack=17, sack=[(517, 617), (117, 217)])
    data(t, 300, 400)
    t.expect("A", ack=17, sack=[(317, 417), (117, 217), (517, 617)])        # RFC2018 4
    data(t, 120, 130)
    t.expect("A", ack=17, sack=[(117, 217), (317, 417), (517, 617)])        # ... for duplicates too
    data(t, 200, 300)
    t.expect("A", ack=17, sack=[(117, 417), (517, 617)])
    data(t, 0, 100)
    t.expect("A", ack=417, sack=[(517, 617)])
    data(t, 400, 500)
    t.expect("A", ack=617, sack=[])


@pytest.mark.parametrize("ts, blocks", [(None, 4), (9, 3)])
def test_sack_has_as_many_blocks_as_fit(timeline, ts, blocks):
    t = timeline().accept(sack_ok=True, ts=ts)
    for i in range(1, 7):
        data(t, 200 * i, 200 * i + 100)
        seg = t.expect("A", ack=17, sack=t.outbox[0].sack)
    assert len(seg.sack) == blocks
    assert seg.sack[0] == (1217, 1317)


def test_sack_not_negotiated_is_not_sent(timeline):
    t = timeline().accept()
    data(t, 100, 200)
    t.expect("A", ack=17, sack=[])


# -- wrapping --------------------------------------------------------------------------------------

@pytest.mark.parametrize("peer_iss", [2 ** 32 - 1, 2 ** 32 - 2, 2 ** 32 - 17, 2 ** 32 - 600, 2 ** 31 - 600, 0])
def test_peer_numbers_wrap(timeline, peer_iss):
    t = timeline(peer_iss=peer_iss).accept(sack_ok=True)
    for start in range(1000, 0, -100):
        data(t, start, start + 100)
        t.expect("A", ack=17, sack=[(17 + start, 1117)])
    data(t, 0, 100)
    t.expect("A", ack=1117)
    t.read(STREAM[:1100])
    t.to("TIME_WAIT")


@pytest.mark.parametrize("before", [1, 2, 500, 1000, 1500, 2500])
def test_our_numbers_wrap(timeline, before):
    """Our ISN comes so many octets before 2**32: the clock in it is turned until it does."""
    probe = Timeline()
    probe.connect()
    probe.drain()
    start = ((2 ** 32 - before - probe.our_iss) % 2 ** 32) << 12
    t = timeline(start=start)
    t.connect()
    t.expect("S", seq=0)
    assert t.our_iss == 2 ** 32 - before
    t.inject("SA", seq=0, ack=1, mss=1000, sack_ok=True)
    t.expect("A", seq=1, ack=1)
    t.news("CONNECTED")
    t.write(4000)
    assert [s.seq for s in t.drain()] == [1, 1001, 2001, 3001]
    t.inject("A", ack=1, sack=[(1001, 4001)])
    t.expect("A", seq=1, length=1000)
    t.inject("A", ack=4001)
    t.write(500)
    t.expect("PA", seq=4001)
    t.wait()
    t.expect("PA", seq=4001)
    t.inject("A", ack=4501)
    t.quiet(100)


# -- urgent ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("urgent", [0, 1, 4, 5, 65535])
def test_urgent_data_are_delivered_in_line(timeline, urgent):
    t = timeline().accept()
    t.inject("UA", payload=b"urgh!", urgent=urgent)     # RFC6093 6
    t.read(b"urgh!")
    t.drain(0.04)
    assert t.verdicts() == {"delivered": 1}


# -- laws ------------------------------------------------------------------------------------------

cuts = st.lists(st.integers(0, 3000), min_size=1, max_size=30).map(
    lambda points: sorted({0, 3000, *points}))


@settings(max_examples=30, deadline=None)
@given(points=cuts, seed=st.integers(0, 2 ** 32), peer_iss=st.sampled_from([5, 2 ** 32 - 1500, 2 ** 31 - 100]),
       overlaps=st.lists(st.tuples(st.integers(0, 2999), st.integers(1, 1400)), max_size=8))
def test_any_segmentation_order_and_overlap_gives_the_stream_once(points, seed, peer_iss, overlaps):
    t = Timeline(peer_iss=peer_iss)
    t.accept()
    shuffle = random.Random(seed)
    pieces = list(itertools.pairwise(points))
    pieces += [(start, min(start + n, 3000)) for start, n in overlaps]
    pieces += shuffle.sample(pieces, len(pieces) // 3)
    shuffle.shuffle(pieces)
    got = b""
    while pieces or len(got) < 3000:
        for start, end in pieces or [(i, min(i + 1000, 3000)) for i in range(0, 3000, 1000)]:
            data(t, start, end)
            t.drain()
            if shuffle.random() < 0.3:
                got += t.read()
                t.drain()
        pieces = []                 # what more than 32 gaps refused comes again
        got += t.read()
        t.drain()
    assert got == STREAM[:3000]
    t.to("TIME_WAIT")
    assert t.info("octets_received") == 3016
    t.finish()


@settings(max_examples=150, deadline=None)
@given(base=st.sampled_from([0, 1000, 2 ** 31 - 50, 2 ** 32 - 100]), limit=st.integers(1, 8), steps=st.lists(st.one_of(
    st.tuples(st.just("add"), st.integers(0, 200), st.integers(1, 60)),
    st.tuples(st.just("cut"), st.integers(0, 260), st.just(0))), max_size=40))
def test_ranges_are_a_set(base, limit, steps):
    ranges, model, floor = Ranges(limit), set(), 0

    def runs(numbers):
        out = []
        for n in sorted(numbers):
            if out and out[-1][1] == n:
                out[-1][1] = n + 1
            else:
                out.append([n, n + 1])
        return [((a + base) % 2 ** 32, (b + base) % 2 ** 32) for a, b in out]

    for verb, start, length in steps:
        if verb == "cut":
            floor = max(floor, start)
            ranges.cut((floor + base) % 2 ** 32)
            model = {n for n in model if n >= floor}
        else:
            new = set(range(start, start + length))
            added = ranges.add((start + base) % 2 ** 32, (start + length + base) % 2 ** 32)
            if len(runs(model | new)) > limit:
                assert added == -1
            else:
                assert added == len(new - model)
                model |= new
        assert ranges.ranges == runs(model)
