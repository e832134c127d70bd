from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

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

ctypedef void *(*new_context)() noexcept nogil
ctypedef void (*end_context)(void *) noexcept nogil
ctypedef int (*start)(void *context, const void *cipher, void *engine, const uint8_t *key, const uint8_t *nonce) noexcept nogil
ctypedef int (*step)(void *context, uint8_t *out, int *octets, const uint8_t *data, int length) noexcept nogil
ctypedef int (*finish)(void *context, uint8_t *out, int *octets) noexcept nogil
ctypedef int (*control)(void *context, int what, int octets, void *data) noexcept nogil

cdef class AesGcm(Sealer):
    cdef object library
    cdef uint8_t *key           # a page that is locked, not dumped, and empty in a child
    cdef const void *cipher
    cdef new_context new_
    cdef end_context free_
    cdef start encrypt_start
    cdef start decrypt_start
    cdef step encrypt_step
    cdef step decrypt_step
    cdef finish encrypt_finish
    cdef finish decrypt_finish
    cdef control control_

    cdef _make_key(self)
    cdef int _start(self, start begin, void *context, uint64_t number) noexcept nogil
