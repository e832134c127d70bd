# Compiled: it is asked after every turn that worked.
from libc.stdint cimport int64_t, uint64_t
from mm.crowd cimport Crowd

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int what, unsigned long value)
    enum: PR_SET_TIMERSLACK

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int nanosleep(const timespec *want, timespec *rest)

cpdef enum:
    WORTH = 3                   # what a rest has to gather for another to follow
    PASSES_MOST = 63

cdef enum:
    SLICE_NS = 40000            # after each the crowd is looked at again

cdef class Moderation:
    cdef int64_t most_ns
    cdef Crowd crowd            # None: it is not known, and there is no rest
    cdef int64_t crowded_until
    cdef int misses             # how many chances the last rests that did not pay have cost ...
    cdef int passes             # ... and how many of them are left to pass
    cdef readonly uint64_t rests
    cpdef bint due(self, int64_t now)
    cpdef bint gathered(self, uint64_t count)
    cdef int64_t rest(self, int64_t now) noexcept
