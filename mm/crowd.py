"""Whether more want to run than there are processors: then whoever looks again instead of sleeping is in somebody's way.

The scheduler moves what waits only to a processor that is idle, so to yield one's own is not enough: who looks must sleep.
"""

import os

import cython
from cython.cimports.libc.stdint import int64_t
from cython.cimports.posix.unistd import close

if not cython.compiled:
    raise ImportError("mm.crowd must be compiled: python setup.py build_ext --inplace")

LOADS = "/proc/loadavg"                     # proc(5): the fourth field is how many run or want to, and of how many
_PERIOD_NS = cython.declare(int64_t, 200_000)
_SHORTEST_NS = cython.declare(int64_t, 10_000_000)
_LONGEST_NS = cython.declare(int64_t, 160_000_000)
_ALONE = cython.declare(cython.int, 64)     # looks in a row without a crowd after which pauses are short again
_WHOLE = cython.declare(cython.int, 256)
_ENOUGH = cython.declare(cython.int, 96)    # four in a row, or more than a third of them
_MANY = cython.declare(cython.int, 1_000_000)
_TEXT = cython.declare(cython.int, 64)
_SPACE = cython.declare(cython.char, 32)
_ZERO = cython.declare(cython.char, 48)
_NINE = cython.declare(cython.char, 57)


@cython.final
@cython.cclass
class Crowd:
    """Asks the kernel from time to time. Each time there is one, the pause after which it is worth another try doubles."""

    def __cinit__(self) -> None:
        self.file = -1

    def __init__(self, path: str = LOADS, processors: int = 0) -> None:
        """Raises OSError where the kernel does not tell."""
        self.file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.processors = processors or os.sysconf("SC_NPROCESSORS_ONLN")
        self.pause = _SHORTEST_NS

    def __dealloc__(self) -> None:
        if self.file >= 0:
            close(self.file)

    def ask(self, now: int64_t) -> int64_t:
        """How long to give way, ns, to be asked while a processor is used for waiting; 0: nobody else wants it."""
        return self.gives_way(now)

    @cython.cfunc
    @cython.exceptval(check=False)
    def gives_way(self, now: int64_t) -> int64_t:
        pause: int64_t = self.pause
        if now - self.asked_at < _PERIOD_NS:
            return 0
        self.asked_at = now
        if self.look():
            self.alone = 0
            self.share += (_WHOLE - self.share) >> 3
        else:
            self.share -= self.share >> 3
            self.alone += 1
            if self.alone == _ALONE:
                self.pause = _SHORTEST_NS
        if self.share < _ENOUGH:
            return 0
        self.share = 0
        self.pause = min(2 * pause, _LONGEST_NS)
        return pause

    @cython.cfunc
    @cython.exceptval(check=False)
    def look(self) -> cython.bint:
        """Whether there is one now: we ourselves are among those who run."""
        text: cython.char[64]
        got: cython.Py_ssize_t = pread(self.file, text, _TEXT, 0)
        running: cython.int = 0
        spaces: cython.int = 0
        k: cython.Py_ssize_t
        for k in range(got):
            if text[k] == _SPACE:
                spaces += 1
            elif spaces == 3:
                if not _ZERO <= text[k] <= _NINE:
                    break
                running = min(10 * running + (text[k] - _ZERO), _MANY)
        return running > self.processors


def or_none() -> Crowd | None:
    """One, or None where the kernel does not tell."""
    try:
        return Crowd()
    except OSError:
        return None
