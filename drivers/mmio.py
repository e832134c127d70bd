"""A device's registers for compiled code: one volatile access where the BAR is mapped, a call where it is not."""

import cython
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uintptr_t
from cython.cimports.mm.hw import mmio_read32, mmio_write32

if not cython.compiled:
    raise ImportError("drivers.mmio must be compiled: python setup.py build_ext --inplace")


@cython.final
@cython.cclass
class Mmio:
    """32-bit registers of a BAR. Offsets are the caller's to check, once: they are constants of the driver."""

    def __init__(self, bar):
        """`bar` is a `drivers.device.Bar`, which stays referenced, and so mapped unless its device is closed."""
        self.bar = bar
        self.size = bar.size
        self.base = cython.cast(cython.pointer[uint8_t], cython.cast(uintptr_t, bar.address))

    @cython.cfunc
    @cython.exceptval(-1, check=True)
    def load(self, offset: uint32_t) -> int64_t:
        if self.base != cython.NULL:
            return mmio_read32(self.base + offset)
        return self.bar.read32(offset)

    @cython.cfunc
    @cython.exceptval(-1, check=True)
    def store(self, offset: uint32_t, value: uint32_t) -> cython.int:
        if self.base != cython.NULL:
            mmio_write32(self.base + offset, value)
        else:
            self.bar.write32(offset, value)
        return 0

    def close(self) -> None:
        """From now on reads answer all ones and writes go nowhere. Call it before the BAR is unmapped."""
        self.base = cython.NULL
        self.bar = _Gone()


class _Gone:
    """What is at the other end when nothing is."""

    def read32(self, _offset: int) -> int:
        return 0xFFFF_FFFF

    def write32(self, _offset: int, _value: int) -> None:
        return
