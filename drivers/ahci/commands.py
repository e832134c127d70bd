"""Commands of the driver's own, as data: what it asks a drive besides reading and writing. ACS-3 7, SATA 10.5.5.

Each is made by a function with the command's name; `Port.internal` carries it out.
"""

import struct
from dataclasses import dataclass, replace
from typing import Final

from drivers.registers import MS

SECOND: Final = 1_000 * MS
QUICK_NS: Final = 5 * SECOND
SLOW_NS: Final = 30 * SECOND
"""What moves a disk's heads, or empties its cache."""
SPIN_DOWN_NS: Final = 60 * SECOND
BLOCK: Final = 512
"""Of logs and pages, whatever the disk's sectors."""
CONTROL_PORT: Final = 15
"""Of a port multiplier: itself. SATA 16.3."""

_FIS_H2D: Final = 0x27
_IS_COMMAND: Final = 0x80
_LBA: Final = 0x40
_PACKET_DEVICE: Final = 0xA0
_HEADER_PACKET, _HEADER_WRITE, _HEADER_RESET, _HEADER_CLEAR = 1 << 5, 1 << 6, 1 << 8, 1 << 10
_HEADER_PM: Final = 12
_SRST: Final = 0x04

# General purpose logs, ACS-3 9.
ERROR_LOG: Final = 0x03
"""Extended comprehensive SMART error log."""
QUEUED_ERROR_LOG: Final = 0x10
QUEUED_SEND_LOG: Final = 0x13
"""What of SEND FPDMA QUEUED it has."""


