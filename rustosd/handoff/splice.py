"""Moves octets between a client's socketpair and the stack, a burst at a time, without Python objects in between.

A stream is copied once each way: recvmsg(2) straight into the send ring, sendmsg(2) straight out of the receive ring. What
does not fit stays where it is: unread octets in the receive ring close the peer's window, unsent ones in the socketpair
make the client's writes block.

How the client learns of a reset: an AF_UNIX stream whose other end is closed while octets wait in that end's queue gets
ECONNRESET, else EOF. So the last octet the client has written is peeked at, passed on, and left in our queue ("held")
until the next ones come; whoever makes the pair puts a first one there, or who accepts the connection. Small messages are
peeked at and left as a whole, and taken out several at a time (SO_PEEK_OFF): one system call for each instead of three.

Our ends are watched by edge-triggered epoll: a held octet would otherwise count as readable for ever. Epoll tells of room only
where there once was none: else every read of a client's would be an event for us.
"""

import errno

import cython
import structlog
from cython.cimports.libc.errno import EAGAIN, ECONNRESET, EPIPE
from cython.cimports.libc.errno import errno as c_errno
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.mm.hw import get16, put16
from cython.cimports.netstack.net import Packet
from cython.cimports.netstack.tcp.ring import ring_parts, ring_put
from cython.cimports.netstack.tcp.state import CLOSED
from cython.cimports.netstack.tcp.tcb import F_FIN_QUEUED, Tcb
from cython.cimports.netstack.udp import UdpEndpoint, udp_drop, udp_first, udp_send, udp_send_from, udp_speaks_to
from cython.cimports.netstack.wire.address import Addr, is_unspecified
from cython.cimports.posix.uio import iovec
from cython.cimports.rustosd.epoll import (
    EPOLL_CTL_MOD, EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, epoll_ctl, epoll_event)

from netstack.errors import unsent_error
from netstack.tcp import api

if not cython.compiled:
    raise ImportError("rustosd.handoff.splice must be compiled: python setup.py build_ext --inplace")

EVENT_WRITABLE = cython.declare(cython.int, api.EVENT_WRITABLE)
EVENT_EOF = cython.declare(cython.int, api.EVENT_EOF)
EVENT_CLOSED = cython.declare(cython.int, api.EVENT_CLOSED)

log = structlog.get_logger(__name__)

# One datagram on its way out, or octets nobody wants; the loop's thread alone uses it.
scratch = cython.declare(uint8_t[DATAGRAM_MOST])


