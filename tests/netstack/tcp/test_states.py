"""Every synchronized state against every stimulus: RST, SYN, old, wrong, new segments (RFC 9293 3.10.7.4, RFC 5961)."""

import errno

import pytest

from tests.netstack.tcp.timeline import AUTO

SYNCHRONIZED = ["ESTABLISHED", "FIN_WAIT_1", "FIN_WAIT_2", "CLOSE_WAIT", "CLOSING", "LAST_ACK", "TIME_WAIT"]
PEER_OPEN = ["ESTABLISHED", "FIN_WAIT_1", "FIN_WAIT_2"]
PEER_CLOSED = ["CLOSE_WAIT", "CLOSING", "LAST_ACK", "TIME_WAIT"]
FIN_IN_FLIGHT = ["FIN_WAIT_1", "CLOSING", "LAST_ACK"]


@pytest.fixture(params=[False, True], ids=["plain", "timestamps"])
def ts(request):
    """Without and with timestamps."""
    return 5000 if request.param else None


def edge(t):
    """The first sequence number beyond our receive window."""
    return t.peer_next + t.info("receive_window")


def once_more(t, state):
    """The peer says the wrong thing; we answer by saying where we are, and nothing has changed."""
    t.expect("A", seq=t.our_next, ack=t.peer_next)
    t.quiet()
    assert t.state() == state


# -- RST -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("state", SYNCHRONIZED)
def test_any_exact_reset_closes(timeline, state, ts):
    t = timeline().accept(ts=ts).to(state)
    t.inject("R", seq=t.peer_next)          # RFC5961 3.2 case 1
    t.quiet()
    t.news("CLOSED", error=0 if state in ("CLOSING", "LAST_ACK", "TIME_WAIT") else errno.ECONNRESET)
    assert t.state() == "CLOSED"
    assert t.verdicts() == {"delivered": 1} and t.counters() == {"tcp_resets_received": 1}
    t.after(120)
    t.release()
    assert t.stack.connections() == []


@pytest.mark.parametrize("state", SYNCHRONIZED)
@pytest.mark.parametrize("where", ["next", "middle", "last"])
def test_any_reset_elsewhere_in_the_window_is_challenged(timeline, state, where):
    t = timeline().accept().to(state)
    offset = {"next": t.peer_next + 1, "middle": t.peer_next + 1000, "last": edge(t) - 1}[where]
    t.inject("R", seq=offset)               # RFC5961 3.2 case 2
    once_more(t, state)
    assert t.verdicts() == {"tcp_reset_challenged": 1}
    assert t.counters() == {"tcp_challenge_acks": 1}


@pytest.mark.parametrize("state", SYNCHRONIZED)
@pytest.mark.parametrize("where", ["old", "edge", "beyond", "far"])
def test_any_reset_outside_the_window_is_ignored(timeline, state, where):
    t = timeline().accept().to(state)
    t.inject("R", seq={"old": t.peer_next - 1, "edge": edge(t), "beyond": edge(t) + 1, "far": 1 << 31}[where])
    t.quiet()                               # RFC5961 3.2 case 3
    assert t.state() == state
    assert t.verdicts() == {"tcp_out_of_window": 1} and t.counters() == {}


# -- SYN -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("state", [s for s in SYNCHRONIZED if s != "TIME_WAIT"])
@pytest.mark.parametrize("flags", ["S", "SA", "SFA"])
@pytest.mark.parametrize("where", ["first", "old", "exact", "inside", "beyond"])
def test_any_syn_is_challenged_wherever_it_lies(timeline, state, flags, where):
    t = timeline().accept().to(state)
    t.inject(flags, ack=t.our_next, seq={"first": 0, "old": t.peer_next - 1, "exact": t.peer_next,
                                         "inside": t.peer_next + 5, "beyond": edge(t) + 9}[where])
    t.peer_next = 17 + (state in PEER_CLOSED)
    once_more(t, state)                     # RFC5961 4.2
    assert t.verdicts() == {"tcp_syn_challenged": 1}
    assert t.counters() == {"tcp_challenge_acks": 1}


def test_established_challenges_are_limited_per_connection(timeline):
    t = timeline().accept()
    for second in (0, 0.4, 0.5, 0.9, 1.1):
        t.at(second)
        t.inject("R", seq=100)
        if second in (0, 0.5, 1.1):
            t.expect("A", ack=17)
        t.quiet()
    assert t.verdicts() == {"tcp_reset_challenged": 5}
    assert t.counters() == {"tcp_challenge_acks": 3}


