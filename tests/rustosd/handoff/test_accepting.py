"""Listening sockets of clients: how connections reach them, what counts until they are taken, and ends they have ahead."""

import asyncio
import errno
import gc
import os
import socket
import time

import pytest

from rustosd.client.wire import ACCEPTED, SPARES_MOST
from rustosd.handoff import Limits, stream
from rustosd.policy import Subject
from tests.netstack.sockets.conftest import Recorder, until
from tests.rustosd.handoff.host import Host, readable, writable


async def listening(host, port, backlog=4, share=1):
    """A client's listening socket on a port that may be shared; its end, or the errno."""
    identity, end = await host.stream()
    for op, fields in (("bind", {"host": "127.0.0.1", "port": port, "options": {"reuse_port": share}}),
                       ("listen", {"backlog": backlog})):
        answer, _ = await host.ask(op, id=identity, **fields)
        if "errno" in answer:
            end.close()
            return answer["errno"]
    return end


def accepted_on(listener):
    """How many connections wait to be taken from it; they are taken."""
    count = 0
    while readable(listener):
        _, fds, _, _ = socket.recv_fds(listener, 100, 1)
        os.write(fds[0], b"\1")
        os.close(fds[0])
        count += 1
    return count


async def test_connections_wait_while_their_process_may_have_no_more_sockets():
    host = Host(Limits(sockets=50, sockets_per_process=3))
    identity, end = await host.stream()
    _, other_end = await host.stream()
    answer, _ = await host.ask("listen", id=identity, backlog=5)
    _, client = await host.network.create_connection(Recorder, "127.0.0.1", answer["local"][1])
    client.transport.write(b"patience")
    await asyncio.sleep(0.05)
    assert not readable(end) and host.handoff.refused
    assert host.stack.listeners()[0]["waiting"] == 1
    other_end.close()
    await until(lambda: readable(end))
    _, (fd,), _, _ = socket.recv_fds(end, 44, 1)
    with socket.socket(fileno=fd) as accepted:
        accepted.send(b"\1")
        accepted.setblocking(False)
        await until(lambda: readable(accepted))
        assert accepted.recv(100) == b"patience"
    assert await client.lost is None
    end.close()
    host.close()


async def test_the_backlog_counts_what_the_client_has_not_taken(host):
    identity, end = await host.stream()
    answer, _ = await host.ask("listen", id=identity, backlog=3)
    port = answer["local"][1]
    clients = [await host.network.create_connection(Recorder, "127.0.0.1", port) for _ in range(3)]
    (row,) = host.stack.listeners()
    assert (row["backlog"], row["waiting"]) == (3, 3)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(host.network.create_connection(Recorder, "127.0.0.1", port), 0.3)
    octets, fds, _, _ = socket.recv_fds(end, 44, 1)
    assert len(octets) == 44
    assert host.stack.listeners()[0]["waiting"] == 3        # not before it says so
    os.write(fds[0], b"\1")
    await until(lambda: host.stack.listeners()[0]["waiting"] == 2)
    os.close(fds[0])
    assert await clients[0][1].lost is None
    end.close()
    assert isinstance(await clients[1][1].lost, ConnectionResetError)
    assert isinstance(await clients[2][1].lost, ConnectionResetError)


async def test_new_connections_pass_by_whoever_asks_for_news(host, monkeypatch):
    monkeypatch.delattr(type(host.network), "_accept")
    end = await listening(host, 4000, 8, share=0)
    clients = [(await host.connected(4000))[1] for _ in range(3)]
    await until(lambda: all(writable(one) for one in clients))
    await until(lambda: readable(end))
    assert accepted_on(end) == 3
    for one in (end, *clients):
        one.close()


async def test_a_connection_that_was_reset_before_anybody_heard_of_it_is_accepted_with_the_error(host):
    end = await listening(host, 4000, 8, share=0)
    tcp, now = host.stack.tcp, time.monotonic_ns()
    handle = tcp.connect(now, "127.0.0.1", 4000)
    while host.stack.loop(now):
        pass
    tcp.abort(handle)
    while host.stack.loop(now):
        pass
    host.pump.kick()
    await until(lambda: readable(end))
    _, (fd,), _, _ = socket.recv_fds(end, 44, 1)
    os.write(fd, b"\1")
    with socket.socket(fileno=fd) as accepted, pytest.raises(ConnectionResetError):
        await until(lambda: readable(accepted))
    await until(lambda: host.stack.listeners()[0]["waiting"] == 0 and len(host.handoff.sockets) == 1)
    end.close()


async def test_connections_that_are_over_leave_nothing_to_collect(host):
    def sockets():
        return sum(isinstance(one, stream.StreamSocket) for one in gc.get_objects())

    end = await listening(host, 4000, 8, share=0)
    gc.collect()
    gc.disable()
    try:
        before = sockets()
        for _ in range(3):
            _, client = await host.connected(4000)
            await until(lambda: readable(end))
            assert accepted_on(end) == 1
            client.close()
        await until(lambda: len(host.handoff.sockets) == 1)
        await asyncio.sleep(0.05)
        assert sockets() == before
    finally:
        gc.enable()
    end.close()


