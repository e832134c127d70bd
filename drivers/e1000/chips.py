"""The controllers this driver knows, and in what they differ."""

from dataclasses import dataclass
from typing import Final

from drivers.errors import DeviceRefused
from mm.frame import Feature

INTEL: Final = 0x8086
FCS: Final = 4
OVERHEAD: Final = 18
"""Ethernet header and one VLAN tag: what a frame has beyond its IP packet, without FCS."""
DESCRIPTOR: Final = 16
"""Octets the chip stores beside each frame."""


@dataclass(frozen=True)
class Chip:
    """One controller."""

    device: int
    """Its PCI device ID."""
    name: str
    express: bool = False
    """The 82574 and its kin: PCI Express, MSI-X, extended receive descriptors, another NVM interface."""
    longest: int = 16124
    """Octets of the longest frame it takes, without FCS. 8254x 13.4.22; Linux stays below 16 KiB by as much."""
    packet_buffer_kb: int = 64
    transmit_buffer_kb: int = 16
    """On-chip memory, and how much of it is for transmission unless frames are long. 8254x 13.4.16; 82574 10.2.2."""

    @property
    def features(self) -> int:
        """What it does for the stack. The 8254x cannot split IPv6 in every variant; Linux leaves that to the host, too."""
        common = Feature.RX_CHECKSUM | Feature.TX_CHECKSUM | Feature.TSO4
        return int(common | Feature.TSO6 if self.express else common)

    @property
    def largest_mtu(self) -> int:
        """Octets of the largest IP packet."""
        return self.longest - OVERHEAD

    def receive_buffer_kb(self, longest: int) -> int:
        """What PBA is to say for frames of up to `longest` octets: transmission wants to hold two of them, as in Linux."""
        two = -(-2 * (longest + FCS + DESCRIPTOR) // 1024)
        return self.packet_buffer_kb - max(self.transmit_buffer_kb, two)

    @property
    def inter_packet_gap(self) -> int:
        """TIPG.IPGT for 96 bit times on copper. 8254x 13.4.34; 82574 10.2.6."""
        return 8 if self.express else 10


CHIPS: Final = {chip.device: chip for chip in (
    Chip(0x100E, "82540EM"),
    Chip(0x100F, "82545EM"),
    Chip(0x10D3, "82574L", express=True, longest=9230, packet_buffer_kb=40, transmit_buffer_kb=20),
)}


def chip_of(name: str, vendor: int, device: int) -> Chip:
    """The controller with these PCI IDs. Raises DeviceRefused, naming those there are."""
    if vendor != INTEL or device not in CHIPS:
        known = ", ".join(f"{chip.name} (8086:{chip.device:04x})" for chip in CHIPS.values())
        raise DeviceRefused(name, f"{vendor:04x}:{device:04x} is none of the controllers that e1000 drives: {known}")
    return CHIPS[device]
