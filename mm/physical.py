"""Physical addresses, for devices that no IOMMU confines: huge pages, locked, looked up in /proc/self/pagemap.

Such a device reaches all of memory: what it is told wrongly it overwrites.
"""

import ctypes
import os
import struct

from mm.dma import HUGE_PAGE, LOW_END, PAGE, DmaExhausted, HostMemory

_PRESENT = 1 << 63
_PFN = (1 << 55) - 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class PhysicalWindow:
    """Memory at its physical address, which is contiguous within one huge page only; see mm.dma.Window."""

    largest = HUGE_PAGE
    need_huge = True

    def map(self, memory: HostMemory, below_4g: bool) -> int:
        """Lock it and look up where it lies. Raises DmaExhausted."""
        address = self._locked(memory)
        if below_4g and address >= LOW_END:
            raise DmaExhausted("the free huge pages lie above 4 GiB, which this device does not reach: reserve them at boot "
                               "(hugepages= on the kernel's command line), or use VFIO")
        return address

    def unmap(self, iova: int, size: int) -> None:
        """Nothing to do: closing the memory unlocks it."""

    @staticmethod
    def _locked(memory: HostMemory) -> int:
        ctypes.memset(memory.address, 0, memory.size)       # there is no page before the first write
        if _libc.mlock(memory.address, memory.size):
            error = ctypes.get_errno()
            raise DmaExhausted(f"cannot lock {memory.size >> 10} KiB: {os.strerror(error)}. Raise LimitMEMLOCK= in the unit "
                               "or `ulimit -l`")
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            entry, = struct.unpack("Q", os.pread(pagemap.fileno(), 8, memory.address // PAGE * 8))
        if not entry & _PRESENT or not entry & _PFN:
            raise DmaExhausted("/proc/self/pagemap keeps physical addresses to itself: run as root, with CAP_SYS_ADMIN")
        return (entry & _PFN) * PAGE
