"""Listening sockets with the face of asyncio.Server (its 3.13 methods, on any Python)."""

from __future__ import annotations

import asyncio
import errno as errors
from asyncio import sslproto
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from netstack.sockets.addresses import fate, socket_address, text
from netstack.sockets.view import ListenerView

if TYPE_CHECKING:
    from netstack.sockets.stack import AsyncStack
    from netstack.sockets.transport import StreamTransport


class Server(asyncio.AbstractServer):
    """Accepts connections on its addresses until closed; made by `AsyncStack.create_server`.

    As an async context manager it closes itself and waits for its connections at the end.
    """

    def __init__(self, stack: AsyncStack, factory: Callable[[], asyncio.BaseProtocol],
                 binds: Sequence[tuple[str | None, int]], backlog: int, tls: dict[str, Any] | None):
        self._stack = stack
        self._loop = stack.loop
        self._factory = factory
        self._binds = list(binds)           # the hosts to listen on (None: both families) and their ports
        self._backlog = backlog
        self._tls = tls
        self._listeners: list[int] = []     # ids of the core, while serving
        self._active = 0                    # connections that are not lost yet
        self._closed = False
        self._waiters: list[asyncio.Future[None]] | None = []
        self._forever: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed else "serving" if self._listeners else "bound"
        where = " ".join(text(host, port) for host, port in self._binds)
        return f"<{type(self).__name__} {state} {where} connections={self._active}>"

    def _listen(self) -> None:
        """Open all listeners or none."""
        if self._listeners:
            return
        tcp = self._stack.tcp
        listeners: list[int] = []
        try:
            for index, (host, port) in enumerate(self._binds):
                try:
                    listener = tcp.listen(host, port, self._backlog)
                except OSError as exc:
                    what = f"error while attempting to bind on address {text(host, port)}"
                    raise fate(exc.errno or errors.EIO, what) from exc
                listeners.append(listener)
                self._binds[index] = (host, tcp.listener_port(listener))
        except BaseException:
            for listener in listeners:
                tcp.close_listener(listener)
            raise
        self._listeners = listeners
        for listener in listeners:
            self._stack.servers[listener] = self

    def _unlisten(self) -> None:
        for listener in self._listeners:
            self._stack.servers.pop(listener, None)
            self._stack.tcp.close_listener(listener)
        if self._listeners:
            self._stack.kick()
        self._listeners = []

    def _accept(self, handle: int, bits: int, errno: int) -> None:
        """A connection of one of our listeners is established."""
        try:
            protocol = self._factory()
            if self._tls is not None:
                protocol = sslproto.SSLProtocol(self._loop, protocol, waiter=None, server_side=True, **self._tls)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._loop.call_exception_handler(
                {"message": "Error on transport creation for incoming connection", "exception": exc})
            self._stack.reset(handle)
            return
        transport = self._stack._adopt(handle, protocol, self)
        self._attach()
        transport._begin()
        transport._event(bits, errno)

    def _attach(self) -> None:
        self._active += 1

    def _detach(self) -> None:
        self._active -= 1
        self._wake_when_done()

    def _wake_when_done(self) -> None:
        if self._closed and not self._active and self._waiters is not None:
            waiters, self._waiters = self._waiters, None
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        return bool(self._listeners)

    @property
    def sockets(self) -> tuple[ListenerView, ...]:
        """One per address and family, empty when closed."""
        if self._closed:
            return ()
        return tuple(ListenerView(socket_address(host, port)) for bound, port in self._binds
                     for host in ((bound,) if bound else ("0.0.0.0", "::")))

    async def start_serving(self) -> None:
        """Accept connections; nothing happens if it does already. Raises RuntimeError when closed, or OSError."""
        if self._closed:
            raise RuntimeError(f"server {self!r} is closed")
        self._listen()
        await asyncio.sleep(0)

    async def serve_forever(self) -> None:
        """Serve until cancelled, then close the server and its connections."""
        if self._forever is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        if self._closed:
            raise RuntimeError(f"server {self!r} is closed")
        self._listen()
        self._forever = self._loop.create_future()
        try:
            await self._forever
        except asyncio.CancelledError:
            self.close()
            self.close_clients()
            await self.wait_closed()
            raise
        finally:
            self._forever = None

    def close(self) -> None:
        """Accept no more. Connections already made live on."""
        if self._closed:
            return
        self._closed = True
        self._unlisten()
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()
        self._wake_when_done()

    def close_clients(self) -> None:
        """close() every connection this server has accepted; what they have written is still sent."""
        for transport in list(self._clients()):
            transport.close()

    def abort_clients(self) -> None:
        """abort() every connection this server has accepted."""
        for transport in list(self._clients()):
            transport.abort()

    def _clients(self) -> Iterator[StreamTransport]:
        # Looking through all is rare; a set of its own would cost every connection memory.
        return (transport for transport in self._stack.transports() if transport._server is self)

    async def wait_closed(self) -> None:
        """Wait until the server is closed and all its connections are gone."""
        if self._waiters is None:
            return
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter
