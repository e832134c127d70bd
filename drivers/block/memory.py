"""Memory for requests to disks that are no device: the process's own, in whole pages."""

import ctypes
import mmap
from typing import Final

from drivers.errors import DeviceError

PAGE: Final = 4096
_LARGEST: Final = 1 << 40


class HostBuffer:
    """A `drivers.device.DmaMemory` that no device reaches: zeroed, page-aligned, this process's alone."""

    iova = 0

    def __init__(self, octets: int, owner: str) -> None:
        """Raises DeviceError when there is no such memory."""
        if not 0 < octets <= _LARGEST:
            raise DeviceError(owner, f"{octets} octets of memory: 1 to {_LARGEST} are possible")
        try:
            self._map = mmap.mmap(-1, (octets + PAGE - 1) & -PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise DeviceError(owner, f"no {octets} octets of memory: {error.strerror}", error.errno) from None
        self.size, self.owner = octets, owner
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._freed = False

    def view(self) -> memoryview:
        """Its octets. Raises ValueError once it is freed."""
        if self._freed:
            raise ValueError("this memory was freed")
        return memoryview(self._map)[:self.size]

    def free(self) -> None:
        """Give it back: no request may have it any more. While somebody holds a view it stays. May be called twice."""
        if not self._freed:
            self._freed = True
            try:
                self._map.close()
            except BufferError:
                del self._map
