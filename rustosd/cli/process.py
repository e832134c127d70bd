"""`rustosctl ps` and its like: the programs that run on the stack."""

from typing import Annotated

import typer

from rustosd.cli import tables
from rustosd.cli import top as top_command
from rustosd.cli.calls import PID_MOST, Json, call, known
from rustosd.cli.process_top import Sample, View
from rustosd.cli.tables import Column, Listing, octets
from rustosd.control import network_protocol as network
from rustosd.control import process_protocol as p
from rustosd.control.client import Client


def _rules(rules: list[str] | None) -> str:
    return "everything" if rules is None else "; ".join(rules) or "nothing"


PROCESSES = Listing("processes", "process", "processes", (
    Column("PID", "pid", True), Column("PARENT", "parent", True), Column("USER", "user"), Column("STATE", "state"),
    Column("NICE", "nice", True), Column("CPU", "cpu_s", True, lambda seconds: f"{seconds:.2f} s"),
    Column("RSS", "rss_octets", True, octets), Column("SWAP", "swap_octets", True, octets),
    Column("SOCKETS", "sockets", True), Column("PROGRAM", "program"),
    Column("COMMAND", "command", folds=True),
))
WIDE = PROCESSES._replace(columns=(
    *PROCESSES.columns[:6], Column("CLASS", "sched_class"), Column("THREADS", "threads", True),
    Column("WAITED", "wait_s", True, lambda seconds: f"{seconds:.2f} s"), Column("TURNS", "slices", True),
    Column("STARTED", "started", True),
    *PROCESSES.columns[6:],
))
DESCRIPTORS = Listing("descriptors", "descriptor", "descriptors", (
    Column("FD", "fd", True), Column("PROTO", "protocol"), Column("STATE", "state"), Column("LOCAL", "local"),
    Column("REMOTE", "remote"), Column("TARGET", "target", folds=True),
))
POLICIES = Listing("policies", "policy", "policies", (
    Column("POLICY", "name"), Column("USERS", "users"), Column("GROUPS", "groups"),
    Column("CONNECT", "connect", text=_rules, folds=True), Column("BIND", "bind", text=_rules, folds=True),
    Column("DENIED", "denied", text=lambda counts: tables.plain([f"{what} {count}" for what, count in counts.items()])),
))


def _pids(incomplete: str) -> list[str]:
    return known("process.list", lambda rows: [str(row.pid) for row in rows], incomplete)


Pid = Annotated[int, typer.Argument(min=0, max=PID_MOST, help="Number of the process, as `rustosctl ps` tells.",
                                    autocompletion=_pids)]
app = typer.Typer(help="Programs on the stack, one by one.", no_args_is_help=True, rich_markup_mode=None)


def ps(
    wide: Annotated[bool, typer.Option("--wide", "-w", help="Also how they are scheduled and what they waited.")] = False,
    as_json: Json = False,
) -> None:
    """The programs that `rustosctl run` runs, and all they have started. Number 0 is the daemon."""
    tables.show(WIDE if wide else PROCESSES, call("process.list"), as_json)


def policy(as_json: Json = False) -> None:
    """What programs may reach, and how often they were denied more; [[policy]] in the configuration."""
    tables.show(POLICIES, call("policy.list"), as_json)


@app.command()
def show(pid: Pid, as_json: Json = False) -> None:
    """All about one process."""
    details: p.ProcessDetails = call("process.show", p.ProcessId(pid=pid))
    if as_json:
        return tables.print_json("process", details)
    one = details.process
    tables.show_facts([
        ("process", str(one.pid)), ("program", tables.plain(one.program)),
        ("parent", str(one.parent)), ("supervisor", str(one.group)), ("command", one.command),
        ("executable", details.executable), ("directory", details.directory), ("user", one.user), ("state", one.state),
        ("age", tables.duration(one.age_s)), ("processor time", f"{one.cpu_s:.2f} s"), ("nice", str(one.nice)),
        ("waited for a processor", f"{one.wait_s:.2f} s in {one.slices} turns"), ("scheduled", _scheduling(details)),
        ("processors", ", ".join(map(str, details.affinity))), ("threads", str(one.threads)),
        ("memory", octets(one.rss_octets)), ("most memory", octets(details.peak_rss_octets)),
        ("swapped out", octets(one.swap_octets)),
        ("sockets", str(one.sockets)), ("context switches", str(details.context_switches)),
        ("socket calls", tables.plain([f"{name} {count}" for name, count in details.calls.items()])),
        ("started", f"{one.started} processes" if details.traced else "unknown: it is not traced"),
        ("group's life", tables.plain([f"{name} {count}" for name, count in details.life.items()])),
        ("last ends", tables.plain(details.ended[-5:])),
        ("exceptions", tables.plain([f"{name} {count}" for name, count in details.exceptions.items()])),
        ("refused", tables.plain([f"{name} {count}" for name, count in details.refused.items()])),
    ])


def _scheduling(details: p.ProcessDetails) -> str:
    """Its program's class and limits, and the kernel's word for what became of them."""
    kernel = f"policy {details.policy}" + (f" {details.sched_priority}" if details.sched_priority else "")
    if (program := details.scheduling) is None:
        return kernel
    quota = f", at most {program.cpu_quota_percent:g}% of a processor" if program.cpu_quota_percent else ""
    group = f", group {program.group}" if program.group else ""
    return f"class {program.sched_class}, priority {program.priority}{quota}; {kernel}{group}"


@app.command()
def top(
    interval_s: Annotated[float, typer.Option("-d", "--interval", min=0.1, max=60, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one interval and end.")] = False,
    as_json: Json = False,
) -> int:
    """Processors, memory and network that programs take, live. q ends it, p pauses, s sorts otherwise."""
    return top_command.show(View(), _sample, "processes", interval_s, once, as_json)


def _sample(daemon: Client) -> Sample:
    traffic = daemon.call("top.sample", network.SampleQuery(most=network.MOST_BUSIEST))
    return Sample(traffic.at_ns, daemon.call("process.list"), traffic.busiest)


@app.command()
def fds(pid: Pid, as_json: Json = False) -> None:
    """What a process has open; its sockets with who is at both ends."""
    tables.show(DESCRIPTORS, call("process.fds", p.ProcessId(pid=pid)), as_json)


def kill(
    pid: Pid,
    signal: Annotated[str, typer.Option("--signal", "-s", metavar="NAME", help="HUP, INT, QUIT, KILL, USR1, USR2, TERM, CONT "
                                                                              "or STOP.")] = "TERM",
) -> None:
    """Send a signal to a process."""
    name = signal.upper().removeprefix("SIG")
    if name not in p.Signal.__args__:
        raise typer.BadParameter(f"{signal} is none of {', '.join(p.Signal.__args__)}")
    call("process.signal", p.ProcessSignal(pid=pid, signal=name))


def suspend(pid: Pid) -> None:
    """Let a process, and all it has started, run no further until `rustosctl resume`; connections stay open."""
    call("process.suspend", p.ProcessId(pid=pid))


def resume(pid: Pid) -> None:
    """Let a suspended process, and all it has started, go on."""
    call("process.resume", p.ProcessId(pid=pid))


def nice(pid: Pid, value: Annotated[int, typer.Argument(min=-20, max=19, help="-20: first of all; 19: last.")]) -> None:
    """Change how a process is preferred to others when processors are short."""
    call("process.nice", p.ProcessNice(pid=pid, nice=value))
