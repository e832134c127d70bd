"""Disks on the loop: awaitable requests in pieces, errors with names, cancellation, measurement, the end."""

import asyncio
import errno
import random
import time

import pytest

from drivers.ahci.controller import AhciController
from drivers.disk import DiskError
from drivers.request import Operation
from rustosd.busy_poll import BusyPoll
from rustosd.disks import CHUNK, CHUNKS, LONGEST, AsyncDisk
from tests.drivers.ahci.conftest import AhciDevice
from tests.models.ahci import FLUSH, SECTOR, Drive, Model, identification

SECTORS = 1 << 16


class Served:
    """A model with its driver, on the loop."""

    def __init__(self, kind, **options):
        self.drive = Drive(identity=identification(sectors=SECTORS))
        self.model = Model(self.drive)
        self.model.clock = time.monotonic_ns
        self.device = AhciDevice(self.model, (kind,) if kind else ())
        self.controller = AhciController(self.device, interrupts=(kind,) if kind else (), **options)
        self.disk = AsyncDisk(self.controller.disks[0], asyncio.get_running_loop())

    def close(self):
        self.disk.close()
        for block in self.device.bus.blocks:
            if "bench" in block.owner or block.owner == "test":
                block.free()
        self.controller.close()


@pytest.fixture(params=["msi", None], ids=["interrupt", "polled"])
async def served(request):
    made = Served(request.param)
    yield made
    made.close()


