"""Whether a PCI function can be taken from the kernel; if not, why, and what to do about it."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from drivers.pci.names import Names
from drivers.pci.sysfs import Bdf, PciBus, PciDevice, read_text
from drivers.pci.uses import HostUses, Interface, Uses

OURS: Final = ("vfio-pci", "uio_pci_generic")
"""The kernel's drivers that hand a device to a process."""
# Drivers that do no DMA of their own (the kernel's driver_managed_dma): they do not stand in a group's way.
_HARMLESS: Final = ("vfio-pci", "pci-stub", "pcieport")
_NETWORK: Final = 0x02      # base class
_MOST_PROCESSES: Final = 1 << 16


class Why(Enum):
    """What stands in the way. The value is the name in JSON."""

    BRIDGE = "bridge"
    NO_IOMMU = "no_iommu"
    GROUP_SHARED = "group_shared"
    DEFAULT_ROUTE = "default_route"
    MOUNTED = "mounted"
    SWAP = "swap"
    IN_USE = "in_use"
    LOST = "lost"
    CONSOLE = "console"
    VIRTUAL_FUNCTIONS = "virtual_functions"


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing in the way. `forcible`: an operator who names the device and insists may go on."""

    why: Why
    text: str
    advice: str
    forcible: bool = False

    def __str__(self) -> str:
        return f"{self.text}: {self.advice}"


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A line of `rustosctl device list`."""

    bdf: str
    kind: str
    name: str
    driver: str | None
    iommu_group: int | None
    uses: Uses
    takeable: bool
    reasons: tuple[Reason, ...]


def why_not_take(device: PciDevice, bus: PciBus, host: HostUses, together: Iterable[Bdf] = ()) -> tuple[Reason, ...]:
    """All that stands in the way of giving `device` to a process, the most hopeless first; empty: take it.

    `together` are other functions that are to be taken in the same step, such as the rest of its IOMMU group.
    """
    return (*_own_reasons(device, bus, host), *_group_reasons(device, bus, host, frozenset(together)))


def row(device: PciDevice, bus: PciBus, host: HostUses, names: Names) -> DeviceRow:
    """One function as `rustosctl device list` shows it."""
    reasons = why_not_take(device, bus, host)
    kind = names.class_name(device.class_code) or f"class {device.class_code >> 8:04x}"
    uses = Uses((), ()) if device.is_bridge else host.of(device)
    return DeviceRow(device.name, kind, names.full(device.vendor, device.device), device.driver, device.iommu_group,
                     uses, not reasons, reasons)


def _own_reasons(device: PciDevice, bus: PciBus, host: HostUses) -> Iterator[Reason]:
    """What lies in the function itself."""
    if device.is_bridge:
        yield Reason(Why.BRIDGE, "it is a bridge, other devices depend on it", "take the devices behind it")
        return
    if device.iommu_group is None and device.driver != "uio_pci_generic":
        yield Reason(Why.NO_IOMMU, "no IOMMU confines its DMA", _iommu_advice(bus))
    if device.sriov_vfs:
        yield Reason(Why.VIRTUAL_FUNCTIONS, f"{device.sriov_vfs} virtual functions live on it",
                     f"remove them: echo 0 > /sys/bus/pci/devices/{device.name}/sriov_numvfs")
    uses = host.of(device)
    yield from _use_reasons(uses)
    if device.class_code >> 16 == _NETWORK and not uses.interfaces and device.driver not in (None, "pci-stub", *OURS):
        yield Reason(Why.IN_USE, f"{device.driver} drives it and no interface of it is to be seen here",
                     "if a container has it (`lsns -t net`), take it back first, or name the device with --force",
                     forcible=True)
    if device.boot_vga and device.driver not in (None, *OURS):
        yield Reason(Why.CONSOLE, "it shows the machine's screen", "use a serial or network console, then name it with "
                     "--force", forcible=True)
    if (holder := held_by(device, bus.root)) is not None:
        yield Reason(Why.IN_USE, f"{holder} holds it", "stop that program first")


def _use_reasons(uses: Uses) -> Iterator[Reason]:
    for disk in uses.disks:
        if disk.swaps:
            yield Reason(Why.SWAP, f"{disk.name} holds active swap ({', '.join(disk.swaps)})",
                         "; ".join(f"swapoff /dev/{name}" for name in disk.swaps))
        if disk.mounts:
            points = ", ".join(sorted({mount.point for mount in disk.mounts}))
            yield Reason(Why.MOUNTED, f"{disk.name} has mounted filesystems ({points})",
                         "unmount them, or name the device with --force", forcible=True)
        elif disk.held and not disk.swaps:
            layers = f" ({', '.join(disk.layers)})" if disk.layers else ""
            yield Reason(Why.IN_USE, f"{disk.name} is in use{layers}", f"see `lsblk /dev/{disk.name}`; close the LVM, RAID, "
                         "encrypted volume or program that has it open, or name the device with --force", forcible=True)
    for interface in uses.interfaces:
        yield from _interface_reasons(interface)


