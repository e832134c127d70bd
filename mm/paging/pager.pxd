from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from mm.paging.faults cimport FaultServer
from mm.paging.space cimport Run, Space

cdef enum:
    REGIONS = 256

cdef class Pager(FaultServer):
    cdef uint8_t *outgoing              # BATCH_PAGES pages on their way to swap
    cdef uint64_t chosen[256]           # the pages of a batch
    cdef bint kept[256]                 # of each run of a batch: its pages have slots, so they are protected already
    cdef uint64_t leaving[256]          # those of them that are there, and protected
    cdef bint goes[256]                 # of each of those: it is in swap, or zero
    cdef uint32_t leaving_count
    cdef uint32_t dirty[256]            # which of `leaving` swap does not have yet
    cdef Run drops[256]                 # what of a batch may go
    cdef uint32_t drop_count

    cdef Space *_find(self, uint32_t index) except *
    cdef int _discover(self, Space *space, uint64_t start, uint64_t end) noexcept nogil
    cdef int _queue(self, Space *space, uint64_t page, uint64_t end) noexcept nogil
    cdef void _choose(self, Space *space, uint32_t want) noexcept nogil
    cdef int _evict(self, Space *space, bint locked) noexcept nogil
    cdef void _protect(self, Space *space, uint64_t first, uint32_t count, bint kept, bint locked) noexcept nogil
    cdef void _clean(self, Space *space, uint64_t page) noexcept nogil
    cdef uint32_t _read(self, Space *space, uint32_t count, bint locked) noexcept nogil
    cdef int _save(self, Space *space, uint32_t count, bint locked) noexcept nogil
    cdef uint32_t _note(self, Space *space, uint32_t done, uint32_t slot, uint32_t count, bint locked) noexcept nogil
    cdef void _add_drop(self, uint64_t page) noexcept nogil
    cdef void _give_up(self, Space *space, uint32_t done, uint32_t end, bint locked) noexcept nogil
    cdef void _end_batch(self, Space *space) noexcept nogil
    cdef void _acquire(self, bint locked) noexcept nogil
    cdef void _release(self, bint locked) noexcept nogil
