"""What is done about errors that come again: one measure after the other, each only when the one before did not help.

    the command again       always first
    COMRESET                when the command engine or the device does not go on
    a slower link           LINK_ERRORS of them within LINK_NS, down to the first generation
    no NCQ                  QUEUE_ERRORS of queued commands within QUEUE_NS that the drive's log could not explain
    the port is given up    RESETS in a row without a request done in between

The way back: another drive, or the operator, who has the port tried again: both begin at the bottom.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from drivers.registers import MS

SECOND: Final = 1_000 * MS
LINK_ERRORS: Final = 4
LINK_NS: Final = 300 * SECOND
QUEUE_ERRORS: Final = 3
QUEUE_NS: Final = 600 * SECOND
RESETS: Final = 3
SLOWEST: Final = 1
"""Generation of the link: 1.5 Gb/s."""


class Trouble(Enum):
    """Whose fault it was, as far as that can be told."""

    DEVICE = auto()
    """The drive says which command failed, and why."""
    LINK = auto()
    """The interface: CRC, handshake, protocol."""
    BUS = auto()
    """The host's side: memory that the controller did not reach."""
    TIMEOUT = auto()
    """A command did not end."""
    UNEXPLAINED = auto()
    """A queued command failed, and the drive could not say which."""


class Measure(Enum):
    """What is to be done besides trying again."""

    SLOWER = auto()
    NO_QUEUE = auto()


@dataclass(slots=True)
class Ladder:
    """The errors of one port, and how far up it is."""

    speed_limit: int = 0
    """Generation; 0: none."""
    queuing: bool = True
    resets: int = 0
    """In a row."""
    _link: deque[int] = field(default_factory=deque)
    _queue: deque[int] = field(default_factory=deque)

    def note(self, trouble: Trouble, now: int, *, queued: bool, speed: int) -> Measure | None:
        """An error at `now`: of a queued command or not, on a link of this generation (0: unknown). What to do about it."""
        if trouble is Trouble.LINK and _many(self._link, now, LINK_NS, LINK_ERRORS):
            slower = (self.speed_limit or speed) - 1
            if slower >= SLOWEST:
                self._link.clear()
                self.speed_limit = slower
                return Measure.SLOWER
        if (trouble in (Trouble.TIMEOUT, Trouble.UNEXPLAINED) and queued and self.queuing
                and _many(self._queue, now, QUEUE_NS, QUEUE_ERRORS)):
            self._queue.clear()
            self.queuing = False
            return Measure.NO_QUEUE
        return None

    def may_reset(self, progress: bool) -> bool:
        """Whether another reset is worth it; `progress`: a request has been done since the last one."""
        if progress:
            self.resets = 0
        if self.resets >= RESETS:
            return False
        self.resets += 1
        return True

    def forget(self) -> None:
        """Back to the bottom."""
        self.speed_limit, self.queuing, self.resets = 0, True, 0
        self._link.clear()
        self._queue.clear()


def _many(times: deque[int], now: int, window_ns: int, count: int) -> bool:
    """Add `now`; whether there are so many within the window."""
    times.append(now)
    while times[0] < now - window_ns:
        times.popleft()
    return len(times) >= count