@cython.final
@cython.cclass
class StreamSplice:
    """One connection of TCP and the daemon's end of the stream socketpair whose other end a client has.

    It is what `AsyncStack.connections` has for the handle. The owner is told once how it ends: `settle(ending, errno)`.
    """

    def __init__(self, tcp: Tcp, handle: int, fd: int, owner: object, chaff: int = 0, untaken: cython.bint = False):
        """`fd` is non-blocking and stays the owner's; its queue has `chaff` octets to be dropped, then the held one.

        `untaken`: that one comes when a program accepts the connection, of which the owner is told by `was_taken()`.
        """
        self.tcp = tcp
        self.handle = handle
        self.fd = fd
        self.owner = owner
        self.chaff = chaff
        self.epoll = -1
        self.held = not untaken     # of which epoll tells when it is asked to watch
        self.flags = UNTAKEN if untaken else 0
        tcp.follow(handle, self)

    def _event(self, bits: int, error: int) -> None:
        """News of the connection from before it was followed."""
        self.heard(bits, error)
        self.owner.kick()

    @cython.cfunc
    @cython.exceptval(check=False)
    def heard(self, news: cython.int, error: cython.int) -> cython.void:
        """News of the connection."""
        if news & EVENT_WRITABLE:
            self.flags &= ~cython.cast(uint32_t, T_FULL)
        if news & EVENT_EOF:
            self.flags |= T_EOF
        if news & EVENT_CLOSED:
            self.flags |= T_CLOSED
            self.error = error
        self.move()

    @cython.cfunc
    @cython.exceptval(check=False)
    def wanted(self, epoll: cython.int) -> uint32_t:
        """What `epoll` is to tell of our end."""
        self.epoll = epoll
        return _wanted(self.flags)

    @cython.cfunc
    @cython.exceptval(check=False)
    def wake(self, told: uint32_t) -> cython.void:
        """What epoll tells of our end."""
        if self.flags & UNTAKEN and self.taken():
            try:
                self.owner.was_taken()
            except Exception:
                log.exception("handoff_failed", descriptor=self.fd)
        self.flags |= C_NEWS
        if told & EPOLLOUT:
            self.flags &= ~cython.cast(uint32_t, C_FULL)
        if told & (EPOLLRDHUP | EPOLLHUP):
            self.flags |= C_SHUT
        if told & EPOLLHUP:
            self.flags |= C_GONE
        if told & EPOLLERR:
            self.flags |= C_BROKEN
        self.move()

    @cython.ccall
    @cython.exceptval(check=False)
    def taken(self) -> cython.bint:
        """Whether a program has accepted it."""
        if self.flags & UNTAKEN and _unread(self.fd):
            self.flags &= ~cython.cast(uint32_t, UNTAKEN)
            self.held = 1
        return not self.flags & UNTAKEN

    def _deliver(self) -> None:
        """Go on."""
        self.move()

    @cython.cfunc
    @cython.exceptval(check=False)
    def move(self) -> cython.void:
        try:
            self.deliver()
        except Exception:
            log.exception("handoff_failed", descriptor=self.fd)

    @cython.cfunc
    def deliver(self):
        """Move what can be moved, both ways, and see whether that was the end of it."""
        c: cython.pointer[Tcb]
        more: cython.bint
        ending: cython.int = GOES_ON
        if self.flags & ENDED:
            return
        c = self.tcp._at(self.handle)
        if self.flags & C_BROKEN or self.flags & (C_GONE | UNTAKEN) == C_GONE | UNTAKEN:
            ending = ABORT
        else:
            more = self.push(c)
            if self.flags & (C_NEWS | T_FULL | UNTAKEN) == C_NEWS and self.pull(c):
                more = True
            if self.flags & C_BROKEN:
                ending = ABORT
            elif self.flags & C_GONE:
                if c.receive.used and c.state != CLOSED:
                    ending = ABORT
                elif self.flags & (T_CLOSED | FIN_SENT):
                    ending = RELEASE
            elif self.flags & T_CLOSED and c.receive.used == 0:
                ending = RESET if self.error and not self.flags & T_EOF else RELEASE
        if ending != GOES_ON:
            self.flags |= ENDED
            self.owner.settle(ending, self.error)
        elif more:
            self.owner.again(self)
        elif self.flags & C_GONE:
            self.owner.orphaned()

    @cython.cfunc
    def push(self, c: cython.pointer[Tcb]) -> cython.bint:
        """From the receive ring to the client; whether more would go."""
        moved: uint32_t = 0
        n: uint32_t
        while c.receive.used and moved < MOST and not self.flags & (C_FULL | C_GONE):
            n = min(c.receive.used, MOST - moved)
            if not self.flags & C_DEAF:
                n = cython.cast(uint32_t, self.give(c, n))
            if n == 0:
                break
            self.tcp._consumed(c, n)
            moved += n
        if moved:
            self.tcp.touched = True     # the window may have opened
        if self.flags & (T_EOF | EOF_SENT) == T_EOF and c.receive.used == 0:
            self.flags |= EOF_SENT
            shutdown(self.fd, SHUT_WR)
        return c.receive.used != 0 and not self.flags & (C_FULL | C_GONE)

    @cython.cfunc
    def give(self, c: cython.pointer[Tcb], n: uint32_t) -> cython.Py_ssize_t:
        """Up to n octets from the head of the receive ring; how many went. Where memory is short none do, this time."""
        parts: iovec[2]
        message: msghdr
        sent: cython.Py_ssize_t
        failed: cython.int
        first: cython.pointer[cython.const[uint8_t]]
        second: cython.pointer[cython.const[uint8_t]]
        length: uint32_t = ring_parts(cython.address(c.receive), 0, n, cython.address(first), cython.address(second))
        if length == n:
            with cython.nogil:
                sent = send(self.fd, first, n, MSG_DONTWAIT | MSG_NOSIGNAL)
                failed = c_errno
        else:
            memset(cython.address(message), 0, cython.sizeof(msghdr))
            parts[0].iov_base = cython.cast(cython.p_void, first)
            parts[0].iov_len = length
            parts[1].iov_base = cython.cast(cython.p_void, second)
            parts[1].iov_len = n - length
            message.msg_iov = parts
            message.msg_iovlen = 2
            with cython.nogil:
                sent = sendmsg(self.fd, cython.address(message), MSG_DONTWAIT | MSG_NOSIGNAL)
                failed = c_errno
        if sent == n:
            return sent
        if sent >= 0 or failed == EAGAIN:
            self.flags = _await_room(self.epoll, self.fd, self.flags | C_FULL)
        elif failed in (EPIPE, ECONNRESET):
            self.flags |= C_GONE | C_SHUT if self.client_is_gone() else C_DEAF
        return max(sent, 0)

    @cython.cfunc
    def client_is_gone(self) -> cython.bint:
        """Told from a client that has only shut down its receiving side."""
        look: pollfd
        look.fd = self.fd
        look.events = 0
        look.revents = 0
        poll(cython.address(look), 1, 0)
        return look.revents & POLLHUP != 0

    @cython.cfunc
    def pull(self, c: cython.pointer[Tcb]) -> cython.bint:
        """From the client to the send ring; whether more would go."""
        more: cython.bint
        if self.flags & (FIN_SENT | T_CLOSED) or c.state == CLOSED or c.flags & F_FIN_QUEUED:
            return False
        if self.chaff:
            self.drop_chaff()
        more = self.pull_much(c) if self.flags & IN_BULK else self.pull_few(c)
        if self.flags & (C_NEWS | C_SHUT) == C_SHUT:
            self.flags |= FIN_SENT
            self.tcp.shutdown(self.handle)
            self.tcp.touched = True
        return more

    @cython.cfunc
    def pull_few(self, c: cython.pointer[Tcb]) -> cython.bint:
        """What there is, if it is little; it stays in our queue for a while. As `pull`."""
        got: cython.Py_ssize_t
        goes_on: cython.bint = False
        if self.tcp._reserve(c, FEW) < FEW:
            return self.pull_much(c)
        got = self.peek(cython.address(goes_on))
        if got > 0:
            ring_put(cython.address(c.send), c.send.used, scratch, cython.cast(uint32_t, got))
            self.tcp._queued(c, cython.cast(uint32_t, got), False)
            self.tcp.touched = True
            if got == FEW:
                self.flags |= IN_BULK
                return self.pull_much(c)
        if goes_on:
            return True
        self.flags &= ~cython.cast(uint32_t, C_NEWS)        # epoll tells of whatever has come since
        if self.held > HELD_MOST or self.peeks >= PEEKS_MOST:
            self.drop_held()
        elif self.held > 1 and not self.flags & (TIDIED_LATER | C_SHUT):
            self.flags |= TIDIED_LATER
            self.owner.tidy_later(self)
        return False

    @cython.cfunc
    @cython.exceptval(check=False)
    def peek(self, goes_on: cython.pointer[cython.bint]) -> cython.Py_ssize_t:
        """At most FEW octets that were not passed on yet, to `scratch`; how many.

        It may go on where the client has sent descriptors along: the kernel stops there, and drops them.
        """
        parts: iovec[2]
        message: msghdr
        got: cython.Py_ssize_t
        octet: uint8_t
        before: uint32_t
        if self.held > 1 and not self.flags & PEEKS:
            self.skip_held()
        before = 0 if self.flags & PEEKS else self.held     # a single one, which is cheaper to read again than to skip
        memset(cython.address(message), 0, cython.sizeof(msghdr))
        message.msg_iov = parts
        message.msg_iovlen = 2
        parts[0].iov_base = cython.address(octet)
        parts[0].iov_len = before
        parts[1].iov_base = scratch
        parts[1].iov_len = FEW
        got = recvmsg(self.fd, cython.address(message), MSG_DONTWAIT | MSG_PEEK)
        if got > 0:
            got -= before
            goes_on[0] = message.msg_flags & MSG_CTRUNC != 0
            if got == 0 and goes_on[0]:     # they came with the held octet
                self.skip_held()
        if got < 0 and c_errno == ECONNRESET:       # told once, to whoever asks first: epoll will not
            self.flags |= C_BROKEN
        if got > 0:
            self.held += cython.cast(uint32_t, got)
            self.peeks += 1
        return got

    @cython.cfunc
    @cython.exceptval(check=False)
    def skip_held(self) -> cython.void:
        """Have the kernel count what was peeked at, from here on."""
        self.flags |= PEEKS
        setsockopt(self.fd, SOL_SOCKET, SO_PEEK_OFF, cython.address(self.held), cython.sizeof(uint32_t))

    @cython.cfunc
    @cython.exceptval(check=False)
    def drop_held(self) -> cython.void:
        """But for the last octet."""
        got: cython.Py_ssize_t
        if self.held > 1:
            got = recv(self.fd, scratch, self.held - 1, MSG_DONTWAIT)
            if got > 0:
                self.held -= cython.cast(uint32_t, got)
        self.peeks = 0

    @cython.ccall
    def tidy(self):
        """Make room in the client's end: who uses many tiny messages may wait for what only held ones take."""
        self.flags &= ~cython.cast(uint32_t, TIDIED_LATER)
        if not self.flags & ENDED:
            self.drop_held()

    @cython.cfunc
    def pull_much(self, c: cython.pointer[Tcb]) -> cython.bint:
        """As `pull`, straight into the send ring."""
        moved: uint32_t = 0
        queued: cython.int
        want: uint32_t
        room: uint32_t
        while moved < MOST_OUT:
            queued = _unread(self.fd) - self.held
            if queued <= 0:
                self.flags &= ~cython.cast(uint32_t, C_NEWS)
                break
            want = min(cython.cast(uint32_t, queued), MOST_OUT - moved)
            room = self.tcp._reserve(c, want)
            want -= room
            if room:
                room = self.take(c, room, room == cython.cast(uint32_t, queued))
                if room == 0:
                    return True
            self.tcp._queued(c, room, want != 0)
            moved += room
            if want:
                self.flags |= T_FULL
                break
            queued -= room
            if queued == 0:         # epoll tells of whatever has come since we asked how many
                self.flags &= ~cython.cast(uint32_t, C_NEWS)
                break
        if moved:
            self.tcp.touched = True
        if moved < FEW:
            self.flags &= ~cython.cast(uint32_t, IN_BULK)
        return moved >= MOST_OUT and not self.flags & T_FULL

    @cython.cfunc
    def take(self, c: cython.pointer[Tcb], n: uint32_t, whole: cython.bint) -> cython.int:
        """n octets from our queue to the end of the send ring; if that is the `whole` queue, the last one stays there too."""
        got: cython.Py_ssize_t
        last: uint8_t
        leave: uint32_t = n - 1 if whole else n
        if leave + self.held:
            got = self.receive(c, leave)
            if got <= 0:
                return 0
            if got < self.held:
                self.held -= cython.cast(uint32_t, got)
                return 0
            got -= self.held
            self.held = self.peeks = 0
            if got < leave:         # the client has sent descriptors along: the kernel stops there, and drops them
                return got
        if not whole:
            return n
        if recv(self.fd, cython.address(last), 1, MSG_DONTWAIT | MSG_PEEK) != 1:
            return n - 1
        ring_put(cython.address(c.send), c.send.used + n - 1, cython.address(last), 1)
        self.held = 1
        return n

    @cython.cfunc
    def receive(self, c: cython.pointer[Tcb], n: uint32_t) -> cython.Py_ssize_t:
        """The held octets, and n to the end of the send ring; how many those were together."""
        parts: iovec[3]
        message: msghdr
        got: cython.Py_ssize_t
        failed: cython.int
        count: cython.size_t = 0
        first: cython.pointer[cython.const[uint8_t]]
        second: cython.pointer[cython.const[uint8_t]]
        length: uint32_t = ring_parts(cython.address(c.send), c.send.used, n, cython.address(first),
                                      cython.address(second))
        memset(cython.address(message), 0, cython.sizeof(msghdr))
        message.msg_iov = parts
        if self.held:
            parts[0].iov_base = scratch
            parts[0].iov_len = self.held
            count = 1
        parts[count].iov_base = cython.cast(cython.p_void, first)
        parts[count].iov_len = length
        count += 1
        if n > length:
            parts[count].iov_base = cython.cast(cython.p_void, second)
            parts[count].iov_len = n - length
            count += 1
        message.msg_iovlen = count
        with cython.nogil:
            got = recvmsg(self.fd, cython.address(message), MSG_DONTWAIT)
            failed = c_errno
        if got < 0 and failed == ECONNRESET:
            self.flags |= C_BROKEN
        return got

    @cython.cfunc
    def drop_chaff(self) -> cython.void:
        """The handshake is done: let the client write."""
        part: iovec
        message: msghdr
        got: cython.Py_ssize_t
        memset(cython.address(message), 0, cython.sizeof(msghdr))
        message.msg_iov = cython.address(part)
        message.msg_iovlen = 1
        part.iov_base = scratch
        while self.chaff:
            part.iov_len = min(self.chaff, cython.cast(uint32_t, DATAGRAM_MOST))
            got = recvmsg(self.fd, cython.address(message), MSG_DONTWAIT)
            self.chaff = self.chaff - cython.cast(uint32_t, got) if got > 0 else 0

    @cython.ccall
    def clear(self):
        """Empty our queue, so that closing `fd` is EOF for the client and no reset."""
        if recv(self.fd, scratch, DATAGRAM_MOST, MSG_DONTWAIT) != self.held:
            _empty(self.fd)

    def waiting(self) -> int:
        """Octets of the client that are not in the send ring yet."""
        return max(0, _unread(self.fd) - self.held)

    def close(self) -> None:
        """The stack closes: what is in the send ring still goes out."""
        if not self.flags & ENDED:
            self.flags |= ENDED
            self.owner.settle(RELEASE, 0)

    def abort(self) -> None:
        """The stack closes at once: both ends see a reset."""
        if not self.flags & ENDED:
            self.flags |= ENDED
            self.owner.settle(ABORT, errno.ECONNABORTED)


