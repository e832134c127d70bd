"""`rustosctl sched`: how programs on the stack share the processors."""

from typing import Annotated

import typer

from rustosd.cli import tables
from rustosd.cli.calls import PID_MOST, Json, call, checked, known
from rustosd.cli.tables import Column, Listing
from rustosd.control import sched_protocol as p
from rustosd.scheduling.settings import CLASSES, PRIORITY_MOST, ClassName
from rustosd.values import CpuQuota, Processors


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:g}%"


def _mean_wait(row: p.SchedProgram | p.DaemonThread) -> str:
    return f"{row.wait_s / row.slices * 1e6:.0f} us" if row.slices else "-"


def _microseconds(value: int | None) -> str:
    return "-" if value is None else f"{value} us"


PROGRAMS = Listing("programs", "program", "programs", (
    Column("PID", "pid", True), Column("PROGRAM", "program"), Column("CLASS", "sched_class"), Column("PRIO", "priority", True),
    Column("CPUS", "processors"), Column("QUOTA", "cpu_quota_percent", True, lambda percent: _percent(percent or None)),
    Column("RAN", "run_s", True, _seconds), Column("WAITED", "wait_s", True, _seconds),
    Column("PER TURN", "", True, _mean_wait),
    Column("HELD UP", "throttled_s", True, _seconds), Column("STATE", "suspended", text=lambda so: "suspended" if so else "-"),
))
_CLASS_COLUMNS = (
    Column("CLASS", "name"), Column("WEIGHT", "weight", True), Column("PROGRAMS", "programs", True),
    Column("RAN", "run_s", True, _seconds), Column("WAITED", "wait_s", True, _seconds), Column("TURNS", "slices", True),
    Column("WAIT P50", "wait_p50_us", True, _microseconds), Column("P99", "wait_p99_us", True, _microseconds),
)
_PROCESSOR_COLUMNS = (
    Column("CPU", "number", True), Column("BUSY", "busy_percent", True, _percent),
    Column("FOR", "reserved", text=lambda reserved: "the daemon" if reserved else "all"),
)

Class = Annotated[str | None, typer.Option("--class", metavar="CLASS", help=f"Scheduling class: {', '.join(CLASSES)}.",
                                           autocompletion=lambda incomplete: [c for c in CLASSES if c.startswith(incomplete)])]
PriorityOption = Annotated[int | None, typer.Option("--priority", metavar="N", min=-PRIORITY_MOST, max=PRIORITY_MOST,
                                                    help="Within the class; the higher the sooner.")]
Cpus = Annotated[str | None, typer.Option("--cpus", metavar="LIST", help="Processors it may run on, such as 0-1,3.")]
Quota = Annotated[str | None, typer.Option("--cpu-quota", metavar="AMOUNT", help="Processor time at most: 50% or 1.5, of one "
                                                                                 "processor; none: no limit.")]


def change(pid: int, sched_class: str | None, priority: int | None, cpus: str | None, quota: str | None) -> p.SchedChange:
    """What the options say of a program. Raises BadParameter."""
    return p.SchedChange(
        pid=pid, sched_class=None if sched_class is None else checked(_class, sched_class), priority=priority,
        processors=None if cpus is None else checked(Processors, cpus),
        cpu_quota=None if quota is None else checked(CpuQuota, quota))


def _class(text: str) -> ClassName:
    if text not in CLASSES:
        raise ValueError(f"{text!r} is none of {', '.join(CLASSES)}")
    return text


def _pids(incomplete: str) -> list[str]:
    return known("sched.list", lambda rows: [str(row.pid) for row in rows], incomplete)


app = typer.Typer(help="How programs share the processors.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def show(as_json: Json = False) -> None:
    """How it is done on this machine: classes, processors, the daemon's own place."""
    status: p.SchedStatus = call("sched.show")
    if as_json:
        return tables.print_json("scheduling", status)
    daemon = status.daemon
    tables.show_facts([
        ("control groups", status.groups), ("shares by", status.share_by), ("quotas by", status.quota_by),
        ("processors by", status.processors_by), ("suspended by", status.suspend_by),
        ("default class", status.default_class),
        ("waited for a processor", f"{_percent(status.pressure_percent)} of the last 10 s"),
        ("threads that want to run", str(status.runnable)),
        ("the daemon", f"{daemon.level}: {daemon.policy}, nice {daemon.nice}" +
                       (f", priority {daemon.sched_priority}" if daemon.sched_priority else "") + f", on {daemon.processors}"),
        ("it waited", f"{_seconds(daemon.wait_s)}, {_mean_wait(daemon)} a turn, beside {_seconds(daemon.run_s)} that it ran"),
        *([("but", daemon.complaint)] if daemon.complaint else []),
    ])
    print()
    tables.print_table(_CLASS_COLUMNS, status.classes)
    print()
    tables.print_table(_PROCESSOR_COLUMNS, status.processors)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """The programs: class, limits, how long they ran and waited for a processor."""
    tables.show(PROGRAMS, call("sched.list"), as_json)


@app.command("set")
def set_(
    pid: Annotated[int, typer.Argument(min=1, max=PID_MOST, help="Number of any process of the program.",
                                       autocompletion=_pids)],
    sched_class: Class = None, priority: PriorityOption = None, cpus: Cpus = None, cpu_quota: Quota = None,
) -> None:
    """Schedule a program, with all it has started, in another way. What is left out stays as it is."""
    if all(each is None for each in (sched_class, priority, cpus, cpu_quota)):
        raise typer.BadParameter("say what to change: --class, --priority, --cpus, --cpu-quota")
    call("sched.set", change(pid, sched_class, priority, cpus, cpu_quota))
