"""The daemon's disks: shared by many on the loop, found by name and partition, in metrics and in what the operator sees."""

import asyncio
import os
import shutil
import struct
import subprocess

import pytest

from drivers.block.client import Client
from drivers.block.queue import Queue
from drivers.block.ram import RamDisk
from drivers.disk import DiskError
from drivers.errors import DeviceError
from rustosd import block_metrics, config
from rustosd.control import disk_protocol as p
from rustosd.control.disk_operations import DiskOperations
from rustosd.disks import AsyncDisk
from rustosd.storage import SharedDisk, Storage
from tests.drivers.block.model import ModelDisk

MIB = 1 << 20
RAM = '[[disk]]\nname = "ram0"\nkind = "ram"\nsize = "8MiB"\n'


@pytest.fixture
async def storage():
    made = Storage(asyncio.get_running_loop())
    yield made
    made.close()


def disks(text):
    return config.parse(text, "test").disk


async def test_two_clients_and_the_operator_share_a_disk(storage):
    storage.open(disks(RAM))
    shared = storage.find("ram0")
    ends = [AsyncDisk(await storage.client("ram0", f"user{n}")) for n in range(2)]
    await asyncio.gather(*(end.write(n * 100, bytes([n + 1]) * 51200) for n, end in enumerate(ends)))
    assert await shared.read(0, 200) == b"\1" * 51200 + b"\2" * 51200
    statistics = shared.statistics()
    assert statistics["sectors_written"] == 200 and statistics["stalls"] == 0
    assert [client.name for client in shared.all_clients()] == ["rustosctl", "user0", "user1"]
    ends[0].close()
    assert [client.name for client in shared.all_clients()] == ["rustosctl", "user1"]
    assert await ends[1].read(0, 1) == b"\1" * 512
    ends[1].close()


async def test_closing_a_shared_disk_ends_what_others_had_asked(storage):
    disk = ModelDisk(lazy=True)
    shared = SharedDisk(disk)
    other = AsyncDisk(shared.client("other"))
    waiting = asyncio.ensure_future(other.read(0, 8))
    await asyncio.sleep(0.01)
    shared.close()
    shared.close()
    with pytest.raises(DiskError, match="the disk is gone"):
        await waiting
    other.close()
    assert disk.closed


async def test_a_slow_disk_wakes_the_loop_for_each_client():
    """The model's completions come by its descriptor, from outside."""
    disk = ModelDisk(lazy=True)
    shared = SharedDisk(disk)
    ends = [AsyncDisk(shared.client(f"user{n}")) for n in range(3)]
    reads = [asyncio.ensure_future(end.read(8 * n, 8)) for n, end in enumerate(ends)]
    while len(disk.asked) < 3:
        await asyncio.sleep(0.001)
    for _ in range(3):
        disk.end(-1)
        await asyncio.sleep(0.001)
    assert await asyncio.wait_for(asyncio.gather(*reads), 5) == [bytes(4096)] * 3
    for end in ends:
        end.close()
    shared.close()


async def test_limits_of_the_configuration_are_each_clients(storage):
    storage.open(disks(RAM + "client_requests_per_s = 50\n"))
    client = await storage.client("ram0", "limited")
    end = AsyncDisk(client)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(*(end.read(n, 1) for n in range(0, 30, 2)))
    assert loop.time() - began >= 0.15          # fifteen, of which five may come at once
    assert client.statistics()["throttled"] > 0
    end.close()


