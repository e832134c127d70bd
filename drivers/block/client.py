"""One client's end of a queue, which is a disk again: of sectors of its own size, down to single octets, with limits."""

import os
import select
import time

import cython
from cython.cimports.drivers.block.queue import Queue
from cython.cimports.drivers.block.records import LANES, MAX_SEGMENTS, OPERATIONS, QUANTUM, Ends, Lane, LaneCounters, Slot
from cython.cimports.drivers.block.sys import read
from cython.cimports.drivers.request import (
    REQUESTS,
    Completion,
    CompletionBurst,
    RequestBurst,
)
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.mm.histogram import histogram_row

from drivers.block.commands import OPERATION_NAMES
from drivers.disk import GONE, DiskInfo, Feature
from drivers.errors import DeviceError

if not cython.compiled:
    raise ImportError("drivers.block.client must be compiled: python setup.py build_ext --inplace")

DEPTH = 128
MAX_DEPTH = 4096
MAX_OCTETS = 32 << 20
"""Of one read or write; the queue splits it as the disk needs it."""
BURST_S = 0.1
"""How much of a limited rate may come at once, unless it is said."""
UNITS = (1, 512, 4096)
_DRAIN_S = 60
_REQUESTS = ("reads", "writes", "flushes", "trims", "zeroes", "extents")
_SECTORS = ("sectors_read", "sectors_written", "", "sectors_trimmed", "sectors_zeroed")
_S = 10**9


