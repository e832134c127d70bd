from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from drivers.block.records cimport BOUNCES, COMMANDS, OPERATIONS, Command, Slot
from drivers.request cimport RequestBurst, Segment
from mm.histogram cimport Log2Histogram

cdef class Commands:
    cdef readonly object disk
    cdef RequestBurst requests          # on their way to the disk
    cdef Command commands[COMMANDS]
    cdef Command *free
    cdef int free_count
    cdef Command *ready_first           # to be submitted before anything else
    cdef Command *ready_last
    cdef readonly uint32_t under_way    # commands the disk has
    cdef int64_t progress               # when the disk last answered, or got something to do
    # Of the disk below.
    cdef uint64_t sector, octets, max_octets, max_trim, trim_octets
    cdef uint32_t max_segments, memory_alignment
    cdef bint caches, has_fua, has_zeroes, has_fast_zeroes
    # Buffers for odd requests, and zeros.
    cdef object bounce_memory, zero_memory
    cdef uint8_t *bounce_data
    cdef uint64_t bounce_iova
    cdef uint8_t *zero_data
    cdef uint64_t zero_iova
    cdef bint bounce_used[BOUNCES]
    cdef int bounce_writes              # commands that change parts of sectors: nothing else may change these meanwhile
    cdef uint64_t counts[OPERATIONS]
    cdef uint64_t failed
    cdef Log2Histogram latency[OPERATIONS]

    cdef dict command_statistics(self)
    cdef free_buffers(self)
    cdef uint8_t *buffer(self, Command *c) noexcept nogil
    cdef bint need_bounce_memory(self) noexcept nogil
    cdef bint need_zeros(self) noexcept nogil
    cdef Command *take_command(self, Slot *s, uint8_t operation) noexcept nogil
    cdef void give_command(self, Command *c) noexcept nogil
    cdef void push_ready(self, Command *c) noexcept nogil
    cdef bint send(self, Command *c, int64_t now) noexcept nogil
    cdef int _segments(self, Command *c, Segment *out) noexcept nogil
    cdef bint conflicts(self, uint64_t at, uint64_t span, bint only_bounces) noexcept nogil
