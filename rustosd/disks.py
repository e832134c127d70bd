"""Disks on the event loop: any `drivers.disk.Disk` with awaitable reads, writes and flushes, and a measurement."""

import asyncio
import errno
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from drivers.device import DmaMemory
from drivers.disk import GONE, Disk, DiskError
from drivers.request import CompletionBurst, Operation, RequestBurst
from drivers.workload import Workload
from rustosd.busy_poll import BusyPoll

CHUNK: Final = 128 << 10
CHUNKS: Final = 32
"""Buffers for `read` and `write`: at most 4 MiB a disk, taken as they are needed."""
LONGEST: Final = 64 << 20
"""Octets of one `read` or `write`: its caller has them all in memory at once."""
BUDGET: Final = 16
"""Bursts in one turn, before the loop's other callbacks get their share."""
LOOKS: Final = 16
"""Vain looks for completions in a row: some microseconds."""
BUSY_POLL_NS: Final = 100_000
"""How long completions are looked for before sleep: a solid-state disk's read takes no longer."""

_WHY: Final = {
    errno.EINVAL: "it does not fit the disk: beyond its end, or no whole sectors",
    errno.EOPNOTSUPP: "the disk cannot do that",
    errno.ENODATA: "the medium is damaged there: restore these sectors from a copy; writing them makes them readable again",
    errno.ENOMEDIUM: "nothing is in the drive, or another disc than before",
    errno.EROFS: "the disk is write-protected",
    errno.EILSEQ: "the link garbles data: check or replace the SATA cable",
    errno.EFAULT: "the controller could not reach the memory: see `dmesg` for faults of the IOMMU",
    errno.ETIMEDOUT: "it did not answer in time and was reset: check cable, power and its SMART values",
    errno.ENODEV: "the disk is gone: was it unplugged?",
    errno.EIO: "the disk says that it failed: check its SMART values",
}


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What a measurement found. Latencies in microseconds, from submission to completion."""

    pattern: str
    block_octets: int
    depth: int
    seconds: float
    operations: int
    errors: int
    iops: float
    mb_per_s: float
    mean_us: float
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    longest_us: float
    histogram: tuple[tuple[float, int], ...]
    """(below so many microseconds, requests), by time, without empty ones; several results can be added up."""


@dataclass(slots=True)
class _Waiting:
    """A request on its way; `ended` gets None, or a DiskError."""

    operation: Operation
    lba: int
    sectors: int
    segments: Sequence[tuple[DmaMemory, int, int]]
    fua: bool
    ended: asyncio.Future


class AsyncDisk:
    """A disk for many tasks of one loop. Requests that are made together are done in any order.

    The disk belongs to it until `close`. Cancelling a task does not cancel its requests: they end unseen.
    """

    def __init__(self, disk: Disk, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.disk, self.info = disk, disk.info
        self._loop = loop or asyncio.get_running_loop()
        self._requests, self._completions = RequestBurst(), CompletionBurst()
        self._queue: deque[_Waiting] = deque()
        self._under_way: dict[int, _Waiting] = {}
        self._tag = 0
        self._buffers: list[DmaMemory] = []         # free ones
        self._buffer_count = 0
        self._buffer_waiters: deque[asyncio.Future] = deque()
        self._workload: Workload | None = None
        self._scheduled = self._closed = self._gone = False
        self._poll = BusyPoll(BUSY_POLL_NS)
        self._timer: asyncio.TimerHandle | None = None
        self._fd = disk.fileno()
        self._loop.add_reader(self._fd, self._turn)

    def __repr__(self) -> str:
        return f"<AsyncDisk {self.info.name} {self.info.model}>"

    async def read(self, lba: int, sectors: int) -> bytes:
        """`sectors` sectors from `lba` on. Raises DiskError, ValueError for more than LONGEST octets."""
        pieces = self._pieces(lba, sectors)
        return b"".join(await _all(self._read_piece(*piece) for piece in pieces))

    async def write(self, lba: int, octets: bytes | memoryview, *, fua: bool = False) -> None:
        """Write whole sectors; durable only after `flush`, or with `fua`. Raises DiskError, ValueError."""
        size = self.info.sector_octets
        view = memoryview(octets).cast("B")
        if len(view) % size:
            raise ValueError(f"{len(view)} octets are not whole sectors of {size}")
        pieces = self._pieces(lba, len(view) // size)
        await _all(self._write_piece(start, view[(start - lba) * size:(start - lba + count) * size], fua)
                   for start, count in pieces)

    async def flush(self) -> None:
        """Make everything durable whose `write` has returned. Raises DiskError."""
        await self.submit(Operation.FLUSH)

    def submit(self, operation: Operation, lba: int = 0, sectors: int = 0,
               segments: Sequence[tuple[DmaMemory, int, int]] = (), *, fua: bool = False) -> asyncio.Future:
        """One request straight from or to the caller's memory (of `allocate`), which stays the disk's until it has ended.

        The future ends with None or DiskError. Cancelling it gives the memory back no sooner.
        """
        waiting = _Waiting(Operation(operation), lba, sectors, segments, fua, self._loop.create_future())
        if self._closed or self._gone:
            waiting.ended.set_exception(self._error(waiting, errno.ENODEV))
        else:
            self._queue.append(waiting)
            self._schedule()
        return waiting.ended

    def allocate(self, octets: int, owner: str) -> DmaMemory:
        """Memory for `submit`. Raises DeviceError."""
        return self.disk.allocate(octets, owner)

    async def bench(self, pattern: str = "random", block_octets: int = 4096, depth: int = 32,
                    seconds: float = 5.0) -> BenchResult:
        """Read for so long with `depth` requests under way, "random" or "sequential". One at a time.

        Raises ValueError, DiskError when not a single request succeeds.
        """
        if self._workload is not None:
            raise ValueError(f"{self.info.name} is being measured already")
        if self._closed or self._gone:
            raise DiskError(self.info.name, errno.ENODEV, _WHY[errno.ENODEV])
        memory = self.disk.allocate(max(block_octets, 1) * max(depth, 1), f"bench {self.info.name}")
        work = None
        try:
            work = self._workload = Workload(memory, self.info.sectors, self.info.sector_octets, pattern, block_octets, depth,
                                             time.monotonic_ns())
            began = time.monotonic()
            self._schedule()
            await asyncio.sleep(seconds)
            took = time.monotonic() - began
            result = _result(work, pattern, block_octets, took)
        finally:
            if work is not None:
                await self._drain(work)
                self._workload = None
            memory.free()
        if result.errors == result.operations:
            raise DiskError(self.info.name, errno.EIO, f"no read of {result.operations} succeeded")
        return result

    def statistics(self) -> dict[str, int]:
        """The disk's counters, and how many requests wait for room."""
        return self.disk.statistics() | {"waiting": len(self._queue), "under_way": len(self._under_way)}

    def close(self) -> None:
        """End what is under way with ENODEV and close the disk. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._fd)
        if self._timer is not None:
            self._timer.cancel()
        self.disk.close()       # from here on no memory of ours is the disk's
        self._fail_all()
        for buffer in self._buffers:
            buffer.free()
        self._buffers.clear()

    # Pieces: what one buffer holds.

    def _pieces(self, lba: int, sectors: int) -> list[tuple[int, int]]:
        size = self.info.sector_octets
        if sectors < 0 or lba < 0 or sectors * size > LONGEST:
            raise ValueError(f"{sectors} sectors at {lba}: at most {LONGEST // size} at a time")
        step = CHUNK // size
        return [(start, min(step, lba + sectors - start)) for start in range(lba, lba + sectors, step)]

    async def _read_piece(self, lba: int, sectors: int) -> bytes:
        octets = sectors * self.info.sector_octets
        buffer = await self._take_buffer()
        ended = self.submit(Operation.READ, lba, sectors, ((buffer, 0, octets),))
        try:
            await asyncio.shield(ended)
            with buffer.view() as view:
                return bytes(view[:octets])
        finally:
            self._return_buffer(buffer, ended)

    async def _write_piece(self, lba: int, octets: memoryview, fua: bool) -> None:
        buffer = await self._take_buffer()
        with buffer.view() as view:
            view[:len(octets)] = octets
        ended = self.submit(Operation.WRITE, lba, len(octets) // self.info.sector_octets, ((buffer, 0, len(octets)),), fua=fua)
        try:
            await asyncio.shield(ended)
        finally:
            self._return_buffer(buffer, ended)

    async def _take_buffer(self) -> DmaMemory:
        while not self._buffers:
            if self._buffer_count < CHUNKS:
                self._buffer_count += 1
                return self.disk.allocate(CHUNK, f"{self.info.name} buffers")
            waiter = self._loop.create_future()
            self._buffer_waiters.append(waiter)
            await waiter
        return self._buffers.pop()

    def _return_buffer(self, buffer: DmaMemory, ended: asyncio.Future) -> None:
        """Once the request has ended; its task may be gone by then."""
        if not ended.done():
            ended.add_done_callback(lambda ended: self._return_buffer(buffer, ended))
            return
        if not ended.cancelled():
            ended.exception()       # seen
        if self._closed:
            buffer.free()
            return
        self._buffers.append(buffer)
        while self._buffer_waiters:
            waiter = self._buffer_waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    # Turns.

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._scheduled_turn)

    def _scheduled_turn(self) -> None:
        self._scheduled = False
        self._turn()

    def _turn(self) -> None:
        """Submit and complete as long as there is something to do, look on for a moment; then sleep on the descriptor."""
        if self._closed or self._gone:
            return
        submitted = completed = False
        for _ in range(BUDGET):
            busy = self._submit()
            submitted |= busy
            count = self._look()
            if count == GONE:
                self._lose()
                return
            if count:
                completed = True
                self._tell()
            elif not busy:
                break
        else:
            self._schedule()
            return
        if self._waits() and self._poll.go_on(time.monotonic_ns(), submitted or completed, completed):
            self._schedule()
            return
        if not self.disk.arm():
            self._schedule()
            return
        self._set_timer()

    def _waits(self) -> bool:
        """Whether the disk has anything to complete."""
        return bool(self._under_way) or (self._workload is not None and self._workload.under_way > 0)

    def _look(self) -> int:
        """What `complete` says. A look costs less than a turn of the loop, so a vain one is followed by some more at once."""
        for _ in range(LOOKS if self._waits() else 1):
            if count := self.disk.complete(self._completions):
                return count
        return 0

    def _submit(self) -> bool:
        """Give the disk what it has room for; whether that was anything."""
        requests, room = self._requests, self.disk.room()
        while self._queue and len(requests) < room:
            waiting = self._queue[0]
            self._tag += 1
            try:
                if not requests.append(waiting.operation, self._tag, waiting.lba, waiting.sectors, waiting.segments,
                                       fua=waiting.fua):
                    break
            except (ValueError, OverflowError) as error:
                self._queue.popleft()
                waiting.ended.cancelled() or waiting.ended.set_exception(error)
                continue
            self._queue.popleft()
            self._under_way[self._tag] = waiting
        if self._workload is not None:
            self._workload.fill(requests, room - len(requests))
        return len(requests) > 0 and self.disk.submit(requests) > 0

    def _tell(self) -> None:
        """End the futures of what is complete."""
        if self._workload is not None and not self._workload.take(self._completions):
            return
        for tag, code in self._completions.items():
            waiting = self._under_way.pop(tag, None)
            if waiting is None or waiting.ended.done():
                continue
            if code:
                waiting.ended.set_exception(self._error(waiting, code))
            else:
                waiting.ended.set_result(None)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (at := self.disk.wake_at()) is not None:
            self._timer = self._loop.call_later(max(0.0, (at - time.monotonic_ns()) / 1e9), self._turn)

    async def _drain(self, work: Workload) -> None:
        """Let a measurement's last requests end: their memory is the disk's until then."""
        work.stop()
        while work.under_way and not (self._closed or self._gone):
            self._schedule()
            await asyncio.sleep(0.001)

    def _lose(self) -> None:
        self._gone = True
        self._loop.remove_reader(self._fd)
        self._fail_all()

    def _fail_all(self) -> None:
        for waiting in [*self._under_way.values(), *self._queue]:
            if not waiting.ended.done():
                waiting.ended.set_exception(self._error(waiting, errno.ENODEV))
        self._under_way.clear()
        self._queue.clear()

    def _error(self, waiting: _Waiting, code: int) -> DiskError:
        name = waiting.operation.name.lower()
        where = "" if waiting.operation is Operation.FLUSH else f" of {waiting.sectors} sectors at {waiting.lba}"
        return DiskError(self.info.name, code, f"{name}{where} failed: {_WHY.get(code, os.strerror(code))}")


async def _all(coroutines) -> list:
    """Every result, or the first error once all have ended."""
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _result(work: Workload, pattern: str, block_octets: int, took: float) -> BenchResult:
    p50, p90, p99, p999 = (work.percentile(part) / 1e3 for part in (0.5, 0.9, 0.99, 0.999))
    return BenchResult(pattern, block_octets, work.depth, took, work.operations, work.errors, work.operations / took,
                       work.operations * block_octets / took / 1e6, work.mean() / 1e3, p50, p90, p99, p999,
                       work.longest / 1e3, tuple((below / 1e3, count) for below, count in work.buckets()))
