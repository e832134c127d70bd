"""Remembers what was counted in the last two minutes, so that the page has rates and plots and health a "before"."""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import structlog

from rustosd.disk_health import DiskState, PortState
from rustosd.health import WINDOW_S, Facts, Figures, Nic, Temperature, Upkeep
from rustosd.scheduling import waits

INTERVAL_S: Final = 2.0
POINTS: Final = 60
"""Of a plot: two minutes."""
LOOPBACK_INDEX: Final = 0
MAX_SENSORS: Final = 64
MAX_TRIPS: Final = 16
_PAGE_OCTETS: Final = os.sysconf("SC_PAGE_SIZE")
_NIC_FIELDS: Final = ("rx_octets", "tx_octets", "rx_frames", "tx_frames")

log = structlog.get_logger(__name__)


class Watched(Protocol):
    """What is asked of the daemon; a test can be one without a device."""

    stack: Any
    """`netstack.stack.Stack` or its like."""
    pump: Any
    """`rustosd.pump.Pump` or its like: `nics` and `statistics`."""
    running_services: Iterable[Any]
    """`rustosd.services.base.Service` and its like."""
    verdict_help: Mapping[str, str]

    def nic_facts(self, name: str) -> Mapping[str, Any]:
        """What the device of an interface knows better than the stack, at least its kind."""

    def upkeep(self) -> Upkeep:
        """What is left to do for somebody."""

    def socket_usage(self) -> dict[str, int]:
        """Of sockets for other processes: "sockets" and "sockets_limit"; empty: there are none."""

    def swap_troubles(self) -> list[tuple[str, str, str]]:
        """Swap of programs that needs attention: the program, the health check's code, what is wrong."""

    def disk_troubles(self) -> list[tuple[str, str, str]]:
        """Disks that need attention: name, the health check's code, what is wrong."""

    def gone_devices(self) -> list[tuple[str, str]]:
        """The devices that are held and have left: bus address and why."""

    def disk_states(self) -> list[DiskState]:
        """The disks of controllers that are driven here."""

    def port_states(self) -> list[PortState]:
        """And the controllers' ports."""


class Rates(NamedTuple):
    """What one interface moves in a second."""

    rx_octets: float = 0.0
    tx_octets: float = 0.0
    rx_frames: float = 0.0
    tx_frames: float = 0.0


class Recorder:
    """Takes the daemon's figures every INTERVAL_S; keeps POINTS of them and no more."""

    def __init__(self, watched: Watched, clock: Callable[[], float]) -> None:
        self.watched = watched
        self.clock = clock
        self.taken: deque[Figures] = deque(maxlen=POINTS + 1)
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take figures now and then on, until `stop`."""
        self._timer = loop.call_later(INTERVAL_S, self.start, loop)
        try:
            self.taken.append(figures(self.watched, self.clock()))
        except Exception:
            log.exception("status_figures_failed")

    def stop(self) -> None:
        """Take no more. May be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def figures(self) -> Figures:
        """What has been counted up to now."""
        return figures(self.watched, self.clock())

    def history(self, name: str) -> list[Rates]:
        """The rates of an interface between figures, the oldest first; at most POINTS."""
        taken = [each for each in self.taken if name in each.nics]
        return [_rates(a, b, name) for a, b in pairwise(taken)]

    def facts(self) -> Facts:
        """What the health checks look at: the state now, and the oldest figures within the window."""
        stack = self.watched.stack
        now = figures(self.watched, self.clock())
        before = next((each for each in self.taken if each.at_s >= now.at_s - WINDOW_S), now)
        return Facts(
            now=now, before=before, gone=self.watched.gone_devices(), disks=self.watched.disk_troubles(),
            swap=self.watched.swap_troubles(),
            drives=self.watched.disk_states(), drive_ports=self.watched.port_states(),
            usage=stack.tcp.usage() | self.watched.socket_usage(),
            resident_octets=resident_octets(), memory_octets=memory_octets(),
            upkeep=self.watched.upkeep(), temperatures=temperatures(),
            interfaces=[row for row in stack.interfaces() if row["index"] != LOOPBACK_INDEX],
            addresses=[row for row in stack.addresses() if row["interface"] != LOOPBACK_INDEX])


def figures(watched: Watched, at_s: float) -> Figures:
    """What the daemon has counted up to now. Some tens of microseconds, and what the drivers' statistics cost."""
    stack, pump = watched.stack, watched.pump
    lost = {index: _lost(nic) for index, nic in pump.nics.items()}
    return Figures(
        at_s=at_s,
        nics={row["name"]: Nic(*(row[field] for field in _NIC_FIELDS), *lost.get(row["index"], (0, 0)))
              for row in stack.interfaces()},
        ended=_counted(stack.verdicts()), unsent=_counted(stack.unsent()), counters=_counted(stack.counters()),
        pump=_counted(pump.statistics() | {"wait_ms": waits.own().wait_ns // 1_000_000}),
        refused=_counted({service.name: service.events["refused"] for service in watched.running_services}),
    )


def _rates(a: Figures, b: Figures, name: str) -> Rates:
    seconds = max(b.at_s - a.at_s, 1e-3)
    return Rates(*(max(0, getattr(b.nics[name], field) - getattr(a.nics[name], field)) / seconds for field in _NIC_FIELDS))


def _lost(nic: Any) -> tuple[int, int]:
    try:
        statistics = nic.statistics()
    except Exception as error:      # a device in trouble must not take the page with it, which would tell of the trouble
        log.warning("nic_statistics_failed", nic=nic.name, error=repr(error))
        return 0, 0
    return statistics.get("rx_dropped", 0), statistics.get("tx_dropped", 0)


def _counted(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def temperatures(root: Path = Path("/sys/class/thermal")) -> list[Temperature]:
    """What the machine's sensors show, those that can be read."""
    found = []
    for zone in sorted(root.glob("thermal_zone*"))[:MAX_SENSORS]:
        try:
            celsius, name = int((zone / "temp").read_text()) / 1000, (zone / "type").read_text().strip()
            trips = {(zone / f"trip_point_{i}_type"): zone / f"trip_point_{i}_temp" for i in range(MAX_TRIPS)}
            critical = [int(temperature.read_text()) / 1000 for kind, temperature in trips.items()
                        if kind.exists() and kind.read_text().strip() == "critical"]
            found.append(Temperature(name, celsius, min(critical, default=0.0)))
        except (OSError, ValueError):       # asleep, or not allowed
            continue
    return found


def resident_octets() -> int:
    """The process's memory that is in RAM; 0 where the kernel does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_OCTETS
    except (OSError, ValueError, IndexError):
        return 0


def memory_octets() -> int:
    """The memory this process may have: its control group's limit or the machine's memory, the lower; 0: unknown."""
    limits = []
    try:
        (meminfo,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:")]
        limits.append(int(meminfo.split()[1]) * 1024)
        group = Path("/proc/self/cgroup").read_text().partition("0::/")[2].splitlines()[0]
        limits.append(int((Path("/sys/fs/cgroup") / group / "memory.max").read_text()))
    except (OSError, ValueError, IndexError):
        pass
    return min(limits, default=0)
