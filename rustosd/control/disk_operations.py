"""What an operator can ask about disks and do with them."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import structlog

from drivers.block.partitions import TableWrong
from drivers.errors import DeviceError
from rustosd.control import disk_protocol as p
from rustosd.control.base import Done, Nothing
from rustosd.control.device_operations import DeviceCore
from rustosd.control.server import OperationFailed
from rustosd.disk_content import LOOKED_AT, recognise

log = structlog.get_logger(__name__)


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
    features: Iterable[Any]         # drivers.disk.Feature

    @property
    def octets(self) -> int: ...


class Disk(Protocol):
    """A disk of ours: `rustosd.storage.SharedDisk`. Its verbs raise DeviceError."""

    info: Info
    queue: Any                      # drivers.block.queue.Queue

    def all_clients(self) -> Iterable[Any]: ...     # drivers.block.client.Client
    def table(self) -> Awaitable[Any]: ...          # drivers.block.partitions.Table | None

    def read(self, lba: int, sectors: int) -> Awaitable[bytes]: ...
    def write(self, lba: int, octets: bytes) -> Awaitable[None]: ...
    def flush(self) -> Awaitable[None]: ...
    def bench(self, pattern: str, block_octets: int, depth: int, seconds: float) -> Awaitable[Any]: ...
    def statistics(self) -> Mapping[str, int]: ...


class DiskOperations:
    """The methods of `disk_protocol.METHODS`."""

    core: DeviceCore

    def __init__(self) -> None:
        # Writes of parts of sectors read these before: one at a time on a disk, or one would undo the other.
        self._writing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._unflushed: defaultdict[str, int] = defaultdict(int)

    async def disk_list(self, _: Nothing) -> list[p.Disk]:
        return [_row(disk) for disk in self._all()]

    async def disk_show(self, which: p.DiskName) -> p.DiskDetails:
        disk = self._find(which.disk)
        info, statistics = disk.info, disk.statistics()
        try:
            holds = recognise(await disk.read(0, min(info.sectors, LOOKED_AT // info.sector_octets)))
        except DeviceError as error:
            holds = [f"what cannot be read: {error}"]
        partitions, wrong = await _partitions(disk)
        return p.DiskDetails(disk=_row(disk), drive=self._has_drive(info.name), holds=holds,
                             features=[feature.name.lower() for feature in info.features],
                             statistics={name: value for name, value in statistics.items() if isinstance(value, int)},
                             partitions=partitions, table=wrong, users=_users(disk), latency=_latency(disk))

    async def disk_read(self, request: p.DiskRead) -> p.Octets:
        disk = self._find(request.disk)
        _check_room(disk, request.offset, request.octets, "reading")
        octets, inside = await _read_around(disk, request.offset, request.octets)
        return p.Octets(octets=octets[inside:inside + request.octets])

    async def disk_write(self, request: p.DiskWrite) -> Done:
        disk = self._find(request.disk)
        name, sector = disk.info.name, disk.info.sector_octets
        if request.token != (named := disk.info.serial or name):
            raise OperationFailed(f"{name}: this overwrites what is on it: repeat {named} as the token to have it done")
        _check_room(disk, request.offset, len(request.octets), "writing")
        async with self._writing[name]:
            if not self._unflushed[name]:
                log.info("disk_write_begins", disk=name, offset=request.offset)
            self._unflushed[name] += len(request.octets)
            octets = request.octets
            if request.offset % sector or len(octets) % sector:
                around, inside = await _read_around(disk, request.offset, len(octets))
                octets = around[:inside] + octets + around[inside + len(octets):]
            await disk.write(request.offset // sector, octets)
        return Done()

    async def disk_flush(self, which: p.DiskName) -> Done:
        disk = self._find(which.disk)
        name = disk.info.name
        await disk.flush()
        if written := self._unflushed.pop(name, 0):
            log.info("disk_written", disk=name, octets=written)
        return Done()

    async def disk_bench(self, request: p.DiskBench) -> p.BenchRound:
        disk = self._find(request.disk)
        info = disk.info
        if request.block_octets % info.sector_octets or request.block_octets > info.octets:
            raise OperationFailed(f"{info.name} has sectors of {info.sector_octets} octets: a block is a multiple of that")
        depth = min(request.depth, info.queue_depth)
        result = await disk.bench(request.pattern, request.block_octets, depth, request.seconds)
        return _round(info.name, request, depth, result)

    def _has_drive(self, _name: str) -> bool:
        """Whether `SataOperations` knows more of it."""
        return False

    def _all(self) -> list[Disk]:
        return list(self.core.storage)

    def _find(self, name: str) -> Disk:
        """By name or serial number, else by a beginning of one that is unique."""
        there = self._all()
        hits = [disk for disk in there if name in (disk.info.name, disk.info.serial)]
        hits = hits or [disk for disk in there if disk.info.name.startswith(name) or disk.info.serial.startswith(name)]
        if not hits:
            known = ", ".join(disk.info.name for disk in there)
            none = "none is ours: name one under [[disk]] in the configuration, or take a controller, see rustosctl device list"
            raise OperationFailed(f"there is no disk {name}; {f'there is {known}' if there else none}")
        if len(hits) > 1:
            raise OperationFailed(f"{name} can be {' or '.join(disk.info.name for disk in hits)}; say which")
        return hits[0]


async def _read_around(disk: Disk, offset: int, octets: int) -> tuple[bytes, int]:
    """The whole sectors that hold these octets, and where in them these begin."""
    sector = disk.info.sector_octets
    first, last = offset // sector, (offset + octets - 1) // sector
    return await disk.read(first, last - first + 1), offset - first * sector


def _check_room(disk: Disk, offset: int, octets: int, doing: str) -> None:
    if offset + octets > disk.info.octets:
        raise OperationFailed(f"{disk.info.name} has {disk.info.octets} octets: {doing} {octets} from {offset} on would go "
                              "beyond its end")


async def _partitions(disk: Disk) -> tuple[list[p.DiskPartition], str]:
    """What the disk's table says, and what is wrong with it."""
    info = disk.info
    try:
        table = await disk.table()
    except (DeviceError, TableWrong) as error:
        return [], str(error)
    if table is None:
        return [], ""
    return [p.DiskPartition(name=f"{info.name}/p{part.number}", octets=part.sectors * info.sector_octets,
                            offset=part.lba * info.sector_octets, kind=part.kind, label=part.name)
            for part in table.partitions], table.note


