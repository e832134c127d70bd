"""The HTTP server as curl and others see it, and its connection alone on a transport of our own."""

import asyncio
import hashlib
import http.client
import re
import socket
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustosd.services import http as http_service
from rustosd.services.http import HttpConnection, HttpService, Response, UnixHttpService

from .conftest import HOSTS, PATIENCE_S, FakeLoop, FakeTransport, run, until

ARGUMENTS = {"pages": {
    "/": lambda: Response(200, b"<!doctype html>hello", "text/html; charset=utf-8", (("X-Test", "yes"),)),
    "/metrics": lambda: Response(200, b"up 1\n", "text/plain; version=0.0.4; charset=utf-8"),
}}


def pattern(start: int, length: int) -> bytes:
    return bytes(i % 251 for i in range(start, start + length))


def url(service: HttpService, path: str) -> str:
    host = service.hosts[0]
    return f"http://{f'[{host}]' if ':' in host else host}:{service.port}{path}"


async def curl(*arguments: str) -> bytes:
    status, out, err = await run("curl", "--silent", "--show-error", "--max-time", "50", "--globoff", *arguments)
    assert status == 0, err
    return out


async def exchange(service: HttpService, octets: bytes, half_close: bool = True) -> bytes:
    """Everything the server says to these octets until it closes."""
    reader, writer = await asyncio.open_connection(service.hosts[0], service.port)
    writer.write(octets)
    if half_close:
        writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
    writer.close()
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


# With curl


@pytest.mark.parametrize("host", HOSTS)
async def test_curl_gets_a_hundred_megabytes_unharmed(serve, host):
    service = await serve(HttpService, hosts=(host,), **ARGUMENTS)
    size = 100_000_000
    block = pattern(0, 251 * 4000)
    expected = hashlib.sha256()
    for start in range(0, size, len(block)):
        expected.update(block[: size - start])
    body = await curl(url(service, f"/bytes/{size}"))
    assert len(body) == size
    assert hashlib.sha256(body).digest() == expected.digest()


async def test_curl_gets_a_page_with_its_headers(serve):
    service = await serve(HttpService, **ARGUMENTS)
    answer = await curl("--include", url(service, "/?query#fragment"))
    assert statuses(answer) == [200] and answer.endswith(b"<!doctype html>hello")
    assert b"Content-Type: text/html; charset=utf-8\r\n" in answer and b"X-Test: yes\r\n" in answer
    head = await curl("--head", url(service, "/"))
    assert b"Content-Length: 20\r\n" in head and b"hello" not in head


