# The system calls of the file backend, and a piece of work for them that a ring or a thread carries out.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.types cimport off_t
from posix.uio cimport iovec

cdef extern from "<sys/uio.h>" nogil:
    ssize_t preadv2(int fd, const iovec *iov, int count, off_t offset, int flags)
    ssize_t pwritev2(int fd, const iovec *iov, int count, off_t offset, int flags)
    enum: RWF_DSYNC, RWF_NOWAIT

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int fd, int mode, off_t offset, off_t length)

cdef extern from "<sys/vfs.h>" nogil:
    cdef struct statfs:
        long f_type
    int fstatfs(int fd, statfs *about)

cdef extern from "<linux/magic.h>" nogil:
    enum: EXT4_SUPER_MAGIC

cdef extern from "<linux/falloc.h>" nogil:
    enum: FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE

cdef extern from "<unistd.h>" nogil:
    int fdatasync(int fd)
    long syscall(long number, ...)
    enum: SEEK_DATA, SEEK_END, SEEK_HOLE
    off_t lseek(int fd, off_t offset, int whence)
    ssize_t read(int fd, void *data, size_t octets)
    ssize_t write(int fd, const void *data, size_t octets)
    int close(int fd)

cdef extern from "<sys/syscall.h>" nogil:
    enum: __NR_io_uring_setup, __NR_io_uring_enter, __NR_io_uring_register

cdef extern from "<linux/io_uring.h>" nogil:
    enum: IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC, IORING_OP_FALLOCATE
    enum: IORING_FSYNC_DATASYNC, IORING_SETUP_CLAMP, IORING_FEAT_SINGLE_MMAP, IORING_FEAT_NODROP
    enum: IORING_ENTER_GETEVENTS, IORING_REGISTER_EVENTFD, IORING_CQ_EVENTFD_DISABLED
    const uint64_t IORING_OFF_SQ_RING, IORING_OFF_SQES
    cdef struct io_uring_sqe:
        uint8_t opcode
        uint8_t flags
        int32_t fd
        uint64_t off
        uint64_t addr
        uint32_t len
        uint32_t rw_flags
        uint32_t fsync_flags
        uint64_t user_data
    cdef struct io_uring_cqe:
        uint64_t user_data
        int32_t res
    cdef struct io_sqring_offsets:
        uint32_t head, tail, ring_mask, ring_entries, array
    cdef struct io_cqring_offsets:
        uint32_t head, tail, ring_mask, ring_entries, cqes, flags
    cdef struct io_uring_params:
        uint32_t sq_entries, cq_entries, flags, features
        io_sqring_offsets sq_off
        io_cqring_offsets cq_off

cdef enum Kind:
    PREADV
    PWRITEV
    SYNC                        # fdatasync
    ALLOCATE                    # fallocate; `flags` is its mode
    MAP                         # fill `iov` with extents; the ring has no such operation

# Belongs to its owner until it is given to a ring or a pool, and again once that has told the result.
cdef struct Work:
    Work *next                  # in a list of the pool's
    iovec *iov
    int64_t offset
    int64_t octets              # of ALLOCATE and MAP
    int64_t result              # what the system call said, or -errno
    uint32_t index              # the owner's own
    int32_t iov_count
    int32_t fd
    int32_t flags
    uint32_t unit               # octets of a sector, for MAP
    uint8_t kind
