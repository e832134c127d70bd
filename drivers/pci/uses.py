"""What the kernel hangs on a PCI function: network interfaces and block devices, and who relies on them.

Read-only and below a root that tests replace. The default route comes over netlink, and whether the kernel holds a disk
from an exclusive open: both are functions that tests replace too.
"""

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyroute2 import IPRoute

from drivers.pci import unkept
from drivers.pci.sysfs import PciDevice, link_name, read_number, read_text
from drivers.pci.unkept import NOTHING, Hangers

_LONGEST_FILE: Final = 16 << 20
_MOST_LAYERS: Final = 4096
_SECTOR: Final = 512        # in sysfs, whatever the disk's own
_RTN_UNICAST = 1
_AS_GOOD_AS_DEFAULT: Final = {4: 1, 6: 3}     # prefix lengths up to which two or eight routes make a default route
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
_NVME_PATH: Final = re.compile(r"(nvme\d+)c\d+(n\d+)", re.ASCII)     # a path of a multipath namespace; the head is <1><2>


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted filesystem."""

    point: str
    filesystem: str
    source: str


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface of the kernel. `upper` are interfaces above it: bonds, bridges, VLANs, and whatever else."""

    name: str
    mac: str
    state: str
    mtu: int
    upper: tuple[str, ...]
    master: str | None
    carries_default_route: bool
    hangers: Hangers = NOTHING


@dataclass(frozen=True, slots=True)
class Disk:
    """A whole block device. `layers` are all block devices made of it: partitions, LVM, RAID, encryption."""

    name: str
    octets: int
    model: str
    serial: str
    layers: tuple[str, ...]
    mounts: tuple[Mount, ...]
    swaps: tuple[str, ...]
    held: bool
    """The kernel or a program holds it exclusively: one of the above, or what this process cannot see."""


@dataclass(frozen=True, slots=True)
class Uses:
    """All that hangs on one function."""

    interfaces: tuple[Interface, ...]
    disks: tuple[Disk, ...]

    def words(self) -> list[str]:
        """Each in few words: "eth0 52:54:00:12:34:56", "sda WDC WD10 1.0 TB serial 4711"."""
        words = [f"{i.name} {i.mac}".strip() for i in self.interfaces]
        for d in self.disks:
            parts = (d.name, d.model, _decimal(d.octets), d.serial and f"serial {d.serial}")
            words.append(" ".join(part for part in parts if part))
        return words


class HostUses:
    """A picture of this host's interfaces, disks and mounts, taken when it is made; then ask `of(device)`.

    `default_routes` gives the indices of interfaces with a default route; `held` says whether a disk cannot be opened
    exclusively; `hangers` what is made on which interface. Without them the host itself is asked, or nobody when `root` is
    another tree.
    """

    def __init__(self, root: Path | str = "/", default_routes: Callable[[], Iterable[int]] | None = None,
                 held: Callable[[str], bool] | None = None, hangers: Callable[[], Mapping[int, Hangers]] | None = None):
        self.root = Path(root)
        own = self.root == Path("/")
        default_routes = default_routes or (default_route_interfaces if own else tuple)
        self._held = held or (held_exclusively if own else lambda name: False)
        self._hangers = (hangers or (unkept.hangers if own else dict))()
        self._nets = _entries(self.root / "sys/class/net")
        self._blocks = _entries(self.root / "sys/class/block")
        self._carriers = self._find_carriers(set(default_routes()))
        self._mounts = dict(self._read_mounts())
        self._swaps = set(self._read_swaps())
        self._btrfs = dict(self._read_btrfs())

    def of(self, device: PciDevice) -> Uses:
        """What hangs on this function, and on what is behind it when it is a bridge."""
        interfaces = [self._interface(name, path) for name, path in self._nets.items() if path.is_relative_to(device.path)]
        disks = {self._head(name) for name, path in self._blocks.items() if path.is_relative_to(device.path)}
        return Uses(tuple(interfaces), tuple(self._disk(name) for name in sorted(disks) if name in self._blocks))

    # Network

    def _interface(self, name: str, path: Path) -> Interface:
        upper = sorted(entry.removeprefix("upper_") for entry in _names(path) if entry.startswith("upper_"))
        return Interface(name, read_text(path / "address"), read_text(path / "operstate"), read_number(path / "mtu") or 0,
                         tuple(upper), link_name(path / "master"), name in self._carriers,
                         self._hangers.get(read_number(path / "ifindex") or 0, NOTHING))

    def _find_carriers(self, indices: set[int]) -> set[str]:
        """The interfaces with a default route and all that these are made of: the ports of a bond, a VLAN's parent."""
        carriers: set[str] = set()
        todo = [name for name, path in self._nets.items() if read_number(path / "ifindex") in indices]
        while todo and len(carriers) < _MOST_LAYERS:
            name = todo.pop()
            if name not in carriers and name in self._nets:
                carriers.add(name)
                todo += [e.removeprefix("lower_") for e in _names(self._nets[name]) if e.startswith("lower_")]
        return carriers

    # Disks

    def _head(self, name: str) -> str:
        """The whole disk that a block device below the function belongs to."""
        if (self._blocks[name] / "partition").exists():
            name = self._blocks[name].parent.name
        match = _NVME_PATH.fullmatch(name)
        return match[1] + match[2] if match else name

    def _disk(self, name: str) -> Disk:
        path = self._blocks[name]
        layers = self._layers(name)
        own = {layer: read_text(self._blocks[layer] / "dev") for layer in (name, *layers)}
        mounts = [mount for number in own.values() for mount in self._mounts.get(number, ())]
        # btrfs mounts under a number of its own, and on several disks at once.
        mounts += [mount for layer in own for mount in self._btrfs.get(layer, ())]
        swaps = tuple(layer for layer in own if layer in self._swaps)
        held = bool(mounts or swaps or any(_names(self._blocks[layer] / "holders") for layer in own) or self._held(name))
        return Disk(name, (read_number(path / "size") or 0) * _SECTOR, _model(path), _serial(path), layers,
                    tuple(dict.fromkeys(mounts)), swaps, held)

    def _layers(self, name: str) -> tuple[str, ...]:
        """Everything made of a disk: its partitions, what holds these, what holds that; each once, bounded."""
        found: dict[str, None] = {name: None}
        todo = [name]
        while todo and len(found) < _MOST_LAYERS:
            path = self._blocks[todo.pop()]
            above = [entry for entry in _names(path) if (path / entry / "partition").exists()] + _names(path / "holders")
            new = [entry for entry in above if entry in self._blocks and entry not in found]
            found.update(dict.fromkeys(new))
            todo += new
        del found[name]
        return tuple(found)

    def _read_mounts(self) -> Iterator[tuple[str, list[Mount]]]:
        """By device number. As init sees them too, for a service may have a mount namespace of its own."""
        mounts: dict[str, dict[Mount, None]] = {}
        for process in ("self", "1"):
            for line in _lines(self.root / "proc" / process / "mountinfo"):
                number, mount = parse_mount(line)
                if mount is not None:
                    mounts.setdefault(number, {})[mount] = None
        for number, found in mounts.items():
            yield number, list(found)

    def _read_btrfs(self) -> Iterator[tuple[str, list[Mount]]]:
        """Every device of every btrfs the kernel has mounted, by name."""
        mounted = [m for mounts in self._mounts.values() for m in mounts if m.filesystem == "btrfs"]
        for folder in _entries(self.root / "sys/fs/btrfs").values():
            members = _names(folder / "devices")
            sources = {self._block_of(mount.source): mount for mount in mounted}
            found = [sources[member] for member in members if member in sources]
            for member in members:
                yield member, found or [Mount("?", "btrfs", folder.name)]

    def _block_of(self, source: str) -> str:
        """"/dev/mapper/x" -> "dm-0"."""
        try:
            return (self.root / source.lstrip("/")).resolve().name
        except (OSError, RuntimeError):
            return Path(source).name

    def _read_swaps(self) -> Iterator[str]:
        for line in _lines(self.root / "proc/swaps")[1:]:
            words = line.split()
            if len(words) > 1 and words[1] == "partition":
                yield self._block_of(_unescape(words[0]))


