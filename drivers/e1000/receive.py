"""The receive ring: the device writes frames into buffers of ours, a burst points at them, and they go back a call later.

The device owns the descriptors from its head up to the tail register, never all of them, since head = tail means none.
"""

import cython
from cython.cimports.drivers.mmio import Mmio
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.string import memset
from cython.cimports.mm.frame import BURST, RX_CHECKSUM, RxBurst, RxFrame
from cython.cimports.mm.hw import dma_load32, dma_store64, get16, load16, read_fence

if not cython.compiled:
    raise ImportError("drivers.e1000.receive must be compiled: python setup.py build_ext --inplace")

SMALLEST = 64
LARGEST = 4096
BUFFER_OCTETS = BUFFER


@cython.final
@cython.cclass
class RxRing:
    """Descriptors and a buffer of 2048 octets for each."""

    def __init__(self, mmio: Mmio, descriptors, buffers, size: cython.int, tail_register: cython.int,
                 extended: cython.bint):
        """`descriptors` and `buffers` are `drivers.device.DmaMemory`, and stay the caller's to free.

        Raises ValueError for a size that is no multiple of 8 from 64 to 4096, or memory too small for it.
        """
        if size % 8 or not SMALLEST <= size <= LARGEST:
            raise ValueError(f"a ring of {size} descriptors: a multiple of 8 from {SMALLEST} to {LARGEST} is possible")
        if descriptors.size < size * DESCRIPTOR or buffers.size < size * BUFFER:
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
        """Whether a frame is there."""
        return self._word(self.next) & DD != 0

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
        word: uint32_t
        index: uint32_t = self.next
        while self.owed < limit:
            word = self._word(index)
            if not word & DD:
                break
            read_fence()        # the rest of the descriptor and the frame were written before it
            self._take(burst, self.ring + index * DESCRIPTOR, self.memory + index * BUFFER, word)
            self.owed += 1
            index = index + 1 if index + 1 < self.size else 0
        self.next = index
        return burst.count

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _take(self, burst: RxBurst, descriptor: cython.pointer[uint8_t], data: cython.pointer[uint8_t],
              word: uint32_t) -> cython.void:
        """Point the burst at the frame, or count why not."""
        f: cython.pointer[RxFrame]
        errors: uint32_t = word >> (ERRORS_EXTENDED if self.extended else ERRORS_LEGACY) & 0xFF
        length: uint32_t = load16(descriptor + (12 if self.extended else 8))
        if self.skipping or not word & EOP:
            self.counters.dropped_long += not self.skipping
            self.skipping = not word & EOP
            return
        if errors & ERROR_FRAME:
            self.counters.dropped_error += 1
            return
        if length < SHORTEST or length > BUFFER:
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
