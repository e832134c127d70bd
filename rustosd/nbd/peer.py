"""One connection in NBD's transmission phase: its slots and its memory.

A request lives in a slot from its header to the last octet of its reply. Memory comes from the connection's arena, which is
the disk's own (`Disk.allocate`): payloads are received into it and replies sent out of it. When slots or memory run out the
connection is not read from until replies have left; so a client can hold only so much, however it behaves.
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memset
from cython.cimports.mm.hw import trailing_zeros

if not cython.compiled:
    raise ImportError("rustosd.nbd.peer must be compiled: python setup.py build_ext --inplace")


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def peer_init(p: cython.pointer[Peer], fd: cython.int, shape: cython.pointer[cython.const[Shape]],
              counts: cython.pointer[Counts]) -> cython.void:
    """A fresh connection on a struct of any content; it has no memory yet."""
    i: cython.int
    memset(p, 0, cython.sizeof(Peer))
    p.fd = fd
    p.shape = shape
    p.counts = counts
    p.receiving = -1
    p.flags = P_READABLE | P_TRY
    for i in range(SLOTS):
        p.free[i] = cython.cast(uint16_t, SLOTS - 1 - i)
    p.free_count = SLOTS


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def peer_set_arena(p: cython.pointer[Peer], arena: cython.pointer[uint8_t], iova: uint64_t, pages: uint32_t) -> cython.void:
    """Give it other memory; none of the old is in use. `pages` is a multiple of 64, at most 64 * ARENA_WORDS."""
    p.arena = arena
    p.arena_iova = iova
    p.pages = pages
    p.flags = (p.flags & ~cython.cast(uint32_t, P_GROW)) | P_TRY
    if pages == 64 * ARENA_WORDS:
        p.flags |= P_SMALL
    memset(p.used, 0, cython.sizeof(p.used))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _find_pages(p: cython.pointer[Peer], wanted: uint32_t) -> uint32_t:
    """Where so many free pages in a row begin; `p.pages`: nowhere."""
    at: uint32_t = 0
    stop: uint32_t
    word: uint64_t
    while at + wanted <= p.pages:
        word = ~p.used[at >> 6] >> (at & 63)        # ones are free pages, from `at` to the end of its word
        if word == 0:
            at = (at | 63) + 1
            continue
        at += trailing_zeros(word)
        if wanted == 1:
            return at
        stop = at
        while stop < p.pages and stop - at < wanted:
            word = p.used[stop >> 6] >> (stop & 63)
            if word:
                stop += trailing_zeros(word)
                break
            stop = (stop | 63) + 1
        if stop - at >= wanted:
            return at if at + wanted <= p.pages else p.pages
        at = stop
    return p.pages


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _mark_pages(p: cython.pointer[Peer], at: uint32_t, count: uint32_t, used: cython.bint) -> cython.void:
    end: uint32_t = at + count
    n: uint32_t
    mask: uint64_t
    while at < end:
        n = min(64 - (at & 63), end - at)
        mask = (~cython.cast(uint64_t, 0) >> (64 - n)) << (at & 63)
        if used:
            p.used[at >> 6] |= mask
        else:
            p.used[at >> 6] &= ~mask
        at += n
    p.pages_used = p.pages_used + count if used else p.pages_used - count


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def peer_take_memory(p: cython.pointer[Peer], s: cython.pointer[Slot], octets: uint64_t) -> cython.bint:
    """Memory for a slot; False when there is none now."""
    wanted: uint32_t = cython.cast(uint32_t, (octets + PAGE - 1) // PAGE)
    at: uint32_t = _find_pages(p, wanted)
    if at == p.pages:
        return False
    _mark_pages(p, at, wanted, True)
    s.page = at
    s.pages = wanted
    s.data = p.arena + cython.cast(uint64_t, at) * PAGE
    s.iova = p.arena_iova + cython.cast(uint64_t, at) * PAGE
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def peer_release(p: cython.pointer[Peer], slot: uint32_t) -> cython.void:
    """The request is over: its memory and its slot are free again."""
    s: cython.pointer[Slot] = cython.address(p.slots[slot])
    if s.pages:
        _mark_pages(p, s.page, s.pages, False)
        s.pages = 0
    s.stage = FREE
    p.free[p.free_count] = cython.cast(uint16_t, slot)
    p.free_count += 1
    p.flags |= P_TRY


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def peer_enqueue(p: cython.pointer[Peer], slot: uint32_t) -> cython.void:
    """To the end of the row of those that wait for the disk."""
    p.slots[slot].stage = QUEUED
    p.slots[slot].handed = 0
    p.queue[(p.queue_head + p.queue_count) % SLOTS] = cython.cast(uint16_t, slot)
    p.queue_count += 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def peer_break(p: cython.pointer[Peer], reason: uint32_t) -> cython.void:
    """End it at once: nothing is read, sent or given to the disk any more. What is at the disk keeps its memory until then."""
    if p.flags & P_BROKEN:
        return
    p.flags = (p.flags | P_BROKEN) & ~cython.cast(uint32_t, P_READABLE | P_GROW)
    p.reason = reason
    p.queue_count = 0
    p.out_count = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def peer_busy(p: cython.pointer[cython.const[Peer]]) -> cython.bint:
    """Whether there is something to do for it now."""
    if p.flags & P_BROKEN:
        return False
    return p.queue_count != 0 or (p.out_count != 0 and not p.held and not p.flags & P_FULL) or p.flags & P_TRY != 0 or (
        p.flags & P_READABLE != 0 and not p.flags & (P_BLOCKED | P_EOF))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def peer_over(p: cython.pointer[cython.const[Peer]]) -> cython.bint:
    """Whether nothing keeps it from being closed."""
    if p.flags & P_BROKEN:
        return p.at_disk == 0
    if p.flags & (P_EOF | P_DRAINING) == 0:
        return False
    return p.at_disk == 0 and p.queue_count == 0 and p.out_count == 0 and (
        p.flags & P_EOF != 0 or (p.free_count == SLOTS and p.flags & (P_READABLE | P_TRY) == 0))
