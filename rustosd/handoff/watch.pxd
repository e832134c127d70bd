# An epoll of the ends whose other ends programs have.
from libc.stdint cimport uint32_t
from rustosd.descriptors cimport End
from rustosd.pump cimport Source

cdef enum:
    EVENTS_MOST = 256           # of one look
    ROUNDS_MOST = 4

cdef class Watch(Source):
    cdef int epoll              # -1: closed
    cdef list watchers          # by descriptor; None: nobody's
    cdef bint looking
    cdef list closing           # ends whose numbers must not be used again before the look is over
    cpdef watch(self, int fd, object who, uint32_t wanted=*)
    cpdef forget(self, End end)
    cdef int look_once(self) noexcept
    cdef void tell(self, int fd, uint32_t events) noexcept
    cdef void close_ends(self) noexcept
