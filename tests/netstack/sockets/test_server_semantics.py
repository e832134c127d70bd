"""Listening, accepting and closing servers, against the kernel's and ours."""

import asyncio
import errno
import socket
import sys

import pytest

from tests.netstack.sockets.conftest import Recorder, until


async def test_a_server_says_what_it_is(net):
    server = await net.create_server(Recorder, "127.0.0.1", 0)
    assert isinstance(server, asyncio.AbstractServer) or net.name == "kernel"      # uvloop's is not
    assert server.get_loop() is asyncio.get_running_loop()
    assert server.is_serving()
    (sock,) = server.sockets
    host, port = sock.getsockname()
    assert host == "127.0.0.1"
    assert port
    assert sock.family == socket.AF_INET
    assert sock.type == socket.SOCK_STREAM
    server.close()
    server.close()
    assert not server.is_serving()
    assert not server.sockets
    await server.wait_closed()


async def test_any_host_is_both_families(net):
    server = await net.create_server(Recorder, None, 0)
    names = [sock.getsockname() for sock in server.sockets]
    assert sorted(name[0] for name in names) == ["0.0.0.0", "::"]
    assert sorted(len(name) for name in names) == [2, 4]
    for name in names:
        transport, _ = await net.create_connection(Recorder, "::1" if len(name) == 4 else "127.0.0.1", name[1])
        transport.close()
    server.close()


async def test_several_hosts(net):
    server = await net.create_server(Recorder, ["127.0.0.1", "::1"], 0)
    assert {sock.getsockname()[0] for sock in server.sockets} == {"127.0.0.1", "::1"}
    for sock in server.sockets:
        transport, _ = await net.create_connection(Recorder, *sock.getsockname()[:2])
        transport.close()
    server.close()


@pytest.mark.parametrize(("host", "reachable", "closed"), [("0.0.0.0", "127.0.0.1", "::1"), ("::", "::1", "127.0.0.1")])
async def test_any_address_of_one_family(net, host, reachable, closed):
    server = await net.create_server(Recorder, host, 0)
    port = server.sockets[0].getsockname()[1]
    transport, _ = await net.create_connection(Recorder, reachable, port)
    transport.close()
    with pytest.raises(ConnectionRefusedError):
        await net.create_connection(Recorder, closed, port)
    server.close()


async def test_family_limits_any_host(net):
    server = await net.create_server(Recorder, None, 0, family=socket.AF_INET6)
    assert [sock.getsockname()[0] for sock in server.sockets] == ["::"]
    server.close()


async def test_port_in_use(net):
    server = await net.create_server(Recorder, "127.0.0.1", 0)
    with pytest.raises(OSError, match="bind on address") as caught:
        await net.create_server(Recorder, "127.0.0.1", server.sockets[0].getsockname()[1])
    assert caught.value.errno == errno.EADDRINUSE
    server.close()


