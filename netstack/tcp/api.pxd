# The Python face of TCP: what sockets are made of.
from libc.stdint cimport uint32_t, uint64_t
from netstack.net cimport NetState
from netstack.tcp.tcb cimport Listener, Tcb, TcpTable
from netstack.wire.address cimport Addr

cdef enum:
    MAX_BUSIEST = 64            # rows of Tcp.busiest

cdef class Follower:
    cdef void heard(self, int news, int error) noexcept

cdef class Acceptor:
    cdef void accepted(self, object handle, int news, int error) noexcept

cdef class Tcp:
    cdef NetState state
    cdef TcpTable table
    cdef list followers         # by index of the block; None: its news are for `ready`
    cdef list acceptors         # by index of the listener; None: its connections are for `ready`
    cdef public bint touched    # a follower has taken or left octets since somebody set this to False
    cdef follow(self, object handle, Follower follower)
    cdef accept_by(self, object handle, Acceptor acceptor)
    cdef bint tell_followers(self) noexcept
    cdef Tcb *take_ready(self) noexcept
    cdef bint serve(self, Tcb *c) noexcept
    cdef bint pass_on(self, Tcb *c) noexcept
    cdef void told(self, Tcb *c) noexcept
    cpdef set_held(self, object handle, int count)
    cpdef abort(self, object handle)
    cpdef release(self, object handle)
    cpdef bytes ends(self, object handle)
    cdef Tcb *_at(self, object handle)
    cdef Tcb *_any(self, uint64_t handle) noexcept
    cdef _abort(self, Tcb *c)
    cdef Listener *_listener(self, object handle)
    cdef _start_listener(self, Listener *x, int index, Addr *local, int port, int backlog, bint any_family)
    cdef _resolve(self, Tcb *c, str host, Addr *bound)
    cdef _choose_port(self, Tcb *c, int source_port)
    cdef _consumed(self, Tcb *c, uint32_t n)                    # n octets at the head of `receive` were taken
    cdef uint32_t _reserve(self, Tcb *c, uint32_t n) noexcept   # room at the end of `send`, n octets at most; how many
    cdef void _queued(self, Tcb *c, uint32_t n, bint more) noexcept    # so many were put there; WRITABLE follows if short
    cdef _let_go(self, Tcb *c)
