"""AhciDisk against a strict model of an adapter: bring-up, bursts, the rules of queuing, errors, hangs, the end."""

import errno
import random
import select

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from drivers.ahci import registers as r
from drivers.ahci.controller import AhciController
from drivers.ahci.ladder import RESETS
from drivers.ahci.states import State
from drivers.disk import GONE, Disk, DiskInfo, Feature
from drivers.errors import DeviceGone, DeviceRefused
from drivers.request import REQUESTS, Operation
from tests.drivers.ahci.conftest import AhciDevice, Rig
from tests.models.ahci import FLUSH, IDENTIFY, READ_DMA, READ_FPDMA, READ_LOG, SECTOR, WRITE_DMA, Drive, Model, identification
from tests.models.ahci.firmware import MS, Firmware

READ, WRITE = Operation.READ, Operation.WRITE
UNC, IDNF, ABRT, ICRC = 0x40, 0x10, 0x04, 0x84


def pattern(number, sectors=1):
    return random.Random(number).randbytes(SECTOR * sectors)


# Bring-up.

def test_a_disk_is_a_disk(rig):
    disk = rig().disk
    members = {name for name in (*vars(Disk), *Disk.__annotations__) if not name.startswith("_")}
    assert members and all(hasattr(disk, name) for name in members)
    assert disk.info == DiskInfo(
        "0000:00:1f.2/0", "STRICT DISK", "S-1", "1.0", 4096, 512, 512, 32,
        Feature.QUEUE | Feature.FUA | Feature.WRITE_CACHE | Feature.SMART, 65536, 248)


def test_bring_up_keeps_the_specifications_order(rig):
    writes = rig().model.writes
    names = [name for name, _ in writes]
    reset = next(i for i, (name, value) in enumerate(writes) if name == "GHC" and value & 1)
    assert writes[0] == ("GHC", 1 << 31)
    receive = next(i for i, (name, value) in enumerate(writes) if name == "PxCMD[0]" and value & r.PxCMD.FRE.mask)
    start = next(i for i, (name, value) in enumerate(writes) if name == "PxCMD[0]" and value & r.PxCMD.ST.mask)
    assert reset < names.index("PxCLB[0]") < names.index("PxFB[0]") < receive < start < names.index("PxCI[0]")
    assert names.index("PxCI[0]") < max(i for i, (name, value) in enumerate(writes) if name == "GHC" and value & 2)


@pytest.mark.parametrize(("behaves", "least_ms", "most_ms"), [
    ({}, 0, 2), ({"smi": True, "lets_go_after_ns": 10 * MS}, 10, 13), ({"lets_go_after_ns": None}, 25, 28),
    ({"lets_go_after_ns": 1500 * MS, "busy_after_ns": 20 * MS, "smi": True}, 1500, 1510),
    ({"lets_go_after_ns": None, "busy_after_ns": 5 * MS}, 2000, 2030)],
    ids=["at once", "within its time", "deaf", "busy", "busy for ever"])
def test_firmware_is_asked_to_let_go_first_and_has_its_time(rig, behaves, least_ms, most_ms):
    """The model objects to a register used too early; the other way round this waits no longer than it has to."""
    firmware = Firmware(**behaves)
    made = rig(firmware=firmware)
    assert [name for name, _ in made.model.writes[:3]] == ["GHC", "BOHC", "GHC"]
    assert least_ms <= (firmware.taken_at - firmware.asked_at) / MS <= most_ms
    assert r.BOHC(firmware.read(made.now)).OOS and made.disk.state is State.READY


def test_ports_without_a_disk_say_why(rig):
    made = rig(None, Drive(), Drive(signature=0xC33C0101), Drive(identity=identification(sectors=0)), ports=0b1111)
    assert [(port.state, port.reason) for port in made.controller.ports] == [
        (State.ABSENT, "nothing is attached"), (State.READY, ""), (State.ABSENT, "an enclosure, which is not driven"),
        (State.FAILED, "it claims 0 sectors")]
    assert [disk.name for disk in made.controller.disks] == ["0000:00:1f.2/1"]


def test_ports_that_are_not_implemented_are_not_touched(rig):
    made = rig(None, None, Drive(), ports=0b100)
    assert [disk.name for disk in made.controller.disks] == ["0000:00:1f.2/2"]


