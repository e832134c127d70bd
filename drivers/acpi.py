"""ACPI's static tables: what the firmware says about CPUs, interrupt controllers, ECAM windows and IOMMUs.

Pure functions from octets to frozen structures. Firmware is not trusted: every length is checked against what holds it,
every table against its checksum; what does not hold raises TableError, what is merely unknown is kept as it is.
Numbers in parentheses are sections of ACPI 6.5; "VT-d" is Intel's Virtualization Technology for Directed I/O.
"""

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Final

from drivers.errors import TableError

TABLES: Final = Path("sys/firmware/acpi/tables")
EFI_SYSTAB: Final = Path("sys/firmware/efi/systab")
LONGEST_TABLE: Final = 16 << 20     # a DSDT has about 200 KiB; more than this is no table
MOST_TABLES: Final = 512
HEADER: Final = struct.Struct("<4sIBB6s8sI4sI")     # 5.2.6
_ISA_IRQS = 16
_FACS_OCTETS = 64
_BIOS_AREA, _BIOS_OCTETS = 0xE_0000, 0x2_0000       # 5.2.5.1

ReadMemory = Callable[[int, int], bytes]
"""`read(address, octets)` of physical memory; may return fewer octets, and raises OSError where there are none."""


@dataclass(frozen=True, slots=True)
class Header:
    """What begins every table (5.2.6)."""

    signature: str
    length: int
    revision: int
    oem_id: str
    oem_table_id: str
    oem_revision: int
    creator_id: str


@dataclass(frozen=True, slots=True)
class Rsdp:
    """Root System Description Pointer (5.2.5): where the tables begin. `xsdt` is 0 before ACPI 2."""

    oem_id: str
    revision: int
    rsdt: int
    xsdt: int


class Polarity(IntEnum):
    """MPS INTI flags (5.2.12.5). CONFORMS: as the bus has it; on ISA high."""

    CONFORMS = 0
    HIGH = 1
    RESERVED = 2
    LOW = 3


class Trigger(IntEnum):
    """MPS INTI flags (5.2.12.5). CONFORMS: as the bus has it; on ISA edge."""

    CONFORMS = 0
    EDGE = 1
    RESERVED = 2
    LEVEL = 3


@dataclass(frozen=True, slots=True)
class LocalApic:
    """One logical CPU (5.2.12.2, 5.2.12.12)."""

    uid: int
    apic_id: int
    enabled: bool
    online_capable: bool
    x2apic: bool


@dataclass(frozen=True, slots=True)
class IoApic:
    """One I/O APIC; its inputs are the global system interrupts from `gsi_base` on (5.2.12.3)."""

    id: int
    address: int
    gsi_base: int


@dataclass(frozen=True, slots=True)
class InterruptOverride:
    """An ISA interrupt that arrives as another global system interrupt (5.2.12.5)."""

    bus: int
    source: int
    gsi: int
    polarity: Polarity
    trigger: Trigger


@dataclass(frozen=True, slots=True)
class NmiSource:
    """A global system interrupt that is an NMI (5.2.12.6)."""

    gsi: int
    polarity: Polarity
    trigger: Trigger


@dataclass(frozen=True, slots=True)
class LocalNmi:
    """A local APIC input that is an NMI; `uid` None means on all CPUs (5.2.12.7, 5.2.12.13)."""

    uid: int | None
    lint: int
    polarity: Polarity
    trigger: Trigger


