# userfaultfd(2): page faults of an address space, told to whoever has the descriptor; and what /proc/PID/pagemap tells of pages.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.types cimport pid_t

cdef extern from "<linux/userfaultfd.h>" nogil:
    cdef struct uffdio_api:
        uint64_t api
        uint64_t features
        uint64_t ioctls
    cdef struct uffdio_range:
        uint64_t start
        uint64_t len
    cdef struct uffdio_register:
        uffdio_range range
        uint64_t mode
        uint64_t ioctls
    cdef struct uffdio_copy:
        uint64_t dst
        uint64_t src
        uint64_t len
        uint64_t mode
        int64_t copy
    cdef struct uffdio_zeropage:
        uffdio_range range
        uint64_t mode
        int64_t zeropage
    cdef struct uffdio_writeprotect:
        uffdio_range range
        uint64_t mode
    enum:
        UFFD_API
        UFFDIO_API
        UFFDIO_REGISTER
        UFFDIO_WAKE
        UFFDIO_COPY
        UFFDIO_ZEROPAGE
        UFFDIO_WRITEPROTECT
        UFFDIO_REGISTER_MODE_MISSING
        UFFDIO_REGISTER_MODE_WP
        UFFDIO_COPY_MODE_WP
        UFFDIO_WRITEPROTECT_MODE_WP
        UFFD_FEATURE_PAGEFAULT_FLAG_WP
        UFFD_FEATURE_EVENT_FORK
        UFFD_FEATURE_EVENT_REMAP
        UFFD_FEATURE_THREAD_ID
        UFFD_EVENT_PAGEFAULT
        UFFD_EVENT_FORK
        UFFD_EVENT_REMAP
        UFFD_PAGEFAULT_FLAG_WRITE
        UFFD_PAGEFAULT_FLAG_WP

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t process_vm_readv(pid_t pid, const iovec *local, unsigned long locals, const iovec *remote, unsigned long remotes,
                             unsigned long flags)

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void *at, size_t octets, int advice)
    enum: MADV_DONTNEED

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_wait(int fd, epoll_event *events, int most, int timeout_ms)
    int epoll_ctl(int fd, int verb, int other, epoll_event *event)
    enum: EPOLLIN, EPOLL_CTL_ADD, EPOLL_CTL_DEL

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *data, size_t octets)
    ssize_t pread(int fd, void *data, size_t octets, int64_t at)
    ssize_t write(int fd, const void *data, size_t octets)

cdef packed struct Message:             # struct uffd_msg, in the shapes that are used here
    uint8_t event
    uint8_t _reserved[7]
    uint64_t flags                      # of a page fault; of a fork: the child's descriptor in the low half
    uint64_t address                    # of a page fault; of a move: where to
    uint32_t thread
    uint32_t _rest

cdef packed struct ScanRegion:          # struct page_region (linux/fs.h, from 6.7 on)
    uint64_t start
    uint64_t end
    uint64_t categories

cdef packed struct ScanRequest:         # struct pm_scan_arg
    uint64_t size
    uint64_t flags
    uint64_t start
    uint64_t end
    uint64_t walk_end
    uint64_t vector
    uint64_t vector_length
    uint64_t most_pages
    uint64_t inverted
    uint64_t required
    uint64_t any_of
    uint64_t told

cdef enum:
    PAGE = 4096
    PAGE_BITS = 12

# Each returns 0 or an errno. `done`: octets that were carried out all the same.
cdef int uffd_register(int fd, uint64_t start, uint64_t octets) noexcept nogil
cdef int uffd_copy(int fd, uint64_t to, const uint8_t *data, uint64_t octets, bint protect, uint64_t *done) noexcept nogil
cdef int uffd_zero(int fd, uint64_t start, uint64_t octets, uint64_t *done) noexcept nogil
cdef int uffd_protect(int fd, uint64_t start, uint64_t octets, bint protect) noexcept nogil
cdef int uffd_wake(int fd, uint64_t start, uint64_t octets) noexcept nogil
# How many regions of present pages there are from `start` on, `most` at most, without zero pages; -1: this kernel cannot tell.
# `walked`: to where.
cdef int64_t present_regions(int pagemap, uint64_t start, uint64_t end, ScanRegion *found, uint64_t most,
                             uint64_t *walked) noexcept nogil