def test_disks_spin_up_side_by_side_unless_power_is_short(rig):
    together = rig(Drive(spins_up_after=4000), Drive(spins_up_after=4000))
    apart = rig(Drive(spins_up_after=4000), Drive(spins_up_after=4000), cap=r.CAP(NP=1, NCS=31, SAM=1, SNCQ=1, S64A=1, SSS=1))
    assert len(together.controller.disks) == len(apart.controller.disks) == 2
    assert apart.now - 1_000_000_000 > 1.7 * (together.now - 1_000_000_000)


def test_a_disk_that_never_gets_ready_has_failed_after_its_resets_and_the_others_work(rig):
    made = rig(Drive(), Drive(spins_up_after=10**9))
    dead = made.controller.ports[1]
    assert (dead.state, made.model.resets) == (State.FAILED, RESETS)
    assert "resets in a row did not help (0000:00:1f.2/1: PxTFD.BSY clear did not come" in dead.reason
    assert made.read(made.memory(), 0) == bytes(SECTOR)


def test_an_adapter_with_32_bit_addresses_gets_low_memory(rig):
    made = rig(cap=r.CAP(NP=0, NCS=31, SAM=1, SNCQ=1))
    assert all(block.iova + block.size <= 1 << 32 for block in made.device.bus.blocks)
    memory = made.memory()
    far = type("Far", (), {"address": memory.address, "iova": 1 << 32, "size": SECTOR})
    assert made.do(READ, 0, 1, [(far, 0, SECTOR)]) == errno.EINVAL


def test_what_is_no_ahci_controller_is_refused():
    device = AhciDevice(Model(Drive()))
    device.config.words[8] = 0x01040000
    with pytest.raises(DeviceRefused, match="RAID or IDE mode"):
        AhciController(device)
    device.config.words[0] = 0xFFFF
    with pytest.raises(DeviceGone):
        AhciController(device)


@pytest.mark.parametrize(("drive", "slots", "depth"), [(32, 31, 32), (8, 31, 8), (32, 3, 4), (1, 31, 1)])
def test_the_depth_is_what_both_drive_and_controller_have(rig, drive, slots, depth):
    made = rig(Drive(identity=identification(depth=drive)), cap=r.CAP(NP=0, NCS=slots, SAM=1, SNCQ=1, S64A=1), lazy=True)
    assert made.disk.info.queue_depth == made.disk.room() == depth
    memory = made.memory()
    for _ in range(depth + 3):
        made.ask(READ, 0, 1, [(memory, 0, SECTOR)])
    assert made.disk.submit(made.requests) == depth
    assert len(made.requests) == 3 and made.disk.room() == 0


# Requests.

@pytest.mark.parametrize("queued", [True, False])
def test_what_was_written_is_read(rig, queued):
    made = rig(queued=queued)
    memory = made.memory()
    memory.view()[:4 * SECTOR] = pattern(1, 4)
    assert made.do(WRITE, 100, 4, [(memory, 0, 4 * SECTOR)]) == 0
    memory.view()[:4 * SECTOR] = bytes(4 * SECTOR)
    assert made.read(memory, 100, 4) == pattern(1, 4)
    assert {code for code, _, _ in made.drive.executed[1:]} == ({0x60, 0x61} if queued else {0x25, 0x35})


def test_a_burst_goes_out_with_one_doorbell_sact_before_ci(rig):
    made = rig()
    memory = made.memory()
    made.model.writes.clear()
    tags = [made.ask(READ, 8 * n, 8, [(memory, 4096 * (n % 16), 4096)]) for n in range(20)]
    assert made.finish(*tags) == [0] * 20
    assert [name for name, _ in made.model.writes] == ["PxSACT[0]", "PxCI[0]"]
    assert made.disk.statistics()["doorbells"] == 1


def test_segments_go_straight_to_the_callers_memory(rig):
    made = rig()
    for n in range(4):
        made.drive.media[n] = pattern(n)
    memory = made.memory()
    pieces = [(memory, 1000, 2), (memory, 0, 510), (memory, 4096, 1024), (memory, 2000, 512)]
    assert made.do(READ, 0, 4, pieces) == 0
    view = memory.view()
    whole = b"".join(bytes(view[at:at + size]) for _, at, size in pieces)
    assert whole == b"".join(pattern(n) for n in range(4))


