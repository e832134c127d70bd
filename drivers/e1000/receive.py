"""The receive ring: the device writes frames into buffers of ours, a burst points at them, and they go back a call later.

The device owns the descriptors from its head up to the tail register, never all of them, since head = tail means none.
A frame longer than a buffer fills several, one after the other. Neighbours in the ring are neighbours in memory, so it
lies there in one piece; only where the ring begins anew its rest is copied behind the last buffer.

Two layouts. The 8254x know legacy descriptors only. The 82574 knows both; there the extended ones are used, as Linux
does, so that they are what the chip is proven with: they have room for all it may say of a frame, and status and errors
come in one word. Legacy ones are for finding out whether a fault lies in the layout.
"""

import cython
from cython.cimports.drivers.mmio import Mmio
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.mm.frame import BURST, RX_CHECKSUM, RxBurst, RxFrame
from cython.cimports.mm.hw import dma_load32, dma_store64, get16, load16, read_fence

if not cython.compiled:
    raise ImportError("drivers.e1000.receive must be compiled: python setup.py build_ext --inplace")

SMALLEST = 64
LARGEST = 4096


def buffer_octets(size: cython.int) -> int:
    """How much memory the buffers of a ring of so many descriptors need."""
    return (size + PIECES - 1) * BUFFER


