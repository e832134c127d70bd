"""What a drive says of itself in its 256 words of IDENTIFY DEVICE data, ACS-3 7.12.7, and whether that can be true.

A drive can say anything: every number is bounded here, so that nothing behind has to doubt it.
"""

import struct
from dataclasses import dataclass, replace
from typing import Final

from drivers.ahci.options import ZeroingTrim
from drivers.disk import Feature

OCTETS: Final = 512
MOST_SECTORS: Final = 1 << 48
LARGEST_SECTOR: Final = 4096
LARGEST_PHYSICAL: Final = 1 << 16
_SIGNATURE: Final = 0xA5
_ONES: Final = 0xFFFF
_FORM_FACTORS: Final = {1: "5.25 inch", 2: "3.5 inch", 3: "2.5 inch", 4: "1.8 inch", 5: "less than 1.8 inch", 6: "mSATA",
                        7: "M.2", 8: "MicroSSD", 9: "CFast"}
_KEEP_THEIR_WORD: Final = ("MICRON", "CRUCIAL", "INTEL SSD", "SAMSUNG SSD", "SAMSUNG MZ7")
"""Beginnings of models for which Linux, too, has found that sectors are zeros after TRIM whenever the drive says so."""


class IdentifyError(ValueError):
    """The data cannot be true, or the drive lacks what the driver needs; the message says which."""


@dataclass(frozen=True, slots=True)
class Security:
    """The security feature set, words 82, 89, 90 and 128."""

    supported: bool = False
    enabled: bool = False
    """A password is set."""
    locked: bool = False
    frozen: bool = False
    enhanced: bool = False
    """It has the enhanced erase, which also reaches sectors that were replaced."""
    erase_minutes: int = 0
    enhanced_minutes: int = 0
    """0: not told."""


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
    wwn: str = ""
    """World wide name, 16 digits."""
    form_factor: str = ""
    aligned_at: int = 0
    """The first logical sector that begins a physical one."""
    fastest: int = 0
    """Generation of the link, 1 to 3; 0: not told."""
    host_power: bool = False
    """It takes the host's requests to put the link to sleep."""
    device_power: bool = False
    """It can put the link to sleep itself, if it may."""
    has_write_cache: bool = False
    logs: bool = False
    """It has READ LOG EXT."""
    has_smart: bool = False
    """It has SMART, which may be switched off."""
    has_self_test: bool = False
    send_queued: bool = False
    """It has SEND FPDMA QUEUED, for something."""
    queued_trim: bool = False
    security: Security = Security()
    trim_is: str = ""
    """What is read after TRIM: "" not told, "the same" every time, "zeros"."""

    @property
    def queued(self) -> bool:
        """Whether it does NCQ."""
        return Feature.QUEUE in self.features

    @property
    def write_cache(self) -> bool:
        """Whether it is on."""
        return Feature.WRITE_CACHE in self.features

    def with_write_cache(self, on: bool) -> "Identity":
        """The same drive, after it was switched."""
        return replace(self, features=self.features | Feature.WRITE_CACHE if on else self.features & ~Feature.WRITE_CACHE)


