"""Memory that devices reach: huge pages where there are any, addresses as the device sees them, and who owns what.

`DmaPool` cuts blocks out of chunks of at least 2 MiB, each mapped once for the devices by a `Window`: an IOMMU's address
space (VFIO) or physical memory itself (UIO). A chunk goes back to the host with its last block.
"""

import ctypes
import fcntl
import mmap
import os
import threading
from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple, Protocol

PAGE = 4096
HUGE_PAGE = 2 << 20
LOW_END = 1 << 32
"""Devices with 32 address bits reach what is below."""
CACHE_LINE = 64
"""No two blocks share one, so that a device's write never meets a neighbour's."""
MAX_BLOCK = 1 << 40


class DmaExhausted(Exception):
    """No memory or no addresses; the message says which and what to do."""


class HostMemory:
    """Zeroed shared memory of this process, in huge pages if possible. Its owner closes it.

    Shared, so that a fork cannot move it: with private memory the parent's next write would go to a copy that no device
    knows. Behind it is a file, `fd`, for a device that is another process; it is sealed, so that nobody who has it can cut
    the memory short under our feet.
    """

    def __init__(self, size: int, *, need_huge: bool = False) -> None:
        """`size` is a multiple of HUGE_PAGE. Raises DmaExhausted; with `need_huge` also when there are no huge pages."""
        try:
            self.fd, self._map = _sealed(size, os.MFD_HUGETLB | os.MFD_HUGE_2MB)
            self.page_size = HUGE_PAGE
        except OSError:
            if need_huge:
                pages = size // HUGE_PAGE
                raise DmaExhausted(f"{pages} more free huge pages of 2 MiB are needed: raise vm.nr_hugepages by at least "
                                   f"{pages} (sysctl, or hugepages= on the kernel's command line)") from None
            try:
                self.fd, self._map = _sealed(size, 0)
            except OSError as error:
                raise DmaExhausted(f"no {size >> 20} MiB of memory: {error.strerror}") from None
            self.page_size = PAGE
        self.size = size
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def view(self) -> memoryview:
        """All of it, for reading and writing."""
        return memoryview(self._map)

    def close(self) -> None:
        """Give the memory back; while somebody still holds a view it goes with the last view. May be called twice."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        try:
            self._map.close()
        except BufferError:
            del self._map


class Window(Protocol):
    """How devices see this process's memory."""

    largest: int
    """Octets of the largest contiguous piece, a multiple of HUGE_PAGE."""
    need_huge: bool
    """Whether only huge pages will do."""

    def map(self, memory: HostMemory, below_4g: bool) -> int:
        """Show all of it to the devices; at which address. Raises DmaExhausted, or the window's own error."""

    def unmap(self, iova: int, size: int) -> None:
        """Hide it again. May be called after the devices are gone."""


class AddressRange(NamedTuple):
    """Addresses from `start` up to and including `last`."""

    start: int
    last: int


class IovaSpace:
    """Addresses of an IOMMU: hands out the lowest free ones inside the ranges that the platform allows.

    Low first, so that 32-bit devices do without asking. The first mebibyte is never used: a device that was given
    nonsense tends to read near zero, and that shall fault.
    """

    def __init__(self, ranges: Iterable[AddressRange]) -> None:
        self._ranges: list[AddressRange] = []
        self._taken: list[tuple[int, int]] = []         # (start, size), sorted, disjoint
        self.restrict(ranges)

    def restrict(self, ranges: Iterable[AddressRange]) -> None:
        """New ranges, for what is taken from now on: they shrink as devices join that reserve some for themselves."""
        self._ranges = sorted(AddressRange(max(start, 1 << 20), last) for start, last in ranges if last >= 1 << 20)

    def take(self, size: int, align: int = HUGE_PAGE, end: int = 1 << 64) -> int:
        """`size` addresses below `end`, a multiple of `align`, a power of two. Raises DmaExhausted."""
        for start, last in self._ranges:
            limit = min(last + 1, end)
            found = _aligned(start, align)
            index = bisect_left(self._taken, (found, 0))
            if index and sum(self._taken[index - 1]) > found:
                index -= 1
            for begin, length in self._taken[index:]:
                if begin >= found + size:
                    break
                found = _aligned(begin + length, align)
            if found + size <= limit:
                self._taken.insert(bisect_left(self._taken, (found, 0)), (found, size))
                return found
        below = "" if end > LOW_END else " below 4 GiB"
        raise DmaExhausted(f"the IOMMU has no {size >> 10} KiB of free addresses{below}")

    def give(self, start: int) -> None:
        """Give back what `take` answered with."""
        index = bisect_left(self._taken, (start, 0))
        if index == len(self._taken) or self._taken[index][0] != start:
            raise ValueError(f"{start:#x} is not taken")
        del self._taken[index]


class Owned(NamedTuple):
    """What one owner holds."""

    owner: str
    blocks: int
    octets: int


