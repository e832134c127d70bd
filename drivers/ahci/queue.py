"""Command slots: a burst of requests becomes commands with one doorbell, and what the device has done becomes completions.

The rules of the house (AHCI 5.3, 5.6; SATA 13.6): first the table, then PxSACT, then PxCI. Queued and other commands never
run together: one that is not queued waits until nothing runs, and nothing is taken while it waits or runs. A slot keeps its
table until its request ends, so after an error its command is issued again as it stands, or made a plain one.
"""

import cython
from cython.cimports.drivers.mmio import Mmio
from cython.cimports.drivers.request import FUA, REQUESTS, CompletionBurst, Request, RequestBurst, Segment
from cython.cimports.drivers.request import FLUSH, READ, TRIM, WRITE, WRITE_ZEROES
from cython.cimports.libc.errno import EINVAL, EOPNOTSUPP, EROFS
from cython.cimports.libc.stdint import int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from cython.cimports.mm.hw import dma_load64, dma_store64, put16, put32

if not cython.compiled:
    raise ImportError("drivers.ahci.queue must be compiled: python setup.py build_ext --inplace")

MEMORY_OCTETS = QUEUE_OCTETS
"""Of a queue's own memory: the command tables, and what TRIM sends."""
PORT_MEMORY_OCTETS = PORT_OCTETS_SHARED
LIST_OFFSET, FIS_OFFSET = LIST_AT, FIS_AT
MAX_SEGMENTS, MAX_REQUEST_SECTORS, MAX_TRIM_SECTORS = PRDS, MAX_SECTORS, MAX_TRIM
SUSPECT = -1
"""`harvest`: commands are done, and no FIS says so. Is the device still there?"""
TROUBLE = -2
"""`harvest`: the device reports an error."""
_ONES = cython.declare(uint32_t, 0xFFFF_FFFF)

assert cython.sizeof(CommandHeader) == 32 and cython.sizeof(CommandFis) == 20 and cython.sizeof(Prd) == 16
assert cython.sizeof(CommandTable) == TABLE_OCTETS
assert ENDED >= SLOTS + REQUESTS


