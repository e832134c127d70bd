"""Memory of this process of which only so much is in memory: the rest is in swap, and comes back when it is touched.

    region = SwappedRegion(1 << 30, 64 << 20, store)
    view = memoryview(region)

Whoever touches it needs to know nothing; a page that is in swap takes as long as swap takes. When swap cannot give a page back,
the thread that touches it waits for ever, for there is nothing true to show it: `failure` tells, and `on_failure` is called.
"""

import ctypes
import mmap
import os
import threading
from collections.abc import Callable

from mm.paging.pager import Pager, SpaceStats
from mm.paging.userfault import begin, open_own
from mm.swap.store import SwapStore

PAGE = 4096
_MADV_NOHUGEPAGE = 15
_MADV_DONTFORK = 10
_MAP_NORESERVE = 0x4000


class SwappedRegion:
    """Zeroed memory with the buffer protocol, by `memoryview(region.memory)` before Python 3.12. Its owner closes it."""

    def __init__(self, size: int, limit: int, store: SwapStore, on_failure: Callable[[str], None] | None = None,
                 keep_awake: bool = False) -> None:
        """`size` octets, of which about `limit` are in memory. `store` may serve several regions.

        `keep_awake`: the processors, while pages are asked for often.

        A process that forks does not pass it on. Raises OSError; PermissionError with what to do where faults are root's.
        """
        if size < PAGE or size % PAGE or limit < 16 * PAGE:
            raise ValueError(f"{size} octets with {limit} in memory: whole pages, and at least 16 of them in memory")
        self.size, self.limit = size, limit
        self.memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        self.memory.madvise(_MADV_NOHUGEPAGE)
        self.memory.madvise(_MADV_DONTFORK)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.failure = ""
        """Why a page cannot be had that somebody waits for; empty while all is well."""
        self._on_failure = on_failure
        self._pager = Pager(store)
        if keep_awake:
            self._pager.keep_awake()
        self._index = -1
        fd = open_own()
        try:
            begin(fd)
            self._index = self._pager.add_own(fd, self.address, size, limit)
        except BaseException:
            if self._index < 0:
                os.close(fd)
            raise
        self._closing = False
        self._threads = [threading.Thread(target=work, name=f"region-{what}", daemon=True)
                         for what, work in (("faults", self._pager.serve), ("watch", self._watch))]
        for thread in self._threads:
            thread.start()
        self._pager.await_service()

    def __buffer__(self, flags: int) -> memoryview:
        return memoryview(self.memory)

    def __len__(self) -> int:
        return self.size

    @property
    def stats(self) -> SpaceStats:
        """In pages."""
        return self._pager.stats(self._index)

    def set_limit(self, limit: int) -> None:
        """Another limit from now on; 0: none."""
        self.limit = limit
        self._pager.set_limit(self._index, limit)

    def close(self) -> None:
        """Give the memory and its slots back. Raises BufferError while somebody has a view of it. May be called twice."""
        if self._index < 0:
            return
        self._pager.set_limit(self._index, 0)           # what is evicted must still be ours
        try:
            self.memory.close()
        except BufferError:
            self._pager.set_limit(self._index, self.limit)
            raise BufferError("somebody still has a view of this region") from None
        self._closing = True
        self._pager.end(self._index)
        self._index = -1
        self._pager.stop()
        os.eventfd_write(self._pager.told_fd, 1)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> "SwappedRegion":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _watch(self) -> None:
        """Tell of the first failure."""
        poll = _poll(self._pager.told_fd)
        while not self._closing:
            poll()
            for lost in self._pager.lost():
                first, self.failure = not self.failure, f"page at {lost.address - self.address:#x}: {os.strerror(lost.errno)}"
                if first and self._on_failure is not None:
                    self._on_failure(self.failure)


def _poll(fd: int) -> Callable[[], object]:
    import select
    poll = select.poll()
    poll.register(fd, select.POLLIN)

    def once() -> None:
        poll.poll()
        os.eventfd_read(fd)
    return once
