"""Datagram sockets of other processes."""

from __future__ import annotations

import errno as errors
import select
import socket
from typing import TYPE_CHECKING

from rustosd.handoff.splice import DatagramSplice
from rustosd.handoff.stream import any_host

if TYPE_CHECKING:
    from rustosd.handoff.broker import Handoff
    from rustosd.handoff.protocol import Answer

GONE = select.EPOLLHUP | select.EPOLLERR


class DatagramSocket:
    """One UDP socket of a client; it has a splice from `bind` on."""

    def __init__(self, broker: Handoff, identity: str, end: socket.socket, pid: int, family: int):
        self.broker = broker
        self.id = identity
        self.end = end
        self.pid = pid
        self.family = family
        self.options: dict[str, int] = {}
        self.endpoint: int | None = None
        self.splice: DatagramSplice | None = None

    def woken(self, events: int) -> None:
        if events & GONE:
            self.close()

    # what the client asks

    def bind(self, host: str, port: int, v6only: bool) -> Answer:
        """Raises OSError: EINVAL when it is bound already, EADDRINUSE, EADDRNOTAVAIL, EMFILE."""
        if self.endpoint is not None:
            raise OSError(errors.EINVAL, "the socket is bound already")
        network = self.broker.network
        self.endpoint = network.udp.bind(host or any_host(self.family), port, bool(self.options.get("reuse_port")))
        self.splice = network.endpoints[self.endpoint] = DatagramSplice(network.udp, self.endpoint, self.end.fileno(), self)
        self.broker.watch(self.end.fileno(), self.splice)
        network.again(self.splice)      # something may be there already, from either side
        return self.names()

    def connect(self, host: str, port: int, chaff: int) -> Answer:
        """Raises OSError: ENETUNREACH, EADDRNOTAVAIL, EAFNOSUPPORT."""
        if self.endpoint is None:
            self.bind("", 0, False)
        self.broker.network.udp.connect(self.endpoint, host, port)
        return self.names()

    def listen(self, backlog: int) -> Answer:
        raise OSError(errors.EOPNOTSUPP, "a datagram socket does not listen")

    def set(self, option: str, value: int) -> Answer:
        self.options[option] = value
        if option == "receive_buffer":
            self.end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, min(value, self.broker.limits.buffer_octets) // 2)
        return {}

    def names(self) -> Answer:
        udp = self.broker.network.udp
        if self.endpoint is None:
            return {"local": (any_host(self.family), 0), "remote": None}
        return {"local": udp.local(self.endpoint), "remote": udp.remote(self.endpoint)}

    def facts(self) -> Answer:
        """Raises OSError (ENOTCONN) when it is not bound."""
        for row in self.broker.network.udp.rows():
            if row["id"] == self.endpoint:
                return row
        raise OSError(errors.ENOTCONN, "the socket is not bound")

    # what the splice tells

    def kick(self) -> None:
        self.broker.network.kick()

    def again(self, splice: DatagramSplice) -> None:
        self.broker.network.again(splice)

    def gone(self) -> None:
        """Nobody holds the other end, or the stack closes."""
        network = self.broker.network
        network.endpoints.pop(self.endpoint, None)
        network.udp.close(self.endpoint)
        self.endpoint = None
        self.broker.forget(self)

    def close(self) -> None:
        """Give back whatever there is. May be called twice."""
        if self.splice is not None:
            self.splice.close()
        else:
            self.broker.forget(self)
