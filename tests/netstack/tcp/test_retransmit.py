"""The retransmission timer: round-trip times, back-off, Karn, limits (RFC 6298, RFC 9293 3.8.1 to 3.8.3)."""

import errno

import pytest

MS, S = 1_000_000, 1_000_000_000
RTO = 0.2       # the least


def estimator(samples):
    """RFC 6298 2, in ns."""
    srtt = rttvar = None
    for r in samples:
        if srtt is None:
            srtt, rttvar = r, r // 2
        else:
            rttvar += (abs(srtt - r) - rttvar) >> 2
            srtt += (r - srtt) >> 3
    rto = min(max(srtt + max(4 * rttvar, MS), 200 * MS), 60 * S)
    return srtt, rttvar, rto


@pytest.mark.parametrize("samples", [
    [100 * MS], [1_234_567], [100 * MS] * 30, [100 * MS, 300 * MS, 50 * MS, 50 * MS, 7, 1_999_999_999],
    [10 * MS, 3 * S, 3 * S, 3 * S], [70 * S, 1 * S],
], ids=lambda s: f"{len(s)}x{s[0]}")
def test_rtt_estimate_is_exact_to_the_ns(timeline, samples):
    t = timeline()
    t.listen()
    t.inject("S", seq=0, mss=1460)
    t.expect("SA")
    t._run_until(t._now + min(samples[0], S - 1))       # before the SYN-ACK goes again
    t.inject("A", seq=1, ack=1)
    t.news("ACCEPTED")
    seen = [min(samples[0], S - 1)]
    for r in samples[1:]:
        t.write(b"?")
        t.expect("PA")
        t._run_until(t._now + min(r, t.info("rto_ns") - 1))
        seen.append(min(r, t.info("rto_ns") - 1))
        t.inject("A", ack=t.our_next)
        assert (t.info("srtt_ns"), t.info("rttvar_ns"), t.info("rto_ns")) == estimator(seen)
    assert t.counters() == {"tcp_passive_opens": 1, **({"tcp_octets_sent": len(samples) - 1} if samples[1:] else {})}


def test_rtt_is_taken_of_one_segment_per_round_trip(timeline):
    t = timeline().accept(mss=1000)
    t.write(3000)
    t.drain()
    t.after(0.1)
    t.inject("A", ack=1001)         # the timed one
    assert t.info("srtt_ns") == (100 * MS + 7) // 8     # after the handshake's sample of nothing
    t.after(0.05)
    t.inject("A", ack=3001)         # not timed
    assert t.info("srtt_ns") == (100 * MS + 7) // 8


def test_rtt_of_the_handshake_counts(timeline):
    t = timeline()
    t.connect()
    t.expect("S")
    t.after(0.6)
    t.inject("SA", seq=0, ack=1)
    t.expect("A")
    assert t.info("rto_ns") == 600 * MS + 4 * 300 * MS


# -- the timer -------------------------------------------------------------------------------------

def test_data_unacknowledged_back_off_to_the_limit_and_give_up(timeline, family):
    t = timeline(family).accept()
    t.write(b"anyone?")
    t.expect("PA", seq=1)
    at, rto = 0.0, RTO
    for _ in range(15):             # R2; with 60 s at most between: RFC6298 2.5, 5.5
        at += rto
        rto = min(2 * rto, 60)
        t.at(at)
        t.expect("PA", seq=1, payload=b"anyone?")
    assert t.info("backoff") == 15
    t.at(at + 60 - 1e-6)
    t.quiet(1e-6)
    t.news("CLOSED", error=errno.ETIMEDOUT)
    assert at > 100                 # RFC9293 MUST-21 with SHLD-11: R2 of at least 100 s
    assert t.counters() == {"tcp_octets_sent": 7, "tcp_retransmits": 15, "tcp_retransmit_timeouts": 16, "tcp_aborts": 1}


def test_data_given_up_after_icmp_reports_its_reason(timeline):
    t = timeline(retransmissions=3).accept()
    t.write(b"anyone?")
    t.expect("PA", seq=1)
    t.icmp(1, 1)
    t.drain(60)
    t.news("CLOSED", error=errno.EHOSTUNREACH)


@pytest.mark.parametrize("limit", [1, 5])
def test_limit_of_retransmissions_is_settable(timeline, limit):
    t = timeline(retransmissions=limit).accept()
    t.write(b"x")
    assert len(t.drain(600)) == 1 + limit
    t.news("CLOSED", error=errno.ETIMEDOUT)


def test_timeout_sends_one_segment_and_slow_starts(timeline):
    t = timeline().accept(mss=1000)
    t.write(10_000)
    assert len(t.drain()) == 10
    t.after(RTO)
    t.expect("A", seq=1, length=1000)           # RFC5681 3.1: the loss window
    assert (t.info("cwnd"), t.info("ssthresh"), t.info("recovery")) == (1000, 5000, "rto")
    t.after(2 * RTO)
    t.expect("A", seq=1, length=1000)
    assert (t.info("cwnd"), t.info("ssthresh")) == (1000, 5000)     # RFC5681 3.1: not halved again
    t.inject("A", ack=1001)
    t.expect("A", seq=1001, length=1000)
    t.expect("A", seq=2001, length=1000)
    t.inject("A", ack=3001)
    for seq in (3001, 4001, 5001, 6001):
        t.expect("A", seq=seq, length=1000)
    t.inject("A", ack=10_001)                   # the others had arrived
    assert t.info("recovery") is None
    t.quiet(60)


