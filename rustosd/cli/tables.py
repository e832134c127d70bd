"""Rows as people and programs read them: the same struct becomes a line of a table or an object of the JSON."""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from rustosd.control import protocol as p

MISSING = "-"
_CONTROLS = dict.fromkeys([*range(32), *range(127, 160)], "?")
_GOOD = {"up", "preferred", "reachable", "permanent", "established", "running"}
_BAD = {"down", "duplicate", "failed", "gone"}


def plain(value: Any) -> str:
    """Any value as text, a dash for what is missing."""
    if value is None or value == "" or value == []:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value)
    return str(value)


def printable(text: str) -> str:
    """A text of somebody's in a line, without what a terminal would obey: programs are called anything."""
    return text.translate(_CONTROLS)


def octets(value: int | None) -> str:
    """An amount of octets with a binary unit: 1.5 MiB."""
    if value is None:
        return MISSING
    amount, unit = float(value), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{value} B" if unit == "B" else f"{amount:.1f} {unit}"


def duration(seconds: float) -> str:
    """A length of time in its two largest units: 3h 12m."""
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    while len(parts) > 1 and parts[0][0] == 0:
        parts.pop(0)
    return " ".join(f"{count}{unit}" for count, unit in parts[:2])


def milliseconds(value_us: float | None) -> str:
    """A time given in microseconds as 0.123 ms."""
    return MISSING if value_us is None else f"{value_us / 1000:.3f} ms"


class Column(NamedTuple):
    """A column: `text` makes words of a row's field, or of the whole row when `field` is empty.

    `folds`: it holds several words, which a narrow terminal may put below each other.
    """

    title: str
    field: str
    right: bool = False
    text: Callable[[Any], str] = plain
    folds: bool = False

    def cell(self, row: Any) -> str:
        return self.text(getattr(row, self.field) if self.field else row)


class Listing(NamedTuple):
    """How rows of one type are shown: the key of the JSON, the noun of the count line, the columns."""

    key: str
    one: str
    many: str
    columns: Sequence[Column]


NICS = Listing("nics", "interface", "interfaces", (     # fits 80 columns; `nic show` has the rest
    Column("NIC", "name"), Column("LINK", "link"), Column("MTU", "mtu", True), Column("RX", "rx_octets", True, octets),
    Column("TX", "tx_octets", True, octets), Column("ADDRESSES", "addresses", folds=True),
))
ADDRESSES = Listing("addresses", "address", "addresses", (
    Column("NIC", "nic"), Column("ADDRESS", "address"), Column("STATE", "state"),
))
ROUTES = Listing("routes", "route", "routes", (
    Column("DESTINATION", "destination"), Column("GATEWAY", "gateway"), Column("NIC", "nic"),
    Column("SOURCE", "source"), Column("METRIC", "metric", True), Column("KIND", "kind"),
))
NEIGHBORS = Listing("neighbors", "neighbor", "neighbors", (
    Column("ADDRESS", "address"), Column("MAC", "mac"), Column("NIC", "nic"), Column("STATE", "state"),
))
CONNECTIONS = Listing("connections", "socket", "sockets", (
    Column("ID", "id", True), Column("PROTO", "protocol"), Column("STATE", "state"),
    Column("UNREAD", "unread_octets", True), Column("UNSENT", "unsent_octets", True), Column("LOCAL", "local"),
    Column("REMOTE", "remote"), Column("RX", "rx_octets", True, octets), Column("TX", "tx_octets", True, octets),
    Column("RTT", "rtt_us", True, milliseconds),
))
DROPS = Listing("drops", "reason", "reasons", (
    Column("FRAMES", "frames", True), Column("DIRECTION", "direction"), Column("REASON", "reason"),
    Column("MEANING", "help", folds=True),
))
COUNTERS = Listing("counters", "counter", "counters", (
    Column("COUNT", "count", True), Column("COUNTER", "counter"), Column("MEANING", "help", folds=True),
))


def print_json(key: str, value: Any) -> None:
    """{"schema": 1, key: value} on stdout."""
    document = msgspec.json.encode({"schema": p.SCHEMA, key: value}, enc_hook=str)
    sys.stdout.write(msgspec.json.format(document, indent=2).decode() + "\n")


def show(listing: Listing, rows: Sequence[Any], as_json: bool, total: int | None = None) -> None:
    """Print rows as a table with a count line, or as JSON."""
    if as_json:
        print_json(listing.key, rows)
        return
    print_table(listing.columns, rows)
    count = len(rows) if total is None else total
    shown = f"{len(rows)} of {count}" if count != len(rows) else f"{count}"
    print(f"{shown} {listing.one if count == 1 else listing.many}")


def show_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and values in two columns, without a header."""
    _print_cells((Column("", "", right=True), Column("", "", folds=True)), [list(fact) for fact in facts], header=False)


def print_table(columns: Sequence[Column], rows: Iterable[Any]) -> None:
    """Print rows under a header, without a count."""
    _print_cells(columns, [[column.cell(row) for column in columns] for row in rows])


def _print_cells(columns: Sequence[Column], rows: Sequence[Sequence[str]], header: bool = True) -> None:
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max([len(column.title), *(len(row[i]) for row in rows)]) for i, column in enumerate(columns)]
    if sys.stdout.isatty():
        _print_rich(columns, rows, widths, header)
        return
    lines = [[column.title for column in columns]] if header else []
    for line in [*lines, *rows]:
        cells = (text.rjust(width) if column.right else text.ljust(width)
                 for text, width, column in zip(line, widths, columns, strict=True))
        print("  ".join(cells).rstrip())


def _print_rich(columns: Sequence[Column], rows: Sequence[Sequence[str]], widths: Sequence[int], header: bool) -> None:
    """For a terminal: colour, and columns of prose fold. Nothing is ever cut: rather the terminal wraps."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    least = [max([len(column.title), *(len(word) for row in rows for word in row[i].split())]) if column.folds else widths[i]
             for i, column in enumerate(columns)]
    gaps = 2 * (len(least) - 1)
    fitted = _fitted(widths, least, console.width - gaps)
    console.width = max(console.width, sum(fitted) + gaps)
    table = Table(box=None, show_header=header, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column, width in zip(columns, fitted, strict=True):
        table.add_column(column.title, justify="right" if column.right else "left", no_wrap=not column.folds, width=width)
    for row in rows:
        table.add_row(*(Text(cell, _style(column.title, cell)) for cell, column in zip(row, columns, strict=True)))
    console.print(table)


def _fitted(widths: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """The widths, the widest made narrower until all fit; none narrower than its least."""
    fitted = list(widths)
    while sum(fitted) > room:
        shrinkable = [i for i, width in enumerate(fitted) if width > least[i]]
        if not shrinkable:
            break
        fitted[max(shrinkable, key=lambda i: fitted[i])] -= 1
    return fitted


def _style(title: str, cell: str) -> str:
    if title in ("LINK", "STATE"):
        return "green" if cell in _GOOD else "red" if cell in _BAD else ""
    return "dim" if cell == MISSING else ""
