from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef class Mmio:
    cdef uint8_t *base          # the BAR in this process, NULL when it can only be reached by calls
    cdef object bar
    cdef readonly uint32_t size

    cdef int64_t load(self, uint32_t offset) except? -1
    cdef int store(self, uint32_t offset, uint32_t value) except? -1
