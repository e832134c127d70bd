"""The request head parser: RFC 9112's grammar, the shapes requests are smuggled in, and anything at all."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rustosd.services.http_request import (
    MAX_HEAD_OCTETS,
    Refusal,
    Request,
    decimal,
    find_head,
    parse_head,
    resolve_span,
)


def head(*lines: str) -> bytes:
    return "\r\n".join(lines).encode("latin-1")


def get(*fields: str) -> Request | Refusal:
    return parse_head(head("GET / HTTP/1.1", "Host: h", *fields))


def test_a_plain_request():
    assert parse_head(head("GET /bytes/5?x=1 HTTP/1.1", "Host: [fd77::2]:80", "X-Any: thing")) == Request(
        method="GET", target="/bytes/5", minor=1, keep_alive=True, body_octets=0, span=None, expects_continue=False
    )


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("http://host/metrics", "/metrics"),
        ("HTTP://host:80", "/"),
        ("http://host?query", "/"),
        ("/a?b?c", "/a"),
        ("*", "*"),
        ("host:80", "host:80"),
    ],
)
def test_the_target_as_a_path(target, path):
    assert parse_head(head(f"GET {target} HTTP/1.1", "Host: h")).target == path


@pytest.mark.parametrize(
    ("lines", "keep_alive"),
    [
        (("GET / HTTP/1.1", "Host: h"), True),
        (("GET / HTTP/1.1", "Host: h", "Connection: foo, CLOSE"), False),
        (("GET / HTTP/1.1", "Host: h", "Connection: foo", "connection:close"), False),
        (("GET / HTTP/1.0",), False),
        (("GET / HTTP/1.0", "Connection: Keep-Alive"), True),
        (("GET / HTTP/1.0", "Connection: keep-alive, close"), False),
        (("GET / HTTP/1.2", "Host: h"), True),
    ],
)
def test_keep_alive(lines, keep_alive):
    assert parse_head(head(*lines)).keep_alive is keep_alive


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (("",), 400),
        (("GET /",), 400),
        (("GET  / HTTP/1.1", "Host: h"), 400),
        ((" GET / HTTP/1.1", "Host: h"), 400),
        (("GET / HTTP/1.1 ", "Host: h"), 400),
        (("GET /\x7f HTTP/1.1", "Host: h"), 400),
        (("GET /\xe9 HTTP/1.1", "Host: h"), 400),
        (("G(T / HTTP/1.1", "Host: h"), 400),
        (("GET / http/1.1", "Host: h"), 400),
        (("GET / HTTP/11", "Host: h"), 400),
        (("GET / HTTP/2.0", "Host: h"), 505),
        (("GET / HTTP/0.9",), 505),
        (("GET / HTTP/1.1",), 400),
        (("GET / HTTP/1.1", "Host: a", "Host: a"), 400),
        (("GET / HTTP/1.0", "Host: a", "Host: b"), 400),
        (("GET / HTTP/1.1", "Host: a b"), 400),
        (("GET / HTTP/1.1", "Host: a/b"), 400),
        (("GET / HTTP/1.1", "Host : a"), 400),
        (("GET / HTTP/1.1", "Host: a", " folded"), 400),
        (("GET / HTTP/1.1", "Host: a", "no colon"), 400),
        (("GET / HTTP/1.1", "Host: a", ": no name"), 400),
        (("GET / HTTP/1.1", "Host: a", "X: nul\0"), 400),
        (("GET / HTTP/1.1", "Host: a", "X: bare\rreturn"), 400),
        (("GET / HTTP/1.1", "Host: a", "X: bare\nfeed"), 400),
        (("GET / HTTP/1.1", "Host: a", *(["X: y"] * 100)), 431),
        (("GET /" + "a" * 9000 + " HTTP/1.1", "Host: a"), 414),
    ],
)
def test_a_malformed_head_is_refused(lines, status):
    refusal = parse_head(head(*lines))
    assert isinstance(refusal, Refusal)
    assert refusal.status == status


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (("Content-Length: 5", "Transfer-Encoding: chunked"), 400),
        (("Transfer-Encoding: chunked", "Content-Length: 0"), 400),
        (("Content-Length: 5", "Content-Length: 5"), 400),
        (("Content-Length: 5", "Content-Length: 6"), 400),
        (("Content-Length: 5, 5",), 400),
        (("Content-Length: +5",), 400),
        (("Content-Length: -5",), 400),
        (("Content-Length: 0x5",), 400),
        (("Content-Length: 5_0",), 400),
        (("Content-Length: \xb2",), 400),
        (("Content-Length:",), 400),
        (("Content-Length : 5",), 400),
        (("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 501),
        (("Transfer-Encoding: chunked, identity",), 501),
        (("Transfer-Encoding: gzip, chunked",), 501),
        (("Transfer-Encoding: xchunked",), 501),
        (("Transfer-Encoding:",), 501),
        (("Transfer-Encoding: \x0bchunked",), 400),
    ],
)
def test_smuggling_shapes_are_refused(fields, status):  # RFC 9112 6.3, 11.2
    refusal = get(*fields)
    assert isinstance(refusal, Refusal)
    assert refusal.status == status


def test_transfer_coding_before_http_1_1_is_refused():
    assert parse_head(head("GET / HTTP/1.0", "Transfer-Encoding: chunked")).status == 400


@pytest.mark.parametrize(
    ("fields", "octets"),
    [
        (("Content-Length: 0",), 0),
        (("Content-Length:  17\t",), 17),
        (("content-length: " + "0" * 5000 + "17",), 17),
        (("Content-Length: " + "9" * 5000,), 10**18),
        (("Transfer-Encoding: Chunked",), None),
    ],
)
def test_body_lengths(fields, octets):
    assert get(*fields).body_octets == octets


@pytest.mark.parametrize(
    ("fields", "span"),
    [
        (("Range: bytes=0-9",), (0, 9)),
        (("range:Bytes=5-",), (5, None)),
        (("Range: bytes=-5",), (None, 5)),
        (("Range: bytes=-",), None),
        (("Range: bytes=9-0",), None),
        (("Range: bytes=0-1,3-4",), None),
        (("Range: lines=0-1",), None),
        (("Range: bytes=0-1", "Range: bytes=0-1"), None),
        (("Range: bytes=0-1", "If-Range: etag"), None),
        (("Range: bytes=" + "9" * 5000 + "-",), (10**18, None)),
    ],
)
def test_ranges(fields, span):
    assert get(*fields).span == span


def test_a_range_on_head_is_ignored():  # RFC 9110 14.2
    assert parse_head(head("HEAD / HTTP/1.1", "Host: h", "Range: bytes=0-1")).span is None


@settings(deadline=None)
@given(st.one_of(st.none(), st.integers(0, 300)), st.one_of(st.none(), st.integers(0, 300)), st.integers(0, 200))
def test_a_resolved_range_is_what_python_slices(first, last, size):
    if first is None and last is None:
        return
    if first is not None and last is not None and last < first:
        return
    whole = range(size)
    after = size if last is None else last + 1
    wanted = whole[max(size - last, 0) :] if first is None else whole[first:after]
    part = resolve_span((first, last), size)
    assert (part is None) == (len(wanted) == 0)
    if part is not None:
        assert range(part[0], part[0] + part[1]) == wanted


@settings(deadline=None)
@given(st.integers(0, 10**18 - 1), st.integers(0, 40))
def test_decimal_reads_what_int_reads(number, zeros):
    assert decimal(b"0" * zeros + str(number).encode()) == number


LINES = st.sampled_from(
    [
        b"GET / HTTP/1.1", b"HEAD /bytes/5 HTTP/1.0", b"Host: h", b"Range: bytes=0-1", b"Content-Length: 5", b"",
        b"Transfer-Encoding: chunked", b"Connection: close", b"\r", b"\n", b" x", b"GET / HTTP/9.9",
        b"Expect: 100-continue",
    ]
)
HEADS = st.one_of(st.binary(max_size=200), st.lists(st.one_of(LINES, st.binary(max_size=20))).map(b"\r\n".join))


@settings(deadline=None)
@given(HEADS)
@example(b"")
@example(b"\r\n\r\n")
def test_any_octets_give_a_request_or_a_refusal(octets):
    message = parse_head(octets)
    if isinstance(message, Refusal):
        assert message.status in {400, 414, 431, 501, 505}
    else:
        assert octets.startswith(message.method.encode() + b" ")
        assert message.body_octets is None or message.body_octets >= 0


def test_the_end_of_a_head_is_found_however_it_comes():
    message = b"GET / HTTP/1.1\r\nHost: h\r\n\r\nrest"
    buffer = bytearray()
    searched = 0
    for index in range(len(message)):
        buffer += message[index : index + 1]
        end = find_head(buffer, searched)
        assert end == (-1 if index < 26 else 23)
        searched = len(buffer) if end < 0 else searched


@pytest.mark.parametrize("step", [1, 700, 1 << 20])
@pytest.mark.parametrize(
    ("message", "status"),
    [
        (b"GET / HTTP/1.1\nHost: h\n\n", 400),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n", 414),
        (b"a" * 9000, 414),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 4000, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 4000 + b"\r\n", 431),
    ],
)
def test_a_head_that_cannot_become_good_is_refused_early(message, status, step):
    buffer = bytearray()
    searched = 0
    for index in range(0, len(message), step):
        buffer += message[index : index + step]
        end = find_head(buffer, searched)
        if isinstance(end, Refusal):
            assert end.status == status
            assert len(buffer) <= MAX_HEAD_OCTETS + step + 4
            return
        assert end == -1
        searched = len(buffer)
    pytest.fail("it was never refused")
