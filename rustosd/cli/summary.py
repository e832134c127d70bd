"""A frame in one line, in the manner of `tcpdump -nS`."""

import struct
from collections.abc import Callable
from ipaddress import IPv6Address
from socket import inet_ntoa
from typing import Final

_FLAGS: Final = ((0x01, "F"), (0x02, "S"), (0x04, "R"), (0x08, "P"), (0x10, "."), (0x20, "U"), (0x40, "E"), (0x80, "W"))
_TCP_NAMES: Final = {0: "eol", 1: "nop", 2: "mss", 3: "wscale", 4: "sackOK", 5: "sack", 8: "TS", 34: "tfo"}
_V4_UNREACHABLE: Final = {0: "net {to} unreachable", 1: "host {to} unreachable", 2: "{to} protocol {protocol} unreachable",
                          3: "{to} {name} port {port} unreachable", 4: "{to} unreachable - need to frag",
                          9: "net {to} unreachable - admin prohibited", 10: "host {to} unreachable - admin prohibited",
                          13: "host {to} unreachable - admin prohibited filter"}
_V6_UNREACHABLE: Final = {0: "unreachable route {to}", 1: "unreachable prohibited {to}", 2: "beyond scope {to}",
                          3: "unreachable address {to}", 4: "unreachable port, {to} {name} port {port}"}
_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6"}
_TRUNCATED: Final = "[truncated]"
_TORN: Final = (struct.error, IndexError, ValueError, OSError)      # what reading beyond the end raises


def summary(octets: bytes, length: int) -> str:
    """What is to be known of a frame; `length` is the whole one's, of which `octets` may be only the beginning."""
    try:
        return _ethernet(octets, length)
    except _TORN:
        return f"{_mac(octets[6:12])} > {_mac(octets[:6])}, length {length} {_TRUNCATED}" if len(octets) >= 14 else (
            f"length {length} {_TRUNCATED}")


def _mac(octets: bytes) -> str:
    return octets.hex(":")


def _v6(octets: bytes) -> str:
    return str(IPv6Address(octets))


def _ethernet(octets: bytes, length: int) -> str:
    (kind,) = struct.unpack_from("!H", octets, 12)
    at, vlan = 14, ""
    if kind in (0x8100, 0x88A8):
        tag, kind = struct.unpack_from("!HH", octets, 14)
        at, vlan = 18, f"vlan {tag & 0xFFF}, "
    if kind == 0x0806:
        return vlan + _arp(octets[at:])
    if kind == 0x0800:
        return vlan + _ipv4(octets[at:])
    if kind == 0x86DD:
        return vlan + _ipv6(octets[at:])
    what = f"ethertype {kind:#06x}" if kind >= 0x600 else "802.3"
    return f"{vlan}{_mac(octets[6:12])} > {_mac(octets[:6])}, {what}, length {length}"


def _arp(octets: bytes) -> str:
    hardware, protocol, hardware_size, protocol_size, operation = struct.unpack_from("!HHBBH", octets)
    if (hardware, protocol, hardware_size, protocol_size) != (1, 0x0800, 6, 4) or len(octets) < 28:
        return f"ARP, hardware {hardware}, protocol {protocol:#06x}, operation {operation}, length {len(octets)}"
    sender, target = inet_ntoa(octets[14:18]), inet_ntoa(octets[24:28])
    if operation == 1:
        asked = "" if not any(octets[18:24]) else f" ({_mac(octets[18:24])})"
        return f"ARP, Request who-has {target}{asked} tell {sender}, length {len(octets)}"
    if operation == 2:
        return f"ARP, Reply {sender} is-at {_mac(octets[8:14])}, length {len(octets)}"
    return f"ARP, operation {operation}, length {len(octets)}"


def _ipv4(octets: bytes) -> str:
    first, total, fragment, protocol = struct.unpack_from("!BxHxxHxB", octets)
    header = 4 * (first & 15)
    source, to = inet_ntoa(octets[12:16]), inet_ntoa(octets[16:20])
    if first >> 4 != 4 or header < 20 or total < header:
        return f"IP {source} > {to}: wrong header, length {total}"
    if fragment & 0x1FFF:
        return f"IP {source} > {to}: fragment at {8 * (fragment & 0x1FFF)}, {_PROTOCOLS.get(protocol, protocol)}"
    return "IP " + _transport(protocol, octets[header:total], total - header, source, to)


def _ipv6(octets: bytes) -> str:
    first, length, protocol = struct.unpack_from("!B3xHB", octets)
    source, to = _v6(octets[8:24]), _v6(octets[24:40])
    if first >> 4 != 6:
        return f"IP6 {source} > {to}: wrong header, length {length}"
    return "IP6 " + _transport(protocol, octets[40:40 + length], length, source, to)


def _transport(protocol: int, octets: bytes, length: int, source: str, to: str) -> str:
    """`length`: octets of the packet behind the IP header, of which some may not have been captured."""
    known: dict[int, Callable[[bytes, int], str]] = {1: _icmp, 58: _icmpv6}
    try:
        if protocol in known:
            return f"{source} > {to}: {known[protocol](octets, length)}, length {length}"
        if protocol not in (6, 17):
            return f"{source} > {to}: ip-proto-{protocol}, length {length}"
        ports = struct.unpack_from("!HH", octets)
        text = _tcp(octets, length) if protocol == 6 else f"UDP, length {struct.unpack_from('!H', octets, 4)[0] - 8}"
        return f"{source}.{ports[0]} > {to}.{ports[1]}: {text}"
    except _TORN:
        return f"{source} > {to}: {_PROTOCOLS[protocol]} {_TRUNCATED}, length {length}"


