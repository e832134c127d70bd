"""How a supervisor has its program scheduled before that begins."""

import errno
from collections.abc import Callable

from rustosd.control.client import CallFailed, Client, Unreachable
from rustosd.control.sched_protocol import SchedChange


def enter(path: str, wanted: SchedChange) -> Callable[[int], bool]:
    """For `Supervisor.before_exec`: asks the daemon behind the control socket `path`, in the name of the child it is told.

    It returns whether processors are to be kept awake for it. What it raises is an OSError that says why the program cannot be
    scheduled so.
    """
    def ask(pid: int) -> bool:
        try:
            entered = Client(path).call("sched.enter", SchedChange(
                pid=pid, sched_class=wanted.sched_class, priority=wanted.priority, processors=wanted.processors,
                cpu_quota=wanted.cpu_quota))
            return bool(entered.keep_awake)
        except Unreachable as error:
            raise OSError(errno.ENETDOWN, str(error)) from None
        except CallFailed as error:
            raise OSError(errno.EPERM, str(error)) from None
    return ask
