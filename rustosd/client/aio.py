"""asyncio's streams, servers, transports and datagram endpoints on the daemon's stack, under any event loop.

    import rustosd.client.aio as asyncio        # the program stays as it is

`open_connection` and `start_server` are as asyncio has them; `create_connection`, `create_server`, `create_datagram_endpoint`
and `start_tls`, methods of the loop there, are functions here. All else is asyncio's own.
"""

import asyncio as _asyncio
import contextlib
import errno
import os
import socket as _socket
import sys
from asyncio.transports import _FlowControlMixin
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from rustosd.client.options import Address, View
from rustosd.client.session import PATIENCE_S, Daemon, Door, checked, unreachable
from rustosd.client.sock import DatagramSocket, Socket, StreamSocket, _daemon
from rustosd.client.zero_copy import LEAST, ONE_OCTET, ZeroCopyWriter, pays

P = TypeVar("P", bound=_asyncio.BaseProtocol)
ACCEPTS_MOST = 64           # connections a server takes before others get their turn
DATAGRAMS_MOST = 64


def __getattr__(name: str) -> Any:
    return getattr(_asyncio, name)


# asking the daemon without holding up the loop

async def _turned(fd: int, writable: bool = False, timeout: float | None = None) -> None:
    """Wait until a descriptor is readable (or writable). Raises TimeoutError."""
    loop = _asyncio.get_running_loop()
    done = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if writable else (loop.add_reader, loop.remove_reader)
    add(fd, lambda: done.done() or done.set_result(None))
    try:
        async with _asyncio.timeout(timeout):
            await done
    finally:
        remove(fd)


async def _ask(daemon: Daemon, op: str, **fields: Any) -> Any:
    """As Daemon.ask. Raises the OSError it ends with."""
    request = {"op": op, **fields}
    while True:
        session = daemon.idle()
        kept = session is not None
        if session is None:
            door = Door(daemon.path)
            try:
                await _turned(door.fileno(), timeout=PATIENCE_S)
            except TimeoutError as error:
                unreachable(daemon.path, error)
            session = door.open()
        try:
            session.send(request)
            await _turned(session.fileno(), timeout=PATIENCE_S)
            answer = session.receive()
        except OSError as error:
            session.close()
            if not kept or isinstance(error, TimeoutError):     # what took too long may have been done
                unreachable(daemon.path, error)
            continue                # the daemon was started anew since
        except BaseException:
            session.close()         # an answer may be under way
            raise
        daemon.keep(session)
        return checked(answer)


async def _open(kind: type[Socket], family: int, daemon: Daemon) -> Any:
    answer = await _ask(daemon, "open", type=kind._word, family=6 if family == _socket.AF_INET6 else 4)
    sock = kind._of(daemon, answer["id"], family, answer.fd)
    sock._buffer = answer["buffer"]
    sock.setblocking(False)
    return sock


async def _bound(sock: Socket, host: str, port: int, v6only: bool = False) -> None:
    sock._note_names(await _ask(sock._daemon, "bind", id=sock._id, host=host, port=port, v6only=v6only))


async def _resolve(host: Any, port: Any, family: int, kind: int, flags: int) -> list[tuple[int, Address]]:
    """Families and addresses. Raises OSError as getaddrinfo does."""
    for literal in (_socket.AF_INET, _socket.AF_INET6):
        with contextlib.suppress(OSError, TypeError, ValueError):
            _socket.inet_pton(literal, host)
            if isinstance(port, int) and family in (0, literal):
                return [(literal, (host, port))]
    infos = await _asyncio.get_running_loop().getaddrinfo(host, port, family=family, type=kind, flags=flags)
    if not infos:
        raise OSError(f"getaddrinfo({host!r}) returned empty list")
    return [(info[0], info[4][:2]) for info in infos]


# streams