@dataclass(frozen=True, slots=True)
class Madt:
    """Multiple APIC Description Table (5.2.12). `others` are entries we do not read: (type, octets)."""

    header: Header
    local_apic_address: int
    has_8259: bool
    cpus: tuple[LocalApic, ...]
    io_apics: tuple[IoApic, ...]
    overrides: tuple[InterruptOverride, ...]
    nmi_sources: tuple[NmiSource, ...]
    local_nmis: tuple[LocalNmi, ...]
    others: tuple[tuple[int, int], ...]

    def isa_interrupt(self, irq: int) -> InterruptOverride:
        """Where ISA interrupt 0 to 15 arrives, with the bus's defaults filled in."""
        if not 0 <= irq < _ISA_IRQS:
            raise ValueError(f"ISA interrupts are 0 to {_ISA_IRQS - 1}, not {irq}")
        found = next((o for o in self.overrides if o.bus == 0 and o.source == irq), None)
        polarity, trigger = (found.polarity, found.trigger) if found else (Polarity.CONFORMS, Trigger.CONFORMS)
        return InterruptOverride(0, irq, found.gsi if found else irq, polarity or Polarity.HIGH, trigger or Trigger.EDGE)

    def io_apic_of(self, gsi: int) -> IoApic | None:
        """The I/O APIC with the nearest base not above `gsi`; how many inputs it has, only its own register says."""
        return max((a for a in self.io_apics if a.gsi_base <= gsi), key=lambda a: a.gsi_base, default=None)


@dataclass(frozen=True, slots=True)
class Register:
    """Generic Address Structure (5.2.3.2). `space` 0 is memory, 1 I/O ports, 2 PCI configuration."""

    space: int
    bits: int
    offset: int
    access: int
    address: int


@dataclass(frozen=True, slots=True)
class Fadt:
    """Fixed ACPI Description Table (5.2.9). What a table of its age does not have is 0 or None."""

    header: Header
    minor: int
    facs: int
    dsdt: int
    profile: int
    sci_interrupt: int
    smi_command: int
    pm1a_event: int
    pm1a_control: int
    pm_timer: int
    boot_flags: int
    flags: int
    reset_register: Register | None
    reset_value: int
    hypervisor: str

    @property
    def hardware_reduced(self) -> bool:
        """No PM1 registers, no PM timer, no SCI: the ACPI hardware is left out."""
        return bool(self.flags & 1 << 20)

    @property
    def reset_supported(self) -> bool:
        """Whether writing `reset_value` to `reset_register` resets the machine."""
        return bool(self.flags & 1 << 10) and self.reset_register is not None

    @property
    def msi_forbidden(self) -> bool:
        """Message signalled interrupts must not be used on this board."""
        return bool(self.boot_flags & 1 << 3)

    @property
    def aspm_forbidden(self) -> bool:
        """PCIe active-state power management must not be changed on this board."""
        return bool(self.boot_flags & 1 << 4)


@dataclass(frozen=True, slots=True)
class EcamWindow:
    """Where a segment's configuration space is in memory: a MiB for each bus (PCI Firmware 3.3, 4.1.2)."""

    base: int
    segment: int
    first_bus: int
    last_bus: int

    @property
    def octets(self) -> int:
        """The size of the window."""
        return (self.last_bus - self.first_bus + 1) << 20

    @property
    def start(self) -> int:
        """Its physical address; `base` is that of bus 0, whether the window holds it or not."""
        return self.base + (self.first_bus << 20)

    def address(self, bus: int, device: int, function: int) -> int:
        """The physical address of a function's 4096 octets. Raises ValueError outside the window."""
        if not (self.first_bus <= bus <= self.last_bus and 0 <= device < 32 and 0 <= function < 8):
            raise ValueError(f"{bus:02x}:{device:02x}.{function:x} is outside the window of buses "
                             f"{self.first_bus:02x} to {self.last_bus:02x}")
        return self.base + (bus << 20 | device << 15 | function << 12)


@dataclass(frozen=True, slots=True)
class Mcfg:
    """Memory mapped configuration table (PCI Firmware 3.3, 4.1.2)."""

    header: Header
    windows: tuple[EcamWindow, ...]

    def window(self, segment: int, bus: int) -> EcamWindow | None:
        """The window that holds a bus."""
        return next((w for w in self.windows if w.segment == segment and w.first_bus <= bus <= w.last_bus), None)


class ScopeKind(IntEnum):
    """What a device scope names (VT-d 8.3.1)."""

    ENDPOINT = 1
    BRIDGE = 2
    IOAPIC = 3
    HPET = 4
    NAMESPACE = 5


