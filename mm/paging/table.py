"""The page table of paging: chunks of 2 MiB by number, in a hash table that grows. Not locked: the pager is."""

import cython
from cython.cimports.libc.stdint import uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy

if not cython.compiled:
    raise ImportError("mm.paging.table must be compiled: python setup.py build_ext --inplace")

_FIRST_SIZE = cython.declare(uint64_t, 64)
_MIX = cython.declare(uint64_t, 0x9E3779B97F4A7C15)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def table_init(table: cython.pointer[PageTable]) -> cython.bint:
    """An empty one. False: no memory."""
    table.size = _FIRST_SIZE
    table.chunks = table.swapped = 0
    table.buckets = cython.cast(cython.pointer[cython.pointer[Chunk]], calloc(table.size, cython.sizeof(cython.p_void)))
    return table.buckets != cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def table_free(table: cython.pointer[PageTable]) -> cython.void:
    """The slots are the caller's to give back."""
    i: uint64_t
    chunk: cython.pointer[Chunk]
    following: cython.pointer[Chunk]
    if table.buckets == cython.NULL:
        return
    for i in range(table.size):
        chunk = table.buckets[i]
        while chunk != cython.NULL:
            following = chunk.next
            free(chunk)
            chunk = following
    free(table.buckets)
    table.buckets = cython.NULL
    table.chunks = table.swapped = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def chunk_of(table: cython.pointer[PageTable], page: uint64_t) -> cython.pointer[Chunk]:
    """The chunk with this page; NULL when nothing is known of any of its pages."""
    number: uint64_t = page >> CHUNK_BITS
    chunk: cython.pointer[Chunk] = table.buckets[_bucket(table.size, number)]
    while chunk != cython.NULL and chunk.number != number:
        chunk = chunk.next
    return chunk


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def make_chunk(table: cython.pointer[PageTable], page: uint64_t) -> cython.pointer[Chunk]:
    """The chunk with this page, made if need be. NULL: no memory."""
    at: uint64_t
    chunk: cython.pointer[Chunk] = chunk_of(table, page)
    if chunk != cython.NULL:
        return chunk
    if table.chunks >= table.size:
        _grow(table)
    chunk = cython.cast(cython.pointer[Chunk], calloc(1, cython.sizeof(Chunk)))
    if chunk == cython.NULL:
        return cython.NULL
    chunk.number = page >> CHUNK_BITS
    at = _bucket(table.size, chunk.number)
    chunk.next = table.buckets[at]
    table.buckets[at] = chunk
    table.chunks += 1
    return chunk


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def table_copy(to: cython.pointer[PageTable], table: cython.pointer[cython.const[PageTable]]) -> cython.bint:
    """Make `to` a copy. False: no memory; then it is empty."""
    i: uint64_t
    chunk: cython.pointer[Chunk]
    made: cython.pointer[Chunk]
    following: cython.pointer[Chunk]
    if not table_init(to):
        return False
    for i in range(table.size):
        chunk = table.buckets[i]
        while chunk != cython.NULL:
            if chunk.used:
                made = make_chunk(to, chunk.number << CHUNK_BITS)
                if made == cython.NULL:
                    table_free(to)
                    return False
                following = made.next
                memcpy(made, chunk, cython.sizeof(Chunk))
                made.next = following
            chunk = chunk.next
    to.swapped = table.swapped
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _grow(table: cython.pointer[PageTable]) -> cython.void:
    """Twice as many buckets; without memory for them it stays as it is, and slower."""
    i: uint64_t
    at: uint64_t
    size: uint64_t = table.size * 2
    chunk: cython.pointer[Chunk]
    following: cython.pointer[Chunk]
    buckets: cython.pointer[cython.pointer[Chunk]] = cython.cast(cython.pointer[cython.pointer[Chunk]],
                                                                 calloc(size, cython.sizeof(cython.p_void)))
    if buckets == cython.NULL:
        return
    for i in range(table.size):
        chunk = table.buckets[i]
        while chunk != cython.NULL:
            following = chunk.next
            at = _bucket(size, chunk.number)
            chunk.next = buckets[at]
            buckets[at] = chunk
            chunk = following
    free(table.buckets)
    table.buckets = buckets
    table.size = size


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _bucket(size: uint64_t, number: uint64_t) -> uint64_t:
    return ((number * _MIX) >> 20) & (size - 1)
