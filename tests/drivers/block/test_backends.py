"""Files and memory as disks: the same promises, kept by io_uring, by helper threads and by memcpy."""

import errno
import fcntl
import os
import random
import select
import subprocess

import pytest

from drivers.block import host_file, loop_writes
from drivers.block.file import FileDisk
from drivers.block.memory import HostBuffer
from drivers.block.ram import RamDisk
from drivers.disk import GONE, Feature
from drivers.errors import DeviceError
from drivers.request import CompletionBurst, ExtentFlag, Flag, Operation, RequestBurst
from tests.drivers.block.driver import Driver

MIB = 1 << 20
HOLE = ExtentFlag.HOLE | ExtentFlag.ZERO
CHANGES = (Operation.READ, Operation.WRITE, Operation.WRITE, Operation.TRIM, Operation.WRITE_ZEROES)
KINDS = ("ram", "ring", "threads", "direct", "in_loop")


def made(kind, path, octets=8 * MIB, **options):
    if kind == "ram":
        return RamDisk("disk", octets, **options)
    return FileDisk.open(str(path / "disk.img"), "disk", create_octets=octets, direct=kind == "direct",
                         engine=kind if kind in ("ring", "threads") else "auto", write_in_loop=kind == "in_loop", **options)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def driver(kind, tmp_path):
    with_disk = Driver(made(kind, tmp_path))
    yield with_disk
    with_disk.close()


def test_a_new_disk_reads_as_zeros_and_says_what_it_is(driver, kind):
    info = driver.disk.info
    assert (info.name, info.octets, info.sector_octets) == ("disk", 8 * MIB, 512)
    assert Feature.TRIM | Feature.FUA | Feature.WRITE_ZEROES | Feature.EXTENTS in info.features
    assert (Feature.WRITE_CACHE in info.features) == (kind != "ram")
    assert driver.read(1000, 100) == bytes(51200)
    assert driver.disk.room() > 0 and driver.disk.wake_at() is None


def test_what_was_written_is_read_from_scattered_memory(driver):
    memory = driver.memory
    data = random.Random(1).randbytes(8 * 512)
    assert driver.write(5, data) == 0
    pieces = [(memory, 65536, 100), (memory, 0, 412), (memory, 4096, 7 * 512)]
    assert driver.do(Operation.READ, 5, 8, pieces) == 0
    with memory.view() as view:
        assert bytes(view[65536:65636]) + bytes(view[:412]) + bytes(view[4096:4096 + 7 * 512]) == data
    assert driver.read(4, 10) == bytes(512) + data + bytes(512)


def test_trim_zeroes_flush_and_fua(driver):
    assert driver.write(0, b"x" * MIB, fua=True) == 0
    assert driver.flush() == 0
    assert driver.do(Operation.TRIM, 8, 64) == 0
    assert driver.do(Operation.WRITE_ZEROES, 101, 3, flags=Flag.FUA) == 0
    assert driver.do(Operation.WRITE_ZEROES, 256, 256, flags=Flag.KEEP_ALLOCATED | Flag.FAST) == 0
    found = driver.read(0, 512)
    assert found[:4096] == b"x" * 4096 and found[4096:4096 + 32768] == bytes(32768)
    assert found[100 * 512:105 * 512] == b"x" * 512 + bytes(3 * 512) + b"x" * 512
    assert found[131072:262144] == bytes(131072)
    statistics = driver.disk.statistics()
    assert (statistics["writes"], statistics["trims"], statistics["zeroes"], statistics["flushes"]) == (1, 1, 2, 1)
    assert (statistics["sectors_written"], statistics["sectors_trimmed"], statistics["sectors_zeroed"]) == (2048, 64, 259)


def test_extents_tell_holes_from_data(driver):
    assert driver.extents(100, 1000) == [(1000, HOLE)]
    driver.write(1024, b"x" * 65536)
    driver.flush()
    assert driver.extents(0, 4096) == [(1024, HOLE), (128, 0), (2944, HOLE)]
    assert driver.extents(1030, 10) == [(10, 0)]
    assert driver.extents(0, 4096, room=2) == [(1024, HOLE), (128, 0)]
    assert driver.extents(0, 16384 + 1) == errno.EINVAL
    assert driver.do(Operation.EXTENTS, 0, 8, [(driver.memory, 0, 4)]) == errno.EINVAL


