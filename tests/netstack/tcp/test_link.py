"""Two Stacks over a bad link: whatever is lost, late, twice or out of turn, both streams arrive, and it ends."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.netstack.tcp.world import ALL_FEATURES, MS, S, World

SACK_PERMITTED, TIMESTAMP, WINDOW_SCALE, MSS = 4, 8, 3, 2
OCTETS = random.Random(1).randbytes(3_000_000)


def transfer(world, first, second, limit=600 * S):
    """Both say all they have and hear all of it; returns the virtual seconds it took."""
    a, b = world.hosts
    begin = world.now
    world.open(first, second)
    finished = world.run(lambda: a.released and b.released, limit)
    assert (a.error, b.error) in ((None, None), (0, None), (None, 0), (0, 0))
    assert bytes(b.incoming) == first and bytes(a.incoming) == second
    assert finished, [host.stack.connections() for host in world.hosts]
    return (world.now - begin) / S


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("features", [(0, 0), (ALL_FEATURES, ALL_FEATURES), (0, ALL_FEATURES)], ids=str)
def test_clean_link_carries_megabytes_both_ways_without_retransmission(family, features):
    world = World(1, family=family, features=features)
    taken = transfer(world, OCTETS[:2_000_000], OCTETS[1_000_000:])
    assert taken < 10
    for host in world.hosts:
        assert host.stack.counters()["tcp_retransmits"] == host.stack.counters()["tcp_retransmit_timeouts"] == 0
        assert not [name for name, n in host.stack.verdicts().items() if n and name.startswith("tcp_")]
    world.settle()


@pytest.mark.parametrize("strip", [(), (SACK_PERMITTED,), (TIMESTAMP,), (SACK_PERMITTED, TIMESTAMP, WINDOW_SCALE, MSS)],
                         ids=["all", "no-sack", "no-timestamps", "none"])
@pytest.mark.parametrize("loss", [0.01, 0.05])
def test_lossy_link_carries_a_megabyte_with_any_options(strip, loss):
    world = World(2, strip=strip, loss=loss, jitter=2 * MS)
    taken = transfer(world, OCTETS[:1_000_000], OCTETS[:200_000])
    assert taken < (60 if strip != () else 30)
    assert world.lost > 5
    world.settle()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2 ** 32), family=st.sampled_from([4, 6]), mtu=st.sampled_from([1280, 1500, 9000]),
       features=st.tuples(*[st.sampled_from([0, ALL_FEATURES])] * 2), delay=st.sampled_from([0, MS // 10, 20 * MS]),
       jitter=st.sampled_from([0, MS, 30 * MS]), loss=st.sampled_from([0.0, 0.02, 0.1]),
       duplicate=st.sampled_from([0.0, 0.1]), lazy=st.sampled_from([0.0, 0.9]),
       strip=st.sets(st.sampled_from([SACK_PERMITTED, TIMESTAMP, WINDOW_SCALE, MSS])),
       buffers=st.sampled_from([2000, 20_000, 1 << 20]), sizes=st.tuples(*[st.integers(0, 60_000)] * 2))
def test_any_link_carries_both_streams(seed, family, mtu, features, delay, jitter, loss, duplicate, lazy, strip, buffers,
                                       sizes):
    world = World(seed, family=family, mtu=mtu, features=features, delay=delay, jitter=jitter, loss=loss,
                  duplicate=duplicate, strip=tuple(strip), receive_buffer=buffers, send_buffer=buffers,
                  retransmissions=40)
    for host in world.hosts:
        host.lazy = lazy
    transfer(world, OCTETS[:sizes[0]], OCTETS[1000:1000 + sizes[1]], 3600 * S)
    world.loss = 0.0
    world.settle()


def test_dead_link_ends_both_with_a_timeout():
    world = World(3)
    a, b = world.hosts
    world.open(OCTETS[:500_000], OCTETS[:500_000])
    world.run(lambda: len(b.incoming) > 100_000)
    world.loss = 1.0
    assert world.run(lambda: a.error is not None and b.error is not None, 3000 * S)
    assert a.error == b.error == 110
    for host in world.hosts:
        host.stack.tcp.abort(host.handle)
        host.released = True
    world.settle()


def test_outage_of_a_minute_is_survived():
    world = World(4)
    a, b = world.hosts
    world.open(OCTETS[:1_000_000], OCTETS[:1_000_000])
    world.run(lambda: len(b.incoming) > 100_000)
    world.loss = 1.0
    world.run(lambda: False, 60 * S)
    world.loss = 0.0
    assert world.run(lambda: a.released and b.released, 200 * S)
    assert bytes(a.incoming) == bytes(b.incoming) == OCTETS[:1_000_000]
    world.settle()


def test_many_connections_share_a_lossy_link():
    """A hundred connections at once, each with its own stream."""
    world = World(5, loss=0.02, jitter=MS)
    a, b = (host.stack.tcp for host in world.hosts)
    listener = b.listen(None, 81)
    want = {a.connect(world.now, "10.0.0.2", 81): OCTETS[i * 1000:i * 1000 + 20_000] for i in range(100)}
    got, wrote, ended = {}, set(), set()

    def work():
        for handle, news, error in a.ready():
            assert error == 0
            if news & 1:
                assert a.write(handle, want[handle]) == 20_000
                a.shutdown(handle)
                wrote.add(a.local(handle)[1])
        for handle, _news, error in b.ready():
            assert error == 0
            got.setdefault(handle, bytearray()).extend(b.read(handle))
        for handle in got.keys() - ended:
            got[handle] += b.read(handle)
            if len(got[handle]) == 20_000:
                b.release(handle)
                ended.add(handle)
        return len(ended) == 100

    assert world.run(work, 100 * S)
    assert sorted(map(bytes, got.values())) == sorted(want.values())
    for handle in want:
        a.release(handle)
    b.close_listener(listener)
    world.settle()


def test_loss_does_not_stretch_the_timeout_without_end():
    """Lost ACKs of retransmissions echo timestamps from before the timeout: taken for samples they doubled every RTO."""
    world = World(6, loss=0.3, send_buffer=2000, retransmissions=60)
    assert transfer(world, OCTETS[:100_000], b"", 3600 * S) < 300
    assert max(row["srtt_ns"] for host in world.hosts for row in host.stack.connections()) < S
    world.loss = 0.0
    world.settle()
