"""Stream sockets of other processes: from the fresh socket to the connection or the listener it becomes.

Compiled: each connection that is handed out goes through it.
"""

from __future__ import annotations

import contextlib
import errno as errors
import socket
from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import cython
import structlog
from cython.cimports.libc.stdint import uint32_t
from cython.cimports.netstack.tcp.api import Acceptor
from cython.cimports.rustosd.descriptors import End
from cython.cimports.rustosd.epoll import EPOLLERR, EPOLLHUP, EPOLLIN
from cython.cimports.rustosd.handoff.splice import ABORT, RELEASE, RESET, StreamSplice
from cython.cimports.rustosd.handoff.table import SocketTable

from netstack.sockets.addresses import fate, text
from netstack.tcp import api
from rustosd.client.wire import SPARES_MOST

if TYPE_CHECKING:
    from netstack.sockets import AsyncStack
    from rustosd.handoff.protocol import Answer
    from rustosd.policy import Subject

if not cython.compiled:
    raise ImportError("rustosd.handoff.stream must be compiled: python setup.py build_ext --inplace")

ORPHAN_S = 60.0         # as Linux's tcp_fin_timeout: how long what a dead client has written may wait for its peer
WINDOW = cython.declare(cython.int, 16)         # accepted connections on their way to the client; more wait here
BACKLOG_MOST = 4096     # as Linux's net.core.somaxconn
NO_OPTIONS: Mapping[str, int] = MappingProxyType({})
ANYWHERE = (None, 0)
STREAM = cython.declare(cython.int, socket.SOCK_STREAM)
EVENT_CONNECTED = cython.declare(cython.int, api.EVENT_CONNECTED)
EVENT_CLOSED = cython.declare(cython.int, api.EVENT_CLOSED)

log = structlog.get_logger(__name__)


