"""A socket of the stack with the face of Python's own.

Its descriptor is one end of a socketpair, so reading, writing, polling, timeouts, makefile, shutdown and close are the
kernel's; what the daemon has to do is asked of it.
"""

import atexit
import contextlib
import errno
import os
import select
import socket as _stdlib
from collections.abc import Iterable
from typing import Any

from rustosd.client.options import Address, Options
from rustosd.client.session import Daemon, descriptors
from rustosd.client.wire import ACCEPTED, HEADER, TAKEN, pack_address, unpack_address

_base = _stdlib.socket
_CHAFF = bytes(32768)
# The daemon leaves the last octet we wrote in its queue (rustosd.handoff.splice says why), and with it the kernel's buffer
# around it, up to 40 KiB. Our end is writable while no more than a quarter of SO_SNDBUF is used: less would never be again.
SNDBUF_LEAST = 106496
_TO_PEER = bytes(HEADER.size)
_ANY_ADDRESS = bytes(16)
_DATAGRAM_MOST = {_stdlib.AF_INET: 65507, _stdlib.AF_INET6: 65527}      # RFC 768, RFC 8200
_daemon = Daemon()
atexit.register(_daemon.close)


class Socket(Options, _base):
    """A TCP or UDP socket of the daemon's stack; takes the place of `socket.socket`.

    It is a `socket.socket` of its own family and type whose descriptor works with select, poll, epoll and asyncio.
    `daemon` says which one when there are several. Raises OSError: ENETDOWN when no daemon answers, EMFILE, EACCES.
    """

    def __new__(cls, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None, **more: Any):
        if cls is Socket:
            cls = DatagramSocket if type != -1 and type & 0xF == _stdlib.SOCK_DGRAM else StreamSocket
        return super().__new__(cls)

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None, *,
                 daemon: Daemon | None = None):
        if fileno is not None:
            raise ValueError("a descriptor alone does not tell which socket of the stack it is")
        family = _stdlib.AF_INET if family == -1 else family
        if family not in (_stdlib.AF_INET, _stdlib.AF_INET6):
            raise OSError(errno.EAFNOSUPPORT, "the stack has sockets of AF_INET and AF_INET6")
        if type != -1 and type & 0xF not in (_stdlib.SOCK_STREAM, _stdlib.SOCK_DGRAM):
            raise OSError(errno.EPROTONOSUPPORT, "the stack has sockets of SOCK_STREAM and SOCK_DGRAM")
        daemon = daemon or _daemon
        answer = daemon.ask("open", type=self._word, family=6 if family == _stdlib.AF_INET6 else 4)
        self._made(daemon, answer["id"], family, answer.fd)
        self._buffer = answer["buffer"]
        if type != -1 and type & _stdlib.SOCK_NONBLOCK:
            self.setblocking(False)

    def _made(self, daemon: Daemon, identity: str, family: int, fd: int) -> None:
        self._daemon = daemon
        self._id = identity
        self._family = _stdlib.AddressFamily(family)
        self._options = {}
        try:
            _base.__init__(self, _stdlib.AF_UNIX, self._pair, 0, fd)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def _of(cls, daemon: Daemon, identity: str, family: int, fd: int) -> "Socket":
        """A socket from what the daemon has answered."""
        made = _base.__new__(cls)
        made._made(daemon, identity, family, fd)
        return made

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"fd={self.fileno()}"
        return f"<{type(self).__name__} {state} {self._family.name} laddr={self._local} raddr={self._remote}>"

    _buffer: int        # SO_SNDBUF as it is to be when there is a connection

    def dup(self) -> "Socket":
        """Another object and descriptor for the same socket."""
        made = self._of(self._daemon, self._id, self._family, os.dup(self.fileno()))
        for name in ("_local", "_remote", "_options", "_buffer"):
            setattr(made, name, getattr(self, name))
        made.settimeout(self.gettimeout())
        return made

    def getsockopt(self, level: int, option: int, length: int = 0) -> Any:
        if (level, option) in _NATIVE:
            return _base.getsockopt(self, level, option)
        if (level, option) == _SNDBUF:
            return self._options.get(_SNDBUF) or 2 * self._buffer
        return Options.getsockopt(self, level, option, length)

    def setsockopt(self, level: int, option: int, value: Any, length: int | None = None) -> None:
        if (level, option) in _NATIVE:
            _base.setsockopt(self, level, option, value)
        elif (level, option) == _SNDBUF:
            self._buffer = max(value, SNDBUF_LEAST)
            self._options[level, option] = 2 * value        # as Linux tells it
            if not (self._kind == _stdlib.SOCK_STREAM and self._connecting):
                _base.setsockopt(self, level, option, self._buffer)
        else:
            Options.setsockopt(self, level, option, value, length)

    def bind(self, address: Address) -> None:
        """Choose the local address. Raises OSError: EADDRINUSE, EADDRNOTAVAIL, EINVAL when it is bound already."""
        host, port = self._resolved(address, _stdlib.AI_PASSIVE)
        v6only = bool(self._options.get((_stdlib.IPPROTO_IPV6, _stdlib.IPV6_V6ONLY)))
        self._note_names(self._ask("bind", host=host, port=port, v6only=v6only))

    def connect_ex(self, address: Address) -> int:
        """As connect, but the errno is returned."""
        try:
            self.connect(address)
        except TimeoutError as error:
            return error.errno or errno.EAGAIN
        except OSError as error:
            if error.errno is None:
                raise
            return error.errno
        return 0

    def _resolved(self, address: Address, flags: int = 0) -> tuple[str, int]:
        """Host and port; a name is looked up with the system's resolver. Raises OSError, TypeError."""
        if not isinstance(address, tuple) or not 2 <= len(address) <= (2 if self._family == _stdlib.AF_INET else 4):
            raise TypeError(f"{self._family.name} address must be a tuple (host, port), not {address!r}")
        host, port = address[:2]
        if not isinstance(port, int):
            raise TypeError(f"the port must be an integer, not {port!r}")
        if not 0 <= port <= 65535:
            raise OverflowError("port must be 0-65535.")
        if not host:
            return "", port
        if isinstance(host, (bytes, bytearray)):
            host = host.decode("idna")
        with contextlib.suppress(OSError, ValueError):
            _stdlib.inet_pton(self._family, host)
            return host, port
        infos = _stdlib.getaddrinfo(host, port, self._family, self._kind, 0, flags)
        return infos[0][4][0], port


