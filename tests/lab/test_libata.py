"""Linux's own libata drives the AHCI model in a guest: it is the judge of what the model does. See docs/models.md."""

import errno
import hashlib
import random
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from drivers.ahci import registers as r
from tests.lab import inside_libata as inside
from tests.lab.guest import Guest
from tests.lab.image import environment
from tests.lab.packages import LabUnavailable
from tests.models.ahci import QUEUED, READ_FPDMA, WRITE_FPDMA, Drive, Model
from tests.models.ahci.card import Card
from tests.models.ahci.commands import ABRT, DATA_SET_MANAGEMENT, FLUSH_28, ICRC, READ_LOG_DMA, SEND_FPDMA, UNC
from tests.models.ahci.firmware import Firmware
from tests.models.ahci.link import ACTIVE, SLUMBER
from tests.models.ahci.logs import NCQ_ERROR
from tests.models.ahci.multiplier import CONTROL, Multiplier
from tests.models.ahci.packet import Disc
from tests.models.vfio_user_server import Server

pytestmark = pytest.mark.long
PLAIN, FAULTY, LARGE, MULTIPLIER, PACKET, EMPTY, FEATURES = range(7)
"""Ports of the first adapter."""
SECTORS = 65536
HABITS = {"write to CAP, which cannot be written", "write to CAP2, which cannot be written",
          "ST while the device is busy or absent (AHCI 10.3.1)",
          "the adapter was taken before its firmware was asked to let go (AHCI 10.6.3)"}
"""What Linux does although the specification forbids it."""
# Of disks as small as these Linux asks FLUSH CACHE, not FLUSH CACHE EXT.


def drive(serial, sectors=SECTORS, **options):
    return Drive(sectors=sectors, full=True, serial=serial, **options)


class Adapter:
    """A model, plugged into the guest."""

    def __init__(self, directory, name, model, **options):
        model.clock = time.monotonic_ns
        self.model, self.card = model, Card(model, **options)
        self.server = Server(str(directory / name), self.card)
        self.path, self.bdf = directory / name, ""

    def port(self, index):
        return self.model.ports[index]


class Bench:
    """The guest with two adapters: one with everything, and one that spins up its disks one after the other, without MSI."""

    def __init__(self, guest, directory):
        self.guest = guest
        capabilities = {"NCS": 31, "SAM": 1, "SNCQ": 1, "S64A": 1}
        disc = Disc(random.Random(1).randbytes(1 << 20))
        self.disks = {PLAIN: drive("PLAIN"), FAULTY: drive("FAULTY"), LARGE: drive("LARGE", 16384, sector_octets=4096),
                      FEATURES: drive("FEATURES")}
        self.fan = Multiplier(drive("FAN-0", 8192), drive("FAN-1", 8192), None)
        self.main = Adapter(directory, "main", Model(
            self.disks[PLAIN], self.disks[FAULTY], self.disks[LARGE], self.fan, disc, None, self.disks[FEATURES],
            ports=0x7F, strict=False, hot_plug=True,
            cap=int(r.CAP(NP=6, SCLO=1, SALP=1, SSC=1, PSC=1, ISS=3, SPM=1, SSNTF=1, **capabilities))))
        self.staggered = Adapter(directory, "staggered", Model(
            drive("FIRST", 8192), drive("SECOND", 8192), strict=False, firmware=Firmware(),
            cap=int(r.CAP(NP=1, ISS=2, SSS=1, **capabilities))), msi=False)
        self.adapters = {"slot0": self.main, "slot1": self.staggered}
        guest.run("modprobe -a ahci sd_mod sr_mod && dmesg -C")
        guest.preload("tests.lab.inside_libata")
        for slot, adapter in self.adapters.items():
            adapter.bdf = guest.plug_model(slot, adapter.path)
        for port in (PLAIN, FAULTY, LARGE, PACKET, FEATURES):
            self.node(port)

    def close(self):
        for adapter in self.adapters.values():
            adapter.server.close()

    def node(self, port, adapter=None, target=0, timeout=60):
        """The block device at a port, once it is there."""
        bdf = (adapter or self.main).bdf
        look = (f"ls -d $(dirname $(ls -d /sys/bus/pci/devices/{bdf}/ata*/ata_port/* | sort -V | sed -n {port + 1}p))/../"
                f"host*/target*:{target}:0/*/block/* 2>&- | head -1")
        wait = f'until found=$({look}) && test -b "/dev/${{found##*/}}"; do sleep 0.2; done'
        return self.guest.run(f'{wait}; echo "/dev/${{found##*/}}"', timeout=timeout).stdout.strip()

    def log(self):
        """What the kernel has said since the last time."""
        return self.guest.run("dmesg -c").stdout

    def wait_log(self, *words, timeout=60):
        """The same, once it has said all of these."""
        said, limit = "", time.monotonic() + timeout
        while not all(word in said for word in words):
            assert time.monotonic() < limit, f"the kernel did not say {words}:\n{said}"
            said += self.log()
            time.sleep(0.2)
        return said

    @contextmanager
    def plugged(self, disk):
        """A disk that comes, is used under this name, and goes."""
        link = self.main.port(EMPTY).link
        with self.main.card.still():
            link.plug(disk)
        node = self.node(EMPTY)
        try:
            yield node
        finally:
            with self.main.card.still():
                link.unplug()
            self.guest.run(f"while test -b {node}; do sleep 0.2; done", timeout=60)     # libata tries three resets first

    def read(self, node, lbas, sectors=8, size=512):
        """Read so many sectors at each of these at once."""
        return self.guest.call(inside.read, node, [lba * size for lba in lbas], sectors * size)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    if missing := [tool for tool in ("mkfs.ext4", "smartctl", "hdparm") if not shutil.which(tool, path=environment()["PATH"])]:
        pytest.skip(f"not installed: {' '.join(missing)}")
    try:
        booted = Guest(cpus=1, memory_mib=512, iommu=False, models=True, append="libata.fua=1")
    except LabUnavailable as why:
        pytest.skip(str(why))
    with booted as guest:
        made = Bench(guest, tmp_path_factory.mktemp("sockets"))
        yield made
    made.close()


