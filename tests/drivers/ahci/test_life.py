"""A port's life: plugging and unplugging, harder and harder measures, the end; and every arrow of the table."""

import errno

import pytest

from drivers.ahci import life
from drivers.ahci import registers as r
from drivers.ahci.ladder import RESETS
from drivers.ahci.life import RETURN_NS
from drivers.ahci.options import Options
from drivers.ahci.port import ENGINE_NS
from drivers.ahci.states import TRANSITIONS, Event, ImpossibleTransition, State, after
from drivers.disk import GONE
from drivers.errors import DeviceError
from drivers.request import Operation
from tests.models.ahci import IDENTIFY, READ_DMA, READ_FPDMA, READ_LOG, SECTOR, WRITE_DMA, WRITE_FPDMA, Drive, identification
from tests.models.ahci.packet import Disc

READ, WRITE, FLUSH = Operation.READ, Operation.WRITE, Operation.FLUSH
UNC, ABRT = 0x40, 0x04
S = 1_000_000_000


def changes(made):
    """(serial number, there) of each disk that comes or leaves from now on."""
    seen = []
    made.controller.on_disk = lambda disk, there: seen.append((disk.identity.serial, there))
    return seen


def whats(port):
    return [event.what for event in port.events]


# Hotplug.

@pytest.mark.parametrize("kind", ["msi", "intx", None])
def test_a_drive_plugged_into_an_empty_port_is_a_new_disk(rig, kind):
    made = rig(None, Drive(serial="S-2"), kind=kind)
    seen, port = changes(made), made.controller.ports[0]
    made.wait(2)
    assert seen == [] and port.state is State.ABSENT
    made.model.ports[0].link.plug(Drive(identity=identification(serial="S-9")))
    made.until(lambda: seen)
    assert seen == [("S-9", True)] and port.state is State.READY
    assert [disk.identity.serial for disk in made.controller.disks] == ["S-9", "S-1"]
    disk = made.use(made.controller.disks[0])
    assert made.read(made.memory(), 7) == bytes(SECTOR) and disk.info.serial == "S-9"


def test_a_drive_pulled_while_it_works_ends_its_requests_with_enodev_and_no_others(rig):
    made = rig(Drive(), Drive(identity=identification(serial="S-2")), lazy=True)
    seen, memory = changes(made), made.memory()
    other = made.controller.disks[1]
    tags = [made.ask(READ, n, 1, [(memory, 0, SECTOR)]) for n in range(20)]
    made.look()
    made.model.ports[0].link.unplug()
    began = made.now
    made.until(lambda: made.disk.gone)
    assert RETURN_NS <= made.now - began < 2 * RETURN_NS
    made.look(20)
    assert made.ended == dict.fromkeys(tags, errno.ENODEV) and made.look() == GONE
    assert seen == [("S-1", False)] and made.disk.reason == "it was unplugged"
    made.model.lazy = False
    made.use(other)
    assert made.read(memory, 3) == bytes(SECTOR)


def test_the_same_drive_back_in_time_carries_on_as_if_nothing_had_been(rig):
    made = rig(lazy=True)
    seen, memory = changes(made), made.memory()
    made.drive.media[5] = b"x" * SECTOR
    tags = [made.ask(READ, 5, 1, [(memory, SECTOR * n, SECTOR)]) for n in range(8)]
    made.look()
    drive = made.port.link.unplug()
    made.wait(RETURN_NS / S / 2)
    assert made.disk.state is State.LOST and not made.ended
    made.port.link.plug(drive)
    made.model.lazy = False
    assert made.finish(*tags) == [0] * 8
    assert seen == [] and made.disk.statistics()["plugs"] >= 1
    assert bytes(memory.view()[:8 * SECTOR]) == b"x" * SECTOR * 8