class DmaBlock:
    """Memory a device may reach; see `drivers.device.DmaMemory`."""

    def __init__(self, pool: "DmaPool", chunk: "_Chunk", offset: int, size: int, owner: str) -> None:
        self._pool, self._chunk, self._offset = pool, chunk, offset
        self.size, self.owner = size, owner
        self.address = chunk.memory.address + offset
        self.iova = chunk.iova + offset
        self.freed = False

    def view(self) -> memoryview:
        """The block's octets. A view keeps the host's memory, not the device's way to it."""
        if self.freed:
            raise ValueError("this memory was freed")
        with self._chunk.memory.view() as whole:
            return whole[self._offset:self._offset + self.size]

    def free(self) -> None:
        """Give it back: the device must have stopped using it. May be called twice."""
        if not self.freed:
            self.freed = True
            self._pool._free(self)


class _Chunk:
    """Memory mapped once, and which parts of it are free: (offset, size), sorted, never adjacent."""

    def __init__(self, memory: HostMemory, iova: int) -> None:
        self.memory, self.iova = memory, iova
        self.free = [(0, memory.size)]

    def cut(self, size: int, align: int, end: int) -> int | None:
        """The offset of `size` free octets whose iova is aligned and below `end`, taken; None when there are none."""
        for index, (offset, length) in enumerate(self.free):
            start = _aligned(self.iova + offset, align) - self.iova
            if start + size <= offset + length and self.iova + start + size <= end:
                rest = [(offset, start - offset), (start + size, offset + length - start - size)]
                self.free[index:index + 1] = [part for part in rest if part[1]]
                return start
        return None

    def join(self, offset: int, size: int) -> bool:
        """Take back a part; whether now all is free."""
        index = bisect_left(self.free, (offset, 0))
        first, last = index, index
        if index < len(self.free) and self.free[index][0] == offset + size:
            size += self.free[index][1]
            last += 1
        if index and sum(self.free[index - 1]) == offset:
            first -= 1
            offset, before = self.free[first]
            size += before
        self.free[first:last] = [(offset, size)]
        return size == self.memory.size


class DmaPool:
    """Blocks for devices that share one window, each with an owner."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._lock = threading.RLock()      # a driver may start in a thread while another's device is closed on the loop
        self._chunks: list[_Chunk] = []
        self._blocks: dict[int, DmaBlock] = {}       # by iova

    def allocate(self, octets: int, owner: str, *, align: int = PAGE, below_4g: bool = False) -> DmaBlock:
        """Zeroed, pinned memory, contiguous as the device sees it. `align` is a power of two up to HUGE_PAGE.

        Raises DmaExhausted, or what the window raises; ValueError for sizes that make no sense.
        """
        if not 0 < octets <= MAX_BLOCK or align & (align - 1) or not 0 < align <= HUGE_PAGE:
            raise ValueError(f"{octets} octets aligned to {align}")
        size, align = _aligned(octets, CACHE_LINE), max(align, CACHE_LINE)
        end = LOW_END if below_4g else 1 << 64
        with self._lock:
            for chunk in self._chunks:
                if (offset := chunk.cut(size, align, end)) is not None:
                    break
            else:
                chunk = self._grow(size, below_4g)
                offset = chunk.cut(size, align, end)
            block = self._blocks[chunk.iova + offset] = DmaBlock(self, chunk, offset, octets, owner)
        ctypes.memset(block.address, 0, size)
        return block

    def owned(self) -> list[Owned]:
        """Who holds how much, sorted by owner: what is left here after everybody has closed is a leak."""
        return account(self._blocks.values())

    @property
    def octets(self) -> int:
        """Memory taken from the host."""
        return sum(chunk.memory.size for chunk in self._chunks)

    def clear(self) -> list[Owned]:
        """Free every block, whoever owns it; what there was."""
        left = self.owned()
        for block in list(self._blocks.values()):
            block.free()
        return left

    def _grow(self, size: int, below_4g: bool) -> _Chunk:
        if size > self._window.largest:
            raise DmaExhausted(f"{size >> 10} KiB in one piece: without an IOMMU at most {self._window.largest >> 10} KiB are "
                               "contiguous. Use smaller rings, or VFIO")
        memory = HostMemory(_aligned(size, HUGE_PAGE), need_huge=self._window.need_huge)
        try:
            chunk = _Chunk(memory, self._window.map(memory, below_4g))
        except BaseException:
            memory.close()
            raise
        self._chunks.append(chunk)
        return chunk

    def _free(self, block: DmaBlock) -> None:
        with self._lock:
            del self._blocks[block.iova]
            chunk = block._chunk
            if chunk.join(block._offset, _aligned(block.size, CACHE_LINE)):
                self._chunks.remove(chunk)
                self._window.unmap(chunk.iova, chunk.memory.size)
                chunk.memory.close()


def account(blocks: Iterable[DmaBlock]) -> list[Owned]:
    """What each owner has of these blocks, sorted by owner."""
    held: dict[str, list[int]] = {}
    for block in blocks:
        held.setdefault(block.owner, []).append(block.size)
    return [Owned(owner, len(sizes), sum(sizes)) for owner, sizes in sorted(held.items())]


def _aligned(value: int, align: int) -> int:
    return (value + align - 1) & -align


def _sealed(size: int, flags: int) -> tuple[int, mmap.mmap]:
    """A memory file of a size that nobody can change any more, and its mapping. Raises OSError."""
    fd = os.memfd_create("rustosd-dma", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return fd, mmap.mmap(fd, size)
    except BaseException:
        os.close(fd)
        raise
