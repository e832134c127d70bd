"""What only our transport does: fairness, cost, views of sockets, and news in awkward order."""

import asyncio
import errno
import logging
import socket
import tracemalloc

import pytest

from netstack.sockets.transport import READ_MOST
from netstack.tcp.api import EVENT_CLOSED, EVENT_READABLE, EVENT_WRITABLE
from tests.netstack.sockets.conftest import Fake, Recorder, running, until


@pytest.fixture
async def wide():
    """The stand-in core with rings that hold more than one delivery."""
    async for network in running(Fake(asyncio.get_running_loop(), ring=8 * READ_MOST)):
        yield network


async def pair(net, server_factory=Recorder):
    made = []
    server = await net.create_server(lambda: made.append(server_factory()) or made[-1], "127.0.0.1", 0)
    _, client = await net.create_connection(Recorder, *server.sockets[0].getsockname())
    await until(lambda: made)
    server.close()
    return client, made[0]


async def test_one_delivery_is_bounded_and_others_get_their_turn(wide):
    order = []

    def note(me, data):
        order.append((me, len(data)))

    big, big_end = await pair(wide, lambda: Recorder(on_data=note))
    small, small_end = await pair(wide, lambda: Recorder(on_data=note))
    big.transport.write(bytes(4 * READ_MOST))
    small.transport.write(b"x")
    await until(lambda: len(big_end.data) == 4 * READ_MOST)
    assert order == [(big_end, READ_MOST), (small_end, 1), (big_end, READ_MOST), (big_end, READ_MOST),
                     (big_end, READ_MOST)]


async def test_small_buffers_are_bounded_too(wide):
    rounds = []

    class Small(asyncio.BufferedProtocol):
        def connection_made(self, transport):
            self.buffer = bytearray(1000)
            self.received = 0

        def get_buffer(self, sizehint):
            return self.buffer

        def buffer_updated(self, count):
            if not self.received:
                asyncio.get_running_loop().call_soon(tick)
            self.received += count

    def tick():
        rounds.append(end.received)
        if end.received < 4 * READ_MOST:
            asyncio.get_running_loop().call_soon(tick)

    client, end = await pair(wide, Small)
    client.transport.write(bytes(4 * READ_MOST))
    await until(lambda: end.received == 4 * READ_MOST)
    assert READ_MOST <= rounds[0] < READ_MOST + 1000


async def test_only_connections_with_news_are_looked_at(fake):
    pairs = [await pair(fake) for _ in range(50)]
    await asyncio.sleep(0.01)
    looked_at = []
    read = fake.tcp.read
    fake.tcp.read = lambda handle, most: looked_at.append(handle) or read(handle, most)
    client, server = pairs[20]
    client.transport.write(b"x")
    await until(lambda: server.data)
    assert looked_at == [server.transport.get_extra_info("handle")]


async def test_an_idle_connection_costs_less_than_a_kilobyte_of_python(fake):
    protocol = Recorder()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(1000):
        fake.tcp.ends[(9 << 32) + number] = fake.tcp._end(("127.0.0.1", 1), ("127.0.0.1", 2))
    core = tracemalloc.get_traced_memory()[0]
    for number in range(1000):
        fake._adopt((9 << 32) + number, protocol)
    cost = (tracemalloc.get_traced_memory()[0] - core) / 1000
    tracemalloc.stop()
    assert before < core
    assert cost < 512, "without the list of options the stand-in keeps"
    assert not hasattr(next(fake.transports()), "__dict__")
    fake.connections.clear()


async def test_options_reach_the_core(fake):
    client, _ = await pair(fake)
    handle = client.transport.get_extra_info("handle")
    assert (handle, "nodelay", True) in fake.tcp.options, "asyncio switches Nagle's algorithm off"
    sock = client.transport.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert fake.tcp.options[-2:] == [(handle, "nodelay", False), (handle, "keepalive", True)]
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)
    assert fake.tcp.options[-2:] == [(handle, "keepalive_idle", 30), (handle, "user_timeout", 0)]
    for option, value in [(socket.TCP_KEEPIDLE, 0), (socket.TCP_KEEPCNT, 128), (socket.TCP_USER_TIMEOUT, -1)]:
        with pytest.raises(OSError, match="is not from") as caught:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        assert caught.value.errno == errno.EINVAL
    for level, option in [(socket.SOL_SOCKET, socket.SO_LINGER), (socket.IPPROTO_TCP, socket.TCP_CORK)]:
        with pytest.raises(OSError, match="option") as caught:
            sock.setsockopt(level, option, 1)
        assert caught.value.errno == errno.ENOPROTOOPT
    client.transport.close()
    await client.lost
    await asyncio.sleep(0)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)      # too late, and no error


