# One connection in its transmission phase, as a flat struct: no Python object is in it.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    SLOTS = 256                 # requests of one connection that are not answered yet; then it is read from no more
    INPUT = 65536               # octets of its input that may wait to be looked at
    PAGE = 4096                 # what memory for requests is handed out in
    ARENA_WORDS = 64            # of 64 pages each: 16 MiB at most
    STATUS_PAGES = 2            # memory for one answer to "what is allocated"
    SMALL = 32768               # a payload of more goes straight to where the disk wants it, one of less by way of the input
    HEADER_MOST = 64
    TURN_MOST = 1048576         # octets read from one connection before others get their turn
    CACHE_MOST = 33554432       # octets that one CACHE reads at most; the rest stays a hint not taken
    ORDINARY_PAYLOAD = 33554432 # who sends more in one request gives up its connection
    PART_MOST = 4194304         # octets of one segment: see drivers.disk
    SECTORS_MOST = 0x7FFFF000   # of one request to the disk that carries no data

cdef enum:
    P_READABLE = 0x0001         # the socket may have something to read
    P_FULL = 0x0002             # the socket takes no more until the client has read
    P_TRY = 0x0004              # what waits in the input may go on: there is memory or a slot again
    P_EOF = 0x0008              # the client sends no more
    P_BROKEN = 0x0010           # over at once
    P_GROW = 0x0020             # it waits for an arena larger than it has
    P_SMALL = 0x0040            # ... and cannot have one
    P_ACTIVE = 0x0080           # in the engine's list
    P_DRAINING = 0x0100         # the export is to end: new requests are refused
    P_BLOCKED = 0x0200          # the input waits for memory or a slot
    P_HUNG_UP = 0x0800          # the other end is closed: what is left to read is followed by the end, which nothing tells again
    P_DEAF = 0x0400             # it takes no replies any more; what it has asked for is done all the same

# Why a connection ended; the labels are in engine.py.
cdef enum Reason:
    ENDED_DISCONNECT            # NBD_CMD_DISC
    ENDED_EOF                   # closed without a word
    ENDED_LOST                  # the socket failed
    ENDED_BAD_MAGIC
    ENDED_OVERSIZE              # a payload larger than anybody may send
    ENDED_MID_READ              # an error after the reply's header was sent
    ENDED_STALLED               # it reads no replies
    ENDED_SHUTDOWN              # the export ended
    REASONS

cdef enum Stage:
    FREE
    PAYLOAD                     # its data are coming in
    DRAIN                       # ... and thrown away, for it has failed already
    QUEUED                      # for the disk, or partly there
    AT_DISK
    REPLYING

cdef struct Slot:
    uint64_t cookie             # the client's name for the request, as it came
    uint64_t offset             # of the request, in octets
    uint64_t length
    uint64_t done               # octets of earlier pieces: what does not fit the memory goes piece by piece
    uint64_t piece              # octets of this piece
    uint64_t handed             # ... that the disk was given
    uint8_t *data               # memory for the piece
    uint64_t iova
    uint32_t page               # where that is in the arena
    uint32_t pages
    uint32_t parts              # requests at the disk
    uint32_t error              # NBD's number
    uint32_t payload            # octets of `data` that follow the header of the reply
    uint32_t header_octets
    uint16_t command
    uint16_t flags
    uint8_t operation           # the disk's
    uint8_t disk_flags
    uint8_t stage
    bint flush_after            # the disk has no FUA: what it is to do is durable after a flush
    bint last                   # of the reply's pieces
    uint8_t header[HEADER_MOST]

# What an export is to all its connections.
cdef struct Shape:
    uint64_t octets
    uint32_t sector_octets
    uint32_t max_payload
    uint64_t part_most          # octets of one READ or WRITE of the disk
    uint64_t trim_most          # octets of one TRIM or WRITE_ZEROES of the disk
    bint fua                    # the disk has it

cdef struct Counts:
    uint64_t requests[9]        # by command; the last: of any other number
    uint64_t read_octets
    uint64_t written_octets
    uint64_t errors[128]        # by NBD's number
    uint64_t ended[REASONS]
    uint64_t holes              # reads answered as holes

cdef struct Peer:
    int fd
    uint32_t index
    uint32_t flags
    uint32_t reason
    uint16_t transmission       # the flags that the client was told
    bint structured
    bint extended
    bint status                 # block status was negotiated
    uint32_t context            # ... under this id
    int64_t progress_ns         # when it last took octets of a reply
    const Shape *shape
    Counts *counts
    uint8_t input[INPUT]
    uint32_t start              # what of the input waits
    uint32_t end
    int32_t receiving           # the slot whose data come next, or -1
    uint64_t got                # octets of its piece
    uint64_t drain              # octets to throw away
    Slot slots[SLOTS]
    uint16_t free[SLOTS]
    uint32_t free_count
    uint16_t queue[SLOTS]       # for the disk, a ring
    uint32_t queue_head
    uint32_t queue_count
    uint16_t out[SLOTS]         # replies, a ring
    uint32_t out_head
    uint32_t out_count
    uint64_t out_sent           # octets of the first one that are sent
    bint held                   # ... whose next piece is at the disk: a simple reply, into which no other may come
    uint32_t at_disk            # requests
    uint8_t *arena
    uint64_t arena_iova
    uint32_t pages              # of the arena
    uint32_t pages_used
    uint64_t used[ARENA_WORDS]

cdef void peer_init(Peer *p, int fd, const Shape *shape, Counts *counts) noexcept nogil
cdef void peer_set_arena(Peer *p, uint8_t *arena, uint64_t iova, uint32_t pages) noexcept nogil
cdef bint peer_take_memory(Peer *p, Slot *s, uint64_t octets) noexcept nogil
cdef void peer_release(Peer *p, uint32_t slot) noexcept nogil
cdef void peer_enqueue(Peer *p, uint32_t slot) noexcept nogil
cdef void peer_break(Peer *p, uint32_t reason) noexcept nogil
cdef bint peer_busy(const Peer *p) noexcept nogil
cdef bint peer_over(const Peer *p) noexcept nogil