_SCOPE_KINDS: Final = {kind.value: kind for kind in ScopeKind}


@dataclass(frozen=True, slots=True)
class DeviceScope:
    """A device, or everything below a bridge: from `bus` down the (device, function) steps of `path` (VT-d 8.3.1)."""

    kind: ScopeKind | int
    enumeration_id: int
    bus: int
    path: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return f"{self.bus:02x}:" + "/".join(f"{device:02x}.{function:x}" for device, function in self.path)


@dataclass(frozen=True, slots=True)
class Drhd:
    """One remapping unit: its registers and the devices behind it; `include_all`: all others of the segment."""

    segment: int
    address: int
    include_all: bool
    scopes: tuple[DeviceScope, ...]


@dataclass(frozen=True, slots=True)
class Rmrr:
    """Memory, `base` to `limit` inclusive, that devices of the firmware go on using: it must stay mapped for them."""

    segment: int
    base: int
    limit: int
    scopes: tuple[DeviceScope, ...]


@dataclass(frozen=True, slots=True)
class Atsr:
    """Root ports below which devices may use Address Translation Services; `all_ports`: all of the segment."""

    segment: int
    all_ports: bool
    scopes: tuple[DeviceScope, ...]


@dataclass(frozen=True, slots=True)
class Dmar:
    """DMA Remapping Reporting (VT-d 8.1). `others` are structures we do not read: (type, octets)."""

    header: Header
    address_bits: int
    interrupt_remapping: bool
    x2apic_opt_out: bool
    dma_opt_in: bool
    units: tuple[Drhd, ...]
    reserved_memory: tuple[Rmrr, ...]
    ats_ports: tuple[Atsr, ...]
    others: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Root:
    """RSDT or XSDT (5.2.7, 5.2.8): the physical addresses of all other tables."""

    header: Header
    tables: tuple[int, ...]


Table = Madt | Fadt | Mcfg | Dmar | Root | Rsdp


# Parsing

def parse_header(data: bytes) -> Header:
    """The header alone; the length it claims is not checked. Raises TableError when there are too few octets."""
    if len(data) < HEADER.size:
        raise TableError("?", "truncated", f"{len(data)} octets are less than a header's {HEADER.size}")
    signature, length, revision, _, oem, oem_table, oem_revision, creator, _ = HEADER.unpack_from(data)
    return Header(_text(signature), length, revision, _text(oem), _text(oem_table), oem_revision, _text(creator))


def check(data: bytes, *signatures: str) -> tuple[Header, bytes]:
    """The header, and the octets of the table without what follows it.

    Raises TableError: "truncated", "signature", "length" or "checksum".
    """
    header = parse_header(data)
    name = header.signature
    if signatures and name not in signatures:
        raise TableError(name, "signature", f"expected {' or '.join(signatures)}")
    if not HEADER.size <= header.length <= LONGEST_TABLE:
        raise TableError(name, "length", f"{header.length} octets cannot be the length of a table")
    if header.length > len(data):
        raise TableError(name, "truncated", f"it claims {header.length} octets and has {len(data)}")
    table = bytes(data[:header.length])
    if sum(table) & 0xFF:
        raise TableError(name, "checksum", f"the octets sum up to {sum(table) & 0xFF:#04x}, not 0")
    return header, table


def parse_rsdp(data: bytes) -> Rsdp:
    """Both forms (5.2.5.3). Raises TableError."""
    if len(data) < 20:
        raise TableError("RSDP", "truncated", f"{len(data)} octets are less than 20")
    if data[:8] != b"RSD PTR ":
        raise TableError("RSDP", "signature", f"it begins with {bytes(data[:8])!r}")
    if sum(data[:20]) & 0xFF:
        raise TableError("RSDP", "checksum", "the first 20 octets do not sum up to 0")
    oem, revision, rsdt = struct.unpack_from("<6sBI", data, 9)
    if revision < 2:
        return Rsdp(_text(oem), revision, rsdt, 0)
    if len(data) < 36:
        raise TableError("RSDP", "truncated", f"{len(data)} octets are less than 36")
    length, xsdt = struct.unpack_from("<IQ", data, 20)
    if not 36 <= length <= len(data):
        raise TableError("RSDP", "length", f"it claims {length} octets and has {len(data)}")
    if sum(data[:length]) & 0xFF:
        raise TableError("RSDP", "checksum", f"its {length} octets do not sum up to 0")
    return Rsdp(_text(oem), revision, rsdt, xsdt)


