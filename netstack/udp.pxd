# UDP (RFC 768, RFC 8200 8.1): endpoints and their bounded queues.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from netstack.icmp cimport IcmpError
from netstack.ip cimport IpView, Path
from netstack.net cimport Net, NetState, Packet, PacketQueue
from netstack.wire.address cimport Addr

cpdef enum:
    UDP_HEADER = 8
    UDP_BUCKETS = 1024              # of the hash by local port
    UDP_QUEUE_DATAGRAMS = 2048      # what one endpoint may hold for its application: so many, ...
    UDP_QUEUE_OCTETS = 262144       # ... and so much memory
    EPHEMERAL_FIRST = 49152         # RFC 6335 6; taken in random order (RFC 6056)
    EPHEMERAL_COUNT = 16384

cdef struct UdpEndpoint:
    Addr local                  # unspecified: any address (both families when word[0] and word[1] are 0: ::, only IPv4 when 0.0.0.0)
    Addr remote                 # connected endpoints only
    uint16_t local_port
    uint16_t remote_port        # 0: not connected
    uint8_t in_use
    uint8_t v6only              # `::` is no IPv4 address of ours as well
    uint8_t reuse               # may share its port with others that may; the newest of equals gets the datagrams
    uint8_t ready_queued        # already on the ready list
    uint8_t hop_limit           # of what it sends
    uint8_t error               # an IcmpKind + 1 to report, else 0
    uint32_t queued_octets      # of memory behind `received`
    uint32_t octet_limit
    PacketQueue received
    Path path                   # to the last destination
    int32_t next                # hash chain by local port
    uint64_t rx_datagrams, rx_octets, tx_datagrams, tx_octets, dropped

cdef struct UdpTable:
    Net *net
    UdpEndpoint *endpoints
    int32_t *buckets
    uint32_t limit
    uint32_t count
    uint32_t top                # endpoints from here on were never used
    int32_t free                # chain of closed endpoints
    uint32_t *ready             # ids with something to deliver; ready_count of them
    uint32_t ready_count

cdef int udp_input(UdpTable *t, const IpView *view) noexcept nogil          # a Verdict; UDP_PORT_CLOSED: the caller answers with ICMP
cdef void udp_error(UdpTable *t, const IcmpError *error) noexcept nogil     # tell the endpoint

# Send n octets, from the endpoint's address; 0 or the Verdict they were dropped for.
cdef int udp_send(UdpTable *t, UdpEndpoint *e, const Addr *to, uint16_t port, const char *data, Py_ssize_t n) noexcept nogil
# The same from another address of the host, which the endpoint need not be bound to.
cdef int udp_send_from(UdpTable *t, UdpEndpoint *e, const Addr *source, const Addr *to, uint16_t port, const char *data,
                       Py_ssize_t n) noexcept nogil
cdef Packet *udp_first(UdpEndpoint *e) noexcept nogil   # the datagram that waits longest, or NULL
cdef void udp_drop(UdpEndpoint *e) noexcept nogil       # ... was delivered: forget it
cdef bint udp_speaks_to(const UdpEndpoint *e, const Addr *to) noexcept nogil

cdef class Udp:
    cdef NetState state
    cdef UdpTable table
    cdef dict _hosts            # text -> 16 octets of addresses sent to, and the last of them
    cdef object _host
    cdef Addr _host_address
    cdef dict _texts            # 16 octets -> text of addresses received from, and the last of them
    cdef Addr _sender
    cdef object _sender_text
    cdef int _at(self, object id) except -1
    cdef int _look_up(self, object host) except -1
    cdef object _text(self, const Addr *a)
    # Python face in udp.py: bind(host, port, reuse=False, v6only=False) -> id, connect(id, host, port), send(id, data, host=None, port=0),
    # receive(id, most) -> list[(bytes, host, port)], ready() -> list[id], error(id), close(id), local(id), remote(id), rows()
