"""A disk with a write cache that forgets: what was neither flushed nor written with FUA may be lost, sector by sector.

What is written stays in this process's memory until a flush puts it on the disk below. So a process that is killed loses all
of it, and `cut_power` loses as much as chance wants: each unflushed sector is whole or absent, in any combination.
"""

import ctypes
import errno
import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from drivers.block.layer import Asked, Layer
from drivers.disk import GONE, Disk, Feature
from drivers.request import Flag, Operation, RequestBurst

_PIECE: Final = 1 << 16
"""Octets that one write to the disk below has at most."""
_POWER_CUT: Final = (1 << 63) - 1
"""The tag of what is saved from a power cut."""


@dataclass(slots=True)
class _Flush:
    """A flush, or a write with FUA, on its way down: first these sectors, then a flush of the disk below."""

    tag: int
    runs: deque[tuple[int, list[bytes]]]
    done: list[tuple[int, bytes]] = field(default_factory=list)


class VolatileDisk(Layer):
    """Its cache has no limit. One flush goes down at a time."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self.info = replace(disk.info, features=disk.info.features & ~Feature.EXTENTS | Feature.WRITE_CACHE | Feature.FUA
                            | Feature.TRIM | Feature.WRITE_ZEROES | Feature.FAST_ZEROES)
        self.unflushed: dict[int, bytes] = {}
        self._flushes: deque[_Flush] = deque()
        self._memory = disk.allocate(_PIECE, f"{disk.name} write-back")
        self._writing = False       # one step of a flush is with the disk below

    def begin(self, burst: RequestBurst, asked: Asked) -> bool:
        """Reads go down and are amended on their way back; changes stay here."""
        size = self.info.sector_octets
        if asked.operation == Operation.READ:
            there = {lba: self.unflushed[lba] for lba in range(asked.lba, asked.lba + asked.sectors) if lba in self.unflushed}
            return self.pass_on(burst, asked, note=there)
        error = self._refused(asked)
        if error:
            self.tell(asked.tag, error)
            return True
        changed = range(asked.lba, asked.lba + asked.sectors)
        if asked.operation == Operation.WRITE:
            octets = b"".join(ctypes.string_at(address, length) for address, length in asked.segments)
            self.unflushed.update((lba, octets[i * size:(i + 1) * size]) for i, lba in enumerate(changed))
        elif asked.operation in (Operation.TRIM, Operation.WRITE_ZEROES):
            self.unflushed.update(dict.fromkeys(changed, bytes(size)))
        if asked.operation == Operation.FLUSH:
            self._flush(asked.tag, sorted(self.unflushed))
        elif asked.flags & Flag.FUA:
            self._flush(asked.tag, changed)
        else:
            self.tell(asked.tag, 0)
        return True

    def _refused(self, asked: Asked) -> int:
        total = sum(length for _, length in asked.segments)
        if asked.operation not in (Operation.WRITE, Operation.FLUSH, Operation.TRIM, Operation.WRITE_ZEROES):
            return errno.EOPNOTSUPP
        if Feature.READ_ONLY in self.info.features and asked.operation != Operation.FLUSH:
            return errno.EROFS
        wanted = asked.sectors * self.info.sector_octets if asked.operation == Operation.WRITE else 0
        inside = asked.lba + asked.sectors <= self.info.sectors and (asked.sectors > 0) == (asked.operation != Operation.FLUSH)
        return 0 if inside and total == wanted else errno.EINVAL

    def ended(self, asked: Asked, error: int, note: Any) -> None:
        """A step of a flush; or a read, which is what is below, and over it what had not got there when it began."""
        if isinstance(note, _Flush):
            self._step_ended(note, asked, error)
            return
        if not error:
            size, at = self.info.sector_octets, asked.lba * self.info.sector_octets
            for address, length in asked.segments:
                for lba in range(at // size, (at + length - 1) // size + 1):
                    if (octets := note.get(lba)) is not None:
                        begin, end = max(lba * size, at), min((lba + 1) * size, at + length)
                        ctypes.memmove(address + begin - at, octets[begin - lba * size:end - lba * size], end - begin)
                at += length
        self.tell(asked.tag, error)

    def _flush(self, tag: int, sectors: Iterable[int]) -> None:
        """Put these down, as they are now, in runs of neighbours."""
        runs: deque[tuple[int, list[bytes]]] = deque()
        most = min(_PIECE // self.info.sector_octets, self.info.max_sectors)
        for lba in sectors:
            if lba not in self.unflushed:
                continue
            if runs and runs[-1][0] + len(runs[-1][1]) == lba and len(runs[-1][1]) < most:
                runs[-1][1].append(self.unflushed[lba])
            else:
                runs.append((lba, [self.unflushed[lba]]))
        self._flushes.append(_Flush(tag, runs))
        self.wake()

    def tend(self) -> None:
        """The next step of the oldest flush: a run, or at last the flush of the disk below."""
        if not self._flushes or self._writing or self.disk.room() <= len(self._below):
            return
        flush = self._flushes[0]
        lba, run = flush.runs.popleft() if flush.runs else (0, [])
        octets = b"".join(run)
        ctypes.memmove(self._memory.address, octets, len(octets))
        operation = Operation.WRITE if run else Operation.FLUSH
        self._below.append(operation, self._next_tag, lba, len(run), [(self._memory, 0, len(octets))] if run else ())
        self._asked[self._next_tag] = Asked(operation, flush.tag, lba, len(run), 0, [], -1), flush
        flush.done += [(lba + i, sector) for i, sector in enumerate(run)]
        self._next_tag += 1
        self._writing = True
        self.disk.submit(self._below)
        self.wake()

    def _step_ended(self, flush: _Flush, asked: Asked, error: int) -> None:
        self._writing = False
        if not error and asked.operation == Operation.WRITE:
            return
        self._flushes.popleft()
        if not error:
            for lba, octets in flush.done:
                if self.unflushed.get(lba) is octets:       # and was not written once more
                    del self.unflushed[lba]
        self.tell(flush.tag, error)

    def arm(self) -> bool:
        """False also while a flush has its next step before it."""
        return not (self._flushes and not self._writing) and super().arm()

    def cut_power(self, chance: random.Random) -> None:
        """Lose what chance wants of what is not flushed, and be gone; requests under way never end."""
        burst = RequestBurst()
        self.gone = True
        for lba, octets in sorted(self.unflushed.items()):
            if chance.random() < 0.5:
                ctypes.memmove(self._memory.address, octets, len(octets))
                burst.append(Operation.WRITE, _POWER_CUT, lba, 1, [(self._memory, 0, len(octets))])
                self._carry_out(burst)
        self.unflushed.clear()
        self._ended.clear()

    def _carry_out(self, burst: RequestBurst) -> None:
        """One request, waited for: nothing else goes on any more."""
        while len(burst):
            self.disk.submit(burst)
            if self.disk.complete(self._done) == GONE:
                return
        while not any(tag == _POWER_CUT for tag, _ in self._done.items()):
            if self.disk.complete(self._done) == GONE:
                return
