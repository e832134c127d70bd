"""The part of the protocol that is about how programs share the processors; see `rustosd.control.protocol`."""

from typing import Annotated

import msgspec

from rustosd.control.base import Done, Method, Nothing, Parameters, Row
from rustosd.scheduling.settings import ClassName, Priority
from rustosd.values import PROCESSOR_MOST, CpuQuota, Processors

Pid = Annotated[int, msgspec.Meta(ge=1, le=1 << 22)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=PROCESSOR_MOST)]


class SchedClass(Row):
    """A scheduling class, and what its programs have spent since the daemon began."""

    name: ClassName
    weight: int | None          # beside the other classes; null: it goes before or behind all of them
    programs: int
    run_s: float                # on a processor
    wait_s: float               # ready to run, waiting for one
    slices: int                 # turns on a processor
    wait_p50_us: int | None     # what half of the turns waited at most, within a factor of two
    wait_p99_us: int | None


class Processor(Row):
    """A processor of this machine."""

    number: int
    busy_percent: float | None  # since the daemon was asked last; null: this is the first time
    reserved: bool              # for the daemon alone


class DaemonThread(Row):
    """The thread that moves frames."""

    level: str                  # "as started", "weighted" before its programs, "realtime" while one of those is
    policy: str
    nice: int
    sched_priority: int
    processors: str             # "0-1,3"
    run_s: float
    wait_s: float
    slices: int
    complaint: str              # why it is not before its programs, if it should be


class SchedStatus(Row):
    """How programs are scheduled here."""

    groups: str                 # where control groups are made; none: and why
    share_by: str               # what the kernel is told with
    quota_by: str
    processors_by: str
    suspend_by: str
    default_class: ClassName
    classes: list[SchedClass]
    processors: list[Processor]
    daemon: DaemonThread
    pressure_percent: float | None  # of the last ten seconds in which somebody on this machine waited for a processor
    runnable: int               # threads that run or wait for a processor, on the whole machine


class SchedProgram(Row):
    """One program, with all that it has started."""

    pid: int                    # of its first process
    supervisor: int
    program: str
    sched_class: ClassName
    priority: int               # within the class; the higher the sooner
    processors: str
    cpu_quota_percent: float    # of one processor; 0: no limit
    suspended: bool
    group: str | None           # its control group, below the daemon's
    run_s: float
    wait_s: float
    slices: int
    throttled: int              # periods in which its quota stopped it
    throttled_s: float


class SchedChange(Parameters):
    """What is left out stays as it is, or as the configuration says."""

    pid: Pid
    sched_class: ClassName | None = None
    priority: Priority | None = None
    processors: Processors | None = None    # empty: all
    cpu_quota: CpuQuota | None = None       # "none": no limit


class SchedEntered(Row):
    """What a supervisor is to do for its program."""

    keep_awake: bool            # the processors, while its calls come often


METHODS = (
    Method("sched.show", Nothing, SchedStatus, False, "How programs share the processors: classes, ways, the daemon's place."),
    Method("sched.list", Nothing, list[SchedProgram], False, "The programs: class, limits, what they ran and waited."),
    Method("sched.set", SchedChange, Done, True, "Schedule a program, with all it has started, in another way."),
    Method("sched.enter", SchedChange, SchedEntered, False, "A supervisor's word on its own child, before that is executed.",
           for_programs=True),
)
