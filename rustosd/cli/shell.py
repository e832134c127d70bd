"""How a command ends: one clear line on stderr for what went wrong, and an exit status that scripts can rely on."""

import os
import re
import sys
from collections.abc import Sequence

import typer

OK = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130       # 128 + SIGINT, as shells have it

# Typer raises Click's exceptions, which it brings along under a name that changed between versions.
UsageError, ClickException = typer.BadParameter.__mro__[1:3]


class Stop(Exception):
    """Ends a command: `message` on stderr and an exit status."""

    def __init__(self, message: str, status: int = FAILED):
        super().__init__(message)
        self.status = status


def run(app: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line and return its exit status; nothing it raises gets past here but SystemExit."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    if not arguments:
        arguments = ["--help"]
        no_command = True
    else:
        no_command = False
    try:
        status = command.main(arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except ClickException as error:
        return _complain(name, error.format_message(), USAGE if isinstance(error, UsageError) else FAILED, error)
    except Stop as error:
        return _complain(name, str(error), error.status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)    # the interpreter flushes stdout once more at its end
        return FAILED
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    return USAGE if no_command else status if isinstance(status, int) else OK


def coloured(text: str, code: str) -> str:
    """The text in a colour (SGR parameters) on a terminal that wants one, else as it is: see NO_COLOR, https://no-color.org."""
    wanted = code and sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[{code}m{text}\x1b[0m" if wanted else text


def _complain(name: str, message: str, status: int, error: Exception | None = None) -> int:
    line = " ".join(message.split()).removesuffix(".").removeprefix("Invalid value: ")
    context = getattr(error, "ctx", None)
    line += _elsewhere(line, getattr(context, "command", None))
    if status == USAGE and error is not None:
        line += f" (see {context.command_path if context is not None else name} --help)"
    print(f"{name}: {line}", file=sys.stderr)
    return status


def _elsewhere(line: str, group: object) -> str:
    """Where the command is that was not found in `group`: below others of it, as ", but: process fds"."""
    if (missing := re.fullmatch(r"No such command '([^']*)'", line)) is None:
        return ""
    places = [f"{name} {missing[1]}" for name, other in getattr(group, "commands", {}).items()
              if missing[1] in getattr(other, "commands", ())]
    return f", but: {', '.join(places)}" if places else ""
