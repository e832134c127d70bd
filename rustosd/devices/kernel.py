"""The kernel's side of taking a device and giving it back. Everything here blocks, for up to seconds, but with a bound."""

import threading
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from drivers import binding
from drivers.device import Device
from drivers.errors import DeviceError, DeviceRefused
from drivers.pci.sysfs import Bdf, PciBus, PciDevice
from drivers.pci.taking import Reason, Why, why_not_take
from drivers.pci.uses import HostUses
from drivers.uio import UioDevice
from drivers.vfio import Container, UnconfinedDmaWarning
from drivers.vfio_group import need_unsafe
from mm.dma import DmaPool
from mm.physical import PhysicalWindow
from rustosd import hostnet
from rustosd.config import DeviceConfig
from rustosd.devices import hostlink, kinds, rules
from rustosd.hostnet import HostNetworkError
from rustosd.journal import DeviceTaken, Entry, GroupsMade, KernelSwapMade
from rustosd.scheduling.groups import remove_all
from rustosd.swap import kernel_nbd

DRIVERS: Final = {"vfio": "vfio-pci", "uio": "uio_pci_generic", "vfio-noiommu": "vfio-pci"}
"""The kernel driver behind each backend."""
RELEASE_S: Final = 5.0
"""How long a killed daemon's files may take to close; it unpins its memory meanwhile."""
MAC_S: Final = 2.0
"""How long a card that was just plugged in may take to show its MAC address."""
_NETWORK: Final = 0x02      # base class
_UNCONFINED: Final = frozenset({"uio", "vfio-noiommu"})
_NOT_FOR_UNCONFINED: Final = frozenset({Why.NO_IOMMU, Why.GROUP_SHARED})
"""What these backends do without."""
_POLL_S: Final = 0.02

log = structlog.get_logger(__name__)


class Wish(NamedTuple):
    """A device that somebody wants."""

    bdf: str
    rule: DeviceConfig
    backend: str = "vfio"
    force: bool = False


class Plan(NamedTuple):
    """A device that can be taken, and how to give it back."""

    wish: Wish
    kind: str
    taken: DeviceTaken


class Kernel:
    """Looks, binds and opens; devices of VFIO share one address space, with an IOMMU and without, those of UIO huge pages."""

    def __init__(self) -> None:
        self._containers: dict[str, Container] = {}
        self._pool: DmaPool | None = None
        self.lock = threading.Lock()
        """Held while a device is opened; hold it to close one."""

    def resolve(self, wanted: Iterable[DeviceConfig]) -> list[Wish]:
        """The devices that rules mean, without optional ones that are not there. Raises DeviceError."""
        bus, host = PciBus(), HostUses()
        wishes: dict[str, Wish] = {}
        for rule in wanted:
            device = rules.find(rule, bus, host)
            if device is None:
                if rule.optional:
                    continue
                raise rules.missing(rule, bus)
            if device.name in wishes:
                raise DeviceRefused(device.name, f"{wishes[device.name].rule.which} and {rule.which} both mean it: remove one "
                                                 "[[device]]")
            wishes[device.name] = Wish(device.name, rule, rule.backend, rule.force)
        return list(wishes.values())

    def rule_for(self, bdf: str, wanted: Sequence[DeviceConfig], *, patient: bool = False) -> DeviceConfig | None:
        """The first rule that means this device; `patient`: its kernel driver may still be starting.

        Raises DeviceError when there is no such device, ValueError when that is no address.
        """
        bus = PciBus()
        device = bus.device(bdf)
        by_mac = any(rule.mac is not None for rule in wanted) and device.class_code >> 16 == _NETWORK
        limit = time.monotonic() + (MAC_S if patient and by_mac else 0)
        while (rule := rules.choose(wanted, device, bus, HostUses())) is None and time.monotonic() < limit:
            time.sleep(_POLL_S)
        return rule

    def look(self, wishes: Sequence[Wish]) -> list[Plan]:
        """What it takes to take all of them; nothing is changed. Raises DeviceRefused with all that is in the way."""
        bus, host = PciBus(), HostUses()
        devices = [bus.device(wish.bdf) for wish in wishes]
        together = {device.bdf for device in devices}
        plans = []
        for wish, device in zip(wishes, devices, strict=True):
            reasons = why_not_take(device, bus, host, together)
            if standing := [str(reason) for reason in reasons if _stands(reason, wish)]:
                raise DeviceRefused(device.name, "; ".join(standing))
            if forced := [reason.text for reason in reasons]:
                log.warning("taken_by_force", device=device.name, although=forced)
            kind = kinds.kind_of(device)
            if kind == kinds.OTHER and not _shares_group(device, devices):
                raise DeviceRefused(device.name, f"rustosd has no driver for it; it drives {kinds.known()}")
            name = hostlink.interface_of(device.name)
            plans.append(Plan(wish, kind, DeviceTaken(
                device.name, device.driver, wish.backend, device.driver_override,
                hostlink.read(name) if name is not None else None)))
        return plans

    def bind(self, plan: Plan) -> None:
        """Have the kernel let go of it. If it will not, all is as it was. Raises DeviceError."""
        if plan.taken.backend == "vfio-noiommu":
            need_unsafe(plan.taken.bdf)
        binding.bind(plan.taken.bdf, DRIVERS[plan.taken.backend])

    def open(self, plan: Plan) -> Device:
        """The device, ours. Raises DeviceError."""
        backend = plan.taken.backend
        if backend in _UNCONFINED:
            log.warning("dma_unconfined", device=plan.taken.bdf, backend=backend,
                        risk="the device, or an error in its driver, can overwrite all memory of this machine")
        with self.lock:
            if backend == "uio":
                if self._pool is None:
                    self._pool = DmaPool(PhysicalWindow())
                return UioDevice(plan.taken.bdf, self._pool)
            if backend not in self._containers:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UnconfinedDmaWarning)       # it stands in the log
                    self._containers[backend] = Container(no_iommu=backend == "vfio-noiommu")
            return self._containers[backend].open(plan.taken.bdf)

    def give_back(self, taken: DeviceTaken) -> list[str]:
        """See `give_back`."""
        return give_back(taken)

    def lost(self, bdf: str, backend: str) -> str | None:
        """Why a device is ours no more: None while it is. A look at two links in sysfs, which never blocks."""
        try:
            driver = binding.driver_of(bdf)
        except DeviceError:
            return "it was unplugged"
        if driver == DRIVERS[backend]:
            return None
        return f"somebody has unbound it from {DRIVERS[backend]}" + (f", {driver} drives it now" if driver else "")

    def present(self, bdf: str) -> bool:
        """Whether there is such a device at all."""
        return (binding.PCI / "devices" / bdf).is_dir()

    def group_of(self, bdf: str) -> str | None:
        """Its IOMMU group; None without an IOMMU, or without the device."""
        try:
            return binding.group_of(bdf)
        except DeviceError:
            return None

    def close(self) -> None:
        """Let go of what no device uses any more. May be called twice, and more devices opened after it."""
        with self.lock:
            for container in self._containers.values():
                container.close()
            self._containers.clear()
            if self._pool is not None:
                self._pool.clear()
                self._pool = None


