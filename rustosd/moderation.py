"""Whether what comes may wait a moment for more of it, as NICs moderate their interrupts. Compiled: each turn asks."""

import cython
from cython.cimports.libc.stdint import int64_t, uint64_t
from cython.cimports.mm.crowd import Crowd
from cython.cimports.mm.hw import now_ns

if not cython.compiled:
    raise ImportError("rustosd.moderation must be compiled: python setup.py build_ext --inplace")


@cython.final
@cython.cclass
class Moderation:
    """Where others wait for a processor, a turn that worked is followed by a rest, in which nobody has to wake us.

    To be woken for each frame and each message costs whoever sends it, and us, as much as to carry it; and who waits for a
    processor meanwhile has more to send soon. A rest ends early when nobody waits any more. One that gathers little doubles
    the number of chances that are let pass before the next, and one that pays forgets them: who goes to and fro alone is
    not kept waiting.
    """

    def __init__(self, most_ns: int, crowd: Crowd | None) -> None:
        """No rest is much longer than `most_ns`; 0: there is none."""
        self.most_ns, self.crowd = most_ns, crowd

    def set_most(self, most_ns: int) -> None:
        """From now on; 0: no rests."""
        self.most_ns = most_ns

    @cython.ccall
    def due(self, now: int64_t) -> cython.bint:
        """Whether to rest before the next look, to be asked after work."""
        pause: int64_t
        if self.most_ns == 0 or self.crowd is None:
            return False
        if now >= self.crowded_until:
            pause = self.crowd.gives_way(now)
            if pause == 0:
                return False
            self.crowded_until = now + pause
        if self.passes:
            self.passes -= 1
            return False
        return True

    @cython.ccall
    def gathered(self, count: uint64_t) -> cython.bint:
        """There was so much to take after a rest; whether that was worth it."""
        if count >= WORTH:
            self.misses = 0
            return True
        self.misses = self.passes = min(2 * self.misses + 1, PASSES_MOST)
        return False

    @cython.cfunc
    @cython.exceptval(check=False)
    def rest(self, now: int64_t) -> int64_t:
        """Sleep while others wait for a processor; the time after that."""
        slice: timespec
        latest: int64_t = now + self.most_ns
        slice.tv_sec = 0
        self.rests += 1
        prctl(PR_SET_TIMERSLACK, 1)             # by default sleep may take 50 us longer than asked for
        while now < latest:
            slice.tv_nsec = min(latest - now, SLICE_NS)
            with cython.nogil:
                nanosleep(cython.address(slice), cython.NULL)
            now = now_ns()
            if not self.crowd.look():
                break
        prctl(PR_SET_TIMERSLACK, 0)             # the default again: what is started by this thread has it as well
        return now
