"""The adapter as a PCI function behind a vfio-user server: configuration space, BAR 5, INTx or MSI, DMA."""

import struct
import threading
from contextlib import contextmanager

from tests.models.ahci.adapter import Model
from tests.models.device import Misuse
from tests.models.vfio_user_server import CONFIG, INTX, MSI, Port, Region

VENDOR, DEVICE = 0x1234, 0xA4C1
CLASS_AHCI = 0x010601
ABAR, ABAR_OCTETS = 5, 0x2000
COMMAND, MEMORY, BUS_MASTER, NO_INTX = 0x04, 1 << 1, 1 << 2, 1 << 10
_STATUS = 1 << 4                # a list of capabilities
_PM, _MSI, _SATA = 0x40, 0x50, 0x70
_WRITABLE = {COMMAND: 0x0406, 0x0C: 0xFF, 0x3C: 0xFF, 0x44: 0x8103, 0x52: 0x0001, 0x54: 0xFFFC, 0x56: 0xFFFF, 0x58: 0xFFFF,
             0x5A: 0xFFFF, 0x5C: 0xFFFF}
"""By offset of a 16-bit word: the bits that software may change, BARs aside."""


class Card:
    """See tests.models.vfio_user_server.Model. Who changes its drives from another thread holds `still` meanwhile."""

    def __init__(self, model: Model, *, msi: bool = True):
        self.model = model
        self.regions = {ABAR: Region(ABAR_OCTETS), CONFIG: Region(256)}
        self.irqs = {INTX: 1, MSI: 1} if msi else {INTX: 1}
        self.misuses: list[str] = []
        """What the driver did wrong."""
        self.resets = -1
        self.port: Port | None = None
        self.level = False
        self._lock = threading.RLock()
        self.interrupt = self
        model.bus = _Memory(self)
        model.attach(self)
        self.reset()

    @contextmanager
    def still(self):
        """The adapter does nothing of its own meanwhile."""
        with self._lock:
            yield self.model

    def attach(self, port: Port) -> None:
        """A client."""
        self.port = port

    def reset(self) -> None:
        """Everything is as after power on; the drives keep what they have."""
        with self._lock:
            self.resets += 1
            self.config = bytearray(256)
            struct.pack_into("<HHHHII", self.config, 0, VENDOR, DEVICE, 0, _STATUS, CLASS_AHCI << 8 | 1, 0)
            struct.pack_into("<HH", self.config, 0x2C, VENDOR, DEVICE)
            self.config[0x34], self.config[0x3D] = _PM, 1
            struct.pack_into("<BBHH", self.config, _PM, 0x01, _MSI if MSI in self.irqs else _SATA, 0x0003, 0x0008)
            if MSI in self.irqs:
                struct.pack_into("<BBH", self.config, _MSI, 0x05, _SATA, 0x0080)
            struct.pack_into("<BBHI", self.config, _SATA, 0x12, 0, 0x0010, 0x0000)
            self.level = False
            self.model.power_on()

    def read(self, region: int, offset: int, octets: int) -> bytes:
        """One access."""
        with self._lock:
            if region == CONFIG:
                return bytes(self.config[offset:offset + octets])
            if not self.config[COMMAND] & MEMORY:
                return b"\xff" * octets
            if octets != 4 or offset & 3:
                self.misuses.append(f"read of {octets} octets at {offset:#x} (AHCI 3)")
                return b"\xff" * octets
            return struct.pack("<I", self._guarded(self.model.read32, offset))

    def write(self, region: int, offset: int, octets: bytes) -> None:
        """One access."""
        with self._lock:
            if region == CONFIG:
                self._configure(offset, octets)
            elif not self.config[COMMAND] & MEMORY:
                pass
            elif len(octets) != 4 or offset & 3:
                self.misuses.append(f"write of {len(octets)} octets at {offset:#x} (AHCI 3)")
            else:
                self._guarded(self.model.write32, offset, *struct.unpack("<I", octets))

    def line(self, level: bool) -> None:
        """The adapter's interrupt: a message on the way up, or a level."""
        rising, self.level = level and not self.level, level
        if self.port is None:
            return
        if self.port.enabled(MSI):
            if rising:
                self.port.message(MSI, 0)
        elif not self.config[COMMAND + 1] & NO_INTX >> 8:
            self.port.line(level)

    def _guarded(self, access, *arguments) -> int:
        try:
            return access(*arguments) or 0
        except Misuse as why:
            self.misuses.append(str(why))
            return 0xFFFF_FFFF

    def _configure(self, offset: int, octets: bytes) -> None:
        for at, octet in enumerate(octets, offset):
            word = at & ~1
            mask = _WRITABLE.get(word, 0) >> 8 * (at - word) & 0xFF
            if 0x24 <= at < 0x28:
                mask = (~(ABAR_OCTETS - 1) & 0xFFFF_FFFF) >> 8 * (at - 0x24) & 0xFF
            self.config[at] = self.config[at] & ~mask | octet & mask


class _Memory:
    """The host's memory, as the adapter reaches it. Raises OSError for what the host has not shown."""

    def __init__(self, card: Card):
        self._card = card

    def read(self, address: int, octets: int) -> bytes:
        return self._port().dma_read(address, octets)

    def write(self, address: int, data: bytes) -> None:
        self._port().dma_write(address, data)

    def _port(self) -> Port:
        if not self._card.config[COMMAND] & BUS_MASTER or self._card.port is None:
            raise Misuse("DMA while the device is no bus master")
        return self._card.port
