# What a pump asks of a stack, so that it can do so without Python objects in between.
from libc.stdint cimport int64_t
from mm.frame cimport RxBurst, TxBurst

cdef enum:                      # what `tell` says
    NEWS = 1                    # applications have to be told something
    MOVED = 2                   # some that were told have written or read

cdef class PacketStack:
    cdef readonly RxBurst looped    # the frames that loopback carried last
    cpdef receive(self, int index, int64_t now, RxBurst burst)
    cpdef advance(self, int64_t now)
    cpdef wake_at(self)
    cpdef int transmit(self, int index, int64_t now, TxBurst burst) except? -1
    cpdef int loop(self, int64_t now) except? -1
    cpdef int tell(self) except? -1
