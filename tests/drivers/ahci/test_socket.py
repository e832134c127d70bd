"""The driver on the adapter that Linux's libata drives (tests/lab/test_libata.py), over the same socket, in real time."""

import errno
import random
import select
import time

import pytest

from drivers.ahci import registers as r
from drivers.ahci.controller import AhciController
from drivers.ahci.options import LinkPower, Options
from drivers.disk import GONE
from drivers.request import CompletionBurst, Operation, RequestBurst
from drivers.vfio_user import open_vfio_user
from tests.models.ahci import FLUSH, READ_FPDMA, SECTOR, Drive, Model
from tests.models.ahci.card import Card
from tests.models.ahci.commands import ABRT, READ_LOG, READ_LOG_DMA, UNC
from tests.models.ahci.link import SLUMBER
from tests.models.ahci.multiplier import Multiplier
from tests.models.ahci.packet import Disc
from tests.models.vfio_user_server import Server

READ, WRITE = Operation.READ, Operation.WRITE
CAP = int(r.CAP(NP=3, NCS=31, SAM=1, SNCQ=1, S64A=1, SCLO=1, SALP=1, SSC=1, PSC=1, ISS=3, SPM=1, SSNTF=1))
LIMIT_S = 60


class Bench:
    """A card, with two drives that can do everything unless others are plugged in; its server, our driver, the first disk."""

    def __init__(self, directory, interrupts=("msi",), cap=CAP, plugged=(), ports=3, **options):
        self.drives = plugged or [Drive(full=True, serial=f"S-{n}") for n in range(2)]
        self.model = Model(*self.drives, cap=cap, ports=ports, hot_plug=True)
        self.model.clock = time.monotonic_ns
        self.card = Card(self.model)
        self.server = Server(str(directory / "socket"), self.card)
        try:
            self.controller = AhciController(open_vfio_user(self.server.path), interrupts=interrupts, **options)
        except BaseException:
            self.server.close()
            raise
        self.drive, self.disk = self.drives[0], self.controller.disks[0]
        self.memory = self.disk.allocate(64 * 4096, "test")
        self.requests, self.completions = RequestBurst(), CompletionBurst()

    def close(self):
        self.memory.free()
        self.controller.close()
        self.server.close()

    def run(self, *requests, disk=None):
        """Do these (operation, lba, sectors) together, each with 4 KiB of memory of its own; the errno of each."""
        ended, limit = {}, time.monotonic() + LIMIT_S
        disk = disk or self.disk
        for tag, (operation, lba, sectors) in enumerate(requests):
            place = [(self.memory, tag * 4096, sectors * disk.info.sector_octets)] if sectors else []
            assert self.requests.append(operation, tag, lba, sectors, place)
        while len(ended) < len(requests):
            assert time.monotonic() < limit, f"{ended}, {disk.state.name} {disk.statistics()}"
            disk.submit(self.requests)
            count = disk.complete(self.completions)
            ended.update(self.completions.items())
            assert count != GONE
            takes_more = len(self.requests) and disk.room()
            if not count and not takes_more and disk.arm():
                at = disk.wake_at()
                left = LIMIT_S if at is None else max(0.0, (at - time.monotonic_ns()) / 1e9)
                select.select([disk.fileno()], [], [], min(left, LIMIT_S))
        return [ended[tag] for tag in range(len(requests))]

    def tend(self, true):
        """See to the ports without disks until that is so."""
        limit = time.monotonic() + LIMIT_S
        while not true():
            assert time.monotonic() < limit, [(port.state.name, port.reason) for port in self.controller.ports]
            left = max(0.0, (self.controller.wake_at() - time.monotonic_ns()) / 1e9)
            select.select([self.controller.fileno()], [], [], left)
            self.controller.tend()

    def fill(self, *lbas):
        for lba in lbas:
            for i in range(8):
                self.drive.media[lba + i] = random.Random(lba + i).randbytes(SECTOR)

    def got(self, tag, lba):
        return self.memory.view()[tag * 4096:tag * 4096 + 4096] == b"".join(self.drive.sector(lba + i) for i in range(8))


