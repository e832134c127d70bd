"""What a drive says of itself."""

import struct


def identification(sectors=4096, model="STRICT DISK", serial="S-1", firmware="1.0", depth=32, ncq=True, log=False, fua=False,
                   words=None) -> bytes:
    """512 octets of IDENTIFY DEVICE data; `words` are put over it last."""
    word = [0] * 256
    def text(at, octets, said):
        swapped = said.ljust(octets).encode()
        for i in range(octets // 2):
            word[at + i] = swapped[2 * i] << 8 | swapped[2 * i + 1]
    text(10, 20, serial)
    text(23, 8, firmware)
    text(27, 40, model)
    word[49] = 1 << 9 | 1 << 8
    word[75], word[76] = depth - 1, (1 << 8 if ncq else 0) | 1 << 1
    word[82], word[83], word[84] = 1 << 5 | 1, 1 << 14 | 1 << 13 | 1 << 10, 1 << 14 | (1 << 5 if log else 0) | fua << 6
    word[85], word[87] = 1 << 5 | 1, 1 << 14
    for i in range(4):
        word[100 + i] = sectors >> 16 * i & 0xFFFF
    word[106] = 1 << 14
    for at, value in (words or {}).items():
        word[at] = value
    return struct.pack("<256H", *word)
