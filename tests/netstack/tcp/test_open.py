"""How connections begin, and how they fail to (RFC 9293 3.5, 3.10.7.1 to 3.10.7.4)."""

import errno

import pytest

from tests.netstack.tcp.timeline import PEERS, Timeline

SYN_TIMES = (1, 3, 7, 15, 31, 63, 123)      # RFC 6298 5.5 from 1 s on, capped at 60 s


# -- passive open ----------------------------------------------------------------------------------

def test_listen_syn_with_all_options_agrees_on_all(timeline, family):
    t = timeline(family)
    t.listen()
    t.inject("S", seq=0, win=64240, mss=1400, wscale=7, sack_ok=True, ts=(1000, None))
    own = {4: 1460, 6: 1440}[family]
    # RFC9293 MUST-14 MUST-65: MSS in the SYN-ACK. RFC7323 2.2: the window of a SYN is not scaled.
    t.expect("SA", seq=0, ack=1, win=65535, mss=own, wscale=5, sack_ok=True, ts=(0, 1000))
    t.at(0.25)
    t.inject("A", seq=1, ack=1, win=502, ts=(1250, 0))
    t.news("ACCEPTED")
    info = t.info()
    assert info["state"] == "ESTABLISHED"
    assert info["mss"] == 1400 - 12 and info["sack"] and info["timestamps"] and info["window_scale"] == (7, 5)
    assert info["send_window"] == 502 << 7
    assert (info["srtt_ns"], info["rttvar_ns"], info["rto_ns"]) == (250_000_000, 125_000_000, 750_000_000)
    assert t.verdicts() == {"delivered": 2}
    assert t.counters() == {"tcp_passive_opens": 1}


def test_listen_bare_syn_gets_no_options_but_mss(timeline, family):
    t = timeline(family)
    t.listen()
    t.inject("S", seq=0, win=1000)
    t.expect("SA", seq=0, ack=1, win=65535, mss={4: 1460, 6: 1440}[family], wscale=None, sack_ok=False, ts=None)
    t.inject("A", seq=1, ack=1, win=1000)
    t.news("ACCEPTED")
    assert t.info("mss") == {4: 536, 6: 1220}[family]       # RFC9293 MUST-15
    assert t.info("send_window") == 1000 and t.info("window_scale") is None and not t.info("sack")


@pytest.mark.parametrize("flags", ["S", "SEC", "SP", "SU"])
def test_listen_syn_with_harmless_flags_opens(timeline, flags):
    t = timeline()
    t.listen()
    t.inject(flags, seq=0, win=1000)
    t.expect("SA", seq=0, ack=1)


@pytest.mark.parametrize("flags, reply, verdict", [
    ("", None, "tcp_flags"), ("F", None, "tcp_flags"), ("SF", None, "tcp_flags"), ("PU", None, "tcp_flags"),
    ("R", None, "tcp_no_connection"), ("SR", None, "tcp_no_connection"), ("RA", None, "tcp_no_connection"),
    ("A", "R", "tcp_no_connection"), ("SA", "R", "tcp_no_connection"), ("FA", "R", "tcp_no_connection"),
])
def test_listen_anything_but_syn_opens_nothing(timeline, flags, reply, verdict):
    t = timeline()
    t.listen()
    t.inject(flags, seq=5, ack=77)
    if reply:
        t.expect(reply, seq=77)         # RFC9293 3.10.7.2: <SEQ=SEG.ACK><CTL=RST>
    t.quiet()
    assert t.verdicts() == {verdict: 1}
    assert t.stack.connections() == []


@pytest.mark.parametrize("flags, length, reply", [
    ("S", 0, ("RA", 0, 6)), ("S", 10, ("RA", 0, 16)), ("SF", 0, ("RA", 0, 7)), ("", 4, ("RA", 0, 9)),
    ("A", 0, ("R", 77, 0)), ("FA", 3, ("R", 77, 0)), ("R", 0, None), ("RA", 0, None),
])
def test_closed_any_segment_is_reset_but_never_a_reset(timeline, family, flags, length, reply):
    t = timeline(family)
    t.inject(flags, seq=5, ack=77, payload=length)
    if reply:
        t.expect(reply[0], seq=reply[1], ack=reply[2])      # RFC9293 3.10.7.1
    t.quiet()
    assert t.verdicts() == {"tcp_port_closed": 1}
    assert t.counters() == ({"tcp_resets_sent": 1} if reply else {})


