"""What asyncio promises of a stream transport, as one table of expectations for the kernel's sockets and ours."""

import array
import asyncio
import errno
import hashlib
import random
import socket

import pytest

from tests.netstack.sockets.conftest import Recorder, until

BLOCK = random.Random(1).randbytes(8 << 20)


async def test_data_comes_between_made_and_lost(joined):
    client, server = await joined()
    assert client.log == ["made"]
    client.transport.write(b"hello ")
    client.transport.write(b"world")
    client.transport.close()
    assert await server.lost is None
    assert await client.lost is None
    assert server.log == ["made", b"hello world", "eof", "lost"]
    assert client.log == ["made", "lost"]


@pytest.mark.parametrize(("host", "length"), [("127.0.0.1", 2), ("::1", 4)])
async def test_names_are_those_of_the_socket_api(joined, host, length):
    client, server = await joined(host=host)
    sockname = client.transport.get_extra_info("sockname")
    peername = client.transport.get_extra_info("peername")
    assert len(sockname) == len(peername) == length
    assert peername[0] == host
    assert server.transport.get_extra_info("peername") == sockname
    assert server.transport.get_extra_info("sockname") == peername
    assert client.transport.get_extra_info("nothing", "default") == "default"
    sock = client.transport.get_extra_info("socket")
    assert sock.family == (socket.AF_INET6 if length == 4 else socket.AF_INET)
    assert sock.type == socket.SOCK_STREAM
    assert sock.getsockname() == sockname
    assert sock.getpeername() == peername
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    client.transport.close()
    server.transport.close()
    await client.lost
    await server.lost


async def test_names_are_known_in_connection_lost_and_after(joined):
    client, server = await joined()
    expected = client.transport.get_extra_info("peername")
    client.transport.close()
    await client.lost
    await server.lost
    assert client.transport.get_extra_info("peername") == expected


async def test_a_transport_is_a_transport(joined, net):
    client, server = await joined()
    assert isinstance(client.transport, asyncio.Transport) or net.name == "kernel"     # uvloop's are not
    assert client.transport.get_protocol() is client
    assert client.transport.can_write_eof()
    assert client.transport.is_reading()
    assert not client.transport.is_closing()
    client.transport.close()
    assert client.transport.is_closing()
    assert not client.transport.is_reading()
    await server.lost


async def test_eof_closes_unless_kept_open(joined):
    client, server = await joined()
    client.transport.write_eof()
    assert await client.lost is None
    assert await server.lost is None
    assert server.log == ["made", "eof", "lost"]
    assert client.log == ["made", "eof", "lost"]


async def test_half_open_connection_still_sends(joined):
    client, server = await joined(server_factory=lambda: Recorder(keep_open=True))
    client.transport.write(b"request")
    client.transport.write_eof()
    await until(lambda: "eof" in server.log)
    assert not server.transport.is_closing()
    await asyncio.sleep(0.02)
    server.transport.write(b"the answer")
    server.transport.close()
    await client.lost
    assert client.log == ["made", b"the answer", "eof", "lost"]
    assert server.log == ["made", b"request", "eof", "lost"]


async def test_both_halves_closed_waits_for_close(joined):
    client, server = await joined(lambda: Recorder(keep_open=True), lambda: Recorder(keep_open=True))
    client.transport.write_eof()
    server.transport.write_eof()
    await until(lambda: "eof" in server.log and "eof" in client.log)
    await asyncio.sleep(0.02)
    assert client.log == server.log == ["made", "eof"]
    client.transport.close()
    server.transport.close()
    assert await client.lost is None
    assert await server.lost is None


async def test_write_after_write_eof_is_an_error(joined):
    client, server = await joined()
    client.transport.write_eof()
    client.transport.write_eof()
    with pytest.raises(RuntimeError):
        client.transport.write(b"x")
    await server.lost


@pytest.mark.uvloop_differs("write raises RuntimeError once connection_lost was called")
async def test_write_after_close_is_dropped(joined):
    client, server = await joined()
    client.transport.close()
    client.transport.close()
    client.transport.write(b"x")
    await server.lost
    client.transport.write(b"x")
    client.transport.abort()
    assert server.data == b""


@pytest.mark.uvloop_differs("None is taken for nothing to write")
@pytest.mark.parametrize("bad", ["text", 7, None])
async def test_write_of_no_buffer_is_an_error(joined, bad):
    client, server = await joined()
    with pytest.raises(TypeError):
        client.transport.write(bad)
    client.transport.close()
    await server.lost
    assert server.data == b""


