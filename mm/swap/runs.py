"""Which places are taken, given out in runs: a bit for each, and a hand that goes round."""

import cython
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.mm.hw import trailing_zeros

if not cython.compiled:
    raise ImportError("mm.swap.runs must be compiled: python setup.py build_ext --inplace")

MOST = (1 << 32) - 64
_ALL = cython.declare(uint64_t, 0xFFFFFFFFFFFFFFFF)
_ONE = cython.declare(uint64_t, 1)


@cython.cclass
class RunMap:
    """Places 0 to `count` - 1. Not locked: whoever has it locks."""

    def __cinit__(self, count: int):
        place: uint32_t
        word: uint32_t
        if not 0 < count <= MOST:
            raise ValueError(f"{count} places: 1 to {MOST} are possible")
        self.count = self.free = count
        self.words = (self.count + 63) // 64
        self.taken = cython.cast(cython.pointer[uint64_t], calloc(self.words, 8))
        self.full = cython.cast(cython.pointer[uint64_t], calloc((self.words + 63) // 64, 8))
        if self.taken == cython.NULL or self.full == cython.NULL:
            raise MemoryError
        for place in range(self.count, self.words * 64):
            self.taken[place >> 6] |= _ONE << (place & 63)
        for word in range(self.words, (self.words + 63) // 64 * 64):
            self.full[word >> 6] |= _ONE << (word & 63)

    def __dealloc__(self):
        free(self.taken)
        free(self.full)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def take(self, want: uint32_t, got: cython.pointer[uint32_t]) -> int64_t:
        """The first of a run of `got` free places, at most `want`, now taken; NONE when nothing is free.

        The first run that is long enough behind the last one that was given out, else the longest of those looked at.
        """
        at: uint32_t = self.hand
        best: uint32_t = 0
        best_at: uint32_t = 0
        looks: cython.int = 0
        wrapped: cython.bint = False
        stop: uint32_t
        got[0] = 0
        if self.free == 0 or want == 0:
            return NONE
        while best < want and looks < LOOK:
            at = self.next_free(at)
            if at == self.count:
                if wrapped:
                    break
                wrapped = True
                at = 0
                continue
            if wrapped and at >= self.hand and best:
                break
            stop = self.next_taken(at, cython.cast(uint32_t, min(cython.cast(uint64_t, at) + want, self.count)))
            if stop - at > best:
                best, best_at = stop - at, at
            at = stop
            looks += 1
        self._mark(best_at, best)
        self.hand = best_at + best if best_at + best < self.count else 0
        got[0] = best
        return best_at

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def hold(self, at: uint32_t, end: uint32_t, smallest: uint32_t, got: cython.pointer[uint32_t]) -> uint32_t:
        """The first of a run of at least `smallest` free places from `at` on, now taken; `end` and 0: there is none."""
        stop: uint32_t
        got[0] = 0
        while at < end:
            at = min(self.next_free(at), end)
            stop = self.next_taken(at, end)
            if stop - at >= smallest and stop > at:
                got[0] = stop - at
                self._mark(at, got[0])
                return at
            at = stop
        return end

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _mark(self, first: uint32_t, count: uint32_t) -> cython.void:
        place: uint64_t
        end: uint64_t = cython.cast(uint64_t, first) + count
        word: uint32_t
        self.free -= count
        place = first
        while place < end:
            word = cython.cast(uint32_t, place >> 6)
            self.taken[word] |= _mask(place, end)
            if self.taken[word] == _ALL:
                self.full[word >> 6] |= _ONE << (word & 63)
            place = (place | 63) + 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def give(self, first: uint32_t, count: uint32_t) -> cython.void:
        """Places that are taken are free again."""
        end: uint64_t = cython.cast(uint64_t, first) + count
        place: uint64_t = first
        word: uint32_t
        self.free += count
        while place < end:
            word = cython.cast(uint32_t, place >> 6)
            self.taken[word] &= ~_mask(place, end)
            self.full[word >> 6] &= ~(_ONE << (word & 63))
            place = (place | 63) + 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def next_free(self, at: uint32_t) -> uint32_t:
        """The first free place from `at` on; `count` when there is none."""
        word: uint32_t = at >> 6
        bits: uint64_t
        if at >= self.count:
            return self.count
        bits = ~self.taken[word] & (_ALL << (at & 63))
        if bits == 0:
            word = self._next_word(word + 1)
            if word >= self.words:
                return self.count
            bits = ~self.taken[word]
        return word * 64 + trailing_zeros(bits)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _next_word(self, word: uint32_t) -> uint32_t:
        """The first word from this one on with a free place; `words` or more when there is none."""
        bits: uint64_t
        if word >= self.words:
            return self.words
        bits = ~self.full[word >> 6] & (_ALL << (word & 63))
        word >>= 6
        while bits == 0:
            word += 1
            if word * 64 >= self.words:
                return self.words
            bits = ~self.full[word]
        return word * 64 + trailing_zeros(bits)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def next_taken(self, at: uint32_t, end: uint32_t) -> uint32_t:
        """The first taken place from `at` on and before `end`; `end` when there is none."""
        bits: uint64_t
        word: uint32_t = at >> 6
        if at >= end:
            return end
        bits = self.taken[word] & (_ALL << (at & 63))
        while bits == 0:
            word += 1
            if word * 64 >= end:
                return end
            bits = self.taken[word]
        return min(word * 64 + trailing_zeros(bits), end)


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _mask(place: uint64_t, end: uint64_t) -> uint64_t:
    """The bits of one word: from `place` to its end, or to `end`."""
    bits: uint64_t = _ALL << (place & 63)
    if end < (place | 63) + 1:
        bits &= (_ONE << (end & 63)) - 1
    return bits
