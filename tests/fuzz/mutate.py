"""Damage to a frame: bits, octets, numbers, lengths, pieces, and fields where headers have them."""

import random
from collections.abc import Callable, Sequence
from struct import pack_into, unpack_from

from tests.fuzz.frames import ETHERNET, IPV4, IPV6, TCP, repair

OCTETS = (0, 1, 2, 4, 5, 8, 0x7F, 0x80, 0xFE, 0xFF)
WORDS = (0, 1, 7, 8, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)
LONGS = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
PROTOCOLS = (0, 1, 6, 17, 43, 44, 50, 51, 58, 59, 60, 135)
LONGEST = 65553

Mutation = Callable[[bytearray, random.Random, Sequence[bytes]], None]


def _where(frame: bytearray, rng: random.Random) -> int:
    """An offset, mostly within the headers."""
    n = len(frame)
    return int(rng.random() * (min(n, 96) if rng.random() < 0.85 else n))


def _bit(frame: bytearray, rng: random.Random, pool: Sequence[bytes]) -> None:
    frame[_where(frame, rng)] ^= 1 << int(rng.random() * 8)


def _octet(frame: bytearray, rng: random.Random, pool: Sequence[bytes]) -> None:
    frame[_where(frame, rng)] = rng.choice(OCTETS) if rng.random() < 0.6 else int(rng.random() * 256)


def _step(frame: bytearray, rng: random.Random, pool: Sequence[bytes]) -> None:
    at = _where(frame, rng)
    frame[at] = (frame[at] + rng.choice((-2, -1, 1, 2, 16))) & 0xFF


def _word(frame: bytearray, rng: random.Random, pool: Sequence[bytes]) -> None:
    if len(frame) >= 2:
        pack_into("!H", frame, min(_where(frame, rng) & ~1, len(frame) - 2), rng.choice(WORDS))


def _long(frame: bytearray, rng: random.Random, pool: Sequence[bytes]) -> None:
    if len(frame) >= 4:
        pack_into("!I", frame, min(_where(frame, rng) & ~1, len(frame) - 4), rng.choice(LONGS))


def _cut(frame: bytearray, rng: random.Random, pool: Sequence[bytes]) -> None:
    del frame[int(rng.random() * (len(frame) + 1)) if rng.random() < 0.5 else _where(frame, rng):]


def _extend(frame: bytearray, rng: random.Random, pool: Sequence[bytes]) -> None:
    frame += rng.randbytes(rng.choice((1, 2, 4, 8, 40, 200)))


def _remove(frame: bytearray, rng: random.Random, pool: Sequence[bytes]) -> None:
    at = _where(frame, rng)
    del frame[at:at + rng.choice((1, 2, 4, 8, 20))]


def _repeat(frame: bytearray, rng: random.Random, pool: Sequence[bytes]) -> None:
    at = _where(frame, rng)
    if len(frame) < LONGEST - 2048:
        frame[at:at] = frame[at:at + rng.choice((1, 2, 4, 8, 20, 40, 1024))]


def _splice(frame: bytearray, rng: random.Random, pool: Sequence[bytes]) -> None:
    """The tail of another frame, from the same offset or from anywhere."""
    other = rng.choice(pool)
    at = _where(frame, rng)
    frame[at:] = other[at if rng.random() < 0.7 else _where(bytearray(other or b"\0"), rng):]


def _field(frame: bytearray, rng: random.Random, pool: Sequence[bytes]) -> None:
    """A field that parsers branch on."""
    if len(frame) < ETHERNET + 40:
        return
    kind = unpack_from("!H", frame, 12)[0]
    choice = rng.random()
    if choice < 0.08:
        pack_into("!H", frame, 12, rng.choice((IPV4, IPV6, 0x0806, 0x8100, 0x0000, 0x05DC)))
    elif choice < 0.14:
        frame[0:6] = rng.choice((b"\xff" * 6, b"\x33\x33\0\0\0\1", b"\x01\0\x5e\0\0\1", bytes(6), bytes(frame[6:12])))
    elif kind == IPV4:
        _field_v4(frame, rng)
    elif kind == IPV6:
        _field_v6(frame, rng)
    else:
        frame[ETHERNET + int(rng.random() * 28)] ^= 1 << int(rng.random() * 8)


