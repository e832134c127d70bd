from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from mm.swap.device cimport Device
from mm.swap.sys cimport pthread_mutex_t

cdef enum:
    CONNECTIONS = 4
    REQUEST_MOST = 4194304      # octets of one read or write

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_trylock(pthread_mutex_t *lock)

# One connection, one request at a time.
cdef struct Line:
    int fd
    int error                   # an errno: it is broken, and stays so
    uint64_t cookie
    pthread_mutex_t lock

cdef class NbdDevice(Device):
    cdef Line lines[CONNECTIONS]
    cdef uint32_t line_count
    cdef uint32_t turn
    cdef uint64_t begin         # of our part of the export, octets
    cdef bint trims
    cdef readonly str export

    cdef int _ask(self, uint16_t command, uint8_t *data, uint64_t at, uint64_t octets) noexcept nogil
    cdef Line *_line(self) noexcept nogil
    cdef int _exchange(self, Line *line, uint16_t command, uint8_t *data, uint64_t at, uint64_t octets) noexcept nogil

cdef extern from "<unistd.h>" nogil:
    int close_fd "close"(int fd)