@pytest.mark.parametrize(("operation", "lba", "sectors", "octets", "options", "error"), [
    (Operation.READ, 16384, 1, (512,), {}, errno.EINVAL),
    (Operation.READ, 16383, 2, (1024,), {}, errno.EINVAL),
    (Operation.READ, 1 << 63, 1, (512,), {}, errno.EINVAL),
    (Operation.READ, 0, 0, (), {}, errno.EINVAL),
    (Operation.READ, 0, 2, (512,), {}, errno.EINVAL),
    (Operation.READ, 0, 1, (512, 0), {}, errno.EINVAL),
    (Operation.READ, 0, 1, (512,), {"fua": True}, errno.EOPNOTSUPP),
    (Operation.WRITE, 0, 1, (513,), {}, errno.EINVAL),
    (Operation.WRITE, 0, 1, (), {}, errno.EINVAL),
    (Operation.FLUSH, 0, 1, (), {}, errno.EINVAL),
    (Operation.FLUSH, 0, 0, (512,), {}, errno.EINVAL),
    (Operation.TRIM, 0, 16385, (), {}, errno.EINVAL),
    (Operation.TRIM, 0, 1, (512,), {}, errno.EINVAL),
    (Operation.WRITE_ZEROES, 0, 0, (), {}, errno.EINVAL),
    (17, 0, 1, (512,), {}, errno.EOPNOTSUPP),
])
def test_what_makes_no_sense_is_refused_with_its_errno(driver, operation, lba, sectors, octets, options, error):
    assert driver.do(operation, lba, sectors, [(driver.memory, 0, length) for length in octets], **options) == error
    assert driver.disk.statistics()["refused"] == 1


def test_a_read_only_disk_refuses_every_change(kind, tmp_path):
    if kind != "ram":
        made(kind, tmp_path).close()
    driver = Driver(made(kind, tmp_path, read_only=True))
    assert Feature.READ_ONLY in driver.disk.info.features
    for operation in (Operation.TRIM, Operation.WRITE_ZEROES):
        assert driver.do(operation, 0, 8) == errno.EROFS
    assert driver.write(0, bytes(512)) == errno.EROFS
    assert driver.read(0, 1) == bytes(512) and driver.flush() == 0
    driver.close()


def test_sectors_of_4096_octets(kind, tmp_path):
    driver = Driver(made(kind, tmp_path, 3 * MIB + 5000, sector_octets=4096))
    assert (driver.disk.info.sectors, driver.disk.info.sector_octets) == (769, 4096)
    assert driver.write(768, b"z" * 4096) == 0
    assert driver.read(767, 2) == bytes(4096) + b"z" * 4096
    assert driver.do(Operation.READ, 0, 1, [(driver.memory, 0, 512)]) == errno.EINVAL
    driver.close()


