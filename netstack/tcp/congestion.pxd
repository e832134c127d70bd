# Congestion control and loss recovery of the sender (RFC 5681, 6582, 6675).
from libc.stdint cimport uint32_t
from netstack.tcp.tcb cimport Tcb, TcpTable
from netstack.wire.tcp cimport Range

cdef void congestion_open(Tcb *c) noexcept nogil                    # initial window; c.mss is known
cdef void congestion_restart(Tcb *c) noexcept nogil                 # nothing was sent for a retransmission timeout
cdef void congestion_acked(TcpTable *t, Tcb *c, uint32_t octets) noexcept nogil    # snd_una moved by so much
cdef void congestion_duplicate(TcpTable *t, Tcb *c) noexcept nogil
cdef void congestion_lost(TcpTable *t, Tcb *c) noexcept nogil       # begin fast recovery
cdef void congestion_timeout(TcpTable *t, Tcb *c) noexcept nogil
cdef uint32_t pipe(const Tcb *c) noexcept nogil                     # octets in the network (RFC 6675 4)
cdef bint first_hole(const Tcb *c, Range *hole, bint lost) noexcept nogil   # the first octets not yet sent again that are lost (or only missing)
