"""The swap store: pages in slots, written in runs, sealed, and read back only as they were written.

Those with the GIL call `allocate`, `write`, `read_into`, `share`, `release`; those without it `take`, `write_pages`,
`read_pages`, `share_pages`, `release_pages`, which are the same. Several threads may do so at once, as long as nobody reads a
slot that another one is writing.
"""

import cython
from cython.cimports.cpython.buffer import PyBUF_CONTIG, PyBUF_CONTIG_RO, PyBuffer_Release, PyObject_GetBuffer
from cython.cimports.libc.errno import EBADMSG, EIO, ENODATA, ENOMEM, ENOSPC
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcmp, memcpy, memset
from cython.cimports.mm.hw import load64
from cython.cimports.mm.swap.device import PAGE, UNIT, Device
from cython.cimports.mm.swap.pack import Packer
from cython.cimports.mm.swap.runs import NONE, RunMap
from cython.cimports.mm.swap.seal import Sealer
from cython.cimports.mm.swap.slots import SlotTable
from cython.cimports.mm.swap.sys import (
    aligned_alloc,
    explicit_bzero,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)

from mm.swap.aes_gcm import aes_gcm
from mm.swap.errors import SwapCorrupt, SwapFailed, SwapFull
from mm.swap.stats import StoreStats

if not cython.compiled:
    raise ImportError("mm.swap.store must be compiled: python setup.py build_ext --inplace")

PACKED_SLOTS = 4
"""Slots for each page of a device whose pages are packed; what does not shrink so well fills the device before."""
_SMALLEST_RUN = cython.declare(uint32_t, 16)        # pages; shorter holes are not worth a system call