async def test_any_buffer_can_be_written(joined):
    client, server = await joined()
    client.transport.write(b"")
    client.transport.write(bytearray(b"ab"))
    client.transport.write(memoryview(b"xcdx")[1:3])
    client.transport.writelines([b"e", bytearray(b"f"), memoryview(b"g")])
    client.transport.close()
    await server.lost
    assert server.data == b"abcdefg"


async def test_a_buffer_of_words_can_be_written(ours):
    peers = []
    server = await ours.create_server(lambda: peers.append(Recorder()) or peers[0], "127.0.0.1", 0)
    transport, _ = await ours.create_connection(Recorder, *server.sockets[0].getsockname())
    transport.write(array.array("I", [1]))
    transport.writelines([array.array("I", [2, 3]), b""])
    transport.close()
    await until(lambda: peers)
    await peers[0].lost
    assert peers[0].data == array.array("I", [1, 2, 3]).tobytes()


@pytest.mark.uvloop_differs("a bytearray is sent as it is when its turn comes")
@pytest.mark.asyncio_differs("a bytearray is sent as it is when its turn comes")
async def test_what_is_written_is_not_changed_by_later_changes(joined):
    client, server = await joined()
    server.transport.pause_reading()
    data = bytearray(BLOCK)
    client.transport.write(BLOCK)
    client.transport.write(data)
    data[:] = bytes(len(data))
    client.transport.close()
    server.transport.resume_reading()
    await server.lost
    assert hashlib.sha256(server.data).digest() == hashlib.sha256(BLOCK + BLOCK).digest()


@pytest.mark.uvloop_differs("pause_reading in connection_made is forgotten")
async def test_paused_reading_receives_nothing_then_everything(joined):
    client, server = await joined(server_factory=lambda: Recorder(pause=True))
    assert not server.transport.is_reading()
    server.transport.pause_reading()
    client.transport.write(b"one")
    await asyncio.sleep(0.02)
    client.transport.write(b"two")
    client.transport.write_eof()
    await asyncio.sleep(0.02)
    assert server.log == ["made"]
    server.transport.resume_reading()
    server.transport.resume_reading()
    assert server.transport.is_reading()
    assert server.log == ["made"], "resume_reading must not call back"
    await server.lost
    assert server.log == ["made", b"onetwo", "eof", "lost"]


async def test_pausing_within_data_received_stops_at_once(joined):
    client, server = await joined(server_factory=lambda: Recorder(on_data=lambda me, _: me.transport.pause_reading()))
    client.transport.write(BLOCK)
    client.transport.close()
    rounds = 0
    while not server.lost.done():
        before = len(server.data)
        await asyncio.sleep(0.0005)
        server.transport.resume_reading()
        rounds += len(server.data) > before
    assert rounds > 5
    assert server.data == BLOCK
    assert server.names == ["made", "data", "eof", "lost"]


async def test_closing_within_data_received_is_the_last_word(joined):
    client, server = await joined(server_factory=lambda: Recorder(on_data=lambda me, _: me.transport.close()))
    client.transport.write(b"x")
    await server.lost
    client.transport.write(b"y")
    await client.lost
    assert server.log == ["made", b"x", "lost"]


async def test_flow_control_both_ways(joined):
    client, server = await joined()
    client.transport.pause_reading()
    server.transport.pause_reading()
    for end in (client, server):
        end.transport.write(BLOCK)
        assert end.log == ["made", "pause"]
        assert end.transport.get_write_buffer_size() > end.transport.get_write_buffer_limits()[1]
    await asyncio.sleep(0.02)
    assert client.log == server.log == ["made", "pause"]
    client.transport.resume_reading()
    server.transport.resume_reading()
    await until(lambda: len(client.data) == len(server.data) == len(BLOCK))
    assert client.data == server.data == BLOCK
    await until(lambda: "resume" in client.log and "resume" in server.log)
    assert client.transport.get_write_buffer_size() == 0
    client.transport.close()
    await server.lost
    await client.lost
    for end in (client, server):
        assert [name for name in end.names if name in ("pause", "resume")] == ["pause", "resume"]


@pytest.mark.parametrize(("given", "limits"), [
    ({}, (16384, 65536)), ({"high": 1000}, (250, 1000)), ({"low": 1000}, (1000, 4000)),
    ({"high": 10, "low": 10}, (10, 10)), ({"high": 0}, (0, 0)),
])
async def test_write_buffer_limits(joined, given, limits):
    client, server = await joined()
    client.transport.set_write_buffer_limits(**given)
    assert client.transport.get_write_buffer_limits() == limits
    with pytest.raises(ValueError):
        client.transport.set_write_buffer_limits(high=1, low=2)
    client.transport.close()
    await server.lost


