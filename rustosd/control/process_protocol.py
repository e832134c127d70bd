"""The part of the protocol that is about programs on the stack; see `rustosd.control.protocol`."""

from typing import Annotated, Literal

import msgspec

from rustosd.control.base import Done, Method, Nothing, Parameters, Row
from rustosd.control.sched_protocol import SchedProgram

Pid = Annotated[int, msgspec.Meta(ge=0, le=1 << 22)]
WAIT_MOST_S = 30.0
"""Of one call; who wants to wait longer asks again."""
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
    swap_octets: int            # pages that have a place in swap, Linux's or ours; of ours some are in memory as well
    cpu_s: float
    age_s: float
    sockets: int                # of the stack
    started: int                # processes that this one has started, as long as it is traced
    sched_class: str            # how it is scheduled with its whole program; empty: the daemon
    wait_s: float               # ready to run, waiting for a processor
    slices: int                 # turns on a processor
    program: str                # what it was called by [[program]] or --name; empty: nothing


class ProcessDetails(Row):
    """All about one process; from `calls` on it is its whole group's."""

    process: Process
    executable: str
    directory: str
    session: int
    affinity: list[int]         # processors it may run on
    policy: str                 # of sched(7)
    sched_priority: int
    scheduling: SchedProgram | None     # of its whole program
    peak_rss_octets: int
    context_switches: int
    limits: dict[str, str]      # as /proc/PID/limits has them, the soft ones
    calls: dict[str, int]       # socket calls that were answered
    refused: dict[str, int]     # what was asked for and cannot be had
    traced: bool                # False: nothing is known of exceptions, and of its group's life only the ends
    life: dict[str, int]        # of the group: forks, vforks, clones, threads, execs, exits, signals
    ended: list[str]            # of the group, the last ones: number, name, and how
    exceptions: dict[str, int]  # of the group: kind and what became of them


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


class ProcessWait(Parameters):
    program: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]      # name or number
    seconds: Annotated[float, msgspec.Meta(ge=0, le=WAIT_MOST_S)] = WAIT_MOST_S


class ProcessEnd(Row):
    """Whether it has ended within that time, and how."""

    ended: bool
    pid: int | None
    name: str
    status: int | None          # as shells have it, 128 and the signal's number; null: only its parent was told


METHODS = (
    Method("process.list", Nothing, list[Process], False, "The programs that run on the stack, and the daemon."),
    Method("process.show", ProcessId, ProcessDetails, False, "All about one process."),
    Method("process.fds", ProcessId, list[Descriptor], False, "What a process has open."),
    Method("process.signal", ProcessSignal, Done, True, "Send a signal to a process."),
    Method("process.suspend", ProcessId, Done, True, "Let a process, and all it has started, run no further."),
    Method("process.resume", ProcessId, Done, True, "Let a suspended process, and all it has started, go on."),
    Method("process.nice", ProcessNice, Done, True, "Change a process's nice value."),
    Method("process.wait", ProcessWait, ProcessEnd, False, "Wait until a program has ended."),
    Method("process.attach", Nothing, Done, False, "A descriptor on which the daemon asks a supervisor: "
           "rustosd.process.channel.", for_programs=True),
)
