from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from drivers.mmio cimport Mmio
from mm.frame cimport RxBurst

# Receive descriptor, legacy (8254x 3.2.3): address 8, length 2, checksum 2, status 1, errors 1, special 2.
# Extended (82574 7.1), written back: RSS 8, status and errors 4, length 2, VLAN 2; to the device: address 8, zeros 8.
cdef enum:
    DESCRIPTOR = 16
    BUFFER = 2048
    SHORTEST = 14               # octets of an Ethernet header
    PIECES = 8                  # buffers that one frame may fill: the device's longest has 16128 octets

    # The word of status and errors, the same bits in both layouts but for where the errors begin.
    DD = 1 << 0                 # written back
    EOP = 1 << 1                # last of its frame
    IXSM = 1 << 2               # legacy: ignore what the word says of checksums
    TCPCS = 1 << 5              # transport checksum verified
    IPCS = 1 << 6               # IPv4 header checksum verified
    ERRORS_LEGACY = 8           # the first error bit
    ERRORS_EXTENDED = 24
    ERROR_FRAME = 0x97          # FCS, symbol, sequence, carrier extension, receive
    ERROR_CHECKSUM = 0x60       # transport, IPv4 header

cdef struct RxCounters:
    uint64_t frames, octets, checksums
    uint64_t dropped_error      # the device found it damaged
    uint64_t dropped_length     # no whole Ethernet header, or lengths that do not fit its buffers
    uint64_t dropped_long       # in more buffers than the longest frame has

cdef class RxRing:
    cdef readonly uint32_t size         # descriptors
    cdef Mmio mmio
    cdef object descriptors, buffers    # DmaMemory
    cdef uint8_t *ring
    cdef uint8_t *memory
    cdef uint64_t memory_iova
    cdef uint32_t tail_register
    cdef uint32_t next                  # the device writes this one back next
    cdef uint32_t owed                  # harvested, not given back: before `next`
    cdef readonly bint extended
    cdef bint skipping                  # inside a frame that is too long
    cdef RxCounters counters

    cdef int _harvest(self, RxBurst burst) noexcept nogil
    cdef uint32_t _pieces(self, uint32_t index) noexcept nogil
    cdef void _take(self, RxBurst burst, uint32_t index, uint32_t pieces) noexcept nogil
    cdef bint _gather(self, uint32_t index, uint32_t pieces) noexcept nogil
    cdef uint32_t _length(self, uint32_t index) noexcept nogil
    cdef uint32_t _after(self, uint32_t index, uint32_t steps) noexcept nogil
    cdef bint _give_back(self) noexcept nogil
    cdef uint32_t _word(self, uint32_t index) noexcept nogil
    cdef void _clean(self, uint32_t index) noexcept nogil
