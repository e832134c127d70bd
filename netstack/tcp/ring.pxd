# A growing byte ring addressed by distance from its head. Empty rings own no memory.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef struct Ring:
    uint8_t *octets
    uint32_t size               # allocated octets, a power of two, or 0
    uint32_t head               # index of the first octet held
    uint32_t used               # octets held from the head on, without gaps

# What all rings of one table may hold together.
cdef struct Budget:
    uint64_t used
    uint64_t limit

# Make room for `need` octets from the head on, of which `keep` hold data that must survive. False: no memory or no budget.
cdef bint ring_reserve(Ring *r, uint32_t need, uint32_t keep, Budget *budget) noexcept nogil
# Store octets at a distance from the head; the room must be reserved. Does not change `used`.
cdef void ring_put(Ring *r, uint32_t distance, const uint8_t *p, uint32_t n) noexcept nogil
cdef void ring_get(const Ring *r, uint32_t distance, uint8_t *to, uint32_t n) noexcept nogil
# Where n octets lie: one part or two. Returns the length of the first part.
cdef uint32_t ring_parts(const Ring *r, uint32_t distance, uint32_t n, const uint8_t **first, const uint8_t **second) noexcept nogil
cdef void ring_drop(Ring *r, uint32_t n) noexcept nogil             # forget n <= used octets at the head
cdef void ring_release(Ring *r, Budget *budget) noexcept nogil      # give the memory back
