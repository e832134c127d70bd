"""Stream sockets of other processes: from the fresh socket to the connection or the listener it becomes."""

from __future__ import annotations

import contextlib
import errno as errors
import select
import socket
from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from netstack.sockets.addresses import fate, text
from netstack.tcp.api import EVENT_CLOSED, EVENT_CONNECTED
from rustosd.handoff.splice import Ending, StreamSplice

if TYPE_CHECKING:
    from netstack.sockets import AsyncStack
    from rustosd.descriptors import End
    from rustosd.handoff.broker import Handoff
    from rustosd.handoff.protocol import Answer
    from rustosd.policy import Protocol, Subject

ORPHAN_S = 60.0         # as Linux's tcp_fin_timeout: how long what a dead client has written may wait for its peer
TIDY_S = 0.02           # how long small messages that were passed on may take up room in our queue
WINDOW = 16             # accepted connections on their way to the client; more wait here
BACKLOG_MOST = 4096     # as Linux's net.core.somaxconn
ANCHOR = b"\0"          # the octet that rustosd.handoff.splice holds, before the client has written one
GONE = select.EPOLLHUP | select.EPOLLERR


class StreamSocket:
    """One stream socket of a client: fresh, connecting, connected (then it has a splice), or listening."""

    protocol: Protocol = "tcp"

    # As it is at first. Most sockets differ in little, and making one should cost little.
    source: tuple[str | None, int] = (None, 0)
    bound = False
    kept_port = 0                               # nobody else gets it who asks for any
    options: Mapping[str, int] = MappingProxyType({})
    handle: int | None = None
    chaff = 0
    splice: StreamSplice | None = None
    listener: Listener | None = None
    origin: Listener | None = None              # of an accepted one, until the client has taken it
    _orphan: int | None = None                  # octets that waited when the client was found gone

    def __init__(self, broker: Handoff, identity: str, end: End, pid: int, family: int, subject: Subject):
        self.broker = broker
        self.id = identity
        self.end = end
        self.pid = pid
        self.family = family
        self.subject = subject

    # what epoll tells before there is a splice

    def woken(self, events: int) -> None:
        if events & GONE:
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
            tcp = self.broker.network.tcp
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
            self.kept_port = self.broker.free_port()
            self.broker.kept_ports.add(self.kept_port)
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
            self._apply(option, value)
        return {}

    def _apply(self, option: str, value: int) -> None:
        tcp = self.broker.network.tcp
        if option == "nodelay":
            tcp.set_nodelay(self.handle, bool(value))
        elif option == "keepalive":
            tcp.set_keepalive(self.handle, bool(value))
        elif option == "receive_buffer":
            tcp.set_receive_buffer(self.handle, value)
            self.end.limit(min(value, self.broker.limits.buffer_octets) // 2)

    def names(self) -> Answer:
        """Who is at both ends, as far as that is settled."""
        tcp = self.broker.network.tcp
        if self.handle is not None:
            return {"local": tcp.local(self.handle), "remote": tcp.remote(self.handle)}
        host, port = self.source
        return {"local": (host or any_host(self.family), port), "remote": None}

    def facts(self) -> Answer:
        """Raises OSError (ENOTCONN) when there is no connection."""
        if self.handle is None:
            raise OSError(errors.ENOTCONN, "the socket is not connected")
        return {key: value for key, value in self.broker.network.tcp.info(self.handle).items() if key not in HIDDEN}

    # what the stack tells while it connects

    def _event(self, bits: int, error: int) -> None:
        if bits & EVENT_CONNECTED:
            self.adopt(self.handle, self.chaff)
            self.splice._event(bits, error)
        elif bits & EVENT_CLOSED:
            self.settle(Ending.RESET, error or errors.ECONNABORTED)

    def adopt(self, handle: int, chaff: int = 0) -> None:
        """It is connected: from here on the splice hears all news."""
        self.handle = handle
        self.splice = StreamSplice(self.broker.network.tcp, handle, self.end.fileno(), self, chaff)
        for option, value in self.options.items():
            self._apply(option, value)
        self.broker.network.connections[handle] = self.splice
        self.broker.watch(self.end.fileno(), self.splice)

    def note_policies(self) -> None:
        """What may be connected to is asked once, and was."""

    # what the splice tells

    def kick(self) -> None:
        self.broker.network.kick()

    def again(self, splice: StreamSplice) -> None:
        self.broker.network.again(splice)

    def tidy_later(self, splice: StreamSplice) -> None:
        self.broker.tidy_later(splice)

    def settle(self, ending: int, error: int) -> None:
        """It is over: let go of the connection, and show the client how it went."""
        network = self.broker.network
        if self.origin is not None:
            self.origin.count_taken()
            if self.origin is not None:     # its listener was closed before it was taken
                ending = Ending.ABORT
        if ending == Ending.ABORT or self.options.get("reset_on_close"):
            network.reset(self.handle)
        else:
            network.release(self.handle)
        self.handle = None
        if ending == Ending.RELEASE and self.splice is not None:
            self.splice.clear()
        if error:
            self.broker.note_fate(self.id, error)
        self.broker.forget(self)

    def orphaned(self) -> None:
        """The client is gone, and what it has written does not fit the send ring: the peer has a minute to take some."""
        if self._orphan is None:
            self._orphan = self.splice.waiting()
            self.broker.network.loop.call_later(ORPHAN_S, self._look_after_orphan)

    def _look_after_orphan(self) -> None:
        if self.handle is None:
            return
        if self.splice.waiting() == self._orphan:
            self.splice.abort()
        else:
            self._orphan = None
            self.orphaned()

    # the end

    def close(self) -> None:
        """Give back whatever there is. May be called twice."""
        if self.splice is not None:
            self.splice.close()
            return
        if self.listener is not None:
            self.listener.shut()
        if self.handle is not None:
            self.broker.network.release(self.handle)
            self.handle = None
        self.broker.forget(self)

    def abort(self) -> None:
        """The stack closes while we are connecting."""
        if self.handle is not None:
            self.settle(Ending.RESET, errors.ECONNABORTED)


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


class Listener:
    """A listening socket: what `AsyncStack.servers` has for the listener of the core.

    Each connection is joined to a pair, whose other end travels to the client as a descriptor on the listening socket,
    which therefore is readable when there is something to accept; the client answers each with an octet. A few travel at
    a time, and only while the client may have more sockets; the others wait. Whatever was not taken yet counts against
    the backlog: when that is full, the core leaves SYNs unanswered, as Linux does.
    """

    def __init__(self, owner: StreamSocket, backlog: int):
        self.owner = owner
        self.backlog = backlog
        self.network = owner.broker.network
        self.waiting: deque[Waiting] = deque()
        self.travelling: deque[StreamSocket] = deque()
        self.shared = owner.broker.shared_ports.join(self) if owner.options.get("reuse_port") else None
        if self.shared is None:
            self.listener = self.network.tcp.listen(*owner.source, backlog)
            self.network.servers[self.listener] = self
        owner.end.drain()       # the octet that is held: nobody resets a listener
        owner.broker.watch(owner.end.fileno(), self, select.EPOLLIN)

    def woken(self, events: int) -> None:
        self.count_taken()
        if events & GONE:
            self.owner.close()
        else:
            self.deliver()

    def count_taken(self) -> None:
        """The client says so before it does anything with one, its close included."""
        for _ in range(self.owner.end.drain()):
            if self.travelling:
                self.travelling.popleft().origin = None

    def _accept(self, handle: int, bits: int, error: int) -> None:
        """A connection is established."""
        if self.waiting or len(self.travelling) >= WINDOW or not self._send(handle, bits, error):
            self.waiting.append(Waiting(self.network, handle, bits, error))
        self.deliver()

    def deliver(self) -> None:
        """Send what there is, a few at a time: those count against the limit of descriptors in flight."""
        while self.waiting and len(self.travelling) < WINDOW:
            first = self.waiting[0]
            if not self._send(first.handle, first.bits, first.error):
                break
            self.waiting.popleft()
        if self.shared is None:
            self.network.tcp.set_held(self.listener, self.held())
        else:
            self.shared.note_held()

    def held(self) -> int:
        """Connections that are not taken yet."""
        return len(self.waiting) + len(self.travelling)

    def _send(self, handle: int, bits: int, error: int) -> bool:
        """Whether it is on its way; else it waits until there is room for it."""
        owner, broker, tcp = self.owner, self.owner.broker, self.network.tcp
        try:
            identity, ours, theirs = broker.pair(owner.pid, socket.SOCK_STREAM)
        except OSError:
            broker.starved.add(self)
            return False
        if not owner.end.hand_over(bytes.fromhex(identity) + tcp.ends(handle), theirs):
            ours.close()            # full: another is taken before there is room; or gone: epoll tells
            return False
        accepted = StreamSocket(broker, identity, ours, owner.pid, owner.family, owner.subject)
        accepted.options = owner.options
        accepted.origin = self
        self.travelling.append(accepted)
        broker.add(accepted)
        accepted.adopt(handle)
        accepted.splice._event(bits, error)
        return True

    def shut(self) -> None:
        """Listen no more; who was not accepted sees a reset."""
        if not self._leave():
            return
        self.owner.broker.starved.discard(self)
        for accepted in self.travelling:
            if accepted.splice is not None:
                accepted.splice.abort()
        for one in self.waiting:
            one.abort()
        self.waiting.clear()
        self.network.kick()

    def _leave(self) -> bool:
        """No more of the core's connections are for it; whether some were."""
        if self.shared is not None:
            return self.owner.broker.shared_ports.leave(self)
        if self.network.servers.pop(self.listener, None) is None:
            return False
        self.network.tcp.close_listener(self.listener)
        return True

    def close(self) -> None:
        """The stack closes: the client sees EOF on the listening socket."""
        self.owner.close()


# What says more of the stack's secrets than of the connection.
HIDDEN = frozenset({"handle", "iss", "irs", "released", "opened_at"})


def any_host(family: int) -> str:
    """The unspecified address of a family."""
    return "::" if family == 6 else "0.0.0.0"


