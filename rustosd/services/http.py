"""A small HTTP/1.1 server: the pages it is given, /healthz, and /bytes/N to measure throughput and prove integrity.

RFC 9110 and 9112. Keep-alive, pipelining, HEAD, single ranges. Responses stream from one shared block; a connection
holds at most one request head and one read beyond its transport's buffer.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from rustosd import unix_socket
from rustosd.services.base import ANY_HOSTS, BACKLOG, Pump, Sample, Service
from rustosd.services.http_request import (
    MAX_HEAD_OCTETS,
    Refusal,
    Request,
    decimal,
    find_head,
    parse_head,
    resolve_span,
)

log = structlog.get_logger(__name__)

PERIOD = 251  # octet i of /bytes/N is i % 251: a prime, so that no power-of-two shift goes unnoticed
MAX_BYTES = 2**40
BLOCK_OCTETS = 256 * 1024
BLOCK = memoryview(bytes(i % PERIOD for i in range(PERIOD)) * (BLOCK_OCTETS // PERIOD + 2))
# A body nobody wants is read over up to this length, so that the connection can live; beyond it the connection ends.
MAX_DRAIN_OCTETS = 64 * 1024
# After an error the peer may still be sending. Closing at once would reset the connection under our answer
# (RFC 9112 9.6), so we half-close and read on, within these bounds.
LINGER_S = 5.0
LINGER_OCTETS = 1024 * 1024
EMPTY_LINES = re.compile(rb"(?:\r\n)+")
ALLOW = ("Allow", "GET, HEAD")
TEXT = "text/plain; charset=utf-8"
NOSNIFF = ("X-Content-Type-Options", "nosniff")


class Span(NamedTuple):
    """A stretch of the endless pattern 0, 1 .. 250, 0, 1 .."""

    start: int
    length: int


class Response(NamedTuple):
    """What a route answers; `content` is the whole body or a stretch of the pattern."""

    status: int
    content: bytes | Span
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def length(self) -> int:
        return self.content.length if isinstance(self.content, Span) else len(self.content)


class HttpConnection(Pump, asyncio.Protocol):
    """One client: takes its requests in order and answers each before it looks at the next."""

    service: HttpService

    def __init__(self, service: HttpService) -> None:
        super().__init__(service)
        self.buffer = bytearray()
        self.searched = 0  # octets of the buffer known to hold no end of a head
        self.to_drain = 0  # octets of an unwanted body still to come
        self.position = 0  # the pattern octet the next block starts at
        self.remaining = 0  # octets of the response in hand still to write
        self.last_request = False
        self.says_keep_alive = False  # an HTTP/1.0 client must be told that its wish is granted
        self.input_ended = False
        self.reading = True
        self.linger_octets: int | None = None  # what a lingering connection may still send us
        self.linger_timer: asyncio.TimerHandle | None = None

    def refused(self) -> None:
        self.last_request = True
        self.respond(Response(503, b"too many connections\n"))
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        self.service.received_octets += len(data)
        if self.linger_octets is not None:
            self.linger_octets -= len(data)
            if self.linger_octets < 0:
                self.transport.abort()
            return
        if self.last_request:
            return
        self.buffer += data
        self.pump()
        if len(self.buffer) > MAX_HEAD_OCTETS and self.reading and not self.transport.is_closing():
            self.reading = False
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.linger_timer is not None:
            self.linger_timer.cancel()
        super().connection_lost(exc)

    def eof_received(self) -> bool:
        self.input_ended = True
        if self.linger_octets is not None:
            return False
        self.pump()
        return True

    def pump(self) -> None:
        super().pump()
        if self.paused or self.remaining or self.transport.is_closing():
            return
        if self.last_request:
            if self.linger_octets is None:
                self.end()
        elif self.input_ended and not self._turn_pending:
            self.transport.close()

    def produce(self) -> bool:
        """Writes one block of the response in hand, or starts the next one."""
        if self.remaining:
            self._write_block()
            return True
        if self.last_request:
            return False
        if self.to_drain:
            drained = min(self.to_drain, len(self.buffer))
            del self.buffer[:drained]
            self.to_drain -= drained
        head = self._take_head()
        if head is None:
            if not self.reading:
                self.reading = True
                self.transport.resume_reading()
            return False
        self.quiet = 0
        message = head if isinstance(head, Refusal) else parse_head(head)
        if isinstance(message, Refusal):
            self._refuse(message)
            return False
        self._answer(message)
        return True

    def expire(self) -> None:
        if self.buffer and not self.last_request and not self.remaining:
            self._refuse(Refusal(408, "the request did not come in time"))
        elif self.remaining:
            self.transport.abort()
        else:
            self.transport.close()

    def finish(self) -> None:
        self.last_request = True
        if not self.remaining:
            self.transport.close()

    def end(self) -> None:
        """Closes after the last response; politely where the peer sent more than we read."""
        if self.buffer:
            self._linger()
        else:
            self.transport.close()

    def respond(self, response: Response, head_only: bool = False) -> None:
        """Writes the head and a small body; leaves a long body in hand."""
        self.service.responses[response.status] += 1
        lines = [
            f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}",
            f"Date: {self.service.date()}",
            "Server: rustosd",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {response.length}",
            *(f"{name}: {value}" for name, value in response.headers),
        ]
        if self.last_request:
            lines.append("Connection: close")
        elif self.says_keep_alive:
            lines.append("Connection: keep-alive")
        head = "\r\n".join((*lines, "\r\n")).encode("latin-1")
        if head_only:
            self._write(head)
        elif isinstance(response.content, Span):
            self._write(head)
            self.position, self.remaining = response.content
        else:
            self._write(head + response.content)

    def _take_head(self) -> bytes | Refusal | None:
        buffer = self.buffer
        if empty := EMPTY_LINES.match(buffer):  # RFC 9112 2.2: ignored before a request
            del buffer[: empty.end()]
            self.searched = 0
        if not buffer:
            return None
        end = find_head(buffer, self.searched)
        if isinstance(end, Refusal):
            return end
        if end < 0:
            self.searched = len(buffer)
            return None
        head = bytes(buffer[:end])
        del buffer[: end + 4]
        self.searched = 0
        return head

    def _answer(self, request: Request) -> None:
        body = request.body_octets
        refuse_body = body is None or body > MAX_DRAIN_OCTETS or (body > 0 and request.expects_continue)
        self.last_request = refuse_body or not request.keep_alive
        self.says_keep_alive = request.minor == 0
        if not refuse_body:
            self.to_drain = body or 0
        response = self.service.route(request)
        if refuse_body and response.status < 400:
            response = Response(413, b"this resource takes no body\n")
        self.respond(response, head_only=request.method == "HEAD")
        if refuse_body:
            self._linger()

    def _refuse(self, refusal: Refusal) -> None:
        self.last_request = True
        self.respond(Response(refusal.status, f"{refusal.reason}\n".encode()))
        self._linger()

    def _linger(self) -> None:
        self.buffer.clear()
        if self.input_ended or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.linger_octets = LINGER_OCTETS
        self.transport.write_eof()
        if not self.reading:
            self.reading = True
            self.transport.resume_reading()
        self.linger_timer = self.service.loop.call_later(LINGER_S, self.transport.abort)

    def _write_block(self) -> None:
        phase = self.position % PERIOD
        length = min(self.remaining, BLOCK_OCTETS)
        self.position += length
        self.remaining -= length
        self.quiet = 0
        self._write(BLOCK[phase : phase + length])

    def _write(self, data: bytes | memoryview) -> None:
        self.service.sent_octets += len(data)
        self.transport.write(data)


class HttpService(Service):
    """HTTP on a port. `pages` has, by path, what makes the response of each; `pattern` adds /bytes/N.

    A page is made anew for each request. An exception in it is a 500 and a log line, never the end of the service.
    """

    name = "http"
    connection_factory = HttpConnection

    def __init__(
        self,
        *,
        pages: Mapping[str, Callable[[], Response]],
        port: int = 80,
        hosts: tuple[str, ...] = ANY_HOSTS,
        max_connections: int = 16384,
        idle_s: float = 60.0,
        pattern: bool = True,
    ) -> None:
        super().__init__(port=port, hosts=hosts, max_connections=max_connections, idle_s=idle_s)
        self.pages = {"/healthz": lambda: Response(200, b"ok\n"), **pages}
        self.pattern = pattern
        self.responses: Counter[int] = Counter()
        self._date = (0, "")

    def date(self) -> str:
        """The Date field's value, formatted once a second."""
        now = int(time.time())
        if now != self._date[0]:
            self._date = (now, formatdate(now, usegmt=True))
        return self._date[1]

    def route(self, request: Request) -> Response:
        """The response to a request; an error of ours is a 500, never an exception."""
        if request.method not in ("GET", "HEAD"):
            return Response(405, b"only GET and HEAD here\n", headers=(ALLOW,))
        try:
            return self._get(request)
        except Exception:
            log.exception("http_request_failed", target=request.target)
            return Response(500, b"the server failed on this one; its log says why\n")

    def _get(self, request: Request) -> Response:
        path = request.target
        if self.pattern and path.startswith("/bytes/"):
            return _pattern(path.removeprefix("/bytes/"), request.span)
        if (page := self.pages.get(path)) is not None:
            return page()
        return Response(404, b"not here; / lists what is\n")

    def statistics(self) -> Iterator[Sample]:
        yield from super().statistics()
        for status, count in self.responses.items():
            yield Sample(
                "rustos_http_responses_total", "counter", "HTTP responses by status.", count,
                {"service": self.name, "status": str(status)},
            )


