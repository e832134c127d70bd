"""Limits on handshakes, the end of exports and of the server, and disks that leave, each with its name in the counters."""

import asyncio
import struct

import pytest

from drivers.block.client import Client
from drivers.block.queue import Queue
from drivers.block.ram import RamDisk
from drivers.errors import DeviceError
from rustosd.nbd import wire
from rustosd.nbd.exports import Exports
from rustosd.nbd.negotiation import Option
from rustosd.nbd.server import Limits
from rustosd.storage import SharedDisk
from tests.rustosd.nbd.raw import option

OCTETS = 16 << 20


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def greeted(path):
    reader, writer = await asyncio.open_unix_connection(path)
    await reader.readexactly(18)
    return reader, writer


async def test_a_client_that_says_nothing_has_so_long(make):
    made = make(Limits(handshake_s=0.1))
    made.export()
    for say in (b"", struct.pack(">I", 3), struct.pack(">I", 3) + b"IHAVE"):
        reader, writer = await greeted(made.path)
        writer.write(say)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
    assert made.server.refused["handshake_timeout"] == 3 and not made.server.handshakes


async def test_handshakes_that_trickle_have_no_longer_and_others_are_served_meanwhile(make):
    made = make(Limits(handshake_s=0.5, connections=40))
    made.export()
    good = await made.client()
    trickling = [await greeted(made.path) for _ in range(30)]
    asked = 0
    while made.server.handshakes:
        for octet in struct.pack(">I", 3) + option(Option.LIST, bytes(4000)):
            for _, writer in trickling:
                writer.write(bytes([octet]))
            assert (await good.ask(wire.CMD_READ, 0, 512)).error == 0
            asked += 1
            await asyncio.sleep(0.01)
            if not made.server.handshakes:
                break
    assert made.server.refused["handshake_timeout"] == 30 and asked > 10
    for _, writer in trickling:
        writer.close()


async def test_a_client_that_does_not_read_its_answers_is_not_heard(make):
    made = make(Limits(handshake_s=1.0))
    for number in range(50):
        made.export(f"{number}" + "x" * 200)
    _, writer = await greeted(made.path)
    writer.transport.pause_reading()
    writer.write(struct.pack(">I", 3))
    for _ in range(2000):
        writer.write(option(Option.LIST))
    await until(lambda: made.server.refused["handshake_timeout"] or made.server.refused["option_flood"])
    writer.close()


async def test_what_breaks_the_rules_is_counted_by_name(running):
    for say, reason in ((struct.pack(">I", 8), "unknown_flags"), (struct.pack(">I", 3) + bytes(16), "bad_magic"),
                        (struct.pack(">I", 3) + option(Option.EXPORT_NAME, b"no"), "unknown_export"),
                        (struct.pack(">I", 3) + option(99) * 200, "option_flood")):
        reader, writer = await greeted(running.path)
        writer.write(say)
        await asyncio.wait_for(reader.read(), 10)
        assert running.server.refused[reason] == 1
        writer.close()


async def test_unexporting_lets_requests_end_and_refuses_new_ones(running):
    client = await running.client()
    cookies = [client.write(index << 16, b"w" * 65536) for index in range(100)]
    await client.writer.drain()
    await until(lambda: running.engine.statistics()["requests"]["write"] > 0)
    await running.server.remove("disk")
    done = 0
    for cookie in cookies:
        try:
            error = (await client.answer(cookie)).error
        except (asyncio.IncompleteReadError, ConnectionResetError):
            break
        assert error in (0, wire.NBD_ESHUTDOWN)
        done += error == 0
    assert done and not running.server.served


async def test_new_requests_during_the_end_get_eshutdown(running):
    client = await running.client()
    await client.ask(wire.CMD_FLUSH)
    client.write(0, b"q" * 512)                 # its data do not all come, so the connection stays
    client.writer.write(b"")
    cookie = client.request(wire.CMD_READ, 0, 512)
    running.engine.drain()
    assert (await client.answer(cookie)).error in (0, wire.NBD_ESHUTDOWN)
    assert await client.is_over()


async def test_the_last_flush_reaches_the_disk(running):
    client = await running.client()
    disk = running.disks[0]
    await client.answer(client.write(0, b"f" * 512))
    before = disk.statistics()["flushes"]
    await running.server.remove("disk")
    assert disk.statistics()["flushes"] == before + 1


async def test_stopping_ends_handshakes_too(make):
    made = make()
    made.export()
    reader, writer = await greeted(made.path)
    await made.server.stop(0.5)
    assert await asyncio.wait_for(reader.read(), 10) == b"" and not made.path.exists()
    assert made.server.refused["shutting_down"] == 1
    writer.close()


class Shelf:
    """Disks that come and go, as `rustosd.storage` has them."""

    def __init__(self):
        self.disks = {}

    def put(self, name):
        self.disks[name] = SharedDisk(RamDisk(name, OCTETS))
        return self.disks[name]

    async def open(self, name, user, read_only):
        if name not in self.disks:
            raise DeviceError(name, "there is no such disk")
        return self.disks[name].client(user, sector_octets=1, read_only=read_only)


class Wanted:
    def __init__(self, name, disk):
        self.name, self.disk, self.read_only, self.description, self.tls_only = name, disk, False, "", False


async def test_an_export_waits_for_its_disk_and_for_it_to_come_back(make, monkeypatch):
    monkeypatch.setattr("rustosd.nbd.exports.LOOK_S", 0.02)
    made, shelf = make(), Shelf()
    exports = Exports(made.server, shelf.open)
    await exports.start((Wanted("disk", "sata"),))
    assert not made.server.served
    for _ in range(2):
        disk = shelf.put("sata")
        disk.on_close = exports.disk_closes
        await until(lambda: "disk" in made.server.served)
        client = await made.client()
        assert (await client.answer(client.write(3, b"odd"))).error == 0        # an octet at a time, by way of the queue
        assert (await client.ask(wire.CMD_READ, 0, 8)).content(0, 8) == b"\0\0\0odd\0\0"
        client.request(wire.CMD_READ, 0, 1 << 20)
        del shelf.disks["sata"]
        disk.close()                        # under load
        assert await client.is_over()
    await exports.remove("disk")            # it is waited for no more
    with pytest.raises(LookupError, match="there is no export disk"):
        await exports.remove("disk")
    await exports.stop(0.5)


async def test_the_same_name_twice_and_tls_where_there_is_none(make):
    made, shelf = make(), Shelf()
    disk = shelf.put("ram")
    exports = Exports(made.server, shelf.open)
    await exports.add("one", "ram")
    with pytest.raises(ValueError, match="one already"):
        await exports.add("one", "ram")
    with pytest.raises(ValueError, match="no TLS"):
        await exports.add("two", "ram", tls_only=True)
    with pytest.raises(DeviceError, match="no such disk"):
        await exports.add("two", "rom")
    await exports.stop(0.5)
    disk.close()


async def test_a_disk_that_is_gone_refuses_everything(make):
    made = make()
    queue = Queue(RamDisk("disk", OCTETS))
    made.export(disk=Client(queue, "nbd"))
    client = await made.client()
    assert (await client.ask(wire.CMD_READ, 0, 512)).error == 0
    queue.close()
    assert (await client.ask(wire.CMD_READ, 0, 512)).error == wire.NBD_EIO
