"""Commands of the driver's own, one at a time, by slot 0 and a table of their own: the slot's request comes to no harm."""

import cython
from cython.cimports.drivers.ahci.queue import (
    FIS_AT,
    FIS_DWORDS,
    INTERNAL_AT,
    LIST_AT,
    P_CI,
    PORT_OCTETS_SHARED,
    RECEIVED_D2H,
    RECEIVED_SDB,
    SCRATCH_AT,
    SCRATCH_OCTETS,
)
from cython.cimports.drivers.mmio import Mmio
from cython.cimports.libc.stdint import uint8_t, uint64_t, uintptr_t
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.mm.hw import dma_store64

if not cython.compiled:
    raise ImportError("drivers.ahci.internal must be compiled: python setup.py build_ext --inplace")

_PACKET_AT = cython.declare(cython.int, 64)
_PRD_AT = cython.declare(cython.int, 128)


@cython.final
@cython.cclass
class InternalCommand:
    """The place for one in a port's memory. Nothing else may be active on the port meanwhile."""

    def __init__(self, mmio: Mmio, port: cython.int, memory):
        """`memory`: the port's, as `CommandQueue` has it."""
        if memory.size < PORT_OCTETS_SHARED:
            raise ValueError(f"a port's memory has {PORT_OCTETS_SHARED} octets, not {memory.size}")
        self.mmio, self.port, self.memory, self.iova = mmio, port, memory, memory.iova
        self.base = cython.cast(cython.pointer[uint8_t], cython.cast(uintptr_t, memory.address))

    def start(self, fis: bytes, flags: cython.int, octets: cython.int, data: bytes = b"", packet: bytes = b"") -> None:
        """Issue a FIS of 20 octets that moves `octets`; `data` are those that are written. `flags`: the header's."""
        header: cython.pointer[uint8_t] = self.base + LIST_AT
        table: cython.pointer[uint8_t] = self.base + INTERNAL_AT
        source: cython.pointer[cython.const[cython.char]]
        if len(fis) != 20 or len(packet) not in (0, 12, 16) or len(data) > octets or octets > SCRATCH_OCTETS or octets & 1:
            raise ValueError(f"no command: a FIS of {len(fis)}, a packet of {len(packet)}, {len(data)} of {octets} octets")
        memset(table, 0, 256)
        source = fis
        memcpy(table, source, 20)
        source = packet
        memcpy(table + _PACKET_AT, source, len(packet))
        memset(self.base + SCRATCH_AT, 0, SCRATCH_OCTETS)
        source = data
        memcpy(self.base + SCRATCH_AT, source, len(data))
        dma_store64(table + _PRD_AT, self.iova + SCRATCH_AT)
        dma_store64(table + _PRD_AT + 8, cython.cast(uint64_t, octets - 1) << 32 if octets else 0)
        memcpy(self.saved, header, 16)
        dma_store64(header, flags | FIS_DWORDS | (1 << 16 if octets else 0))
        dma_store64(header + 8, self.iova + INTERNAL_AT)
        self.forget_received()
        self.mmio.store(self.port + P_CI, 1)

    def end(self, octets: cython.int) -> bytes:
        """Give slot 0 back; the first octets of what was read."""
        memcpy(self.base + LIST_AT, self.saved, 16)
        return cython.cast(cython.pointer[cython.char], self.base + SCRATCH_AT)[:octets]

    def received(self) -> bytes:
        """The register FIS that came last: 20 octets, zeros when none has."""
        return cython.cast(cython.pointer[cython.char], self.base + FIS_AT + RECEIVED_D2H)[:20]

    def forget_received(self) -> None:
        """Clear the FISes about commands, so that an old one is not taken for new."""
        memset(self.base + FIS_AT + RECEIVED_D2H, 0, 20)
        dma_store64(self.base + FIS_AT + RECEIVED_SDB, 0)
