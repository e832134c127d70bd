from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

cpdef enum:
    REQUESTS = 64           # requests a burst holds at most
    SEGMENTS = 1024         # and pieces of memory, for all of them together

cpdef enum Operation:
    READ = 0
    WRITE = 1
    FLUSH = 2               # what was completed before is durable
    TRIM = 3                # nobody needs what is in these sectors; no segments
    WRITE_ZEROES = 4        # they read as zeros from now on; no segments
    EXTENTS = 5             # what is behind these sectors: the one segment is filled with `Extent`s, in order, and after the
                            # last one, if there is room, one of 0 sectors; they may tell of fewer sectors than was asked

# Of a request that changes sectors.
cpdef enum Flag:
    FUA = 1                 # what it did is durable once it is complete
    KEEP_ALLOCATED = 2      # WRITE_ZEROES: the sectors stay backed by storage, a later write finds room
    FAST = 4                # WRITE_ZEROES: EOPNOTSUPP unless it takes less than writing the zeros
    BARRIER = 8             # of any request to a queue's client: it waits for all before it, and all behind it wait for it

# Of an extent.
cpdef enum ExtentFlag:
    HOLE = 1                # no storage is behind it
    ZERO = 2                # it reads as zeros

cdef struct Extent:
    uint32_t sectors
    uint32_t flags

# Memory by both its names: a device knows the iova, a file's backend the address.
cdef struct Segment:
    uint8_t *data
    uint64_t iova
    uint32_t octets

cdef struct Request:
    uint64_t tag            # the submitter's own; comes back with the completion
    uint64_t lba
    uint32_t sectors
    uint16_t first_segment  # in the burst's table; their octets are exactly those of the sectors
    uint16_t segment_count
    uint8_t operation
    uint8_t flags

cdef struct Completion:
    uint64_t tag
    int32_t error           # errno; 0: done

cdef class RequestBurst:
    cdef Request requests[REQUESTS]
    cdef Segment segments[SEGMENTS]
    cdef readonly int count
    cdef int segment_count

    cdef bint add(self, const Request *request, const Segment *segments) noexcept nogil
    cdef void drop(self, int taken) noexcept nogil
    cpdef clear(self)

cdef class CompletionBurst:
    cdef Completion completions[REQUESTS]
    cdef readonly int count

    cdef bint add(self, uint64_t tag, int error) noexcept nogil
    cpdef clear(self)