@cython.final
@cython.cclass
class Client:
    """A `drivers.disk.Disk`. All clients of a queue are one thread's, the loop's."""

    def __cinit__(self):
        self.eventfd = -1
        self.number = -1

    def __init__(self, queue: Queue, name: str, *, sector_octets: int = 0, depth: int = DEPTH, read_only: bool = False,
                 window: tuple[int, int] | None = None, weight: float = 1.0, requests_per_s: float = 0,
                 burst_requests: float = 0, octets_per_s: float = 0, burst_octets: float = 0, label: str = ""):
        """`name`: of the client, for those who look at the queue; `label`: of the disk it is, if not the queue's disk's.

        `window`: the part of the disk that is all it sees, (first octet, octets), a partition. `sector_octets`: what requests
        count in, 1 (octets), 512 or 4096; 0: the disk's. `depth`: requests it may have here. `weight`: its share of a busy
        disk, beside others'. Limits: see `limit`. Raises DeviceError, ValueError.
        """
        below = queue.disk.info
        unit = sector_octets or below.sector_octets
        begin, octets = window or (0, below.octets)
        if begin < 0 or not 0 < octets <= below.octets - begin or (begin | octets) % below.sector_octets:
            raise ValueError(f"a window of {octets} octets at {begin} is not on {below.name}, or no whole sectors")
        if unit not in (*UNITS, below.sector_octets) or octets % unit or begin % unit:
            raise ValueError(f"sectors of {unit} octets on {below.name}: 1, 512, 4096 and its own are possible")
        if not 1 <= depth <= MAX_DEPTH:
            raise ValueError(f"a depth of {depth}: 1 to {MAX_DEPTH} are possible")
        if queue.closed:
            raise DeviceError(below.name, "its queue is closed")
        self.queue, self.name = queue, name
        features = below.features | Feature.QUEUE
        if read_only:
            features |= Feature.READ_ONLY
        if Feature.READ_ONLY in features:
            features &= ~(Feature.FUA | Feature.TRIM | Feature.WRITE_ZEROES | Feature.FAST_ZEROES)
        else:
            features |= Feature.FUA | Feature.WRITE_ZEROES
        if unit > below.sector_octets:
            features &= ~Feature.EXTENTS        # they may end within a sector
        self.info = DiskInfo(label or below.name, below.model, below.serial, below.firmware, octets // unit, unit,
                             below.physical_octets, depth, features, MAX_OCTETS // unit, MAX_SEGMENTS,
                             trim_sectors=max(below.trim_sectors * below.sector_octets // unit, 1), memory_alignment=1)
        self.eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._make_lane(depth)
        self.lane.begin = begin
        self.limit(weight, requests_per_s, burst_requests, octets_per_s, burst_octets)
        self.poller = select.epoll()
        self.poller.register(self.eventfd, select.EPOLLIN)
        self._watch(True)

    @cython.cfunc
    def _make_lane(self, depth: cython.int):
        """Its place in the queue."""
        queue: Queue = self.queue
        lane: cython.pointer[Lane]
        slot: cython.pointer[Slot]
        i: cython.int
        size: uint32_t = 1
        number = next((n for n, name in enumerate(queue.names) if name is None), len(queue.names))
        if number == LANES:
            raise DeviceError(self.info.name, f"it has {LANES} clients, which is all there can be: close one")
        while size < cython.cast(uint32_t, 2 * depth):
            size *= 2
        lane = cython.cast(cython.pointer[Lane], calloc(1, cython.sizeof(Lane)))
        self.lane = lane
        if lane == cython.NULL:
            raise MemoryError
        lane.slots = cython.cast(cython.pointer[Slot], calloc(depth, cython.sizeof(Slot)))
        lane.ended = cython.cast(cython.pointer[Completion], calloc(size, cython.sizeof(Completion)))
        if lane.slots == cython.NULL or lane.ended == cython.NULL:
            raise MemoryError
        lane.ended_mask = size - 1
        for i in range(depth):
            slot = cython.address(lane.slots[i])
            slot.lane = lane
            slot.next = lane.free
            lane.free = slot
        lane.depth = lane.free_count = depth
        lane.unit = self.info.sector_octets
        lane.eventfd = self.eventfd
        lane.bounds.sectors, lane.bounds.sector_octets = self.info.sectors, self.info.sector_octets
        lane.bounds.max_sectors, lane.bounds.max_segments = self.info.max_sectors, MAX_SEGMENTS
        lane.bounds.read_only = Feature.READ_ONLY in self.info.features
        lane.bounds.trim, lane.bounds.extents = Feature.TRIM in self.info.features, Feature.EXTENTS in self.info.features
        self.number = number
        queue.names[number:number + 1] = [self.name]
        queue.lanes[number] = lane
        queue.lane_count = len(queue.names)

    @cython.cfunc
    def _watch(self, watching: cython.bint):
        """Whether the disk's descriptor wakes us. Who has nothing to do is not to be woken for others, but one always is."""
        below = self.queue.disk.fileno()
        if watching != self.watching and below >= 0:
            if watching:
                self.poller.register(below, select.EPOLLIN)
            else:
                self.poller.unregister(below)
            self.watching = watching
            self.queue.watchers += 1 if watching else -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _has_work(self) -> cython.bint:
        return self.lane.under_way != 0 or self.lane.waiting != 0 or self.lane.ended_count != 0

    @cython.cfunc
    def _free_lane(self):
        i: uint32_t
        lane: cython.pointer[Lane] = self.lane
        if lane == cython.NULL:
            return
        self.lane = cython.NULL
        if self.number >= 0:
            self.queue.names[self.number] = None
            self.queue.lanes[self.number] = cython.NULL
        for i in range(lane.depth):
            free(lane.slots[i].apart)
        free(lane.slots)
        free(lane.ended)
        free(lane)

    def __dealloc__(self):
        # One that was never closed leaves its lane to the queue, which may still have requests in it.
        if self.eventfd >= 0 and self.lane == cython.NULL:
            os.close(self.eventfd)

    def limit(self, weight: float = 1.0, requests_per_s: float = 0, burst_requests: float = 0, octets_per_s: float = 0,
              burst_octets: float = 0) -> None:
        """From now on: no more than so many requests and octets read or written a second; 0: as many as it can.

        The bursts are what may come at once after a pause, BURST_S of the rate unless given. Raises ValueError.
        """
        lane: cython.pointer[Lane] = self.lane
        if not (0.01 <= weight <= 1000 and min(requests_per_s, burst_requests, octets_per_s, burst_octets) >= 0):
            raise ValueError("a weight is 0.01 to 1000, rates and bursts are not negative")
        lane.quantum = round(QUANTUM * weight)
        lane.request_ns = round(_S / requests_per_s) if requests_per_s else 0
        lane.request_slack = round(max((burst_requests or requests_per_s * BURST_S) - 1, 0) * lane.request_ns)
        lane.octet_ns = _S / octets_per_s if octets_per_s else 0
        lane.octet_slack = round((burst_octets or octets_per_s * BURST_S) * lane.octet_ns)
        lane.request_due = lane.octet_due = 0

    # drivers.disk.Disk

    def submit(self, burst: RequestBurst) -> cython.int:
        """Take requests from the burst's front as long as there is room; how many."""
        before: cython.int = burst.count
        now: int64_t
        if self.lane == cython.NULL:
            return 0
        now = self.queue.now()
        self.queue.accept(self.lane, burst, now)
        self.queue.dispatch(now)
        if self.lane.armed:         # since before: what has come in must wake whoever does not arm again
            self._watch(True)
            if self.lane.ended_count or not self.queue.disk.arm():
                self.queue.signal(self.lane)
        return before - burst.count

    def complete(self, burst: CompletionBurst) -> cython.int:
        """Empty the burst and fill it with requests that have ended; how many, or GONE."""
        lane: cython.pointer[Lane] = self.lane
        count: uint64_t
        burst.count = 0
        if lane == cython.NULL:
            return GONE
        lane.armed = False
        if lane.signalled:
            lane.signalled = False
            read(self.eventfd, cython.address(count), 8)
        elif self.watching and self.queue.watchers > 1 and not self._has_work():
            self._watch(False)
        if lane.ended_count < REQUESTS and not self.queue.closed:
            self.queue.turn_over(self.queue.now(), lane)
        if self._take_ended(burst) == 0 and self.queue.gone:
            return GONE
        return burst.count

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _take_ended(self, burst: CompletionBurst) -> cython.int:
        lane: cython.pointer[Lane] = self.lane
        while lane.ended_count and burst.count < REQUESTS:
            burst.completions[burst.count] = lane.ended[lane.ended_first & lane.ended_mask]
            burst.count += 1
            lane.ended_first += 1
            lane.ended_count -= 1
        return burst.count

    def room(self) -> cython.int:
        """How many requests `submit` takes now."""
        lane: cython.pointer[Lane] = self.lane
        if lane == cython.NULL or lane.ended_count >= lane.depth:
            return 0
        return min(cython.cast(cython.int, lane.free_count), REQUESTS)

    def fileno(self) -> int:
        """What to wait on; -1 once closed."""
        return -1 if self.poller is None else self.poller.fileno()

    def arm(self) -> cython.bint:
        """Have the next completion make `fileno` readable; False when there is something to complete already."""
        lane: cython.pointer[Lane] = self.lane
        if lane == cython.NULL or lane.ended_count or self.queue.gone or not self.queue.disk.arm():
            return False
        if not self.watching and (self.queue.watchers == 0 or self._has_work()):
            self._watch(True)
        lane.armed = True
        return True

    def wake_at(self) -> int | None:
        """When to call `complete` even if nothing was readable."""
        if self.lane == cython.NULL:
            return None
        own: int64_t = self.queue.next_deadline()
        below = self.queue.disk.wake_at()
        if own == 0 or (below is not None and below < own):
            return below
        return own

    def allocate(self, octets: int, owner: str):
        """Memory for segments, which the disk reaches. Raises DeviceError."""
        return self.queue.disk.allocate(octets, owner)

    def statistics(self) -> dict:
        """This client's counters."""
        if self.lane == cython.NULL:
            return {}
        c: cython.pointer[LaneCounters] = cython.address(self.lane.counters)
        e: cython.pointer[Ends] = cython.address(self.lane.ends)
        unit: uint64_t = self.lane.unit
        counts = {name: e.requests[i] for i, name in enumerate(_REQUESTS)}
        counts |= {name: e.octets[i] // unit for i, name in enumerate(_SECTORS) if name}
        return counts | {
            "failed": e.failed, "refused": c.refused, "timeouts": c.timeouts, "merged": c.merged, "split": c.split,
            "bounced": c.bounced, "retried": c.retried, "throttled": c.throttled, "full": c.full,
            "waiting_requests": self.lane.waiting, "requests_under_way": self.lane.under_way}

    def histograms(self) -> dict:
        """How long its requests took from `submit` on, in ns: a row of `mm.histogram.Histogram` for each operation."""
        if self.lane == cython.NULL:
            return {}
        return {OPERATION_NAMES[i]: histogram_row(cython.address(self.lane.ends.latency[i])) for i in range(OPERATIONS)}

    def close(self) -> None:
        """Leave the queue; the disk stays open for others. May be called twice.

        Requests that wait are forgotten. For those the disk is at it waits, blocking: who can, drains before.
        """
        lane: cython.pointer[Lane] = self.lane
        if lane == cython.NULL:
            return
        deadline = time.monotonic() + _DRAIN_S
        burst = CompletionBurst()
        self.queue.forget(lane)
        while lane.under_way and not self.queue.gone:
            if time.monotonic() > deadline:
                raise DeviceError(self.info.name, f"it does not end requests of {self.name}, so it keeps their memory; see "
                                                  "rustosctl disk show")
            if self.complete(burst) == 0 and self.arm():
                self.poller.poll(0.01)
        if self.watching:
            self.queue.watchers -= 1
        self.poller.close()
        self.poller = None
        if self.queue.watchers == 0:
            self.queue.signal_all()
        self._free_lane()
