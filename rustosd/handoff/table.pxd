# The table of all sockets that other processes have.
from libc.stdint cimport uint64_t
from netstack.tcp.api cimport Tcp
from rustosd.descriptors cimport End
from rustosd.handoff.splice cimport StreamSplice
from rustosd.handoff.watch cimport Watch

cdef enum:
    ID_OCTETS = 8
    IDS_AT_ONCE = 64

cdef class SocketTable:
    cdef readonly object network    # the AsyncStack
    cdef public object limits
    cdef public str bound           # what sets the limit of all sockets, for whoever is refused one
    cdef readonly dict sockets      # by id
    cdef readonly set sessions
    cdef readonly uint64_t opened   # sockets since the start
    cdef readonly uint64_t refused  # ... and those that a limit did not let be
    cdef readonly set starved       # listeners that have connections for which there was no room
    cdef readonly Watch ends        # what happens to ours
    cdef Tcp tcp
    cdef dict connections           # the network's
    cdef dict held_by               # how many sockets and sessions each process has
    cdef readonly int spares        # ends that listeners have ahead
    cdef bytes drawn                # ids, ahead
    cdef int used                   # octets of them
    cdef list untidy
    cdef bytes draw(self)
    cdef let_go(self, object handle, bint reset)
    cdef tidy_later(self, StreamSplice splice)
    cpdef check_room(self, int pid)
    cpdef one_more(self, int pid)
    cpdef one_less(self, int pid)
    cpdef tuple pair(self, int pid, int kind, bint anchored=*)
    cpdef add(self, bytes identity, int pid, object one)
    cdef tuple lay_by(self, int pid)
    cdef enter(self, bytes identity, object one)
    cdef let_spare_go(self, int pid, End end)
    cpdef bint remove(self, bytes identity, int pid, End end) except? -1
