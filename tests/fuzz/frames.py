"""Frames made with struct, fast enough for millions of them, and their repair after damage.

Checksums are sums modulo 0xFFFF of one big integer: none of the stack's own code is asked, so that it is not its own
judge. Addresses are packed: 4 octets or 16.
"""

import random
from struct import pack, pack_into, unpack_from

ETHERNET = 14
IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, NO_NEXT, DESTINATION = 0, 43, 44, 51, 59, 60
CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}
BROADCAST = b"\xff" * 6


def remainder(data: bytes) -> int:
    """The one's complement sum of 16-bit words, where 0 stands for 0xFFFF: 0 for what carries its right checksum."""
    if len(data) & 1:
        data = bytes(data) + b"\0"
    return int.from_bytes(data, "big") % 0xFFFF


def checksum(data: bytes) -> int:
    return -remainder(data) % 0xFFFF


def pseudo(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    return source + destination + pack("!II", length, protocol)     # the same sum in both families


def ether(destination: bytes, source: bytes, kind: int, payload: bytes) -> bytes:
    return destination + source + pack("!H", kind) + payload


def ipv4(source: bytes, destination: bytes, protocol: int, payload: bytes, *, ttl: int = 64, fragment: int = 0,
         options: bytes = b"", identification: int = 0) -> bytes:
    """`fragment`: the 16 bits of flags and offset; `options`: a multiple of 4 octets, at most 40."""
    size = 20 + len(options)
    head = pack("!BBHHHBBH4s4s", 0x40 | size >> 2, 0, min(size + len(payload), 0xFFFF), identification, fragment, ttl,
                protocol, 0, source, destination) + options
    return head[:10] + pack("!H", checksum(head)) + head[12:] + payload


def ipv6(source: bytes, destination: bytes, protocol: int, payload: bytes, *, hop_limit: int = 64,
         extensions: bytes = b"", first: int | None = None) -> bytes:
    """`extensions`: headers whose chain already ends in `protocol`; `first`: the kind of the first of them."""
    return pack("!IHBB16s16s", 0x60000000, min(len(extensions) + len(payload), 0xFFFF),
                protocol if first is None else first, hop_limit, source, destination) + extensions + payload


def ip(source: bytes, destination: bytes, protocol: int, payload: bytes, **fields) -> tuple[int, bytes]:
    """EtherType and packet of the family of the addresses."""
    if len(source) == 4:
        return IPV4, ipv4(source, destination, protocol, payload, **fields)
    return IPV6, ipv6(source, destination, protocol, payload, **fields)


def with_checksum(source: bytes, destination: bytes, protocol: int, segment: bytes) -> bytes:
    at = CHECKSUM_AT[protocol]
    value = checksum(pseudo(source, destination, protocol, len(segment)) + segment if protocol != ICMP else segment)
    if protocol == UDP and value == 0:
        value = 0xFFFF
    return segment[:at] + pack("!H", value) + segment[at + 2:]


def udp(source: bytes, destination: bytes, source_port: int, port: int, data: bytes) -> bytes:
    head = pack("!HHHH", source_port, port, 8 + len(data), 0)
    return with_checksum(source, destination, UDP, head + data)


def tcp(source: bytes, destination: bytes, source_port: int, port: int, seq: int, ack: int, flags: int,
        window: int = 65535, options: bytes = b"", data: bytes = b"", urgent: int = 0) -> bytes:
    options += bytes(-len(options) % 4)
    head = pack("!HHIIBBHHH", source_port, port, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, (20 + len(options)) << 2, flags,
                window, 0, urgent)
    return with_checksum(source, destination, TCP, head + options + data)


def icmp(kind: int, code: int, body: bytes) -> bytes:
    """`body`: all after the checksum."""
    return with_checksum(b"", b"", ICMP, pack("!BBH", kind, code, 0) + body)


def icmpv6(source: bytes, destination: bytes, kind: int, code: int, body: bytes) -> bytes:
    return with_checksum(source, destination, ICMPV6, pack("!BBH", kind, code, 0) + body)


def arp(operation: int, sender_mac: bytes, sender: bytes, target_mac: bytes, target: bytes) -> bytes:
    return pack("!HHBBH6s4s6s4s", 1, IPV4, 6, 4, operation, sender_mac, sender, target_mac, target)


def solicited_node(address: bytes) -> bytes:
    return bytes.fromhex("ff0200000000000000000001ff") + address[13:]


def group_mac(address: bytes) -> bytes:
    return b"\x33\x33" + address[12:] if len(address) == 16 else b"\x01\x00\x5e" + bytes([address[1] & 127]) + address[2:]


# --- repair ---------------------------------------------------------------------------------------------------------

def repair(frame: bytearray, rng: random.Random) -> None:
    """Make lengths and checksums right again, each with high probability, so that damage reaches the inner layers."""
    if len(frame) < ETHERNET + 20:
        return
    kind = unpack_from("!H", frame, 12)[0]
    if kind == IPV4:
        _repair_ipv4(frame, rng)
    elif kind == IPV6 and len(frame) >= ETHERNET + 40:
        _repair_ipv6(frame, rng)


def _repair_ipv4(frame: bytearray, rng: random.Random) -> None:
    size = (frame[14] & 15) * 4
    if size < 20 or len(frame) < ETHERNET + size:
        if rng.random() < 0.2:
            return
        frame[14] = 0x45
        size = 20
    total = unpack_from("!H", frame, 16)[0]
    if not size <= total <= len(frame) - ETHERNET and rng.random() < 0.9:
        total = min(len(frame) - ETHERNET, 0xFFFF)
        pack_into("!H", frame, 16, total)
    if rng.random() < 0.97:
        frame[24:26] = b"\0\0"
        pack_into("!H", frame, 24, checksum(frame[14:14 + size]))
    if not unpack_from("!H", frame, 20)[0] & 0x3FFF:
        _repair_transport(frame, ETHERNET + size, ETHERNET + total, frame[23], frame[26:34], rng)


def _repair_ipv6(frame: bytearray, rng: random.Random) -> None:
    length = unpack_from("!H", frame, 18)[0]
    if length > len(frame) - ETHERNET - 40 and rng.random() < 0.9:
        length = min(len(frame) - ETHERNET - 40, 0xFFFF)
        pack_into("!H", frame, 18, length)
    at, end, protocol = ETHERNET + 40, min(ETHERNET + 40 + length, len(frame)), frame[20]
    for _ in range(10):
        if protocol not in (HOP_BY_HOP, DESTINATION) or at + 8 > end:
            break
        protocol, at = frame[at], at + 8 * (frame[at + 1] + 1)
    _repair_transport(frame, at, end, protocol, frame[22:54], rng)


def _repair_transport(frame: bytearray, at: int, end: int, protocol: int, addresses: bytes, rng: random.Random) -> None:
    place = CHECKSUM_AT.get(protocol)
    if place is None or at + place + 2 > end or end > len(frame):
        return
    if protocol == UDP and not 8 <= unpack_from("!H", frame, at + 4)[0] <= end - at and rng.random() < 0.9:
        pack_into("!H", frame, at + 4, end - at)
    if protocol == UDP:
        end = min(end, at + unpack_from("!H", frame, at + 4)[0])
    if rng.random() < 0.03:
        return
    frame[at + place:at + place + 2] = b"\0\0"
    summed = frame[at:end]
    if protocol != ICMP:
        summed = addresses + pack("!II", end - at, protocol) + summed
    pack_into("!H", frame, at + place, checksum(summed) or (0xFFFF if protocol == UDP else 0))
