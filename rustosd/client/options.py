"""Socket options and names: what stays with the program, and what the daemon is told."""

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rustosd.client.session import Daemon

Address = tuple[Any, ...]
_LINGER = struct.Struct("ii")

# Set at the daemon, by these names.
_TOLD = {
    (socket.IPPROTO_TCP, socket.TCP_NODELAY): "nodelay",
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): "keepalive",
    (socket.SOL_SOCKET, socket.SO_RCVBUF): "receive_buffer",
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): "keepalive_idle",
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): "keepalive_interval",
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): "keepalive_probes",
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): "user_timeout",
}
# What they may be, as Linux has it: seconds, seconds, probes, milliseconds.
RANGES = {
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): (1, 32767), (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): (1, 32767),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): (1, 127), (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): (0, 0x7FFF_FFFF),
}
_VALUE_MOST = 1 << 30         # that the daemon is told
DEFAULTS = {(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 7200, (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 75,
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 9}
# How the stack is anyway, or what takes effect with the next bind.
_KEPT = {(socket.SOL_SOCKET, socket.SO_REUSEADDR), (socket.SOL_SOCKET, socket.SO_BROADCAST),
         (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)}
_REUSE_PORT = (socket.SOL_SOCKET, socket.SO_REUSEPORT)
_SO_LINGER = (socket.SOL_SOCKET, socket.SO_LINGER)


class Options:
    """What a socket of the stack is, apart from its descriptor: id, family, type, names and options."""

    _daemon: "Daemon"
    _id: str
    _family: socket.AddressFamily
    _kind: socket.SocketKind
    _local: Address | None = None
    _remote: Address | None = None
    _options: dict[tuple[int, int], Any]

    @property
    def family(self) -> socket.AddressFamily:
        return self._family

    @property
    def type(self) -> socket.SocketKind:
        return self._kind

    @property
    def proto(self) -> int:
        return socket.IPPROTO_TCP if self._kind == socket.SOCK_STREAM else socket.IPPROTO_UDP

    def _ask(self, op: str, **fields: Any) -> dict[str, Any]:
        return self._daemon.ask(op, id=self._id, **fields)

    def _note_names(self, names: dict[str, Any]) -> None:
        self._local = self._address(*names["local"])
        self._remote = self._address(*names["remote"]) if names["remote"] else None

    def _address(self, host: str, port: int) -> Address:
        """As the socket API writes it for our family."""
        if self._family == socket.AF_INET:
            return host, port
        return (host if ":" in host else f"::ffff:{host}"), port, 0, 0

    def getsockname(self) -> Address:
        if self._local is None:
            self._note_names(self._ask("names"))
        return self._local

    def getpeername(self) -> Address:
        """Raises OSError (ENOTCONN) when there is no peer."""
        if self._remote is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self._remote

    def setsockopt(self, level: int, option: int, value: Any, length: int | None = None) -> None:
        """TCP_NODELAY, SO_KEEPALIVE, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_USER_TIMEOUT, SO_LINGER, SO_RCVBUF,
        SO_SNDBUF, SO_REUSEADDR, SO_REUSEPORT, SO_BROADCAST and IPV6_V6ONLY.

        Raises OSError: ENOPROTOOPT for any other, EINVAL for a value out of range.
        """
        key = level, option
        if key == _SO_LINGER:
            on, seconds = _LINGER.unpack(value)
            self._ask("set", option="reset_on_close", value=int(bool(on) and seconds == 0))
        elif key in _TOLD:
            self._ask("set", option=_TOLD[key], value=within(key, _number(value)))
        elif key == _REUSE_PORT:
            self._ask("set", option="reuse_port", value=_number(value))
        elif key not in _KEPT:
            raise OSError(errno.ENOPROTOOPT, f"socket option {level}/{option} is not one of the stack's")
        self._options[key] = value

    def getsockopt(self, level: int, option: int, length: int = 0) -> Any:
        """Those of setsockopt, SO_ERROR, SO_TYPE, SO_DOMAIN, SO_PROTOCOL. Raises OSError (ENOPROTOOPT)."""
        key = level, option
        facts = {socket.SO_TYPE: self._kind, socket.SO_DOMAIN: self._family, socket.SO_PROTOCOL: self.proto,
                 socket.SO_ERROR: 0}
        if level == socket.SOL_SOCKET and option in facts:
            return int(facts[option])
        if key in self._options:
            return self._options[key] if length else _number(self._options[key])
        if key == _SO_LINGER:
            return _LINGER.pack(0, 0)
        if key in _TOLD or key in _KEPT or key == _REUSE_PORT:
            return DEFAULTS.get(key, 0)
        raise OSError(errno.ENOPROTOOPT, f"socket option {level}/{option} is not one of the stack's")

    def facts(self) -> dict[str, Any]:
        """What the stack knows of the connection, as TCP_INFO would: times in ns, sizes in octets."""
        return dict(self._ask("facts"))


def within(key: tuple[int, int], value: int) -> int:
    """What the daemon is told of an option. Raises OSError (EINVAL) when it is out of its range."""
    first, last = RANGES.get(key, (value, value))
    if not first <= value <= last:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return min(value, _VALUE_MOST)


def _number(value: Any) -> int:
    return value if isinstance(value, int) else struct.unpack("i", value[:4])[0]


class View(Options):
    """What get_extra_info("socket") gives: a socket to ask and tune, none to read or write."""

    def __init__(self, of: Options):
        self.__dict__.update({name: getattr(of, name) for name in Options.__annotations__})

    def __repr__(self) -> str:
        return f"<{type(self).__name__} family={self.family.name} laddr={self._local} raddr={self._remote}>"

    def fileno(self) -> int:
        """-1: the descriptor is the transport's."""
        return -1

    def gettimeout(self) -> float:
        return 0.0
