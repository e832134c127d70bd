# One system call that waits for its answer.
cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from rustosd.process.notify cimport Notifications, iovec, process_vm_readv, process_vm_writev, read_memory
from rustosd.process.threads cimport Threads, close_descriptor

@cython.freelist(16)
cdef class Call:
    cdef Notifications notifications
    cdef Threads threads
    cdef readonly uint64_t id
    cdef readonly int thread
    cdef readonly int number
    cdef uint64_t words[6]
    cdef int end                # a duplicate of the descriptor that the call is about; -1: there is none
    cpdef int int(self, int index) noexcept
    cpdef uint64_t pointer(self, int index) noexcept
    cpdef answer(self, int64_t value=*)
    cpdef refuse(self, int number)
    cpdef proceed(self)
    cpdef give(self, int fd, bint close_on_exec)
    cpdef bytes read(self, uint64_t address, uint64_t octets)
    cpdef bytes read_name(self, uint64_t address, int length)
    cpdef write_name(self, object endpoint, object family)
    cpdef write_option(self, bytes octets)
    cdef int64_t room(self, uint64_t length_at) except? -1
    cpdef write_sized(self, uint64_t address, uint64_t length_at, bytes octets)
    cdef write_both(self, uint64_t address, bytes octets, uint32_t count, uint64_t length_at, uint32_t length, bint differs)
    cdef void let_go(self) noexcept
