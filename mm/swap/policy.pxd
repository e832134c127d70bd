# Which pages leave memory. A struct, so that it can be part of whatever is paged; `Replacement` shows it to Python.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:                      # queues
    FRESH                       # in memory: came for the first time, or was away for long
    PROVEN                      # in memory: came back soon after it had left
    FRESH_GONE                  # left FRESH not long ago
    PROVEN_GONE                 # left PROVEN not long ago
    QUEUES
    NOWHERE = QUEUES

cdef struct Node:
    uint64_t page
    uint32_t older, newer       # in its queue, by index; 0: none
    uint8_t queue

cdef struct Policy:
    Node *nodes                 # [0] is nobody's
    uint32_t size, used, spare  # nodes there are, have ever been in use, and the first of those that are free again
    uint32_t *table             # nodes by a hash of their page; 0: empty
    uint32_t mask
    uint32_t oldest[4]
    uint32_t newest[4]
    uint32_t counts[4]
    double fresh_return         # how many of those that left FRESH come back soon, 0 to 1
    double proven_return
    uint32_t since_probe        # pages that have left since one of PROVEN had to, to see whether it comes back
    uint64_t arrived, returned  # pages that were asked for, and those of them that had left not long ago

cdef bint policy_init(Policy *p) noexcept nogil
cdef void policy_free(Policy *p) noexcept nogil
cdef bint policy_arrive(Policy *p, uint64_t page, bint asked) noexcept nogil
cdef void policy_touch(Policy *p, uint64_t page) noexcept nogil
cdef uint32_t policy_choose(Policy *p, uint64_t *pages, uint32_t want) noexcept nogil
cdef void policy_stay(Policy *p, uint64_t page) noexcept nogil
cdef void policy_forget(Policy *p, uint64_t page) noexcept nogil
cdef void policy_forget_range(Policy *p, uint64_t first, uint64_t end) noexcept nogil
cdef bint policy_is_in_memory(Policy *p, uint64_t page) noexcept nogil

cdef inline uint32_t policy_resident(const Policy *p) noexcept nogil:
    return p.counts[FRESH] + p.counts[PROVEN]

cdef class Replacement:
    cdef Policy policy
