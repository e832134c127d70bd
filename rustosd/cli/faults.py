"""`rustosctl faults`: programs that exceptions of the processor ended."""

import sys
from typing import Annotated

import typer

from rustosd.cli import tables
from rustosd.cli.calls import Json, call, known
from rustosd.cli.tables import Column, Listing
from rustosd.control import fault_protocol as p

KINDS = p.FaultKind.__args__
FAULTS = Listing("faults", "fault", "faults", (
    Column("ID", "id", True), Column("AT", "at"), Column("PID", "pid", True), Column("PROGRAM", "program"),
    Column("USER", "user"), Column("KIND", "kind"), Column("SIGNAL", "signal"), Column("WHAT", "words", folds=True),
))
app = typer.Typer(help="Programs that exceptions of the processor ended: page faults, divisions by zero and their like.",
                  rich_markup_mode=None)


def _kinds(incomplete: str) -> list[str]:
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def _ids(incomplete: str) -> list[str]:
    return known("faults.list", lambda rows: [str(row.id) for row in rows], incomplete)


Kind = Annotated[str | None, typer.Option("--kind", "-k", metavar="KIND", help="Only these, such as page-fault.",
                                          autocompletion=_kinds)]
Pid = Annotated[int | None, typer.Option("--pid", "-p", min=1, help="Only those of this process.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=p.KEPT, help="At most so many.")]


@app.callback(invoke_without_command=True)
def alone(context: typer.Context, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_(json=json)


@app.command("list")
def list_(kind: Kind = None, pid: Pid = None, limit: Limit = 100, json: Json = False) -> None:
    """Which programs were ended, by what, the newest first."""
    if kind is not None and kind not in KINDS:
        raise typer.BadParameter(f"{kind!r} is no kind; one of {', '.join(KINDS)}")
    tables.show(FAULTS, call("faults.list", p.FaultQuery(kind=kind, pid=pid, limit=limit)), json)


@app.command()
def show(id: Annotated[int, typer.Argument(min=1, help="Number, as `rustosctl faults` tells.", autocompletion=_ids)],
         json: Json = False) -> None:
    """Print all about one: registers, back-trace, code, stack, last socket calls, limits, mappings."""
    answer: p.FaultReport = call("faults.read", p.FaultId(id=id))
    if json:
        return tables.print_json("fault", answer)
    one = answer.fault
    print(f"{one.id}: {one.program} ({one.pid}) of {one.user} ended by {one.signal} at {one.at}\n{one.kind}: {one.words}\n")
    sys.stdout.write(answer.text or "Its report is not there: too many came at a time, or it was removed for newer ones.\n")