class UnixHttpService(HttpService):
    """The same on a unix socket of the kernel, for its owner and group. `remedy`: what to do when it cannot be made."""

    def __init__(self, path: Path, remedy: str, **arguments: Any) -> None:
        super().__init__(port=0, hosts=(str(path),), pattern=False, **arguments)
        self.path = path
        self.remedy = remedy

    async def listen(self, network: Any, host: str) -> None:
        """Makes the socket; `network` is an asyncio event loop. Raises OSError."""
        listener = unix_socket.bind(self.path, 0o660, self.remedy)
        try:
            self._servers.append(await network.create_unix_server(
                lambda: self.connection_factory(self), sock=listener, backlog=BACKLOG))
        except BaseException:
            listener.close()
            unix_socket.remove(self.path)
            raise

    def close_listeners(self) -> None:
        super().close_listeners()
        unix_socket.remove(self.path)

    async def stop(self, grace_s: float = 5.0) -> None:
        try:
            await super().stop(grace_s)
        finally:
            if not self.retired:        # else the path may be another's by now
                unix_socket.remove(self.path)


def _pattern(digits: str, span: tuple[int | None, int | None] | None) -> Response:
    size = decimal(digits.encode()) if digits.isascii() and digits.isdigit() else MAX_BYTES + 1
    if size > MAX_BYTES:
        return Response(404, b"/bytes/N takes a decimal N of at most 1099511627776 (2**40)\n")
    octets = "application/octet-stream"
    ranges = ("Accept-Ranges", "bytes")
    if span is None:
        return Response(200, Span(0, size), octets, (ranges,))
    part = resolve_span(span, size)
    if part is None:
        return Response(416, b"no such range\n", headers=(ranges, ("Content-Range", f"bytes */{size}")))
    first, length = part
    return Response(206, Span(*part), octets, (ranges, ("Content-Range", f"bytes {first}-{first + length - 1}/{size}")))

