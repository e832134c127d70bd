"""Port multipliers: each disk behind one is a disk; one of them at a time has the port, and all get their turns."""

import errno

import pytest

from drivers.ahci import registers as r
from drivers.ahci.states import State
from drivers.disk import GONE
from drivers.request import CompletionBurst, Operation, RequestBurst
from tests.models.ahci import SECTOR, Drive, identification
from tests.models.ahci.multiplier import CONTROL, Multiplier

READ, WRITE = Operation.READ, Operation.WRITE
CAP = r.CAP(NP=3, NCS=31, SAM=1, SNCQ=1, S64A=1, SPM=1)


def drive(number, **options):
    made = Drive(identity=identification(serial=f"S-{number}", log=options.get("log", False)), **options)
    made.media = {lba: bytes([number]) * SECTOR for lba in range(200)}
    return made


class Load:
    """Reads of one disk, `depth` at a time."""

    def __init__(self, disk, depth, total):
        self.disk, self.depth, self.left = disk, depth, total
        self.memory = disk.allocate(depth * SECTOR, "test")
        self.requests, self.completions = RequestBurst(), CompletionBurst()
        self.under_way = self.tag = 0
        self.codes = []

    def turn(self):
        while self.left and self.under_way < self.depth:
            self.tag += 1
            self.requests.append(READ, self.tag, self.tag % 200, 1, [(self.memory, self.tag % self.depth * SECTOR, SECTOR)])
            self.under_way += 1
            self.left -= 1
        self.disk.submit(self.requests)
        if self.disk.complete(self.completions) == GONE:
            self.left = self.under_way = 0
        for _, code in self.completions.items():
            self.codes.append(code)
            self.under_way -= 1

    @property
    def done(self):
        return not self.left and not self.under_way


def run(made, *loads, rounds=20_000):
    for _ in range(rounds):
        for load in loads:
            load.turn()
        made.now += 300_000
        if all(load.done for load in loads):
            return
    raise AssertionError([(load.left, load.under_way) for load in loads])


def test_every_disk_behind_it_is_a_disk(rig):
    made = rig(Multiplier(drive(1), drive(2), None, drive(3)), cap=CAP)
    assert [(disk.name, disk.identity.serial) for disk in made.controller.disks] == [
        ("0000:00:1f.2/0.0", "S-1"), ("0000:00:1f.2/0.1", "S-2"), ("0000:00:1f.2/0.3", "S-3")]
    assert made.port.cmd.PMA
    for number, disk in enumerate(made.controller.disks, 1):
        made.use(disk)
        assert made.read(made.memory(), 7) == bytes([number]) * SECTOR


def test_all_get_their_turns_and_never_two_at_a_time(rig):
    multiplier = Multiplier(drive(1), drive(2), drive(3))
    made = rig(multiplier, cap=CAP, lazy=False)
    loads = [Load(disk, 8, 200) for disk in made.controller.disks]
    multiplier.executed.clear()
    run(made, *loads)
    assert [load.codes for load in loads] == [[0] * 200] * 3
    targets = [target for target, code in multiplier.executed if target != CONTROL]
    first_half = targets[:len(targets) // 2]
    assert all(first_half.count(target) > 60 for target in range(3))


@pytest.mark.parametrize("kind", ["link", 0x40, "hang"])
def test_an_error_of_one_is_its_own(rig, kind):
    bad = drive(1, fail={5: kind}, log=True)
    made = rig(Multiplier(bad, drive(2)), cap=CAP, timeout_ns=1_000_000_000)
    loads = [Load(disk, 4, 60) for disk in made.controller.disks]
    run(made, *loads, rounds=200_000)
    wrong = {"link": errno.EILSEQ, 0x40: errno.ENODATA, "hang": errno.ETIMEDOUT}[kind]
    assert loads[0].codes.count(wrong) == 1 and loads[0].codes.count(0) == 59 and loads[1].codes == [0] * 60


def test_a_disk_plugged_or_pulled_behind_it_comes_and_goes_alone(rig):
    multiplier = Multiplier(drive(1), drive(2))
    made = rig(multiplier, cap=CAP)
    seen = []
    made.controller.on_disk = lambda disk, there: seen.append((disk.identity.serial, there))
    other = made.controller.disks[1]
    multiplier.plug(0, None)
    made.until(lambda: seen == [("S-1", False)])
    assert made.disk.complete(made.completions) == GONE and made.disk.reason == "it was unplugged"
    made.disk.close()
    made.use(other)
    assert made.read(made.memory(), 1) == b"\2" * SECTOR
    multiplier.plug(0, drive(9))
    made.until(lambda: seen[-1] == ("S-9", True))
    made.use(next(disk for disk in made.controller.disks if disk.pm == 0))
    assert made.read(made.memory(), 1) == b"\x09" * SECTOR


def test_on_a_controller_without_them_the_disk_at_port_0_is_driven(rig):
    made = rig(Multiplier(drive(1), drive(2)))
    assert [disk.name for disk in made.controller.disks] == ["0000:00:1f.2/0"]
    assert made.read(made.memory(), 1) == b"\1" * SECTOR


def test_a_plain_disk_on_a_controller_for_them_is_a_plain_disk(rig):
    made = rig(drive(4), cap=CAP)
    assert made.disk.name == "0000:00:1f.2/0" and made.read(made.memory(), 1) == b"\4" * SECTOR


def test_a_disk_that_does_not_answer_what_is_for_a_multiplier_is_reset_and_driven(rig):
    class Deaf(Drive):
        def soft_reset(self, target):
            return None if target == CONTROL else super().soft_reset(target)
    made = rig(Deaf(), cap=CAP)
    assert made.disk.life.state is State.READY and made.model.resets == 1 and not made.disk.life.asks_multiplier


def test_unplugged_whole_all_its_disks_are_gone(rig):
    made = rig(Multiplier(drive(1), drive(2)), cap=CAP)
    seen = []
    made.controller.on_disk = lambda disk, there: seen.append((disk.identity.serial, there))
    made.port.link.unplug()
    made.until(lambda: len(seen) == 2)
    assert sorted(seen) == [("S-1", False), ("S-2", False)] and made.controller.ports[0].state is State.ABSENT
