# One address space that is paged.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from mm.paging.table cimport PageTable
from mm.paging.writers cimport WriteGuess
from mm.swap.policy cimport Policy
from mm.swap.store cimport Failure, SwapStore

cdef enum:
    BATCH_PAGES = 256           # that leave an address space at a time
    RUN_PAGES = 64              # that are read, written or copied in at a time

cdef struct Run:                # of pages
    uint64_t first
    uint64_t count

cdef struct Counts:
    uint64_t faults             # that read from swap
    uint64_t zero_faults        # of pages that had nothing in them yet
    uint64_t write_faults       # first writes to a page that is in swap as well
    uint64_t pages_in           # from swap, those that were read ahead included
    uint64_t pages_ahead        # read ahead
    uint64_t ahead_used         # of those, the ones behind which the next fault came: they were used in order
    uint64_t pages_out          # written to swap
    uint64_t clean_out          # pages that left without being written: swap had them
    uint64_t zero_out           # pages that left without being written: they were zero
    uint64_t waited             # faults that waited for room under the hard limit

cdef struct Space:
    uint32_t index              # among the pager's spaces
    uint32_t generation         # tells it from those that had this index before
    int fd                      # userfaultfd
    int pid                     # 0: memory of our own; -1: a fork's child that nobody has claimed yet
    int pagemap                 # /proc/PID/pagemap
    int64_t parent              # index of the one it was forked from; -1
    bint starting               # claimed, and nobody runs in it but for us: its faults never wait for room
    PageTable table
    Policy policy               # which of the pages in memory leave
    Run batch[BATCH_PAGES]      # what is being evicted, sorted: whoever touches it waits for the end of that
    uint32_t batch_runs
    bint parked                 # somebody waits for that
    uint32_t window             # pages to bring in with the next fault
    uint32_t last_ahead         # pages that came along with the last one
    uint64_t next_page          # where a fault would come if they come in order
    uint64_t next_zero
    uint32_t zero_window
    uint64_t moves[16]          # where the kernel has just moved pages whose slots have not followed yet
    uint32_t move_count         # above 16: more than are known
    uint64_t next_write
    WriteGuess guess            # whether who reads a page will write it
    int64_t copied_at_ns        # when a page was last copied in
    bint broken                 # we have lost track of its pages: it cannot go on
    Counts counts
    # Memory of our own:
    uint64_t limit              # pages that may be in memory; 0: as many as like
    uint64_t resident

cdef Space *space_new(int fd, int pid) noexcept nogil
cdef Space *space_fork(Space *parent, int fd, SwapStore store) noexcept nogil
cdef void space_free(Space *space, SwapStore store) noexcept nogil
cdef void forget_slot(Space *space, uint64_t page, SwapStore store) noexcept nogil
cdef void forget_range(Space *space, uint64_t first, uint64_t end, SwapStore store) noexcept nogil
cdef void move_range(Space *space, uint64_t first, uint64_t end, uint64_t to, SwapStore store) noexcept nogil
cdef bint in_batch(Space *space, uint64_t page) noexcept nogil
cdef uint32_t in_swap_alone(Space *space, uint64_t page, uint32_t most) noexcept nogil
cdef uint32_t read_slots(Space *space, uint64_t page, uint32_t count, uint8_t *data, SwapStore store, Failure *failure) noexcept nogil
