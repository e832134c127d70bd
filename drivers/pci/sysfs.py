"""The PCI functions of this machine as the kernel shows them in sysfs.

Everything is read below a root that tests replace. What the kernel does not show is None or empty, never an exception:
a device may leave while it is being read.
"""

import re
from dataclasses import dataclass
from enum import Enum
from functools import total_ordering
from pathlib import Path
from typing import Final, Self

from drivers.errors import DeviceError

DEVICES: Final = Path("sys/bus/pci/devices")
SLOTS: Final = Path("sys/bus/pci/slots")
IOMMUS: Final = Path("sys/class/iommu")
_BDF: Final = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.IGNORECASE | re.ASCII)
_LONGEST_VALUE: Final = 64 << 10

# linux/ioport.h
_IORESOURCE_IO = 0x100
_IORESOURCE_MEM = 0x200
_IORESOURCE_PREFETCH = 0x2000
_IORESOURCE_MEM_64 = 0x10_0000
_ROM = 6      # the line of the expansion ROM in `resource`; those after it are bridge windows and SR-IOV BARs


@total_ordering
@dataclass(frozen=True, slots=True)
class Bdf:
    """The address of a function: segment, bus, device, function."""

    segment: int
    bus: int
    device: int
    function: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """"0000:03:00.0" or "03:00.0". Raises ValueError."""
        match = _BDF.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is no PCI address: write it as 0000:03:00.0")
        return cls(*(int(part or "0", 16) for part in match.groups()))

    def __str__(self) -> str:
        return f"{self.segment:04x}:{self.bus:02x}:{self.device:02x}.{self.function:x}"

    def __lt__(self, other: "Bdf") -> bool:
        return (self.segment, self.bus, self.device, self.function) < (other.segment, other.bus, other.device, other.function)


class BarKind(Enum):
    """What an address register decodes."""

    MEM32 = "mem32"
    MEM64 = "mem64"
    IO = "io"
    ROM = "rom"


@dataclass(frozen=True, slots=True)
class BarInfo:
    """A base address register: where it is on the bus and what is behind it. A 64-bit one also takes the next index."""

    index: int
    address: int
    size: int
    kind: BarKind
    prefetch: bool


@dataclass(frozen=True, slots=True)
class Link:
    """A PCIe link: GT/s and lanes, as they are and as they could be. None where the kernel does not know."""

    speed: float | None
    width: int | None
    max_speed: float | None
    max_width: int | None

    @property
    def degraded(self) -> bool:
        """Whether it runs below what the device can do."""
        pairs = ((self.speed, self.max_speed), (self.width, self.max_width))
        return any(now is not None and most is not None and now < most for now, most in pairs)

    def __str__(self) -> str:
        shown = f"{self.speed or 0:g} GT/s x{self.width or 0}"
        return f"{shown} (of {self.max_speed or 0:g} GT/s x{self.max_width or 0})" if self.degraded else shown


@dataclass(frozen=True, slots=True)
class PciDevice:
    """One function. `path` is its real directory in sysfs; `upstream` the bridge above it."""

    bdf: Bdf
    path: Path
    vendor: int
    device: int
    subsystem_vendor: int
    subsystem_device: int
    class_code: int
    revision: int
    driver: str | None
    driver_override: str | None
    iommu_group: int | None
    bars: tuple[BarInfo, ...]
    link: Link | None
    numa_node: int | None
    slot: str | None
    upstream: Bdf | None
    irq: int | None
    sriov_vfs: int | None
    sriov_total: int | None
    physical_function: Bdf | None
    boot_vga: bool
    reset_methods: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its BDF as text."""
        return str(self.bdf)

    @property
    def is_bridge(self) -> bool:
        """Whether it leads to other devices or belongs to the board's own wiring (base class 06)."""
        return self.class_code >> 16 == 0x06

    @property
    def is_virtual_function(self) -> bool:
        """Whether it is an SR-IOV virtual function."""
        return self.physical_function is not None

    def bar(self, index: int) -> BarInfo | None:
        """The base address register `index`, 6 for the ROM."""
        return next((bar for bar in self.bars if bar.index == index), None)


