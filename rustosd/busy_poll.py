"""Whether to keep looking for a moment instead of sleeping. Compiled: it is asked after every look."""

import cython
from cython.cimports.libc.stdint import int64_t
from cython.cimports.mm.crowd import Crowd

if not cython.compiled:
    raise ImportError("rustosd.busy_poll must be compiled: python setup.py build_ext --inplace")

SHIFT = cython.declare(cython.int, 3)       # the usual gap is an average in which a new one counts by 2 ** -SHIFT


@cython.final
@cython.cclass
class BusyPoll:
    """After work, looking goes on for a while, as long as that pays.

    To wake an idle processor takes tens of microseconds, and what is waited for may be nearer than that. But where it comes
    at longer intervals, looking only burns the processor that somebody else could use. So the while follows the gaps seen, up
    to STRETCH times the one asked for; each vain while doubles the number of chances that are let pass before the next, and
    one that found something forgets them. Where others wait for a processor, there is no looking for some time.
    """

    def __init__(self, while_ns: int, crowd: Crowd | None = None) -> None:
        """`while_ns` 0: never; `crowd` tells when others want the processor."""
        self.while_ns, self.crowd = while_ns, crowd

    def set_while(self, while_ns: int) -> None:
        """From now on; 0: never."""
        self.while_ns = while_ns

    @property
    def looking(self) -> bool:
        """Whether the next look is one instead of sleep."""
        return self.until != 0

    @cython.ccall
    def go_on(self, now: int64_t, worked: cython.bint, found: cython.bint) -> cython.bint:
        """Whether to look again, after a look which `found` what is waited for, or at least `worked`."""
        rest: int64_t
        if found and self.worked_at:
            self.learn(now - self.worked_at)
        if found and self.until:
            self.misses = self.passes = 0
        elif self.until and not worked:
            self.vain_looks += 1
            rest = self.crowd.gives_way(now) if self.crowd is not None else 0
            if rest:
                self.rests_until = now + rest
                self.until = 0
                return False
            if now < self.until:
                return True
            self.misses = min(2 * self.misses + 1, MAX_PASSES)
            self.passes = self.misses
        self.until = 0
        if worked:
            self.worked_at = now
            if self.passes:
                self.passes -= 1
            elif self.while_ns and now >= self.rests_until:
                self.until = now + self.length()
        return self.until != 0

    @cython.cfunc
    def length(self) -> int64_t:
        """One that finds what comes after the usual gap; where none would, the one asked for."""
        longest: int64_t = STRETCH * self.while_ns
        return min(max(self.while_ns, 3 * self.gap // 2), longest) if 8 * self.gap < 7 * longest else self.while_ns

    @cython.cfunc
    def learn(self, gap: int64_t) -> cython.void:
        """A pause counts as the longest while at most, that it does not hide what comes after."""
        self.gap += (min(gap, STRETCH * self.while_ns) - self.gap) >> SHIFT
        if gap < self.length():
            self.passes = 0          # it would have been found