def test_listen_syn_with_data_acknowledges_the_syn_only(timeline):
    t = timeline()
    t.listen()
    t.inject("S", seq=0, payload=b"early")
    t.expect("SA", seq=0, ack=1)
    t.inject("A", seq=1, ack=1)
    t.news("ACCEPTED")
    t.inject("A", seq=1, payload=b"early")
    t.expect("A", ack=6)
    t.read(b"early")


def test_syn_received_no_ack_repeats_syn_ack_and_gives_up(timeline):
    t = timeline()
    t.listen()
    t.inject("S", seq=0, ts=(5, None), mss=1460)
    t.expect("SA", seq=0, ack=1)
    for second in SYN_TIMES[:5]:
        t.at(second)
        t.expect("SA", seq=0, ack=1, ts=(second * 1000, 5))
    assert t.state() == "SYN_RECEIVED"
    t.at(63)
    t.quiet(600)
    assert t.stack.connections() == []
    t.news()
    assert t.counters() == {"tcp_retransmits": 5, "tcp_retransmit_timeouts": 6, "tcp_aborts": 1}


def test_syn_received_same_syn_gets_syn_ack_again(timeline):
    t = timeline()
    t.listen()
    t.inject("S", seq=0)
    t.expect("SA", seq=0, ack=1)
    t.at(0.5)
    t.inject("S", seq=0)
    t.expect("SA", seq=0, ack=1)
    assert t.verdicts() == {"delivered": 1, "tcp_duplicate": 1}
    t.expect("SA", at=1)


def test_syn_received_ack_with_data_and_fin_is_taken_whole(timeline):
    t = timeline()
    t.listen()
    t.inject("S", seq=0)
    t.expect("SA")
    t.inject("FA", seq=1, ack=1, payload=b"all at once")
    t.expect("A", ack=13)
    t.news("ACCEPTED", "READABLE")
    t.read(b"all at once")
    t.news("EOF")
    assert t.state() == "CLOSE_WAIT"


@pytest.mark.parametrize("ack", [0, 2, 1 << 31])
def test_syn_received_wrong_ack_is_reset(timeline, ack):
    t = timeline()
    t.listen()
    t.inject("S", seq=0)
    t.expect("SA")
    t.inject("A", seq=1, ack=ack)
    t.expect("R", seq=ack)              # RFC9293 3.10.7.4: <SEQ=SEG.ACK><CTL=RST>
    assert t.state() == "SYN_RECEIVED"
    assert t.verdicts() == {"delivered": 1, "tcp_ack_unacceptable": 1}


def test_syn_received_exact_reset_forgets_the_embryo(timeline):
    t = timeline()
    t.listen()
    t.inject("S", seq=0)
    t.expect("SA")
    t.inject("R", seq=1)
    t.quiet(100)
    t.news()
    assert t.stack.connections() == [] and t.stack.listeners()[0]["half_open"] == 0


@pytest.mark.parametrize("flags", ["SR", "SRA", "R"])
def test_syn_received_reset_outside_the_window_changes_nothing(timeline, flags):
    t = timeline()
    t.listen()
    t.inject("S", seq=0)
    t.expect("SA")
    t.mark()
    t.inject(flags, seq=0, ack=1)
    t.quiet()
    assert t.verdicts() == {"tcp_out_of_window": 1}
    assert t.state() == "SYN_RECEIVED"


def test_syn_received_no_flags_is_dropped(timeline):
    t = timeline()
    t.listen()
    t.inject("S", seq=0)
    t.expect("SA")
    t.mark()
    t.inject("", seq=1, payload=b"x")
    t.quiet()
    assert t.verdicts() == {"tcp_flags": 1}


def test_syn_received_another_syn_is_answered_so_that_its_sender_resets(timeline):
    """A client that restarted: our ACK makes it send RST, and its next SYN is served."""
    t = timeline()
    t.listen()
    t.inject("S", seq=0)
    t.expect("SA")
    t.inject("S", seq=0x80000000)
    t.expect("A", seq=1, ack=1)         # RFC5961 4.2
    t.inject("R", seq=1)
    t.quiet()
    assert t.stack.connections() == []


def test_listen_embryos_at_limit_drops_syn(timeline):
    t = timeline(embryos=2)
    t.listen()
    for peer_port in (1001, 1002):
        t.inject("S", seq=0, peer_port=peer_port)
        t.expect("SA")
    t.inject("S", seq=0, peer_port=1003)
    t.quiet()
    assert t.verdicts() == {"delivered": 2, "tcp_backlog_full": 1}
    assert t.stack.listeners()[0]["half_open"] == 2
    t.inject("R", seq=1, peer_port=1001)
    t.inject("S", seq=0, peer_port=1003)
    t.expect("SA")


