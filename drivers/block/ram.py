"""Memory as a disk: every request ends within `submit`. What was never written, or was trimmed, takes no memory.

What it holds is gone when it is closed; a flush has nothing to do.
"""

import cython
from cython.cimports.drivers.block.host_disk import HostDisk
from cython.cimports.drivers.request import (
    EXTENTS,
    FLUSH,
    HOLE,
    KEEP_ALLOCATED,
    READ,
    REQUESTS,
    TRIM,
    WRITE,
    ZERO,
    Extent,
    Request,
    Segment,
)
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.posix.mman import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    madvise,
    mmap,
    munmap,
)

from drivers.block.host_file import SECTOR_SIZES
from drivers.disk import Feature
from drivers.errors import DeviceError

if not cython.compiled:
    raise ImportError("drivers.block.ram must be compiled: python setup.py build_ext --inplace")

MAX_OCTETS = 4 << 20
"""Of one read or write: the loop copies them itself."""
LARGEST = 1 << 42


@cython.final
@cython.cclass
class RamDisk(HostDisk):
    """A `drivers.disk.Disk` in this process's memory."""

    def __init__(self, name: str, octets: int, *, sector_octets: int = 512, read_only: bool = False):
        """It reads as zeros; `octets` are rounded down to whole sectors. Raises DeviceError."""
        found: cython.p_void
        if sector_octets not in SECTOR_SIZES:
            raise DeviceError(name, f"sectors of {sector_octets} octets: 512 or 4096 are possible")
        if not sector_octets <= octets <= LARGEST:
            raise DeviceError(name, f"{octets} octets of memory: {sector_octets} to {LARGEST} are possible")
        self.shift = 9 if sector_octets == 512 else 12
        self.octets = octets >> self.shift << self.shift
        found = mmap(cython.NULL, self.octets, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if found == MAP_FAILED:
            raise DeviceError(name, f"this process cannot have {octets} octets of memory: make the disk smaller")
        self.base = cython.cast(cython.pointer[uint8_t], found)
        self.touched = cython.cast(cython.pointer[uint8_t], calloc(self.octets // PAGE // 8 + 1, 1))
        if self.touched == cython.NULL:
            raise MemoryError
        features = Feature.QUEUE | Feature.EXTENTS | (Feature.READ_ONLY if read_only else (
            Feature.FUA | Feature.TRIM | Feature.WRITE_ZEROES | Feature.FAST_ZEROES))
        self.describe(name, "memory", self.octets, sector_octets, sector_octets, features, MAX_OCTETS, MAX_SEGMENTS, REQUESTS)

    def __dealloc__(self):
        if self.base != cython.NULL:
            munmap(self.base, self.octets)
        free(self.touched)

    def arm(self) -> cython.bint:
        """Whether there is nothing to complete."""
        return self.ended_count == 0 and not self.closed

    def wake_at(self) -> int | None:
        """Never."""
        return None

    def statistics(self) -> dict:
        """Counters since it was made, and how much memory it takes."""
        pages: uint64_t = 0
        i: uint64_t
        for i in range(self.octets // PAGE // 8 + 1):
            pages += _bits(self.touched[i])
        return self.totals() | {"memory_octets": pages * PAGE}

    def close(self) -> None:
        """Give the memory back. May be called twice."""
        if not self.closed:
            self.closed = True
            madvise(self.base, self.octets, MADV_DONTNEED)

    # Inside.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def begin(self, r: cython.pointer[cython.const[Request]], segments: cython.pointer[cython.const[Segment]]) -> cython.void:
        """And end."""
        at: uint64_t = r.lba << self.shift
        keep: cython.bint
        if r.operation == READ:
            self._read(at, r, segments)
        elif r.operation == WRITE:
            self._write(at, r, segments)
        elif r.operation == EXTENTS:
            self._extents(r, segments)
        elif r.operation != FLUSH:
            keep = r.operation != TRIM and r.flags & KEEP_ALLOCATED != 0
            self._zero(at, cython.cast(uint64_t, r.sectors) << self.shift, keep)
        self.count(r.operation, r.sectors)
        self.end(r.tag, 0)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _read(self, at: uint64_t, r: cython.pointer[cython.const[Request]],
              segments: cython.pointer[cython.const[Segment]]) -> cython.void:
        i: cython.int
        for i in range(r.segment_count):
            memcpy(segments[i].data, self.base + at, segments[i].octets)
            at += segments[i].octets

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _write(self, at: uint64_t, r: cython.pointer[cython.const[Request]],
               segments: cython.pointer[cython.const[Segment]]) -> cython.void:
        i: cython.int
        page: uint64_t
        begin: uint64_t = at
        for i in range(r.segment_count):
            memcpy(self.base + at, segments[i].data, segments[i].octets)
            at += segments[i].octets
        for page in range(begin // PAGE, (at + PAGE - 1) // PAGE):
            self.touched[page >> 3] |= 1 << (page & 7)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _zero(self, at: uint64_t, octets: uint64_t, keep: cython.bint) -> cython.void:
        """Zeros; whole pages go back to the kernel unless they are to be kept."""
        end: uint64_t = at + octets
        first: uint64_t = (at + PAGE - 1) & ~cython.cast(uint64_t, PAGE - 1)
        last: uint64_t = end & ~cython.cast(uint64_t, PAGE - 1)
        page: uint64_t
        if keep or first >= last:
            memset(self.base + at, 0, octets)
            if keep:
                for page in range(at // PAGE, (end + PAGE - 1) // PAGE):
                    self.touched[page >> 3] |= 1 << (page & 7)
            return
        memset(self.base + at, 0, first - at)
        memset(self.base + last, 0, end - last)
        if madvise(self.base + first, last - first, MADV_DONTNEED) < 0:
            memset(self.base + first, 0, last - first)
            return
        for page in range(first // PAGE, last // PAGE):
            self.touched[page >> 3] &= ~(1 << (page & 7))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _has_data(self, sector: uint64_t) -> cython.bint:
        page: uint64_t = (sector << self.shift) // PAGE
        return self.touched[page >> 3] >> (page & 7) & 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _extents(self, r: cython.pointer[cython.const[Request]],
                 segment: cython.pointer[cython.const[Segment]]) -> cython.void:
        """Which pages hold something, sector by page."""
        out: cython.pointer[Extent] = cython.cast(cython.pointer[Extent], segment.data)
        room: uint32_t = segment.octets // cython.sizeof(Extent)
        at: uint64_t = r.lba
        end: uint64_t = r.lba + r.sectors
        begin: uint64_t
        step: uint64_t = PAGE >> self.shift
        count: uint32_t = 0
        data: cython.bint
        while at < end and count < room:
            begin = at
            data = self._has_data(at)
            while at < end and self._has_data(at) == data:
                at = min((at // step + 1) * step, end)
            out[count].sectors = cython.cast(uint32_t, at - begin)
            out[count].flags = 0 if data else HOLE | ZERO
            count += 1
        if count < room:
            out[count].sectors = 0
            out[count].flags = 0


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _bits(octet: uint8_t) -> cython.int:
    """How many of its bits are set."""
    octet = (octet & 0x55) + (octet >> 1 & 0x55)
    octet = (octet & 0x33) + (octet >> 2 & 0x33)
    return (octet & 0x0F) + (octet >> 4)
