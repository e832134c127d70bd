"""Frames of a TCP/IP client as octets, made for the in-process measurements: IPv4, correct checksums."""

from __future__ import annotations

import struct

CLIENT_MAC = bytes.fromhex("020000000001")
SERVER_MAC = bytes.fromhex("020000000077")
CLIENT = bytes([10, 77, 0, 1])
SERVER = bytes([10, 77, 0, 2])
SYN, PSH, ACK = 0x02, 0x08, 0x10
_SYN_OPTIONS = bytes.fromhex("020405b4 0402 080a 00000001 00000000 01 03 03 07".replace(" ", ""))


def checksum(*parts: bytes) -> int:
    """The Internet checksum (RFC 1071) of even-sized parts, the last of which may be odd."""
    total = 0
    for part in parts:
        total += int.from_bytes(part + bytes(len(part) & 1)) % 0xFFFF
    return -total % 0xFFFF


def tcp(port: int, to: int, seq: int, ack: int, flags: int, payload: bytes = b"", window: int = 0xFFFF) -> bytes:
    """A segment with a timestamp option; a SYN also offers MSS 1460, SACK and window scale 7."""
    options = _SYN_OPTIONS if flags & SYN else b"\1\1\x08\x0a" + struct.pack("!II", 2, 1)
    head = struct.pack("!HHIIBBHHH", port, to, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, (20 + len(options)) << 2, flags,
                       window, 0, 0) + options
    return _ipv4(6, _summed(6, head, payload, 16))


def udp(port: int, to: int, payload: bytes) -> bytes:
    """A datagram."""
    return _ipv4(17, _summed(17, struct.pack("!HHHH", port, to, 8 + len(payload), 0), payload, 6))


def echo_request(sequence: int, payload: bytes) -> bytes:
    """An ICMP echo request."""
    head = struct.pack("!BBHHH", 8, 0, 0, 1, sequence)
    return _ipv4(1, head[:2] + struct.pack("!H", checksum(head, payload)) + head[4:] + payload)


def arp_request() -> bytes:
    """Who has the server's address?"""
    return b"\xff" * 6 + CLIENT_MAC + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 1) + (
        CLIENT_MAC + CLIENT + bytes(6) + SERVER)


def _summed(protocol: int, head: bytes, payload: bytes, at: int) -> bytes:
    pseudo = CLIENT + SERVER + struct.pack("!II", protocol, len(head) + len(payload))
    return head[:at] + struct.pack("!H", checksum(pseudo, head, payload)) + head[at + 2:] + payload


def _ipv4(protocol: int, payload: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, 0, CLIENT, SERVER)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return SERVER_MAC + CLIENT_MAC + b"\x08\x00" + head + payload