def give_back(taken: DeviceTaken) -> list[str]:
    """Back to the kernel as it was, with its interface's name, addresses and routes; in words, what could not be restored.

    Does for what was never taken, and for what is gone. Raises DeviceError, HostNetworkError: it is not back.
    """
    try:
        _await_release(taken)
        if not binding.give_back(taken.bdf, taken.driver, taken.override):
            return []
        if taken.link is None or taken.driver is None:
            return []
        return hostlink.restore(taken.link, hostlink.await_interface(taken.bdf))
    except (DeviceError, HostNetworkError, OSError):
        if not (binding.PCI / "devices" / taken.bdf).is_dir():      # unplugged meanwhile
            return []
        raise


def undo(entry: Entry) -> None:
    """Give back what the journal says was taken, whatever it is. Raises what keeps it from being given back."""
    if isinstance(entry, DeviceTaken):
        for complaint in give_back(entry):
            log.warning("not_restored", device=entry.bdf, what=complaint)
    elif isinstance(entry, KernelSwapMade):
        kernel_nbd.give_back(entry.device)
    elif isinstance(entry, GroupsMade):
        remove_all(map(Path, entry.roots), entry.new)
    else:
        hostnet.undo(entry)


def _await_release(taken: DeviceTaken) -> None:
    """Wait for the end of a process that still has the device open. Raises DeviceRefused when it does not end."""
    if not (binding.PCI / "devices" / taken.bdf).is_dir() or binding.driver_of(taken.bdf) != "vfio-pci":
        return
    limit = time.monotonic() + RELEASE_S
    while holders := binding.group_holders(taken.bdf):
        if time.monotonic() > limit:
            who = ", ".join(f"{holder.command} (process {holder.pid})" for holder in holders)
            raise DeviceRefused(taken.bdf, f"{who} still has it, or another device of its group, open: stop that first, then "
                                           "run `rustosd recover`")
        time.sleep(_POLL_S)


def _stands(reason: Reason, wish: Wish) -> bool:
    """Whether a reason keeps the wish from being granted."""
    if wish.backend in _UNCONFINED and reason.why in _NOT_FOR_UNCONFINED:
        return False
    return not (wish.force and reason.forcible)


def _shares_group(device: PciDevice, devices: Iterable[PciDevice]) -> bool:
    """Whether another of the devices, one that we drive, cannot be had without this one."""
    return device.iommu_group is not None and any(
        other.iommu_group == device.iommu_group and kinds.kind_of(other) != kinds.OTHER for other in devices)


def canonical(bdf: str) -> str:
    """"03:00.0" as "0000:03:00.0". Raises ValueError."""
    return str(Bdf.parse(bdf))
