"""What an operator can ask about the firmware's ACPI tables."""

import asyncio
import dataclasses
from enum import Enum
from pathlib import Path
from typing import Any

from drivers import acpi
from drivers.errors import TableError
from rustosd.control import device_protocol as p
from rustosd.control.base import Nothing
from rustosd.control.server import OperationFailed

ROOTS = ("RSDP", "RSDT", "XSDT")
"""What the kernel does not show and physical memory has."""
# Fields that are read best in hexadecimal, and sections that are called otherwise than their field.
_ADDRESSES = frozenset(("local_apic_address", "address", "base", "start", "limit", "facs", "dsdt", "smi_command", "pm1a_event",
                        "pm1a_control", "pm_timer", "boot_flags", "flags", "reset_value", "rsdt", "xsdt"))
_DERIVED: dict[type, tuple[str, ...]] = {
    acpi.Fadt: ("hardware_reduced", "reset_supported", "msi_forbidden", "aspm_forbidden"),
    acpi.EcamWindow: ("start", "octets"),
}


class AcpiOperations:
    """The methods of `device_protocol.METHODS` that begin with "acpi."; what is read is below `root`."""

    root: Path

    async def acpi_list(self, _: Nothing) -> list[p.AcpiTable]:
        return await asyncio.to_thread(lambda: [_row(found) for found in _all(self.root)])

    async def acpi_show(self, query: p.AcpiQuery) -> p.AcpiDetails:
        return await asyncio.to_thread(_details, self.root, query.table)


def _details(root: Path, name: str) -> p.AcpiDetails:
    tables = _all(root)
    found = next((each for each in tables if each.name.upper() == name.upper()), None)
    if found is None and name.upper() in ROOTS:
        raise OperationFailed(f"{name.upper()}: {_why_no_roots(root)}")
    if found is None:
        there = ", ".join(each.name for each in tables)
        raise OperationFailed(f"there is no ACPI table {name}; " + (f"there is {there}" if there else "there is none at all"))
    facts, sections = _content(found.parsed) if found.parsed is not None else ({}, {})
    return p.AcpiDetails(table=_row(found), facts=facts, sections=sections)


def _all(root: Path) -> list[acpi.Found]:
    """What physical memory shows first, then what the kernel shows."""
    return [*_roots(root), *acpi.tables(root)]


def _roots(root: Path) -> list[acpi.Found]:
    try:
        with acpi.PhysicalMemory(str(root / "dev/mem")) as read:
            return list(acpi.roots(read, root))
    except (OSError, TableError):
        return []


def _why_no_roots(root: Path) -> str:
    try:
        with acpi.PhysicalMemory(str(root / "dev/mem")) as read:
            found = list(acpi.roots(read, root))
    except OSError as error:
        return f"cannot read {root / 'dev/mem'}: {error.strerror}; run the daemon as root, on a kernel without lockdown"
    except TableError as error:
        return str(error)
    return "this machine's firmware has none" if found else \
        "neither EFI nor the BIOS area of physical memory says where it is"


def _row(found: acpi.Found) -> p.AcpiTable:
    header = found.header
    if header is None:
        return p.AcpiTable(name=found.name, octets=None, revision=None, oem=None, decoded=found.parsed is not None,
                           problem=found.problem or None)
    return p.AcpiTable(name=found.name, octets=header.length, revision=header.revision,
                       oem=f"{header.oem_id} {header.oem_table_id}".strip(), decoded=found.parsed is not None,
                       problem=found.problem or None)


def _content(parsed: Any) -> tuple[dict[str, p.Scalar], dict[str, list[dict[str, p.Scalar]]]]:
    """The fields of a table: single values, and the tuples of structures."""
    facts: dict[str, p.Scalar] = {}
    sections: dict[str, list[dict[str, p.Scalar]]] = {}
    for name, value in _fields(parsed):
        if name == "header":
            continue
        if isinstance(value, tuple):
            sections[name] = [_structure(each) for each in value]
        else:
            facts[name] = _scalar(name, value)
    return facts, sections


def _structure(value: Any) -> dict[str, p.Scalar]:
    if dataclasses.is_dataclass(value):
        return {name: _scalar(name, each) for name, each in _fields(value)}
    if isinstance(value, tuple):        # what we do not decode: its type and its length
        return {"type": value[0], "octets": value[1]}
    return {"address": f"{value:#x}"}


def _fields(value: Any) -> list[tuple[str, Any]]:
    names = [field.name for field in dataclasses.fields(value)] + list(_DERIVED.get(type(value), ()))
    return [(name, getattr(value, name)) for name in names]


def _scalar(name: str, value: Any) -> p.Scalar:
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, acpi.Register):
        space = {0: "memory", 1: "I/O", 2: "PCI"}.get(value.space, f"space {value.space}")
        return f"{space} {value.address:#x}, {value.bits} bits"
    if isinstance(value, tuple):
        return ", ".join(_item(each) for each in value)
    if isinstance(value, int) and not isinstance(value, bool) and name in _ADDRESSES:
        return f"{value:#x}"
    return value


def _item(value: Any) -> str:
    if not isinstance(value, acpi.DeviceScope):
        return str(value)
    kind = value.kind.name.lower() if isinstance(value.kind, acpi.ScopeKind) else f"kind {value.kind}"
    return f"{kind} {value}"


