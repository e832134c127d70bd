"""The NBD server: where clients come in, their handshakes, the exports they choose, and the limits on all of that."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from drivers.disk import DiskError
from drivers.errors import DeviceError
from rustosd import unix_socket
from rustosd.nbd.engine import CONNECTION_OCTETS, Engine
from rustosd.nbd.export import Export
from rustosd.nbd.negotiation import Negotiation, State, Tls
from rustosd.nbd.stack import StackListener
from rustosd.nbd.tls import Relay
from rustosd.services.base import Sample

BACKLOG: Final = 128
RECEIVED_MOST: Final = 64 << 10
SWEEP_S: Final = 5.0
ACCEPT_AGAIN_S: Final = 1.0
SOCKET_OCTETS: Final = 1 << 20
FLUSH_S: Final = 30.0
"""How long the last flush of an export may take."""
REFUSALS: Final = (
    "too_many_connections", "memory", "descriptors", "handshake_timeout", "tls_handshake", "tls_required", "unknown_export",
    "bad_magic", "unknown_flags", "not_fixed_newstyle", "oversize_option", "option_flood", "data_before_tls",
    "export_name_after_extended_headers", "shutting_down", "lost",
)
"""Why connections never came as far as an export."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may use of us."""

    connections: int = 256
    handshake_s: float = 10.0
    stalled_s: float = 300.0
    buffers_octets: int = 256 << 20
    max_request_octets: int = 32 << 20


@dataclass(slots=True)
class Budget:
    """Memory for all connections together."""

    octets: int
    used: int = 0

    def take(self, octets: int) -> bool:
        """Whether there was so much."""
        if self.used + octets > self.octets:
            return False
        self.used += octets
        return True

    def give(self, octets: int) -> None:
        """It is free again."""
        self.used -= octets


@dataclass(slots=True)
class Client:
    """A connection in transmission, for those who ask."""

    where: str
    """By which way it came: "unix", "tcp", "stack"."""
    peer: str
    tls: bool
    since: float


@dataclass(slots=True)
class Served:
    """An export and what serves it."""

    export: Export
    engine: Engine
    clients: dict[int, Client] = field(default_factory=dict)
    emptied: asyncio.Event = field(default_factory=asyncio.Event)


class _Owner:
    """Whom an engine tells of connections that are over."""

    def __init__(self, server: NbdServer, name: str):
        self.server, self.name = server, name
        self.served: Served | None = None

    def gone(self) -> None:
        """The disk has left: what is asked of it from now on is refused, until the export is removed."""
        log.error("exported_disk_gone", export=self.name)
        self.server.on_gone(self.name)

    def ended(self, index: int, reason: str) -> None:
        if (served := self.served) is None:
            return
        if (client := served.clients.pop(index, None)) is not None:
            log.info("nbd_client_left", export=self.name, peer=client.peer, reason=reason)
        if not served.clients:
            served.emptied.set()


