"""Reads on while a program uses what it was just given: into the pager's own memory, so no more of the program's is in memory.

Between reading and use the pages may change, leave anew or be no more. So what was read is used only as far as each page still
has the slot that it was read from, and that still holds what was written there then.
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.mm.paging.space import RUN_PAGES, Space, in_swap_alone
from cython.cimports.mm.paging.table import slot_of
from cython.cimports.mm.paging.userfault import PAGE_BITS
from cython.cimports.mm.swap.store import Failure, SwapStore

if not cython.compiled:
    raise ImportError("mm.paging.ahead must be compiled: python setup.py build_ext --inplace")

_STEP = cython.declare(uint32_t, 16)            # pages, about 10 us of the page cache: whoever faults meanwhile waits for it


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def read_slots(space: cython.pointer[Space], page: uint64_t, count: uint32_t, data: cython.pointer[uint8_t], store: SwapStore,
               failure: cython.pointer[Failure]) -> uint32_t:
    """Pages that have slots, from swap; how many. When it is less, `failure` tells why. Locked, as all here."""
    i: uint32_t = 0
    run: uint32_t
    slot: uint32_t
    while i < count:
        slot = slot_of(cython.address(space.table), page + i)
        run = 1
        while i + run < count and slot_of(cython.address(space.table), page + i + run) == slot + run:
            run += 1
        if store.read_pages(slot - 1, run, data + (cython.cast(uint64_t, i) << PAGE_BITS), failure):
            break
        i += run
    return i


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ahead_begin(ahead: cython.pointer[Ahead], space: cython.pointer[Space], page: uint64_t) -> cython.void:
    """This is where the next fault will be, it seems."""
    ahead.index, ahead.generation, ahead.page = space.index, space.generation, page
    ahead.count, ahead.most = 0, RUN_PAGES


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ahead_read(ahead: cython.pointer[Ahead], space: cython.pointer[Space], store: SwapStore) -> cython.void:
    """Some more of it. A disk is asked for all at once."""
    failure: Failure
    i: uint32_t
    got: uint32_t
    first: uint64_t = ahead.page + ahead.count
    most: uint32_t = ahead.most - ahead.count
    if not store.device.direct:
        most = min(most, _STEP)
    got = read_slots(space, first, in_swap_alone(space, first, most),
                     ahead.data + (cython.cast(uint64_t, ahead.count) << PAGE_BITS), store, cython.address(failure))
    for i in range(got):
        ahead.slots[ahead.count + i] = slot_of(cython.address(space.table), first + i)
        ahead.numbers[ahead.count + i] = store.records[ahead.slots[ahead.count + i] - 1].number
    ahead.count += got
    if got < most:
        ahead.most = ahead.count


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ahead_take(ahead: cython.pointer[Ahead], space: cython.pointer[Space], page: uint64_t, count: uint32_t,
               store: SwapStore) -> uint32_t:
    """How many of `count` pages are at the beginning of `data`, as they are in swap. It is not read any further."""
    i: uint32_t = 0
    if ahead.index != space.index or ahead.generation != space.generation or ahead.page != page:
        return 0
    count = min(count, ahead.count)
    while (i < count and slot_of(cython.address(space.table), page + i) == ahead.slots[i]
           and store.records[ahead.slots[i] - 1].number == ahead.numbers[i]):
        i += 1
    ahead.count = ahead.most = 0
    return i
