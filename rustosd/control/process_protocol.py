"""The part of the protocol that is about programs on the stack; see `rustosd.control.protocol`."""

from typing import Annotated, Literal

import msgspec

from rustosd.control.base import Done, Method, Nothing, Parameters, Row

Pid = Annotated[int, msgspec.Meta(ge=0, le=1 << 22)]
Signal = Literal["HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "TERM", "CONT", "STOP"]


class Process(Row):
    """A process whose sockets are the stack's; number 0 is the daemon itself."""

    pid: int
    parent: int
    group: int                  # the process that answers its socket calls, `rustosctl run`
    state: str
    name: str
    command: str
    user: str
    nice: int
    threads: int
    rss_octets: int
    cpu_s: float
    age_s: float
    sockets: int                # of the stack


class ProcessDetails(Row):
    """All about one process; `calls` and `refused` are its whole group's."""

    process: Process
    executable: str
    directory: str
    session: int
    affinity: list[int]         # processors it may run on
    peak_rss_octets: int
    swap_octets: int
    context_switches: int
    limits: dict[str, str]      # as /proc/PID/limits has them, the soft ones
    calls: dict[str, int]       # socket calls that were answered
    refused: dict[str, int]     # what was asked for and cannot be had


class Descriptor(Row):
    """What a process has open; for sockets of the stack also who is at both ends."""

    fd: int
    target: str
    protocol: str | None
    state: str | None
    local: str | None
    remote: str | None


class ProcessId(Parameters):
    pid: Pid


class ProcessSignal(ProcessId):
    signal: Signal = "TERM"


class ProcessNice(ProcessId):
    nice: Annotated[int, msgspec.Meta(ge=-20, le=19)]


METHODS = (
    Method("process.list", Nothing, list[Process], False, "The programs that run on the stack, and the daemon."),
    Method("process.show", ProcessId, ProcessDetails, False, "All about one process."),
    Method("process.fds", ProcessId, list[Descriptor], False, "What a process has open."),
    Method("process.signal", ProcessSignal, Done, True, "Send a signal to a process."),
    Method("process.nice", ProcessNice, Done, True, "Change a process's nice value."),
    Method("process.attach", Nothing, Done, False, "A descriptor on which the daemon asks a supervisor: "
           "rustosd.process.channel.", for_programs=True),
)