@cython.cfunc
@cython.exceptval(check=False)
def _wanted(flags: uint32_t) -> uint32_t:
    return cython.cast(uint32_t, EPOLLIN | EPOLLRDHUP | (EPOLLOUT if flags & C_ASKED else 0)) | cython.cast(uint32_t, EPOLLET)


@cython.cfunc
@cython.exceptval(check=False)
def _await_room(epoll: cython.int, fd: cython.int, flags: uint32_t) -> uint32_t:
    """Have epoll tell when there is room; it does at once if there is by now. The flags that are true then."""
    event: epoll_event
    if not flags & C_ASKED:
        flags |= C_ASKED
        event.data.fd = fd
        event.events = _wanted(flags)
        if epoll >= 0:
            epoll_ctl(epoll, EPOLL_CTL_MOD, fd, cython.address(event))
    return flags


@cython.cfunc
@cython.exceptval(check=False)
def _unread(fd: cython.int) -> cython.int:
    """Octets that wait to be read."""
    queued: cython.int = 0
    ioctl(fd, FIONREAD, cython.address(queued))
    return queued


@cython.cfunc
def _empty(fd: cython.int) -> cython.void:
    part: iovec
    message: msghdr
    _k: cython.int
    memset(cython.address(message), 0, cython.sizeof(msghdr))
    message.msg_iov = cython.address(part)
    message.msg_iovlen = 1
    part.iov_base = scratch
    part.iov_len = DATAGRAM_MOST
    for _k in range(64):
        if recvmsg(fd, cython.address(message), MSG_DONTWAIT) <= 0:
            return


