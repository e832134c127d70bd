# What is due: the timers of all connections, one function for `advance` and `wake_at`.
from libc.stdint cimport int64_t
from netstack.tcp.tcb cimport TcpTable

cdef void tcp_advance(TcpTable *t) noexcept nogil
cdef int64_t tcp_wake_at(const TcpTable *t) noexcept nogil     # INT64_MAX: nothing runs
