"""What is done with one request's memory and its end; the queue's part that needs no queue."""

import cython
from cython.cimports.drivers.block.records import Command, Lane, Slot, segments_of
from cython.cimports.drivers.request import WRITE_ZEROES, Extent, Segment
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.string import memcpy, memset

if not cython.compiled:
    raise ImportError("drivers.block.slots must be compiled: python setup.py build_ext --inplace")

_LONGEST_SEGMENT = cython.declare(uint64_t, 1 << 22)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tell(lane: cython.pointer[Lane], s: cython.pointer[Slot], error: cython.int) -> cython.void:
    """The end of a request, for its client to fetch; the slot is free again."""
    at: uint32_t = (lane.ended_first + lane.ended_count) & lane.ended_mask
    lane.ended[at].tag = s.tag
    lane.ended[at].error = error
    lane.ended_count += 1
    if lane.held == s:
        lane.held = cython.NULL
    s.next = lane.free
    lane.free = s
    lane.free_count += 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def is_odd(segments: cython.pointer[cython.const[Segment]], count: cython.int, alignment: uint32_t) -> cython.bint:
    bits: uint64_t = 0
    i: cython.int
    for i in range(count):
        bits |= segments[i].octets | cython.cast(uintptr_t, segments[i].data)
    return bits & (alignment - 1) != 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def memory_of(s: cython.pointer[Slot], skip: uint64_t, octets: uint64_t, out: cython.pointer[Segment]) -> cython.int:
    """The memory of some octets of a request; how many pieces."""
    part: cython.pointer[Segment] = segments_of(s)
    count: cython.int = 0
    step: uint64_t
    while octets:
        if skip >= part.octets:
            skip -= part.octets
            part += 1
            continue
        step = min(min(part.octets - skip, octets), _LONGEST_SEGMENT)
        out[count].data = part.data + skip
        out[count].iova = part.iova + skip
        out[count].octets = cython.cast(uint32_t, step)
        count += 1
        octets -= step
        skip += step
    return count


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def in_units(s: cython.pointer[Slot], c: cython.pointer[Command], sector: uint64_t) -> cython.void:
    """What the disk told in its sectors, in the client's, and no more than was asked for."""
    out: cython.pointer[Extent] = cython.cast(cython.pointer[Extent], segments_of(s).data)
    room: uint32_t = segments_of(s).octets // cython.sizeof(Extent)
    skip: uint64_t = s.at - c.at
    left: uint64_t = s.octets
    octets: uint64_t
    i: uint32_t
    for i in range(room):
        octets = out[i].sectors * sector
        if octets == 0 or left == 0:
            out[i].sectors = out[i].flags = 0
            return
        octets = min(octets - skip, left)
        skip = 0
        left -= octets
        out[i].sectors = cython.cast(uint32_t, octets // s.lane.unit)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def direct_octets(s: cython.pointer[Slot], sector: uint64_t, most: uint64_t, max_segments: uint32_t) -> uint64_t:
    """How many octets, whole sectors, from the cursor on fit a command."""
    limit: uint64_t = min(s.octets - s.cursor, most)
    part: cython.pointer[Segment] = segments_of(s)
    skip: uint64_t = s.cursor
    total: uint64_t = 0
    step: uint64_t
    count: uint32_t = 0
    i: cython.int
    for i in range(s.segment_count):
        if skip >= part[i].octets:
            skip -= part[i].octets
            continue
        step = part[i].octets - skip
        skip = 0
        while step and total < limit and count < max_segments:
            total += min(step, _LONGEST_SEGMENT)
            step -= min(step, _LONGEST_SEGMENT)
            count += 1
        if step or total >= limit:
            break
    return min(total, limit) // sector * sector


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def copy_bounced(c: cython.pointer[Command], buffer: cython.pointer[uint8_t], to_client: cython.bint) -> cython.void:
    """Between the buffer and the client's memory: those octets of the sectors that are the client's."""
    s: cython.pointer[Slot] = c.slot
    data: cython.pointer[uint8_t] = buffer + (s.at + c.offset - c.at)
    part: cython.pointer[Segment] = segments_of(s)
    skip: uint64_t = c.offset
    left: uint64_t = c.octets
    step: uint64_t
    if s.operation == WRITE_ZEROES:
        memset(data, 0, left)
        return
    while left:
        if skip >= part.octets:
            skip -= part.octets
        else:
            step = min(part.octets - skip, left)
            if to_client:
                memcpy(part.data + skip, data, step)
            else:
                memcpy(data, part.data + skip, step)
            data += step
            left -= step
            skip = 0
        part += 1
