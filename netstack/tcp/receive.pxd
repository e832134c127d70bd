# The receiving half of a connection: data into the ring, what lies beyond gaps, FIN, and which ACKs that calls for.
from netstack.tcp.tcb cimport Tcb, TcpTable
from netstack.wire.tcp cimport Segment

cdef int receive_data(TcpTable *t, Tcb *c, Segment *s) noexcept nogil       # a Verdict
cdef bint receive_fin(TcpTable *t, Tcb *c, const Segment *s) noexcept nogil # the segment carries FIN, or one came before; True: news
cdef void owe_ack(TcpTable *t, Tcb *c) noexcept nogil                       # tell the peer at once where we are
cdef void answer(TcpTable *t, Tcb *c, const Segment *s) noexcept nogil      # the same for what is unacceptable, within limits
cdef void challenge(TcpTable *t, Tcb *c) noexcept nogil                     # challenge ACK (RFC 5961)