def parse(data: bytes, zeroing: ZeroingTrim = ZeroingTrim.AUTO) -> Identity:
    """`zeroing`: whether to believe a drive whose trimmed sectors are zeros. Raises IdentifyError."""
    word = _words(data)
    if word[0] & 0x8000:
        raise IdentifyError("it is no ATA disk: word 0 is that of a packet device")
    if not word[49] & 1 << 8:
        raise IdentifyError("it has no DMA")
    commands = _supported(word[82], word[83])
    if not commands >> 16 & 1 << 10:
        raise IdentifyError("it has no 48-bit addresses: drives of before 2003 are not driven")
    sectors = struct.unpack_from("<Q", data, 200)[0]
    if not 0 < sectors <= MOST_SECTORS:
        raise IdentifyError(f"it claims {sectors} sectors")
    sector, physical = _sector_sizes(word)
    sata = word[76] not in (0, _ONES)
    queue = sata and bool(word[76] & 1 << 8)
    more = word[84] if word[84] >> 14 == 0b01 else 0
    trim_is = _trim_is(word)
    model = text(data[54:94])
    features = _features(word, commands, queue)
    if trim_is == "zeros" and believes(zeroing, model):
        features |= Feature.WRITE_ZEROES | Feature.FAST_ZEROES
    return Identity(
        model=model, serial=text(data[20:40]), firmware=text(data[46:54]), sectors=sectors,
        sector_octets=sector, physical_octets=physical, queue_depth=(word[75] & 31) + 1 if queue else 1,
        features=features, plain_fua=bool(more & 1 << 6),
        rotation_rpm=word[217] if 0x401 <= word[217] <= 0xFFFE else 0,
        wwn="".join(f"{part:04x}" for part in word[108:112]) if more & 1 << 8 else "",
        form_factor=_FORM_FACTORS.get(word[168] & 0xF, "") if word[168] != _ONES else "",
        aligned_at=-(word[209] & 0x3FFF) % (physical // sector) if word[209] >> 14 == 0b01 else 0,
        fastest=max((generation for generation in (1, 2, 3) if word[76] >> generation & 1), default=0) if sata else 0,
        host_power=sata and bool(word[76] & 1 << 9), device_power=sata and word[78] != _ONES and bool(word[78] & 1 << 3),
        has_write_cache=bool(commands & 1 << 5), logs=bool(more & 1 << 5), has_smart=bool(commands & 1),
        has_self_test=bool(more & 1 << 1), send_queued=queue and word[77] != _ONES and bool(word[77] & 1 << 6),
        security=_security(word, commands), trim_is=trim_is)


def _words(data: bytes) -> tuple[int, ...]:
    """The 256 words, if they arrived whole. Raises IdentifyError."""
    if len(data) != OCTETS:
        raise IdentifyError(f"{len(data)} octets of identification, not {OCTETS}")
    word = struct.unpack("<256H", data)
    if word[255] & 0xFF == _SIGNATURE and sum(data) & 0xFF and not word[0] & 0x8000:
        raise IdentifyError("the checksum of its identification is wrong: a bad cable?")
    return word


def believes(zeroing: ZeroingTrim, model: str) -> bool:
    """Whether a drive of this model that promises zeros after TRIM is believed."""
    return zeroing is ZeroingTrim.ALWAYS or (zeroing is ZeroingTrim.AUTO and model.upper().startswith(_KEEP_THEIR_WORD))


def _trim_is(word: tuple[int, ...]) -> str:
    """Words 69 and 169: DRAT, and with it RZAT."""
    if not word[169] & 1 or _ONES in (word[69], word[169]) or not word[69] & 1 << 14:
        return ""
    return "zeros" if word[69] & 1 << 5 else "the same"


def _security(word: tuple[int, ...], commands: int) -> Security:
    if not commands & 1 << 1 or word[128] == _ONES or not word[128] & 1:
        return Security()
    enabled, locked, frozen, enhanced = (bool(word[128] & 1 << bit) for bit in (1, 2, 3, 5))
    return Security(True, enabled, locked, frozen, enhanced, _minutes(word[89]), _minutes(word[90]))


def _minutes(value: int) -> int:
    """Words 89 and 90: in steps of two minutes, in 8 or, when the highest bit says so, 15 bits."""
    return 2 * (value & 0x7FFF if value & 0x8000 else value & 0xFF) if value != _ONES else 0


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


def text(swapped: bytes) -> str:
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


def queued_trim(data: bytes) -> bool:
    """The NCQ send and receive log: whether TRIM can be queued. ACS-3 9.15."""
    return len(data) == OCTETS and bool(data[0] & 1) and bool(data[4] & 1)