@cython.final
@cython.cclass
class CommandQueue:
    """The slots of one device: all of its port's, or behind a port multiplier its own set in the same places."""

    def __init__(self, mmio: Mmio, port: cython.int, port_memory, memory, reach: uint64_t, multiplied: object = None):
        """`port`: where its registers begin in the BAR. `port_memory`: PORT_MEMORY_OCTETS, of all devices of the port.
        `memory`: MEMORY_OCTETS, its own. Both page-aligned, the caller's to free.

        `reach`: the first address that the controller does not reach. `multiplied`: the device's port behind a multiplier.
        No requests are taken before `configure`.
        """
        if memory.size < MEMORY_OCTETS or port_memory.size < PORT_MEMORY_OCTETS:
            raise ValueError(f"a port needs {PORT_MEMORY_OCTETS} octets and a queue {MEMORY_OCTETS}")
        self.mmio, self.port, self.port_memory, self.memory, self.reach = mmio, port, port_memory, memory, reach
        self.base = cython.cast(cython.pointer[uint8_t], cython.cast(uintptr_t, port_memory.address))
        self.tables = cython.cast(cython.pointer[uint8_t], cython.cast(uintptr_t, memory.address))
        self.iova = memory.iova
        self.shared = multiplied is not None
        self.pm = multiplied or 0
        self.frozen = True

    def configure(self, depth: cython.int, queued: cython.bint, plain_fua: cython.bint, sectors: uint64_t,
                  sector_octets: uint32_t, trims: cython.bint = False, queued_trims: cython.bint = False,
                  zeroes: cython.bint = False, packet: cython.bint = False) -> None:
        """What the drive is; `plain_fua`: it has WRITE DMA FUA EXT. Raises ValueError while requests are under way."""
        if self.active or self.waiting or not 0 < depth <= SLOTS:
            raise ValueError("requests are under way, or the depth is not 1 to 32")
        self.depth, self.queued, self.plain_fua = depth, queued, plain_fua
        self.sectors, self.sector_octets, self.packet = sectors, sector_octets, packet
        self.trims, self.queued_trims, self.zeroes = trims, queued_trims and queued, zeroes and trims
        self.free_first, self.free_count = 0, depth
        for i in range(depth):
            self.free[i] = i

    # Requests.

    def room(self) -> cython.int:
        """How many requests `submit` takes now."""
        if self.dead:
            return min(ENDED - SLOTS - self.ended_count, REQUESTS) if self.ended_count < ENDED - SLOTS else 0
        return self.free_count if self._accepts() else 0

    def submit(self, burst: RequestBurst) -> cython.int:
        """Take requests from the burst's front and issue them with one doorbell; how many."""
        before: cython.int = burst.count
        self._take(burst)
        if self.waiting:
            self._issue()
        return before - burst.count

    def harvest(self, out: CompletionBurst, closely: cython.bint = True, trust: cython.bint = False) -> cython.int:
        """Empty the burst and fill it with requests that have ended; how many, SUSPECT, or TROUBLE.

        A look at memory is for nothing, one at a register waits for the bus: not `closely`, the register is asked only once
        a FIS says that it is worth it. A FIS may be missed, so every few vain looks must be close ones.
        `trust`: the device is there even though no FIS says so.
        """
        code: cython.int
        out.count = 0
        if self.active and not self.frozen:
            self.counters.looks += 1
            code = self._look(closely, trust)
            if code:
                return code
        self._tell(out)
        return out.count

    def arm(self, causes: uint32_t, news: uint32_t) -> bool:
        """Let `causes` interrupt, those of them in `news` only when they come again; whether there is nothing to harvest.

        It is armed either way. One read at the end sees what came meanwhile: it has the writes arrive before.
        """
        plain: cython.bint = self.active & self.plain != 0
        self.mmio.store(self.port + P_IS, news)
        self.mmio.store(self.port + P_IE, causes)
        if self.ended_count:
            return False
        if self.active == 0 or self.frozen:
            return True
        word: uint32_t = cython.cast(uint32_t, self._pending(plain))
        return not (self.active & ~word or self._received(plain) >> 16 & STATUS_ERR)

    def disarm(self, bit: uint32_t) -> None:
        """No interrupts from this port, and forget the one that came: IS gets `bit`. AHCI 10.7."""
        self.mmio.store(self.port + P_IE, 0)
        self.mmio.store(8, bit)

    def status(self) -> int:
        """PxIS."""
        return cython.cast(uint32_t, self.mmio.load(self.port + P_IS))

    # When something went wrong. Masks have a bit for each slot.

    def freeze(self) -> None:
        """Issue nothing, take nothing, harvest nothing."""
        self.frozen = True

    def settle(self) -> None:
        """What the registers say is done is done: the last look before the command engine is stopped, which clears them."""
        if self.active and not self.active & self.plain:
            self._finish(self.active & ~cython.cast(uint32_t, self.mmio.load(self.port + P_SACT)), 0)

    def resume(self) -> None:
        """`held` no more: issue what waits."""
        self.held = False
        self._issue()

    def give_up_queuing(self) -> None:
        """From now on all commands are plain ones, those that wait as well. Nothing may be active."""
        self.queued = self.queued_trims = False
        self.isolate()

    def requeue(self) -> None:
        """The device has forgotten what it had: all that wait to be issued again."""
        self.waiting |= self.active
        self.active = 0

    def isolate(self) -> None:
        """Of those that wait, make every command a plain one: they will run one by one, so that one error is one slot's."""
        slot: uint32_t
        for slot in range(SLOTS):
            if self.waiting >> slot & 1:
                self._command(slot, False)

    @property
    def finished(self) -> int:
        """How many requests have ended so far."""
        c: cython.pointer[Counters] = cython.address(self.counters)
        return c.reads + c.writes + c.flushes + c.trims + c.failed

    def fail(self, mask: uint32_t, error: cython.int) -> None:
        """End these requests with an errno; the others are not touched."""
        mask &= self.active | self.waiting
        self._finish(mask, error)

    def blame(self, mask: uint32_t, limit: cython.int) -> int:
        """Count another try of these; those of them which have had `limit`."""
        tired: uint32_t = 0
        slot: uint32_t
        for slot in range(SLOTS):
            if mask >> slot & 1:
                self.slots[slot].tries += 1
                if self.slots[slot].tries >= limit:
                    tired |= cython.cast(uint32_t, 1) << slot
        return tired

    def thaw(self) -> None:
        """Go on: issue what waits."""
        self.frozen = False
        if self.waiting:
            self._issue()

    def kill(self, error: cython.int) -> None:
        """The disk has failed for good: this is how every request ends, also those to come."""
        self.dead = error
        self._finish(self.active | self.waiting, error)

    def oldest(self) -> tuple:
        """(mask, serial) of the request that is longest with the device; (0, 0) when it has none."""
        mask: uint32_t = self._oldest(self.active)
        slot: uint32_t
        for slot in range(SLOTS):
            if mask >> slot & 1:
                return mask, self.slots[slot].serial
        return 0, 0

    def describe(self, mask: uint32_t) -> list:
        """(operation, lba, sectors) of these slots."""
        return [(self.slots[i].operation, self.slots[i].lba, self.slots[i].sectors) for i in range(SLOTS) if mask >> i & 1]

    def received_error(self) -> int:
        """Status and error register (high octet) as the last FIS about commands told them."""
        plain: cython.bint = self.active & self.plain != 0
        return self._received(plain) >> 16 & 0xFFFF

    def statistics(self) -> dict:
        """Counters since it was made."""
        c: cython.pointer[Counters] = cython.address(self.counters)
        return {"reads": c.reads, "writes": c.writes, "flushes": c.flushes, "trims": c.trims,
                "sectors_read": c.sectors_read, "sectors_written": c.sectors_written, "sectors_trimmed": c.sectors_trimmed,
                "failed": c.failed, "refused": c.refused, "doorbells": c.doorbells, "looks": c.looks}

    # Inside.

    @cython.cfunc
    @cython.exceptval(1, check=True)
    def _look(self, closely: cython.bint, trust: cython.bint) -> cython.int:
        """Finish what is done; 0, SUSPECT or TROUBLE."""
        plain: cython.bint = self.active & self.plain != 0
        received: uint64_t = self._received(plain)
        word: uint32_t
        done: uint32_t
        if received == 0 and not closely:
            return 0
        if self._tells_all(received, plain):
            done = self.unsure = self.active
        else:
            word = self._pending(plain)
            done = self.active & ~word
            if word == _ONES and self.active != _ONES:
                return SUSPECT
            if received == 0:
                received = self._received(plain)    # it may have come just before the register told of it
            if done and received == 0 and not trust:
                return SUSPECT
            if received >> 16 & (STATUS_ERR | STATUS_DF if plain else STATUS_ERR):
                if not plain:
                    self._finish(done, 0)           # told by the next look
                return TROUBLE
        if done:
            if not plain or not self._flush_after(done):
                self._finish(done, 0)
            if self.waiting:
                self._issue()
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _tells_all(self, received: uint64_t, plain: cython.bint) -> cython.bint:
        """Whether this FIS, with no register, says that the one command under way is done.

        Of several it may tell of some only, having overwritten the FIS of others.
        """
        return (not plain and self.active & (self.active - 1) == 0
                and received >> 32 & self.active != 0 and not received >> 16 & STATUS_ERR)

    @cython.cfunc
    @cython.exceptval(-1, check=True)
    def _pending(self, plain: cython.bint) -> int64_t:
        """Slots whose commands are not done, as the register says."""
        return self.mmio.load(self.port + (P_CI if plain else P_SACT))

    @cython.cfunc
    @cython.nogil
    @cython.inline
    @cython.exceptval(check=False)
    def _table(self, index: uint32_t) -> cython.pointer[CommandTable]:
        return cython.cast(cython.pointer[CommandTable], self.tables + index * TABLE_OCTETS)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _accepts(self) -> cython.bint:
        return (not self.frozen and self.free_count != 0 and (self.active | self.waiting) & self.plain == 0
                and self.ended_count < ENDED - SLOTS)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _take(self, burst: RequestBurst) -> cython.void:
        taken: cython.int = 0
        error: cython.int
        r: cython.pointer[Request]
        while taken < burst.count and (self._accepts() or (self.dead and self.ended_count < ENDED - SLOTS)):
            r = cython.address(burst.requests[taken])
            error = self.dead if self.dead else self._check(r, cython.address(burst.segments[r.first_segment]))
            if error:
                self.counters.refused += 1
                self._end(r.tag, error)
            elif self.packet and r.operation == FLUSH:      # nothing can be written
                self.counters.flushes += 1
                self._end(r.tag, 0)
            else:
                self._fill(r, cython.address(burst.segments[r.first_segment]))
            taken += 1
        burst.drop(taken)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _check(self, r: cython.pointer[cython.const[Request]],
               segments: cython.pointer[cython.const[Segment]]) -> cython.int:
        """0, or the errno of a request that makes no sense."""
        total: uint64_t = 0
        octets: uint64_t
        i: cython.int
        if r.operation == FLUSH:
            return EINVAL if r.segment_count or r.sectors else 0
        if r.operation > WRITE_ZEROES or (r.flags & FUA and r.operation == READ):
            return EOPNOTSUPP
        if self.packet and r.operation != READ:
            return EROFS
        if r.sectors == 0 or r.sectors > self.sectors or r.lba > self.sectors - r.sectors or r.segment_count > PRDS:
            return EINVAL
        if r.operation == TRIM or r.operation == WRITE_ZEROES:
            if not self.trims or (r.operation == WRITE_ZEROES and not self.zeroes):
                return EOPNOTSUPP
            return EINVAL if r.segment_count or r.sectors > MAX_TRIM else 0
        if r.sectors > MAX_SECTORS:
            return EINVAL
        for i in range(r.segment_count):
            octets = segments[i].octets
            if (octets == 0 or octets > LONGEST_PRD or (octets | segments[i].iova) & 1
                    or segments[i].iova > self.reach - octets):
                return EINVAL
            total += octets
        return 0 if total == cython.cast(uint64_t, r.sectors) * self.sector_octets else EINVAL

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _fill(self, r: cython.pointer[cython.const[Request]],
              segments: cython.pointer[cython.const[Segment]]) -> cython.void:
        """Make the request a command in a free slot, to be issued."""
        slot: uint32_t
        s: cython.pointer[Slot]
        prd: cython.pointer[uint8_t]
        i: cython.int
        slot = self.free[self.free_first]
        self.free_first = (self.free_first + 1) % SLOTS
        self.free_count -= 1
        s = cython.address(self.slots[slot])
        s.tag = r.tag
        s.lba = r.lba
        s.sectors = r.sectors
        s.operation = r.operation
        s.flags = r.flags
        s.tries = 0
        s.prds = r.segment_count
        self.serial += 1
        s.serial = self.serial
        prd = cython.cast(cython.pointer[uint8_t], self._table(slot).prds)
        for i in range(r.segment_count):
            dma_store64(prd, segments[i].iova)
            dma_store64(prd + 8, cython.cast(uint64_t, segments[i].octets - 1) << 32)
            prd += cython.sizeof(Prd)
        self._command(slot, self._queues(r))
        self.waiting |= cython.cast(uint32_t, 1) << slot

    @cython.cfunc
    @cython.nogil
    @cython.inline
    @cython.exceptval(check=False)
    def _queues(self, r: cython.pointer[cython.const[Request]]) -> cython.bint:
        """Whether it goes by NCQ."""
        if r.operation <= WRITE:
            return self.queued
        return r.operation != FLUSH and self.queued_trims and not r.flags & FUA

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _command(self, slot: uint32_t, queued: cython.bint) -> cython.void:
        """Write the slot's header and its command FIS, queued or plain."""
        s: cython.pointer[Slot] = cython.address(self.slots[slot])
        f: cython.pointer[CommandFis] = cython.address(self._table(slot).fis)
        bit: uint32_t = cython.cast(uint32_t, 1) << slot
        write: cython.bint = s.operation == WRITE
        fua: cython.bint = s.flags & FUA != 0
        s.then_flush = False
        if s.operation >= TRIM:
            self._trim(slot, queued)
            return
        if self.packet:
            self._packet(slot)
            return
        self._header(slot, s.prds, HEADER_WRITE if write else 0)
        if queued:
            self.plain &= ~bit
            _fis(f, WRITE_FPDMA_QUEUED if write else READ_FPDMA_QUEUED, s.lba, slot << 3, s.sectors,
                 DEVICE_LBA | (DEVICE_FUA if fua else 0), self.pm)
            return
        self.plain |= bit
        if s.operation == FLUSH:
            _fis(f, FLUSH_CACHE_EXT, 0, 0, 0, DEVICE_LBA, self.pm)
        elif write:
            s.then_flush = fua and not self.plain_fua
            _fis(f, WRITE_DMA_FUA_EXT if fua and self.plain_fua else WRITE_DMA_EXT, s.lba, s.sectors, 0, DEVICE_LBA, self.pm)
        else:
            _fis(f, READ_DMA_EXT, s.lba, s.sectors, 0, DEVICE_LBA, self.pm)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _trim(self, slot: uint32_t, queued: cython.bint) -> cython.void:
        """DATA SET MANAGEMENT, ACS-3 7.6, or as SEND FPDMA QUEUED, 7.62: the ranges are data that is sent."""
        s: cython.pointer[Slot] = cython.address(self.slots[slot])
        t: cython.pointer[CommandTable] = self._table(slot)
        f: cython.pointer[CommandFis] = cython.address(t.fis)
        bit: uint32_t = cython.cast(uint32_t, 1) << slot
        place: uint32_t = RANGES_AT + slot * RANGES_OCTETS
        at: cython.pointer[uint8_t] = self.tables + place
        lba: uint64_t = s.lba
        left: uint32_t = s.sectors
        count: uint32_t
        i: cython.int
        for i in range(RANGES):
            count = min(left, cython.cast(uint32_t, RANGE_SECTORS))
            dma_store64(at + 8 * i, lba | cython.cast(uint64_t, count) << 48 if count else 0)
            lba += count
            left -= count
        s.prds = 1
        dma_store64(cython.cast(cython.pointer[uint8_t], t.prds), self.iova + place)
        dma_store64(cython.cast(cython.pointer[uint8_t], t.prds) + 8, cython.cast(uint64_t, RANGES_OCTETS - 1) << 32)
        self._header(slot, 1, HEADER_WRITE)
        if queued:
            self.plain &= ~bit
            _fis(f, SEND_FPDMA_QUEUED, 0, slot << 3, 1, DEVICE_LBA, self.pm)
            dma_store64(cython.cast(cython.pointer[uint8_t], f) + 16, AUXILIARY_TRIM)
        else:
            self.plain |= bit
            s.then_flush = s.flags & FUA != 0
            _fis(f, DATA_SET_MANAGEMENT, 0, 1, FEATURE_TRIM, DEVICE_LBA, self.pm)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _packet(self, slot: uint32_t) -> cython.void:
        """READ (10), MMC-6 6.15, or READ (12) where its count is too short; big-endian."""
        s: cython.pointer[Slot] = cython.address(self.slots[slot])
        t: cython.pointer[CommandTable] = self._table(slot)
        at: cython.pointer[uint8_t] = cython.cast(cython.pointer[uint8_t], t.packet)
        long: cython.bint = s.sectors > 0xFFFF
        dma_store64(at, 0)
        dma_store64(at + 8, 0)
        at[0] = READ_12 if long else READ_10
        put32(at + 2, cython.cast(uint32_t, s.lba))
        if long:
            put32(at + 6, s.sectors)
        else:
            put16(at + 7, cython.cast(uint16_t, s.sectors))
        self.plain |= cython.cast(uint32_t, 1) << slot
        self._header(slot, s.prds, HEADER_PACKET)
        _fis(cython.address(t.fis), PACKET, 0, 0, FEATURE_DMA | FEATURE_TO_HOST, DEVICE_PACKET, self.pm)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _header(self, slot: uint32_t, prds: uint32_t, flags: uint32_t) -> cython.void:
        at: cython.pointer[uint8_t] = self.base + LIST_AT + slot * cython.sizeof(CommandHeader)
        flags |= FIS_DWORDS | self.pm << HEADER_PM_SHIFT
        self.slots[slot].header = cython.cast(uint16_t, flags)
        if not self.shared:
            dma_store64(at, cython.cast(uint64_t, prds) << 16 | flags)
            dma_store64(at + 8, self.iova + slot * TABLE_OCTETS)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _headers(self, mask: uint32_t) -> cython.void:
        """Write these slots' headers: where others share the command list, they may have been theirs."""
        at: cython.pointer[uint8_t] = self.base + LIST_AT
        slot: uint32_t
        for slot in range(SLOTS):
            if mask >> slot & 1:
                dma_store64(at, cython.cast(uint64_t, self.slots[slot].prds) << 16 | self.slots[slot].header)
                dma_store64(at + 8, self.iova + slot * TABLE_OCTETS)
            at += cython.sizeof(CommandHeader)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _flush_after(self, bit: uint32_t) -> cython.bint:
        """Whether the plain write that is done must be flushed before it counts as done; then its slot waits to do that."""
        slot: uint32_t
        for slot in range(SLOTS):
            if bit >> slot & 1 and self.slots[slot].then_flush:
                self.slots[slot].then_flush = False
                self.slots[slot].prds = 0
                self._header(slot, 0, 0)
                _fis(cython.address(self._table(slot).fis), FLUSH_CACHE_EXT, 0, 0, 0, DEVICE_LBA, self.pm)
                self.active &= ~bit
                self.waiting |= bit
                return True
        return False

    @cython.cfunc
    @cython.exceptval(-1, check=True)
    def _issue(self) -> cython.int:
        """Ring the doorbell for what waits, as far as the rules let it."""
        mask: uint32_t = self.waiting & ~self.plain
        if self.frozen or self.held or self.active & self.plain:
            return 0
        if mask:
            if self.active == 0:
                dma_store64(self.base + FIS_AT + RECEIVED_SDB, 0)       # what it says is over
            if mask & self.unsure:
                self._make_sure()
            self.waiting &= ~mask
            self.active |= mask
            self.counters.doorbells += 1
            if self.shared:
                self._headers(mask)
            self.mmio.store(self.port + P_SACT, mask)
            self.mmio.store(self.port + P_CI, mask)
        elif self.active == 0:
            self._make_sure()
            mask = self._oldest(self.waiting)
            self.waiting &= ~mask
            self.active = mask
            self.counters.doorbells += 1
            if self.shared:
                self._headers(mask)
            self.mmio.store(self.port + P_CI, mask)
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=True)
    def _make_sure(self) -> cython.int:
        """See that the slot whose end a FIS alone has told is free in PxSACT, too: the FIS is written a moment before.

        Bounded: if it never is, the next command there ends by its timeout.
        """
        tries: cython.int = 100
        while self.unsure and tries:
            self.unsure &= cython.cast(uint32_t, self._pending(False))
            tries -= 1
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _received(self, plain: cython.bint) -> uint64_t:
        """The first two words of the FIS that ends commands, once; 0 when none has come since the last look.

        One that comes between our load and our store is lost, and only costs a closer look (SUSPECT). One with an error
        stays.
        """
        at: cython.pointer[uint8_t] = self.base + FIS_AT + (RECEIVED_D2H if plain else RECEIVED_SDB)
        words: uint64_t = dma_load64(at)
        if words & 0xFF != (FIS_D2H if plain else FIS_SDB):
            return 0
        if not words >> 16 & STATUS_ERR:
            dma_store64(at, 0)
        return words

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _oldest(self, mask: uint32_t) -> uint32_t:
        """The bit of the request that was submitted first."""
        best: uint64_t = ~cython.cast(uint64_t, 0)
        found: uint32_t = 0
        slot: uint32_t
        for slot in range(SLOTS):
            if mask >> slot & 1 and self.slots[slot].serial < best:
                best = self.slots[slot].serial
                found = cython.cast(uint32_t, 1) << slot
        return found

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _finish(self, mask: uint32_t, error: cython.int) -> cython.void:
        """End the requests in these slots."""
        slot: uint32_t
        s: cython.pointer[Slot]
        self.active &= ~mask
        self.waiting &= ~mask
        self.plain &= ~mask
        for slot in range(SLOTS):
            if not mask >> slot & 1:
                continue
            s = cython.address(self.slots[slot])
            self.free[(self.free_first + self.free_count) % SLOTS] = cython.cast(uint8_t, slot)
            self.free_count += 1
            if error:
                self.counters.failed += 1
            elif s.operation == READ:
                self.counters.reads += 1
                self.counters.sectors_read += s.sectors
            elif s.operation == WRITE:
                self.counters.writes += 1
                self.counters.sectors_written += s.sectors
                self.dirty = True
            elif s.operation == FLUSH:
                self.counters.flushes += 1
                self.dirty = False
            else:
                self.counters.trims += 1
                self.counters.sectors_trimmed += s.sectors
            self._end(s.tag, error)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _end(self, tag: uint64_t, error: cython.int) -> cython.void:
        """Queue a completion. There is room: at most SLOTS are under way, and `_take` leaves that much."""
        place: cython.int = (self.ended_first + self.ended_count) % ENDED
        self.ended[place].tag = tag
        self.ended[place].error = error
        self.ended_count += 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _tell(self, out: CompletionBurst) -> cython.void:
        while self.ended_count and out.add(self.ended[self.ended_first].tag, self.ended[self.ended_first].error):
            self.ended_first = (self.ended_first + 1) % ENDED
            self.ended_count -= 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _fis(f: cython.pointer[CommandFis], command: uint32_t, lba: uint64_t, count: uint32_t, features: uint32_t,
         device: uint32_t, pm: uint32_t) -> cython.void:
    """A register FIS to the device, SATA 10.5.5; its fields are octets of little-endian words."""
    at: cython.pointer[uint8_t] = cython.cast(cython.pointer[uint8_t], f)
    dma_store64(at + 16, 0)
    dma_store64(at, FIS_H2D | (FIS_COMMAND | pm) << 8 | command << 16 | cython.cast(uint64_t, features & 0xFF) << 24
                | (lba & 0xFF_FFFF) << 32 | cython.cast(uint64_t, device) << 56)
    dma_store64(at + 8, lba >> 24 & 0xFF_FFFF | cython.cast(uint64_t, features >> 8 & 0xFF) << 24
                | cython.cast(uint64_t, count & 0xFFFF) << 32)
