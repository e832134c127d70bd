"""Configuration space of a PCI function, by whichever way is open: VFIO, ECAM or sysfs, behind one interface.

The header's registers are declared here; `drivers.pci.capabilities` reads the lists behind it. Section numbers are those
of the PCI Express Base Specification 6.0.
"""

import errno
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from drivers.acpi import Mcfg
from drivers.device import ConfigSpace
from drivers.errors import DeviceError, DeviceGone, DeviceRefused
from drivers.pci.sysfs import DEVICES, Bdf
from drivers.registers import RO, W1C, Bits, Reg, RegisterFile, RegisterMap

LEGACY: Final = 256
EXTENDED: Final = 4096
_GONE: Final = (errno.ENODEV, errno.ENXIO, errno.EIO)


# The header (7.5.1)

class VENDOR_ID(Reg, at=0x00, width=16, access=RO):
    """Who made it; all ones where there is no function."""


class DEVICE_ID(Reg, at=0x02, width=16, access=RO):
    """What it is, as its vendor counts."""


class COMMAND(Reg, at=0x04, width=16, spec="7.5.1.1.3"):
    """What the function may do."""

    IO = Bits(0, doc="answer in I/O space")
    MEMORY = Bits(1, doc="answer in memory space")
    MASTER = Bits(2, doc="start DMA and send MSI")
    SPECIAL = Bits(3)
    MWI = Bits(4, doc="memory write and invalidate")
    VGA_SNOOP = Bits(5)
    PARITY = Bits(6, doc="report parity errors")
    SERR = Bits(8, doc="report errors upstream")
    FAST_B2B = Bits(9)
    INTX_OFF = Bits(10, doc="INTx disabled")


class STATUS(Reg, at=0x06, width=16, access=W1C, spec="7.5.1.1.4"):
    """What it can and what happened to it."""

    IMMEDIATE = Bits(0, access=RO)
    INTX = Bits(3, doc="INTx pending", access=RO)
    CAPABILITIES = Bits(4, doc="has a capability list", access=RO)
    MHZ66 = Bits(5, access=RO)
    FAST_B2B = Bits(7, access=RO)
    PARITY_MASTER = Bits(8, doc="poisoned data as requester")
    DEVSEL = Bits(10, 9, access=RO)
    TARGET_ABORT_SENT = Bits(11)
    TARGET_ABORT = Bits(12)
    MASTER_ABORT = Bits(13)
    SERR_SENT = Bits(14)
    PARITY = Bits(15)


class REVISION(Reg, at=0x08, width=8, access=RO):
    """Revision of the chip."""


class PROGRAMMING(Reg, at=0x09, width=8, access=RO):
    """Programming interface within the class."""


class CLASS(Reg, at=0x0A, width=16, access=RO):
    """Base class and subclass."""


class CACHE_LINE(Reg, at=0x0C, width=8):
    """In 4-octet words."""


class LATENCY(Reg, at=0x0D, width=8):
    """Unused on PCIe."""


class HEADER_TYPE(Reg, at=0x0E, width=8, access=RO, spec="7.5.1.1.9"):
    """Layout of what follows."""

    LAYOUT = Bits(6, 0, doc="0 endpoint, 1 bridge, 2 CardBus")
    MULTIFUNCTION = Bits(7)


class BAR(Reg, at=0x10, count=6, all_ones=True, spec="7.5.1.2.1"):
    """Base addresses; only the first two in a bridge."""


class SUBSYSTEM_VENDOR(Reg, at=0x2C, width=16, access=RO):
    """Who made the board."""


class SUBSYSTEM(Reg, at=0x2E, width=16, access=RO):
    """What the board is."""


class ROM(Reg, at=0x30):
    """Expansion ROM base address."""

    ENABLE = Bits(0)
    ADDRESS = Bits(31, 11)


class CAPABILITY_POINTER(Reg, at=0x34, width=8, access=RO):
    """Where the list of capabilities begins."""


class INTERRUPT_LINE(Reg, at=0x3C, width=8):
    """A note of the firmware's."""


class INTERRUPT_PIN(Reg, at=0x3D, width=8, access=RO):
    """1 to 4: INTA to INTD; 0: none."""


HEADER: Final = RegisterMap.of("configuration header", globals())


@dataclass(frozen=True, slots=True)
class Header:
    """The common part of the header, read once."""

    vendor: int
    device: int
    command: COMMAND
    status: STATUS
    revision: int
    class_code: int
    layout: int
    multifunction: bool
    interrupt_pin: int


