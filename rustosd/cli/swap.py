"""`rustosctl swap`: what of programs' memory is on a disk, and how that goes."""

from typing import Annotated

import typer

from rustosd.cli import tables
from rustosd.cli.calls import Json, call, checked
from rustosd.cli.tables import Column, Listing, octets
from rustosd.control import swap_protocol as p
from rustosd.values import ExportName


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


kernel = typer.Typer(help="Linux's own swap, for the whole machine, on a disk of ours.", rich_markup_mode=None)
app.add_typer(kernel, name="kernel")


@kernel.callback(invoke_without_command=True)
def _kernel(context: typer.Context, as_json: Json = False) -> None:
    """Linux's own swap, for the whole machine, on a disk of ours."""
    if context.invoked_subcommand is None:
        show(as_json)


@kernel.command("show")
def show(as_json: Json = False) -> None:
    """Whether it is on, and how much is there."""
    _print(call("kernelswap.show"), as_json)


@kernel.command()
def on(
    export: Annotated[str, typer.Option(metavar="NAME", help="Whose content is lost; rustosctl disk exports shows them.")],
    priority: Annotated[int, typer.Option(min=-1, max=32767, help="Among Linux's swaps, the highest first.")] = -1,
    plain: Annotated[bool, typer.Option("--plain", help="Not encrypted, only sealed against accidents.")] = False,
    as_json: Json = False,
) -> None:
    """Have Linux swap to an export of ours. The daemon is locked in memory meanwhile."""
    name = checked(ExportName, export)
    _print(call("kernelswap.on", p.KernelSwapOn(export=name, priority=priority, encryption=not plain)), as_json)


@kernel.command()
def off() -> None:
    """Bring back to memory what Linux has there, and give the disk back."""
    call("kernelswap.off")


def _print(state: p.KernelSwap | None, as_json: bool) -> None:
    if as_json:
        tables.print_json("kernel", state)
    elif state is None:
        print("Linux's swap is not on a disk of ours")
    else:
        tables.show_facts((
            ("device", state.device), ("export", state.export), ("size", octets(state.octets)),
            ("used", octets(state.used_octets)), ("priority", str(state.priority)),
            ("encryption", tables.plain(state.encryption)), ("server", f"process {state.server}")))


@app.callback(invoke_without_command=True)
def _swap(context: typer.Context, as_json: Json = False) -> None:
    """Memory of programs that is on a disk."""
    if context.invoked_subcommand is None:
        list_(as_json)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """The programs whose memory is limited, and their swap. AHEAD: how much of what was read ahead was asked for then."""
    tables.show(SWAP, call("swap.list"), as_json)
