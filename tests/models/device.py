"""A `drivers.device.Device` in front of a model, without any hardware: memory, interrupts and bus mastering as they are."""

import os

from drivers.errors import DeviceError
from mm.dma import DmaPool, HostMemory


class Misuse(AssertionError):
    """The driver did what the datasheet forbids."""


class Bus:
    """Memory as a device reaches it: by bus addresses, only what is mapped, only while it is bus master."""

    largest = 1 << 30
    need_huge = False

    def __init__(self):
        self.pool = DmaPool(self)
        self.master = False
        self.next_iova = 0x1_0000_0000 - (2 << 20)      # the first chunk ends at 4 GiB: both halves of addresses count
        self.chunks = {}
        self.blocks = []

    def map(self, memory: HostMemory, below_4g: bool) -> int:
        iova = self.next_iova
        self.next_iova += memory.size + (2 << 20)
        self.chunks[iova] = memory
        return iova

    def unmap(self, iova: int, size: int) -> None:
        assert self.chunks.pop(iova).size == size

    def _place(self, iova: int, octets: int):
        if not self.master:
            raise Misuse(f"DMA to {iova:#x} while the device is no bus master")
        if not any(b.iova <= iova and iova + octets <= b.iova + b.size for b in self.blocks if not b.freed):
            raise Misuse(f"DMA of {octets} octets to {iova:#x}, which is no memory of the driver's")
        start = max(start for start in self.chunks if start <= iova)
        return self.chunks[start].view(), iova - start

    def read(self, iova: int, octets: int) -> bytes:
        view, at = self._place(iova, octets)
        return bytes(view[at:at + octets])

    def write(self, iova: int, data: bytes) -> None:
        view, at = self._place(iova, len(data))
        view[at:at + len(data)] = data


class FakeInterrupt:
    """An eventfd, masked by the kernel at each INTx."""

    def __init__(self, kind: str):
        self.kind = kind
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.masked = False
        self.level = False      # the INTx line
        self.sent = 0

    def drain(self) -> int:
        try:
            return os.eventfd_read(self.fd)
        except BlockingIOError:
            return 0

    def mask(self) -> None:
        self.masked = self.kind == "intx"

    def unmask(self) -> None:
        self.masked = False
        self._deliver()

    def line(self, level: bool) -> None:
        """What the device does to it: a message on the way up (MSI), a level (INTx)."""
        rising, self.level = level and not self.level, level
        if self.kind == "intx":
            self._deliver()
        elif rising:
            self._send()

    def _deliver(self) -> None:
        if self.kind == "intx" and self.level and not self.masked:
            self.masked = True
            self._send()

    def _send(self) -> None:
        self.sent += 1
        os.eventfd_write(self.fd, 1)


class FakeConfig:
    """The first words of configuration space."""

    size, how = 256, "fake"

    def __init__(self, vendor: int, device: int):
        self.words = {0: vendor, 2: device}

    def read(self, offset: int, octets: int) -> int:
        return self.words.get(offset, 0)

    def write(self, offset: int, octets: int, value: int) -> None:
        self.words[offset] = value


class FakeDevice:
    """A function whose BAR 0 is the model."""

    backend = "fake"

    def __init__(self, model, name: str = "0000:03:00.0", kinds: tuple[str, ...] = ("intx",)):
        self.name, self.model, self.kinds = name, model, kinds
        self.config = FakeConfig(0x8086, model.chip.device)
        self.bus = model.bus = Bus()
        self.interrupt = None
        self.closed = 0
        model.attach(self)

    def bar(self, index: int):
        if index != 0:
            raise DeviceError(self.name, f"it has no BAR {index}")
        return self.model

    def dma_alloc(self, octets: int, owner: str, *, align: int = 4096, below_4g: bool = False):
        block = self.bus.pool.allocate(octets, owner, align=align, below_4g=below_4g)
        self.bus.blocks.append(block)
        return block

    def interrupts(self, wanted: int = 1, kinds: tuple[str, ...] = ("msix", "msi", "intx")):
        for kind in kinds:
            if kind in self.kinds:
                self.interrupt = FakeInterrupt(kind)
                return [self.interrupt]
        raise DeviceError(self.name, "no such interrupt")

    def enable_bus_master(self, on: bool) -> None:
        self.bus.master = on

    def reset(self) -> str:
        return "none"

    def on_release_request(self, callback) -> None:
        return None

    def close(self) -> None:
        self.closed += 1
        if self.interrupt is not None:
            os.close(self.interrupt.fd)
            self.interrupt = None
        assert all(block.freed for block in self.bus.blocks), "memory was left behind"
