from libc.stdint cimport uint8_t, uint32_t, uint64_t
from drivers.block.sys cimport Work, io_uring_cqe, io_uring_params, io_uring_sqe

cdef class Ring:
    cdef int fd
    cdef readonly uint32_t under_way        # work that the kernel has
    cdef uint32_t queued                    # prepared and not yet given to the kernel
    cdef uint8_t *rings
    cdef size_t rings_octets, sqes_octets
    cdef io_uring_sqe *sqes
    cdef io_uring_cqe *cqes
    cdef uint32_t *sq_tail
    cdef uint32_t *sq_array
    cdef uint32_t *cq_head
    cdef uint32_t *cq_tail
    cdef uint32_t *cq_flags
    cdef uint32_t sq_mask, cq_mask

    cdef _map(self, io_uring_params *p)
    cdef void put(self, Work *work) noexcept nogil
    cdef int submit(self) noexcept nogil
    cdef Work *take(self) noexcept nogil
    cdef bint arm(self) noexcept nogil
    cdef void disarm(self) noexcept nogil
    cdef void _wait(self) noexcept nogil
