"""How long threads run and how long they wait for a processor, as the kernel counts it (/proc/PID/task/TID/schedstat)."""

import contextlib
import os
from collections.abc import Iterable
from typing import Final, NamedTuple

from rustosd.scheduling import tasks

THREADS_MOST: Final = 512
"""Looked at in one sample; each costs some ten microseconds."""
BUCKETS: Final = 40


class Spent(NamedTuple):
    """Nanoseconds on a processor and in wait for one, and how often it got one."""

    run_ns: int = 0
    wait_ns: int = 0
    slices: int = 0

    def plus(self, other: "Spent") -> "Spent":
        return Spent(*(mine + its for mine, its in zip(self, other, strict=True)))

    def minus(self, other: "Spent") -> "Spent":
        return Spent(*(mine - its for mine, its in zip(self, other, strict=True)))


def spent(tid: int, pid: int | None = None) -> Spent:
    """By one thread, since it began. Raises OSError when it has ended."""
    with open(f"/proc/{tid}/schedstat" if pid is None else f"/proc/{pid}/task/{tid}/schedstat", "rb", buffering=0) as file:
        return Spent(*map(int, file.read(128).split()))


class Meter:
    """Adds up what some processes spend, also of threads that have ended since; what they spend between the last sample and
    their end is not seen.

    `waits` counts turns on a processor by what they waited for it, in buckets of powers of 2 of nanoseconds: all turns of a
    thread between two samples count with their mean.
    """

    def __init__(self) -> None:
        self.total = Spent()
        self.waits = [0] * BUCKETS
        self._threads: dict[int, Spent] = {}
        self._processes: dict[int, Spent] = {}

    def sample(self, processes: Iterable[int]) -> None:
        """Look at them now."""
        threads: dict[int, Spent] = {}
        totals: dict[int, Spent] = {}
        for pid in processes:
            totals[pid] = self._processes.get(pid, Spent())
            for tid in tasks.threads(pid):
                if len(threads) >= THREADS_MOST:
                    break
                with contextlib.suppress(OSError):
                    threads[tid] = spent(tid, pid)
                    totals[pid] = totals[pid].plus(self._since(tid, threads[tid]))
        self._threads, self._processes = threads, totals

    def of(self, pid: int) -> Spent:
        """By one process, as far as it was sampled."""
        return self._processes.get(pid, Spent())

    def _since(self, tid: int, now: Spent) -> Spent:
        before = self._threads.get(tid, Spent())
        if before.run_ns > now.run_ns or before.slices > now.slices:        # another thread has its number now
            before = Spent()
        more = now.minus(before)
        self.total = self.total.plus(more)
        if more.slices:
            self.waits[min((more.wait_ns // more.slices).bit_length(), BUCKETS - 1)] += more.slices
        return more


def own() -> Spent:
    """By this thread."""
    return spent(os.getpid(), os.getpid())