def _field_v4(frame: bytearray, rng: random.Random) -> None:
    choice = int(rng.random() * 8)
    at = ETHERNET + (frame[14] & 15) * 4
    if choice == 0:
        frame[14] = 0x40 | int(rng.random() * 16)
    elif choice == 1:
        pack_into("!H", frame, 16, max(0, min(0xFFFF, len(frame) - ETHERNET + rng.choice((-20, -1, 1, 20)))))
    elif choice == 2:
        pack_into("!H", frame, 20, rng.choice((0x2000, 0x4000, 1, 0x2001, 0x1FFF, 0x8000)))
    elif choice == 3:
        frame[23] = rng.choice(PROTOCOLS)
    elif choice == 4:
        frame[26:30] = rng.choice((frame[30:34], b"\xff" * 4, bytes(4), b"\xe0\0\0\1", b"\x7f\0\0\1",
                                   bytes(frame[26:29]) + b"\xff"))
    elif choice == 5:
        frame[30:34] = rng.choice((b"\xff" * 4, bytes(4), b"\xe0\0\0\1", b"\x7f\0\0\1", bytes(frame[30:33]) + b"\xff"))
    else:
        _field_transport(frame, at, frame[23], rng)


def _field_v6(frame: bytearray, rng: random.Random) -> None:
    if len(frame) < ETHERNET + 48:
        return
    choice = int(rng.random() * 8)
    if choice == 0:
        pack_into("!H", frame, 18, max(0, min(0xFFFF, len(frame) - 54 + rng.choice((-8, -1, 1, 8)))))
    elif choice == 1:
        frame[20] = rng.choice(PROTOCOLS)
    elif choice == 2:
        frame[21] = rng.choice((0, 1, 64, 254, 255))
    elif choice == 3:
        frame[22:38] = rng.choice((frame[38:54], bytes(16), bytes(15) + b"\1", bytes(10) + b"\xff\xff\x0a\0\1\x0b",
                                   b"\xff\2" + bytes(13) + b"\1"))
    elif choice == 4:
        frame[38:54] = rng.choice((b"\xff\2" + bytes(13) + b"\1", bytes(16), bytes(15) + b"\1",
                                   bytes(10) + b"\xff\xff\x0a\0\1\2"))
    elif choice == 5:
        frame[54 + int(rng.random() * 2)] = rng.choice((*PROTOCOLS, 255))
    else:
        _field_transport(frame, ETHERNET + 40, frame[20], rng)


def _field_transport(frame: bytearray, at: int, protocol: int, rng: random.Random) -> None:
    if len(frame) < at + 20:
        return
    if protocol != TCP:
        frame[at + int(rng.random() * 8)] = rng.choice(OCTETS)
        return
    choice = int(rng.random() * 7)
    if choice == 0:
        frame[at + 12] = int(rng.random() * 16) << 4
    elif choice == 1:
        frame[at + 13] = int(rng.random() * 256)
    elif choice == 2:
        pack_into("!H", frame, at + 14, rng.choice((0, 1, 100, 0xFFFF)))
    elif choice == 3 and len(frame) > at + 22:      # option kinds and lengths
        frame[at + 20 + int(rng.random() * min(len(frame) - at - 20, 24))] = rng.choice((0, 1, 2, 3, 4, 5, 8, 10, 34, 255))
    else:
        field = at + (4 if choice & 1 else 8)
        value = unpack_from("!I", frame, field)[0] + rng.choice((-65536, -1000, -1, 1, 2, 100, 1448, 65536, 1 << 31))
        pack_into("!I", frame, field, value & 0xFFFFFFFF)


MUTATIONS: tuple[Mutation, ...] = (_field, _field, _field, _field, _bit, _octet, _octet, _step, _word, _long, _cut, _extend,
                                   _remove, _repeat, _splice)


def mutate(frame: bytes, rng: random.Random, pool: Sequence[bytes]) -> bytes:
    """A damaged copy, most of the time with lengths and checksums that are right again; `pool`: frames to take from."""
    out = bytearray(frame)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        if not out:
            break
        rng.choice(MUTATIONS)(out, rng, pool)
    del out[LONGEST:]
    if rng.random() < 0.9:
        repair(out, rng)
    return bytes(out)
