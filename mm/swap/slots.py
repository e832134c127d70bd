"""The slots of a swap device, a page each: given out in runs, and shared by counting (fork) until the last user has left."""

import cython
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.mm.swap.runs import NONE, RunMap
from cython.cimports.mm.swap.sys import (
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)

from mm.swap.errors import SwapFull

if not cython.compiled:
    raise ImportError("mm.swap.slots must be compiled: python setup.py build_ext --inplace")

_MOST_USERS = cython.declare(uint32_t, 0xFFFFFFFF)


@cython.final
@cython.cclass
class SlotTable:
    """Slots 0 to `count` - 1. Several threads may use it, with or without the GIL."""

    def __cinit__(self, count: int):
        pthread_mutex_init(cython.address(self.lock), cython.NULL)
        self.runs = RunMap(count)
        self.users = cython.cast(cython.pointer[uint32_t], calloc(count, 4))
        if self.users == cython.NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.users)
        pthread_mutex_destroy(cython.address(self.lock))

    @property
    def count(self) -> int:
        """All there are."""
        return self.runs.count

    @property
    def free(self) -> int:
        return self.runs.free

    def allocate(self, count: int) -> int:
        """The first of `count` slots in one run, with one user each. Raises SwapFull when no run is so long."""
        first, got = self.allocate_run(count)
        if got < count:
            self.release(first, got)
            raise SwapFull(f"no {count} slots in one run: {self.free} of {self.count} are free")
        return first

    def allocate_run(self, most: int) -> tuple[int, int]:
        """A run of slots as long as there is one, up to `most`, as (first, how many). Raises SwapFull when none is free."""
        got: uint32_t = 0
        first: int64_t
        if not 0 < most <= self.runs.count:
            raise ValueError(f"{most} slots of {self.runs.count}")
        first = self.take(most, cython.address(got))
        if first == NONE:
            raise SwapFull(f"all {self.count} slots are in use")
        return first, got

    def share(self, first: int, count: int) -> None:
        """One user more of each. Raises ValueError when one of them is nobody's."""
        self._check(first, count)
        if not self.join(first, count):
            raise ValueError(f"of slots {first} to {first + count - 1} some are nobody's: only what is in use can be shared")

    def release(self, first: int, count: int) -> int:
        """One user less of each; how many are free by that. Raises ValueError when one of them is nobody's."""
        left: uint8_t = 0
        slot: uint32_t
        freed: cython.int = 0
        self._check(first, count)
        if not self.has(first, count):
            raise ValueError(f"of slots {first} to {first + count - 1} some are nobody's")
        for slot in range(first, first + count):
            if self.leave(slot, 1, cython.address(left)):
                self.give(slot, 1)
                freed += 1
        return freed

    def users_of(self, slot: int) -> int:
        """How many there are; 0: it is free."""
        self._check(slot, 1)
        return self.users[slot]

    def held(self) -> list[tuple[int, int]]:
        """The runs that are in use, as (first, how many): after everybody has left, what was forgotten."""
        found = []
        at: uint32_t = 0
        stop: uint32_t
        pthread_mutex_lock(cython.address(self.lock))
        while at < self.runs.count:
            at = self.runs.next_taken(at, self.runs.count)
            stop = self.runs.next_free(at)
            if stop > at:
                found.append((at, stop - at))
            at = stop
        pthread_mutex_unlock(cython.address(self.lock))
        return found

    def _check(self, first: int, count: int) -> None:
        if first < 0 or count < 1 or first + count > self.runs.count:
            raise ValueError(f"{count} slots from {first} on: there are {self.runs.count}")

    # for those who have no GIL

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def take(self, want: uint32_t, got: cython.pointer[uint32_t]) -> int64_t:
        """The first of a run of up to `want` slots, `got`, with one user each; NONE when none is free."""
        first: int64_t
        slot: uint32_t
        pthread_mutex_lock(cython.address(self.lock))
        first = self.runs.take(want, got)
        if first != NONE:
            for slot in range(cython.cast(uint32_t, first), cython.cast(uint32_t, first) + got[0]):
                self.users[slot] = 1
        pthread_mutex_unlock(cython.address(self.lock))
        return first

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def join(self, first: uint32_t, count: uint32_t) -> cython.bint:
        """One user more of each; False, and none is changed, when one of them is nobody's or has no room for more."""
        slot: uint32_t
        fits: cython.bint = True
        pthread_mutex_lock(cython.address(self.lock))
        for slot in range(first, first + count):
            fits = fits and self.users[slot] != 0 and self.users[slot] != _MOST_USERS
        if fits:
            for slot in range(first, first + count):
                self.users[slot] += 1
            self.shared += count
        pthread_mutex_unlock(cython.address(self.lock))
        return fits

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def leave(self, first: uint32_t, count: uint32_t, left: cython.pointer[uint8_t]) -> cython.int:
        """One user less of each; how many were left by their last one, which `left` tells of each.

        Those still count as taken until `give`, so that nobody gets one of which something is still to be cleared.
        """
        i: uint32_t
        freed: cython.int = 0
        pthread_mutex_lock(cython.address(self.lock))
        for i in range(count):
            left[i] = self.users[first + i] == 1
            if self.users[first + i]:
                self.users[first + i] -= 1
            freed += left[i]
        pthread_mutex_unlock(cython.address(self.lock))
        return freed

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def give(self, first: uint32_t, count: uint32_t) -> cython.void:
        """Slots that the last user has left are free."""
        pthread_mutex_lock(cython.address(self.lock))
        self.runs.give(first, count)
        pthread_mutex_unlock(cython.address(self.lock))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def has(self, first: uint32_t, count: uint32_t) -> cython.bint:
        """Whether all of them are in use."""
        slot: uint32_t
        if count == 0 or first >= self.runs.count or count > self.runs.count - first:
            return False
        for slot in range(first, first + count):
            if self.users[slot] == 0:
                return False
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def hold(self, at: uint32_t, end: uint32_t, smallest: uint32_t, got: cython.pointer[uint32_t]) -> uint32_t:
        """See `RunMap.hold`: nobody gets these slots until `let_go`, nor has them."""
        pthread_mutex_lock(cython.address(self.lock))
        at = self.runs.hold(at, end, smallest, got)
        pthread_mutex_unlock(cython.address(self.lock))
        return at

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def let_go(self, first: uint32_t, count: uint32_t) -> cython.void:
        pthread_mutex_lock(cython.address(self.lock))
        self.runs.give(first, count)
        pthread_mutex_unlock(cython.address(self.lock))
