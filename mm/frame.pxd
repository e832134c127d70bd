from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cpdef enum:
    BURST = 64              # frames a burst holds at most
    HEAD_ROOM = 128         # Ethernet + VLAN + IPv6 + TCP with all options is 118
    MAX_FRAME = 65553       # a 64 KiB super-segment with its Ethernet and VLAN header

# What a device does for the stack (Interface.features), and what is true of one received frame.
cpdef enum Feature:
    RX_CHECKSUM = 1         # receive: this frame's transport checksum is vouched for
    TX_CHECKSUM = 2         # the device completes transport checksums
    TSO4 = 4                # the device splits IPv4 TCP super-segments
    TSO6 = 8                # the device splits IPv6 TCP super-segments

cdef struct RxFrame:
    uint8_t *data           # the Ethernet header; the driver's memory, valid until its next receive
    uint32_t length         # octets from the Ethernet header on, no FCS
    uint16_t segment_size   # super-segment: payload octets of each segment it was made of, else 0
    uint16_t flags          # Feature.RX_CHECKSUM or 0

cdef struct TxFrame:
    # The frame is head, then part[0], then part[1]. The parts belong to the stack and stay valid
    # until its next call, so a driver copies or writes them before it returns.
    const uint8_t *part[2]
    uint32_t part_length[2]
    uint32_t length         # of the whole frame
    uint16_t head_length
    uint16_t segment_size   # not 0: split the TCP payload into segments of so many octets
    uint16_t checksum_start # not 0: sum from here (octets from the Ethernet header) to the end ...
    uint16_t checksum_offset    # ... and store it so many octets after checksum_start; the pseudo header is there already
    uint16_t l3_offset      # where the IP header starts (14, or 18 behind a VLAN tag)
    uint8_t family          # 4, 6, or 0 when it is no IP packet
    uint8_t head[HEAD_ROOM]

cdef class RxBurst:
    cdef RxFrame frames[BURST]
    cdef readonly int count
    cdef uint8_t *ends              # not NULL: whoever takes the frames in writes here how each ended
    cdef uint8_t _ends[BURST]
    cdef uint8_t *copies[BURST]     # heap memory behind frames made by `append`
    cdef int copied
    cpdef bint append(self, bytes frame, int segment_size=*, int flags=*)
    cpdef void clear(self)

cdef class TxBurst:
    cdef TxFrame frames[BURST]
    cdef readonly int count
    cdef readonly int capacity      # at most BURST; fewer when the device has less room
    cdef readonly uint64_t refused  # bit i: the device did not take frame i; `forget_refused` clears it
    cdef list _keep                 # bytes objects behind parts given to `append`
