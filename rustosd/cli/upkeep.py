"""`rustosctl reload|config|log|crash`: configuration, log and what is left of daemons that died."""

import sys
from typing import Annotated

import typer

from rustosd.cli import calls, shell, tables
from rustosd.cli.calls import Json, call
from rustosd.cli.tables import Column, Listing
from rustosd.control import upkeep_protocol as p

FOLLOW_MS = 10_000

CHANGES = Listing("changes", "change", "changes", (
    Column("KEY", "key"), Column("OLD", "old", folds=True), Column("NEW", "new", folds=True), Column("TAKEN", "taken"),
    Column("WHEN", "when", folds=True),
))
LEVELS = Listing("levels", "level", "levels", (
    Column("LEVEL", "level"), Column("LOGGER", "logger", text=lambda name: name or "all others"),
))
CRASHES = Listing("crashes", "report", "reports", (
    Column("NAME", "name"), Column("OCTETS", "octets", True, tables.octets), Column("REASON", "reason", folds=True),
))


def reload(
    check: Annotated[bool, typer.Option("--check", help="Only say what would change.")] = False, json: Json = False,
) -> None:
    """Have the daemon read its configuration file again: all that can change without a restart changes, or nothing does.

    Connections stay. What needs a restart is named, and waits for it.
    """
    answer: p.Reload = call("config.check" if check else "config.reload")
    if json:
        tables.print_json("reload", answer)
        return
    if not answer.changes:
        print(f"{answer.file}: nothing differs from what is in force")
        return
    tables.show(CHANGES, answer.changes, False)
    waiting = sum(change.taken == "restart" for change in answer.changes)
    if waiting:
        print(f"{waiting} of them {'needs' if waiting == 1 else 'need'} a restart: systemctl restart rustosd")


config = typer.Typer(help="The configuration in force.", rich_markup_mode=None)


@config.callback(invoke_without_command=True)
def config_alone(context: typer.Context, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        config_show(json)


@config.command("show")
def config_show(json: Json = False) -> None:
    """Print the configuration in force as TOML, secrets hidden."""
    answer: p.ConfigText = call("config.show")
    if json:
        tables.print_json("config", answer)
        return
    print(f"# {answer.file or 'the built-in configuration'}")
    for change in answer.waiting:
        print(f"# waits for a restart: {change.key}: {change.old} -> {change.new}")
    sys.stdout.write(answer.toml)


log = typer.Typer(help="The daemon's log: its last lines, and from which level on is logged.", rich_markup_mode=None)
Logger = Annotated[str, typer.Argument(help="A part of the daemon such as rustosd.devices, or all.",
                                       autocompletion=lambda incomplete: _loggers(incomplete))]


@log.callback(invoke_without_command=True)
def log_alone(context: typer.Context, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        log_levels(json)


@log.command("levels")
def log_levels(json: Json = False) -> None:
    """From which level on is logged, by logger."""
    tables.show(LEVELS, call("log.levels"), json)


@log.command("set")
def log_set(logger: Logger, level: Annotated[str, typer.Argument(help="debug, info, warning or error.",
                                                                 autocompletion=lambda: list(_LEVEL_WORDS))]) -> None:
    """Log from a level on, until the next start or a reload with a changed [log]: rustosctl log set rustosd.devices debug"""
    if level not in _LEVEL_WORDS:
        raise typer.BadParameter(f"{level!r} is no level; one of {', '.join(_LEVEL_WORDS)}")
    call("log.set", p.LevelChange(logger=None if logger == "all" else logger, level=level))


@log.command("unset")
def log_unset(logger: Logger) -> None:
    """Give a logger the level of the one above it again."""
    if logger == "all":
        raise typer.BadParameter("all have a level always; give another one: rustosctl log set all info")
    call("log.set", p.LevelChange(logger=logger))


@log.command("tail")
def log_tail(
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, max=p.MAX_LINES, help="So many of the last lines.")] = 20,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what comes, until Ctrl-C.")] = False,
    json: Json = False,
) -> None:
    """Print the last log lines; the daemon keeps some thousand."""
    if follow and json:
        raise typer.BadParameter("--follow prints lines, --json one document: choose one")
    with calls.daemon() as daemon:
        answer: p.LogLines = daemon.call("log.tail", p.TailQuery(limit=lines))
        if json:
            tables.print_json("log", answer.lines)
            return
        _print_lines(answer)
        while follow:
            answer = daemon.call("log.tail", p.TailQuery(after=answer.last, limit=p.MAX_LINES, wait_ms=FOLLOW_MS))
            _print_lines(answer)


def _print_lines(answer: p.LogLines) -> None:
    from rustosd.log_ring import spoken
    if answer.missed:
        print(f"... {answer.missed} lines came too fast to be shown", flush=True)
    for line in answer.lines:
        print(spoken(line), flush=True)


crash = typer.Typer(help="Reports of daemons that died.", rich_markup_mode=None)
Name = Annotated[str, typer.Argument(autocompletion=lambda incomplete: _crashes(incomplete))]


@crash.callback(invoke_without_command=True)
def crash_alone(context: typer.Context, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        crash_list(json)


@crash.command("list")
def crash_list(json: Json = False) -> None:
    """Reports of daemons that died, the newest first."""
    tables.show(CRASHES, call("crash.list"), json)


@crash.command("show")
def crash_show(name: Name, json: Json = False) -> None:
    """Print one report: stacks, last log lines, figures, configuration without secrets."""
    answer: p.CrashText = call("crash.show", p.ReportName(name=name))
    if json:
        tables.print_json("crash", answer)
    else:
        sys.stdout.write(answer.text)


@crash.command("clear")
def crash_clear(
    name: Annotated[str | None, typer.Argument(help="Left out: all.",
                                               autocompletion=lambda incomplete: _crashes(incomplete))] = None,
) -> None:
    """Remove one report, or all."""
    answer: p.Removed = call("crash.clear", p.ReportChoice(name=name))
    print(f"{answer.removed} {'report' if answer.removed == 1 else 'reports'} removed")


def print_notes(notes: list[p.HealthNote]) -> None:
    """Under a status: what needs attention, or that nothing does."""
    print()
    if not notes:
        print("All is well.")
        return
    for note in notes:
        print(f"{_marked(note.severity)} {note.code}: {note.text}\n    {note.advice}")
    print(f"{len(notes)} {'note' if len(notes) == 1 else 'notes'}")


def _marked(severity: str) -> str:
    return shell.coloured(severity, {"error": "31;1", "warning": "33"}.get(severity, ""))


_LEVEL_WORDS = ("debug", "info", "warning", "error")


def _loggers(incomplete: str) -> list[str]:
    rows = calls.known("log.levels", lambda levels: [row.logger or "all" for row in levels], incomplete)
    usual = ("rustosd", "rustosd.control", "rustosd.devices", "rustosd.handoff", "rustosd.pump", "rustosd.services", "asyncio")
    return sorted({*rows, *(name for name in usual if name.startswith(incomplete))})


def _crashes(incomplete: str) -> list[str]:
    return calls.known("crash.list", lambda reports: [report.name for report in reports], incomplete)
