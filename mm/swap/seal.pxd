from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    SEAL = 12                   # octets; a tag of 96 bits is the shortest that NIST SP 800-38D allows for every use

# Seals and opens. `context` is one thread's; `number` is never the same twice for one key.
cdef class Sealer:
    cdef readonly str name
    cdef readonly bint encrypts

    cdef void *context(self) noexcept nogil
    cdef void free_context(self, void *context) noexcept nogil
    cdef int seal(self, void *context, uint64_t number, const uint8_t *data, uint32_t octets, uint8_t *out,
                  uint8_t *seal) noexcept nogil
    cdef int open(self, void *context, uint64_t number, uint8_t *data, uint32_t octets, const uint8_t *seal) noexcept nogil

cdef class Checksum(Sealer):
    cdef uint64_t (*hash)(const void *data, size_t octets) noexcept nogil
    cdef object library