def test_requests_that_make_no_sense_end_with_an_errno_and_touch_nothing(rig):
    made = rig()
    memory = made.memory(1 << 20)
    piece = [(memory, 0, SECTOR)]
    before = len(made.drive.executed)
    cases = [(READ, 4096, 1, piece), (READ, 4095, 2, [(memory, 0, 2 * SECTOR)]), (READ, 0, 0, []), (READ, 0, 1, []),
             (READ, 0, 2, piece), (READ, 0, 1, [(memory, 1, SECTOR)]), (READ, 0, 1, [(memory, 0, 511), (memory, 512, 1)]),
             (READ, (1 << 64) - 1, 1, piece), (READ, 0, 65537, piece), (Operation.FLUSH, 0, 1, piece)]
    assert [made.do(*case) for case in cases] == [errno.EINVAL] * len(cases)
    assert made.do(READ, 0, 1, [(memory, 2 * n, 2) for n in range(249)]) == errno.EINVAL
    assert made.do(9, 0, 1, piece) == made.do(READ, 0, 1, piece, fua=True) == errno.EOPNOTSUPP
    assert len(made.drive.executed) == before and made.disk.statistics()["refused"] == 13
    with pytest.raises(ValueError, match="segment 0"):
        made.requests.append(READ, 1, 0, 1, [(memory, 1 << 20, 2)])


def test_a_flush_waits_for_the_queue_and_nothing_passes_it(rig):
    made = rig(lazy=True)
    memory = made.memory()
    writes = [made.ask(WRITE, n, 1, [(memory, 0, SECTOR)]) for n in range(5)]
    flush, after = made.ask(Operation.FLUSH), made.ask(WRITE, 9, 1, [(memory, 0, SECTOR)])
    made.look()
    assert len(made.requests) == 1 and made.disk.room() == 0
    made.model.run(3)
    made.look()
    assert sorted(made.ended) == writes[:3] and FLUSH not in {code for code, _, _ in made.drive.executed}
    made.model.run()
    made.look()
    assert sorted(made.ended) == writes and made.disk.room() == 0
    made.model.run()
    made.look()
    assert flush in made.ended and after not in made.ended
    assert set(made.drive.durable) == set(range(5))
    made.model.lazy = False
    assert made.finish(after) == [0]


@pytest.mark.parametrize(("queued", "fua", "codes"), [
    (True, False, [0x61]), (False, True, [0x3D]), (False, False, [WRITE_DMA, FLUSH])])
def test_fua_is_durable_by_the_best_way_the_drive_has(rig, queued, fua, codes):
    made = rig(Drive(identity=identification(fua=fua)), queued=queued)
    memory = made.memory()
    memory.view()[:SECTOR] = pattern(7)
    assert made.do(WRITE, 5, 1, [(memory, 0, SECTOR)], fua=True) == 0
    assert made.drive.durable == {5: pattern(7)}
    assert [code for code, _, _ in made.drive.executed[1:]] == codes
    assert made.disk.statistics()["writes"] == 1


# What the controller writes into memory saves reads of its registers.

def test_a_lone_command_costs_two_register_writes_and_no_read(rig):
    made = rig()
    memory = made.memory()
    reads, writes = [], len(made.model.writes)
    ask = made.model.read32
    made.model.read32 = lambda at: reads.append(at) or ask(at)
    for n in range(100):
        assert made.do(READ, n, 1, [(memory, 0, SECTOR)]) == 0
    assert not reads
    assert [name for name, _ in made.model.writes[writes:]] == ["PxSACT[0]", "PxCI[0]"] * 100


def test_vain_looks_read_a_register_every_sixteenth_time(rig):
    made = rig(lazy=True)
    tag = made.ask(READ, 0, 1, [(made.memory(), 0, SECTOR)])
    made.look()
    before = made.port.sact_reads
    assert made.look(160) == 0
    assert made.port.sact_reads - before <= 20
    made.model.run()
    assert made.look() == 1 and made.ended == {tag: 0}


