"""AHCI on real vfio-pci and UIO against QEMU's controller: what is read and written is what stands in the host's files."""

import hashlib
import random
from errno import EINVAL, EIO, EOPNOTSUPP, EROFS, ETIMEDOUT

import pytest

from tests.lab import inside_ahci as inside
from tests.lab.guest import AHCI, BAD_READ, BAD_WRITE, CD, CD_OCTETS, DISK_OCTETS, DISKS, FLAKY

SECTOR = 512
MODES = [("vfio", ("msi",)), ("vfio", ("intx",)), ("vfio", ()), ("uio", ("intx",))]


@pytest.fixture(scope="module", autouse=True)
def prepared(guest):
    """Random disks and our code imported once; afterwards the kernel has its controller and reads its disks."""
    guest.preload("tests.lab.inside_ahci")
    guest.run("sysctl -q vm.nr_hugepages=8 && modprobe uio_pci_generic && modprobe ahci && modprobe sd_mod")
    dice = random.Random(3)
    for name in DISKS:
        with guest.disk(name).open("r+b") as file:
            file.write(dice.randbytes(2 << 20))
    before = faults(guest)
    yield
    guest.run("sysctl -q vm.nr_hugepages=0")
    assert faults(guest) == before
    assert guest.run(f"basename $(readlink /sys/bus/pci/devices/{AHCI}/driver)").stdout.strip() == "ahci"


def faults(guest):
    """How many accesses the IOMMU has stopped."""
    return int(guest.run("dmesg | grep -c 'DMAR:.*fault' || true").stdout)


def on_host(guest, name, lba, sectors):
    with guest.disk(name).open("rb") as file:
        file.seek(lba * SECTOR)
        return file.read(sectors * SECTOR)


def go(guest):
    """What the function in the guest asked for is done."""
    guest.put(str(inside.GO), b"")


def test_the_controller_and_its_disks_say_what_they_are(guest):
    seen = guest.call(inside.look)
    assert seen["kind"] == "msi"
    assert seen["ports"] == [("READY", "")] * 4 + [("ABSENT", "nothing is attached")] * 2
    assert [(disk.name, disk.serial, disk.octets, disk.sector_octets, disk.queue_depth) for disk in seen["disks"]] == [
        *((f"{AHCI}/{port}", f"LAB-{name.upper()}", DISK_OCTETS, 512, 32) for port, name in enumerate([*DISKS, FLAKY])),
        (f"{AHCI}/3", "LAB-CD", CD_OCTETS, 2048, 1)]
    assert seen["disks"][0].model == "QEMU HARDDISK"
    assert seen["dump"]["PxSSTS[0..3]"] == "DET=UP SPD=1 IPM=1"


