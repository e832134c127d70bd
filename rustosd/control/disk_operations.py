"""What an operator can ask about disks and do with them."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import structlog

from rustosd.control import disk_protocol as p
from rustosd.control.base import Done, Nothing
from rustosd.control.device_operations import DeviceCore, HeldDevice
from rustosd.control.server import OperationFailed
from rustosd.disk_content import LOOKED_AT, recognise

log = structlog.get_logger()


class Info(Protocol):
    """What a disk says of itself: `drivers.disk.DiskInfo`."""

    name: str
    model: str
    serial: str
    firmware: str
    sectors: int
    sector_octets: int
    physical_octets: int
    queue_depth: int
    features: Any


class Disk(Protocol):
    """A disk of ours: `rustosd.disks.AsyncDisk`. Its verbs raise DeviceError and OSError."""

    info: Info

    def read(self, lba: int, sectors: int) -> Awaitable[bytes]: ...
    def write(self, lba: int, octets: bytes) -> Awaitable[None]: ...
    def flush(self) -> Awaitable[None]: ...
    def bench(self, pattern: str, block_octets: int, depth: int, seconds: float) -> Awaitable[Any]: ...
    def statistics(self) -> Mapping[str, int]: ...


class _Found(NamedTuple):
    disk: Disk
    held: HeldDevice

    @property
    def octets(self) -> int:
        return self.disk.info.sectors * self.disk.info.sector_octets


class DiskOperations:
    """The methods of `disk_protocol.METHODS`."""

    core: DeviceCore

    def __init__(self) -> None:
        # Writes of parts of sectors read these before: one at a time on a disk, or one would undo the other.
        self._writing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._unflushed: defaultdict[str, int] = defaultdict(int)

    async def disk_list(self, _: Nothing) -> list[p.Disk]:
        return [_row(found) for found in self._all()]

    async def disk_show(self, which: p.DiskName) -> p.DiskDetails:
        found = self._find(which.disk, running=False)
        holds, statistics = [], {}
        if found.held.state == "running":
            info = found.disk.info
            sectors = min(info.sectors, LOOKED_AT // info.sector_octets)
            holds, statistics = recognise(await found.disk.read(0, sectors)), dict(found.disk.statistics())
        return p.DiskDetails(disk=_row(found), features=list(found.disk.info.features), holds=holds,
                             statistics={name: value for name, value in statistics.items() if isinstance(value, int)})

    async def disk_read(self, request: p.DiskRead) -> p.Octets:
        found = self._find(request.disk)
        _check_room(found, request.offset, request.octets, "reading")
        octets, inside = await _read_around(found.disk, request.offset, request.octets)
        return p.Octets(octets=octets[inside:inside + request.octets])

    async def disk_write(self, request: p.DiskWrite) -> Done:
        found = self._find(request.disk)
        name, sector = found.disk.info.name, found.disk.info.sector_octets
        _check_room(found, request.offset, len(request.octets), "writing")
        async with self._writing[name]:
            if not self._unflushed[name]:
                log.info("disk_write_begins", disk=name, offset=request.offset)
            self._unflushed[name] += len(request.octets)
            octets = request.octets
            if request.offset % sector or len(octets) % sector:
                around, inside = await _read_around(found.disk, request.offset, len(octets))
                octets = around[:inside] + octets + around[inside + len(octets):]
            await found.disk.write(request.offset // sector, octets)
        return Done()

    async def disk_flush(self, which: p.DiskName) -> Done:
        found = self._find(which.disk)
        name = found.disk.info.name
        await found.disk.flush()
        if written := self._unflushed.pop(name, 0):
            log.info("disk_written", disk=name, octets=written)
        return Done()

    async def disk_bench(self, request: p.DiskBench) -> p.BenchRound:
        found = self._find(request.disk)
        info = found.disk.info
        if request.block_octets % info.sector_octets or request.block_octets > found.octets:
            raise OperationFailed(f"{info.name} has sectors of {info.sector_octets} octets: a block is a multiple of that")
        if request.pattern.endswith("write"):
            log.info("disk_bench_writes", disk=info.name, pattern=request.pattern)
        depth = min(request.depth, info.queue_depth)
        result = await found.disk.bench(request.pattern, request.block_octets, depth, request.seconds)
        return _round(info.name, request, depth, result)

    def _all(self) -> Iterator[_Found]:
        devices = self.core.devices
        for held in tuple(devices.held.values()) if devices is not None else ():
            for disk in held.disks.values():
                yield _Found(disk, held)

    def _find(self, name: str, running: bool = True) -> _Found:
        """By name or serial number, else by a beginning of one that is unique."""
        there = list(self._all())
        hits = [found for found in there if name in (found.disk.info.name, found.disk.info.serial)]
        hits = hits or [found for found in there
                        if found.disk.info.name.startswith(name) or found.disk.info.serial.startswith(name)]
        if not hits:
            known = ", ".join(found.disk.info.name for found in there)
            raise OperationFailed(f"there is no disk {name}; " + (
                f"there is {known}" if there else "none is ours: take its controller, see rustosctl device list"))
        if len(hits) > 1:
            raise OperationFailed(f"{name} can be {' or '.join(found.disk.info.name for found in hits)}; say which")
        if running and hits[0].held.state != "running":
            raise OperationFailed(f"{hits[0].disk.info.name} is gone: {hits[0].held.reason}")
        return hits[0]


async def _read_around(disk: Disk, offset: int, octets: int) -> tuple[bytes, int]:
    """The whole sectors that hold these octets, and where in them these begin."""
    sector = disk.info.sector_octets
    first, last = offset // sector, (offset + octets - 1) // sector
    return await disk.read(first, last - first + 1), offset - first * sector


def _check_room(found: _Found, offset: int, octets: int, doing: str) -> None:
    if offset + octets > found.octets:
        raise OperationFailed(f"{found.disk.info.name} has {found.octets} octets: {doing} {octets} from {offset} on would go "
                              "beyond its end")


def _row(found: _Found) -> p.Disk:
    info = found.disk.info
    return p.Disk(name=info.name, model=info.model, serial=info.serial, firmware=info.firmware, octets=found.octets,
                  sector_octets=info.sector_octets, physical_octets=info.physical_octets, queue_depth=info.queue_depth,
                  state=found.held.state)


def _round(name: str, request: p.DiskBench, depth: int, result: Any) -> p.BenchRound:
    return p.BenchRound(
        disk=name, pattern=request.pattern, block_octets=request.block_octets, depth=depth, seconds=result.seconds,
        requests=result.requests, errors=result.errors, min_us=result.min_us, mean_us=result.mean_us, max_us=result.max_us,
        histogram=[p.LatencyBucket(below_us=below, requests=count) for below, count in result.histogram])