def test_another_drive_in_the_same_port_is_another_disk(rig):
    made = rig(lazy=True)
    seen, memory = changes(made), made.memory()
    tag = made.ask(READ, 5, 1, [(memory, 0, SECTOR)])
    made.look()
    before = made.disk
    made.port.link.unplug()
    made.wait(0.3)
    made.model.lazy = False
    made.port.link.plug(Drive(identity=identification(serial="S-2")))
    assert made.finish(tag) == [errno.ENODEV]
    assert before.complete(made.completions) == GONE and before.reason == "another one is there now: STRICT DISK S-2"
    assert seen == [("S-1", False), ("S-2", True)]
    before.close()
    made.use(made.controller.disks[0])
    assert made.read(memory, 0) == bytes(SECTOR) and made.disk.name == before.name


def test_a_plug_that_bounces_is_waited_out(rig):
    made = rig(None)
    seen, link = changes(made), made.port.link
    drive = Drive()
    for _ in range(6):
        link.plug(drive)
        made.wait(0.03)
        link.unplug()
        made.wait(0.03)
    assert seen == [] and made.model.resets == 0
    link.plug(drive)
    made.until(lambda: seen)
    assert made.model.resets == 1


def test_a_link_that_was_lost_for_a_moment_costs_a_reset(rig):
    made = rig(lazy=True)
    tag = made.ask(READ, 5, 1, [(made.memory(), 0, SECTOR)])
    made.look()
    made.port.link.errors |= r.PxSERR.N.mask
    made.model.lazy = False
    made.model.line()
    assert made.finish(tag) == [0] and made.model.resets == 1 and not made.disk.gone


def test_an_empty_port_costs_an_interrupt_only_when_something_comes(rig):
    made = rig(None)
    sent = made.device.interrupt.sent
    made.wait(5)
    assert made.device.interrupt.sent == sent


# Measures.

def test_a_link_that_garbles_at_full_speed_is_slowed_down_and_the_drive_works(rig):
    made = rig()
    made.drive.fail = {lba: (lambda c: "link" if made.port.link.speed() > 1 else None) for lba in range(64)}
    memory = made.memory()
    results = [made.do(READ, n, 1, [(memory, 0, SECTOR)]) for n in range(6)]
    assert results[-1] == 0 and made.port.link.speed() == 1
    statistics = made.disk.statistics()
    assert statistics["slowdowns"] == 2 and "link slowed down" in whats(made.disk.life)
    assert not [code for code in results if code not in (0, errno.EILSEQ)]


def test_queued_commands_that_hang_again_and_again_end_queuing(rig):
    made = rig(Drive(broken={READ_FPDMA: "hang"}), timeout_ns=S)
    memory = made.memory()
    codes = []
    for n in range(5):
        tag = made.ask(READ, n, 1, [(memory, 0, SECTOR)])
        made.until(lambda tag=tag: tag in made.ended)
        codes.append(made.ended[tag])
    assert codes == [errno.ETIMEDOUT] * 3 + [0, 0]
    assert made.disk.statistics()["queuing_off"] == 1 and made.drive.executed[-1][0] == READ_DMA
    assert made.do(WRITE, 5, 1, [(memory, 0, SECTOR)], fua=True) == 0 and WRITE_DMA in [c for c, _, _ in made.drive.executed]


def test_a_failed_port_is_tried_again_when_the_operator_says_so(rig):
    made = rig(Drive(broken={READ_FPDMA: "hang"}), timeout_ns=S)
    seen, port = changes(made), made.disk.life
    tag = made.ask(READ, 0, 1, [(made.memory(), 0, SECTOR)])
    made.look()
    made.drive.broken[IDENTIFY] = "hang"
    made.until(lambda: port.state is State.FAILED)
    made.look(5)
    assert tag in made.ended and made.disk.complete(made.completions) == GONE
    assert "given up" in whats(port) and "check cable" in port.reason
    made.disk.close()
    with pytest.raises(DeviceError, match="one that has failed or is empty"):
        rig().disk.life.try_again(0)
    made.drive.broken.clear()
    port.try_again(made.now)
    made.until(lambda: seen[-1] == ("S-1", True))
    made.use(made.controller.disks[0])
    assert made.read(made.memory(), 0) == bytes(SECTOR) and port.ladder.resets <= 1


