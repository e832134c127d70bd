# The system calls of swap, and the lock that needs no GIL.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *lock, const void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *lock)
    int pthread_mutex_lock(pthread_mutex_t *lock)
    int pthread_mutex_unlock(pthread_mutex_t *lock)

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *data, size_t octets, int64_t at)
    ssize_t pwrite(int fd, const void *data, size_t octets, int64_t at)

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int fd, int mode, int64_t at, int64_t octets)

cdef extern from "<linux/falloc.h>" nogil:
    enum: FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE

cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void *data, size_t octets, unsigned flags)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *at, size_t octets, int protection, int flags, int fd, int64_t offset)
    int munmap(void *at, size_t octets)
    int madvise(void *at, size_t octets, int advice)
    int mlock(const void *at, size_t octets)
    enum: PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE
    enum: MADV_DONTNEED, MADV_DONTDUMP, MADV_WIPEONFORK
    void *MAP_FAILED

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t octets)

cdef extern from "<string.h>" nogil:
    void explicit_bzero(void *data, size_t octets)
