"""Command codes, what a slot holds (its header, its FIS, its memory), and how a command ends. AHCI 4.2, ACS-4 7."""

import struct
from dataclasses import dataclass
from enum import Enum

from tests.models.device import Misuse

READ_FPDMA, WRITE_FPDMA, READ_DMA, WRITE_DMA, WRITE_FUA, FLUSH, IDENTIFY, READ_LOG = (
    0x60, 0x61, 0x25, 0x35, 0x3D, 0xEA, 0xEC, 0x2F)
READ_DMA_28, WRITE_DMA_28, READ_SECTORS, READ_SECTORS_28, READ_MULTIPLE, READ_MULTIPLE_28 = 0xC8, 0xCA, 0x24, 0x20, 0x29, 0xC4
WRITE_SECTORS, WRITE_SECTORS_28, WRITE_MULTIPLE, WRITE_MULTIPLE_28, VERIFY, VERIFY_28 = 0x34, 0x30, 0x39, 0xC5, 0x42, 0x40
FLUSH_28, READ_LOG_DMA, WRITE_LOG, SMART, SET_FEATURES, SET_MULTIPLE, WRITE_ZEROES = 0xE7, 0x47, 0x3F, 0xB0, 0xEF, 0xC6, 0x44
STANDBY_NOW, IDLE_NOW, STANDBY, IDLE, CHECK_POWER, SLEEP = 0xE0, 0xE1, 0xE2, 0xE3, 0xE5, 0xE6
SECURITY_SET_PASSWORD, SECURITY_UNLOCK, SECURITY_PREPARE, SECURITY_ERASE, SECURITY_FREEZE, SECURITY_DISABLE = range(0xF1, 0xF7)
DATA_SET_MANAGEMENT, SEND_FPDMA, RECEIVE_FPDMA, QUEUED_NO_DATA = 0x06, 0x64, 0x65, 0x63
IDENTIFY_PACKET, PACKET, DEVICE_RESET = 0xA1, 0xA0, 0x08
READ_MULTIPLIER, WRITE_MULTIPLIER = 0xE4, 0xE8
QUEUED = (READ_FPDMA, WRITE_FPDMA, SEND_FPDMA, RECEIVE_FPDMA, QUEUED_NO_DATA)
WRITES = (WRITE_FPDMA, WRITE_DMA, WRITE_FUA, WRITE_DMA_28, WRITE_SECTORS, WRITE_SECTORS_28, WRITE_MULTIPLE, WRITE_MULTIPLE_28)
READS = (READ_FPDMA, READ_DMA, READ_DMA_28, READ_SECTORS, READ_SECTORS_28, READ_MULTIPLE, READ_MULTIPLE_28)
SENDS = (*WRITES, WRITE_LOG, SECURITY_SET_PASSWORD, SECURITY_UNLOCK, SECURITY_ERASE, SECURITY_DISABLE, DATA_SET_MANAGEMENT,
         SEND_FPDMA)
"""Commands that take data from the host."""
RECEIVES = (*READS, IDENTIFY, IDENTIFY_PACKET, READ_LOG, READ_LOG_DMA, RECEIVE_FPDMA)
SHORT = (READ_DMA_28, WRITE_DMA_28, READ_SECTORS_28, READ_MULTIPLE_28, WRITE_SECTORS_28, WRITE_MULTIPLE_28, VERIFY_28)
"""28-bit addresses: the upper four bits stand in the device register."""
BY_PIO = (IDENTIFY, IDENTIFY_PACKET, READ_LOG, WRITE_LOG, READ_SECTORS, READ_SECTORS_28, READ_MULTIPLE, READ_MULTIPLE_28,
          WRITE_SECTORS, WRITE_SECTORS_28, WRITE_MULTIPLE, WRITE_MULTIPLE_28, SMART, SECURITY_SET_PASSWORD, SECURITY_UNLOCK,
          SECURITY_ERASE, SECURITY_DISABLE)

GOOD, BAD = 0x50, 0x41
"""Status: DRDY and DSC; DRDY and ERR."""
ABRT, IDNF, UNC, ICRC = 0x04, 0x10, 0x40, 0x80
"""The error register."""


class Trouble(Enum):
    """What may become of a command instead of an answer."""

    HANG = "hang"
    """Nothing is ever heard of it."""
    LINK = "link"
    """The link garbles its data: PxIS.IFS, and a CRC error in PxSERR."""
    BUS = "bus"
    """The host's memory refuses: PxIS.HBFS."""


