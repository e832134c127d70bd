# What disks without hardware behind them have in common; see host_disk.py.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from drivers.block.check cimport Bounds
from drivers.request cimport Completion, Request, RequestBurst, Segment

cdef enum:
    DEPTH = 128                 # requests under way or ended and not told; a power of two

cdef struct Counters:
    uint64_t reads, writes, flushes, trims, zeroes, sectors_read, sectors_written, sectors_trimmed, sectors_zeroed
    uint64_t failed             # requests that ended with an error of what is behind the disk
    uint64_t refused            # requests that made no sense

cdef class HostDisk:
    cdef readonly str name
    cdef readonly object info
    cdef Bounds bounds
    cdef int eventfd
    cdef bint closed
    cdef int free_count         # requests that may begin besides those under way
    cdef Completion ended[DEPTH]        # a queue in a circle
    cdef uint32_t ended_first, ended_count
    cdef Counters counters

    # A disk's own:
    cdef void begin(self, const Request *r, const Segment *segments) noexcept nogil
    cdef void burst_taken(self) noexcept nogil
    cdef look(self)
    # For it:
    cdef describe(self, str name, str model, uint64_t octets, uint32_t sector_octets, uint32_t physical_octets, object features,
                  uint32_t max_octets, uint32_t max_segments, int depth)
    cdef void count(self, uint8_t operation, uint32_t sectors) noexcept nogil
    cdef void end(self, uint64_t tag, int error) noexcept nogil
    cdef dict totals(self)

    cdef void _take(self, RequestBurst burst) noexcept nogil
