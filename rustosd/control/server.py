"""The control socket: who may connect, how much a client may hold, and how a line becomes a call.

A client is served one request at a time, so its cost is bounded: a line of MAX_REQUEST_OCTETS, one reply, and the
patience of REPLY_TIMEOUT_S for a client that does not read.
"""

import asyncio
import contextlib
import inspect
import io
import os
import socket
import struct
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import structlog

from rustosd.control.base import Right
from rustosd.control.groups import ROOT_ONLY, Groups
from rustosd.control.protocol import (
    BUSY,
    FAILED,
    FORBIDDEN,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    MAX_REQUEST_OCTETS,
    METHOD_NOT_FOUND,
    METHODS,
    PARSE_ERROR,
    Failure,
    Reply,
    Request,
    decode_value,
)
from rustosd.errors import REFUSALS
from rustosd.unix_socket import remove_stale

REPLY_TIMEOUT_S = 10.0
IDLE_TIMEOUT_S = 600.0
ROOTS_OWN_CLIENTS = 8
"""So many more may connect when all others' places are taken, if they are root: somebody must get in to look."""
MAX_UNTAKEN_OCTETS = 8 << 20
"""How much may wait for clients that are slow to take it; one answer alone may be larger."""
_UCRED = struct.Struct("iII")      # unix(7), SO_PEERCRED: pid, uid, gid
_SO_PEERGROUPS = 59
_GROUPS_OCTETS = 1024              # as much as getsockopt gives: 256 groups

log = structlog.get_logger(__name__)
_requests = msgspec.json.Decoder(Request)
_encode = msgspec.json.Encoder(enc_hook=str).encode


class OperationFailed(Exception):
    """An operation was understood and could not be done; the text is for the person who asked."""


EVERYTHING: Final[frozenset[Right]] = frozenset(("read", "change", "sockets"))
_WHO_MAY: Final[dict[Right, str]] = {
    "read": "be root, or in the group that read_group or change_group under [control] names",
    "change": "be root, or in the group that change_group under [control] names",
    "sockets": "be root, or in the group that group under [sockets] names",
}


class Peer(NamedTuple):
    """Who is at the other end."""

    pid: int
    uid: int
    rights: frozenset[Right]
    groups: frozenset[int] = frozenset()


class Handed(NamedTuple):
    """A result with a descriptor for the client; it is closed here once it is sent."""

    result: Any
    end: socket.socket | io.FileIO


