"""`rustosctl program`: what the configuration has run on the stack."""

from typing import Annotated, Any

import typer

from rustosd.cli import tables
from rustosd.cli.calls import Json, call, known
from rustosd.cli.tables import Column, Listing
from rustosd.control import program_protocol as p

PROGRAMS = Listing("programs", "program", "programs", (
    Column("PROGRAM", "name"), Column("STATE", "state"), Column("FOR", "since_s", True, tables.duration),
    Column("PID", "pid", True), Column("USER", "user"), Column("STARTS", "starts", True), Column("STATUS", "status", True),
    Column("DETAIL", "detail", folds=True),
))


def _names(incomplete: str) -> list[str]:
    return known("program.list", lambda rows: [row.name for row in rows], incomplete)


Name = Annotated[str, typer.Argument(help="As [[program]] names it.", autocompletion=_names)]
app = typer.Typer(help="Programs of the configuration, on the stack.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def alone(context: typer.Context, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        _list(json)


@app.command("list", help=p.METHODS[0].help)
def list_(json: Json = False) -> None:
    _list(json)


def _list(as_json: bool) -> None:
    tables.show(PROGRAMS, call("program.list"), as_json)


def _order(verb: str, name: str) -> Any:
    return call(f"program.{verb}", p.ProgramName(name=name))


@app.command()
def start(name: Name) -> None:
    """Start a program, once what it waits for is there."""
    _order("start", name)


@app.command()
def stop(name: Name) -> None:
    """Stop a program; it stays so until it is started."""
    _order("stop", name)


@app.command()
def restart(name: Name) -> None:
    """Stop a program, if it runs, and start it."""
    _order("restart", name)
