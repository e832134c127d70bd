"""PCI devices through uio_pci_generic: for machines without an IOMMU, with physical addresses and INTx only.

Nothing confines the device here: a wrong descriptor writes anywhere in memory. Use VFIO where there is an IOMMU.
"""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from drivers.bar import FileBar, MappedBar
from drivers.binding import device_path, driver_of, group_of, wait_until
from drivers.dma import DeviceMemory
from drivers.errors import DeviceError, DeviceRefused
from mm.dma import PAGE, DmaBlock, DmaPool, Owned
from mm.physical import PhysicalWindow

DRIVER: Final = "uio_pci_generic"
COMMAND: Final = 0x04
COMMAND_MEMORY: Final = 1 << 1
COMMAND_BUS_MASTER: Final = 1 << 2
COMMAND_INTX_DISABLE: Final = 1 << 10
_IORESOURCE_IO: Final = 0x100
_APPEAR_S: Final = 2.0


class UioInterrupt:
    """The INTx line; see drivers.device.Interrupt. The kernel masks it in the COMMAND register each time it comes."""

    kind = "intx"

    def __init__(self, fd: int, config: "SysfsConfig") -> None:
        self.fd, self._config = fd, config
        self._seen = -1

    def drain(self) -> int:
        """How many have come since the last time."""
        try:
            count = int.from_bytes(os.read(self.fd, 4), "little")
        except (BlockingIOError, OSError) as error:
            if error.errno in (errno.EAGAIN, errno.EIO):        # none, or the device has gone
                return 0
            raise
        new = 1 if self._seen < 0 else (count - self._seen) & 0xFFFFFFFF
        self._seen = count
        return new

    def mask(self) -> None:
        """Hold it back."""
        self._config.write(COMMAND, 2, self._config.read(COMMAND, 2) | COMMAND_INTX_DISABLE)

    def unmask(self) -> None:
        """Let it come again, at once if its line is up."""
        self._config.write(COMMAND, 2, self._config.read(COMMAND, 2) & ~COMMAND_INTX_DISABLE)


class SysfsConfig(FileBar):
    """Configuration space by the kernel's file."""

    how = "sysfs"

    def __init__(self, path: Path) -> None:
        fd = os.open(path / "config", os.O_RDWR | os.O_CLOEXEC)
        super().__init__(fd, os.fstat(fd).st_size)

    def close(self) -> None:
        """May be called twice."""
        if not self.closed:
            os.close(self._fd)
        super().close()


