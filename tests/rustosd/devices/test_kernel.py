"""The kernel's side, on a made-up one: what is looked at before a take, and how giving back waits, fails and ends."""

import os

import pytest

from drivers import binding
from drivers.binding import Holder
from drivers.errors import DeviceError, DeviceRefused
from drivers.pci.sysfs import PciBus
from drivers.pci.uses import HostUses
from rustosd.config import DeviceConfig
from rustosd.devices import hostlink, kernel, kinds
from rustosd.devices.kernel import Kernel, Wish
from rustosd.devices.linkstate import LinkState
from rustosd.hostnet import HostNetworkError
from rustosd.journal import DeviceTaken, TapMade
from rustosd.values import Mac, PciAddress
from tests.drivers.pci.tree import Machine
from tests.models.device import FakeDevice
from tests.models.e1000 import Model

NIC, OTHER, SATA, AUDIO, BARE = "0000:01:00.0", "0000:01:00.1", "0000:00:1f.2", "0000:00:1b.0", "0000:07:00.0"
LINK = LinkState(name="eth0", mac="52:54:00:00:00:01", mtu=1500, up=True, read_at_s=0.0)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A NIC that shares its IOMMU group with a function nobody drives well, a disk, a sound card, a NIC without IOMMU."""
    made = Machine(tmp_path)
    made.net("eth0", made.pci(NIC, driver="e1000e", group=7))
    made.pci(OTHER, vendor=0x1234, device=0x11E8, code=0x00FF00, driver="edu", group=7)
    made.block("sda", "8:0", made.pci(SATA, device=0x2922, code=0x010601, driver="ahci", group=3), device__serial="WD-1")
    made.pci(AUDIO, device=0x293E, code=0x040300, driver="snd_hda_intel", group=4)
    made.net("eth1", made.pci(BARE, device=0x100E, driver="e1000"))
    monkeypatch.setattr(binding, "PCI", tmp_path / "sys/bus/pci")
    monkeypatch.setattr(hostlink, "PCI", tmp_path / "sys/bus/pci")
    monkeypatch.setattr(hostlink, "read", lambda name: LINK)
    monkeypatch.setattr(kernel, "PciBus", lambda: PciBus(tmp_path))
    monkeypatch.setattr(kernel, "HostUses", lambda: HostUses(tmp_path, default_routes=lambda: made.default_routes))
    made.default_routes = []
    return made


def wish(bdf, **given):
    return Wish(bdf, DeviceConfig(bdf=PciAddress(bdf)), **given)


def test_a_look_says_how_to_give_it_back_and_changes_nothing(machine):
    machine.write(machine.root / "sys/bus/pci/devices" / NIC / "driver_override", "e1000e")
    plan, other = Kernel().look([wish(NIC), wish(OTHER)])
    assert (plan.kind, plan.taken) == ("nic", DeviceTaken(NIC, "e1000e", "vfio", "e1000e", LINK))
    assert (other.kind, other.taken) == ("other", DeviceTaken(OTHER, "edu", "vfio"))
    (sata,) = Kernel().look([wish(SATA)])
    assert (sata.kind, sata.taken.link) == ("ahci", None)


@pytest.mark.parametrize(("wishes", "words"), [
    ([wish(NIC)], r"it shares IOMMU group 7 with 0000:01:00.1 \(edu\): take them together"),
    ([wish(NIC, force=True)], "it shares IOMMU group 7"),
    ([wish(AUDIO)], "rustosd has no driver for it; it drives Intel 82540EM, 82545EM, 82574L and AHCI controllers"),
    ([wish(SATA), wish(AUDIO)], f"{AUDIO}: rustosd has no driver"),
    ([wish(BARE)], "no IOMMU confines its DMA: .*uio backend"),
])
def test_what_is_in_the_way_is_said(machine, wishes, words):
    with pytest.raises(DeviceRefused, match=words):
        Kernel().look(wishes)
    with pytest.raises(DeviceError, match="no such PCI device"):
        Kernel().look([wish("0000:0f:00.0")])


def test_uio_needs_no_iommu_and_no_whole_group(machine):
    assert [plan.taken.backend for plan in Kernel().look([wish(BARE, backend="uio"), wish(NIC, backend="uio")])] == ["uio"] * 2


def test_force_overrules_what_an_operator_can_answer_for(machine):
    machine.default_routes = [2]
    with pytest.raises(DeviceRefused, match="eth1 carries the default route"):
        Kernel().look([wish(BARE, backend="uio")])
    assert Kernel().look([wish(BARE, backend="uio", force=True)])


def test_rules_are_resolved_to_devices(machine):
    by_mac, by_serial = DeviceConfig(mac=Mac("52:54:00:00:00:01"), backend="uio"), DeviceConfig(serial="wd1", force=True)
    absent = DeviceConfig(bdf=PciAddress("0000:0f:00.0"), optional=True)
    assert Kernel().resolve([by_mac, absent, by_serial]) == [Wish(NIC, by_mac, "uio"), Wish(SATA, by_serial, force=True)]
    with pytest.raises(DeviceRefused, match=r"mac 52:54:00:00:00:01 and bdf 0000:01:00\.0 both mean it"):
        Kernel().resolve([by_mac, DeviceConfig(bdf=PciAddress(NIC))])
    with pytest.raises(DeviceError, match=r"bdf 0000:0f:00\.0: there is no such device"):
        Kernel().resolve([DeviceConfig(bdf=PciAddress("0000:0f:00.0"))])
    assert Kernel().rule_for(NIC, [absent, by_mac]) is by_mac and Kernel().rule_for(SATA, [by_mac]) is None


def test_a_device_that_is_not_ours_any_more_is_noticed(machine):
    assert Kernel().lost(NIC, "vfio") == "somebody has unbound it from vfio-pci, e1000e drives it now"
    driver = machine.root / "sys/bus/pci/devices" / NIC / "driver"
    os.unlink(driver)
    assert Kernel().lost(NIC, "uio") == "somebody has unbound it from uio_pci_generic"
    machine.link(driver, machine.root / "sys/bus/pci/drivers/vfio-pci")
    assert Kernel().lost(NIC, "vfio") is None
    assert Kernel().lost("0000:0f:00.0", "vfio") == "it was unplugged"
    assert (Kernel().group_of(NIC), Kernel().group_of(BARE), Kernel().group_of("0000:0f:00.0")) == ("7", None, None)


TAKEN = DeviceTaken(NIC, "e1000e", "vfio", "e1000e", LINK)


@pytest.fixture
def given(machine, monkeypatch):
    """What is asked of binding and hostlink."""
    said = []
    monkeypatch.setattr(binding, "give_back", lambda *words: said.append(("bind", *words)) or True)
    monkeypatch.setattr(hostlink, "await_interface", lambda bdf: said.append(("await", bdf)) or "eth9")
    monkeypatch.setattr(hostlink, "restore", lambda link, name: said.append(("restore", link.name, name)) or ["a route"])
    return said


def test_the_driver_then_the_interface_then_its_state(given):
    assert kernel.give_back(TAKEN) == ["a route"]
    assert given == [("bind", NIC, "e1000e", "e1000e"), ("await", NIC), ("restore", "eth0", "eth9")]
    given.clear()
    assert kernel.give_back(DeviceTaken(SATA, "ahci", "vfio")) == []
    assert given == [("bind", SATA, "ahci", None)]


def bound_to_vfio(machine):
    driver = machine.root / "sys/bus/pci/devices" / NIC / "driver"
    os.unlink(driver)
    machine.link(driver, machine.root / "sys/bus/pci/drivers/vfio-pci")


def test_whoever_still_has_it_is_waited_for(machine, given, monkeypatch):
    bound_to_vfio(machine)
    answers = [[Holder(4711, "rustosd")], [Holder(4711, "rustosd")], []]
    monkeypatch.setattr(binding, "group_holders", lambda bdf: answers.pop(0))
    kernel.give_back(TAKEN)
    assert answers == [] and given[0][0] == "bind"


def test_whoever_does_not_let_go_is_named(machine, given, monkeypatch):
    bound_to_vfio(machine)
    monkeypatch.setattr(kernel, "RELEASE_S", 0.05)
    monkeypatch.setattr(binding, "group_holders", lambda bdf: [Holder(4711, "qemu")])
    with pytest.raises(DeviceRefused, match=r"qemu \(process 4711\) still has it, .*then run `rustosd recover`"):
        kernel.give_back(TAKEN)
    assert given == []


@pytest.mark.parametrize("error", [DeviceRefused(NIC, "no"), HostNetworkError("no"), FileNotFoundError(2, "no")])
def test_unplugged_on_its_way_back_it_counts_as_given_back(machine, given, monkeypatch, error):
    def fails(*_words):
        raise error
    monkeypatch.setattr(binding, "give_back", fails)
    with pytest.raises(type(error)):
        kernel.give_back(TAKEN)
    os.unlink(machine.root / "sys/bus/pci/devices" / NIC)
    assert kernel.give_back(TAKEN) == []


def test_undo_knows_every_kind_of_entry(given, monkeypatch):
    removed = []
    monkeypatch.setattr(kernel.hostnet, "remove", removed.append)
    kernel.undo(TapMade("rustos0"))
    kernel.undo(TAKEN)
    assert removed == ["rustos0"] and given[-1][0] == "restore"


def test_a_place_has_one_name():
    assert kernel.canonical("03:00.0") == "0000:03:00.0"
    with pytest.raises(ValueError, match="no PCI address"):
        kernel.canonical("eth0")


@pytest.mark.parametrize(("rule", "mtu", "chip", "expected"), [
    ({}, 1500, 0x10D3, 1500), ({}, 1280, 0x10D3, 1500), ({}, 9000, 0x10D3, 9000), ({}, 16000, 0x10D3, 9212),
    ({"adopt": False}, 9000, 0x10D3, 1500), ({"mtu": 4000}, 9000, 0x10D3, 4000), ({"mtu": 1400}, 9000, 0x10D3, 1500),
])
def test_the_card_gets_the_mtu_it_needs(rule, mtu, chip, expected):
    link = LinkState(name="eth0", mac="52:54:00:00:00:01", mtu=mtu, up=True, read_at_s=0.0)
    config = DeviceConfig(bdf=PciAddress(NIC), **rule)
    assert kinds._mtu(FakeDevice(Model(chip)), config, link) == expected