@pytest.fixture(autouse=True)
def judged(bench):
    """Neither the adapter nor the server saw a rule broken."""
    yield
    for adapter in bench.adapters.values():
        assert adapter.server.violations == [] and adapter.card.misuses == []
        assert adapter.model.habits <= HABITS


def contents(disk, lba, sectors=8):
    return b"".join(disk.sector(lba + i) for i in range(sectors))


def fill(disk, seed, lbas):
    """Random sectors, durable."""
    dice = random.Random(seed)
    for lba in lbas:
        disk.media[lba] = disk.durable[lba] = dice.randbytes(disk.sector_octets)


def until(what, true, timeout=30):
    limit = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < limit, f"not within {timeout} s: {what}"
        time.sleep(0.05)


def test_linux_identifies_all_that_is_plugged_in(bench):
    said = bench.wait_log("ata7", "ata8", "ata9.00: configured", "Attached scsi CD-ROM", "ata4: EH complete")
    assert "AHCI 0001.0301 32 slots 7 ports 6 Gbps 0x7f impl SATA mode" in said
    assert "flags: 64bit ncq sntf pm clo only pmp slum part" in said
    for line in ("ata1.00: ATA-10: STRICT DISK, 2.0, max UDMA/133", "ata1.00: 65536 sectors, multi 16: LBA48 NCQ (depth 32)",
                 "ata1.00: Features: FUA NCQ-sndrcv", "ata1: SATA link up 6.0 Gbps (SStatus 133 SControl 300)",
                 "16384 4096-byte logical blocks", "ata5.00: ATAPI: STRICT CD-ROM, 1.0, max UDMA/100",
                 "ata6: SATA link down (SStatus 0 SControl 300)",
                 "ata4.15: Port Multiplier 1.2, 0x1234:0xa4c2 r1, 3 ports", "ata4.02: SATA link down"):
        assert line in said, said
    assert "supports DPO and FUA" in said and "exception" not in said and "failed" not in said
    interrupts = bench.guest.run("grep ahci /proc/interrupts").stdout
    assert f"PCI-MSI 524288-edge      ahci[{bench.main.bdf}]" in interrupts
    assert "IO-APIC" in next(line for line in interrupts.splitlines() if bench.staggered.bdf in line)


def test_disks_that_spin_up_one_after_the_other_by_intx(bench):
    adapter = bench.staggered
    node = bench.node(1, adapter)
    assert all(adapter.port(n).cmd.SUD for n in range(2))
    assert adapter.port(0).link.speed() == 2
    order = [name for name, _ in adapter.model.writes if name in ("PxSCTL[0]", "PxSCTL[1]")]
    assert order.index("PxSCTL[1]") > max(i for i, name in enumerate(order) if name == "PxSCTL[0]")
    data = random.Random(2).randbytes(64 << 10)
    assert bench.guest.call(inside.write, node, 4096, data) == 0
    assert contents(adapter.port(1).drive, 8, 128) == data
    assert adapter.model.firmware.asked_at is None and not [name for name, _ in adapter.model.writes if name == "BOHC"]