class Transport(_asyncio.Transport):
    """The loop's own transport over the descriptor, which knows what the socket is called on the network."""

    def __init__(self, transport: Any, view: View):
        self._loop = _asyncio.get_running_loop()
        self._transport = transport
        self._view = view
        self._zero_copy: ZeroCopyWriter | None = None       # writes in the transport's place while there is one
        self._least = LEAST if ONE_OCTET and transport.get_extra_info("sslcontext") is None else sys.maxsize
        self._is_eof = self._is_closing = False
        # Not by way of __getattr__: they are called for every piece of data.
        self._write = transport.write
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._view!r} over {self._transport!r}>"

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """"peername", "sockname", "socket" (a socket to ask and tune), and what the loop's transport has, as of TLS."""
        if name == "peername":
            return self._view._remote
        if name == "sockname":
            return self._view._local
        if name == "socket":
            return self._view
        return self._transport.get_extra_info(name, default)

    def is_reading(self) -> bool:
        return self._transport.is_reading()

    def set_protocol(self, protocol: _asyncio.BaseProtocol) -> None:
        self._transport.set_protocol(protocol)

    def get_protocol(self) -> _asyncio.BaseProtocol:
        return self._transport.get_protocol()

    def write(self, data: Any) -> None:
        if self._zero_copy is None and (len(data) < self._least or not self._begin_zero_copy(data)):
            self._write(data)
        elif self._is_eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        elif not self.is_closing():
            self._zero_copy.write(data if type(data) is bytes else bytes(memoryview(data)))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        pieces = list(list_of_data)
        large = [piece for piece in pieces if len(piece) >= self._least]
        if self._zero_copy is None and not any(map(self._begin_zero_copy, large)):
            self._transport.writelines(pieces)
        else:
            for piece in pieces:
                self.write(piece)

    def _begin_zero_copy(self, data: Any) -> bool:
        """If that pays for `data`; whether it did. Not where the loop's transport may have paused the protocol."""
        inner = self._transport
        if (type(data) is bytes and not inner.is_closing()
                and inner.get_write_buffer_size() <= inner.get_write_buffer_limits()[0] and pays(inner, len(data))):
            with contextlib.suppress(OSError):      # no descriptor is left
                    self._zero_copy = ZeroCopyWriter(self._loop, inner, self._writer_is_done)
        return self._zero_copy is not None

    def _writer_is_done(self, works: bool) -> None:
        self._zero_copy = None
        if not works:
            self._least = sys.maxsize

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        size: int = self._transport.get_write_buffer_size()
        return size if self._zero_copy is None else size + self._zero_copy.size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._transport.get_write_buffer_limits()

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def write_eof(self) -> None:
        if self._zero_copy is None:
            self._transport.write_eof()
        elif not self._is_eof and not self._is_closing:
            self._is_eof = True
            self._zero_copy.then(self._transport.write_eof)

    def is_closing(self) -> bool:
        return self._is_closing or self._transport.is_closing()

    def close(self) -> None:
        if self._zero_copy is None:
            self._transport.close()
        elif not self._is_closing:
            self._is_closing = True
            self._transport.pause_reading()
            self._zero_copy.then(self._transport.close)

    def abort(self) -> None:
        if self._zero_copy is None:
            self._transport.abort()
        else:
            self._zero_copy.abort()


class _Introduction(_asyncio.Protocol):
    """Stands in until connection_made, which it passes on with the transport that knows the names."""

    transport: Transport

    def __init__(self, protocol: Any, view: View):
        self.protocol = protocol
        self.view = view

    def connection_made(self, transport: Any) -> None:
        self.transport = Transport(transport, self.view)
        transport.set_protocol(self.protocol)
        self.protocol.connection_made(self.transport)


def _native(sock: StreamSocket) -> tuple[_socket.socket, View]:
    """The descriptor as the loop takes it, and what only we know of it."""
    view = View(sock)
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, fileno=sock.detach()), view


async def _connected(host: str, port: int, family: int, local: Address | None, daemon: Daemon) -> StreamSocket:
    sock = await _open(StreamSocket, family, daemon)
    try:
        if local is not None:
            await _bound(sock, local[0], local[1])
        await _ask(daemon, "set", id=sock._id, option="nodelay", value=1)       # as asyncio has it everywhere
        sock._note_names(await _ask(daemon, "connect", id=sock._id, host=host, port=port, chaff=sock._stuff(0)))
        await _turned(sock.fileno(), writable=True)
        if _socket.socket.getsockopt(sock, _socket.SOL_SOCKET, _socket.SO_ERROR):
            code = (await _ask(daemon, "error", id=sock._id))["fate"] or errno.ECONNRESET
            raise OSError(code, f"Connect call failed {(host, port)}: {os.strerror(code).lower()}")
        sock._made_it()
        return sock
    except BaseException:
        sock.close()
        raise


