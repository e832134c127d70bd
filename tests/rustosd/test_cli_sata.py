"""`rustosctl disk` for drives behind controllers: real drivers over the strict model, from the command line to the drive."""

import asyncio
import json
import time

import pytest

from drivers.ahci import registers as r
from drivers.ahci.controller import AhciController
from drivers.ahci.options import Options, ZeroingTrim
from rustosd.devices import sata_figures
from rustosd.devices.sata import SataController
from rustosd.storage import SharedDisk
from tests.drivers.ahci.conftest import AhciDevice
from tests.models.ahci import IDENTIFY, SECTOR, Drive, Model
from tests.rustosd.fake_devices import OUR_AHCI, FakeHeld

NAME = "0000:00:1f.2/0"


class Sata:
    """A controller with an SSD and an empty port, wired as the device manager does it, on the control server's loop."""

    def __init__(self, loop):
        self.drive = Drive(full=True, serial="SSD-1", model="STRICT SSD")
        self.drive.media = {lba: b"x" * SECTOR for lba in range(100)}
        self.model = Model(self.drive, None, ports=0b11)
        self.model.clock = time.monotonic_ns
        self.device = AhciDevice(self.model, ("msi",))
        self.loop = loop
        self.controller = AhciController(self.device, interrupts=("msi",), options=Options(
            security_freeze=False, zeroing_trim=ZeroingTrim.ALWAYS, timeout_ns=1_000_000_000))
        self.held = FakeHeld("0000:00:1f.2", "ahci", "ahci", driver=self.controller)
        for disk in self.controller.disks:
            self.held.disks[disk.name] = SharedDisk(disk, loop)
        self.held.sata = SataController(self.controller, loop, self.changed)

    def changed(self, disk, there):
        if (before := self.held.disks.pop(disk.name, None)) is not None:
            before.close()
        if there:
            self.held.disks[disk.name] = SharedDisk(disk, self.loop)

    def close(self):
        for part in (self.held.sata, *self.held.disks.values(), self.controller):
            part.close()


@pytest.fixture
def sata(core, socket_path, in_loop):
    made = in_loop(Sata)
    del core.devices.held[OUR_AHCI]
    core.devices.held[made.held.bdf] = made.held
    yield made
    in_loop(lambda loop: made.close())


def facts(text):
    """Names and values of two columns."""
    return dict(line.strip().split("  ", 1) for line in text.splitlines() if "  " in line.strip())


def wait(done, seconds=20):
    limit = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_ports_say_who_is_there_and_one_alone_what_happened_to_it(rustosctl, sata):
    status, out, err = rustosctl("disk", "ports")
    assert (status, err) == (0, "") and out.splitlines()[-1] == "2 ports"
    assert out.splitlines()[1].split() == [NAME, "ready", "disk", "6", "Gb/s", "active", "-", "-"]
    assert out.splitlines()[2].split()[:4] == ["0000:00:1f.2/1", "absent", "-", "-"]
    one = facts(rustosctl("disk", "ports", "0000:00:1f.2/1")[1])
    assert (one["state"], one["reason"]) == ("absent", "nothing is attached")
    rows = json.loads(rustosctl("disk", "ports", "--json")[1])["ports"]
    assert rows[0]["disks"] == [NAME] and rows[0]["errors"] == {"device": 0, "link": 0, "bus": 0, "timeout": 0}
    assert rustosctl("disk", "ports", "x")[0] == 1


def test_a_disk_shows_what_its_drive_is(rustosctl, sata):
    shown = facts(rustosctl("disk", "show", "SSD-1")[1])
    assert shown["link"].strip() == "6 Gb/s" and shown["write cache"].strip() == "on"
    assert shown["trim"].strip() == "queued, then reads zeros" and shown["security"].strip() == "enhanced erase"
    drive = json.loads(rustosctl("disk", "drive", "SSD-1", "--json")[1])["drive"]
    assert (drive["generation"], drive["fastest_generation"], drive["healthy"]) == (3, 3, None)
    assert rustosctl("disk", "drive", "SSD-1")[1].splitlines()[0].split() == ["disk", NAME]


def test_health_and_self_tests(rustosctl, sata):
    status, out, _ = rustosctl("disk", "smart", "SSD-1")
    assert status == 0 and "reallocated sectors" in out and "31 °C" in out and "6 attributes" in out
    status, out, _ = rustosctl("disk", "smart", "SSD-1", "--test", "short", "--json")
    assert status == 0 and json.loads(out)["health"]["test"] == "running"
    sata.drive.smart.failing = True
    status, out, _ = rustosctl("disk", "smart", "SSD-1")
    assert status == 1 and "about to fail" in out
    state, = sata_figures.disk_states([sata.held.sata])
    assert (state.healthy, state.celsius) == (False, 31)
    assert facts(rustosctl("disk", "show", "SSD-1")[1])["health"].strip() == "about to fail, 31 °C"
    names = {sample.name for sample in sata_figures.samples([sata.held.sata])}
    assert {"rustos_disk_healthy", "rustos_disk_temperature_celsius", "rustos_disk_errors_total"} <= names


