"""Partition tables: what a disk's MBR (with extended partitions) or GPT says, believed only as far as it can be true.

Bounded in every direction: a partition lies on the disk, behind the tables, and overlaps no other; chains end. A table that
breaks a rule is an error that names the rule. Nothing is repaired, and nothing is written. UEFI 2.10 5.2 and 5.3.
"""

import itertools
import struct
import uuid
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

MAX_PARTITIONS: Final = 128
_MAX_GPT_OCTETS: Final = 1 << 16
"""Of the array of entries; 128 entries of 128 octets are the least that a table has, and what everyone makes."""
_MBR_SIGNATURE: Final = b"\x55\xaa"
_GPT_SIGNATURE: Final = b"EFI PART"
_GPT_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_GPT_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
_MBR_ENTRY: Final = struct.Struct("<B3xB3xII")
_EXTENDED: Final = (0x05, 0x0F, 0x85)
_PROTECTIVE: Final = 0xEE
_FIRST_LOGICAL: Final = 5

Read = Callable[[int, int], Awaitable[bytes]]
"""So many sectors from one on; raises drivers.errors.DeviceError."""


class TableWrong(ValueError):
    """A partition table that cannot be believed; the message says which rule it breaks."""


class Partition(NamedTuple):
    """One partition, in the disk's sectors."""

    number: int
    lba: int
    sectors: int
    kind: str
    """GPT: the type's GUID; MBR: its number, "0x83"."""
    name: str = ""
    identity: str = ""
    """GPT: the partition's own GUID."""


@dataclass(frozen=True, slots=True)
class Table:
    """What was found."""

    kind: Literal["gpt", "mbr"]
    partitions: tuple[Partition, ...]
    identity: str = ""
    """The disk's GUID, or the MBR's signature."""
    note: str = ""
    """What is wrong with it though it could be read."""


async def read_table(read: Read, sectors: int, sector_octets: int) -> Table | None:
    """The disk's partition table; None when there is none. Reads little. Raises TableWrong, and what `read` raises."""
    if sectors < 4:
        return None
    first = await read(0, 1)
    mbr = first[:512]
    if mbr[510:512] != _MBR_SIGNATURE:
        return None
    entries = _mbr_entries(mbr)
    if any(kind == _PROTECTIVE for kind, _, _ in entries):
        return await _read_gpt(read, sectors, sector_octets)
    if _looks_like_a_boot_sector(mbr, entries):
        return None
    return await _read_mbr(read, sectors, mbr, entries)


# MBR

def _mbr_entries(sector: bytes) -> list[tuple[int, int, int]]:
    """(type, first sector, sectors) of the four."""
    return [_MBR_ENTRY.unpack_from(sector, 446 + 16 * i)[1:] for i in range(4)]


def _looks_like_a_boot_sector(mbr: bytes, entries: list[tuple[int, int, int]]) -> bool:
    """FAT and NTFS begin with 55 AA at 510, too, and code or text where a table would be."""
    flags = {mbr[446 + 16 * i] for i in range(4)}
    return not flags <= {0, 0x80} or not any(kind and count for kind, _, count in entries)


async def _read_mbr(read: Read, sectors: int, mbr: bytes, entries: list[tuple[int, int, int]]) -> Table:
    found: list[Partition] = []
    for number, (kind, lba, count) in enumerate(entries, 1):
        if not kind or not count:
            continue
        if lba == 0 or lba + count > sectors:
            raise TableWrong(f"MBR: partition {number}, {count} sectors at {lba}, is not on this disk of {sectors}")
        if kind in _EXTENDED:
            found += await _read_logical(read, lba, count, len(found))
        else:
            found.append(Partition(number, lba, count, f"{kind:#04x}"))
    return Table("mbr", _checked(found), f"{int.from_bytes(mbr[440:444], 'little'):08x}")


