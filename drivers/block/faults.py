"""A disk that fails on purpose: errors, delays and torn writes, where and as often as its rules say."""

import errno
import heapq
import itertools
import random
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

from drivers.block.layer import Asked, Layer
from drivers.disk import Disk
from drivers.request import Operation, RequestBurst


@dataclass(slots=True)
class Rule:
    """Which requests, and what becomes of them. The first rule that fits a request is the one."""

    kind: Literal["error", "delay", "torn"]
    """error: it ends with `error` and the disk below never sees it. delay: it ends `delay_ns` later than it would.
    torn: of a write only so many first sectors, by chance, arrive; then it ends with `error`, or 0 for a lie."""
    operations: Collection[Operation] = frozenset(Operation)
    first: int = 0
    last: int = 1 << 62
    """Sectors; a flush is everywhere."""
    skip: int = 0
    """So many that fit pass before."""
    times: int | None = None
    """After so many it is over; None: never."""
    probability: float = 1.0
    error: int = errno.EIO
    delay_ns: int = 0
    happened: int = field(default=0, init=False)

    def fits(self, asked: Asked, chance: random.Random) -> bool:
        """Whether this request is one of its; counts it."""
        if asked.operation not in self.operations or (self.kind == "torn" and asked.operation != Operation.WRITE):
            return False
        if asked.sectors and not (asked.lba <= self.last and self.first < asked.lba + asked.sectors):
            return False
        if self.times is not None and self.happened >= self.times:
            return False
        if self.probability < 1.0 and chance.random() >= self.probability:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.happened += 1
        return True


class FaultyDisk(Layer):
    """Rules may be changed while it runs; `chance` decides what is left to it, so that a run can be repeated."""

    def __init__(self, disk: Disk, rules: Iterable[Rule] = (), *, chance: random.Random | None = None,
                 clock: Callable[[], int] = time.monotonic_ns) -> None:
        super().__init__(disk, clock)
        self.rules = list(rules)
        self.chance = chance or random.Random(0)
        self._late: list[tuple[int, int, int, int]] = []        # (due, order, tag, error), a heap
        self._order = itertools.count()

    def begin(self, burst: RequestBurst, asked: Asked) -> bool:
        """By the first rule that fits."""
        if self.disk.room() <= len(self._below):
            return False
        rule = next((rule for rule in self.rules if rule.fits(asked, self.chance)), None)
        if rule is None:
            return self.pass_on(burst, asked)
        sectors = self.chance.randrange(asked.sectors) if rule.kind == "torn" else -1
        if rule.kind == "error" or sectors == 0:
            self._end(asked.tag, rule.error, rule.delay_ns)
            return True
        return self.pass_on(burst, asked, sectors, rule)

    def ended(self, asked: Asked, error: int, note: Rule | None) -> None:
        """Now, or later; as the rule has it."""
        if note is None:
            self.tell(asked.tag, error)
        else:
            self._end(asked.tag, error or (note.error if note.kind == "torn" else 0), note.delay_ns)

    def tend(self) -> None:
        """End what is late enough."""
        now = self.clock()
        while self._late and self._late[0][0] <= now:
            _, _, tag, error = heapq.heappop(self._late)
            self.tell(tag, error)

    def room(self) -> int:
        """Those that are late have their place, too."""
        return max(super().room() - len(self._late), 0)

    def wake_at(self) -> int | None:
        """When the next late one is due."""
        own, below = self._late[0][0] if self._late else None, super().wake_at()
        return below if own is None else own if below is None else min(own, below)

    def _end(self, tag: int, error: int, delay_ns: int) -> None:
        if delay_ns:
            heapq.heappush(self._late, (self.clock() + delay_ns, next(self._order), tag, error))
        else:
            self.tell(tag, error)
