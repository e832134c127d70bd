"""asyncio's streams and TLS on each network."""

import asyncio
import contextlib
import functools
import hashlib
import random
import ssl

import pytest

from tests.netstack.sockets.conftest import Recorder

BLOCK = random.Random(2).randbytes(5 << 20)


@pytest.fixture
def contexts(certificate):
    """(server's, client's) TLS contexts that fit."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*certificate)
    client = ssl.create_default_context(cafile=certificate[0])
    return server, client


def address(server):
    return server.sockets[0].getsockname()[:2]


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def test_lines_and_exact_reads(net):
    async def serve(reader, writer):
        assert await reader.readline() == b"first line\n"
        assert await reader.readexactly(5) == b"12345"
        assert await reader.readuntil(b"END") == b"and thenEND"
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await reader.readexactly(100)
        writer.write(b"rest was " + caught.value.partial)
        writer.close()

    server = await net.start_server(serve, "127.0.0.1", 0)
    reader, writer = await net.open_connection(*address(server))
    writer.write(b"first line\n1234")
    await writer.drain()
    writer.writelines([b"5and ", b"thenEND", b"tail"])
    writer.write_eof()
    assert await reader.read() == b"rest was tail"
    assert reader.at_eof()
    writer.close()
    await writer.wait_closed()
    server.close()


async def test_megabytes_there_and_back(net):
    server = await net.start_server(echo, "127.0.0.1", 0)
    reader, writer = await net.open_connection(*address(server))

    async def send():
        for start in range(0, len(BLOCK), 100_000):
            writer.write(BLOCK[start:start + 100_000])
            await writer.drain()
        writer.write_eof()

    _, received = await asyncio.gather(send(), reader.read())
    assert hashlib.sha256(received).digest() == hashlib.sha256(BLOCK).digest()
    writer.close()
    server.close()


async def test_slow_reader_stops_the_writer(net):
    sent = 0

    async def serve(reader, writer):
        nonlocal sent
        while sent < 64 << 20:
            writer.write(bytes(1 << 20))
            await writer.drain()
            sent += 1 << 20
        writer.close()

    server = await net.start_server(serve, "127.0.0.1", 0)
    reader, writer = await net.open_connection(*address(server))
    await reader.readexactly(1000)
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.05)
    assert sent < 48 << 20
    received = 1000
    while data := await reader.read(1 << 20):
        received += len(data)
    assert received == sent == 64 << 20
    writer.close()
    server.close()


async def test_writer_gets_the_reset(net):
    server = await net.start_server(lambda reader, writer: net.send_reset(writer.transport), "127.0.0.1", 0)
    reader, writer = await net.open_connection(*address(server))
    with pytest.raises(ConnectionResetError):
        await reader.read()
    with pytest.raises(ConnectionResetError):
        await writer.drain()
    writer.close()
    with pytest.raises(ConnectionResetError):
        await writer.wait_closed()
    server.close()


async def test_refused(net):
    server = await net.start_server(echo, "127.0.0.1", 0)
    where = address(server)
    server.close()
    with pytest.raises(ConnectionRefusedError):
        await net.open_connection(*where)


async def test_raising_handler_is_reported_and_closes_its_connection(ours):
    async def serve(reader, writer):
        await reader.readline()
        raise ZeroDivisionError

    server = await ours.start_server(serve, "127.0.0.1", 0)
    reader, writer = await ours.open_connection(*address(server))
    writer.write(b"go\n")
    assert await reader.read() == b""
    assert [type(problem["exception"]) for problem in ours.problems] == [ZeroDivisionError]
    ours.problems.clear()
    writer.close()


# TLS


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_tls_echo(net, contexts, host):
    server = await net.start_server(echo, host, 0, ssl=contexts[0])
    reader, writer = await net.open_connection(*address(server), ssl=contexts[1], server_hostname="localhost")
    assert writer.get_extra_info("peername")[:2] == address(server)
    assert writer.get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")
    assert writer.get_extra_info("cipher")
    received, _ = await asyncio.gather(reader.readexactly(len(BLOCK)), send_all(writer))
    assert received == BLOCK
    writer.close()
    await writer.wait_closed()
    server.close()


async def send_all(writer):
    for start in range(0, len(BLOCK), 100_000):
        writer.write(BLOCK[start:start + 100_000])
        await writer.drain()


async def test_tls_with_the_wrong_name(net, contexts):
    server = await net.start_server(echo, "127.0.0.1", 0, ssl=contexts[0])
    with pytest.raises(ssl.SSLCertVerificationError):
        await net.open_connection(*address(server), ssl=contexts[1], server_hostname="elsewhere.example")
    server.close()
    await asyncio.sleep(0.05)
    net.problems.clear()        # the server's side of it


async def test_tls_against_plain(net, contexts):
    server = await net.create_server(lambda: Recorder(on_data=lambda me, _: me.transport.write(b"no TLS here\r\n")),
                                     "127.0.0.1", 0)
    with pytest.raises(ssl.SSLError):
        await net.open_connection(*address(server), ssl=contexts[1], server_hostname="localhost")
    server.close()


async def test_plain_against_tls_costs_only_its_connection(net, contexts):
    server = await net.start_server(echo, "127.0.0.1", 0, ssl=contexts[0])
    reader, writer = await net.open_connection(*address(server))
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    with contextlib.suppress(ConnectionResetError):
        await reader.read()
    writer.close()
    net.problems.clear()
    reader, writer = await net.open_connection(*address(server), ssl=contexts[1], server_hostname="localhost")
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    writer.close()
    await writer.wait_closed()
    server.close()


async def test_tls_handshake_timeout(net, contexts):
    server = await net.create_server(functools.partial(Recorder, keep_open=True), "127.0.0.1", 0)
    with pytest.raises(ConnectionAbortedError):
        await net.open_connection(*address(server), ssl=contexts[1], server_hostname="localhost",
                                  ssl_handshake_timeout=0.05)
    server.close()


async def test_start_tls_on_streams(net, contexts):
    async def serve(reader, writer):
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go ahead\n")
        await writer.drain()
        await writer.start_tls(contexts[0])
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    server = await net.start_server(serve, "127.0.0.1", 0)
    reader, writer = await net.open_connection(*address(server))
    writer.write(b"STARTTLS\n")
    assert await reader.readline() == b"go ahead\n"
    await writer.start_tls(contexts[1], server_hostname="localhost")
    assert writer.get_extra_info("ssl_object")
    writer.write(b"in secret\n")
    assert await reader.readline() == b"in secret\n"
    writer.close()
    server.close()


async def test_start_tls_wants_a_context_and_a_transport(net, contexts):
    server = await net.create_server(Recorder, "127.0.0.1", 0)
    transport, client = await net.create_connection(Recorder, *address(server))
    with pytest.raises(TypeError):
        await net.start_tls(transport, client, None)
    with pytest.raises(TypeError):
        await net.start_tls(object(), client, contexts[1])
    transport.close()
    await client.lost
    server.close()