def test_a_file_system_lives_on_it_with_commands_queued(bench):
    disk, node = bench.disks[PLAIN], bench.node(PLAIN)
    disk.executed.clear()
    bench.guest.run(f"mkfs.ext4 -q {node} && mount {node} /mnt && cp -r tests docs scripts /mnt && sync && umount /mnt")
    assert bench.guest.run(f"fsck.ext4 -f -n {node}").status == 0
    bench.guest.run(f"mount {node} /mnt && diff -r docs /mnt/docs && diff -r tests/lab /mnt/tests/lab && umount /mnt")
    codes = {code for code, _, _ in disk.executed}
    assert {READ_FPDMA, WRITE_FPDMA, FLUSH_28} <= codes
    whole = hashlib.sha256(b"".join(disk.sector(lba) for lba in range(SECTORS))).hexdigest()
    assert bench.guest.run(f"sha256sum {node}").stdout.split()[0] == whole
    assert "exception" not in bench.log()


def test_sectors_of_4096_octets(bench):
    disk, node = bench.disks[LARGE], bench.node(LARGE)
    assert bench.guest.run(f"blockdev --getss --getpbsz --getsize64 {node}").stdout.split() == ["4096", "4096", str(64 << 20)]
    data = random.Random(3).randbytes(12 << 10)
    assert bench.guest.call(inside.write, node, 7 * 4096, data) == 0
    assert contents(disk, 7, 3) == data
    assert bench.read(node, [7], 3, 4096) == [data]
    bench.guest.run(f"mkfs.ext4 -q {node} && fsck.ext4 -f -n {node}")


def test_of_queued_commands_the_one_that_failed_is_found_and_the_others_run_again(bench):
    disk, node, port = bench.disks[FAULTY], bench.node(FAULTY), bench.main.port(FAULTY)
    lbas = [1000 + 64 * n for n in range(16)]
    fill(disk, 4, [lba + i for lba in lbas for i in range(8)])
    disk.fail[lbas[5] + 3] = UNC
    bench.log()
    resets = bench.main.model.resets
    with bench.main.card.still():
        bench.main.model.lazy = True
        disk.executed.clear()
    reading = bench.guest.start(inside.read, node, [lba * 512 for lba in lbas], 4096)
    until("16 commands under way", lambda: port.ci.bit_count() == 16)
    with bench.main.card.still():
        bench.main.model.lazy = False
        bench.main.model.run()
    results = reading.result()
    assert [n for n, result in enumerate(results) if result == errno.EIO] == [5]
    assert all(results[n] == contents(disk, lba) for n, lba in enumerate(lbas) if n != 5)
    said = bench.log()
    assert "failed command: READ FPDMA QUEUED" in said and "error: { UNC }" in said and "hard resetting" not in said
    assert (READ_LOG_DMA, NCQ_ERROR) in {(code, lba) for code, lba, _ in disk.executed} and bench.main.model.resets == resets
    del disk.fail[lbas[5] + 3]
    assert bench.read(node, [lbas[5]]) == [contents(disk, lbas[5])]


def test_a_link_that_garbles_is_reset_and_slowed_down(bench):
    disk, node, port = bench.disks[FAULTY], bench.node(FAULTY), bench.main.port(FAULTY)
    fill(disk, 5, range(2000, 2008))
    bench.log()
    resets = bench.main.model.resets
    disk.fail[2000] = lambda c: "link" if port.link.speed() == 3 else None
    results = []
    for _ in range(4):
        results += bench.read(node, [2000])
        if port.link.speed() < 3:
            break
    said = bench.wait_log("limiting SATA link speed to 3.0 Gbps", "SATA link up 3.0 Gbps")
    assert "interface fatal error" in said and "hard resetting link" in said and "BadCRC" in said
    assert results[-1] == contents(disk, 2000) and bench.main.model.resets > resets
    del disk.fail[2000]


def test_an_error_of_the_host_bus(bench):
    disk, node = bench.disks[FAULTY], bench.node(FAULTY)
    fill(disk, 6, range(3000, 3008))
    bench.log()
    fates = iter(["bus"])
    disk.fail[3000] = lambda c: next(fates, None)
    assert bench.read(node, [3000]) == [contents(disk, 3000)]
    said = bench.log()
    assert "host bus error" in said and "hard resetting link" in said
    del disk.fail[3000]


