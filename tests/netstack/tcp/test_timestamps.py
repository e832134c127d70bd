"""Timestamps and PAWS (RFC 7323 3 to 5)."""

import errno

import pytest

DAY = 86400


def test_every_segment_carries_them_once_agreed(timeline, family):
    t = timeline(family).accept(ts=7000)
    t.at(1)
    t.inject("A", payload=b"x", ts=(8000, 0))
    t.write(b"y")
    t.expect("PA", ts=(1000, 8000))             # RFC7323 3.2
    t.inject("A", ack=2, ts=(8010, 1000))
    t.inject("A", payload=b"z", seq=t.peer_next + 10)
    t.expect("A", ts=(1000, 8010))              # duplicate ACKs too
    t.shutdown()
    t.expect("FA", ts=(1000, 8010))


def test_not_agreed_are_ignored(timeline):
    t = timeline().accept()
    t.inject("A", payload=b"x", ts=(5, 5))
    t.after(0.04)
    t.expect("A", ack=18, ts=None)


@pytest.mark.parametrize("age, verdict", [(0, "delivered"), (1, "tcp_paws"), (1000, "tcp_paws"),
                                          (2 ** 31 - 1, "tcp_paws"), (2 ** 31 + 1, "delivered")])
def test_older_than_the_last_is_dropped_with_an_ack(timeline, age, verdict):
    t = timeline().accept(ts=100_000)
    t.inject("A", payload=b"data", ts=100_000 - age)
    if verdict == "tcp_paws":
        t.expect("A", ack=17, ts=(0, 100_000))  # RFC7323 5.3 R1
        t.quiet(1)
    else:
        t.after(0.04)
        t.expect("A", ack=21)
    assert t.verdicts() == {verdict: 1}


def test_clock_that_wraps_goes_on(timeline):
    t = timeline().accept(ts=2 ** 32 - 50)
    for i in range(5):
        t.after(0.02)
        t.inject("A", payload=b"x")
        t.after(0.04)
        t.expect("A", ack=18 + i)
    assert t.verdicts() == {"delivered": 5}


def test_missing_is_dropped_in_silence_but_a_reset_counts(timeline):
    t = timeline().accept(ts=5)
    t.inject("A", payload=b"data", ts=None)     # RFC7323 3.2
    t.quiet(1)
    assert t.verdicts() == {"tcp_paws": 1}
    t.inject("R", seq=17, ts=None)
    t.news("CLOSED", error=errno.ECONNRESET)


def test_reset_is_not_subject_to_paws(timeline):
    t = timeline().accept(ts=1000)
    t.inject("R", ts=1)                         # RFC7323 5.2
    t.news("CLOSED", error=errno.ECONNRESET)
    assert t.verdicts() == {"delivered": 1}


@pytest.mark.parametrize("days, verdict", [(23.9, "tcp_paws"), (24.1, "delivered")])
def test_last_one_expires_after_24_days(timeline, days, verdict):
    t = timeline().accept(ts=1000)
    t.after(days * DAY)
    t.inject("A", payload=b"back again", ts=999)
    t.drain(0.05)
    assert t.verdicts() == {verdict: 1}         # RFC7323 5.5


def test_last_one_is_that_of_the_segment_the_last_ack_was_for(timeline):
    """A delayed ACK echoes the first segment it is for; a segment beyond a gap does not count (RFC 7323 4.3)."""
    t = timeline().accept(ts=0)
    t.inject("A", payload=500, ts=100)
    t.at(0.02)
    t.inject("A", payload=100, ts=120)
    t.at(0.04)
    t.expect("A", ack=617, ts=(40, 100))
    t.inject("A", seq=717, payload=100, ts=140)
    t.expect("A", ack=617, ts=(40, 100))
    t.inject("A", seq=617, payload=100, ts=150)
    t.expect("A", ack=817, ts=(40, 150))


def test_unacceptable_segments_do_not_set_it(timeline):
    t = timeline().accept(ts=100)
    t.inject("A", seq=t.peer_next + 100_000, payload=b"x", ts=200)
    t.expect("A", ts=(0, 100))
    t.inject("A", seq=5, payload=b"x", ts=300)
    t.expect("A", ts=(0, 100))


def test_our_clock_has_its_own_offset_for_each_peer(timeline):
    t = timeline()
    t.listen()
    values = set()
    for peer_port in range(1000, 1010):
        t.inject("S", seq=0, ts=(1, None), mss=1460, peer_port=peer_port)
        values.add(t.expect("SA").ts[0])
    assert len(values) == 10                    # RFC7323 5.4


def test_syn_ack_without_them_switches_them_off(timeline):
    t = timeline()
    t.connect()
    t.expect("S", ts=(0, 0))
    t.inject("SA", seq=0, ack=1, mss=1460)
    t.expect("A", ts=None)


@pytest.mark.parametrize("echo", [0, 1, 5_000_000, -5])
def test_nonsense_echoed_does_no_more_harm_than_a_long_timeout(timeline, echo):
    t = timeline().accept(ts=5)
    for _ in range(3):
        t.write(b"x")
        t.expect("PA")
        t.wait()
        t.expect("PA")
        t.inject("A", ack=t.our_next, ts=(t.peer_ts + int(t.now * 1000), echo))
    assert 200_000_000 <= t.info("rto_ns") <= 60_000_000_000
