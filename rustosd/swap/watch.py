"""The swap of all programs as the daemon sees it: their supervisors are asked every few seconds, and when somebody looks.

A supervisor answers the question "swap" with `{"swap": report}`, or with an error when its programs have none.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from rustosd.processes import Group, Processes
from rustosd.swap.report import Report

EVERY_S: Final = 5.0
NEARLY_FULL: Final = 0.9
_GAUGES: Final = {
    "octets": "What the slots of all programs' swap hold at most.",
    "used_octets": "Octets of pages that are in swap.",
    "stored_octets": "Octets that these take on devices, sealed and packed.",
}
_COUNTERS: Final = {
    "in_octets": "Octets of pages that were brought in from swap.",
    "out_octets": "Octets of pages that went to swap.",
    "read_octets": "Octets that were read from swap's devices.",
    "written_octets": "Octets that were written to swap's devices.",
    "corrupt": "Pages that swap gave back otherwise than they were written; whoever needed them ended.",
    "read_again": "Pages that were as they were written when they were read once more.",
    "failed": "Requests that swap's devices did not do.",
    "full": "Times that swap had no room for a page.",
    "faults": "Page faults that waited for swap.",
    "ahead_pages": "Pages that were brought in before anybody asked for them.",
    "ahead_used": "Those of them that somebody asked for then.",
}


class Swapped(NamedTuple):
    """The swap of one supervisor's programs, and how fast pages come and go."""

    group: int
    program: str
    report: Report
    in_octets_per_s: float
    out_octets_per_s: float


class _Last(NamedTuple):
    at_s: float
    report: Report


class SwapWatch:
    """What is known of everybody's swap."""

    def __init__(self, processes: Processes, clock: Callable[[], float] = time.monotonic) -> None:
        self._processes, self._clock = processes, clock
        self._last: dict[int, _Last] = {}
        self._ended = dict.fromkeys(_COUNTERS, 0)       # what those counted that are no more
        self._task: asyncio.Task[None] | None = None
        self.rows: list[Swapped] = []
        """As they were when somebody asked last."""

    def start(self) -> None:
        """Ask every EVERY_S, until `stop`."""
        self._task = asyncio.get_running_loop().create_task(self._ask_now_and_then())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def look(self) -> list[Swapped]:
        """Ask all supervisors now."""
        groups = self._processes.groups()
        answers = await asyncio.gather(*(self._ask(group) for group in groups))
        now = self._clock()
        there = self._processes.groups()
        reports = {group: report or self._known(group) for group, report in zip(groups, answers, strict=True) if group in there}
        self.rows = [self._row(group, report, now) for group, report in reports.items() if report is not None]
        for gone in self._last.keys() - {row.group for row in self.rows}:
            self._count_ended(self._last.pop(gone).report)
        for row in self.rows:
            self._last[row.group] = _Last(now, row.report)
        return self.rows

    @staticmethod
    async def _ask(group: Group) -> Report | None:
        try:
            answer: dict[str, Any] = await group.ask("swap")
            return msgspec.convert(answer.get("swap"), Report)
        except (OSError, msgspec.ValidationError):
            return None

    def _known(self, group: Group) -> Report | None:
        """What one that does not answer just now said last."""
        return self._last[group.pid].report if group.pid in self._last else None

    def _row(self, group: Group, report: Report, now: float) -> Swapped:
        last = self._last.get(group.pid)
        if last is None or now <= last.at_s:
            return Swapped(group.pid, group.name, report, 0.0, 0.0)
        seconds = now - last.at_s
        return Swapped(group.pid, group.name, report, max(0, report.in_octets - last.report.in_octets) / seconds,
                       max(0, report.out_octets - last.report.out_octets) / seconds)

    def _count_ended(self, report: Report) -> None:
        for name in self._ended:
            self._ended[name] += getattr(report, name)

    async def _ask_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await self.look()

    def troubles(self) -> Iterator[tuple[str, str, str]]:
        """(program, code of a health check, what is wrong) of everything that needs attention."""
        for row in self.rows:
            who, report = row.program or str(row.group), row.report
            if report.corrupt:
                yield who, "swap-corrupt", f"{report.corrupt} pages on {report.device} were not what had been written there"
            if report.failed:
                yield who, "swap-failing", f"{report.device} did not do {report.failed} requests"
            fullest = max(report.used_octets / report.octets, 0 if report.compression == "none" else
                          report.stored_octets / max(report.octets // 4, 1))
            if fullest >= NEARLY_FULL:
                yield who, "swap-nearly-full", f"{report.device} is {fullest:.0%} full"

    def metrics(self) -> Iterator[Metric]:
        """Of all programs together: no labels, for programs come and go."""
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"rustos_swap_{name}", text, value=sum(getattr(row.report, name) for row in self.rows))
        for name, text in _COUNTERS.items():
            now = sum(getattr(row.report, name) for row in self.rows)
            yield CounterMetricFamily(f"rustos_swap_{name}", text, value=self._ended[name] + now)
