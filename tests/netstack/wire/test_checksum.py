"""The Internet checksum against the words of RFC 1071, octet by octet."""

import random

import pytest

from netstack.wire.checksum import checksum


def by_the_book(octets, start=0):
    """RFC 1071 1: the one's complement of the one's complement sum of big-endian words."""
    total = start
    for i in range(0, len(octets), 2):
        total += octets[i] << 8 | (octets[i + 1] if i + 1 < len(octets) else 0)
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@pytest.mark.parametrize("fill", ["random", "ones", "carries"])
def test_every_length_and_alignment_sums_as_rfc_1071_says(fill):
    dice = random.Random(1071)
    for length in [*range(140), 1460, 8960, 65535]:
        octets = {"random": dice.randbytes, "ones": lambda n: b"\xff" * n,
                  "carries": lambda n: (b"\xff" * 8 + b"\1" * 8) * (n // 16) + b"\x80" * (n % 16)}[fill](length)
        for shift in range(8):
            assert checksum(memoryview(bytes(shift) + octets)[shift:]) == by_the_book(octets), (length, shift)


def test_a_sum_is_gone_on_from():
    octets = bytes(range(1, 101))
    assert checksum(octets, 0x0201) == by_the_book(octets, 0x0102)          # a sum is kept in memory order
