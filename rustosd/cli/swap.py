"""`rustosctl swap`: what of programs' memory is on a disk, and how that goes."""

import typer

from rustosd.cli import tables
from rustosd.cli.calls import Json, call
from rustosd.cli.tables import Column, Listing, octets
from rustosd.control import swap_protocol as p


def _rate(value: float) -> str:
    return f"{octets(round(value))}/s"


def _ahead(row: p.ProgramSwap) -> str:
    return f"{row.ahead_used / row.ahead_pages:.0%}" if row.ahead_pages else tables.MISSING


def _errors(row: p.ProgramSwap) -> str:
    return str(row.corrupt + row.failed)


SWAP = Listing("swap", "program", "programs", (
    Column("PROGRAM", "program"), Column("SUPERVISOR", "group", True), Column("DEVICE", "device", folds=True),
    Column("SIZE", "octets", True, octets), Column("USED", "used_octets", True, octets),
    Column("RATIO", "ratio", True, lambda value: f"{value:.2f}"), Column("IN", "in_octets_per_s", True, _rate),
    Column("OUT", "out_octets_per_s", True, _rate), Column("AHEAD", "", True, _ahead), Column("ERRORS", "", True, _errors),
))
app = typer.Typer(help="Memory of programs that is on a disk.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def _swap(context: typer.Context, as_json: Json = False) -> None:
    """Memory of programs that is on a disk."""
    if context.invoked_subcommand is None:
        list_(as_json)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """The programs whose memory is limited, and their swap. AHEAD: how much of what was read ahead was asked for then."""
    tables.show(SWAP, call("swap.list"), as_json)
