from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from drivers.request cimport CompletionBurst, RequestBurst

cdef enum:
    MAX_DEPTH = 256
    FINE = 16                   # buckets to an octave: a percentile is right within 6 %
    BUCKETS = 40 * FINE         # up to 2^40 ns

cdef class Workload:
    cdef readonly int depth
    cdef readonly uint64_t operations, errors
    cdef readonly int under_way
    cdef object memory
    cdef uintptr_t base
    cdef uint64_t iova
    cdef bint random, write, stopped
    cdef uint32_t sectors, octets
    cdef uint64_t blocks, next, state
    cdef int64_t started[MAX_DEPTH]
    cdef int64_t taken_at            # of the completions just taken; 0: what is filled now follows on none
    cdef int free[MAX_DEPTH]
    cdef int free_count
    cdef uint64_t histogram[BUCKETS]
    cdef uint64_t total_ns, longest_ns

    cdef int _fill(self, RequestBurst burst, int room) noexcept nogil
    cdef int _take(self, CompletionBurst burst) noexcept nogil
    cdef uint64_t _block(self) noexcept nogil
