"""The daemon's half alone, on a stack with nothing but its loopback interface."""

import asyncio
import contextlib
import errno
import fcntl
import os
import random
import select
import socket
import struct
import termios

import pytest
import structlog

from rustosd import open_files
from rustosd.client.wire import HEADER, pack_address, unpack_address
from rustosd.handoff import Limits, stream
from tests.netstack.sockets.conftest import Recorder, until
from tests.rustosd.handoff.host import Host, readable, writable


def pending(end):
    """Octets of buffers that what this end has written takes in the queue of the other (SIOCOUTQ)."""
    return struct.unpack("i", fcntl.ioctl(end, termios.TIOCOUTQ, bytes(4)))[0]


PENDING_OF_ONE = 1024       # a message of one octet, with the kernel's bookkeeping


@pytest.fixture
async def deaf_server(host):
    """A server of the stack that does not read; its port, and its connections."""
    accepted = []

    def factory():
        accepted.append(Recorder(pause=True))
        return accepted[-1]

    server = await host.network.create_server(factory, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1], accepted
    server.close()


def stuff(end):
    total = 0
    with pytest.raises(BlockingIOError):
        while True:
            total += end.send(bytes(65536))
    return total


async def test_octets_from_program_to_program_are_moved_without_asking_anybody(host):
    identity, listener = await host.stream()
    answer, _ = await host.ask("listen", id=identity, backlog=4)
    _, client = await host.connected(answer["local"][1])
    await until(lambda: readable(listener))
    _, (fd,), _, _ = socket.recv_fds(listener, 100, 1)
    os.write(fd, b"\1")
    with socket.socket(fileno=fd) as server:
        await until(lambda: writable(client))
        before = host.dispatched
        for way in (client, server), (server, client):
            for number in range(10):
                way[0].send(bytes([number]) * 3000)
                got = b""
                while len(got) < 3000:
                    await until(lambda way=way: readable(way[1]))
                    got += way[1].recv(3000)
                assert got == bytes([number]) * 3000
        assert host.dispatched == before


async def test_what_a_dead_client_has_written_waits_a_minute_for_its_peer(host, deaf_server, monkeypatch):
    port, accepted = deaf_server
    monkeypatch.setattr(stream, "ORPHAN_S", 0.2)
    _, end = await host.connected(port)
    await until(lambda: accepted)
    quiet = 0
    while quiet < 5:
        quiet = 0 if stuff(end) else quiet + 1
        await asyncio.sleep(0.05)
    (splice,) = (one.splice for one in host.handoff.sockets.values())
    assert splice.waiting() > 0
    end.close()
    await until(lambda: not host.handoff.sockets)
    accepted[0].transport.resume_reading()
    assert isinstance(await accepted[0].lost, ConnectionResetError)


async def test_a_peer_that_reads_on_gets_all_that_a_dead_client_has_written(host, deaf_server):
    port, accepted = deaf_server
    _, end = await host.connected(port)
    await until(lambda: accepted)
    total = 0
    for _ in range(20):
        total += stuff(end)
        await asyncio.sleep(0.02)
    end.close()
    await asyncio.sleep(0.05)
    assert host.handoff.sockets
    accepted[0].transport.resume_reading()
    assert await accepted[0].lost is None
    assert len(accepted[0].data) == total
    await until(lambda: not host.handoff.sockets)