async def test_view_of_a_socket(fake):
    client, _ = await pair(fake)
    sock = client.transport.get_extra_info("socket")
    assert sock.fileno() == -1
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_INET
    with pytest.raises(OSError, match="cannot be read"):
        sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    sock.setblocking(False)
    sock.settimeout(0)
    assert sock.gettimeout() == 0
    with pytest.raises(ValueError):
        sock.setblocking(True)
    with pytest.raises(ValueError):
        sock.settimeout(1)
    assert "127.0.0.1" in repr(sock)
    assert client.transport.get_extra_info("stack") is fake


async def test_view_of_a_listener(fake):
    server = await fake.create_server(Recorder, "::1", 80)
    (sock,) = server.sockets
    assert sock.getsockname() == ("::1", 80, 0, 0)
    assert sock.family == socket.AF_INET6
    for verb in (sock.getpeername, lambda: sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)):
        with pytest.raises(OSError, match="listener"):
            verb()
    assert repr(server) == "<Server serving [::1]:80 connections=0>"
    assert "::1" in repr(sock)


async def test_what_objects_say_of_themselves(fake):
    client, _ = await pair(fake)
    assert "open peer=127.0.0.1:" in repr(client.transport)
    client.transport.close()
    assert "closing" in repr(client.transport)
    await client.lost
    await asyncio.sleep(0)
    assert "closed peer=127.0.0.1:" in repr(client.transport)
    transport, _ = await fake.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 5))
    assert repr(transport) == "<DatagramTransport open ('127.0.0.1', 5)>"


async def test_accepted_after_the_server_closed_is_reset(fake):
    accepted = []
    server = await fake.create_server(lambda: accepted.append(1), "127.0.0.1", 0)
    task = asyncio.create_task(fake.create_connection(Recorder, *server.sockets[0].getsockname()))
    await asyncio.sleep(0)
    fake.stack.tcp.step()       # the handshake is done, and nobody was told
    server.close()
    _, client = await task
    assert isinstance(await client.lost, ConnectionResetError)
    assert not accepted


async def test_writing_to_a_connection_whose_end_is_on_its_way(fake):
    client, _ = await pair(fake)
    end = fake.tcp.ends[client.transport.get_extra_info("handle")]
    fake.tcp.die(end, errno.ETIMEDOUT)
    client.transport.write(b"x")
    client.transport.write_eof()
    fake.kick()
    assert isinstance(await client.lost, TimeoutError)


async def test_room_and_the_end_in_one_event(fake):
    client, _ = await pair(fake)
    client.transport.pause_reading()
    client.transport.write(bytes(1 << 20))
    handle = client.transport.get_extra_info("handle")
    end = fake.tcp.ends[handle]
    end.over = True
    fake.tcp.tell(end, EVENT_WRITABLE | EVENT_READABLE | EVENT_CLOSED, errno.ECONNRESET)
    fake.kick()
    assert isinstance(await client.lost, ConnectionResetError)
    assert client.names == ["made", "pause", "ConnectionResetError"]


async def test_news_for_a_handle_nobody_knows_are_ignored(fake):
    client, _ = await pair(fake)
    fake.tcp.news[12345 << 32] = (EVENT_READABLE, 0)
    fake.dispatch()
    assert client.log == ["made"]


async def test_writing_on_and_on_to_a_lost_connection_is_told_to_the_log(fake, caplog):
    client, _ = await pair(fake)
    client.transport.abort()
    with caplog.at_level(logging.WARNING, "asyncio"):
        for _ in range(10):
            client.transport.write(b"x")
    assert "written to after the connection was lost" in caplog.text
    assert len(caplog.records) < 10


async def test_closing_the_stack_sends_what_was_written(fake):
    client, server = await pair(fake)
    client.transport.write(b"last")
    fake.close()
    assert await client.lost is None
    assert await server.lost is None or True
    assert not fake.servers
