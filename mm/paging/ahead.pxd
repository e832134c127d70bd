# The run of pages behind one that was used in order, read from swap before anybody has asked for it.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from mm.paging.space cimport RUN_PAGES, Space
from mm.swap.store cimport Failure, SwapStore

cdef struct Ahead:
    uint32_t index, generation  # of the space
    uint64_t page               # the first
    uint32_t count              # pages that were read
    uint32_t most               # pages that are wanted
    uint32_t slots[RUN_PAGES]   # of each, and the number of its writing
    uint64_t numbers[RUN_PAGES]
    uint8_t *data               # RUN_PAGES pages

cdef uint32_t read_slots(Space *space, uint64_t page, uint32_t count, uint8_t *data, SwapStore store,
                         Failure *failure) noexcept nogil
cdef void ahead_begin(Ahead *ahead, Space *space, uint64_t page) noexcept nogil
cdef void ahead_read(Ahead *ahead, Space *space, SwapStore store) noexcept nogil
cdef uint32_t ahead_take(Ahead *ahead, Space *space, uint64_t page, uint32_t count, SwapStore store) noexcept nogil