@pytest.mark.parametrize("kind", ["msi", None])
@pytest.mark.parametrize("depth", [1, 5])
def test_completions_whose_fis_was_missed_are_found_all_the_same(rig, kind, depth):
    made = rig(kind=kind, lazy=True)
    memory = made.memory()
    tags = [made.ask(READ, n, 1, [(memory, 0, SECTOR)]) for n in range(depth)]
    made.look()
    made.port.loses_fises = True
    made.model.run()
    assert made.look(17) == depth and made.ended == dict.fromkeys(tags, 0)
    assert made.disk.state is State.READY and made.model.resets == 0


def test_a_missed_fis_and_a_missed_interrupt_cost_a_tick_at_most(rig):
    made = rig(lazy=True)
    tag = made.ask(READ, 0, 1, [(made.memory(), 0, SECTOR)])
    made.look()
    assert made.disk.arm()
    made.port.loses_fises = True
    made.model.run()
    made.device.interrupt.drain()
    made.now = max(made.now, made.disk.wake_at())
    assert made.look() == 1 and made.ended == {tag: 0}


def test_the_fis_of_an_earlier_command_ends_no_later_one(rig):
    made = rig(lazy=True)
    memory = made.memory()
    first = made.ask(READ, 0, 1, [(memory, 0, SECTOR)])
    made.look()
    made.model.run()
    assert made.look() == 1
    second = made.ask(READ, 1, 1, [(memory, 0, SECTOR)])
    made.disk.submit(made.requests)
    made.port.receive(0x58, bytes([0xA1, 0x40, 0x50, 0]) + (1).to_bytes(4, "little"))      # slot 0 once more, late
    assert made.look(40) == 0
    made.port.receive(0x58, bytes([0xA1, 0x40, 0x50, 0]) + bytes(4))                       # a notification, of no command
    assert made.look(40) == 0
    made.model.run()
    assert made.finish(second) == [0] and made.ended[first] == 0


@pytest.mark.parametrize("depth", [1, 2, 32])
def test_a_slot_is_used_again_only_once_pxsact_says_that_it_is_free(rig, depth):
    made = rig(Drive(identity=identification(depth=depth)))
    made.port.slow_sact = 5
    memory = made.memory()
    for round in range(3):
        alone = made.ask(READ, 0, 1, [(memory, 0, SECTOR)])
        assert made.finish(alone) == [0]
        together = [made.ask(READ, n, 1, [(memory, 0, SECTOR)]) for n in range(depth)]
        assert made.finish(*together) == [0] * depth
        assert made.do(READ, 0, 1, [(memory, 0, SECTOR)]) == made.do(Operation.FLUSH) == 0, round
    assert made.model.resets == 0


def test_completions_that_wait_for_room_in_the_burst_do_not_fall_asleep(rig):
    made = rig(kind="msi", lazy=True)
    memory = made.memory()
    refused = [made.ask(READ, 0, 0, []) for _ in range(REQUESTS)]
    made.disk.submit(made.requests)
    tags = [made.ask(READ, n, 1, [(memory, 0, SECTOR)]) for n in range(2)]
    made.disk.submit(made.requests)
    made.model.run()
    assert made.look() == REQUESTS
    assert not made.disk.arm()
    assert made.finish(*refused, *tags) == [errno.EINVAL] * REQUESTS + [0, 0]
    assert made.disk.arm()
    tag = made.ask(READ, 5, 1, [(memory, 0, SECTOR)])
    made.disk.submit(made.requests)
    made.model.run()
    assert readable(made.disk) and made.finish(tag) == [0]


# Interrupts.

@pytest.mark.parametrize("kind", ["msi", "intx"])
def test_a_completion_wakes_who_armed_and_nobody_sleeps_on_one(rig, kind):
    made = rig(kind=kind, lazy=True)
    memory = made.memory()
    for n in range(3):
        tag = made.ask(READ, n, 1, [(memory, 0, SECTOR)])
        assert made.look() == 0 and made.disk.arm() and not readable(made.disk)
        made.model.run()
        assert readable(made.disk)
        assert made.look() == 1 and made.ended[tag] == 0
        assert not readable(made.disk)
        tag = made.ask(READ, n, 1, [(memory, 0, SECTOR)])
        assert made.look() == 0
        made.model.run()
        assert not made.disk.arm()          # it is there already
        assert made.finish(tag) == [0]


