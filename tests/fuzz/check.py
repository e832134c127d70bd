"""What every frame that leaves the stack must be, checked without the stack's own code or scapy's slowness."""

from dataclasses import dataclass
from itertools import pairwise
from struct import unpack_from
from typing import NamedTuple

from tests.fuzz.frames import (
    ACK,
    ARP,
    ETHERNET,
    FIN,
    ICMP,
    ICMPV6,
    IPV4,
    IPV6,
    RST,
    SYN,
    TCP,
    UDP,
    group_mac,
    pseudo,
    remainder,
)

TX_CHECKSUM, TSO = 2, {4: 4, 6: 8}
PATTERN_LENGTH = 251
PATTERN = bytes(i % PATTERN_LENGTH for i in range(70000))      # octet i of every stream the stack's side writes
ICMP_ERRORS = {4: (3, 4, 5, 11, 12), 6: (*range(128), 137)}


class Violation(Exception):
    """The stack broke a promise. The first argument is a short name of it, the second says what was seen."""


def require(true: object, name: str, seen: object = "") -> None:
    if not true:
        raise Violation(name, f"{seen.hex() if isinstance(seen, bytes) else seen}")


class Link(NamedTuple):
    """What a frame's checker must know of its interface."""

    mac: bytes
    mtu: int
    features: int


@dataclass(slots=True)
class Seen:
    """A frame the stack sent, taken apart."""

    kind: int
    frame: bytes
    family: int = 0
    source: bytes = b""
    destination: bytes = b""
    protocol: int = 0
    at: int = 0             # of the transport header
    source_port: int = 0
    port: int = 0
    seq: int = 0
    ack: int = 0
    flags: int = 0
    window: int = 0
    timestamp: int | None = None
    sack: int = 0           # blocks
    data: bytes = b""


def check_frame(frame: bytes, order: tuple, link: Link, own: set) -> Seen:
    """Raise Violation unless the frame is well-formed, from us, and asks of the device only what it can do.

    `order`: its row of TxBurst.orders(); `own`: packed addresses the stack has, or had a while ago.
    """
    segment_size, start, offset, l3, family = order
    require(len(frame) >= ETHERNET, "tx-short", frame)
    require(frame[6:12] == link.mac, "tx-source-mac", frame)
    require(any(frame[:6]), "tx-no-destination-mac", frame)
    require(l3 == ETHERNET, "tx-l3-offset", l3)
    seen = Seen(unpack_from("!H", frame, 12)[0], frame)
    if seen.kind == ARP:
        require(family == 0 and start == 0 and segment_size == 0, "tx-arp-order", order)
        _check_arp(frame, link)
        return seen
    if seen.kind == IPV4:
        _take_ipv4(seen)
    else:
        require(seen.kind == IPV6, "tx-ethertype", frame)
        _take_ipv6(seen)
    require(family == seen.family, "tx-family", order)
    _check_sizes(seen, segment_size, link)
    _check_addresses(seen, own)
    _check_checksum(seen, start, offset, link)
    if seen.protocol == TCP:
        _take_tcp(seen, segment_size)
    elif seen.protocol == UDP:
        length = unpack_from("!H", frame, seen.at + 4)[0]
        require(length == len(frame) - seen.at, "tx-udp-length", frame)
        seen.source_port, seen.port = unpack_from("!HH", frame, seen.at)
    elif seen.protocol in (ICMP, ICMPV6):
        require((seen.family == 6) == (seen.protocol == ICMPV6), "tx-icmp-family", frame)
        _check_icmp(seen)
    else:
        raise Violation("tx-protocol", frame.hex())
    return seen


def _check_arp(frame: bytes, link: Link) -> None:
    require(len(frame) == 42 and frame[14:20] == b"\0\1\x08\0\6\4", "tx-arp", frame)
    require(frame[22:28] == link.mac and frame[20:22] in (b"\0\1", b"\0\2"), "tx-arp", frame)
    require(frame[20:22] == b"\0\1" or not frame[0] & 1, "tx-arp-reply-to-group", frame)


def _take_ipv4(seen: Seen) -> None:
    frame = seen.frame
    require(len(frame) >= 34 and frame[14] == 0x45, "tx-ipv4-header", frame)
    require(unpack_from("!H", frame, 16)[0] == len(frame) - ETHERNET, "tx-ipv4-length", frame)
    require(remainder(frame[14:34]) == 0, "tx-ipv4-checksum", frame)
    require(not unpack_from("!H", frame, 20)[0] & 0xBFFF, "tx-ipv4-fragment", frame)
    require(frame[22] > 0, "tx-ipv4-ttl", frame)
    seen.family, seen.protocol, seen.at = 4, frame[23], 34
    seen.source, seen.destination = frame[26:30], frame[30:34]