def parse_mount(line: str) -> tuple[str, Mount | None]:
    """(device number, mount) of a line of mountinfo (proc(5)); None for one that makes no sense."""
    left, _, right = line.partition(" - ")
    words, rest = left.split(" "), right.split(" ")
    if len(words) < 6 or len(rest) < 2:
        return "", None
    return words[2], Mount(_unescape(words[4]), rest[0], _unescape(rest[1]))


def default_route_interfaces() -> set[int]:
    """Indices of the interfaces with a default route in any table, IPv4 or IPv6. Blocks for some milliseconds.

    A route to half the Internet counts, for two of them are what VPNs use as a default route.
    """
    def call() -> set[int]:
        with IPRoute() as netlink:
            return {index for route in netlink.get_routes() for index in default_hops(route)}

    with ThreadPoolExecutor(1) as executor:      # pyroute2 cannot run in a thread where a loop runs already
        return executor.submit(call).result()


def default_hops(route) -> list[int]:
    """The interfaces of one route message when it is a default route: one, or each of a multipath route's."""
    version = 4 if route["family"] == 2 else 6
    if route["type"] != _RTN_UNICAST or route["dst_len"] > _AS_GOOD_AS_DEFAULT[version]:
        return []
    hops = [hop.get("oif") for hop in route.get("multipath") or ()]
    return [index for index in (route.get("oif"), *hops) if index]


def held_exclusively(name: str, root: Path = Path("/dev")) -> bool:
    """Whether the block device is claimed: mounted anywhere, part of a RAID or LVM, open by a partitioner or a VM.

    Only who may open it (root) learns that; others hear False.
    """
    try:
        # Not for writing: closing a disk that was open for writing makes udev look at it anew.
        os.close(os.open(root / name.replace("!", "/"), os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _model(path: Path) -> str:
    vendor, model = read_text(path / "device/vendor"), read_text(path / "device/model")
    return model if vendor in ("", "ATA") or vendor.startswith("0x") else f"{vendor} {model}".strip()


def _serial(path: Path) -> str:
    """From the driver, or from SCSI's unit serial number page (SPC-4 7.8.16)."""
    for place in ("serial", "device/serial"):
        if text := read_text(path / place):
            return text
    try:
        page = (path / "device/vpd_pg80").read_bytes()
    except OSError:
        return ""
    length = int.from_bytes(page[2:4], "big")
    return "".join(c for c in page[4:4 + length].decode("ascii", "replace") if c.isprintable()).strip()


def _decimal(octets: int) -> str:
    """As disk makers count: 1.0 TB."""
    amount, unit = float(octets), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.1f} {unit}"


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def _names(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in path.iterdir())
    except OSError:
        return []


def _entries(folder: Path) -> dict[str, Path]:
    """Name and real directory of each entry."""
    found = {}
    for name in _names(folder):
        try:
            path = (folder / name).resolve(strict=True)
        except (OSError, RuntimeError):
            continue
        if path.is_dir():
            found[name] = path
    return found


def _lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST_FILE).decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