class NbdServer:
    """Exports and the sockets through which they are reached. All on the loop's thread."""

    name = "nbd"

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits | None = None, *, tls: Tls = Tls.NONE,
                 tls_context: ssl.SSLContext | None = None, busy_poll_us: int = 50):
        self.loop, self.limits = loop, limits or Limits()
        self.tls, self.tls_context = tls, tls_context
        self.busy_poll_us = busy_poll_us
        self.served: dict[str, Served] = {}
        self.budget = Budget(self.limits.buffers_octets)
        self.handshakes: set[Handshake] = set()
        self.relays: set[Relay] = set()
        self.accepted = 0
        self.refused: Counter[str] = Counter()
        self.stopping = False
        self.on_gone: Callable[[str], None] = lambda name: None
        """Told of exports whose disk has left for good."""
        self.port = 0
        """On our stack; 0: not there."""
        self.places: list[str] = []
        self._listeners: list[socket.socket] = []
        self._stack: StackListener | None = None
        self._unix: list[Path] = []
        self._sweeper = loop.call_later(SWEEP_S, self._sweep)

    # Exports.

    def add(self, export: Export) -> None:
        """Serve a disk, which is ours from now on. Raises ValueError: the name is taken; OSError: no descriptor is left."""
        if export.name in self.served:
            raise ValueError(f"there is an export {export.name} already; choose another name or unexport it first")
        owner = _Owner(self, export.name)
        engine = Engine(self.loop, export.disk, owner, self.budget, max_payload=self.limits.max_request_octets,
                        busy_poll_us=self.busy_poll_us)
        owner.served = self.served[export.name] = Served(export, engine)
        log.info("exported", export=export.name, disk=export.disk.info.name, read_only=not export.writable)

    async def remove(self, name: str, grace_s: float = 5.0) -> None:
        """Serve it no more: requests under way are done, its connections end, what was written is flushed, the disk closed.

        Raises KeyError when there is no such export.
        """
        served = self.served[name]
        if not served.engine.draining:
            served.engine.drain()
            await _empty_within(served, grace_s)
            served.engine.abort()
            await _empty_within(served, grace_s)
        if served.export.writable:
            try:
                await asyncio.wait_for(served.engine.flush(), FLUSH_S)
            except (DiskError, TimeoutError) as error:
                log.error("last_flush_failed", export=name, error=str(error) or "it took too long")
        if self.served.get(name) is served:     # nobody else has removed it meanwhile
            self.let_go(name)
            served.export.disk.close()
            served.engine.free()

    def let_go(self, name: str) -> Served:
        """Drive an export's disk no more, at once, for it is about to be closed; then free its engine. Raises KeyError."""
        served = self.served.pop(name)
        served.engine.detach()
        log.info("unexported", export=name)
        return served

    @property
    def exports(self) -> dict[str, Export]:
        """Those that clients may choose now."""
        return {name: served.export for name, served in self.served.items() if not served.engine.draining}

    # Where clients come in.

    def listen_unix(self, path: Path, mode: int = 0o600) -> None:
        """Serve a unix socket, whose directory is there. Raises OSError that says what is in the way."""
        bound = unix_socket.bind(path, mode, "choose another with unix = ... under [nbd]")
        self._unix.append(path)
        self._listen(bound, "unix")
        self.places.append(str(path))

    def listen_tcp(self, host: str, port: int) -> int:
        """Serve a port of the kernel's; which one. Raises OSError that says what is in the way."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            bound = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise OSError(error.errno, f"cannot serve NBD on {host} port {port}: {error.strerror}; choose another with "
                                       "listen = ... under [nbd]") from None
        self._listen(bound, "tcp")
        self.places.append(f"{host}:{port}")
        return bound.getsockname()[1]

    def listen_stack(self, network: Any, port: int) -> None:
        """Serve a port of our own stack. Raises OSError."""
        self._stack = StackListener(network, port, BACKLOG, lambda end: self._admit(end, "stack", "stack"))
        self.port = port

    def _listen(self, bound: socket.socket, where: str) -> None:
        bound.setblocking(False)
        bound.listen(BACKLOG)
        self._listeners.append(bound)
        self.loop.add_reader(bound, self._accept, bound, where)

    def _accept(self, bound: socket.socket, where: str) -> None:
        try:
            end, address = bound.accept()
        except (BlockingIOError, ConnectionError):      # it has left already
            return
        except OSError:         # no descriptor is free: ask again when some may be
            self.refused["descriptors"] += 1
            self.loop.remove_reader(bound)
            self.loop.call_later(ACCEPT_AGAIN_S, self._accept_again, bound, where)
            return
        end.setblocking(False)
        if where == "tcp":
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        else:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_OCTETS)
        self._admit(end, where, f"{address[0]}:{address[1]}" if where == "tcp" else where)

    def _accept_again(self, bound: socket.socket, where: str) -> None:
        if bound in self._listeners:
            self.loop.add_reader(bound, self._accept, bound, where)

    def _admit(self, end: socket.socket, where: str, peer: str) -> None:
        """A client has come."""
        if self.stopping or self.connections() >= self.limits.connections:
            self._refuse(end, "shutting_down" if self.stopping else "too_many_connections")
        elif self.budget.used + CONNECTION_OCTETS > self.budget.octets:
            self._refuse(end, "memory")
        else:
            self.accepted += 1
            self.handshakes.add(Handshake(self, end, where, peer))

    def _refuse(self, end: socket.socket, reason: str) -> None:
        self.refused[reason] += 1
        end.close()

    def uris(self) -> list[str]:
        """Where clients of this machine come in; an export's name goes behind the path's slash."""
        return [f"nbd+unix:///?socket={place}" if place.startswith("/") else f"nbd://{place}/" for place in self.places]

    def connections(self) -> int:
        """How many there are, also those that still shake hands."""
        return len(self.handshakes) + sum(len(served.clients) for served in self.served.values())

    def serve(self, handshake: Handshake, end: socket.socket) -> None:
        """A handshake has succeeded."""
        chosen = handshake.negotiation.chosen
        served = self.served.get(chosen.export.name)
        if served is None or served.export is not chosen.export:
            self._refuse(end, "unknown_export")
            return
        try:
            index = served.engine.add(end.fileno(), handshake.negotiation.leftover(), chosen.transmission_flags,
                                      chosen.structured, chosen.extended, chosen.context)
        except (MemoryError, DeviceError) as error:
            log.warning("nbd_client_refused", export=chosen.export.name, error=str(error))
            self._refuse(end, "memory")
            return
        end.detach()
        served.clients[index] = Client(handshake.where, handshake.peer, handshake.negotiation.secure, time.time())
        served.emptied.clear()
        log.info("nbd_client", export=chosen.export.name, peer=handshake.peer, tls=handshake.negotiation.secure)

    # The end.

    async def stop(self, grace_s: float = 5.0) -> None:
        """Take no more clients, let requests end, flush, and close everything, the disks too."""
        self.stopping = True
        for bound in self._listeners:
            self.loop.remove_reader(bound)
            bound.close()
        self._listeners.clear()
        for path in self._unix:
            unix_socket.remove(path)
        self._unix.clear()
        if self._stack is not None:
            self._stack.stop()
        for handshake in tuple(self.handshakes):
            handshake.end("shutting_down")
        await asyncio.gather(*(self.remove(name, grace_s) for name in tuple(self.served)))
        for relay in tuple(self.relays):
            relay.close()
        if self._stack is not None:
            self._stack.close()
        self._sweeper.cancel()

    def _sweep(self) -> None:
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)
        for served in self.served.values():
            served.engine.sweep(round(self.limits.stalled_s * 1e9))

    def statistics(self) -> Iterator[Sample]:
        """Samples for Prometheus; exports are as many as were configured."""
        yield Sample("rustos_nbd_accepted_total", "counter", "NBD connections accepted.", self.accepted, {})
        for reason in REFUSALS:
            yield Sample("rustos_nbd_refused_total", "counter", "NBD connections that never reached an export, and why.",
                         self.refused[reason], {"reason": reason})
        yield Sample("rustos_nbd_buffers_octets", "gauge", "Memory of all NBD connections.", self.budget.used, {})
        yield Sample("rustos_nbd_handshakes", "gauge", "NBD connections that have not chosen an export yet.",
                     len(self.handshakes), {})
        for name, served in self.served.items():
            yield from _samples(name, served)


def _samples(name: str, served: Served) -> Iterator[Sample]:
    label, rows = {"export": name}, served.engine.statistics()
    yield Sample("rustos_nbd_connections", "gauge", "Connections to an export.", len(served.clients), label)
    for command, count in rows["requests"].items():
        yield Sample("rustos_nbd_requests_total", "counter", "Requests to an export.", count, label | {"command": command})
    for error, count in rows["errors"].items():
        yield Sample("rustos_nbd_errors_total", "counter", "Requests that were answered by an error.", count,
                     label | {"error": error})
    for reason, count in rows["ended"].items():
        yield Sample("rustos_nbd_ended_total", "counter", "Connections of an export that have ended, and why.", count,
                     label | {"reason": reason})
    yield Sample("rustos_nbd_read_octets_total", "counter", "Octets read from an export.", rows["read_octets"], label)
    yield Sample("rustos_nbd_written_octets_total", "counter", "Octets written to an export.", rows["written_octets"], label)


async def _empty_within(served: Served, seconds: float) -> None:
    if served.clients:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(served.emptied.wait(), seconds)


class Handshake:
    """A connection that has not chosen an export yet. It has so long, and its answers wait for it to read them."""

    def __init__(self, server: NbdServer, end: socket.socket, where: str, peer: str):
        self.server, self.where, self.peer = server, where, peer
        self.negotiation = Negotiation(_Live(server), tls=server.tls if server.tls_context is not None else Tls.NONE,
                                       max_payload=server.limits.max_request_octets,
                                       shutting_down=lambda: server.stopping)
        self._end: socket.socket | None = end
        self._relay: Relay | None = None
        self._unsent = bytearray(self.negotiation.hello())
        self._writing = False
        self._timer = server.loop.call_later(server.limits.handshake_s, self.end, "handshake_timeout")
        server.loop.add_reader(end, self._readable)
        self._flush()

    def end(self, reason: str) -> None:
        """It leads nowhere."""
        if reason != "abort":
            self.server.refused[reason] += 1
        self._finish()
        if self._relay is not None:
            self._relay.close()

    def _finish(self, keep: bool = False) -> socket.socket | None:
        """Let go of the loop; the socket is returned when it is to be kept."""
        self._timer.cancel()
        self.server.handshakes.discard(self)
        end, self._end = self._end, None
        if end is not None:
            self._forget(end)
            if not keep:
                end.close()
        return end if keep else None

    def _forget(self, end: socket.socket) -> None:
        self.server.loop.remove_reader(end)
        if self._writing:
            self.server.loop.remove_writer(end)
            self._writing = False

    def _readable(self) -> None:
        try:
            data = self._end.recv(RECEIVED_MOST)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.end("lost")
            return
        self._unsent += self.negotiation.receive(data)
        self._flush()

    def _flush(self) -> None:
        """Send what there is; only then go on, whatever comes next."""
        while self._unsent:
            try:
                sent = self._end.send(self._unsent)
            except (BlockingIOError, InterruptedError):
                self._wait_to_write()
                return
            except OSError:
                self.end("lost" if self.negotiation.state is not State.OVER else self.negotiation.reason)
                return
            del self._unsent[:sent]
        if self._writing:
            self.server.loop.remove_writer(self._end)
            self._writing = False
            self.server.loop.add_reader(self._end, self._readable)
        state = self.negotiation.state
        if state is State.OVER:
            self.end(self.negotiation.reason)
        elif state is State.TRANSMISSION:
            self.server.serve(self, self._finish(keep=True))
        elif state is State.TLS_WANTED:
            self._begin_tls()

    def _wait_to_write(self) -> None:
        """A client that does not read its answers is not heard either."""
        if not self._writing:
            self._writing = True
            self.server.loop.remove_reader(self._end)
            self.server.loop.add_writer(self._end, self._flush)

    def _begin_tls(self) -> None:
        """From here on the client's socket is the relay's, and ours is the plain end of a pair."""
        outer = self._end
        self._forget(outer)
        try:
            inner, ours = socket.socketpair()
        except OSError:
            self.end("lost")
            return
        for one in (inner, ours):
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_OCTETS)
        self._end = ours
        self._relay = Relay(self.server.loop, outer, inner, self.server.tls_context, self._secured, self._relay_over)
        self.server.relays.add(self._relay)

    def _secured(self) -> None:
        self.negotiation.secured()
        self.server.loop.add_reader(self._end, self._readable)

    def _relay_over(self, reason: str) -> None:
        self.server.relays.discard(self._relay)
        if self in self.server.handshakes:
            self.end(reason or "lost")


class _Live:
    """The exports as they are at each moment, for handshakes under way."""

    def __init__(self, server: NbdServer):
        self._server = server

    def get(self, name: str) -> Export | None:
        return self._server.exports.get(name)

    def values(self) -> list[Export]:
        return list(self._server.exports.values())