@pytest.fixture
def bench(tmp_path):
    """Makes one; in the end neither the adapter nor the server saw a rule broken."""
    made = []

    def make(**options):
        made.append(Bench(tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
        assert one.server.violations == [] and one.card.misuses == [] and one.model.habits == set()


@pytest.mark.parametrize("interrupts", [("msi",), ("intx",), ()], ids=lambda kinds: "".join(kinds) or "polled")
def test_both_disks_are_read_written_and_flushed_by_queued_commands(bench, interrupts):
    made = bench(interrupts=interrupts)
    assert [disk.info.serial for disk in made.controller.disks] == ["S-0", "S-1"]
    assert made.controller.interrupt_kind == (interrupts or ("polled",))[0]
    octets = random.Random(1).randbytes(32 * 4096)
    made.memory.view()[:len(octets)] = octets
    assert made.run(*((WRITE, 8 * n, 8) for n in range(32))) == [0] * 32
    assert b"".join(made.drive.sector(lba) for lba in range(256)) == octets
    assert made.run((Operation.FLUSH, 0, 0)) == [0]
    assert set(made.drive.durable) == set(range(256))
    made.memory.view()[:len(octets)] = bytes(len(octets))
    assert made.run(*((READ, 8 * n, 8) for n in range(32))) == [0] * 32
    assert made.memory.view()[:len(octets)] == octets


def test_disks_that_spin_up_one_after_the_other(bench):
    made = bench(cap=CAP | r.CAP.SSS.mask)
    assert len(made.controller.disks) == 2 and made.run((READ, 0, 8)) == [0]


def test_the_queued_command_that_failed_is_found_and_the_others_run_again(bench):
    made = bench()
    lbas = [64 * n for n in range(32)]
    made.fill(*lbas)
    made.drive.fail[lbas[9] + 2] = UNC
    resets = made.model.resets
    results = made.run(*((READ, lba, 8) for lba in lbas))
    assert results == [errno.ENODATA if n == 9 else 0 for n in range(32)]
    assert all(made.got(n, lba) for n, lba in enumerate(lbas) if n != 9)
    assert made.model.resets == resets
    assert {READ_LOG, READ_LOG_DMA} & {code for code, _, _ in made.drive.executed}


@pytest.mark.parametrize("what", ["link", "bus"])
def test_a_link_and_a_host_bus_that_failed_once(bench, what):
    made = bench()
    made.fill(*range(0, 256, 8))
    fates = iter([what])
    made.drive.fail[80] = lambda c: next(fates, None)
    resets = made.model.resets
    assert made.run(*((READ, 8 * n, 8) for n in range(32))) == [0] * 32
    assert all(made.got(n, 8 * n) for n in range(32)) and made.model.resets > resets


def test_a_command_that_never_ends_and_one_that_ends_after_all(bench):
    made = bench(timeout_ns=300_000_000)
    made.drive.fail[80] = "hang"
    results = made.run(*((READ, 8 * n, 8) for n in range(32)))
    assert results[10] == errno.ETIMEDOUT and results.count(0) == 31
    made.drive.fail.clear()
    assert made.run((READ, 80, 8)) == [0]


def test_a_flush_that_the_disk_refuses(bench):
    made = bench()
    made.drive.broken[FLUSH] = ABRT
    assert made.run((Operation.FLUSH, 0, 0)) == [errno.EIO]
    made.drive.broken.clear()
    assert made.run((Operation.FLUSH, 0, 0), (READ, 0, 8)) == [0, 0]
    assert READ_FPDMA in {code for code, _, _ in made.drive.executed}


def test_whatever_may_be_plugged_in(bench):
    large = Drive(full=True, serial="LARGE", sector_octets=4096)
    fan = [Drive(full=True, serial=f"FAN-{n}") for n in range(2)]
    disc = Disc(random.Random(1).randbytes(1 << 20))
    made = bench(plugged=[large, Multiplier(*fan, None), disc, None], ports=0xF)
    disks = {disk.info.serial: disk for disk in made.controller.disks}
    assert set(disks) == {"LARGE", "FAN-0", "FAN-1", "C-1"}
    for serial, drive in (("LARGE", large), ("FAN-0", fan[0]), ("FAN-1", fan[1])):
        made.memory.view()[:4096] = octets = random.Random(serial).randbytes(4096)
        sectors = 4096 // drive.sector_octets
        assert made.run((WRITE, 3, sectors), disk=disks[serial]) == [0]
        assert b"".join(drive.sector(3 + i) for i in range(sectors)) == octets
    assert made.run((READ, 7, 2), disk=disks["C-1"]) == [0]
    assert made.memory.view()[:4096] == disc.disc[7 * 2048:9 * 2048]


def test_a_drive_that_comes_while_it_runs(bench):
    made = bench(plugged=[Drive(full=True, serial="STAYS"), None], ports=3)
    with made.card.still():
        made.model.ports[1].link.plug(Drive(full=True, serial="COMES"))
    made.tend(lambda: len(made.controller.disks) == 2)
    came = made.controller.disks[1]
    assert came.info.serial == "COMES" and made.run((READ, 0, 8), disk=came) == [0]
    assert made.run((READ, 0, 8)) == [0]


def test_a_link_that_sleeps_and_wakes_for_the_next_command(bench):
    made = bench(options=Options(link_power=LinkPower.SLUMBER))
    link = made.model.ports[0].link
    made.fill(0)
    naps = link.naps
    assert made.run((READ, 0, 8)) == [0] and made.got(0, 0)
    assert link.power == SLUMBER and link.naps > naps


def test_security_is_frozen_when_a_disk_is_attached(bench):
    made = bench()
    assert all(drive.security.frozen for drive in made.drives)
