"""Names from pci.ids, the database of https://pci-ids.ucw.cz, wherever the distribution put it.

The file has about 40,000 lines; it is read once, for the vendors and devices asked about.
"""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

PLACES: Final = (
    "usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids", "usr/share/pci.ids", "var/lib/pciutils/pci.ids",
    "usr/share/misc/pci.ids.gz", "usr/share/hwdata/pci.ids.gz",
)
LONGEST_FILE: Final = 16 << 20
LONGEST_NAME: Final = 200

# What a table of devices needs when there is no pci.ids; the file's own words for the classes.
_CLASSES: Final = {
    0x0100: "SCSI storage controller", 0x0101: "IDE interface", 0x0104: "RAID bus controller", 0x0106: "SATA controller",
    0x0107: "Serial Attached SCSI controller", 0x0108: "Non-Volatile memory controller", 0x0180: "Mass storage controller",
    0x0200: "Ethernet controller", 0x0280: "Network controller", 0x0300: "VGA compatible controller",
    0x0403: "Audio device", 0x0600: "Host bridge", 0x0601: "ISA bridge", 0x0604: "PCI bridge", 0x0C03: "USB controller",
    0x0C05: "SMBus",
}


@dataclass(frozen=True, slots=True)
class Names:
    """Names by number; each question gets None where there is no answer."""

    vendors: dict[int, str] = field(default_factory=dict)
    devices: dict[tuple[int, int], str] = field(default_factory=dict)
    subsystems: dict[tuple[int, int, int, int], str] = field(default_factory=dict)
    classes: dict[int, str] = field(default_factory=dict)

    def vendor(self, vendor: int) -> str | None:
        """"Intel Corporation"."""
        return self.vendors.get(vendor)

    def device(self, vendor: int, device: int) -> str | None:
        """"82574L Gigabit Network Connection"."""
        return self.devices.get((vendor, device))

    def subsystem(self, vendor: int, device: int, subvendor: int, subdevice: int) -> str | None:
        """What the maker of the board calls it."""
        return self.subsystems.get((vendor, device, subvendor, subdevice))

    def class_name(self, code: int) -> str | None:
        """The kind of a device, from its 24-bit class code: subclass, else base class."""
        return self.classes.get(code >> 8) or _CLASSES.get(code >> 8) or self.classes.get(code >> 16 << 8 | 0x1_0000)

    def full(self, vendor: int, device: int) -> str:
        """Vendor and device in words, in numbers where there are none: "Intel Corporation 82574L ...", "8086:10d3"."""
        maker, model = self.vendor(vendor), self.device(vendor, device)
        if maker is None:
            return f"{vendor:04x}:{device:04x}"
        return f"{maker} {model}" if model else f"{maker} [{device:04x}]"


def read_names(wanted: Iterable[tuple[int, int]], root: Path = Path("/")) -> Names:
    """The names of these (vendor, device) pairs and of all classes. Without the file there are only a few class names."""
    for place in PLACES:
        path = root / place
        try:
            with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
                data = file.read(LONGEST_FILE)
        except (OSError, EOFError, zlib.error):
            continue
        return parse(data.decode("utf-8", "replace").splitlines(), wanted)
    return Names()


def parse(lines: Iterable[str], wanted: Iterable[tuple[int, int]]) -> Names:
    """The lines of a pci.ids; what is not in its format is skipped."""
    pairs = frozenset(wanted)
    makers = frozenset(vendor for vendor, _ in pairs)
    names = Names()
    vendor = device = base = None
    for depth, head, name in _split(lines):
        if depth == 0:
            vendor = device = base = None
            if head.startswith("C "):
                base = _number(head[2:], 2)
                if base is not None:
                    names.classes[base << 8 | 0x1_0000] = name
            elif (number := _number(head, 4)) in makers:
                vendor = number
                names.vendors[vendor] = name
        elif depth == 1:
            number = _number(head, 2 if base is not None else 4)
            device = number if (vendor, number) in pairs else None
            if base is not None and number is not None:
                names.classes[base << 8 | number] = name
            elif device is not None:
                names.devices[vendor, device] = name
        elif device is not None:
            sub = tuple(_number(part, 4) for part in head.split(" "))
            if len(sub) == 2 and None not in sub:
                names.subsystems[vendor, device, *sub] = name
    return names


def _split(lines: Iterable[str]) -> Iterator[tuple[int, str, str]]:
    """(indentation in tabs, numbers, name) of each line that says something."""
    for line in lines:
        text = line.lstrip("\t")
        depth = len(line) - len(text)
        head, gap, name = text.partition("  ")
        if gap and depth <= 2 and not text.startswith("#"):
            yield depth, head, "".join(c for c in name.strip()[:LONGEST_NAME] if c.isprintable())


def _number(text: str, digits: int) -> int | None:
    if len(text) != digits:
        return None
    try:
        return int(text, 16)
    except ValueError:
        return None
