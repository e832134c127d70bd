"""PCI devices through the kernel's vfio-pci and an IOMMU: registers, DMA and interrupts, and nothing else within reach.

A `Container` is one IOMMU address space; every device opened through it sees the same DMA memory. The device must be
bound to vfio-pci before (`drivers.binding`). Closing, and letting go when the kernel asks, touch no sysfs.
"""

import asyncio
import errno
import os
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from drivers import vfio_abi as abi
from drivers.bar import FileBar, MappedBar, SparseBar
from drivers.binding import driver_of, group_holders, group_of, in_the_way
from drivers.errors import DeviceError, DeviceRefused
from mm.dma import LOW_END, PAGE, AddressRange, DmaBlock, DmaExhausted, DmaPool, HostMemory, IovaSpace, Owned, account

VFIO: Final = "/dev/vfio/vfio"
COMMAND: Final = 0x04
COMMAND_BUS_MASTER: Final = 1 << 2
_CAPABILITIES: Final = 0x34
_CAP_PCIE: Final = 0x10
_DEVCAP: Final = 0x04
_DEVCAP_FLR: Final = 1 << 28
_DEVCTL: Final = 0x08
_DEVCTL_FLR: Final = 1 << 15
_DEVCTL_REPORT: Final = 1 << 1 | 1 << 2
"""Non-fatal and fatal errors; PCIe 7.5.3.4."""
FLR_S: Final = 0.1
"""A function needs no longer; PCIe 6.6.2."""
RESET_S: Final = 1.0
"""How long to try while the kernel says that the device is busy."""

_KINDS = {"msix": abi.Irq.MSIX, "msi": abi.Irq.MSI, "intx": abi.Irq.INTX}


