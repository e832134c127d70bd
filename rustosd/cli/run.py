"""`rustosctl run`: an unmodified program whose sockets are the stack's; and what looks after those without a terminal."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from rustosd.cli import sched, shell
from rustosd.cli.calls import Settings, call, checked, known
from rustosd.control import process_protocol as p
from rustosd.memory_limits import Limits, WrongLimit, limits
from rustosd.values import Size

if TYPE_CHECKING:
    from rustosd.process.supervisor import Supervisor

_FOLLOW_S = 0.2
_TAIL_OCTETS = 1 << 16


def run(
    command: Annotated[list[str], typer.Argument(help="The program and its arguments, after --.", show_default=False)],
    user: Annotated[str | None, typer.Option("--user", "-u", help="As this user, name or number; for root.")] = None,
    directory: Annotated[str | None, typer.Option("--chdir", "-C", metavar="DIR", help="Its working directory.")] = None,
    environment: Annotated[list[str] | None, typer.Option(
        "--env", "-e", metavar="NAME=VALUE", help="One more variable; NAME alone takes one away. May be repeated.")] = None,
    host_network: Annotated[bool, typer.Option(
        "--host-network", help="Leave it in this network namespace: what the stack does not answer is the host's.")] = False,
    untraced: Annotated[bool, typer.Option(
        "--untraced", help="Leave ptrace to it: for strace and debuggers. Its exceptions are not explained then.")] = False,
    policy: Annotated[str, typer.Option(
        "--policy", "-p", metavar="NAME", help="Put it under this [[policy]] besides the user's own.",
        show_default=False)] = "",
    detach: Annotated[bool, typer.Option(
        "--detach", "-d", help="Leave the terminal to you: print the program's number, once it runs, and end.")] = False,
    name: Annotated[str | None, typer.Option(
        "--name", "-n", help="What it is called, for wait and logs; with --detach.")] = None,
    memory: Annotated[str | None, typer.Option(
        "--memory", "-m", metavar="SIZE", help="So much private memory for it and all it starts; the rest is in swap.")] = None,
    memory_max: Annotated[str | None, typer.Option(
        "--memory-max", metavar="SIZE", help="So much for a moment, then it waits; a quarter more than --memory unless given.",
        show_default=False)] = None,
    sched_class: sched.Class = None, priority: sched.PriorityOption = None, cpus: sched.Cpus = None,
    cpu_quota: sched.Quota = None,
    counts: Annotated[bool, typer.Option("--counts", help="Say on stderr at the end which socket calls it made.")] = False,
) -> int:
    """Run a program on the stack: run -- curl http://10.77.0.1/

    It is an ordinary process of yours, on this terminal, and ends with its own exit status; but its TCP and UDP sockets, and
    those of all it starts, are the stack's. When it ends, whatever it left running is ended too.
    """
    from rustosd.process import detached
    from rustosd.process.entry import enter
    from rustosd.process.launch import LaunchFailed, Program
    from rustosd.process.link import Link
    from rustosd.process.output import NameTaken
    from rustosd.process.supervisor import Supervisor
    if name is not None and not detach:
        raise typer.BadParameter("--name is for programs without a terminal: with --detach")
    if counts and detach:
        raise typer.BadParameter("--counts speaks to the terminal: not with --detach; see rustosctl process show")
    variables = _environment(environment or [])
    within = _limits(memory, memory_max)
    wanted = sched.change(1, sched_class, priority, cpus, cpu_quota)

    def supervise(executed: Callable[[int], None]) -> int:
        nonlocal supervisor
        try:
            link = Link(Settings.socket)
            supervisor = Supervisor(link, name or "", output, traced=not untraced, limits=within)
            supervisor.before_exec = enter(link.path, wanted)
            return supervisor.run(Program(command, variables, directory, user, own_network=not host_network,
                                          addresses=link.ask("addresses")["addresses"], policy=policy), executed)
        except OSError as error:
            unreachable = error.errno == errno.ENETDOWN
            raise LaunchFailed(error.strerror or str(error), shell.UNREACHABLE if unreachable else shell.FAILED) from None

    supervisor: Supervisor | None = None
    output = None
    try:
        if detach:
            name, output = detached.output_for(command[0], name)
            print(detached.detach(supervise))
            return shell.OK
        status = supervise(lambda _pid: None)
    except LaunchFailed as failed:
        if output is not None:
            output.discard()
        raise shell.Stop(str(failed), failed.status) from None
    except (NameTaken, OSError) as error:
        raise shell.Stop(getattr(error, "strerror", None) or str(error)) from None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if counts and supervisor is not None:
        _tell(supervisor)
    return status


def _limits(memory: str | None, memory_max: str | None) -> Limits | None:
    try:
        return limits(None if memory is None else checked(Size, memory),
                      None if memory_max is None else checked(Size, memory_max), ("--memory", "--memory-max"))
    except WrongLimit as wrong:
        raise typer.BadParameter(f"{wrong.which} {wrong}") from None


def _environment(changes: list[str]) -> dict[str, str]:
    made = dict(os.environ)
    for change in changes:
        name, given, value = change.partition("=")
        if not name:
            raise typer.BadParameter(f"{change!r} names no variable")
        if given:
            made[name] = value
        else:
            made.pop(name, None)
    return made


def _tell(supervisor: Supervisor) -> None:
    from rustosd.process.syscalls import NAMES
    told = [f"{NAMES[number]} {count}" for number, count in supervisor.calls.most_common()]
    print(f"rustosctl: {', '.join(told) or 'no socket calls'}", file=sys.stderr)
    for what, count in supervisor.refused.most_common():
        print(f"rustosctl: refused {count} times: {what}", file=sys.stderr)


def _names(incomplete: str) -> list[str]:
    return known("process.list", lambda rows: sorted({row.program for row in rows if row.program}), incomplete)


def wait(program: Annotated[str, typer.Argument(help="Its name or its number.", autocompletion=_names)]) -> int:
    """Wait until a program on the stack has ended. The exit status is the program's.

    That of a process which another one started is known to nobody else: then it is 0.
    """
    while True:
        end: p.ProcessEnd = call("process.wait", p.ProcessWait(program=program, seconds=p.WAIT_MOST_S))
        if end.ended:
            return end.status or 0


def logs(
    name: Annotated[str, typer.Argument(help="The program's name.", autocompletion=_names)],
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="So many, at most.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what it writes, until Ctrl-C.")] = False,
) -> None:
    """What a program without a terminal has written, the newest last; also when it has ended."""
    from rustosd.process.output import path_of
    try:
        path = path_of(name)
        file = path.open("rb")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    except OSError as error:
        kept = ", ".join(sorted(one.stem for one in path.parent.glob("*.log"))) or "none"
        raise shell.Stop(f"{error.strerror}: {path}; logs are there of: {kept}; programs of other users keep theirs below "
                         "their homes") from None
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - _TAIL_OCTETS))
    sys.stdout.buffer.write(b"".join(file.read().splitlines(keepends=True)[-lines:] if lines else []))
    sys.stdout.buffer.flush()
    while follow:
        if not (octets := file.read()):
            time.sleep(_FOLLOW_S)
            if path.exists() and path.stat().st_ino != os.fstat(file.fileno()).st_ino and not (octets := file.read()):
                file.close()
                file = path.open("rb")
        sys.stdout.buffer.write(octets)
        sys.stdout.buffer.flush()
