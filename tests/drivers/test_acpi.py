"""ACPI tables: what a well-formed one says, and that no octets whatever raise anything but a named TableError."""

import contextlib
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers import acpi
from drivers.acpi import (
    DeviceScope,
    EcamWindow,
    InterruptOverride,
    IoApic,
    LocalApic,
    LocalNmi,
    NmiSource,
    Polarity,
    ScopeKind,
    Trigger,
)
from drivers.errors import TableError


def seal(table: bytes, at: int = 9) -> bytes:
    """With the checksum that makes the octets sum up to zero."""
    table = table[:at] + b"\0" + table[at + 1:]
    return table[:at] + bytes([-sum(table) & 0xFF]) + table[at + 1:]


def make(signature: bytes, body: bytes, revision: int = 1, length: int | None = None) -> bytes:
    size = acpi.HEADER.size + len(body)
    header = acpi.HEADER.pack(signature, size if length is None else length, revision, 0, b"RUSTOS", b"TESTS\0\0\0", 7,
                              b"ME  ", 1)
    return seal(header + body)


MADT_ENTRIES = (
    struct.pack("<BBBBI", 0, 8, 0, 0, 1),
    struct.pack("<BBBBI", 0, 8, 1, 2, 2),
    struct.pack("<BBHIII", 9, 16, 0, 300, 1, 40),
    struct.pack("<BBBxII", 1, 12, 2, 0xFEC0_0000, 0),
    struct.pack("<BBBxII", 1, 12, 3, 0xFEC1_0000, 24),
    struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0),
    struct.pack("<BBBBIH", 2, 10, 0, 9, 9, 0xF),
    struct.pack("<BBHI", 3, 8, 0xD, 17),
    struct.pack("<BBBHB", 4, 6, 0xFF, 5, 1),
    struct.pack("<BBHIB3x", 10, 12, 5, 40, 1),
    struct.pack("<BBHQ", 5, 12, 0, 0x1_FEE0_0000),
    bytes([0x7F, 5, 1, 2, 3]),
)
MADT = make(b"APIC", struct.pack("<II", 0xFEE0_0000, 1) + b"".join(MADT_ENTRIES), 5)

FADT_BODY = bytearray(276 - 36)
for _at, _format, _value in ((36, "I", 0x1000), (40, "I", 0x2000), (45, "B", 4), (46, "H", 9), (48, "I", 0xB2),
                             (56, "I", 0x600), (64, "I", 0x604), (76, "I", 0x608), (109, "H", 0x18),
                             (112, "I", 1 << 10), (128, "B", 6), (131, "B", 5), (140, "Q", 0x1_0000_2000)):
    struct.pack_into("<" + _format, FADT_BODY, _at - 36, _value)
struct.pack_into("<BBBBQ", FADT_BODY, 116 - 36, 1, 8, 0, 1, 0xCF9)
struct.pack_into("<BBBBQ", FADT_BODY, 208 - 36, 1, 32, 0, 3, 0x1608)
FADT = make(b"FACP", bytes(FADT_BODY), 6)

MCFG = make(b"MCFG", bytes(8) + struct.pack("<QHBB4x", 0xB000_0000, 0, 0, 255) + struct.pack("<QHBB4x", 1 << 36, 1, 16, 31))


def scope(kind, enumeration_id, bus, *path):
    steps = b"".join(bytes(step) for step in path)
    return struct.pack("<BBHBB", kind, 6 + len(steps), 0, enumeration_id, bus) + steps


def remapping(kind, body, scopes=b""):
    return struct.pack("<HH", kind, 4 + len(body) + len(scopes)) + body + scopes


DMAR_STRUCTURES = (
    remapping(0, struct.pack("<BxHQ", 0, 0, 0xFED9_0000), scope(1, 0, 0, (2, 0))),
    remapping(0, struct.pack("<BxHQ", 1, 0, 0xFED9_1000), scope(3, 8, 0xF0, (31, 0)) + scope(9, 0, 1, (0, 1))),
    remapping(1, struct.pack("<HHQQ", 0, 0, 0x7B80_0000, 0x7FFF_FFFF), scope(2, 0, 0, (28, 0), (3, 1))),
    remapping(2, struct.pack("<BxH", 1, 0)),
    remapping(3, bytes(16)),
)
DMAR = make(b"DMAR", struct.pack("<BB10x", 38, 5) + b"".join(DMAR_STRUCTURES))
XSDT = make(b"XSDT", struct.pack("<QQ", 0x3000, 0x1_0000_0000))
RSDT = make(b"RSDT", struct.pack("<II", 0x3000, 0x4000))
ALL = {"APIC": MADT, "FACP": FADT, "MCFG": MCFG, "DMAR": DMAR, "XSDT": XSDT, "RSDT": RSDT}


