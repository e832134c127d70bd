"""Files of programs that say anything: no more than ValueError comes of it, and no endless work."""

import os
import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from rustosd.process.elf import SYMBOLS_MOST, Elf

SYMBOL_OCTETS, EXECUTABLE = 24, 4


@pytest.fixture(scope="module", params=["dynamic", "static"])
def program(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("elf")
    (folder / "main.c").write_text("int main(int count, char **words) { return count; }\n")
    more = ["-static"] if request.param == "static" else []
    subprocess.run(["gcc", "-O1", *more, "-o", str(folder / request.param), str(folder / "main.c")], check=True)
    return folder / request.param


def opened(path: Path) -> Elf:
    return Elf.open(path, os.stat(path).st_ino)


def test_damaged_files_are_refused_and_no_more(program, tmp_path):
    whole, sane = program.read_bytes(), opened(program)
    parts = [(0, 64), *((section[4], section[5]) for section in sane._sections if section[5] and section[1] in (1, 2, 3, 11))]
    addresses = [section[3] + section[5] // 2 for section in sane._sections if section[3] and section[2] & EXECUTABLE]
    chance, seen = random.Random(7), 0
    for number in range(20):
        octets = bytearray(whole)
        for _ in range(1 << number % 5):
            at, size = chance.choice(parts)
            octets[at + chance.randrange(size)] = chance.choice((0, 0x7F, 0xFF, chance.randrange(256)))
        if not number % 10:
            del octets[chance.randrange(len(octets)):]
        (tmp_path / "damaged").write_bytes(octets)
        try:
            elf = opened(tmp_path / "damaged")
            elf.names(addresses)
            for address in addresses:
                elf.row(address)
            seen += 1
        except ValueError:
            continue
    assert seen > 2


def test_a_file_of_nothing_but_tables_of_symbols_is_not_read_for_ever(program, tmp_path, monkeypatch):
    bomb = tmp_path / "bomb"
    shutil.copy(program, bomb)
    count, tables_at = 4000, bomb.stat().st_size
    with bomb.open("r+b") as file:
        file.seek(tables_at)
        table = struct.pack("<IIQQQQIIQQ", 0, 2, 0, 0, 0, SYMBOLS_MOST * SYMBOL_OCTETS // 1000, 0, 0, 0, SYMBOL_OCTETS)
        file.write(table * count)
        file.seek(0x28)
        file.write(struct.pack("<Q", tables_at))
        file.seek(0x3C)
        file.write(struct.pack("<H", count))
    elf, read = opened(bomb), []
    monkeypatch.setattr(elf._file, "read", lambda at, octets: read.append(octets) or bytes(octets))
    assert elf.names([1 << 60]) == {} and sum(read) <= SYMBOLS_MOST * SYMBOL_OCTETS