@pytest.mark.parametrize("kind", ["msi", "intx"])
def test_one_interrupt_for_two_disks_wakes_both(rig, kind):
    made = rig(Drive(), Drive(), kind=kind, lazy=True)
    other = Rig.__new__(Rig)
    other.__dict__ |= made.__dict__ | {"requests": type(made.requests)(), "completions": type(made.completions)(), "ended": {}}
    disks = made.controller.disks
    memory = made.memory()
    for disk in disks:
        made.ask(READ, 0, 1, [(memory, 0, SECTOR)])
        assert disk.submit(made.requests) == 1 and disk.arm()
    made.model.run()
    assert all(readable(disk) for disk in disks)
    for disk in disks:                      # the first to look takes the interrupt, and must not take it from the other
        assert readable(disk)
        assert disk.complete(made.completions) == 1
        assert disk.arm()
    made.ask(READ, 0, 1, [(memory, 0, SECTOR)])
    disks[1].submit(made.requests)
    made.model.run()
    assert readable(disks[1])
    assert disks[0].complete(made.completions) == 0 and readable(disks[1])
    assert disks[1].complete(made.completions) == 1


def readable(disk):
    return bool(select.select([disk.fileno()], [], [], 0)[0])


def test_polled_there_is_nothing_to_sleep_on_while_work_is_under_way(rig):
    made = rig(kind=None, lazy=True)
    memory = made.memory()
    assert made.disk.arm()
    made.ask(READ, 0, 1, [(memory, 0, SECTOR)])
    made.look()
    assert not made.disk.arm()


# Errors.

@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize(("operation", "bits", "code"), [
    (READ, UNC, errno.ENODATA), (WRITE, UNC, errno.EROFS), (READ, IDNF, errno.EINVAL), (WRITE, ABRT, errno.EIO)])
def test_of_a_full_queue_only_the_failed_request_ends_with_an_error(rig, log, operation, bits, code):
    made = rig(Drive(log=log, fail={50: bits}), lazy=True)
    for n in range(100):
        made.drive.media[n] = pattern(n)
    memory = made.memory()
    tags = [made.ask(operation if n == 17 else READ, 50 if n == 17 else n, 1, [(memory, SECTOR * n, SECTOR)])
            for n in range(32)]
    made.look()
    made.model.lazy = False
    made.model.run()
    assert made.finish(*tags) == [code if n == 17 else 0 for n in range(32)]
    view = memory.view()
    assert all(view[SECTOR * n:SECTOR * (n + 1)] == pattern(n) for n in range(32) if n != 17)
    codes = [code for code, _, _ in made.drive.executed]
    assert (READ_LOG in codes, READ_DMA in codes) == (log, not log)
    assert made.disk.state is State.READY and made.disk.statistics()["failed"] == 1
    assert (made.model.resets == 0) is log
    assert made.read(memory, 3) == pattern(3) and made.drive.executed[-1][0] == READ_FPDMA      # queued again


def test_a_failed_flush_is_told_and_the_disk_goes_on_without_a_reset(rig):
    made = rig(Drive(broken={FLUSH: ABRT}))
    assert made.do(Operation.FLUSH) == errno.EIO
    made.drive.broken.clear()
    assert made.do(Operation.FLUSH) == 0
    assert (made.model.resets, made.disk.statistics()["recoveries"]) == (0, 1)


def test_an_old_error_is_not_taken_for_the_next_commands(rig):
    made = rig(Drive(broken={FLUSH: ABRT}))
    assert made.do(Operation.FLUSH) == errno.EIO
    made.drive.broken.clear()
    made.model.lazy = True
    tag = made.ask(Operation.FLUSH)
    made.look(40)
    assert tag not in made.ended and made.disk.statistics()["recoveries"] == 1
    made.model.run()
    assert made.finish(tag) == [0]


def test_fua_that_must_be_made_of_a_flush_fails_with_it(rig):
    made = rig(Drive(broken={FLUSH: ABRT}), queued=False)
    memory = made.memory()
    assert made.do(WRITE, 5, 1, [(memory, 0, SECTOR)], fua=True) == errno.EIO