_SNDBUF = (_stdlib.SOL_SOCKET, _stdlib.SO_SNDBUF)
_NATIVE = {(_stdlib.SOL_SOCKET, _stdlib.SO_RCVTIMEO), (_stdlib.SOL_SOCKET, _stdlib.SO_SNDTIMEO)}


class StreamSocket(Socket):
    """A TCP socket of the stack."""

    _word = "stream"
    _kind = _stdlib.SOCK_STREAM
    _pair = _stdlib.SOCK_STREAM
    _connecting = False
    _buffer = SNDBUF_LEAST

    # opening

    def connect(self, address: Address) -> None:
        """Connect, within the socket's timeout. A non-blocking socket raises BlockingIOError and becomes writable later.

        Raises ConnectionRefusedError, TimeoutError, OSError: ENETUNREACH, EHOSTUNREACH, EISCONN, EALREADY.
        """
        host, port = self._resolved(address)
        self._begin(host or ("::1" if self._family == _stdlib.AF_INET6 else "127.0.0.1"), port)
        timeout = self.gettimeout()
        if timeout == 0:
            raise BlockingIOError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))
        if not _wait(self, select.POLLOUT, timeout):
            raise TimeoutError("timed out")
        if code := self.getsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_ERROR):
            raise OSError(code, os.strerror(code))

    def _begin(self, host: str, port: int) -> None:
        small = 0 if self.gettimeout() != 0 else SNDBUF_LEAST    # somebody may write before we are asked again
        chaff = 0 if self._connecting or self._remote else self._stuff(small)
        self._note_names(self._ask("connect", host=host, port=port, chaff=chaff))
        self._connecting = True

    def _stuff(self, buffer: int) -> int:
        """Fill our end, so that it is writable when the handshake is done and not before; how many octets it took.

        With a small buffer, so that it does not take long; `_made_it` makes it larger.
        """
        timeout = self.gettimeout()
        chaff = _CHAFF if buffer else _CHAFF[:1]        # one octet's buffer must fit into a quarter, see SNDBUF_LEAST
        _base.setsockopt(self, _stdlib.SOL_SOCKET, _stdlib.SO_SNDBUF, buffer)
        octets = 0
        self.settimeout(0)
        try:
            while True:
                octets += _base.send(self, chaff)
        except BlockingIOError:
            return octets
        finally:
            self.settimeout(timeout)

    def _made_it(self) -> None:
        """The connection is established."""
        self._connecting = False
        _base.setsockopt(self, _stdlib.SOL_SOCKET, _stdlib.SO_SNDBUF, self._buffer)

    def listen(self, backlog: int = 128) -> None:
        """Accept connections. Raises OSError: EADDRINUSE, EMFILE."""
        self._note_names(self._ask("listen", backlog=backlog))

    def accept(self) -> tuple["StreamSocket", Address]:
        """The next connection and its peer, within the socket's timeout. Raises OSError when the daemon is gone."""
        octets, ancillary, _, _ = _base.recvmsg(self, ACCEPTED.size, _stdlib.CMSG_SPACE(4), _stdlib.MSG_CMSG_CLOEXEC)
        fds = descriptors(ancillary)
        if len(octets) < ACCEPTED.size or not fds:
            raise OSError(errno.EINVAL, "the socket does not listen, or rustosd has stopped")
        identity, remote, remote_port, local, local_port = ACCEPTED.unpack(octets)
        made = self._of(self._daemon, identity.hex(), self._family, fds[0])
        _base.send(made, TAKEN)
        made._note_names({"local": (unpack_address(local), local_port), "remote": (unpack_address(remote), remote_port)})
        if _stdlib.getdefaulttimeout() is None:
            made.setblocking(True)
        return made, made._remote

    # names and options

    def getpeername(self) -> Address:
        if self._connecting:
            if not _wait(self, select.POLLOUT, 0):
                raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
            self._made_it()
        return super().getpeername()

    def getsockopt(self, level: int, option: int, length: int = 0) -> Any:
        if (level, option) != (_stdlib.SOL_SOCKET, _stdlib.SO_ERROR):
            return super().getsockopt(level, option, length)
        if _base.getsockopt(self, level, option):
            return self._cause()
        if self._connecting and _wait(self, select.POLLOUT, 0):
            self._made_it()
        return 0

    def _cause(self) -> int:
        """Why the connection was reset: the kernel knows of ECONNRESET only."""
        with contextlib.suppress(OSError):
            return self._ask("error")["fate"] or errno.ECONNRESET
        return errno.ECONNRESET

    # moving octets: the kernel does it, and we say why it ended

    def _told(self, error: OSError) -> OSError:
        if isinstance(error, BrokenPipeError) and not _base.getsockopt(self, _stdlib.SOL_SOCKET, _stdlib.SO_ERROR):
            return error
        code = self._cause()
        return OSError(code, os.strerror(code))

    def _ready(self, code: int) -> None:
        if self._remote is None:
            raise OSError(code, os.strerror(code))
        if self._connecting and _wait(self, select.POLLOUT, 0):
            self._made_it()

    def recv(self, *args: Any) -> bytes:
        self._ready(errno.ENOTCONN)
        try:
            return _base.recv(self, *args)
        except ConnectionResetError as error:
            raise self._told(error) from None

    def recv_into(self, *args: Any, **options: Any) -> int:
        self._ready(errno.ENOTCONN)
        try:
            return _base.recv_into(self, *args, **options)
        except ConnectionResetError as error:
            raise self._told(error) from None

    def send(self, *args: Any) -> int:
        self._ready(errno.EPIPE)
        try:
            return _base.send(self, *args)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._told(error) from None

    def sendall(self, *args: Any) -> None:
        self._ready(errno.EPIPE)
        try:
            _base.sendall(self, *args)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._told(error) from None

    def recvfrom(self, *args: Any) -> tuple[bytes, Any]:
        return self.recv(*args), None

    def recvfrom_into(self, *args: Any, **options: Any) -> tuple[int, Any]:
        return self.recv_into(*args, **options), None

    def sendto(self, data: Any, *args: Any) -> int:
        """As send: a stream has one peer."""
        return self.send(data, *args[:-1])

    def recvmsg(self, size: int, ancillary_size: int = 0, flags: int = 0) -> tuple[bytes, list, int, Any]:
        return self.recv(size, flags), [], 0, None

    def sendmsg(self, buffers: Iterable[Any], ancillary: Iterable[Any] = (), flags: int = 0, address: Any = None) -> int:
        """Several buffers in one go. Raises OSError (EOPNOTSUPP) for ancillary data, which TCP does not have."""
        if list(ancillary):
            raise OSError(errno.EOPNOTSUPP, "TCP carries no ancillary data")
        self._ready(errno.EPIPE)
        try:
            return _base.sendmsg(self, buffers, [], flags)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._told(error) from None

    def shutdown(self, how: int) -> None:
        self._ready(errno.ENOTCONN)
        _base.shutdown(self, how)