class PciBus:
    """All PCI functions below a root directory. Each question reads sysfs anew."""

    def __init__(self, root: Path | str = "/"):
        self.root = Path(root)

    def addresses(self) -> list[Bdf]:
        """Of all functions, in order; empty on a machine without PCI."""
        try:
            names = [entry.name for entry in (self.root / DEVICES).iterdir()]
        except OSError:
            return []
        return sorted(Bdf.parse(name) for name in names if _BDF.fullmatch(name))

    def devices(self) -> list[PciDevice]:
        """All functions in order of their addresses, without those that left meanwhile."""
        slots = self.slots()
        return [found for bdf in self.addresses() if (found := self._read(bdf, slots)) is not None]

    def device(self, bdf: Bdf | str) -> PciDevice:
        """One function. Raises DeviceError when there is none, ValueError when that is no address."""
        address = Bdf.parse(bdf) if isinstance(bdf, str) else bdf
        found = self.find(address)
        if found is None:
            raise DeviceError(str(address), "there is no such PCI device: `rustosctl device list` shows those there are")
        return found

    def find(self, bdf: Bdf) -> PciDevice | None:
        """One function, None when there is none."""
        return self._read(bdf, self.slots())

    def group(self, number: int) -> list[Bdf]:
        """The functions of an IOMMU group: what can be given to a process only together."""
        try:
            names = [e.name for e in (self.root / "sys/kernel/iommu_groups" / str(number) / "devices").iterdir()]
        except OSError:
            return []
        return sorted(Bdf.parse(name) for name in names if _BDF.fullmatch(name))

    def has_iommu(self) -> bool:
        """Whether the kernel runs an IOMMU at all."""
        try:
            return any((self.root / IOMMUS).iterdir())
        except OSError:
            return False

    def slots(self) -> dict[str, str]:
        """Names of the physical (hot-plug) slots by "segment:bus:device"."""
        try:
            return {read_text(slot / "address"): slot.name for slot in sorted((self.root / SLOTS).iterdir())}
        except OSError:
            return {}

    def _read(self, bdf: Bdf, slots: dict[str, str]) -> PciDevice | None:
        try:
            path = (self.root / DEVICES / str(bdf)).resolve(strict=True)
        except (OSError, RuntimeError):
            return None
        vendor, device = read_number(path / "vendor"), read_number(path / "device")
        if vendor is None or device is None:
            return None
        numa = read_number(path / "numa_node")
        override = read_text(path / "driver_override")
        group = link_name(path / "iommu_group")
        return PciDevice(
            bdf, path, vendor, device, read_number(path / "subsystem_vendor") or 0, read_number(path / "subsystem_device") or 0,
            read_number(path / "class") or 0, read_number(path / "revision") or 0, link_name(path / "driver"),
            None if override in ("", "(null)") else override, int(group) if group and group.isdecimal() else None,
            parse_resource(read_text(path / "resource")), _link(path), None if numa is None or numa < 0 else numa,
            slots.get(str(bdf).rpartition(".")[0]), _bdf_or_none(path.parent.name), read_number(path / "irq") or None,
            read_number(path / "sriov_numvfs"), read_number(path / "sriov_totalvfs"),
            _bdf_or_none(link_name(path / "physfn") or ""), read_number(path / "boot_vga") == 1,
            tuple(read_text(path / "reset_method").split()),
        )


def parse_resource(text: str) -> tuple[BarInfo, ...]:
    """The address registers and the ROM in a `resource` file; lines that are empty or make no sense are left out."""
    bars = []
    for index, line in enumerate(text.splitlines()[:_ROM + 1]):
        try:
            start, end, flags = (int(word, 16) for word in line.split())
        except ValueError:
            continue
        kind = _kind(index, flags)
        if kind is None or end < start or (start, end) == (0, 0):
            continue
        bars.append(BarInfo(index, start, end - start + 1, kind, bool(flags & _IORESOURCE_PREFETCH)))
    return tuple(bars)


def _kind(index: int, flags: int) -> BarKind | None:
    if flags & _IORESOURCE_IO:
        return BarKind.IO
    if not flags & _IORESOURCE_MEM:
        return None
    if index == _ROM:
        return BarKind.ROM
    return BarKind.MEM64 if flags & _IORESOURCE_MEM_64 else BarKind.MEM32


def _link(path: Path) -> Link | None:
    speed, most = _speed(read_text(path / "current_link_speed")), _speed(read_text(path / "max_link_speed"))
    # 0 lanes is a link that is down, 255 one the kernel could not read.
    width, widest = (read_number(path / name) for name in ("current_link_width", "max_link_width"))
    widest = None if widest in (0, 255) else widest
    return None if most is None and widest is None else Link(speed, width, most, widest)


def _speed(text: str) -> float | None:
    """"8.0 GT/s PCIe" -> 8.0."""
    try:
        return float(text.split(" ", 1)[0])
    except ValueError:
        return None


def _bdf_or_none(text: str) -> Bdf | None:
    return Bdf.parse(text) if _BDF.fullmatch(text) else None


def read_text(path: Path) -> str:
    """An attribute without its newline; empty when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST_VALUE).decode("utf-8", "replace").strip("\n\0 ")
    except OSError:
        return ""


def read_number(path: Path) -> int | None:
    """A decimal or 0x attribute; None when it is missing or no number."""
    try:
        return int(read_text(path), 0)
    except ValueError:
        return None


def link_name(path: Path) -> str | None:
    """The last part of what a symbolic link points to."""
    try:
        return path.readlink().name
    except OSError:
        return None
