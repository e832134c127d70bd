"""The daemon's own thread, which moves everybody's frames: before its programs while there are any, else as it was started."""

import os
from collections.abc import Iterable
from typing import Final, Literal

import structlog

from rustosd.scheduling import tasks
from rustosd.scheduling.settings import DAEMON_REALTIME, SLICE_NS, nice_of

Level = Literal["as started", "weighted", "realtime"]
_REALTIME: Final = (os.SCHED_RR, os.SCHED_FIFO)

log = structlog.get_logger(__name__)


class Ahead:
    """To be used by the thread it is about. Processes and threads that it starts get none of this, but the processors."""

    def __init__(self) -> None:
        self.level: Level = "as started"
        self.complaint = ""
        """Why it is not as it should be."""
        self.processors = tuple(sorted(os.sched_getaffinity(0)))
        """Those the daemon was started with."""
        self._policy = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
        self._priority = os.sched_getparam(0).sched_priority
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        self._weight = 0
        self._pinned: tuple[int, ...] = ()

    def be(self, level: Level, weight: int) -> None:
        """Have this level from now on; `weight` beside all programs' 100, 0 for none of its own."""
        if not weight and level == "weighted":
            level = "as started"
        if (level, weight) == (self.level, self._weight) or self._policy in _REALTIME:
            return
        try:
            if level == "realtime":
                tasks.set_policy(0, os.SCHED_RR, 0, DAEMON_REALTIME, reset_on_fork=True)
            elif level == "weighted":
                nice = min(self._nice, nice_of(weight))
                tasks.set_policy(0, os.SCHED_OTHER, nice, slice_ns=SLICE_NS, reset_on_fork=True)
                tasks.weigh_session(os.getpid(), nice)
            else:
                tasks.set_policy(0, self._policy, self._nice, self._priority)
                tasks.weigh_session(os.getpid(), 0)
        except OSError as error:
            self._complain(error)
        else:
            self.level, self._weight, self.complaint = level, weight, ""

    def keep_to(self, processors: Iterable[int]) -> None:
        """Run on these only; none: on those that it was started with."""
        wanted = tuple(processors)
        if wanted or self._pinned:
            tasks.set_affinity(0, wanted or self.processors)
            self._pinned = wanted

    def let_go(self, *processes: int) -> None:
        """What the daemon itself has started is where it is: put that on all processors, and leave the others alone."""
        for pid in processes if self._pinned else ():
            if os.sched_getaffinity(pid) == set(self._pinned):
                tasks.set_affinity(pid, self.processors)

    def _complain(self, error: OSError) -> None:
        if not self.complaint:
            log.warning("daemon_not_ahead", error=error.strerror)
        self.complaint = error.strerror or str(error)