@cython.final
@cython.no_gc_clear      # what is freed at the end needs the sealer and the packer
@cython.cclass
class SwapStore:
    """Pages on a device, which is the store's from now on, until `close`."""

    def __cinit__(self):
        pthread_mutex_init(cython.address(self.lock), cython.NULL)

    def __init__(self, device: Device, *, slots: int = 0, sealer: Sealer | None = None, packer: Packer | None = None):
        """`sealer`: AES-GCM unless it is given. `slots`: how many, if not as many as the device can hold.

        Raises LibraryMissing, OSError; ValueError when the device takes whole pages only and pages are to be packed.
        """
        pages: int = min(device.octets // PAGE, (1 << 32) // PAGE_UNITS - 64)
        if packer is not None and device.granule > UNIT:
            raise ValueError(f"{device.describe()} takes requests of whole {device.granule} octets only: with compression "
                             f"they are of {UNIT}. Use direct = false, or compression = \"none\"")
        self.device, self.packer = device, packer
        self.sealer = sealer if sealer is not None else aes_gcm()
        self.slots = SlotTable(slots or (pages if packer is None else pages * PACKED_SLOTS))
        if packer is None and self.slots.count > pages:
            raise ValueError(f"{slots} slots on a device of {pages} pages")
        if packer is not None:
            self.space = RunMap(pages * PAGE_UNITS)
        self.records = cython.cast(cython.pointer[Record], calloc(self.slots.count, cython.sizeof(Record)))
        self.regions = (pages + REGION - 1) // REGION
        self.stale = cython.cast(cython.pointer[uint64_t], calloc((self.regions + 63) // 64, 8))
        if self.records == cython.NULL or self.stale == cython.NULL:
            raise MemoryError

    def __dealloc__(self):
        self._free_all_scratch()
        free(self.records)
        free(self.stale)
        pthread_mutex_destroy(cython.address(self.lock))

    @cython.cfunc
    def _free_all_scratch(self):
        s: cython.pointer[Scratch]
        while self.idle != cython.NULL:
            s, self.idle = self.idle, self.idle.next
            self._free_scratch(s)

    # with the GIL

    def allocate(self, count: int) -> int:
        """The first of `count` slots in one run. Raises SwapFull when no run is so long."""
        try:
            return self.slots.allocate(count)
        except SwapFull:
            self._count_full()
            raise

    def allocate_run(self, most: int) -> tuple[int, int]:
        """A run of slots as long as there is one, up to `most`, as (first, how many). Raises SwapFull when none is free."""
        try:
            return self.slots.allocate_run(most)
        except SwapFull:
            self._count_full()
            raise

    def share(self, first: int, count: int = 1) -> None:
        """One user more of each slot. Raises ValueError when one of them is nobody's."""
        self.slots.share(first, count)

    def release(self, first: int, count: int = 1) -> int:
        """One user less of each slot; how many are free by that. Raises ValueError when one of them is nobody's."""
        self._check(first, count)
        return self.release_pages(first, count)

    def write(self, first: int, pages: object) -> None:
        """Put the pages of a buffer in slots from `first` on, which are the caller's.

        Raises SwapFull, SwapFailed; then none of these slots can be read, and to write them again is fine.
        """
        view: cython.Py_buffer
        failure: Failure
        error: cython.int
        begin: uint32_t
        count: uint32_t
        PyObject_GetBuffer(pages, cython.address(view), PyBUF_CONTIG_RO)
        try:
            if view.len % PAGE:
                raise ValueError(f"{view.len} octets are no whole pages of {PAGE}")
            self._check(first, view.len // PAGE)
            begin, count = first, view.len // PAGE
            with cython.nogil:
                error = self.write_pages(begin, count, cython.cast(cython.pointer[uint8_t], view.buf), cython.address(failure))
        finally:
            PyBuffer_Release(cython.address(view))
        if error:
            self._raise("write", failure)

    def read_into(self, first: int, count: int, memory: object) -> None:
        """Fill a buffer with the pages of `count` slots from `first` on. Raises SwapFailed, SwapCorrupt.

        Then what is in the buffer is not to be used.
        """
        view: cython.Py_buffer
        failure: Failure
        error: cython.int
        begin: uint32_t
        pages: uint32_t
        self._check(first, count)
        PyObject_GetBuffer(memory, cython.address(view), PyBUF_CONTIG)
        try:
            if view.len != count * PAGE:
                raise ValueError(f"a buffer of {view.len} octets for {count} pages of {PAGE}")
            begin, pages = first, count
            with cython.nogil:
                error = self.read_pages(begin, pages, cython.cast(cython.pointer[uint8_t], view.buf), cython.address(failure))
        finally:
            PyBuffer_Release(cython.address(view))
        if error:
            self._raise("read", failure)

    def place_of(self, slot: int) -> tuple[int, int]:
        """Where on the device a slot's page is: (octet, how many); (0, 0): nowhere."""
        self._check(slot, 1)
        r: cython.pointer[Record] = cython.address(self.records[slot])
        return r.place * UNIT, r.units * UNIT

    def trim(self, most_octets: int = 1 << 62) -> int:
        """Tell the device what it need not keep any more, about so many octets; how many it was. For when there is time."""
        region: uint32_t
        done: uint64_t = 0
        most: uint64_t = most_octets
        with cython.nogil:
            for region in range(self.regions):
                if (self.stale[region >> 6] >> (region & 63)) & 1:
                    done += self._trim_region(region)
                    if done >= most:
                        break
        return done

    def stats(self) -> StoreStats:
        """A moment's figures."""
        t: Totals
        pthread_mutex_lock(cython.address(self.lock))
        t = self.totals
        pthread_mutex_unlock(cython.address(self.lock))
        count = self.slots.count
        tables = count * (cython.sizeof(Record) + 4) + count // 8 + (self.space.count // 8 if self.space is not None else 0)
        return StoreStats(count, count - self.slots.free, self.device.octets, t.octets_stored, t.same, t.packed, tables,
                          t.pages_written, t.octets_written, t.writes, t.pages_read, t.octets_read, t.reads,
                          t.octets_discarded, t.corrupt, t.read_again, t.failed, t.full, self.slots.shared)

    def held(self) -> list[tuple[int, int]]:
        """The slots that are somebody's, as runs (first, how many): once everybody has left, what was forgotten."""
        return self.slots.held()

    def close(self) -> None:
        """Give the device back. Nobody may be reading or writing. May be called twice."""
        self._free_all_scratch()
        self.device.close()

    def _check(self, first: int, count: int) -> None:
        if first < 0 or count < 1 or first + count > self.slots.count or not self.slots.has(first, count):
            raise ValueError(f"of {count} slots from {first} on some are nobody's")

    def _count_full(self) -> None:
        pthread_mutex_lock(cython.address(self.lock))
        self.totals.full += 1
        pthread_mutex_unlock(cython.address(self.lock))

    @cython.cfunc
    def _raise(self, what: str, failure: Failure):
        name = self.device.describe()
        if failure.error == ENOSPC and what == "write" and self.packer is not None:
            raise SwapFull(f"{name} is full: {self.totals.octets_stored} octets of pages are on it")
        if failure.corrupt:
            raise SwapCorrupt(name, EBADMSG, failure.first)
        why = "nothing was ever written there" if failure.error == ENODATA else ""
        raise SwapFailed(name, what, failure.error, failure.first, failure.count, why)

    # without it

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def take(self, want: uint32_t, got: cython.pointer[uint32_t]) -> int64_t:
        """The first of a run of up to `want` slots, `got`; NONE when none is free."""
        first: int64_t = self.slots.take(want, got)
        if first == NONE:
            pthread_mutex_lock(cython.address(self.lock))
            self.totals.full += 1
            pthread_mutex_unlock(cython.address(self.lock))
        return first

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def share_pages(self, first: uint32_t, count: uint32_t) -> cython.bint:
        """One user more of each; False, and none is changed, when one of them is nobody's or has no room for more."""
        return self.slots.join(first, count)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def release_pages(self, first: uint32_t, count: uint32_t) -> uint32_t:
        """One user less of each, all of them somebody's; how many are free by that."""
        left: uint8_t[BATCH]
        freed: uint32_t = 0
        step: uint32_t
        i: uint32_t
        run: uint32_t
        while count:
            step = min(count, cython.cast(uint32_t, BATCH))
            if self.slots.leave(first, step, left):
                pthread_mutex_lock(cython.address(self.lock))
                for i in range(step):
                    if left[i]:
                        self._clear(cython.address(self.records[first + i]))
                pthread_mutex_unlock(cython.address(self.lock))
                i = 0
                while i < step:
                    run = 0
                    while i + run < step and left[i + run]:
                        run += 1
                    if run:
                        self.slots.give(first + i, run)
                        freed += run
                    i += run + 1
            first += step
            count -= step
        return freed

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def clear_pages(self, first: uint32_t, count: uint32_t) -> cython.void:
        """Slots of the caller's are as if nothing was ever written there."""
        slot: uint32_t
        pthread_mutex_lock(cython.address(self.lock))
        for slot in range(first, first + count):
            self._clear(cython.address(self.records[slot]))
        pthread_mutex_unlock(cython.address(self.lock))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def write_pages(self, first: uint32_t, count: uint32_t, data: cython.pointer[cython.const[uint8_t]],
                    failure: cython.pointer[Failure]) -> cython.int:
        """Put pages in slots that are the caller's. Not 0: `failure` tells why, and those slots cannot be read."""
        s: cython.pointer[Scratch] = self._scratch()
        step: uint32_t
        error: cython.int = 0
        if s == cython.NULL:
            failure.error, failure.corrupt, failure.first, failure.count = ENOMEM, False, first, count
            return -1
        while count and error == 0:
            step = min(count, cython.cast(uint32_t, BATCH))
            error = self._write_batch(s, first, step, data, failure)
            first += step
            count -= step
            data += cython.cast(uint64_t, step) * PAGE
        self._put_back(s)
        return error

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def read_pages(self, first: uint32_t, count: uint32_t, data: cython.pointer[uint8_t],
                   failure: cython.pointer[Failure]) -> cython.int:
        """Get the pages of slots. Not 0: `failure` tells why, and nothing in `data` is to be used."""
        s: cython.pointer[Scratch] = self._scratch()
        step: uint32_t
        error: cython.int = 0
        if s == cython.NULL:
            failure.error, failure.corrupt, failure.first, failure.count = ENOMEM, False, first, count
            return -1
        while count and error == 0:
            step = min(count, cython.cast(uint32_t, BATCH))
            error = self._read_batch(s, first, step, data, failure)
            first += step
            count -= step
            data += cython.cast(uint64_t, step) * PAGE
        self._put_back(s)
        return error

    # scratch

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _scratch(self) -> cython.pointer[Scratch]:
        s: cython.pointer[Scratch]
        pthread_mutex_lock(cython.address(self.lock))
        s = self.idle
        if s != cython.NULL:
            self.idle = s.next
        pthread_mutex_unlock(cython.address(self.lock))
        if s != cython.NULL:
            return s
        s = cython.cast(cython.pointer[Scratch], calloc(1, cython.sizeof(Scratch)))
        if s == cython.NULL:
            return cython.NULL
        s.data = cython.cast(cython.pointer[uint8_t], aligned_alloc(PAGE, BATCH * PAGE))
        s.sealing = self.sealer.context()
        if self.packer is not None:
            s.packing = self.packer.context()
        if (s.data == cython.NULL or (self.sealer.encrypts and s.sealing == cython.NULL)
                or (self.packer is not None and s.packing == cython.NULL)):
            self._free_scratch(s)
            return cython.NULL
        return s

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _put_back(self, s: cython.pointer[Scratch]) -> cython.void:
        pthread_mutex_lock(cython.address(self.lock))
        s.next = self.idle
        self.idle = s
        pthread_mutex_unlock(cython.address(self.lock))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _free_scratch(self, s: cython.pointer[Scratch]) -> cython.void:
        if s.sealing != cython.NULL:
            self.sealer.free_context(s.sealing)
        if s.packing != cython.NULL:
            self.packer.free_context(s.packing)
        if s.data != cython.NULL:
            explicit_bzero(s.data, BATCH * PAGE)
        free(s.data)
        free(s)

    # writing

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _write_batch(self, s: cython.pointer[Scratch], first: uint32_t, count: uint32_t,
                     data: cython.pointer[cython.const[uint8_t]], failure: cython.pointer[Failure]) -> cython.int:
        error: cython.int = self._seal_batch(s, first, count, data)
        sealed: cython.pointer[cython.const[uint8_t]] = s.data
        if self.packer is None and not self.sealer.encrypts:
            sealed = data
            if self.device.direct and cython.cast(uintptr_t, data) % PAGE:
                memcpy(s.data, data, cython.cast(uint64_t, count) * PAGE)
                sealed = s.data
        if error:
            memset(s.draft, 0, cython.sizeof(s.draft))
        elif self.packer is None:
            error = self._place_own(s, first, count, sealed)
        else:
            error = self._place_packed(s, count)
        self._commit(s, first, count, error)
        if error:
            failure.error, failure.corrupt, failure.first, failure.count = error, False, first, count
            return -1
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _seal_batch(self, s: cython.pointer[Scratch], first: uint32_t, count: uint32_t,
                    data: cython.pointer[cython.const[uint8_t]]) -> cython.int:
        """Draft the records, and have in `data` of the scratch what goes to the device; or else in the caller's own."""
        i: uint32_t
        packed: uint32_t
        r: cython.pointer[Record]
        page: cython.pointer[cython.const[uint8_t]]
        to: cython.pointer[uint8_t] = s.data
        number: uint64_t
        in_place: cython.bint = self.packer is None and not self.sealer.encrypts
        pthread_mutex_lock(cython.address(self.lock))
        number = self.next_number
        self.next_number += count
        pthread_mutex_unlock(cython.address(self.lock))
        for i in range(count):
            r = cython.address(s.draft[i])
            page = data + cython.cast(uint64_t, i) * PAGE
            r.number = number + i
            if _is_same(page):
                r.kind, r.octets, r.units, r.place = SAME, 0, 0, 0
                memcpy(r.seal, page, 8)
                continue
            r.kind, r.octets, r.units, r.place = PLAIN, PAGE, PAGE_UNITS, (first + i) * PAGE_UNITS
            if self.packer is None:
                to = s.data + cython.cast(uint64_t, i) * PAGE
            else:
                packed = self.packer.pack(s.packing, page, to, PAGE - UNIT)
                if packed:
                    r.kind, r.octets, r.units = PACKED, packed, (packed + UNIT - 1) // UNIT
                    memset(to + packed, 0, r.units * UNIT - packed)
                    page = to
            if in_place:
                to = cython.cast(cython.pointer[uint8_t], page)
            if self.sealer.seal(s.sealing, r.number, page, r.octets, to, r.seal):
                return EIO
            if self.packer is not None:
                to += r.units * UNIT
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _place_own(self, s: cython.pointer[Scratch], first: uint32_t, count: uint32_t,
                   sealed: cython.pointer[cython.const[uint8_t]]) -> cython.int:
        """Write every page to the place of its slot."""
        i: uint32_t = 0
        run: uint32_t
        error: cython.int
        while i < count:
            run = 0
            while i + run < count and s.draft[i + run].kind != SAME:
                run += 1
            if run:
                error = self.device.write(sealed + cython.cast(uint64_t, i) * PAGE, cython.cast(uint64_t, first + i) * PAGE,
                                          cython.cast(uint64_t, run) * PAGE)
                if error:
                    return error
                self._count_write(cython.cast(uint64_t, run) * PAGE)
            i += run + 1
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _place_packed(self, s: cython.pointer[Scratch], count: uint32_t) -> cython.int:
        """Find room for the pages, one behind the other in as few pieces as there are, and write them."""
        i: uint32_t = 0
        j: uint32_t
        needed: uint32_t = 0
        got: uint32_t = 0
        used: uint32_t
        place: int64_t
        error: cython.int = 0
        data: cython.pointer[uint8_t] = s.data
        for j in range(count):
            needed += s.draft[j].units
        while needed and error == 0:
            pthread_mutex_lock(cython.address(self.lock))
            place = self.space.take(needed, cython.address(got))
            pthread_mutex_unlock(cython.address(self.lock))
            used = 0
            j = i
            while j < count and place != NONE and used + s.draft[j].units <= got:
                s.draft[j].place = cython.cast(uint32_t, place) + used
                used += s.draft[j].units
                j += 1
            if place != NONE and used < got:
                pthread_mutex_lock(cython.address(self.lock))
                self.space.give(cython.cast(uint32_t, place) + used, got - used)
                pthread_mutex_unlock(cython.address(self.lock))
            if used == 0:
                error = ENOSPC
                break
            error = self.device.write(data, cython.cast(uint64_t, place) * UNIT, cython.cast(uint64_t, used) * UNIT)
            if error == 0:
                self._count_write(cython.cast(uint64_t, used) * UNIT)
            data += used * UNIT
            needed -= used
            i = j
        for j in range(i, count):       # these have no place
            if s.draft[j].kind != SAME:
                s.draft[j].units = 0
        return error

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _count_write(self, octets: uint64_t) -> cython.void:
        pthread_mutex_lock(cython.address(self.lock))
        self.totals.writes += 1
        self.totals.octets_written += octets
        pthread_mutex_unlock(cython.address(self.lock))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _commit(self, s: cython.pointer[Scratch], first: uint32_t, count: uint32_t, error: cython.int) -> cython.void:
        """The slots are as drafted; after an error nothing of them can be read, nor takes room."""
        i: uint32_t
        r: cython.pointer[Record]
        pthread_mutex_lock(cython.address(self.lock))
        for i in range(count):
            r = cython.address(self.records[first + i])
            self._clear(r)
            r[0] = s.draft[i]
            self.totals.octets_stored += r.units * UNIT
            self.totals.same += r.kind == SAME
            self.totals.packed += r.kind == PACKED
            if error:
                self._clear(r)
                r.kind = BROKEN
        if error == 0:
            self.totals.pages_written += count
        elif error == ENOSPC:
            self.totals.full += 1
        else:
            self.totals.failed += 1
        pthread_mutex_unlock(cython.address(self.lock))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _clear(self, r: cython.pointer[Record]) -> cython.void:
        """Nothing is there any more. With the lock held."""
        region: uint32_t
        if r.units:
            if self.packer is not None:
                self.space.give(r.place, r.units)
            region = r.place // (REGION * PAGE_UNITS)
            self.stale[region >> 6] |= cython.cast(uint64_t, 1) << (region & 63)
            self.totals.octets_stored -= r.units * UNIT
        self.totals.same -= r.kind == SAME
        self.totals.packed -= r.kind == PACKED
        r.kind, r.units = EMPTY, 0

    # reading

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _read_batch(self, s: cython.pointer[Scratch], first: uint32_t, count: uint32_t, data: cython.pointer[uint8_t],
                    failure: cython.pointer[Failure]) -> cython.int:
        i: uint32_t = 0
        run: uint32_t
        r: cython.pointer[Record]
        while i < count:
            r = cython.address(self.records[first + i])
            run = 1
            if r.kind == SAME:
                _fill(data + cython.cast(uint64_t, i) * PAGE, load64(r.seal))
            elif r.kind == EMPTY or r.kind == BROKEN:
                failure.error, failure.corrupt = ENODATA if r.kind == EMPTY else EIO, False
                failure.first, failure.count = first + i, 1
                return -1
            else:
                while i + run < count and (r[run].kind == PLAIN or r[run].kind == PACKED) and (
                        r[run].place == r[run - 1].place + r[run - 1].units):
                    run += 1
                if self._read_run(s, first + i, run, data + cython.cast(uint64_t, i) * PAGE, failure):
                    return -1
            i += run
        pthread_mutex_lock(cython.address(self.lock))
        self.totals.pages_read += count
        pthread_mutex_unlock(cython.address(self.lock))
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _read_run(self, s: cython.pointer[Scratch], first: uint32_t, count: uint32_t, data: cython.pointer[uint8_t],
                  failure: cython.pointer[Failure]) -> cython.int:
        """Slots whose pages lie one behind the other, straight to where they are wanted if they are whole."""
        r: cython.pointer[Record] = cython.address(self.records[first])
        last: cython.pointer[Record] = r + count - 1
        octets: uint64_t = (last.place + last.units - r.place) * cython.cast(uint64_t, UNIT)
        whole: cython.bint = not (self.device.direct and cython.cast(uintptr_t, data) % PAGE)
        at: cython.pointer[uint8_t]
        i: uint32_t
        error: cython.int
        for i in range(count):
            whole = whole and r[i].kind == PLAIN
        at = data if whole else s.data
        error = self.device.read(at, r.place * cython.cast(uint64_t, UNIT), octets)
        pthread_mutex_lock(cython.address(self.lock))
        self.totals.reads += 1
        self.totals.octets_read += octets
        self.totals.failed += error != 0
        pthread_mutex_unlock(cython.address(self.lock))
        if error:
            failure.error, failure.corrupt, failure.first, failure.count = error, False, first, count
            return -1
        for i in range(count):
            error = self._open_page(s, first + i, at, data)
            if error:
                failure.error, failure.corrupt, failure.first, failure.count = error, error == EBADMSG, first + i, 1
                return -1
            at += r[i].units * UNIT
            data += PAGE
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _open_page(self, s: cython.pointer[Scratch], slot: uint32_t, sealed: cython.pointer[uint8_t],
                   page: cython.pointer[uint8_t]) -> cython.int:
        """From what was read to what was written. What does not fit its seal is read once more: the way may be at fault."""
        r: cython.pointer[Record] = cython.address(self.records[slot])
        again: cython.bint = False
        error: cython.int
        while self.sealer.open(s.sealing, r.number, sealed, r.octets, r.seal) or (
                r.kind == PACKED and not self.packer.unpack(s.packing, sealed, r.octets, page)):
            pthread_mutex_lock(cython.address(self.lock))
            self.totals.read_again += not again
            self.totals.corrupt += again
            pthread_mutex_unlock(cython.address(self.lock))
            if again:
                memset(page, 0, PAGE)
                return EBADMSG
            again = True
            error = self.device.read(sealed, r.place * cython.cast(uint64_t, UNIT), r.units * cython.cast(uint64_t, UNIT))
            if error:
                return error
        if r.kind == PLAIN and sealed != page:
            memcpy(page, sealed, PAGE)
        return 0

    # discarding

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _trim_region(self, region: uint32_t) -> uint64_t:
        """Discard the longer holes of a region; how many octets. While that lasts they count as taken."""
        at: uint32_t = region * REGION
        end: uint32_t = min(at + REGION, self.slots.runs.count)
        done: uint64_t = 0
        hole: uint64_t
        count: uint32_t = 0
        if self.packer is not None:
            at, end = at * PAGE_UNITS, min((at + REGION) * PAGE_UNITS, self.space.count)
        pthread_mutex_lock(cython.address(self.lock))
        self.stale[region >> 6] &= ~(cython.cast(uint64_t, 1) << (region & 63))
        pthread_mutex_unlock(cython.address(self.lock))
        while at < end:
            if self.packer is None:
                at = self.slots.hold(at, end, _SMALLEST_RUN, cython.address(count))
                hole = cython.cast(uint64_t, count) * PAGE
                if count and self.device.discard(cython.cast(uint64_t, at) * PAGE, hole) == 0:
                    done += hole
                self.slots.let_go(at, count)
            else:
                at = self._hold_units(at, end, cython.address(count))
                hole = cython.cast(uint64_t, count) * UNIT
                if count and self.device.discard(cython.cast(uint64_t, at) * UNIT, hole) == 0:
                    done += hole
                pthread_mutex_lock(cython.address(self.lock))
                self.space.give(at, count)
                pthread_mutex_unlock(cython.address(self.lock))
            at += count
        pthread_mutex_lock(cython.address(self.lock))
        self.totals.octets_discarded += done
        pthread_mutex_unlock(cython.address(self.lock))
        return done

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _hold_units(self, at: uint32_t, end: uint32_t, count: cython.pointer[uint32_t]) -> uint32_t:
        pthread_mutex_lock(cython.address(self.lock))
        at = self.space.hold(at, end, _SMALLEST_RUN * PAGE_UNITS, count)
        pthread_mutex_unlock(cython.address(self.lock))
        return at


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _is_same(page: cython.pointer[cython.const[uint8_t]]) -> cython.bint:
    """Whether it is one word all over."""
    return load64(page) == load64(page + PAGE - 8) and memcmp(page, page + 8, PAGE - 8) == 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _fill(page: cython.pointer[uint8_t], word: uint64_t) -> cython.void:
    i: cython.int
    words: cython.pointer[uint64_t] = cython.cast(cython.pointer[uint64_t], page)
    for i in range(PAGE // 8):
        words[i] = word
