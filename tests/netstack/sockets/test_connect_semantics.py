"""create_connection: names, sources, several addresses, and giving up."""

import asyncio
import errno
import socket

import pytest

from netstack.sockets import addresses
from tests.netstack.sockets.conftest import Recorder, until
from tests.netstack.sockets.fake_core import SILENT, UNREACHABLE


def info(host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", addresses.socket_address(host, port)


async def listening(net, host="127.0.0.1"):
    server = await net.create_server(Recorder, host, 0)
    return server, server.sockets[0].getsockname()[1]


async def test_a_name_is_resolved(net):
    server, port = await listening(net)
    transport, _ = await net.create_connection(Recorder, "localhost", port, family=socket.AF_INET)
    assert transport.get_extra_info("peername") == ("127.0.0.1", port)
    transport.close()
    server.close()


async def test_an_unknown_name(net):
    with pytest.raises(socket.gaierror):
        await net.create_connection(Recorder, "name.invalid", 1)


async def test_the_port_may_be_text(net):
    server, port = await listening(net)
    transport, _ = await net.create_connection(Recorder, "127.0.0.1", str(port))
    transport.close()
    server.close()


async def test_local_address(net):
    server, port = await listening(net)
    transport, _ = await net.create_connection(Recorder, "127.0.0.1", port, local_addr=("127.0.0.1", 0))
    assert transport.get_extra_info("sockname")[0] == "127.0.0.1"
    transport.close()
    with pytest.raises(OSError, match=r".") as caught:
        await net.create_connection(Recorder, "127.0.0.1", port, local_addr=("203.0.113.9", 0))
    assert caught.value.errno == errno.EADDRNOTAVAIL
    server.close()


@pytest.mark.parametrize("arguments", [
    {}, {"host": "127.0.0.1", "port": 1, "server_hostname": "x"}, {"port": 1, "ssl": True},
    {"host": "127.0.0.1", "port": 1, "ssl_handshake_timeout": 1.0},
])
async def test_senseless_arguments(net, arguments):
    with pytest.raises(ValueError):
        await net.create_connection(Recorder, **arguments)


async def test_literals_need_no_resolver(ours):
    async def resolver(*args, **kwargs):
        raise AssertionError("asked")

    ours.resolver = resolver
    for host in ("127.0.0.1", "::1"):
        server, port = await listening(ours, host)
        transport, _ = await ours.create_connection(Recorder, host, port)
        transport.close()
        server.close()
    with pytest.raises(AssertionError, match="asked"):
        await ours.create_connection(Recorder, "localhost", 1)


async def test_the_second_address_answers(ours):
    server, port = await listening(ours)

    async def resolver(*args, **kwargs):
        return [info("::1", port), info("127.0.0.1", port)]

    ours.resolver = resolver
    transport, _ = await ours.create_connection(Recorder, "two.example", port)
    assert transport.get_extra_info("peername") == ("127.0.0.1", port)
    transport.close()
    server.close()


async def test_none_of_two_addresses_answers(ours):
    async def resolver(*args, **kwargs):
        return [info("::1", 1), info("127.0.0.1", 1)]

    ours.resolver = resolver
    with pytest.raises(OSError, match=r"\[::1\]:1.*127\.0\.0\.1:1"):
        await ours.create_connection(Recorder, "two.example", 1)
    with pytest.raises(ExceptionGroup) as caught:
        await ours.create_connection(Recorder, "two.example", 1, all_errors=True)
    assert [type(exc) for exc in caught.value.exceptions] == [ConnectionRefusedError] * 2


async def test_no_address_at_all(ours):
    async def resolver(*args, **kwargs):
        return []

    ours.resolver = resolver
    with pytest.raises(OSError, match="empty list"):
        await ours.create_connection(Recorder, "two.example", 1)


async def test_no_local_address_of_that_family(ours):
    with pytest.raises(OSError, match="family"):
        await ours.create_connection(Recorder, "127.0.0.1", 1, local_addr=("::1", 0))


async def test_no_route(ours):
    ours_has_none = UNREACHABLE if ours.name == "fake" else "198.51.100.1"
    with pytest.raises(OSError, match=r"198\.51\.100\.1:80 failed: network is unreachable") as caught:
        await ours.create_connection(Recorder, ours_has_none, 80)
    assert caught.value.errno == errno.ENETUNREACH
    assert not ours.connections


async def test_cancelled_during_the_handshake(fake):
    task = asyncio.create_task(fake.create_connection(Recorder, SILENT, 80))
    await until(lambda: fake.connections)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not fake.connections
    assert not fake.tcp.ends, "the core still has it"


async def test_timed_out_by_the_core(fake):
    task = asyncio.create_task(fake.create_connection(Recorder, SILENT, 80))
    await until(lambda: fake.connections)
    (end,) = fake.tcp.ends.values()
    fake.tcp.die(end, errno.ETIMEDOUT)
    fake.kick()
    with pytest.raises(TimeoutError, match=r"192\.0\.2\.1:80 failed: connection timed out") as caught:
        await task
    assert caught.value.errno == errno.ETIMEDOUT
    assert not fake.tcp.ends


async def test_closing_the_stack_ends_attempts(fake):
    task = asyncio.create_task(fake.create_connection(Recorder, SILENT, 80))
    await until(lambda: fake.connections)
    fake.close()
    with pytest.raises(ConnectionAbortedError):
        await task


async def test_happy_eyeballs_takes_the_first_that_answers(fake):
    server, port = await listening(fake)

    async def resolver(*args, **kwargs):
        return [info(SILENT, port), info("198.51.100.1", port), info("127.0.0.1", port)]

    fake.resolver = resolver
    transport, _ = await fake.create_connection(Recorder, "many.example", port, happy_eyeballs_delay=0.01)
    assert transport.get_extra_info("peername") == ("127.0.0.1", port)
    assert len(fake.connections) <= 2, "the silent attempt must be gone"
    transport.close()
    server.close()


async def test_data_that_comes_with_the_handshake_is_delivered_after_return(ours):
    class Greeter(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.write(b"220 hello")
            transport.close()

    server = await ours.create_server(Greeter, "127.0.0.1", 0)
    _, client = await ours.create_connection(Recorder, *server.sockets[0].getsockname())
    assert client.log == ["made"]
    await client.lost
    assert client.log == ["made", b"220 hello", "eof", "lost"]


@pytest.mark.parametrize(("host", "family"), [
    ("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6), ("fe80::1%eth0", socket.AF_INET6), ("localhost", 0),
    ("127.1", 0), ("", 0), ("1.2.3.4.5", 0), (":", 0), ("a\0b", 0), ("x:y", 0),
])
def test_what_is_a_literal(host, family):
    assert addresses.family_of(host) == family


@pytest.mark.parametrize(("port", "number"), [(80, 80), ("80", 80), (b"80", 80), (None, 0), ("", 0), ("http", None)])
def test_port_numbers(port, number):
    assert addresses.port_number(port) == number


def test_interleaving_of_families():
    v6 = [info(f"fd00::{n}", 1) for n in range(1, 4)]
    v4 = [info(f"10.0.0.{n}", 1) for n in range(1, 3)]
    assert addresses.interleave(v6 + v4, 1) == [v6[0], v4[0], v6[1], v4[1], v6[2]]
    assert addresses.interleave(v6 + v4, 2) == [v6[0], v6[1], v4[0], v6[2], v4[1]]