class UioDevice:
    """A PCI function through UIO, which is bound to uio_pci_generic already; see drivers.device.Device."""

    backend = "uio"

    def __init__(self, bdf: str, pool: DmaPool | None = None) -> None:
        """`pool` is where DMA memory comes from, over a PhysicalWindow; devices may share one.

        Raises DeviceRefused: another driver, an IOMMU that translates, somebody has it open.
        """
        self.name = bdf
        self.leaked: list[Owned] = []
        """What drivers had not freed when the device was closed."""
        self._path = device_path(bdf)
        if (driver := driver_of(bdf)) != DRIVER:
            raise DeviceRefused(bdf, f"{driver or 'no driver'} drives it, not {DRIVER}: `rustosctl device take {bdf}`")
        _refuse_translation(bdf)
        self._memory = DeviceMemory(bdf, pool or DmaPool(PhysicalWindow()))
        self._bars: dict[int, MappedBar | FileBar] = {}
        self._files: list[int] = []
        self._interrupt: UioInterrupt | None = None
        self.config = SysfsConfig(self._path)
        try:
            self._fd, self.path = self._open()
        except BaseException:
            self.config.close()
            raise
        self._command(set_bits=COMMAND_MEMORY | COMMAND_INTX_DISABLE, clear_bits=COMMAND_BUS_MASTER)

    def bar(self, index: int) -> MappedBar | FileBar:
        """Base address register 0 to 5: memory is mapped, ports are reached by calls. Raises DeviceError."""
        if index not in self._bars:
            self._bars[index] = self._open_bar(index)
        return self._bars[index]

    def dma_alloc(self, octets: int, owner: str, *, align: int = PAGE, below_4g: bool = False) -> DmaBlock:
        """Zeroed, locked memory inside one huge page, so at most 2 MiB. Raises DeviceError."""
        return self._memory.allocate(octets, owner, align=align, below_4g=below_4g)

    def dma_owned(self) -> list[Owned]:
        """Memory it reaches, and what for."""
        return self._memory.owned()

    def interrupts(self, wanted: int = 1, kinds: tuple[str, ...] = ("msix", "msi", "intx")) -> list[UioInterrupt]:
        """The INTx line, unmasked. Raises DeviceError when `kinds` does not hold "intx"."""
        if "intx" not in kinds or wanted < 1:
            raise DeviceError(self.name, "through UIO there is INTx only: use VFIO for message-signalled interrupts")
        if self._interrupt is None:
            self._interrupt = UioInterrupt(self._fd, self.config)
        self._interrupt.drain()
        self._interrupt.unmask()
        return [self._interrupt]

    def enable_bus_master(self, on: bool) -> None:
        """Let the device start DMA, or stop it."""
        self._command(set_bits=COMMAND_BUS_MASTER if on else 0, clear_bits=0 if on else COMMAND_BUS_MASTER)

    def reset(self) -> str:
        """By the kernel's file ("device"), where it has a way for this device; else "none": use the device's own."""
        try:
            (self._path / "reset").write_text("1")
        except OSError:
            return "none"
        return "device"

    def on_release_request(self, callback: Callable[[], None]) -> None:
        """UIO never asks: who unbinds the driver waits for nobody."""

    def close(self) -> None:
        """Stop DMA and the interrupt, unmap, free what drivers left (see `leaked`), close. May be called twice."""
        if self._fd < 0:
            return
        with suppress(OSError):     # a device that is gone has stopped
            self._command(set_bits=COMMAND_INTX_DISABLE, clear_bits=COMMAND_BUS_MASTER)
        for bar in self._bars.values():
            bar.close()
        self.leaked = self._memory.release()
        for fd in (*self._files, self._fd):
            os.close(fd)
        self._files.clear()
        self._fd = -1
        self._interrupt = None
        self.config.close()

    def _open(self) -> tuple[int, str]:
        """The device's /dev/uioN, which comes a moment after the driver, open, and its path."""
        names: list[str] = []

        def appeared() -> bool:
            names[:] = [path.name for path in self._path.glob("uio/uio*") if Path("/dev", path.name).exists()]
            return bool(names)

        wait_until(self.name, appeared, "its file /dev/uio*", _APPEAR_S)
        try:
            return os.open(f"/dev/{names[0]}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC), f"/dev/{names[0]}"
        except OSError as error:
            raise DeviceRefused(self.name, f"cannot open /dev/{names[0]}: {error.strerror}; run as root") from None

    def _open_bar(self, index: int) -> MappedBar | FileBar:
        resources = (self._path / "resource").read_text().splitlines()
        start, last, flags = (int(word, 16) for word in resources[index].split()) if 0 <= index < 6 else (0, 0, 0)
        if not last:
            raise DeviceError(self.name, f"it has no BAR {index}")
        try:
            fd = os.open(self._path / f"resource{index}", os.O_RDWR | os.O_SYNC | os.O_CLOEXEC)
        except OSError as error:
            raise DeviceError(self.name, f"cannot open BAR {index}: {error.strerror}") from None
        self._files.append(fd)
        if flags & _IORESOURCE_IO:
            return FileBar(fd, last - start + 1)
        try:
            return MappedBar(fd, last - start + 1, into_page=start % PAGE)
        except OSError as error:
            raise DeviceError(self.name, f"cannot map BAR {index}: {error.strerror}; the kernel may be locked down "
                                         "(secure boot), which leaves VFIO") from None

    def _command(self, set_bits: int, clear_bits: int) -> None:
        self.config.write(COMMAND, 2, self.config.read(COMMAND, 2) & ~clear_bits | set_bits)


def _refuse_translation(bdf: str) -> None:
    """With an IOMMU in the way a physical address is not what the device must be told."""
    group = group_of(bdf)
    if group is None:
        return
    kind = Path("/sys/kernel/iommu_groups", group, "type").read_text().strip()
    if kind != "identity":
        raise DeviceRefused(bdf, f"an IOMMU translates its addresses (group {group} is {kind}), so UIO's DMA would fault: use "
                                 "backend \"vfio\", or boot with iommu=pt")
