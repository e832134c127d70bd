"""TCP sockets of supervised programs. The program holds one end of a stream socketpair, the daemon the other.

A connect fills the program's end first ("chaff"), so that it becomes writable when the handshake is done and not before: poll
and epoll tell the truth. A listening socket is readable while accepted connections lie in it as descriptors.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import cython
from cython.cimports.rustosd.descriptors import close_descriptor, receive_with
from cython.cimports.rustosd.process.accepted import Accepted
from cython.cimports.rustosd.process.call import Call
from cython.cimports.rustosd.process.threads import inode_of

from rustosd.client.sock import SNDBUF_LEAST
from rustosd.client.wire import ACCEPTED, TAKEN, unpack_address
from rustosd.descriptors import send_now
from rustosd.process.sockaddr import Endpoint
from rustosd.process.sockets import (
    ANY,
    CLOSE_ON_EXEC,
    LOOPBACK,
    NON_BLOCKING,
    GuestSocket,
    Loop,
    State,
    Table,
    error,
)

if not cython.compiled:
    raise ImportError("rustosd.process.streams must be compiled: python setup.py build_ext --inplace")

_CHAFF: Final = bytes(32768)
_ACCEPTED_OCTETS = cython.declare(cython.int, ACCEPTED.size)
_ID_OCTETS = cython.declare(cython.int, 8)
_SPARES_LEAST: Final = 24                   # more than travel at a time
_MANY: Final = 8                            # connections within this time make it worth while to have descriptors ahead
_MANY_WITHIN_NS: Final = 250_000_000
_NON_BLOCKING = cython.declare(cython.int, NON_BLOCKING)
_CLOSE_ON_EXEC = cython.declare(cython.int, CLOSE_ON_EXEC)
_AF_INET = cython.declare(cython.int, socket.AF_INET)
_FAMILY_4: Final = struct.pack("=H", socket.AF_INET)
_FAMILY_6: Final = struct.pack("=H", socket.AF_INET6)


class StreamSocket(GuestSocket):
    """One TCP socket."""

    kind, protocol = socket.SOCK_STREAM, socket.IPPROTO_TCP

    _bound: Mapping[str, bool] = MappingProxyType({})       # it is to that port, which the daemon has not heard of
    _watched: socket.socket | None = None                   # a duplicate, while a connect that nobody waits for is under way
    _told: Mapping[str, int] = MappingProxyType({})         # options that the daemon has not heard of
    _untold = False                                         # ... and it is over since, and no other connect was told
    _returned: tuple[tuple[bytes, int], ...] = ()           # accepted for a call that was over by then
    _spares: dict[bytes, int] | None = None                 # descriptors for the next connections, by their ids
    _spares_least = _SPARES_LEAST                           # with fewer more are asked for
    _came = 0                                               # connections whose descriptor came with them, since ...
    _came_since = 0                                         # ... then (monotonic, ns)

    def __init__(self, loop: Loop, table: Table, family: int, identity: str, inode: int, buffer: int, port: int = 0) -> None:
        """`port`: the daemon keeps it for when the program wants any; 0: none."""
        GuestSocket.__init__(self, loop, family, identity, inode)
        self._table, self._buffer, self._port = table, buffer, port

    @classmethod
    def open(cls, loop: Loop, table: Table, family: int) -> tuple[StreamSocket, int]:
        """A new socket and the program's descriptor for it. Raises OSError."""
        made = loop.link.open("stream", 4 if family == socket.AF_INET else 6)
        return cls(loop, table, family, made.identity, made.inode, made.buffer, made.port), made.fd

    def made_of(self, accepted: Accepted) -> StreamSocket:
        """The socket of a connection that was accepted from this one; it takes its place in the table."""
        identity, remote, remote_port, local, local_port = ACCEPTED.unpack(accepted.ends)
        one = StreamSocket(self.loop, self._table, self.family, identity.hex(), accepted.inode, self._buffer)
        one.state, one.options = State.CONNECTED, accepted.options
        one.remote = Endpoint(unpack_address(remote), remote_port)
        one.local = Endpoint(unpack_address(local), local_port)
        self._table.add(one)
        return one

    def tell(self, option: str, value: int) -> None:
        if self.state == State.NEW:
            self._told = {**self._told, option: value}      # early enough with the next question
        else:
            super().tell(option, value)

    def _take_told(self) -> dict[str, int]:
        told, self._told = dict(self._told), {}
        return told

    # opening

    def bind(self, call: Call, endpoint: Endpoint) -> None:
        if self.state == State.FAILED:
            self._reopen(call)
        v6only = self.v6only
        if endpoint == (ANY[self.family], 0) and self._port and self.local is None:
            self._bound = {"bound": True, "v6only": v6only}
            self.local = Endpoint(ANY[self.family], self._port)
            return call.answer()
        if self._bound:
            raise error(errno.EINVAL)
        self.note_names(self.ask("bind", host=endpoint.host, port=endpoint.port, v6only=v6only, options=dict(self._told)))
        self._told = {}         # a bind that is denied tells nobody
        self.loop.link.want_ports |= not endpoint.port
        call.answer()

    def connect(self, call: Call, endpoint: Endpoint | None) -> None:
        self.settle()
        if endpoint is None:
            if self.state == State.NEW:
                return call.answer()
            raise error(errno.EINVAL)
        if self._untold:
            return self._tell_late(call)
        if self.state in (State.CONNECTED, State.LISTENING):
            raise error(errno.EISCONN)
        if self.state == State.CONNECTING:
            return self._connecting(call)
        if self.state == State.FAILED:
            self._reopen(call)
        host = LOOPBACK[self.family] if endpoint.host == ANY[self.family] else endpoint.host
        end = socket.socket(fileno=call.borrow(self.inode))
        try:
            blocking = not _non_blocking(end)
            chaff = _stuff(end, blocking)
            self.note_names(self.ask("connect", host=host, port=endpoint.port, chaff=chaff, options=self._take_told(),
                                     **self._bound))
        except BaseException:
            end.close()
            self.state = State.FAILED       # the chaff is still in it
            raise
        self.state = State.CONNECTING
        if not blocking:
            self._watched = end
            self.loop.watch(end.fileno(), select.EPOLLOUT, self._news)
            return call.refuse(errno.EINPROGRESS)
        self._wait(call, end)

    def _tell_late(self, call: Call) -> None:
        """The next connect after one that nobody waited for is told how that went, as in Linux."""
        self._untold = False
        if self.state == State.CONNECTED:
            return call.answer()
        failed, self.error = self.error or errno.ECONNABORTED, 0
        raise error(failed)

    def _connecting(self, call: Call) -> None:
        """Asked again, while it is under way: who waits was interrupted by a signal, and goes on."""
        end = socket.socket(fileno=call.borrow(self.inode))
        if _non_blocking(end):
            end.close()
            raise error(errno.EALREADY)
        self._wait(call, end)

    def _wait(self, call: Call, end: socket.socket) -> None:
        number = end.detach()

        def attempt(events: int) -> bool:
            if self.state == State.CONNECTING:
                self._made(number, events)
            if self.error:
                failed, self.error = self.error, 0
                call.refuse(failed)
            else:
                call.answer()
            return True
        self.loop.wait(call, number, select.EPOLLOUT, attempt)

    def _news(self, events: int) -> None:
        """Of a connect that nobody waits for."""
        if self._watched is not None:
            end, self._watched = self._watched, None
            self.loop.forget(end.fileno())
            self._made(end.fileno(), events)
            self._untold = True
            end.close()

    def _made(self, end: int, events: int) -> None:
        """The handshake is over, one way or the other."""
        if events & select.EPOLLERR:
            self.state = State.FAILED
            self.error = self.ask("error")["fate"] or errno.ECONNRESET
            return
        self.state = State.CONNECTED
        with socket.socket(fileno=os.dup(end)) as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer)

    def settle(self) -> None:
        if self._watched is not None:
            poll = select.poll()
            poll.register(self._watched, select.POLLOUT)
            for _, events in poll.poll(0):
                self._news(events)

    def _reopen(self, call: Call) -> None:
        """A new socket under the program's old number: Linux lets a refused socket try again."""
        made = self.loop.link.open("stream", 4 if self.family == socket.AF_INET else 6)
        try:
            with socket.socket(fileno=call.borrow(self.inode)) as old:
                os.set_blocking(made.fd, not _non_blocking(old))
            call.replace(made.fd, call.fd, False)
            self._table.remove(self)
            self.identity, self.state, self.error, self._untold = made.identity, State.NEW, 0, False
            self.inode, self._port, self._bound = made.inode, made.port, {}
            self._table.add(self)
        finally:
            os.close(made.fd)

    def listen(self, call: Call, backlog: int) -> None:
        if self.state in (State.CONNECTING, State.CONNECTED):
            raise error(errno.EINVAL)
        if self.state == State.FAILED:
            self._reopen(call)
        self.note_names(self.ask("listen", backlog=max(0, backlog), options=self._take_told(), **self._bound))
        self.state = State.LISTENING
        call.answer()

    # accepting

    def accept(self, call: Call, flags: int) -> None:
        if self.state != State.LISTENING:
            raise error(errno.EINVAL)
        if flags & ~(NON_BLOCKING | CLOSE_ON_EXEC):
            raise error(errno.EINVAL)
        number: cython.int = call.borrow(self.inode)
        try:
            answered = self._accept(call, number, flags)
            if not answered and not os.get_blocking(number):
                answered = True
                call.refuse(errno.EAGAIN)
        except BaseException:
            close_descriptor(number)
            raise
        if answered:
            close_descriptor(number)
        else:
            self._accept_later(call, number, flags)

    def _accept_later(self, call: Call, number: int, flags: int) -> None:
        self.loop.wait(call, number, select.EPOLLIN, lambda _events: self._accept(call, number, flags))

    def _accept(self, call: Call, end: cython.int, flags: cython.int) -> bool:
        """Give the program the next connection, if there is one; whether the call is answered."""
        ends: bytes
        fd: cython.int
        taken = self._take_returned() if self._returned else self._take(end)
        if taken is None:
            return False
        ends, fd = taken
        accepted = Accepted(self, ends, inode_of(fd))
        try:
            if flags & _NON_BLOCKING:
                os.set_blocking(fd, False)
            if call.pointer(1):
                call.write_sized(call.pointer(1), call.pointer(2), _peer_name(ends, self.family))
            self._table.add(accepted)
            call.give(fd, flags & _CLOSE_ON_EXEC != 0)
        except LookupError:
            self._table.remove(accepted)
            self._returned = (*self._returned, taken)
            return True
        except OSError as failed:
            self._table.remove(accepted)
            call.refuse(failed.errno or errno.EFAULT)
        close_descriptor(fd)
        if self._spares is None or len(self._spares) < self._spares_least:
            self._stock_up()
        return True

    def _take(self, end: cython.int) -> tuple[bytes, int] | None:
        """A connection out of the listening socket, and its descriptor. Raises OSError (EINVAL): the daemon has closed it."""
        fd: cython.int
        while (received := receive_with(end, _ACCEPTED_OCTETS)) is not None:
            octets, fd = received
            if len(octets) < _ACCEPTED_OCTETS or (fd < 0 and self._spares is None):
                raise error(errno.EINVAL)
            if fd >= 0:
                self._came += 1
            else:
                fd = self._spares.pop(octets[:_ID_OCTETS], -1)
            if fd >= 0:
                try:
                    send_now(fd, TAKEN)
                except OSError:         # the daemon has given it up
                    close_descriptor(fd)
                else:
                    return octets, fd
        return None

    def _stock_up(self) -> None:
        """Have descriptors for connections to come, if many do: one at a time they cost more."""
        if not self._spares:
            if self._came < _MANY:
                return
            now = time.monotonic_ns()
            self._came, before, self._came_since = 0, self._came_since, now
            if now - before > _MANY_WITHIN_NS:
                return
        with contextlib.suppress(OSError):
            self._spares = {**(self._spares or {}), **self.loop.link.spares(self.identity)}
            self._spares_least = _SPARES_LEAST if len(self._spares) >= _SPARES_LEAST else 1     # there may be no more sockets

    def _take_returned(self) -> tuple[bytes, int]:
        first, self._returned = self._returned[0], self._returned[1:]
        return first

    # data: only what carries an address comes here, and a stream has one peer

    def send_to(self, call: Call, endpoint: Endpoint, data: bytes, flags: int) -> None:
        raise error(errno.EISCONN if self.state == State.CONNECTED else errno.EPIPE)

    def receive_from(self, call: Call, octets: int, flags: int) -> None:
        call.proceed()

    def send_message(self, call: Call) -> None:
        call.proceed()

    receive_message = send_messages = receive_messages = send_message

    def held_by_somebody(self, probe: socket.socket) -> bool:
        """The daemon lets go of what a listening socket has ahead when that is closed."""
        return not self._spares or not _gone(next(iter(self._spares.values())))

    def close(self) -> None:
        if self._watched is not None:
            self.loop.forget(self._watched.fileno())
            self._watched.close()
            self._watched = None
        for fd in (*(fd for _, fd in self._returned), *(self._spares or {}).values()):
            os.close(fd)
        self._returned, self._spares = (), None


def _peer_name(ends: bytes, family: cython.int) -> bytes:
    """The struct sockaddr of who has connected, for a socket of a family; the pieces are in the order of the wire anyway."""
    if family == _AF_INET:
        return _FAMILY_4 + ends[24:26] + ends[20:24] + bytes(8)
    return _FAMILY_6 + ends[24:26] + bytes(4) + ends[8:24] + bytes(4)


def _gone(end: int) -> bool:
    """Whether nobody has the other end of a pair."""
    look = select.poll()
    look.register(end, 0)
    return any(events & select.POLLHUP for _, events in look.poll(0))


def _non_blocking(end: socket.socket) -> bool:
    return not os.get_blocking(end.fileno())


def _stuff(end: socket.socket, blocking: bool) -> int:
    """Fill the program's end; how many octets it took.

    Whoever waits for connect writes nothing before we make the buffer large again, so a tiny one will do.
    """
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0 if blocking else SNDBUF_LEAST)
    piece = _CHAFF[:1] if blocking else _CHAFF
    octets = 0
    try:
        while True:
            octets += end.send(piece, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except BlockingIOError:
        return octets
