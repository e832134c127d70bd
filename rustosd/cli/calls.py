"""How the commands of `rustosctl` talk to the daemon, and what several of them share."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypeVar

import typer

from rustosd.cli import shell
from rustosd.control.base import Parameters
from rustosd.control.client import DEFAULT_SOCKET, CallFailed, Client, Unreachable

T = TypeVar("T")

PID_MOST = 1 << 22          # PID_MAX_LIMIT of linux/threads.h
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class Settings:
    """What the options before the command say."""

    socket = DEFAULT_SOCKET


@contextlib.contextmanager
def daemon() -> Iterator[Client]:
    """A connection to the daemon; what goes wrong on it ends the command with its status."""
    try:
        with Client(Settings.socket) as client:
            yield client
    except Unreachable as error:
        raise shell.Stop(str(error), shell.UNREACHABLE) from None
    except CallFailed as error:
        raise shell.Stop(str(error)) from None


def call(method: str, params: Parameters | None = None) -> Any:
    """One method, on a connection of its own."""
    with daemon() as client:
        return client.call(method, params)


def checked(kind: Callable[[str], T], text: str) -> T:
    """`kind(text)`, with a ValueError as a complaint about the usage."""
    try:
        return kind(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def known(method: str, names: Callable[[Any], list[str]], incomplete: str, params: Parameters | None = None) -> list[str]:
    """For completion: what `names` finds in an answer that begins like this; nothing when no daemon answers."""
    try:
        # While completing, the options before the command have not been read.
        with Client(os.environ.get("RUSTOSD_SOCKET", DEFAULT_SOCKET)) as client:
            return [name for name in names(client.call(method, params)) if name.startswith(incomplete)]
    except (Unreachable, CallFailed, OSError):
        return []
