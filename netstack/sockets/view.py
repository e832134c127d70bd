"""What get_extra_info("socket") and Server.sockets give: enough of a socket to ask and tune, none to read or write."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import BaseTransport

SETTABLE = {
    (socket.IPPROTO_TCP, socket.TCP_NODELAY): "set_nodelay",
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): "set_keepalive",
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): "set_keepalive_idle",
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): "set_keepalive_interval",
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): "set_keepalive_probes",
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): "set_user_timeout",
}

# Of what they are, as Linux has it: seconds, seconds, probes, milliseconds.
RANGES = {
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): (1, 32767), (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): (1, 32767),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): (1, 127), (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): (0, 0x7FFF_FFFF),
}


class SocketView:
    """A socket of the stack, as far as asyncio's own TransportSocket shows one. It has no file descriptor."""

    __slots__ = ("_transport",)

    type = socket.SOCK_STREAM
    proto = socket.IPPROTO_TCP

    def __init__(self, transport: BaseTransport):
        self._transport = transport

    def __repr__(self) -> str:
        return f"<{type(self).__name__} laddr={self.getsockname()} raddr={self._transport.get_extra_info('peername')}>"

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.getsockname()[0] else socket.AF_INET

    def fileno(self) -> int:
        """-1: there is none to poll."""
        return -1

    def getsockname(self) -> tuple[Any, ...]:
        return self._transport.get_extra_info("sockname")

    def getpeername(self) -> tuple[Any, ...]:
        """Raises OSError (ENOTCONN) when there is no peer."""
        peer = self._transport.get_extra_info("peername")
        if peer is None:
            raise OSError(errno.ENOTCONN, "the socket has no peer")
        return peer

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        """TCP_NODELAY, SO_KEEPALIVE, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT and TCP_USER_TIMEOUT.

        Raises OSError: ENOPROTOOPT for any other, EINVAL for a value out of range.
        """
        name = SETTABLE.get((level, option))
        if name is None or self.type != socket.SOCK_STREAM:
            raise OSError(errno.ENOPROTOOPT, f"socket option {level}/{option} is not one of the stack's")
        first, last = RANGES.get((level, option), (0, 0))
        if last and not first <= value <= last:
            raise OSError(errno.EINVAL, f"{value} is not from {first} to {last}")
        self._transport._set_option(name, value if last else bool(value))

    def getsockopt(self, level: int, option: int) -> int:
        """SO_TYPE, SO_ERROR, SO_DOMAIN, SO_PROTOCOL. Raises OSError (ENOPROTOOPT) for any other."""
        known = {socket.SO_TYPE: self.type, socket.SO_ERROR: 0, socket.SO_DOMAIN: self.family,
                 socket.SO_PROTOCOL: self.proto}
        if level != socket.SOL_SOCKET or option not in known:
            raise OSError(errno.ENOPROTOOPT, f"socket option {level}/{option} cannot be read")
        return int(known[option])

    def gettimeout(self) -> float:
        return 0.0

    def settimeout(self, value: float) -> None:
        """Raises ValueError unless 0: a socket of the stack never blocks."""
        if value != 0:
            raise ValueError("settimeout(): only 0 is possible")

    def setblocking(self, flag: bool) -> None:
        """Raises ValueError when true: a socket of the stack never blocks."""
        if flag:
            raise ValueError("setblocking(): a socket of the stack cannot block")


class DatagramView(SocketView):
    """The same for an endpoint of UDP."""

    __slots__ = ()

    type = socket.SOCK_DGRAM
    proto = socket.IPPROTO_UDP


class ListenerView(SocketView):
    """The same for one address family of a listener."""

    __slots__ = ("_name",)

    def __init__(self, name: tuple[Any, ...]):
        self._name = name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} laddr={self._name}>"

    def getsockname(self) -> tuple[Any, ...]:
        return self._name

    def getpeername(self) -> tuple[Any, ...]:
        raise OSError(errno.ENOTCONN, "a listener has no peer")

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        raise OSError(errno.ENOPROTOOPT, "a listener has no options")
