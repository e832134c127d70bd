"""Whether who reads a page from swap writes it right afterwards, as counters, lists and collectors of garbage do.

A page that comes for a reader is protected and keeps its slot, so its first write is one more fault. Where most pages are
written while the next few come, they had better be writable from the start, and be written to swap again when they leave.
Some come protected all the same, to see whether that still holds.
"""

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t

if not cython.compiled:
    raise ImportError("mm.paging.writers must be compiled: python setup.py build_ext --inplace")

_WHOLE = cython.declare(uint32_t, 256)
_ENOUGH = cython.declare(uint32_t, 192)         # three of four: to write a page to swap for nothing costs as much as a fault
_WEIGHT_BITS = cython.declare(uint32_t, 4)      # of the latest sample: a sixteenth


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def guess_written(guess: cython.pointer[WriteGuess]) -> cython.bint:
    """Whether the page that comes now is to be writable."""
    if guess.share < _ENOUGH:
        return False
    guess.unsampled += 1
    return guess.unsampled % SAMPLES != 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def guess_sample(guess: cython.pointer[WriteGuess], page: uint64_t) -> cython.void:
    """One has come for a reader, protected."""
    if guess.pages[guess.at]:
        guess.share -= guess.share >> _WEIGHT_BITS
    guess.pages[guess.at] = page
    guess.at = (guess.at + 1) % SAMPLES


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def guess_seen(guess: cython.pointer[WriteGuess], page: uint64_t) -> cython.void:
    """A protected page is written."""
    i: uint32_t
    for i in range(SAMPLES):
        if guess.pages[i] == page:
            guess.pages[i] = 0
            guess.share += (_WHOLE - guess.share) >> _WEIGHT_BITS


@cython.final
@cython.cclass
class Writers:
    """The same for tests."""

    def expected(self) -> bool:
        """Whether the page that comes now is to be writable."""
        return guess_written(cython.address(self.guess))

    def came(self, page: int) -> None:
        """A page has come for a reader, protected."""
        guess_sample(cython.address(self.guess), page)

    def written(self, page: int) -> None:
        """A protected page is written."""
        guess_seen(cython.address(self.guess), page)
