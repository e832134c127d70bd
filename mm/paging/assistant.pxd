# A second thread for long runs of pages.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from mm.paging.space cimport Space
from mm.swap.store cimport SwapStore

cdef extern from "<semaphore.h>" nogil:
    ctypedef struct sem_t:
        pass
    int sem_init(sem_t *semaphore, int shared, unsigned value)
    int sem_destroy(sem_t *semaphore)
    int sem_post(sem_t *semaphore)
    int sem_wait(sem_t *semaphore)

cdef enum:
    SHARED_PAGES = 32           # of a run, from which on it is for two: to wake the other takes as long as some pages

cdef class Assistant:
    cdef SwapStore store
    cdef sem_t asked            # there is something to do
    cdef sem_t done
    cdef bint stopping
    # What is to be brought, and then how much of it was:
    cdef Space *space
    cdef uint64_t page
    cdef uint32_t count
    cdef uint8_t *data          # room for so many pages
    cdef bint keep
    cdef uint32_t brought

    cdef void begin(self, Space *space, uint64_t page, uint32_t count, uint8_t *data, bint keep) noexcept nogil
    cdef uint32_t end(self) noexcept nogil
    cdef void _bring(self) noexcept nogil
