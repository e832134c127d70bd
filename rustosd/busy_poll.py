"""Whether to keep looking for a moment instead of sleeping."""

from typing import Final

MAX_PASSES: Final = 63


class BusyPoll:
    """After work, looking goes on for a while, as long as that pays.

    To wake an idle processor takes tens of microseconds, and what is waited for may be nearer than that. But where it comes
    at longer intervals, looking only burns the processor that somebody else could use. So each vain while doubles the number
    of chances that are let pass before the next, and one that found something forgets them.
    """

    def __init__(self, while_ns: int) -> None:
        """`while_ns` 0: never."""
        self._while_ns = while_ns
        self._until = 0             # not 0: looking
        self._misses = 0            # how many chances the last vain whiles have cost ...
        self._pass = 0              # ... and how many of them are left to pass
        self.vain_looks = 0

    @property
    def looking(self) -> bool:
        """Whether the next look is one instead of sleep."""
        return self._until != 0

    def go_on(self, now: int, worked: bool, found: bool) -> bool:
        """Whether to look again, after a look which `found` what is waited for, or at least `worked`."""
        if found and self._until:
            self._misses = self._pass = 0
        elif self._until and not worked:
            self.vain_looks += 1
            if now < self._until:
                return True
            self._misses = min(2 * self._misses + 1, MAX_PASSES)
            self._pass = self._misses
        self._until = 0
        if worked and self._pass:
            self._pass -= 1
        elif worked and self._while_ns:
            self._until = now + self._while_ns
        return self._until != 0
