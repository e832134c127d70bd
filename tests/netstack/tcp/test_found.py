"""What fuzzing found in TCP, each as the shortest story that shows it."""

import errno

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from mm.frame import TxBurst
from tests.netstack.tcp.timeline import OUR_MAC, OURS, PEER_MAC


@pytest.mark.parametrize("source, other", [("10.77.0.255", None), ("10.9.0.255", "10.9.0.1/24")])
def test_segment_from_a_broadcast_address_is_not_answered(timeline, source, other):
    t = timeline()
    t.listen()
    if other:       # the address is a broadcast one on another link, over which the answer would go
        elsewhere = t.stack.add_interface("t1", bytes.fromhex("020000000002"), 1500, link_local=False)
        t.stack.add_address(elsewhere, other)
        t.drain(10)
    t.mark()
    for flags in ("S", "A"):
        for port in (80, 81):
            t.receive(bytes(Ether(src=PEER_MAC, dst=OUR_MAC) / IP(src=source, dst=OURS[4])
                            / TCP(sport=1, dport=port, flags=flags)))
    t.quiet(1)
    assert t.stack.connections() == []
    if not other:
        assert t.verdicts() == {"ipv4_source": 4}
        return
    burst = TxBurst()
    t.stack.transmit(elsewhere, t._now, burst)
    assert not [frame for frame in burst.frames_bytes() if frame[12:14] == b"\x08\x00"]


@pytest.mark.parametrize("host", ["224.0.0.1", "255.255.255.255", "10.77.0.255", "ff02::1"])
def test_connect_to_a_group_is_refused(timeline, host):
    t = timeline(6 if ":" in host else 4)
    with pytest.raises(OSError) as refused:
        t.tcp.connect(t._now, host, 80)
    assert refused.value.errno == errno.ENETUNREACH
    assert t.stack.connections() == []


def test_segment_over_a_held_range_into_the_next_frees_both(timeline):
    t = timeline().accept(sack_ok=True, quick=True)
    t.feed(1, "A", seq=11, payload=b"b" * 5)
    t.feed(1, "A", seq=21, payload=b"d" * 10)
    t.inject("A", seq=1, payload=b"a" * 10 + b"b" * 5 + b"c" * 5 + b"d" * 5)
    assert t.tcp.read(t.handle) == b"a" * 10 + b"b" * 5 + b"c" * 5 + b"d" * 10
    assert (t.drain()[-1].ack, t.outbox) == (31, [])


def test_fin_is_tried_again_when_duplicate_acks_have_no_way_out(timeline):
    t = timeline().accept(sack_ok=True, quick=True)
    t._rx.clear()
    for seq in (10, 20, 30):
        t._rx.append(bytes(t.build("A", seq=seq, payload=b"x")))
    t.stack.receive(t.interface, t._now, t._rx)
    t.stack.remove_route("10.77.0.0/24")
    t.tcp.shutdown(t.handle)
    t._collect()
    assert t.outbox == []
    t.stack.add_route("10.77.0.0/24", None, t.interface)
    t.wait(60)
    assert "F" in t.drain()[0].flags


@pytest.mark.parametrize("ts, blocks", [(None, 3), (1000, 1)])
def test_sack_has_no_more_blocks_than_the_smallest_mtu_carries(timeline, ts, blocks):
    t = timeline(mtu=68).accept(sack_ok=True, ts=ts, quick=True)
    with t.burst():
        for seq in range(3, 19, 3):
            t.inject("A", seq=seq, payload=b"x")
    assert {len(ack.sack) for ack in t.drain()[3:]} == {blocks}