def test_a_failed_port_comes_back_with_another_drive(rig):
    made = rig(Drive(spins_up_after=10**9))
    seen, port = changes(made), made.controller.ports[0]
    assert port.state is State.FAILED
    made.port.link.unplug()
    made.wait(1)
    assert port.state is State.ABSENT
    made.port.link.plug(Drive())
    made.until(lambda: seen)
    assert port.state is State.READY


def test_a_log_that_tells_of_another_command_is_not_believed(rig):
    made = rig(Drive(log=True, fail={50: UNC}), lazy=True)
    memory = made.memory()
    tags = [made.ask(READ, 50 if n == 3 else n, 1, [(memory, 0, SECTOR)]) for n in range(8)]
    made.look()
    made.model.lazy = False
    made.model.run()
    page = bytearray(made.drive.error_log)
    page[0], page[511] = 0x80 | page[0], (page[511] - 0x80) & 0xFF      # NQ: it was no queued command
    made.drive.error_log = bytes(page)
    assert made.finish(*tags) == [errno.ENODATA if n == 3 else 0 for n in range(8)]
    assert made.model.resets == 1


def test_a_log_that_cannot_be_read_costs_a_reset(rig):
    made = rig(Drive(log=True, fail={50: UNC}, broken={READ_LOG: ABRT}), lazy=True)
    memory = made.memory()
    tags = [made.ask(READ, 50 if n == 3 else n, 1, [(memory, 0, SECTOR)]) for n in range(8)]
    made.look()
    made.model.lazy = False
    made.model.run()
    assert made.finish(*tags) == [errno.ENODATA if n == 3 else 0 for n in range(8)]
    assert made.model.resets == 1


# The end.

def test_hung_ports_are_stopped_side_by_side(rig):
    made = rig(*[Drive(identity=identification(serial=f"S-{n}")) for n in range(8)])
    for port in made.model.ports[:8]:
        port.stuck_engine = 10**9
    began = made.now
    made.controller.stop()
    assert made.now - began < 2 * ENGINE_NS and not made.device.bus.master
    assert all(port.state is State.GONE for port in made.controller.ports)


def test_what_was_written_goes_to_the_medium_before_the_end(rig):
    made = rig()
    memory = made.memory()
    memory.view()[:SECTOR] = b"y" * SECTOR
    assert made.do(WRITE, 3, 1, [(memory, 0, SECTOR)]) == 0 and not made.drive.durable
    made.controller.stop()
    assert made.drive.durable[3] == b"y" * SECTOR
    flushes = [code for code, _, _ in made.drive.executed].count(0xEA)
    made.controller.stop()
    assert [code for code, _, _ in made.drive.executed].count(0xEA) == flushes == 1


def test_a_drive_that_was_not_written_to_is_not_flushed(rig):
    made = rig()
    made.read(made.memory(), 0)
    made.controller.stop()
    assert 0xEA not in [code for code, _, _ in made.drive.executed]


def test_a_cache_that_does_not_empty_itself_does_not_hold_up_the_end_for_good(rig):
    made = rig(Drive(broken={0xEA: "hang"}))
    assert made.do(WRITE, 3, 1, [(made.memory(), 0, SECTOR)]) == 0
    began = made.now
    made.controller.stop()
    assert made.now - began < 11 * S and not made.device.bus.master


# The table.

def test_an_impossible_transition_raises_and_names_both():
    with pytest.raises(ImpossibleTransition, match="STARTED in READY"):
        after(State.READY, Event.STARTED)