def parse_root(data: bytes) -> Root:
    """RSDT or XSDT. Raises TableError."""
    header, table = check(data, "RSDT", "XSDT")
    entry = "<Q" if header.signature == "XSDT" else "<I"
    body = table[HEADER.size:]
    if len(body) % struct.calcsize(entry):
        raise TableError(header.signature, "length", f"{len(body)} octets are no whole number of entries")
    if len(body) > MOST_TABLES * struct.calcsize(entry):
        raise TableError(header.signature, "length", f"more than {MOST_TABLES} tables")
    return Root(header, tuple(address for (address,) in struct.iter_unpack(entry, body)))


def parse_madt(data: bytes) -> Madt:
    """Raises TableError."""
    header, table = check(data, "APIC")
    address, flags = _unpack("<II", table, HEADER.size, header)
    found: dict[type, list] = {kind: [] for kind in (LocalApic, IoApic, InterruptOverride, NmiSource, LocalNmi)}
    others = []
    for kind, entry in _entries(table, HEADER.size + 8, "BB", header):
        if kind == 5:      # 64-bit address of the local APICs
            address, = _unpack("<4xQ", entry, 0, header)
        elif kind in _MADT:
            structure = _MADT[kind](entry, header)
            found[type(structure)].append(structure)
        else:
            others.append((kind, len(entry)))
    lists = (tuple(found[kind]) for kind in (LocalApic, IoApic, InterruptOverride, NmiSource, LocalNmi))
    return Madt(header, address, bool(flags & 1), *lists, tuple(others))


def _local_apic(entry: bytes, header: Header) -> LocalApic:
    uid, apic, flags = _unpack("<2xBBI", entry, 0, header)
    return LocalApic(uid, apic, bool(flags & 1), bool(flags & 2), False)


def _x2apic(entry: bytes, header: Header) -> LocalApic:
    apic, flags, uid = _unpack("<4xIII", entry, 0, header)
    return LocalApic(uid, apic, bool(flags & 1), bool(flags & 2), True)


def _override(entry: bytes, header: Header) -> InterruptOverride:
    bus, source, gsi, flags = _unpack("<2xBBIH", entry, 0, header)
    return InterruptOverride(bus, source, gsi, *_inti(flags))


def _nmi_source(entry: bytes, header: Header) -> NmiSource:
    flags, gsi = _unpack("<2xHI", entry, 0, header)
    return NmiSource(gsi, *_inti(flags))


def _local_nmi(entry: bytes, header: Header) -> LocalNmi:
    uid, flags, lint = _unpack("<2xBHB", entry, 0, header)
    return LocalNmi(None if uid == 0xFF else uid, lint, *_inti(flags))


def _x2apic_nmi(entry: bytes, header: Header) -> LocalNmi:
    flags, uid, lint = _unpack("<2xHIB", entry, 0, header)
    return LocalNmi(None if uid == 0xFFFF_FFFF else uid, lint, *_inti(flags))


_MADT: dict[int, Callable[[bytes, Header], object]] = {
    0: _local_apic,
    1: lambda entry, header: IoApic(*_unpack("<2xBxII", entry, 0, header)),
    2: _override,
    3: _nmi_source,
    4: _local_nmi,
    9: _x2apic,
    10: _x2apic_nmi,
}


def _inti(flags: int) -> tuple[Polarity, Trigger]:
    return Polarity(flags & 3), Trigger(flags >> 2 & 3)


