# The transmission control block and the table of all of them: flat structs, indices instead of pointers, no Python.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from mm.frame cimport TxFrame
from mm.histogram cimport Log2Histogram
from netstack.ip cimport Path
from netstack.net cimport Net
from netstack.tcp.ring cimport Budget, Ring
from netstack.timers cimport TimerHeap
from netstack.wire.address cimport Addr
from netstack.wire.tcp cimport Range

cdef enum:
    MAX_RANGES = 32             # out-of-order ranges held, and SACKed ranges remembered, per connection
    PORT_BUCKETS = 256

# Tcb.flags
cdef enum:
    F_SACK = 0x0001             # SACK was negotiated
    F_TIMESTAMPS = 0x0002       # timestamps were negotiated
    F_NODELAY = 0x0004          # Nagle's algorithm is off
    F_KEEPALIVE = 0x0008
    F_ACK_NOW = 0x0010          # an ACK is owed at once
    F_FIN_QUEUED = 0x0020       # the application closed its side: FIN follows the last queued octet
    F_FIN_SENT = 0x0040
    F_FIN_ARRIVED = 0x0080      # the peer's FIN is known, at fin_seq; perhaps beyond a gap
    F_SYN_DUE = 0x0100          # (re)send the SYN or SYN-ACK
    F_RELEASED = 0x0200         # the application let go of it
    F_RECOVERY = 0x0400         # loss recovery until `recover` is acknowledged
    F_RTO_RECOVERY = 0x0800     # ... after a timeout: everything not SACKed below `recover` counts as lost
    F_RETRANSMIT = 0x1000       # the octets at snd_una must go out again whatever the window says
    F_PROBE = 0x2000            # the persist timer fired: send in spite of the window
    F_CWND_LIMITED = 0x4000     # the last output stopped at cwnd
    F_DIRTY = 0x8000            # on its interface's list of connections with something to send
    F_READY = 0x10000           # on the list of connections with news for the application
    F_WANT_WRITE = 0x20000      # a write was short: report WRITABLE when there is room
    F_PASSIVE = 0x40000         # opened by a listener
    F_NEW_SACK = 0x80000        # the ACK at hand told of octets not known to have arrived
    F_EOF_TOLD = 0x100000
    F_ACCEPTING = 0x200000      # in its listener's accept queue: told by no ready() yet
    F_KEEPALIVE_DUE = 0x1000000
    F_TAIL_PROBE = 0x2000000    # the tail loss probe is due
    F_TAIL_PROBED = 0x4000000   # ... and was sent: one until snd_una moves
    F_FOLLOWED = 0x8000000      # its news go to a Follower: `Tcp.follow`
    F_SCALE = 0x800000          # window scaling was negotiated (in SYN-SENT: offered)
    F_REPORTED = 0x400000       # the application knows it: CONNECTED or ACCEPTED was told

# What `Tcp.ready` tells of a connection; the same numbers as netstack.tcp.api.EVENT_*.
cdef enum:
    NEWS_CONNECTED = 1
    NEWS_ACCEPTED = 2
    NEWS_READABLE = 4
    NEWS_WRITABLE = 8
    NEWS_EOF = 16
    NEWS_CLOSED = 32

cdef struct Tcb:
    Path path                   # destination is the remote address, source the local one
    uint16_t local_port
    uint16_t remote_port
    uint32_t index              # of this block in the table
    uint32_t generation         # how often the index was used before: makes handles unique
    uint32_t flags
    uint8_t state               # tcp.state.State
    uint8_t news                # NEWS_* not yet told
    uint8_t backoff             # retransmission timeouts in a row
    uint8_t probes              # keepalives or probes by a released connection in a row
    int32_t listener            # whose child this is, or -1
    int32_t error               # errno the connection ended with, or 0
    int32_t soft_error          # errno of the last ICMP error; reported if the connection times out
    int32_t hash_next
    int32_t dirty_next
    int32_t ready_next
    # sending (RFC 9293 3.3.1); snd_nxt falls back at a timeout, snd_max does not
    uint32_t snd_una
    uint32_t snd_nxt
    uint32_t snd_max
    uint32_t snd_wnd            # scaled
    uint32_t snd_wl1
    uint32_t snd_wl2
    uint32_t snd_wnd_max
    uint32_t iss
    uint16_t mss                # octets of payload that fit a segment with our usual options
    uint16_t peer_mss           # as the peer's SYN said
    uint8_t snd_scale
    uint8_t rcv_scale
    uint16_t acks_owed          # duplicate ACKs to send, one for each segment out of order
    # receiving
    uint32_t rcv_nxt
    uint32_t rcv_edge           # the right edge of the window last announced
    uint32_t rcv_limit          # octets the application may leave unread
    uint32_t irs
    uint32_t fin_seq
    uint32_t rcv_up             # urgent pointer
    uint32_t last_ack_sent
    uint32_t unacked            # octets received since the last ACK went out
    uint16_t rcv_mss            # the largest segment seen
    uint16_t quick_acks         # segments still acknowledged at once while the peer's window opens
    Ring send                   # octets from snd_una on (the SYN is not in it)
    Ring receive                # octets unread, up to rcv_nxt; out-of-order octets lie beyond
    Range *gaps                 # received ranges beyond rcv_nxt, ascending, disjoint; NULL until needed
    Range *sacked               # ranges of ours the peer holds beyond snd_una; NULL until needed
    uint16_t gap_count
    uint16_t sacked_count
    uint32_t last_gap           # start of the range that changed last: the first SACK block (RFC 2018 4)
    # round-trip time (RFC 6298), ns
    int64_t srtt
    int64_t rttvar
    int64_t rto
    int64_t timed_at            # when timed_seq was sent; 0: no measurement under way
    uint32_t timed_seq
    int64_t timeout_at          # when the retransmission timer fired last
    # timestamps (RFC 7323)
    uint32_t ts_recent
    uint32_t ts_offset
    int64_t ts_recent_at
    # congestion (RFC 5681, 6582, 6675), octets
    uint32_t cwnd
    uint32_t ssthresh
    uint32_t recover            # RecoveryPoint
    uint32_t high_rxt           # retransmitted up to here in this recovery
    uint32_t head_again         # snd_max when the octets at snd_una were last sent again
    uint32_t duplicates         # duplicate ACKs in a row
    uint32_t acked_in_avoidance
    # deadlines, ns; 0: not running
    int64_t rto_at
    int64_t tail_at             # tail loss probe (RFC 8985 7)
    int64_t persist_at
    int64_t ack_at
    int64_t close_at            # TIME-WAIT, FIN-WAIT-2 and connect limits
    int64_t keepalive_at
    int64_t idle_at             # give empty rings' memory back
    int64_t wake_at             # the deadline the heap knows: never later than the earliest above
    int64_t opened_at
    int64_t sent_at             # when data or SYN or FIN went out last
    int64_t stuck_at            # since when there is no answer, while `backoff` is not 0
    uint32_t user_timeout_ms    # when to give up then (RFC 9293 3.8.3); 0: after so many timeouts
    uint16_t keepalive_idle_s   # nothing comes before the first probe
    uint16_t keepalive_interval_s
    uint8_t keepalive_probes
    int64_t answered_at         # when something empty and unacceptable was answered last
    uint64_t octets_sent
    uint64_t octets_received
    uint64_t octets_marked      # both together, when somebody asked last who is busiest
    uint32_t retransmits

