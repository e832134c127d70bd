"""Datagram sockets of other processes."""

from __future__ import annotations

import errno as errors
import select
from typing import TYPE_CHECKING

from rustosd.client.wire import unpack_address
from rustosd.handoff.splice import DatagramSplice
from rustosd.handoff.stream import any_host
from rustosd.policy import VERDICTS_MOST

if TYPE_CHECKING:
    from rustosd.descriptors import End
    from rustosd.handoff.broker import Handoff
    from rustosd.handoff.protocol import Answer
    from rustosd.policy import Protocol, Subject

GONE = select.EPOLLHUP | select.EPOLLERR


class DatagramSocket:
    """One UDP socket of a client; it has a splice from `bind` on."""

    protocol: Protocol = "udp"

    def __init__(self, broker: Handoff, identity: bytes, end: End, pid: int, family: int, subject: Subject):
        self.broker = broker
        self.id = identity
        self.end = end
        self.pid = pid
        self.family = family
        self.subject = subject
        self._verdicts: dict[tuple[bytes, int], str | None] = {}    # which policy denies a destination
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
        self.endpoint = network.udp.bind(host or any_host(self.family), port, bool(self.options.get("reuse_port")), v6only)
        self.splice = network.endpoints[self.endpoint] = DatagramSplice(network.udp, self.endpoint, self.end.fileno(), self)
        self.note_policies()
        self.broker.ends.watch(self.end.fileno(), self.splice)
        network.again(self.splice)      # something may be there already, from either side
        return self.names()

    def connect(self, host: str, port: int, chaff: int) -> Answer:
        """Raises OSError: ENETUNREACH, EADDRNOTAVAIL, EAFNOSUPPORT."""
        if self.endpoint is None:
            self.bind("", 0, False)
        self.broker.network.udp.connect(self.endpoint, host, port)
        return self.names()

    def keep_port(self) -> int:
        """A datagram socket is bound at once: none."""
        return 0

    def bind_as_told(self, v6only: bool) -> None:
        """No port was kept for it."""

    def listen(self, backlog: int) -> Answer:
        raise OSError(errors.EOPNOTSUPP, "a datagram socket does not listen")

    def set(self, option: str, value: int) -> Answer:
        self.options[option] = value
        if option == "receive_buffer":
            self.end.limit(min(value, self.broker.limits.buffer_octets) // 2)
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

    def note_policies(self) -> None:
        """Have the splice ask for every datagram if there is anything to deny."""
        self._verdicts.clear()
        if self.splice is not None:
            self.splice.policed = self.broker.policies.permit(self.subject).restricts

    def may_send(self, address: bytes, port: int) -> bool:
        """Whether a policy lets a datagram go there. Never raises."""
        host = unpack_address(address)
        if (address, port) not in self._verdicts:
            if len(self._verdicts) >= VERDICTS_MOST:
                self._verdicts.clear()
            self._verdicts[address, port] = self.broker.policies.permit(self.subject).connect(self.protocol, host, port)
        denied = self._verdicts[address, port]
        if denied is not None:
            self.broker.deny(denied, "send", self.subject, self.pid, self.protocol, host, port)
        return denied is None

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
        self.broker.remove(self.id, self.pid, self.end)

    def close(self) -> None:
        """Give back whatever there is. May be called twice."""
        if self.splice is not None:
            self.splice.close()
        else:
            self.broker.remove(self.id, self.pid, self.end)
