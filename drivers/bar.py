"""Base address registers: mapped, reached by calls, or both in turn. An access has exactly the width it says.

Width is why indexing a cast memoryview is the only way in: it is one load or store. Slices copy octet by octet,
`struct.pack_into` writes zeros first, and ctypes reads before it writes; on a register each of these is a wrong act.
"""

import ctypes
import mmap
import os

_CODES = {1: "B", 2: "H", 4: "I"}


class MappedBar:
    """A region of a device file in this process's address space."""

    def __init__(self, fd: int, size: int, offset: int = 0, *, into_page: int = 0) -> None:
        """`into_page`: the region begins so many octets after the first that the file maps.

        Raises OSError when the file cannot be mapped there.
        """
        end = into_page + size
        self._map = mmap.mmap(fd, end, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)
        self.size = size
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map)) + into_page
        with memoryview(self._map) as whole:
            # An odd octet at the end has no wider register.
            self._octets, self._words, self._longs = (
                whole[into_page:end - size % width].cast(code) for width, code in _CODES.items())

    def read32(self, offset: int) -> int:
        """The register at a multiple of four. Raises ValueError, IndexError beyond the end."""
        return self._longs[_index(offset, 2)]

    def write32(self, offset: int, value: int) -> None:
        """Raises ValueError also for a value that does not fit."""
        self._longs[_index(offset, 2)] = value

    def read16(self, offset: int) -> int:
        """The register at a multiple of two."""
        return self._words[_index(offset, 1)]

    def write16(self, offset: int, value: int) -> None:
        """The same, written."""
        self._words[_index(offset, 1)] = value

    def read8(self, offset: int) -> int:
        """One octet."""
        return self._octets[_index(offset, 0)]

    def write8(self, offset: int, value: int) -> None:
        """One octet."""
        self._octets[_index(offset, 0)] = value

    def close(self) -> None:
        """Unmap: from now on every access raises ValueError, and `address` is nobody's. May be called twice."""
        for view in (self._octets, self._words, self._longs):
            view.release()
        self._map.close()
        self.address = 0


class CallBar:
    """A region where every access is a call: `_load` and `_store` of whoever knows how."""

    address = 0

    def __init__(self, size: int) -> None:
        self.size = size
        self.closed = False

    def _load(self, offset: int, octets: int) -> bytes:
        raise NotImplementedError

    def _store(self, offset: int, octets: bytes) -> None:
        raise NotImplementedError

    def read(self, offset: int, octets: int) -> int:
        """One access of 1, 2 or 4 octets. Raises ValueError, IndexError, and what the way there raises."""
        self._check(offset, octets)
        return int.from_bytes(self._load(offset, octets), "little")

    def write(self, offset: int, octets: int, value: int) -> None:
        """One access of 1, 2 or 4 octets. Raises ValueError, IndexError, and what the way there raises."""
        self._check(offset, octets)
        if not 0 <= value < 1 << 8 * octets:
            raise ValueError(f"{value:#x} does not fit into {octets} octets")
        self._store(offset, value.to_bytes(octets, "little"))

    def read32(self, offset: int) -> int:
        """The register at a multiple of four."""
        return self.read(offset, 4)

    def write32(self, offset: int, value: int) -> None:
        """The same, written."""
        self.write(offset, 4, value)

    def read16(self, offset: int) -> int:
        """The register at a multiple of two."""
        return self.read(offset, 2)

    def write16(self, offset: int, value: int) -> None:
        """The same, written."""
        self.write(offset, 2, value)

    def read8(self, offset: int) -> int:
        """One octet."""
        return self.read(offset, 1)

    def write8(self, offset: int, value: int) -> None:
        """One octet."""
        self.write(offset, 1, value)

    def close(self) -> None:
        """Every access from now on raises ValueError. May be called twice."""
        self.closed = True

    def _check(self, offset: int, octets: int) -> None:
        if self.closed:
            raise ValueError("this region was closed")
        _index(offset, octets >> 1)
        if offset + octets > self.size:
            raise IndexError(f"{offset:#x} is beyond the end of the region, {self.size:#x}")


class FileBar(CallBar):
    """A region reached by pread and pwrite, for ports and for regions too small to map."""

    def __init__(self, fd: int, size: int, offset: int = 0) -> None:
        """`fd` stays the caller's."""
        super().__init__(size)
        self._fd, self._base = fd, offset

    def _load(self, offset: int, octets: int) -> bytes:
        found = os.pread(self._fd, octets, self._base + offset)
        if len(found) != octets:
            raise OSError(f"{len(found)} of {octets} octets at {offset:#x}")
        return found

    def _store(self, offset: int, octets: bytes) -> None:
        if os.pwrite(self._fd, octets, self._base + offset) != len(octets):
            raise OSError(f"{len(octets)} octets at {offset:#x} were not all written")


class SparseBar(CallBar):
    """A region of which only some areas are mapped; between them every access is a call."""

    def __init__(self, calls: CallBar, fd: int, offset: int, areas: list[tuple[int, int]]) -> None:
        """`areas` are (offset, size) inside the region, page-aligned, which begins at `offset` in the file `fd`.

        Raises OSError when an area cannot be mapped.
        """
        super().__init__(calls.size)
        self._calls = calls
        self._areas: list[tuple[int, MappedBar]] = []
        try:
            for start, length in areas:
                self._areas.append((start, MappedBar(fd, length, offset + start)))
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, octets: int) -> int:
        """One access of 1, 2 or 4 octets, mapped where that is possible."""
        self._check(offset, octets)
        for start, area in self._areas:
            if start <= offset < start + area.size:
                return getattr(area, f"read{8 * octets}")(offset - start)
        return self._calls.read(offset, octets)

    def write(self, offset: int, octets: int, value: int) -> None:
        """One access of 1, 2 or 4 octets, mapped where that is possible."""
        self._check(offset, octets)
        for start, area in self._areas:
            if start <= offset < start + area.size:
                getattr(area, f"write{8 * octets}")(offset - start, value)
                return
        self._calls.write(offset, octets, value)

    def close(self) -> None:
        """Unmap what is mapped. May be called twice."""
        for _, area in self._areas:
            area.close()
        self._calls.close()
        super().close()


def _index(offset: int, shift: int) -> int:
    """Which element of its width an octet offset is: never one before the start, never across two."""
    if offset < 0 or offset & (1 << shift) - 1:
        raise ValueError(f"offset {offset:#x} is not a multiple of {1 << shift}")
    return offset >> shift
