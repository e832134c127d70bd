"""Memory as a disk: every request ends within `submit`. What was never written, or was trimmed, takes no memory.

What it holds is gone when it is closed; a flush has nothing to do.
"""

import os

import cython
from cython.cimports.drivers.block.check import check
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
    CompletionBurst,
    Extent,
    Request,
    RequestBurst,
    Segment,
)
from cython.cimports.libc.errno import ENODEV
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
from drivers.block.memory import HostBuffer
from drivers.disk import GONE, DiskInfo, Feature
from drivers.errors import DeviceError

if not cython.compiled:
    raise ImportError("drivers.block.ram must be compiled: python setup.py build_ext --inplace")

MAX_OCTETS = 4 << 20
"""Of one read or write: the loop copies them itself."""
LARGEST = 1 << 42


@cython.final
@cython.cclass
class RamDisk:
    """A `drivers.disk.Disk` in this process's memory."""

    def __cinit__(self):
        self.eventfd = -1

    def __init__(self, name: str, octets: int, *, sector_octets: int = 512, read_only: bool = False):
        """It reads as zeros; `octets` are rounded down to whole sectors. Raises DeviceError."""
        found: cython.p_void
        if sector_octets not in SECTOR_SIZES:
            raise DeviceError(name, f"sectors of {sector_octets} octets: 512 or 4096 are possible")
        if not sector_octets <= octets <= LARGEST:
            raise DeviceError(name, f"{octets} octets of memory: {sector_octets} to {LARGEST} are possible")
        self.name = name
        self.shift = 9 if sector_octets == 512 else 12
        self.octets = octets >> self.shift << self.shift
        found = mmap(cython.NULL, self.octets, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if found == MAP_FAILED:
            raise DeviceError(name, f"this process cannot have {octets} octets of memory: make the disk smaller")
        self.base = cython.cast(cython.pointer[uint8_t], found)
        self.touched = cython.cast(cython.pointer[uint8_t], calloc(self.octets // PAGE // 8 + 1, 1))
        if self.touched == cython.NULL:
            raise MemoryError
        self.eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        b = cython.address(self.bounds)
        b.sectors, b.sector_octets = self.octets >> self.shift, sector_octets
        b.max_sectors, b.max_segments = MAX_OCTETS // sector_octets, MAX_SEGMENTS
        b.read_only, b.trim, b.extents = read_only, True, True
        features = Feature.QUEUE | Feature.EXTENTS | (Feature.READ_ONLY if read_only else (
            Feature.FUA | Feature.TRIM | Feature.WRITE_ZEROES | Feature.FAST_ZEROES))
        self.info = DiskInfo(name, "memory", "", "", b.sectors, sector_octets, sector_octets, REQUESTS, features,
                             b.max_sectors, MAX_SEGMENTS, memory_alignment=1)

    def __dealloc__(self):
        if self.base != cython.NULL:
            munmap(self.base, self.octets)
        free(self.touched)
        if self.eventfd >= 0:
            os.close(self.eventfd)

    def submit(self, burst: RequestBurst) -> cython.int:
        """Carry out the burst's requests as long as there is room for their ends; how many."""
        before: cython.int = burst.count
        with cython.nogil:
            self._take(burst)
        return before - burst.count

    def complete(self, burst: CompletionBurst) -> cython.int:
        """Empty the burst and fill it with requests that have ended; how many, or GONE once closed."""
        burst.count = 0
        if self.closed:
            return GONE
        while self.ended_count and burst.count < REQUESTS:
            burst.completions[burst.count] = self.ended[self.ended_first & (ENDED - 1)]
            burst.count += 1
            self.ended_first += 1
            self.ended_count -= 1
        return burst.count

    def room(self) -> cython.int:
        """How many requests `submit` takes now."""
        return min(cython.cast(cython.int, ENDED - self.ended_count), REQUESTS)

    def fileno(self) -> int:
        """What to wait on, which is never readable: nothing is ever under way. -1 once closed."""
        return -1 if self.closed else self.eventfd

    def arm(self) -> cython.bint:
        """Whether there is nothing to complete."""
        return self.ended_count == 0 and not self.closed

    def wake_at(self) -> int | None:
        """Never."""
        return None

    def allocate(self, octets: int, owner: str) -> HostBuffer:
        """Memory for segments; any other memory of this process does as well. Raises DeviceError."""
        return HostBuffer(octets, owner)

    def statistics(self) -> dict:
        """Counters since it was made, and how much memory it takes."""
        c: cython.pointer[Counters] = cython.address(self.counters)
        pages: uint64_t = 0
        i: uint64_t
        for i in range(self.octets // PAGE // 8 + 1):
            pages += _bits(self.touched[i])
        return {"reads": c.reads, "writes": c.writes, "flushes": c.flushes, "trims": c.trims, "zeroes": c.zeroes,
                "sectors_read": c.sectors_read, "sectors_written": c.sectors_written, "sectors_trimmed": c.sectors_trimmed,
                "sectors_zeroed": c.sectors_zeroed, "failed": 0, "refused": c.refused, "memory_octets": pages * PAGE}

    def close(self) -> None:
        """Give the memory back. May be called twice."""
        if not self.closed:
            self.closed = True
            madvise(self.base, self.octets, MADV_DONTNEED)

    # Inside.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _take(self, burst: RequestBurst) -> cython.void:
        taken: cython.int = 0
        error: cython.int
        at: uint64_t
        r: cython.pointer[Request]
        segments: cython.pointer[Segment]
        c: cython.pointer[Counters] = cython.address(self.counters)
        while taken < burst.count and self.ended_count < ENDED:
            r = cython.address(burst.requests[taken])
            segments = cython.address(burst.segments[r.first_segment])
            error = ENODEV if self.closed else check(cython.address(self.bounds), r, segments)
            at = r.lba << self.shift
            if error:
                c.refused += 1
            elif r.operation == READ:
                self._read(at, r, segments)
                c.reads += 1
                c.sectors_read += r.sectors
            elif r.operation == WRITE:
                self._write(at, r, segments)
                c.writes += 1
                c.sectors_written += r.sectors
            elif r.operation == FLUSH:
                c.flushes += 1
            elif r.operation == EXTENTS:
                self._extents(r, segments)
            elif r.operation == TRIM:
                self._zero(at, cython.cast(uint64_t, r.sectors) << self.shift, False)
                c.trims += 1
                c.sectors_trimmed += r.sectors
            else:
                self._zero(at, cython.cast(uint64_t, r.sectors) << self.shift, r.flags & KEEP_ALLOCATED != 0)
                c.zeroes += 1
                c.sectors_zeroed += r.sectors
            self.ended[(self.ended_first + self.ended_count) & (ENDED - 1)].tag = r.tag
            self.ended[(self.ended_first + self.ended_count) & (ENDED - 1)].error = error
            self.ended_count += 1
            taken += 1
        burst.drop(taken)

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
