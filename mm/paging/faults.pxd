from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from mm.awake cimport Awake
from mm.paging.assistant cimport Assistant, sem_t
from mm.paging.space cimport Space
from mm.swap.store cimport SwapStore
from mm.swap.sys cimport pthread_mutex_t

cdef enum:
    SPACES_MOST = 4096
    MESSAGES = 16
    DEFERRED_MOST = 65536
    LOST_MOST = 64
    MOVES_MOST = 16

cdef struct Deferred:           # a fault that cannot be answered now
    uint32_t index
    uint32_t generation
    uint64_t address
    uint64_t flags
    uint32_t thread
    bint counted                # as one that waits for room
    int64_t since_ns

cdef struct LostPage:           # one that somebody waits for and that cannot be had
    uint32_t index
    uint64_t page
    int error                   # an errno
    int64_t slot                # -1: no slot was to blame
    uint32_t thread             # who waits; 0: the process is beyond help, or it is memory of our own

cdef class FaultServer:
    cdef readonly SwapStore store
    cdef pthread_mutex_t lock   # of all that follows, and of all spaces. Nobody waits for it with the GIL
    cdef Space **spaces
    cdef readonly uint32_t spaces_most      # that we answer for: each takes two descriptors
    cdef uint32_t highest       # index in use, and 1
    cdef uint32_t next_generation
    cdef int epoll
    cdef int wake               # eventfd: look at what is deferred, or stop
    cdef int told               # eventfd: there is something for whoever evicts
    cdef sem_t serving          # faults are answered from now on
    cdef bint stopping
    cdef bint looks_on          # for the next fault, before it sleeps: there is another processor for who faults
    cdef Awake awake            # None: processors sleep as they like
    cdef Assistant assistant    # None: there is no other processor, or nobody serves
    cdef uint8_t *buffer        # RUN_PAGES pages
    cdef uint8_t *zeros         # ZERO_PAGES pages
    cdef Deferred *deferred
    cdef uint32_t deferred_count
    cdef uint32_t deferred_size
    cdef bint waits_for_room    # some of the deferred
    cdef int64_t resident       # pages in memory of all spaces that are not ours, about
    cdef int64_t hard_limit     # of those; 0: none
    cdef int64_t made_room_ns   # when some of those left last: as long as they do, nobody waits in vain
    cdef uint32_t lent          # faults that were answered although there was none, since there was some
    cdef uint32_t exempt        # thread whose faults never wait for room: who makes room needs its help
    cdef uint32_t evictor       # the thread that reads what is to be evicted: its faults do not wait for the end of that
    cdef uint32_t asking        # thread whose fault is being answered
    cdef LostPage lost_pages[64]
    cdef uint32_t lost_count
    cdef bint spare             # slots are short: who is read from them gives them back

    cdef int _enter(self, Space *space) noexcept nogil
    cdef void _remove(self, Space *space) noexcept nogil
    cdef void _serve(self) noexcept nogil
    cdef int _look_up_ms(self) noexcept nogil
    cdef void _take(self, Space *space) noexcept nogil
    cdef void _forked(self, Space *space, int fd) noexcept nogil
    cdef void _lose_track(self, Space *space, int error) noexcept nogil
    cdef void _fault(self, Space *space, uint64_t address, uint64_t flags, uint32_t thread, Deferred *again) noexcept nogil
    cdef int _bring_zero(self, Space *space, uint64_t page, bint write) noexcept nogil
    cdef int _bring(self, Space *space, uint64_t page, bint write) noexcept nogil
    cdef uint32_t _cluster(self, Space *space, uint64_t page) noexcept nogil
    cdef uint64_t _bring_here(self, Space *space, uint64_t page, uint32_t count, bint writable, int *error) noexcept nogil
    cdef void _arrived(self, Space *space, uint64_t page, uint64_t count, bint keep, bint asked) noexcept nogil
    cdef uint64_t _install(self, Space *space, uint64_t page, uint32_t count, const uint8_t *data, bint keep, bint asked,
                           int *error) noexcept nogil
    cdef int _unprotect(self, Space *space, uint64_t page) noexcept nogil
    cdef bint _is_there(self, Space *space, uint64_t page) noexcept nogil
    cdef void _defer(self, Space *space, uint64_t address, uint64_t flags, uint32_t thread, Deferred *again,
                     bint room) noexcept nogil
    cdef void _retry(self) noexcept nogil
    cdef void _fail(self, Space *space, uint64_t page, int error, int64_t slot) noexcept nogil
    cdef void _end_now(self, Space *space, int pid, uint64_t page) noexcept nogil
    cdef bint _note_lost(self, Space *space, uint64_t page, int error, int64_t slot, uint32_t thread) noexcept nogil
    cdef bint _is_ours(self, uint32_t thread) noexcept nogil
    cdef void _tell(self, int eventfd) noexcept nogil
    cdef void _balance(self, Space *space) noexcept nogil
