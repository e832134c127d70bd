"""Byte rings that hold a connection's unacknowledged and unread octets."""

import cython
from cython.cimports.libc.stdint import uint8_t, uint32_t
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.mm.copy import copy_long

SMALLEST = cython.declare(uint32_t, 2048)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ring_reserve(r: cython.pointer[Ring], need: uint32_t, keep: uint32_t,
                 budget: cython.pointer[Budget]) -> cython.bint:
    """Grow to a power of two that holds `need`; the first `keep` octets move along."""
    size: uint32_t
    octets: cython.pointer[uint8_t]
    if cython.likely(need <= r.size):
        return True
    size = r.size if r.size else SMALLEST
    while size < need:
        size <<= 1
    if budget.used + size - r.size > budget.limit:
        return False
    octets = cython.cast(cython.pointer[uint8_t], malloc(size))
    if octets is cython.NULL:
        return False
    if keep:
        ring_get(r, 0, octets, keep)
    free(r.octets)
    budget.used += size - r.size
    r.octets = octets
    r.size = size
    r.head = 0
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ring_put(r: cython.pointer[Ring], distance: uint32_t, p: cython.pointer[cython.const[uint8_t]],
             n: uint32_t) -> cython.void:
    """Copy in, wrapping at the end."""
    at: uint32_t = (r.head + distance) & (r.size - 1)
    first: uint32_t = r.size - at
    if cython.likely(n <= first):
        copy_long(r.octets + at, p, n)
    else:
        copy_long(r.octets + at, p, first)
        copy_long(r.octets, p + first, n - first)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ring_get(r: cython.pointer[cython.const[Ring]], distance: uint32_t, to: cython.pointer[uint8_t],
             n: uint32_t) -> cython.void:
    """Copy out, wrapping at the end."""
    at: uint32_t = (r.head + distance) & (r.size - 1)
    first: uint32_t = r.size - at
    if cython.likely(n <= first):
        copy_long(to, r.octets + at, n)
    else:
        copy_long(to, r.octets + at, first)
        copy_long(to + first, r.octets, n - first)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ring_parts(r: cython.pointer[cython.const[Ring]], distance: uint32_t, n: uint32_t,
               first: cython.pointer[cython.pointer[cython.const[uint8_t]]],
               second: cython.pointer[cython.pointer[cython.const[uint8_t]]]) -> uint32_t:
    """The one or two places where n octets lie; the first one's length."""
    at: uint32_t = (r.head + distance) & (r.size - 1)
    room: uint32_t = r.size - at
    first[0] = r.octets + at
    second[0] = r.octets
    return n if n <= room else room


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ring_drop(r: cython.pointer[Ring], n: uint32_t) -> cython.void:
    """Forget octets at the head."""
    r.used -= n
    r.head = (r.head + n) & (r.size - 1)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ring_release(r: cython.pointer[Ring], budget: cython.pointer[Budget]) -> cython.void:
    """Free the memory; the ring is empty afterwards and can be reserved again."""
    free(r.octets)
    budget.used -= r.size
    r.octets = cython.NULL
    r.size = 0
    r.head = 0
    r.used = 0