@pytest.fixture
def image(tmp_path):
    """A file with a GPT of two partitions, as sfdisk makes it."""
    sfdisk = shutil.which("sfdisk", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if sfdisk is None:
        pytest.skip("sfdisk is not installed; scripts/test installs it")
    path = tmp_path / "a.img"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    script = "label: gpt\nfirst-lba: 2048\nsize=1MiB, name=first\nsize=2MiB, name=second\n"
    subprocess.run([sfdisk, "-q", path], input=script, text=True, check=True, capture_output=True)
    return path


async def test_partitions_are_disks(image, storage):
    storage.open(disks(f'[[disk]]\nname = "a"\npath = "{image}"\n'))
    client = await storage.client("a/p2", "user", sector_octets=1)
    assert (client.info.name, client.info.octets) == ("a/p2", 2 * MIB)
    end = AsyncDisk(client)
    await end.write(2 * MIB - 5, b"12345")
    with pytest.raises(DiskError, match="beyond its end"):
        await end.write(2 * MIB - 4, b"12345")
    assert await storage.find("a").read(2048 + 2048 + 4096 - 1, 1) == bytes(507) + b"12345"
    end.close()
    for name, message in (("a/p3", "it has p1, p2"), ("b", "no such disk; there is a"), ("a/px", "no such disk")):
        with pytest.raises(DeviceError, match=message):
            await storage.client(name, "user")


class Core:
    devices = None

    def __init__(self, storage):
        self.storage = storage


async def test_the_operator_sees_partitions_users_and_latencies(image, storage):
    storage.open(disks(f'[[disk]]\nname = "a"\npath = "{image}"\n' + RAM))
    operations = DiskOperations()
    operations.core = Core(storage)
    assert [row.name for row in await operations.disk_list(p.Nothing())] == ["a", "ram0"]
    client = await storage.client("a/p1", "export vm1")
    shown = await operations.disk_show(p.DiskName(disk="a"))
    assert [(part.name, part.octets, part.offset, part.label) for part in shown.partitions] == [
        ("a/p1", MIB, MIB, "first"), ("a/p2", 2 * MIB, 2 * MIB, "second")]
    assert [(user.user, user.disk) for user in shown.users] == [("rustosctl", "a"), ("export vm1", "a/p1")]
    assert shown.users[0].requests > 0 and shown.users[1].requests == 0
    (latency,) = shown.latency
    assert latency.operation == "read" and 0 < latency.p50_us <= latency.p99_us
    await operations.disk_write(p.DiskWrite(disk="ram0", token="ram0", offset=1000, octets=b"hello"))
    await operations.disk_flush(p.DiskName(disk="ram0"))
    assert (await operations.disk_read(p.DiskRead(disk="ram0", offset=998, octets=9))).octets == b"\0\0hello\0\0"
    measured = await operations.disk_bench(p.DiskBench(disk="ram0", depth=64, seconds=0.05))
    assert (measured.depth, measured.errors) == (64, 0) and measured.requests > 0
    client.close()
    shown = await operations.disk_show(p.DiskName(disk="ram0"))
    assert shown.partitions == [] and shown.table == ""


async def test_a_table_that_cannot_be_believed_is_shown_as_that(storage):
    storage.open(disks(RAM))
    shared = storage.find("ram0")
    await shared.write(0, bytes(446) + struct.pack("<B3xB3xII", 0, 0x83, 1, 1 << 30) + bytes(48) + b"\x55\xaa")
    operations = DiskOperations()
    operations.core = Core(storage)
    shown = await operations.disk_show(p.DiskName(disk="ram0"))
    assert "partition 1, 1073741824 sectors at 1, is not on this disk" in shown.table
    with pytest.raises(DeviceError, match="cannot be used"):
        await storage.client("ram0/p1", "user")


async def test_what_cannot_be_opened_ends_the_start_unless_it_is_optional(tmp_path, storage):
    text = f'[[disk]]\nname = "a"\npath = "{tmp_path}/none/a.img"\n'
    with pytest.raises(DeviceError, match="does not exist"):
        storage.open(disks(text))
    storage.open(disks(text + "optional = true\n" + RAM))
    assert [disk.info.name for disk in storage] == ["ram0"]


async def test_a_file_of_ours_goes_away_while_nothing_was_written(tmp_path):
    text = f'[[disk]]\nname = "a"\npath = "{tmp_path}/disks/a.img"\nsize = "8MiB"\n'
    for written in (False, True):
        storage = Storage(asyncio.get_running_loop())
        storage.open(disks(text))
        if written:
            await storage.find("a").write(0, b"x" * 512)
        storage.close()
        assert (tmp_path / "disks" / "a.img").exists() == written
        assert (tmp_path / "disks").exists() == written


async def test_metrics_have_every_disk_and_operation(storage):
    storage.open(disks(RAM))
    await storage.find("ram0").write(0, bytes(4096))
    samples = {(sample.name, *sample.labels.values()): sample.value
               for family in block_metrics.collect(storage) for sample in family.samples}
    assert samples["rustos_block_requests_total", "ram0", "write"] == 1
    assert samples["rustos_block_octets_total", "ram0", "write"] == 4096
    assert samples["rustos_block_size_octets", "ram0"] == 8 * MIB
    assert samples["rustos_block_request_duration_seconds_count", "ram0", "write"] == 1
    assert samples["rustos_block_stalled", "ram0"] == 0


async def test_numbers_outlive_the_client_that_made_them():
    queue = Queue(RamDisk("ram", MIB))
    end = AsyncDisk(Client(queue, "short-lived"))
    await end.write(0, bytes(512))
    end.close()
    assert queue.requests_ended()["operations"]["write"][:2] == (1, 512)
    queue.close()
