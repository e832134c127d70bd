from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from mm.swap.runs cimport RunMap
from mm.swap.sys cimport pthread_mutex_t

cdef class SlotTable:
    cdef RunMap runs
    cdef uint32_t *users        # of each slot; 0: nobody's
    cdef pthread_mutex_t lock
    cdef uint64_t shared        # times that a slot got one user more

    cdef int64_t take(self, uint32_t want, uint32_t *got) noexcept nogil
    cdef bint join(self, uint32_t first, uint32_t count) noexcept nogil
    cdef int leave(self, uint32_t first, uint32_t count, uint8_t *left) noexcept nogil
    cdef void give(self, uint32_t first, uint32_t count) noexcept nogil
    cdef bint has(self, uint32_t first, uint32_t count) noexcept nogil
    cdef uint32_t hold(self, uint32_t at, uint32_t end, uint32_t smallest, uint32_t *got) noexcept nogil
    cdef void let_go(self, uint32_t first, uint32_t count) noexcept nogil
