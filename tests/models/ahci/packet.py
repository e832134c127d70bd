"""A packet device: a CD drive and its disc. SATA's part is ACS-3 7.18 and 7.43, the packets are SPC-4's and MMC-6's."""

import struct
from dataclasses import dataclass, field

from drivers.ahci.registers import Signature
from tests.models.ahci import commands as ata
from tests.models.ahci.commands import Answer, Command, Trouble, refused
from tests.models.ahci.identity import packed, text

SECTOR = 2048
TEST_READY, REQUEST_SENSE, INQUIRY, START_STOP, PREVENT, CAPACITY = 0x00, 0x03, 0x12, 0x1B, 0x1E, 0x25
READ_10, READ_12, READ_TOC, CONFIGURATION, EVENT, DISC_INFORMATION, MODE_SENSE = 0x28, 0xA8, 0x43, 0x46, 0x4A, 0x51, 0x5A
NOT_READY, MEDIUM_ERROR, ILLEGAL_REQUEST, UNIT_ATTENTION = 2, 3, 5, 6
NO_MEDIUM, CHANGED, WAS_RESET, UNREADABLE, INVALID, OUT_OF_RANGE = 0x3A00, 0x2800, 0x2900, 0x1100, 0x2000, 0x2100


class Check(Exception):
    """CHECK CONDITION: sense key, additional code and qualifier."""


