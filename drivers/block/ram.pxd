from libc.stdint cimport uint8_t, uint32_t, uint64_t
from drivers.block.check cimport Bounds
from drivers.request cimport Completion, CompletionBurst, Request, RequestBurst, Segment

cdef enum:
    ENDED = 128                 # requests that wait to be told; a power of two
    PAGE = 4096
    MAX_SEGMENTS = 256          # of one request: what a burst can hold for it

cdef struct Counters:
    uint64_t reads, writes, flushes, trims, zeroes, sectors_read, sectors_written, sectors_trimmed, sectors_zeroed
    uint64_t refused            # requests that made no sense

cdef class RamDisk:
    cdef readonly str name
    cdef readonly object info
    cdef uint8_t *base
    cdef uint64_t octets
    cdef uint8_t *touched       # a bit for each page that has ever been written since it was last given back
    cdef uint32_t shift         # a sector's octets as a power of two
    cdef Bounds bounds
    cdef int eventfd
    cdef bint closed
    cdef Completion ended[ENDED]        # a queue in a circle
    cdef uint32_t ended_first, ended_count
    cdef Counters counters

    cdef void _take(self, RequestBurst burst) noexcept nogil
    cdef void _read(self, uint64_t at, const Request *r, const Segment *segments) noexcept nogil
    cdef void _write(self, uint64_t at, const Request *r, const Segment *segments) noexcept nogil
    cdef void _zero(self, uint64_t at, uint64_t octets, bint keep) noexcept nogil
    cdef void _extents(self, const Request *r, const Segment *segment) noexcept nogil
    cdef bint _has_data(self, uint64_t sector) noexcept nogil
