"""Regions by every way of reaching them, against plain memory."""

import os

import pytest

from drivers.bar import FileBar, MappedBar, SparseBar

PAGE = 4096
SIZE = 4 * PAGE


@pytest.fixture
def memory():
    """A file whose octets count from 0 to 250, over and over."""
    fd = os.memfd_create("bar")
    os.write(fd, bytes(index % 251 for index in range(SIZE)))
    yield fd
    os.close(fd)


def make(kind, fd):
    if kind == "sparse":
        return SparseBar(FileBar(fd, SIZE), fd, 0, [(PAGE, PAGE), (3 * PAGE, PAGE)])
    return {"mapped": MappedBar, "file": FileBar}[kind](fd, SIZE)


@pytest.mark.parametrize("kind", ["mapped", "file", "sparse"])
def test_every_width_reads_and_writes_its_own_octets(memory, kind):
    bar = make(kind, memory)
    assert (bar.size, bar.address != 0) == (SIZE, kind == "mapped")
    for page in range(4):
        at = page * PAGE + 64
        expected = bytes(index % 251 for index in range(at, at + 8))
        assert bar.read8(at + 1) == expected[1]
        assert bar.read16(at + 2) == int.from_bytes(expected[2:4], "little")
        assert bar.read32(at + 4) == int.from_bytes(expected[4:8], "little")
        bar.write8(at, 0xA1)
        bar.write16(at + 2, 0xB1B2)
        bar.write32(at + 4, 0xC1C2C3C4)
        assert os.pread(memory, 8, at) == bytes([0xA1, expected[1], 0xB2, 0xB1, 0xC4, 0xC3, 0xC2, 0xC1])
    bar.close()


@pytest.mark.parametrize("kind", ["mapped", "file", "sparse"])
@pytest.mark.parametrize("offset", [-4, 2, 5, SIZE, SIZE + 4, 1 << 40])
def test_an_offset_that_is_no_registers_is_refused(memory, kind, offset):
    bar = make(kind, memory)
    before = os.pread(memory, SIZE, 0)
    with pytest.raises((ValueError, IndexError)):
        bar.read32(offset)
    with pytest.raises((ValueError, IndexError)):
        bar.write32(offset, 0)
    assert os.pread(memory, SIZE, 0) == before
    bar.close()


@pytest.mark.parametrize("kind", ["mapped", "file", "sparse"])
def test_a_value_that_does_not_fit_is_refused_and_a_closed_region_is_closed(memory, kind):
    bar = make(kind, memory)
    for width, write in ((8, bar.write8), (16, bar.write16), (32, bar.write32)):
        for value in (1 << width, -1):
            with pytest.raises(ValueError):
                write(0, value)
    bar.close()
    bar.close()
    with pytest.raises(ValueError):
        bar.read32(0)
    with pytest.raises(ValueError):
        bar.write8(PAGE, 0)
    assert bar.address == 0


def test_a_region_may_begin_inside_a_page_and_have_an_odd_size(memory):
    bar = MappedBar(memory, 0x103, into_page=0x40)
    assert bar.read32(4) == int.from_bytes(bytes(range(0x44, 0x48)), "little")
    assert bar.read8(0x102) == (0x142 % 251)
    with pytest.raises(IndexError):
        bar.read32(0x100)
    with pytest.raises(IndexError):
        bar.read8(0x103)
    bar.close()


def test_areas_that_cannot_be_mapped_leave_none_mapped(memory):
    before = open_maps()
    with pytest.raises((OSError, ValueError)):
        SparseBar(FileBar(memory, SIZE), memory, 0, [(PAGE, PAGE), (PAGE + 1, PAGE)])
    assert open_maps() == before


def open_maps():
    with open("/proc/self/maps") as maps:
        return sum("memfd:bar" in line for line in maps)