def test_listen_accept_queue_full_holds_the_handshake_back_until_there_is_room(timeline):
    t = timeline()
    t.listen(backlog=1)
    t.inject("S", seq=0, peer_port=1001)
    t.expect("SA", seq=0)
    t.inject("S", seq=0, peer_port=1002)
    second = t.expect("SA").seq
    t.inject("A", seq=1, ack=1, peer_port=1001)
    t.inject("A", seq=1, ack=second + 1, peer_port=1002)
    t.quiet()
    assert t.stack.listeners()[0]["waiting"] == 1 and t.stack.listeners()[0]["half_open"] == 1
    t.inject("S", seq=0, peer_port=1003)
    assert t.verdicts() == {"delivered": 3, "tcp_backlog_full": 2}
    t.at(1)
    t.expect("SA")                      # 1002 still waits to be let in
    t.news("ACCEPTED")
    t.inject("A", seq=1, ack=second + 1, peer_port=1002)
    t.handle = None
    t.news("ACCEPTED")
    assert t.stack.listeners()[0]["waiting"] == 0


def test_listener_closed_resets_embryos_and_the_accept_queue(timeline):
    t = timeline()
    t.listen()
    t.inject("S", seq=0, peer_port=1001)
    t.expect("SA")
    t.inject("A", seq=1, ack=1, peer_port=1001)
    t.inject("S", seq=0, peer_port=1002)
    second = t.expect("SA").seq
    t.close_listener()
    t.expect("RA", seq=1, ack=1)
    t.expect("RA", seq=second + 1, ack=1)
    t.news()
    assert t.stack.connections() == [] and t.stack.listeners() == []
    t.inject("S", seq=0, peer_port=1003)
    t.expect("RA")


def test_listener_closed_keeps_accepted_connections(timeline):
    t = timeline().accept()
    t.close_listener()
    t.write(b"still here")
    t.expect("PA", payload=b"still here")
    assert t.tcp.listener_of(t.handle) is None


def test_listen_table_full_drops_syn_until_there_is_room(timeline):
    t = timeline(connections=2)
    t.listen()
    for peer_port in (1001, 1002):
        t.inject("S", seq=0, peer_port=peer_port)
        t.expect("SA")
    t.inject("S", seq=0, peer_port=1003)
    t.quiet()
    assert t.verdicts() == {"delivered": 2, "tcp_table_full": 1}
    with pytest.raises(OSError) as failure:
        t.tcp.connect(t._now, PEERS[4], 7)
    assert failure.value.errno == errno.ENOBUFS
    t.inject("R", seq=1, peer_port=1001)
    t.inject("S", seq=0, peer_port=1003)
    t.expect("SA")


# -- active open -----------------------------------------------------------------------------------

def test_syn_sent_syn_ack_establishes(timeline, family):
    t = timeline(family)
    t.connect()
    t.expect("S", seq=0, win=65535, mss={4: 1460, 6: 1440}[family], wscale=5, sack_ok=True, ts=(0, 0))
    t.at(0.08)
    t.inject("SA", seq=0, ack=1, win=1000, mss=1200, wscale=2, sack_ok=True, ts=(9, 0))
    t.expect("A", seq=1, ack=1, ts=(80, 9))
    t.news("CONNECTED")
    assert t.info("state") == "ESTABLISHED"
    assert t.info("send_window") == 1000        # RFC7323 2.2: not scaled in a SYN
    assert t.info("mss") == 1188 and t.info("window_scale") == (2, 5)
    assert t.info("srtt_ns") == 80_000_000
    assert t.verdicts() == {"delivered": 1} and t.counters() == {"tcp_active_opens": 1}


def test_syn_sent_bare_syn_ack_agrees_on_nothing(timeline):
    t = timeline()
    t.connect()
    t.expect("S")
    t.inject("SA", seq=0, ack=1)
    t.expect("A", seq=1, ack=1, ts=None)
    t.news("CONNECTED")
    assert t.info("mss") == 536 and t.info("window_scale") is None and not t.info("sack")
    t.inject("A", payload=1000)
    t.expect("A", ack=1001, win=65535 - 1000)       # RFC7323 2.2: one-sided scaling is none


def test_syn_sent_no_answer_repeats_and_gives_up(timeline, family):
    t = timeline(family)
    t.connect()
    t.expect("S", seq=0)
    for second in SYN_TIMES:
        t.at(second)
        t.expect("S", seq=0, ts=(second * 1000, 0))
    t.at(183 - 1e-9)
    assert t.state() == "SYN_SENT"      # RFC9293 MUST-23: R2 for a SYN is at least 3 minutes
    t.at(183)
    t.quiet()
    t.news("CLOSED", error=errno.ETIMEDOUT)
    assert t.counters() == {"tcp_active_opens": 1, "tcp_retransmits": 7, "tcp_retransmit_timeouts": 8,
                            "tcp_aborts": 1, "tcp_connect_failures": 1}


