"""The daemon's disks: those of the configuration, and those of the controllers it drives. Each is shared by a queue.

A disk goes by its name, "disk0" or "0000:00:04.0/1"; a partition by the disk's name and its number, "disk0/p1".
"""

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog

from drivers.block.client import Client
from drivers.block.file import FileDisk
from drivers.block.partitions import Partition, Table, TableWrong, read_table
from drivers.block.queue import Queue
from drivers.block.ram import RamDisk
from drivers.disk import Disk
from drivers.errors import DeviceError
from rustosd.config import DiskConfig
from rustosd.disks import AsyncDisk

OPERATOR: Final = "rustosctl"
"""The client of each disk that the operator's commands are."""

log = structlog.get_logger(__name__)


class SharedDisk(AsyncDisk):
    """A disk for many clients, of which this is the daemon's own. Closing it closes the disk for all of them."""

    def __init__(self, disk: Disk, loop: asyncio.AbstractEventLoop | None = None, *, requests_per_s: int = 0,
                 octets_per_s: int = 0) -> None:
        """The limits are what each client gets that does not say otherwise; ours has none."""
        self.queue = Queue(disk)
        self.limits = {"requests_per_s": requests_per_s, "octets_per_s": octets_per_s}
        self.clients: list[Client] = []
        self.on_close: Callable[[str], None] | None = None
        """Told the disk's name once it has closed and its requests have ended: its clients tell of that, and let go of it."""
        super().__init__(Client(self.queue, OPERATOR), loop)
        self.info = disk.info

    def client(self, name: str, **options: Any) -> Client:
        """Another end of the disk: `drivers.block.client.Client`, the caller's to close. Raises DeviceError, ValueError."""
        made = Client(self.queue, name, **(self.limits | options))
        self.clients = [each for each in self.clients if each.fileno() >= 0] + [made]
        return made

    def all_clients(self) -> list[Client]:
        """Those that are open, ours first."""
        return [self.disk, *(each for each in self.clients if each.fileno() >= 0)]

    async def table(self) -> Table | None:
        """Its partition table as it is now. Raises DeviceError, TableWrong."""
        return await read_table(self.read, self.info.sectors, self.info.sector_octets)

    def statistics(self) -> dict[str, int]:
        """The disk's counters and the queue's."""
        own = self.disk.statistics()
        waiting = {"waiting": self.queue.waiting() + len(self._queue), "under_way": own.get("requests_under_way", 0)}
        return self.queue.disk.statistics() | self.queue.statistics() | waiting

    def close(self) -> None:
        """Close the disk; all requests end with ENODEV. May be called twice. Other clients stay their owners' to close."""
        self.queue.close()      # first, or our client would wait for its requests
        if self.on_close is not None:
            self.on_close(self.info.name)
        super().close()


class Storage:
    """All disks, by name."""

    def __init__(self, loop: asyncio.AbstractEventLoop, devices: Callable[[], Iterable[SharedDisk]] = lambda: ()) -> None:
        """`devices`: the disks of the controllers that are driven now; they are closed with these."""
        self._loop, self._devices = loop, devices
        self.own: dict[str, SharedDisk] = {}
        self._made: dict[str, Path] = {}        # files that did not exist before

    def open(self, disks: Iterable[DiskConfig]) -> None:
        """Open what the configuration names. Raises DeviceError for what is not optional."""
        for each in disks:
            try:
                self._open(each)
            except DeviceError as error:
                if not each.optional:
                    raise
                log.warning("disk_left_out", disk=str(each.name), error=str(error))

    def _open(self, config: DiskConfig) -> None:
        name = str(config.name)
        disk: Disk
        if config.kind == "ram":
            assert config.size is not None
            disk = RamDisk(name, config.size.octets, sector_octets=config.sector_octets)
        else:
            assert config.path is not None
            path, size = Path(config.path), config.size.octets if config.size else None
            if size is not None and not config.read_only and not path.exists():
                _make_directory(path.parent)
                self._made[name] = path
            disk = FileDisk.open(str(path), name, sector_octets=config.sector_octets, read_only=config.read_only,
                                 direct=config.direct, create_octets=size, allow_device=config.kind == "device",
                                 write_in_loop=config.write_in_loop)
        self.own[name] = SharedDisk(disk, self._loop, requests_per_s=config.client_requests_per_s,
                                    octets_per_s=config.client_octets_per_s)
        log.debug("disk_open", disk=name, kind=config.kind, octets=disk.info.octets)

    def __iter__(self) -> Iterator[SharedDisk]:
        yield from self.own.values()
        yield from self._devices()

    def find(self, name: str) -> SharedDisk | None:
        """The disk of this very name."""
        return next((disk for disk in self if disk.info.name == name), None)

    def troubles(self) -> Iterator[tuple[str, str, str]]:
        """Disks that need attention: name, the health check's code, what is wrong."""
        for disk in self:
            if disk.queue.stalled:
                yield disk.info.name, "disk-stalled", "answers nothing, and requests wait"
            if disk.queue.disk.statistics().get("flush_lost"):
                yield disk.info.name, "disk-flush-lost", "failed to make durable what it was given"

    async def client(self, name: str, user: str, **options: Any) -> Client:
        """An end of a disk or partition for `user`; options as of `drivers.block.client.Client`.

        Raises DeviceError when there is none of that name, or its table cannot be read; ValueError.
        """
        if (disk := self.find(name)) is not None:
            return disk.client(user, **options)
        parent, _, number = name.rpartition("/p")
        disk = self.find(parent)
        if disk is None or not number.isdecimal():
            known = ", ".join(each.info.name for each in self) or "none at all"
            raise DeviceError(name, f"there is no such disk; there is {known}")
        part = await _partition(disk, name, int(number))
        sector = disk.info.sector_octets
        return disk.client(user, label=name, window=(part.lba * sector, part.sectors * sector), **options)

    def close(self) -> None:
        """Close the disks of the configuration, flushed. A file of ours in which nothing was written goes away."""
        for name, disk in self.own.items():
            disk.close()
            path = self._made.get(name)
            with suppress(OSError):
                if path is not None and os.stat(path).st_blocks == 0:
                    path.unlink()
                    path.parent.rmdir()     # unless somebody else uses it
        self.own.clear()


async def _partition(disk: SharedDisk, name: str, number: int) -> Partition:
    try:
        table = await disk.table()
    except TableWrong as wrong:
        raise DeviceError(name, f"its disk's partition table cannot be used: {wrong}") from None
    if table is None:
        raise DeviceError(name, f"{disk.info.name} has no partition table")
    for part in table.partitions:
        if part.number == number:
            return part
    known = ", ".join(f"p{part.number}" for part in table.partitions) or "none at all"
    raise DeviceError(name, f"{disk.info.name} has no partition {number}; it has {known}")


def _make_directory(path: Path) -> None:
    """Only the last part: that the rest is missing is more likely a mistake."""
    with suppress(OSError):     # opening the file says what is wrong
        path.mkdir(mode=0o700)