def _users(disk: Disk) -> list[p.DiskUser]:
    rows = []
    for client in disk.all_clients():
        has, unit = client.statistics(), client.info.sector_octets
        requests = sum(has[name] for name in ("reads", "writes", "flushes", "trims", "zeroes", "extents"))
        rows.append(p.DiskUser(
            user=client.name, disk=client.info.name, requests=requests,
            octets=(has["sectors_read"] + has["sectors_written"]) * unit, waiting=has["waiting_requests"],
            under_way=has["requests_under_way"], throttled=has["throttled"], failed=has["failed"]))
    return rows


def _latency(disk: Disk) -> list[p.OperationLatency]:
    rows = []
    for name, (requests, _, (total, counts)) in disk.queue.requests_ended()["operations"].items():
        if seen := sum(counts):
            rows.append(p.OperationLatency(operation=name, requests=requests, mean_us=total / seen / 1000,
                                           p50_us=_within(counts, 0.5), p99_us=_within(counts, 0.99)))
    return rows


def _within(counts: Sequence[int], share: float) -> float:
    """Microseconds that this share of requests took at most, by the upper end of a bucket."""
    left = share * sum(counts)
    for power, count in enumerate(counts):
        left -= count
        if left <= 0:
            return (1 << power) / 1000
    return 0.0


def _row(disk: Disk) -> p.Disk:
    info = disk.info
    return p.Disk(name=info.name, model=info.model, serial=info.serial, firmware=info.firmware, octets=info.octets,
                  sector_octets=info.sector_octets, physical_octets=info.physical_octets, queue_depth=info.queue_depth)


def _round(name: str, request: p.DiskBench, depth: int, result: Any) -> p.BenchRound:
    return p.BenchRound(
        disk=name, pattern=request.pattern, block_octets=request.block_octets, depth=depth, seconds=result.seconds,
        requests=result.operations, errors=result.errors, mean_us=result.mean_us, longest_us=result.longest_us,
        histogram=[p.LatencyBucket(below_us=below, requests=count) for below, count in result.histogram])
