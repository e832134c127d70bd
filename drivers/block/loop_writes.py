"""When the loop may write into the page cache itself although the filesystem, ext4, cannot say that it would block.

It copies and goes on, nearly always. It waits where the kernel throttles whoever makes memory dirty, where the journal is
being committed, or where the filesystem is frozen. So the loop writes only while the kernel is far from throttling, and
after a write that made it sleep it leaves the next ones to a helper thread, for a hundred times as long as that took: it
loses no more than a hundredth of its time.
"""

import os
import re

import cython
from cython.cimports.drivers.block.loop_writes import (
    AT_ONCE_LEAST,
    AT_ONCE_MOST,
    LOOK_AGAIN_NS,
    RUSAGE_THREAD,
    SLOW_NS,
    TIMES,
    getrusage,
    rusage,
)
from cython.cimports.libc.stdint import int64_t
from cython.cimports.mm.hw import now_ns

if not cython.compiled:
    raise ImportError("drivers.block.loop_writes must be compiled: python setup.py build_ext --inplace")

_FIGURES = re.compile(rb"^(nr_dirty|nr_writeback|nr_dirty_threshold|nr_dirty_background_threshold) (\d+)$", re.MULTILINE)
_PAGE = os.sysconf("SC_PAGE_SIZE")


def dirty_room(vmstat: str = "/proc/vmstat") -> int:
    """How many more octets of dirty memory there may be before the kernel slows down whoever makes it; 0: unknown.

    It begins half-way between the two thresholds: `balance_dirty_pages` in mm/page-writeback.c.
    """
    try:
        with open(vmstat, "rb") as file:
            found = {name: int(pages) for name, pages in _FIGURES.findall(file.read())}
        begins = (found[b"nr_dirty_threshold"] + found[b"nr_dirty_background_threshold"]) // 2
        return max(begins - found[b"nr_dirty"] - found[b"nr_writeback"], 0) * _PAGE
    except (OSError, KeyError):
        return 0


@cython.final
@cython.cclass
class LoopWrites:
    """For the writes of one disk: `may` before each, `wrote` after it, `burst_over` before the thread does something else."""

    def __init__(self):
        self.room = dirty_room

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def may(self, octets: int64_t) -> cython.bint:
        """Whether the loop is to write so many itself."""
        now: int64_t
        usage: rusage
        if self.began == 0:
            now = now_ns()
            if now < self.not_before:
                return False
            if self.left < octets:
                with cython.gil:
                    self._refill(now)
            getrusage(RUSAGE_THREAD, cython.address(usage))
            self.sleeps = usage.ru_nvcsw
            self.began = now
        if self.left < octets or self.not_before > self.began:
            return False
        self.left -= octets
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def wrote(self) -> cython.void:
        """See whether that made the thread wait."""
        usage: rusage
        now: int64_t = now_ns()
        if now - self.began > SLOW_NS:
            getrusage(RUSAGE_THREAD, cython.address(usage))
            self.judge(now, now - self.began, usage.ru_nvcsw != self.sleeps)
            self.sleeps = usage.ru_nvcsw
        self.began = now

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def judge(self, now: int64_t, took: int64_t, slept: cython.bint) -> cython.void:
        """A write took so long; who was only kept from a processor meanwhile has not waited for the disk."""
        if slept:
            self.held_up += 1
            self.not_before = now + TIMES * took

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def burst_over(self) -> cython.void:
        """From here on the thread sleeps for other reasons."""
        self.began = 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _refill(self, now: int64_t) -> cython.void:
        """Half of the room, for others write as well; at most AT_ONCE_MOST."""
        self.left = min(self.room() // 2, AT_ONCE_MOST)
        if self.left < AT_ONCE_LEAST:
            self.left = 0
            self.not_before = now + LOOK_AGAIN_NS