def _interface_reasons(interface: Interface) -> Iterator[Reason]:
    """What depends on an interface, or is lost with it. All of it may be forced, by who knows what is on this machine."""
    name, hanging = interface.name, interface.hangers
    if interface.carries_default_route:
        yield Reason(Why.DEFAULT_ROUTE, f"{name} carries the default route",
                     "give the host another way out first, or name the device with --force", forcible=True)
    if interface.master:
        yield Reason(Why.IN_USE, f"{name} is part of {interface.master}",
                     f"detach it: ip link set {name} nomaster; or name the device with --force: it goes back there when it is "
                     "given back", forcible=True)
    if hanging.vlans:
        yield Reason(Why.IN_USE, f"the VLANs {', '.join(hanging.vlans)} are on {name} and cease meanwhile",
                     f"delete them (ip link delete {hanging.vlans[0]}), or name the device with --force: they are made again "
                     "when it is given back", forcible=True)
    if hanging.lost:
        yield Reason(Why.LOST, f"{name} has {', '.join(hanging.lost)}, and does not come back with that",
                     f"note how it is made (tc qdisc show dev {name}; ip -d link), then name the device with --force",
                     forcible=True)
    elif above := [upper for upper in interface.upper if upper not in (interface.master, *hanging.vlans)]:
        yield Reason(Why.IN_USE, f"{', '.join(above)} depends on {name}", f"delete {', '.join(above)}, or name the device "
                     "with --force", forcible=True)


def _group_reasons(device: PciDevice, bus: PciBus, host: HostUses, together: frozenset[Bdf]) -> Iterator[Reason]:
    """Other functions of its IOMMU group that the kernel still drives: VFIO hands out whole groups only."""
    if device.iommu_group is None or device.is_bridge:
        return
    others = [bus.find(bdf) for bdf in bus.group(device.iommu_group) if bdf != device.bdf and bdf not in together]
    blocking = [o for o in others if o is not None and o.driver is not None and o.driver not in _HARMLESS]
    if not blocking:
        return
    whom = ", ".join(f"{o.name} ({o.driver})" for o in blocking)
    stuck = [(o, reasons) for o in blocking if (reasons := tuple(_own_reasons(o, bus, host)))]
    slot = "put the card into a slot with an IOMMU group of its own"
    if stuck:
        other, reasons = stuck[0]
        advice = f"{other.name} cannot come along ({reasons[0].text}), so {slot}"
    else:
        advice = f"take them together: rustosctl device take {' '.join(o.name for o in (device, *blocking))}; or {slot}"
    yield Reason(Why.GROUP_SHARED, f"it shares IOMMU group {device.iommu_group} with {whom}", advice)


def _iommu_advice(bus: PciBus) -> str:
    """What to do where there is no IOMMU, for this machine."""
    uio = "or use the uio backend (--backend uio), which lets the device reach all memory"
    if bus.has_iommu():
        return f"the kernel's IOMMU does not cover this device: try another slot, {uio}"
    tables = bus.root / "sys/firmware/acpi/tables"
    for table, option in (("DMAR", "intel_iommu=on"), ("IVRS", "amd_iommu=on")):
        if (tables / table).exists():
            return f"boot the kernel with {option}, {uio}"
    return f"switch on VT-d or AMD-Vi in the firmware (for a VM: give it a virtual IOMMU), {uio}"


def held_by(device: PciDevice, root: Path = Path("/")) -> str | None:
    """The other process that has the device open through VFIO or UIO: "qemu-system-x86 (pid 4711)"; None: nobody seen.

    Looks through the open files of all processes, so only as root it sees them all.
    """
    nodes = set(_nodes(device))
    if not nodes:
        return None
    for process in _processes(root / "proc"):
        try:
            files = list((process / "fd").iterdir())
        except OSError:
            continue
        for file in files:
            try:
                target = os.readlink(file)
            except OSError:
                continue
            if target in nodes:
                return f"{read_text(process / 'comm') or '?'} (pid {process.name})"
    return None


def _nodes(device: PciDevice) -> Iterator[str]:
    """The device nodes through which a process may hold it."""
    if device.driver == "vfio-pci":
        yield f"/dev/vfio/{device.iommu_group}"
        yield f"/dev/vfio/noiommu-{device.iommu_group}"
    for folder, prefix in (("vfio-dev", "/dev/vfio/devices/"), ("uio", "/dev/")):
        try:
            yield from (prefix + entry.name for entry in (device.path / folder).iterdir())
        except OSError:
            continue


def _processes(proc: Path) -> Iterator[Path]:
    """All processes but this one."""
    try:
        entries = sorted(entry.name for entry in proc.iterdir() if entry.name.isdecimal())
    except OSError:
        return
    for name in entries[:_MOST_PROCESSES]:
        if name != str(os.getpid()):
            yield proc / name
