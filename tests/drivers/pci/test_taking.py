"""Why a function cannot be taken, and what each reason advises."""

import os

import pytest

from drivers.pci.names import Names
from drivers.pci.sysfs import Bdf, PciBus
from drivers.pci.taking import Why, row, why_not_take
from drivers.pci.unkept import Hangers
from drivers.pci.uses import HostUses

NIC = "0000:03:00.0"


def reasons(machine, bdf=NIC, *, together=(), **asked):
    bus = PciBus(machine.root)
    return why_not_take(bus.device(bdf), bus, HostUses(machine.root, **asked), together)


def whys(machine, bdf=NIC, **asked):
    return [reason.why for reason in reasons(machine, bdf, **asked)]


@pytest.fixture
def nic(machine):
    path = machine.pci(NIC, driver="e1000e", group=1)
    machine.net("eth0", path)
    return path


@pytest.fixture
def disk(machine):
    """sda on a controller of its own."""
    return machine.block("sda", "8:0", machine.pci("0000:00:1f.2", code=0x010601, driver="ahci", group=2))


def test_an_idle_nic_in_a_group_of_its_own_can_be_taken(machine, nic):
    assert reasons(machine) == ()


def test_a_bridge_is_never_taken(machine, nic):
    machine.pci("0000:00:1c.0", code=0x060400, driver="pcieport", group=5)
    (reason,) = reasons(machine, "0000:00:1c.0")
    assert reason.why is Why.BRIDGE and "behind it" in reason.advice and not reason.forcible


def test_the_default_route_is_not_taken_unless_forced(machine, nic):
    (reason,) = reasons(machine, default_routes=lambda: [1])
    assert reason.why is Why.DEFAULT_ROUTE and reason.forcible
    assert str(reason) == ("eth0 carries the default route: give the host another way out first, or name the device with "
                           "--force")


def test_a_mounted_filesystem_is_named(machine, disk):
    machine.mount("8:0", "/srv", source="/dev/sda")
    (reason,) = reasons(machine, "0000:00:1f.2")
    assert reason.why is Why.MOUNTED and reason.forcible and "/srv" in reason.text and "unmount" in reason.advice


def test_swap_is_not_to_be_forced(machine, disk):
    machine.swap("/dev/sda")
    (reason,) = reasons(machine, "0000:00:1f.2")
    assert reason.why is Why.SWAP and not reason.forcible and reason.advice == "swapoff /dev/sda"


def test_a_disk_under_raid_is_in_use(machine, disk):
    machine.block("md0", "9:0", holds=(disk,))
    (reason,) = reasons(machine, "0000:00:1f.2")
    assert reason.why is Why.IN_USE and "md0" in reason.text and "lsblk /dev/sda" in reason.advice


def test_a_bridges_port_is_in_use(machine, nic):
    machine.net("br0", lower=("eth0",), master="br0")
    (reason,) = reasons(machine)
    assert reason.why is Why.IN_USE and reason.text == "eth0 is part of br0" and "nomaster" in reason.advice
    assert reason.forcible and "it goes back there" in reason.advice


def test_vlans_are_told_with_their_return(machine, nic):
    machine.net("eth0.5", lower=("eth0",))
    (reason,) = reasons(machine, hangers=lambda: {1: Hangers(vlans=("eth0.5",))})
    assert reason.why is Why.IN_USE and reason.forcible
    assert str(reason).startswith("the VLANs eth0.5 are on eth0 and cease meanwhile: delete them (ip link delete eth0.5)")
    assert "made again" in reason.advice


def test_what_does_not_come_back_is_told_as_lost_beside_all_other_reasons(machine, nic):
    machine.net("mv0", lower=("eth0",))
    lost = Hangers(vlans=("eth0.5",), lost=("the queueing discipline htb", "mv0 (macvlan)"))
    found = reasons(machine, hangers=lambda: {1: lost}, default_routes=lambda: [1])
    assert [reason.why for reason in found] == [Why.DEFAULT_ROUTE, Why.IN_USE, Why.LOST]
    assert found[2].text == "eth0 has the queueing discipline htb, mv0 (macvlan), and does not come back with that"
    assert "tc qdisc show dev eth0" in found[2].advice and found[2].forcible


def test_what_depends_on_an_interface_in_a_way_nobody_knows_is_told_too(machine, nic):
    machine.net("odd0", lower=("eth0",))
    (reason,) = reasons(machine)
    assert reason.why is Why.IN_USE and reason.text == "odd0 depends on eth0"


def test_a_nic_whose_interface_is_elsewhere_is_in_use(machine):
    machine.pci(NIC, driver="e1000e", group=1)
    (reason,) = reasons(machine)
    assert reason.why is Why.IN_USE and "lsns" in reason.advice


