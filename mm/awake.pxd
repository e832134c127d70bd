from libc.stdint cimport int64_t, uint32_t

cdef enum:
    LULL_MS = 1

cdef class Awake:
    cdef int device             # /dev/cpu_dma_latency
    cdef bint holds
    cdef uint32_t in_a_row      # pauses that were short
    # How long nothing came after the last work was done. While `holds`, whoever waits looks up after LULL_MS and says so.
    cdef void paused(self, int64_t pause_ns) noexcept nogil
