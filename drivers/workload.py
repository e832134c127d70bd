"""A stream of requests to measure a disk with: so many under way at a time, and how long each took."""

import cython
from cython.cimports.drivers.request import READ, WRITE, CompletionBurst, Request, RequestBurst, Segment
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.string import memset
from cython.cimports.mm.hw import now_ns

if not cython.compiled:
    raise ImportError("drivers.workload must be compiled: python setup.py build_ext --inplace")

PATTERNS = ("random", "sequential")
_MARK = cython.declare(uint64_t, cython.cast(uint64_t, 1) << 63)


@cython.final
@cython.cclass
class Workload:
    """Reads, or writes, all over a disk. Its requests' tags have their highest bit set, no others' must."""

    def __init__(self, memory, sectors: uint64_t, sector_octets: uint32_t, pattern: str = "random",
                 block_octets: uint32_t = 4096, depth: cython.int = 1, seed: uint64_t = 1, write: cython.bint = False):
        """`memory`: `drivers.device.DmaMemory` with `depth` blocks. Raises ValueError for what does not fit."""
        if pattern not in PATTERNS:
            raise ValueError(f"the pattern {pattern!r} is none of {', '.join(PATTERNS)}")
        if not 1 <= depth <= MAX_DEPTH:
            raise ValueError(f"a depth of {depth}: 1 to {MAX_DEPTH} are possible")
        if block_octets == 0 or block_octets % sector_octets or block_octets > sectors * sector_octets:
            raise ValueError(f"blocks of {block_octets} octets on a disk of {sectors} sectors of {sector_octets}")
        if memory.size < cython.cast(uint64_t, block_octets) * depth:
            raise ValueError(f"{memory.size} octets of memory for {depth} blocks of {block_octets}")
        self.memory, self.depth, self.octets = memory, depth, block_octets
        self.base, self.iova = memory.address, memory.iova
        self.sectors = block_octets // sector_octets
        self.blocks = sectors // self.sectors
        self.random, self.write = pattern == "random", write
        self.state = seed | 1
        for i in range(depth):
            self.free[i] = i
        self.free_count = depth

    def fill(self, burst: RequestBurst, room: cython.int) -> cython.int:
        """Add requests until `depth` are under way or `room` is used up; how many.

        Those that follow on a `take` begin with it: a clock is read once for both, which in a guest can take longer than
        all the rest.
        """
        return self._fill(burst, room)

    def take(self, burst: CompletionBurst) -> cython.int:
        """Count those that are its own; how many others there are. `fill` comes next, at once."""
        return self._take(burst)

    def stop(self) -> None:
        """Add no more."""
        self.stopped = True

    def restart(self) -> None:
        """Count from zero."""
        memset(self.histogram, 0, cython.sizeof(self.histogram))
        self.operations = self.errors = self.total_ns = self.longest_ns = 0

    def percentile(self, part: float) -> float:
        """Nanoseconds that this part (0.99) of the requests took at most; 0 without requests."""
        wanted = self.operations * part
        seen = 0
        for i in range(BUCKETS):
            seen += self.histogram[i]
            if seen and seen >= wanted:
                return min(_upper_edge(i), self.longest_ns)
        return 0

    def buckets(self) -> list[tuple[int, int]]:
        """How many requests took less than so many nanoseconds, and not less than the bucket before; without empty ones."""
        return [(_upper_edge(i), self.histogram[i]) for i in range(BUCKETS) if self.histogram[i]]

    def mean(self) -> float:
        """Nanoseconds a request took."""
        return self.total_ns / self.operations if self.operations else 0

    @property
    def longest(self) -> int:
        """Nanoseconds the slowest took."""
        return self.longest_ns

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _fill(self, burst: RequestBurst, room: cython.int) -> cython.int:
        base: uintptr_t = self.base
        request: Request
        segment: Segment
        count: cython.int = 0
        slot: cython.int
        now: int64_t
        if self.stopped or self.free_count == 0 or room <= 0:
            return 0
        now = self.taken_at if self.taken_at else now_ns()
        self.taken_at = 0
        request.operation = WRITE if self.write else READ
        request.flags = 0
        request.sectors = self.sectors
        request.segment_count = 1
        segment.octets = self.octets
        while self.free_count and count < room:
            slot = self.free[self.free_count - 1]
            request.tag = _MARK | cython.cast(uint64_t, slot)
            request.lba = self._block() * self.sectors
            segment.data = cython.cast(cython.pointer[uint8_t], base) + slot * self.octets
            segment.iova = self.iova + slot * self.octets
            if not burst.add(cython.address(request), cython.address(segment)):
                break
            self.started[slot] = now
            self.free_count -= 1
            count += 1
        self.under_way += count
        return count

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _take(self, burst: CompletionBurst) -> cython.int:
        now: int64_t = now_ns() if burst.count else 0
        others: cython.int = 0
        i: cython.int
        slot: cython.int
        took: uint64_t
        for i in range(burst.count):
            if not burst.completions[i].tag & _MARK:
                others += 1
                continue
            slot = cython.cast(cython.int, burst.completions[i].tag & 0xFFFF)
            took = now - self.started[slot]
            self.operations += 1
            self.errors += burst.completions[i].error != 0
            self.total_ns += took
            self.longest_ns = max(self.longest_ns, took)
            self.histogram[_bucket(took)] += 1
            self.free[self.free_count] = slot
            self.free_count += 1
            self.under_way -= 1
        self.taken_at = now
        return others

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _block(self) -> uint64_t:
        """The next block: by xorshift64*, or the next one."""
        found: uint64_t
        if self.random:
            self.state ^= self.state >> 12
            self.state ^= self.state << 25
            self.state ^= self.state >> 27
            return (self.state * cython.cast(uint64_t, 0x2545F4914F6CDD1D) >> 20) % self.blocks
        found = self.next
        self.next = found + 1 if found + 1 < self.blocks else 0
        return found


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _bucket(ns: uint64_t) -> cython.int:
    """Sixteen to an octave."""
    octave: cython.int = 0
    while ns >= 2 * FINE and octave < 35:
        ns >>= 1
        octave += 1
    return min(octave * FINE + cython.cast(cython.int, ns), BUCKETS - 1)


def _upper_edge(bucket: int) -> int:
    """The first number of nanoseconds above a bucket."""
    if bucket < 2 * FINE:
        return bucket + 1
    octave = bucket // FINE - 1
    return (bucket - octave * FINE + 1) << octave
