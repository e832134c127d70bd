"""The transmit ring: frames are copied into memory the device reaches, and go out with one doorbell for a burst.

A super-segment is one frame here: a context descriptor tells the device where its headers are and how long a segment may
be, and the device splits it. The device reports the completion of some descriptors only (RS), since each report is a
write over the bus; what lies before a reported one is done, too.
"""

import cython
from cython.cimports.drivers.mmio import Mmio
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.mm.copy import copy_long
from cython.cimports.mm.frame import BURST, MAX_FRAME, TxBurst, TxFrame
from cython.cimports.mm.hw import dma_load32, dma_load64, dma_store64, get16, put16

if not cython.compiled:
    raise ImportError("drivers.e1000.transmit must be compiled: python setup.py build_ext --inplace")

SMALLEST = 64
LARGEST = 4096
BLOCK_COUNT = BLOCKS
SLOT_OCTETS = SLOT
_LARGEST_FRAME = cython.declare(cython.int, MAX_FRAME)
_REFUSALS = ("", "no_room", "too_short", "too_long", "offload")

assert len(_REFUSALS) == REFUSALS and SLOT >= _LARGEST_FRAME and SLOT % 64 == 0
assert (PER_FRAME - 1) * CHUNK >= _LARGEST_FRAME


@cython.final
@cython.cclass
class TxRing:
    """Descriptors, and an arena for the octets of the frames under way."""

    def __cinit__(self):
        self.marks = cython.NULL

    def __init__(self, mmio: Mmio, descriptors, buffers, size: cython.int, tail_register: cython.int,
                 longest: cython.int):
        """`descriptors` is `drivers.device.DmaMemory`, `buffers` a list of `BLOCK_COUNT` equal ones; all stay the caller's to
        free. `longest`: octets of the longest frame on the wire, without FCS; see `longest`.

        Raises ValueError for a size that is no multiple of 8 from 64 to 4096, or memory too small for it.
        """
        if size % 8 or not SMALLEST <= size <= LARGEST:
            raise ValueError(f"a ring of {size} descriptors: a multiple of 8 from {SMALLEST} to {LARGEST} is possible")
        if (descriptors.size < size * DESCRIPTOR or len(buffers) != BLOCKS or buffers[0].size < 2 * SLOT
                or any(block.size != buffers[0].size for block in buffers)):
            raise ValueError(f"not the memory for {size} descriptors of {DESCRIPTOR} octets and {BLOCKS} times two frames "
                             f"of {SLOT}")
        self.marks = cython.cast(cython.pointer[Mark], calloc(size, cython.sizeof(Mark)))
        if self.marks == cython.NULL:
            raise MemoryError
        self.mmio, self.descriptors, self.buffers, self.size = mmio, descriptors, buffers, size
        self.ring = cython.cast(cython.pointer[uint8_t], cython.cast(uintptr_t, descriptors.address))
        self.block_size = cython.cast(uint64_t, buffers[0].size) & ~cython.cast(uint64_t, 63)
        self.arena_size = self.block_size * BLOCKS
        for index in range(BLOCKS):
            self.block[index] = cython.cast(cython.pointer[uint8_t], cython.cast(uintptr_t, buffers[index].address))
            self.block_iova[index] = buffers[index].iova
        self.tail_register = tail_register
        self.longest = longest
        memset(cython.address(self.counters), 0, cython.sizeof(TxCounters))
        self.rewind()

    def __dealloc__(self):
        free(self.marks)

    def rewind(self) -> None:
        """Forget what was under way, as the device does in a reset. It must not be running."""
        memset(self.ring, 0, self.size * DESCRIPTOR)
        self.next = self.used = self.unmarked = 0
        self.first_mark = self.mark_count = 0
        self.arena_head = self.arena_tail = 0
        self.context[0] = self.context[1] = 0

    @property
    def iova(self) -> int:
        """Where the device finds the descriptors."""
        return self.descriptors.iova

    @property
    def outstanding(self) -> int:
        """Descriptors that the device has not reported done."""
        self._reap()
        return self.used

    def room(self) -> cython.int:
        """How many frames fit for certain, were they all super-segments; 0 to `BURST`."""
        self._reap()
        return self._room()

    def transmit(self, burst: TxBurst) -> cython.int:
        """Copy all frames and empty the burst, one doorbell; how many were refused, which are lost and counted."""
        before: uint32_t = self.next
        refused: cython.int
        self._reap()
        refused = self._take(burst)
        if self.next != before:
            self.mmio.store(self.tail_register, self.next)
        return refused

    def statistics(self) -> dict:
        """Frames since the ring was made; `tx_contexts` are the descriptors that only told of headers."""
        c: cython.pointer[TxCounters] = cython.address(self.counters)
        counts = {"tx_frames": c.frames, "tx_octets": c.octets, "tx_super_segments": c.super_segments,
                  "tx_contexts": c.contexts}
        for i in range(1, REFUSALS):
            counts[f"tx_dropped_{_REFUSALS[i]}"] = c.refused[i]
        return counts

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _room(self) -> cython.int:
        by_ring: uint64_t = (self.size - 1 - self.used) // PER_FRAME
        by_arena: uint64_t = (self.arena_size - (self.arena_head - self.arena_tail)) // SLOT
        if self.used:
            by_arena -= min(by_arena, cython.cast(uint64_t, BLOCKS))    # what is left before a block's end may be too short
        return cython.cast(cython.int, min(min(by_ring, by_arena), cython.cast(uint64_t, BURST)))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _reap(self) -> cython.void:
        """Take back what the device reports done."""
        m: cython.pointer[Mark]
        while self.mark_count:
            m = cython.address(self.marks[self.first_mark])
            if not dma_load32(self.ring + m.index * DESCRIPTOR + 12) & STATUS_DD:
                return
            self.used -= m.descriptors
            self.arena_tail = m.arena
            self.first_mark = self.first_mark + 1 if self.first_mark + 1 < self.size else 0
            self.mark_count -= 1
        self.arena_head = self.arena_tail = 0       # idle: begin again where the cache is warm

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _take(self, burst: TxBurst) -> cython.int:
        refused: cython.int = 0
        refusal: cython.int
        i: cython.int
        for i in range(burst.count):
            refusal = self._queue(cython.address(burst.frames[i]))
            if refusal != ACCEPT:
                self.counters.refused[refusal] += 1
                refused += 1
                burst.refused |= cython.cast(uint64_t, 1) << i
        burst.count = 0
        if self.unmarked:
            self._mark()
        return refused

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _queue(self, f: cython.pointer[cython.const[TxFrame]]) -> cython.int:
        at: uint64_t
        octets: cython.pointer[uint8_t]
        head: uint64_t = self.arena_head
        headers: uint32_t = 0
        if f.length < SHORTEST:
            return TOO_SHORT
        if f.length > cython.cast(uint32_t, MAX_FRAME if f.segment_size else self.longest):
            return TOO_LONG
        if (self.size - 1 - self.used < 1 + (f.length + CHUNK - 1) // CHUNK
                or not self._allot(f.length, cython.address(at))):
            return NO_ROOM
        octets = self.block[at // self.block_size] + at % self.block_size
        _copy(octets, f)
        if f.segment_size or f.checksum_start:
            headers = _headers(octets, f, self.longest)
            if headers == 0:
                self.arena_head = head
                return OFFLOAD
            if f.segment_size:
                _prepare(octets, f)
            self._context(f, headers)
        self._data(f, at)
        if self.unmarked >= REPORT_EVERY:
            self._mark()
        self.counters.frames += 1
        self.counters.octets += f.length
        self.counters.super_segments += f.segment_size != 0
        return ACCEPT

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _allot(self, octets: uint32_t, at: cython.pointer[uint64_t]) -> cython.bint:
        """Take `octets` in one piece from the arena; their offset."""
        need: uint64_t = (octets + 63) & ~cython.cast(uint64_t, 63)
        into_block: uint64_t = self.arena_head % self.block_size
        skip: uint64_t = self.block_size - into_block if into_block + need > self.block_size else 0
        if self.arena_head + skip + need - self.arena_tail > self.arena_size:
            return False
        at[0] = (self.arena_head + skip) % self.arena_size
        self.arena_head += skip + need
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _context(self, f: cython.pointer[cython.const[TxFrame]], headers: uint32_t) -> cython.void:
        """Tell the device where the headers are, unless it knows."""
        l3: uint64_t = f.l3_offset
        l4: uint64_t = f.checksum_start
        low: uint64_t = l3 | l4 << 32 | (l4 + f.checksum_offset) << 40      # no end: to the end of the frame
        high: uint64_t = DEXT
        if f.family == 4:
            low |= (l3 + 10) << 8 | (l4 - 1) << 16
            high |= TUCMD_IP
        else:
            low |= (l4 - 1) << 8        # never used without IXSM, yet inside the frame
        if f.checksum_offset == 16:
            high |= TUCMD_TCP
        if f.segment_size:
            high |= (TSE | cython.cast(uint64_t, f.length - headers) | cython.cast(uint64_t, headers) << 40
                     | cython.cast(uint64_t, f.segment_size) << 48)
        if low != self.context[0] or high != self.context[1]:
            self.context[0] = low
            self.context[1] = high
            self.counters.contexts += 1
            self._put(low, high)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _data(self, f: cython.pointer[cython.const[TxFrame]], at: uint64_t) -> cython.void:
        command: uint64_t = DTYP_DATA | IFCS | DEXT
        options: uint64_t = 0
        left: uint32_t = f.length
        part: uint32_t
        iova: uint64_t = self.block_iova[at // self.block_size] + at % self.block_size
        if f.checksum_start:
            options = POPTS_TXSM
        if f.segment_size:
            command |= TSE
            if f.family == 4:
                options |= POPTS_IXSM
        while left:
            part = min(left, cython.cast(uint32_t, CHUNK))
            left -= part
            self._put(iova, command | part | (0 if left else EOP) | options << 32)
            iova += part

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _put(self, low: uint64_t, high: uint64_t) -> cython.void:
        """Fill the next descriptor."""
        descriptor: cython.pointer[uint8_t] = self.ring + self.next * DESCRIPTOR
        dma_store64(descriptor, low)
        dma_store64(descriptor + 8, high)
        self.next = self.next + 1 if self.next + 1 < self.size else 0
        self.used += 1
        self.unmarked += 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _mark(self) -> cython.void:
        """Have the device report the last descriptor, which it has not seen yet."""
        index: uint32_t = self.next - 1 if self.next else self.size - 1
        high: cython.pointer[uint8_t] = self.ring + index * DESCRIPTOR + 8
        slot: uint32_t = self.first_mark + self.mark_count
        m: cython.pointer[Mark] = cython.address(self.marks[slot if slot < self.size else slot - self.size])
        dma_store64(high, dma_load64(high) | RS)
        m.index = index
        m.descriptors = self.unmarked
        m.arena = self.arena_head
        self.mark_count += 1
        self.unmarked = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _headers(frame: cython.pointer[cython.const[uint8_t]], f: cython.pointer[cython.const[TxFrame]],
             longest: uint32_t) -> uint32_t:
    """Octets of all headers of a super-segment, else anything but 0; 0: the device cannot do what is asked of it.

    It knows places in the headers by 8-bit offsets, and the length of a TCP segment has 16 bits.
    """
    start: uint32_t = f.checksum_start
    headers: uint32_t
    if (f.l3_offset >= start or start + f.checksum_offset > 255 or start + f.checksum_offset + 2 > f.length
            or (f.family == 4 and start < f.l3_offset + cython.cast(uint32_t, 20))):
        return 0
    if f.segment_size == 0:
        return start
    if (f.family not in (4, 6) or f.checksum_offset != 16 or start + 20 > f.length or f.length - start > 0xFFFF
            or (f.family == 6 and start < f.l3_offset + cython.cast(uint32_t, 40))):
        return 0
    headers = start + (frame[start + 12] >> 4) * 4
    if headers < start + 20 or headers > f.length or headers > 255 or headers + f.segment_size > longest:
        return 0
    return headers


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _copy(to: cython.pointer[uint8_t], f: cython.pointer[cython.const[TxFrame]]) -> cython.void:
    memcpy(to, f.head, f.head_length)
    to += f.head_length
    if f.part_length[0]:
        copy_long(to, f.part[0], f.part_length[0])
        to += f.part_length[0]
    if f.part_length[1]:
        copy_long(to, f.part[1], f.part_length[1])


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _prepare(frame: cython.pointer[uint8_t], f: cython.pointer[cython.const[TxFrame]]) -> cython.void:
    """Make the headers what the device goes on from (8254x 3.5): lengths and the IPv4 checksum zero, and the pseudo
    header's sum without the length, which is each segment's own."""
    ip: cython.pointer[uint8_t] = frame + f.l3_offset
    field: cython.pointer[uint8_t] = frame + f.checksum_start + f.checksum_offset
    total: uint32_t = get16(field) + (0xFFFF - (f.length - f.checksum_start))
    put16(field, cython.cast(uint16_t, (total & 0xFFFF) + (total >> 16)))
    if f.family == 4:
        put16(ip + 2, 0)
        put16(ip + 10, 0)
    else:
        put16(ip + 4, 0)