@cython.final
@cython.cclass
class StreamSocket:
    """One stream socket of a client: fresh, connecting, connected (then it has a splice), or listening."""

    def __init__(self, broker: SocketTable, identity: bytes, end: End, pid: cython.int, family: cython.int,
                 subject: Subject) -> None:
        self.broker, self.id, self.end, self.pid, self.family, self.subject = broker, identity, end, pid, family, subject
        self.source, self.options = ANYWHERE, NO_OPTIONS

    @property
    def protocol(self) -> str:
        """As a policy has it."""
        return "tcp"

    # what epoll tells while there is no splice

    def woken(self, events: uint32_t) -> None:
        if events & (EPOLLIN | EPOLLHUP | EPOLLERR):        # EPOLLIN: see `settle`
            self.close()

    # what the client asks

    def bind(self, host: str, port: int, v6only: bool) -> Answer:
        """Raises OSError: EINVAL when it is bound already, EADDRINUSE, EADDRNOTAVAIL."""
        if self.bound or self.handle is not None:
            raise OSError(errors.EINVAL, "the socket is bound already")
        source = None if self.family == 6 and host in ("", "::") and not v6only else host or any_host(self.family)
        if port and self.broker.shared_ports.admits(self, source, port):
            self.source = source, port
        else:
            tcp = self.broker.tcp
            probe = tcp.listen(source, port or self.broker.free_port(), 1)      # says what keeps it from working
            try:
                self.source = source, tcp.listener_port(probe)
            finally:
                tcp.close_listener(probe)
        self.bound = True
        return self.names()

    def keep_port(self) -> int:
        """Have a port that its client may take for bound without asking; 0: there is none."""
        with contextlib.suppress(OSError):
            self.kept_port = self.broker.keep_port()
        return self.kept_port

    def bind_as_told(self, v6only: bool) -> None:
        """The client has taken its port for bound. Raises OSError (EADDRINUSE) when somebody listens there by now."""
        if not self.bound and self.kept_port:
            self.bind("", self.kept_port, v6only)

    def listen(self, backlog: int) -> Answer:
        """Raises OSError: EADDRINUSE, EMFILE (no listener is left), EINVAL (it is connected)."""
        if self.handle is not None:
            raise OSError(errors.EINVAL, "a connected socket cannot listen")
        if self.listener is None:
            if not self.bound:
                self.bind("", 0, False)
            self.listener = Listener(self, min(max(backlog, 1), BACKLOG_MOST))
        return self.names()

    def connect(self, host: str, port: int, chaff: int) -> Answer:
        """Raises OSError: EISCONN, EALREADY, ENETUNREACH, EADDRNOTAVAIL, EADDRINUSE."""
        if self.handle is not None or self.listener is not None:
            raise OSError(errors.EALREADY if self.splice is None else errors.EISCONN, "the socket is connected already")
        network = self.broker.network
        host, source = self._towards(host)
        try:
            self.handle = network.tcp.connect(network.clock(), host, port, *source)
        except OSError as error:
            raise fate(error.errno or errors.EIO, f"connect to {text(host, port)} failed") from error
        self.chaff = chaff
        network.connections[self.handle] = self
        network.kick()
        return self.names()

    def _towards(self, host: str) -> tuple[str, tuple[str | None, int]]:
        """The address to connect to and the one to connect from; any address is that of the host's family."""
        if self.family == 4 and ":" in host:
            raise OSError(errors.EAFNOSUPPORT, f"{host} is no IPv4 address")
        source, port = self.source
        return host, (None if source is None or source in ("::", "0.0.0.0") else source, port)

    def set(self, option: str, value: int) -> Answer:
        self.options = {**self.options, option: value}
        if self.handle is not None:
            self.apply(option, value)
        return {}

    @cython.cfunc
    def apply(self, option: str, value: object):
        tcp = self.broker.tcp
        if option == "nodelay":
            tcp.set_nodelay(self.handle, bool(value))
        elif option == "keepalive":
            tcp.set_keepalive(self.handle, bool(value))
        elif option == "keepalive_idle":
            tcp.set_keepalive_idle(self.handle, value)
        elif option == "keepalive_interval":
            tcp.set_keepalive_interval(self.handle, value)
        elif option == "keepalive_probes":
            tcp.set_keepalive_probes(self.handle, value)
        elif option == "user_timeout":
            tcp.set_user_timeout(self.handle, value)
        elif option == "receive_buffer":
            tcp.set_receive_buffer(self.handle, value)
            self.end.limit(min(value, self.broker.limits.buffer_octets) // 2)

    def names(self) -> Answer:
        """Who is at both ends, as far as that is settled."""
        tcp = self.broker.tcp
        if self.handle is not None:
            return {"local": tcp.local(self.handle), "remote": tcp.remote(self.handle)}
        host, port = self.source
        return {"local": (host or any_host(self.family), port), "remote": None}

    def facts(self) -> Answer:
        """Raises OSError (ENOTCONN) when there is no connection."""
        if self.handle is None:
            raise OSError(errors.ENOTCONN, "the socket is not connected")
        return {key: value for key, value in self.broker.tcp.info(self.handle).items() if key not in HIDDEN}

    # what the stack tells while it connects

    def _event(self, bits: cython.int, error: cython.int) -> None:
        if bits & EVENT_CONNECTED:
            self.adopt(self.handle)
            self.splice.heard(bits, error)
        elif bits & EVENT_CLOSED:
            self.settle(RESET, error or errors.ECONNABORTED)

    @cython.cfunc
    def adopt(self, handle: object):
        """It is connected: from here on the splice hears all news."""
        self.handle = handle
        self.splice = StreamSplice(self.broker.tcp, handle, self.end.fd, self, self.chaff, self.origin is not None)
        if self.options:
            for option, value in self.options.items():
                self.apply(option, value)
        self.broker.connections[handle] = self.splice
        self.broker.ends.watch(self.end.fd, self.splice)

    def note_policies(self) -> None:
        """What may be connected to is asked once, and was."""

    # what the splice tells

    def kick(self) -> None:
        self.broker.network.kick()

    def again(self, splice: StreamSplice) -> None:
        self.broker.network.again(splice)

    def tidy_later(self, splice: StreamSplice) -> None:
        self.broker.tidy_later(splice)

    def was_taken(self) -> None:
        """A program has accepted it."""
        origin: Listener = self.origin
        self.origin = None
        origin.travelling.discard(self)
        origin.deliver()

    def settle(self, ending: cython.int, error: cython.int) -> None:
        """It is over: let go of the connection, and show the client how it went."""
        untaken: cython.bint = self.origin is not None and not self.splice.taken()
        if untaken:
            ending = ABORT
        self.broker.let_go(self.handle, ending == ABORT or bool(self.options.get("reset_on_close")))
        self.handle = None
        if self.splice is not None:
            if ending == RELEASE:
                self.splice.clear()
            self.splice = None      # each of them has the other: none would go before the next collection
        if error:
            self.broker.note_fate(self.id, error)
        if untaken:
            # Who accepts it shall see a reset, which takes an octet of theirs in our queue.
            self.broker.ends.watch(self.end.fd, self, EPOLLIN)
        else:
            self.leave()

    def orphaned(self) -> None:
        """The client is gone, and what it has written does not fit the send ring: the peer has a minute to take some."""
        if self.orphan is None:
            self.orphan = self.splice.waiting()
            self.broker.network.loop.call_later(ORPHAN_S, self._look_after_orphan)

    def _look_after_orphan(self) -> None:
        if self.handle is None:
            return
        if self.splice.waiting() == self.orphan:
            self.splice.abort()
        else:
            self.orphan = None
            self.orphaned()

    # the end

    def close(self) -> None:
        """Give back whatever there is. May be called twice."""
        if self.splice is not None:
            self.splice.close()
        if self.listener is not None:
            self.listener.shut()
        if self.handle is not None:
            self.broker.let_go(self.handle, False)
            self.handle = None
        self.leave()

    @cython.cfunc
    def leave(self):
        """The table."""
        origin: Listener = self.origin
        if origin is not None:
            self.origin = None
            origin.travelling.discard(self)
            origin.note_held()
            if origin.waiting:
                self.broker.starved.add(origin)
        if self.kept_port:
            self.broker.give_port(self.kept_port)
            self.kept_port = 0
        self.broker.remove(self.id, self.pid, self.end)

    def abort(self) -> None:
        """The stack closes while we are connecting."""
        if self.handle is not None:
            self.settle(RESET, errors.ECONNABORTED)


class Waiting:
    """A connection that was accepted and has no socket yet: what `AsyncStack.connections` has for it, to note its news."""

    def __init__(self, network: AsyncStack, handle: int, bits: int, error: int):
        self.network = network
        self.handle = handle
        self.bits = bits
        self.error = error
        network.connections[handle] = self

    def _event(self, bits: int, error: int) -> None:
        self.bits |= bits
        self.error = self.error or error

    def abort(self) -> None:
        self.network.reset(self.handle)

    close = abort


@cython.final
@cython.cclass
class Listener(Acceptor):
    """A listening socket: what `AsyncStack.servers` has for the listener of the core.

    Each connection is joined to a pair, whose other end travels to the client as a descriptor on the listening socket,
    which therefore is readable when there is something to accept; who accepts one writes an octet to it. A client to which
    many come has the other ends of some pairs ahead, and is told which it is. A few travel at a time, and only while the
    client may have more sockets; the others wait. Whatever was not taken yet counts against the backlog: when that is full,
    the core leaves SYNs unanswered, as Linux does.
    """

    def __init__(self, owner: StreamSocket, backlog: cython.int) -> None:
        self.owner, self.backlog = owner, backlog
        self.network, self.tcp = owner.broker.network, owner.broker.tcp
        self.waiting: deque[Waiting] = deque()
        self.travelling, self.spares = set(), []
        if owner.options.get("reuse_port"):
            self.shared = owner.broker.shared_ports.join(self)
        else:
            self.listener = self.tcp.listen(*owner.source, backlog)
            self.network.servers[self.listener] = self
            self.tcp.accept_by(self.listener, self)
        owner.end.drain()       # the octet that is held: nobody resets a listener
        owner.broker.ends.watch(owner.end.fd, self)

    def woken(self, events: uint32_t) -> None:
        if events & (EPOLLHUP | EPOLLERR):
            self.owner.close()

    @cython.cfunc
    @cython.exceptval(check=False)
    def accepted(self, handle: object, news: cython.int, error: cython.int) -> cython.void:
        try:
            self.take_in(handle, news, error)
        except Exception:
            log.exception("handoff_failed", descriptor=self.owner.end.fd)

    def _accept(self, handle: int, bits: cython.int, error: cython.int) -> None:
        """A connection of a shared port is established."""
        self.take_in(handle, bits, error)

    @cython.cfunc
    def take_in(self, handle: object, news: cython.int, error: cython.int):
        if self.waiting or len(self.travelling) >= WINDOW or not self.send(handle, news, error):
            self.waiting.append(Waiting(self.network, handle, news, error))
        self.note_held()

    @cython.ccall
    def deliver(self):
        """Send what there is, a few at a time: those count against the limit of descriptors in flight."""
        while self.waiting and len(self.travelling) < WINDOW:
            first = self.waiting[0]
            if not self.send(first.handle, first.bits, first.error):
                break
            self.waiting.popleft()
        self.note_held()

    @cython.cfunc
    def note_held(self):
        if self.owner.listener is not self:
            return
        if self.shared is None:
            self.tcp.set_held(self.listener, self.held())
        else:
            self.shared.note_held()

    @cython.ccall
    @cython.exceptval(check=False)
    def held(self) -> cython.int:
        """Connections that are not taken yet."""
        return len(self.waiting) + len(self.travelling)

    @cython.cfunc
    @cython.exceptval(-1, check=True)
    def send(self, handle: object, news: cython.int, error: cython.int) -> cython.bint:
        """Whether it is on its way; else it waits until there is room for it."""
        accepted: StreamSocket = self.announced(self.tcp.ends(handle))
        if accepted is None:
            return False
        accepted.options, accepted.origin = self.owner.options, self
        self.travelling.add(accepted)
        accepted.adopt(handle)
        accepted.splice.heard(news, error)
        return True

    @cython.cfunc
    def announced(self, ends: bytes) -> StreamSocket:
        """A socket for the connection between these ends, of which the client is told; None: there is no room for it."""
        owner: StreamSocket = self.owner
        broker: SocketTable = owner.broker
        ours: End
        theirs: End
        accepted: StreamSocket
        if self.spares:
            identity, ours = spare = self.spares.pop()
            if not owner.end.offer(identity + ends):
                self.spares.append(spare)
                return None         # full: another is taken before there is room; or gone: epoll tells
            accepted = StreamSocket(broker, identity, ours, owner.pid, owner.family, owner.subject)
            broker.enter(identity, accepted)
            return accepted
        try:
            identity, ours, theirs = broker.pair(owner.pid, STREAM, False)
        except OSError:
            broker.starved.add(self)
            return None
        if not owner.end.hand_over(identity + ends, theirs):
            ours.close()
            return None
        accepted = StreamSocket(broker, identity, ours, owner.pid, owner.family, owner.subject)
        broker.add(identity, owner.pid, accepted)
        return accepted

    @cython.ccall
    def lay_by(self) -> tuple:
        """One more pair for a connection to come: its id and the client's end. Raises OSError (EMFILE, ENFILE, ENOBUFS)."""
        ours: End
        if len(self.spares) >= SPARES_MOST:
            raise OSError(errors.ENOBUFS, f"{SPARES_MOST} are ahead already")
        identity, ours, theirs = self.owner.broker.lay_by(self.owner.pid)
        self.spares.append((identity, ours))
        return identity, theirs

    def shut(self) -> None:
        """Listen no more; who was not accepted sees a reset."""
        if not self.leave():
            return
        self.owner.listener = None
        self.owner.broker.starved.discard(self)
        for one in self.waiting:
            one.abort()
        self.waiting.clear()
        for accepted in tuple(self.travelling):
            if accepted.splice is None:
                accepted.close()
            elif accepted.splice.taken():
                accepted.was_taken()
            else:
                accepted.splice.abort()
                accepted.close()
        while self.spares:
            self.owner.broker.let_spare_go(self.owner.pid, self.spares.pop()[1])
        self.network.kick()

    @cython.cfunc
    @cython.exceptval(-1, check=True)
    def leave(self) -> cython.bint:
        """No more of the core's connections are for it; whether some were."""
        if self.shared is not None:
            return self.owner.broker.shared_ports.leave(self)
        if self.network.servers.pop(self.listener, None) is None:
            return False
        self.tcp.close_listener(self.listener)
        return True

    def close(self) -> None:
        """The stack closes: the client sees EOF on the listening socket."""
        self.owner.close()


# What says more of the stack's secrets than of the connection.
HIDDEN = frozenset({"handle", "iss", "irs", "released", "opened_at"})


def any_host(family: int) -> str:
    """The unspecified address of a family."""
    return "::" if family == 6 else "0.0.0.0"


