from libc.stdint cimport int64_t
from drivers.block.queue cimport Queue
from drivers.block.records cimport Lane
from drivers.request cimport CompletionBurst, RequestBurst

cdef class Client:
    cdef readonly Queue queue
    cdef readonly str name
    cdef readonly object info
    cdef Lane *lane             # NULL once closed
    cdef int number
    cdef int eventfd
    cdef object poller          # select.epoll: the eventfd, and while `watching` the disk's descriptor
    cdef bint watching

    cdef _make_lane(self, int depth)
    cdef _free_lane(self)
    cdef _watch(self, bint watching)
    cdef bint _has_work(self) noexcept nogil
    cdef int _take_ended(self, CompletionBurst burst) noexcept nogil
