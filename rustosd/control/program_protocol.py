"""The part of the protocol that is about the programs of the configuration; see `rustosd.control.protocol`."""

from typing import Annotated

import msgspec

from rustosd.control.base import Done, Method, Nothing, Parameters, Row


class Program(Row):
    """One [[program]]: what it is to be, and how far it is."""

    name: str
    state: str                  # off, waiting, starting, running, pausing, stopping, stopped, ended, failed
    pid: int | None             # while it runs
    user: str
    since_s: float              # how long it has been in this state
    starts: int                 # since the daemon began
    status: int | None          # how it ended the last time, as shells have it
    detail: str                 # what it waits for, or why it has failed
    command: list[str]
    after: list[str]
    restart: str
    policy: str | None


class ProgramName(Parameters):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


METHODS = (
    Method("program.list", Nothing, list[Program], False, "The programs of the configuration."),
    Method("program.start", ProgramName, Done, True, "Start a program, once what it waits for is there."),
    Method("program.stop", ProgramName, Done, True, "Stop a program; it stays so until it is started."),
    Method("program.restart", ProgramName, Done, True, "Stop a program and start it."),
)
