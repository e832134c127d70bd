"""Packet devices, ATAPI: a drive for CDs and DVDs, whose medium is a read-only disk. ACS-3 7.18, SPC-4, MMC-6.

The drive stays; the medium comes and goes. So each medium is a disk of its own, and without one the port has none.
"""

import errno
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from drivers.ahci import commands
from drivers.ahci.identify import Identity, IdentifyError, text
from drivers.ahci.options import LinkPower
from drivers.ahci.port import Refused
from drivers.ahci.steps import Pause, Procedure
from drivers.disk import Feature
from drivers.registers import MS

if TYPE_CHECKING:
    from drivers.ahci.disk import AhciDisk
    from drivers.ahci.life import AhciPort

AGAIN: Final = -1
"""In place of an errno: the command failed because of something that had happened before, and is to be tried again."""
SECTOR: Final = 2048
MOST_BLOCKS: Final = 1 << 32
CD_OR_DVD: Final = 5
"""Peripheral device type. SPC-4 6.6.2."""
READY_TRIES: Final = 20
BETWEEN_TRIES_NS: Final = 500 * MS
"""A drive reads a new medium's tables for some seconds."""
ATTENTIONS: Final = 4
"""So many unit attentions in a row are taken before it is given up: each tells of one thing that has happened."""

# Sense keys, SPC-4 4.5.6, and additional codes.
_NOT_READY, _MEDIUM_ERROR, _ILLEGAL, _ATTENTION, _PROTECT = 2, 3, 5, 6, 7
_BECOMING_READY, _BEYOND_END, _CHANGED, _NO_MEDIUM = 0x04, 0x21, 0x28, 0x3A


@dataclass(frozen=True, slots=True)
class Sense:
    """What a packet device says of its last error. SPC-4 4.5.3."""

    key: int
    code: int
    qualifier: int

    @property
    def no_medium(self) -> bool:
        """Nothing is in the drive."""
        return self.key == _NOT_READY and self.code == _NO_MEDIUM

    @property
    def wait(self) -> bool:
        """It is on its way to ready."""
        return self.key == _NOT_READY and self.code == _BECOMING_READY

    @property
    def changed(self) -> bool:
        """There may be another medium now."""
        return self.key == _ATTENTION and self.code == _CHANGED

    @property
    def errno(self) -> int:
        """For a read that ended so, or AGAIN."""
        if self.no_medium or self.changed:
            return errno.ENOMEDIUM
        if self.key == _ATTENTION:
            return AGAIN
        if self.key == _ILLEGAL:
            return errno.EINVAL if self.code == _BEYOND_END else errno.EIO
        return {_MEDIUM_ERROR: errno.ENODATA, _PROTECT: errno.EROFS}.get(self.key, errno.EIO)


def parse_sense(data: bytes) -> Sense:
    """Fixed format."""
    return Sense(data[2] & 0xF, data[12], data[13])


@dataclass(frozen=True, slots=True)
class PacketIdentity:
    """A packet device, IDENTIFY PACKET DEVICE, ACS-3 7.13."""

    model: str
    serial: str
    firmware: str
    type: int
    packet_octets: int


def parse_packet(data: bytes) -> PacketIdentity:
    """Raises IdentifyError."""
    if len(data) != 512:
        raise IdentifyError(f"{len(data)} octets of identification, not 512")
    word = struct.unpack("<256H", data)
    if word[0] >> 14 != 0b10:
        raise IdentifyError("it is no packet device, although its signature says so")
    if word[0] & 3 > 1:
        raise IdentifyError("its packets are neither of 12 nor of 16 octets")
    if not word[49] & 1 << 8:
        raise IdentifyError("it has no DMA")
    return PacketIdentity(text(data[54:94]), text(data[20:40]), text(data[46:54]), word[0] >> 8 & 0x1F,
                          16 if word[0] & 3 else 12)


class PacketDrive:
    """A drive for media, with or without one."""

    kind = "packet"
    link_power = LinkPower.ACTIVE
    asks = True

    def __init__(self, identity: PacketIdentity) -> None:
        self.identity = identity

    def ask(self, life: "AhciPort") -> Procedure:
        """Has the medium come, gone or changed?"""
        there = any(not disk.gone for disk in life.disks)
        ready, changed = yield from self._ready(life, patient=False)
        if there and (changed or not ready):
            life.remove(0, "its medium was taken out")
            there = False
        if ready and not there:
            yield from self.load(life)

    def load(self, life: "AhciPort") -> Procedure:
        """The medium as a disk of the port, if there is one that can be read."""
        ready, _ = yield from self._ready(life, patient=True)
        life.reason = ""
        if not ready:
            life.reason = "no medium is in the drive"
            life.remove(0, "its medium was taken out")
            return
        try:
            last, octets = struct.unpack(">II", (yield from self._packet(life, commands.read_capacity())))
        except Refused as why:
            life.reason = f"the medium cannot be read: {why}"
            return
        if octets != SECTOR or not 0 < last + 1 < MOST_BLOCKS:
            life.reason = f"the medium claims {last + 1} blocks of {octets} octets: only those with {SECTOR} are read"
            return
        own = self.identity
        life.place(Identity(own.model, own.serial, own.firmware, last + 1, SECTOR, SECTOR, 1, Feature.READ_ONLY, False, 0),
                   pack=self)

    def why(self, life: "AhciPort", _disk: "AhciDisk") -> Procedure:
        """The errno of the command that has just failed, or AGAIN: REQUEST SENSE tells. The command engine runs."""
        try:
            sense = yield from self._sense(life)
        except Refused:
            return errno.EIO
        if sense.no_medium or sense.changed:
            life.ask_soon()
        return sense.errno

    def _ready(self, life: "AhciPort", patient: bool) -> Procedure:
        """(whether there is a medium, whether it is said to have changed). `patient`: wait for one that is being loaded."""
        changed = False
        attentions = 0
        for _ in range(READY_TRIES):
            try:
                yield from self._packet(life, commands.test_unit_ready())
                return True, changed
            except Refused:
                sense = yield from self._sense(life)
            if sense.key == _ATTENTION and attentions < ATTENTIONS:
                attentions += 1
                changed = changed or sense.changed
            elif sense.wait and patient:
                yield Pause(BETWEEN_TRIES_NS)
            else:
                return False, changed
        return False, changed

    def _sense(self, life: "AhciPort") -> Procedure:
        return parse_sense((yield from self._packet(life, commands.request_sense())))

    def _packet(self, life: "AhciPort", own: commands.Own) -> Procedure:
        """What it answers. Raises Refused."""
        return (yield from life.port.internal(own.with_packet_size(self.identity.packet_octets))).data


def attach(life: "AhciPort") -> Procedure:
    """A packet device is there: find out what it is, and load its medium. A PacketDrive, or None, see `life.reason`."""
    found = parse_packet((yield from life.port.internal(commands.identify_packet())).data)
    if found.type != CD_OR_DVD:
        life.reason = f"a packet device of type {found.type}, {found.model}: only drives for CDs and DVDs are driven"
        return None
    drive = PacketDrive(found)
    with suppress(Refused):         # what it says there is of no use here, but it takes the first unit attention
        yield from drive._packet(life, commands.inquiry())
    yield from drive.load(life)
    return drive
