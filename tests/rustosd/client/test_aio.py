"""asyncio on our sockets: the same programs and the same order of callbacks as on the kernel's, under both loops."""

import asyncio
import socket
import ssl
import struct
import subprocess
import sys
import threading

import pytest

from rustosd.client import aio
from tests.netstack.sockets.conftest import Recorder, until
from tests.peers.conftest import V4, V6
from tests.rustosd.client import echo_program
from tests.rustosd.handoff.conftest import inside

pytestmark = pytest.mark.usefixtures("our_daemon")


async def test_callbacks_come_in_the_order_of_asyncio(joined):
    client, server = await joined()
    client.transport.write(b"hello ")
    client.transport.writelines([b"wor", b"ld"])
    client.transport.close()
    assert await server.lost is None
    assert await client.lost is None
    assert server.log == ["made", b"hello world", "eof", "lost"]
    assert client.log == ["made", "lost"]


async def test_names_and_options(joined, host, net):
    client, server = await joined()
    assert client.transport.get_extra_info("peername") == server.transport.get_extra_info("sockname")
    assert client.transport.get_extra_info("sockname") == server.transport.get_extra_info("peername")
    assert client.transport.get_extra_info("peername")[0] == host
    assert client.transport.get_extra_info("nothing", 7) == 7
    sock = client.transport.get_extra_info("socket")
    assert sock.family == (socket.AF_INET6 if ":" in host else socket.AF_INET)
    assert sock.type == socket.SOCK_STREAM
    assert sock.getpeername() == client.transport.get_extra_info("peername")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    assert client.transport.get_protocol() is client
    client.transport.close()
    await client.lost
    assert client.transport.get_extra_info("peername")[0] == host
    assert client.transport.is_closing()


async def test_half_a_connection_still_answers(joined):
    client, server = await joined(server_factory=lambda: Recorder(keep_open=True))
    assert client.transport.can_write_eof()
    client.transport.write(b"request")
    client.transport.write_eof()
    await until(lambda: "eof" in server.log)
    server.transport.write(b"the answer")
    server.transport.close()
    await client.lost
    assert client.log == ["made", b"the answer", "eof", "lost"]


async def test_a_reset_is_the_exception_of_connection_lost(joined, net):
    client, server = await joined()
    sock = server.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.transport.abort()
    assert isinstance(await client.lost, ConnectionResetError)


async def test_writing_is_paused_while_the_other_does_not_read(joined):
    client, server = await joined()
    server.transport.pause_reading()
    total = 0
    while "pause" not in client.log:
        client.transport.write(bytes(1 << 20))
        total += 1 << 20
        await asyncio.sleep(0.001)
        assert total < 64 << 20
    server.transport.resume_reading()
    await until(lambda: "resume" in client.log, 30)
    client.transport.close()
    await server.lost
    assert len(server.data) == total


async def test_refused_and_unreachable(net, host):
    server = await net.create_server(Recorder, host, 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(OSError):
        await net.create_server(Recorder, host, port)
    server.close()
    with pytest.raises(ConnectionRefusedError):
        await net.create_connection(Recorder, host, port)


async def test_tls_on_top(net, host, certificate):
    cert, key = certificate
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(cert, key)
    client_side = ssl.create_default_context(cafile=cert)

    async def echo(reader, writer):
        writer.write(await reader.readexactly(100_000))
        writer.close()

    server = await net.start_server(echo, host, 0, ssl=server_side)
    reader, writer = await net.open_connection(host, server.sockets[0].getsockname()[1], ssl=client_side,
                                               server_hostname="localhost")
    assert writer.get_extra_info("ssl_object") is not None
    assert writer.get_extra_info("peername")[0] == host
    writer.write(b"x" * 100_000)
    assert await reader.read(-1) == b"x" * 100_000
    writer.close()
    server.close()


async def test_a_connection_of_linux_is_served(peer):
    async def shout(reader, writer):
        writer.write((await reader.read(100)).upper())
        writer.close()

    server = await aio.start_server(shout, V4, 0)
    sock = inside(peer.netns.path, lambda: socket.socket())
    with sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (V4, server.sockets[0].getsockname()[1]))
        await loop.sock_sendall(sock, b"quiet")
        assert await loop.sock_recv(sock, 100) == b"QUIET"
    server.close()


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self):
        self.received = asyncio.Queue()

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        self.received.put_nowait((data, address))

    def error_received(self, error):
        self.received.put_nowait(type(error))

    def connection_lost(self, error):
        self.received.put_nowait("lost")


async def test_datagrams(net, host):
    _, server = await net.create_datagram_endpoint(Datagrams, local_addr=(host, 0))
    address = server.transport.get_extra_info("sockname")
    transport, client = await net.create_datagram_endpoint(Datagrams, remote_addr=address[:2])
    transport.sendto(b"ping")
    data, source = await asyncio.wait_for(server.received.get(), 10)
    assert (data, source[:2]) == (b"ping", transport.get_extra_info("sockname")[:2])
    server.transport.sendto(b"pong", source)
    assert (await asyncio.wait_for(client.received.get(), 10))[0] == b"pong"
    server.transport.close()
    assert await server.received.get() == "lost"
    transport.sendto(b"anybody?")
    assert await asyncio.wait_for(client.received.get(), 10) is ConnectionRefusedError
    with pytest.raises(ValueError):
        transport.sendto(b"x", ("192.0.2.1", 1))
    transport.close()
    assert await client.received.get() == "lost"


@pytest.mark.parametrize("host", [V4, V6])
async def test_many_datagrams_are_all_sent_in_the_end(host):
    received = 0

    class Sink(asyncio.DatagramProtocol):
        def datagram_received(self, data, address):
            nonlocal received
            received += 1

    sink, _ = await aio.create_datagram_endpoint(Sink, local_addr=(host, 0))
    transport, _ = await aio.create_datagram_endpoint(Datagrams, remote_addr=sink.get_extra_info("sockname")[:2])
    for start in range(0, 1000, 50):
        for _ in range(50):
            transport.sendto(bytes(1000))
        await until(lambda: received >= start + 50)     # noqa: B023
    assert transport.get_write_buffer_size() == 0
    transport.close()
    sink.close()


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_the_same_program_runs_by_one_changed_import(family):
    results = []

    def run(module, host):
        results.append(echo_program.run(module, host))

    for module, host in ((asyncio, "127.0.0.1" if family == "ipv4" else "::1"), (aio, V4 if family == "ipv4" else V6)):
        thread = threading.Thread(target=run, args=(module, host))      # which has no loop yet
        thread.start()
        thread.join(60)
    assert results[0] == results[1]
    assert results[0][-2:] == ["ConnectionRefusedError", "timeout"]


def test_the_package_needs_the_standard_library_alone():
    program = ("import sys; before = set(sys.modules); import rustosd.client, rustosd.client.aio\n"
               "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))")
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['rustosd']"


async def test_servers_share_a_port_if_all_want_to(net, host):
    seen = [], []

    def factory(number):
        def make():
            seen[number].append(Recorder())
            return seen[number][-1]
        return make

    first = await net.create_server(factory(0), host, 0, reuse_port=True)
    port = first.sockets[0].getsockname()[1]
    second = await net.create_server(factory(1), host, port, reuse_port=True)
    with pytest.raises(OSError, match="address already in use"):
        await net.create_server(factory(0), host, port)
    clients = [(await net.create_connection(Recorder, host, port))[0] for _ in range(30)]
    await until(lambda: sum(map(len, seen)) == 30)
    assert all(seen)
    for one in (first, second, *clients):
        one.close()
