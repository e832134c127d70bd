"""NBD on our own stack: each connection is spliced to a socketpair, and the other end of that is what a client's socket is."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from rustosd.descriptors import End
from rustosd.handoff.splice import Ending, StreamSplice
from rustosd.handoff.stream import ORPHAN_S
from rustosd.handoff.table import ANCHOR, TIDY_S
from rustosd.handoff.watch import Watch

if TYPE_CHECKING:
    from netstack.sockets import AsyncStack

PAIR_OCTETS = 1 << 20
SO_SNDBUFFORCE = 32     # socket(7); as SO_SNDBUF, beyond wmem_max


class StackListener:
    """What `AsyncStack.servers` has for a listener; `admit` is given a socket for each connection."""

    def __init__(self, network: AsyncStack, port: int, backlog: int, admit: Callable[[socket.socket], None]):
        """Raises OSError: the port is taken."""
        self._network, self._admit = network, admit
        self._bridges: set[_Bridge] = set()
        self._listener = network.tcp.listen(None, port, backlog)
        network.servers[self._listener] = self
        self._watch = Watch()
        network.loop.add_reader(self._watch.fileno(), self._look)

    def _accept(self, handle: int, bits: int, error: int) -> None:
        """A connection is established."""
        try:
            ours, theirs = socket.socketpair()
        except OSError:         # no descriptor is left
            self._network.reset(handle)
            return
        for end in (ours, theirs):
            end.setblocking(False)
            _widen(end)
        theirs.send(ANCHOR)
        end = End(ours.detach())
        bridge = _Bridge(self, handle, end)
        self._bridges.add(bridge)
        self._network.connections[handle] = bridge.splice
        self._network.tcp.set_nodelay(handle, True)
        self._watch.watch(end.fileno(), bridge.splice)
        bridge.splice._event(bits, error)
        self._admit(theirs)

    def _look(self) -> None:
        self._watch.catch_up()
        self._network.kick_if_touched()

    def forget(self, bridge: _Bridge) -> None:
        """It is over."""
        self._bridges.discard(bridge)
        self._watch.forget(bridge.end)

    def stop(self) -> None:
        """Take no more connections. May be called twice."""
        if self._network.servers.pop(self._listener, None) is not None:
            self._network.tcp.close_listener(self._listener)
            self._network.kick()

    def close(self) -> None:
        """The end, also for the connections there are. May be called twice."""
        self.stop()
        for bridge in tuple(self._bridges):
            bridge.splice.close()
        if self._watch.fileno() >= 0:
            self._network.loop.remove_reader(self._watch.fileno())
            self._watch.close()


class _Bridge:
    """One connection of the stack and our end of its pair: the owner of the splice."""

    def __init__(self, listener: StackListener, handle: int, end: End):
        self.end = end
        self._listener, self._network, self._handle = listener, listener._network, handle
        self._left: int | None = None       # octets that waited when the other end was found closed
        self.splice = StreamSplice(self._network.tcp, handle, end.fileno(), self)

    def kick(self) -> None:
        self._network.kick()

    def again(self, splice: StreamSplice) -> None:
        self._network.again(splice)

    def tidy_later(self, splice: StreamSplice) -> None:
        self._network.loop.call_later(TIDY_S, splice.tidy)

    def settle(self, ending: int, error: int) -> None:
        """Both ends are through."""
        if ending == Ending.ABORT:
            self._network.reset(self._handle)
        else:
            self._network.release(self._handle)
        if ending == Ending.RELEASE:
            self.splice.clear()
        self._listener.forget(self)

    def orphaned(self) -> None:
        """Our side has closed, and its last octets wait for the peer: it has a minute to take some."""
        self._left = self.splice.waiting()
        self._network.loop.call_later(ORPHAN_S, self._look_after)

    def _look_after(self) -> None:
        if self.end.fileno() < 0:
            return
        if self.splice.waiting() == self._left:
            self.splice.abort()
        else:
            self.orphaned()


def _widen(end: socket.socket) -> None:
    """Room for large requests on their way, if we may."""
    try:
        end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, PAIR_OCTETS)
    except PermissionError:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PAIR_OCTETS)