def test_challenges_are_limited_over_all_connections(timeline):
    t = timeline(challenge_acks_per_second=10)
    t.listen()
    sequences = []
    for peer_port in range(1000, 1030):
        t.inject("S", seq=0, peer_port=peer_port)
        sequences.append(t.expect("SA").seq)
    for peer_port, sequence in enumerate(sequences, 1000):
        t.inject("A", seq=1, ack=sequence + 1, peer_port=peer_port)
    t.mark()
    for _ in range(2):
        with t.burst():
            for peer_port in range(1000, 1030):
                t.inject("R", seq=100, peer_port=peer_port)
        answers = len(t.drain())
        assert 5 <= answers < 15            # RFC5961 7; the exact number is nobody's business
        assert t.counters() == {"tcp_challenge_acks": answers}
        t.after(1)


# -- old duplicates and what was never sent --------------------------------------------------------

@pytest.mark.parametrize("state", SYNCHRONIZED)
def test_any_old_duplicate_is_acknowledged_and_dropped(timeline, state, ts):
    t = timeline().accept(ts=ts).to(state)
    t.inject("A", seq=7, payload=b"0123456789", ack=1)
    once_more(t, state)                     # RFC9293 3.10.7.4: an unacceptable segment is answered with <ACK>
    assert t.verdicts() == {"tcp_duplicate": 1} and t.counters() == {}


@pytest.mark.parametrize("state", SYNCHRONIZED)
def test_any_keepalive_of_the_peer_is_answered(timeline, state):
    t = timeline().accept().to(state)
    t.inject("A", seq=t.peer_next - 1, ack=1)   # RFC9293 MUST-26
    once_more(t, state)
    assert t.verdicts() == {"tcp_duplicate": 1} and t.counters() == {}


@pytest.mark.parametrize("state", SYNCHRONIZED)
@pytest.mark.parametrize("length", [0, 10])
def test_any_segment_beyond_the_window_is_acknowledged_and_dropped(timeline, state, length):
    t = timeline().accept().to(state)
    after, t.peer_next = t.peer_next, edge(t) + 1
    t.inject("A", payload=length, ack=t.our_next)
    t.peer_next = after
    once_more(t, state)
    assert t.verdicts() == {"tcp_out_of_window": 1} and t.counters() == {}


def test_established_empty_unacceptable_segments_are_answered_twice_a_second(timeline):
    """Two ends that disagree about the connection must not acknowledge each other's ACKs for ever."""
    t = timeline().accept()
    for i in range(40):
        t.at(i / 20)
        t.inject("A", seq=0x80000000, ack=1)
        if i % 10 == 0:
            t.expect("A", seq=1, ack=17)
        t.quiet()
    assert t.verdicts() == {"tcp_out_of_window": 40} and t.counters() == {}


def test_established_window_probes_are_all_answered(timeline):
    t = timeline().accept()
    for _ in range(10):
        t.inject("A", seq=16, payload=b"q")
        t.expect("A", ack=17)


@pytest.mark.parametrize("state", SYNCHRONIZED)
@pytest.mark.parametrize("length", [0, 10])
def test_any_ack_of_what_was_never_sent_is_challenged(timeline, state, length):
    t = timeline().accept().to(state)
    after = t.our_next
    t.inject("A", ack=t.our_next + 1, payload=length)
    t.our_next, t.peer_next = after, 17 + (state in PEER_CLOSED)
    once_more(t, state)                     # RFC5961 5.2
    assert t.verdicts() == {"tcp_ack_unacceptable": 1}
    assert t.counters() == {"tcp_challenge_acks": 1}


@pytest.mark.parametrize("offset, acceptable", [(-1, True), (-65535, True), (-65536, False), (-(1 << 30), False)])
def test_established_ack_older_than_the_largest_window_is_challenged(timeline, offset, acceptable):
    t = timeline().accept()
    t.inject("A", ack=1 + offset & 0xFFFFFFFF, payload=b"d")        # RFC5961 5.2: SND.UNA - MAX.SND.WND
    if acceptable:
        t.after(0.04)
        t.expect("A", ack=18)
        assert t.verdicts() == {"delivered": 1}
    else:
        t.expect("A", ack=17)
        assert t.verdicts() == {"tcp_ack_unacceptable": 1}


@pytest.mark.parametrize("state", SYNCHRONIZED)
def test_any_segment_without_ack_is_dropped(timeline, state):
    t = timeline().accept().to(state)
    t.inject("", payload=b"data")
    t.quiet()
    t.inject("F", seq=17 + (state in PEER_CLOSED))
    t.quiet()
    assert t.state() == state
    assert t.verdicts() == {"tcp_flags": 2}