def test_many_random_requests_at_once_do_what_a_byte_array_does(driver):
    """Reads and changes of separate slices are under way together; a slice's next request waits for its last."""
    chance, octets = random.Random(7), 8 * MIB
    reference = bytearray(octets)
    slices = 32
    width = octets // slices
    memory = driver.disk.allocate(slices * 65536, "test")
    pending, expected = {}, {}
    with memory.view() as view:
        for _ in range(4000):
            part = chance.randrange(slices)
            if part in pending:
                assert driver.wait(pending.pop(part)) == 0
                if (wanted := expected.pop(part, None)) is not None:
                    assert bytes(view[part * 65536:part * 65536 + len(wanted)]) == wanted
            sectors = chance.choice((1, 8, 8, 8, 64, 128))
            lba = part * width // 512 + chance.randrange(width // 512 - sectors)
            begin, length = lba * 512, sectors * 512
            segments = [(memory, part * 65536, length)]
            operation = chance.choice(CHANGES)
            options = {"fua": chance.random() < 0.02}
            if operation is Operation.READ:
                expected[part], options = bytes(reference[begin:begin + length]), {}
            elif operation is Operation.WRITE:
                view[part * 65536:part * 65536 + length] = reference[begin:begin + length] = chance.randbytes(length)
            else:
                segments, reference[begin:begin + length] = [], bytes(length)
            pending[part] = driver.post(operation, lba, sectors, segments, **options)
        for part, tag in pending.items():
            assert driver.wait(tag) == 0
            if part in expected:
                assert bytes(view[part * 65536:part * 65536 + len(expected[part])]) == expected[part]
    assert b"".join(driver.read(lba, 2048) for lba in range(0, octets // 512, 2048)) == reference
    memory.free()


def test_a_full_disk_takes_no_more_and_every_request_ends_once(driver):
    burst, room = RequestBurst(), 0
    segments = [(driver.memory, 0, 512)]
    for _ in range(10):
        while burst.append(Operation.WRITE, room, room % 100, 1, segments):
            room += 1
        if not driver.disk.submit(burst):
            break
    assert driver.disk.room() == 0
    taken, seen = room - len(burst), {}
    completions = CompletionBurst()
    while len(seen) < taken:
        if driver.disk.complete(completions):
            for tag, error in completions.items():
                assert tag not in seen and not error
                seen[tag] = True
        elif driver.disk.arm():
            select.select([driver.disk.fileno()], [], [], 1)
    assert driver.disk.room() == 64


def test_closing_ends_everything_and_forgets_nothing_written(kind, tmp_path):
    disk = made(kind, tmp_path)
    driver = Driver(disk)
    for lba in range(50):
        driver.post(Operation.WRITE, lba, 8, [(driver.memory, 0, 4096)])
    disk.close()
    disk.close()
    assert disk.complete(CompletionBurst()) == GONE and disk.fileno() == -1
    driver.memory.free()


# Files only

def test_what_the_page_cache_has_is_read_within_submit(tmp_path):
    driver = Driver(made("ring", tmp_path))
    driver.write(0, b"x" * 65536)
    before = driver.disk.statistics()
    tag = driver.post(Operation.READ, 3, 8, [(driver.memory, 0, 4096)])
    driver.collect()
    assert driver.results.pop(tag) == 0
    assert driver.disk.statistics()["at_once"] == before["at_once"] + 1
    driver.close()


def test_a_flush_with_nothing_to_do_is_done_at_once(tmp_path):
    driver = Driver(made("ring", tmp_path))
    assert driver.flush() == 0          # whoever had it before
    tag = driver.post(Operation.FLUSH)
    driver.collect()
    assert driver.results.pop(tag) == 0
    driver.write(0, b"x" * 512)
    tag = driver.post(Operation.FLUSH)
    assert driver.wait(tag) == 0
    driver.close()


@pytest.fixture
def ext4(tmp_path):
    """A filesystem of its own, where it is mounted."""
    image, where = tmp_path / "ext4", tmp_path / "on"
    where.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 64 * MIB)
    commands = ["mkfs.ext4", "-q", image], ["mount", "-o", "loop", image, where]
    if os.geteuid() or any(subprocess.run(command, check=False, capture_output=True).returncode for command in commands):
        pytest.skip("cannot mount an ext4 here")
    yield where
    subprocess.run(["umount", "-l", where], check=True)


def at_once(driver, lba, octets):
    """Whether a write ends within `submit`."""
    before = driver.disk.statistics()["at_once"]
    assert driver.write(lba, octets) == 0
    return driver.disk.statistics()["at_once"] > before


def test_on_ext4_the_loop_writes_itself_until_a_write_has_held_it_up(ext4):
    driver = Driver(FileDisk.open(str(ext4 / "a.img"), create_octets=8 * MIB))
    at_once(driver, 0, b"x" * 4096)                 # finds out that it cannot say that it would block
    assert at_once(driver, 0, b"x" * 4096) and at_once(driver, 64, b"x" * 4096)
    assert at_once(driver, 1, b"y" * 512)
    driver.flush()
    with (ext4 / "a.img").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert not at_once(driver, 1, b"y" * 512)       # the rest of that page has to be read before
    assert at_once(driver, 1, b"y" * 512)
    subprocess.run(["fsfreeze", "--freeze", ext4], check=True)
    thaw = subprocess.Popen(f"sleep 0.1; fsfreeze --unfreeze {ext4}", shell=True)
    assert at_once(driver, 0, b"z" * 4096) and driver.disk.statistics()["held_up"] == 1
    assert thaw.wait(10) == 0
    assert not at_once(driver, 0, b"z" * 4096)      # for a hundred times as long
    assert driver.read(0, 8) == b"z" * 4096
    driver.close()


@pytest.mark.parametrize("figures", [
    "nr_dirty_threshold 1000\nnr_dirty_background_threshold 500\nnr_dirty 700\nnr_writeback 49\n", "nr_dirty 1\n", ""])
def test_near_the_kernels_limit_for_dirty_memory_a_helper_writes(ext4, monkeypatch, tmp_path, figures):
    (tmp_path / "vmstat").write_text("nr_free_pages 5\n" + figures)
    room = loop_writes.dirty_room(str(tmp_path / "vmstat"))
    assert room == (os.sysconf("SC_PAGE_SIZE") if "threshold" in figures else 0)
    monkeypatch.setattr(loop_writes, "dirty_room", lambda: room)
    driver = Driver(FileDisk.open(str(ext4 / "a.img"), create_octets=8 * MIB))
    assert not any(at_once(driver, 0, b"x" * 4096) for _ in range(3))
    driver.close()


def test_the_loop_leaves_all_writes_to_a_helper_if_told_to(ext4):
    driver = Driver(FileDisk.open(str(ext4 / "a.img"), create_octets=8 * MIB, write_in_loop=False))
    assert not any(at_once(driver, 0, b"x" * 4096) for _ in range(3))
    driver.close()


def test_direct_io_takes_memory_of_any_alignment(tmp_path):
    driver = Driver(made("direct", tmp_path))
    assert driver.disk.info.physical_octets in (512, 4096)
    data = random.Random(3).randbytes(1024)
    with driver.memory.view() as view:
        view[7:1031] = data
    assert driver.do(Operation.WRITE, 1, 2, [(driver.memory, 7, 1024)]) == 0
    assert driver.read(0, 8)[512:1536] == data
    driver.close()


def test_a_file_is_opened_once_and_what_cannot_be_opened_says_what_to_do(tmp_path):
    path = str(tmp_path / "a.img")
    with pytest.raises(DeviceError, match="give its size"):
        FileDisk.open(path)
    disk = FileDisk.open(path, create_octets=MIB)
    with pytest.raises(DeviceError, match="another program has it locked"):
        FileDisk.open(path)
    disk.close()
    FileDisk.open(path, create_octets=2 * MIB).close()
    assert os.stat(path).st_size == 2 * MIB and os.stat(path).st_blocks == 0
    first, second = FileDisk.open(path, read_only=True), FileDisk.open(path, read_only=True)
    with pytest.raises(DeviceError, match="locked"):
        FileDisk.open(path)
    first.close()
    second.close()
    (tmp_path / "empty").touch()
    with pytest.raises(DeviceError, match="no sector of 512"):
        FileDisk.open(str(tmp_path / "empty"))
    with pytest.raises(DeviceError, match="is a directory"):
        FileDisk.open(str(tmp_path))
    with pytest.raises(DeviceError, match="neither a regular file"):
        FileDisk.open("/dev/null")
    with pytest.raises(DeviceError, match="512 or 4096"):
        FileDisk.open(path, sector_octets=520)


def test_a_file_that_shrinks_under_us_gives_errors_and_no_more(tmp_path):
    driver = Driver(made("ring", tmp_path))
    for octets in (4100, 4096):
        os.truncate(tmp_path / "disk.img", octets)
        assert driver.read(0, 8) == bytes(4096)
        assert driver.read(8, 8) == errno.EIO
        assert driver.extents(0, 100) == [(8, HOLE), (92, 0)]       # no hole, which a client would not even read
        assert driver.extents(50, 100) == [(100, 0)]
    assert driver.write(8, b"x" * 512) == 0     # which makes it longer again
    driver.close()


@pytest.fixture
def mounted(tmp_path, request):
    """A filesystem in memory, as (kind, options)."""
    where, (filesystem, options) = tmp_path / "mounted", request.param
    where.mkdir()
    command = ["mount", "-t", filesystem, "-o", options, "none", where]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip(f"cannot mount a {filesystem} here")
    yield where
    subprocess.run(["umount", "-l", where], check=True)


@pytest.mark.parametrize("mounted", [("tmpfs", "size=1m")], indirect=True)
@pytest.mark.parametrize("engine", ["ring", "threads"])
def test_a_full_filesystem_is_enospc_and_the_disk_goes_on(mounted, engine):
    driver = Driver(FileDisk.open(str(mounted / "a.img"), create_octets=8 * MIB, engine=engine))
    errors = [driver.write(n * 128, b"x" * 65536) for n in range(20)]
    assert errors.count(0) == 16 and set(errors[16:]) == {errno.ENOSPC}
    assert driver.read(0, 128) == b"x" * 65536 and driver.flush() == 0
    assert driver.do(Operation.TRIM, 0, 256) == 0
    assert driver.write(4096, b"y" * 65536) == 0
    assert driver.disk.statistics()["failed"] == 4
    driver.close()


@pytest.mark.parametrize("mounted", [("ramfs", "mode=700")], indirect=True)
def test_a_filesystem_without_holes_gets_its_zeros_written(mounted):
    driver = Driver(FileDisk.open(str(mounted / "a.img"), create_octets=8 * MIB))
    assert Feature.WRITE_ZEROES in driver.disk.info.features
    assert not driver.disk.info.features & (Feature.TRIM | Feature.FAST_ZEROES)
    for lba in range(0, 8192, 2048):
        driver.write(lba, b"x" * MIB)
    assert driver.do(Operation.TRIM, 0, 8) == errno.EOPNOTSUPP
    assert driver.do(Operation.WRITE_ZEROES, 8, 6000, flags=Flag.FAST) == errno.EOPNOTSUPP
    assert driver.do(Operation.WRITE_ZEROES, 8, 6000, flags=Flag.FUA) == 0
    assert driver.read(0, 2048) == b"x" * 4096 + bytes(MIB - 4096)
    assert driver.read(6000, 16) == bytes(8 * 512) + b"x" * 4096
    driver.close()


def test_a_block_device_is_taken_only_when_it_is_asked_for(tmp_path, monkeypatch):
    """The host's own devices are left alone by the tests: what stat says is made up."""
    image = tmp_path / "a.img"
    image.write_bytes(bytes(MIB))
    real = os.fstat
    monkeypatch.setattr(host_file.os, "fstat", lambda fd: os.stat_result((0o060600, *real(fd)[1:])))
    with pytest.raises(DeviceError, match="block device of this machine"):
        FileDisk.open(str(image))
    monkeypatch.setattr(host_file.fcntl, "ioctl", lambda fd, request, octets: (4096).to_bytes(4, "little"))
    with pytest.raises(DeviceError, match="sector_octets = 4096"):
        FileDisk.open(str(image), allow_device=True)
    opened = host_file.open_file(str(image), allow_device=True, sector_octets=4096)
    assert (opened.is_device, opened.octets, opened.physical_octets) == (True, MIB, 4096)
    opened.close()
    opened.close()


def test_a_lock_of_somebody_else_is_respected(tmp_path):
    path = tmp_path / "a.img"
    path.write_bytes(bytes(MIB))
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DeviceError, match="another program writes to it"):
            FileDisk.open(str(path), read_only=True)


