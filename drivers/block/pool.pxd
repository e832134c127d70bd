from libc.stdint cimport uint32_t
from drivers.block.sys cimport Work

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_create(pthread_t *thread, const void *attributes, void *(*begin)(void *) noexcept nogil, void *argument)
    int pthread_join(pthread_t thread, void **result)
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_cond_init(pthread_cond_t *cond, const void *attributes)
    int pthread_cond_destroy(pthread_cond_t *cond)
    int pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
    int pthread_cond_signal(pthread_cond_t *cond)
    int pthread_cond_broadcast(pthread_cond_t *cond)

cdef enum:
    MAX_THREADS = 16

# What the threads see: no Python object is in it.
cdef struct Shared:
    pthread_mutex_t mutex
    pthread_cond_t more         # work waits, or they are to end
    Work *first                 # that waits, oldest first
    Work *last
    Work *done                  # newest first
    uint32_t waiting            # the length of the first list
    uint32_t idle               # threads that wait for work
    bint ending
    uint32_t armed              # the next that is done writes the eventfd
    int eventfd

cdef class Pool:
    cdef Shared shared
    cdef pthread_t threads[MAX_THREADS]
    cdef readonly int count                 # threads there are
    cdef int most
    cdef bint alive
    cdef readonly uint32_t under_way        # work that was put and not taken
    cdef Work *first                        # what was put since the last `submit`
    cdef Work *last
    cdef uint32_t queued
    cdef Work *taken                        # done, oldest first, to be taken

    cdef void _end(self) noexcept nogil
    cdef void put(self, Work *work) noexcept nogil
    cdef int submit(self) noexcept nogil
    cdef bint stuck(self) noexcept nogil
    cdef Work *take(self) noexcept nogil
    cdef bint arm(self) noexcept nogil
    cdef void disarm(self) noexcept nogil