# -- data and FIN ----------------------------------------------------------------------------------

@pytest.mark.parametrize("state", PEER_OPEN)
def test_peer_open_data_is_delivered(timeline, state, ts):
    t = timeline().accept(ts=ts).to(state)
    t.inject("A", payload=b"more", ack=1)
    t.news("READABLE")
    t.read(b"more")
    t.after(0.04)
    t.expect("A", ack=21)
    assert t.verdicts() == {"delivered": 1}


@pytest.mark.parametrize("state", PEER_CLOSED)
def test_peer_closed_data_beyond_its_fin_is_not(timeline, state):
    t = timeline().accept().to(state)
    t.inject("A", payload=b"more", ack=t.our_next - (state in FIN_IN_FLIGHT))
    t.expect("A", ack=18)
    t.news()
    assert t.state() == state
    assert t.verdicts() == {"tcp_after_close": 1}


@pytest.mark.parametrize("state, after", [
    ("ESTABLISHED", "CLOSE_WAIT"), ("FIN_WAIT_1", "CLOSING"), ("FIN_WAIT_2", "TIME_WAIT")])
def test_peer_open_fin_closes_its_side(timeline, family, state, after):
    t = timeline(family).accept().to(state)
    t.inject("FA", ack=1 if state != "FIN_WAIT_2" else 2)
    t.expect("A", ack=18)
    t.news("EOF")
    assert t.state() == after
    assert t.verdicts() == {"delivered": 1} and t.counters() == {}


@pytest.mark.parametrize("state", PEER_CLOSED)
def test_peer_closed_same_fin_is_acknowledged_again(timeline, state):
    t = timeline().accept().to(state)
    t.inject("FA", seq=17, ack=t.our_next - (state in FIN_IN_FLIGHT))
    once_more(t, state)
    t.news()
    assert t.verdicts() == {"tcp_duplicate": 1} and t.counters() == {}


@pytest.mark.parametrize("state, after", [
    ("FIN_WAIT_1", "FIN_WAIT_2"), ("CLOSING", "TIME_WAIT"), ("LAST_ACK", "CLOSED")])
def test_fin_in_flight_ack_of_it_moves_on(timeline, state, after):
    t = timeline().accept().to(state)
    t.inject("A", ack=2)
    t.quiet()
    assert t.state() == after
    assert t.verdicts() == {"delivered": 1} and t.counters() == {}


def test_fin_wait_1_fin_and_ack_together_go_to_time_wait(timeline):
    t = timeline().accept().to("FIN_WAIT_1")
    t.inject("FA", ack=2, payload=b"last words")
    t.expect("A", seq=2, ack=28)
    assert t.state() == "TIME_WAIT"
    t.news("READABLE")
    t.read(b"last words")
    t.news("EOF")


@pytest.mark.parametrize("state", PEER_OPEN)
def test_peer_open_fin_out_of_order_waits_for_its_data(timeline, state):
    t = timeline().accept().to(state)
    t.inject("FA", seq=20, ack=1 if state == "FIN_WAIT_1" else AUTO)
    t.expect("A", ack=17)                   # RFC5681 4.2: a duplicate ACK at once
    assert t.state() == state
    t.inject("A", seq=17, payload=b"abc", ack=1 if state == "FIN_WAIT_1" else AUTO)
    t.expect("A", ack=21)
    t.news("READABLE")
    t.read(b"abc")
    t.news("EOF")
    assert t.verdicts() == {"delivered": 2}


def test_established_fin_whose_data_came_before_is_news(timeline):
    t = timeline().accept()
    t.inject("FA", seq=10, payload=7)
    t.expect("A", ack=18)
    t.news("EOF")
    assert t.verdicts() == {"delivered": 1}


def test_established_nothing_follows_a_fin(timeline):
    t = timeline().accept()
    t.inject("FA", seq=20, ack=1)
    t.expect("A", ack=17)
    t.inject("A", seq=19, payload=b"ab", ack=1)     # one octet before the FIN, one where it lies
    t.expect("A", ack=17)
    t.inject("A", seq=17, payload=b"xy", ack=1)
    t.expect("A", ack=21)
    t.read(b"xya")
    assert t.state() == "CLOSE_WAIT"


def test_established_fin_before_octets_already_here_is_a_lie(timeline):
    t = timeline().accept()
    t.inject("A", seq=30, payload=b"far", ack=1)
    t.expect("A", ack=17)
    t.inject("FA", seq=20, ack=1)
    t.drain()
    t.inject("A", seq=17, payload=13, ack=1)
    t.expect("A", ack=33)
    assert t.state() == "ESTABLISHED"
