"""What a driver sees of a PCI device, whoever reaches it: VFIO, UIO or a vfio-user socket."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from mm.dma import Owned


class Bar(Protocol):
    """A mapped or file-backed memory or I/O region. Offsets in octets; every access has exactly the width it says."""

    size: int
    address: int
    """Where it is mapped in this process, for compiled burst paths; 0 when it can only be read and written by calls."""

    def read32(self, offset: int) -> int: ...
    def write32(self, offset: int, value: int) -> None: ...
    def read8(self, offset: int) -> int: ...
    def write8(self, offset: int, value: int) -> None: ...
    def read16(self, offset: int) -> int: ...
    def write16(self, offset: int, value: int) -> None: ...


class ConfigSpace(Protocol):
    """256 or 4096 octets of configuration space."""

    size: int
    how: str
    """By which way it is reached: "ecam", "vfio", "sysfs", "vfio-user"."""

    def read(self, offset: int, octets: int) -> int: ...
    def write(self, offset: int, octets: int, value: int) -> None: ...


class DmaMemory(Protocol):
    """Memory the device may reach, owned by whoever allocated it until `free`."""

    address: int
    """In this process."""
    iova: int
    """As the device sees it."""
    size: int
    owner: str

    def view(self) -> memoryview: ...
    def free(self) -> None: ...


class Interrupt(Protocol):
    """One interrupt vector as a file descriptor that is readable once it has come."""

    fd: int
    kind: str
    """"intx", "msi" or "msix"."""

    def drain(self) -> int:
        """How many have come since the last time; 0 when none has. Never waits."""

    def mask(self) -> None:
        """Hold INTx back. MSI and MSI-X are held back in the device's own registers, so here it does nothing."""

    def unmask(self) -> None:
        """Let it come again: an INTx is masked by the kernel each time it comes."""


@runtime_checkable
class Device(Protocol):
    """One PCI function, open and ours."""

    name: str
    """Its BDF ("0000:03:00.0"), or the socket's path."""
    backend: str
    path: str
    """By which file it is reached: "/dev/vfio/7" (its group), "/dev/vfio/devices/vfio0", "/dev/uio0", a socket."""
    config: ConfigSpace

    def bar(self, index: int) -> Bar:
        """Base address register 0 to 5. Raises DeviceError when there is none."""

    def dma_alloc(self, octets: int, owner: str, *, align: int = 4096, below_4g: bool = False) -> DmaMemory:
        """Zeroed, pinned memory, contiguous in IOVA. Raises DeviceError (memlock, hugepages, address space)."""

    def dma_owned(self) -> list[Owned]:
        """Memory it reaches, and what for."""

    def interrupts(self, wanted: int = 1, kinds: tuple[str, ...] = ("msix", "msi", "intx")) -> list[Interrupt]:
        """Enable the first kind the device has, with at most `wanted` vectors. Raises DeviceError."""

    def enable_bus_master(self, on: bool) -> None:
        """Let the device start DMA, or stop it."""

    def reset(self) -> str:
        """Reset by the strongest way that works; says which: "flr", "device", "none" (use the device's own)."""

    def on_release_request(self, callback: Callable[[], None]) -> None:
        """Called when the kernel wants the device back: let go within 100 ms, touching no sysfs (VFIO's REQ)."""

    def close(self) -> None:
        """Stop DMA, unmap, close. May be called twice."""