@dataclass
class Answer:
    """How a command ends: the registers of the device's last FIS."""

    error: int = 0
    status: int = GOOD
    lba: int = 0
    count: int = 0
    device: int = 0x40
    trouble: Trouble | None = None
    moved: int = 0
    """Octets."""

    @property
    def failed(self) -> bool:
        return bool(self.status & 0x21)


def refused(error: int = ABRT, **registers: int) -> Answer:
    """ERR, and why."""
    return Answer(error, BAD, **registers)


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
    described: list[tuple[int, int]]
    """Memory as the slot describes it: address, and what stands for the octets."""
    target: int = 0
    """The port of a multiplier."""
    control: int | None = None
    """The control register, of a FIS that is about nothing else; bit 2 resets."""
    packet: bytes | None = None
    """A packet device's command."""
    auxiliary: int = 0

    @property
    def queued(self) -> bool:
        return self.control is None and self.code in QUEUED

    @property
    def by_pio(self) -> bool:
        return self.code in BY_PIO

    @property
    def sectors(self) -> int:
        if self.code in SHORT:
            return self.count & 0xFF or 256
        return (self.feature if self.queued else self.count) or 65536

    @property
    def fua(self) -> bool:
        return bool(self.queued and self.device & 0x80) or self.code == WRITE_FUA

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Memory for data: address, octets. Raises Misuse. Nobody looks for it if there are no data. AHCI 4.2.3.3."""
        for address, octets in self.described:
            if address & 1 or not octets & 1 or octets >> 22 & 0x1FF:
                raise Misuse(f"PRD {address:#x}, {octets:#x}")
        return [(address, (octets & 0x3F_FFFF) + 1) for address, octets in self.described]

    @property
    def octets(self) -> int:
        return sum(octets for _, octets in self.pieces)

    def gather(self, bus) -> bytes:
        """The data that the host sends."""
        return b"".join(bus.read(*piece) for piece in self.pieces)

    def scatter(self, bus, data: bytes) -> Answer:
        """The data that the host gets; the answer that says so."""
        moved = min(len(data), self.octets)
        for address, octets in self.pieces:
            if data:
                bus.write(address, data[:octets])
            data = data[octets:]
        return Answer(moved=moved)


def fetch(bus, command_list: int, slot: int) -> Command:
    """Read a slot as the adapter does. Raises Misuse for what no adapter or device takes."""
    flags, prds, _, table = struct.unpack("<HHIQ", bus.read(command_list + 32 * slot, 16))
    target = flags >> 12
    packet = bool(flags & 1 << 5)
    if flags & 0x1F != 5 or flags & 1 << 9 or flags & 1 << 11 or table & 0x7F:
        raise Misuse(f"command header {flags:#x}, table {table:#x}")
    fis = bus.read(table, 20)
    if fis[0] != 0x27 or fis[1] & 0x70 or fis[1] & 0xF != target or fis[15] & ~0x8E:
        raise Misuse(f"command FIS {fis.hex()} in a slot of target {target}")
    lba, device = int.from_bytes(fis[4:7] + fis[8:11], "little"), fis[7]
    c = Command(slot, fis[2], lba, fis[3] | fis[11] << 8, fis[12] | fis[13] << 8, device, bool(flags & 1 << 6),
                _described(bus, table, prds), target, auxiliary=int.from_bytes(fis[16:20], "little"))
    if not fis[1] & 0x80:
        c.control = fis[15]
        return c
    if packet != (c.code == PACKET):
        raise Misuse(f"the header's A bit does not fit command {c.code:#x}")
    if packet:
        c.packet = bus.read(table + 0x40, 16)
        return c
    if c.code in SHORT:
        c.lba = c.lba & 0xFF_FFFF | (device & 0xF) << 24
    if c.code in (*READS, *WRITES) and not device & 0x40:
        raise Misuse(f"command {c.code:#x} without the LBA bit")
    if c.queued and c.count >> 3 & 0x1F != slot:
        raise Misuse(f"tag {c.count >> 3} in slot {slot}")
    if (c.code in SENDS and not c.write) or (c.code in RECEIVES and c.write):
        raise Misuse(f"the header's W bit does not fit command {c.code:#x}")
    return c


def _described(bus, table: int, prds: int) -> list[tuple[int, int]]:
    descriptors = struct.iter_unpack("<QII", bus.read(table + 128, 16 * prds)) if prds else ()
    return [(address, octets) for address, _, octets in descriptors]
