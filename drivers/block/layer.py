"""A disk on top of a disk, in Python: what it does to requests its subclasses say. For tests and rehearsals, not for speed."""

import os
import select
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from drivers.device import DmaMemory
from drivers.disk import GONE, Disk, DiskInfo
from drivers.request import CompletionBurst, Operation, RequestBurst

CHANGES = (Operation.WRITE, Operation.TRIM, Operation.WRITE_ZEROES)


class Asked(NamedTuple):
    """A request as it came, and its place in the burst it came with."""

    operation: int
    tag: int
    lba: int
    sectors: int
    flags: int
    segments: list[tuple[int, int]]
    """(address, octets)."""
    index: int


class Layer:
    """A `drivers.disk.Disk` that passes everything on. Closing it closes the disk below."""

    def __init__(self, disk: Disk, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.disk, self.clock = disk, clock
        self.name = disk.name
        self.info: DiskInfo = disk.info
        self.gone = False
        self._below = RequestBurst()
        self._done = CompletionBurst()
        self._asked: dict[int, tuple[Asked, Any]] = {}      # with the disk below, by the tag it has there
        self._next_tag = 0
        self._ended: deque[tuple[int, int]] = deque()
        self._poller = select.epoll()
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller.register(self._eventfd, select.EPOLLIN)
        if disk.fileno() >= 0:
            self._poller.register(disk.fileno(), select.EPOLLIN)

    # For subclasses.

    def begin(self, burst: RequestBurst, asked: Asked) -> bool:
        """A request has come; False when there is no room for it."""
        return self.pass_on(burst, asked)

    def ended(self, asked: Asked, error: int, note: Any) -> None:
        """What was passed on, with this note, has ended."""
        self.tell(asked.tag, error)

    def tend(self) -> None:
        """At every `complete`: whatever is due."""

    def pass_on(self, burst: RequestBurst, asked: Asked, sectors: int = -1, note: Any = None) -> bool:
        """To the disk below, or only so many sectors of it; False when there is no room."""
        if self.disk.room() <= len(self._below):
            return False
        if not burst.forward(asked.index, self._below, self._next_tag, sectors, self.info.sector_octets):
            return False
        self._asked[self._next_tag] = asked, note
        self._next_tag += 1
        return True

    def tell(self, tag: int, error: int) -> None:
        """The request has ended."""
        self._ended.append((tag, error))

    def wake(self) -> None:
        """Have whoever sleeps look again."""
        os.eventfd_write(self._eventfd, 1)

    # drivers.disk.Disk

    def submit(self, burst: RequestBurst) -> int:
        """Take requests from the burst's front as long as there is room; how many."""
        taken = 0
        for index, item in enumerate(burst.items()):
            asked = Asked(*item, index)
            if len(self._ended) >= self.info.queue_depth or not self.begin(burst, asked):
                break
            taken += 1
        burst.take(taken)
        if len(self._below):
            self.disk.submit(self._below)
        return taken

    def complete(self, burst: CompletionBurst) -> int:
        """Empty the burst and fill it with requests that have ended; how many, or GONE."""
        burst.clear()
        with suppress(OSError):
            os.eventfd_read(self._eventfd)
        if len(self._below):
            self.disk.submit(self._below)
        while not self.gone and (count := self.disk.complete(self._done)):
            if count == GONE:
                self.gone = True
                break
            for tag, error in self._done.items():
                asked, note = self._asked.pop(tag)
                self.ended(asked, error, note)
        if not self.gone:
            self.tend()
        while self._ended and burst.append(*self._ended[0]):
            self._ended.popleft()
        return GONE if self.gone and not len(burst) else len(burst)

    def room(self) -> int:
        """How many requests `submit` takes now."""
        if self.gone or len(self._ended) >= self.info.queue_depth:
            return 0
        return max(self.disk.room() - len(self._below), 0)

    def fileno(self) -> int:
        """What to wait on; -1 once closed."""
        return -1 if self._poller.closed else self._poller.fileno()

    def arm(self) -> bool:
        """Have the next completion make `fileno` readable; False when there is something to complete already."""
        return not self._ended and not self.gone and not len(self._below) and self.disk.arm()

    def wake_at(self) -> int | None:
        """When to call `complete` even if nothing was readable."""
        return self.disk.wake_at()

    def allocate(self, octets: int, owner: str) -> DmaMemory:
        """Memory for segments. Raises DeviceError."""
        return self.disk.allocate(octets, owner)

    def statistics(self) -> dict[str, int]:
        """The disk's below."""
        return self.disk.statistics()

    def close(self) -> None:
        """Close the disk below, too. May be called twice."""
        self.disk.close()
        self.gone = True
        if not self._poller.closed:
            self._poller.close()
            os.close(self._eventfd)