def test_a_link_that_garbles_data_once_is_not_noticed_and_for_good_is(rig):
    bad = iter(["link", "link"])
    made = rig(Drive(fail={3: lambda c: next(bad, None)}))
    memory = made.memory()
    assert made.do(READ, 3, 1, [(memory, 0, SECTOR)]) == 0
    assert made.disk.statistics()["errors_link"] == 2 == made.model.resets
    made.drive.fail[3] = "link"
    assert made.do(READ, 3, 1, [(memory, 0, SECTOR)]) == errno.EILSEQ
    made.drive.fail.clear()
    assert made.do(READ, 3, 1, [(memory, 0, SECTOR)]) == 0


def test_memory_that_the_controller_does_not_reach_fails_its_request_alone(rig):
    made = rig(Drive(fail={7: "bus"}), lazy=True)
    memory = made.memory()
    tags = [made.ask(READ, n, 1, [(memory, 0, SECTOR)]) for n in range(10)]
    made.look()
    made.model.lazy = False
    made.model.run()
    assert made.finish(*tags) == [errno.EFAULT if n == 7 else 0 for n in range(10)]


def test_a_command_that_hangs_ends_in_time_and_the_others_are_done_again(rig):
    made = rig(Drive(fail={3: "hang"}), timeout_ns=5_000_000_000)
    memory = made.memory()
    hung = made.ask(READ, 3, 1, [(memory, 0, SECTOR)])
    made.look()
    others = [made.ask(WRITE, 10 + n, 1, [(memory, 0, SECTOR)]) for n in range(4)]
    made.drive.fail[12] = "hang"
    made.look(40)
    assert made.disk.wake_at() <= made.now + 250_000_000
    assert sorted(made.ended) == sorted(set(others) - {others[2]})
    del made.drive.fail[12]
    began = made.now
    while hung not in made.ended:
        made.now += 250_000_000
        made.look()
        assert made.now - began < 8_000_000_000
    assert made.ended[hung] == errno.ETIMEDOUT
    assert made.finish(others[2]) == [0]
    assert made.disk.statistics()["timeouts"] == 1 and made.model.resets == 1


def test_a_hung_requests_memory_is_not_let_go_before_the_reset(rig):
    made = rig(Drive(fail={3: "hang"}), timeout_ns=1_000_000_000)
    tag = made.ask(READ, 3, 1, [(made.memory(), 0, SECTOR)])
    made.look()
    for _ in range(10_000):
        made.now += 100_000
        made.look()
        if tag in made.ended:
            break
        assert made.model.resets == 0
    assert made.model.resets == 1


def test_a_disk_that_hangs_for_good_fails_and_every_request_ends(rig):
    made = rig(Drive(broken={READ_FPDMA: "hang"}), timeout_ns=1_000_000_000)
    memory = made.memory()
    tags = [made.ask(READ, n, 1, [(memory, 0, SECTOR)]) for n in range(3)]
    made.look()
    made.drive.broken[IDENTIFY] = "hang"
    for _ in range(200_000):
        made.now += 10_000_000
        if made.look() == GONE:
            break
    assert made.disk.state is State.FAILED and "check cable" in made.disk.reason
    assert sorted(made.ended) == tags and set(made.ended.values()) == {errno.ETIMEDOUT, errno.ENODEV}
    late = [made.ask(READ, n, 1, [(memory, 0, SECTOR)]) for n in range(3)]
    assert made.finish(*late) == [errno.ENODEV] * 3
    assert made.disk.complete(made.completions) == GONE and not made.disk.arm()


def test_an_engine_that_does_not_stop_is_reset(rig):
    made = rig(Drive(broken={FLUSH: ABRT}))
    made.model.ports[0].stuck_engine = 10_000
    assert made.do(Operation.FLUSH) == errno.EIO
    assert made.model.resets == 1 and made.disk.state is State.READY


def test_another_drive_after_a_reset_is_a_new_disk_and_the_one_before_is_gone(rig):
    made = rig(Drive(broken={READ_FPDMA: "link"}))
    came = []
    made.controller.on_disk = lambda disk, there: came.append((disk.info.serial, there))
    made.drive.identity = identification(serial="S-2")
    tag = made.ask(READ, 0, 1, [(made.memory(), 0, SECTOR)])
    assert made.look(5000) == GONE
    assert made.ended == {tag: errno.ENODEV} and made.disk.reason == "another one is there now: STRICT DISK S-2"
    assert [disk.info.serial for disk in made.controller.disks] == ["S-2"] and came == [("S-1", False), ("S-2", True)]


