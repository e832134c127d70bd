"""How connections end: half closes, FIN again, TIME-WAIT, release, abort (RFC 9293 3.6, 3.10.4, 3.10.5)."""

import errno

import pytest

MSL2 = 60
RTO = 0.2       # the least; round trips take no time here


# -- half closes -----------------------------------------------------------------------------------

def test_established_shutdown_after_data_sends_fin_with_the_last_octets(timeline, family):
    t = timeline(family).accept(mss=1000)
    t.write(1500)
    t.expect("A", seq=1, length=1000)
    t.shutdown()
    t.expect("FPA", seq=1001, length=500)       # Nagle holds nothing back that the FIN follows
    t.inject("A", ack=1502)
    assert t.state() == "FIN_WAIT_2"
    assert t.counters() == {"tcp_octets_sent": 1500}


def test_fin_wait_2_goes_on_receiving(timeline):
    t = timeline().accept().to("FIN_WAIT_2")
    for i in range(3):
        t.inject("A", payload=b"part%d" % i)
        t.after(0.04)
        t.expect("A", seq=2, ack=17 + 5 * (i + 1))
    t.read(b"part0part1part2")
    t.quiet(3600)                               # an application that waits may wait for ever
    t.inject("FA", payload=b"end")
    t.expect("A", seq=2, ack=36)
    t.read(b"end")
    assert t.state() == "TIME_WAIT"


def test_close_wait_goes_on_sending(timeline):
    t = timeline().accept().to("CLOSE_WAIT")
    for i in range(3):
        t.write(b"part%d" % i)
        t.expect("PA", seq=1 + 5 * i, ack=18, payload=b"part%d" % i)
        t.inject("A", ack=6 + 5 * i)
    t.quiet(3600)
    t.shutdown()
    t.expect("FA", seq=16, ack=18)
    t.inject("A", ack=17)
    t.news("CLOSED")
    assert t.state() == "CLOSED"


def test_established_shutdown_twice_and_write_after(timeline):
    t = timeline().accept()
    t.shutdown()
    t.expect("FA", seq=1)
    t.shutdown()
    t.quiet()
    with pytest.raises(BrokenPipeError):
        t.tcp.write(t.handle, b"late")
    t.inject("A", ack=2)


def test_established_eof_news_wait_until_all_is_read(timeline):
    t = timeline().accept()
    t.inject("FA", payload=b"abcdef")
    t.expect("A", ack=24)
    t.news("READABLE")
    t.read(b"abc", most=3)
    t.news()
    t.read(b"def")
    t.news("EOF")
    t.read(b"")
    t.news()


def test_both_shut_down_at_once_close_through_closing(timeline, family):
    t = timeline(family).accept()
    t.shutdown()
    t.expect("FA", seq=1, ack=17)
    t.inject("FA", ack=1)                       # RFC 9293 figure 13
    t.expect("A", seq=2, ack=18)
    t.news("EOF")
    assert t.state() == "CLOSING"
    t.inject("A", ack=2)
    assert t.state() == "TIME_WAIT"
    t.quiet(MSL2 - 1e-6)
    assert t.state() == "TIME_WAIT"
    t.quiet(1e-6)
    t.news("CLOSED")


# -- FIN again -------------------------------------------------------------------------------------

@pytest.mark.parametrize("state", ["FIN_WAIT_1", "CLOSING", "LAST_ACK"])
def test_fin_in_flight_is_repeated_with_back_off_and_given_up(timeline, state):
    t = timeline(retransmissions=4).accept().to(state)
    ack = 17 + (state != "FIN_WAIT_1")
    at = t.now
    for i in range(4):
        at += RTO * 2 ** i
        t.at(at)
        t.expect("FA", seq=1, ack=ack)
    t.quiet(RTO * 16 - 1e-6)
    assert t.state() == state
    t.quiet(1e-6)
    t.news("CLOSED", error=errno.ETIMEDOUT)
    assert t.counters() == {"tcp_retransmits": 4, "tcp_retransmit_timeouts": 5, "tcp_aborts": 1}


def test_fin_wait_1_lost_data_go_again_with_the_fin(timeline):
    t = timeline().accept()
    t.write(b"data")
    t.expect("PA", seq=1)
    t.shutdown()
    t.expect("FA", seq=5)
    t.after(RTO)
    t.expect("FPA", seq=1, payload=b"data")
    t.inject("A", ack=6)
    assert t.state() == "FIN_WAIT_2"
    t.quiet(100)