async def _read_logical(read: Read, begin: int, count: int, before: int) -> list[Partition]:
    """The chain inside an extended partition: each link has a partition and where the next link is, which is further on."""
    found: list[Partition] = []
    at, end = begin, begin + count
    while True:
        sector = await read(at, 1)
        if sector[510:512] != _MBR_SIGNATURE:
            if at == begin:
                return found            # extended, and nothing in it yet
            raise TableWrong(f"MBR: the extended partition's chain is broken at sector {at}")
        (kind, lba, length), (next_kind, next_lba, next_length), *_ = _mbr_entries(sector)
        if kind and length:
            if lba == 0 or at + lba + length > end:
                raise TableWrong(f"MBR: a logical partition, {length} sectors at {at + lba}, is not in its extended one")
            if before + len(found) >= MAX_PARTITIONS:
                raise TableWrong(f"MBR: more than {MAX_PARTITIONS} partitions")
            found.append(Partition(_FIRST_LOGICAL + len(found), at + lba, length, f"{kind:#04x}"))
        if next_kind not in _EXTENDED or not next_length:
            return found
        if not at < begin + next_lba < end:
            raise TableWrong(f"MBR: the extended partition's chain leads from sector {at} to {begin + next_lba}: not onward")
        at = begin + next_lba


# GPT

async def _read_gpt(read: Read, sectors: int, sector_octets: int) -> Table:
    """The first copy, or the one at the disk's end when that one alone holds."""
    try:
        return await _read_gpt_copy(read, 1, sectors, sector_octets)
    except TableWrong as wrong:
        try:
            second = await _read_gpt_copy(read, sectors - 1, sectors, sector_octets)
        except TableWrong:
            raise wrong from None
        return Table(second.kind, second.partitions, second.identity,
                     f"the first copy is damaged ({wrong}), the one at the end was used: repair it, with sgdisk for example")


async def _read_gpt_copy(read: Read, at: int, sectors: int, sector_octets: int) -> Table:
    octets = await read(at, 1)
    (signature, revision, header_octets, checksum, _, own, _, first, last, disk, entries_at, count, entry_octets,
     entries_checksum) = _GPT_HEADER.unpack_from(octets)
    if signature != _GPT_SIGNATURE:
        raise TableWrong(f"GPT: there is no header at sector {at}")
    if not _GPT_HEADER.size <= header_octets <= sector_octets or revision >> 16 != 1:
        raise TableWrong(f"GPT: a header of {header_octets} octets, revision {revision:#x}")
    if zlib.crc32(octets[:16] + bytes(4) + octets[20:header_octets]) != checksum:
        raise TableWrong(f"GPT: the checksum of the header at sector {at} is wrong")
    if own != at:
        raise TableWrong(f"GPT: the header at sector {at} says that it is at {own}")
    if entry_octets < 128 or entry_octets & (entry_octets - 1) or not 0 < count * entry_octets <= _MAX_GPT_OCTETS:
        raise TableWrong(f"GPT: {count} entries of {entry_octets} octets")
    length = -(-count * entry_octets // sector_octets)
    if not (entries_at >= 2 and entries_at + length <= sectors) or not 2 <= first <= last + 1 <= sectors:
        raise TableWrong(f"GPT: entries at sector {entries_at} and usable sectors {first} to {last} are not on this disk")
    table = (await read(entries_at, length))[:count * entry_octets]
    if zlib.crc32(table) != entries_checksum:
        raise TableWrong("GPT: the checksum of its entries is wrong")
    found = []
    for number in range(1, count + 1):
        kind, identity, begin, end, _, name = _GPT_ENTRY.unpack_from(table, (number - 1) * entry_octets)
        if not any(kind):
            continue
        if not first <= begin <= end <= last:
            raise TableWrong(f"GPT: partition {number}, sectors {begin} to {end}, is not within the usable {first} to {last}")
        found.append(Partition(number, begin, end - begin + 1, _guid(kind), _text(name), _guid(identity)))
    return Table("gpt", _checked(found), _guid(disk))


def _guid(octets: bytes) -> str:
    return str(uuid.UUID(bytes_le=octets))


def _text(octets: bytes) -> str:
    """A name; what no terminal should be sent is left out."""
    text = octets.decode("utf-16-le", "replace").partition("\0")[0]
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _checked(found: list[Partition]) -> tuple[Partition, ...]:
    """By number. Raises TableWrong where two share a sector."""
    if len(found) > MAX_PARTITIONS:
        raise TableWrong(f"more than {MAX_PARTITIONS} partitions")
    in_order = sorted(found, key=lambda each: each.lba)
    for one, other in itertools.pairwise(in_order):
        if one.lba + one.sectors > other.lba:
            raise TableWrong(f"partitions {one.number} and {other.number} overlap")
    return tuple(sorted(found))