def read_header(config: ConfigSpace, device: str = "") -> Header:
    """The header as it is now. Raises DeviceGone when the function is not there."""
    vendor = config.read(VENDOR_ID.at, 2)
    if vendor == 0xFFFF:
        raise DeviceGone(device or "configuration space")
    kind = HEADER_TYPE(config.read(HEADER_TYPE.at, 1))
    code = config.read(CLASS.at, 2) << 8 | config.read(PROGRAMMING.at, 1)
    return Header(vendor, config.read(DEVICE_ID.at, 2), COMMAND(config.read(COMMAND.at, 2)),
                  STATUS(config.read(STATUS.at, 2)), config.read(REVISION.at, 1), code, kind.LAYOUT, kind.MULTIFUNCTION,
                  config.read(INTERRUPT_PIN.at, 1))


class ConfigBar:
    """Configuration space as a Bar, for a RegisterFile: `header_registers(config).COMMAND.modify(MASTER=1)`."""

    address = 0

    def __init__(self, config: ConfigSpace):
        self._config = config
        self.size = config.size

    def read8(self, offset: int) -> int:
        return self._config.read(offset, 1)

    def read16(self, offset: int) -> int:
        return self._config.read(offset, 2)

    def read32(self, offset: int) -> int:
        return self._config.read(offset, 4)

    def write8(self, offset: int, value: int) -> None:
        self._config.write(offset, 1, value)

    def write16(self, offset: int, value: int) -> None:
        self._config.write(offset, 2, value)

    def write32(self, offset: int, value: int) -> None:
        self._config.write(offset, 4, value)


def header_registers(config: ConfigSpace, device: str = "") -> RegisterFile:
    """The header's registers with their verbs."""
    return RegisterFile(ConfigBar(config), HEADER, device)


# The ways

def _check(offset: int, octets: int, size: int) -> None:
    if octets not in (1, 2, 4):
        raise ValueError(f"configuration space is read and written in 1, 2 or 4 octets, not {octets}")
    if not 0 <= offset <= size - octets or offset % octets:
        raise ValueError(f"{octets} octets at {offset:#x} are not aligned within the {size} of configuration space")


def _check_value(octets: int, value: int) -> None:
    if not 0 <= value < 1 << 8 * octets:
        raise ValueError(f"{value:#x} does not fit {octets} octets")


class FileConfig:
    """Configuration space behind a file descriptor, from `base` on: a VFIO region, or the `config` file in sysfs.

    The descriptor stays the caller's unless `owned`. Raises DeviceGone when the device has left, DeviceRefused for what
    the kernel does not show us.
    """

    def __init__(self, fd: int, size: int, *, base: int = 0, how: str = "vfio", device: str = "", owned: bool = False):
        self.size, self.how, self.device = size, how, device or how
        self._fd, self._base, self._owned = fd, base, owned

    def read(self, offset: int, octets: int) -> int:
        """A little-endian number of 1, 2 or 4 octets, aligned. Raises ValueError otherwise."""
        _check(offset, octets, self.size)
        try:
            data = os.pread(self._fd, octets, self._base + offset)
        except OSError as error:
            raise self._explained(error) from None
        if len(data) < octets:
            raise DeviceRefused(self.device, f"the kernel does not show configuration space at {offset:#x}: run as root")
        return int.from_bytes(data, "little")

    def write(self, offset: int, octets: int, value: int) -> None:
        """Write a little-endian number of 1, 2 or 4 octets, aligned. Raises ValueError for what does not fit."""
        _check(offset, octets, self.size)
        _check_value(octets, value)
        try:
            written = os.pwrite(self._fd, value.to_bytes(octets, "little"), self._base + offset)
        except OSError as error:
            raise self._explained(error) from None
        if written < octets:
            raise DeviceRefused(self.device, f"the kernel refuses to write configuration space at {offset:#x}")

    def close(self) -> None:
        """May be called twice."""
        if self._owned and self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _explained(self, error: OSError) -> DeviceError:
        if error.errno in _GONE:
            return DeviceGone(self.device)
        advice = {errno.EPERM: "run as root; a locked-down kernel (Secure Boot) allows no writes",
                  errno.EBADF: "it was opened read-only, or closed"}.get(error.errno, "see the kernel's log")
        return DeviceRefused(self.device, f"configuration space by {self.how}: {error.strerror}: {advice}")


