# TCP header (RFC 9293 3.1) and options (RFC 9293 3.2, 7323, 2018).
from libc.stdint cimport uint8_t, uint16_t, uint32_t

cpdef enum TcpFlag:
    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10
    URG = 0x20
    ECE = 0x40
    CWR = 0x80

cdef enum:
    TCP_HEADER = 20
    TCP_CHECKSUM_OFFSET = 16
    MAX_SACK_BLOCKS = 4

cdef struct Range:              # sequence numbers: start is in, end is not
    uint32_t start
    uint32_t end

# One received segment, unpacked. Bounds are checked; what it says is not.
cdef struct Segment:
    uint32_t seq
    uint32_t ack
    uint32_t window             # as on the wire, not scaled
    uint32_t length             # payload octets
    const uint8_t *payload
    uint16_t source_port
    uint16_t destination_port
    uint16_t segment_size       # a super-segment's, else 0
    uint16_t urgent
    uint8_t flags
    # options
    uint8_t has_timestamp
    uint8_t has_window_scale
    uint8_t sack_permitted
    uint8_t window_scale
    uint8_t sack_count
    uint16_t mss                # 0: not given
    uint32_t ts_value
    uint32_t ts_echo
    Range sack[MAX_SACK_BLOCKS]

# Sequence arithmetic modulo 2**32 (RFC 9293 3.4).
cdef inline bint seq_lt(uint32_t a, uint32_t b) noexcept nogil:
    return (a - b) >> 31 != 0

cdef inline bint seq_le(uint32_t a, uint32_t b) noexcept nogil:
    return (b - a) >> 31 == 0

cdef inline uint32_t seq_max(uint32_t a, uint32_t b) noexcept nogil:
    return b if seq_lt(a, b) else a

cdef inline uint32_t seq_min(uint32_t a, uint32_t b) noexcept nogil:
    return a if seq_lt(a, b) else b

# 0 with the segment filled, or TCP_TRUNCATED / TCP_HEADER_LENGTH. The checksum is the caller's.
cdef int segment_parse(Segment *s, const uint8_t *p, uint32_t n) noexcept nogil
# Each returns the octets written. Timestamps come with their two NOPs so that they stay aligned.
cdef uint32_t write_timestamp(uint8_t *out, uint32_t value, uint32_t echo) noexcept nogil
cdef uint32_t write_sack(uint8_t *out, const Range *blocks, uint32_t count) noexcept nogil
cdef uint32_t write_syn_options(uint8_t *out, uint16_t mss, bint sack, bint timestamp, uint32_t ts_value, uint32_t ts_echo, int window_scale) noexcept nogil
cdef void write_header(uint8_t *out, uint16_t source_port, uint16_t destination_port, uint32_t seq, uint32_t ack, uint32_t options, uint8_t flags, uint16_t window) noexcept nogil
