"""Requests on their way to a disk and completions on their way back, a burst at a time, as C structs.

The memory of a request belongs to whoever submits it, and must stay until the request's completion has been read.
"""

from collections.abc import Iterable

import cython
from cython.cimports.drivers.request import Request, Segment
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.string import memcpy, memmove

if not cython.compiled:
    raise ImportError("drivers.request must be compiled: python setup.py build_ext --inplace")


@cython.final
@cython.cclass
class RequestBurst:
    """Requests for one disk, in order."""

    def __len__(self) -> int:
        return self.count

    def append(self, operation: cython.int, tag: uint64_t, lba: uint64_t = 0, sectors: uint32_t = 0,
               segments: Iterable = (), *, fua: cython.bint = False, flags: cython.int = 0) -> bool:
        """Add a request; False when the burst is full. `flags`: of `Flag`; `fua` is one of them by name.

        `segments` are (memory, offset, octets) with `drivers.device.DmaMemory`. Whether the request suits the disk is the
        disk's to say. Raises ValueError for a segment outside its memory, or more segments than a burst holds.
        """
        parts: Segment[256]
        request: Request
        offset: uint64_t
        octets: uint64_t
        size: uint64_t
        count: cython.int = 0
        for memory, offset, octets in segments:
            size = memory.size
            if count == 256 or offset > size or octets > size - offset or octets > 0xFFFF_FFFF:
                raise ValueError(f"{octets} octets at {offset} of {size}, segment {count} of at most 256")
            parts[count].data = cython.cast(cython.pointer[uint8_t], cython.cast(uintptr_t, memory.address)) + offset
            parts[count].iova = cython.cast(uint64_t, memory.iova) + offset
            parts[count].octets = cython.cast(uint32_t, octets)
            count += 1
        request.tag = tag
        request.lba = lba
        request.sectors = sectors
        request.segment_count = cython.cast(uint16_t, count)
        request.operation = cython.cast(uint8_t, operation)
        request.flags = cython.cast(uint8_t, flags | FUA if fua else flags)
        return self.add(cython.address(request), parts)

    def tags(self) -> list:
        """The requests' tags, in order."""
        return [self.requests[i].tag for i in range(self.count)]

    def items(self) -> list:
        """Each request, for disks written in Python: (operation, tag, lba, sectors, flags, segments as (address, octets))."""
        found = []
        for i in range(self.count):
            r: cython.pointer[Request] = cython.address(self.requests[i])
            segments = [(cython.cast(uintptr_t, self.segments[r.first_segment + k].data),
                         self.segments[r.first_segment + k].octets) for k in range(r.segment_count)]
            found.append((r.operation, r.tag, r.lba, r.sectors, r.flags, segments))
        return found

    def forward(self, index: cython.int, to: RequestBurst, tag: uint64_t, sectors: int = -1, sector_octets: int = 0) -> bool:
        """Add the request at `index` to another burst, with a tag of the caller's; False when that is full.

        `sectors`: only so many of it, from its front, on a disk with sectors of `sector_octets`.
        """
        parts: Segment[256]
        request: Request
        left: uint64_t
        i: cython.int
        if not 0 <= index < self.count:
            raise ValueError(f"request {index} of {self.count}")
        request = self.requests[index]
        request.tag = tag
        for i in range(request.segment_count):
            parts[i] = self.segments[request.first_segment + i]
        if 0 <= sectors < request.sectors:
            request.sectors = sectors
            left = cython.cast(uint64_t, sectors) * sector_octets
            for i in range(request.segment_count):
                parts[i].octets = cython.cast(uint32_t, min(left, parts[i].octets))
                left -= parts[i].octets
                if left == 0:
                    request.segment_count = cython.cast(uint16_t, i + 1)
                    break
        return to.add(cython.address(request), parts)

    def take(self, taken: cython.int) -> None:
        """Forget the first so many: a disk written in Python has taken them."""
        self.drop(max(0, min(taken, self.count)))

    @cython.ccall
    def clear(self):
        """Forget all requests."""
        self.count = self.segment_count = 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def add(self, request: cython.pointer[cython.const[Request]],
            segments: cython.pointer[cython.const[Segment]]) -> cython.bint:
        """Copy a request with its segments to the end; False when there is no room for it."""
        r: cython.pointer[Request]
        n: cython.int = request.segment_count
        if self.count == REQUESTS or self.segment_count + n > SEGMENTS:
            return False
        r = cython.address(self.requests[self.count])
        r[0] = request[0]
        r.first_segment = cython.cast(uint16_t, self.segment_count)
        memcpy(cython.address(self.segments[self.segment_count]), segments, n * cython.sizeof(Segment))
        self.segment_count += n
        self.count += 1
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def drop(self, taken: cython.int) -> cython.void:
        """Forget the first `taken` requests. Their segments' room comes back once the burst is empty."""
        self.count -= taken
        if self.count == 0:
            self.segment_count = 0
        elif taken:
            memmove(self.requests, cython.address(self.requests[taken]), self.count * cython.sizeof(Request))


@cython.final
@cython.cclass
class CompletionBurst:
    """Requests that have ended."""

    def __len__(self) -> int:
        return self.count

    def items(self) -> list:
        """(tag, errno) of each; errno 0: done."""
        return [(self.completions[i].tag, self.completions[i].error) for i in range(self.count)]

    def append(self, tag: uint64_t, error: cython.int = 0) -> bool:
        """Add one; False when the burst is full."""
        return self.add(tag, error)

    @cython.ccall
    def clear(self):
        """Forget all."""
        self.count = 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def add(self, tag: uint64_t, error: cython.int) -> cython.bint:
        """Add one to the end; False when there is no room for it."""
        if self.count == REQUESTS:
            return False
        self.completions[self.count].tag = tag
        self.completions[self.count].error = error
        self.count += 1
        return True
