from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from mm.paging.faults cimport FaultServer
from mm.paging.space cimport Run, Space

cdef enum:
    REGIONS = 256

cdef class Pager(FaultServer):
    cdef uint8_t *outgoing              # BATCH_PAGES pages on their way to swap
    cdef uint64_t chosen[256]           # the pages of a batch
    cdef Run drops[256]                 # what of a batch is in swap, or zero, and may go
    cdef uint32_t drop_count

    cdef Space *_find(self, uint32_t index) except *
    cdef void _choose(self, Space *space, uint32_t want) noexcept nogil
    cdef int _evict(self, Space *space, bint locked) noexcept nogil
    cdef int _evict_run(self, Space *space, uint64_t first, uint32_t count, bint locked) noexcept nogil
    cdef uint32_t _read(self, Space *space, uint64_t page, uint32_t count, uint8_t *to) noexcept nogil
    cdef int _save(self, Space *space, uint64_t page, uint32_t count, const uint8_t *data, bint locked) noexcept nogil
    cdef void _add_drop(self, uint64_t page, uint64_t count) noexcept nogil
    cdef void _clean(self, Space *space, uint64_t page) noexcept nogil
    cdef bint _has_no_slot(self, Space *space, uint64_t page, bint locked) noexcept nogil
    cdef void _give_up(self, Space *space, uint64_t page, uint32_t count, bint locked) noexcept nogil
    cdef void _end_batch(self, Space *space) noexcept nogil
    cdef void _acquire(self, bint locked) noexcept nogil
    cdef void _release(self, bint locked) noexcept nogil
