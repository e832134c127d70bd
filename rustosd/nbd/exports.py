"""The exports of a daemon: each is a client's end of a disk under a name, opened when it is exported and closed after."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, Protocol

import structlog

from drivers.disk import Disk
from drivers.errors import DeviceError
from rustosd.nbd.export import Export
from rustosd.nbd.server import NbdServer, Served

LOOK_S: Final = 2.0
"""How often to look for disks that exports of the configuration wait for."""

log = structlog.get_logger(__name__)


class Wanted(Protocol):
    """An [[export]] of the configuration."""

    name: str
    disk: str
    read_only: bool
    description: str
    tls_only: bool


class Exports:
    """What an operator can do with exports. `open_disk(name, user, read_only)` makes a client's end of a disk.

    It raises DeviceError for one that is not there. What the configuration wants is then exported when its disk comes, and
    again when it has left and comes back.
    """

    def __init__(self, server: NbdServer, open_disk: Callable[[str, str, bool], Awaitable[Disk]]):
        self.server = server
        self._open = open_disk
        self._wanted: dict[str, Wanted] = {}        # as configured, and not unexported since
        self._opening: set[str] = set()
        self._looker: asyncio.Task | None = None
        self._tasks: set[asyncio.Task] = set()
        server.on_gone = self._on_gone

    async def start(self, wanted: tuple[Wanted, ...]) -> None:
        """Export what the configuration wants, as far as it is there. Raises OSError, ValueError."""
        self._wanted = {str(each.name): each for each in wanted}
        for name, error in (await self._look()).items():
            log.warning("export_waits_for_its_disk", export=name, error=error)
        if self._wanted:
            self._looker = asyncio.ensure_future(self._keep_looking())

    async def add(self, name: str, disk: str, read_only: bool = False, description: str = "", tls_only: bool = False) -> Export:
        """Export a disk. Raises DeviceError, OSError, ValueError."""
        if name in self.server.served or name in self._opening:
            raise ValueError(f"there is an export {name} already; choose another name, or unexport it first")
        if tls_only and self.server.tls_context is None:
            raise ValueError(f"{name} cannot be for TLS only: there is no TLS, see [nbd.tls] in docs/nbd.md")
        self._opening.add(name)
        try:
            opened = await self._open(disk, f"nbd {name}", read_only)
        finally:
            self._opening.discard(name)
        try:
            export = Export(name, opened, read_only, description, tls_only)
            self.server.add(export)
        except BaseException:
            opened.close()
            raise
        return export

    async def remove(self, name: str, grace_s: float = 5.0) -> None:
        """Unexport: requests under way end, what was written is flushed. Raises LookupError."""
        waited_for = self._wanted.pop(name, None)
        if name in self.server.served:
            await self.server.remove(name, grace_s)
        elif waited_for is None:
            raise LookupError(f"there is no export {name}; there is {', '.join(self.server.served) or 'none'}")

    def disk_closes(self, disk: str) -> None:
        """A disk, or the one that a partition is of, has been closed: clients are told how their requests have ended.

        After that nothing of ours may look at it any more.
        """
        for name, served in tuple(self.server.served.items()):
            used = served.export.disk.info.name
            if disk in (used, used.rpartition("/p")[0]):
                served.engine.tell_all()
                self.server.let_go(name)
                served.export.disk.close()
                self.server.loop.call_soon(served.engine.free)

    async def stop(self, grace_s: float) -> None:
        """The server stops, and the disks are let go."""
        if self._looker is not None:
            self._looker.cancel()
        await self.server.stop(grace_s)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def rows(self) -> Iterator[Served]:
        """What is exported, in the order in which it was."""
        yield from self.server.served.values()

    async def _look(self) -> dict[str, str]:
        """Export those that are not yet; what stands in the way of the others."""
        missing = {}
        for name, each in tuple(self._wanted.items()):
            if name in self.server.served:
                continue
            try:
                await self.add(name, each.disk, each.read_only, each.description, each.tls_only)
            except DeviceError as error:
                missing[name] = str(error)
        return missing

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self._look()
            except (OSError, ValueError) as error:
                log.error("export_failed", error=str(error))

    def _on_gone(self, name: str) -> None:
        task = asyncio.ensure_future(self._remove_gone(name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _remove_gone(self, name: str) -> None:
        if name in self.server.served:      # it may have been closed meanwhile
            await self.server.remove(name, 0.0)
