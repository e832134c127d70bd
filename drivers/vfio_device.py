"""A PCI function through VFIO, whoever answers VFIO's questions: the kernel (drivers.vfio) or a server (drivers.vfio_user)."""

import asyncio
import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from drivers import vfio_abi as abi
from drivers.bar import CallBar, FileBar, MappedBar, SparseBar
from drivers.dma import DeviceMemory
from drivers.errors import DeviceError
from mm.dma import PAGE, DmaBlock, DmaPool, Owned

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
_FAILED = (OSError, DeviceError)
"""What a device that is gone answers with."""


class Handle(Protocol):
    """VFIO's questions to one open device. Every method raises OSError when it is refused, DeviceGone at the end."""

    how: str
    """As in drivers.device.ConfigSpace."""

    def info(self) -> abi.DeviceInfo:
        """Its flags and counts."""

    def region(self, index: int) -> abi.RegionInfo:
        """One region; its size is 0 when there is none."""

    def calls(self, index: int, region: abi.RegionInfo) -> CallBar:
        """The region, reached by calls."""

    def mapped(self, index: int, region: abi.RegionInfo) -> MappedBar | CallBar:
        """The region, mapped as far as it may be. Raises OSError when nothing of it can be."""

    def irq(self, index: int) -> abi.IrqInfo:
        """One interrupt kind."""

    def irq_eventfds(self, index: int, fds: list[int]) -> int:
        """Enable a kind with one eventfd per vector; 0, or how many vectors there could be when these are too many."""

    def irq_disable(self, index: int) -> None:
        """Switch a kind off."""

    def irq_mask(self, index: int, *, masked: bool) -> None:
        """Mask or unmask vector 0 of a kind that is maskable."""

    def reset(self) -> None:
        """Reset the function."""

    def close(self) -> None:
        """Let the device go. Called once."""


class KernelHandle:
    """A device's file in the kernel's vfio-pci."""

    how = "vfio"

    def __init__(self, fd: int) -> None:
        """`fd` becomes the handle's."""
        self.fd = fd

    def info(self) -> abi.DeviceInfo:
        """Its flags and counts."""
        return abi.device_info(self.fd)

    def region(self, index: int) -> abi.RegionInfo:
        """One region; its size is 0 when there is none."""
        return abi.region_info(self.fd, index)

    def calls(self, index: int, region: abi.RegionInfo) -> FileBar:
        """The region, reached by pread and pwrite."""
        return FileBar(self.fd, region.size, region.offset)

    def mapped(self, index: int, region: abi.RegionInfo) -> MappedBar | SparseBar:
        """The region, mapped as far as the kernel allows."""
        if region.areas is not None and region.areas != [(0, region.size)]:
            return SparseBar(self.calls(index, region), self.fd, region.offset, region.areas)
        return MappedBar(self.fd, region.size, region.offset)

    def irq(self, index: int) -> abi.IrqInfo:
        """One interrupt kind."""
        return abi.irq_info(self.fd, index)

    def irq_eventfds(self, index: int, fds: list[int]) -> int:
        """Enable a kind with one eventfd per vector."""
        return abi.irq_eventfds(self.fd, index, fds)

    def irq_disable(self, index: int) -> None:
        """Switch a kind off."""
        abi.irq_disable(self.fd, index)

    def irq_mask(self, index: int, *, masked: bool) -> None:
        """Mask or unmask vector 0."""
        abi.irq_mask(self.fd, index, masked=masked)

    def reset(self) -> None:
        """Reset the function by what the kernel knows."""
        abi.device_reset(self.fd)

    def close(self) -> None:
        """Let the device go."""
        os.close(self.fd)


class VfioInterrupt:
    """One vector; see drivers.device.Interrupt."""

    def __init__(self, handle: Handle, kind: str, *, maskable: bool) -> None:
        self._handle, self.kind = handle, kind
        self._maskable = maskable and kind == "intx"
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def drain(self) -> int:
        """How many have come since the last time."""
        return _drain(self.fd)

    def mask(self) -> None:
        """Hold INTx back; MSI and MSI-X are the device's own to mask."""
        if self._maskable:
            self._handle.irq_mask(abi.Irq.INTX, masked=True)

    def unmask(self) -> None:
        """Let INTx come again, at once if its line is up."""
        if self._maskable:
            self._handle.irq_mask(abi.Irq.INTX, masked=False)


class VfioConfig:
    """Configuration space as VFIO shows it; the kernel keeps some registers to itself."""

    def __init__(self, region: CallBar, how: str) -> None:
        self._region, self.how = region, how
        self.size = region.size

    def read(self, offset: int, octets: int) -> int:
        """1, 2 or 4 octets."""
        return self._region.read(offset, octets)

    def write(self, offset: int, octets: int, value: int) -> None:
        """1, 2 or 4 octets."""
        self._region.write(offset, octets, value)


