# The loop that takes in calls.
from libc.stdint cimport int64_t, uint32_t, uint64_t
from mm.awake cimport Awake
from rustosd.process.call cimport Call
from rustosd.process.notify cimport SECCOMP_IOCTL_NOTIF_RECV, Notifications, ioctl, seccomp_notif
from rustosd.process.threads cimport Threads

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        int fd
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_wait(int epoll, epoll_event *events, int most, int timeout_ms)
    enum: EPOLLIN

cdef enum:
    EVENTS_MOST = 64
    NUMBERS = 512               # system calls have smaller numbers
    RECENT = 32

cdef struct Recent:
    int thread
    int number
    int fd

cdef class Calls:
    cdef readonly Notifications notifications
    cdef readonly Threads threads
    cdef int epoll
    cdef bint hurried           # something is to be done soon
    cdef Awake awake            # None: processors sleep as they like
    cdef dict sockets           # by inode
    cdef list handlers          # by number
    cdef object open
    cdef uint64_t counts[NUMBERS]
    cdef Recent ring[RECENT]
    cdef uint32_t taken
    cdef int sleep(self, epoll_event *events, int64_t until) noexcept
    cdef int take(self) except -1
    cdef answer(self, Call call)
    cdef void note(self, Call call) noexcept
