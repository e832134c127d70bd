"""What the first octets of a disk look like: partition tables and filesystems, so that nobody overwrites one unawares.

Magic numbers only, at the places their formats put them (as wipefs(8) knows them); nothing is parsed or trusted.
"""

from typing import Final, NamedTuple

LOOKED_AT: Final = 128 << 10
"""How many octets from the beginning `recognise` wants."""


class Magic(NamedTuple):
    """Octets that stand at an offset of everything of this kind."""

    name: str
    offset: int
    octets: bytes


MAGICS: Final = (
    Magic("a GPT partition table", 512, b"EFI PART"),
    Magic("a GPT partition table", 4096, b"EFI PART"),      # with sectors of 4096 octets
    Magic("an ext2, ext3 or ext4 filesystem", 1024 + 56, b"\x53\xef"),
    Magic("an XFS filesystem", 0, b"XFSB"),
    Magic("a Btrfs filesystem", (64 << 10) + 64, b"_BHRfS_M"),
    Magic("an F2FS filesystem", 1024, b"\x10\x20\xf5\xf2"),
    Magic("an NTFS filesystem", 3, b"NTFS    "),
    Magic("an exFAT filesystem", 3, b"EXFAT   "),
    Magic("a FAT filesystem", 54, b"FAT1"),
    Magic("a FAT filesystem", 82, b"FAT32   "),
    Magic("an ISO 9660 filesystem", (32 << 10) + 1, b"CD001"),
    Magic("a SquashFS filesystem", 0, b"hsqs"),
    Magic("swap space", 4096 - 10, b"SWAPSPACE2"),
    Magic("a LUKS volume", 0, b"LUKS\xba\xbe"),
    *(Magic("an LVM physical volume", sector * 512, b"LABELONE") for sector in range(4)),
    Magic("a member of a Linux RAID", 4096, b"\xfc\x4e\x2b\xa9"),
    Magic("a member of a Linux RAID", 0, b"\xfc\x4e\x2b\xa9"),
)
_MBR: Final = b"\x55\xaa"
_MBR_AT: Final = 510
_MBR_TYPES_AT: Final = (450, 466, 482, 498)
_PROTECTIVE: Final = 0xEE


def recognise(octets: bytes) -> list[str]:
    """What is known of it, in words; empty when nothing is, "zeros" when there is nothing else."""
    if octets and not any(octets):
        return ["zeros"]
    found = [magic.name for magic in MAGICS if octets.startswith(magic.octets, magic.offset)]
    types = [octets[at] for at in _MBR_TYPES_AT if at < len(octets)]
    boot_sector = any(name.endswith(("NTFS filesystem", "FAT filesystem")) for name in found)      # these have 55 AA too
    if octets.startswith(_MBR, _MBR_AT) and any(types) and _PROTECTIVE not in types and not boot_sector:
        found.insert(0, "an MBR partition table")
    return list(dict.fromkeys(found))