class VfioDevice:
    """See drivers.device.Device. `drivers.vfio.Container.open` and `drivers.vfio_user.open_vfio_user` make it."""

    def __init__(self, name: str, path: str, backend: str, handle: Handle, pool: DmaPool, closed: Callable[[], None]) -> None:
        """`handle` becomes the device's; `closed` is called once it has been let go. Raises OSError, DeviceError."""
        self.name, self.path, self.backend = name, path, backend
        self.leaked: list[Owned] = []
        """What drivers had not freed when the device was closed."""
        self._handle, self._closed = handle, closed
        self._memory = DeviceMemory(name, pool)
        self._info = handle.info()
        self.config = VfioConfig(handle.calls(abi.CONFIG_REGION, handle.region(abi.CONFIG_REGION)), handle.how)
        self._bars: dict[int, MappedBar | CallBar] = {}
        self._vectors: list[VfioInterrupt] = []
        self._signals: dict[abi.Irq, tuple[int, asyncio.AbstractEventLoop]] = {}
        self._open = True

    def bar(self, index: int) -> MappedBar | CallBar:
        """Base address register 0 to 5, mapped as far as it may be. Raises DeviceError when there is none."""
        if index not in self._bars:
            self._bars[index] = self._open_bar(index)
        return self._bars[index]

    def dma_alloc(self, octets: int, owner: str, *, align: int = PAGE, below_4g: bool = False) -> DmaBlock:
        """Zeroed, pinned memory for every device of the address space. Raises DeviceError."""
        return self._memory.allocate(octets, owner, align=align, below_4g=below_4g)

    def dma_owned(self) -> list[Owned]:
        """Memory it reaches, and what for."""
        return self._memory.owned()

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
        return self._irq(_KINDS[kind]).count

    def enable_bus_master(self, on: bool) -> None:
        """Let the device start DMA, or stop it. It is stopped when a device is opened."""
        command = self.config.read(COMMAND, 2)
        self.config.write(COMMAND, 2, command | COMMAND_BUS_MASTER if on else command & ~COMMAND_BUS_MASTER)

    def reset(self) -> str:
        """By VFIO's choice ("device"), else by function level reset ("flr"), else "none": use the device's own."""
        if self._info.flags & abi.DeviceFlag.RESET and self._vfio_reset():
            return "device"
        capability = self._pcie_capability()
        if capability and self.config.read(capability + _DEVCAP, 4) & _DEVCAP_FLR:
            self.config.write(capability + _DEVCTL, 2, self.config.read(capability + _DEVCTL, 2) | _DEVCTL_FLR)
            time.sleep(FLR_S)
            return "flr"
        return "none"

    def on_release_request(self, callback: Callable[[], None]) -> None:
        """Call back, from the running loop, when the device's owner wants it back: close within 100 ms.

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
        if not self._open:
            return
        self._open = False
        with suppress(*_FAILED):     # a device that is gone has stopped
            self.enable_bus_master(False)
        self._disable_interrupts()
        for kind, (fd, loop) in self._signals.items():
            loop.remove_reader(fd)
            with suppress(*_FAILED):
                self._handle.irq_disable(kind)
            os.close(fd)
        self._signals.clear()
        for bar in self._bars.values():
            bar.close()
        self.leaked = self._memory.release()
        self._handle.close()
        self._closed()

    def _open_bar(self, index: int) -> MappedBar | CallBar:
        region = self._handle.region(index) if 0 <= index < 6 else None
        if region is None or not region.size:
            raise DeviceError(self.name, f"it has no BAR {index}")
        if region.flags & abi.RegionFlag.MMAP:
            with suppress(OSError):     # the device's owner may still forbid it; calls always work
                return self._handle.mapped(index, region)
        return self._handle.calls(index, region)

    def _enable_interrupts(self, kind: str, count: int) -> list[VfioInterrupt]:
        maskable = bool(self._irq(_KINDS[kind]).flags & abi.IrqFlag.MASKABLE)
        try:
            while count:
                self._vectors += [VfioInterrupt(self._handle, kind, maskable=maskable)
                                  for _ in range(count - len(self._vectors))]
                possible = self._handle.irq_eventfds(_KINDS[kind], [vector.fd for vector in self._vectors])
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
        except BaseException:
            self._drop_vectors()
            raise
        raise DeviceError(self.name, f"the machine has no {kind} vectors left: try another kind, or poll")

    def _disable_interrupts(self) -> None:
        if self._vectors:
            with suppress(*_FAILED):
                self._handle.irq_disable(_KINDS[self._vectors[0].kind])
            self._drop_vectors()

    def _drop_vectors(self) -> None:
        for vector in self._vectors:
            os.close(vector.fd)
        self._vectors.clear()

    def _on_signal(self, kind: abi.Irq, callback: Callable[[], None]) -> bool:
        loop = asyncio.get_running_loop()
        if not self._irq(kind).count:
            return False
        if kind in self._signals:
            fd, _ = self._signals[kind]
        else:
            fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            try:
                self._handle.irq_eventfds(kind, [fd])
            except OSError as error:
                os.close(fd)
                raise DeviceError(self.name, f"VFIO does not tell of {kind.name}: {error.strerror}") from None
            except BaseException:
                os.close(fd)
                raise
        self._signals[kind] = fd, loop
        loop.add_reader(fd, lambda: _drain(fd) and callback())
        return True

    def _irq(self, kind: abi.Irq) -> abi.IrqInfo:
        if kind < self._info.irqs:
            with suppress(OSError):     # ERR on what is not PCIe
                return self._handle.irq(kind)
        return abi.IrqInfo(abi.IrqFlag(0), 0)

    def _vfio_reset(self) -> bool:
        """Whether VFIO reset it; while the kernel is busy with the device, try again for a while."""
        limit = time.monotonic() + RESET_S
        while True:
            try:
                self._handle.reset()
                return True
            except OSError as error:
                if error.errno != errno.EAGAIN or time.monotonic() > limit:
                    return False
                time.sleep(0.01)

    def _report_errors(self) -> None:
        """Let the device report uncorrectable errors; kernels before 6.6 leave that to drivers."""
        if capability := self._pcie_capability():
            control = self.config.read(capability + _DEVCTL, 2)
            self.config.write(capability + _DEVCTL, 2, control | _DEVCTL_REPORT)

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
