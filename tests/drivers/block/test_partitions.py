"""Partition tables: as sfdisk makes them, damaged in every octet, and made to hurt."""

import os
import random
import shutil
import struct
import subprocess
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.block.partitions import MAX_PARTITIONS, Partition, TableWrong, read_table

SECTORS = 8192
SFDISK = shutil.which("sfdisk", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
needs_sfdisk = pytest.mark.skipif(SFDISK is None, reason="sfdisk is not installed; scripts/test installs it")
LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"


def table_of(image, sector_octets=512):
    """What is found in these octets, and how many reads that took."""
    reads = []

    async def read(lba, sectors):
        reads.append(lba)
        assert lba >= 0 and sectors > 0 and (lba + sectors) * sector_octets <= len(image)
        return bytes(image[lba * sector_octets:(lba + sectors) * sector_octets])

    waiting = read_table(read, len(image) // sector_octets, sector_octets)
    try:
        waiting.send(None)
    except StopIteration as done:
        assert len(reads) <= 4 + MAX_PARTITIONS
        return done.value
    raise AssertionError("it waits")


def made_by_sfdisk(tmp_path, script):
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(SECTORS * 512)
    subprocess.run([SFDISK, "-q", path], input=script, text=True, check=True, capture_output=True)
    return bytearray(path.read_bytes())


@needs_sfdisk
def test_a_gpt_of_sfdisk(tmp_path):
    image = made_by_sfdisk(tmp_path, "label: gpt\nfirst-lba: 2048\nsize=1MiB, name=eins\n"
                                     "size=512KiB, name=\"zwei 2\", type=uefi\n")
    table = table_of(image)
    assert (table.kind, table.note) == ("gpt", "") and len(table.identity) == 36
    assert [part[:5] for part in table.partitions] == [
        (1, 2048, 2048, LINUX, "eins"), (2, 4096, 1024, "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "zwei 2")]


@needs_sfdisk
def test_an_mbr_with_logical_partitions_of_sfdisk(tmp_path):
    image = made_by_sfdisk(tmp_path, "label: dos\nlabel-id: 0x12345678\n"
                                     "start=64, size=100, type=83\nstart=1000, size=5000, type=5\n"
                                     "start=1064, size=100, type=82\nstart=2000, size=200, type=83\n")
    table = table_of(image)
    assert (table.kind, table.identity) == ("mbr", "12345678")
    assert [part[:4] for part in table.partitions] == [(1, 64, 100, "0x83"), (5, 1064, 100, "0x82"), (6, 2000, 200, "0x83")]


@needs_sfdisk
def test_a_damaged_first_copy_is_replaced_by_the_second(tmp_path):
    image = made_by_sfdisk(tmp_path, "label: gpt\nfirst-lba: 2048\nsize=1MiB\n")
    wanted = table_of(image).partitions
    for at in (512, 512 + 20, 512 + 40, 1024 + 33):
        damaged = bytearray(image)
        damaged[at] ^= 1
        table = table_of(damaged)
        assert table.partitions == wanted and "the first copy is damaged" in table.note
    image[512] ^= 1
    image[-512] ^= 1
    with pytest.raises(TableWrong, match="no header at sector 1"):
        table_of(image)


@needs_sfdisk
@pytest.mark.parametrize("script", ["label: gpt\nfirst-lba: 2048\nsize=1MiB\nsize=1MiB\n",
                                    "label: dos\nstart=64, size=100\nstart=1000, size=5000, type=5\nstart=1064, size=100\n"
                                    "start=2000, size=200\n"])
def test_no_damage_leads_astray(tmp_path, script):
    """Any octet may be anything: the answer is a table within the disk, none, or a rule that was broken."""
    image = made_by_sfdisk(tmp_path, script)
    places = [i for i, octet in enumerate(image) if octet]
    chance = random.Random(1)
    for _ in range(1000):
        damaged = bytearray(image)
        for _ in range(chance.choice((1, 1, 2, 5))):
            at = chance.choice(places) + chance.randrange(-2, 3)
            damaged[at % len(damaged)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        check(damaged)


def check(image):
    try:
        table = table_of(image)
    except TableWrong:
        return
    if table is None:
        return
    end = 0
    for part in sorted(table.partitions, key=lambda each: each.lba):
        assert part.lba >= max(end, 1) and part.sectors > 0
        end = part.lba + part.sectors
    assert end <= len(image) // 512 and len(table.partitions) <= MAX_PARTITIONS


def entry(kind, lba, sectors, flag=0):
    return struct.pack("<B3xB3xII", flag, kind, lba, sectors)


def boot_record(*entries):
    return (bytes(446) + b"".join(entries) + bytes(64))[:510] + b"\x55\xaa"


def disk(**sectors):
    image = bytearray(SECTORS * 512)
    for at, octets in sectors.items():
        image[int(at[1:]) * 512:int(at[1:]) * 512 + len(octets)] = octets
    return image


ENTRIES = st.tuples(st.sampled_from([0, 5, 0x83, 0xEE, 0xFF]), st.integers(0, (1 << 32) - 1), st.integers(0, 9000))


@given(st.lists(ENTRIES, max_size=4), st.binary(max_size=600))
@settings(max_examples=300, deadline=None)
def test_made_up_records_never_lead_outside(entries, rest):
    check(disk(_0=boot_record(*(entry(kind, lba, count) for kind, lba, count in entries)), _1=rest))


@pytest.mark.parametrize(("image", "message"), [
    (disk(_0=boot_record(entry(0x83, 1, SECTORS))), "partition 1, 8192 sectors at 1, is not on this disk"),
    (disk(_0=boot_record(entry(0x83, 0, 10))), "is not on this disk"),
    (disk(_0=boot_record(entry(0x83, 10, 10), entry(0x83, 19, 10))), "partitions 1 and 2 overlap"),
    (disk(_0=boot_record(entry(5, 100, 100)), _100=boot_record(entry(0x83, 1, 100))), "is not in its extended one"),
    (disk(_0=boot_record(entry(5, 100, 100)), _100=boot_record(entry(0x83, 1, 5), entry(5, 0, 50))),
     "leads from sector 100 to 100"),
    (disk(_0=boot_record(entry(5, 100, 100)), _100=boot_record(entry(0x83, 1, 5), entry(5, 20, 50))),
     "chain is broken at sector 120"),
    (disk(_0=boot_record(entry(0xEE, 1, SECTORS - 1))), "no header at sector 1"),
])
def test_a_broken_rule_is_named(image, message):
    with pytest.raises(TableWrong, match=message):
        table_of(image)


def test_a_chain_without_end_ends():
    image = disk(_0=boot_record(entry(5, 10, 8000)))
    for at in range(10, 8000, 2):
        image[at * 512:at * 512 + 512] = boot_record(entry(0x83, 1, 1), entry(5, at + 2 - 10, 2))
    with pytest.raises(TableWrong, match="more than 128"):
        table_of(image)


def gpt(entries, **changes):
    """A GPT with a right checksum, whatever it says."""
    fields = {"signature": b"EFI PART", "revision": 1 << 16, "octets": 92, "own": 1, "other": SECTORS - 1, "first": 34,
              "last": SECTORS - 34, "at": 2, "count": 128, "size": 128} | changes
    array = b"".join(struct.pack("<16s16sQQQ72s", b"\1" * 16, b"\2" * 16, begin, end, 0, "é\x1b[2J".encode("utf-16-le"))
                     for begin, end in entries).ljust(128 * 128, b"\0")
    header = struct.pack("<8sIIIIQQQQ16sQIII", fields["signature"], fields["revision"], fields["octets"], 0, 0, fields["own"],
                         fields["other"], fields["first"], fields["last"], bytes(16), fields["at"], fields["count"],
                         fields["size"], zlib.crc32(array))
    header = header[:16] + zlib.crc32(header).to_bytes(4, "little") + header[20:]
    return disk(_0=boot_record(entry(0xEE, 1, SECTORS - 1)), _1=header, _2=array)


@pytest.mark.parametrize(("image", "message"), [
    (gpt([(10, 20)]), "sectors 10 to 20, is not within the usable 34"),
    (gpt([(40, 39)]), "is not within the usable"),
    (gpt([(40, 50), (50, 60)]), "partitions 1 and 2 overlap"),
    (gpt([], own=2), "says that it is at 2"),
    (gpt([], count=1 << 31), "entries of 128 octets"),
    (gpt([], size=64), "entries of 64 octets"),
    (gpt([], at=SECTORS), "are not on this disk"),
    (gpt([], at=0), "are not on this disk"),
    (gpt([], last=SECTORS), "are not on this disk"),
    (gpt([], octets=1 << 20), "a header of 1048576 octets"),
    (gpt([], revision=2 << 16), "revision 0x20000"),
    (gpt([], count=127), "the checksum of its entries is wrong"),
])
def test_a_gpt_with_right_checksums_is_still_not_trusted(image, message):
    with pytest.raises(TableWrong, match=message):
        table_of(image)


def test_names_cannot_drive_a_terminal():
    assert table_of(gpt([(40, 50)])).partitions == (
        Partition(1, 40, 11, "01010101-0101-0101-0101-010101010101", "é?[2J", "02020202-0202-0202-0202-020202020202"),)


def test_what_is_no_table_is_none():
    assert table_of(bytearray(SECTORS * 512)) is None
    assert table_of(bytearray(3 * 512)) is None
    assert table_of(disk(_0=b"\xeb\x3c\x90MSDOS5.0".ljust(446, b"\x41") + b"\x41" * 64 + b"\x55\xaa")) is None
    assert table_of(disk(_0=boot_record())) is None