@pytest.mark.parametrize(("backend", "interrupts"), MODES, ids=lambda v: v if isinstance(v, str) else "".join(v) or "polled")
def test_both_disks_read_what_the_host_wrote_and_the_host_reads_what_they_wrote(guest, backend, interrupts):
    for name in DISKS:
        with guest.disk(name).open("r+b") as file:
            file.seek(-128 * SECTOR, 2)
            file.write(bytes(128 * SECTOR))
    seen = guest.call(inside.move, backend, interrupts)
    assert seen["kind"] == (interrupts or ("polled",))[0]
    first = [on_host(guest, name, 0, 128) for name in DISKS]
    assert seen["first"] == first and first[0] != first[1]
    assert seen["again"] == first[::-1]
    assert [on_host(guest, name, DISK_OCTETS // SECTOR - 128, 128) for name in DISKS] == first[::-1]
    for statistics in seen["statistics"]:
        assert (statistics["reads"], statistics["writes"], statistics["flushes"], statistics["failed"]) == (2, 1, 1, 0)
        assert bool(statistics["wakeups"]) is bool(interrupts)


def test_a_disk_without_command_queuing_works_one_at_a_time(guest):
    seen = guest.call(inside.move, "vfio", ("msi",), queued=False)
    assert seen["first"] == [on_host(guest, name, 0, 128) for name in DISKS]
    assert seen["again"] == seen["first"][::-1]


@pytest.mark.parametrize("interrupts", [("msi",), ()], ids=["msi", "polled"])
def test_a_random_mix_at_depth_32_agrees_with_a_model(guest, interrupts):
    seen = guest.call(inside.model, 11, 600, interrupts)
    assert seen["wrong"] == [] and seen["right"]
    assert seen["octets"] == on_host(guest, "disk1", 1024, 512)
    statistics = seen["statistics"]
    assert statistics["flushes"] > 3 and statistics["failed"] == statistics["resets"] == 0
    assert statistics["reads"] + statistics["writes"] > 400


def test_a_request_goes_straight_to_scattered_memory_and_one_that_makes_no_sense_is_refused(guest):
    seen = guest.call(inside.scatter)
    assert seen["done"] == [0, 0, 0]
    assert seen["gathered"] == on_host(guest, "disk0", 16, seen["sectors"]) and seen["gaps"]
    assert on_host(guest, "disk0", 8192, seen["sectors"]) == seen["gathered"]
    assert seen["refused"] == [EINVAL] * 7 + [EOPNOTSUPP, EINVAL, 0]


def test_errors_of_the_disk_are_told_and_everything_else_goes_on(guest):
    call = guest.start(inside.errors, 2, BAD_READ, BAD_WRITE, timeout=90)
    for asked, fail in (("fail flushes", True), ("let flushes pass", False)):
        assert call.next(60) == asked
        guest.fail_flushes(fail)
        go(guest)
    seen = call.result()
    assert (seen["read"], seen["after"], seen["write"]) == ([EIO], [0, 0, 0], [EIO])
    assert seen["among"] == [0] * 15 + [EIO] + [0] * 15 + [EIO]
    assert (seen["flush"], seen["between"], seen["flush again"]) == ([EIO], [0, 0], [0, 0, 0])
    assert seen["state"] == "READY" and seen["statistics"]["failed"] == 5 and seen["statistics"]["timeouts"] == 0


def test_a_command_that_hangs_ends_and_the_disk_comes_back_by_comreset(guest):
    call = guest.start(inside.hang, 1, 0.5, timeout=120)
    try:
        for asked, limit in (("be slow", 256 << 10), ("be fast", 0)):
            assert call.next(60) == asked
            guest.throttle("disk1", limit)
            go(guest)
    finally:
        guest.throttle("disk1", 0)
    seen = call.result()
    assert (seen["first"], seen["slow"]) == ([0], [ETIMEDOUT])
    assert seen["after"] == [0] * 4 and seen["state"] == "READY"
    assert seen["statistics"]["timeouts"] == 1 and seen["statistics"]["resets"] >= 1


def test_a_drive_does_what_an_operator_asks_for_besides_reading_and_writing(guest):
    with guest.disk("disk1").open("r+b") as file:
        file.seek(16384 * SECTOR)
        file.write(b"x" * (4 << 20))
    before = guest.disk("disk1").stat().st_blocks
    seen = guest.call(inside.services, 1)
    assert seen["trim"] == [0, 0] and before - guest.disk("disk1").stat().st_blocks >= 4 << 11
    assert on_host(guest, "disk1", 16384, 1) == bytes(SECTOR)
    health = seen["health"]
    assert health.healthy and health.celsius and health.error_count == 0 and len(health.attributes) > 5
    assert "no self-test" in seen["test"] and "cannot erase itself" in seen["erase"]
    assert (seen["cache"], seen["mode"], seen["between"]) == ([True, False, True], "active or idle", [0, 0])


def test_a_disc_is_read_taken_out_and_exchanged(guest, tmp_path):
    discs = [random.Random(seed).randbytes(CD_OCTETS) for seed in (1, 2)]
    guest.disk(CD).write_bytes(discs[0])
    second = guest.disk(CD).with_name("second.raw")
    second.write_bytes(discs[1])
    guest.change_disc(guest.disk(CD))
    call = guest.start(inside.discs, timeout=90)
    for asked, disc in (("take the disc out", None), ("put another one in", second)):
        assert call.next(60) == asked
        guest.change_disc(disc)
        go(guest)
    seen = call.result()
    assert seen["first"] == discs[0][:4096] and seen["last"] == discs[0][-4096:] and seen["write"] == [EROFS]
    assert seen["gone"] == "its medium was taken out" and seen["second"] == discs[1][:4096]
    assert seen["resets"] == 0


def test_given_back_the_kernel_reads_its_disks(guest):
    guest.call(inside.look)
    device = guest.kernel_disk(AHCI)
    checksum = guest.run(f"dd if={device} bs=64k count=16 iflag=direct status=none | sha256sum").stdout.split()[0]
    assert checksum == hashlib.sha256(on_host(guest, "disk0", 0, 2048)).hexdigest()
