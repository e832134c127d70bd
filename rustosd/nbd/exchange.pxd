from libc.stdint cimport uint8_t, uint64_t

cdef int send_all(int fd, const uint8_t *header, uint64_t header_octets, const uint8_t *data, uint64_t octets) noexcept nogil
cdef int receive_all(int fd, uint8_t *data, uint64_t octets) noexcept nogil

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *data, size_t octets, int flags)
    enum: MSG_WAITALL
