# The daemon's ends of socketpairs, joined to TCP's rings and UDP's queues.
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from netstack.tcp.api cimport Follower, Tcp
from netstack.tcp.tcb cimport Tcb
from netstack.udp cimport Udp, UdpEndpoint
from netstack.wire.address cimport Addr
from rustosd.epoll cimport epoll_event
from rustosd.sockets cimport (
    MSG_CTRUNC, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_PEEK, SHUT_WR, SO_PEEK_OFF, SOL_SOCKET, msghdr, recv, recvmsg, send, sendmsg,
    setsockopt, shutdown)

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)
    enum: FIONREAD

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout_ms)
    enum: POLLHUP

# How far two ends of a socket have come.
cdef enum:
    C_SHUT = 0x0001             # the client has shut down its sending side (or is gone): EOF follows what is queued
    C_GONE = 0x0002             # no process holds the client's end any more, or it was shut down both ways
    C_BROKEN = 0x0004           # ... and something it had not read was lost with it
    C_DEAF = 0x0008             # the client has shut down its receiving side
    C_FULL = 0x0010             # the client's end takes no more until it has read
    T_FULL = 0x0020             # the connection's send ring takes no more until the peer has acknowledged
    T_EOF = 0x0040              # the peer's FIN is known and everything before it was read
    T_CLOSED = 0x0080           # the connection is over
    FIN_SENT = 0x0100           # the client's EOF was passed on
    EOF_SENT = 0x0200           # the peer's EOF was passed on
    PEEKS = 0x0400              # the kernel counts what was peeked at: the next look is at what comes after that
    IN_BULK = 0x4000            # the client writes much at a time: to peek at it would be to copy it twice
    TIDIED_LATER = 0x8000       # the owner will have `tidy` called
    C_NEWS = 0x1000             # epoll told something since our queue was found empty
    C_ASKED = 0x2000            # epoll was asked to tell when there is room in the client's end
    UNTAKEN = 0x10000           # nobody has accepted it yet: its client writes the octet that is held then
    ENDED = 0x0800              # the owner was told

cpdef enum Ending:
    GOES_ON = 0
    RELEASE                     # both sides are through: FIN, if there was none, and a plain close
    ABORT                       # the client left without having read everything: the peer must see RST
    RESET                       # the connection ended with an error: the client must see ECONNRESET

cdef enum:
    FEW = 2048                  # octets that are rather copied twice than received into several places
    HELD_MOST = 8192            # octets that were passed on and stay in our queue ...
    PEEKS_MOST = 16             # ... and messages of them
    MOST = 262144               # octets one connection moves to its client before others get their turn
    MOST_OUT = 1048576          # ... and from it: as many as fill a send ring, which makes the fewest segments of them
    DATAGRAMS_MOST = 64
    HEADER = 36                 # before each datagram on the pair: see rustosd.client.wire
    DATAGRAM_MOST = 65564       # octets that cross the pair at once, header included, and one to tell that it was more

cdef class StreamSplice(Follower):
    cdef Tcp tcp
    cdef readonly object handle
    cdef readonly int fd
    cdef readonly object owner  # has settle(ending, errno), again(splice), tidy_later(splice) and kick()
    cdef int epoll              # that tells of our end; -1: none yet
    cdef uint32_t flags
    cdef uint32_t held          # octets at the head of our queue that were passed on already
    cdef uint32_t peeks         # messages they came in
    cdef uint32_t chaff         # octets at the head of our queue that only kept the client from writing
    cdef int error
    cdef uint32_t wanted(self, int epoll) noexcept
    cdef void wake(self, uint32_t told) noexcept
    cpdef bint taken(self) noexcept
    cdef void move(self) noexcept
    cdef deliver(self)
    cdef bint push(self, Tcb *c)
    cdef Py_ssize_t give(self, Tcb *c, uint32_t n)
    cdef bint pull(self, Tcb *c)
    cdef bint pull_few(self, Tcb *c)
    cdef bint pull_much(self, Tcb *c)
    cdef Py_ssize_t peek(self, bint *goes_on) noexcept
    cdef void skip_held(self) noexcept
    cdef void drop_held(self) noexcept
    cdef int take(self, Tcb *c, uint32_t n, bint all_of_it)
    cdef Py_ssize_t receive(self, Tcb *c, uint32_t n)
    cdef void drop_chaff(self)
    cdef bint client_is_gone(self)
    cpdef tidy(self)
    cpdef clear(self)

cdef class DatagramSplice:
    cdef Udp udp
    cdef readonly int endpoint
    cdef readonly int fd
    cdef object owner           # has again(splice), gone(), kick() and may_send(address, port)
    cdef public bint policed    # the owner is asked about every datagram of the client
    cdef int epoll
    cdef uint32_t flags
    cdef int error              # errno the client is to be told
    cdef uint32_t wanted(self, int epoll) noexcept
    cdef void wake(self, uint32_t told)
    cdef bint push(self, UdpEndpoint *e)
    cdef bint pull(self, UdpEndpoint *e)
    cdef int give(self, const Addr *source, uint16_t port, int error, const Addr *ours, const uint8_t *data, uint32_t n)
    cdef int forward(self, UdpEndpoint *e, const uint8_t *header, const char *data, Py_ssize_t n)
