from libc.stdint cimport int64_t
from posix.types cimport off_t

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *octets, size_t count, off_t at)

cdef class Crowd:
    cdef int file               # /proc/loadavg
    cdef int processors
    cdef int64_t asked_at
    cdef int share              # how often there was one lately, of WHOLE
    cdef int alone              # how often in a row there was none
    cdef int64_t pause
    # How long to give way, ns, to be asked while a processor is used for waiting; 0: nobody else wants it.
    cdef int64_t gives_way(self, int64_t now) noexcept
    cdef bint look(self) noexcept