async def test_close_sends_what_was_written(joined):
    client, server = await joined()
    server.transport.pause_reading()
    client.transport.write(BLOCK)
    client.transport.close()
    assert client.transport.is_closing()
    await asyncio.sleep(0.02)
    assert not client.lost.done(), "data still waits"
    server.transport.resume_reading()
    assert await client.lost is None
    assert await server.lost is None
    assert server.data == BLOCK


async def test_write_eof_follows_what_was_written(joined):
    client, server = await joined(lambda: Recorder(keep_open=True))
    server.transport.pause_reading()
    client.transport.write(BLOCK)
    client.transport.write_eof()
    server.transport.resume_reading()
    await server.lost
    assert server.data == BLOCK
    await until(lambda: "eof" in client.log)
    client.transport.close()
    await client.lost


@pytest.mark.uvloop_differs("get_write_buffer_size still counts what abort dropped")
async def test_abort_loses_what_was_written(joined):
    client, server = await joined()
    server.transport.pause_reading()
    client.transport.write(BLOCK)
    client.transport.abort()
    assert client.transport.is_closing()
    assert client.transport.get_write_buffer_size() == 0
    assert client.log == ["made", "pause"], "abort must not call back"
    assert await client.lost is None
    server.transport.resume_reading()
    await server.lost
    assert len(server.data) < len(BLOCK)


@pytest.mark.uvloop_differs("the text does not say which address refused")
async def test_refused_connection(net):
    server = await net.create_server(Recorder, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    server.close()
    await server.wait_closed()
    with pytest.raises(ConnectionRefusedError) as caught:
        await net.create_connection(Recorder, *address)
    assert caught.value.errno == errno.ECONNREFUSED
    assert str(address[1]) in str(caught.value)


async def test_reset_by_peer(joined, net):
    client, server = await joined()
    net.send_reset(server.transport)
    exc = await client.lost
    assert isinstance(exc, ConnectionResetError)
    assert exc.errno == errno.ECONNRESET
    assert client.log == ["made", "ConnectionResetError"]


async def test_data_before_a_reset_is_delivered(joined, net):
    client, server = await joined()
    client.transport.pause_reading()
    server.transport.write(b"last words")
    await asyncio.sleep(0.02)
    net.send_reset(server.transport)
    await asyncio.sleep(0.02)
    assert client.log == ["made"]
    client.transport.resume_reading()
    assert isinstance(await client.lost, ConnectionResetError)
    assert client.log == ["made", b"last words", "ConnectionResetError"]


async def test_writer_learns_of_a_reset_while_it_does_not_read(joined, net):
    client, server = await joined()
    client.transport.pause_reading()
    server.transport.pause_reading()
    client.transport.write(BLOCK)
    await asyncio.sleep(0.02)
    net.send_reset(server.transport)
    assert isinstance(await client.lost, ConnectionResetError)


async def test_reset_after_eof_is_told_to_the_next_write(joined, net):
    client, server = await joined(lambda: Recorder(keep_open=True))
    server.transport.write_eof()
    await until(lambda: "eof" in client.log)
    net.send_reset(server.transport)
    await asyncio.sleep(0.02)
    assert client.log == ["made", "eof"]
    client.transport.write(b"x")
    assert isinstance(await client.lost, BrokenPipeError | ConnectionResetError)


async def test_eof_and_reset_while_paused(joined, net):
    client, server = await joined(lambda: Recorder(keep_open=True))
    client.transport.pause_reading()
    server.transport.write_eof()
    await asyncio.sleep(0.02)
    net.send_reset(server.transport)
    await asyncio.sleep(0.02)
    assert client.log == ["made"]
    client.transport.resume_reading()
    await until(lambda: "eof" in client.log)
    assert client.log == ["made", "eof"]
    client.transport.write(b"x")
    assert isinstance(await client.lost, BrokenPipeError)


async def test_raising_data_received_costs_only_its_connection(joined, net):
    def fail(me, data):
        raise ZeroDivisionError

    client, server = await joined(server_factory=lambda: Recorder(on_data=fail))
    client.transport.write(b"x")
    assert isinstance(await server.lost, ZeroDivisionError)
    await client.lost
    assert [type(problem["exception"]) for problem in net.problems] == [ZeroDivisionError]
    assert net.problems[0]["protocol"] is server
    net.problems.clear()


async def test_raising_eof_received_costs_only_its_connection(joined, net):
    class Failing(Recorder):
        def eof_received(self):
            raise ZeroDivisionError

    client, server = await joined(server_factory=Failing)
    client.transport.write_eof()
    assert isinstance(await server.lost, ZeroDivisionError)
    await client.lost
    assert [type(problem["exception"]) for problem in net.problems] == [ZeroDivisionError]
    net.problems.clear()


async def test_raising_connection_made_costs_only_its_connection(ours):
    class Failing(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            raise ZeroDivisionError

    server = await ours.create_server(lambda: made.append(Failing()) or made[0], "127.0.0.1", 0)
    made = []
    _, client = await ours.create_connection(Recorder, *server.sockets[0].getsockname())
    assert isinstance(await client.lost, ConnectionResetError)
    assert isinstance(await made[0].lost, ZeroDivisionError)
    assert [type(problem["exception"]) for problem in ours.problems] == [ZeroDivisionError]
    ours.problems.clear()
    _, client = await ours.create_connection(Recorder, *server.sockets[0].getsockname())     # the server lives
    await client.lost
    ours.problems.clear()


async def test_raising_factory_costs_only_its_connection(ours):
    def fail():
        raise ZeroDivisionError

    server = await ours.create_server(fail, "127.0.0.1", 0)
    _, client = await ours.create_connection(Recorder, *server.sockets[0].getsockname())
    assert isinstance(await client.lost, ConnectionResetError)
    assert [type(problem["exception"]) for problem in ours.problems] == [ZeroDivisionError]
    ours.problems.clear()
    with pytest.raises(ZeroDivisionError):
        await ours.create_connection(fail, *server.sockets[0].getsockname())
    await asyncio.sleep(0.02)
    ours.problems.clear()       # whether the server saw that one before its reset


class Buffered(asyncio.BufferedProtocol):
    """Receives into its own few octets."""

    def __init__(self, size):
        self.buffer = bytearray(size)
        self.received = bytearray()
        self.lost = asyncio.get_running_loop().create_future()
        self.eof = False

    def connection_made(self, transport):
        self.transport = transport

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, count):
        self.received += self.buffer[:count]

    def eof_received(self):
        self.eof = True

    def connection_lost(self, exc):
        self.lost.set_result(exc)


@pytest.mark.parametrize("size", [1, 1000, 65536, 1 << 20])
async def test_buffered_protocol(joined, size):
    data = BLOCK[:4096 if size == 1 else None]
    client, server = await joined(server_factory=lambda: Buffered(size))
    client.transport.write(data)
    client.transport.close()
    assert await server.lost is None
    assert server.eof
    assert server.received == data


async def test_buffered_protocol_that_pauses(joined):
    class Pausing(Buffered):
        def buffer_updated(self, count):
            super().buffer_updated(count)
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self.transport.resume_reading)

    client, server = await joined(server_factory=lambda: Pausing(70000))
    client.transport.write(BLOCK)
    client.transport.close()
    await server.lost
    assert server.received == BLOCK