def _take_ipv6(seen: Seen) -> None:
    frame = seen.frame
    require(len(frame) >= 54 and frame[14:18] == b"\x60\0\0\0", "tx-ipv6-header", frame)
    require(unpack_from("!H", frame, 18)[0] == len(frame) - 54, "tx-ipv6-length", frame)
    require(frame[21] > 0, "tx-ipv6-hop-limit", frame)
    seen.family, seen.protocol, seen.at = 6, frame[20], 54
    seen.source, seen.destination = frame[22:38], frame[38:54]


def _check_sizes(seen: Seen, segment_size: int, link: Link) -> None:
    size = len(seen.frame) - ETHERNET
    if not segment_size:
        require(size <= link.mtu, "tx-above-mtu", f"{size} octets, MTU {link.mtu}: {seen.frame[:80].hex()}")
        return
    require(link.features & TSO[seen.family] and seen.protocol == TCP, "tx-segment-size", seen.frame[:80])
    headers = seen.at - ETHERNET + (seen.frame[seen.at + 12] >> 4) * 4
    require(headers + segment_size <= link.mtu, "tx-segment-above-mtu", f"{headers}+{segment_size}, MTU {link.mtu}")
    require(size - headers > segment_size, "tx-segment-single", f"{size - headers} of {segment_size}")


def _check_addresses(seen: Seen, own: set) -> None:
    frame, to = seen.frame, seen.destination
    if any(seen.source) or seen.family == 4:
        require(seen.source in own, "tx-source-not-ours", frame[:80])
        require(seen.source != bytes(15) + b"\1" and seen.source[0] != 127, "tx-loopback", frame[:80])
    else:       # RFC 4862 5.4.2: only the probe for duplicates has no source
        require(seen.protocol == ICMPV6 and frame[54] == 135 and to[:2] == b"\xff\2", "tx-source-unspecified", frame)
    require(any(to), "tx-destination-unspecified", frame[:80])
    require(to != bytes(15) + b"\1" and not (seen.family == 4 and to[0] == 127), "tx-loopback", frame[:80])
    group = to[0] == 0xFF if seen.family == 6 else 224 <= to[0] < 240
    if group:
        require(frame[:6] == group_mac(to), "tx-group-mac", frame[:80])
    elif frame[0] & 1:
        require(seen.family == 4 and frame[:6] == b"\xff" * 6, "tx-unicast-to-group-mac", frame[:80])
    if seen.protocol == TCP:        # RFC 1122 4.2.3.10: not even an answer
        require(not frame[0] & 1, "tx-tcp-to-group", frame[:80])


def _check_checksum(seen: Seen, start: int, offset: int, link: Link) -> None:
    frame, at = seen.frame, seen.at
    need = {TCP: 20, UDP: 8}.get(seen.protocol, 8)
    require(len(frame) >= at + need, "tx-transport-short", frame)
    body = frame[at:]
    if not start:
        if seen.protocol != ICMP:
            body = pseudo(seen.source, seen.destination, seen.protocol, len(body)) + body
        require(remainder(body) == 0, "tx-checksum", frame)
        require(seen.protocol != UDP or any(frame[at + 6:at + 8]), "tx-udp-no-checksum", frame)
        return
    require(link.features & TX_CHECKSUM and start == at, "tx-checksum-order", f"{start} {offset} {link.features}")
    require(offset == {TCP: 16, UDP: 6}.get(seen.protocol), "tx-checksum-order", f"{start} {offset}")
    partial = unpack_from("!H", frame, start + offset)[0]
    wanted = remainder(pseudo(seen.source, seen.destination, seen.protocol, len(body)))
    require(partial % 0xFFFF == wanted, "tx-partial-checksum", frame[:80])


def _take_tcp(seen: Seen, segment_size: int) -> None:
    frame = seen.frame
    seen.source_port, seen.port, seen.seq, seen.ack, head, seen.flags, seen.window = unpack_from("!HHIIBBH", frame, seen.at)
    size = (head >> 4) * 4
    require(not head & 15 and 20 <= size <= len(frame) - seen.at, "tx-tcp-header", frame[:80])
    flags, seen.data = seen.flags, frame[seen.at + size:]
    require(flags & RST or (seen.port and seen.source_port), "tx-tcp-port", frame[:80])      # a reset answers anybody
    require(not flags & 0xE0, "tx-tcp-flags", frame[:80])
    require(bin(flags & (SYN | FIN | RST)).count("1") <= 1, "tx-tcp-flags", frame[:80])
    require(flags & ACK or flags & (SYN | RST), "tx-tcp-flags", frame[:80])
    require(not seen.data or not flags & (SYN | RST), "tx-tcp-data", frame[:80])
    _take_tcp_options(seen, frame[seen.at + 20:seen.at + size])


