"""Exports of SATA disks that fail and that are unplugged: our driver on the AHCI model that libata has judged, by its socket.

The driver waits RETURN_NS for a drive to come back before it gives it up; here that is shorter.
"""

import asyncio
import time

import pytest

from drivers.ahci import life
from drivers.ahci import registers as r
from drivers.ahci.controller import AhciController
from drivers.vfio_user import open_vfio_user
from rustosd.devices.sata import SataController
from rustosd.nbd import wire
from rustosd.nbd.exports import Exports
from rustosd.storage import SharedDisk, Storage
from tests.models.ahci import FLUSH, Drive, Model
from tests.models.ahci.card import Card
from tests.models.ahci.commands import ABRT, UNC
from tests.models.vfio_user_server import Server
from tests.rustosd.nbd.test_server import Wanted, until

CAP = int(r.CAP(NP=1, NCS=31, SAM=1, SNCQ=1, S64A=1, ISS=3))
SECTORS = 65536
ERRORS = {0, wire.NBD_EIO, wire.NBD_ESHUTDOWN}
"""What a request may end with while its disk leaves: docs/nbd.md."""


class Rack:
    """A controller with two drives, "left" and "right", and what the daemon does for it; an export for each drive."""

    def __init__(self, folder, made):
        self.drives = [Drive(sectors=SECTORS, full=True, serial=name) for name in ("LEFT", "RIGHT")]
        self.model = Model(*self.drives, cap=CAP, hot_plug=True)
        self.model.clock = time.monotonic_ns
        self.card = Card(self.model)
        self.server = Server(str(folder / "card"), self.card)
        self.controller = AhciController(open_vfio_user(self.server.path), interrupts=("msi",))
        self.disks = {}
        for disk in self.controller.disks:
            self.changed(disk, True)
        self.sata = SataController(self.controller, asyncio.get_running_loop(), self.changed)
        self.storage = Storage(asyncio.get_running_loop(), lambda: self.disks.values())
        self.exports = Exports(made.server, self.open)

    def changed(self, disk, there):
        """As `DeviceManager._disk_changed`."""
        if (before := self.disks.pop(disk.name, None)) is not None:
            before.close()
        if there:
            self.disks[disk.name] = SharedDisk(disk)

    async def open(self, name, user, read_only):
        """As `Daemon._open_disk`."""
        client = await self.storage.client(name, user, sector_octets=1, read_only=read_only)
        self.storage.find(name).on_close = self.exports.disk_closes
        return client

    async def start(self):
        names = [disk.name for disk in self.controller.disks]
        await self.exports.start(tuple(Wanted(*pair) for pair in zip(("left", "right"), names, strict=True)))

    def link(self, port):
        return self.model.ports[port].link

    async def close(self):
        await self.exports.stop(0.5)
        self.sata.close()
        for disk in self.disks.values():
            disk.close()
        self.controller.close()
        self.server.close()


@pytest.fixture
async def rack(make, tmp_path, monkeypatch):
    monkeypatch.setattr(life, "RETURN_NS", 200_000_000)
    monkeypatch.setattr("rustosd.nbd.exports.LOOK_S", 0.02)
    made = make()
    one = Rack(tmp_path, made)
    one.made = made
    await one.start()
    yield one
    await one.close()
    assert one.server.violations == [] and one.card.misuses == []


async def load(client, results):
    """Write and read until the connection ends; what each request ended with."""
    number = 0
    try:
        while True:
            number += 1
            cookies = [client.write((number * 16 + i) % 1000 * 4096, bytes([number & 255]) * 4096) for i in range(8)]
            cookies += [client.request(wire.CMD_READ, i * 4096, 4096) for i in range(8)]
            for cookie in cookies:
                results.append((await client.answer(cookie)).error)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass


async def test_errors_of_a_drive_reach_the_client_by_their_name(rack):
    client, drive = await rack.made.client(name="left"), rack.drives[0]
    assert (await client.answer(client.write(0, bytes(65536)))).error == 0
    with rack.card.still():
        drive.fail[64] = UNC
    assert (await client.ask(wire.CMD_READ, 64 * 512, 512)).error == wire.NBD_EIO
    cookies = {lba: client.request(wire.CMD_READ, lba * 512, 4096) for lba in range(0, 256, 8)}
    assert [lba for lba, cookie in cookies.items() if (await client.answer(cookie)).error] == [64]
    with rack.card.still():
        drive.fail[64] = ABRT
    assert (await client.answer(client.write(64 * 512, bytes(512)))).error == wire.NBD_EIO
    with rack.card.still():
        del drive.fail[64]
        drive.broken[FLUSH] = ABRT
    assert (await client.ask(wire.CMD_FLUSH)).error == wire.NBD_EIO
    with rack.card.still():
        del drive.broken[FLUSH]
    assert (await client.ask(wire.CMD_FLUSH)).error == 0
    assert (await client.ask(wire.CMD_READ, 64 * 512, 512)).error == 0


async def test_a_drive_unplugged_under_load_ends_its_export_alone_and_comes_back_with_it(rack):
    left, right = [await rack.made.client(name=name) for name in ("left", "right")]
    assert (await left.answer(left.write(5000 * 4096, b"stays" * 100))).error == 0
    assert (await left.ask(wire.CMD_FLUSH)).error == 0
    results = {left: [], right: []}
    tasks = [asyncio.ensure_future(load(client, results[client])) for client in (left, right)]
    await until(lambda: all(len(seen) > 100 for seen in results.values()))
    with rack.card.still():
        drive = rack.link(0).unplug()
    await asyncio.wait_for(tasks[0], 30)
    assert set(results[left]) <= ERRORS and wire.NBD_EIO in results[left]
    before = len(results[right])
    await until(lambda: len(results[right]) > before + 100)
    assert set(results[right]) == {0} and list(rack.made.server.served) == ["right"]
    with rack.card.still():
        rack.link(0).plug(drive)
    await until(lambda: "left" in rack.made.server.served)
    again = await rack.made.client(name="left")
    assert (await again.ask(wire.CMD_READ, 5000 * 4096, 500)).content(5000 * 4096, 500) == b"stays" * 100
    before = len(results[right])
    await until(lambda: len(results[right]) > before + 100)
    assert set(results[right]) == {0} and not tasks[1].done()
    tasks[1].cancel()
