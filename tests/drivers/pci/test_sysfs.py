"""Enumeration through sysfs, on made-up trees and on this machine."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.errors import DeviceError
from drivers.pci.sysfs import BarInfo, BarKind, Bdf, Link, PciBus, parse_resource

E1000E = """\
0x00000000fe840000 0x00000000fe85ffff 0x0000000000040200
0x00000000fe860000 0x00000000fe87ffff 0x0000000000040200
0x000000000000c000 0x000000000000c01f 0x0000000000040101
0x00000000fe880000 0x00000000fe883fff 0x0000000000040200
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x00000000fe800000 0x00000000fe83ffff 0x0000000000046200"""


@pytest.mark.parametrize(("text", "bdf"), [
    ("0000:03:00.0", Bdf(0, 3, 0, 0)), ("03:1f.7", Bdf(0, 3, 31, 7)), ("10000:e1:02.3", Bdf(0x10000, 0xE1, 2, 3)),
    (" 0000:0A:0b.1\n", Bdf(0, 10, 11, 1)),
])
def test_addresses_are_read_in_both_forms(text, bdf):
    assert Bdf.parse(text) == bdf and Bdf.parse(str(bdf)) == bdf


@pytest.mark.parametrize("text", ["", "0000:03:00", "03:00.8", "03:20.0", "eth0", "0000:03:00.0/..", "\u0660000:03:00.0"])
def test_what_is_no_address_is_refused_with_the_form(text):
    with pytest.raises(ValueError, match=r"write it as 0000:03:00\.0"):
        Bdf.parse(text)


def test_addresses_sort_by_number():
    assert sorted(map(Bdf.parse, ["0000:10:00.0", "0000:02:00.1", "0000:02:00.0"]))[0] == Bdf(0, 2, 0, 0)


def test_a_function_is_described_in_full(machine):
    port = machine.pci("0000:00:1c.0", code=0x060400, driver="pcieport")
    path = machine.pci("0000:03:00.0", below=port, driver="e1000e", group=7, resource=E1000E, numa_node="1",
                       current_link_speed="2.5 GT/s PCIe", max_link_speed="2.5 GT/s PCIe", current_link_width="1",
                       max_link_width="1", sriov_numvfs="2", sriov_totalvfs="8", boot_vga="0", reset_method="flr bus",
                       driver_override="vfio-pci")
    machine.write("sys/bus/pci/slots/4-1/address", "0000:03:00")
    d = PciBus(machine.root).device("03:00.0")
    assert (d.vendor, d.device, d.subsystem_device, d.class_code, d.revision) == (0x8086, 0x10D3, 0xA01F, 0x020000, 3)
    assert (d.name, d.driver, d.driver_override, d.iommu_group, d.numa_node) == ("0000:03:00.0", "e1000e", "vfio-pci", 7, 1)
    assert (d.slot, d.upstream, d.irq, d.sriov_vfs, d.sriov_total) == ("4-1", Bdf(0, 0, 0x1C, 0), 16, 2, 8)
    assert d.link == Link(2.5, 1, 2.5, 1) and d.path == path and d.reset_methods == ("flr", "bus")
    assert not d.is_bridge and not d.boot_vga and not d.is_virtual_function
    assert [b.kind for b in d.bars] == [BarKind.MEM32, BarKind.MEM32, BarKind.IO, BarKind.MEM32, BarKind.ROM]
    assert d.bar(3) == BarInfo(3, 0xFE88_0000, 0x4000, BarKind.MEM32, False) and d.bar(4) is None


def test_what_the_kernel_does_not_show_is_none(machine):
    path = machine.pci("0000:00:02.0")
    for entry in path.iterdir():
        if entry.name not in ("vendor", "device"):
            entry.unlink()
    d = PciBus(machine.root).device("0000:00:02.0")
    assert (d.driver, d.driver_override, d.iommu_group, d.numa_node, d.link, d.slot, d.upstream, d.irq) == (None,) * 8
    assert d.bars == () and d.class_code == 0


def test_groups_and_functions_come_in_order(machine):
    for bdf in ("0000:02:00.1", "0000:02:00.0", "0000:01:00.0"):
        machine.pci(bdf, group=9)
    bus = PciBus(machine.root)
    assert [d.name for d in bus.devices()] == ["0000:01:00.0", "0000:02:00.0", "0000:02:00.1"]
    assert bus.group(9) == bus.addresses() and bus.group(10) == [] and bus.has_iommu()


def test_a_virtual_function_knows_its_physical_one(machine):
    physical = machine.pci("0000:02:00.0")
    virtual = machine.pci("0000:02:10.0")
    machine.link(virtual / "physfn", physical)
    assert PciBus(machine.root).device("0000:02:10.0").physical_function == Bdf(0, 2, 0, 0)


def test_a_machine_without_pci_has_no_devices(tmp_path):
    bus = PciBus(tmp_path)
    assert bus.devices() == [] and not bus.has_iommu() and bus.slots() == {}


def test_a_missing_device_says_where_to_look(machine):
    with pytest.raises(DeviceError, match="rustosctl device list"):
        PciBus(machine.root).device("0000:09:00.0")


def test_a_device_that_left_is_not_listed(machine):
    machine.pci("0000:00:02.0")
    machine.link("sys/bus/pci/devices/0000:00:03.0", machine.root / "gone")
    machine.pci("0000:00:04.0", vendor=0)
    (machine.root / "sys/bus/pci/devices/0000:00:04.0/vendor").unlink()
    assert [d.name for d in PciBus(machine.root).devices()] == ["0000:00:02.0"]


def test_resource_tells_the_kinds_apart():
    wide = "0x0000004000000000 0x000000400007ffff 0x0000000000142208"
    assert parse_resource(wide) == (BarInfo(0, 1 << 38, 0x80000, BarKind.MEM64, True),)
    # Bridge windows follow the ROM's line and are no BARs; nonsense and empty lines are nothing.
    assert parse_resource("\n".join(["x", "0 0 0x200", "2 1 0x200", "1 2 0x400"] + [wide] * 9))[-1].index == 6


@given(st.text(max_size=300))
def test_any_resource_text_gives_plausible_bars(text):
    assert all(bar.size > 0 and 0 <= bar.index <= 6 for bar in parse_resource(text))


def test_a_degraded_link_shows():
    assert str(Link(2.5, 1, 8.0, 4)) == "2.5 GT/s x1 (of 8 GT/s x4)" and Link(2.5, 1, 8.0, 4).degraded
    assert str(Link(8.0, 4, 8.0, 4)) == "8 GT/s x4" and not Link(None, None, 8.0, 4).degraded


@pytest.mark.skipif(not Path("/sys/bus/pci/devices").is_dir() or not os.listdir("/sys/bus/pci/devices"), reason="no PCI here")
def test_this_machines_functions_agree_with_their_uevents():
    for device in PciBus().devices():
        uevent = dict(line.split("=", 1) for line in (device.path / "uevent").read_text().splitlines() if "=" in line)
        assert uevent["PCI_ID"] == f"{device.vendor:04X}:{device.device:04X}"
        assert uevent["PCI_CLASS"] == f"{device.class_code:X}" and uevent["PCI_SLOT_NAME"] == device.name
        assert uevent.get("DRIVER") == device.driver