class ControlServer:
    """Serves `operations` (`rustosd.control.operations.Operations` or its like) on a unix socket.

    `start` makes the socket and its directory, `stop` removes what `start` made. A socket that listens already, made by
    a service manager, is `listening`, and stays where it is. What a client may do is said by `groups` and the kernel, which
    knows who it is.
    """

    def __init__(self, path: str, operations: Any, max_clients: int = 64, listening: socket.socket | None = None,
                 groups: Groups = ROOT_ONLY):
        self.path = Path(path)
        self._listening = listening
        self.operations = operations
        self.max_clients = max_clients
        self.groups = groups
        self.clients: set[asyncio.Task] = set()
        self._untaken_octets = 0
        self._server: asyncio.Server | None = None
        self._directory_is_ours = False
        self._file: tuple[int, int] | None = None       # the socket that we made, by device and inode
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Listen. Raises OSError when the path is in use or cannot be made, with what to do."""
        if self._listening is not None:
            self._server = await asyncio.start_unix_server(self._serve, sock=self._listening, limit=MAX_REQUEST_OCTETS)
            self._open_to_groups()
            return
        await self._listen()

    async def make_again(self) -> bool:
        """The socket, if somebody has removed its file; whether that was so. Who is connected stays. Raises OSError."""
        async with self._changing:
            former = self._server
            if former is None or self.path.exists():
                return False
            try:
                await self._listen()
            finally:
                if self._server is not former:
                    self._listening = None
                    former.close()
            return True

    async def _listen(self) -> None:
        self._directory_is_ours |= not self.path.parent.exists()
        try:
            self.path.parent.mkdir(mode=0o755, exist_ok=True)
            remove_stale(self.path, "choose another with socket = ... under [control]")
            before = os.umask(0o177)        # between bind and chmod nobody else gets in
            try:
                self._server = await asyncio.start_unix_server(
                    self._serve, str(self.path), limit=MAX_REQUEST_OCTETS)
            finally:
                os.umask(before)
            self._file = _identity(self.path)
            self._open_to_groups()
        except OSError as error:
            self._remove_directory()
            if error.strerror and str(self.path) in error.strerror:
                raise
            raise OSError(error.errno, f"cannot make the control socket {self.path}: {error.strerror or error}; "
                          "choose another with socket = ... under [control]") from None

    def admit(self, groups: Groups, max_clients: int) -> None:
        """From now on; clients that are connected keep what they may do. Raises OSError."""
        former, self.groups, self.max_clients = self.groups, groups, max_clients
        if former != groups:
            self._open_to_groups()

    def _open_to_groups(self) -> None:
        """Let the members of the groups get as far as `_peer_of`. A socket has one group; for several it is open to all."""
        numbers = {group for group in self.groups if group is not None}
        if self._listening is not None and not numbers:
            return      # as its maker wants it
        os.chown(self.path, -1, next(iter(numbers)) if len(numbers) == 1 else os.getegid())
        self.path.chmod({0: 0o600, 1: 0o660}.get(len(numbers), 0o666))

    async def stop(self) -> None:
        """Close the socket and all clients, and remove the file."""
        if self._server is None:
            return
        async with self._changing:
            server, self._server = self._server, None   # who is being accepted right now finds nobody in
        server.close()
        for task in tuple(self.clients):
            task.cancel()
        await asyncio.gather(*self.clients, return_exceptions=True)
        await server.wait_closed()
        if self._file is not None:
            with contextlib.suppress(FileNotFoundError):
                if _identity(self.path) == self._file:
                    self.path.unlink()
            self._remove_directory()

    def _remove_directory(self) -> None:
        if self._directory_is_ours:
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._server is None:
            writer.transport.abort()
            return
        self.clients.add(task)
        try:
            try:
                peer = self._peer_of(writer)
            except OSError as error:            # no descriptor is left
                await self._send(writer, _failure(None, BUSY, f"rustosd cannot ask who this is: {error.strerror}"))
                return
            if not peer.rights:
                await self._send(writer, _failure(None, FORBIDDEN, f"not permitted: {_WHO_MAY['read']}"))
            elif len(self.clients) > self.max_clients + (ROOTS_OWN_CLIENTS if peer.uid == 0 else 0):
                await self._send(writer, _failure(None, BUSY, f"{self.max_clients} clients are connected already"))
            else:
                await self._converse(reader, writer, peer)
        except (TimeoutError, ConnectionError):
            writer.transport.abort()        # does not read, or left
        except asyncio.CancelledError:
            writer.transport.abort()        # we stop; being cancelled is the expected end
        finally:
            self.clients.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> None:
        while True:
            try:
                async with asyncio.timeout(IDLE_TIMEOUT_S):
                    line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                message = f"a request has at most {MAX_REQUEST_OCTETS} octets"
                await self._send(writer, _failure(None, INVALID_REQUEST, message))
                return
            if not line.strip():
                continue
            reply = await self.answer(line, peer)
            if isinstance(reply, Handed):
                self._hand_out(writer, reply)
            elif reply is not None:
                identity, octets = reply.id, _encode(reply) + b"\n"
                del reply       # while a slow client takes it, it is held once
                await self._send_octets(writer, octets, identity)

    async def _send(self, writer: asyncio.StreamWriter, reply: Reply) -> None:
        await self._send_octets(writer, _encode(reply) + b"\n", reply.id)

    async def _send_octets(self, writer: asyncio.StreamWriter, octets: bytes, identity: int | str | None) -> None:
        size = len(octets)
        if self._untaken_octets and self._untaken_octets + size > MAX_UNTAKEN_OCTETS:
            octets = _encode(_failure(identity, BUSY, "other clients have not taken their answers yet, and this one is large: "
                                                      "ask again, or for less")) + b"\n"
            size = len(octets)
        writer.transport.set_write_buffer_limits(0)     # drain waits until all is with the kernel
        self._untaken_octets += size
        try:
            writer.write(octets)
            del octets
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                await writer.drain()
        finally:
            self._untaken_octets -= size

    @staticmethod
    def _hand_out(writer: asyncio.StreamWriter, handed: Handed) -> None:
        """Past the transport, whose buffer is empty, since every answer was drained."""
        try:
            with handed.end, _socket_of(writer) as peer:
                socket.send_fds(peer, [_encode(handed.result) + b"\n"], [handed.end.fileno()])
        except OSError as error:
            raise ConnectionError(f"the client does not get it: {error.strerror}") from None

    def _peer_of(self, writer: asyncio.StreamWriter) -> Peer:
        """Who it is, by the kernel's word, and what that one may do."""
        with _socket_of(writer) as peer:
            pid, uid, gid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            groups = b""
            with contextlib.suppress(OSError):      # more groups than that: the first one counts
                groups = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_OCTETS)
            member_of = frozenset({gid, *struct.unpack(f"{len(groups) // 4}I", groups)})
            if uid in (0, os.geteuid()):
                return Peer(pid, uid, EVERYTHING, member_of)
            return Peer(pid, uid, self.groups.rights(member_of), member_of)

    async def answer(self, line: bytes, peer: Peer) -> Reply | Handed | None:
        """What one line is answered with; None for a notification. Never raises for what the line says."""
        try:
            request = _requests.decode(line)
        except (msgspec.ValidationError, RecursionError) as error:
            return _failure(_id_of(line), INVALID_REQUEST, f"not a JSON-RPC 2.0 request: {error}")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _failure(None, PARSE_ERROR, f"not JSON: {error}")
        reply = await self._call(request, peer)
        if request.id is not msgspec.UNSET:
            return reply
        if isinstance(reply, Handed):
            reply.end.close()
        return None

    async def _call(self, request: Request, peer: Peer) -> Reply | Handed:
        identity = None if request.id is msgspec.UNSET else request.id
        method = METHODS.get(request.method)
        if method is None:
            return _failure(identity, METHOD_NOT_FOUND, f"no method {request.method[:80]!r}")
        if method.right not in peer.rights:
            return _failure(identity, FORBIDDEN, f"{method.name} is not permitted: {_WHO_MAY[method.right]}")
        try:
            params = msgspec.json.decode(request.params, type=method.takes, dec_hook=decode_value)
        except (msgspec.DecodeError, RecursionError) as error:
            return _failure(identity, INVALID_PARAMS, f"{method.name}: {error}")
        try:
            handler = getattr(self.operations, method.handler)
            result = handler(params, peer) if method.for_programs else handler(params)
            if inspect.isawaitable(result):
                result = await result
            octets = _encode(result.result if isinstance(result, Handed) else result)
        except (OperationFailed, *REFUSALS, LookupError) as error:
            return _failure(identity, FAILED, _text_of(error))
        except Exception:
            log.exception("operation_crashed", method=method.name)
            return _failure(identity, INTERNAL_ERROR, f"{method.name} failed inside; the daemon's log has the trace")
        if method.changes:
            log.info("configuration_changed", method=method.name, by=f"uid {peer.uid}",
                     params=msgspec.to_builtins(params, enc_hook=str))
        reply = Reply(jsonrpc="2.0", id=identity, result=msgspec.Raw(octets))
        return Handed(reply, result.end) if isinstance(result, Handed) else reply


def _identity(path: Path) -> tuple[int, int]:
    """Which file that is: device and inode."""
    found = path.lstat()
    return found.st_dev, found.st_ino


def _socket_of(writer: asyncio.StreamWriter) -> socket.socket:
    """The client's socket once more, to be closed."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM,
                         fileno=os.dup(writer.get_extra_info("socket").fileno()))


def _text_of(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error) or type(error).__name__


def _failure(identity: int | str | None, code: int, message: str) -> Reply:
    return Reply(jsonrpc="2.0", id=identity, error=Failure(code=code, message=message))


def _id_of(line: bytes) -> int | str | None:
    """The id of a request that is wrong otherwise (JSON-RPC 2.0, 5), when it can be told."""
    class OnlyId(msgspec.Struct):
        id: int | str | None = None
    with contextlib.suppress(msgspec.DecodeError, RecursionError):
        return msgspec.json.decode(line, type=OnlyId).id
    return None