async def test_a_listener_that_is_closed_while_it_waits_for_room_is_not_asked_again():
    host = Host(Limits(sockets=50, sockets_per_process=3))
    failures = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))
    identity, end = await host.stream()
    _, other_end = await host.stream()
    answer, _ = await host.ask("listen", id=identity, backlog=5)
    _, client = await host.network.create_connection(Recorder, "127.0.0.1", answer["local"][1])
    await until(lambda: host.handoff.starved)
    end.close()
    other_end.close()
    assert isinstance(await client.lost, ConnectionResetError)
    await until(lambda: not host.handoff.sockets)
    await asyncio.sleep(0.01)
    assert not failures
    host.close()


async def test_a_shared_ports_connections_go_to_each_in_turn_and_past_who_is_full(host):
    both = [await listening(host, 4000, backlog) for backlog in (2, 6)]
    assert await listening(host, 4000, share=0) == errno.EADDRINUSE
    clients = [(await host.connected(4000))[1] for _ in range(8)]
    await until(lambda: all(writable(one) for one in clients))
    await until(lambda: sum(len(one.listener.travelling) for one in host.handoff.sockets.values() if one.listener) == 8)
    assert [accepted_on(one) for one in both] == [2, 6]
    both.pop().close()
    clients += [(await host.connected(4000))[1] for _ in range(2)]
    await until(lambda: all(writable(one) for one in clients))
    await until(lambda: readable(both[0]))
    assert accepted_on(both[0]) == 2
    both.pop().close()
    await until(lambda: not host.network.servers)
    alone = await listening(host, 4000, share=0)
    assert await listening(host, 4000) == errno.EADDRINUSE
    for one in (alone, *clients):
        one.close()


async def test_a_port_is_shared_with_its_own_user_only(host):
    ours = await listening(host, 4000)
    host.handoff.end_session(next(iter(host.handoff.sessions)))
    host.session.close()
    host.session = host.handoff.open_session(2, Subject(1000, frozenset()))
    assert await listening(host, 4000) == errno.EADDRINUSE
    ours.close()


async def listener_with_clients(host, count, backlog=32):
    """A client's listening socket, its id, and connections to it that have been announced on it."""
    identity, end = await host.stream()
    answer, _ = await host.ask("listen", id=identity, backlog=backlog)
    clients = []
    for _ in range(count):
        clients.append((await host.network.create_connection(Recorder, "127.0.0.1", answer["local"][1]))[1])
        await until(lambda: readable(end))
    return identity, end, answer["local"][1], clients


def announced(end):
    """The id of the next connection, and the descriptor that came along, if one did."""
    octets, fds, _, _ = socket.recv_fds(end, ACCEPTED.size, 1)
    return octets[:8].hex(), socket.socket(fileno=fds[0]) if fds else None


async def test_what_was_taken_outlives_the_listening_socket_even_if_both_are_news(host):
    _, end, _, clients = await listener_with_clients(host, 2)
    await until(lambda: len(host.handoff.sockets) == 3)
    _, taken = announced(end)
    taken.send(b"\1")
    end.close()
    taken.send(b"still here")
    await until(lambda: clients[0].data == b"still here")
    assert isinstance(await clients[1].lost, ConnectionResetError)
    clients[0].transport.write(b"so am I")
    await until(lambda: readable(taken))
    assert taken.recv(100) == b"so am I"
    taken.close()
    assert await clients[0].lost is None


async def test_one_that_is_dropped_without_being_taken_is_reset(host):
    _, end, _, (client,) = await listener_with_clients(host, 1)
    announced(end)[1].close()
    assert isinstance(await client.lost, ConnectionResetError)
    await until(lambda: len(host.handoff.sockets) == 1 and host.stack.listeners()[0]["waiting"] == 0)
    end.close()


async def test_data_and_eof_that_came_before_it_was_taken_are_there(host):
    _, end, _, (client,) = await listener_with_clients(host, 1)
    client.transport.write(b"early")
    client.transport.write_eof()
    _, taken = announced(end)
    await until(lambda: readable(taken))
    taken.send(b"\1")
    taken.send(b"answer")
    taken.setblocking(False)
    assert taken.recv(100) == b"early"
    await until(lambda: readable(taken))
    assert taken.recv(100) == b""
    taken.close()
    assert await client.lost is None and client.data == b"answer"
    end.close()


async def test_connections_that_are_reset_while_they_wait_make_room_for_others(host):
    _, end, _, clients = await listener_with_clients(host, 20)
    assert host.stack.listeners()[0]["waiting"] == 20
    assert len(host.handoff.sockets) == 1 + 16          # as many travel, the others wait
    for one in clients[:16]:
        one.transport.abort()
    await until(lambda: all(one.splice is None for one in host.handoff.sockets.values()))
    for _ in range(16):
        _, taken = announced(end)
        taken.send(b"\1")
        with taken, pytest.raises(ConnectionResetError):
            await until(lambda: readable(taken))        # noqa: B023
    await until(lambda: readable(end))
    for one in clients[16:]:
        await until(lambda: readable(end))
        _, taken = announced(end)
        taken.send(b"\1")
        taken.send(b"you")
        await until(lambda: one.data == b"you")         # noqa: B023
        taken.close()
    end.close()