def test_a_device_that_saw_a_bad_crc(bench):
    disk, node = bench.disks[FAULTY], bench.node(FAULTY)
    fill(disk, 15, range(5000, 5008))
    bench.log()
    fates = iter([ICRC | ABRT])
    disk.fail[5000] = lambda c: next(fates, None)
    assert bench.read(node, [5000]) == [contents(disk, 5000)]
    assert "error: { ICRC ABRT }" in bench.log()
    del disk.fail[5000]


@pytest.mark.parametrize("code", ["queued", "flush"])
def test_a_command_that_never_ends(bench, code):
    disk, node = bench.disks[FAULTY], bench.node(FAULTY)
    fill(disk, 7, range(4000, 4008))
    bench.log()
    bench.guest.run(f"echo 3 >/sys/block/{Path(node).name}/device/timeout")
    fates = iter(["hang"])
    if code == "queued":
        disk.fail[4000] = lambda c: next(fates, None)
        assert bench.read(node, [4000]) == [contents(disk, 4000)]
        del disk.fail[4000]
    else:
        disk.broken[FLUSH_28] = lambda c: next(fates, None)
        assert bench.guest.call(inside.write, node, 4000 * 512, bytes(4096)) == 0
        bench.guest.run(f"sync {node}; blockdev --flushbufs {node}; dd if=/dev/zero of={node} bs=4096 count=1 conv=fsync")
        del disk.broken[FLUSH_28]
    said = bench.log()
    assert "frozen" in said and "(timeout)" in said and "hard resetting link" in said and "SATA link up" in said
    bench.guest.run(f"echo 30 >/sys/block/{Path(node).name}/device/timeout")


def test_a_drive_comes_and_goes_and_another_comes_in_its_place(bench):
    for serial in ("COMES", "REPLACES"):
        with bench.plugged(drive(serial, 8192)) as node:
            assert f"SerialNo={serial}" in bench.guest.run(f"hdparm -i {node}").stdout.split()
    said = bench.log()
    assert "SATA link down" in said and "detaching (SCSI" in said


def test_what_was_not_flushed_is_lost_by_a_power_cut_and_fua_is_not(bench):
    disk = drive("CUT", 8192)
    fill(disk, 8, range(0, 24))
    old, new = contents(disk, 0, 24), random.Random(9).randbytes(12 << 10)
    with bench.plugged(disk) as node:
        at_flush = []
        disk.broken[FLUSH_28] = lambda c: at_flush.append(dict(disk.durable))
        assert bench.guest.call(inside.write, node, 0, new[:4096], durable=True) == 0
        # Linux writes with the FUA bit, and flushes for good measure.
        assert b"".join(at_flush[0][lba] for lba in range(8)) == new[:4096]
        assert bench.guest.call(inside.write, node, 4096, new[4096:]) == 0
        assert bench.read(node, [0], 24) == [new]
    disk.power_cut()
    with bench.plugged(disk) as node:
        assert bench.read(node, [0], 24) == [new[:4096] + old[4096:]]


def test_security_can_be_frozen(bench):
    disk, node = bench.disks[FEATURES], bench.node(FEATURES)
    bench.guest.run(f"hdparm --user-master u --security-set-pass secret {node} && "
                    f"hdparm --user-master u --security-disable secret {node}")
    assert not disk.security.enabled
    bench.guest.run(f"hdparm --yes-i-know-what-i-am-doing --security-freeze {node}")
    assert disk.security.frozen and "\tnot\tfrozen" not in bench.guest.run(f"hdparm -I {node}").stdout
    refused = bench.guest.run(f"hdparm --user-master u --security-set-pass secret {node}", check=False)
    assert "Input/output error" in refused.stderr + refused.stdout or "bad/missing sense" in refused.stderr + refused.stdout
    assert not disk.security.enabled


