"""Sorted sequence ranges: the reassembly queue's map and the SACK scoreboard."""

import cython
from cython.cimports.libc.stdint import uint16_t, uint32_t
from cython.cimports.libc.string import memmove
from cython.cimports.netstack.wire.tcp import seq_le, seq_lt, seq_max, seq_min


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ranges_add(r: cython.pointer[Range], count: cython.pointer[uint16_t], limit: uint16_t, start: uint32_t,
               end: uint32_t) -> cython.int:
    """Merge [start, end) in; the number of octets it added, or -1 when the array is full."""
    i: cython.int = 0
    j: cython.int
    covered: uint32_t = 0
    n: cython.int = count[0]
    added: uint32_t = end - start
    while i < n and seq_lt(r[i].end, start):
        i += 1
    j = i
    while j < n and seq_le(r[j].start, end):    # touching or overlapping
        covered += r[j].end - r[j].start
        j += 1
    if i == j:
        if n >= limit:
            return -1
        memmove(r + i + 1, r + i, (n - i) * cython.sizeof(Range))
        r[i].start = start
        r[i].end = end
        count[0] = cython.cast(uint16_t, n + 1)
        return cython.cast(cython.int, added)
    r[i].start = seq_min(r[i].start, start)
    r[i].end = seq_max(r[j - 1].end, end)
    added = r[i].end - r[i].start - covered
    memmove(r + i + 1, r + j, (n - j) * cython.sizeof(Range))
    count[0] = cython.cast(uint16_t, n - (j - i - 1))
    return cython.cast(cython.int, added)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ranges_cut(r: cython.pointer[Range], count: cython.pointer[uint16_t], seq: uint32_t) -> cython.void:
    """Drop what lies before `seq`, shortening the range it falls into."""
    gone: cython.int = 0
    n: cython.int = count[0]
    while gone < n and seq_le(r[gone].end, seq):
        gone += 1
    if gone:
        memmove(r, r + gone, (n - gone) * cython.sizeof(Range))
        count[0] = cython.cast(uint16_t, n - gone)
    if count[0] and seq_lt(r[0].start, seq):
        r[0].start = seq


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ranges_octets(r: cython.pointer[cython.const[Range]], count: uint16_t) -> uint32_t:
    """How many octets all ranges cover."""
    i: cython.int
    total: uint32_t = 0
    for i in range(count):
        total += r[i].end - r[i].start
    return total


@cython.final
@cython.cclass
class Ranges:
    """The same as a Python object of at most 64 ranges, for tests and diagnosis."""

    r: Range[64]
    n: uint16_t
    limit: uint16_t

    def __init__(self, limit: int = 32):
        self.n = 0
        self.limit = min(limit, 64)

    @property
    def ranges(self) -> list:
        """(start, end) pairs, ascending."""
        i: cython.int
        return [(self.r[i].start, self.r[i].end) for i in range(self.n)]

    def add(self, start: cython.uint, end: cython.uint) -> int:
        """Octets added, or -1 when full."""
        return ranges_add(self.r, cython.address(self.n), self.limit, start, end)

    def cut(self, seq: cython.uint) -> None:
        """Forget what lies before `seq`."""
        ranges_cut(self.r, cython.address(self.n), seq)
