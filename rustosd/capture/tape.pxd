# A bounded ring of octets that holds frames as pcapng blocks until their reader takes them.
from libc.stdint cimport int16_t, uint8_t, uint16_t, uint32_t, uint64_t
from mm.frame cimport RxBurst, TxBurst
from netstack.bpf cimport BpfProgram, Pieces
from netstack.net cimport MAX_INTERFACES
from netstack.verdict cimport VERDICTS

cdef extern from "<sys/socket.h>" nogil:
    ssize_t send(int fd, const void *octets, size_t count, int flags)
    enum: MSG_DONTWAIT, MSG_NOSIGNAL

cdef enum:
    COMMENT_MOST = 64           # octets of a comment option
    IN = 1                      # directions, as in epb_flags
    OUT = 2

cpdef enum Drained:
    EMPTY = 0
    BLOCKED = 1                 # the reader's socket is full
    GONE = 2                    # nobody reads any more

# An Enhanced Packet Block up to the frame's octets.
cdef struct PacketHead:
    uint32_t kind
    uint32_t block_length
    uint32_t interface
    uint32_t time_high
    uint32_t time_low
    uint32_t captured
    uint32_t length

cdef struct Tallied:
    uint32_t number             # of the interface in the capture
    uint64_t received
    uint64_t accepted
    uint64_t lost
    uint64_t untold             # of these, lost since the last packet that was kept

cdef class Tape:
    cdef uint8_t *ring
    cdef uint64_t size          # a power of two
    cdef uint64_t head          # octets ever written ...
    cdef uint64_t tail          # ... and taken
    cdef BpfProgram program     # None: every frame
    cdef uint32_t snap_octets
    cdef uint32_t directions    # IN | OUT
    cdef readonly uint64_t left     # frames until the capture is full
    cdef uint8_t wanted[VERDICTS]
    cdef uint8_t comments[VERDICTS][COMMENT_MOST]
    cdef uint16_t comment_length[VERDICTS]
    cdef Tallied tallied[MAX_INTERFACES]    # by their number in the capture ...
    cdef int16_t numbers[MAX_INTERFACES]    # ... which is here by the index in the stack; -1: not captured
    cdef Tallied *tallied_at(self, int index) noexcept nogil
    cdef void write(self, const void *octets, uint64_t count) noexcept nogil
    cdef void look(self, Tallied *t, const Pieces *frame, uint64_t time_ns, uint32_t direction, int verdict) noexcept nogil
    cdef void keep(self, Tallied *t, const Pieces *frame, uint32_t captured, uint64_t time_ns, uint32_t flags, int verdict) noexcept nogil