def parse_fadt(data: bytes) -> Fadt:
    """All revisions: fields beyond the table's length are absent (5.2.9). Raises TableError."""
    header, table = check(data, "FACP")
    if len(table) < 116:       # the length of revision 1
        raise TableError("FACP", "length", f"{len(table)} octets are less than the 116 of ACPI 1")
    whole = table.ljust(276, b"\0")
    facs, dsdt, profile, sci, smi = struct.unpack_from("<IIxBHI", whole, 36)
    pm1a_event, pm1a_control, pm_timer = (struct.unpack_from("<I", whole, at)[0] for at in (56, 64, 76))
    boot_flags, flags = struct.unpack_from("<HxI", whole, 109)
    x_facs, x_dsdt = struct.unpack_from("<QQ", whole, 132)
    reset = Register(*struct.unpack_from("<BBBBQ", whole, 116))
    return Fadt(
        header, whole[131] & 0x0F, x_facs or facs, x_dsdt or dsdt, profile, sci, smi,
        _block(whole, 148) or pm1a_event, _block(whole, 172) or pm1a_control, _block(whole, 208) or pm_timer,
        boot_flags, flags, reset if reset.address else None, whole[128], _text(whole[268:276]),
    )


def _block(table: bytes, at: int) -> int:
    """The address in the Generic Address Structure at `at`."""
    return struct.unpack_from("<4xQ", table, at)[0]


def parse_mcfg(data: bytes) -> Mcfg:
    """Raises TableError, "entry" for a window whose buses run backwards or that ends beyond 64 bits."""
    header, table = check(data, "MCFG")
    body = table[HEADER.size + 8:]
    if len(table) < HEADER.size + 8 or len(body) % 16:
        raise TableError("MCFG", "length", f"{len(table)} octets are no whole number of windows")
    windows = tuple(EcamWindow(*entry) for entry in struct.iter_unpack("<QHBB4x", body))
    for i, window in enumerate(windows):
        if window.first_bus > window.last_bus or window.base + (256 << 20) > 1 << 64:
            raise TableError("MCFG", "entry", f"window {i} cannot be: {window}")
    return Mcfg(header, windows)


def parse_dmar(data: bytes) -> Dmar:
    """Raises TableError."""
    header, table = check(data, "DMAR")
    width, flags = _unpack("<BB", table, HEADER.size, header)
    units, reserved, ports, others = [], [], [], []
    for kind, entry in _entries(table, HEADER.size + 12, "<HH", header):
        if kind == 0:
            entry_flags, segment, address = _unpack("<4xBxHQ", entry, 0, header)
            units.append(Drhd(segment, address, bool(entry_flags & 1), _scopes(entry, 16, header)))
        elif kind == 1:
            segment, base, limit = _unpack("<6xHQQ", entry, 0, header)
            if limit < base:
                raise TableError("DMAR", "entry", f"reserved memory ends at {limit:#x} before it begins at {base:#x}")
            reserved.append(Rmrr(segment, base, limit, _scopes(entry, 24, header)))
        elif kind == 2:
            entry_flags, segment = _unpack("<4xBxH", entry, 0, header)
            ports.append(Atsr(segment, bool(entry_flags & 1), _scopes(entry, 8, header)))
        else:
            others.append((kind, len(entry)))
    return Dmar(header, width + 1, bool(flags & 1), bool(flags & 2), bool(flags & 4),
                tuple(units), tuple(reserved), tuple(ports), tuple(others))


def _scopes(entry: bytes, at: int, header: Header) -> tuple[DeviceScope, ...]:
    """The device scopes that fill the rest of a structure (VT-d 8.3.1)."""
    scopes = []
    for kind, scope in _entries(entry, at, "BB", header):
        if len(scope) < 8 or len(scope) % 2:
            raise TableError("DMAR", "entry", f"a device scope of {len(scope)} octets has no path")
        scopes.append(DeviceScope(_SCOPE_KINDS.get(kind, kind), scope[4], scope[5], tuple(struct.iter_unpack("BB", scope[6:]))))
    return tuple(scopes)


