"""What a drive says of itself in its 256 words of IDENTIFY DEVICE data, ACS-3 7.12.7, and whether that can be true.

A drive can say anything: every number is bounded here, so that nothing behind has to doubt it.
"""

import struct
from dataclasses import dataclass
from typing import Final

from drivers.disk import Feature

OCTETS: Final = 512
MOST_SECTORS: Final = 1 << 48
LARGEST_SECTOR: Final = 4096
LARGEST_PHYSICAL: Final = 1 << 16
_SIGNATURE: Final = 0xA5


class IdentifyError(ValueError):
    """The data cannot be true, or the drive lacks what the driver needs; the message says which."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A drive."""

    model: str
    serial: str
    firmware: str
    sectors: int
    sector_octets: int
    physical_octets: int
    queue_depth: int
    """1 without NCQ."""
    features: Feature
    plain_fua: bool
    """It has WRITE DMA FUA EXT."""
    rotation_rpm: int
    """0: not told, or it does not rotate."""

    @property
    def queued(self) -> bool:
        """Whether it does NCQ."""
        return Feature.QUEUE in self.features


def parse(data: bytes) -> Identity:
    """Raises IdentifyError."""
    if len(data) != OCTETS:
        raise IdentifyError(f"{len(data)} octets of identification, not {OCTETS}")
    word = struct.unpack("<256H", data)
    if word[0] & 0x8000:
        raise IdentifyError("it is no ATA disk: word 0 is that of a packet device")
    if word[255] & 0xFF == _SIGNATURE and sum(data) & 0xFF:
        raise IdentifyError("the checksum of its identification is wrong: a bad cable?")
    if not word[49] & 1 << 8:
        raise IdentifyError("it has no DMA")
    commands = _supported(word[82], word[83])
    if not commands >> 16 & 1 << 10:
        raise IdentifyError("it has no 48-bit addresses: drives of before 2003 are not driven")
    sectors = struct.unpack_from("<Q", data, 200)[0]
    if not 0 < sectors <= MOST_SECTORS:
        raise IdentifyError(f"it claims {sectors} sectors")
    sector, physical = _sector_sizes(word)
    queue = word[76] not in (0, 0xFFFF) and bool(word[76] & 1 << 8)
    return Identity(
        model=_text(data[54:94]), serial=_text(data[20:40]), firmware=_text(data[46:54]), sectors=sectors,
        sector_octets=sector, physical_octets=physical, queue_depth=(word[75] & 31) + 1 if queue else 1,
        features=_features(word, commands, queue), plain_fua=word[84] >> 14 == 0b01 and bool(word[84] & 1 << 6),
        rotation_rpm=word[217] if 0x401 <= word[217] <= 0xFFFE else 0)


def _supported(low: int, high: int) -> int:
    """Words 82 and 83 as one number; 0 when they say that they mean nothing."""
    return low | high << 16 if high >> 14 == 0b01 else 0


def _sector_sizes(word: tuple[int, ...]) -> tuple[int, int]:
    """Octets of a logical and of a physical sector, ACS-3 words 106, 117 and 118."""
    octets, shift = 512, 0
    if word[106] >> 14 == 0b01:
        if word[106] & 1 << 12:
            octets = (word[117] | word[118] << 16) * 2
        if word[106] & 1 << 13:
            shift = word[106] & 0xF
    if octets & octets - 1 or not 512 <= octets <= LARGEST_SECTOR:
        raise IdentifyError(f"it claims sectors of {octets} octets")
    physical = octets << shift
    return octets, physical if physical <= LARGEST_PHYSICAL else octets


def _features(word: tuple[int, ...], commands: int, queue: bool) -> Feature:
    more = word[84] if word[84] >> 14 == 0b01 else 0
    enabled = word[87] >> 14 == 0b01
    found = {
        Feature.QUEUE: queue,
        Feature.FUA: True,          # if need be by a flush after the write
        Feature.TRIM: bool(word[169] & 1) and word[169] != 0xFFFF,
        Feature.WRITE_CACHE: bool(commands & 1 << 5) and (not enabled or bool(word[85] & 1 << 5)),
        Feature.SMART: bool(commands & 1) and enabled and bool(word[85] & 1),
        Feature.ROTATING: 0x401 <= word[217] <= 0xFFFE,
        Feature.ERROR_LOG: queue and bool(more & 1 << 5),
    }
    return Feature(sum(feature for feature, there in found.items() if there))


def _text(swapped: bytes) -> str:
    """An ATA string: the octets of each word are swapped, spaces fill it. What is not printable becomes "?"."""
    octets = bytes(swapped[i ^ 1] for i in range(len(swapped)))
    return "".join(chr(octet) if 0x20 <= octet < 0x7F else "?" for octet in octets.rstrip(b"\0 ")).strip()


@dataclass(frozen=True, slots=True)
class QueuedError:
    """The NCQ command error log: which command failed, ACS-3 9.14."""

    tag: int
    status: int
    error: int


def parse_error_log(data: bytes) -> QueuedError | None:
    """The log's page; None when it tells of no queued command, or is damaged."""
    if len(data) != OCTETS or sum(data) & 0xFF or data[0] & 0x80:
        return None
    return QueuedError(data[0] & 0x1F, data[2], data[3])
