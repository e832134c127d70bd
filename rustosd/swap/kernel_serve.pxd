from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from mm.swap.store cimport SwapStore

cdef enum:
    MOST = 4194304              # octets of one request

cdef class KernelServer:
    cdef int fd
    cdef SwapStore store
    cdef uint8_t *data          # MOST octets
    cdef readonly uint64_t reads, writes, errors

    cdef int _serve(self) noexcept nogil
    cdef int _do(self, uint16_t command, uint64_t at, uint32_t octets) noexcept nogil
    cdef int _read(self, uint32_t first, uint32_t count) noexcept nogil
    cdef int _drain(self, uint64_t octets) noexcept nogil