def test_fin_wait_1_data_acknowledged_but_not_the_fin(timeline):
    t = timeline().accept()
    t.write(b"data")
    t.expect("PA", seq=1)
    t.shutdown()
    t.expect("FA", seq=5)
    t.inject("A", ack=5)
    assert t.state() == "FIN_WAIT_1"
    t.after(RTO)
    t.expect("FA", seq=5)
    t.inject("A", ack=6)
    assert t.state() == "FIN_WAIT_2"


@pytest.mark.parametrize("times", [3, 40])
def test_established_fin_into_a_closed_window_probes_while_the_peer_answers(timeline, times):
    """A peer whose window stays closed for an hour is not dead: RFC9293 MUST-37."""
    t = timeline().accept()
    t.write(b"last")
    t.expect("PA", seq=1)
    t.inject("A", ack=5, win=0)
    t.shutdown()
    t.expect("FA", seq=5)
    for _ in range(times):
        t.wait()
        t.expect("FA", seq=5)
        t.inject("A", ack=5, win=0)
    t.inject("A", ack=5, win=1000)
    t.expect("FA", seq=5)
    t.inject("A", ack=6, win=1000)
    assert t.state() == "FIN_WAIT_2"
    t.quiet(1000)


# -- TIME-WAIT -------------------------------------------------------------------------------------

def test_time_wait_fin_again_restarts_the_wait(timeline):
    t = timeline().accept().to("TIME_WAIT")
    t.after(50)
    t.inject("FA", seq=17, ack=2)
    t.expect("A", seq=2, ack=18)                # RFC9293 3.10.7.4: restart the 2 MSL time-out
    t.quiet(59.999)
    assert t.state() == "TIME_WAIT"
    t.quiet(0.001)
    t.news("CLOSED")


def test_time_wait_anything_else_does_not_restart_the_wait(timeline):
    t = timeline().accept().to("TIME_WAIT")
    t.after(50)
    t.inject("A", seq=10, payload=b"1234567", ack=2)
    t.expect("A", ack=18)
    t.inject("A", seq=18, ack=2)
    t.quiet(10)
    t.news("CLOSED")


def test_time_wait_newer_syn_reopens(timeline):
    t = timeline().accept().to("TIME_WAIT")
    t.release()
    t.after(5)
    t.inject("S", seq=18 + 1, mss=1460)         # RFC9293 MAY-2
    seg = t.expect("SA", ack=20)
    assert 2 < seg.seq < 1 << 31                # beyond all that was used
    t.our_next = seg.seq + 1
    t.inject("A", seq=20, ack=seg.seq + 1)
    t.news("ACCEPTED")
    assert t.state() == "ESTABLISHED"


def test_time_wait_isn_of_the_next_connection_is_beyond_a_fast_one(timeline):
    """RFC 9293 MAY-2 asks for a larger ISN than any number used: the clock alone is too slow for a fast sender."""
    t = timeline().accept(win=65535, mss=1460)
    for _ in range(20):
        t.write(50_000)
        while t.outbox:
            t.drain()
            t.inject("A", ack=t.our_next)
    t.to("TIME_WAIT")
    t.release()
    t.inject("S", seq=100)
    seg = t.expect("SA", ack=101)
    assert 1_000_003 < seg.seq < 1 << 31
    t.inject("R", seq=101)


@pytest.mark.parametrize("new_ts, seq, reopens", [
    (10_000, 100, True), (10_000, 3, True), (5_000, 100, True), (5_000, 3, False), (4_999, 100, False)])
def test_time_wait_syn_by_timestamps(timeline, new_ts, seq, reopens):
    """RFC 6191 2: a newer timestamp decides, an equal one leaves it to the sequence number."""
    t = timeline().accept(ts=5000).to("TIME_WAIT")
    t.release()
    t.inject("S", seq=seq, ts=(new_ts, None))
    if reopens:
        t.expect("SA", ack=seq + 1)
        t.inject("R", seq=seq + 1)
    else:
        t.expect("A", seq=2, ack=18)
        assert t.state() == "TIME_WAIT"


@pytest.mark.parametrize("seq", [10, 17, 18])
def test_time_wait_older_syn_is_challenged(timeline, seq):
    t = timeline().accept().to("TIME_WAIT")
    t.inject("S", seq=seq)
    t.expect("A", seq=2, ack=18)
    assert t.state() == "TIME_WAIT"


