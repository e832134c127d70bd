"""Capability lists: what a well-formed one says, and that no octets whatever hold us up or lead us astray."""

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.pci.capabilities import (
    AdvancedFeatures,
    Aer,
    Msi,
    MsiX,
    Pcie,
    PortType,
    PowerManagement,
    PowerState,
    SrIov,
    Vendor,
    Vpd,
    read_capabilities,
    registers,
    rows,
)
from drivers.pci.config import open_sysfs
from drivers.pci.sysfs import BarInfo, BarKind, PciBus


class Space:
    """Configuration space in memory."""

    how = "memory"

    def __init__(self, size=4096):
        self.size, self.octets = size, bytearray(size)
        self.octets[0:4] = struct.pack("<HH", 0x8086, 0x10D3)

    def read(self, offset, octets):
        assert 0 <= offset <= self.size - octets and offset % octets == 0
        return int.from_bytes(self.octets[offset:offset + octets], "little")

    def write(self, offset, octets, value):
        self.octets[offset:offset + octets] = value.to_bytes(octets, "little")

    def standard(self, *entries):
        """(offset, id, octets behind the link) chained in this order."""
        self.octets[6] |= 0x10
        place = 0x34
        for offset, identity, body in entries:
            self.octets[place] = offset
            self.octets[offset:offset + 2 + len(body)] = bytes((identity, 0)) + body
            place = offset + 1
        return self

    def extended(self, *entries):
        """(offset, id, version, octets behind the header) chained in this order; the first at 0x100."""
        for (offset, identity, version, body), following in zip(entries, [*entries[1:], (0,)], strict=True):
            self.octets[offset:offset + 4] = struct.pack("<I", following[0] << 20 | version << 16 | identity)
            self.octets[offset + 4:offset + 4 + len(body)] = body
        return self


# The 82574L's own list, as its datasheet has it.
PM = (0xC8, 0x01, struct.pack("<HH", 0xC822, 0x2008))
MSI = (0xD0, 0x05, struct.pack("<H", 0x0080))
PCIE = (0xE0, 0x10, struct.pack("<HIHHIHH", 0x0001, 0x1000_8CC1, 0x2810, 0x0010, 0x0013_AC11, 0x0040, 0x1011))
MSIX = (0xA0, 0x11, struct.pack("<HII", 0x8004, 0x0000_0003, 0x0000_2003))


@pytest.fixture
def nic():
    serial = struct.pack("<Q", 0x0011_22FF_FF33_4455)
    aer = bytearray(0x28)
    struct.pack_into("<I", aer, 0, 1 << 20)
    struct.pack_into("<I4I", aer, 0x0C, 1 << 13, 0, 0, 0, 0x11)
    return Space().standard(PM, MSI, PCIE, MSIX).extended((0x100, 1, 1, aer), (0x140, 3, 1, serial))


def only(space, **arguments):
    (capability,) = read_capabilities(space, **arguments).entries
    return capability


def test_the_lists_of_a_real_card(nic):
    found = read_capabilities(nic)
    assert found.problems == () and not any(c.problem for c in found.entries)
    assert [(c.offset, c.name) for c in found.entries] == [
        (0xC8, "power management"), (0xD0, "MSI"), (0xE0, "PCI Express"), (0xA0, "MSI-X"),
        (0x100, "advanced error reporting"), (0x140, "serial number")]
    pm, msi, pcie, msix, aer, serial = (c.detail for c in found.entries)
    assert pm == PowerManagement(PowerState.D0, 2, False, False, True)
    assert msi == Msi(1, 0, True, False)
    assert msix == MsiX(5, True, False, 3, 0, 3, 0x2000)
    assert (pcie.type, pcie.flr, pcie.max_payload, pcie.payload, pcie.read_request) == (PortType.ENDPOINT, True, 256, 128, 512)
    assert (pcie.speed, pcie.width, pcie.max_speed, pcie.max_width) == (1, 1, 1, 1)
    assert aer.uncorrectable.UNSUPPORTED and aer.correctable.ADVISORY
    assert str(aer) == "uncorrectable UNSUPPORTED, correctable ADVISORY"
    assert str(serial) == "00-11-22-ff-ff-33-44-55"
    capability, detail = found.get(MsiX)
    assert capability.offset == 0xA0 and detail is msix and found.get(SrIov) is None


