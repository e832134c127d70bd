# Stream sockets of other processes: each connection that is handed out goes through here.
from libc.stdint cimport uint32_t
from netstack.tcp.api cimport Acceptor, Tcp
from rustosd.descriptors cimport End
from rustosd.handoff.splice cimport ABORT, RELEASE, RESET, StreamSplice
from rustosd.handoff.table cimport SocketTable

cdef class StreamSocket:
    cdef readonly SocketTable broker
    cdef readonly bytes id
    cdef readonly End end
    cdef readonly int pid
    cdef readonly int family
    cdef readonly object subject
    cdef readonly tuple source
    cdef readonly object options
    cdef readonly int kept_port     # nobody else gets it who asks for any
    cdef bint bound
    cdef object handle              # None: there is no connection
    cdef uint32_t chaff
    cdef readonly StreamSplice splice
    cdef readonly Listener listener
    cdef Listener origin            # of an accepted one, until the client has taken it
    cdef object orphan              # octets that waited when the client was found gone
    cdef adopt(self, object handle)
    cdef apply(self, str option, object value)
    cdef leave(self)

cdef class Listener(Acceptor):
    cdef readonly StreamSocket owner
    cdef readonly int backlog
    cdef readonly object waiting
    cdef readonly set travelling
    cdef readonly list spares       # (id, our end) of pairs whose other ends the client has, for the next connections
    cdef Tcp tcp
    cdef object network
    cdef object shared              # a rustosd.handoff.shared_port.SharedPort, or None
    cdef object listener            # of the core; None: the shared port has it
    cdef take_in(self, object handle, int news, int error)
    cdef bint send(self, object handle, int news, int error) except? -1
    cdef StreamSocket announced(self, bytes ends)
    cpdef tuple lay_by(self)
    cdef note_held(self)
    cdef bint leave(self) except? -1
    cpdef int held(self) noexcept
    cpdef deliver(self)
