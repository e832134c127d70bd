# The state all protocols share: one flat C struct per stack. Higher modules hold a pointer to it.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from mm.frame cimport RxFrame, TxFrame
from netstack.counters cimport COUNTERS
from netstack.verdict cimport VERDICTS
from netstack.wire.address cimport Addr

cpdef enum:
    MAX_INTERFACES = 32
    MAX_ADDRESSES = 32          # of one interface
    LOOPBACK = 0                # the index of the interface every stack has
    ADDRESS_BUCKETS = 2048      # of Net.address_index: a power of two, twice what 32 interfaces of 32 addresses need
    OUTPUT_LIMIT = 1024         # packets that wait for one device at most
    IPV4_MIN_MTU = 68           # RFC 791 3.2
    IPV6_MIN_MTU = 1280         # RFC 8200 5

cpdef enum AddressState:
    ADDRESS_FREE = 0
    ADDRESS_TENTATIVE           # RFC 4862 5.4: duplicate address detection runs
    ADDRESS_PREFERRED
    ADDRESS_DUPLICATE           # detection found another owner: never used

cdef struct InterfaceAddress:
    Addr address
    uint8_t prefix_length       # of the text form: 0-32 or 0-128
    uint8_t state               # AddressState
    uint8_t probes_left         # DAD: neighbor solicitations still to send
    int64_t probe_at            # DAD: when the next step is due

# One datagram or frame that waits: for a neighbor, for the device, or for its socket. Heap memory, one owner.
cdef struct Packet:
    Packet *next
    uint32_t start              # of the first octet, an offset into `octets`
    uint32_t length
    uint16_t l3_offset          # of the IP header within the frame
    uint16_t checksum_start     # as in TxFrame; 0: nothing to complete
    uint16_t checksum_offset
    uint16_t segment_size       # as in TxFrame
    uint8_t family              # 4, 6 or 0
    uint16_t port               # received datagrams: the sender's port
    Addr source                 # received datagrams: the sender's address
    Addr destination            # received datagrams: the address it was sent to
    uint8_t octets[0]

cdef struct PacketQueue:
    Packet *head
    Packet *tail
    uint32_t count
    uint32_t limit

cdef struct Interface:
    uint8_t mac[6]
    uint8_t up                  # administratively up and the link is there
    uint16_t features           # mm.frame.Feature bits
    uint32_t mtu                # largest IP packet, octets
    uint32_t index
    char name[16]
    InterfaceAddress addresses[MAX_ADDRESSES]
    PacketQueue output          # control and datagram traffic; TCP data never waits here
    uint64_t rx_frames, rx_octets, tx_frames, tx_octets
    uint64_t ended[VERDICTS]    # received frames by verdict

cdef struct Key:
    uint64_t k0, k1             # SipHash-2-4 key

cdef struct Net:
    int64_t now                 # ns; set by each verb, read by all
    Key key                     # the secret behind ISNs, ports and hashes
    uint64_t random_count
    Interface *interfaces[MAX_INTERFACES]
    uint32_t generation         # changes whenever a cached Path may be wrong: routes, addresses, links, neighbors gone
    void *routes                # netstack.route.RouteTable
    void *neighbors             # netstack.neighbor.NeighborTable
    void *echoes                # netstack.icmp.Answers to our echo requests: one block, freed with the NetState
    void *probes                # ... and to our UDP probes
    void (*routes_free)(Net *) noexcept nogil       # set by those who allocated them; called when the NetState goes
    void (*neighbors_free)(Net *) noexcept nogil
    uint16_t address_index[ADDRESS_BUCKETS]         # hash of an own address -> interface * MAX_ADDRESSES + slot + 1; 0: none
    uint16_t ip_id
    uint64_t counters[COUNTERS]
    uint64_t unsent[VERDICTS]   # frames of ours that could not be sent, by verdict
    uint64_t ended_elsewhere[VERDICTS]  # received by interfaces that are gone, so that the sums never fall
    # token bucket for ICMP errors and another for challenge ACKs (RFC 1812 4.3.2.8, RFC 5961 7)
    int64_t icmp_tokens_at
    int64_t challenge_tokens_at
    uint32_t challenge_tokens
    uint32_t icmp_errors_per_second     # limits, set once
    uint32_t challenge_acks_per_second

cdef class NetState:
    # Owns a Net; Stack, Tcp and Udp share it.
    cdef Net *net
    # Python face in net.py: interfaces and addresses, added, removed and listed; verdicts, counters

cdef uint64_t siphash(const Key *key, uint64_t m0, uint64_t m1, uint64_t m2, uint64_t m3, uint64_t m4) noexcept nogil
cdef uint64_t random64(Net *net) noexcept nogil                 # unpredictable: SipHash of a counter under the key
cdef uint32_t random_below(Net *net, uint32_t bound) noexcept nogil

cdef Packet *packet_new(uint32_t capacity, uint32_t start) noexcept nogil   # NULL: out of memory; only the fields above `octets` are cleared
cdef void packet_free(Packet *p) noexcept nogil
cdef bint queue_push(PacketQueue *q, Packet *p) noexcept nogil  # False: full, p still the caller's
cdef Packet *queue_pop(PacketQueue *q) noexcept nogil           # NULL: empty
cdef void queue_clear(PacketQueue *q) noexcept nogil

# End a packet of ours: counts net.unsent[verdict], frees it, returns the verdict.
cdef int packet_unsent(Net *net, Packet *p, int verdict) noexcept nogil
# Push a complete frame on an interface's output; takes it over. Returns 0, INTERFACE_DOWN or INTERFACE_QUEUE_FULL.
cdef int interface_send(Net *net, uint32_t interface, Packet *p) noexcept nogil

# Any interface's address that equals `a`, whatever its state; NULL: not ours. Of several the preferred one. Constant time.
cdef InterfaceAddress *own_address(Net *net, const Addr *a) noexcept nogil
# Ours and usable (preferred), or loopback.
cdef bint is_local(Net *net, const Addr *a) noexcept nogil
# This interface's address that equals `a`, whatever its state; NULL: not its own. Link-local ones may be on several interfaces.
cdef InterfaceAddress *interface_address(Interface *interface, const Addr *a) noexcept nogil
# The directed broadcast address of one of the interface's IPv4 prefixes (RFC 1122 3.2.1.3; RFC 3021: none for /31 and /32).
cdef bint is_subnet_broadcast(const Interface *interface, const Addr *a) noexcept nogil
# Every change of routes, addresses or links ends with this: cached paths are wrong now.
cdef inline void forget_paths(Net *net) noexcept nogil:
    net.generation += 1
    if net.generation == 0:     # 0 marks a Path that was never resolved
        net.generation = 1

cdef inline void count(Net *net, int counter, uint64_t n) noexcept nogil:
    """Add to a counter of counters.pxd."""
    net.counters[counter] += n

cdef inline void count_unsent(Net *net, int verdict) noexcept nogil:
    """A frame of ours ends here."""
    net.unsent[verdict] += 1
