"""One paged address space: which of its pages are in swap.

What holds at any time: a page that has a slot is either not in memory, or it is protected from writes and equal to its slot. So
a page that was only read leaves without being written again, and a fork's child may find either and is right.
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.mm.paging.table import (
    CHUNK_BITS,
    CHUNK_PAGES,
    Chunk,
    bit,
    chunk_of,
    clear_bit,
    make_chunk,
    set_bit,
    slot_of,
    table_copy,
    table_free,
    table_init,
)
from cython.cimports.mm.paging.userfault import PAGE_BITS
from cython.cimports.mm.swap.policy import policy_forget_range, policy_free, policy_init
from cython.cimports.mm.swap.store import Failure, SwapStore
from cython.cimports.posix.unistd import close

if not cython.compiled:
    raise ImportError("mm.paging.space must be compiled: python setup.py build_ext --inplace")



@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def space_new(fd: cython.int, pid: cython.int) -> cython.pointer[Space]:
    """With nothing in it. NULL: no memory."""
    space: cython.pointer[Space] = cython.cast(cython.pointer[Space], calloc(1, cython.sizeof(Space)))
    if space == cython.NULL:
        return cython.NULL
    if not table_init(cython.address(space.table)) or not policy_init(cython.address(space.policy)):
        table_free(cython.address(space.table))
        policy_free(cython.address(space.policy))
        free(space)
        return cython.NULL
    space.fd, space.pid, space.pagemap, space.parent = fd, pid, -1, -1
    space.window = space.zero_window = 1
    return space


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def space_fork(parent: cython.pointer[Space], fd: cython.int, store: SwapStore) -> cython.pointer[Space]:
    """The child's, with the parent's slots for its own, too. NULL: no memory."""
    i: uint64_t
    page: uint32_t
    chunk: cython.pointer[Chunk]
    space: cython.pointer[Space] = space_new(fd, -1)
    if space == cython.NULL:
        return cython.NULL
    table_free(cython.address(space.table))
    if not table_copy(cython.address(space.table), cython.address(parent.table)):
        policy_free(cython.address(space.policy))
        free(space)
        return cython.NULL
    for i in range(space.table.size):
        chunk = space.table.buckets[i]
        while chunk != cython.NULL:
            for page in range(CHUNK_PAGES):
                if chunk.slots[page] and not store.share_pages(chunk.slots[page] - 1, 1):
                    chunk.slots[page] = 0
                    chunk.used -= 1
                    space.table.swapped -= 1
            chunk = chunk.next
    space.parent = parent.index
    return space


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def space_free(space: cython.pointer[Space], store: SwapStore) -> cython.void:
    """Its slots are given back, its descriptors closed."""
    i: uint64_t
    chunk: cython.pointer[Chunk]
    if space.table.buckets != cython.NULL:
        for i in range(space.table.size):
            chunk = space.table.buckets[i]
            while chunk != cython.NULL:
                _release_chunk(chunk, 0, CHUNK_PAGES, store)
                chunk = chunk.next
    table_free(cython.address(space.table))
    policy_free(cython.address(space.policy))
    close(space.fd)
    if space.pagemap >= 0:
        close(space.pagemap)
    free(space)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def forget_slot(space: cython.pointer[Space], page: uint64_t, store: SwapStore) -> cython.void:
    """A page has no slot any more."""
    chunk: cython.pointer[Chunk] = chunk_of(cython.address(space.table), page)
    if chunk != cython.NULL:
        space.table.swapped -= _release_chunk(chunk, page & (CHUNK_PAGES - 1), (page & (CHUNK_PAGES - 1)) + 1, store)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def forget_range(space: cython.pointer[Space], first: uint64_t, end: uint64_t, store: SwapStore) -> cython.void:
    """The pages from `first` up to `end` have no slots any more: their owner has done away with them."""
    i: uint64_t
    number: uint64_t
    base: uint64_t
    chunk: cython.pointer[Chunk]
    policy_forget_range(cython.address(space.policy), first, end)
    if space.table.swapped == 0 or first >= end:
        return
    if (end - first) >> CHUNK_BITS < space.table.size:
        for number in range(first >> CHUNK_BITS, ((end - 1) >> CHUNK_BITS) + 1):
            chunk = chunk_of(cython.address(space.table), number << CHUNK_BITS)
            if chunk != cython.NULL:
                base = number << CHUNK_BITS
                space.table.swapped -= _release_chunk(chunk, max(first, base) - base,
                                                      min(end - base, cython.cast(uint64_t, CHUNK_PAGES)), store)
        return
    for i in range(space.table.size):
        chunk = space.table.buckets[i]
        while chunk != cython.NULL:
            base = chunk.number << CHUNK_BITS
            if base < end and base + CHUNK_PAGES > first:
                space.table.swapped -= _release_chunk(chunk, max(first, base) - base,
                                                      min(end - base, cython.cast(uint64_t, CHUNK_PAGES)), store)
            chunk = chunk.next


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _release_chunk(chunk: cython.pointer[Chunk], start: uint64_t, end: uint64_t, store: SwapStore) -> uint64_t:
    """Give back the slots of some of its pages; how many had one."""
    i: uint64_t = start
    run: uint32_t
    freed: uint64_t = 0
    if chunk.used == 0:
        return 0
    while i < end:
        if chunk.slots[i] == 0:
            i += 1
            continue
        run = 1
        while i + run < end and chunk.slots[i + run] == chunk.slots[i] + run:
            run += 1
        store.release_pages(chunk.slots[i] - 1, run)
        freed += run
        while run:
            chunk.slots[i] = 0
            clear_bit(chunk.present, i)
            i += 1
            run -= 1
    chunk.used -= cython.cast(uint32_t, freed)
    return freed


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def move_range(space: cython.pointer[Space], first: uint64_t, end: uint64_t, to: uint64_t,
               store: SwapStore) -> cython.void:
    """The pages from `first` up to `end` are at `to` now, with their slots. The ranges do not overlap."""
    page: uint64_t = first
    target: uint64_t
    chunk: cython.pointer[Chunk]
    other: cython.pointer[Chunk]
    policy_forget_range(cython.address(space.policy), first, end)
    if space.table.swapped == 0:
        return
    while page < end:
        chunk = chunk_of(cython.address(space.table), page)
        if chunk == cython.NULL or chunk.used == 0:
            page = ((page >> CHUNK_BITS) + 1) << CHUNK_BITS
            continue
        if chunk.slots[page & (CHUNK_PAGES - 1)]:
            target = to + (page - first)
            other = make_chunk(cython.address(space.table), target)
            if other == cython.NULL:        # without memory for what we know we must not go on: the page would read zero
                space.broken = True
                return
            forget_slot(space, target, store)
            other.slots[target & (CHUNK_PAGES - 1)] = chunk.slots[page & (CHUNK_PAGES - 1)]
            other.used += 1
            if bit(chunk.present, page):
                set_bit(other.present, target)
            chunk.slots[page & (CHUNK_PAGES - 1)] = 0
            chunk.used -= 1
            clear_bit(chunk.present, page)
        page += 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def in_batch(space: cython.pointer[Space], page: uint64_t) -> cython.bint:
    """Whether a page is being evicted."""
    low: uint32_t = 0
    high: uint32_t = space.batch_runs
    middle: uint32_t
    while low < high:
        middle = (low + high) >> 1
        if space.batch[middle].first + space.batch[middle].count <= page:
            low = middle + 1
        else:
            high = middle
    return low < space.batch_runs and space.batch[low].first <= page


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def in_swap_alone(space: cython.pointer[Space], page: uint64_t, most: uint32_t) -> uint32_t:
    """How many pages from this one on are in swap and not in memory, `most` at most."""
    count: uint32_t = 0
    chunk: cython.pointer[Chunk]
    while count < most:
        chunk = chunk_of(cython.address(space.table), page + count)
        if (chunk == cython.NULL or chunk.slots[(page + count) & (CHUNK_PAGES - 1)] == 0 or bit(chunk.present, page + count)
                or (space.batch_runs and in_batch(space, page + count))):
            break
        count += 1
    return count


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def read_slots(space: cython.pointer[Space], page: uint64_t, count: uint32_t, data: cython.pointer[uint8_t], store: SwapStore,
               failure: cython.pointer[Failure]) -> uint32_t:
    """Pages that have slots, from swap; how many. When it is less, `failure` tells why."""
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