def test_syn_sent_answered_after_a_retransmission_starts_with_rto_3s(timeline):
    t = timeline()
    t.connect()
    t.expect("S")
    t.expect("S", at=1)
    t.at(1.5)
    t.inject("SA", seq=0, ack=1, mss=1000)
    t.expect("A", seq=1, ack=1)
    t.news("CONNECTED")
    assert t.info("rto_ns") == 3_000_000_000        # RFC6298 5.7
    assert t.info("srtt_ns") == 0                   # Karn: no sample
    t.write(100)
    t.expect("PA", seq=1, length=100)
    t.at(4.5)
    t.expect("PA", seq=1, length=100)


@pytest.mark.parametrize("lost, segments", [(0, 10), (1, 10), (2, 1)])
def test_syn_sent_initial_window_after_lost_syns(timeline, lost, segments):
    """RFC 6928 2: ten segments, one only when more than one SYN was lost."""
    t = timeline()
    t.connect()
    t.expect("S")
    for i in range(lost):
        t.expect("S", at=SYN_TIMES[i])
    t.inject("SA", seq=0, ack=1, mss=1000)
    t.expect("A")
    t.write(20_000)
    assert [seg.seq for seg in t.drain()] == [1 + 1000 * i for i in range(segments)]


def test_syn_sent_reset_refuses(timeline, family):
    t = timeline(family)
    t.connect()
    t.expect("S")
    t.inject("RA", seq=0, ack=1)
    t.quiet(200)
    t.news("CLOSED", error=errno.ECONNREFUSED)
    assert t.verdicts() == {"delivered": 1}
    assert t.counters() == {"tcp_active_opens": 1, "tcp_connect_failures": 1, "tcp_resets_received": 1}


@pytest.mark.parametrize("flags, ack, verdict", [
    ("R", 0, "tcp_no_connection"), ("RA", 0, "tcp_ack_unacceptable"), ("RA", 2, "tcp_ack_unacceptable"),
    ("", 0, "tcp_flags"), ("A", 1, "tcp_flags"), ("F", 0, "tcp_flags"),
])
def test_syn_sent_what_proves_nothing_is_dropped(timeline, flags, ack, verdict):
    t = timeline()
    t.connect()
    t.expect("S")
    t.inject(flags, seq=0, ack=ack)
    t.quiet()
    assert t.verdicts() == {verdict: 1}
    assert t.state() == "SYN_SENT"
    t.expect("S", at=1)


@pytest.mark.parametrize("flags", ["A", "SA", "FA"])
@pytest.mark.parametrize("ack", [0, 2, 0x80000001])
def test_syn_sent_unacceptable_ack_is_reset(timeline, flags, ack):
    t = timeline()
    t.connect()
    t.expect("S")
    t.inject(flags, seq=0, ack=ack)
    t.expect("R", seq=ack)              # RFC9293 3.10.7.3
    assert t.verdicts() == {"tcp_ack_unacceptable": 1}
    assert t.state() == "SYN_SENT"


def test_syn_sent_data_with_syn_ack_is_taken(timeline):
    t = timeline()
    t.connect()
    t.expect("S")
    t.inject("SA", seq=0, ack=1, payload=b"banner")
    t.expect("A", seq=1, ack=7)
    t.news("CONNECTED", "READABLE")
    t.read(b"banner")


def test_syn_sent_data_and_fin_with_syn_ack_are_taken(timeline):
    t = timeline()
    t.connect()
    t.expect("S")
    t.inject("SFA", seq=0, ack=1, payload=b"bye")
    t.expect("A", seq=1, ack=5)
    t.news("CONNECTED", "READABLE")
    t.read(b"bye")
    t.news("EOF")
    assert t.state() == "CLOSE_WAIT"


def test_syn_sent_written_and_shut_down_sends_both_after_the_handshake(timeline):
    t = timeline()
    t.connect()
    t.expect("S")
    t.write(b"eager")
    t.shutdown()
    t.quiet()
    t.inject("SA", seq=0, ack=1)
    t.expect("FPA", seq=1, ack=1, payload=b"eager")
    t.news("CONNECTED")
    assert t.state() == "FIN_WAIT_1"


