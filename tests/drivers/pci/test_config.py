"""Configuration space: the three ways to it, the header, and which way is chosen."""

import os
import struct

import pytest

from drivers.acpi import EcamWindow, Header, Mcfg
from drivers.errors import DeviceError, DeviceGone, DeviceRefused
from drivers.pci.config import EcamConfig, FileConfig, header_registers, open_config, open_ecam, open_sysfs, read_header
from drivers.pci.sysfs import Bdf
from tests.support.descriptors import open_descriptors

NIC = Bdf(0, 1, 0, 0)
SPACE = bytearray(4096)
struct.pack_into("<HHHHBBH2xB", SPACE, 0, 0x8086, 0x10D3, 0x0406, 0x0010, 3, 0, 0x0200, 0x80)
SPACE[0x3D] = 1


def mcfg(base=0, first=0, last=1):
    return Mcfg(Header("MCFG", 60, 1, "", "", 0, ""), (EcamWindow(base, 0, first, last),))


@pytest.fixture
def memory(tmp_path):
    """Physical memory whose ECAM window of bus 0 and 1 begins at 0, with the NIC in it; sparse."""
    path = tmp_path / "mem"
    with path.open("wb") as file:
        file.truncate(2 << 20)
        file.seek(1 << 20)
        file.write(SPACE)
    return str(path)


@pytest.fixture
def sysfs(machine):
    machine.pci(str(NIC), config=b"")
    machine.write(f"sys/bus/pci/devices/{NIC}/config", bytes(SPACE))
    return machine


@pytest.fixture(params=["vfio", "ecam", "sysfs"])
def config(request, memory, sysfs):
    """The same space, each way."""
    if request.param == "ecam":
        opened = open_ecam(NIC, mcfg(), path=memory, writable=True)
    elif request.param == "sysfs":
        opened = open_sysfs(NIC, sysfs.root, writable=True)
    else:
        opened = FileConfig(os.open(memory, os.O_RDWR), 4096, base=1 << 20, device=str(NIC), owned=True)
    yield opened
    opened.close()
    opened.close()


def test_every_way_reads_the_same(config, request):
    assert (config.how, config.size) == (request.node.callspec.params["config"], 4096)
    assert (config.read(0, 4), config.read(2, 2), config.read(0x3D, 1)) == (0x10D3_8086, 0x10D3, 1)
    header = read_header(config)
    assert (header.vendor, header.device, header.class_code, header.multifunction) == (0x8086, 0x10D3, 0x020000, True)
    assert header.command.MASTER and header.status.CAPABILITIES and header.interrupt_pin == 1


def test_every_way_writes_what_it_then_reads(config):
    for offset, octets, value in ((4, 2, 0x0407), (0x3C, 1, 0xAB), (0x10, 4, 0xFEDC_BA98), (0xFFC, 4, 7)):
        config.write(offset, octets, value)
        assert config.read(offset, octets) == value
    assert config.read(0x3D, 1) == 1


@pytest.mark.parametrize(("offset", "octets"), [(0, 3), (0, 8), (1, 2), (2, 4), (4096, 1), (4094, 4), (-4, 4), (0, 0)])
def test_no_way_reads_or_writes_outside_or_across(config, offset, octets):
    with pytest.raises(ValueError):
        config.read(offset, octets)
    with pytest.raises(ValueError):
        config.write(offset, octets, 0)


@pytest.mark.parametrize(("octets", "value"), [(1, 256), (2, 1 << 16), (4, 1 << 32), (4, -1)])
def test_no_way_writes_what_does_not_fit(config, octets, value):
    with pytest.raises(ValueError, match="does not fit"):
        config.write(4, octets, value)


def test_the_headers_registers_have_verbs(config):
    registers = header_registers(config, str(NIC))
    registers.COMMAND.modify(MASTER=0, INTX_OFF=1)
    assert config.read(4, 2) == 0x0402
    rows = {row.name: row.text for row in registers.dump()}
    assert rows["COMMAND"] == "MEMORY INTX_OFF" and rows["HEADER_TYPE"] == "MULTIFUNCTION"


def test_a_function_that_left_is_gone(config):
    config.write(0, 4, 0xFFFF_FFFF)
    with pytest.raises(DeviceGone):
        read_header(config, str(NIC))


def test_sysfs_says_how_large_the_space_is(machine):
    machine.pci(str(NIC))
    machine.write(f"sys/bus/pci/devices/{NIC}/config", bytes(SPACE[:256]))
    config = open_sysfs(NIC, machine.root)
    assert config.size == 256
    with pytest.raises(ValueError):
        config.read(0x100, 4)
    with pytest.raises(DeviceRefused, match="read-only"):
        config.write(4, 2, 0)
    config.close()


def test_what_only_root_may_see_is_refused_with_advice(machine):
    machine.pci(str(NIC))
    machine.write(f"sys/bus/pci/devices/{NIC}/config", bytes(SPACE[:64]))
    config = open_sysfs(NIC, machine.root)
    with pytest.raises(DeviceRefused, match="run as root"):
        config.read(0x40, 4)
    config.close()


def test_a_missing_device_says_where_to_look(machine):
    with pytest.raises(DeviceError, match="rustosctl device list"):
        open_sysfs(NIC, machine.root)


def test_ecam_is_chosen_where_it_shows_the_same_function(sysfs, memory):
    reached = open_config(NIC, mcfg(), sysfs.root, memory=memory)
    assert reached.config.how == "ecam" and reached.passed_over == ()
    with pytest.raises(DeviceRefused, match="read-only"):
        reached.config.write(4, 2, 0)
    reached.config.close()


@pytest.mark.parametrize(("table", "memory_name", "why"), [
    (None, "mem", "no MCFG"),
    (mcfg(first=2, last=3), "mem", "no window for bus 01"),
    (mcfg(), "absent", "does not exist"),
    (mcfg(base=4096), "mem", "another function answers there"),
    (mcfg(base=1 << 20), "mem", "cannot map"),
    (mcfg(base=(1 << 64) - (256 << 20)), "mem", "cannot map"),
])
def test_otherwise_sysfs_is_chosen_and_says_why(sysfs, memory, tmp_path, table, memory_name, why):
    reached = open_config(NIC, table, sysfs.root, memory=str(tmp_path / memory_name))
    assert reached.config.how == "sysfs" and why in reached.passed_over[0] and reached.passed_over[0].startswith("ecam: ")
    assert reached.config.read(0, 2) == 0x8086
    reached.config.close()


def test_no_descriptor_is_left_behind(sysfs, memory):
    before = len(open_descriptors())
    for table in (mcfg(), mcfg(base=4096), mcfg(base=1 << 20), None):
        open_config(NIC, table, sysfs.root, memory=memory).config.close()
    assert len(open_descriptors()) == before


def test_ecam_closed_is_closed(memory):
    config = EcamConfig(1 << 20, path=memory)
    config.close()
    with pytest.raises((KeyError, ValueError)):
        config.read(0, 4)
