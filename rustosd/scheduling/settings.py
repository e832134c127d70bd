"""The scheduling classes, and what can be said of one program. Priority counts within the class, the higher the sooner."""

import math
import os
from typing import Annotated, Final, Literal, NamedTuple, get_args

import msgspec

ClassName = Literal["realtime", "interactive", "normal", "batch", "idle"]
CLASSES: Final[tuple[ClassName, ...]] = get_args(ClassName)
PRIORITY_MOST: Final = 9
Priority = Annotated[int, msgspec.Meta(ge=-PRIORITY_MOST, le=PRIORITY_MOST)]
ALL_WEIGHT: Final = 100
"""What all programs together weigh beside the daemon, and a program of priority 0 beside others of its class."""
_STEP: Final = 1.25                 # sched(7): a nice value's worth of processor time, and so a priority's
_REALTIME_MIDDLE: Final = 20        # sched_priority of priority 0; the daemon is before all of them
SLICE_NS: Final = 100_000
"""What interactive programs ask to run at a time: who asks for less goes sooner (Linux 6.12 on)."""


class Way(NamedTuple):
    """How the kernel is told of a class."""

    policy: int
    slice_ns: int = 0
    text: str = ""


WAYS: Final[dict[ClassName, Way]] = {
    "realtime": Way(os.SCHED_RR, 0, "before all others; the kernel takes turns among those of one priority"),
    "interactive": Way(os.SCHED_OTHER, SLICE_NS, "for what somebody waits for: more weight, shorter turns"),
    "normal": Way(os.SCHED_OTHER, 0, "what programs have that say nothing"),
    "batch": Way(os.SCHED_BATCH, 0, "for what takes long: less weight, never in a hurry"),
    "idle": Way(os.SCHED_IDLE, 0, "only where nobody else wants to run"),
}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of a program; None: as the configuration, or as it was."""

    sched_class: ClassName | None = None
    priority: Priority | None = None
    processors: tuple[int, ...] | None = None
    """Those it may run on; empty: all that programs may use."""
    quota_percent: float | None = None
    """Of one processor's time, at most; 0: no limit."""

    def over(self, before: "Settings") -> "Settings":
        """These, and where they say nothing, what was said before."""
        return Settings(**{name: mine if (mine := getattr(self, name)) is not None else getattr(before, name)
                           for name in self.__struct_fields__})

    @property
    def beyond_anybody(self) -> bool:
        """Whether it takes from others what only they who run the daemon can give away."""
        return self.sched_class == "realtime" or (self.priority or 0) > 0


def weight(class_weight: float, priority: int) -> float:
    """Of a program beside others, where 100 is one of class normal with priority 0."""
    return class_weight * _STEP ** priority


def nice_of(weighs: float) -> int:
    """The nice value that comes next to a weight."""
    return max(-20, min(19, -round(math.log(weighs / ALL_WEIGHT, _STEP))))


def realtime_priority(priority: int) -> int:
    """sched_priority of SCHED_RR."""
    return _REALTIME_MIDDLE + priority


DAEMON_REALTIME: Final = _REALTIME_MIDDLE + 2 * PRIORITY_MOST
