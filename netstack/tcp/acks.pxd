# What an acknowledgment does to the sending half: windows, SACK, round-trip time, queue, timers.
from netstack.tcp.tcb cimport Tcb, TcpTable
from netstack.wire.tcp cimport Segment

cdef void process_ack_of_syn(TcpTable *t, Tcb *c, const Segment *s) noexcept nogil
cdef void process_ack(TcpTable *t, Tcb *c, const Segment *s) noexcept nogil # s.ack was found acceptable