@cython.final
@cython.cclass
class DatagramSplice:
    """One UDP endpoint and the daemon's end of the seqpacket socketpair whose other end a client has.

    Every datagram travels behind HEADER octets: the other host's address and port, an errno instead of data where one is to be
    reported, and our address. It is what `AsyncStack.endpoints` has for the endpoint.
    """

    def __init__(self, udp: Udp, endpoint: int, fd: int, owner: object):
        self.udp = udp
        self.endpoint = endpoint
        self.fd = fd
        self.owner = owner
        self.epoll = -1
        self.flags = C_NEWS

    def _deliver(self) -> None:
        """Move what can be moved, both ways."""
        e: cython.pointer[UdpEndpoint]
        more: cython.bint
        if self.flags & C_GONE:
            return
        e = cython.address(self.udp.table.endpoints[self.udp._at(self.endpoint)])
        if e.error and not self.error:
            self.error = self.udp.error(self.endpoint).errno
        more = self.push(e)
        if self.flags & C_NEWS and self.pull(e):    # unasked we would hear what came after things we have not heard of
            more = True
        if self.error and not self.flags & C_FULL:
            more |= self.push(e)
        if self.flags & C_GONE:
            self.owner.gone()
        elif more:
            self.owner.again(self)

    @cython.cfunc
    @cython.exceptval(check=False)
    def wanted(self, epoll: cython.int) -> uint32_t:
        """What `epoll` is to tell of our end."""
        self.epoll = epoll
        return _wanted(self.flags)

    @cython.cfunc
    def wake(self, told: uint32_t) -> cython.void:
        """What epoll tells of our end."""
        self.flags |= C_NEWS
        if told & EPOLLOUT:
            self.flags &= ~cython.cast(uint32_t, C_FULL)
        if told & (EPOLLHUP | EPOLLERR):
            self.flags |= C_SHUT
        self._deliver()

    @cython.cfunc
    def push(self, e: cython.pointer[UdpEndpoint]) -> cython.bint:
        """From the endpoint's queue to the client; whether more would go."""
        p: cython.pointer[Packet]
        _k: cython.int
        if self.error and not self.flags & (C_FULL | C_SHUT) and self.give(
                cython.address(e.remote), e.remote_port, self.error, cython.address(e.local), cython.NULL, 0):
            self.error = 0
        for _k in range(DATAGRAMS_MOST):
            p = udp_first(e)
            if p == cython.NULL or self.flags & (C_FULL | C_SHUT):
                return False
            if self.give(cython.address(p.source), p.port, 0, cython.address(p.destination), p.octets, p.length):
                udp_drop(e)
        return True

    @cython.cfunc
    def give(self, source: cython.pointer[cython.const[Addr]], port: uint16_t, error: cython.int,
             ours: cython.pointer[cython.const[Addr]], data: cython.pointer[cython.const[uint8_t]], n: uint32_t) -> cython.int:
        """One datagram to the client; whether it is dealt with. What does not fit its buffer, or memory, is lost."""
        header: uint8_t[HEADER]
        parts: iovec[2]
        message: msghdr
        sent: cython.Py_ssize_t
        failed: cython.int
        memcpy(header, source.octets, 16)
        put16(cython.address(header[16]), port)
        put16(cython.address(header[18]), cython.cast(uint16_t, error))
        memcpy(cython.address(header[20]), ours.octets, 16)
        memset(cython.address(message), 0, cython.sizeof(msghdr))
        parts[0].iov_base = header
        parts[0].iov_len = HEADER
        parts[1].iov_base = cython.cast(cython.p_void, data)
        parts[1].iov_len = n
        message.msg_iov = parts
        message.msg_iovlen = 2 if n else 1
        with cython.nogil:
            sent = sendmsg(self.fd, cython.address(message), MSG_DONTWAIT | MSG_NOSIGNAL)
            failed = c_errno
        if sent >= 0:
            return True
        if failed == EAGAIN:
            self.flags = _await_room(self.epoll, self.fd, self.flags | C_FULL)
        elif failed in (EPIPE, ECONNRESET):
            self.flags |= C_SHUT
        else:
            return True
        return False

    @cython.cfunc
    def pull(self, e: cython.pointer[UdpEndpoint]) -> cython.bint:
        """From the client to the network; whether more would go."""
        part: iovec
        message: msghdr
        got: cython.Py_ssize_t
        _k: cython.int
        verdict: cython.int
        sent: cython.bint = False
        memset(cython.address(message), 0, cython.sizeof(msghdr))
        message.msg_iov = cython.address(part)
        message.msg_iovlen = 1
        part.iov_base = scratch
        part.iov_len = DATAGRAM_MOST
        for _k in range(DATAGRAMS_MOST):
            with cython.nogil:
                got = recvmsg(self.fd, cython.address(message), MSG_DONTWAIT)
            if got == 0 and _unread(self.fd):       # a packet of nothing, which no library of ours sends
                continue
            if got <= 0:
                self.flags &= ~cython.cast(uint32_t, C_NEWS)
                if self.flags & C_SHUT:
                    self.flags |= C_GONE        # and what it had sent is sent
                break
            verdict = self.forward(e, scratch, cython.cast(cython.p_char, scratch) + HEADER, got - HEADER)
            if verdict > 0:
                failed = unsent_error(verdict).errno
                if failed == errno.EAGAIN:      # the device is behind: this one is lost, the others wait
                    break
                self.error = failed
            elif verdict < 0:
                self.error = -verdict
            sent = True
        if sent:
            self.owner.kick()
        return got > 0

    @cython.cfunc
    def forward(self, e: cython.pointer[UdpEndpoint], header: cython.pointer[cython.const[uint8_t]],
                data: cython.pointer[cython.const[cython.char]], n: cython.Py_ssize_t) -> cython.int:
        """Send one datagram; 0, the Verdict it was dropped for, or an errno below zero."""
        to: Addr
        source: Addr
        port: uint16_t
        if n < 0:
            return -errno.EINVAL
        if n == DATAGRAM_MOST - HEADER:
            return -errno.EMSGSIZE
        memcpy(to.octets, header, 16)
        port = get16(header + 16)
        if port == 0 and is_unspecified(cython.address(to)):
            if e.remote_port == 0:
                return -errno.EDESTADDRREQ
            to = e.remote
            port = e.remote_port
        elif port == 0:
            return -errno.EINVAL
        if not udp_speaks_to(e, cython.address(to)):
            return -errno.EAFNOSUPPORT
        if self.policed and not self.owner.may_send(cython.cast(cython.p_char, to.octets)[:16], port):
            return -errno.EACCES
        memcpy(source.octets, header + 20, 16)
        if is_unspecified(cython.address(source)):
            return udp_send(cython.address(self.udp.table), e, cython.address(to), port, data, n)
        return udp_send_from(cython.address(self.udp.table), e, cython.address(source), cython.address(to), port, data, n)

    def close(self) -> None:
        """The stack closes: the client sees EOF."""
        if not self.flags & C_GONE:
            self.flags |= C_GONE
            self.owner.gone()

    abort = close