def test_time_wait_newer_syn_without_a_listener_does_not_end_it(timeline):
    t = timeline().accept().to("TIME_WAIT")
    t.close_listener()
    t.inject("S", seq=1000)
    t.expect("A", seq=2, ack=18)
    assert t.state() == "TIME_WAIT"


def test_time_wait_full_recycles_an_older_one(timeline):
    t = timeline(time_wait=3)
    for peer_port in range(5):
        t.peer_port, t.our_iss, t.handle = 1000 + peer_port, None, None
        t.peer_next = t.our_next = 0
        t.accept().to("TIME_WAIT")
        t.release()
    assert t.tcp.usage()["time_wait"] == 3
    assert t.stack.counters()["tcp_time_wait_recycled"] == 2


def test_time_wait_gives_way_to_a_new_connection_when_the_table_is_full(timeline):
    t = timeline(connections=1).accept().to("TIME_WAIT")
    t.release()
    t.inject("S", seq=0, peer_port=1234)
    t.expect("SA")
    assert t.stack.counters()["tcp_time_wait_recycled"] == 1 and t.verdicts() == {"delivered": 1}
    assert t.state() == "SYN_RECEIVED"


# -- release ---------------------------------------------------------------------------------------

def test_released_without_unread_data_closes_politely(timeline, family):
    t = timeline(family).accept()
    t.write(b"goodbye")
    t.expect("PA", seq=1)
    t.release()
    t.expect("FA", seq=8)
    t.inject("FA", ack=9)
    t.expect("A", seq=9, ack=18)
    assert t.state() == "TIME_WAIT"
    t.quiet(MSL2)
    t.news()
    assert t.stack.connections() == []


def test_released_with_unread_data_resets(timeline):
    t = timeline().accept()
    t.inject("A", payload=b"unread")
    t.release()
    t.expect("RA", seq=1, ack=23)               # RFC9293 3.6.1
    t.news()
    assert t.stack.connections() == [] and t.counters() == {"tcp_octets_received": 6, "tcp_resets_sent": 1}


def test_released_close_wait_goes_through_last_ack(timeline):
    t = timeline().accept().to("CLOSE_WAIT")
    t.release()
    t.expect("FA", seq=1, ack=18)
    assert t.state() == "LAST_ACK"
    t.inject("A", ack=2)
    assert t.stack.connections() == []


@pytest.mark.parametrize("state", ["FIN_WAIT_1", "FIN_WAIT_2"])
def test_released_new_data_reset(timeline, state):
    t = timeline().accept().to(state)
    t.release()
    t.inject("A", payload=b"nobody reads this", ack=t.our_next)
    t.expect("RA", seq=2, ack=17)               # RFC 2525 2.17
    assert t.stack.connections() == []
    assert t.verdicts() == {"tcp_after_close": 1} and t.counters() == {"tcp_resets_sent": 1}


def test_released_old_data_do_not_reset(timeline):
    t = timeline().accept().to("FIN_WAIT_2")
    t.release()
    t.inject("A", seq=10, payload=b"1234567", ack=2)
    t.expect("A", ack=17)
    assert t.state() == "FIN_WAIT_2"


@pytest.mark.parametrize("before", [True, False])
def test_fin_wait_2_released_ends_after_a_minute(timeline, before):
    t = timeline(time_wait_ns=5_000_000_000).accept().to("FIN_WAIT_2" if not before else "FIN_WAIT_1")
    t.release()
    if before:
        t.inject("A", ack=2)
    assert t.state() == "FIN_WAIT_2"
    t.quiet(59.999)
    assert t.state() == "FIN_WAIT_2"
    t.quiet(0.001)
    assert t.stack.connections() == []


def test_fin_wait_2_released_late_fin_is_served(timeline):
    t = timeline().accept().to("FIN_WAIT_2")
    t.release()
    t.after(59)
    t.inject("FA")
    t.expect("A", ack=18)
    t.quiet(MSL2 - 0.001)
    assert t.state() == "TIME_WAIT"
    t.quiet(0.001)
    assert t.stack.connections() == []