def test_rows_show_every_structure_in_words(nic):
    nic.standard((0x50, 0x42, b""))
    unknown = rows(read_capabilities(nic))[0]
    assert (unknown.offset, unknown.name, unknown.version, unknown.text) == (0x50, "unknown 0x42", None, "")
    assert rows(read_capabilities(nic.standard(PCIE)))[0].text == "endpoint, gen 1 x1 of gen 1 x1, payload 128 of 256, FLR"


@pytest.mark.parametrize(("entry", "detail"), [
    ((0x60, 0x03, bytes(6)), Vpd()),
    ((0x60, 0x09, b"\x10"), Vendor(16)),
    ((0x60, 0x13, b"\x06\x03\x00\x01"), AdvancedFeatures(True, True)),
    ((0x60, 0x05, struct.pack("<H", 0x01B7)), Msi(8, 8, True, True)),
    ((0x60, 0x02, b""), None),
])
def test_what_one_structure_says(entry, detail):
    assert only(Space(256).standard(entry)).detail == detail


def test_extended_structures():
    space = Space().extended((0x100, 0x0B, 1, struct.pack("<I", 0x0103_0042)), (0x200, 0, 0, b""),
                             (0x300, 0x10, 1, bytes(10) + struct.pack("<HH", 8, 2)), (0x400, 0x0D, 1, b""))
    vendor, sriov, acs = read_capabilities(space).entries
    assert vendor.detail == Vendor(16, 0x42, 3) and sriov.detail == SrIov(8, 2)
    assert (acs.name, acs.detail, acs.version) == ("access control services", None, 1)


def test_registers_of_a_capability_have_verbs(nic):
    capability, _ = read_capabilities(nic).get(MsiX)
    registers(nic, capability).CONTROL.modify(MASKED=1)
    assert nic.read(0xA2, 2) == 0xC004
    (pm, _), (aer, _) = read_capabilities(nic).get(PowerManagement), read_capabilities(nic).get(Aer)
    nic.write(0xCC, 2, 0x8008)
    registers(nic, pm).PMCSR.modify(STATE=PowerState.D3HOT)
    assert nic.read(0xCC, 2) == 0x000B      # PME_STATUS is not cleared by the way
    assert registers(nic, aer).UNCORRECTABLE.read().UNSUPPORTED
    assert registers(nic, read_capabilities(nic).entries[-1]) is None


# Lists that lie

def test_no_list_at_all():
    assert read_capabilities(Space(256)).entries == ()
    absent = Space()
    absent.octets[256:] = b"\xff" * 3840        # a conventional device behind ECAM
    assert read_capabilities(absent) == read_capabilities(Space(256))


def test_a_loop_ends():
    space = Space(256).standard((0x50, 0x42, b""), (0x60, 0x43, b""))
    space.octets[0x61] = 0x50
    found = read_capabilities(space)
    assert [c.id for c in found.entries] == [0x42, 0x43] and found.problems == ("the list loops at 0x50",)


def test_a_pointer_into_the_header_ends_the_list():
    space = Space(256).standard((0x50, 0x42, b""))
    space.octets[0x51] = 0x10
    assert read_capabilities(space).problems == ("the list leads into the header, to 0x10",)


def test_the_two_low_bits_of_a_pointer_mean_nothing():
    space = Space(256).standard((0x50, 0x42, b""))
    space.octets[0x34] = 0x53
    assert only(space).offset == 0x50


def test_silence_ends_the_list():
    space = Space(256).standard((0x50, 0xFF, b""))
    space.octets[0x51] = 0xFF
    assert read_capabilities(space).problems == ("nothing answers at 0x50",)