def test_ack_restarts_the_timer_for_what_is_left(timeline):
    t = timeline().accept(mss=1000)
    t.write(2000)
    t.drain()
    t.after(0.15)
    t.inject("A", ack=1001)
    rto = t.info("rto_ns")                      # RFC6298 5.3
    t.at_ns(150 * MS + rto)
    t.expect("PA", seq=1001, length=1000)


def test_ack_of_everything_stops_the_timer(timeline):
    t = timeline().accept(mss=1000)
    t.write(2000)
    t.drain()
    t.inject("A", ack=2001)                     # RFC6298 5.2
    t.quiet(3600)


def test_new_data_do_not_restart_the_timer(timeline):
    t = timeline().accept(mss=1000)
    t.write(1000)
    t.expect("PA", seq=1)
    t.after(0.1)
    t.write(1000)
    t.expect("PA", seq=1001)
    t.at(0.2)                                   # RFC6298 5.1
    t.expect("A", seq=1)


def test_ack_of_a_retransmission_keeps_the_back_off_until_there_is_a_sample(timeline):
    t = timeline().accept(mss=1000)
    t.write(1000)
    t.expect("PA", seq=1)
    t.at(0.2)
    t.expect("PA", seq=1)
    t.at(0.6)
    t.expect("PA", seq=1)
    t.at(0.61)
    t.inject("A", ack=1001)
    assert t.info("srtt_ns") == 1               # Karn: RFC6298 3
    assert (t.info("rto_ns"), t.info("backoff")) == (800 * MS, 0)
    t.write(1000)
    t.expect("PA", seq=1001)
    t.at(0.61 + 0.8)
    t.expect("PA", seq=1001)
    t.inject("A", ack=2001)
    assert t.info("rto_ns") == 1600 * MS
    t.write(1000)
    t.expect("PA", seq=2001)
    t.after(0.08)
    t.inject("A", ack=3001)
    assert t.info("rto_ns") == estimator([1, 80 * MS])[2] or t.info("rto_ns") < 300 * MS


def test_ack_of_a_retransmission_with_timestamps_is_a_sample(timeline):
    t = timeline().accept(mss=1000, ts=100)
    t.write(500)
    t.expect("PA", seq=1)
    t.at(0.2)
    t.expect("PA", seq=1)
    t.at(0.25)
    t.inject("A", ack=501)                      # RFC7323 4.1: echoes the second one
    assert t.info("backoff") == 0
    assert t.info("srtt_ns") == (50 * MS + 7) // 8 or t.info("srtt_ns") // MS == 6
    assert t.info("rto_ns") == 200 * MS


def test_timeout_data_go_again_as_written_though_segment_borders_move(timeline):
    t = timeline().accept(mss=1000)
    t.tcp.set_nodelay(t.handle, True)
    for text in (b"one", b"two", b"three"):
        t.write(text)
        t.expect("PA", payload=text)
    t.at(0.2)
    t.expect("PA", seq=1, payload=b"onetwothree")
    t.inject("A", ack=12)
    t.quiet(60)


def test_partial_ack_within_a_segment_sends_the_rest(timeline):
    t = timeline().accept(mss=1000)
    t.write(1000)
    t.expect("PA")
    t.inject("A", ack=400)
    t.at(0.2)
    t.expect("PA", seq=400, length=601)


def test_established_route_lost_and_back_goes_on(timeline, family):
    t = timeline(family).accept()
    prefix = "10.77.0.0/24" if family == 4 else "fd77::/64"
    t.stack.remove_route(prefix)
    t.write(b"where to?")
    t.quiet(5)
    t.stack.add_route(prefix, None, t.interface)
    t.wait()
    t.expect("PA", seq=1, payload=b"where to?")
    t.inject("A", ack=10)
    t.quiet(60)


def test_established_route_lost_for_good_says_so(timeline):
    t = timeline(retransmissions=3).accept()
    t.stack.remove_route("10.77.0.0/24")
    t.write(b"where to?")
    t.quiet(60)
    t.news("CLOSED", error=errno.ENETUNREACH)


def test_established_interface_removed_and_back_goes_on(timeline):
    t = timeline().accept()
    t.write(b"before")
    t.expect("PA", seq=1)
    t.stack.remove_interface(t.interface)
    t.interface = None
    t.write(b"during")
    t.quiet(2)
    t.interface = t.stack.add_interface("t1", bytes.fromhex("020000000001"), 1500, link_local=False)
    t.stack.add_address(t.interface, "10.77.0.2/24")
    t.stack.set_neighbor(t.interface, "10.77.0.1", "02:00:00:00:00:99")
    t.wait(10)
    while t.others:
        t.others.clear()
        t.wait(10) if not t.outbox else None
    t.expect("PA", seq=1, payload=b"beforeduring")
    t.others.clear()
    t.inject("A", ack=13)
    t._run_until(t._now + 5 * S)
    t.others.clear()


def test_established_link_down_moves_to_another_way(timeline):
    """What waits on the list of a dead link must not wait for ever."""
    t = timeline().accept()
    other = t.stack.add_interface("t1", bytes.fromhex("020000000001"), 1500, link_local=False)
    t.tcp.write(t.handle, b"on its way")        # nobody has called transmit yet
    t.stack.set_link(t.interface, False)
    t.stack.add_route("10.77.0.0/25", None, other)
    t.stack.set_neighbor(other, "10.77.0.1", "02:00:00:00:00:99")
    t.interface = other
    t.wait(10)
    t.expect("PA", seq=1, payload=b"on its way")