def test_time_wait_released_with_unread_data_stays_silent(timeline):
    t = timeline().accept()
    t.inject("A", payload=b"unread")
    t.after(0.04)
    t.expect("A")
    t.to("TIME_WAIT")
    t.release()
    t.quiet(1)
    assert t.state() == "TIME_WAIT" and t.tcp.usage()["buffer_octets"] == 0
    t.inject("FA", seq=23, ack=2)
    t.expect("A", ack=24)


def test_closed_unread_octets_stay_readable(timeline):
    t = timeline().accept()
    t.inject("FA", payload=b"read me later")
    t.expect("A")
    t.shutdown()
    t.expect("FA", seq=1)
    t.inject("A", ack=2)
    t.news("READABLE", "CLOSED")
    t.quiet(100)
    t.read(b"read me later")
    t.news("EOF")
    assert t.tcp.usage()["buffer_octets"] == 0
    t.release()
    assert t.stack.connections() == []


@pytest.mark.parametrize("how", ["release", "abort"])
def test_closed_let_go_with_unread_octets_leaks_nothing(timeline, how):
    t = timeline().accept()
    t.inject("FA", payload=b"never read")
    t.expect("A")
    t.shutdown()
    t.expect("FA", seq=1)
    t.inject("A", ack=2)
    getattr(t, how)()
    t.tcp.ready()
    assert t.tcp.usage()["buffer_octets"] == 0 and t.stack.connections() == []


def test_reset_leaves_what_was_not_read_readable(timeline):
    t = timeline().accept()
    t.inject("A", payload=b"here")
    t.inject("R")
    t.news("READABLE", "CLOSED", error=errno.ECONNRESET)
    t.read(b"here")
    with pytest.raises(BrokenPipeError):
        t.tcp.write(t.handle, b"x")


# -- abort -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("state, resets", [
    ("ESTABLISHED", True), ("FIN_WAIT_1", True), ("FIN_WAIT_2", True), ("CLOSE_WAIT", True),
    ("CLOSING", False), ("LAST_ACK", False), ("TIME_WAIT", False)])
def test_any_aborted_resets_where_the_peer_has_something_to_lose(timeline, state, resets):
    t = timeline().accept().to(state)
    t.abort()
    if resets:
        t.expect("RA", seq=t.our_next, ack=t.peer_next)     # RFC9293 3.10.5
    t.quiet(100)
    assert t.stack.connections() == []
    assert t.counters() == {"tcp_aborts": 1, **({"tcp_resets_sent": 1} if resets else {})}


def test_established_aborted_forgets_what_was_written(timeline):
    t = timeline().accept(win=100)
    t.write(1000)
    t.drain()
    t.abort()
    t.expect("RA", seq=101)
    t.quiet(100)
    t.inject("A", ack=101)
    t.expect("R", seq=101)


def test_handles_are_not_reused_for_others(timeline):
    t = timeline().accept()
    old = t.handle
    t.abort()
    t.expect("RA")
    t.peer_next = t.our_next = 0
    t.our_iss = None
    t.accept()
    assert t.handle != old
    with pytest.raises(ValueError):
        t.tcp.read(old)


def test_fin_does_not_overfill_the_window(timeline):
    t = timeline().accept(mss=1000, win=2000)
    t.write(2000)
    t.drain()
    t.shutdown()
    t.quiet()
    t.inject("A", ack=1001, win=1000)
    t.quiet()
    t.inject("A", ack=1001, win=1001)
    t.expect("FA", seq=2001)


def test_both_lost_each_others_acks_and_repeat_themselves(timeline):
    """The peer's repetition is old, but its ACK is news: were it ignored, both would repeat themselves for ever."""
    t = timeline().accept()
    t.write(b"ours")
    t.expect("PA", seq=1)
    t.shutdown()
    t.expect("FA", seq=5)
    t.inject("FA", ack=1, payload=b"theirs")
    t.expect("A", seq=6, ack=24)                # this gets lost, and so does the peer's like
    assert t.state() == "CLOSING"
    t.inject("FA", seq=17, ack=6, payload=b"theirs")
    t.expect("A", seq=6, ack=24)
    assert t.state() == "TIME_WAIT"
    assert t.verdicts() == {"delivered": 1, "tcp_duplicate": 1}


def test_old_duplicate_from_far_back_acknowledges_nothing(timeline):
    t = timeline().accept()
    t.write(b"ours")
    t.expect("PA", seq=1)
    t.inject("A", seq=17 - 70_000, ack=5, payload=b"x")
    t.expect("A", seq=5, ack=17)
    assert t.info("unsent") == 4
