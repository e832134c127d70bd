"""What `rustosctl process top` shows: what each process took since the last look, the largest first."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from rustosd.cli.tables import octets, printable
from rustosd.cli.top_view import SMALLEST, Line, si
from rustosd.control import network_protocol as network
from rustosd.control import process_protocol as p
from rustosd.control.base import Row

SORTS: Final = ("cpu", "memory", "network", "sockets")


class ProcessRates(Row):
    """A process in the last interval; what its connections move is told of its whole program, by its first process."""

    pid: int
    program: str
    user: str
    state: str
    cpu_percent: float          # of one processor
    rss_octets: int
    threads: int
    sockets: int
    rx_bits_per_s: float
    tx_bits_per_s: float
    command: str


class Sample(NamedTuple):
    """Both answers of the daemon that rates are made of."""

    at_ns: int
    processes: Sequence[p.Process]
    busiest: Sequence[network.Busy]


def rates(a: Sample, b: Sample) -> list[ProcessRates]:
    """What happened from `a` to `b`; who is not in both counts as quiet."""
    seconds = max((b.at_ns - a.at_ns) / 1e9, 1e-3)
    before = {row.pid: row for row in a.processes}
    moved = _moved(a.busiest, b.busiest)
    told: set[int] = set()
    rows = []
    for row in b.processes:
        was = before.get(row.pid, row)
        rx, tx = moved.get(row.group, (0, 0)) if row.group not in told else (0, 0)
        told.add(row.group)
        rows.append(ProcessRates(
            pid=row.pid, program=row.program, user=row.user, state=row.state, threads=row.threads, sockets=row.sockets,
            cpu_percent=round(max(0.0, row.cpu_s - was.cpu_s) / seconds * 100, 1), rss_octets=row.rss_octets,
            rx_bits_per_s=round(8 * rx / seconds, 1), tx_bits_per_s=round(8 * tx / seconds, 1), command=row.command))
    return rows


def _moved(a: Sequence[network.Busy], b: Sequence[network.Busy]) -> dict[int, tuple[int, int]]:
    """Octets in and out by supervisor; a connection that is new has moved all of its own since."""
    before = {each.id: each for each in a}
    moved: dict[int, tuple[int, int]] = {}
    for each in b:
        if each.pid is not None:
            was, (rx, tx) = before.get(each.id), moved.get(each.pid, (0, 0))
            moved[each.pid] = (rx + max(0, each.rx_octets - (was.rx_octets if was else 0)),
                               tx + max(0, each.tx_octets - (was.tx_octets if was else 0)))
    return moved


@dataclass(slots=True)
class View:
    """What is shown, and how."""

    sort: str = SORTS[0]
    paused: bool = False
    now: list[ProcessRates] | None = None
    _before: Sample | None = field(default=None)

    def take(self, sample: Sample) -> None:
        """One more sample; there are rates from the second one on."""
        if self._before is not None:
            self.now = rates(self._before, sample)
        self._before = sample

    def sort_next(self) -> None:
        self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]

    def lines(self, width: int, height: int, keys: bool = True) -> list[Line]:
        """At most `height` lines of `width` columns."""
        if width < SMALLEST[0] or height < SMALLEST[1]:
            return [Line(f"needs {SMALLEST[0]}x{SMALLEST[1]}"[:width])]
        if self.now is None:
            return [Line("rustosd: the first figures come in a moment"[:width])]
        rows = ordered(self.now, self.sort)
        busy, memory = sum(row.cpu_percent for row in rows), sum(row.rss_octets for row in rows)
        lines = [Line(f"{len(rows)} processes, {busy:.0f}% of a processor, {octets(memory)} resident"
                      f"{'   PAUSED' if self.paused else ''}", "bold"), Line(""),
                 Line(f"{'PID':>7}  {'PROGRAM':<12}{'USER':<10}{'STATE':<9}{'CPU':>6} {'MEMORY':>10}{'SOCKETS':>8}"
                      f"{'RX b/s':>8}{'TX b/s':>8}  COMMAND", "bold")]
        room = height - len(lines) - keys
        lines += [Line(f"{row.pid:>7}  {row.program[:11]:<12}{row.user[:9]:<10}{row.state[:8]:<9}{row.cpu_percent:>5.0f}% "
                       f"{octets(row.rss_octets):>10}{row.sockets:>8}{si(row.rx_bits_per_s):>8}{si(row.tx_bits_per_s):>8}  "
                       f"{row.command}") for row in rows[:room]]
        if keys:
            lines += [Line("")] * (height - 1 - len(lines))
            lines.append(Line(f"q quit   p {'go on' if self.paused else 'pause'}   s sort, now by {self.sort}", "dim"))
        return [Line(printable(line.text)[:width].rstrip(), line.style) for line in lines[:height]]


def ordered(rows: Sequence[ProcessRates], sort: str) -> list[ProcessRates]:
    """The largest first."""
    keys = {"cpu": lambda row: row.cpu_percent, "memory": lambda row: row.rss_octets, "sockets": lambda row: row.sockets,
            "network": lambda row: row.rx_bits_per_s + row.tx_bits_per_s}
    return sorted(rows, key=keys[sort], reverse=True)
