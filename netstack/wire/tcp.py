"""TCP segments: parse and emit (RFC 9293 3.1, 3.2; options of RFC 7323 and RFC 2018)."""

import cython
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t
from cython.cimports.mm.hw import get16, get32, put16, put32
from cython.cimports.netstack.verdict import TCP_HEADER_LENGTH, TCP_TRUNCATED

# Option kinds: RFC 9293 3.2, RFC 7323 2.2 and 3.2, RFC 2018 2 and 3.
END = cython.declare(cython.int, 0)
NOP = cython.declare(cython.int, 1)
MSS = cython.declare(cython.int, 2)
WINDOW_SCALE = cython.declare(cython.int, 3)
SACK_PERMITTED = cython.declare(cython.int, 4)
SACK = cython.declare(cython.int, 5)
TIMESTAMP = cython.declare(cython.int, 8)

MAX_WINDOW_SCALE = cython.declare(cython.int, 14)   # RFC 7323 2.3


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def segment_parse(s: cython.pointer[Segment], p: cython.pointer[cython.const[uint8_t]], n: uint32_t) -> cython.int:
    """Unpack a header and its options. Returns 0, or the verdict the segment ends with."""
    if n < TCP_HEADER:
        return TCP_TRUNCATED
    header: uint32_t = cython.cast(uint32_t, p[12] >> 4) << 2
    if header < TCP_HEADER or header > n:
        return TCP_HEADER_LENGTH
    s.source_port = get16(p)
    s.destination_port = get16(p + 2)
    s.seq = get32(p + 4)
    s.ack = get32(p + 8)
    s.flags = p[13]
    s.window = get16(p + 14)
    s.urgent = get16(p + 18)
    s.payload = p + header
    s.length = n - header
    s.has_timestamp = 0
    s.has_window_scale = 0
    s.sack_permitted = 0
    s.sack_count = 0
    s.mss = 0
    if header == 32 and get32(p + 20) == 0x0101080A:    # what nearly every segment carries
        s.has_timestamp = 1
        s.ts_value = get32(p + 24)
        s.ts_echo = get32(p + 28)
    elif header > TCP_HEADER:
        _parse_options(s, p + TCP_HEADER, header - TCP_HEADER)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _parse_options(s: cython.pointer[Segment], p: cython.pointer[cython.const[uint8_t]], n: uint32_t) -> cython.void:
    """Read what is understood; an option whose length is impossible ends the list (RFC 9293 MUST-7)."""
    i: uint32_t = 0
    k: uint32_t
    length: uint32_t
    while i < n:
        if p[i] == END:
            return
        if p[i] == NOP:
            i += 1
            continue
        if i + 2 > n:
            return
        length = p[i + 1]
        if length < 2 or i + length > n:
            return
        if p[i] == MSS and length == 4:
            s.mss = get16(p + i + 2)
        elif p[i] == WINDOW_SCALE and length == 3:
            s.has_window_scale = 1
            s.window_scale = cython.cast(uint8_t, min(cython.cast(cython.int, p[i + 2]), MAX_WINDOW_SCALE))
        elif p[i] == SACK_PERMITTED and length == 2:
            s.sack_permitted = 1
        elif p[i] == TIMESTAMP and length == 10:
            s.has_timestamp = 1
            s.ts_value = get32(p + i + 2)
            s.ts_echo = get32(p + i + 6)
        elif p[i] == SACK and (length - 2) & 7 == 0:
            s.sack_count = 0
            for k in range((length - 2) >> 3):
                if k == MAX_SACK_BLOCKS:
                    break
                s.sack[k].start = get32(p + i + 2 + 8 * k)
                s.sack[k].end = get32(p + i + 6 + 8 * k)
                s.sack_count += 1
        i += length


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def write_timestamp(out: cython.pointer[uint8_t], value: uint32_t, echo: uint32_t) -> uint32_t:
    """NOP, NOP, TSopt: 12 octets (RFC 7323 appendix A)."""
    put32(out, 0x0101080A)
    put32(out + 4, value)
    put32(out + 8, echo)
    return 12


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def write_sack(out: cython.pointer[uint8_t], blocks: cython.pointer[cython.const[Range]], count: uint32_t) -> uint32_t:
    """NOP, NOP, SACK with `count` blocks: 4 + 8 * count octets."""
    i: uint32_t
    put16(out, 0x0101)
    out[2] = cython.cast(uint8_t, SACK)
    out[3] = cython.cast(uint8_t, 2 + 8 * count)
    for i in range(count):
        put32(out + 4 + 8 * i, blocks[i].start)
        put32(out + 8 + 8 * i, blocks[i].end)
    return 4 + 8 * count


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def write_syn_options(out: cython.pointer[uint8_t], mss: uint16_t, sack: cython.bint, timestamp: cython.bint,
                      ts_value: uint32_t, ts_echo: uint32_t, window_scale: cython.int) -> uint32_t:
    """MSS, then SACK-permitted, timestamp and window scale where wanted (`window_scale` < 0: none)."""
    n: uint32_t = 4
    put32(out, 0x02040000 | mss)
    if timestamp:
        put16(out + n, 0x0402 if sack else 0x0101)
        put16(out + n + 2, 0x080A)
        put32(out + n + 4, ts_value)
        put32(out + n + 8, ts_echo)
        n += 12
    elif sack:
        put32(out + n, 0x01010402)
        n += 4
    if window_scale >= 0:
        put32(out + n, 0x01030300 | cython.cast(uint32_t, window_scale))
        n += 4
    return n


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def write_header(out: cython.pointer[uint8_t], source_port: uint16_t, destination_port: uint16_t, seq: uint32_t,
                 ack: uint32_t, options: uint32_t, flags: uint8_t, window: uint16_t) -> cython.void:
    """The fixed 20 octets; `options`: octets of options that follow. Checksum and urgent pointer are zero."""
    put16(out, source_port)
    put16(out + 2, destination_port)
    put32(out + 4, seq)
    put32(out + 8, ack)
    out[12] = cython.cast(uint8_t, ((TCP_HEADER + options) >> 2) << 4)
    out[13] = flags
    put16(out + 14, window)
    put32(out + 16, 0)


