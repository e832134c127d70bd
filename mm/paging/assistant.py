"""Brings the second half of a long run of pages into memory, while the thread that answers faults brings the first.

Who waits for the first page has nothing else to do meanwhile, so there is a processor for it.
"""

import cython
from cython.cimports.libc.errno import EINTR, errno
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.mm.paging.space import Space, read_slots
from cython.cimports.mm.paging.userfault import PAGE_BITS, uffd_copy
from cython.cimports.mm.swap.store import Failure, SwapStore

if not cython.compiled:
    raise ImportError("mm.paging.assistant must be compiled: python setup.py build_ext --inplace")


@cython.final
@cython.cclass
class Assistant:
    """`begin` and `end` are for one thread, which has the spaces to itself from the one to the other; `work` is the second."""

    def __cinit__(self):
        sem_init(cython.address(self.asked), 0, 0)
        sem_init(cython.address(self.done), 0, 0)

    def __init__(self, store: SwapStore) -> None:
        self.store = store

    def __dealloc__(self):
        sem_destroy(cython.address(self.asked))
        sem_destroy(cython.address(self.done))

    def work(self) -> None:
        """Until `stop`."""
        with cython.nogil:
            sem_post(cython.address(self.done))
            _wait(cython.address(self.asked))
            while not self.stopping:
                self._bring()
                sem_post(cython.address(self.done))
                _wait(cython.address(self.asked))

    def await_work(self) -> None:
        """Until `work` has begun, once."""
        with cython.nogil:
            _wait(cython.address(self.done))

    def stop(self) -> None:
        """End `work`; nothing has begun."""
        self.stopping = True
        sem_post(cython.address(self.asked))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def begin(self, space: cython.pointer[Space], page: uint64_t, count: uint32_t, data: cython.pointer[uint8_t],
              keep: cython.bint) -> cython.void:
        """Bring pages that have slots; `keep`: protected, as those are kept."""
        self.space, self.page, self.count, self.data, self.keep = space, page, count, data, keep
        sem_post(cython.address(self.asked))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def end(self) -> uint32_t:
        """How many of them are there, from the first on. Whoever touches another tells why it cannot be had."""
        _wait(cython.address(self.done))
        return self.brought

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _bring(self) -> cython.void:
        failure: Failure
        done: uint64_t = 0
        count: uint64_t = read_slots(self.space, self.page, self.count, self.data, self.store, cython.address(failure))
        if count:
            uffd_copy(self.space.fd, self.page << PAGE_BITS, self.data, count << PAGE_BITS, self.keep, cython.address(done))
        self.brought = cython.cast(uint32_t, done >> PAGE_BITS)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _wait(semaphore: cython.pointer[sem_t]) -> cython.void:
    while sem_wait(semaphore) < 0 and errno == EINTR:
        pass