class DatagramSocket(Socket):
    """A UDP socket of the stack.

    Differs from Linux in one point: what keeps a datagram from being sent (ENETUNREACH, EMSGSIZE for the path's MTU) is
    told by the next receive and not by the send.
    """

    _word = "datagram"
    _kind = _stdlib.SOCK_DGRAM
    _pair = _stdlib.SOCK_SEQPACKET
    _last: tuple[bytes, Address | None] = b"", None
    """The header of the last datagram and its sender, whom the next one to go is often for: without an errno it is the same."""

    def connect(self, address: Address) -> None:
        """Exchange datagrams with one peer only. Raises OSError: ENETUNREACH, EADDRNOTAVAIL."""
        host, port = self._resolved(address)
        self._note_names(self._ask("connect", host=host or ("::1" if self._family == _stdlib.AF_INET6 else "127.0.0.1"),
                                   port=port))

    # sending

    def send(self, data: Any, flags: int = 0) -> int:
        """Raises OSError (EDESTADDRREQ) when there is no peer."""
        if self._remote is None:
            raise OSError(errno.EDESTADDRREQ, os.strerror(errno.EDESTADDRREQ))
        return self._send(_TO_PEER, [data], flags)

    def sendall(self, data: Any, flags: int = 0) -> None:
        self.send(data, flags)

    def sendto(self, data: Any, *args: Any) -> int:
        """sendto(data, address) or sendto(data, flags, address)."""
        flags, address = args if len(args) == 2 else (0, *args)
        return self._send(self._header(address), [data], flags)

    def sendmsg(self, buffers: Iterable[Any], ancillary: Iterable[Any] = (), flags: int = 0,
                address: Address | None = None) -> int:
        if list(ancillary):
            raise OSError(errno.EOPNOTSUPP, "the stack takes no ancillary data")
        return self._send(_TO_PEER if address is None else self._header(address), list(buffers), flags)

    def _header(self, address: Address) -> bytes:
        if address is not None and address is self._last[1]:
            return self._last[0]
        host, port = self._resolved(address)
        if self._local is None:
            self.bind(("", 0))
        return HEADER.pack(pack_address(host.partition("%")[0] or "::1"), port, 0, _ANY_ADDRESS)

    def _send(self, header: bytes, buffers: list[Any], flags: int) -> int:
        octets = b"".join((header, *buffers))
        if len(octets) > HEADER.size + _DATAGRAM_MOST[self._family]:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        try:
            return _base.send(self, octets, flags) - HEADER.size
        except (BrokenPipeError, ConnectionResetError):
            raise _stopped() from None

    # receiving

    def recv(self, size: int, flags: int = 0) -> bytes:
        return self.recvfrom(size, flags)[0]

    def recvfrom(self, size: int, flags: int = 0) -> tuple[bytes, Address]:
        """The next datagram, cut to `size`, and its sender. Raises what came back for one sent (ConnectionRefusedError)."""
        data, _, _, sender = self.recvmsg(size, 0, flags)
        return data, sender

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        return self.recvfrom_into(buffer, nbytes, flags)[0]

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Address]:
        view = memoryview(buffer).cast("B")
        count, _, sender = self._receive(view[:nbytes] if nbytes else view, flags)
        return count, sender

    def recvmsg(self, size: int, ancillary_size: int = 0, flags: int = 0) -> tuple[bytes, list, int, Address]:
        if size < 0:
            raise ValueError("negative buffer size")
        try:
            octets, _, told, _ = _base.recvmsg(self, HEADER.size + min(size, _DATAGRAM_MOST[_stdlib.AF_INET6]), 0, flags)
        except ConnectionResetError:
            raise _stopped() from None
        sender = self._sender(octets[:HEADER.size])
        return octets[HEADER.size:], [], told & _stdlib.MSG_TRUNC, sender

    def _receive(self, view: memoryview, flags: int) -> tuple[int, int, Address]:
        header = bytearray(HEADER.size)
        try:
            count, _, told, _ = _base.recvmsg_into(self, [header, view], 0, flags)
        except ConnectionResetError:
            raise _stopped() from None
        sender = self._sender(bytes(header[:count]))
        return count - HEADER.size, told & _stdlib.MSG_TRUNC, sender

    def _sender(self, header: bytes) -> Address:
        """Whom a datagram is from. Raises what came back for one sent."""
        if len(header) < HEADER.size:
            raise _stopped()
        header = header[:-len(_ANY_ADDRESS)] + _ANY_ADDRESS
        if header != self._last[0]:
            octets, port, code, _ = HEADER.unpack(header)
            if code:
                raise OSError(code, os.strerror(code))
            self._last = header, self._address(unpack_address(octets), port)
        return self._last[1]


