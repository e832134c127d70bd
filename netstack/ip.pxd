# The network layer's sending half for both families: where a packet goes, its headers, its queue.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t
from netstack.net cimport Net, Packet, interface_send, packet_unsent   # the last two for those who send
from netstack.wire.address cimport Addr

cpdef enum Protocol:
    PROTOCOL_ICMP = 1
    PROTOCOL_TCP = 6
    PROTOCOL_UDP = 17
    PROTOCOL_ICMPV6 = 58

cpdef enum:
    HOP_LIMIT = 64
    NEIGHBORS = 4096            # the usual limit of the neighbor table
    PACKET_START = 128          # where the transport header goes in a new Packet: room for all headers before it
    ETHERNET_HEADER = 14
    IPV4_HEADER = 20            # without options
    IPV6_HEADER = 40

# A cached answer to "how do I reach this destination?"; valid while generation == net.generation. One that is all zero is never valid.
cdef struct Path:
    Addr destination
    Addr source
    uint32_t generation
    int32_t neighbor            # -1: none needed (loopback, multicast, broadcast: `mac` holds it)
    uint32_t mtu
    uint8_t interface
    uint8_t mac[6]

# Fill `path` for path.destination. `bound`: the source to use, or NULL/unspecified to choose one (longest match, RFC 6724 rules 1, 2
# and 8 in short). OK is 0 (DELIVERED); else NO_ROUTE, NO_SOURCE_ADDRESS or NEIGHBOR_QUEUE_FULL (no room for another neighbor).
# Not OK leaves the path invalid.
cdef int path_resolve(Net *net, Path *path, const Addr *bound) noexcept nogil
# The same for an answer on the interface that was asked, or -1: link-local, multicast and broadcast destinations are not
# unique without it. Others take their route.
cdef int path_resolve_on(Net *net, Path *path, const Addr *bound, int32_t interface) noexcept nogil
# Write Ethernet + IP headers for a transport payload of `n` octets (transport header included) to `out`; returns their octets (34 or 54).
# IPv4: TCP has DF set and id 0 (RFC 6864 4.1), others may be fragmented on their way and take the next net.ip_id. The length saturates
# at 65535 for super-segments. Destination MAC left for the caller.
cdef uint32_t write_headers(Net *net, const Path *path, uint8_t protocol, uint8_t hop_limit, uint32_t n, uint8_t *out) noexcept nogil
# Send a Packet whose octets[start:] are a transport header and payload with the checksum already right, or (checksum_offset set;
# checksum_start counts from octets[start], so it is 0 for a plain TCP or UDP header) only the pseudo-header sum there, for the device or
# else ip_send to complete: prepends the headers, resolves the neighbor or lets the packet wait, pushes it on the interface's output.
# Takes the packet over. A path that has become invalid is resolved anew. Returns 0 or the reason it was dropped for (also counted in
# net.unsent): TOO_BIG, what path_resolve says, NEIGHBOR_FAILED, INTERFACE_DOWN, INTERFACE_QUEUE_FULL.
cdef int ip_send(Net *net, Packet *p, const Path *path, uint8_t protocol, uint8_t hop_limit) noexcept nogil
# Received IP packets: bounds and every header field checked, addresses unpacked.
cdef struct IpView:
    Addr source
    Addr destination
    const uint8_t *header       # the IP header
    const uint8_t *payload      # the transport header
    uint32_t header_length      # with options
    uint32_t length             # of the payload, octets by the IP length field (frame padding cut off)
    uint16_t segment_size       # of a super-segment, else 0
    uint8_t protocol
    uint8_t hop_limit
    uint8_t family              # 4 or 6
    uint8_t interface
    uint8_t checksum_ok         # the device vouches for the transport checksum
    uint8_t multicast           # destination is multicast or broadcast
    uint8_t link_multicast      # the frame's destination MAC was a group address

# `n`: octets available from `p` on. Return 0 with `view` filled, or the Verdict. Whether the destination is ours is not judged here, nor
# loopback sources: the caller knows the interface. segment_size, interface, checksum_ok and link_multicast are the caller's and are left
# alone; `multicast` does not know of directed broadcasts (is_subnet_broadcast does). A fragment or extension header that is not
# understood leaves the view filled too, with payload and protocol of the first header that was not.
cdef int ipv4_parse(IpView *view, const uint8_t *p, uint32_t n) noexcept nogil
cdef int ipv6_parse(IpView *view, const uint8_t *p, uint32_t n) noexcept nogil