async def test_buffered_protocol_without_a_buffer(joined, net):
    client, server = await joined(server_factory=lambda: Buffered(0))
    client.transport.write(b"x")
    assert isinstance(await server.lost, RuntimeError)
    await client.lost
    assert [type(problem["exception"]) for problem in net.problems] == [RuntimeError]
    net.problems.clear()


async def test_set_protocol_hands_over_between_callbacks(joined):
    client, first = await joined()
    client.transport.write(b"one")
    await until(lambda: first.data == b"one")
    second, third = Recorder(), Buffered(64)
    first.transport.set_protocol(second)
    assert first.transport.get_protocol() is second
    client.transport.write(b"two")
    await until(lambda: second.data == b"two")
    first.transport.set_protocol(third)
    client.transport.write(b"three")
    client.transport.close()
    await third.lost
    assert third.received == b"three"
    assert first.log == ["made", b"one"]
    assert second.log == [b"two"]


async def test_many_connections_at_once(net):
    loop = asyncio.get_running_loop()

    def echo(me, data):
        me.transport.write(data)

    server = await net.create_server(lambda: Recorder(on_data=echo), "127.0.0.1", 0, backlog=512)
    address = server.sockets[0].getsockname()
    clients = [client for _, client in
               await asyncio.gather(*(net.create_connection(Recorder, *address) for _ in range(200)))]
    for number, client in enumerate(clients):
        client.transport.write(b"%d" % number)
    await until(lambda: all(client.data for client in clients))
    assert [int(client.data) for client in clients] == list(range(200))
    for client in clients:
        client.transport.close()
    await asyncio.gather(*(client.lost for client in clients))
    server.close()
    await loop.run_in_executor(None, int)
