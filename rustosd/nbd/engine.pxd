# All connections of one export, and its disk.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from drivers.request cimport CompletionBurst, RequestBurst
from rustosd.nbd.peer cimport Counts, Peer, Shape

cdef enum:
    EVENTS = 64                 # of one look at the sockets
    SHARE = 8                   # requests one connection gives to the disk before others get their turn
    MAX_PASSES = 63

cdef class Engine:
    cdef readonly object name
    cdef object loop, disk, owner, budget
    cdef object submit, complete, room
    cdef RequestBurst requests
    cdef CompletionBurst completions
    cdef Shape shape
    cdef Counts counts
    cdef Peer **peers           # by index; NULL: free
    cdef uint32_t *active       # indices of those that have something to do
    cdef uint32_t active_count, capacity, rotation
    cdef readonly int connections
    cdef list memories          # by index: the arena's DmaMemory
    cdef int epoll
    cdef int disk_fd
    cdef readonly uint64_t under_way    # requests at the disk
    cdef readonly uint64_t turns
    cdef bint attention         # a connection is over or wants more memory
    cdef bint gone              # the disk is
    cdef bint closed, scheduled, running
    cdef readonly bint draining
    cdef object flush_ended     # future of `flush`
    cdef bint flush_wanted
    cdef object timer
    cdef int64_t busy_poll_ns, poll_until
    cdef int misses, passes

    cdef void _look(self) noexcept nogil
    cdef bint _receive(self) noexcept nogil
    cdef void _fill(self, int room) noexcept nogil
    cdef void _take(self) noexcept nogil
    cdef bint _send(self) noexcept nogil
    cdef void _refuse_queued(self) noexcept nogil
    cdef void _activate(self, Peer *p) noexcept nogil
    cdef bint _breathe(self) except -1
    cdef _end(self, uint32_t index, uint32_t reason)
    cdef _attend(self)
    cdef _grow(self, Peer *p)
    cdef _remove(self, uint32_t index)
    cdef uint32_t _free_index(self) except? 0xFFFFFFFF
    cdef _lose(self)
    cdef _end_flush(self)
    cdef _wait(self)
    cdef bint _polls_on(self, bint worked) except? -1
    cdef _schedule(self)