@pytest.mark.parametrize(("link", "problem"), [
    (0x100, "loops at 0x100"), (0x0C0, "leads out of its space, to 0x0c0"), (0x800, "nothing answers at 0x800"),
])
def test_extended_lists_lie_too(link, problem):
    space = Space().extended((0x100, 0x0D, 1, b""))
    space.write(0x100, 4, link << 20 | 1 << 16 | 0x0D)
    found = read_capabilities(space)
    assert len(found.entries) == 1 and problem in found.problems[0]


@pytest.mark.parametrize(("entry", "problem"), [
    ((0xFC, 0x10, b"\x02"), "it needs 20 octets and configuration space ends after 4"),
    ((0x60, 0x09, b"\x02"), "it claims 2 octets"),
    ((0xE0, 0x09, b"\xff"), "it claims 255 octets"),
    ((0x60, 0x05, struct.pack("<H", 0x000E)), "it claims 128 vectors"),
    ((0x60, 0x05, struct.pack("<H", 0x0021)), "it claims 1 vectors and 4 enabled"),
    ((0x60, 0x11, struct.pack("<HII", 0, 7, 0)), "table in BAR 7"),
    ((0x60, 0x11, struct.pack("<HII", 0, 0, 6)), "pending bits in BAR 6"),
])
def test_a_structure_that_cannot_be_is_not_decoded(entry, problem):
    capability = only(Space().standard(entry))
    assert capability.detail is None and problem in capability.problem and registers(Space(), capability) is None


def test_an_msix_table_outside_its_bar_is_a_problem():
    space = Space(256).standard(MSIX)
    bar = BarInfo(3, 0xFE88_0000, 0x4000, BarKind.MEM32, False)
    assert not only(space, bars=[bar]).problem
    small = BarInfo(3, 0xFE88_0000, 0x1000, BarKind.MEM32, False)
    assert only(space, bars=[small]).problem == "pending bits up to 0x2008 of BAR 3, which has 0x1000 octets"
    other = BarInfo(0, 0xFE88_0000, 0x4000, BarKind.MEM32, False)
    assert "which has 0x0 octets" in only(space, bars=[other]).problem


def test_what_the_kernel_hides_is_a_problem_not_an_end(machine):
    space = Space(256).standard(PM)
    machine.pci("0000:01:00.0")
    machine.write("sys/bus/pci/devices/0000:01:00.0/config", bytes(space.octets[:64]))
    config = open_sysfs(PciBus(machine.root).addresses()[0], machine.root)
    found = read_capabilities(config)
    assert found.entries == () and "run as root" in found.problems[0]
    config.close()


@given(st.binary(min_size=192, max_size=192), st.lists(st.tuples(st.integers(64, 1023), st.integers(0, (1 << 32) - 1)),
                                                        max_size=40))
def test_any_octets_end_within_bounds(standard, extended):
    space = Space()
    space.octets[6] = 0x10
    space.octets[0x34] = 0x40
    space.octets[64:256] = standard
    for index, value in extended:
        space.write(index * 4, 4, value)
    found = read_capabilities(space)
    assert sum(not c.extended for c in found.entries) <= 48 and len(found.entries) <= 48 + 960
    assert len(rows(found)) == len(found.entries) == len({c.offset for c in found.entries})
    assert all(c.detail is None or not c.problem for c in found.entries)


@pytest.mark.skipif(os.geteuid() != 0 or not PciBus().addresses(), reason="no PCI functions readable here")
def test_this_machines_lists_are_sound():
    for device in PciBus().devices():
        config = open_sysfs(device.bdf)
        found = read_capabilities(config, device.bars)
        config.close()
        assert found.problems == () and not [c for c in found.entries if c.problem], device.name
        msix = found.get(MsiX)
        if (device.path / "msi_irqs").is_dir() and msix and msix[1].enabled:
            assert len(list((device.path / "msi_irqs").iterdir())) <= msix[1].vectors
        pcie = found.get(Pcie)
        assert not (pcie and device.link) or pcie[1].max_width == device.link.max_width
