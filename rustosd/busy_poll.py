"""Whether to keep looking for a moment instead of sleeping."""

from typing import Final

MAX_PASSES: Final = 63
STRETCH: Final = 4
"""A while grows to so many times its length where what is waited for takes that long."""
_SHIFT: Final = 3
"""The usual gap is an average in which a new one counts by 2 ** -_SHIFT."""


class BusyPoll:
    """After work, looking goes on for a while, as long as that pays.

    To wake an idle processor takes tens of microseconds, and what is waited for may be nearer than that. But where it comes
    at longer intervals, looking only burns the processor that somebody else could use. So the while follows the gaps seen, up
    to STRETCH times the one asked for; each vain while doubles the number of chances that are let pass before the next, and
    one that found something forgets them.
    """

    def __init__(self, while_ns: int) -> None:
        """`while_ns` 0: never."""
        self._while_ns = while_ns
        self._until = 0             # not 0: looking
        self._worked_at = 0         # since when something is waited for; 0: nothing is
        self._gap = 0               # how long that usually takes
        self._misses = 0            # how many chances the last vain whiles have cost ...
        self._pass = 0              # ... and how many of them are left to pass
        self.vain_looks = 0

    def set_while(self, while_ns: int) -> None:
        """From now on; 0: never."""
        self._while_ns = while_ns

    @property
    def looking(self) -> bool:
        """Whether the next look is one instead of sleep."""
        return self._until != 0

    def go_on(self, now: int, worked: bool, found: bool) -> bool:
        """Whether to look again, after a look which `found` what is waited for, or at least `worked`."""
        if found and self._worked_at:
            self._learn(now - self._worked_at)
        if found and self._until:
            self._misses = self._pass = 0
        elif self._until and not worked:
            self.vain_looks += 1
            if now < self._until:
                return True
            self._misses = min(2 * self._misses + 1, MAX_PASSES)
            self._pass = self._misses
        self._until = 0
        if worked:
            self._worked_at = now
            if self._pass:
                self._pass -= 1
            elif self._while_ns:
                self._until = now + self._length()
        return self._until != 0

    def _length(self) -> int:
        """One that finds what comes after the usual gap; where none would, the one asked for."""
        longest = STRETCH * self._while_ns
        return min(max(self._while_ns, 3 * self._gap // 2), longest) if 8 * self._gap < 7 * longest else self._while_ns

    def _learn(self, gap: int) -> None:
        """A pause counts as the longest while at most, that it does not hide what comes after."""
        self._gap += (min(gap, STRETCH * self._while_ns) - self._gap) >> _SHIFT
        if gap < self._length():
            self._pass = 0          # it would have been found