def rsdp(revision: int, rsdt: int = 0x1000, xsdt: int = 0x2000, length: int = 36) -> bytes:
    first = seal(struct.pack("<8sB6sBI", b"RSD PTR ", 0, b"RUSTOS", revision, rsdt), 8)
    return first if revision < 2 else seal(first + struct.pack("<IQB3x", length, xsdt, 0), 32)


# What well-formed tables say

def test_madt_lists_cpus_controllers_and_overrides():
    madt = acpi.parse_madt(MADT)
    assert madt.header.oem_id == "RUSTOS" and madt.header.oem_table_id == "TESTS" and madt.has_8259
    assert madt.local_apic_address == 0x1_FEE0_0000
    assert madt.cpus == (LocalApic(0, 0, True, False, False), LocalApic(1, 2, False, True, False),
                         LocalApic(40, 300, True, False, True))
    assert madt.io_apics == (IoApic(2, 0xFEC0_0000, 0), IoApic(3, 0xFEC1_0000, 24))
    assert madt.nmi_sources == (NmiSource(17, Polarity.HIGH, Trigger.LEVEL),)
    assert madt.local_nmis == (LocalNmi(None, 1, Polarity.HIGH, Trigger.EDGE), LocalNmi(40, 1, Polarity.HIGH, Trigger.EDGE))
    assert madt.others == ((0x7F, 5),)


def test_isa_interrupts_follow_their_overrides_and_the_bus():
    madt = acpi.parse_madt(MADT)
    assert madt.isa_interrupt(0) == InterruptOverride(0, 0, 2, Polarity.HIGH, Trigger.EDGE)
    assert madt.isa_interrupt(9) == InterruptOverride(0, 9, 9, Polarity.LOW, Trigger.LEVEL)
    assert madt.isa_interrupt(4) == InterruptOverride(0, 4, 4, Polarity.HIGH, Trigger.EDGE)
    with pytest.raises(ValueError, match="0 to 15"):
        madt.isa_interrupt(16)


def test_the_io_apic_of_an_interrupt_has_the_nearest_base():
    madt = acpi.parse_madt(MADT)
    assert [madt.io_apic_of(gsi).id for gsi in (0, 23, 24, 100)] == [2, 2, 3, 3]


def test_fadt_prefers_the_extended_fields():
    fadt = acpi.parse_fadt(FADT)
    assert (fadt.dsdt, fadt.facs, fadt.pm1a_event, fadt.pm_timer) == (0x1_0000_2000, 0x1000, 0x600, 0x1608)
    assert (fadt.profile, fadt.sci_interrupt, fadt.smi_command, fadt.minor) == (4, 9, 0xB2, 5)
    assert fadt.reset_supported and fadt.reset_register.address == 0xCF9 and fadt.reset_value == 6
    assert fadt.msi_forbidden and fadt.aspm_forbidden and not fadt.hardware_reduced


def test_an_old_fadt_lacks_what_came_later():
    fadt = acpi.parse_fadt(make(b"FACP", bytes(FADT_BODY[:116 - 36])))
    assert fadt.reset_register is None and not fadt.reset_supported and fadt.dsdt == 0x2000 and fadt.pm_timer == 0x608


def test_mcfg_says_where_a_function_is():
    mcfg = acpi.parse_mcfg(MCFG)
    first, second = mcfg.windows
    assert first == EcamWindow(0xB000_0000, 0, 0, 255) and first.octets == 256 << 20
    assert first.address(3, 2, 1) == 0xB031_1000
    assert second.start == (1 << 36) + (16 << 20) and second.octets == 16 << 20
    assert mcfg.window(1, 31) is second and mcfg.window(1, 32) is None and mcfg.window(2, 0) is None
    for outside in ((15, 0, 0), (16, 32, 0), (16, 0, 8)):
        with pytest.raises(ValueError, match="outside the window"):
            second.address(*outside)


