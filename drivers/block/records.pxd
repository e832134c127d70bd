# What a queue keeps: clients in lanes, their requests in slots, and commands, which are what the disk below is asked.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from drivers.block.check cimport Bounds
from drivers.request cimport Completion, Segment
from mm.histogram cimport Log2Histogram, histogram_add

cdef enum:
    LANES = 64                  # clients of a queue at most
    COMMANDS = 128              # with the disk, or about to be
    NEAR = 4                    # segments a slot has place for; more are beside it
    MAX_SEGMENTS = 256          # of a request: what a burst can hold for it
    LOOK_AHEAD = 8              # requests behind one in which to look for its neighbours on the disk
    BOUNCES = 8                 # buffers for odd requests
    BOUNCE_OCTETS = 1 << 16
    QUANTUM = 1 << 18           # what a lane of weight 1 may ask for before the next lane has its turn; see `cost`
    COST_OCTETS = 1 << 14       # a request costs its octets and so many more
    OPERATIONS = 6

# One request of a client.
cdef struct Slot:
    Slot *next                  # in the lane's list of what waits, among those of a command, or of those that need a flush
    Slot *previous              # in the lane's list
    Lane *lane
    uint64_t tag
    uint64_t at                 # in octets of the disk
    uint64_t octets             # how many are to be read or changed ...
    uint64_t cursor             # ... of which so many are under way or done
    int64_t submitted           # when, in ns
    uint32_t sectors            # as the client counts them
    uint32_t pieces             # commands under way for it
    int32_t error               # the first of its pieces'
    uint16_t segment_count
    uint8_t operation
    uint8_t flags
    bint started                # some of it is, or was, under way
    bint alone                  # not to be merged: its command failed together with others
    bint odd                    # its memory begins or ends a segment at an odd address
    bint waits                  # it is in the lane's list
    Segment near_by[NEAR]
    Segment *apart              # MAX_SEGMENTS, once it needed more than NEAR

cdef struct Ends:
    uint64_t requests[OPERATIONS]       # that ended well
    uint64_t octets[OPERATIONS]
    uint64_t failed             # that ended with an error of the disk's
    Log2Histogram latency[OPERATIONS]   # from `submit` on, ns

cdef struct LaneCounters:
    uint64_t refused            # that made no sense
    uint64_t timeouts
    uint64_t merged             # that were part of another's command
    uint64_t split              # that took more than one command
    uint64_t bounced            # commands by way of a buffer
    uint64_t retried
    uint64_t throttled          # that had to wait for the lane's limits
    uint64_t full               # times a burst did not fit

# One client.
cdef struct Lane:
    Bounds bounds               # in the client's sectors
    uint32_t unit               # octets of one
    uint64_t begin              # where on the disk its first is, octets
    uint32_t depth
    Slot *slots
    Slot *free
    uint32_t free_count
    Slot *first                 # that wait or are under way in part, oldest first
    Slot *last
    uint32_t waiting
    uint32_t under_way
    bint barrier                # a request that nothing may pass is under way
    bint armed, signalled
    int eventfd
    int64_t quantum             # by its weight
    int64_t deficit
    # Limits: when the next request would be in its time if all came evenly, and how much too early it may come.
    int64_t request_ns          # 0: no limit
    int64_t request_slack
    int64_t request_due
    double octet_ns             # 0: no limit
    int64_t octet_slack
    int64_t octet_due
    Slot *held                  # the one that is counted in `throttled` already
    Completion *ended           # a queue in a circle
    uint32_t ended_mask, ended_first, ended_count
    LaneCounters counters
    Ends ends

# One request to the disk below.
cdef struct Command:
    Slot *slot                  # whose piece it is; with `parents` more than 1 it is all of these, linked by `next`
    Command *next               # in a list: free, or to be submitted
    uint64_t offset             # of the piece in the slot, octets
    uint64_t octets
    uint64_t at                 # on the disk, octets, whole sectors; with a bounce buffer it may begin before the piece ...
    uint64_t span               # ... and end behind it
    int64_t started
    uint32_t parents
    int32_t bounce              # the buffer's number; -1: none
    uint8_t operation           # READ first when it reads before it writes
    uint8_t flags
    uint8_t tries
    bint then_write             # READ for a WRITE
    bint changes                # what is on the disk
    bint active

cdef inline Segment *segments_of(Slot *s) noexcept nogil:
    return s.apart if s.apart != NULL and s.segment_count > NEAR else s.near_by

# Limits, as a bucket that leaks: GCRA, ITU-T I.371.

cdef inline int64_t allowed_at(const Lane *lane) noexcept nogil:
    """From when on the lane's next request may begin."""
    cdef int64_t at = 0
    if lane.request_ns:
        at = lane.request_due - lane.request_slack
    if lane.octet_ns and lane.octet_due - lane.octet_slack > at:
        at = lane.octet_due - lane.octet_slack
    return at

cdef inline void charge(Lane *lane, uint64_t octets, int64_t now) noexcept nogil:
    """One request begins."""
    if lane.request_ns:
        lane.request_due = (lane.request_due if lane.request_due > now else now) + lane.request_ns
    if lane.octet_ns:
        lane.octet_due = (lane.octet_due if lane.octet_due > now else now) + <int64_t>(octets * lane.octet_ns)

cdef inline void count(Ends *ends, const Slot *s, int error, int64_t now) noexcept nogil:
    """A request has ended."""
    histogram_add(&ends.latency[s.operation], now - s.submitted)
    if error:
        ends.failed += 1
    else:
        ends.requests[s.operation] += 1
        ends.octets[s.operation] += s.octets

cdef inline int64_t cost(uint64_t octets) noexcept nogil:
    """What counts when lanes share a disk."""
    return <int64_t>octets + COST_OCTETS

# The list of what waits in a lane.

cdef inline void append(Lane *lane, Slot *s) noexcept nogil:
    s.next = NULL
    s.previous = lane.last
    if lane.last != NULL:
        lane.last.next = s
    else:
        lane.first = s
    lane.last = s
    s.waits = True
    lane.waiting += 1

cdef inline void prepend(Lane *lane, Slot *s) noexcept nogil:
    s.previous = NULL
    s.next = lane.first
    if lane.first != NULL:
        lane.first.previous = s
    else:
        lane.last = s
    lane.first = s
    s.waits = True
    lane.waiting += 1

cdef inline void unlink(Lane *lane, Slot *s) noexcept nogil:
    if s.previous != NULL:
        s.previous.next = s.next
    else:
        lane.first = s.next
    if s.next != NULL:
        s.next.previous = s.previous
    else:
        lane.last = s.previous
    s.next = s.previous = NULL
    s.waits = False
    lane.waiting -= 1
