from libc.stdint cimport uint8_t, uint32_t, uint64_t
from mm.swap.seal cimport Sealer

cdef struct KeyPage:
    uint64_t here               # 1; 0 in a child of the process, where the page is empty
    uint8_t octets[32]
    uint8_t unused[24]          # `expanded` begins at a cache line
    uint8_t expanded[4032]      # by ipsec-mb: 1,008 octets in its version 1.3, 1,264 from 1.4 on

# A page that is locked, not dumped, and empty in a child.
cdef class Key:
    cdef KeyPage *page

cdef class AesGcm(Sealer):
    cdef readonly str by        # the library that does it
    cdef Key key

ctypedef void *(*new_context)() noexcept nogil
ctypedef void (*end_context)(void *) noexcept nogil
ctypedef int (*start)(void *context, const void *cipher, void *engine, const uint8_t *key, const uint8_t *nonce) noexcept nogil
ctypedef int (*step)(void *context, uint8_t *out, int *octets, const uint8_t *data, int length) noexcept nogil
ctypedef int (*finish)(void *context, uint8_t *out, int *octets) noexcept nogil
ctypedef int (*control)(void *context, int what, int octets, void *data) noexcept nogil

cdef class Libcrypto(AesGcm):
    cdef object library
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

    cdef int _start(self, start begin, void *context, uint64_t number) noexcept nogil

ctypedef void (*expand)(const uint8_t *key, void *expanded) noexcept nogil
ctypedef void (*whole)(const void *expanded, void *context, uint8_t *out, const uint8_t *data, uint64_t octets,
                       const uint8_t *nonce, const uint8_t *more, uint64_t more_octets, uint8_t *tag,
                       uint64_t tag_octets) noexcept nogil

cdef class IpsecMb(AesGcm):
    cdef object library
    cdef whole encrypt
    cdef whole decrypt
