# Descriptors that travel over unix sockets, one at a time.
from posix.uio cimport iovec
from rustosd.sockets cimport MSG_DONTWAIT, MSG_NOSIGNAL, msghdr, recvmsg, sendmsg

cdef extern from "<sys/socket.h>" nogil:
    cdef struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    cmsghdr *CMSG_FIRSTHDR(msghdr *message)
    unsigned char *CMSG_DATA(cmsghdr *one)
    size_t CMSG_LEN(size_t octets)
    int socketpair(int domain, int type, int protocol, int *ends)
    int setsockopt(int fd, int level, int option, const void *value, unsigned int length)
    ssize_t send_octets "send"(int fd, const void *octets, size_t count, int flags)
    ssize_t recv(int fd, void *octets, size_t count, int flags)
    enum: AF_UNIX, SOL_SOCKET, SCM_RIGHTS, SOCK_CLOEXEC, MSG_CMSG_CLOEXEC, SO_SNDBUF, SO_SNDBUFFORCE

cdef extern from "<unistd.h>" nogil:
    int close_descriptor "close"(int fd)

cdef enum:
    ROOM = 64                   # octets: more than CMSG_SPACE of one descriptor

cdef Py_ssize_t send_with(int fd, bytes octets, int passed) noexcept
cpdef tuple receive_with(int fd, int most)
cpdef send_now(int fd, bytes octets)
cpdef tuple make_pair(int kind, int buffer_octets)

cdef class End:
    cdef int fd
    cpdef close(self)
    cpdef limit(self, int octets)
    cpdef send(self, bytes octets)
    cpdef bint offer(self, bytes octets) noexcept
    cpdef int drain(self) noexcept
    cpdef bint hand_over(self, bytes octets, End other) except? -1