def _tcp(octets: bytes, length: int) -> str:
    sequence, acknowledged, offset, bits, window, urgent = struct.unpack_from("!4xIIBBH2xH", octets)
    header = 4 * (offset >> 4)
    if not 20 <= header <= length:
        return f"Flags [{_flags(bits)}], wrong header, length {length}"
    data = length - header
    words = [f"Flags [{_flags(bits)}]"]
    if data or bits & 0x07:         # as tcpdump: where the sequence number says something
        words.append(f"seq {sequence}:{(sequence + data) & 0xFFFFFFFF}" if data else f"seq {sequence}")
    if bits & 0x10:
        words.append(f"ack {acknowledged}")
    words.append(f"win {window}")
    if bits & 0x20:
        words.append(f"urg {urgent}")
    if options := _tcp_options(octets[20:header]):
        words.append(f"options [{','.join(options)}]")
    return ", ".join([*words, f"length {data}"])


def _flags(bits: int) -> str:
    return "".join(letter for bit, letter in _FLAGS if bits & bit) or "none"


def _tcp_options(octets: bytes) -> list[str]:
    texts, at = [], 0
    while at < len(octets):
        kind = octets[at]
        name = _TCP_NAMES.get(kind, f"unknown-{kind}")
        if kind < 2:
            texts.append(name)
            if kind == 0:
                break
            at += 1
            continue
        length = octets[at + 1] if at + 1 < len(octets) else 0
        if length < 2 or at + length > len(octets):
            texts.append(f"{name} [bad]")
            break
        texts.append(name + _tcp_value(kind, octets[at + 2:at + length]))
        at += length
    return texts


def _tcp_value(kind: int, value: bytes) -> str:
    if kind == 2 and len(value) == 2:
        return f" {int.from_bytes(value)}"
    if kind == 3 and len(value) == 1:
        return f" {value[0]}"
    if kind == 8 and len(value) == 8:
        return " val {} ecr {}".format(*struct.unpack("!II", value))
    if kind == 5 and value and len(value) % 8 == 0:
        blocks = "".join(f"{{{left}:{right}}}" for left, right in struct.iter_unpack("!II", value))
        return f" {len(value) // 8} {blocks}"
    return ""


def _quoted(octets: bytes, family: int) -> dict[str, str | int]:
    """What an error says of the packet it quotes."""
    if family == 4:
        protocol, to, at = octets[9], inet_ntoa(octets[16:20]), 4 * (octets[0] & 15)
    else:
        protocol, to, at = octets[6], _v6(octets[24:40]), 40
    (port,) = struct.unpack_from("!H", octets, at + 2)
    return {"to": to, "protocol": protocol, "name": _PROTOCOLS.get(protocol, f"ip-proto-{protocol}"), "port": port}


def _icmp(octets: bytes, _length: int) -> str:
    kind, code = octets[0], octets[1]
    if kind in (0, 8):
        identifier, sequence = struct.unpack_from("!HH", octets, 4)
        return f"ICMP echo {'request' if kind else 'reply'}, id {identifier}, seq {sequence}"
    if kind == 3:
        quoted = _quoted(octets[8:], 4)
        text = _V4_UNREACHABLE.get(code, "{to} unreachable - code " + str(code)).format(**quoted)
        (mtu,) = struct.unpack_from("!H", octets, 6)
        return f"ICMP {text}" + (f" (mtu {mtu})" if code == 4 and mtu else "")
    if kind == 11:
        return "ICMP time exceeded in-transit" if code == 0 else "ICMP ip reassembly time exceeded"
    if kind == 12:
        return f"ICMP parameter problem - octet {octets[4]}"
    return f"ICMP type-#{kind}"


def _icmpv6(octets: bytes, _length: int) -> str:
    kind, code = octets[0], octets[1]
    if kind in (128, 129):
        identifier, sequence = struct.unpack_from("!HH", octets, 4)
        return f"ICMP6, echo {'request' if kind == 128 else 'reply'}, id {identifier}, seq {sequence}"
    if kind == 1:
        quoted = _quoted(octets[8:], 6)
        return "ICMP6, destination unreachable, " + _V6_UNREACHABLE.get(code, f"code {code} " + "{to}").format(**quoted)
    if kind == 2:
        return f"ICMP6, packet too big, mtu {struct.unpack_from('!I', octets, 4)[0]}"
    if kind == 3:
        return "ICMP6, time exceeded in-transit" if code == 0 else "ICMP6, time exceeded in reassembly"
    if kind == 135:
        return f"ICMP6, neighbor solicitation, who has {_v6(octets[8:24])}"
    if kind == 136:
        return f"ICMP6, neighbor advertisement, tgt is {_v6(octets[8:24])}"
    names = {133: "router solicitation", 134: "router advertisement", 137: "redirect", 143: "multicast listener report v2"}
    return f"ICMP6, {names.get(kind, f'type {kind}')}"
