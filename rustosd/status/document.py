"""What /status.json says, schema 1: a snapshot of the daemon, bounded in size, made anew at most every MIN_AGE_S.

docs/status.md has every field. Fields may be added under the same schema number, none changes or goes.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from rustosd import health
from rustosd.control.names import USEFUL_ENDS, endpoint
from rustosd.health import Note
from rustosd.status.recorder import INTERVAL_S, LOOPBACK_INDEX, Rates, Recorder, Watched

SCHEMA: Final = 1
MIN_AGE_S: Final = 0.5
MAX_CONNECTIONS: Final = 20
"""Rows of connections; the busiest are shown."""


class Interface(msgspec.Struct, frozen=True):
    """One interface of the stack; rates are of the last seconds, history is two minutes of them, in bits a second."""

    name: str
    kind: str
    link: str
    mac: str | None
    mtu: int
    addresses: list[str]
    rx_octets: int
    tx_octets: int
    rx_frames: int
    tx_frames: int
    rx_dropped: int
    tx_dropped: int
    rx_bits_per_s: int
    tx_bits_per_s: int
    rx_frames_per_s: float
    tx_frames_per_s: float
    rx_history: list[int]
    tx_history: list[int]


class Connection(msgspec.Struct, frozen=True):
    """One TCP connection."""

    local: str
    remote: str
    state: str
    rx_octets: int
    tx_octets: int
    rtt_us: float | None
    retransmits: int


class Connections(msgspec.Struct, frozen=True):
    """How many there are, and the busiest of them unless the configuration keeps them to itself."""

    total: int
    limit: int
    listeners: int
    states: dict[str, int]
    busiest: list[Connection]
    listed: bool


class Drop(msgspec.Struct, frozen=True):
    """Frames that were not used, for one reason."""

    reason: str
    direction: str
    frames: int
    frames_per_s: float
    help: str


class Memory(msgspec.Struct, frozen=True):
    """TCP buffers of all connections, and the process; limit 0: unknown."""

    buffer_octets: int
    buffer_limit_octets: int
    resident_octets: int
    resident_limit_octets: int


class Service(msgspec.Struct, frozen=True):
    """One service: where it listens, how many connections it has, and a command or link to try."""

    name: str
    where: str
    connections: int | None
    command: str
    link: str = ""


class Status(msgspec.Struct, frozen=True):
    """The whole document."""

    schema: int
    version: str
    uptime_s: float
    interval_s: float
    addresses: list[str]
    health: list[Note]
    interfaces: list[Interface]
    connections: Connections
    drops: list[Drop]
    memory: Memory
    services: list[Service]


class Reporter:
    """Makes the document: `status()` the struct, `json()` its octets, both no older than MIN_AGE_S.

    `addresses`: those to reach the host by; `services`: what it serves.
    """

    def __init__(self, watched: Watched, version: str, clock: Callable[[], float], *, addresses: Callable[[], list[str]],
                 services: Callable[[], list[Service]], list_connections: bool = True) -> None:
        self.watched = watched
        self.addresses = addresses
        self.services = services
        self.version = version
        self.clock = clock
        self.list_connections = list_connections
        self.recorder = Recorder(watched, clock)
        self._started_at = clock()
        self._made_at = float("-inf")
        self._status: Status | None = None
        self._json = b""

    def status(self) -> Status:
        """The state now, or that of at most MIN_AGE_S ago: however many ask, the daemon has other work."""
        self._refresh()
        assert self._status is not None
        return self._status

    def json(self) -> bytes:
        """The same as JSON."""
        self._refresh()
        return self._json

    def notes(self) -> list[Note]:
        """What needs attention now."""
        return health.check(self.recorder.facts())

    def _refresh(self) -> None:
        now = self.clock()
        if self._status is None or now - self._made_at >= MIN_AGE_S:
            self._status = self._make(now)
            self._json = msgspec.json.encode(self._status)
            self._made_at = now

    def _make(self, now: float) -> Status:
        facts = self.recorder.facts()
        return Status(
            schema=SCHEMA, version=self.version, uptime_s=round(now - self._started_at, 1), interval_s=INTERVAL_S,
            addresses=self.addresses(), health=health.check(facts), interfaces=self._interfaces(facts.now),
            connections=self._connections(), drops=self._drops(facts),
            memory=Memory(facts.usage["buffer_octets"], facts.usage["buffer_octets_limit"],
                          facts.resident_octets, facts.memory_octets),
            services=self.services(),
        )

    def _interfaces(self, now: health.Figures) -> list[Interface]:
        return [self._interface(row, now.nics[row["name"]]) for row in self.watched.stack.interfaces()]

    def _interface(self, row: Any, nic: health.Nic) -> Interface:
        history = self.recorder.history(row["name"])
        latest = history[-1] if history else Rates()
        loopback = row["index"] == LOOPBACK_INDEX
        kind = "loopback" if loopback else self.watched.nic_facts(row["name"]).get("kind", "unknown")
        return Interface(
            name=row["name"], kind=kind, link="up" if row["up"] else "down", mac=None if loopback else row["mac"],
            mtu=row["mtu"], addresses=list(row["addresses"]),
            rx_octets=nic.rx_octets, tx_octets=nic.tx_octets, rx_frames=nic.rx_frames, tx_frames=nic.tx_frames,
            rx_dropped=nic.rx_dropped, tx_dropped=nic.tx_dropped,
            rx_bits_per_s=round(8 * latest.rx_octets), tx_bits_per_s=round(8 * latest.tx_octets),
            rx_frames_per_s=round(latest.rx_frames, 1), tx_frames_per_s=round(latest.tx_frames, 1),
            rx_history=[round(8 * rates.rx_octets) for rates in history],
            tx_history=[round(8 * rates.tx_octets) for rates in history],
        )

    def _connections(self) -> Connections:
        stack = self.watched.stack
        usage = stack.tcp.usage()
        rows = stack.tcp.busiest(MAX_CONNECTIONS) if self.list_connections else []
        return Connections(
            total=usage["connections"], limit=usage["connections_limit"], listeners=len(stack.listeners()),
            states={state.lower(): count for state, count in stack.tcp.states().items() if count},
            busiest=[_connection(row) for row in rows], listed=self.list_connections,
        )

    def _drops(self, facts: health.Facts) -> list[Drop]:
        words = self.watched.verdict_help
        rows: list[Drop] = []
        for direction, kind in ("in", "ended"), ("out", "unsent"):
            rises = facts.rise(kind)
            counts: dict[str, int] = getattr(facts.now, kind)
            rows += [Drop(reason, direction, count, round(rises.get(reason, 0) / facts.seconds, 1), words.get(reason, ""))
                     for reason, count in counts.items() if reason not in USEFUL_ENDS]
        return sorted(rows, key=lambda row: (-row.frames_per_s, -row.frames))


def _connection(row: Any) -> Connection:
    return Connection(
        local=endpoint(row["local_host"], row["local_port"]), remote=endpoint(row["remote_host"], row["remote_port"]),
        state=row["state"].lower(), rx_octets=row["octets_received"], tx_octets=row["octets_sent"],
        rtt_us=row["srtt_ns"] / 1000 if row["srtt_ns"] else None, retransmits=row["retransmits"],
    )


def severities(notes: Sequence[Note]) -> str:
    """The notes in a few words: `1 error, 2 warnings`, or that all is well."""
    counts = health.by_severity(notes)
    words = [f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items() if count]
    return ", ".join(words) or "All is well"
