# System calls that wait for an answer (seccomp_unotify(2)), and reading and writing the memory of whoever made them.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from posix.fcntl cimport O_CLOEXEC
from posix.types cimport pid_t

cdef extern from "<linux/seccomp.h>" nogil:
    cdef struct seccomp_data:
        int nr
        uint32_t arch
        uint64_t instruction_pointer
        uint64_t args[6]
    cdef struct seccomp_notif:
        uint64_t id
        uint32_t pid
        uint32_t flags
        seccomp_data data
    cdef struct seccomp_notif_resp:
        uint64_t id
        int64_t val
        int32_t error
        uint32_t flags
    cdef struct seccomp_notif_addfd:
        uint64_t id
        uint32_t flags
        uint32_t srcfd
        uint32_t newfd
        uint32_t newfd_flags
    enum:
        SECCOMP_USER_NOTIF_FLAG_CONTINUE
        SECCOMP_ADDFD_FLAG_SETFD
        SECCOMP_ADDFD_FLAG_SEND
        SECCOMP_IOCTL_NOTIF_RECV
        SECCOMP_IOCTL_NOTIF_SEND
        SECCOMP_IOCTL_NOTIF_ID_VALID
        SECCOMP_IOCTL_NOTIF_ADDFD

# Of Linux 6.6 on; headers may be older. Who is woken goes on where the other one stops, on the same processor.
cdef extern from * nogil:
    """
    #include <linux/ioctl.h>
    #define RUSTOSD_NOTIF_SET_FLAGS _IOW('!', 4, unsigned long long)
    #define RUSTOSD_NOTIF_SYNC_WAKE_UP 1UL
    """
    enum:
        RUSTOSD_NOTIF_SET_FLAGS
        RUSTOSD_NOTIF_SYNC_WAKE_UP

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout_ms)
    enum: POLLIN

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t process_vm_readv(pid_t pid, const iovec *local, unsigned long locals, const iovec *remote, unsigned long remotes,
                             unsigned long flags)
    ssize_t process_vm_writev(pid_t pid, const iovec *local, unsigned long locals, const iovec *remote, unsigned long remotes,
                              unsigned long flags)

cdef class Notifications:
    cdef readonly int fd
    cpdef proceed(self, uint64_t id)
    cpdef give(self, uint64_t id, int fd, bint close_on_exec)
    cdef _add(self, uint64_t id, int fd, uint32_t flags, uint32_t number, bint close_on_exec)
    cdef void _send(self, uint64_t id, int64_t value, int error, uint32_t flags)

cpdef bytes read_memory(int pid, uint64_t address, uint64_t octets)
