"""QEMU's `edu` card as a model behind a vfio-user server, with MSI-X and a mapped BAR added to it.

BAR 0 is the real one's; BAR 2 has two pages of plain memory, of which the client may map the second.
"""

import errno
import os
import struct

from tests.models.vfio_user_server import CONFIG, INTX, MSI, MSIX, REQ, Port, Region, sealed_file
from tests.support.edu import (
    ACKNOWLEDGE,
    BAR_OCTETS,
    BUFFER,
    BUFFER_OCTETS,
    DMA_COMMAND,
    DMA_COUNT,
    DMA_SOURCE,
    DMA_TARGET,
    IDENTITY,
    IDS,
    LIVENESS,
    RAISE,
    START,
    STATUS,
    TO_MEMORY,
)

PAGE = 4096
COMMAND, COMMAND_WRITABLE, BUS_MASTER = 4, 0x0406, 4


class Edu:
    """See tests.models.vfio_user_server.Model."""

    def __init__(self, vectors: int = 4):
        self.memory = sealed_file(2 * PAGE)
        self.regions = {0: Region(BAR_OCTETS), 2: Region(2 * PAGE, self.memory, ((PAGE, PAGE),)), CONFIG: Region(256)}
        self.irqs = {INTX: 1, MSI: 1, MSIX: vectors, REQ: 1}
        self.resets = -1
        self.accesses: list[tuple[str, int, int, int]] = []
        """What came by message: (verb, region, offset, octets)."""
        self.port: Port | None = None
        self.reset()

    def attach(self, port: Port) -> None:
        """A client."""
        self.port = port

    def reset(self) -> None:
        """Everything is as after power on."""
        self.resets += 1
        self.config = bytearray(256)
        struct.pack_into("<IHH", self.config, 0, IDS, 0, 0x10)
        self.registers = dict.fromkeys((LIVENESS, STATUS, DMA_SOURCE, DMA_TARGET, DMA_COUNT, DMA_COMMAND), 0)
        self.pending = 0
        self.buffer = bytearray(BUFFER_OCTETS)

    def read(self, region: int, offset: int, octets: int) -> bytes:
        """One access."""
        self.accesses.append(("read", region, offset, octets))
        if region == CONFIG:
            return bytes(self.config[offset:offset + octets])
        if region == 2:
            return os.pread(self.memory, octets, offset)
        if octets != 4:
            raise OSError(errno.EINVAL, "32 bits")
        special = {IDENTITY: 0x010000ED, LIVENESS: ~self.registers[LIVENESS] & 0xFFFFFFFF, 0x24: self.pending}
        return struct.pack("<I", special.get(offset, self.registers.get(offset, 0xFFFFFFFF)))

    def write(self, region: int, offset: int, octets: bytes) -> None:
        """One access."""
        self.accesses.append(("write", region, offset, len(octets)))
        if region == CONFIG:
            if offset == COMMAND:
                struct.pack_into("<H", self.config, COMMAND, int.from_bytes(octets[:2], "little") & COMMAND_WRITABLE)
            return
        if region == 2:
            os.pwrite(self.memory, octets, offset)
            return
        if len(octets) != 4:
            raise OSError(errno.EINVAL, "32 bits")
        value, = struct.unpack("<I", octets)
        if offset == RAISE:
            self.raise_interrupt(value)
        elif offset == ACKNOWLEDGE:
            self.pending &= ~value
            self.port.line(self.pending != 0)
        elif offset == DMA_COMMAND:
            self.transfer(value)
        elif offset in self.registers:
            self.registers[offset] = value

    def raise_interrupt(self, cause: int) -> None:
        """By whichever kind the client enabled."""
        self.pending |= cause
        for kind in (MSIX, MSI):
            if self.port.enabled(kind):
                self.port.message(kind, 0)
                return
        self.port.line(True)

    def transfer(self, command: int) -> None:
        """All at once."""
        source, target, count = (self.registers[name] for name in (DMA_SOURCE, DMA_TARGET, DMA_COUNT))
        if not command & START or not self.config[COMMAND] & BUS_MASTER:
            return
        if command & TO_MEMORY:
            self.port.dma_write(target, bytes(self.buffer[source - BUFFER:source - BUFFER + count]))
        else:
            self.buffer[target - BUFFER:target - BUFFER + count] = self.port.dma_read(source, count)

    def close(self) -> None:
        """Give its memory back."""
        os.close(self.memory)
