from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    PAGE = 4096
    UNIT = 512                  # what places on a device count in

cdef class Device:
    cdef readonly str name
    cdef readonly uint64_t octets
    cdef readonly uint32_t granule      # octets that requests, and with `direct` their memory, must be multiples of
    cdef readonly bint direct           # memory must be aligned as well

    cdef int read(self, uint8_t *data, uint64_t at, uint64_t octets) noexcept nogil
    cdef int write(self, const uint8_t *data, uint64_t at, uint64_t octets) noexcept nogil
    cdef int discard(self, uint64_t at, uint64_t octets) noexcept nogil

cdef class FileDevice(Device):
    cdef int fd

    cdef _go_direct(self)
    cdef int _takes(self, uint64_t octets) except -1

cdef class RamDevice(Device):
    cdef uint8_t *base
    cdef int32_t fault          # errno of what is told to fail; 0: nothing is
    cdef bint fault_reads, fault_writes
    cdef uint64_t fault_at, fault_end
    cdef uint64_t misread_at
    cdef uint8_t misread_bits
    cdef uint32_t misreads
    cdef uint64_t torn          # octets of a failing write that are there all the same

    cdef bint _fails(self, bint asked, uint64_t at, uint64_t octets) noexcept nogil