cdef enum:
    KEEPALIVE_IDLE_S = 7200     # RFC 9293 MUST-28
    KEEPALIVE_INTERVAL_S = 75   # these two as Linux
    KEEPALIVE_PROBES = 9

cdef struct Listener:
    Addr local
    uint16_t port
    uint8_t in_use
    uint8_t any_family          # bound to no address at all: both families
    uint32_t generation
    uint32_t backlog
    uint32_t embryos            # children in SYN-RECEIVED
    uint32_t waiting            # children established and not yet told
    uint32_t held               # ... told, and not yet taken from whom they were told to: `Tcp.set_held`
    int32_t next

cdef struct TcpLimits:
    uint32_t connections
    uint32_t listeners
    uint32_t embryos            # SYN-RECEIVED connections of one listener
    uint32_t time_wait
    uint32_t send_buffer
    uint32_t receive_buffer
    uint32_t retransmissions    # R2, in timeouts (RFC 9293 3.8.3)
    int64_t time_wait_ns
    int64_t rto_min_ns

cdef struct TcpTable:
    Net *net
    Tcb **blocks
    uint32_t block_count        # slots ever used
    uint32_t *generations
    int32_t *free_slots
    uint32_t free_count
    int32_t *buckets
    uint32_t bucket_mask
    uint32_t count
    uint32_t time_wait_count
    uint32_t time_wait_hand     # where the search for one to recycle goes on
    Listener *listeners
    int32_t port_buckets[PORT_BUCKETS]
    TimerHeap timers
    Budget budget
    TcpLimits limits
    int32_t dirty_head[32]
    int32_t dirty_tail[32]
    int32_t ready_head
    int32_t ready_tail
    uint32_t ready_count
    Log2Histogram round_trip    # every sample that RFC 6298 takes, ns
    Log2Histogram handshake[2]  # from SYN to ESTABLISHED, ns: opened from here, by a listener

cdef int table_create(TcpTable *t, Net *net, const TcpLimits *limits, uint64_t memory) except -1
cdef void table_destroy(TcpTable *t) noexcept nogil
cdef Tcb *tcb_new(TcpTable *t) noexcept nogil                       # NULL: the table is full
cdef void tcb_free(TcpTable *t, Tcb *c) noexcept nogil
cdef void tcb_reap(TcpTable *t, Tcb *c) noexcept nogil              # free it if nothing and nobody holds it any more
cdef void tcb_enter(TcpTable *t, Tcb *c) noexcept nogil             # make it findable by its addresses and ports
cdef Tcb *tcb_find(TcpTable *t, const Addr *remote, const Addr *local, uint16_t remote_port, uint16_t local_port) noexcept nogil
cdef Listener *listener_find(TcpTable *t, const Addr *local, uint16_t port) noexcept nogil
cdef bint set_state(TcpTable *t, Tcb *c, int event) noexcept nogil  # False: impossible, counted, nothing changed
cdef void tcb_dirty(TcpTable *t, Tcb *c) noexcept nogil             # it has something to send
cdef void tcb_news(TcpTable *t, Tcb *c, int news) noexcept nogil    # it has something to tell
cdef void tcb_arm(TcpTable *t, Tcb *c) noexcept nogil               # its deadlines changed
cdef void tcb_close(TcpTable *t, Tcb *c, int error) noexcept nogil  # enter CLOSED: free what it holds, tell the application
cdef void tcb_time_wait(TcpTable *t, Tcb *c) noexcept nogil         # (re)start the 2 MSL timer
cdef void tcb_fin_wait_2(TcpTable *t, Tcb *c) noexcept nogil        # nobody waits for the peer's FIN: not for ever either
cdef uint32_t receive_room(const TcpTable *t, const Tcb *c) noexcept nogil
