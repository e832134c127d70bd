# A segment arrives (RFC 9293 3.10.7).
from libc.stdint cimport uint32_t
from netstack.icmp cimport IcmpError
from netstack.ip cimport IpView
from netstack.tcp.tcb cimport Listener, Tcb, TcpTable

cdef int tcp_input(TcpTable *t, const IpView *view) noexcept nogil          # a Verdict
cdef void tcp_error(TcpTable *t, const IcmpError *error) noexcept nogil     # an ICMP error about a segment of ours
cdef uint32_t initial_sequence(TcpTable *t, const Tcb *c) noexcept nogil    # RFC 6528
cdef void tcb_open(TcpTable *t, Tcb *c) noexcept nogil                      # defaults of a connection whose addresses and ports are set
