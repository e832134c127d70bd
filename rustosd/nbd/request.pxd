# What clients ask for, on its way to the disk and back.
from libc.stdint cimport uint32_t
from drivers.request cimport Request, Segment
from rustosd.nbd.peer cimport Peer

cdef bint receive_requests(Peer *p) noexcept nogil
cdef bint next_part(Peer *p, Request *request, Segment *segment) noexcept nogil
cdef void part_handed(Peer *p, const Request *request) noexcept nogil
cdef void part_ended(Peer *p, uint32_t slot, int error) noexcept nogil