def test_every_arrow_of_the_table_is_taken(rig, monkeypatch):
    taken = set()

    def noted(state, event):
        taken.add((state, event))
        return after(state, event)
    monkeypatch.setattr(life, "after", noted)
    for scenario in SCENARIOS:
        scenario(rig)
    wanted = {arrow for arrow in TRANSITIONS if arrow[1] is not Event.LEFT}
    assert wanted - taken == set()


def _healthy_and_failing(rig):
    made = rig(None, Drive(fail={1: UNC}, log=True), Drive(signature=0xC33C0101))
    made.use(made.controller.disks[0])
    assert made.do(READ, 1, 1, [(made.memory(), 0, SECTOR)]) == errno.ENODATA


def _reset_while_ready(rig):
    made = rig(Drive(fail={1: "hang", 2: "link"}), timeout_ns=S)
    tag = made.ask(READ, 1, 1, [(made.memory(), 0, SECTOR)])
    made.until(lambda: tag in made.ended)
    made.do(READ, 2, 1, [(made.memory(), 0, SECTOR)])


def _unplugged(rig):
    made = rig()
    made.port.link.unplug()
    made.until(lambda: made.disk.life.state is State.ABSENT)
    made.port.link.plug(Drive(spins_up_after=10**9))
    made.until(lambda: made.disk.life.state is State.FAILED, 400)
    made.port.link.unplug()
    made.until(lambda: made.disk.life.state is State.ABSENT)


def _pulled_while_it_recovers(rig):
    made = rig(Drive(fail={1: "link"}))
    tag = made.ask(READ, 1, 1, [(made.memory(), 0, SECTOR)])
    made.disk.submit(made.requests)
    made.port.link.unplug()
    made.until(lambda: made.disk.gone)
    made.look()
    assert made.ended[tag] in (errno.ENODEV, errno.EILSEQ)


def _identification_fails(rig):
    rig(Drive(broken={IDENTIFY: ABRT}))
    rig(Drive(identity=identification(sectors=0)))


def _service_hangs(rig):
    made = rig(Drive(full=True, broken={0xE5: "hang"}))
    from drivers.ahci.service import power_mode
    with pytest.raises(DeviceError):
        made.perform(power_mode(made.disk))
    made.drive.broken.clear()
    assert made.perform(power_mode(made.disk)) == "active or idle"


def _resets_have_been_used_up(rig, **drive):
    made = rig(Drive(full=True, **drive), timeout_ns=S)
    port = made.disk.life
    port._progress()
    port.ladder.resets = RESETS
    return made, port


def _no_reset_is_left_while_ready(rig):
    made, port = _resets_have_been_used_up(rig, fail={1: "hang"})
    made.ask(READ, 1, 1, [(made.memory(), 0, SECTOR)])
    made.until(lambda: port.state is State.FAILED)


def _no_reset_is_left_while_it_recovers(rig):
    made, port = _resets_have_been_used_up(rig, fail={1: "link"})
    made.ask(READ, 1, 1, [(made.memory(), 0, SECTOR)])
    made.until(lambda: port.state is State.FAILED)


def _no_reset_is_left_for_a_routine(rig):
    made = rig(Disc(bytes(4096)))
    port = made.disk.life
    made.port.drive.dead = True
    port._progress()
    port.ladder.resets = RESETS
    made.until(lambda: port.state is State.FAILED)


SCENARIOS = [_no_reset_is_left_while_ready, _no_reset_is_left_while_it_recovers, _no_reset_is_left_for_a_routine,
             _healthy_and_failing, _reset_while_ready, _unplugged, _pulled_while_it_recovers, _identification_fails,
             _service_hangs]


@pytest.mark.parametrize("state", list(State))
def test_from_every_state_a_controller_that_leaves_is_gone(state):
    assert after(state, Event.LEFT) is State.GONE


def test_options_are_for_all_disks(rig):
    made = rig(options=Options(depth=4))
    assert made.disk.info.queue_depth == 4
    assert rig(Disc(bytes(4096))).disk.info.queue_depth == 1 and WRITE_FPDMA == 0x61