def test_syn_sent_released_is_forgotten(timeline):
    t = timeline()
    t.connect()
    t.expect("S")
    t.release()
    t.quiet(200)
    t.news()
    assert t.stack.connections() == []
    t.inject("SA", seq=0, ack=1)
    t.expect("R", seq=1)


def test_syn_sent_aborted_sends_nothing(timeline):
    t = timeline()
    t.connect()
    t.expect("S")
    t.abort()
    t.quiet()
    assert t.stack.connections() == []


def test_connect_twice_from_one_port_is_refused(timeline):
    t = timeline()
    t.connect()
    t.expect("S")
    with pytest.raises(OSError) as failure:
        t.tcp.connect(t._now, PEERS[4], t.peer_port, source_port=t.port)
    assert failure.value.errno == errno.EADDRINUSE


def test_connect_without_a_route_says_so(timeline):
    t = timeline()
    with pytest.raises(OSError) as failure:
        t.tcp.connect(t._now, "192.0.2.1", 80)
    assert failure.value.errno == errno.ENETUNREACH


# -- simultaneous open (RFC 9293 figure 7) ---------------------------------------------------------

def simultaneous(t, **options):
    t.connect()
    t.expect("S", seq=0)
    t.inject("S", seq=0, **options)
    t.expect("SA", seq=0, ack=1)        # RFC9293 MUST-10
    assert t.state() == "SYN_RECEIVED"
    return t


def test_simultaneous_open_ack_establishes(timeline, family):
    t = simultaneous(timeline(family), mss=1200)
    t.inject("A", seq=1, ack=1)
    t.news("CONNECTED")
    t.quiet()
    assert t.state() == "ESTABLISHED" and t.info("mss") == 1200
    t.write(b"x")
    t.expect("PA", seq=1, ack=1)


def test_simultaneous_open_syn_acks_cross(timeline):
    t = simultaneous(timeline(), mss=1200, wscale=4, win=500)
    t.inject("SA", seq=0, ack=1, win=500, mss=1200, wscale=4)
    t.news("CONNECTED")
    assert t.state() == "ESTABLISHED"
    assert t.info("send_window") <= 500         # RFC7323 2.2: the window of a SYN-ACK is not scaled
    t.inject("SA", seq=0, ack=1, win=500, mss=1200, wscale=4)       # the peer did not get ours
    t.expect("A", seq=1, ack=1)


def test_simultaneous_open_repeats_the_syn_ack(timeline):
    t = simultaneous(timeline())
    t.at(1)
    t.expect("SA", seq=0, ack=1)
    t.at(3)
    t.expect("SA", seq=0, ack=1)


def test_simultaneous_open_reset_refuses(timeline):
    t = simultaneous(timeline())
    t.inject("R", seq=1)
    t.news("CLOSED", error=errno.ECONNREFUSED)


def test_simultaneous_open_nobody_answers_gives_up(timeline):
    t = simultaneous(timeline())
    t.drain(300)
    t.news("CLOSED", error=errno.ETIMEDOUT)
    assert t.counters()["tcp_aborts"] == 1


def test_connect_to_itself_is_a_simultaneous_open_over_loopback():
    t = Timeline()
    handle = t.tcp.connect(t._now, "127.0.0.1", 5000, source_host="127.0.0.1", source_port=5000)
    t._collect()
    t._run_until(t._now + 1_000_000_000)
    assert t.tcp.ready() == [(handle, 1, 0)]
    t.tcp.write(handle, b"to myself")
    t._collect()
    assert t.tcp.read(handle) == b"to myself"
    t.tcp.release(handle)
    t._collect()
    t.finish()


# -- numbers ---------------------------------------------------------------------------------------

def first_sequence(now, peer_port, secret=bytes(range(16))):
    t = Timeline(random=secret, start=now)
    t.peer_port = peer_port
    t.connect()
    t.drain()
    return t.our_iss


def test_isn_depends_on_ports_and_secret_and_grows_with_time():
    base = first_sequence(0, 40000)
    assert first_sequence(0, 40000) == base
    assert first_sequence(0, 40001) != base             # RFC6528 3
    assert first_sequence(0, 40000, bytes(16)) != base
    assert (first_sequence(1_000_000_000, 40000) - base) % 2 ** 32 == pytest.approx(244_140, abs=1)    # RFC9293 MUST-8


def test_ephemeral_ports_are_dynamic_ones_that_nobody_listens_on(timeline):
    t = timeline()
    ports = set()
    for _ in range(50):
        handle = t.tcp.connect(t._now, PEERS[4], 9)
        ports.add(t.tcp.local(handle)[1])
        t.tcp.abort(handle)
    assert min(ports) >= 49152 and len(ports) > 45      # RFC6056 3.3.1: random