def test_dmar_lists_units_and_reserved_memory():
    dmar = acpi.parse_dmar(DMAR)
    assert (dmar.address_bits, dmar.interrupt_remapping, dmar.x2apic_opt_out, dmar.dma_opt_in) == (39, True, False, True)
    gpu, rest = dmar.units
    assert gpu.scopes == (DeviceScope(ScopeKind.ENDPOINT, 0, 0, ((2, 0),)),) and not gpu.include_all
    assert rest.include_all and rest.scopes[0].kind is ScopeKind.IOAPIC and rest.scopes[1].kind == 9
    (reserved,) = dmar.reserved_memory
    assert (reserved.base, reserved.limit, str(reserved.scopes[0])) == (0x7B80_0000, 0x7FFF_FFFF, "00:1c.0/03.1")
    assert dmar.ats_ports[0].all_ports and dmar.others == ((3, 20),)


def test_root_tables_have_their_width():
    assert acpi.parse_root(XSDT).tables == (0x3000, 0x1_0000_0000)
    assert acpi.parse_root(RSDT).tables == (0x3000, 0x4000)


def test_both_forms_of_the_rsdp():
    assert acpi.parse_rsdp(rsdp(0)) == acpi.Rsdp("RUSTOS", 0, 0x1000, 0)
    assert acpi.parse_rsdp(rsdp(2)) == acpi.Rsdp("RUSTOS", 2, 0x1000, 0x2000)


# What does not hold

@pytest.mark.parametrize(("parse", "data", "fault"), [
    (acpi.parse_madt, b"APIC", "truncated"),
    (acpi.parse_madt, MCFG, "signature"),
    (acpi.parse_madt, MADT[:-1], "truncated"),
    (acpi.parse_madt, MADT[:60] + b"\x99" + MADT[61:], "checksum"),
    (acpi.parse_madt, make(b"APIC", b"", length=20), "length"),
    (acpi.parse_madt, make(b"APIC", b"", length=0xFFFF_FFFF), "length"),
    (acpi.parse_madt, make(b"APIC", bytes(4)), "entry"),
    (acpi.parse_madt, make(b"APIC", bytes(8) + b"\x00\x00"), "entry"),
    (acpi.parse_madt, make(b"APIC", bytes(8) + b"\x7f\x00"), "entry"),
    (acpi.parse_madt, make(b"APIC", bytes(8) + b"\x7f\x01"), "entry"),
    (acpi.parse_madt, make(b"APIC", bytes(8) + b"\x00\x02"), "entry"),
    (acpi.parse_madt, make(b"APIC", bytes(8) + b"\x01\xff" + bytes(10)), "entry"),
    (acpi.parse_madt, make(b"APIC", bytes(8) + b"\x00"), "entry"),
    (acpi.parse_fadt, make(b"FACP", bytes(60)), "length"),
    (acpi.parse_mcfg, make(b"MCFG", bytes(8 + 15)), "length"),
    (acpi.parse_mcfg, make(b"MCFG", b""), "length"),
    (acpi.parse_mcfg, make(b"MCFG", bytes(8) + struct.pack("<QHBB4x", 0, 0, 9, 8)), "entry"),
    (acpi.parse_mcfg, make(b"MCFG", bytes(8) + struct.pack("<QHBB4x", (1 << 64) - 1, 0, 0, 255)), "entry"),
    (acpi.parse_dmar, make(b"DMAR", b"\x26\x00"), "length"),
    (acpi.parse_dmar, make(b"DMAR", bytes(12) + remapping(1, struct.pack("<HHQQ", 0, 0, 2, 1))), "entry"),
    (acpi.parse_dmar, make(b"DMAR", bytes(12) + remapping(0, bytes(12), b"\x01\x06\0\0\0\0")), "entry"),
    (acpi.parse_dmar, make(b"DMAR", bytes(12) + remapping(0, bytes(12), b"\x01\x00")), "entry"),
    (acpi.parse_dmar, make(b"DMAR", bytes(12) + b"\x09\x00\x00\x00"), "entry"),
    (acpi.parse_root, make(b"XSDT", bytes(12)), "length"),
    (acpi.parse_root, make(b"RSDT", bytes(4 * 513)), "length"),
    (acpi.parse_rsdp, b"RSD PTR ", "truncated"),
    (acpi.parse_rsdp, b"RSD_PTR " + bytes(12), "signature"),
    (acpi.parse_rsdp, rsdp(0)[:-1] + b"\x99", "checksum"),
    (acpi.parse_rsdp, rsdp(2)[:20], "truncated"),
    (acpi.parse_rsdp, rsdp(2, length=200), "length"),
    (acpi.parse_rsdp, rsdp(2)[:-1] + b"\x99", "checksum"),
])
def test_what_does_not_hold_is_named(parse, data, fault):
    with pytest.raises(TableError) as caught:
        parse(data)
    assert caught.value.fault == fault


