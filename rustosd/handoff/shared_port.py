"""Ports on which several sockets listen (SO_REUSEPORT): each connection is for the next of them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netstack.sockets import AsyncStack
    from rustosd.handoff.stream import Listener, StreamSocket

BACKLOG_MOST = 65536        # of all together


class SharedPorts:
    """Those of one stack, by the address and port that their sockets are bound to."""

    def __init__(self, network: AsyncStack):
        self._network = network
        self._ports: dict[tuple[str | None, int], SharedPort] = {}

    def admits(self, one: StreamSocket, host: str | None, port: int) -> bool:
        """Whether somebody listens there who shares it with this socket: both want to, and are the same user's."""
        shared = self._ports.get((host, port))
        return shared is not None and bool(one.options.get("reuse_port")) and shared.uid == one.subject.uid

    def join(self, listener: Listener) -> SharedPort:
        """Listen where its socket is bound to, with the others or as the first. Raises OSError (EADDRINUSE, EMFILE)."""
        owner = listener.owner
        if self.admits(owner, *owner.source):
            shared = self._ports[owner.source]
        else:
            shared = SharedPort(self._network, owner.subject.uid, *owner.source)
            self._ports[owner.source] = shared
        shared.members.append(listener)
        shared.note_members()
        return shared

    def leave(self, listener: Listener) -> bool:
        """Listen no more; whether it still did."""
        at = listener.owner.source
        shared = self._ports.get(at)
        if shared is None or listener not in shared.members:
            return False
        shared.members.remove(listener)
        if shared.members:
            shared.note_members()
        else:
            shared.end()
            del self._ports[at]
        return True


class SharedPort:
    """What `AsyncStack.servers` has for the listener of the core."""

    def __init__(self, network: AsyncStack, uid: int, host: str | None, port: int):
        self.uid = uid
        self.members: deque[Listener] = deque()
        self._network = network
        self._listener = network.tcp.listen(host, port, 1)
        network.servers[self._listener] = self

    def _accept(self, handle: int, bits: int, error: int) -> None:
        """A connection is established: it goes to the next that has room for it."""
        for _ in range(len(self.members)):
            self.members.rotate(-1)
            if self.members[0].held() < self.members[0].backlog:
                break
        self.members[0]._accept(handle, bits, error)

    def note_members(self) -> None:
        """Somebody has joined or left."""
        self._network.tcp.set_backlog(self._listener, min(sum(one.backlog for one in self.members), BACKLOG_MOST))
        self.note_held()

    def note_held(self) -> None:
        """Connections have come or were taken."""
        self._network.tcp.set_held(self._listener, sum(one.held() for one in self.members))

    def end(self) -> None:
        del self._network.servers[self._listener]
        self._network.tcp.close_listener(self._listener)

    def close(self) -> None:
        """The stack closes."""
        for one in tuple(self.members):
            one.close()
