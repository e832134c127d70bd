"""Rate limits of log lines by what they say: a burst of the same event is one line, or a few, and a count."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, NamedTuple

WINDOW_S: Final = 5.0
ALIKE: Final = 20
"""So many lines of one event with different fields pass in a window. The very same line again and again passes once."""
MAX_KEYS: Final = 512
UNLIMITED: Final = frozenset({"configuration_changed", "repeated"})
"""What is somebody's doing is on record every time."""


class Source(NamedTuple):
    """Who says what."""

    logger: str
    level: str
    event: str


class Burst(NamedTuple):
    """So many lines of a source were held back."""

    source: Source
    count: int


@dataclass(slots=True)
class _Window:
    source: Source
    fields: Hashable
    ends_at: float
    passed: int = 0
    held: int = 0


class Limiter:
    """Decides which lines pass; what was held back is told by `ended`. `now` is any monotonic clock's, in seconds."""

    def __init__(self) -> None:
        self._runs: OrderedDict[Hashable, _Window] = OrderedDict()      # by logger: the line it is repeating
        self._alike: OrderedDict[Hashable, _Window] = OrderedDict()     # by source
        self._untold: list[Burst] = []

    def admit(self, source: Source, fields: Hashable, now: float) -> bool:
        """Whether this line may pass."""
        if source.event in UNLIMITED:
            return True
        run = self._runs.get(source.logger)
        if run is not None and run.ends_at > now and (run.source, run.fields) == (source, fields):
            run.held += 1
            return False
        self._open(self._runs, source.logger, source, fields, now)
        alike = self._alike.get(source)
        if alike is None or alike.ends_at <= now:
            alike = self._open(self._alike, source, source, None, now)
        if alike.passed >= ALIKE:
            alike.held += 1
            return False
        alike.passed += 1
        return True

    def ended(self, now: float) -> list[Burst]:
        """What was held back in the windows that are over, once."""
        for windows in (self._runs, self._alike):
            for key in [key for key, window in windows.items() if window.ends_at <= now]:
                self._end(windows, key)
        bursts, self._untold = self._untold, []
        return bursts

    def _open(self, windows: OrderedDict[Hashable, _Window], key: Hashable, source: Source, fields: Hashable,
              now: float) -> _Window:
        self._end(windows, key)
        while len(windows) >= MAX_KEYS:
            self._end(windows, next(iter(windows)))
        window = windows[key] = _Window(source, fields, now + WINDOW_S)
        return window

    def _end(self, windows: OrderedDict[Hashable, _Window], key: Hashable) -> None:
        window = windows.pop(key, None)
        if window is not None and window.held and len(self._untold) < 2 * MAX_KEYS:
            self._untold.append(Burst(window.source, window.held))
