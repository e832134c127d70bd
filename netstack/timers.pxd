# Deadlines for many owners: an indexed binary min-heap of absolute times (ns) over dense ids, such as slots of a table.
from libc.stdint cimport int64_t, uint32_t

cdef struct TimerEntry:
    int64_t at
    uint32_t id

cdef struct TimerHeap:
    TimerEntry *heap            # heap[0] is due first
    uint32_t *position          # by id: 1 + its place in `heap`; 0: not set
    uint32_t count              # deadlines set
    uint32_t capacity           # ids there is memory for; grows by doubling as they are seen
    uint32_t limit              # ids are below this

cdef int timers_create(TimerHeap *t, uint32_t limit) except -1
cdef void timers_destroy(TimerHeap *t) noexcept nogil
# Set or move the deadline of an id. False: no memory, or id >= limit; what was set stays. O(log count).
cdef bint timer_set(TimerHeap *t, uint32_t id, int64_t at) noexcept nogil
cdef void timer_clear(TimerHeap *t, uint32_t id) noexcept nogil     # no-op when it is not set
cdef int64_t timer_at(const TimerHeap *t, uint32_t id) noexcept nogil   # INT64_MAX: not set
cdef inline int64_t timers_next(const TimerHeap *t) noexcept nogil:
    """The earliest deadline; INT64_MAX: none."""
    return t.heap[0].at if t.count else <int64_t>0x7FFFFFFFFFFFFFFF
cdef inline uint32_t timers_top(const TimerHeap *t) noexcept nogil:
    """Whose deadline is the earliest; only while count > 0."""
    return t.heap[0].id

cdef class Timers:
    cdef TimerHeap heap
