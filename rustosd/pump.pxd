# The pump runs per burst: what it touches is typed.
from libc.stdint cimport int64_t, uint64_t
from drivers.nic cimport Nic
from mm.frame cimport RxBurst, TxBurst
from mm.histogram cimport Histogram
from netstack.verbs cimport PacketStack
from rustosd.busy_poll cimport BusyPoll
from rustosd.moderation cimport Moderation

cpdef enum:
    BUDGET = 8                  # breaths in one turn: full bursts both ways keep the loop's other callbacks waiting for about 1 ms
    LOOPBACK = 0                # the index of the interface that needs no NIC

cdef enum:
    COMPLAINT_NS = 1000000000
    MS = 1000000
    SPELL_NS = 20000            # how long looking in vain keeps the loop's other callbacks waiting

cdef struct Counts:
    uint64_t wakeups            # callbacks by NICs and sources that became readable
    uint64_t kicks              # turns asked for by applications
    uint64_t timers             # turns because time has passed
    uint64_t yields             # budgets used up
    uint64_t rx_bursts
    uint64_t rx_frames
    uint64_t tx_bursts
    uint64_t tx_frames
    uint64_t tx_refused
    uint64_t errors             # exceptions out of callbacks

cdef class Source:
    cdef int look(self) noexcept

cdef class Port:
    cdef readonly int index
    cdef readonly Nic nic
    cdef int fd
    cdef bint link_up
    cdef object on_gone
    cdef bint full              # the device had no room: flush again when it wakes us

cdef class Pump:
    cdef object loop
    cdef PacketStack stack
    cdef object on_events
    cdef BusyPoll poll
    cdef Moderation moderation
    cdef bint resting           # the next turn begins with a rest
    cdef tuple ports
    cdef tuple sources
    cdef dict source_fds
    cdef RxBurst rx
    cdef TxBurst tx
    cdef Counts counts
    cdef Histogram rx_bursts, tx_bursts, turns
    cdef bint closed
    cdef readonly bint running  # what applications write now is flushed before the turn ends
    cdef bint scheduled         # a turn waits in the loop's queue
    cdef bint dirty             # the stack may have events or frames for us
    cdef bint looked            # at the sources, in this breath
    cdef uint64_t source_events
    cdef int64_t wake           # when the stack wants to be woken; 0: by nothing but frames
    cdef object timer
    cdef int64_t timer_at       # what it was set for
    cdef object link_timer
    cdef object watch_timer
    cdef dict silent_until
    cdef object watcher
    cdef schedule(self)
    cdef turn(self)
    cdef int breathe_on(self, int64_t now) except? -1
    cdef bint breathe(self, int64_t now) except? -1
    cdef bint look(self) noexcept
    cdef bint advance(self, int64_t now) except? -1
    cdef bint receive(self, Port port, int64_t now) except? -1
    cdef bint loop_back(self, int64_t now) except? -1
    cdef deliver(self)
    cdef bint send(self, int64_t now) except? -1
    cdef bint send_by(self, Port port, int64_t now) except? -1
    cdef note_wake(self, int64_t now)
    cdef arm(self, int64_t now)
    cdef complain(self, str what)
