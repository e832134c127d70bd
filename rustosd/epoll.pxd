# epoll(7) as the kernel has it, for what waits without Python objects.
from libc.stdint cimport uint32_t

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        int fd
        uint32_t u32
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int most, int timeout_ms)
    enum: EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR, EPOLLET
    enum: EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CLOEXEC

cdef extern from "<unistd.h>" nogil:
    int close_descriptor "close"(int fd)