def parse(segment: bytes) -> dict | str:
    """What a segment says, as a dict; or the label of the verdict it would end with."""
    s: Segment
    i: cython.int
    verdict: cython.int = segment_parse(cython.address(s), segment, cython.cast(uint32_t, len(segment)))
    if verdict == TCP_TRUNCATED:
        return "tcp_truncated"
    if verdict:
        return "tcp_header_length"
    return {
        "source_port": s.source_port, "destination_port": s.destination_port, "seq": s.seq, "ack": s.ack,
        "flags": s.flags, "window": s.window, "urgent": s.urgent, "payload": s.payload[:s.length],
        "mss": s.mss or None, "window_scale": s.window_scale if s.has_window_scale else None,
        "sack_permitted": bool(s.sack_permitted),
        "sack": [(s.sack[i].start, s.sack[i].end) for i in range(s.sack_count)],
        "timestamp": (s.ts_value, s.ts_echo) if s.has_timestamp else None,
    }


def emit(source_port: int, destination_port: int, seq: int, ack: int, flags: int, window: int, payload: bytes = b"", *,
         mss: int | None = None, window_scale: int | None = None, sack_permitted: bool = False,
         timestamp: tuple[int, int] | None = None, sack: tuple = ()) -> bytes:
    """A segment without its checksum: SYN options when `mss` is given, else timestamp and SACK blocks.

    Raises ValueError when the SACK blocks do not fit the 40 octets of options.
    """
    head: uint8_t[60]
    blocks: Range[4]
    n: uint32_t = 0
    if len(sack) > (3 if timestamp else 4):
        raise ValueError(f"{len(sack)} SACK blocks do not fit beside the other options")
    value, echo = timestamp or (0, 0)
    if mss is not None:
        n = write_syn_options(head + 20, mss, sack_permitted, timestamp is not None, value, echo,
                              -1 if window_scale is None else window_scale)
    else:
        if timestamp is not None:
            n = write_timestamp(head + 20, value, echo)
        if sack:
            for i, (start, end) in enumerate(sack):
                blocks[i].start, blocks[i].end = start, end
            n += write_sack(head + 20 + n, blocks, len(sack))
    write_header(head, source_port, destination_port, seq, ack, n, flags, window)
    return head[:20 + n] + payload
