from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from posix.uio cimport iovec
from drivers.block.host_disk cimport DEPTH, HostDisk
from drivers.block.loop_writes cimport LoopWrites
from drivers.block.pool cimport Pool
from drivers.block.ring cimport Ring
from drivers.block.sys cimport Work

cdef enum:
    PAGE = 4096
    MAX_SEGMENTS = 128          # of one request
    ZEROS = 1 << 16             # octets of zeros there are to write
    ZERO_PIECES = 16            # times which are written at once
    # What is read or written at once within `submit` when no disk is needed for it. More goes to a helper: while that
    # copies, the loop does something else.
    LONGEST_INLINE = 1 << 17
    INLINE_IN_ALL = 1 << 20

cdef struct Slot:
    Work work
    uint64_t tag
    uint64_t mark               # FLUSH: changes that were complete when it began
    int64_t at                  # of the file, where the rest begins; octets
    int64_t left                # octets
    uint32_t sectors
    uint8_t operation
    uint8_t flags
    bint syncing                # all is done but its FUA

cdef class FileDisk(HostDisk):
    cdef object opened          # drivers.block.host_file.HostFile
    cdef int fd
    cdef int direct_fd          # -1: everything goes through the page cache
    cdef uint32_t alignment     # of memory and file offsets that the direct one takes
    cdef bint nowait_reads, nowait_writes   # the filesystem says rather than blocks
    cdef bint punches, zero_ranges
    cdef readonly bint by_ring
    cdef bint write_in_loop     # on a filesystem that cannot say that it would block, as `loop_writes` allows
    cdef LoopWrites loop_writes
    cdef Ring ring
    cdef Pool pool              # for what the ring has not, or where there is none
    cdef Pool writer            # one thread: a file takes one buffered write at a time, more would only meet at its lock
    cdef bint armed
    cdef Slot slots[DEPTH]
    cdef iovec *vectors         # MAX_SEGMENTS for each slot
    cdef uint8_t *zeros
    cdef int free[DEPTH]
    cdef uint64_t changed, synced       # changes that are complete; those of them that are durable
    cdef int sync_error                 # not 0: what was written before may be lost, and no flush can be believed any more
    cdef int64_t inline_left
    cdef uint32_t changing      # work of the helpers that changes the file: the loop would meet them at its locks
    cdef uint64_t at_once       # requests served within `submit`
    cdef uint64_t wakeups

    cdef _describe(self, str name, uint32_t sector_octets)
    cdef bint _is_ext4(self)
    cdef bint _try_at_once(self, Slot *s) noexcept nogil
    cdef bint _edges_cached(self, const Slot *s) noexcept nogil
    cdef bint _cached(self, int64_t at) noexcept nogil
    cdef void _begin_zeroes(self, Slot *s) noexcept nogil
    cdef void _write_zeros(self, Slot *s) noexcept nogil
    cdef void _put(self, Slot *s) noexcept nogil
    cdef bint _suits_direct(self, const Slot *s) noexcept nogil
    cdef void _hand_over(self) noexcept nogil
    cdef void _harvest(self) noexcept nogil
    cdef void _proceed(self, Slot *s) noexcept nogil
    cdef void _moved(self, Slot *s, int64_t result) noexcept nogil
    cdef void _allocated(self, Slot *s, int64_t result) noexcept nogil
    cdef void _settle(self, Slot *s) noexcept nogil
    cdef void _synced(self, Slot *s, int64_t result) noexcept nogil
    cdef void _sync(self, Slot *s) noexcept nogil
    cdef void _finish(self, Slot *s, int error) noexcept nogil