@dataclass
class Disc:
    """A drive with a disc, or without (`disc` None)."""

    disc: bytes | None = None
    model: str = "STRICT CD-ROM"
    serial: str = "C-1"
    signature: int = int(Signature.PACKET)
    unreadable: set = field(default_factory=set)
    executed: list = field(default_factory=list)
    dead: bool = False
    """It answers no command any more."""

    def __post_init__(self):
        self.sense = (0, 0)
        self.attention: int | None = WAS_RESET
        self.changed = False
        self.locked = False

    def join(self, port) -> None:
        """Where it is plugged in."""

    def start(self) -> None:
        """Power on, or COMRESET."""
        self.attention = WAS_RESET

    def soft_reset(self, target: int) -> int:
        """The signature that it answers with."""
        return self.signature

    def insert(self, disc: bytes | None) -> None:
        """Another disc, or none."""
        self.disc = disc
        self.changed = True
        self.attention = CHANGED

    def identify(self) -> bytes:
        """IDENTIFY PACKET DEVICE data. ACS-3 7.13."""
        word = [0] * 256
        word[0] = 2 << 14 | 5 << 8 | 1 << 7 | 2 << 5         # CD, removable, DRQ within 50 us, packets of 12 octets
        text(word, 10, 20, self.serial)
        text(word, 23, 8, "1.0")
        text(word, 27, 40, self.model)
        word[49] = 1 << 9 | 1 << 8 | 1 << 11 | 1 << 10
        word[53], word[63], word[64] = 6, 7, 3
        word[65] = word[66] = word[67] = word[68] = 120
        word[76], word[80], word[88] = 1 << 1, 0x7E, 0x203F
        word[82], word[83] = 1 << 4 | 1 << 9 | 1 << 14, 1 << 14
        word[85], word[87] = 1 << 4, 1 << 14
        return packed(word)

    def execute(self, c: Command, bus) -> Answer:
        """Carry a command out."""
        if self.dead:
            return Answer(trouble=Trouble.HANG)
        if c.code == ata.PACKET:
            return self._packet(c, bus)
        self.executed.append(c.code)
        if c.code == ata.IDENTIFY_PACKET:
            return c.scatter(bus, self.identify())
        if c.code in (ata.SET_FEATURES, ata.STANDBY_NOW, ata.IDLE_NOW, ata.FLUSH, ata.FLUSH_28):
            return Answer()
        if c.code == ata.IDENTIFY:
            return refused(lba=(int(self.signature) >> 8))
        return refused()

    def _packet(self, c: Command, bus) -> Answer:
        packet = c.packet
        self.executed.append(packet[0])
        try:
            data = self._do(packet)
        except Check as why:
            self.sense = why.args
            key, _ = self.sense
            return refused(key << 4 | ata.ABRT)
        answer = c.scatter(bus, data)
        answer.count = 3                        # interrupt reason: command and data are over
        return answer

    def _do(self, packet: bytes) -> bytes:
        code = packet[0]
        if code == INQUIRY:
            return self._inquiry()[:int.from_bytes(packet[3:5], "big")]
        if code == REQUEST_SENSE:
            return self._request_sense()[:packet[4]]
        if self.attention is not None and code not in (EVENT, CONFIGURATION):
            what, self.attention = self.attention, None
            raise Check(UNIT_ATTENTION, what)
        if code in (PREVENT, START_STOP):
            self.locked = bool(packet[4] & 1) if code == PREVENT else self.locked
            return b""
        if code == EVENT:
            return self._event(packet)
        if code == CONFIGURATION:
            return struct.pack(">IHH", 4, 0, 0x0008)[:int.from_bytes(packet[7:9], "big")]
        if code == MODE_SENSE:
            return self._mode(packet)
        return self._medium(code, packet)

    def _medium(self, code: int, packet: bytes) -> bytes:
        """What needs a disc."""
        if code not in (TEST_READY, CAPACITY, READ_10, READ_12, READ_TOC, DISC_INFORMATION):
            raise Check(ILLEGAL_REQUEST, INVALID)
        if self.disc is None:
            raise Check(NOT_READY, NO_MEDIUM)
        if code == CAPACITY:
            return struct.pack(">II", len(self.disc) // SECTOR - 1, SECTOR)
        if code in (READ_10, READ_12):
            lba, = struct.unpack_from(">I", packet, 2)
            count = int.from_bytes(packet[7:9] if code == READ_10 else packet[6:10], "big")
            return self._read(lba, count)
        if code == READ_TOC:
            end = len(self.disc) // SECTOR
            return struct.pack(">HBBBBBBIBBBBI", 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0x14, 0xAA, 0, end)
        if code == DISC_INFORMATION:
            return (struct.pack(">H", 32) + bytes([0x0E, 1, 1, 1, 1])).ljust(34, b"\0")
        return b""

    def _read(self, lba: int, count: int) -> bytes:
        if (lba + count) * SECTOR > len(self.disc):
            raise Check(ILLEGAL_REQUEST, OUT_OF_RANGE)
        if self.unreadable.intersection(range(lba, lba + count)):
            raise Check(MEDIUM_ERROR, UNREADABLE)
        return self.disc[lba * SECTOR:(lba + count) * SECTOR]

    def _inquiry(self) -> bytes:
        return struct.pack("BBBBBxxx8s16s4s", 5, 0x80, 5, 0x32, 31, b"RUSTOSD ", self.model.ljust(16).encode()[:16], b"1.0 ")

    def _request_sense(self) -> bytes:
        (key, code), self.sense = self.sense, (0, 0)
        return struct.pack(">BBBIBIHBBH", 0x70, 0, key, 0, 10, 0, code, 0, 0, 0)

    def _event(self, packet: bytes) -> bytes:
        """Media events, by polling. MMC-6 6.6."""
        if not packet[1] & 1:
            raise Check(ILLEGAL_REQUEST, INVALID)
        changed, self.changed = self.changed, False
        event = 0 if not changed else 2 if self.disc is not None else 3
        return struct.pack(">HBBBBBB", 6, 4, 1 << 4, event, 2 if self.disc is not None else 0, 0, 0)

    def _mode(self, packet: bytes) -> bytes:
        """The page of a drive's capabilities. MMC-3 6.3.11."""
        if packet[2] & 0x3F != 0x2A:
            raise Check(ILLEGAL_REQUEST, INVALID)
        page = bytes([0x2A, 18, 0x03, 0, 0x01, 0, 0x29, 0]) + struct.pack(">HHHH", 706, 0, 512, 706) + bytes(4)
        return (struct.pack(">HBxxxH", len(page) + 6, 0, 0) + page)[:int.from_bytes(packet[7:9], "big")]
