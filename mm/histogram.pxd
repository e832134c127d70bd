# Histograms whose buckets are powers of two: an observation is a handful of instructions, wherever it is made.
from libc.stdint cimport uint64_t
from mm.hw cimport log2_ceil

cpdef enum:
    LOG2_BUCKETS = 65

cdef struct Log2Histogram:
    uint64_t counts[LOG2_BUCKETS]   # [k]: values of at most 2**k that are above 2**(k-1)
    uint64_t sum                    # of all values

cdef inline void histogram_add(Log2Histogram *h, uint64_t value) noexcept nogil:
    """One more value."""
    h.counts[log2_ceil(value)] += 1
    h.sum += value

cdef tuple histogram_row(const Log2Histogram *h)    # what Histogram.row returns

cdef class Histogram:
    cdef Log2Histogram values
    cpdef void observe(self, uint64_t value) noexcept
