"""Power: links that sleep, ports that are switched on, spin-up one after the other."""

import pytest

from drivers.ahci import registers as r
from drivers.ahci.options import LinkPower, Options
from drivers.ahci.states import State
from drivers.request import Operation
from tests.models.ahci import SECTOR, Drive

CAP = r.CAP(NP=3, NCS=31, SAM=1, SNCQ=1, S64A=1, SALP=1, PSC=1, SSC=1)


def made_with(rig, policy, **options):
    return rig(Drive(full=True), cap=options.pop("cap", CAP), options=Options(link_power=policy), **options)


@pytest.mark.parametrize(("policy", "alpe", "asp", "forbidden", "device"), [
    (LinkPower.ACTIVE, 0, 0, 3, False), (LinkPower.PARTIAL, 1, 0, 2, False), (LinkPower.SLUMBER, 1, 1, 0, True)])
def test_the_policy_is_what_port_and_drive_are_told(rig, policy, alpe, asp, forbidden, device):
    made = made_with(rig, policy)
    assert (made.port.cmd.ALPE, made.port.cmd.ASP, made.port.link.control >> 8 & 0xF) == (alpe, asp, forbidden)
    assert made.drive.device_power is device


@pytest.mark.parametrize("policy", [LinkPower.PARTIAL, LinkPower.SLUMBER])
@pytest.mark.parametrize("kind", ["msi", "intx", None])
def test_a_link_that_sleeps_between_requests_costs_no_reset_and_no_wake_up(rig, policy, kind):
    made = made_with(rig, policy, kind=kind)
    memory = made.memory()
    for n in range(20):
        tag = made.ask(Operation.READ, n, 1, [(memory, 0, SECTOR)])
        made.disk.submit(made.requests)
        made.disk.arm()
        assert made.finish(tag) == [0]
    made.wait(1)
    assert made.port.link.naps >= 20 and made.model.resets == 0
    assert made.disk.statistics()["plugs"] == made.disk.statistics()["recoveries"] == 0


def test_a_drive_that_is_pulled_from_a_sleeping_link_is_noticed_by_its_requests(rig):
    made = made_with(rig, LinkPower.SLUMBER)
    made.port.link.unplug()
    made.ask(Operation.READ, 1, 1, [(made.memory(), 0, SECTOR)])
    made.until(lambda: made.disk.gone, 200)


def test_another_drive_on_a_sleeping_link_is_noticed_by_its_comreset(rig):
    made = made_with(rig, LinkPower.SLUMBER)
    made.port.link.unplug()
    made.port.link.plug(Drive(serial="S-9", full=True))
    made.until(lambda: made.disk.gone)
    assert made.controller.disks[0].identity.serial == "S-9"


def test_a_controller_or_drive_that_cannot_sleep_is_left_awake(rig):
    awake = made_with(rig, LinkPower.SLUMBER, cap=r.CAP(NP=3, NCS=31, SAM=1, SNCQ=1, S64A=1))
    assert not awake.port.cmd.ALPE
    plain = rig(Drive(), cap=CAP, options=Options(link_power=LinkPower.SLUMBER))
    assert not plain.port.cmd.ALPE and plain.port.link.control >> 8 & 0xF == 3


def test_spin_up_is_asked_for_port_by_port_where_power_is_short(rig):
    made = rig(Drive(), Drive(serial="S-2"), cap=r.CAP(NP=1, NCS=31, SAM=1, SNCQ=1, S64A=1, SSS=1))
    assert [port.state for port in made.controller.ports] == [State.READY] * 2
    spun = [i for i, (name, value) in enumerate(made.model.writes) if name.startswith("PxCMD") and value & r.PxCMD.SUD.mask]
    asked = next(i for i, (name, _) in enumerate(made.model.writes) if name == "PxCI[0]")
    second = next(i for i in spun if made.model.writes[i][0] == "PxCMD[1]")
    assert spun[0] < asked < second