def _entries(data: bytes, at: int, head: str, header: Header) -> Iterator[tuple[int, bytes]]:
    """(type, octets) of each structure from `at` to the end; each begins with its type and its length."""
    least = struct.calcsize(head)
    if at > len(data):
        raise TableError(header.signature, "length", f"{len(data)} octets end before the entries begin")
    while at < len(data):
        if at + least > len(data):
            raise TableError(header.signature, "entry", f"the entry at {at} is cut off")
        kind, length = struct.unpack_from(head, data, at)
        if length < least or at + length > len(data):
            raise TableError(header.signature, "entry", f"the entry at {at} claims {length} octets of {len(data) - at}")
        yield kind, data[at:at + length]
        at += length


def _unpack(format: str, data: bytes, at: int, header: Header) -> tuple:
    if at + struct.calcsize(format) > len(data):
        raise TableError(header.signature, "entry", f"{len(data)} octets are less than {at + struct.calcsize(format)}")
    return struct.unpack_from(format, data, at)


def _text(data: bytes) -> str:
    """A fixed-size text without its padding; what is not printable ASCII becomes a question mark."""
    return "".join(chr(c) if 32 <= c < 127 else "?" for c in data.rstrip(b"\0 "))


PARSERS: Final[dict[str, Callable[[bytes], Table]]] = {
    "APIC": parse_madt, "FACP": parse_fadt, "MCFG": parse_mcfg, "DMAR": parse_dmar, "RSDT": parse_root, "XSDT": parse_root,
}


# Finding

@dataclass(frozen=True, slots=True)
class Found:
    """One table of this machine. `parsed` is None for a kind we do not read, and when `problem` says what is wrong."""

    name: str
    header: Header | None
    parsed: Table | None = field(repr=False)
    problem: str = ""


def examine(name: str, data: bytes) -> Found:
    """A table as far as it holds; never raises TableError."""
    if data.startswith(b"FACS") and len(data) >= _FACS_OCTETS:      # 5.2.10: has no checksum, and firmware changes it
        length, version = struct.unpack_from("<I24xB", data, 4)
        return Found(name, Header("FACS", length, version, "", "", 0, ""), None,
                     "" if _FACS_OCTETS <= length <= len(data) else f"length: it claims {length} octets and has {len(data)}")
    try:
        header, _ = check(data)
    except TableError as error:
        try:
            return Found(name, parse_header(data), None, error.message)
        except TableError:
            return Found(name, None, None, error.message)
    try:
        parser = PARSERS.get(header.signature)
        return Found(name, header, parser(data) if parser else None)
    except TableError as error:
        return Found(name, header, None, error.message)


def tables(root: Path = Path("/")) -> tuple[Found, ...]:
    """All tables the kernel shows, by name; empty where there is no ACPI. Bounded in number and size."""
    folder = root / TABLES
    try:
        paths = sorted(p for p in folder.iterdir() if p.is_file())
        paths += sorted(p for p in (folder / "dynamic").iterdir() if p.is_file()) if (folder / "dynamic").is_dir() else []
    except OSError:
        return ()
    return tuple(_examine_file(path) for path in paths[:MOST_TABLES])


def _examine_file(path: Path) -> Found:
    try:
        with path.open("rb") as file:
            return examine(path.name, file.read(LONGEST_TABLE + 1))
    except PermissionError:
        return Found(path.name, None, None, "not readable: run as root")
    except OSError as error:
        return Found(path.name, None, None, f"not readable: {error.strerror}")


def table(name: str, root: Path = Path("/")) -> Table | None:
    """The parsed table called "APIC", "FACP", "MCFG" or "DMAR"; None when this machine has none.

    Raises TableError for one that does not hold, PermissionError for one we may not read.
    """
    try:
        with (root / TABLES / name).open("rb") as file:
            return PARSERS[name](file.read(LONGEST_TABLE + 1))
    except FileNotFoundError:
        return None