async def test_the_last_octet_written_stays_and_a_reset_shows(host):
    server_side = []

    def factory():
        server_side.append(Recorder())
        return server_side[-1]

    server = await host.network.create_server(factory, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for written in (b"", b"x", b"x" * 70_000):
        _, end = await host.connected(port)
        await until(lambda: host.network.connections and server_side and server_side[-1].transport)
        end.send(written)
        await until(lambda: server_side[-1].data == written)       # noqa: B023
        server_side[-1].transport.abort()
        await until(lambda: hung_up(end))                           # noqa: B023
        with pytest.raises(ConnectionResetError):
            end.recv(1)
        end.close()
        server_side.clear()
    server.close()


def hung_up(end):
    poll = select.poll()
    poll.register(end, 0)
    return poll.poll(0)


async def test_an_orderly_end_is_no_reset(host):
    server = await host.network.create_server(Recorder, "127.0.0.1", 0)
    _, end = await host.connected(server.sockets[0].getsockname()[1])
    end.send(b"all")
    end.shutdown(socket.SHUT_WR)
    await until(lambda: not host.handoff.sockets or readable(end))
    assert end.recv(10) == b""
    end.close()
    await until(lambda: not host.handoff.sockets)
    server.close()


async def test_how_a_connection_ended_is_told_once(host):
    identity, end = await host.stream()
    await host.ask("connect", id=identity, host="127.0.0.1", port=9)
    await until(lambda: not host.handoff.sockets)
    assert (await host.ask("error", id=identity))[0] == {"fate": errno.ECONNREFUSED}
    assert (await host.ask("error", id=identity))[0] == {"fate": 0}
    end.close()


async def test_sockets_leave_descriptors_for_the_rest_of_the_daemon(monkeypatch):
    monkeypatch.setattr(open_files, "raise_limit", lambda wanted: min(wanted, 10))      # of which half are for sockets
    host = Host(Limits(sockets=4096))
    assert host.handoff.usage() == {"sockets": 1, "sockets_limit": 5}                   # our session
    ends = [(await host.stream())[1] for _ in range(4)]
    answer, fds = await host.ask("open", type="stream", family=4)
    assert answer["errno"] == errno.ENFILE and "LimitNOFILE" in answer["error"] and not fds
    host.handoff.set_limits(Limits(sockets=4))
    answer, _ = await host.ask("open", type="stream", family=4)
    assert answer["errno"] == errno.ENFILE and "max_sockets" in answer["error"]
    for one in ends:
        one.close()
    await until(lambda: not host.handoff.sockets)
    host.close()


async def test_limits_are_for_all_and_for_each(monkeypatch):
    host = Host(Limits(sockets=5, sockets_per_process=3))
    ends = [(await host.stream())[1] for _ in range(2)]
    answer, fds = await host.ask("open", type="stream", family=4)
    assert answer["errno"] == errno.EMFILE and not fds          # the session is the third
    other = host.handoff.open_session(2)
    last = host.handoff.open_session(3)
    with pytest.raises(OSError) as caught:
        host.handoff.open_session(4)
    assert caught.value.errno == errno.ENFILE
    assert host.handoff.refused == 2
    ends.pop().close()
    await until(lambda: len(host.handoff.sockets) == 1)
    ends.append((await host.stream())[1])
    for one in (*ends, other, last):
        one.close()
    await until(lambda: len(host.handoff.sessions) == 1 and not host.handoff.sockets)
    host.close()


async def test_closing_the_daemon_resets_and_ends_everything(host):
    server = await host.network.create_server(Recorder, "127.0.0.1", 0)
    _, end = await host.connected(server.sockets[0].getsockname()[1])
    identity, listener = await host.stream()
    await host.ask("listen", id=identity, backlog=5)
    await asyncio.sleep(0.05)
    host.handoff.close()
    with pytest.raises(ConnectionResetError):
        end.recv(1)
    assert listener.recv(1) == b""
    assert host.session.recv(1) == b""
    for one in (end, listener):
        one.close()
    server.close()


async def test_a_receive_buffer_bounds_what_the_peer_may_send(host):
    accepted = []
    server = await host.network.create_server(lambda: accepted.append(Recorder()) or accepted[-1], "127.0.0.1", 0)
    identity, end = await host.stream()
    await host.ask("set", id=identity, option="receive_buffer", value=8192)
    await host.ask("connect", id=identity, host="127.0.0.1", port=server.sockets[0].getsockname()[1])
    await until(lambda: accepted)
    accepted[0].transport.write(bytes(4 << 20))
    unread = -1
    while unread != (unread := (await host.ask("facts", id=identity))[0]["unread"]):
        await asyncio.sleep(0.1)
    assert unread <= 65536          # what was promised with the SYN
    assert (await host.ask("facts", id=identity))[0]["octets_received"] < 300_000
    end.close()
    server.close()


@pytest.mark.parametrize("size", [1, 2, 2047, 2048, 2049, 5000])
async def test_messages_of_any_size_pass_whole_both_ways_and_round_the_ring(host, size):
    """Few octets are received in one piece, many in place, and both stop short of the last one."""
    accepted = []
    server = await host.network.create_server(lambda: accepted.append(Recorder()) or accepted[-1], "127.0.0.1", 0)
    _, end = await host.connected(server.sockets[0].getsockname()[1])
    await until(lambda: accepted)
    expected, dice = b"", random.Random(size)
    for _ in range(12):
        message = dice.randbytes(size)
        end.send(message)
        expected += message
        await until(lambda: len(accepted[0].data) >= len(expected))     # noqa: B023
        accepted[0].transport.write(message)
        await until(lambda: readable(end))
        back = b""
        while len(back) < size:
            await until(lambda: readable(end))
            back += end.recv(size)
        assert back == message
    assert accepted[0].data == expected
    end.close()
    server.close()


@pytest.mark.parametrize("seed", range(4))
async def test_small_and_large_messages_in_any_order_arrive_whole(host, seed):
    """Some with a descriptor, at which the kernel stops; more of them than are left in the queue at a time."""
    accepted = []
    server = await host.network.create_server(lambda: accepted.append(Recorder()) or accepted[-1], "127.0.0.1", 0)
    _, end = await host.connected(server.sockets[0].getsockname()[1])
    await until(lambda: accepted)
    expected, dice = b"", random.Random(seed)
    for _ in range(60):
        for _ in range(dice.choice((1, 1, 3, 40))):
            message = dice.randbytes(dice.choice((1, 1, 5, 851, 2047, 2048, 2049, 9000, 70_000)))
            with contextlib.suppress(BlockingIOError):
                sent = socket.send_fds(end, [message], [0]) if dice.random() < 0.1 else end.send(message)
                expected += message[:sent]
        if dice.random() < 0.5:
            await until(lambda: len(accepted[0].data) >= len(expected))     # noqa: B023
    end.shutdown(socket.SHUT_WR)
    await until(accepted[0].lost.done)
    assert accepted[0].data == expected
    end.close()
    server.close()


async def test_who_writes_tiny_messages_gets_the_room_back_that_held_ones_take(host):
    accepted = []
    server = await host.network.create_server(lambda: accepted.append(Recorder()) or accepted[-1], "127.0.0.1", 0)
    _, end = await host.connected(server.sockets[0].getsockname()[1])
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)      # writable with no more than 2304 octets of buffers used
    sent = 0
    for _ in range(40):
        try:
            sent += end.send(b"x")
        except BlockingIOError:
            await until(lambda: writable(end))
    await until(lambda: accepted and len(accepted[0].data) == sent)
    await until(lambda: pending(end) <= PENDING_OF_ONE)
    end.close()
    server.close()


