"""What a drive says of itself."""

import struct


def text(word: list[int], at: int, octets: int, said: str) -> None:
    """An ATA string: padded, the octets of each word swapped."""
    swapped = said.ljust(octets).encode()
    for i in range(octets // 2):
        word[at + i] = swapped[2 * i] << 8 | swapped[2 * i + 1]


def packed(word: list[int]) -> bytes:
    """The 512 octets."""
    return struct.pack("<256H", *word)


def identification(sectors=4096, model="STRICT DISK", serial="S-1", firmware="1.0", depth=32, ncq=True, log=False, fua=False,
                   words=None) -> bytes:
    """512 octets of IDENTIFY DEVICE data; `words` are put over it last."""
    word = [0] * 256
    text(word, 10, 20, serial)
    text(word, 23, 8, firmware)
    text(word, 27, 40, model)
    word[49] = 1 << 9 | 1 << 8
    word[75], word[76] = depth - 1, (1 << 8 if ncq else 0) | 1 << 1
    word[82], word[83], word[84] = 1 << 5 | 1, 1 << 14 | 1 << 13 | 1 << 10, 1 << 14 | (1 << 5 if log else 0) | fua << 6
    word[85], word[87] = 1 << 5 | 1, 1 << 14
    for i in range(4):
        word[100 + i] = sectors >> 16 * i & 0xFFFF
    word[106] = 1 << 14
    for at, value in (words or {}).items():
        word[at] = value
    return packed(word)


def full_identification(drive) -> bytes:
    """The same of a drive with everything that this model knows, as it stands now (security, caches, SMART)."""
    word = list(struct.unpack("<256H", identification(drive.sectors, drive.model, drive.serial, "2.0", log=True, fua=True)))
    word[0], word[47], word[48] = 0x0040, 0x8010, 0x4000
    word[49] |= 1 << 13 | 1 << 11 | 1 << 10                     # standby timer, IORDY
    word[50] = 0x4000
    word[53] = 7
    word[59] = 0x100 | drive.multiple
    word[60], word[61] = (min(drive.sectors, 0xFFF_FFFF) >> n & 0xFFFF for n in (0, 16))
    word[63], word[64] = 0x07, 0x03                             # multiword DMA 0 to 2, PIO 3 and 4
    word[65] = word[66] = word[67] = word[68] = 120
    if drive.trim:
        word[69] = 1 << 14 | 1 << 5                             # reads after trim are deterministic, and zeros
        word[105], word[169] = 8, 1
    word[76] |= 1 << 2 | 1 << 3 | 1 << 9                        # 3 and 6 Gb/s, HIPM
    word[77] = (drive.trim and drive.queued_trim) << 6
    word[78], word[79] = 1 << 3, drive.device_power << 3        # DIPM
    word[80] = 0x7F0                                            # ATA-4 to ACS-3
    word[82] = 1 << 14 | 1 << 6 | 1 << 5 | 1 << 3 | 1 << 1 | 1      # NOP, look-ahead, cache, power, security, SMART
    word[83] = 1 << 14 | 1 << 13 | 1 << 12 | 1 << 10
    word[84] = 1 << 14 | 1 << 6 | 1 << 5 | 1 << 1 | 1           # FUA, GPL, self-test, error logging
    word[85] = word[82] & ~(1 << 5 | 1 << 1 | 1) | drive.cache << 5 | drive.security.enabled << 1 | drive.smart.enabled
    word[86], word[87] = 1 << 15 | 1 << 13 | 1 << 12 | 1 << 10, word[84]
    word[88] = 0x407F                                           # UDMA 0 to 6, 6 is selected
    word[93] = 0
    if drive.sector_octets != 512:
        word[106] |= 1 << 12
        word[117], word[118] = drive.sector_octets // 2 & 0xFFFF, drive.sector_octets // 2 >> 16
    elif drive.physical_octets != 512:
        word[106] |= 1 << 13 | (drive.physical_octets // 512).bit_length() - 1
    word[119], word[120] = 1 << 14 | 1 << 3, 1 << 14            # READ LOG DMA EXT
    word[128] = drive.security.word()
    word[217] = 1 if drive.trim else 7200
    word[222] = 0x1000 | 0xFF
    word[255] = 0xA5
    word[255] |= (-sum(packed(word)) & 0xFF) << 8
    return packed(word)
