"""Two whole stacks on a wire, in virtual time: what waits for minutes in life takes milliseconds here."""

import asyncio
import errno
import random

import pytest

from tests.netstack.sockets.conftest import Recorder
from tests.netstack.sockets.virtual import Host, Wire

pytestmark = pytest.mark.virtual_time

BLOCK = random.Random(4).randbytes(3 << 20)


@pytest.fixture
async def hosts():
    """(left, right, wire), with IPv6 addresses that have passed DAD."""
    loop = asyncio.get_running_loop()
    problems = []
    loop.set_exception_handler(lambda _, context: problems.append(context))
    left, right = Host(loop, 1), Host(loop, 2)
    wire = Wire(left, right)
    await asyncio.sleep(3)
    yield left, right, wire
    assert not problems


async def served(host, factory=Recorder, address=None):
    """A server on a host, and a future for the first protocol it makes."""
    made = asyncio.get_running_loop().create_future()

    def make():
        protocol = factory()
        if not made.done():
            made.set_result(protocol)
        return protocol

    server = await host.sockets.create_server(make, address or host.address, 80)
    return server, made


def now():
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize("family", [4, 6])
async def test_there_and_back(hosts, family):
    left, right, _ = hosts
    where = right.address if family == 4 else right.address6
    _, made = await served(right, lambda: Recorder(on_data=lambda me, data: me.transport.write(data)), where)
    transport, client = await left.sockets.create_connection(Recorder, where, 80)
    server = await made
    assert transport.get_extra_info("sockname")[:2] == server.transport.get_extra_info("peername")[:2]
    transport.write(BLOCK)
    while len(client.data) < len(BLOCK):
        await asyncio.sleep(0.01)
    assert client.data == BLOCK
    transport.close()
    assert await server.lost is None
    assert server.names[-2:] == ["eof", "lost"]
    await asyncio.sleep(130)
    assert not left.stack.connections()
    assert not right.stack.connections()


async def test_connect_to_a_silent_host_times_out(hosts):
    left, right, wire = hosts
    transport, client = (await left.sockets.create_connection(Recorder, right.address, 80)
                         if (await served(right)) else None)     # so that the neighbor is known
    transport.close()
    await client.lost
    wire.cut = True
    start = now()
    with pytest.raises(OSError, match=r"connect to 10\.0\.0\.2:80 failed") as caught:
        await left.sockets.create_connection(Recorder, right.address, 80)
    assert caught.value.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH)
    assert 1 < now() - start < 300
    assert not left.sockets.connections


async def test_connect_to_nobody_is_unreachable(hosts):
    left, _, _ = hosts
    start = now()
    with pytest.raises(OSError, match=r"connect to 10\.0\.0\.77:80 failed") as caught:
        await left.sockets.create_connection(Recorder, "10.0.0.77", 80)
    assert caught.value.errno in (errno.EHOSTUNREACH, errno.ETIMEDOUT)
    assert now() - start < 300


async def test_connect_without_a_route(hosts):
    left, _, _ = hosts
    with pytest.raises(OSError, match="network is unreachable") as caught:
        await left.sockets.create_connection(Recorder, "192.0.2.1", 80)
    assert caught.value.errno == errno.ENETUNREACH


async def test_timeout_around_connect_leaves_nothing(hosts):
    left, _, wire = hosts
    wire.cut = True
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2):
            await left.sockets.create_connection(Recorder, "10.0.0.2", 80)
    assert not left.sockets.connections
    assert not left.stack.connections()


async def test_happy_eyeballs_waits_its_delay(hosts):
    left, right, _ = hosts
    _, made = await served(right)

    async def resolver(host, port, **options):
        infos = await left.sockets.resolve("fd00::77", port) + await left.sockets.resolve(right.address, port)
        return infos

    left.sockets.resolver = resolver
    start = now()
    transport, _ = await left.sockets.create_connection(Recorder, "both.example", 80, happy_eyeballs_delay=0.25)
    assert transport.get_extra_info("peername") == (right.address, 80)
    assert 0.25 <= now() - start < 0.3
    assert len(left.stack.connections()) == 1
    transport.close()
    await (await made).lost


async def test_cut_wire_ends_a_writer_and_not_an_idle_connection(hosts):
    left, right, wire = hosts
    _, made = await served(right)
    transport, writer = await left.sockets.create_connection(Recorder, right.address, 80)
    _, idle = await left.sockets.create_connection(Recorder, right.address, 80)
    await made
    wire.cut = True
    transport.write(b"into the void")
    exc = await writer.lost
    assert isinstance(exc, TimeoutError) or exc.errno == errno.EHOSTUNREACH
    assert now() > 60
    assert not idle.lost.done()


async def test_a_paused_reader_stops_the_sender_for_hours(hosts):
    left, right, _ = hosts
    _, made = await served(right, lambda: Recorder(pause=True))
    transport, client = await left.sockets.create_connection(Recorder, right.address, 80)
    server = await made
    transport.write(BLOCK * 2)
    assert client.names == ["made", "pause"]
    await asyncio.sleep(4 * 3600)
    assert client.names == ["made", "pause"]
    assert server.log == ["made"]
    server.transport.resume_reading()
    while len(server.data) < 2 * len(BLOCK):
        await asyncio.sleep(0.1)
    assert server.data == BLOCK * 2
    assert client.names == ["made", "pause", "resume"]
    transport.close()
    await server.lost


async def test_loss_is_healed(hosts):
    left, right, wire = hosts
    chance = random.Random(5)
    carry = wire.carry
    wire.carry = lambda sender, frames: carry(sender, [frame for frame in frames if chance.random() > 0.03])
    _, made = await served(right)
    transport, client = await left.sockets.create_connection(Recorder, right.address, 80)
    transport.write(BLOCK)
    transport.close()
    server = await made
    assert await server.lost is None
    assert server.data == BLOCK
    assert await client.lost is None


async def test_datagrams_and_a_closed_port(hosts):
    left, right, _ = hosts

    class Post(asyncio.DatagramProtocol):
        def __init__(self):
            self.got = asyncio.get_running_loop().create_future()

        def datagram_received(self, data, addr):
            self.got.set_result((data, addr))

        def error_received(self, exc):
            self.got.set_result(exc)

    _, post = await right.sockets.create_datagram_endpoint(Post, local_addr=("::", 53))
    for where in (right.address, right.address6):
        sender, _ = await left.sockets.create_datagram_endpoint(Post, remote_addr=(where, 53))
        sender.sendto(b"question")
        assert await post.got == (b"question", sender.get_extra_info("sockname"))
        post.got = asyncio.get_running_loop().create_future()
        refused, asker = await left.sockets.create_datagram_endpoint(Post, remote_addr=(where, 54))
        refused.sendto(b"question")
        assert isinstance(await asker.got, ConnectionRefusedError)
