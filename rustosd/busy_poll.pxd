# Compiled: it is asked after every look.
from libc.stdint cimport int64_t, uint64_t
from mm.crowd cimport Crowd

cpdef enum:
    MAX_PASSES = 63
    STRETCH = 4                 # a while grows to so many times its length where what is waited for takes that long

cdef class BusyPoll:
    cdef int64_t while_ns
    cdef int64_t until          # not 0: looking
    cdef int64_t worked_at      # since when something is waited for; 0: nothing is
    cdef int64_t gap            # how long that usually takes
    cdef int misses             # how many chances the last vain whiles have cost ...
    cdef int passes             # ... and how many of them are left to pass
    cdef Crowd crowd            # None: nobody else is looked after
    cdef int64_t rests_until
    cdef readonly uint64_t vain_looks
    cpdef bint go_on(self, int64_t now, bint worked, bint found)
    cdef int64_t length(self)
    cdef void learn(self, int64_t gap)