async def test_what_was_written_is_read_in_as_many_pieces_as_it_takes(served):
    data = random.Random(1).randbytes(3 * CHUNK + 5 * SECTOR)
    await served.disk.write(7, data)
    assert await served.disk.read(7, len(data) // SECTOR) == data
    assert await served.disk.read(7, 0) == b""
    statistics = served.disk.statistics()
    assert (statistics["reads"], statistics["writes"], statistics["under_way"], statistics["waiting"]) == (4, 4, 0, 0)
    assert served.drive.durable == {}
    await served.disk.flush()
    assert served.drive.durable[7] == data[:SECTOR]
    await served.disk.write(9, bytes(SECTOR), fua=True)
    assert served.drive.durable[9] == bytes(SECTOR)


async def test_many_tasks_share_few_buffers(served):
    disk = served.disk
    blocks = {n: random.Random(n).randbytes(8 * SECTOR) for n in range(200)}
    await asyncio.gather(*(disk.write(8 * n, octets) for n, octets in blocks.items()))
    assert await asyncio.gather(*(disk.read(8 * n, 8) for n in blocks)) == list(blocks.values())
    assert disk._buffer_count <= CHUNKS


async def test_what_makes_no_sense_is_said_before_the_disk_is_asked(served):
    disk = served.disk
    with pytest.raises(ValueError, match="not whole sectors"):
        await disk.write(0, bytes(511))
    with pytest.raises(ValueError, match="at a time"):
        await disk.read(0, LONGEST // SECTOR + 1)
    with pytest.raises(ValueError):
        await disk.read(-1, 1)
    with pytest.raises(DiskError, match="beyond its end") as caught:
        await disk.read(SECTORS, 1)
    assert caught.value.errno == errno.EINVAL
    assert served.drive.executed[1:] == []


async def test_an_error_names_the_disk_the_request_and_what_to_do(served):
    served.drive.fail[100] = 0x40
    with pytest.raises(DiskError, match=r"^0000:00:1f.2/0: read of 8 sectors at 96 failed: the medium is damaged") as caught:
        await served.disk.read(96, 8)
    assert caught.value.errno == errno.ENODATA
    served.drive.broken[FLUSH] = 0x04
    with pytest.raises(DiskError, match="flush failed: the disk says that it failed"):
        await served.disk.flush()
    assert await served.disk.read(0, 8) == bytes(8 * SECTOR)


async def test_a_cancelled_read_gives_its_buffer_back_only_when_the_disk_is_done(served):
    disk, model = served.disk, served.model
    await disk.read(0, 1)
    model.lazy = True
    task = asyncio.create_task(disk.read(0, 8))
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert disk.statistics()["under_way"] == 1 and not disk._buffers
    model.lazy = False
    model.run()
    assert await disk.read(0, 8) == bytes(8 * SECTOR)
    assert disk.statistics()["under_way"] == 0 and len(disk._buffers) == disk._buffer_count


async def test_requests_go_straight_to_the_callers_memory(served):
    memory = served.disk.allocate(8192, "test")
    memory.view()[:1024] = b"x" * 1024
    await served.disk.submit(Operation.WRITE, 3, 2, [(memory, 0, 512), (memory, 512, 512)])
    assert served.drive.sector(4) == b"x" * 512
    with pytest.raises(ValueError):
        await served.disk.submit(Operation.READ, 3, 2, [(memory, 8000, 1024)])


async def test_a_disk_that_leaves_ends_everything_with_enodev(served):
    served.model.lazy = True
    tasks = [asyncio.create_task(served.disk.read(n, 1)) for n in range(40)]
    for _ in range(5):
        await asyncio.sleep(0)
    served.model.gone = True
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
    assert {getattr(result, "errno", result) for result in results} == {errno.ENODEV}
    with pytest.raises(DiskError, match="is gone"):
        await served.disk.read(0, 1)
    with pytest.raises(DiskError, match="is gone"):
        await served.disk.bench("random", 4096, 1, 0.01)


async def test_closing_ends_what_is_under_way(served):
    served.model.lazy = True
    task = asyncio.create_task(served.disk.read(0, 1))
    for _ in range(5):
        await asyncio.sleep(0)
    served.disk.close()
    with pytest.raises(DiskError):
        await task
    with pytest.raises(DiskError):
        await served.disk.flush()


@pytest.mark.parametrize("pattern", ["random", "sequential"])
async def test_a_measurement_keeps_its_depth_and_lets_others_read(served, pattern):
    task = asyncio.create_task(served.disk.bench(pattern, 4096, 16, 0.3))
    await asyncio.sleep(0.05)
    assert await served.disk.read(0, 8) == bytes(8 * SECTOR)
    result = await task
    assert result.operations > 16 and result.errors == 0 and result.depth == 16
    assert 0 < result.p50_us <= result.p90_us <= result.p99_us <= result.p999_us <= result.longest_us
    asked = {(lba % 8, sectors) for _, lba, sectors in served.drive.executed if sectors == 8}
    assert asked == {(0, 8)}
    lbas = [lba for _, lba, sectors in served.drive.executed[2:50] if sectors == 8]
    assert (max(lbas) > SECTORS // 4) is (pattern == "random")
    assert served.disk.statistics()["under_way"] == 0


@pytest.mark.parametrize(("arguments", "why"), [
    (("zigzag", 4096, 1), "zigzag"), (("random", 1000, 1), "1000"), (("random", 4096, 0), "depth"),
    (("random", 0, 1), "blocks"),
])
async def test_a_measurement_that_makes_no_sense_is_refused(served, arguments, why):
    with pytest.raises(ValueError, match=why):
        await served.disk.bench(*arguments, 0.01)
    assert (await served.disk.bench("random", 4096, 1, 0.02)).operations > 0


async def test_while_completions_keep_coming_nobody_is_woken_by_interrupts():
    made = Served("msi")
    try:
        made.disk._poll = BusyPoll(10**9)
        made.model.lazy = True
        measuring = asyncio.create_task(made.disk.bench("random", 4096, 1, 0.05))
        while not measuring.done():
            made.model.run()                        # the disk takes longer than a turn
            await asyncio.sleep(0)
        result = measuring.result()
        assert result.operations > 5 and made.disk.statistics()["wakeups"] == 0
    finally:
        made.close()


async def test_a_disk_that_lets_wait_is_slept_on_and_wakes_by_its_interrupt():
    made = Served("msi")
    try:
        made.model.lazy = True
        reading = asyncio.create_task(made.disk.read(0, 8))
        while not made.disk.disk._armed:            # looks on for a moment, then sleeps
            await asyncio.sleep(0.001)
        looks = made.disk.statistics()["looks"]
        await asyncio.sleep(0.05)
        assert made.disk.statistics()["looks"] - looks <= 2
        made.model.lazy = False
        made.model.run()
        assert await reading == bytes(8 * SECTOR) and made.disk.statistics()["wakeups"] >= 1
    finally:
        made.close()