@dataclass(frozen=True, slots=True)
class Own:
    """A command of our own."""

    name: str
    """In words, for an error that names it."""
    command: int
    features: int = 0
    count: int = 0
    lba: int = 0
    device: int = _LBA
    octets: int = 0
    """That it moves."""
    data: bytes = b""
    """To the device; else what it moves comes from it."""
    packet: bytes = b""
    timeout_ns: int = QUICK_NS
    control: int = 0
    is_control: bool = False
    """A FIS that writes the control register, not the command register."""

    def fis(self, pm: int = 0) -> bytes:
        """For the device at this port of a multiplier; 0 without one."""
        kind = pm | (0 if self.is_control else _IS_COMMAND)
        low, high = self.lba & 0xFF_FFFF, self.lba >> 24 & 0xFF_FFFF
        return struct.pack("<BBBBIIHBBI", _FIS_H2D, kind, self.command, self.features & 0xFF, low | self.device << 24,
                           high | (self.features >> 8) << 24, self.count, 0, self.control, 0)

    def with_packet_size(self, octets: int) -> "Own":
        """For a device whose packets have 12 or 16 octets."""
        return replace(self, packet=self.packet.ljust(octets, b"\0"))

    def flags(self, pm: int = 0) -> int:
        """The command header's."""
        return ((_HEADER_WRITE if self.data else 0) | (_HEADER_PACKET if self.packet else 0) | pm << _HEADER_PM
                | (_HEADER_RESET | _HEADER_CLEAR if self.is_control and self.control else 0))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command of our own brought: data, and the registers of its last FIS."""

    data: bytes
    fis: bytes

    @property
    def lba(self) -> int:
        """48 bits."""
        return int.from_bytes(self.fis[4:7] + self.fis[8:11], "little")

    @property
    def count(self) -> int:
        """16 bits."""
        return self.fis[12] | self.fis[13] << 8


def identify() -> Own:
    """ACS-3 7.12."""
    return Own("IDENTIFY DEVICE", 0xEC, octets=BLOCK)


def identify_packet() -> Own:
    """ACS-3 7.13."""
    return Own("IDENTIFY PACKET DEVICE", 0xA1, octets=BLOCK)


def read_log(log: int, page: int = 0, blocks: int = 1) -> Own:
    """READ LOG EXT, ACS-3 7.25."""
    return Own(f"READ LOG EXT of log {log:#04x}", 0x2F, count=blocks, octets=BLOCK * blocks,
               lba=log | (page & 0xFF) << 8 | (page >> 8 & 0xFF) << 32)


def flush() -> Own:
    """FLUSH CACHE EXT, ACS-3 7.10."""
    return Own("FLUSH CACHE EXT", 0xEA, timeout_ns=SLOW_NS)


def standby() -> Own:
    """STANDBY IMMEDIATE, ACS-3 7.56: the cache goes to the medium, and the medium stops."""
    return Own("STANDBY IMMEDIATE", 0xE0, timeout_ns=SPIN_DOWN_NS)


def check_power() -> Own:
    """CHECK POWER MODE, ACS-3 7.3; the count says which."""
    return Own("CHECK POWER MODE", 0xE5)


def set_features(subcommand: int, name: str, count: int = 0) -> Own:
    """SET FEATURES, ACS-3 7.45."""
    return Own(f"SET FEATURES {name}", 0xEF, features=subcommand, count=count)


def write_cache(on: bool) -> Own:
    """ACS-3 7.45.7."""
    return set_features(0x02 if on else 0x82, f"{'enable' if on else 'disable'} write cache")


def device_power(on: bool) -> Own:
    """The device may begin link power transitions, or not. ACS-3 7.45.16, SATA 13.16: SATA feature 03h."""
    return set_features(0x10 if on else 0x90, f"{'enable' if on else 'disable'} DIPM", 0x03)


def security_freeze() -> Own:
    """SECURITY FREEZE LOCK, ACS-3 7.37: no password can be set, nothing erased, until power is off."""
    return Own("SECURITY FREEZE LOCK", 0xF5)


# Erasing, ACS-3 7.35, 7.36, 7.39. The password is the user's, 32 octets, and gone when the erasing is done.

def security_set_password(password: bytes) -> Own:
    """SECURITY SET PASSWORD."""
    return Own("SECURITY SET PASSWORD", 0xF1, octets=BLOCK, data=_password(password))


def security_erase_prepare() -> Own:
    """SECURITY ERASE PREPARE."""
    return Own("SECURITY ERASE PREPARE", 0xF3)


def security_erase(password: bytes, enhanced: bool, timeout_ns: int) -> Own:
    """SECURITY ERASE UNIT."""
    return Own("SECURITY ERASE UNIT", 0xF4, octets=BLOCK, data=_password(password, 2 if enhanced else 0),
               timeout_ns=timeout_ns)


def security_disable(password: bytes) -> Own:
    """SECURITY DISABLE PASSWORD, for an erasing that was refused."""
    return Own("SECURITY DISABLE PASSWORD", 0xF6, octets=BLOCK, data=_password(password))


def _password(password: bytes, control: int = 0) -> bytes:
    return struct.pack("<H32s", control, password).ljust(BLOCK, b"\0")


# SMART, ACS-3 7.48: a magic number stands in the address.

_SMART_LBA: Final = 0xC24F00


def _smart(name: str, features: int, low: int = 0, octets: int = 0) -> Own:
    return Own(f"SMART {name}", 0xB0, features=features, lba=_SMART_LBA | low, octets=octets,
               count=octets // BLOCK, timeout_ns=QUICK_NS)


def smart_data() -> Own:
    """SMART READ DATA."""
    return _smart("READ DATA", 0xD0, octets=BLOCK)


def smart_thresholds() -> Own:
    """SMART READ THRESHOLDS, of ATA-3; drives still have it."""
    return _smart("READ THRESHOLDS", 0xD1, octets=BLOCK)


def smart_log(log: int) -> Own:
    """SMART READ LOG."""
    return _smart(f"READ LOG {log:#04x}", 0xD5, log, BLOCK)


def smart_enable() -> Own:
    """SMART ENABLE OPERATIONS."""
    return _smart("ENABLE OPERATIONS", 0xD8)


def smart_status() -> Own:
    """SMART RETURN STATUS; the address of the answer says which."""
    return _smart("RETURN STATUS", 0xDA)


def smart_test(subcommand: int) -> Own:
    """SMART EXECUTE OFF-LINE IMMEDIATE: 1 short, 2 extended, 127 abort."""
    return _smart("EXECUTE OFF-LINE IMMEDIATE", 0xD4, subcommand)


# Port multipliers, SATA 16.

def read_multiplier(port: int, register: int) -> Own:
    """READ PORT MULTIPLIER; `port` 15: a general register. The value is in the answer, see `multiplier_value`."""
    return Own(f"READ PORT MULTIPLIER register {register} of port {port}", 0xE4, features=register, device=port)


def write_multiplier(port: int, register: int, value: int) -> Own:
    """WRITE PORT MULTIPLIER."""
    return Own(f"WRITE PORT MULTIPLIER register {register} of port {port}", 0xE8, features=register, device=port,
               count=value & 0xFF, lba=value >> 8 & 0xFF_FFFF)


def multiplier_value(answer: Answer) -> int:
    """SATA 16.4: the count holds the lowest octet, the address the others."""
    return answer.fis[12] | (answer.lba & 0xFF_FFFF) << 8


def software_reset(on: bool) -> Own:
    """The two halves of a software reset. SATA 11.4, AHCI 10.4.1."""
    return Own("software reset", 0, control=_SRST if on else 0, is_control=True)


# Packets, MMC-6 6, SPC-4 6: sent by PACKET, ACS-3 7.18.

def packet(name: str, packet: bytes, octets: int = 0, timeout_ns: int = QUICK_NS) -> Own:
    """A packet command that reads so many octets, by PIO: the address holds how many go at a time."""
    return Own(name, 0xA0, lba=octets << 8, device=_PACKET_DEVICE, octets=octets, packet=packet.ljust(12, b"\0"),
               timeout_ns=timeout_ns)


def test_unit_ready() -> Own:
    """Whether there is a medium. SPC-4 6.47."""
    return packet("TEST UNIT READY", bytes([0x00]), timeout_ns=SLOW_NS)


def inquiry() -> Own:
    """SPC-4 6.6."""
    return packet("INQUIRY", bytes([0x12, 0, 0, 0, 36]), 36)


def request_sense() -> Own:
    """What the last error was. SPC-4 6.39."""
    return packet("REQUEST SENSE", bytes([0x03, 0, 0, 0, 18]), 18)


def read_capacity() -> Own:
    """The last block's number and the blocks' size. MMC-6 6.19."""
    return packet("READ CAPACITY", bytes([0x25]), 8, timeout_ns=SLOW_NS)
