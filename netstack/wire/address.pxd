from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from mm.hw cimport load32, load64, store32, store64

# One address type for both families: 16 octets in network order; IPv4 is ::ffff:a.b.c.d (RFC 4291 2.5.5.2).
# Compare and hash the two words; look inside through `octets`.
cdef union Addr:
    uint8_t octets[16]
    uint64_t word[2]
    uint32_t quad[4]

cdef inline bint same_address(const Addr *a, const Addr *b) noexcept nogil:
    return a.word[0] == b.word[0] and a.word[1] == b.word[1]

cdef inline bint is_v4(const Addr *a) noexcept nogil:
    return a.word[0] == 0 and a.octets[8] == 0 and a.octets[9] == 0 and a.octets[10] == 0xFF and a.octets[11] == 0xFF

cdef inline bint is_unspecified(const Addr *a) noexcept nogil:
    """:: or 0.0.0.0."""
    return (a.word[0] == 0 and a.word[1] == 0) or (is_v4(a) and a.quad[3] == 0)

cdef inline bint is_multicast(const Addr *a) noexcept nogil:
    """ff00::/8 or 224.0.0.0/4."""
    return a.octets[0] == 0xFF or (is_v4(a) and (a.octets[12] & 0xF0) == 0xE0)

cdef inline bint is_link_local(const Addr *a) noexcept nogil:
    """fe80::/10 or 169.254.0.0/16."""
    return (a.octets[0] == 0xFE and (a.octets[1] & 0xC0) == 0x80) or (
        is_v4(a) and a.octets[12] == 169 and a.octets[13] == 254)

cdef inline bint is_loopback(const Addr *a) noexcept nogil:
    """::1 or 127.0.0.0/8."""
    if is_v4(a):
        return a.octets[12] == 127
    return a.word[0] == 0 and a.quad[2] == 0 and a.octets[12] == 0 and a.octets[13] == 0 and a.octets[14] == 0 and a.octets[15] == 1

cdef inline bint is_limited_broadcast(const Addr *a) noexcept nogil:
    """255.255.255.255."""
    return is_v4(a) and a.quad[3] == <uint32_t>0xFFFFFFFF

cdef inline void load_v4(Addr *to, const uint8_t *from_) noexcept nogil:
    """The four octets of an IPv4 header field."""
    to.word[0] = 0
    to.octets[8] = 0
    to.octets[9] = 0
    to.octets[10] = 0xFF
    to.octets[11] = 0xFF
    store32(&to.octets[12], load32(from_))

cdef inline void load_v6(Addr *to, const uint8_t *from_) noexcept nogil:
    to.word[0] = load64(from_)
    to.word[1] = load64(from_ + 8)

cdef inline void store_v4(uint8_t *to, const Addr *a) noexcept nogil:
    store32(to, a.quad[3])

cdef inline void store_v6(uint8_t *to, const Addr *a) noexcept nogil:
    store64(to, a.word[0])
    store64(to + 8, a.word[1])

# Python side: any of "10.0.0.1", "fe80::1", ipaddress objects.
cdef int address_from(object text, Addr *to) except -1
cdef object address_text(const Addr *a)