async def test_a_failing_owner_is_told_of_and_stops_no_other_connection(host):
    accepted = []
    server = await host.network.create_server(lambda: accepted.append(Recorder()) or accepted[-1], "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    failing, one = await host.connected(port)
    _, other = await host.connected(port)
    await until(lambda: len(accepted) == 2)
    note_fate = host.handoff.note_fate

    def fail(identity, error):
        if identity.hex() == failing:
            raise RuntimeError("on purpose")
        note_fate(identity, error)

    host.handoff.note_fate = fail
    with structlog.testing.capture_logs() as logs:
        for transport in (accepted[0].transport, accepted[1].transport):
            transport.abort()
        await until(lambda: readable_or_over(other))
    assert [entry["event"] for entry in logs] == ["handoff_failed"]
    one.close()
    other.close()
    server.close()


def readable_or_over(end):
    try:
        return readable(end)
    except ConnectionResetError:
        return True


async def bound(host, port):
    """A datagram socket of the client; its id and end."""
    answer, (end,) = await host.ask("open", type="datagram", family=4)
    end.setblocking(False)
    answer_, _ = await host.ask("bind", id=answer["id"], host="127.0.0.1", port=port)
    assert "errno" not in answer_
    return answer["id"], end


def packet(port, data, source="::"):
    return HEADER.pack(pack_address("127.0.0.1"), port, 0, pack_address(source)) + data


@pytest.mark.parametrize(("source", "failed"), [
    ("127.0.0.1", 0), ("0.0.0.0", 0), ("127.0.0.2", 0), ("10.1.2.3", errno.EADDRNOTAVAIL), ("fd00::1", errno.EADDRNOTAVAIL)])
async def test_a_datagram_goes_from_the_address_it_asks_for_if_that_is_ours(host, source, failed):
    _, one = await bound(host, 4000)
    _, other = await bound(host, 4001)
    one.send(packet(4001, b"data", source))
    told = one if failed else other
    await until(lambda: readable(told))
    sender, port, error, ours = HEADER.unpack_from(told.recv(100))
    assert error == failed
    if not failed:
        assert (unpack_address(sender), port) == ("127.0.0.1" if source == "0.0.0.0" else source, 4000)
        assert ours == pack_address("127.0.0.1")
    one.send(packet(4001, b"none"))
    await until(lambda: readable(other))


async def test_a_datagram_larger_than_its_receivers_buffer_is_lost_alone(host):
    identity, small = await bound(host, 4000)
    await host.ask("set", id=identity, option="receive_buffer", value=4096)
    _, other = await bound(host, 4001)
    other.send(packet(4000, bytes(6000)))
    other.send(packet(4000, b"small"))
    await until(lambda: readable(small))
    assert small.recv(100)[HEADER.size:] == b"small"
    small.send(packet(4001, b"back"))
    await until(lambda: readable(other))
    assert other.recv(100)[HEADER.size:] == b"back"


@pytest.mark.parametrize("closed", [False, True])
async def test_a_packet_of_nothing_holds_up_no_other(host, closed):
    _, end = await bound(host, 4000)
    _, other = await bound(host, 4001)
    for octets in (b"", packet(4001, b"first"), b"", b"", packet(4001, b"second")):
        end.send(octets)
    if closed:
        end.close()
    for data in b"first", b"second":
        await until(lambda: readable(other))
        assert other.recv(100)[HEADER.size:] == data
