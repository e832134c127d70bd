# Descriptors of other processes' threads (pidfd_getfd(2)).
from libc.stdint cimport uint64_t
from posix.stat cimport S_ISSOCK, stat, struct_stat

cdef extern from "<sys/syscall.h>" nogil:
    enum: SYS_fstat, SYS_kcmp, SYS_pidfd_getfd, SYS_pidfd_open

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)
    int close_descriptor "close"(int fd)

cdef inline int look_at(int fd, struct_stat *found) noexcept nogil:
    """fstat(2). glibc's makes it a look along an empty path, which takes twice as long."""
    return <int>syscall(SYS_fstat, fd, found)

cdef enum:
    PIDFD_THREAD = 0x80         # O_EXCL; of Linux 6.9 on
    KCMP_FILE = 0               # linux/kcmp.h, which is younger than some headers

# The duplicate of the latest call: the next one is often about the same socket.
cdef struct Kept:
    int fd                      # -1: there is none
    int thread
    int number
    uint64_t inode

cdef class Threads:
    cdef dict pidfds
    cdef bint whole             # the kernel has pidfds of whole processes only
    cdef int own                # our process's number
    cdef Kept kept
    cdef int reach(self, int thread, int number) except -1000
    cdef uint64_t socket(self, int thread, int number, int *end) except? 0
    cdef void keep(self, int thread, int number, uint64_t inode, int fd) noexcept
    cdef void let_go(self) noexcept

cpdef uint64_t inode_of(int fd) except? 0