def rsdp_address(root: Path = Path("/")) -> int | None:
    """Where EFI says the RSDP is, the newer one if it has two; None without EFI."""
    try:
        lines = (root / EFI_SYSTAB).read_text("ascii", "replace")[:4096].splitlines()
    except OSError:
        return None
    named = dict(line.split("=", 1) for line in lines if "=" in line)
    for key in ("ACPI20", "ACPI"):
        try:
            return int(named[key], 16)
        except (KeyError, ValueError):
            continue
    return None


def scan_for_rsdp(memory: bytes) -> int | None:
    """The offset of a valid RSDP on a 16-octet boundary of the BIOS area (0xE0000 to 0xFFFFF, 5.2.5.1)."""
    at = memory.find(b"RSD PTR ")
    while at >= 0:
        if at % 16 == 0:
            try:
                parse_rsdp(memory[at:at + 4096])
                return at
            except TableError:
                pass
        at = memory.find(b"RSD PTR ", at + 1)
    return None


def roots(read: ReadMemory, root: Path = Path("/")) -> Iterator[Found]:
    """RSDP, XSDT and RSDT out of physical memory, which the kernel shows nowhere else; nothing where there is no RSDP.

    Raises TableError when the RSDP does not hold, OSError for memory we may not read.
    """
    at = rsdp_address(root)
    if at is None:
        found = scan_for_rsdp(read(_BIOS_AREA, _BIOS_OCTETS))
        if found is None:
            return
        at = _BIOS_AREA + found
    pointer = parse_rsdp(_octets(read, at, 36))
    yield Found("RSDP", Header("RSD PTR", 36 if pointer.revision >= 2 else 20, pointer.revision, pointer.oem_id, "", 0, ""),
                pointer)
    for name, address in (("XSDT", pointer.xsdt), ("RSDT", pointer.rsdt)):
        if address:
            found = _found_at(read, address)
            yield found if found.header else Found(name, None, None, found.problem)


def walk(read: ReadMemory, rsdp: int) -> Iterator[Found]:
    """All tables from the RSDP at a physical address on: the root table first, then what it and the FADT point to.

    Raises TableError when the RSDP or the root table does not hold; a bad table among the rest is a Found with a problem.
    """
    pointer = parse_rsdp(_octets(read, rsdp, 36))
    root = parse_root(_read_table(read, pointer.xsdt or pointer.rsdt))
    yield Found(root.header.signature, root.header, root)
    for address in dict.fromkeys(root.tables):
        found = _found_at(read, address)
        yield found
        if isinstance(found.parsed, Fadt) and found.parsed.dsdt:
            yield _found_at(read, found.parsed.dsdt)


def _found_at(read: ReadMemory, address: int) -> Found:
    try:
        data = _read_table(read, address)
    except TableError as error:
        return Found(f"at {address:#x}", None, None, error.message)
    return examine(parse_header(data).signature, data)


def _read_table(read: ReadMemory, address: int) -> bytes:
    length = parse_header(_octets(read, address, HEADER.size)).length
    return _octets(read, address, min(max(length, HEADER.size), LONGEST_TABLE))


def _octets(read: ReadMemory, address: int, octets: int) -> bytes:
    try:
        return read(address, octets)
    except (OSError, OverflowError) as error:      # an address beyond 63 bits is no file offset
        why = getattr(error, "strerror", None) or error
        raise TableError(f"at {address:#x}", "truncated", f"the kernel does not show this memory: {why}") from None


class PhysicalMemory:
    """Physical memory as `walk` wants it, through /dev/mem. Needs root, and a kernel that allows these addresses."""

    def __init__(self, path: str = "/dev/mem"):
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __call__(self, address: int, octets: int) -> bytes:
        return os.pread(self.fd, octets, address)

    def close(self) -> None:
        """May be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> "PhysicalMemory":
        return self

    def __exit__(self, *_) -> None:
        self.close()
