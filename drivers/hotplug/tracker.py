"""Which PCI functions are there to be taken and which have left, out of messages that may be lost, late or too many.

Sans-I/O: `now` is integer nanoseconds of any monotonic clock, and what follows is returned, not done.

    unknown --add--> settling --steady for a while--> present --remove--> unknown
                        |                                |
                        +----------- remove -------------+

A function that was just added is the kernel's for a moment: its own driver probes it, udev may load one, interfaces are
made and named. It is told of when a driver has it, or when none has come in time. A function that leaves before that is
never told of, so a bouncing contact costs nothing.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from drivers.hotplug.uevent import Action, PciEvent

STEADY_NS: Final = 50_000_000
"""How long a function stays as it is, once a driver has it, before it is told of."""
UNDRIVEN_NS: Final = 300_000_000
"""How long a driver of the kernel's own may take to come before the function is told of without one."""
LONGEST_NS: Final = 1_000_000_000
"""A function that keeps changing is told of no later."""
MOST_FUNCTIONS: Final = 4096
"""More are counted, not tracked. Large hosts with virtual functions have some hundreds."""


class News(Enum):
    """What is told of a function."""

    APPEARED = "appeared"
    VANISHED = "vanished"
    BOUND = "bound"
    UNBOUND = "unbound"


@dataclass(frozen=True, slots=True)
class Tell:
    """One piece of news. `driver` is the kernel driver that has the function now."""

    news: News
    bdf: str
    driver: str | None = None


class _State(Enum):
    UNKNOWN = "unknown"
    SETTLING = "settling"
    PRESENT = "present"


_U, _S, _P = _State.UNKNOWN, _State.SETTLING, _State.PRESENT

# Every pair, since messages may be lost: an ADD of what is present means that it has left and come back.
_TABLE: Final[Mapping[tuple[_State, Action], tuple[_State, News | None]]] = {
    (_U, Action.ADD): (_S, None),
    (_U, Action.BIND): (_S, None),
    (_U, Action.UNBIND): (_S, None),
    (_U, Action.REMOVE): (_U, None),
    (_S, Action.ADD): (_S, None),
    (_S, Action.BIND): (_S, None),
    (_S, Action.UNBIND): (_S, None),
    (_S, Action.REMOVE): (_U, None),
    (_P, Action.ADD): (_S, News.VANISHED),
    (_P, Action.BIND): (_P, News.BOUND),
    (_P, Action.UNBIND): (_P, News.UNBOUND),
    (_P, Action.REMOVE): (_U, News.VANISHED),
}


@dataclass(slots=True)
class _Function:
    state: _State
    driver: str | None = None
    due: int = 0        # settling: when it is told of ...
    limit: int = 0      # ... at the latest


class Tracker:
    """The functions of this machine. Feed it events in their order; do what it tells."""

    def __init__(self, present: Mapping[str, str | None], *, most: int = MOST_FUNCTIONS) -> None:
        """`present` functions and their drivers are known from the start, and not told of."""
        self.counts: Counter[str] = Counter()
        """How often each kind of news was told, "bounced" before it was, or there was no room ("table_full")."""
        self._most = most
        self._functions: dict[str, _Function] = {}
        for bdf, driver in present.items():
            if function := self._room_for(bdf):
                function.state, function.driver = _State.PRESENT, driver

    @property
    def known(self) -> dict[str, str | None]:
        """What is believed to be there, settling or present, and its driver."""
        return {bdf: function.driver for bdf, function in self._functions.items()}

    def event(self, now: int, event: PciEvent) -> list[Tell]:
        """Take in an event; what is to be told at once."""
        before = self._functions.get(event.bdf)
        state, news = _TABLE[before.state if before else _State.UNKNOWN, event.action]
        driver = event.driver if event.action is Action.BIND else None
        if state is _State.UNKNOWN:
            if self._functions.pop(event.bdf, None) and news is None:
                self.counts["bounced"] += 1
        elif function := before or self._room_for(event.bdf):
            if state is _State.SETTLING:
                self._settle(function, now, driver, anew=function.state is not _State.SETTLING)
            function.state, function.driver = state, driver
        return [] if news is None else [self._tell(news, event.bdf, driver)]

    def advance(self, now: int) -> list[Tell]:
        """What is to be told because time has passed."""
        told = []
        for bdf, function in self._functions.items():
            if function.state is _State.SETTLING and function.due <= now:
                function.state = _State.PRESENT
                told.append(self._tell(News.APPEARED, bdf, function.driver))
        return told

    def wake_at(self) -> int | None:
        """When `advance` has something to tell next; None: nothing waits for time to pass."""
        return min((function.due for function in self._functions.values() if function.state is _State.SETTLING), default=None)

    def rescan(self, now: int, present: Mapping[str, str | None]) -> list[Tell]:
        """Events were lost: `present` is what sysfs shows now.

        What is gone is told of. What was there before is told of again, as appeared: it may have left and come back among
        what was lost, so whoever holds it should see whether it still does.
        """
        told = []
        for bdf in [bdf for bdf in self._functions if bdf not in present]:
            if self._functions.pop(bdf).state is _State.PRESENT:
                told.append(self._tell(News.VANISHED, bdf, None))
        for bdf, driver in present.items():
            if function := self._functions.get(bdf) or self._room_for(bdf):
                function.driver = driver
                if function.state is _State.PRESENT:
                    told.append(self._tell(News.APPEARED, bdf, driver))
                else:
                    self._settle(function, now, driver, anew=function.state is _State.UNKNOWN)
                    function.state = _State.SETTLING
        return told

    def _settle(self, function: _Function, now: int, driver: str | None, *, anew: bool) -> None:
        if anew:
            function.limit = now + LONGEST_NS
        function.due = min(now + (UNDRIVEN_NS if driver is None else STEADY_NS), function.limit)

    def _room_for(self, bdf: str) -> _Function | None:
        if len(self._functions) >= self._most:
            self.counts["table_full"] += 1
            return None
        function = self._functions[bdf] = _Function(_State.UNKNOWN)
        return function

    def _tell(self, news: News, bdf: str, driver: str | None) -> Tell:
        self.counts[news.value] += 1
        return Tell(news, bdf, driver)
