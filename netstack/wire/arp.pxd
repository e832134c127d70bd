# ARP for IPv4 over Ethernet (RFC 826): the 28 octets after the Ethernet header.
#   0 hardware type (1)   2 protocol type (0x0800)   4 lengths (6, 4)   6 operation
#   8 sender MAC         14 sender address           18 target MAC     24 target address
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from netstack.wire.address cimport Addr

cpdef enum:
    ARP_LENGTH = 28
    ARP_REQUEST = 1
    ARP_REPLY = 2

cdef struct Arp:
    Addr sender
    Addr target
    uint16_t operation
    uint8_t sender_mac[6]
    uint8_t target_mac[6]

# False: not 28 octets of a well-formed request or reply from a host that could exist.
cdef bint arp_parse(Arp *to, const uint8_t *p, uint32_t n) noexcept nogil
# Writes ARP_LENGTH octets.
cdef void arp_emit(const Arp *a, uint8_t *out) noexcept nogil

cdef inline bint same_mac(const uint8_t *a, const uint8_t *b) noexcept nogil:
    return a[0] == b[0] and a[1] == b[1] and a[2] == b[2] and a[3] == b[3] and a[4] == b[4] and a[5] == b[5]

cdef inline bint is_station(const uint8_t *mac) noexcept nogil:
    """One station's address: neither a group (nor broadcast) nor all zero."""
    return not (mac[0] & 1) and (mac[0] | mac[1] | mac[2] | mac[3] | mac[4] | mac[5]) != 0
