"""The stack as asyncio sees it: the network methods of an event loop, and the delivery of events to protocols."""

from __future__ import annotations

import asyncio
import socket
import ssl as tls
import time
from asyncio import sslproto
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from netstack.sockets.addresses import AddressInfo, interleave as interleaved, literal
from netstack.sockets.connect import Attempt, establish
from netstack.sockets.datagram import DatagramTransport, open_endpoint
from netstack.sockets.server import Server
from netstack.sockets.streams import open_connection, start_server
from netstack.sockets.transport import StreamTransport
from netstack.tcp.api import EVENT_ACCEPTED

P = TypeVar("P", bound=asyncio.BaseProtocol)
Resolver = Callable[..., Awaitable[Sequence[AddressInfo]]]


class AsyncStack:
    """TCP and UDP of one `Stack` for asyncio programs; every method is called on the loop's thread.

    The pump calls `dispatch` after each receive and advance. `kick` is called whenever the core may have something to
    send; it must only note that (a flush soon), never call back. Nothing here looks at connections without news.
    """

    def __init__(self, stack: Any, loop: asyncio.AbstractEventLoop, kick: Callable[[], None], *,
                 resolver: Resolver | None = None, clock: Callable[[], int] = time.monotonic_ns):
        self.stack = stack
        self.tcp = stack.tcp
        self.udp = stack.udp
        self.loop = loop
        self.kick = kick
        self.clock = clock                                          # ns, as the pump's
        self.resolver = resolver or loop.getaddrinfo                # asked for names only, never for literals
        self.connections: dict[int, StreamTransport | Attempt] = {}  # by the core's handle
        self.servers: dict[int, Server] = {}                        # by listener id
        self.endpoints: dict[int, DatagramTransport] = {}           # by endpoint id
        self._unfinished: list[StreamTransport | DatagramTransport] = []

    # for the pump and the transports

    def dispatch(self) -> None:
        """Deliver all events that are new since the last call to their protocols.

        Bounded: READ_MOST octets or DATAGRAMS_MOST datagrams each; who has more waiting gets it in later rounds.
        """
        connections = self.connections
        while news := self.tcp.ready():     # reading the last octet makes the news of EOF: a second look, never a third
            for handle, bits, errno in news:
                if (connection := connections.get(handle)) is not None:
                    connection._event(bits, errno)
                elif bits & EVENT_ACCEPTED:
                    self._accept(handle, bits, errno)
        for endpoint in self.udp.ready():
            if (transport := self.endpoints.get(endpoint)) is not None:
                transport._deliver()
        self.kick_if_touched()

    def kick_if_touched(self) -> None:
        """Kick if those who follow connections by themselves have moved octets since the last time."""
        if self.tcp.touched:
            self.tcp.touched = False
            self.kick()

    def again(self, transport: StreamTransport | DatagramTransport) -> None:
        """Let the transport deliver in the loop's next round."""
        self._unfinished.append(transport)
        if len(self._unfinished) == 1:
            self.loop.call_soon(self._next_round)

    def _next_round(self) -> None:
        unfinished, self._unfinished = self._unfinished, []
        for transport in unfinished:
            transport._deliver()
        self.kick()         # windows have opened

    def _accept(self, handle: int, bits: int, errno: int) -> None:
        server = self.servers.get(self.tcp.listener_of(handle))
        if server is None:          # closed since
            self.reset(handle)
        else:
            server._accept(handle, bits, errno)

    def _adopt(self, handle: int, protocol: asyncio.BaseProtocol, server: Server | None = None) -> StreamTransport:
        self.tcp.set_nodelay(handle, True)      # as asyncio has it on every platform
        transport = self.connections[handle] = StreamTransport(self, handle, protocol, server)
        return transport

    def release(self, handle: int) -> None:
        """The application is done with the connection; the core completes its closing handshake."""
        self.connections.pop(handle, None)
        self.tcp.release(handle)
        self.kick()

    def reset(self, handle: int) -> None:
        """The application is done with the connection and wants the peer to see RST."""
        self.connections.pop(handle, None)
        self.tcp.abort(handle)
        self.kick()

    def transports(self) -> Iterator[StreamTransport]:
        """All connections that have a transport."""
        return (c for c in list(self.connections.values()) if isinstance(c, StreamTransport))

    def close(self) -> None:
        """Close every server, connection and endpoint; what was written is still sent."""
        for one in [*self.servers.values(), *self.connections.values(), *self.endpoints.values()]:
            one.close()

    def abort(self) -> None:
        """Close every server and endpoint and reset every connection."""
        for server in list(self.servers.values()):
            server.close()
        for one in [*self.connections.values(), *self.endpoints.values()]:
            one.abort()

    # names

    async def resolve(self, host: str | None, port: int | str | None, *, family: int = 0,
                      type: int = socket.SOCK_STREAM, flags: int = 0) -> Sequence[AddressInfo]:
        """As getaddrinfo; literals without I/O, names by the injected resolver. Raises OSError when there is none."""
        if host and (known := literal(host, port, family, type)) is not None:
            return known
        infos = await self.resolver(host, port, family=family, type=type, flags=flags)
        if not infos:
            raise OSError(f"getaddrinfo({host!r}) returned empty list")
        return infos

    # what an event loop offers

    async def create_server(self, protocol_factory: Callable[[], asyncio.BaseProtocol],
                            host: str | Iterable[str] | None = None, port: int | str | None = 0, *,
                            family: int = socket.AF_UNSPEC, flags: int = socket.AI_PASSIVE, backlog: int = 128,
                            ssl: tls.SSLContext | None = None, reuse_address: bool | None = None,
                            reuse_port: bool | None = None, ssl_handshake_timeout: float | None = None,
                            ssl_shutdown_timeout: float | None = None, start_serving: bool = True) -> Server:
        """A server on `port` (0: any free one) of one host, several, or (None, "") every address of both families.

        Raises OSError (EADDRINUSE, EADDRNOTAVAIL), naming the address. SO_REUSEADDR is how the stack always is.
        """
        if isinstance(ssl, bool):
            raise TypeError("ssl argument must be an SSLContext or None")
        if reuse_port:
            raise ValueError("reuse_port is not supported: one listener per port")
        settings = tls_settings(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
        hosts = [host] if host is None or isinstance(host, str) else list(host)
        binds: dict[tuple[str | None, int], None] = {}      # an ordered set
        for one in hosts:
            if not one:
                wildcard = {socket.AF_UNSPEC: None, socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}[family]
                _, _, _, _, address = (await self.resolve("0.0.0.0", port, flags=flags))[0]
                binds[wildcard, address[1]] = None
                continue
            for _, _, _, _, address in await self.resolve(one, port, family=family, flags=flags):
                binds[address[0], address[1]] = None
        server = Server(self, protocol_factory, list(binds), backlog, settings)
        server._listen()
        if not start_serving:
            # The ports are known now, and that they are free; until start_serving() they refuse connections.
            server._unlisten()
        await asyncio.sleep(0)
        return server

    async def create_connection(self, protocol_factory: Callable[[], P], host: str | None = None,
                                port: int | str | None = None, *, ssl: bool | tls.SSLContext | None = None,
                                family: int = 0, proto: int = 0, flags: int = 0,
                                local_addr: tuple[str, int] | None = None, server_hostname: str | None = None,
                                ssl_handshake_timeout: float | None = None, ssl_shutdown_timeout: float | None = None,
                                happy_eyeballs_delay: float | None = None, interleave: int | None = None,
                                all_errors: bool = False) -> tuple[asyncio.Transport, P]:
        """Connect to the first address of `host` that answers; returns (transport, protocol).

        Raises ConnectionRefusedError, TimeoutError (the core gave up on SYN), OSError (ENETUNREACH, EHOSTUNREACH,
        EADDRNOTAVAIL, EADDRINUSE), ssl.SSLError, or the resolver's error. Cancelling it resets what was begun.
        """
        if host is None and port is None:
            raise ValueError("host and port was not specified")
        server_hostname = checked_hostname(ssl, server_hostname, host)
        settings = tls_settings(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
        infos = await self.resolve(host, port, family=family, flags=flags)
        sources = None if local_addr is None else await self.resolve(*local_addr, family=family, flags=flags)
        if happy_eyeballs_delay is not None and interleave is None:
            interleave = 1
        if interleave:
            infos = interleaved(infos, interleave)
        attempt = await establish(self, infos, sources, happy_eyeballs_delay, all_errors)
        return await self.wrap(attempt, protocol_factory, settings, server_hostname)

    async def wrap(self, attempt: Attempt, protocol_factory: Callable[[], P], settings: dict[str, Any] | None,
                   server_hostname: str | None) -> tuple[asyncio.Transport, P]:
        """Give an established connection its protocol, with TLS on top when there are `settings` for it."""
        try:
            app_protocol = protocol_factory()
            protocol, waiter = app_protocol, None
            if settings is not None:
                waiter = self.loop.create_future()
                protocol = sslproto.SSLProtocol(self.loop, app_protocol, waiter=waiter,
                                                server_hostname=server_hostname, **settings)
        except BaseException:
            attempt.abandon(self)
            raise
        transport = self._adopt(attempt.handle, protocol)
        transport._note(attempt.bits, attempt.errno)
        transport._begin()
        self.again(transport)       # data comes after we have returned
        if waiter is None:
            return transport, app_protocol
        try:
            await waiter
        except BaseException:
            transport.close()
            raise
        return protocol._app_transport, app_protocol

    async def start_tls(self, transport: StreamTransport, protocol: asyncio.BaseProtocol, sslcontext: tls.SSLContext, *,
                        server_side: bool = False, server_hostname: str | None = None,
                        ssl_handshake_timeout: float | None = None,
                        ssl_shutdown_timeout: float | None = None) -> asyncio.Transport:
        """Upgrade a connection to TLS; returns the transport `protocol` uses from now on. Raises ssl.SSLError."""
        if not isinstance(sslcontext, tls.SSLContext):
            raise TypeError(f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}")
        if not getattr(transport, "_start_tls_compatible", False):
            raise TypeError(f"transport {transport!r} is not supported by start_tls()")
        waiter = self.loop.create_future()
        upper = sslproto.SSLProtocol(self.loop, protocol, sslcontext, waiter, server_side, server_hostname,
                                     ssl_handshake_timeout=ssl_handshake_timeout,
                                     ssl_shutdown_timeout=ssl_shutdown_timeout, call_connection_made=False)
        transport.pause_reading()       # nothing may reach it before connection_made
        transport.set_protocol(upper)
        calls = [self.loop.call_soon(upper.connection_made, transport), self.loop.call_soon(transport.resume_reading)]
        try:
            await waiter
        except BaseException:
            transport.close()
            for call in calls:
                call.cancel()
            raise
        return upper._app_transport

    async def create_datagram_endpoint(self, protocol_factory: Callable[[], P],
                                       local_addr: tuple[str | None, int] | None = None,
                                       remote_addr: tuple[str, int] | None = None, *, family: int = 0, proto: int = 0,
                                       flags: int = 0, reuse_port: bool | None = None,
                                       allow_broadcast: bool | None = None) -> tuple[DatagramTransport, P]:
        """A UDP endpoint on `local_addr` (else any port), connected to `remote_addr` if given.

        Raises OSError (EADDRINUSE, EADDRNOTAVAIL, ENETUNREACH), or the resolver's error.
        """
        transport = await open_endpoint(self, local_addr, remote_addr, family, flags, bool(reuse_port))
        try:
            protocol = protocol_factory()
        except BaseException:
            transport._discard()
            raise
        transport._begin(protocol)
        return transport, protocol

    open_connection = open_connection
    start_server = start_server


def tls_settings(ssl: bool | tls.SSLContext | None, handshake_timeout: float | None,
                 shutdown_timeout: float | None) -> dict[str, Any] | None:
    """The keyword arguments for SSLProtocol, None for plain TCP. Raises ValueError for timeouts without TLS."""
    if not ssl:
        if handshake_timeout is not None:
            raise ValueError("ssl_handshake_timeout is only meaningful with ssl")
        if shutdown_timeout is not None:
            raise ValueError("ssl_shutdown_timeout is only meaningful with ssl")
        return None
    for name, value in (("ssl_handshake_timeout", handshake_timeout), ("ssl_shutdown_timeout", shutdown_timeout)):
        if value is not None and value <= 0:
            raise ValueError(f"{name} should be a positive number, got {value}")
    return {"sslcontext": None if ssl is True else ssl, "ssl_handshake_timeout": handshake_timeout,
            "ssl_shutdown_timeout": shutdown_timeout}


def checked_hostname(ssl: bool | tls.SSLContext | None, server_hostname: str | None, host: str | None) -> str | None:
    """The name the certificate must have: `host` unless given. Raises ValueError when it makes no sense."""
    if server_hostname is None:
        if ssl and not host:
            raise ValueError("You must set server_hostname when using ssl without a host")
        return host if ssl else None
    if not ssl:
        raise ValueError("server_hostname is only meaningful with ssl")
    return server_hostname