@pytest.mark.parametrize("how", ["gone", "zeros"])
@pytest.mark.parametrize("kind", ["msi", None])
def test_a_controller_that_leaves_ends_every_request_with_enodev(rig, how, kind):
    made = rig(kind=kind, lazy=True)
    memory = made.memory()
    tags = [made.ask(READ, n, 1, [(memory, 0, SECTOR)]) for n in range(32)]
    made.look()
    setattr(made.model, how, True)
    assert made.look(40) == GONE
    assert made.ended == dict.fromkeys(tags, errno.ENODEV)
    assert made.disk.state is State.GONE
    assert made.finish(made.ask(READ, 0, 1, [(memory, 0, SECTOR)])) == [errno.ENODEV]


def test_closed_it_is_gone_and_nothing_is_left(rig):
    made = rig()
    tag = made.ask(READ, 0, 1, [(made.memory(), 0, SECTOR)])
    made.model.lazy = True
    made.look()
    disk = made.disk
    disk.close()
    disk.close()
    assert disk.fileno() == -1 and disk.submit(made.requests) == 0
    assert disk.complete(made.completions) == 1 and made.completions.items() == [(tag, errno.ENODEV)]
    assert disk.complete(made.completions) == GONE
    assert not made.model.ports[0].cmd.ST and not made.model.ports[0].cmd.FRE


class Queue(RuleBasedStateMachine):
    """Any mix of requests, paces and errors: every request ends once, rightly, and the model sees no rule broken."""

    log = True

    def __init__(self):
        super().__init__()
        self.rig = Rig(Drive(log=self.log), lazy=True, timeout_ns=10**18)
        self.memory = self.rig.memory(1 << 20)
        self.place = 0
        self.asked = {}             # tag: (operation, lba, place, data before)
        self.busy = set()

    @rule(lba=st.integers(0, 40), write=st.booleans(), fua=st.booleans())
    def ask(self, lba, write, fua):
        if lba in self.busy or len(self.rig.requests) == REQUESTS:
            return
        self.busy.add(lba)
        place = self.place = (self.place + SECTOR) % (1 << 20)
        if write:
            self.memory.view()[place:place + SECTOR] = pattern(place + lba)
        tag = self.rig.ask(WRITE if write else READ, lba, 1, [(self.memory, place, SECTOR)], fua=write and fua)
        self.asked[tag] = (write, lba, place, self.rig.drive.sector(lba))

    @rule()
    def flush(self):
        if len(self.rig.requests) < REQUESTS:
            self.asked[self.rig.ask(Operation.FLUSH)] = None

    @rule(count=st.integers(1, 40))
    def work(self, count):
        self.rig.model.run(count)

    @rule(lba=st.integers(0, 40), kind=st.sampled_from([UNC, "link", None]))
    def spoil(self, lba, kind):
        if lba not in self.busy:
            self.rig.drive.fail[lba] = kind

    @rule(times=st.integers(1, 30))
    def look(self, times):
        self.rig.look(times)
        self.check()

    def check(self):
        for tag, code in self.rig.ended.items():
            request = self.asked.pop(tag, None)
            if request is None:
                assert code == 0
                continue
            write, lba, place, before = request
            self.busy.discard(lba)
            kind = self.rig.drive.fail.get(lba)
            assert code == {UNC: errno.EROFS if write else errno.ENODATA, "link": errno.EILSEQ, None: 0}[kind]
            if code == 0:
                expected = pattern(place + lba) if write else before
                assert self.memory.view()[place:place + SECTOR] == expected
                assert self.rig.drive.sector(lba) == expected
        self.rig.ended.clear()

    @invariant()
    def there_is_room_or_work(self):
        assert self.rig.disk.room() > 0 or self.asked

    def teardown(self):
        self.rig.model.lazy = False
        for _ in range(5_000):
            if not self.asked and not len(self.rig.requests):
                break
            self.rig.model.run()
            self.rig.look()
            self.check()
        assert not self.asked
        self.memory.free()
        self.rig.controller.close()


class QueueWithoutLog(Queue):
    log = False


TestQueue = Queue.TestCase
TestQueueWithoutLog = QueueWithoutLog.TestCase
TestQueue.settings = TestQueueWithoutLog.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