@cython.final
@cython.cclass
class RxRing:
    """Descriptors and a buffer of 2048 octets for each, and room for what a long frame has beyond the last."""

    def __init__(self, mmio: Mmio, descriptors, buffers, size: cython.int, tail_register: cython.int,
                 extended: cython.bint):
        """`descriptors` and `buffers` are `drivers.device.DmaMemory`, and stay the caller's to free.

        Raises ValueError for a size that is no multiple of 8 from 64 to 4096, or memory too small for it.
        """
        if size % 8 or not SMALLEST <= size <= LARGEST:
            raise ValueError(f"a ring of {size} descriptors: a multiple of 8 from {SMALLEST} to {LARGEST} is possible")
        if descriptors.size < size * DESCRIPTOR or buffers.size < buffer_octets(size):
            raise ValueError(f"too little memory for {size} descriptors of {DESCRIPTOR} and buffers of {BUFFER} octets")
        self.mmio, self.descriptors, self.buffers, self.size = mmio, descriptors, buffers, size
        self.ring = cython.cast(cython.pointer[uint8_t], cython.cast(uintptr_t, descriptors.address))
        self.memory = cython.cast(cython.pointer[uint8_t], cython.cast(uintptr_t, buffers.address))
        self.memory_iova = buffers.iova
        self.tail_register = tail_register
        self.extended = extended
        memset(cython.address(self.counters), 0, cython.sizeof(RxCounters))
        self.rewind()

    def rewind(self) -> None:
        """All descriptors empty and ours, as the device expects them after a reset. It must not be running."""
        index: uint32_t
        for index in range(self.size):
            self._clean(index)
        self.next = self.owed = 0
        self.skipping = False

    def offer(self) -> None:
        """Give the device all descriptors but one. Once, after its ring registers are set."""
        self.mmio.store(self.tail_register, self.size - 1)

    @property
    def iova(self) -> int:
        """Where the device finds the descriptors."""
        return self.descriptors.iova

    @property
    def waiting(self) -> bool:
        """Whether a frame is there, all of it."""
        return self._pieces(self.next) != 0

    def harvest(self, burst: RxBurst) -> cython.int:
        """Give the last burst's buffers back with one doorbell, then fill the burst; how many frames.

        Looks at no more than `BURST` descriptors and half the ring, so that the device always has some. Frames that are
        dropped count among them: 0 does not mean that none waits. The octets stay valid until the next call.
        """
        burst.clear()
        if self._give_back():
            self.mmio.store(self.tail_register, (self.next + self.size - 1) % self.size)
        return self._harvest(burst)

    def statistics(self) -> dict:
        """Frames since the ring was made."""
        c: cython.pointer[RxCounters] = cython.address(self.counters)
        return {"rx_frames": c.frames, "rx_octets": c.octets, "rx_checksums": c.checksums,
                "rx_dropped_error": c.dropped_error, "rx_dropped_length": c.dropped_length,
                "rx_dropped_long": c.dropped_long}

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _harvest(self, burst: RxBurst) -> cython.int:
        limit: uint32_t = min(cython.cast(uint32_t, BURST), self.size >> 1)
        pieces: uint32_t
        while self.owed < limit:
            pieces = self._pieces(self.next)
            if pieces == 0:
                break
            read_fence()        # the rest of the descriptors and the frame were written before
            self._take(burst, self.next, pieces)
            self.owed += pieces
            self.next = self._after(self.next, pieces)
        return burst.count

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _pieces(self, index: uint32_t) -> uint32_t:
        """How many buffers the frame fills that begins at `index`; 0 while it is not all there.

        PIECES, too, for one that does not end within so many.
        """
        pieces: uint32_t
        word: uint32_t
        for pieces in range(1, PIECES + 1):
            word = self._word(index)
            if not word & DD:
                return 0
            if word & EOP:
                return pieces
            index = self._after(index, 1)
        return PIECES

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _take(self, burst: RxBurst, index: uint32_t, pieces: uint32_t) -> cython.void:
        """Point the burst at the frame, or count why not."""
        f: cython.pointer[RxFrame]
        last: uint32_t = self._after(index, pieces - 1)
        word: uint32_t = self._word(last)
        errors: uint32_t = word >> (ERRORS_EXTENDED if self.extended else ERRORS_LEGACY) & 0xFF
        length: uint32_t = self._length(last)
        data: cython.pointer[uint8_t] = self.memory + cython.cast(uint64_t, index) * BUFFER
        if self.skipping or not word & EOP:
            self.counters.dropped_long += not self.skipping
            self.skipping = not word & EOP
            return
        if errors & ERROR_FRAME:
            self.counters.dropped_error += 1
            return
        if length > BUFFER or (pieces > 1 and not self._gather(index, pieces)):
            self.counters.dropped_length += 1
            return
        length += (pieces - 1) * BUFFER
        if length < SHORTEST:
            self.counters.dropped_length += 1
            return
        f = cython.address(burst.frames[burst.count])
        f.data = data
        f.length = length
        f.segment_size = 0
        f.flags = 0
        if word & TCPCS and not errors & ERROR_CHECKSUM and (self.extended or not word & IXSM) and _vouched(data, word):
            f.flags = RX_CHECKSUM
            self.counters.checksums += 1
        burst.count += 1
        self.counters.frames += 1
        self.counters.octets += length

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _gather(self, index: uint32_t, pieces: uint32_t) -> cython.bint:
        """See that a frame of several buffers lies in one piece; False when the device left one of them half empty."""
        i: uint32_t
        over: uint32_t = index + pieces - self.size if index + pieces > self.size else 0
        for i in range(pieces - 1):
            if self._length(self._after(index, i)) != BUFFER:
                return False
        if over:
            memcpy(self.memory + cython.cast(uint64_t, self.size) * BUFFER, self.memory, over * BUFFER)
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _give_back(self) -> cython.bint:
        """Clean the descriptors of the last burst; whether there were any."""
        index: uint32_t = (self.next + self.size - self.owed) % self.size
        if self.owed == 0:
            return False
        while self.owed:
            self._clean(index)
            index = index + 1 if index + 1 < self.size else 0
            self.owed -= 1
        return True

    @cython.cfunc
    @cython.nogil
    @cython.inline
    @cython.exceptval(check=False)
    def _word(self, index: uint32_t) -> uint32_t:
        """Status and errors; legacy: without the octets behind them."""
        if self.extended:
            return dma_load32(self.ring + index * DESCRIPTOR + 8)
        return dma_load32(self.ring + index * DESCRIPTOR + 12) & 0xFFFF

    @cython.cfunc
    @cython.nogil
    @cython.inline
    @cython.exceptval(check=False)
    def _length(self, index: uint32_t) -> uint32_t:
        """Octets in one buffer."""
        return load16(self.ring + index * DESCRIPTOR + (12 if self.extended else 8))

    @cython.cfunc
    @cython.nogil
    @cython.inline
    @cython.exceptval(check=False)
    def _after(self, index: uint32_t, steps: uint32_t) -> uint32_t:
        """So many descriptors on; fewer than the ring has."""
        index += steps
        return index - self.size if index >= self.size else index

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _clean(self, index: uint32_t) -> cython.void:
        """As the device wants it: the buffer's address, and zeros."""
        descriptor: cython.pointer[uint8_t] = self.ring + index * DESCRIPTOR
        dma_store64(descriptor, self.memory_iova + cython.cast(uint64_t, index) * BUFFER)
        dma_store64(descriptor + 8, 0)


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _vouched(data: cython.pointer[uint8_t], word: uint32_t) -> cython.bint:
    """Whether a verified transport checksum counts: over IPv4 only if the header's was verified, too."""
    ethertype: cython.int = get16(data + 12)
    if ethertype == 0x8100:
        ethertype = get16(data + 16)
    return ethertype != 0x0800 or word & IPCS != 0