# Memory only

def test_a_ram_disk_takes_memory_only_for_what_it_holds():
    driver = Driver(RamDisk("big", 1 << 40))
    assert driver.disk.statistics()["memory_octets"] == 0
    driver.write((1 << 31) - 8, b"x" * 4096)
    driver.do(Operation.WRITE_ZEROES, 0, 8, flags=Flag.KEEP_ALLOCATED)
    assert driver.disk.statistics()["memory_octets"] == 8192
    assert driver.extents((1 << 31) - 16, 16) == [(8, HOLE), (8, 0)]
    driver.do(Operation.TRIM, (1 << 31) - 16, 16)
    assert driver.disk.statistics()["memory_octets"] == 4096
    driver.close()


def test_a_ram_disk_has_limits():
    with pytest.raises(DeviceError, match="possible"):
        RamDisk("none", 511)
    with pytest.raises(DeviceError, match="512 or 4096"):
        RamDisk("odd", 4096, sector_octets=1024)


def test_memory_is_zeroed_and_gone_once_freed():
    buffer = HostBuffer(5000, "test")
    with buffer.view() as view:
        assert bytes(view) == bytes(5000) and buffer.address % 4096 == 0
    buffer.free()
    buffer.free()
    with pytest.raises(ValueError, match="freed"):
        buffer.view()
    with pytest.raises(DeviceError):
        HostBuffer(0, "test")
