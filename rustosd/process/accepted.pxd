# Compiled: one is made per accepted connection.
from libc.stdint cimport uint64_t

cdef class Accepted:
    cdef readonly object listener
    cdef readonly object options
    cdef readonly bytes ends
    cdef readonly uint64_t inode
    cpdef object whole(self)