class EcamConfig:
    """4096 octets of memory-mapped configuration space: one load or store each. Raises OSError, ValueError when opened.

    `address` is the function's (`EcamWindow.address`); `path` gives physical memory.
    """

    how = "ecam"
    size = EXTENDED

    def __init__(self, address: int, *, path: str = "/dev/mem", writable: bool = False, device: str = ""):
        self.device = device
        self._writable = writable
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_SYNC | os.O_CLOEXEC)     # O_SYNC: uncached
        try:
            self._map = mmap.mmap(fd, EXTENDED, mmap.MAP_SHARED, protection, offset=address)
        finally:
            os.close(fd)
        # An index into a cast view is one access of exactly that width; slices and struct are not.
        self._views = {1: memoryview(self._map), 2: memoryview(self._map).cast("H"), 4: memoryview(self._map).cast("I")}

    def read(self, offset: int, octets: int) -> int:
        """A little-endian number of 1, 2 or 4 octets, aligned. Raises ValueError otherwise."""
        _check(offset, octets, EXTENDED)
        return self._views[octets][offset // octets]

    def write(self, offset: int, octets: int, value: int) -> None:
        """Write a little-endian number of 1, 2 or 4 octets, aligned. Raises DeviceRefused when it is mapped read-only."""
        _check(offset, octets, EXTENDED)
        _check_value(octets, value)
        if not self._writable:
            raise DeviceRefused(self.device or "ecam", "configuration space is mapped read-only")
        self._views[octets][offset // octets] = value

    def close(self) -> None:
        """Unmap. May be called twice."""
        for view in self._views.values():
            view.release()
        self._views = {}
        self._map.close()


def open_sysfs(bdf: Bdf, root: Path = Path("/"), *, writable: bool = False) -> FileConfig:
    """The kernel's `config` file. Raises DeviceError when there is no such device, DeviceRefused without permission."""
    path = root / DEVICES / str(bdf) / "config"
    try:
        fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    except FileNotFoundError:
        raise DeviceError(str(bdf), "there is no such PCI device: `rustosctl device list` shows those there are") from None
    except OSError as error:
        raise DeviceRefused(str(bdf), f"cannot open {path}: {error.strerror}; run as root") from None
    size = EXTENDED if os.fstat(fd).st_size >= EXTENDED else LEGACY
    return FileConfig(fd, size, how="sysfs", device=str(bdf), owned=True)


def open_ecam(bdf: Bdf, mcfg: Mcfg, *, path: str = "/dev/mem", writable: bool = False) -> EcamConfig:
    """The function's page of its ECAM window. Raises DeviceRefused, saying what to do, where that cannot be mapped."""
    window = mcfg.window(bdf.segment, bdf.bus)
    if window is None:
        raise DeviceRefused(str(bdf), f"the firmware's MCFG has no window for bus {bdf.bus:02x} of segment {bdf.segment:04x}")
    address = window.address(bdf.bus, bdf.device, bdf.function)
    try:
        return EcamConfig(address, path=path, writable=writable, device=str(bdf))
    except FileNotFoundError:
        raise DeviceRefused(str(bdf), f"{path} does not exist: this kernel has no CONFIG_DEVMEM") from None
    except PermissionError as error:
        raise DeviceRefused(str(bdf), f"cannot map {path} at {address:#x}: {error.strerror}; run as root, and boot the "
                            "kernel with iomem=relaxed") from None
    except (OSError, ValueError, OverflowError) as error:
        raise DeviceRefused(str(bdf), f"cannot map {path} at {address:#x}: {error}") from None


@dataclass(frozen=True, slots=True)
class Reached:
    """A configuration space and how it was reached: the way is `config.how`, `passed_over` says why not another."""

    config: FileConfig | EcamConfig
    passed_over: tuple[str, ...] = ()


def open_config(bdf: Bdf, mcfg: Mcfg | None = None, root: Path = Path("/"), *, memory: str = "/dev/mem") -> Reached:
    """Read-only, by ECAM when the window can be mapped and shows the same function as the kernel does, else by sysfs.

    For a device that is ours, VFIO's region is the way (`FileConfig`). Raises DeviceError when neither way is open.
    """
    kernels = open_sysfs(bdf, root)
    if mcfg is None:
        return Reached(kernels, ("ecam: the firmware has no MCFG table that we may read",))
    try:
        ecam = open_ecam(bdf, mcfg, path=memory)
    except DeviceRefused as error:
        return Reached(kernels, (f"ecam: {error}",))
    try:
        same = ecam.read(0, 4) == kernels.read(0, 4)
    except DeviceError:
        same = False
    if not same:
        ecam.close()
        return Reached(kernels, ("ecam: the firmware's MCFG points elsewhere, another function answers there",))
    kernels.close()
    return Reached(ecam)
