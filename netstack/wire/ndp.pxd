# Neighbor Discovery messages (RFC 4861 4): the ICMPv6 part, from its type octet on.
#   0 type   1 code   2 checksum   4 flags or reserved   8 target (NS, NA, redirect)   then options of 8-octet units
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from netstack.wire.address cimport Addr

cpdef enum NdpType:
    NDP_ROUTER_SOLICITATION = 133
    NDP_ROUTER_ADVERTISEMENT
    NDP_NEIGHBOR_SOLICITATION
    NDP_NEIGHBOR_ADVERTISEMENT
    NDP_REDIRECT

cpdef enum NdpFlag:
    NDP_ROUTER = 0x80
    NDP_SOLICITED = 0x40
    NDP_OVERRIDE = 0x20

cpdef enum:
    NDP_LENGTH_MAX = 32         # of what ndp_emit writes

cdef struct Ndp:
    Addr target                 # solicitations, advertisements, redirects; else unspecified
    uint8_t type                # NdpType
    uint8_t flags               # NdpFlag bits of an advertisement
    uint8_t has_mac             # the link-layer address option that belongs to the type was there: of the source
    uint8_t mac[6]              # (solicitations, router advertisements) or of the target (advertisements, redirects)

# False: RFC 4861 6.1, 7.1 or 8.1 says to discard it. The hop limit and the checksum are the caller's to check.
cdef bint ndp_parse(Ndp *to, const Addr *source, const Addr *destination, const uint8_t *p, uint32_t n) noexcept nogil
# A neighbor solicitation or advertisement with its checksum; returns the octets written, 24 or 32.
cdef uint32_t ndp_emit(const Ndp *message, const Addr *source, const Addr *destination, uint8_t *out) noexcept nogil

# The group an address is solicited in, ff02::1:ff00:0/104 with its last three octets (RFC 4291 2.7.1).
cdef void solicited_node(Addr *to, const Addr *address) noexcept nogil
cdef bint is_solicited_node(const Addr *a) noexcept nogil
