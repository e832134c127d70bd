from libc.stdint cimport int64_t, uint64_t

cdef extern from "<sys/resource.h>" nogil:
    cdef struct rusage:
        long ru_nvcsw
    int getrusage(int who, rusage *usage)
    enum: RUSAGE_THREAD

cdef enum:
    SLOW_NS = 500000            # a write that takes longer has waited, if the thread slept in it
    TIMES = 100                 # as long as it took the next ones go to a helper
    AT_ONCE_MOST = 1 << 24      # octets written between two looks at the kernel's figures
    AT_ONCE_LEAST = 1 << 20     # with less room than that it is not worth it
    LOOK_AGAIN_NS = 100000000   # after a look that found none

cdef class LoopWrites:
    cdef object room            # asks the kernel: octets
    cdef int64_t left           # octets that may be written before it is asked again
    cdef int64_t not_before     # ns
    cdef int64_t began          # ns, the write under way, or the first of a burst; 0: none of this burst
    cdef long sleeps            # of this thread, when it began
    cdef readonly uint64_t held_up      # times a write took its time

    cdef bint may(self, int64_t octets) noexcept nogil
    cdef void wrote(self) noexcept nogil
    cdef void burst_over(self) noexcept nogil
    cdef void judge(self, int64_t now, int64_t took, bint slept) noexcept nogil
    cdef void _refill(self, int64_t now) noexcept