async def create_connection(protocol_factory: Callable[[], P], host: str | None = None, port: int | str | None = None, *,
                            ssl: Any = None, family: int = 0, proto: int = 0, flags: int = 0,
                            local_addr: tuple[str, int] | None = None, server_hostname: str | None = None,
                            ssl_handshake_timeout: float | None = None, ssl_shutdown_timeout: float | None = None,
                            all_errors: bool = False, daemon: Daemon | None = None) -> tuple[Transport, P]:
    """As `loop.create_connection`: the first address of `host` that answers; (transport, protocol).

    Raises ConnectionRefusedError, TimeoutError, OSError (ENETUNREACH ...; ENETDOWN: no daemon), ssl.SSLError.
    """
    if host is None and port is None:
        raise ValueError("host and port was not specified")
    if ssl and server_hostname is None:
        if not host:
            raise ValueError("You must set server_hostname when using ssl without a host")
        server_hostname = host
    failed: list[OSError] = []
    for found, (address, number) in await _resolve(host, port, family, _socket.SOCK_STREAM, flags):
        try:
            sock = await _connected(address, number, found, local_addr, daemon or _daemon)
            break
        except OSError as error:
            failed.append(error)
    else:
        try:
            if all_errors:
                raise ExceptionGroup("create_connection failed", failed)
            if len({str(error) for error in failed}) == 1:
                raise failed[0]
            raise OSError("Multiple exceptions: " + ", ".join(str(error) for error in failed))
        finally:
            failed.clear()
    native, view = _native(sock)
    protocol = protocol_factory()
    options = {} if not ssl else {"ssl": ssl, "server_hostname": server_hostname,
                                  "ssl_handshake_timeout": ssl_handshake_timeout,
                                  "ssl_shutdown_timeout": ssl_shutdown_timeout}
    _, introduction = await _asyncio.get_running_loop().create_unix_connection(
        lambda: _Introduction(protocol, view), sock=native, **options)
    return introduction.transport, protocol


async def start_tls(transport: Transport, protocol: _asyncio.BaseProtocol, sslcontext: Any, **options: Any) -> Transport:
    """As `loop.start_tls`, for a transport made here."""
    loop = _asyncio.get_running_loop()
    if transport._zero_copy is not None:
        await transport._zero_copy.flush()
    return Transport(await loop.start_tls(transport._transport, protocol, sslcontext, **options), transport._view)


async def open_connection(host: str | None = None, port: int | str | None = None, *, limit: int = 2 ** 16,
                          **options: Any) -> tuple[_asyncio.StreamReader, _asyncio.StreamWriter]:
    """As `asyncio.open_connection`; `options` are those of create_connection."""
    loop = _asyncio.get_running_loop()
    reader = _asyncio.StreamReader(limit=limit, loop=loop)
    protocol = _asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await create_connection(lambda: protocol, host, port, **options)
    return reader, _asyncio.StreamWriter(transport, protocol, reader, loop)


class Server(_asyncio.AbstractServer):
    """Accepts connections on its addresses until closed. As a context manager it closes itself at the end."""

    def __init__(self, factory: Callable[[], _asyncio.BaseProtocol], listeners: list[StreamSocket], backlog: int,
                 options: dict[str, Any]):
        self._loop = _asyncio.get_running_loop()
        self._factory = factory
        self._listeners = listeners
        self._backlog = backlog
        self._options = options         # for TLS
        self._serving = False
        self._starting: set[_asyncio.Task[None]] = set()
        self._closed = self._loop.create_future()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} sockets={self.sockets!r}>"

    @property
    def sockets(self) -> tuple[View, ...]:
        """One per address, empty when closed."""
        return tuple(View(listener) for listener in self._listeners)

    def get_loop(self) -> _asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        return self._serving

    async def start_serving(self) -> None:
        """Accept connections; nothing happens if it does already. Raises OSError (EADDRINUSE), RuntimeError when closed."""
        if self._closed.done():
            raise RuntimeError(f"server {self!r} is closed")
        if self._serving:
            return
        for listener in self._listeners:
            listener._note_names(await _ask(listener._daemon, "listen", id=listener._id, backlog=self._backlog))
            self._loop.add_reader(listener.fileno(), self._accept, listener)
        self._serving = True

    async def serve_forever(self) -> None:
        """Serve until cancelled, then close."""
        try:
            await self.start_serving()
            await _asyncio.shield(self._closed)
        finally:
            self.close()

    def close(self) -> None:
        """Accept no more. Connections already made live on."""
        self._serving = False
        while self._listeners:
            listener = self._listeners.pop()
            self._loop.remove_reader(listener.fileno())
            listener.close()
        if not self._closed.done():
            self._closed.set_result(None)

    async def wait_closed(self) -> None:
        """Wait until the server is closed, and what it was accepting is with its protocols."""
        await _asyncio.shield(self._closed)
        while self._starting:
            await _asyncio.wait(self._starting)

    def _accept(self, listener: StreamSocket) -> None:
        for _ in range(ACCEPTS_MOST):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):    # as asyncio does
                    self._loop.remove_reader(listener.fileno())
                    self._loop.call_later(1.0, self._again, listener)
                else:
                    self.close()        # the daemon has stopped
                self._loop.call_exception_handler({"message": "socket.accept() failed", "exception": error,
                                                   "server": self})
                return
            task = self._loop.create_task(self._start(sock))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    def _again(self, listener: StreamSocket) -> None:
        if listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    async def _start(self, sock: StreamSocket) -> None:
        native, view = _native(sock)
        try:
            await self._loop.connect_accepted_socket(
                lambda: _Introduction(self._factory(), view), native, **self._options)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:      # of TLS, or the factory's: this connection's end alone
            if not isinstance(error, (OSError, _asyncio.CancelledError)):
                self._loop.call_exception_handler(
                    {"message": "Error on transport creation for incoming connection", "exception": error})