@given(st.sampled_from(sorted(ALL)), st.data())
def test_a_damaged_table_with_a_right_checksum_parses_or_is_named(name, data):
    table = bytearray(ALL[name])
    for _ in range(data.draw(st.integers(1, 8))):
        table[data.draw(st.integers(acpi.HEADER.size, len(table) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(acpi.HEADER.size, len(table)))
    table[4:8] = cut.to_bytes(4, "little")
    with contextlib.suppress(TableError):
        acpi.PARSERS[name](seal(bytes(table[:cut])))


@given(st.sampled_from(sorted(ALL)), st.binary(max_size=200))
def test_any_octets_behind_a_header_parse_or_are_named(name, body):
    with contextlib.suppress(TableError):
        acpi.PARSERS[name](make(name.encode(), body))


@given(st.binary(max_size=128))
def test_any_octets_at_all_are_examined_without_an_exception(data):
    assert acpi.examine("X", data).parsed is None
    with contextlib.suppress(TableError):
        acpi.parse_rsdp(data)


# Finding them

def test_tables_reads_what_the_kernel_shows(tmp_path):
    folder = tmp_path / acpi.TABLES
    (folder / "dynamic").mkdir(parents=True)
    (folder / "APIC").write_bytes(MADT)
    (folder / "MCFG").write_bytes(MCFG[:50])
    (folder / "SSDT1").write_bytes(make(b"SSDT", b"aml"))
    (folder / "dynamic" / "SSDT9").write_bytes(b"SS")
    found = {f.name: f for f in acpi.tables(tmp_path)}
    assert found["APIC"].parsed == acpi.parse_madt(MADT) and not found["APIC"].problem
    assert found["MCFG"].header.signature == "MCFG" and found["MCFG"].problem.startswith("truncated")
    assert found["SSDT1"].parsed is None and not found["SSDT1"].problem
    assert found["SSDT9"].header is None and found["SSDT9"].problem.startswith("truncated")
    assert acpi.table("APIC", tmp_path).cpus and acpi.table("DMAR", tmp_path) is None


def test_a_machine_without_acpi_has_no_tables(tmp_path):
    assert acpi.tables(tmp_path) == () and acpi.rsdp_address(tmp_path) is None


@pytest.mark.parametrize(("text", "address"), [
    ("ACPI20=0x7ff7e014\nACPI=0x7ff7e000\nSMBIOS=0x1\n", 0x7FF7_E014), ("ACPI=0x7ff7e000\n", 0x7FF7_E000),
    ("ACPI20=nonsense\n", None), ("", None),
])
def test_efi_says_where_the_rsdp_is(tmp_path, text, address):
    path = tmp_path / acpi.EFI_SYSTAB
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert acpi.rsdp_address(tmp_path) == address


def test_the_bios_area_is_scanned_for_a_valid_rsdp():
    bad = b"RSD PTR " + bytes(24)
    assert acpi.scan_for_rsdp(bytes(16) + bad + rsdp(2)) == 48
    assert acpi.scan_for_rsdp(bytes(8) + rsdp(2)) is None and acpi.scan_for_rsdp(b"") is None


class Memory(dict):
    """Physical memory with tables at addresses."""

    def __call__(self, address, octets):
        if address not in self:
            raise OSError(14, "Bad address")
        return self[address][:octets]


def test_walking_from_the_rsdp_finds_every_table():
    dsdt = make(b"DSDT", b"aml")
    memory = Memory({0x10: rsdp(2), 0x2000: make(b"XSDT", struct.pack("<4Q", 0x3000, 0x4000, 0x9000, 0x3000)),
                     0x3000: FADT, 0x4000: MADT[:50], 0x1_0000_2000: dsdt})
    found = list(acpi.walk(memory, 0x10))
    assert [f.name for f in found] == ["XSDT", "FACP", "DSDT", "APIC", "at 0x9000"]
    assert [bool(f.problem) for f in found] == [False, False, False, True, True]


def test_physical_memory_beyond_the_file_is_a_named_fault(tmp_path):
    path = tmp_path / "mem"
    path.write_bytes(rsdp(2, xsdt=(1 << 64) - 1))
    with acpi.PhysicalMemory(str(path)) as memory, pytest.raises(TableError) as caught:
        list(acpi.walk(memory, 0))
    assert caught.value.fault == "truncated"


# Peers

@pytest.mark.skipif(shutil.which("iasl") is None, reason="no iasl (acpica-tools) here")
@pytest.mark.parametrize("name", sorted(ALL))
def test_intels_compiler_and_we_mean_the_same_by_a_table(name, tmp_path):
    """We read its template, and it decodes our table."""
    subprocess.run(["iasl", "-T", name], cwd=tmp_path, check=True, capture_output=True)
    source = tmp_path / f"{name.lower()}.asl"
    subprocess.run(["iasl", source], cwd=tmp_path, check=True, capture_output=True)
    found = acpi.examine(name, source.with_suffix(".aml").read_bytes())
    assert not found.problem and found.parsed is not None and found.header.creator_id == "INTL"
    if name == "DMAR":
        assert found.parsed.units[0].include_all and found.parsed.reserved_memory[0].limit == 0xFFF
        assert [str(unit.scopes[0]) for unit in (*found.parsed.units, *found.parsed.reserved_memory)] == ["00:00.1", "00:00.2"]
    ours = tmp_path / "ours.dat"
    ours.write_bytes(ALL[name])
    listing = subprocess.run(["iasl", "-d", ours], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert f"Acpi Data Table [{name}] decoded" in listing.stdout + listing.stderr
    if name == "FACP":
        lines = (tmp_path / "ours.dsl").read_text().splitlines()
        values = {line.partition("] ")[2].partition(":")[0].strip(): line.rpartition(":")[2].strip() for line in lines}
        assert (values["SCI Interrupt"], values["Value to cause reset"]) == ("0009", "06")


# This machine

@pytest.mark.skipif(not os.access("/sys/firmware/acpi/tables/APIC", os.R_OK), reason="no readable ACPI tables here")
def test_this_machines_tables_parse_and_agree_with_the_kernel():
    found = {f.name: f for f in acpi.tables()}
    assert not [f for f in found.values() if f.problem]
    possible = Path("/sys/devices/system/cpu/present").read_text().strip()
    last = int(possible.rpartition("-")[2].rpartition(",")[2])
    assert sum(cpu.enabled for cpu in found["APIC"].parsed.cpus) >= last + 1


def test_facs_has_no_checksum_and_is_judged_by_its_length():
    facs = struct.pack("<4sIIIIIQB", b"FACS", 64, 0xDEAD, 0, 0, 0, 0, 2).ljust(64, b"\0")
    found = acpi.examine("FACS", facs)
    assert (found.header.signature, found.header.length, found.header.revision, found.problem) == ("FACS", 64, 2, "")
    for length in (0, 63, 65, 0xFFFF_FFFF):
        assert acpi.examine("FACS", facs[:4] + struct.pack("<I", length) + facs[8:]).problem.startswith("length")
    assert acpi.examine("FACS", facs[:63]).problem != ""


def test_roots_are_found_in_the_bios_area_or_where_efi_says(tmp_path):
    memory = bytearray(1 << 20)
    memory[0xE0100:0xE0100 + 36] = rsdp(2, rsdt=0x2000, xsdt=0x1000)
    memory[0x1000:0x1000 + len(XSDT)] = XSDT

    def read(address, octets):
        if address == 0x2000:
            raise OSError(14, "Bad address")
        return bytes(memory[address:address + octets])

    found = list(acpi.roots(read, tmp_path))
    assert [(each.name, each.problem) for each in found] == [
        ("RSDP", ""), ("XSDT", ""), ("RSDT", "truncated: the kernel does not show this memory: Bad address")]
    (tmp_path / "sys/firmware/efi").mkdir(parents=True)
    (tmp_path / acpi.EFI_SYSTAB).write_text("ACPI20=0xe0200\n")
    with pytest.raises(TableError, match="signature"):
        list(acpi.roots(read, tmp_path))
    memory[0xE0100:0xE0108] = bytes(8)
    (tmp_path / acpi.EFI_SYSTAB).unlink()
    assert list(acpi.roots(read, tmp_path)) == []
