"""PCI devices through the kernel's vfio-pci and an IOMMU: registers, DMA and interrupts, and nothing else within reach.

A `Container` is one address space; every device opened through it sees the same DMA memory. The device must be bound to
vfio-pci before (`drivers.binding`). Closing, and letting go when the kernel asks, touch no sysfs.
"""

import errno
import os
import resource
import warnings
from pathlib import Path
from typing import Literal, Protocol

from drivers import iommufd
from drivers.binding import driver_of, group_of
from drivers.errors import DeviceRefused
from drivers.vfio_device import KernelHandle, VfioDevice
from drivers.vfio_group import VFIO, GroupSpace, need_unsafe, uncovered
from mm.dma import LOW_END, AddressRange, DmaExhausted, DmaPool, HostMemory, IovaSpace
from mm.physical import PhysicalWindow

__all__ = ["VFIO", "Container", "UnconfinedDmaWarning", "VfioDevice", "need_unsafe"]


class UnconfinedDmaWarning(UserWarning):
    """A device can reach all of memory."""


class Space(Protocol):
    """An address space of devices as the kernel keeps it."""

    way: str
    """How devices are reached: "group", "iommufd" or "no-iommu"."""

    def open(self, bdf: str) -> tuple[int, str]:
        """Bring a device in: its file descriptor, and the path it was reached by. Raises DeviceRefused."""

    def let_go(self, bdf: str) -> None:
        """The device's file descriptor has been closed."""

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Addresses (first, last) that the IOMMU and the devices allow."""

    @property
    def mappings_left(self) -> int | None:
        """How many more chunks of memory the kernel maps; None when it does not say."""

    def map(self, memory: HostMemory, iova: int) -> None:
        """Let the devices reach memory. Raises OSError."""

    def unmap(self, iova: int, size: int) -> None:
        """Take it away again; whatever is not there is none."""

    def close(self) -> None:
        """Once every device has been let go."""


class Container:
    """One address space and the devices in it."""

    largest = 1 << 40
    need_huge = False

    def __init__(self, way: Literal["auto", "group", "iommufd"] = "auto", *, no_iommu: bool = False) -> None:
        """`way` "auto" takes /dev/iommu and the device's own file where the kernel has both, else its group.

        `no_iommu` is for a machine without an IOMMU, in VFIO's unsafe mode: nothing confines the device, and it is told
        physical addresses; warns with UnconfinedDmaWarning. Raises DeviceRefused where there is no VFIO.
        """
        self.pool = DmaPool(PhysicalWindow() if no_iommu else self)
        self.backend = "vfio-noiommu" if no_iommu else "vfio"
        self._devices: dict[str, VfioDevice] = {}
        self._addresses = IovaSpace([])
        self._mapped = 0
        self._space: Space | None = None
        if way == "iommufd" and not no_iommu:
            self._space = iommufd.IommufdSpace()
        elif way == "group" or no_iommu or not Path(iommufd.IOMMU).exists():
            self._space = GroupSpace(no_iommu=no_iommu)
        if no_iommu:
            warnings.warn("VFIO without an IOMMU: the device, and whatever goes wrong in its driver, can read and overwrite "
                          "all memory of this machine, the kernel's too", UnconfinedDmaWarning, stacklevel=2)

    @property
    def way(self) -> str:
        """How devices are reached: "group", "iommufd" or "no-iommu"; "" before the first one decides."""
        return self._space.way if self._space else ""

    def open(self, bdf: str) -> VfioDevice:
        """Open a device that is bound to vfio-pci.

        Raises DeviceRefused: no IOMMU, another driver, its group not viable (and who is in the way), somebody has it open.
        """
        if group_of(bdf) is None and self.backend == "vfio":
            raise uncovered(bdf)
        if (driver := driver_of(bdf)) != "vfio-pci":
            raise DeviceRefused(bdf, f"{driver or 'no driver'} drives it, not vfio-pci: `rustosctl device take {bdf}`")
        if bdf in self._devices:
            raise DeviceRefused(bdf, "it is open in this container already: close that first")
        if self._space is None:
            self._space = iommufd.IommufdSpace() if iommufd.available(bdf) else GroupSpace()
        space = self._space
        fd, path = space.open(bdf)
        try:
            self._addresses.restrict(AddressRange(*pair) for pair in space.ranges)
            device = VfioDevice(bdf, path, self.backend, KernelHandle(fd), self.pool, lambda: self._let_go(bdf))
        except BaseException as error:
            os.close(fd)
            self._let_go(bdf)
            if isinstance(error, OSError):
                raise DeviceRefused(bdf, f"VFIO does not show it: {error.strerror}; `dmesg | tail` may say why") from None
            raise
        self._devices[bdf] = device
        return device

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Addresses (first, last) that the IOMMU and the devices in the container allow."""
        return self._space.ranges if self._space else []

    @property
    def mappings_left(self) -> int | None:
        """How many more chunks of memory the kernel maps; None when it does not say."""
        return self._space.mappings_left if self._space else None

    def map(self, memory: HostMemory, below_4g: bool) -> int:
        """Give the devices a way to it; see mm.dma.Window."""
        assert self._space is not None
        iova = self._addresses.take(memory.size, end=LOW_END if below_4g else 1 << 64)
        try:
            self._space.map(memory, iova)
        except OSError as error:
            self._addresses.give(iova)
            raise self._unmapped(error, memory.size) from None
        self._mapped += memory.size
        return iova

    def unmap(self, iova: int, size: int) -> None:
        """Take it away again; see mm.dma.Window."""
        assert self._space is not None
        self._addresses.give(iova)
        self._mapped -= size
        self._space.unmap(iova, size)

    def close(self) -> None:
        """Close every device, then the address space. May be called twice."""
        for device in list(self._devices.values()):
            device.close()
        self.pool.clear()
        if self._space is not None:
            self._space.close()
            self._space = None

    def _let_go(self, bdf: str) -> None:
        """What no device uses any more has no use."""
        assert self._space is not None
        self._devices.pop(bdf, None)
        if not self._devices:
            self.pool.clear()
        self._space.let_go(bdf)

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
