from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from drivers.block.records cimport BOUNCES, COMMANDS, LANES, OPERATIONS, Command, Lane, Slot
from drivers.request cimport CompletionBurst, RequestBurst, Segment
from mm.histogram cimport Log2Histogram

cdef struct Counters:
    uint64_t commands[OPERATIONS]
    uint64_t failed             # commands that ended with an error
    uint64_t stalls             # times that the disk did not answer for so long that clients were told

cdef class Queue:
    cdef readonly object disk
    cdef object clock           # None: the machine's
    cdef readonly list names    # of lanes; None: the lane is free
    cdef Lane *lanes[LANES]
    cdef int lane_count         # slots of the table that were ever used
    cdef int turn               # whose it is
    cdef bint visited           # the lane whose turn it is has had its quantum
    cdef Command commands[COMMANDS]
    cdef Command *free
    cdef int free_count
    cdef Command *ready_first   # commands to be submitted before anything else
    cdef Command *ready_last
    cdef Slot *flush_first      # that need a flush of the disk
    cdef Slot *flush_last
    cdef uint32_t flush_waiting
    cdef bint flushing
    cdef uint32_t waiting       # slots in all lanes' lists
    cdef RequestBurst requests
    cdef CompletionBurst completions
    cdef readonly uint32_t under_way    # commands the disk has
    # Of the disk below.
    cdef uint64_t sector, octets, max_octets, max_trim, trim_octets
    cdef uint32_t max_segments, memory_alignment
    cdef bint caches, has_fua, has_trim, has_zeroes, has_fast_zeroes
    # Buffers for odd requests, and zeros.
    cdef object bounce_memory, zero_memory
    cdef uint8_t *bounce_data
    cdef uint64_t bounce_iova
    cdef uint8_t *zero_data
    cdef uint64_t zero_iova
    cdef bint bounce_used[BOUNCES]
    cdef int bounce_writes      # commands that read before they write: nothing may change these sectors in between
    cdef bint merges
    cdef int retries
    cdef int64_t timeout_ns     # 0: never
    cdef int64_t looked         # when lanes were last asked for their requests
    cdef int64_t progress       # when the disk last answered, or got something to do
    cdef readonly bint stalled, gone, closed
    cdef Counters counters
    cdef Log2Histogram latency[OPERATIONS]

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
    cdef uint64_t _direct_octets(self, Slot *s) noexcept nogil
    cdef Command *_bounce(self, Slot *s) noexcept nogil
    cdef bint _conflicts(self, uint64_t at, uint64_t span, bint only_bounces) noexcept nogil
    cdef bint _need_bounce_memory(self) noexcept nogil
    cdef bint _need_zeros(self) noexcept nogil
    cdef bint _send(self, Command *c, int64_t now) noexcept nogil
    cdef int _segments(self, Command *c, Segment *out) noexcept nogil
    cdef Command *_take_command(self, Slot *s, uint8_t operation) noexcept nogil
    cdef void _give_command(self, Command *c) noexcept nogil
    cdef void _push_ready(self, Command *c) noexcept nogil
    cdef void _ended(self, Command *c, int error, int64_t now) noexcept nogil
    cdef bint _again(self, Command *c, int error) noexcept nogil
    cdef void _unmerge(self, Command *c) noexcept nogil
    cdef void _copy(self, Command *c, bint to_client) noexcept nogil
    cdef void _piece_done(self, Slot *s, int error, int64_t now) noexcept nogil
    cdef void _settle(self, Slot *s, int64_t now) noexcept nogil
    cdef void finish(self, Slot *s, int error, int64_t now) noexcept nogil
    cdef void _fail_waiting(self, int error, int64_t now) noexcept nogil
    cdef void _lose(self, int64_t now) noexcept nogil
    cdef void signal(self, Lane *lane) noexcept nogil
    cdef int64_t next_deadline(self) noexcept nogil
