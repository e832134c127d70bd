"""The sockets of supervised programs, by inode: what a descriptor stands for, whoever has it and whatever it is called."""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final, Protocol

from rustosd.client.session import Answer
from rustosd.process.accepted import Accepted
from rustosd.process.call import Call
from rustosd.process.link import Link
from rustosd.process.sockaddr import Endpoint

NON_BLOCKING: Final = socket.SOCK_NONBLOCK
CLOSE_ON_EXEC: Final = socket.SOCK_CLOEXEC
ANY: Final = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
LOOPBACK: Final = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
_V6ONLY: Final = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


class State(IntEnum):
    """How far a socket has come. A datagram socket goes from NEW to CONNECTED and back."""

    NEW = 0
    CONNECTING = 1
    CONNECTED = 2
    LISTENING = 3
    FAILED = 4          # its connection was refused: the next connect begins with a new one


class Loop(Protocol):
    """What sockets need of the supervisor's loop."""

    link: Link
    refused: Counter[str]
    network: int            # a socket of Linux's in the programs' network, to ask about interfaces
    roots_own: bool         # the daemon takes the programs for root, whatever they make of themselves

    def wait(self, call: Call, fd: int, events: int, attempt: Callable[[int], bool]) -> None:
        """Have `attempt(events)` called when `fd` (the loop's to close) is ready, until it says True: the call is answered."""

    def watch(self, fd: int, events: int, told: Callable[[int], None]) -> None:
        """Call `told(events)` whenever `fd` is ready, until `forget`."""

    def forget(self, fd: int) -> None:
        """No longer watch it."""

    def later(self, action: Callable[[], None]) -> None:
        """Call it in a moment."""


class GuestSocket(ABC):
    """One socket, from `socket` to the last close of it."""

    kind: int
    protocol: int

    # As it is at first. Most sockets differ in little, and making one should cost little.
    state = State.NEW
    local: Endpoint | None = None
    remote: Endpoint | None = None
    error = 0                                   # SO_ERROR
    options: Mapping[tuple[int, int], bytes] = MappingProxyType({})

    def __init__(self, loop: Loop, family: int, identity: str, inode: int = 0) -> None:
        """`inode`: of the program's end."""
        self.loop, self.family, self.identity, self.inode = loop, family, identity, inode

    def ask(self, op: str, **fields: Any) -> Answer:
        """Ask the daemon about this socket. Raises OSError."""
        return self.loop.link.ask(op, id=self.identity, **fields)

    def tell(self, option: str, value: int) -> None:
        """Let the daemon set one of its options. Raises OSError (ENETDOWN)."""
        self.loop.link.tell("set", id=self.identity, option=option, value=value, quiet=True)

    def note_names(self, names: Answer) -> None:
        """What the daemon says of both ends."""
        self.local = _endpoint(names["local"])
        self.remote = _endpoint(names["remote"]) if names["remote"] else None

    def name(self) -> Endpoint:
        """The local address and port."""
        return self.local or Endpoint(ANY[self.family], 0)

    @property
    def connected(self) -> bool:
        """Whether it has a peer."""
        return self.state == State.CONNECTED

    @property
    def v6only(self) -> bool:
        """Whether any address of the host, to which it is bound, is none of IPv4."""
        return any(self.options.get(_V6ONLY, b""))

    def settle(self) -> None:
        """Take note of what has happened to it since."""
        return

    # The calls; each answers, refuses or waits. What they raise as OSError is the caller's errno.

    @abstractmethod
    def bind(self, call: Call, endpoint: Endpoint) -> None:
        ...

    @abstractmethod
    def connect(self, call: Call, endpoint: Endpoint | None) -> None:
        """`endpoint` None: AF_UNSPEC, be connected no longer."""

    @abstractmethod
    def listen(self, call: Call, backlog: int) -> None:
        ...

    @abstractmethod
    def accept(self, call: Call, flags: int) -> None:
        ...

    @abstractmethod
    def send_to(self, call: Call, endpoint: Endpoint, data: bytes, flags: int) -> None:
        ...

    @abstractmethod
    def receive_from(self, call: Call, octets: int, flags: int) -> None:
        ...

    @abstractmethod
    def send_message(self, call: Call) -> None:
        ...

    @abstractmethod
    def receive_message(self, call: Call) -> None:
        ...

    @abstractmethod
    def send_messages(self, call: Call) -> None:
        ...

    @abstractmethod
    def receive_messages(self, call: Call) -> None:
        ...

    def held_by_somebody(self, probe: socket.socket) -> bool:
        """Whether a program still has it, as far as that is easily told; `probe` is a datagram socket to try with."""
        return True

    @abstractmethod
    def close(self) -> None:
        """Nobody holds it any more."""


class Table:
    """All sockets of a group of programs."""

    SWEEP_AT: Final = 1024

    def __init__(self, held: Callable[[], set[int]]) -> None:
        """`held`: the inodes of all sockets that the programs hold."""
        self.sockets: dict[int, GuestSocket | Accepted] = {}            # by inode
        self._held = held
        self._sweep_at = self.SWEEP_AT

    def __len__(self) -> int:
        return len(self.sockets)

    def by_inode(self, inode: int) -> GuestSocket | None:
        """The socket with this inode; None: it is none of ours."""
        one = self.sockets.get(inode)
        return one.whole() if isinstance(one, Accepted) else one

    def inodes(self) -> set[int]:
        """Of all."""
        return set(self.sockets)

    def add(self, one: GuestSocket | Accepted) -> None:
        """Enter a socket, by its inode. Those that nobody holds go, once there are twice as many as after the last time."""
        if len(self.sockets) >= self._sweep_at:
            self.sweep()
        self.sockets[one.inode] = one

    def remove(self, one: GuestSocket) -> None:
        if self.sockets.get(one.inode) is one:
            del self.sockets[one.inode]

    def sweep(self) -> None:
        """Forget sockets that nobody holds."""
        inodes = self._held()
        for inode, one in list(self.sockets.items()):
            if inode not in inodes:
                del self.sockets[inode]
                one.close()
        self._sweep_at = max(self.SWEEP_AT, 2 * len(self.sockets))

    def forget_closed(self, probe: socket.socket) -> None:
        """Forget what says that nobody holds it: sockets of datagrams, whose end nobody sees, and who has spares."""
        for one in list(self.sockets.values()):
            if not isinstance(one, Accepted) and not one.held_by_somebody(probe):
                self.remove(one)
                one.close()

    def close(self) -> None:
        """Forget all."""
        for one in self.sockets.values():
            one.close()
        self.sockets.clear()


def error(number: int) -> OSError:
    """With the kernel's words."""
    return OSError(number, os.strerror(number))


def _endpoint(pair: Any) -> Endpoint:
    host, port = pair
    return Endpoint(str(host), int(port))
