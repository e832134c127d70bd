"""Command codes, and what a slot holds: its header, its FIS and its memory."""

import struct
from dataclasses import dataclass

from tests.models.device import Misuse

READ_FPDMA, WRITE_FPDMA, READ_DMA, WRITE_DMA, WRITE_FUA, FLUSH, IDENTIFY, READ_LOG = (
    0x60, 0x61, 0x25, 0x35, 0x3D, 0xEA, 0xEC, 0x2F)
QUEUED = (READ_FPDMA, WRITE_FPDMA)
WRITES = (WRITE_FPDMA, WRITE_DMA, WRITE_FUA)
NO_SECTORS = (FLUSH, IDENTIFY, READ_LOG)
"""Those whose count is not one of sectors."""


@dataclass
class Command:
    """What a slot holds."""

    slot: int
    code: int
    lba: int
    feature: int
    count: int
    device: int
    write: bool
    pieces: list[tuple[int, int]]

    @property
    def queued(self) -> bool:
        return self.code in QUEUED

    @property
    def sectors(self) -> int:
        return (self.feature if self.queued else self.count) or 65536

    @property
    def fua(self) -> bool:
        return bool(self.queued and self.device & 0x80) or self.code == WRITE_FUA

    @property
    def octets(self) -> int:
        return sum(octets for _, octets in self.pieces)


def fetch(bus, command_list: int, slot: int) -> Command:
    """Read a slot as the adapter does. Raises Misuse for what no adapter or device takes."""
    flags, prds, _, table = struct.unpack("<HHIQ", bus.read(command_list + 32 * slot, 16))
    if flags & 0x1F != 5 or flags & ~0x5F or table & 0x7F:
        raise Misuse(f"command header {flags:#x}, table {table:#x}")
    fis = bus.read(table, 20)
    if fis[0] != 0x27 or fis[1] != 0x80 or not fis[7] & 0x40 or any(fis[14:]):
        raise Misuse(f"command FIS {fis.hex()}")
    pieces = []
    for i in range(prds):
        address, _, octets = struct.unpack("<QII", bus.read(table + 128 + 16 * i, 16))
        if address & 1 or not octets & 1 or octets >> 22:
            raise Misuse(f"PRD {address:#x}, {octets:#x}")
        pieces.append((address, octets + 1))
    c = Command(slot, fis[2], int.from_bytes(fis[4:7] + fis[8:11], "little"), fis[3] | fis[11] << 8, fis[12] | fis[13] << 8,
                fis[7], bool(flags & 1 << 6), pieces)
    if c.queued and c.count >> 3 != slot:
        raise Misuse(f"tag {c.count >> 3} in slot {slot}")
    if c.write != (c.code in WRITES):
        raise Misuse("the header's W bit does not fit the command")
    return c
