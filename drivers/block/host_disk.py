"""What disks without hardware behind them have in common: requests are judged, counted, and told once they have ended."""

import os

import cython
from cython.cimports.drivers.block.check import check
from cython.cimports.drivers.request import (
    FLUSH,
    READ,
    REQUESTS,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Completion,
    CompletionBurst,
    Request,
    RequestBurst,
    Segment,
)
from cython.cimports.libc.errno import ENODEV
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t

from drivers.block.memory import HostBuffer
from drivers.disk import GONE, DiskInfo, Feature

if not cython.compiled:
    raise ImportError("drivers.block.host_disk must be compiled: python setup.py build_ext --inplace")


@cython.cclass
class HostDisk:
    """Most of a `drivers.disk.Disk`. Subclasses say what `begin` does, which takes one of `free_count` while it lasts."""

    def __cinit__(self):
        self.eventfd = -1
        self.free_count = DEPTH

    @cython.cfunc
    def describe(self, name: str, model: str, octets: uint64_t, sector_octets: uint32_t, physical_octets: uint32_t,
                 features: object, max_octets: uint32_t, max_segments: uint32_t, depth: cython.int):
        """Once, at the start. `max_octets` of one read or write."""
        b = cython.address(self.bounds)
        b.sectors, b.sector_octets = octets // sector_octets, sector_octets
        b.max_sectors, b.max_segments = max_octets // sector_octets, max_segments
        b.read_only, b.trim, b.extents = (flag in features for flag in (Feature.READ_ONLY, Feature.TRIM, Feature.EXTENTS))
        self.name = name
        self.info = DiskInfo(name, model, "", "", b.sectors, sector_octets, physical_octets, depth, features, b.max_sectors,
                             max_segments, memory_alignment=1)
        self.eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __dealloc__(self):
        if self.eventfd >= 0:
            os.close(self.eventfd)

    def submit(self, burst: RequestBurst) -> cython.int:
        """Take requests from the burst's front as long as there is room; how many."""
        before: cython.int = burst.count
        with cython.nogil:
            self._take(burst)
        return before - burst.count

    def complete(self, burst: CompletionBurst) -> cython.int:
        """Empty the burst and fill it with requests that have ended; how many, or GONE once closed."""
        burst.count = 0
        if self.closed:
            return GONE
        self.look()
        while self.ended_count and burst.count < REQUESTS:
            burst.completions[burst.count] = self.ended[self.ended_first & (DEPTH - 1)]
            burst.count += 1
            self.ended_first += 1
            self.ended_count -= 1
        return burst.count

    def room(self) -> cython.int:
        """How many requests `submit` takes now."""
        return min(self.free_count - cython.cast(cython.int, self.ended_count), REQUESTS)

    def fileno(self) -> int:
        """What to wait on; -1 once closed."""
        return -1 if self.closed else self.eventfd

    def allocate(self, octets: int, owner: str) -> HostBuffer:
        """Memory for segments, page-aligned; any other memory of this process does as well. Raises DeviceError."""
        return HostBuffer(octets, owner)

    # A disk's own.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def begin(self, r: cython.pointer[cython.const[Request]], segments: cython.pointer[cython.const[Segment]]) -> cython.void:
        """Do what makes sense to the disk, or have it done; `end` follows, now or later."""
        self.end(r.tag, ENODEV)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def burst_taken(self) -> cython.void:
        """All requests of a burst have begun."""

    @cython.cfunc
    def look(self):
        """See what has ended."""

    # For it.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def count(self, operation: uint8_t, sectors: uint32_t) -> cython.void:
        """A request has done what it should."""
        c: cython.pointer[Counters] = cython.address(self.counters)
        if operation == READ:
            c.reads += 1
            c.sectors_read += sectors
        elif operation == WRITE:
            c.writes += 1
            c.sectors_written += sectors
        elif operation == FLUSH:
            c.flushes += 1
        elif operation == TRIM:
            c.trims += 1
            c.sectors_trimmed += sectors
        elif operation == WRITE_ZEROES:
            c.zeroes += 1
            c.sectors_zeroed += sectors

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def end(self, tag: uint64_t, error: cython.int) -> cython.void:
        """A request has ended."""
        c: cython.pointer[Completion] = cython.address(self.ended[(self.ended_first + self.ended_count) & (DEPTH - 1)])
        c.tag = tag
        c.error = error
        self.ended_count += 1

    @cython.cfunc
    def totals(self) -> dict:
        """What every disk counts."""
        c: cython.pointer[Counters] = cython.address(self.counters)
        return {"reads": c.reads, "writes": c.writes, "flushes": c.flushes, "trims": c.trims, "zeroes": c.zeroes,
                "sectors_read": c.sectors_read, "sectors_written": c.sectors_written, "sectors_trimmed": c.sectors_trimmed,
                "sectors_zeroed": c.sectors_zeroed, "failed": c.failed, "refused": c.refused}

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _take(self, burst: RequestBurst) -> cython.void:
        taken: cython.int = 0
        error: cython.int
        r: cython.pointer[Request]
        segments: cython.pointer[Segment]
        while taken < burst.count and self.free_count > cython.cast(cython.int, self.ended_count):
            r = cython.address(burst.requests[taken])
            segments = cython.address(burst.segments[r.first_segment])
            error = ENODEV if self.closed else check(cython.address(self.bounds), r, segments)
            if error:
                self.counters.refused += 1
                self.end(r.tag, error)
            else:
                self.begin(r, segments)
            taken += 1
        burst.drop(taken)
        self.burst_taken()