async def create_server(protocol_factory: Callable[[], _asyncio.BaseProtocol], host: str | Iterable[str] | None = None,
                        port: int | str | None = 0, *, family: int = 0, flags: int = _socket.AI_PASSIVE,
                        backlog: int = 100, ssl: Any = None, reuse_address: bool | None = None,
                        reuse_port: bool | None = None, ssl_handshake_timeout: float | None = None,
                        ssl_shutdown_timeout: float | None = None, start_serving: bool = True,
                        daemon: Daemon | None = None) -> Server:
    """As `loop.create_server`. Raises OSError: EADDRINUSE, EADDRNOTAVAIL; ENETDOWN when no daemon answers."""
    options = {} if not ssl else {"ssl": ssl, "ssl_handshake_timeout": ssl_handshake_timeout,
                                  "ssl_shutdown_timeout": ssl_shutdown_timeout}
    binds: dict[tuple[int, str, int], None] = {}       # an ordered set
    for one in [host] if host is None or isinstance(host, str) else host:
        for found, (address, number) in await _resolve(one or None, port, family, _socket.SOCK_STREAM, flags):
            binds[found, address, number] = None
    listeners: list[StreamSocket] = []
    try:
        for found, address, number in binds:
            listeners.append(await _open(StreamSocket, found, daemon or _daemon))
            for option in ("nodelay", *(("reuse_port",) if reuse_port else ())):
                await _ask(listeners[-1]._daemon, "set", id=listeners[-1]._id, option=option, value=1)
            try:
                await _bound(listeners[-1], address, number, v6only=True)
            except OSError as error:
                raise OSError(error.errno, f"error while attempting to bind on address {(address, number)!r}: "
                                           f"{os.strerror(error.errno).lower()}") from None
        server = Server(protocol_factory, listeners, backlog, options)
        if start_serving:
            await server.start_serving()
        return server
    except BaseException:
        for listener in listeners:
            listener.close()
        raise


async def start_server(client_connected_cb: Callable[..., Any], host: str | Iterable[str] | None = None,
                       port: int | str | None = None, *, limit: int = 2 ** 16, **options: Any) -> Server:
    """As `asyncio.start_server`; `options` are those of create_server."""
    loop = _asyncio.get_running_loop()

    def factory() -> _asyncio.StreamReaderProtocol:
        return _asyncio.StreamReaderProtocol(_asyncio.StreamReader(limit=limit, loop=loop), client_connected_cb, loop=loop)

    return await create_server(factory, host, port, **options)


# datagrams

