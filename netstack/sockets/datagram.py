"""One UDP endpoint as an asyncio transport."""

from __future__ import annotations

import asyncio
import errno as errors
import socket
from typing import TYPE_CHECKING, Any

from netstack.sockets.addresses import fate, socket_address, text
from netstack.sockets.transport import octets
from netstack.sockets.view import DatagramView

if TYPE_CHECKING:
    from netstack.sockets.stack import AsyncStack

# Datagrams one endpoint hands to its protocol before others get their turn.
DATAGRAMS_MOST = 64


class DatagramTransport(asyncio.DatagramTransport):
    """An `asyncio.DatagramTransport` over one endpoint of the stack.

    It buffers nothing: received datagrams wait in the endpoint's bounded queue, and one that cannot be sent is reported
    to error_received at once.
    """

    __slots__ = ("__weakref__", "_closing", "_endpoint", "_protocol", "_remote", "_stack")

    def __init__(self, stack: AsyncStack, endpoint: int, remote: tuple[str, int] | None):
        self._extra: dict[str, Any] | None = None      # the names, once the endpoint is gone
        self._stack = stack
        self._endpoint = endpoint
        self._remote = remote
        self._protocol: Any = None      # the application's asyncio.DatagramProtocol
        self._closing = False

    def __repr__(self) -> str:
        state = "closing" if self._closing else "open"
        return f"<{type(self).__name__} {state} {self.get_extra_info('sockname')}>"

    # what the stack calls

    def _begin(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        self._stack.endpoints[self._endpoint] = self
        self._call(protocol.connection_made, self)
        self._stack.again(self)     # something may have come before we were known

    def _deliver(self) -> None:
        if self._closing:
            return
        udp = self._stack.udp
        if (error := udp.error(self._endpoint)) is not None:
            self._call(self._protocol.error_received, error)
        waiting = udp.receive(self._endpoint, DATAGRAMS_MOST)
        for data, host, port in waiting:
            if self._closing:
                return
            self._call(self._protocol.datagram_received, data, socket_address(host, port))
        if len(waiting) == DATAGRAMS_MOST:
            self._stack.again(self)

    def _call(self, callback: Any, *args: Any) -> None:
        """One callback of the protocol; one that raises is reported and costs only this datagram."""
        try:
            callback(*args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._stack.loop.call_exception_handler({
                "message": f"Fatal error: protocol.{callback.__name__}() call failed.", "exception": exc,
                "transport": self, "protocol": self._protocol})

    # sending

    def sendto(self, data: Any, addr: tuple[Any, ...] | None = None) -> None:
        """Send one datagram to `addr`, or to the peer of a connected endpoint.

        Raises ValueError when a connected endpoint is told another address, or an unconnected one none. Errors of the
        network (ENETUNREACH, EMSGSIZE ...) go to error_received.
        """
        view = octets(data)
        if self._remote is None:
            if addr is None:
                raise ValueError("addr must be given: the endpoint has no remote address")
            host, port = addr[0], addr[1]
        else:
            if addr is not None and tuple(addr[:2]) != self._remote:
                raise ValueError(f"Invalid address: must be None or {self._remote}")
            host, port = None, 0
        if self._closing:
            return
        try:
            self._stack.udp.send(self._endpoint, view, host, port)
        except OSError as exc:
            self._call(self._protocol.error_received, exc)
            return
        self._stack.kick()

    def get_write_buffer_size(self) -> int:
        """Always 0: nothing is buffered here."""
        return 0

    # the end

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Receive no more; connection_lost(None) follows."""
        if not self._closing:
            self._closing = True
            self._stack.loop.call_soon(self._finish)

    abort = close

    def _finish(self) -> None:
        try:
            self._protocol.connection_lost(None)
        finally:
            self._extra = {"peername": self.get_extra_info("peername"), "sockname": self.get_extra_info("sockname")}
            self._protocol = None
            self._discard()

    def _discard(self) -> None:
        self._closing = True
        self._stack.endpoints.pop(self._endpoint, None)
        self._stack.udp.close(self._endpoint)

    # what it is

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """"peername" (None unless connected), "sockname", "socket" (a read-only view), "stack" (the AsyncStack)."""
        if name == "socket":
            return DatagramView(self)
        if name == "stack":
            return self._stack
        if self._extra is not None:
            return self._extra.get(name, default)
        if name == "peername":
            return socket_address(*self._remote) if self._remote else default
        if name == "sockname":
            return socket_address(*self._stack.udp.local(self._endpoint))
        return default


async def open_endpoint(stack: AsyncStack, local: tuple[str | None, int] | None, remote: tuple[str, int] | None,
                        family: int, flags: int, reuse: bool) -> DatagramTransport:
    """Bind, and connect if there is a remote address; the first family that works for both."""
    if local is None and remote is None and not family:
        raise ValueError("unexpected address family")
    by_family: dict[int, list[tuple[str, int] | None]] = {family: [None, None]} if local is remote is None else {}
    for index, address in enumerate((local, remote)):
        if address is None:
            continue
        if not (isinstance(address, tuple) and len(address) >= 2):
            raise TypeError("2-tuple is expected")
        infos = await stack.resolve(address[0], address[1], family=family, type=socket.SOCK_DGRAM, flags=flags)
        for found, _, _, _, resolved in infos:
            by_family.setdefault(found, [None, None])[index] = resolved[:2]
    failed: list[OSError] = []
    for found, (source, target) in by_family.items():
        if (local and source is None) or (remote and target is None):
            continue
        host, port = source or (("::" if found == socket.AF_INET6 else "0.0.0.0"), 0)
        try:
            return bind_endpoint(stack, host, port, target, reuse)
        except OSError as exc:
            failed.append(exc)
    if failed:
        raise failed[0]
    raise ValueError("can not get address information")


def bind_endpoint(stack: AsyncStack, host: str, port: int, target: tuple[str, int] | None,
                  reuse: bool) -> DatagramTransport:
    """One endpoint on one local address. Raises OSError that names the address."""
    try:
        endpoint = stack.udp.bind(host, port, reuse)
    except OSError as exc:
        raise fate(exc.errno or errors.EIO, f"error while attempting to bind on address {text(host, port)}") from exc
    if target is not None:
        try:
            stack.udp.connect(endpoint, *target)
        except OSError as exc:
            stack.udp.close(endpoint)
            raise fate(exc.errno or errors.EIO, f"connect to {text(*target)} failed") from exc
    return DatagramTransport(stack, endpoint, target)