class Container:
    """One IOMMU address space and the devices in it."""

    largest = 1 << 40
    need_huge = False

    def __init__(self) -> None:
        """Raises DeviceRefused where there is no VFIO."""
        try:
            self.fd = os.open(VFIO, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise DeviceRefused(VFIO, "does not exist: load the module with `modprobe vfio-pci`") from None
        except OSError as error:
            raise DeviceRefused(VFIO, f"{error.strerror}: run as root, or give this user the file and the group's") from None
        self.pool = DmaPool(self)
        self._space = IovaSpace([])
        self._groups: dict[str, tuple[int, set[VfioDevice]]] = {}
        self._mapped = 0
        try:
            if abi.api_version(self.fd) != abi.API_VERSION:
                raise DeviceRefused(VFIO, "this kernel speaks another version of VFIO than 0")
            if not abi.has_extension(self.fd, abi.TYPE1V2_IOMMU):
                raise DeviceRefused(VFIO, "this kernel lacks VFIO for IOMMUs of type 1: `modprobe vfio_iommu_type1`")
        except BaseException:
            os.close(self.fd)
            raise

    def open(self, bdf: str) -> "VfioDevice":
        """Open a device that is bound to vfio-pci.

        Raises DeviceRefused: no IOMMU, another driver, its group not viable (and who is in the way), somebody has it open.
        """
        group = group_of(bdf)
        if group is None:
            raise DeviceRefused(bdf, "no IOMMU covers it: turn VT-d or AMD-Vi on in the firmware and boot with "
                                     "intel_iommu=on, or use backend \"uio\"")
        if (driver := driver_of(bdf)) != "vfio-pci":
            raise DeviceRefused(bdf, f"{driver or 'no driver'} drives it, not vfio-pci: `rustosctl device take {bdf}`")
        group_fd, devices = self._groups.get(group) or self._join(bdf, group)
        if any(device.name == bdf for device in devices):
            raise DeviceRefused(bdf, "it is open in this container already: close that first")
        fd = -1
        try:
            fd = abi.group_device(group_fd, bdf)
            device = VfioDevice(self, bdf, group, fd)
        except BaseException as error:
            if fd >= 0:
                os.close(fd)
            self._leave(group)
            if isinstance(error, OSError):
                raise DeviceRefused(bdf, f"VFIO does not open it: {error.strerror}; `dmesg | tail` may say why") from None
            raise
        devices.add(device)
        return device

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Addresses (first, last) that the IOMMU and the devices in the container allow."""
        return abi.iommu_info(self.fd).ranges

    @property
    def mappings_left(self) -> int | None:
        """How many more chunks of memory the kernel maps; None when it does not say."""
        return abi.iommu_info(self.fd).mappings_left

    def map(self, memory: HostMemory, below_4g: bool) -> int:
        """Give the devices a way to it; see mm.dma.Window."""
        iova = self._space.take(memory.size, end=LOW_END if below_4g else 1 << 64)
        try:
            abi.dma_map(self.fd, memory.address, iova, memory.size)
        except OSError as error:
            self._space.give(iova)
            raise self._unmapped(error, memory.size) from None
        self._mapped += memory.size
        return iova

    def unmap(self, iova: int, size: int) -> None:
        """Take it away again; see mm.dma.Window."""
        self._space.give(iova)
        self._mapped -= size
        with suppress(OSError):     # without devices there are no mappings either
            abi.dma_unmap(self.fd, iova, size)

    def close(self) -> None:
        """Close every device, then the address space. May be called twice."""
        for _, devices in list(self._groups.values()):
            for device in list(devices):
                device.close()
        self.pool.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _join(self, bdf: str, group: str) -> tuple[int, set["VfioDevice"]]:
        """Bring a group into the container."""
        path = f"/dev/vfio/{group}"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise _group_error(bdf, path, error) from None
        try:
            if not abi.group_flags(fd) & abi.GROUP_VIABLE:
                raise _not_viable(bdf, group)
            try:
                abi.group_set_container(fd, self.fd)
                if not self._groups:
                    abi.set_iommu(self.fd, abi.TYPE1V2_IOMMU)
            except OSError as error:
                raise _attach_error(bdf, group, error) from None
            self._space.restrict(AddressRange(*pair) for pair in self.ranges)
        except BaseException:
            os.close(fd)
            raise
        self._groups[group] = fd, set()
        return self._groups[group]

    def _leave(self, group: str) -> None:
        """Let a group go when none of its devices is open; with the last one the kernel forgets all mappings."""
        fd, devices = self._groups[group]
        if not devices:
            if len(self._groups) == 1:
                self.pool.clear()
            del self._groups[group]
            os.close(fd)

    def _unmapped(self, error: OSError, size: int) -> Exception:
        soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        need = self._mapped + size
        if error.errno == errno.ENOMEM and soft != resource.RLIM_INFINITY and need > soft:
            return DeviceRefused(VFIO, f"DMA memory is locked memory, and this process may lock {soft >> 10} KiB where "
                                       f"{need >> 10} KiB are needed: LimitMEMLOCK={need} in the unit or more, "
                                       f"`ulimit -l {need >> 10}` in a shell, or CAP_IPC_LOCK")
        if error.errno == errno.ENOSPC:
            return DmaExhausted("the kernel maps no more memory for devices: raise the parameter dma_entry_limit of the "
                                "module vfio_iommu_type1")
        return DmaExhausted(f"the kernel does not map {size >> 10} KiB for devices: {error.strerror}")


class VfioInterrupt:
    """One vector; see drivers.device.Interrupt."""

    def __init__(self, device: int, kind: str) -> None:
        self._device, self.kind = device, kind
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def drain(self) -> int:
        """How many have come since the last time."""
        return _drain(self.fd)

    def mask(self) -> None:
        """Hold INTx back; MSI and MSI-X are the device's own to mask."""
        if self.kind == "intx":
            abi.irq_mask(self._device, abi.Irq.INTX, masked=True)

    def unmask(self) -> None:
        """Let INTx come again, at once if its line is up."""
        if self.kind == "intx":
            abi.irq_mask(self._device, abi.Irq.INTX, masked=False)


class VfioConfig:
    """Configuration space as VFIO shows it; the kernel keeps some registers to itself."""

    how = "vfio"

    def __init__(self, region: FileBar) -> None:
        self._region = region
        self.size = region.size

    def read(self, offset: int, octets: int) -> int:
        """1, 2 or 4 octets."""
        return self._region.read(offset, octets)

    def write(self, offset: int, octets: int, value: int) -> None:
        """1, 2 or 4 octets."""
        self._region.write(offset, octets, value)


class VfioDevice:
    """A PCI function through VFIO; see drivers.device.Device. `Container.open` makes it."""

    backend = "vfio"

    def __init__(self, container: Container, bdf: str, group: str, fd: int) -> None:
        self.name = bdf
        self.leaked: list[Owned] = []
        """What drivers had not freed when the device was closed."""
        self._container, self._group, self._fd = container, group, fd
        self._info = abi.device_info(fd)
        region = abi.region_info(fd, abi.CONFIG_REGION)
        self.config = VfioConfig(FileBar(fd, region.size, region.offset))
        self._bars: dict[int, MappedBar | FileBar] = {}
        self._blocks: list[DmaBlock] = []
        self._vectors: list[VfioInterrupt] = []
        self._signals: dict[abi.Irq, tuple[int, asyncio.AbstractEventLoop]] = {}

    def bar(self, index: int) -> MappedBar | FileBar:
        """Base address register 0 to 5, mapped as far as the kernel allows. Raises DeviceError when there is none."""
        if index not in self._bars:
            self._bars[index] = self._open_bar(index)
        return self._bars[index]

    def dma_alloc(self, octets: int, owner: str, *, align: int = PAGE, below_4g: bool = False) -> DmaBlock:
        """Zeroed, pinned memory for every device of the container. Raises DeviceError."""
        try:
            block = self._container.pool.allocate(octets, owner, align=align, below_4g=below_4g)
        except DmaExhausted as error:
            raise DeviceError(self.name, str(error)) from None
        self._blocks = [known for known in self._blocks if not known.freed]
        self._blocks.append(block)
        return block

    def interrupts(self, wanted: int = 1, kinds: tuple[str, ...] = ("msix", "msi", "intx")) -> list[VfioInterrupt]:
        """Enable the first of `kinds` the device has, in place of what was enabled. Raises DeviceError.

        At most `wanted` vectors; fewer where the device or the machine has fewer.
        """
        self._disable_interrupts()
        for kind in kinds:
            if count := min(wanted, self.vectors(kind)):
                return self._enable_interrupts(kind, count)
        raise DeviceError(self.name, f"it has no interrupt of the kinds {', '.join(kinds)}: poll it")

    def vectors(self, kind: str) -> int:
        """How many interrupts of a kind the device has."""
        return self._irq_count(_KINDS[kind])

    def enable_bus_master(self, on: bool) -> None:
        """Let the device start DMA, or stop it. It is stopped when a device is opened."""
        command = self.config.read(COMMAND, 2)
        self.config.write(COMMAND, 2, command | COMMAND_BUS_MASTER if on else command & ~COMMAND_BUS_MASTER)

    def reset(self) -> str:
        """By the kernel's choice ("device"), else by function level reset ("flr"), else "none": use the device's own."""
        if self._info.flags & abi.DeviceFlag.RESET and self._kernel_reset():
            return "device"
        capability = self._pcie_capability()
        if capability and self.config.read(capability + _DEVCAP, 4) & _DEVCAP_FLR:
            self.config.write(capability + _DEVCTL, 2, self.config.read(capability + _DEVCTL, 2) | _DEVCTL_FLR)
            time.sleep(FLR_S)
            return "flr"
        return "none"

    def on_release_request(self, callback: Callable[[], None]) -> None:
        """Call back, from the running loop, when the kernel wants the device back: close within 100 ms.

        The kernel asks again and again until the device is closed. Raises RuntimeError without a running loop.
        """
        self._on_signal(abi.Irq.REQ, callback)

    def on_error(self, callback: Callable[[], None]) -> bool:
        """Call back, from the running loop, on an uncorrectable PCIe error; False if the device cannot tell."""
        if not self._on_signal(abi.Irq.ERR, callback):
            return False
        self._report_errors()
        return True

    def close(self) -> None:
        """Stop DMA and interrupts, unmap, free what drivers left (see `leaked`), close. May be called twice."""
        if self._fd < 0:
            return
        with suppress(OSError):     # a device that is gone has stopped
            self.enable_bus_master(False)
        self._disable_interrupts()
        for kind, (fd, loop) in self._signals.items():
            loop.remove_reader(fd)
            with suppress(OSError):
                abi.irq_disable(self._fd, kind)
            os.close(fd)
        self._signals.clear()
        for bar in self._bars.values():
            bar.close()
        self.leaked = account(block for block in self._blocks if not block.freed)
        for block in self._blocks:
            block.free()
        self._blocks.clear()
        os.close(self._fd)
        self._fd = -1
        self._container._groups[self._group][1].discard(self)
        self._container._leave(self._group)

    def _open_bar(self, index: int) -> MappedBar | FileBar:
        region = abi.region_info(self._fd, index) if 0 <= index < 6 else None
        if region is None or not region.size:
            raise DeviceError(self.name, f"it has no BAR {index}")
        if not region.flags & abi.RegionFlag.MMAP:
            return FileBar(self._fd, region.size, region.offset)
        try:
            if region.areas is not None and region.areas != [(0, region.size)]:
                return SparseBar(self._fd, region.size, region.offset, region.areas)
            return MappedBar(self._fd, region.size, region.offset)
        except OSError:     # the IOMMU's owner may still forbid it; calls always work
            return FileBar(self._fd, region.size, region.offset)

    def _enable_interrupts(self, kind: str, count: int) -> list[VfioInterrupt]:
        try:
            while count:
                self._vectors += [VfioInterrupt(self._fd, kind) for _ in range(count - len(self._vectors))]
                possible = abi.irq_eventfds(self._fd, _KINDS[kind], [vector.fd for vector in self._vectors])
                if not possible:
                    return list(self._vectors)
                count = min(possible, count - 1)
                for vector in self._vectors[count:]:
                    os.close(vector.fd)
                del self._vectors[count:]
        except OSError as error:
            self._drop_vectors()
            raise DeviceError(self.name, f"VFIO does not enable its {kind} interrupts: {error.strerror}. Is another device "
                                         "on the same line? Try another kind, or poll") from None
        raise DeviceError(self.name, f"the machine has no {kind} vectors left: try another kind, or poll")

    def _disable_interrupts(self) -> None:
        if self._vectors:
            with suppress(OSError):
                abi.irq_disable(self._fd, _KINDS[self._vectors[0].kind])
            self._drop_vectors()

    def _drop_vectors(self) -> None:
        for vector in self._vectors:
            os.close(vector.fd)
        self._vectors.clear()

    def _on_signal(self, kind: abi.Irq, callback: Callable[[], None]) -> bool:
        loop = asyncio.get_running_loop()
        if not self._irq_count(kind):
            return False
        if kind in self._signals:
            fd, _ = self._signals[kind]
        else:
            fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            try:
                abi.irq_eventfds(self._fd, kind, [fd])
            except OSError as error:
                os.close(fd)
                raise DeviceError(self.name, f"VFIO does not tell of {kind.name}: {error.strerror}") from None
        self._signals[kind] = fd, loop
        loop.add_reader(fd, lambda: _drain(fd) and callback())
        return True

    def _irq_count(self, kind: abi.Irq) -> int:
        if kind >= self._info.irqs:
            return 0
        try:
            return abi.irq_info(self._fd, kind).count
        except OSError:     # ERR on what is not PCIe
            return 0

    def _report_errors(self) -> None:
        """Let the device report uncorrectable errors; kernels before 6.6 leave that to drivers."""
        if capability := self._pcie_capability():
            control = self.config.read(capability + _DEVCTL, 2)
            self.config.write(capability + _DEVCTL, 2, control | _DEVCTL_REPORT)

    def _kernel_reset(self) -> bool:
        """Whether VFIO reset it; while the kernel is busy with the device, try again for a while."""
        limit = time.monotonic() + RESET_S
        while True:
            try:
                abi.device_reset(self._fd)
                return True
            except OSError as error:
                if error.errno != errno.EAGAIN or time.monotonic() > limit:
                    return False
                time.sleep(0.01)

    def _pcie_capability(self) -> int:
        """Where the PCI Express capability is; 0 for a conventional device. Ends on any list, looped or not."""
        at = self.config.read(_CAPABILITIES, 1) & 0xFC
        for _ in range(48):
            if at < 0x40 or at == 0xFC:
                break
            if self.config.read(at, 1) == _CAP_PCIE:
                return at
            at = self.config.read(at + 1, 1) & 0xFC
        return 0


def _drain(fd: int) -> int:
    """The count of an eventfd, 0 when nothing came."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def _group_error(bdf: str, path: str, error: OSError) -> DeviceRefused:
    if error.errno == errno.EBUSY:
        who = ", ".join(f"{holder.command} (process {holder.pid})" for holder in group_holders(bdf))
        return DeviceRefused(bdf, f"it or another device of its group is in use by {who or 'another process'}: "
                                  "stop that first")
    if error.errno in (errno.EACCES, errno.EPERM):
        return DeviceRefused(bdf, f"no permission to open {path}: run as root, or give this user the file")
    return DeviceRefused(bdf, f"cannot open {path}: {error.strerror}")


def _not_viable(bdf: str, group: str) -> DeviceRefused:
    others = in_the_way(bdf)
    names = ", ".join(f"{member.bdf} ({member.driver})" for member in others) or "a device that has just come"
    advice = " and ".join(f"`rustosctl device take {member.bdf}`" for member in others) or "try again"
    return DeviceRefused(bdf, f"the kernel still drives {names}, which the IOMMU cannot tell apart from it (group {group}): "
                              f"take all of the group, {advice}, or move the card to another slot")


def _attach_error(bdf: str, group: str, error: OSError) -> DeviceRefused:
    if error.errno == errno.EPERM:
        return DeviceRefused(bdf, "the IOMMU cannot remap interrupts, so a device could forge them: turn interrupt remapping "
                                  "on in the firmware, or accept that risk with the parameter allow_unsafe_interrupts=1 of "
                                  "the module vfio_iommu_type1")
    return DeviceRefused(bdf, f"its IOMMU group {group} cannot join the others: {error.strerror}")