async def test_the_daemons_end_with_connections_that_nobody_took(host):
    _, end, _, clients = await listener_with_clients(host, 2)
    clients[0].transport.abort()
    await asyncio.sleep(0.05)
    host.handoff.close()
    assert not host.handoff.sockets and host.handoff.usage()["sockets"] == 0
    end.close()


async def test_connections_come_to_the_ends_that_are_ahead(host):
    identity, end, port, _ = await listener_with_clients(host, 0)
    answer, spares = await host.ask("spare", id=identity, count=3)
    ahead = dict(zip(answer["ids"], spares, strict=True))
    assert host.handoff.usage()["sockets"] == 2 + 3
    for number in range(5):
        _, client = await host.network.create_connection(Recorder, "127.0.0.1", port)
        client.transport.write(b"to %d" % number)
        await until(lambda: readable(end))
        one, came = announced(end)
        assert (came is None) == (number < 3)
        with ahead.pop(one) if came is None else came as taken:
            taken.send(b"\1")
            await until(lambda: readable(taken))
            assert taken.recv(100) == b"to %d" % number
            taken.send(b"back")
            await until(lambda: client.data == b"back")         # noqa: B023
            names, _ = await host.ask("names", id=one)
            assert names["local"][1] == port
        assert await client.lost is None
    assert not ahead
    await until(lambda: host.handoff.usage()["sockets"] == 2)
    end.close()


async def test_ends_that_are_ahead_go_with_the_listening_socket(host):
    identity, end, _, _ = await listener_with_clients(host, 0)
    answer, spares = await host.ask("spare", id=identity, count=4)
    end.close()
    await until(lambda: host.handoff.usage()["sockets"] == 1)
    for one in spares:
        assert one.recv(1) == b""
        one.close()
    answer, _ = await host.ask("spare", id=identity, count=1)
    assert answer["errno"] == errno.EINVAL and "does not listen" in answer["error"]


async def test_one_that_nobody_took_from_a_listening_socket_leaves_though_its_end_was_ahead(host):
    identity, end, port, _ = await listener_with_clients(host, 0)
    _, (spare,) = await host.ask("spare", id=identity, count=1)
    _, client = await host.network.create_connection(Recorder, "127.0.0.1", port)
    await until(lambda: readable(end))
    end.close()
    assert isinstance(await client.lost, ConnectionResetError)
    await until(lambda: host.handoff.usage()["sockets"] == 1)
    assert spare.recv(1) == b""
    spare.close()


async def test_an_end_ahead_that_its_client_has_closed_resets_the_connection_it_was_for(host):
    identity, end, port, _ = await listener_with_clients(host, 0)
    _, (spare,) = await host.ask("spare", id=identity, count=1)
    spare.close()
    _, client = await host.network.create_connection(Recorder, "127.0.0.1", port)
    assert isinstance(await client.lost, ConnectionResetError)
    await until(lambda: host.handoff.usage()["sockets"] == 2 and host.stack.listeners()[0]["waiting"] == 0)
    end.close()


@pytest.mark.parametrize(("limits", "room"), [
    (Limits(sockets=1000, sockets_per_process=1000), SPARES_MOST),
    (Limits(sockets=1000, sockets_per_process=20), 8),
    (Limits(sockets=20, sockets_per_process=20), 8),
    (Limits(sockets=4, sockets_per_process=1000), 0),
])
async def test_there_are_as_many_ahead_as_nobody_misses(limits, room):
    host = Host(limits)
    identity, end, _, _ = await listener_with_clients(host, 0)
    answer, spares = await host.ask("spare", id=identity, count=SPARES_MOST)
    assert len(answer["ids"]) == len(set(answer["ids"])) == len(spares) == room
    answer, more = await host.ask("spare", id=identity, count=SPARES_MOST)
    assert not more and answer["ids"] == []
    for one in (end, *spares):
        one.close()
    host.close()


@pytest.mark.parametrize("count", [0, SPARES_MOST + 1, -1, "1"])
async def test_a_question_for_too_many_or_none_is_refused(host, count):
    identity, end, _, _ = await listener_with_clients(host, 0)
    answer, _ = await host.ask("spare", id=identity, count=count)
    assert answer["errno"] == errno.EPROTO
    end.close()


@pytest.mark.parametrize("kind", ["stream", "datagram", "nobody's"])
async def test_only_listening_sockets_have_any(host, kind):
    identity = "00" * 8
    if kind != "nobody's":
        answer, (end,) = await host.ask("open", type=kind, family=4)
        identity = answer["id"]
    answer, _ = await host.ask("spare", id=identity, count=1)
    assert answer["errno"] == errno.EINVAL
    if kind != "nobody's":
        end.close()