@pytest.mark.parametrize(("present", "advice"), [
    ("sys/firmware/acpi/tables/DMAR", "intel_iommu=on"), ("sys/firmware/acpi/tables/IVRS", "amd_iommu=on"),
    ("sys/class/iommu/dmar0/x", "another slot"), ("x", "in the firmware"),
])
def test_without_an_iommu_the_advice_fits_the_machine(machine, present, advice):
    machine.pci(NIC)
    machine.write(present, "")
    (reason,) = reasons(machine)
    assert reason.why is Why.NO_IOMMU and advice in reason.advice and "uio" in reason.advice


def test_a_shared_group_is_to_be_taken_together(machine, nic):
    machine.net("eth1", machine.pci("0000:03:00.1", driver="e1000e", group=1))
    (reason,) = reasons(machine)
    assert reason.why is Why.GROUP_SHARED and reason.text == "it shares IOMMU group 1 with 0000:03:00.1 (e1000e)"
    assert "device take 0000:03:00.0 0000:03:00.1" in reason.advice
    assert reasons(machine, together=[Bdf.parse("0000:03:00.1")]) == ()


def test_a_shared_group_whose_other_member_must_stay_says_so(machine, nic, disk):
    other = machine.pci("0000:03:00.1", driver="ahci", code=0x010601, group=1)
    machine.mount("8:16", "/home")
    machine.block("sdb", "8:16", other)
    (reason,) = reasons(machine)
    assert "0000:03:00.1 cannot come along (sdb has mounted filesystems (/home))" in reason.advice


@pytest.mark.parametrize("driver", [None, "vfio-pci", "pci-stub", "pcieport"])
def test_members_that_nobody_drives_do_not_stand_in_the_way(machine, nic, driver):
    machine.pci("0000:03:00.1", driver=driver, group=1)
    assert reasons(machine) == ()


def test_virtual_functions_and_the_console_are_reasons(machine):
    machine.pci("0000:01:00.0", code=0x030000, driver="i915", group=4, sriov_numvfs="3", boot_vga="1")
    assert whys(machine, "0000:01:00.0") == [Why.VIRTUAL_FUNCTIONS, Why.CONSOLE]


def test_a_device_another_program_holds_names_the_program(machine):
    machine.pci(NIC, driver="vfio-pci", group=12)
    machine.link("proc/4711/fd/9", "/dev/vfio/12")
    machine.link("proc/4712/fd/9", "/dev/vfio/13")
    machine.write("proc/4711/comm", "qemu-system-x86")
    (reason,) = reasons(machine)
    assert reason.why is Why.IN_USE and reason.text == "qemu-system-x86 (pid 4711) holds it"
    (machine.root / "proc/4711").rename(machine.root / f"proc/{os.getpid()}")
    assert reasons(machine) == ()


def test_a_device_held_through_uio_or_a_cdev_is_held(machine):
    path = machine.pci(NIC, driver="uio_pci_generic")
    machine.write(path / "uio/uio0/name", "x")
    machine.write("proc/5/comm", "dpdk")
    machine.link("proc/5/fd/1", "/dev/uio0")
    assert whys(machine) == [Why.IN_USE]


def test_the_most_hopeless_reason_comes_first(machine, nic):
    machine.net("eth1", machine.pci("0000:03:00.1", driver="e1000e", group=1))
    assert whys(machine, default_routes=lambda: [1]) == [Why.DEFAULT_ROUTE, Why.GROUP_SHARED]


def test_rows_say_who_drives_it_and_whether_it_can_be_taken(machine, nic):
    machine.pci("0000:00:1c.0", code=0x060400, driver="pcieport")
    bus, host = PciBus(machine.root), HostUses(machine.root)
    bridge, card = (row(device, bus, host, Names()) for device in bus.devices())
    assert (card.bdf, card.kind, card.name, card.driver, card.iommu_group) == (NIC, "Ethernet controller", "8086:10d3",
                                                                               "e1000e", 1)
    assert card.takeable and not card.reasons and card.uses.words() == ["eth0 52:54:00:00:00:01"]
    assert not bridge.takeable and bridge.reasons[0].text.startswith("it is a bridge") and bridge.uses.words() == []


def test_this_machine_would_not_lose_its_root_or_its_default_route():
    bus, host = PciBus(), HostUses()
    for device in bus.devices():
        uses, found = host.of(device), {reason.why for reason in why_not_take(device, bus, host)}
        if any(interface.carries_default_route for interface in uses.interfaces):
            assert Why.DEFAULT_ROUTE in found
        if any(disk.mounts for disk in uses.disks):
            assert Why.MOUNTED in found
