from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from drivers.mmio cimport Mmio
from mm.frame cimport TxBurst, TxFrame

cdef enum:
    DESCRIPTOR = 16
    CHUNK = 8192                # octets of one data descriptor; the 8254x allow 16288 (3.3.3)
    SLOT = 65600                # octets of the arena the largest frame takes, a multiple of 64
    BLOCKS = 2                  # pieces the arena is made of
    PER_FRAME = 10              # descriptors of the largest frame: a context and nine of data
    REPORT_EVERY = 16           # descriptors between two whose completion the device reports
    SHORTEST = 14

    # Second dword of a descriptor (8254x 3.3.6, 3.3.7; 82574 7.2).
    DTYP_DATA = 1 << 20
    EOP = 1 << 24               # data: last of its frame
    IFCS = 1 << 25              # data: append the FCS
    TUCMD_TCP = 1 << 24         # context: TCP, not UDP
    TUCMD_IP = 1 << 25          # context: IPv4, not IPv6
    TSE = 1 << 26               # split into segments
    RS = 1 << 27                # report: write DD back
    DEXT = 1 << 29              # a context or data descriptor, not a legacy one
    # Third dword of a data descriptor.
    STATUS_DD = 1 << 0
    POPTS_IXSM = 1 << 8         # insert the IPv4 header checksum
    POPTS_TXSM = 1 << 9         # insert the transport checksum

# Why a frame was refused; 0: it was not.
cdef enum:
    ACCEPT = 0
    NO_ROOM
    TOO_SHORT                   # no whole Ethernet header
    TOO_LONG                    # for the MTU, or for a super-segment
    OFFLOAD                     # an offload that does not fit the frame or the device
    REFUSALS

# A descriptor whose completion the device reports: what is free once it does.
cdef struct Mark:
    uint32_t index
    uint32_t descriptors        # up to and with it, since the mark before
    uint64_t arena              # octets of the arena handed out until then, ever

cdef struct TxCounters:
    uint64_t frames, octets, super_segments, contexts
    uint64_t refused[REFUSALS]

cdef class TxRing:
    cdef readonly uint32_t size         # descriptors
    cdef Mmio mmio
    cdef public uint32_t longest        # octets of the longest frame on the wire, without FCS
    cdef object descriptors, buffers    # DmaMemory, and a list of BLOCKS of it
    cdef uint8_t *ring
    # The arena: the frames' octets, handed out in a circle over all blocks. No frame lies in two.
    cdef uint8_t *block[BLOCKS]
    cdef uint64_t block_iova[BLOCKS]
    cdef uint64_t block_size
    cdef uint64_t arena_size
    cdef uint64_t arena_head            # octets handed out, ever ...
    cdef uint64_t arena_tail            # ... and given back
    cdef uint32_t tail_register
    cdef uint32_t next                  # the next descriptor to fill
    cdef uint32_t used                  # filled and not reported done
    cdef uint32_t unmarked              # filled since the last mark
    cdef Mark *marks                    # a queue in a circle of `size`
    cdef uint32_t first_mark, mark_count
    cdef uint64_t context[2]            # what the device has; 0: nothing
    cdef TxCounters counters

    cdef int _room(self) noexcept nogil
    cdef void _reap(self) noexcept nogil
    cdef int _take(self, TxBurst burst) noexcept nogil
    cdef int _queue(self, const TxFrame *f) noexcept nogil
    cdef bint _allot(self, uint32_t octets, uint64_t *at) noexcept nogil
    cdef void _context(self, const TxFrame *f, uint32_t headers) noexcept nogil
    cdef void _data(self, const TxFrame *f, uint64_t at) noexcept nogil
    cdef void _put(self, uint64_t low, uint64_t high) noexcept nogil
    cdef void _mark(self) noexcept nogil
