from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from mm.hw cimport load16, load32, load64
from netstack.wire.address cimport Addr, is_v4

# RFC 1071. Sums are kept in memory order: fold, then store with store16.
cdef inline uint64_t add_quad(uint64_t *s, const uint8_t *p) noexcept nogil:
    """Add eight octets to a sum; the carry, which is worth 1 as well."""
    cdef uint64_t quad = load64(p)
    s[0] += quad
    return s[0] < quad

cdef inline uint32_t sum_octets(const uint8_t *p, Py_ssize_t n, uint32_t acc) noexcept nogil:
    """Add n octets that start on an even offset of the summed message.

    By carries rather than vector registers: as fast on a processor, and an emulated one takes a fifth of the time.
    """
    cdef uint64_t s = acc, carries = 0
    cdef Py_ssize_t i = 0
    while i + 32 <= n:
        carries += add_quad(&s, p + i) + add_quad(&s, p + i + 8) + add_quad(&s, p + i + 16) + add_quad(&s, p + i + 24)
        i += 32
    s = (s & <uint64_t>0xFFFFFFFF) + (s >> 32) + carries
    while i + 4 <= n:
        s += load32(p + i)
        i += 4
    if n & 2:
        s += load16(p + i)
        i += 2
    if n & 1:
        s += p[i]           # the pad octet follows it in memory order (little endian)
    s = (s & <uint64_t>0xFFFFFFFF) + (s >> 32)
    s = (s & <uint64_t>0xFFFFFFFF) + (s >> 32)
    return <uint32_t>s

cdef inline uint16_t fold(uint32_t acc) noexcept nogil:
    """The one's complement of the sum: what goes into the header."""
    acc = (acc & 0xFFFF) + (acc >> 16)
    acc = (acc & 0xFFFF) + (acc >> 16)
    return <uint16_t>~acc

cdef inline uint32_t sum_odd(const uint8_t *p, Py_ssize_t n, uint32_t acc) noexcept nogil:
    """Add n octets that start on an odd offset: sum them apart and swap (RFC 1071 2.B)."""
    cdef uint32_t s = sum_octets(p, n, 0)
    cdef uint64_t t
    s = (s & 0xFFFF) + (s >> 16)
    s = (s & 0xFFFF) + (s >> 16)
    t = <uint64_t>acc + (((s & 0xFF) << 8) | (s >> 8))
    return <uint32_t>((t & <uint64_t>0xFFFFFFFF) + (t >> 32))

cdef inline uint32_t sum_pseudo(const Addr *src, const Addr *dst, uint8_t protocol, uint32_t length) noexcept nogil:
    """The pseudo header: RFC 9293 3.1 for IPv4, RFC 8200 8.1 for IPv6. length: of header and data of the transport."""
    cdef uint64_t s
    if is_v4(src):
        s = <uint64_t>src.quad[3] + dst.quad[3]
    else:
        s = (<uint64_t>src.quad[0] + src.quad[1] + src.quad[2] + src.quad[3]
             + dst.quad[0] + dst.quad[1] + dst.quad[2] + dst.quad[3])
    # 16-bit big-endian quantities, added as memory order sees them
    s += (<uint64_t>protocol) << 8
    s += ((length & 0xFF) << 8) | ((length >> 8) & 0xFF)
    s += (((length >> 16) & 0xFF) << 8) | (length >> 24)
    s = (s & <uint64_t>0xFFFFFFFF) + (s >> 32)
    s = (s & <uint64_t>0xFFFFFFFF) + (s >> 32)
    return <uint32_t>s