class DatagramTransport(_FlowControlMixin, _asyncio.DatagramTransport):
    """One datagram socket of the stack as an asyncio transport."""

    def __init__(self, loop: _asyncio.AbstractEventLoop, sock: DatagramSocket, protocol: Any):
        super().__init__({"socket": View(sock), "sockname": sock._local, "peername": sock._remote}, loop)
        self._sock = sock
        self._protocol = protocol
        self._unsent: deque[tuple[bytes, Address | None]] = deque()
        self._size = 0
        self._is_closing = False
        loop.call_soon(self._begin)

    def _begin(self) -> None:
        if self._is_closing:
            return
        self._protocol.connection_made(self)
        if not self._is_closing:
            self._loop.add_reader(self._sock.fileno(), self._read)

    def _read(self) -> None:
        for _ in range(DATAGRAMS_MOST):
            if self._is_closing:
                return
            try:
                data, address = self._sock.recvfrom(65536)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._protocol.error_received(error)
                if error.errno == errno.ENETDOWN:       # the daemon has stopped: nothing comes any more
                    self._finish_soon(error)
                return
            self._protocol.datagram_received(data, address)

    def sendto(self, data: Any, addr: Address | None = None) -> None:
        """Send one datagram; errors of the network go to error_received. Raises ValueError for a wrong address."""
        peer = self._sock._remote
        if peer is not None:
            if addr is not None and tuple(addr[:2]) != peer[:2]:
                raise ValueError(f"Invalid address: must be None or {peer}")
            addr = None
        elif addr is None:
            raise ValueError("addr must be given: the endpoint has no remote address")
        if self._is_closing:
            return
        if not self._unsent and self._send(data, addr):
            return
        self._unsent.append((bytes(data), addr))
        self._size += len(data)
        self._loop.add_writer(self._sock.fileno(), self._write)
        self._maybe_pause_protocol()

    def _send(self, data: Any, addr: Address | None) -> bool:
        """Whether it is off our hands."""
        try:
            if addr is None:
                self._sock.send(data)
            else:
                self._sock.sendto(data, addr)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._protocol.error_received(error)
        return True

    def _write(self) -> None:
        while self._unsent and self._send(*self._unsent[0]):
            self._size -= len(self._unsent.popleft()[0])
        self._maybe_resume_protocol()
        if not self._unsent:
            self._loop.remove_writer(self._sock.fileno())
            if self._is_closing:
                self._finish_soon(None)

    def get_write_buffer_size(self) -> int:
        return self._size

    def is_closing(self) -> bool:
        return self._is_closing

    def set_protocol(self, protocol: _asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> _asyncio.BaseProtocol:
        return self._protocol

    def close(self) -> None:
        """Receive no more; what waits is sent, then connection_lost follows."""
        if self._is_closing:
            return
        self._is_closing = True
        self._loop.remove_reader(self._sock.fileno())
        if not self._unsent:
            self._finish_soon(None)

    def abort(self) -> None:
        self._unsent.clear()
        self.close()

    def _finish_soon(self, error: Exception | None) -> None:
        self._is_closing = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._loop.call_soon(self._finish, error)

    def _finish(self, error: Exception | None) -> None:
        if self._sock.fileno() >= 0:
            self._sock.close()
            self._protocol.connection_lost(error)


async def create_datagram_endpoint(protocol_factory: Callable[[], P], local_addr: tuple[str | None, int] | None = None,
                                   remote_addr: tuple[str, int] | None = None, *, family: int = 0, proto: int = 0,
                                   flags: int = 0, reuse_port: bool | None = None, allow_broadcast: bool | None = None,
                                   daemon: Daemon | None = None) -> tuple[DatagramTransport, P]:
    """As `loop.create_datagram_endpoint`. Raises OSError: EADDRINUSE, EADDRNOTAVAIL, ENETUNREACH; ENETDOWN: no daemon."""
    if local_addr is None and remote_addr is None and not family:
        raise ValueError("unexpected address family")
    remotes = [] if remote_addr is None else await _resolve(*remote_addr, family, _socket.SOCK_DGRAM, flags)
    locals_ = [] if local_addr is None else await _resolve(*local_addr, family, _socket.SOCK_DGRAM,
                                                           flags | _socket.AI_PASSIVE)
    families = [found for found, _ in remotes or locals_] or [family]
    failed: OSError = OSError("can not get address information")
    for found in dict.fromkeys(families):
        local = next((address for each, address in locals_ if each == found), None)
        remote = next((address for each, address in remotes if each == found), None)
        if local_addr is not None and local is None:
            continue
        sock = await _open(DatagramSocket, found, daemon or _daemon)
        try:
            if reuse_port:
                await _ask(sock._daemon, "set", id=sock._id, option="reuse_port", value=1)
            await _bound(sock, *(local or ("", 0)))
            if remote is not None:
                sock._note_names(await _ask(sock._daemon, "connect", id=sock._id, host=remote[0], port=remote[1]))
            protocol = protocol_factory()
            transport = DatagramTransport(_asyncio.get_running_loop(), sock, protocol)
            await _asyncio.sleep(0)     # connection_made is called before we return
            return transport, protocol
        except OSError as error:
            sock.close()
            failed = error
        except BaseException:
            sock.close()
            raise
    try:
        raise failed
    finally:
        del failed
