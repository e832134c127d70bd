"""A supervisor's way to the daemon: one session, on which questions are asked and orders given that nobody waits for.

Compiled: each socket that a program makes comes from here.
"""

import errno
import os
from collections import deque
from typing import Any

from rustosd import open_files
from rustosd.client.session import DEFAULT_SOCKET, Answer, Door, checked
from rustosd.client.wire import MORE_MOST, SPARES_MOST
from rustosd.process.threads import inode_of

_Kind = tuple[str, int]


class Opened:
    """A socket that the daemon has made. Its descriptor is whose it becomes."""

    __slots__ = ("buffer", "fd", "identity", "inode", "policed", "port")

    def __init__(self, answer: Answer, identity: str, fd: int, port: int) -> None:
        """`port`: the daemon keeps it for when the program wants any; 0: none."""
        self.identity, self.fd, self.port = identity, fd, port
        self.inode = inode_of(fd)
        self.buffer, self.policed = answer["buffer"], answer["policed"]


class Link:
    """Operations of `rustosd.handoff.protocol`, in the order in which they are asked for."""

    def __init__(self, path: str | None = None) -> None:
        """Raises OSError with what to do when no daemon answers."""
        self.path = path or os.environ.get("RUSTOSD_SOCKET") or DEFAULT_SOCKET
        self._session = Door(self.path).open()
        self._stock: dict[_Kind, deque[Opened]] = {}
        self.want_ports = False
        """From now on sockets shall come with a port kept for each: programs bind them to any."""

    def ask(self, op: str, **fields: Any) -> Answer:
        """Carry one out. Raises the OSError it ends with; ENETDOWN when the daemon has stopped."""
        try:
            self._session.send({"op": op, **fields})
            return checked(self._session.receive())
        except (ConnectionError, TimeoutError) as error:
            raise self._stopped(error) from None

    def tell(self, op: str, **fields: Any) -> None:
        """Have one carried out that gives no answer, before the next question is. Raises OSError (ENETDOWN)."""
        try:
            self._session.send({"op": op, **fields})
        except (ConnectionError, TimeoutError) as error:
            raise self._stopped(error) from None

    def open(self, kind: str, family: int) -> Opened:
        """A new socket. Raises OSError.

        Who makes a second one of a kind makes more: some come along, and lie ready.
        """
        stock = self._stock.get((kind, family))
        if not stock:
            answer = self.ask("open", type=kind, family=family, more=0 if stock is None else MORE_MOST,
                              ports=self.want_ports)
            stock = self._stock[kind, family] = deque()
            identities = [answer["id"], *answer.get("more", ())]
            ports = answer.get("ports") or [0] * len(identities)
            stock.extend(Opened(answer, *one) for one in zip(identities, answer.fds, ports, strict=True))
        return stock.popleft()

    def spares(self, identity: str) -> dict[bytes, int]:
        """Descriptors for the next connections of a listening socket, by their ids: as many as fit. Raises OSError.

        A connection for one that found no room here would be lost.
        """
        count = min(SPARES_MOST, open_files.room() // 4)
        if count == 0:
            return {}
        answer = self.ask("spare", id=identity, count=count)
        return dict(zip(map(bytes.fromhex, answer["ids"]), answer.fds, strict=False))     # some may not have come

    def close(self) -> None:
        """The sockets live on, but for those that nobody has asked for."""
        self._session.close()
        for stock in self._stock.values():
            while stock:
                os.close(stock.popleft().fd)

    def _stopped(self, error: OSError) -> OSError:
        return OSError(errno.ENETDOWN, f"rustosd on {self.path} has stopped: {error.strerror or error}")
