from libc.stdint cimport uint8_t, uint32_t, uint64_t
from drivers.mmio cimport Mmio

cdef class InternalCommand:
    cdef Mmio mmio
    cdef uint32_t port          # the port's registers in the BAR
    cdef object memory
    cdef uint8_t *base          # the port's memory
    cdef uint64_t iova
    cdef uint8_t saved[16]      # of slot 0's header, which is some request's
