from libc.stdint cimport uint8_t, uint32_t, uint64_t
from drivers.block.records cimport Command, Lane, Slot
from drivers.request cimport Segment

cdef void tell(Lane *lane, Slot *s, int error) noexcept nogil
cdef bint is_odd(const Segment *segments, int count, uint32_t alignment) noexcept nogil
cdef int memory_of(Slot *s, uint64_t skip, uint64_t octets, Segment *out) noexcept nogil
cdef uint64_t direct_octets(Slot *s, uint64_t sector, uint64_t most, uint32_t max_segments) noexcept nogil
cdef void copy_bounced(Command *c, uint8_t *buffer, bint to_client) noexcept nogil
cdef void in_units(Slot *s, Command *c, uint64_t sector) noexcept nogil
