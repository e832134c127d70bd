# Which pages of an address space have a slot in swap, and what else is known of each.
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    CHUNK_PAGES = 512
    CHUNK_BITS = 9

cdef struct Chunk:                      # of 512 pages, 2 MiB
    uint64_t number
    Chunk *next                         # with the same bucket
    uint32_t used                       # pages with a slot
    uint64_t present[8]                 # a bit each: in memory as well as in its slot, and protected from writes
    uint32_t slots[CHUNK_PAGES]         # the slot and 1; 0: none

cdef struct PageTable:
    Chunk **buckets
    uint64_t size                       # a power of two
    uint64_t chunks
    uint64_t swapped                    # pages with a slot

cdef bint table_init(PageTable *table) noexcept nogil
cdef void table_free(PageTable *table) noexcept nogil
cdef Chunk *chunk_of(PageTable *table, uint64_t page) noexcept nogil
cdef Chunk *make_chunk(PageTable *table, uint64_t page) noexcept nogil
cdef bint table_copy(PageTable *to, const PageTable *table) noexcept nogil

cdef inline uint32_t slot_of(PageTable *table, uint64_t page) noexcept nogil:
    """The slot of a page and 1; 0: it has none."""
    cdef Chunk *chunk = chunk_of(table, page)
    return 0 if chunk is NULL else chunk.slots[page & (CHUNK_PAGES - 1)]

cdef inline bint bit(const uint64_t *bits, uint64_t page) noexcept nogil:
    return (bits[(page >> 6) & 7] >> (page & 63)) & 1

cdef inline void set_bit(uint64_t *bits, uint64_t page) noexcept nogil:
    bits[(page >> 6) & 7] |= <uint64_t>1 << (page & 63)

cdef inline void clear_bit(uint64_t *bits, uint64_t page) noexcept nogil:
    bits[(page >> 6) & 7] &= ~(<uint64_t>1 << (page & 63))
