"""What `rustosctl top` shows: rates out of two samples, and the lines of a screen of any size."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from rustosd.cli.plots import sparkline
from rustosd.cli.tables import duration, milliseconds, octets, printable
from rustosd.control import network_protocol as p
from rustosd.control.base import Row

HISTORY: Final = 60
SORTS: Final = ("rate", "rx", "tx", "rtt", "total")
SMALLEST: Final = (40, 10)
_MOST_DROPS: Final = 4
_NIC_COLUMNS: Final = 61        # what a line of an interface takes besides its two plots
_CONNECTION_COLUMNS: Final = 35     # ... of a connection, besides its ID, ends and owner


class NicRates(Row):
    """An interface in the last interval."""

    name: str
    link: str
    rx_bits_per_s: float
    tx_bits_per_s: float
    rx_frames_per_s: float
    tx_frames_per_s: float
    refused_per_s: float        # by the device, both ways


class ConnectionRates(Row):
    """A connection in the last interval."""

    id: str
    owner: str
    local: str
    remote: str
    state: str
    rx_bits_per_s: float
    tx_bits_per_s: float
    rtt_us: float | None
    retransmits_per_s: float
    octets: int                 # both ways, since it was opened


class DropRates(Row):
    """A reason for drops."""

    reason: str
    frames_per_s: float
    frames: int


class PumpRates(Row):
    """The pump in the last interval."""

    wakeups_per_s: float
    yields_per_s: float         # budgets used up: it has more to do than it can
    frames_per_rx_burst: float | None
    frames_per_tx_burst: float | None


class Rates(Row):
    """All of it."""

    version: str
    uptime_s: float
    interval_s: float
    nics: list[NicRates]
    connections: int
    busiest: list[ConnectionRates]
    drops: list[DropRates]
    buffer_octets: int
    buffer_limit_octets: int
    resident_octets: int
    pump: PumpRates


def rates(a: p.Sample, b: p.Sample) -> Rates:
    """What happened from `a` to `b`; what is not in both counts as quiet."""
    seconds = max((b.at_ns - a.at_ns) / 1e9, 1e-3)

    def per_s(before: int, after: int) -> float:
        return round(max(after - before, 0) / seconds, 1)

    nics_before, busy_before = {nic.name: nic for nic in a.nics}, {each.id: each for each in a.busiest}
    nics = []
    for nic in b.nics:
        was = nics_before.get(nic.name, nic)
        nics.append(NicRates(
            name=nic.name, link=nic.link, rx_bits_per_s=per_s(8 * was.rx_octets, 8 * nic.rx_octets),
            tx_bits_per_s=per_s(8 * was.tx_octets, 8 * nic.tx_octets), rx_frames_per_s=per_s(was.rx_frames, nic.rx_frames),
            tx_frames_per_s=per_s(was.tx_frames, nic.tx_frames),
            refused_per_s=per_s(was.rx_dropped + was.tx_dropped, nic.rx_dropped + nic.tx_dropped)))
    busiest = []
    for each in b.busiest:
        was = busy_before.get(each.id, each)
        busiest.append(ConnectionRates(
            id=each.id, owner=each.owner, local=each.local, remote=each.remote, state=each.state,
            rx_bits_per_s=per_s(8 * was.rx_octets, 8 * each.rx_octets),
            tx_bits_per_s=per_s(8 * was.tx_octets, 8 * each.tx_octets), rtt_us=each.rtt_us,
            retransmits_per_s=per_s(was.retransmits, each.retransmits), octets=each.rx_octets + each.tx_octets))
    drops = [DropRates(reason=reason, frames_per_s=per_s(a.drops.get(reason, 0), count), frames=count)
             for reason, count in b.drops.items()]
    return Rates(
        version=b.version, uptime_s=b.uptime_s, interval_s=round(seconds, 3), nics=nics, connections=b.connections,
        busiest=busiest, drops=sorted(drops, key=lambda drop: (-drop.frames_per_s, -drop.frames)),
        buffer_octets=b.buffer_octets, buffer_limit_octets=b.buffer_limit_octets, resident_octets=b.resident_octets,
        pump=PumpRates(wakeups_per_s=per_s(a.pump["wakeups"], b.pump["wakeups"]),
                       yields_per_s=per_s(a.pump["yields"], b.pump["yields"]),
                       frames_per_rx_burst=_burst(a, b, "rx"), frames_per_tx_burst=_burst(a, b, "tx")))


def _burst(a: p.Sample, b: p.Sample, way: str) -> float | None:
    bursts = b.pump[f"{way}_bursts"] - a.pump[f"{way}_bursts"]
    return round((b.pump[f"{way}_frames"] - a.pump[f"{way}_frames"]) / bursts, 1) if bursts > 0 else None


@dataclass(slots=True)
class View:
    """What is shown, and how: two samples and the history of each interface."""

    sort: str = SORTS[0]
    paused: bool = False
    now: Rates | None = None
    histories: dict[str, tuple[deque[float], deque[float]]] = field(default_factory=dict)
    _before: p.Sample | None = None

    def take(self, sample: p.Sample) -> None:
        """One more sample; there are rates from the second one on."""
        if self._before is not None:
            self.now = rates(self._before, sample)
            for nic in self.now.nics:
                rx, tx = self.histories.setdefault(nic.name, (deque(maxlen=HISTORY), deque(maxlen=HISTORY)))
                rx.append(nic.rx_bits_per_s)
                tx.append(nic.tx_bits_per_s)
        self._before = sample

    def sort_next(self) -> None:
        self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]

    def lines(self, width: int, height: int, keys: bool = True) -> list["Line"]:
        """What `screen` makes of it."""
        return screen(self, width, height, keys)


class Line(NamedTuple):
    """A line of the screen, no longer than it is wide."""

    text: str
    style: str = ""


def screen(view: View, width: int, height: int, keys: bool = True) -> list[Line]:
    """At most `height` lines of `width` columns; connections take the room that the rest leaves."""
    if width < SMALLEST[0] or height < SMALLEST[1]:
        return [Line(f"needs {SMALLEST[0]}x{SMALLEST[1]}"[:width])]
    now = view.now
    if now is None:
        return [Line("rustosd: the first figures come in a moment"[:width])]
    lines = _head(now, view.paused)
    lines += [Line(""), *_nics(view, now, width, max(1, height // 4))]
    lines += [Line(""), *_drops(now, max(1, min(_MOST_DROPS, (height - len(lines)) // 4)))]
    room = height - len(lines) - 2 - keys
    if room > 1:
        lines += [Line(""), *_connections(now, view.sort, width, room)]
    if keys:
        lines = lines[:height - 1]
        lines += [Line("")] * (height - 1 - len(lines))
        lines.append(Line(f"q quit   p {'go on' if view.paused else 'pause'}   s sort, now by {view.sort}", "dim"))
    return [Line(printable(line.text)[:width].rstrip(), line.style) for line in lines[:height]]


def _head(now: Rates, paused: bool) -> list[Line]:
    of = "" if not now.buffer_limit_octets else f" of {octets(now.buffer_limit_octets)}"
    bursts = "/".join("-" if value is None else f"{value:g}" for value in (now.pump.frames_per_rx_burst,
                                                                         now.pump.frames_per_tx_burst))
    return [
        Line(f"rustosd {now.version}, up {duration(now.uptime_s)}, {now.connections} connections"
             f"{'   PAUSED' if paused else ''}", "bold"),
        Line(f"memory  TCP buffers {octets(now.buffer_octets)}{of}, process {octets(now.resident_octets)}"),
        Line(f"pump    {now.pump.wakeups_per_s:.0f} wake-ups/s, {bursts} frames a burst in/out, "
             f"{now.pump.yields_per_s:.0f} yields/s"),
    ]


def _nics(view: View, now: Rates, width: int, most: int) -> list[Line]:
    """Each with what it moves, and a plot of that in the room that is left."""
    plot = max(0, min(HISTORY, (width - _NIC_COLUMNS) // 2))
    lines = [Line(f"{'NIC':<12}{'RX b/s':>9}  {'':<{plot}} {'TX b/s':>9}  {'':<{plot}} {'RX f/s':>8}{'TX f/s':>8}"
                  f"{'REFUSED':>9}", "bold")]
    for nic in now.nics[:most]:
        rx, tx = view.histories.get(nic.name, ((), ()))
        lines.append(Line(
            f"{nic.name[:11]:<12}{si(nic.rx_bits_per_s):>9}  {_plot(rx, plot)} {si(nic.tx_bits_per_s):>9}  {_plot(tx, plot)} "
            f"{si(nic.rx_frames_per_s):>8}{si(nic.tx_frames_per_s):>8}{si(nic.refused_per_s):>9}",
            "" if nic.link == "up" else "red"))
    if len(now.nics) > most:
        lines.append(Line(f"... and {len(now.nics) - most} more"))
    return lines


def _plot(values: Sequence[float], width: int) -> str:
    return sparkline(list(values)[-width:]).rjust(width) if width else ""


def _drops(now: Rates, most: int) -> list[Line]:
    if not now.drops:
        return [Line("no frame was dropped")]
    lines = [Line(f"{'DROPS/S':>9}{'TOTAL':>12}  REASON", "bold")]
    lines += [Line(f"{si(drop.frames_per_s):>9}{drop.frames:>12}  {drop.reason}", "yellow" if drop.frames_per_s else "")
              for drop in now.drops[:most]]
    return lines


def sorted_connections(busiest: Sequence[ConnectionRates], sort: str) -> list[ConnectionRates]:
    """The largest first; those without a round trip last."""
    keys = {"rate": lambda each: each.rx_bits_per_s + each.tx_bits_per_s, "rx": lambda each: each.rx_bits_per_s,
            "tx": lambda each: each.tx_bits_per_s, "rtt": lambda each: each.rtt_us or -1, "total": lambda each: each.octets}
    return sorted(busiest, key=keys[sort], reverse=True)


def _connections(now: Rates, sort: str, width: int, room: int) -> list[Line]:
    rows = sorted_connections(now.busiest, sort)[:room - 1]
    ids, owners = max((len(row.id) for row in rows), default=2), max((len(row.owner) for row in rows), default=5)
    longest = max((len(end) for row in rows for end in (row.local, row.remote)), default=6)
    side = max(12, min(longest, (width - _CONNECTION_COLUMNS - ids - min(owners, 16)) // 2))
    lines = [Line(f"{'ID':>{ids}}  {'RX b/s':>8} {'TX b/s':>8} {'RTT':>9}  {'LOCAL':<{side}}  {'REMOTE':<{side}}  OWNER",
                  "bold")]
    lines += [Line(f"{row.id:>{ids}}  {si(row.rx_bits_per_s):>8} {si(row.tx_bits_per_s):>8} {milliseconds(row.rtt_us):>9}  "
                   f"{_short(row.local, side):<{side}}  {_short(row.remote, side):<{side}}  {row.owner}") for row in rows]
    if not rows:
        lines.append(Line("no connections"))
    return lines


def _short(end: str, width: int) -> str:
    """An address and port; what does not fit goes at the front, for the port tells more."""
    return end if len(end) <= width else "~" + end[-(width - 1):]


def si(value: float) -> str:
    """A rate with a decimal prefix: 1.5M."""
    if value < 1000:
        return f"{value:.0f}"
    for prefix in "kMGT":
        value /= 1000
        if value < 999.95 or prefix == "T":
            return f"{value:.1f}{prefix}"
    return ""
