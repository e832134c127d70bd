"""An NBD server on a unix socket with a disk in memory behind it."""

import asyncio
from pathlib import Path

import pytest

from drivers.block.ram import RamDisk
from rustosd.nbd.export import Export
from rustosd.nbd.server import Limits, NbdServer
from tests.rustosd.nbd.raw import RawClient

OCTETS = 64 << 20


class Running:
    """A server, its disk, and connections to it that end with the test."""

    def __init__(self, folder: Path, limits: Limits | None = None, **options):
        self.server = NbdServer(asyncio.get_running_loop(), limits, **options)
        self.path = folder / "nbd.sock"
        self.server.listen_unix(self.path)
        self.disks = []
        self.clients: list[RawClient] = []

    def export(self, name="disk", disk=None, **options):
        disk = disk or RamDisk(name, OCTETS)
        self.disks.append(disk)
        self.server.add(Export(name, disk, **options))
        return disk

    async def client(self, **options) -> RawClient:
        self.clients.append(await RawClient.connect(self.path, **options))
        return self.clients[-1]

    @property
    def engine(self):
        return next(iter(self.server.served.values())).engine

    def uri(self, name="disk", scheme="nbd+unix"):
        return f"{scheme}:///{name}?socket={self.path}"

    async def close(self):
        for client in self.clients:
            await client.close()
        await self.server.stop(2)


@pytest.fixture
async def make(tmp_path):
    """Makes servers."""
    made = []

    def one(limits=None, **options):
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Running(folder, limits, **options))
        return made[-1]

    yield one
    for running in made:
        await running.close()
        assert running.server.budget.used == 0


@pytest.fixture
async def running(make):
    """One with one export, "disk"."""
    made = make()
    made.export()
    return made