async def test_port_is_free_after_close(net):
    server = await net.create_server(Recorder, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    transport, client = await net.create_connection(Recorder, *address)
    server.close()
    server = await net.create_server(Recorder, *address)
    transport.close()
    await client.lost
    server.close()


@pytest.mark.asyncio_differs("the OSError has no errno")
async def test_address_that_is_not_ours(net):
    with pytest.raises(OSError, match=r"203\.0\.113\.9") as caught:
        await net.create_server(Recorder, "203.0.113.9", 0)
    assert caught.value.errno == errno.EADDRNOTAVAIL


async def test_one_bad_host_leaves_nothing_behind(ours):
    port = 40001
    with pytest.raises(OSError, match=r"203\.0\.113\.9"):
        await ours.create_server(Recorder, ["127.0.0.1", "203.0.113.9"], port)
    assert not ours.servers
    (await ours.create_server(Recorder, "127.0.0.1", port)).close()


@pytest.mark.parametrize("arguments", [{"ssl": True}, {"ssl_handshake_timeout": 1.0}])
async def test_senseless_arguments(net, arguments):
    with pytest.raises((TypeError, ValueError)):
        await net.create_server(Recorder, "127.0.0.1", 0, **arguments)


async def test_reuse_port_is_refused(ours):
    with pytest.raises(ValueError, match="reuse_port"):
        await ours.create_server(Recorder, "127.0.0.1", 0, reuse_port=True)
    with pytest.raises(OverflowError):
        await ours.create_server(Recorder, "127.0.0.1", 70000)


async def test_start_serving_later(net):
    accepted = []
    server = await net.create_server(lambda: accepted.append(Recorder()) or accepted[0], "127.0.0.1", 0,
                                     start_serving=False)
    assert not server.is_serving()
    address = server.sockets[0].getsockname()
    assert address[1]
    with pytest.raises(ConnectionRefusedError):
        await net.create_connection(Recorder, *address)
    await server.start_serving()
    await server.start_serving()
    assert server.is_serving()
    assert server.sockets[0].getsockname() == address
    transport, _ = await net.create_connection(Recorder, *address)
    await until(lambda: accepted)
    transport.close()
    server.close()


async def test_closed_server_refuses_but_keeps_its_connections(net):
    accepted = []
    server = await net.create_server(lambda: accepted.append(Recorder()) or accepted[0], "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    transport, client = await net.create_connection(Recorder, *address)
    await until(lambda: accepted)
    server.close()
    with pytest.raises(ConnectionRefusedError):
        await net.create_connection(Recorder, *address)
    transport.write(b"still here")
    await until(lambda: accepted[0].data == b"still here")
    accepted[0].transport.close()
    await client.lost


async def test_serve_forever_until_cancelled(net):
    server = await net.create_server(Recorder, "127.0.0.1", 0, start_serving=False)
    task = asyncio.create_task(server.serve_forever())
    await asyncio.sleep(0)
    assert server.is_serving()
    with pytest.raises(RuntimeError):
        await server.serve_forever()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not server.is_serving()
    with pytest.raises(RuntimeError):
        await server.serve_forever()


@pytest.mark.uvloop_differs("its close ends no serve_forever (seen in 0.23)")
async def test_close_ends_serve_forever(net):
    server = await net.create_server(Recorder, "127.0.0.1", 0)
    task = asyncio.create_task(server.serve_forever())
    await asyncio.sleep(0)
    server.close()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_context_manager_closes(net):
    async with await net.create_server(Recorder, "127.0.0.1", 0) as server:
        assert server.is_serving()
    assert not server.is_serving()


@pytest.fixture
def crowd(net):
    """A server with three connections."""
    async def gather():
        accepted = []

        def factory():
            accepted.append(Recorder(keep_open=True))
            return accepted[-1]

        server = await net.create_server(factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        clients = [(await net.create_connection(Recorder, *address))[1] for _ in range(3)]
        await until(lambda: len(accepted) == 3)
        return server, accepted, clients
    return gather


def has_3_13_methods(net):
    return net.name != "kernel" or sys.version_info >= (3, 13)


@pytest.mark.uvloop_differs("there is no close_clients yet")
async def test_close_clients_sends_what_was_written(net, crowd):
    server, accepted, clients = await crowd()
    if not has_3_13_methods(net):
        server.close()
        for client in clients:
            client.transport.close()
        return
    accepted[0].transport.write(b"good bye")
    server.close()
    server.close_clients()
    await server.wait_closed()
    assert [await client.lost for client in clients] == [None] * 3
    assert clients[0].log == ["made", b"good bye", "eof", "lost"]


async def test_abort_clients_resets(ours):
    accepted = []
    server = await ours.create_server(lambda: accepted.append(Recorder()) or accepted[-1], "127.0.0.1", 0)
    _, client = await ours.create_connection(Recorder, *server.sockets[0].getsockname())
    other = await ours.create_server(Recorder, "127.0.0.1", 0)
    _, untouched = await ours.create_connection(Recorder, *other.sockets[0].getsockname())
    await until(lambda: accepted)
    server.close()
    server.abort_clients()
    await server.wait_closed()
    assert isinstance(await client.lost, ConnectionResetError)
    assert not untouched.lost.done()
    untouched.transport.close()


async def test_wait_closed_waits_for_the_connections(ours):
    accepted = []
    server = await ours.create_server(lambda: accepted.append(Recorder()) or accepted[-1], "127.0.0.1", 0)
    transport, _ = await ours.create_connection(Recorder, *server.sockets[0].getsockname())
    await until(lambda: accepted)
    waiter = asyncio.create_task(server.wait_closed())
    await asyncio.sleep(0.01)
    server.close()
    await asyncio.sleep(0.01)
    assert not waiter.done()
    transport.close()
    await waiter
    await server.wait_closed()


async def test_cancelled_serve_forever_closes_its_connections(ours):
    accepted = []
    server = await ours.create_server(lambda: accepted.append(Recorder()) or accepted[-1], "127.0.0.1", 0)
    _, client = await ours.create_connection(Recorder, *server.sockets[0].getsockname())
    task = asyncio.create_task(server.serve_forever())
    await asyncio.sleep(0)
    await until(lambda: accepted)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await client.lost is None
