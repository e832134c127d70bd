# Short sorted arrays of disjoint sequence ranges: what lies beyond a gap, at either end of a connection.
from libc.stdint cimport uint16_t, uint32_t
from netstack.wire.tcp cimport Range

# Add [start, end), merging. -1: no room for one more range, nothing changed; else how many octets are new.
cdef int ranges_add(Range *r, uint16_t *count, uint16_t limit, uint32_t start, uint32_t end) noexcept nogil
# Forget everything before `seq`.
cdef void ranges_cut(Range *r, uint16_t *count, uint32_t seq) noexcept nogil
cdef uint32_t ranges_octets(const Range *r, uint16_t count) noexcept nogil
