from libc.stdint cimport uint8_t, uint32_t

cdef class Packer:
    cdef readonly str name
    cdef object library

    cdef void *context(self) noexcept nogil
    cdef void free_context(self, void *context) noexcept nogil
    cdef uint32_t pack(self, void *context, const uint8_t *page, uint8_t *out, uint32_t room) noexcept nogil
    cdef bint unpack(self, void *context, const uint8_t *data, uint32_t octets, uint8_t *page) noexcept nogil

cdef class Lz4(Packer):
    cdef int (*compress)(void *state, const uint8_t *data, uint8_t *out, int octets, int room, int faster) noexcept nogil
    cdef int (*decompress)(const uint8_t *data, uint8_t *out, int octets, int room) noexcept nogil
    cdef int state_octets

cdef struct ZstdContext:
    void *packing
    void *unpacking

cdef class Zstd(Packer):
    cdef void *(*new_packing)() noexcept nogil
    cdef void *(*new_unpacking)() noexcept nogil
    cdef size_t (*free_packing)(void *) noexcept nogil
    cdef size_t (*free_unpacking)(void *) noexcept nogil
    cdef size_t (*compress)(void *context, uint8_t *out, size_t room, const uint8_t *data, size_t octets, int level) noexcept nogil
    cdef size_t (*decompress)(void *context, uint8_t *out, size_t room, const uint8_t *data, size_t octets) noexcept nogil
    cdef unsigned (*is_error)(size_t result) noexcept nogil
