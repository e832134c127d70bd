# How requests are answered.
from libc.stdint cimport int64_t, uint32_t
from rustosd.nbd.peer cimport Peer

cdef void reply(Peer *p, uint32_t slot) noexcept nogil
cdef bint send_replies(Peer *p, int64_t now) noexcept nogil
