"""`rustosctl run`: an unmodified program whose sockets are the stack's."""

import errno
import os
import sys
from typing import Annotated

import typer

from rustosd.cli import shell
from rustosd.cli.calls import Settings


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
    counts: Annotated[bool, typer.Option("--counts", help="Say on stderr at the end which socket calls it made.")] = False,
) -> int:
    """Run a program on the stack: run -- curl http://10.77.0.1/

    It is an ordinary process of yours, on this terminal, and ends with its own exit status; but its TCP and UDP sockets, and
    those of all it starts, are the stack's. When it ends, whatever it left running is ended too.
    """
    from rustosd.process.launch import LaunchFailed, Program
    from rustosd.process.link import Link
    from rustosd.process.supervisor import Supervisor
    try:
        link = Link(Settings.socket)
        program = Program(command, _environment(environment or []), directory, user, not host_network,
                          link.ask("addresses")["addresses"])
        supervisor = Supervisor(link, not untraced)
        status = supervisor.run(program)
    except LaunchFailed as failed:
        raise shell.Stop(str(failed), failed.status) from None
    except OSError as error:
        unreachable = error.errno == errno.ENETDOWN
        raise shell.Stop(error.strerror or str(error), shell.UNREACHABLE if unreachable else shell.FAILED) from None
    if counts:
        _tell(supervisor)
    return status


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


def _tell(supervisor) -> None:
    from rustosd.process.syscalls import NAMES
    told = [f"{NAMES[number]} {count}" for number, count in supervisor.calls.most_common()]
    print(f"rustosctl: {', '.join(told) or 'no socket calls'}", file=sys.stderr)
    for what, count in supervisor.refused.most_common():
        print(f"rustosctl: refused {count} times: {what}", file=sys.stderr)
