from libc.stdint cimport uint8_t, uint32_t, uint64_t
from drivers.block.host_disk cimport HostDisk
from drivers.request cimport Request, Segment

cdef enum:
    PAGE = 4096
    MAX_SEGMENTS = 256          # of one request: what a burst can hold for it

cdef class RamDisk(HostDisk):
    cdef uint8_t *base
    cdef uint64_t octets
    cdef uint8_t *touched       # a bit for each page that has ever been written since it was last given back
    cdef uint32_t shift         # a sector's octets as a power of two

    cdef void _read(self, uint64_t at, const Request *r, const Segment *segments) noexcept nogil
    cdef void _write(self, uint64_t at, const Request *r, const Segment *segments) noexcept nogil
    cdef void _zero(self, uint64_t at, uint64_t octets, bint keep) noexcept nogil
    cdef void _extents(self, const Request *r, const Segment *segment) noexcept nogil
    cdef bint _has_data(self, uint64_t sector) noexcept nogil