def test_the_cache_is_switched_and_standby_asked_for(rustosctl, sata):
    assert rustosctl("disk", "cache", "SSD-1", "off")[0] == 0 and not sata.drive.cache
    assert facts(rustosctl("disk", "show", "SSD-1")[1])["write cache"].strip() == "off"
    assert rustosctl("disk", "cache", "SSD-1", "on")[0] == 0 and sata.drive.cache
    assert rustosctl("disk", "cache", "SSD-1", "maybe")[0] == 2
    assert rustosctl("disk", "standby", "SSD-1")[0] == 0 and sata.drive.standby


def test_trim_destroys_only_what_was_said_and_only_with_yes(rustosctl, sata):
    status, _, err = rustosctl("disk", "trim", "SSD-1", "--offset", "5K", "--length", "10K")
    assert status == 2 and "say --yes" in err and not sata.drive.trimmed
    assert rustosctl("disk", "trim", "SSD-1", "--offset", "5K", "--length", "10K", "--yes")[0] == 0
    assert sata.drive.trimmed == [(10, 20)]
    assert rustosctl("disk", "trim", "SSD-1", "--offset", "5", "--yes")[0] == 2
    assert rustosctl("disk", "trim", "SSD-1", "--offset", "1G", "--yes")[0] == 1
    assert rustosctl("disk", "trim", "SSD-1", "--yes")[0] == 0 and not sata.drive.media


def test_erasing_needs_the_serial_number(rustosctl, sata):
    status, _, err = rustosctl("disk", "erase", "SSD-1")
    assert status == 2 and "--serial SSD-1" in err
    status, _, err = rustosctl("disk", "erase", "SSD-1", "--serial", "SSD-2")
    assert status == 1 and "repeat its serial number, SSD-1" in err and sata.drive.media
    assert rustosctl("disk", "erase", "SSD-1", "--serial", "SSD-1")[0] == 0 and not sata.drive.media


def test_a_disk_plugged_in_is_there_and_one_pulled_is_not(rustosctl, sata, in_loop):
    in_loop(lambda loop: sata.model.ports[1].link.plug(Drive(full=True, serial="SSD-2")))
    wait(lambda: len(sata.held.disks) == 2)
    assert json.loads(rustosctl("disk", "show", "SSD-2", "--json")[1])["disk"]["disk"]["name"] == "0000:00:1f.2/1"
    assert "link changed" in rustosctl("disk", "ports", "0000:00:1f.2/1")[1]
    in_loop(lambda loop: sata.model.ports[1].link.unplug())
    wait(lambda: len(sata.held.disks) == 1)
    assert rustosctl("disk", "show", "SSD-2")[0] == 1 and rustosctl("disk", "smart", "SSD-1")[0] == 0


def test_a_port_that_failed_is_tried_again(rustosctl, sata, in_loop):
    assert rustosctl("disk", "retry", NAME)[0] == 1 and rustosctl("disk", "retry", "x")[0] == 1
    sata.drive.broken[IDENTIFY] = 0x04
    in_loop(lambda loop: sata.model.ports[0].link.__setattr__("errors", r.PxSERR.N.mask | r.PxSERR.X.mask))
    in_loop(lambda loop: sata.model.line())
    wait(lambda: rustosctl("disk", "ports")[1].splitlines()[1].split()[1] == "failed")
    port, _ = sata_figures.port_states([sata.held.sata])
    assert "3 resets in a row" in port.failed
    sata.drive.broken.clear()
    assert rustosctl("disk", "retry", NAME)[0] == 0
    wait(lambda: rustosctl("disk", "ports")[1].splitlines()[1].split()[1] == "ready")
    assert rustosctl("disk", "read", "SSD-1", "--length", "512", "--hex")[0] == 0


def test_what_is_no_drive_of_a_controller_says_so(rustosctl, core):
    for words in (("smart", "LAB-DISK0"), ("cache", "LAB-DISK0", "on"), ("standby", "LAB-DISK0")):
        status, _, err = rustosctl("disk", *words)
        assert status == 1 and "is no drive behind a controller of ours" in err
    assert json.loads(rustosctl("disk", "show", "LAB-DISK0", "--json")[1])["disk"]["drive"] is False


def test_waiting_for_a_drive_does_not_hold_up_the_loop(sata, in_loop):
    async def both():
        disk = sata.controller.disks[0]
        health = asyncio.ensure_future(sata.held.sata.ask_health(disk))
        assert await sata.held.disks[NAME].read(0, 1) == b"x" * SECTOR
        return await health
    assert in_loop(lambda loop: both()).healthy