def test_smart_as_smartctl_sees_it(bench):
    disk, node = bench.disks[FEATURES], bench.node(FEATURES)
    seen = bench.guest.run(f"smartctl -i -H -A {node}").stdout
    assert "STRICT DISK" in seen and "SMART overall-health self-assessment test result: PASSED" in seen
    assert "Temperature_Celsius" in seen and "SMART support is: Enabled" in seen
    bench.guest.run(f"smartctl -t short {node}", check=False)
    assert disk.smart.left
    assert "Self-test routine in progress" in bench.guest.run(f"smartctl -c {node}", check=False).stdout
    bench.guest.run(f"for look in 1 2 3; do smartctl -c {node}; done", check=False)
    log = bench.guest.run(f"smartctl -l selftest {node}").stdout
    assert "Short offline       Completed without error" in log
    disk.smart.failing = True
    assert "FAILED!" in bench.guest.run(f"smartctl -H {node}", check=False).stdout
    disk.smart.failing = False


@pytest.mark.parametrize("queued", [True, False], ids=["queued", "plain"])
def test_trim(bench, queued):
    disk = drive("TRIM", 8192, queued_trim=queued)
    fill(disk, 10, range(0, 64))
    with bench.plugged(disk) as node:
        bench.guest.run(f"blkdiscard -o 4096 -l 8192 {node}")
        assert disk.trimmed == [(8, 16)]
        assert (SEND_FPDMA if queued else DATA_SET_MANAGEMENT) in {code for code, _, _ in disk.executed}
        assert bench.read(node, [0], 64)[0][4096:12288] == bytes(8192)


def test_the_link_sleeps_and_wakes(bench):
    disk, node, link = bench.disks[FEATURES], bench.node(FEATURES), bench.main.port(FEATURES).link
    fill(disk, 11, range(0, 8))
    bench.log()
    policy = f"$(readlink -f /sys/block/{Path(node).name}/device/../..)/scsi_host/host*/link_power_management_policy"
    bench.guest.run(f"echo min_power > {policy}")
    until("a link that sleeps", lambda: link.power == SLUMBER)
    assert disk.device_power
    naps = link.naps
    assert bench.read(node, [0]) == [contents(disk, 0)]
    until("a link that sleeps again", lambda: link.power == SLUMBER and link.naps > naps)
    bench.guest.run(f"echo max_performance > {policy}")
    until("a link that is awake", lambda: link.power == ACTIVE)
    assert bench.read(node, [0]) == [contents(disk, 0)]
    assert "exception" not in bench.log()


def test_two_drives_behind_a_multiplier_and_a_third_that_comes(bench):
    first, second = (bench.node(MULTIPLIER, target=n) for n in range(2))
    disks = [fan.device for fan in bench.fan.fans]
    data = [random.Random(n).randbytes(64 << 10) for n in (12, 13)]
    bench.log()
    for node, octets in zip((first, second), data, strict=True):
        assert bench.guest.call(inside.write, node, 0, octets) == 0
    assert [contents(disk, 0, 128) for disk in disks[:2]] == data
    disks[0].fail[50] = UNC
    assert bench.read(first, [48, 0]) == [errno.EIO, data[0][:4096]]
    assert bench.read(second, [0]) == [data[1][:4096]]
    disks[0].fail.clear()
    assert {target for target, code in bench.fan.executed if code in QUEUED} == {0, 1}
    assert CONTROL in {target for target, _ in bench.fan.executed}
    with bench.main.card.still():
        bench.fan.plug(2, drive("FAN-2", 8192))
    third = bench.node(MULTIPLIER, target=2)
    assert bench.read(third, [0]) == [bytes(4096)]
    with bench.main.card.still():
        bench.fan.plug(2, None)
    bench.guest.run(f"while test -b {third}; do sleep 0.2; done", timeout=60)
    assert bench.read(first, [0]) == [data[0][:4096]]


def test_a_cd_is_read_changed_and_damaged(bench):
    disc, node = bench.main.port(PACKET).drive, bench.node(PACKET)
    assert bench.guest.run(f"sha256sum {node}").stdout.split()[0] == hashlib.sha256(disc.disc).hexdigest()
    other = random.Random(14).randbytes(512 << 10)
    with bench.main.card.still():
        disc.insert(other)
    assert bench.guest.run(f"blockdev --getsize64 {node}; sha256sum {node}").stdout.split()[:2] == [
        str(len(other)), hashlib.sha256(other).hexdigest()]
    with bench.main.card.still():
        disc.insert(None)
    assert "No medium found" in bench.guest.run(f"dd if={node} of=/dev/null", check=False).stderr
    with bench.main.card.still():
        disc.insert(other)
    disc.unreadable.add(100)
    assert bench.read(node, [100], 1, 2048) == [errno.EIO]
    disc.unreadable.clear()
    assert bench.read(node, [100], 1, 2048) == [other[100 * 2048:101 * 2048]]