@pytest.mark.parametrize("path", [
    "//", "/./", "/..", "/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/status.json/", "/STATUS.JSON", "/metrics%00", "/%",
    "/metrics\\", "/bytes/../metrics", "/<script>alert(1)</script>", "/" + "a" * 8000, "/healthz/..", "/bytes/", "/bytes/-1",
])
async def test_a_path_that_is_not_there_is_a_404_that_repeats_nothing(serve, path):
    service = await serve(HttpService, **ARGUMENTS)
    answer = await exchange(service, f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    assert statuses(answer) == [404]
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body.startswith((b"not here", b"/bytes/N takes")) and b"text/plain" in head and len(answer) < 400


async def test_without_the_pattern_there_is_none(serve):
    service = await serve(HttpService, pattern=False, **ARGUMENTS)
    assert b" 404 " in await curl("--include", url(service, "/bytes/5"))


# On a unix socket


async def test_curl_reads_pages_from_a_unix_socket(tmp_path):
    path = tmp_path / "metrics.sock"
    for _ in range(2):          # what the first one leaves does not hinder the second
        service = UnixHttpService(path, "choose another", **ARGUMENTS)
        await service.start(asyncio.get_running_loop())
        assert path.stat().st_mode & 0o777 == 0o660
        assert await curl("--unix-socket", str(path), "http://any/metrics") == b"up 1\n"
        assert b" 404 " in await curl("--include", "--unix-socket", str(path), "http://any/bytes/5")
        with pytest.raises(OSError, match=f"another daemon serves {path}; stop it, or choose another"):
            await UnixHttpService(path, "choose another", **ARGUMENTS).start(asyncio.get_running_loop())
        await service.stop(0)
        assert list(tmp_path.iterdir()) == []
    path.write_text("precious")
    with pytest.raises(OSError, match="is there and no socket; move it away, or choose another"):
        await UnixHttpService(path, "choose another", **ARGUMENTS).start(asyncio.get_running_loop())
    assert path.read_text() == "precious"
    with pytest.raises(OSError, match="No such file or directory; choose another"):
        await UnixHttpService(tmp_path / "no" / "x", "choose another", **ARGUMENTS).start(asyncio.get_running_loop())


async def test_the_socket_of_a_dead_process_is_replaced(tmp_path):
    path = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    service = UnixHttpService(path, "choose another", **ARGUMENTS)
    await service.start(asyncio.get_running_loop())
    assert await curl("--unix-socket", str(path), "http://any/healthz") == b"ok\n"
    await service.stop(0)


# With curl, on the kernel's TCP


async def test_curl_metrics_health_and_absence(serve):
    service = await serve(HttpService, **ARGUMENTS)
    show = ("--write-out", " %{http_code} %{content_type}")
    assert await curl(*show, url(service, "/metrics")) == b"up 1\n 200 text/plain; version=0.0.4; charset=utf-8"
    assert (await curl(*show, url(service, "/healthz"))).startswith(b"ok\n 200")
    assert b" 404 " in await curl(*show, url(service, "/nothing"))
    assert b" 404 " in await curl(*show, url(service, f"/bytes/{2**40 + 1}"))
    assert b" 404 " in await curl(*show, url(service, "/bytes/five"))


@pytest.mark.parametrize(
    ("span", "start", "length"),
    [("0-0", 0, 1), ("250-252", 250, 3), ("999-", 999, 1), ("900-5000", 900, 100), ("-7", 993, 7), ("-5000", 0, 1000)],
)
async def test_curl_ranges(serve, span, start, length):
    service = await serve(HttpService, **ARGUMENTS)
    answer = await curl("--include", "--range", span, url(service, "/bytes/1000"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert statuses(head) == [206]
    assert f"Content-Range: bytes {start}-{start + length - 1}/1000".encode() in head
    assert body == pattern(start, length)


async def test_curl_range_far_into_a_terabyte(serve):
    service = await serve(HttpService, **ARGUMENTS)
    start = 2**40 - 1000
    body = await curl("--range", f"{start}-", url(service, f"/bytes/{2**40}"))
    assert body == pattern(start, 1000)


async def test_curl_unsatisfiable_range(serve):
    service = await serve(HttpService, **ARGUMENTS)
    answer = await curl("--include", "--range", "1000-", url(service, "/bytes/1000"))
    assert statuses(answer) == [416]
    assert b"Content-Range: bytes */1000\r\n" in answer


async def test_curl_resumes_a_download(serve, tmp_path):
    service = await serve(HttpService, **ARGUMENTS)
    partial = tmp_path / "partial"
    partial.write_bytes(pattern(0, 12345))
    await curl("--continue-at", "-", "--output", str(partial), url(service, "/bytes/400000"))
    assert partial.read_bytes() == pattern(0, 400000)


async def test_curl_head_says_the_length_and_sends_nothing(serve):
    service = await serve(HttpService, **ARGUMENTS)
    head = await curl("--head", url(service, f"/bytes/{2**40}"), url(service, "/healthz"))
    assert statuses(head) == [200, 200]
    assert f"Content-Length: {2**40}\r\n".encode() in head
    assert re.search(rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n", head)
    assert b"Server: rustosd\r\n" in head
    assert service.events["accepted"] == 1, "the connection is kept"


async def test_curl_post_is_told_what_is_allowed(serve):
    service = await serve(HttpService, **ARGUMENTS)
    small = await curl("--include", "--data", "a=b", url(service, "/"))
    assert statuses(small) == [405]
    assert b"Allow: GET, HEAD\r\n" in small and b"Connection: close" not in small
    large = await curl("--include", "--header", "Expect:", "--data-binary", "x" * 100_000, url(service, "/"))
    assert statuses(large) == [405]
    assert b"Connection: close\r\n" in large


async def test_curl_several_requests_on_one_connection(serve):
    service = await serve(HttpService, **ARGUMENTS)
    paths = [url(service, f"/bytes/{n}") for n in (0, 1, 251, 1_000_000)]
    assert await curl(*paths) == b"".join(pattern(0, n) for n in (0, 1, 251, 1_000_000))
    assert service.events["accepted"] == 1


async def test_pythons_client_keeps_its_connection(serve):
    service = await serve(HttpService, **ARGUMENTS)

    def converse():
        client = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
        got = []
        for method, path, body in (("GET", "/bytes/600", None), ("POST", "/", b"x" * 500), ("GET", "/healthz", None)):
            client.request(method, path, body)
            response = client.getresponse()
            got.append((response.status, response.read()))
        client.close()
        return got

    got = await asyncio.get_running_loop().run_in_executor(None, converse)
    assert got == [(200, pattern(0, 600)), (405, b"only GET and HEAD here\n"), (200, b"ok\n")]
    assert service.events["accepted"] == 1


# Over real sockets, with requests no client sends


async def test_pipelined_requests_are_answered_in_order(serve):
    service = await serve(HttpService, **ARGUMENTS)
    sizes = [*range(0, 3000, 7), 700_000, 3]
    requests = b"".join(b"GET /bytes/%d HTTP/1.1\r\nHost: h\r\n\r\n" % n for n in sizes)
    answer = await exchange(service, requests)
    for size in sizes:
        head, _, answer = answer.partition(b"\r\n\r\n")
        assert f"Content-Length: {size}\r\n".encode() in head
        assert answer[:size] == pattern(0, size)
        answer = answer[size:]
    assert answer == b""


async def test_an_http_1_0_client_gets_what_it_knows(serve):
    service = await serve(HttpService, **ARGUMENTS)
    request = b"GET /healthz HTTP/1.0\r\n"
    kept = await exchange(service, request + b"Connection: keep-alive\r\n\r\n" + request + b"\r\n")
    assert statuses(kept) == [200, 200]
    first, second = kept.split(b"ok\n", 1)
    assert b"Connection: keep-alive\r\n" in first
    assert b"Connection: close\r\n" in second


async def test_a_slow_reader_holds_no_more_than_a_block(serve):
    service = await serve(HttpService, **ARGUMENTS)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port, limit=1024)
    writer.write(b"GET /bytes/1000000000 HTTP/1.1\r\nHost: h\r\n\r\n" * 1000)
    await reader.readuntil(b"\r\n\r\n")
    await asyncio.sleep(0.2)
    (connection,) = service._connections
    assert connection.transport.get_write_buffer_size() < 1024 * 1024
    assert len(connection.buffer) < 1024 * 1024
    writer.transport.abort()
    await until(lambda: service.connections() == 0)


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70000, 413),
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n", 413),
        (b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", 405),
        (b"CONNECT host:80 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 405),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.0\n\n", 400),
        (b"GET / HTTP/3.0\r\n\r\n", 505),
        (b"X" * 20000, 414),
        (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * 5000, 431),
    ],
)
async def test_what_is_refused_is_answered_once_and_closed(serve, octets, status):
    service = await serve(HttpService, **ARGUMENTS)
    smuggled = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"
    answer = await exchange(service, octets + smuggled)
    assert statuses(answer) == [status]
    assert b"Connection: close\r\n" in answer


async def test_a_refusal_reaches_a_peer_that_goes_on_sending(serve):
    service = await serve(HttpService, **ARGUMENTS)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\n")
    for _ in range(20):
        writer.write(bytes(10_000))
        await asyncio.sleep(0.01)
    assert statuses(await asyncio.wait_for(reader.read(), PATIENCE_S)) == [405]
    writer.close()


async def test_a_small_body_is_drained_and_the_connection_lives(serve):
    service = await serve(HttpService, **ARGUMENTS)
    body = b"GET /hidden HTTP/1.1\r\nHost: h\r\n\r\n"
    first = b"GET /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = await exchange(service, first + body + b"GET /bytes/2 HTTP/1.1\r\nHost: h\r\n\r\n")
    assert statuses(answer) == [200, 200]
    assert answer.endswith(b"\r\n\r\n\x00\x01")


async def test_a_dribbled_request_times_out_with_408(serve):
    service = await serve(HttpService, idle_s=0.4, **ARGUMENTS)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    reading = asyncio.ensure_future(reader.read())
    for octet in b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"y" * 100:
        if reading.done():
            break
        writer.write(bytes([octet]))
        await asyncio.sleep(0.05)
    assert statuses(await asyncio.wait_for(reading, PATIENCE_S)) == [408]
    writer.close()


async def test_an_idle_connection_is_closed_without_a_word(serve):
    service = await serve(HttpService, idle_s=0.2, **ARGUMENTS)
    assert await exchange(service, b"", half_close=False) == b""
    assert statuses(await exchange(service, b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n", half_close=False)) == [200]


async def test_a_reader_that_stops_is_aborted(serve):
    service = await serve(HttpService, idle_s=0.3, **ARGUMENTS)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port, limit=1024)
    writer.write(b"GET /bytes/1000000000 HTTP/1.1\r\nHost: h\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    await until(lambda: service.connections() == 0)
    assert service.events["expired"] == 1
    writer.transport.abort()


async def test_too_many_connections_are_told_so(serve):
    service = await serve(HttpService, max_connections=1, **ARGUMENTS)
    _, held = await asyncio.open_connection("127.0.0.1", service.port)
    await until(lambda: service.connections() == 1)
    assert statuses(await exchange(service, b"", half_close=False)) == [503]
    held.close()


async def test_a_failing_callback_is_a_500_and_the_service_goes_on(serve):
    def broken():
        raise RuntimeError("no metrics today")

    service = await serve(HttpService, pages={"/metrics": broken})
    requests = [b"GET %s HTTP/1.1\r\nHost: h\r\n\r\n" % path for path in (b"/metrics", b"/healthz")]
    answer = await exchange(service, b"".join(requests))
    assert statuses(answer) == [500, 200]
    assert b"no metrics today" not in answer


async def test_stop_finishes_the_response_in_hand(serve):
    service = await serve(HttpService, **ARGUMENTS)
    size = 50_000_000
    _, idle = await asyncio.open_connection("127.0.0.1", service.port)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"GET /bytes/%d HTTP/1.1\r\nHost: h\r\n\r\n" % size)
    await reader.readuntil(b"\r\n\r\n")
    stopping = asyncio.ensure_future(service.stop(20))
    body = await asyncio.wait_for(reader.read(), PATIENCE_S)
    await stopping
    assert len(body) == size
    assert service.connections() == 0
    writer.close()
    idle.close()


# Alone, on a transport of our own


def connect(room: float = float("inf"), **arguments) -> tuple[HttpConnection, FakeTransport]:
    service = HttpService(**ARGUMENTS, **arguments)
    service.loop = FakeLoop()
    service._date = (2**62, "Thu, 01 Jan 1970 00:00:00 GMT")
    service.date = lambda: "Thu, 01 Jan 1970 00:00:00 GMT"
    connection = HttpConnection(service)
    return connection, FakeTransport(connection, room)


def feed(octets: bytes, cuts: list[int], room: float = float("inf")) -> tuple[bytes, bool]:
    """What the connection writes, and whether it ended, when the octets come cut like this."""
    connection, transport = connect(room)
    edges = sorted({0, len(octets), *(cut % (len(octets) + 1) for cut in cuts)})
    pending = [octets[a:b] for a, b in pairwise(edges)]
    while pending:
        if transport.reading and not transport.closing:
            connection.data_received(pending.pop(0))
        elif transport.closing:
            break
        connection.service.loop.turn()
        transport.drain()
    for _ in range(10_000):
        connection.service.loop.turn()
        if not transport.write_paused:
            break
        transport.drain()
    assert not transport.write_paused
    return bytes(transport.written), transport.closing or transport.ended


PIECES = st.sampled_from(
    [
        b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /bytes/1000 HTTP/1.1\r\nHost: h\r\nRange: bytes=3-\r\n\r\n",
        b"GET /bytes/600000 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"HEAD /bytes/9 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nabcde",
        b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"GET /healthz HTTP/1.0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\r\n",
        b"\n",
        b"GET ",
        b"\x00\xff",
    ]
)
STREAMS = st.lists(st.one_of(PIECES, st.binary(max_size=12)), max_size=6).map(b"".join)


@settings(deadline=None)
@given(STREAMS, st.lists(st.integers(0, 10_000), max_size=20))
def test_answers_do_not_depend_on_how_the_octets_are_cut(octets, cuts):
    assert feed(octets, cuts) == feed(octets, [])


@settings(deadline=None)
@given(STREAMS, st.lists(st.integers(0, 10_000), max_size=5), st.integers(0, 400_000))
def test_answers_do_not_depend_on_how_fast_they_are_read(octets, cuts, room):
    assert feed(octets, cuts, room) == feed(octets, [])


@settings(deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 3000))
def test_every_stretch_of_the_pattern(start, length):
    connection, transport = connect()
    connection.position, connection.remaining = start, length
    connection.pump()
    assert transport.written == pattern(start, length)


def test_pipelined_requests_wait_while_the_peer_does_not_read():
    connection, transport = connect(room=1000)
    request = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"
    connection.data_received(request * 2000)
    connection.service.loop.turn()
    assert len(statuses(bytes(transport.written))) < 20
    assert not transport.reading, "it stops reading, too"
    while transport.write_paused:
        transport.drain()
        connection.service.loop.turn()
    assert len(statuses(bytes(transport.written))) == 2000
    assert transport.reading


def test_one_connection_yields_to_the_others():
    connection, transport = connect()
    connection.data_received(b"GET /bytes/1000000000 HTTP/1.1\r\nHost: h\r\n\r\n")
    assert len(transport.written) < 16 * http_service.BLOCK_OCTETS
    connection.resume_writing()
    assert len(connection.service.loop.soon) == 1, "the rest is for another turn, and for one only"


def test_statistics_count_responses_by_status():
    connection, _ = connect()
    connection.data_received(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n")
    samples = [sample for sample in connection.service.statistics() if sample.name == "rustos_http_responses_total"]
    assert {sample.labels["status"]: sample.value for sample in samples} == {"200": 1, "404": 1}
