from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    NONE = -1
    LOOK = 256                  # free runs to look at before the longest of them must do

cdef class RunMap:
    cdef readonly uint32_t count
    cdef readonly uint32_t free
    cdef uint64_t *taken        # a bit for each place; those behind the last are taken for ever
    cdef uint64_t *full         # a bit for each word of `taken` that has no free place
    cdef uint32_t words
    cdef uint32_t hand          # where to look next: what is taken together lies together

    cdef int64_t take(self, uint32_t want, uint32_t *got) noexcept nogil
    cdef void give(self, uint32_t first, uint32_t count) noexcept nogil
    cdef uint32_t next_free(self, uint32_t at) noexcept nogil
    cdef uint32_t next_taken(self, uint32_t at, uint32_t end) noexcept nogil
    cdef uint32_t hold(self, uint32_t at, uint32_t end, uint32_t smallest, uint32_t *got) noexcept nogil
    cdef void _mark(self, uint32_t first, uint32_t count) noexcept nogil
    cdef uint32_t _next_word(self, uint32_t word) noexcept nogil
