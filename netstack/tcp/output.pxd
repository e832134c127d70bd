# What a connection sends next, and the segment it becomes.
from libc.stdint cimport int64_t, uint32_t
from mm.frame cimport TxFrame
from netstack.ip cimport IpView, Path
from netstack.net cimport Net
from netstack.tcp.tcb cimport Tcb, TcpTable
from netstack.wire.address cimport Addr
from netstack.wire.tcp cimport Segment

# Fill up to `capacity` frames with what connections on this interface have to send. Returns how many.
cdef uint32_t tcp_transmit(TcpTable *t, uint32_t interface, TxFrame *frames, uint32_t capacity) noexcept nogil
# A segment that belongs to no connection is answered with RST (RFC 9293 3.10.7.1).
cdef void reply_reset(TcpTable *t, const IpView *view, const Segment *s) noexcept nogil
cdef void send_reset(TcpTable *t, Tcb *c) noexcept nogil            # RST for a connection we give up
cdef int path_to_peer(Net *net, Path *path, const Addr *source) noexcept nogil  # path_resolve to one host: TCP_MULTICAST for a group
cdef bint path_refresh(TcpTable *t, Tcb *c) noexcept nogil          # False: there is no way to the peer now
cdef uint32_t timestamp_now(const TcpTable *t, const Tcb *c) noexcept nogil
cdef int64_t patience(const TcpTable *t, const Tcb *c) noexcept nogil    # rto_now, or until it is time to give up
cdef int64_t rto_now(const TcpTable *t, const Tcb *c) noexcept nogil    # with backoff, ns
cdef void tail_arm(TcpTable *t, Tcb *c) noexcept nogil
cdef void fit_mss(Tcb *c) noexcept nogil                            # from the path, the peer's MSS and the options agreed on
cdef void tcp_forget_interface(TcpTable *t, uint32_t interface) noexcept nogil  # it is gone or down: its connections look for another way
