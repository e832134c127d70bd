from libc.stdint cimport int64_t, uint32_t, uint64_t
from drivers.block.commands cimport Commands
from drivers.block.records cimport LANES, Command, Ends, Lane, Slot
from drivers.request cimport CompletionBurst, RequestBurst

cdef class Queue(Commands):
    cdef object clock           # None: the machine's
    cdef readonly list names    # of lanes; None: the lane is free
    cdef Lane *lanes[LANES]
    cdef int lane_count         # places of the table that were ever used
    cdef int watchers           # clients that the disk's descriptor wakes
    cdef int turn               # whose it is
    cdef bint visited           # the lane whose turn it is has had its quantum
    cdef Slot *flush_first      # that need a flush of the disk
    cdef Slot *flush_last
    cdef uint32_t flush_waiting
    cdef bint flushing
    cdef CompletionBurst completions
    cdef bint merges
    cdef int retries
    cdef int64_t timeout_ns     # 0: never
    cdef int64_t looked         # when lanes were last asked for their requests
    cdef readonly bint stalled, gone, closed
    cdef Ends ends              # of all clients
    cdef uint64_t stalls        # times that the disk did not answer for so long that clients were told

    cdef int64_t now(self) except? -1
    cdef void accept(self, Lane *lane, RequestBurst burst, int64_t now) noexcept nogil
    cdef void forget(self, Lane *lane) noexcept nogil
    cdef int turn_over(self, int64_t now, Lane *asking) except -1
    cdef _rearm(self, Lane *asking)
    cdef int dispatch(self, int64_t now) except -1
    cdef bint _has_work(self) noexcept nogil
    cdef void _fill(self, int room, int64_t now) noexcept nogil
    cdef bint _flush_command(self, int64_t now) noexcept nogil
    cdef bint _ready(self, Lane *lane, int64_t now) noexcept nogil
    cdef int64_t _issue(self, Lane *lane, int64_t now) noexcept nogil
    cdef void _begin(self, Lane *lane, Slot *s, int64_t now) noexcept nogil
    cdef Command *_next_command(self, Lane *lane, Slot *s) noexcept nogil
    cdef void _merge(self, Lane *lane, Command *c, int64_t now) noexcept nogil
    cdef bint _direct(self, const Slot *s) noexcept nogil
    cdef Command *_bounce(self, Slot *s) noexcept nogil
    cdef void _ended(self, Command *c, int error, int64_t now) noexcept nogil
    cdef bint _again(self, Command *c, int error) noexcept nogil
    cdef void _unmerge(self, Command *c) noexcept nogil
    cdef void _piece_done(self, Slot *s, int error, int64_t now) noexcept nogil
    cdef void _settle(self, Slot *s, int64_t now) noexcept nogil
    cdef void finish(self, Slot *s, int error, int64_t now) noexcept nogil
    cdef void _fail_waiting(self, int error, int64_t now) noexcept nogil
    cdef void _lose(self, int64_t now) noexcept nogil
    cdef void signal(self, Lane *lane) noexcept nogil
    cdef void signal_all(self) noexcept nogil
    cdef int64_t next_deadline(self) noexcept nogil
