"""Libraries nobody changed for us: aiohttp as server and client, aiosmtpd as server, with and without TLS."""

import asyncio
import hashlib
import random
import ssl

import aiohttp
import pytest
from aiohttp import web
from aiosmtpd.smtp import SMTP

from netstack.sockets.aiohttp_connector import StackConnector

BODY = random.Random(3).randbytes(3 << 20)


@pytest.fixture
def contexts(certificate):
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*certificate)
    return server, ssl.create_default_context(cafile=certificate[0])


def connector(net, **options):
    return aiohttp.TCPConnector(**options) if net.name == "kernel" else StackConnector(net, **options)


@pytest.fixture
async def site(net, tmp_path):
    """An aiohttp application on the network; start(ssl, host) returns its port."""
    async def hello(request):
        return web.Response(text=f"hello {request.remote}")

    async def mirror(request):
        return web.Response(body=await request.read())

    async def stream(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for start in range(0, len(BODY), 100_000):
            await response.write(BODY[start:start + 100_000])
        await response.write_eof()
        return response

    async def socket(request):
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for message in ws:
            await ws.send_str(message.data[::-1])
        return ws

    (tmp_path / "file.bin").write_bytes(BODY)
    application = web.Application(client_max_size=1 << 24)
    application.router.add_get("/", hello)
    application.router.add_post("/mirror", mirror)
    application.router.add_get("/stream", stream)
    application.router.add_get("/socket", socket)
    application.router.add_static("/static", tmp_path)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    servers = []

    async def start(ssl=None, host="127.0.0.1"):
        server = await net.create_server(runner.server, host, 0, ssl=ssl)
        servers.append(server)
        return server.sockets[0].getsockname()[1]

    yield start
    for server in servers:
        server.close()
    await runner.cleanup()


async def test_aiohttp_requests(net, site):
    base = f"http://127.0.0.1:{await site()}"
    async with aiohttp.ClientSession(connector=connector(net)) as session:
        for _ in range(3):      # over one kept-alive connection
            async with session.get(base + "/") as response:
                assert response.status == 200
                assert await response.text() == "hello 127.0.0.1"
        async with session.post(base + "/mirror", data=BODY) as response:
            assert await response.read() == BODY
        async with session.get(base + "/stream") as response:
            digest = hashlib.sha256()
            async for chunk in response.content.iter_any():
                digest.update(chunk)
            assert digest.digest() == hashlib.sha256(BODY).digest()
        async with session.get(base + "/none") as response:
            assert response.status == 404


async def test_aiohttp_sends_a_file(net, site):
    base = f"http://127.0.0.1:{await site()}"
    async with (aiohttp.ClientSession(connector=connector(net)) as session,
                session.get(base + "/static/file.bin") as response):
        assert await response.read() == BODY


async def test_aiohttp_websocket(net, site):
    base = f"http://127.0.0.1:{await site()}"
    async with (aiohttp.ClientSession(connector=connector(net)) as session,
                session.ws_connect(base + "/socket") as ws):
        for text in ("abc", "x" * 100_000):
            await ws.send_str(text)
            assert (await ws.receive()).data == text[::-1]


async def test_aiohttp_ipv6(net, site):
    base = f"http://[::1]:{await site(host='::1')}"
    async with aiohttp.ClientSession(connector=connector(net)) as session, session.get(base + "/") as response:
        assert await response.text() == "hello ::1"


async def test_aiohttp_tls(net, site, contexts):
    port = await site(ssl=contexts[0])
    async with aiohttp.ClientSession(connector=connector(net, ssl=contexts[1])) as session:
        async with session.post(f"https://localhost:{port}/mirror", data=BODY) as response:
            assert await response.read() == BODY
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(f"https://localhost:{port}/", server_hostname="elsewhere.example")
    await asyncio.sleep(0.05)
    net.problems.clear()


async def test_aiohttp_concurrent_requests(net, site):
    base = f"http://127.0.0.1:{await site()}"
    async with aiohttp.ClientSession(connector=connector(net, limit=50)) as session:
        async def get():
            async with session.get(base + "/") as response:
                return await response.text()

        assert set(await asyncio.gather(*(get() for _ in range(300)))) == {"hello 127.0.0.1"}


async def test_aiohttp_refused(net):
    server = await net.create_server(asyncio.Protocol, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    async with aiohttp.ClientSession(connector=connector(net)) as session:
        with pytest.raises(aiohttp.ClientConnectorError) as caught:
            await session.get(f"http://127.0.0.1:{port}/")
    assert isinstance(caught.value.os_error, ConnectionRefusedError)


class Mailbox:
    def __init__(self):
        self.mails = []

    async def handle_DATA(self, server, session, envelope):
        self.mails.append((envelope.mail_from, envelope.rcpt_tos, envelope.content, bool(session.ssl)))
        return "250 OK"


async def say(reader, writer, line, code):
    if line:
        writer.write(line + b"\r\n")
    while (answer := await reader.readline())[3:4] == b"-":
        assert answer[:3] == code
    assert answer[:3] == code, answer


@pytest.mark.parametrize("encrypt", [False, True])
async def test_aiosmtpd(net, contexts, encrypt):
    box = Mailbox()
    server = await net.create_server(
        lambda: SMTP(box, hostname="mail.example", tls_context=contexts[0], require_starttls=encrypt),
        "127.0.0.1", 0)
    reader, writer = await net.open_connection(*server.sockets[0].getsockname())
    await say(reader, writer, b"", b"220")
    await say(reader, writer, b"EHLO client.example", b"250")
    if encrypt:
        await say(reader, writer, b"MAIL FROM:<a@example>", b"530")
        await say(reader, writer, b"STARTTLS", b"220")
        await writer.start_tls(contexts[1], server_hostname="localhost")
        await say(reader, writer, b"EHLO client.example", b"250")
    await say(reader, writer, b"MAIL FROM:<a@example>", b"250")
    await say(reader, writer, b"RCPT TO:<b@example>", b"250")
    await say(reader, writer, b"DATA", b"354")
    await say(reader, writer, b"Subject: hi\r\n\r\nbody\r\n.", b"250")
    await say(reader, writer, b"QUIT", b"221")
    assert box.mails == [("a@example", ["b@example"], b"Subject: hi\r\n\r\nbody\r\n", encrypt)]
    writer.close()
    server.close()
