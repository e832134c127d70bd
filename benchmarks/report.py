"""Results as one table for people and as JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Row:
    """One comparison. `ratio` is ours / peer; `met` is None where the issue sets no goal."""

    measure: str
    unit: str
    ours: float
    peer_name: str = ""
    peer: float | None = None
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None
    rounds: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """What one packet costs on one of the stack's hot paths."""

    path: str
    ns: float
    instructions: float | None
    rounds: list[float]


@dataclass
class Report:
    """All rows of a run, in order, and what could not be measured."""

    rows: list[Row] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def json(self) -> str:
        """Everything, with each round's figures."""
        machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version(),
                   "load": os.getloadavg()[0]}
        return json.dumps({"schema": 1, "machine": machine, "rows": [asdict(row) for row in self.rows],
                           "hot_paths": [asdict(cost) for cost in self.costs], "notes": self.notes}, indent=2)

    def show(self) -> None:
        """Print the tables, coloured on a terminal."""
        show = _show_rich if sys.stdout.isatty() else _show_plain
        if self.rows:
            show(_HEADINGS, [_cells(row) for row in self.rows])
        if self.rows and self.costs:
            print()
        if self.costs:
            show(_COST_HEADINGS, [(cost.path, _number(cost.ns), _number(cost.instructions)) for cost in self.costs])
        for note in self.notes:
            print(f"note: {note}")


_HEADINGS = ("measure", "ours", "peer's", "peer", "ratio", "goal", "met")
_COST_HEADINGS = ("hot path", "ns per packet", "instructions")
_NUMBERS = {"ours", "peer's", "ratio", "ns per packet", "instructions"}


def paired(ours: Sequence[float], peer: Sequence[float]) -> float:
    """The median of the rounds' ratios: what disturbs the machine disturbs both sides of one round alike."""
    return statistics.median(a / b for a, b in zip(ours, peer, strict=True))


def _cells(row: Row) -> tuple[str, ...]:
    return (f"{row.measure}, {row.unit}", _number(row.ours), _number(row.peer), row.peer_name or "-",
            "-" if row.ratio is None else f"{row.ratio:.2f}", row.goal or "-",
            "-" if row.met is None else "yes" if row.met else "NO")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _show_plain(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    widths = [max(len(line[i]) for line in (headings, *lines)) for i in range(len(headings))]
    for line in (headings, ["-" * width for width in widths], *lines):
        padded = (text.rjust(width) if heading in _NUMBERS else text.ljust(width)
                  for heading, text, width in zip(headings, line, widths, strict=True))
        print("  ".join(padded).rstrip())


def _show_rich(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in _NUMBERS else "left", no_wrap=True)
    colours = {"yes": "[green]yes[/]", "NO": "[bold red]NO[/]"}
    for line in lines:
        table.add_row(*(colours.get(text, text) for text in line))
    Console().print(table)
