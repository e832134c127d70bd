"""What every built-in service has in common: listening, bounds on connections and idle time, and an orderly end.

A service is written against asyncio's shapes only. Its network is the daemon's own stack, and in tests the running
event loop itself, so that the kernel's curl and iperf3 can judge it. Nothing here runs a task per connection.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

ANY_HOSTS = ("0.0.0.0", "::")
BACKLOG = 1024
# What one connection may write before the others get their turn: enough to amortise the turn, about 1 ms of work.
BLOCKS_PER_TURN = 8
# A connection that made no progress during this many sweeps is expired; a sweep comes twice per idle time.
QUIET_SWEEPS = 2
ABORT_WAIT_S = 1.0


class Network(Protocol):
    """What a service needs of a network; asyncio event loops and `netstack.sockets.AsyncStack` have it."""

    async def create_server(self, protocol_factory: Any, host: str, port: int, *, backlog: int = ...) -> Any: ...

    async def create_datagram_endpoint(self, protocol_factory: Any, local_addr: tuple[str, int]) -> Any: ...


class Sample(NamedTuple):
    """One value of one metric; samples of several services share a name and differ in their labels."""

    name: str
    kind: str
    help: str
    value: float
    labels: Mapping[str, str]


class Connection(asyncio.BaseProtocol):
    """One accepted connection: admitted by its service, watched for progress, gone from its books when lost.

    A subclass sets `quiet` to 0 whenever the peer made progress. The count of silent sweeps costs a busy connection
    nothing but that store, and an idle one nothing at all between sweeps.
    """

    quiet = 0
    transport: Any = None

    def __init__(self, service: Service) -> None:
        self.service = service

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.service.admit(self):
            self.opened()
        else:
            self.refused()

    def connection_lost(self, exc: Exception | None) -> None:
        self.service.forget(self)

    def opened(self) -> None:
        """The service has room for this connection."""

    def refused(self) -> None:
        """The service is full."""
        self.transport.abort()

    def expire(self) -> None:
        """The idle time is over: end, with a word to the peer where the protocol has one."""
        self.transport.abort()

    def finish(self) -> None:
        """The service stops: end as soon as the work in hand is done."""

    def abort(self) -> None:
        """The grace is over: end now."""
        self.transport.abort()

    def sweep(self) -> bool:
        """Counts one silent sweep; True if the connection expired by it."""
        self.quiet += 1
        if self.quiet <= QUIET_SWEEPS:
            return False
        if self.quiet == QUIET_SWEEPS + 1:
            self.expire()
            return True
        self.transport.abort()  # it was told to end and its peer does not let it
        return False


class Pump(Connection):
    """A connection that writes as long as its transport takes more, a bounded amount per turn of the loop.

    `produce` writes one block and says whether it did. `pump` calls it until the transport pauses, nothing is left
    or the turn is used up; then others run first.
    """

    paused = False
    _turn_pending = False

    def produce(self) -> bool:
        raise NotImplementedError

    def pump(self) -> None:
        for _ in range(BLOCKS_PER_TURN):
            if self.paused or not self.produce():
                return
        if not self._turn_pending:
            self._turn_pending = True
            self.service.loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turn_pending = False
        self.pump()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.quiet = 0
        self.pump()

    def connection_lost(self, exc: Exception | None) -> None:
        self.paused = True
        super().connection_lost(exc)


class Service:
    """A named service on one port of every host address it is given.

    At most `max_connections` at once; one without progress for `idle_s` (and at most half as long again) is ended.
    """

    name = "service"
    connection_factory: Any = Connection

    def __init__(
        self, *, port: int, hosts: Sequence[str] = ANY_HOSTS, max_connections: int = 1024, idle_s: float = 60.0
    ) -> None:
        self.hosts = tuple(hosts)
        self.port = port
        self.max_connections = max_connections
        self.idle_s = idle_s
        self.loop: Any = None
        self.stopping = False
        self.retired = False
        self.events: Counter[str] = Counter()
        self.received_octets = 0
        self.sent_octets = 0
        self._connections: set[Connection] = set()
        self._servers: list[Any] = []
        self._endpoints: list[Any] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Event | None = None

    async def start(self, network: Network) -> None:
        """Listens on every host, or on none. Raises what the network raises, OSError as a rule."""
        self.loop = asyncio.get_running_loop()
        self.stopping = False
        try:
            for host in self.hosts:
                await self.listen(network, host)
        except BaseException:
            self._close_servers()
            self._close_endpoints()
            raise
        self._sweeper = self.loop.call_later(self.idle_s / QUIET_SWEEPS, self._sweep)

    async def listen(self, network: Network, host: str) -> None:
        """Opens what the service listens with on one host."""
        self._servers.append(
            await network.create_server(lambda: self.connection_factory(self), host, self.port, backlog=BACKLOG)
        )

    async def listen_datagrams(self, network: Network, host: str, protocol_factory: Any) -> None:
        """Opens a UDP endpoint on one host; where :: is served too, that one takes the datagrams of both families."""
        if host == "0.0.0.0" and "::" in self.hosts:
            return
        transport, _ = await network.create_datagram_endpoint(protocol_factory, local_addr=(host, self.port))
        self._endpoints.append(transport)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Stops listening, lets connections end for `grace_s` seconds, aborts the rest; returns when all is gone."""
        self.stopping = True
        self._close_servers()
        for connection in tuple(self._connections):
            connection.finish()
        try:
            if not await self._empty_within(grace_s):
                for connection in tuple(self._connections):
                    connection.abort()
                await self._empty_within(ABORT_WAIT_S)
        finally:  # cancelled, too, it leaves nothing open
            for connection in tuple(self._connections):
                connection.transport.abort()
            self._rest()  # last: a UDP test in progress still needs its endpoint
        await self._empty_within(ABORT_WAIT_S)

    def close_listeners(self) -> None:
        """Takes no more connections; datagrams are still answered. `reopen` takes it back."""
        self._close_servers()

    async def reopen(self, network: Network) -> None:
        """Listens again after `close_listeners`, for a service without datagrams. Raises what `start` raises."""
        for host in self.hosts:
            await self.listen(network, host)

    def retire(self) -> None:
        """Takes no more connections; those it has end by themselves, and with the last of them the service."""
        self.retired = True
        self.close_listeners()
        if not self._connections:
            self._rest()

    def _rest(self) -> None:
        self._close_endpoints()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._connections)

    def addresses(self) -> list[tuple[str, int]]:
        """The (host, port) pairs served, as configured."""
        return [(host, self.port) for host in self.hosts]

    def statistics(self) -> Iterator[Sample]:
        """The service's samples; every label has a fixed, small set of values."""
        service = {"service": self.name}
        yield Sample("rustos_service_connections", "gauge", "Open connections.", len(self._connections), service)
        yield Sample(
            "rustos_service_received_octets_total", "counter", "Payload octets received.", self.received_octets, service
        )
        yield Sample("rustos_service_sent_octets_total", "counter", "Payload octets sent.", self.sent_octets, service)
        for event, count in {**dict.fromkeys(("accepted", "refused", "expired"), 0), **self.events}.items():
            yield Sample(
                "rustos_service_events_total", "counter", "What befell connections and datagrams.", count,
                {"service": self.name, "event": event},
            )

    def admit(self, connection: Connection) -> bool:
        """Books a new connection; False when the service is full or stopping."""
        if self.stopping or len(self._connections) >= self.max_connections:
            self.events["refused"] += 1
            return False
        self.events["accepted"] += 1
        self._connections.add(connection)
        return True

    def replace(self, old: Connection, new: Connection) -> None:
        """Hands the transport of `old`, and its place in the books, to `new`."""
        new.transport = old.transport
        self._connections.discard(old)
        self._connections.add(new)
        new.transport.set_protocol(new)

    def forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if self._emptied is not None and not self._connections:
            self._emptied.set()
        if self.retired and not self._connections:
            self._rest()

    def _sweep(self) -> None:
        for connection in tuple(self._connections):
            if connection.sweep():
                self.events["expired"] += 1
        if self._sweeper is not None:       # else the last connection of a retired service has just gone
            self._sweeper = self.loop.call_later(self.idle_s / QUIET_SWEEPS, self._sweep)

    async def _empty_within(self, seconds: float) -> bool:
        if not self._connections:
            return True
        self._emptied = asyncio.Event()
        try:
            await asyncio.wait_for(self._emptied.wait(), seconds)
        except TimeoutError:
            return False
        finally:
            self._emptied = None
        return True

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    def _close_endpoints(self) -> None:
        for transport in self._endpoints:
            transport.close()
        self._endpoints.clear()
