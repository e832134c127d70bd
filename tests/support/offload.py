"""What the stack hands to a device that completes checksums, made of scapy's packets."""

import struct

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q
from scapy.packet import Packet


def fold(total: int) -> int:
    """A sum of 16-bit words with its carries added in, RFC 1071."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(packet: Packet, length: int) -> int:
    """What the stack leaves in the checksum field: the pseudo header's sum, not complemented."""
    ip = bytes(packet[IP] if IP in packet else packet[IPv6])
    addresses = ip[12:20] if IP in packet else ip[8:40]
    return fold(sum(struct.unpack(f">{len(addresses) // 2}H", addresses)) + (17 if UDP in packet else 6) + length)


def offloaded(packet: Packet) -> tuple[bytes, dict[str, int]]:
    """A packet of TCP or UDP as the stack hands it out, and the offload it asks for, in the words of `TxBurst.append`."""
    octets = bytearray(bytes(packet))
    l3 = 18 if Dot1Q in packet else 14
    start = l3 + (20 if IP in packet else 40)
    at = 6 if UDP in packet else 16
    struct.pack_into(">H", octets, start + at, pseudo(packet, len(octets) - start))
    family = 4 if IP in packet else 6
    return bytes(octets), {"checksum_start": start, "checksum_offset": at, "l3_offset": l3, "family": family}
