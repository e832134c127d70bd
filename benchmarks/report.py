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


@dataclass
class Report:
    """All rows of a run, in order, and what could not be measured."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def json(self) -> str:
        """Everything, with each round's figures."""
        machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version(),
                   "load": os.getloadavg()[0]}
        return json.dumps({"schema": 1, "machine": machine, "rows": [asdict(row) for row in self.rows],
                           "notes": self.notes}, indent=2)

    def show(self) -> None:
        """Print the table, coloured on a terminal."""
        cells = [_cells(row) for row in self.rows]
        if sys.stdout.isatty():
            _show_rich(cells, self.rows)
        else:
            _show_plain(cells)
        for note in self.notes:
            print(f"note: {note}")


_HEADINGS = ("measure", "ours", "peer's", "peer", "ratio", "goal", "met")
_RIGHT = {1, 2, 4}


def paired(ours: Sequence[float], peer: Sequence[float]) -> float:
    """The median of the rounds' ratios: what disturbs the machine disturbs both sides of one round alike."""
    return statistics.median(a / b for a, b in zip(ours, peer, strict=True))


def _cells(row: Row) -> tuple[str, ...]:
    return (f"{row.measure}, {row.unit}", _number(row.ours), _number(row.peer), row.peer_name or "-",
            "-" if row.ratio is None else f"{row.ratio:.2f}", row.goal or "-",
            "-" if row.met is None else "yes" if row.met else "NO")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _show_plain(cells: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(line[i]) for line in (_HEADINGS, *cells)) for i in range(len(_HEADINGS))]
    for line in (_HEADINGS, tuple("-" * width for width in widths), *cells):
        padded = (text.rjust(width) if i in _RIGHT else text.ljust(width)
                  for i, (text, width) in enumerate(zip(line, widths, strict=True)))
        print("  ".join(padded).rstrip())


def _show_rich(cells: Sequence[tuple[str, ...]], rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for i, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="right" if i in _RIGHT else "left", no_wrap=True)
    for line, row in zip(cells, rows, strict=True):
        table.add_row(*line[:-1], {None: "-", True: "[green]yes[/]", False: "[bold red]NO[/]"}[row.met])
    Console().print(table)
