"""An HTTP/1.1 request head, parsed from octets a stranger sent (RFC 9112). No I/O, and no exception from any input.

Strict on purpose, since leniency is how requests are smuggled: lines end with CRLF, no folding, no space before a
colon, one Host, and never Content-Length together with Transfer-Encoding.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_HEAD_OCTETS = 16 * 1024
MAX_LINE_OCTETS = 8 * 1024
MAX_FIELDS = 100
# Decimal numbers beyond this many digits are only ever compared, and then they are all "too large".
MAX_DIGITS = 18
TOO_LARGE = 10**MAX_DIGITS

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_TARGET = re.compile(rb"[\x21-\x7e]+")
_VERSION = re.compile(rb"HTTP/([0-9])\.([0-9])")
_HOST = re.compile(rb"[A-Za-z0-9.\-_~%!$&'()*+,;=:\[\]]*")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]*)(.*)")
_RANGE = re.compile(rb"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*", re.IGNORECASE)
_BARE_LF = re.compile(rb"(?<!\r)\n")
_READ_FIELDS = frozenset(
    (b"host", b"connection", b"content-length", b"transfer-encoding", b"range", b"if-range", b"expect")
)


class Refusal(NamedTuple):
    """A request that gets an error and the end of its connection."""

    status: int
    reason: str


BARE_LINE_END = Refusal(400, "a line ends with CRLF, and with nothing else")


class Request(NamedTuple):
    """What the server needs of a request.

    `minor` is the version's: HTTP/1.minor.
    `span` is the one byte range asked for: (first, last), (first, None) or (None, suffix length); None for the whole.
    `body_octets` is the length of the body that follows, or None for one that is chunked.
    """

    method: str
    target: str
    minor: int
    keep_alive: bool
    body_octets: int | None
    span: tuple[int | None, int | None] | None
    expects_continue: bool


def find_head(buffer: bytearray, start: int) -> int | Refusal:
    """The end of the request head in `buffer`, -1 while it is incomplete, or why it can be refused already.

    Octets before `start` were searched before. The head ends before its CRLF CRLF.
    """
    end = buffer.find(b"\r\n\r\n", max(start - 3, 0))
    if 0 <= end <= MAX_HEAD_OCTETS:
        return end
    if end < 0 and _BARE_LF.search(buffer, max(start - 1, 0)):
        return BARE_LINE_END
    if end < 0 and len(buffer) < MAX_LINE_OCTETS + 2:
        return -1
    line_end = buffer.find(b"\r\n", 0, MAX_LINE_OCTETS + 2)
    if line_end < 0:
        return Refusal(414, f"the request line is longer than {MAX_LINE_OCTETS} octets")
    if end > MAX_HEAD_OCTETS or len(buffer) > MAX_HEAD_OCTETS + 3:
        return Refusal(431, f"the request head is larger than {MAX_HEAD_OCTETS} octets")
    return -1


def parse_head(head: bytes) -> Request | Refusal:
    """The request that `head` (without its final empty line) says, or why it is refused."""
    lines = head.split(b"\r\n")
    line_ends = len(lines) - 1
    if head.count(b"\n") != line_ends or head.count(b"\r") != line_ends:
        return BARE_LINE_END
    start = _parse_request_line(lines[0])
    if isinstance(start, Refusal):
        return start
    method, target, minor = start
    if line_ends > MAX_FIELDS:
        return Refusal(431, f"more than {MAX_FIELDS} header fields")
    fields: dict[bytes, list[bytes]] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            return Refusal(400, "malformed header field")
        name = name.lower()
        if name in _READ_FIELDS:
            fields.setdefault(name, []).append(value.strip(b" \t"))
    if refusal := _check_host(target, fields, minor):
        return refusal
    body = _parse_body_length(fields, minor)
    if isinstance(body, Refusal):
        return body
    return Request(
        method=method.decode("ascii"),
        target=_path(target),
        minor=minor,
        keep_alive=_keep_alive(fields, minor),
        body_octets=body,
        span=_parse_range(fields) if method == b"GET" else None,
        expects_continue=b"expect" in fields,
    )


def resolve_span(span: tuple[int | None, int | None], size: int) -> tuple[int, int] | None:
    """(first octet, length) of a byte range over `size` octets; None if it cannot be satisfied (RFC 9110 14.1.2)."""
    first, last = span
    if first is None:
        length = min(last or 0, size)
        return (size - length, length) if length else None
    if first >= size:
        return None
    last = size - 1 if last is None else min(last, size - 1)
    return first, last - first + 1


def decimal(digits: bytes) -> int:
    """The value of ASCII digits, of any number; everything with more than 18 significant ones is TOO_LARGE."""
    digits = digits.lstrip(b"0") or b"0"
    return int(digits) if len(digits) <= MAX_DIGITS else TOO_LARGE


def _parse_request_line(line: bytes) -> tuple[bytes, bytes, int] | Refusal:
    if len(line) > MAX_LINE_OCTETS:
        return Refusal(414, f"the request line is longer than {MAX_LINE_OCTETS} octets")
    parts = line.split(b" ")
    if len(parts) != 3:
        return Refusal(400, "a request line is: method, space, target, space, version")
    method, target, version = parts
    if not _TOKEN.fullmatch(method) or not _TARGET.fullmatch(target):
        return Refusal(400, "malformed method or target")
    numbers = _VERSION.fullmatch(version)
    if numbers is None:
        return Refusal(400, "malformed HTTP version")
    if numbers[1] != b"1":
        return Refusal(505, "this server speaks HTTP/1.1")
    return method, target, int(numbers[2])


def _path(target: bytes) -> str:
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is not None:
        target = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
    return target.partition(b"?")[0].decode("ascii")


def _check_host(target: bytes, fields: dict[bytes, list[bytes]], minor: int) -> Refusal | None:
    """RFC 9112 3.2: exactly one valid Host in HTTP/1.1, at most one in HTTP/1.0."""
    hosts = fields.get(b"host", ())
    if len(hosts) > 1 or (minor >= 1 and not hosts):
        return Refusal(400, "a request has one Host field")
    if hosts and not _HOST.fullmatch(hosts[0]):
        return Refusal(400, "malformed Host field")
    return None


def _parse_body_length(fields: dict[bytes, list[bytes]], minor: int) -> int | Refusal | None:
    """RFC 9112 6.3, without its leniencies."""
    lengths = fields.get(b"content-length")
    codings = fields.get(b"transfer-encoding")
    if codings is not None:
        if lengths is not None or minor < 1:
            return Refusal(400, "Transfer-Encoding with Content-Length, or before HTTP/1.1")
        if [coding.lower() for coding in codings] != [b"chunked"]:
            return Refusal(501, "the only transfer coding is chunked")
        return None
    if lengths is None:
        return 0
    if len(lengths) > 1 or not lengths[0].isdigit():
        return Refusal(400, "Content-Length is one decimal number")
    return decimal(lengths[0])


def _keep_alive(fields: dict[bytes, list[bytes]], minor: int) -> bool:
    options = {option.strip(b" \t").lower() for value in fields.get(b"connection", ()) for option in value.split(b",")}
    if b"close" in options:
        return False
    return minor >= 1 or b"keep-alive" in options


def _parse_range(fields: dict[bytes, list[bytes]]) -> tuple[int | None, int | None] | None:
    """One range, or None: several ranges and other units are ignored, as RFC 9110 14.2 allows.

    Without validators no If-Range can match, so it always asks for the whole.
    """
    values = fields.get(b"range", ())
    if len(values) != 1 or b"if-range" in fields:
        return None
    match = _RANGE.fullmatch(values[0])
    if match is None or not (match[1] or match[2]):
        return None
    first = decimal(match[1]) if match[1] else None
    last = decimal(match[2]) if match[2] else None
    if first is not None and last is not None and last < first:
        return None
    return first, last
