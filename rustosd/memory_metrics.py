"""Metrics of the memory of programs that have a limit, by program: those of the configuration, and all others together."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Final

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from rustosd.metrics import labelled
from rustosd.processes import Group, Processes
from rustosd.programs import Programs

OTHERS: Final = "-"
"""The label of programs that are not of the configuration; none of those can be called so."""
_GAUGES: Final = {
    "resident_octets": "Octets of programs' private memory that are in memory.",
    "swapped_octets": "Octets of it that have a place in swap, of each process by itself; some are in memory as well.",
}
_COUNTERS: Final = {
    "faults": "Page faults that read from swap.",
    "again": "Faults of pages that had left not long ago: if these are many, the limit is too low.",
    "waited": "Faults that waited because the program had all it may.",
    "in_octets": "Octets of pages that were brought in from swap.",
    "out_octets": "Octets of pages that were written to swap.",
    "clean_octets": "Octets of pages that left without being written: swap had them, or they were zero.",
}
_Amount = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class _Totals(msgspec.Struct):
    """What a supervisor answers, of all that its program has started, also of what has ended since."""

    resident_octets: _Amount = 0
    swapped_octets: _Amount = 0
    faults: _Amount = 0
    again: _Amount = 0
    waited: _Amount = 0
    in_octets: _Amount = 0
    out_octets: _Amount = 0
    clean_octets: _Amount = 0


_NOTHING: Final = _Totals()


class MemoryWatch:
    """What the programs' supervisors have told."""

    def __init__(self, processes: Processes, programs: Programs) -> None:
        self._processes, self._programs = processes, programs
        self._seen: dict[Group, tuple[str, _Totals]] = {}       # with the label
        self._counted: dict[str, Counter[str]] = {OTHERS: Counter()}

    async def gather(self) -> None:
        """Ask them all, and add what they have counted since the last time."""
        groups = {group: self._programs.supervised_by(group.pid) or OTHERS for group in self._processes.groups()}
        answers = await asyncio.gather(*map(_ask, groups))
        there = set(self._processes.groups())
        before, self._seen = self._seen, {}
        for (group, label), totals in zip(groups.items(), answers, strict=True):
            if totals is None:
                totals = before[group][1] if group in before else None      # nothing new just now
            if totals is None or group not in there:
                continue
            self._seen[group] = label, totals
            last, counted = before.get(group, (label, _NOTHING))[1], self._counted.setdefault(label, Counter())
            for name in _COUNTERS:      # a supervisor is its user's: what it says may be anything, but counters never fall
                counted[name] += max(0, getattr(totals, name) - getattr(last, name))
        for gone in self._counted.keys() - {OTHERS, *self._programs.runners}:
            del self._counted[gone]

    def metrics(self) -> Iterator[Metric]:
        """As of the last time."""
        now = {label: Counter() for label in self._counted}
        for label, totals in self._seen.values():
            if label in now:
                now[label].update({name: getattr(totals, name) for name in _GAUGES})
        for name, text in _GAUGES.items():
            yield labelled(GaugeMetricFamily, f"rustos_memory_{name}", text, "program",
                           {label: figures[name] for label, figures in now.items()})
        for name, text in _COUNTERS.items():
            yield labelled(CounterMetricFamily, f"rustos_memory_{name}", text, "program",
                           {label: figures[name] for label, figures in self._counted.items()})


async def _ask(group: Group) -> _Totals | None:
    """None: its memory has no limit, or its supervisor does not answer."""
    try:
        return msgspec.convert((await group.ask("memory_totals"))["totals"], _Totals)
    except (OSError, KeyError, msgspec.ValidationError):
        return None