def _stopped() -> OSError:
    return OSError(errno.ENETDOWN, "rustosd has stopped; start it and open the socket anew")


def _wait(sock: Socket, events: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(sock.fileno(), events)
    return bool(poll.poll(None if timeout is None else max(0, timeout * 1000)))


_GLOBAL_TIMEOUT: Any = _stdlib._GLOBAL_DEFAULT_TIMEOUT      # type: ignore[attr-defined]


def create_connection(address: tuple[str | None, int], timeout: float | None = _GLOBAL_TIMEOUT,
                      source_address: tuple[str, int] | None = None, *, all_errors: bool = False) -> StreamSocket:
    """Connect to the first address of a host that answers, as `socket.create_connection` does.

    Raises ConnectionRefusedError, TimeoutError, OSError; with `all_errors` an ExceptionGroup of all.
    """
    host, port = address
    failed: list[OSError] = []
    for family, kind, _, _, found in _stdlib.getaddrinfo(host, port, 0, _stdlib.SOCK_STREAM):
        sock = None
        try:
            sock = Socket(family, kind)
            if timeout is not _GLOBAL_TIMEOUT:
                sock.settimeout(timeout)
            if source_address:
                sock.bind(source_address)
            sock.connect(found)
            return sock
        except OSError as error:
            if not all_errors:
                failed.clear()
            failed.append(error)
            if sock is not None:
                sock.close()
    try:
        if not failed:
            raise OSError("getaddrinfo returns an empty list")
        if all_errors:
            raise ExceptionGroup("create_connection failed", failed)
        raise failed[0]
    finally:
        failed.clear()


def create_server(address: Address, *, family: int = _stdlib.AF_INET, backlog: int | None = None,
                  reuse_port: bool = False, dualstack_ipv6: bool = False) -> StreamSocket:
    """A listening socket, as `socket.create_server` makes one. Raises OSError: EADDRINUSE, EADDRNOTAVAIL."""
    if dualstack_ipv6 and family != _stdlib.AF_INET6:
        raise ValueError("dualstack_ipv6 requires AF_INET6 family")
    sock = Socket(family, _stdlib.SOCK_STREAM)
    try:
        if family == _stdlib.AF_INET6:
            sock.setsockopt(_stdlib.IPPROTO_IPV6, _stdlib.IPV6_V6ONLY, 0 if dualstack_ipv6 else 1)
        if reuse_port:
            sock.setsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_REUSEPORT, 1)
        try:
            sock.bind(address)
            sock.listen(128 if backlog is None else backlog)
        except OSError as error:
            message = f"{error.strerror} (while attempting to bind on address {address!r})"
            raise OSError(error.errno, message) from None
        return sock
    except BaseException:
        sock.close()
        raise


def has_dualstack_ipv6() -> bool:
    """A socket bound to :: serves both families."""
    return True
