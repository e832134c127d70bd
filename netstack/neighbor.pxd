# One cache for ARP (RFC 826, 1122 2.3.2) and NDP (RFC 4861 7.3): the same states serve both.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from netstack.net cimport Net, Packet, PacketQueue
from netstack.wire.address cimport Addr

cpdef enum NeighborState:
    NEIGHBOR_FREE = 0
    NEIGHBOR_INCOMPLETE
    NEIGHBOR_REACHABLE
    NEIGHBOR_STALE
    NEIGHBOR_DELAY
    NEIGHBOR_PROBE
    NEIGHBOR_FAILED             # unanswered; kept a while so that senders fail fast
    NEIGHBOR_PERMANENT          # put there by an operator

cpdef enum:
    NEIGHBOR_SOLICITATIONS = 3  # RFC 4861 10 MAX_MULTICAST_SOLICIT, MAX_UNICAST_SOLICIT
    NEIGHBOR_WAITING = 16       # packets that wait for one neighbor
    DAD_PROBES = 1              # RFC 4862 5.1 DupAddrDetectTransmits
    ARP_ANNOUNCEMENTS = 2       # RFC 5227 1.1 ANNOUNCE_NUM

cdef struct Neighbor:
    Addr address
    uint8_t mac[6]
    uint8_t state
    uint8_t interface
    uint8_t probes              # solicitations sent in this state
    uint8_t is_router
    int64_t due                 # when the state machine acts next; INT64_MAX: never
    int64_t used                # last time a packet went there, for eviction
    PacketQueue waiting         # packets for an INCOMPLETE neighbor, whole frames without the MAC
    int32_t next                # hash chain

cdef struct NeighborTable:
    Neighbor *entries
    int32_t *buckets
    uint32_t mask               # buckets - 1
    uint32_t limit
    uint32_t top                # entries from here on were never used
    uint32_t count
    uint32_t unresolved         # INCOMPLETE or FAILED ones: at most half, so that a scan cannot push out who is there (RFC 6583 7.1)
    int32_t free                # chain of released entries
    int64_t wake_at             # nothing is due before it
    int64_t reachable_ns        # ReachableTime, drawn anew at reachable_until
    int64_t reachable_until
    int64_t defended_at         # when we last contradicted a claim on an address of ours (RFC 5227 2.4)

cdef int neighbors_create(Net *net, uint32_t limit) except -1
cdef void neighbors_destroy(Net *net) noexcept nogil
# The entry for an on-link address, made INCOMPLETE if there is none (no solicitation yet). -1: the table is full of entries in use.
cdef int32_t neighbor_find(Net *net, uint32_t interface, const Addr *address) noexcept nogil
cdef Neighbor *neighbor_at(const Net *net, int32_t index) noexcept nogil
# A packet is about to go to this neighbor. True: `mac` is usable now (REACHABLE, STALE -> DELAY, DELAY, PROBE, PERMANENT).
# False: hold it with neighbor_hold. The hot path: must be cheap for REACHABLE.
cdef bint neighbor_use(Net *net, Neighbor *n) noexcept nogil
# Queue a whole frame (Ethernet header with the source MAC and type filled in, destination MAC blank) until the address
# is known, and solicit if that has not begun. Takes the packet over in any case; drops end in net.unsent.
# Returns 0 or the Verdict this packet was dropped for: NEIGHBOR_FAILED while the neighbor is known not to answer.
cdef int neighbor_hold(Net *net, Neighbor *n, Packet *p) noexcept nogil
# Upper-layer reachability confirmation (RFC 4861 7.3.1): TCP made forward progress.
cdef void neighbor_confirm(Net *net, int32_t index) noexcept nogil
# Received frames. frame: the Ethernet header; length: of the frame. Both return a Verdict.
cdef int arp_input(Net *net, uint32_t interface, const uint8_t *frame, uint32_t length) noexcept nogil
# ndp: `l3` is the IPv6 header (already checked), `icmp` the ICMPv6 header (checksum already checked), n its octets
cdef int ndp_input(Net *net, uint32_t interface, const uint8_t *frame, const uint8_t *l3, const uint8_t *icmp, uint32_t n) noexcept nogil
# Timers: solicitation retries, reachability, DAD probes of net.interfaces, announcements. neighbors_wake_at: INT64_MAX: nothing due.
cdef void neighbors_advance(Net *net) noexcept nogil
cdef int64_t neighbors_wake_at(const Net *net) noexcept nogil
# An address was added (starts DAD for IPv6, announces by gratuitous ARP for IPv4) / an interface went down or away.
cdef void neighbor_start_address(Net *net, uint32_t interface, uint32_t slot) noexcept nogil
cdef void neighbors_forget_interface(Net *net, uint32_t interface) noexcept nogil
cdef int neighbor_set(Net *net, uint32_t interface, const Addr *address, const uint8_t *mac) noexcept nogil   # PERMANENT; -1: full
cdef bint neighbor_remove(Net *net, uint32_t interface, const Addr *address) noexcept nogil
cdef list neighbor_rows(const Net *net)
