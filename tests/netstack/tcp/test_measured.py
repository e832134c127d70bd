"""What is measured on the way: round trips, handshakes, who is busy and in which state connections are."""

import pytest

from tests.netstack.tcp.world import MS, World


def within(row):
    """(how many, the bound that holds them all) of a histogram."""
    return sum(row[1]), max((1 << k for k, count in enumerate(row[1]) if count), default=0)


@pytest.fixture
def world():
    """One connection over a link of 5 ms each way, that carried 50,000 octets to host 1 and 70,000 back."""
    world = World(1, delay=5 * MS)
    world.open(bytes(50_000), bytes(70_000))
    done = (70_000, 50_000)
    assert world.run(lambda: all(len(host.incoming) == n for host, n in zip(world.hosts, done, strict=True)))
    return world


def test_handshakes_are_timed_at_both_ends(world):
    active, passive = (host.stack.tcp.histograms() for host in world.hosts)
    assert active["handshake_active"] == (10 * MS, [int(k == 24) for k in range(65)])      # 2**24 ns: 16.8 ms
    assert passive["handshake_passive"] == active["handshake_active"]
    assert within(active["handshake_passive"]) == within(passive["handshake_active"]) == (0, 0)


def test_each_round_trip_sample_counts_once(world):
    for host in world.hosts:
        total, counts = host.stack.tcp.histograms()["round_trip"]
        samples, _ = within((total, counts))
        assert samples >= 2 and sum(counts[:24]) == 0, "nothing is faster than the link"
        assert total >= samples * 10 * MS


def test_states_are_counted(world):
    for host in world.hosts:
        states, rows = host.stack.tcp.states(), host.stack.tcp.connections()
        assert "LISTEN" not in states and len(states) == 10
        assert {state: count for state, count in states.items() if count} == {rows[0]["state"]: 1}


def test_the_busiest_come_first_and_no_more_than_asked_for():
    world = World(2)
    for host in world.hosts:
        host.work = lambda: None        # no application of the world's own
    tcp = world.hosts[0].stack.tcp
    world.hosts[1].stack.tcp.listen(None, 80)
    amounts = [300, 5, 0, 70_000, 300, 4000, 10, 2]
    handles = [tcp.connect(world.now, "10.0.0.2", 80) for _ in amounts]
    world.run(lambda: all(tcp.info(handle)["state"] == "ESTABLISHED" for handle in handles))
    for handle, octets in zip(handles, amounts, strict=True):
        tcp.write(handle, bytes(octets))
    assert world.run(lambda: [tcp.info(handle)["octets_sent"] for handle in handles] == amounts)
    for most in (0, 1, 3, 8, 64, 1000, -1):
        rows = tcp.busiest(most)
        assert [row["octets_sent"] for row in rows] == sorted(amounts, reverse=True)[:max(most, 0)]
    assert rows == [] and tcp.busiest(1) == [tcp.info(handles[3])]


def test_the_list_of_the_busiest_is_bounded():
    world = World(3)
    tcp = world.hosts[0].stack.tcp
    for _ in range(200):
        tcp.connect(world.now, "10.0.0.2", 80)
    assert len(tcp.busiest(1000)) == 64 and tcp.states()["SYN_SENT"] == 200
