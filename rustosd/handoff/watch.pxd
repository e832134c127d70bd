# An epoll of the ends whose other ends programs have.
from libc.stdint cimport uint32_t

cdef enum:
    EVENTS_MOST = 256           # of one look
    ROUNDS_MOST = 4

cdef class Watch:
    cdef int epoll              # -1: closed
    cdef list watchers          # by descriptor; None: nobody's
    cdef void tell(self, int fd, uint32_t events) noexcept