def _take_tcp_options(seen: Seen, options: bytes) -> None:
    at = 0
    lengths = {2: 4, 3: 3, 4: 2, 8: 10} if seen.flags & SYN else {8: 10}
    while at < len(options):
        kind = options[at]
        if kind <= 1:
            require(kind == 1, "tx-tcp-option", options)
            at += 1
            continue
        require(at + 1 < len(options), "tx-tcp-option", options)
        length = options[at + 1]
        if kind == 5 and not seen.flags & SYN:
            seen.sack = (length - 2) // 8
            require(seen.sack >= 1 and (length - 2) % 8 == 0, "tx-tcp-option", options)
            _check_sack(seen, options[at + 2:at + length])
        else:
            require(lengths.get(kind) == length, "tx-tcp-option", options)
        require(at + length <= len(options), "tx-tcp-option", options)
        if kind == 8:
            seen.timestamp = unpack_from("!I", options, at + 2)[0]
        at += length


def _check_sack(seen: Seen, blocks: bytes) -> None:
    """Each block lies above the acknowledgment, none is empty, no two are the same (RFC 2018 4)."""
    edges = []
    for at in range(0, len(blocks) - 7, 8):
        left, right = unpack_from("!II", blocks, at)
        edges.append(((left - seen.ack) & 0xFFFFFFFF, (right - seen.ack) & 0xFFFFFFFF))
    for left, right in edges:
        require(0 < left < right < 1 << 31, "tx-sack", f"{edges}")
    edges.sort()
    require(all(a[1] < b[0] for a, b in pairwise(edges)), "tx-sack-overlap", f"{edges}")


def _check_icmp(seen: Seen) -> None:
    frame, at = seen.frame, seen.at
    kind = frame[at]
    if seen.family == 6 and 133 <= kind <= 137:
        require(kind in (135, 136) and frame[21] == 255 and frame[at + 1] == 0, "tx-ndp", frame)
        require(len(frame) in (at + 24, at + 32), "tx-ndp", frame)
        return
    if kind in ((0, 8) if seen.family == 4 else (128, 129)):
        return
    quote = frame[at + 8:]
    require(kind in ((3, 11, 12) if seen.family == 4 else (1, 2, 3, 4)), "tx-icmp-type", frame)
    require(not frame[0] & 1, "tx-icmp-error-to-group", frame)
    require(len(quote) >= (20 if seen.family == 4 else 40), "tx-icmp-quote", frame)
    require(len(frame) - ETHERNET <= (576 if seen.family == 4 else 1280), "tx-icmp-quote-long", len(frame))
    protocol = quote[9] if seen.family == 4 else quote[6]
    inner = (quote[0] & 15) * 4 if seen.family == 4 else 40
    if protocol in (ICMP, ICMPV6) and len(quote) > inner and (protocol == ICMPV6) == (seen.family == 6):
        require(quote[inner] not in ICMP_ERRORS[seen.family], "tx-icmp-error-about-error", frame)


def check_stream(seen: Seen, first: int) -> None:
    """The data of a segment are the octets of the stream that were written there; `first`: the SYN's sequence number."""
    at = (seen.seq - first - 1) & 0xFFFFFFFF
    at %= PATTERN_LENGTH
    require(seen.data == PATTERN[at:at + len(seen.data)], "tx-stream", f"{seen.seq} after {first}: {seen.data[:40].hex()}")


def cross_check(frame: bytes) -> None:
    """scapy, asked to fill in all lengths and checksums anew, must come to the same octets."""
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether

    parsed = Ether(frame)
    layer = parsed
    while layer and layer.name != "NoPayload":
        if layer.underlayer is not None and layer.underlayer.name.startswith("ICMP") and isinstance(layer, IP | IPv6):
            break       # a quoted packet is cut off: its lengths are not scapy's to fill in
        for field in ("chksum", "cksum", "len", "plen", "ihl", "dataofs"):
            if field in getattr(layer, "fields", {}):
                layer.delfieldval(field)
        layer = layer.payload
    require(bytes(parsed) == frame, "tx-scapy", f"{frame.hex()} is for scapy {bytes(parsed).hex()}")
