"""Takes pages out of memory: chosen, protected from writes, put in swap, and dropped by whoever can.

Of other processes the pages are dropped by a helper in their address space, between `begin_batch` and `end_batch`; meanwhile
its owner must not unmap or move anything there. Memory of our own is evicted by the thread that answers its faults.
"""

import errno as errors
import os
import threading
from typing import NamedTuple

import cython
from cython.cimports.libc.errno import EAGAIN, ENOENT, ENOMEM, ENOSPC, errno
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import free, qsort
from cython.cimports.libc.string import memcmp, memcpy, memset
from cython.cimports.mm.hw import now_ns
from cython.cimports.mm.paging.faults import (
    LOST_MOST,
    MOVES_MOST,
    SPACES_MOST,
    FaultServer,
    LostPage,
)
from cython.cimports.mm.paging.space import (
    BATCH_PAGES,
    RUN_PAGES,
    Counts,
    Run,
    Space,
    forget_range,
    forget_slot,
    move_range,
    space_free,
    space_new,
)
from cython.cimports.mm.paging.table import (
    CHUNK_PAGES,
    Chunk,
    clear_bit,
    make_chunk,
    slot_of,
)
from cython.cimports.mm.paging.userfault import (
    MADV_DONTNEED,
    PAGE,
    PAGE_BITS,
    ScanRegion,
    iovec,
    madvise,
    pread,
    present_regions,
    process_vm_readv,
    uffd_protect,
    uffd_register,
    uffd_wake,
    uffd_zero,
)
from cython.cimports.mm.swap.policy import (
    policy_arrive,
    policy_choose,
    policy_is_in_memory,
    policy_resident,
    policy_stay,
)
from cython.cimports.mm.swap.runs import NONE
from cython.cimports.mm.swap.store import Failure, SwapStore
from cython.cimports.mm.swap.sys import aligned_alloc, explicit_bzero, pthread_mutex_lock, pthread_mutex_unlock

if not cython.compiled:
    raise ImportError("mm.paging.pager must be compiled: python setup.py build_ext --inplace")

BATCH = BATCH_PAGES
SPACES = SPACES_MOST
_PRESENT_AND_PROTECTED = cython.declare(uint64_t, (1 << 63) | (1 << 57))       # of an entry of /proc/PID/pagemap
_PRESENT = cython.declare(uint64_t, 1 << 63)



class SpaceStats(NamedTuple):
    """One address space, in pages."""

    swapped: int                # with a slot in swap
    queued: int                 # that are known to have been in memory
    faults: int                 # that read from swap
    zero_faults: int
    write_faults: int           # first writes to pages that swap had as well
    again: int                  # faults of pages that had left not long ago
    waited: int                 # faults that waited for room
    pages_in: int
    pages_ahead: int            # of those, read ahead
    ahead_used: int             # of those, the ones that are known to have been used
    pages_out: int              # written to swap
    clean_out: int              # that left without being written: swap had them
    zero_out: int               # that left without being written: they were zero
    resident: int               # of our own memory


class Lost(NamedTuple):
    """A page that somebody waits for and that cannot be had."""

    index: int
    errno: int
    address: int
    slot: int                   # -1: no slot was to blame
    thread: int                 # that waits for it; 0: of our own memory, or its process was killed already


@cython.cclass
class Pager(FaultServer):
    """All that is paged by one thread of faults and, for other processes, one that evicts."""

    def __init__(self, store: SwapStore):
        FaultServer.__init__(self, store)
        self.outgoing = cython.cast(cython.pointer[uint8_t], aligned_alloc(PAGE, BATCH_PAGES * PAGE))
        if self.outgoing == cython.NULL:
            raise MemoryError
        memset(self.outgoing, 0, BATCH_PAGES * PAGE)

    def __dealloc__(self):
        if self.outgoing != cython.NULL:
            explicit_bzero(self.outgoing, BATCH_PAGES * PAGE)
        free(self.outgoing)

    # spaces

    def set_spaces_most(self, most: int) -> None:
        """How many to answer for, at most SPACES: each takes two descriptors."""
        self.spaces_most = min(most, SPACES_MOST)

    def add(self, fd: int, pid: int) -> int:
        """Page another process's memory; `fd` is its userfaultfd, and ours from now on. The space's number. Raises OSError."""
        return self._added(fd, pid, 0)

    def add_own(self, fd: int, start: int, octets: int, limit: int) -> int:
        """Page a mapping of our own, of which at most `limit` octets are in memory. The space's number. Raises OSError."""
        error: cython.int = uffd_register(fd, start, octets)
        if error:
            raise OSError(error, os.strerror(error))
        return self._added(fd, 0, max(limit // PAGE, 4))

    def _added(self, fd: int, pid: int, limit: int) -> int:
        error: cython.int
        space: cython.pointer[Space] = space_new(fd, pid)
        if space == cython.NULL:
            raise MemoryError
        space.limit = limit
        if pid:
            space.pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.lock))
            error = self._enter(space)
            pthread_mutex_unlock(cython.address(self.lock))
        if error:
            space.fd = -1
            space_free(space, self.store)
            raise OSError(error, f"cannot page more than {self.spaces_most} address spaces")
        return space.index

    def end(self, index: int) -> None:
        """The address space is no more, or nobody touches it any more."""
        space: cython.pointer[Space] = self._find(index)
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.lock))
            self._remove(space)
            pthread_mutex_unlock(cython.address(self.lock))

    def set_limit(self, index: int, limit: int) -> None:
        """Another limit for memory of our own, in octets; 0: nothing is evicted from now on."""
        space: cython.pointer[Space] = self._find(index)
        pages: uint64_t = max(limit // PAGE, 4) if limit else 0
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.lock))
            space.limit = pages
            pthread_mutex_unlock(cython.address(self.lock))

    def unclaimed(self, parent: int = -1) -> list[int]:
        """The spaces of a space's forked children, or all, that have no process yet, the oldest first; dead ones are ended."""
        i: uint32_t
        space: cython.pointer[Space]
        found: list = []
        dead: list = []
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.lock))
        for i in range(self.highest):
            space = self.spaces[i]
            if space != cython.NULL and space.pid < 0 and (parent < 0 or space.parent == parent):
                if uffd_protect(space.fd, PAGE, PAGE, False) == errors.ESRCH:
                    dead.append(i)
                else:
                    found.append((space.generation, i))
        pthread_mutex_unlock(cython.address(self.lock))
        for i in dead:
            self.end(i)
        return [index for _, index in sorted(found)]

    def claim(self, index: int, pid: int) -> None:
        """An unclaimed space is this process's, which does not run until `started`. Raises OSError."""
        space: cython.pointer[Space] = self._find(index)
        pagemap: cython.int = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        number: cython.int = pid
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.lock))
            space.pid, space.pagemap, space.starting = number, pagemap, True
            pthread_mutex_unlock(cython.address(self.lock))

    def started(self, index: int) -> None:
        """Its process runs, and waits for room like others."""
        space: cython.pointer[Space] = self._find(index)
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.lock))
            space.starting = False
            pthread_mutex_unlock(cython.address(self.lock))

    def marks(self, index: int, pid: int, page: int, protected: bool) -> bool | None:
        """Whether a space is this process's: what is protected through the one is seen at the other.

        None: the space does not answer for it. `page` is present; `protected`: already. One that is not is the better choice,
        for it only becomes so; while one is not protected that has a slot it must not be written. Raises OSError.
        """
        space: cython.pointer[Space] = self._find(index)
        at: uint64_t = page << PAGE_BITS
        protect: cython.bint
        steps: list = [False, True] if protected else [True]
        seen: list = []
        with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
            for protect in steps:
                if uffd_protect(space.fd, at, PAGE, protect):
                    return None
                seen.append(bool(int.from_bytes(os.pread(pagemap.fileno(), 8, page * 8), "little") >> 57 & 1))
        return seen == steps

    def brings(self, index: int, pid: int, page: int) -> bool | None:
        """The same, by a page that the process does not have in memory: it is brought in, which changes nothing for anybody.

        None: the space does not answer for it, or it cannot be had.
        """
        space: cython.pointer[Space] = self._find(index)
        number: uint64_t = page
        done: uint64_t = 0
        slot: uint32_t
        error: cython.int = 0
        failure: Failure
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.lock))
            slot = slot_of(cython.address(space.table), number)
            if slot == 0:
                error = uffd_zero(space.fd, number << PAGE_BITS, PAGE, cython.address(done))
            elif self.store.read_pages(slot - 1, 1, self.buffer, cython.address(failure)) == 0:
                done = self._install(space, number, 1, self.buffer, True, False, cython.address(error))
            pthread_mutex_unlock(cython.address(self.lock))
        if error == errors.EEXIST:
            return False
        if done == 0:
            return None
        with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
            return bool(int.from_bytes(os.pread(pagemap.fileno(), 8, page * 8), "little") & _PRESENT)

    def has_lost_track(self, index: int) -> bool:
        """Whether a space cannot go on, nor a child of it that has none."""
        return self._find(index).broken

    def descriptor(self, index: int) -> int:
        """The userfaultfd of a space; it stays ours."""
        return self._find(index).fd

    @cython.cfunc
    def _find(self, index: uint32_t) -> cython.pointer[Space]:
        if index >= SPACES_MOST or self.spaces[index] == cython.NULL:
            raise LookupError(f"there is no space {index}")
        return self.spaces[index]

    def lost(self) -> list[Lost]:
        """The pages that somebody waits for and that cannot be had, since the last time."""
        i: uint32_t
        count: uint32_t
        pages: LostPage[LOST_MOST]
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.lock))
            count = self.lost_count
            for i in range(count):
                pages[i] = self.lost_pages[i]
            self.lost_count = 0
            pthread_mutex_unlock(cython.address(self.lock))
        return [Lost(pages[i].index, pages[i].error, pages[i].page << PAGE_BITS, pages[i].slot, pages[i].thread)
                for i in range(count)]

    def stats(self, index: int) -> SpaceStats:
        """A moment's figures of one space: between two faults, never in the midst of one."""
        space: cython.pointer[Space] = self._find(index)
        counts: Counts
        swapped: uint64_t
        queued: uint64_t
        returned: uint64_t
        resident: uint64_t
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.lock))
            counts, swapped, returned, resident = space.counts, space.table.swapped, space.policy.returned, space.resident
            queued = policy_resident(cython.address(space.policy))
            pthread_mutex_unlock(cython.address(self.lock))
        return SpaceStats(swapped, queued, counts.faults, counts.zero_faults, counts.write_faults, returned, counts.waited,
                          counts.pages_in, counts.pages_ahead, counts.ahead_used, counts.pages_out, counts.clean_out,
                          counts.zero_out, resident)

    # limits of other processes

    def set_room(self, resident: int, expected: int, hard_limit: int, exempt: int, spare: bool) -> None:
        """What is in memory and what may be, in pages (0: all); whose faults never wait; whether slots are short.

        `expected`: what that was before somebody looked what is in memory. What came since may be in there, and counts twice.
        """
        pages: int64_t = resident - expected
        limit: int64_t = hard_limit
        thread: uint32_t = exempt
        short: cython.bint = spare
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.lock))
            self.resident += pages
            self.hard_limit, self.exempt, self.spare = limit, thread, short
            pthread_mutex_unlock(cython.address(self.lock))

    @property
    def expected(self) -> int:
        """Pages in memory by what we brought in and took out since `set_room`."""
        return self.resident

    @property
    def waiting(self) -> bool:
        """Whether faults wait for room."""
        return self.waits_for_room

    def register(self, index: int, start: int, end: int) -> int:
        """Answer for a whole mapping from now on. 0, or an errno."""
        return uffd_register(self._find(index).fd, start, end - start)

    def answers(self, index: int, start: int) -> bool:
        """Whether we answer for the mapping that begins there. Its first page is protected by that."""
        return uffd_protect(self._find(index).fd, start, PAGE, True) != errors.ENOENT

    # what an owner does to its mappings

    def forget(self, index: int, start: int, end: int, since_ns: int) -> bool:
        """The pages of a range are its owner's no more. Whether something may have been copied in there since."""
        space: cython.pointer[Space] = self._find(index)
        first: uint64_t = start >> PAGE_BITS
        last: uint64_t = (end + PAGE - 1) >> PAGE_BITS
        since: int64_t = since_ns
        copied: cython.bint
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.lock))
            forget_range(space, first, last, self.store)
            copied = space.copied_at_ns >= since
            pthread_mutex_unlock(cython.address(self.lock))
        return copied

    def move(self, index: int, start: int, end: int, to: int) -> None:
        """The pages of a range are at `to` now; what was known of that place is not true any more."""
        space: cython.pointer[Space] = self._find(index)
        first: uint64_t = start >> PAGE_BITS
        last: uint64_t = (end + PAGE - 1) >> PAGE_BITS
        target: uint64_t = to >> PAGE_BITS
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.lock))
            move_range(space, first, last, target, self.store)
            _followed(space, target << PAGE_BITS)
            if space.broken:
                self._lose_track(space, ENOMEM)
            pthread_mutex_unlock(cython.address(self.lock))

    # eviction

    def discover(self, index: int, start: int, end: int) -> int:
        """Queue what is in memory of a range and is not queued yet; how many pages that was."""
        space: cython.pointer[Space] = self._find(index)
        at: uint64_t = start
        stop: uint64_t = end
        found: cython.int
        with cython.nogil:
            found = self._discover(space, at, stop)
        return found

    def begin_batch(self, index: int, want: int) -> list[tuple[int, int]]:
        """Put up to `want` pages, at most BATCH, in swap; the ranges (start, octets) that are to be dropped now.

        Raises OSError when swap does not take them (ENOSPC: it is full); what of them it took is lost to nobody.
        """
        space: cython.pointer[Space] = self._find(index)
        error: cython.int
        i: uint32_t
        count: uint32_t = min(want, BATCH_PAGES)
        self.evictor = threading.get_native_id()
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.lock))
            self._choose(space, count)
            pthread_mutex_unlock(cython.address(self.lock))
            error = self._evict(space, False)
        if error and self.drop_count == 0:
            self.end_batch(index)
            raise OSError(error, os.strerror(error))
        return [(self.drops[i].first << PAGE_BITS, self.drops[i].count << PAGE_BITS) for i in range(self.drop_count)]

    def end_batch(self, index: int, dropped: bool = True) -> None:
        """What was to be dropped is dropped, or was tried; whoever touched it meanwhile goes on. `set_room` before."""
        space: cython.pointer[Space] = self._find(index)
        whole: cython.bint = dropped
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.lock))
            if whole and self.drop_count:
                self.made_room_ns = now_ns()
            self._end_batch(space)
            pthread_mutex_unlock(cython.address(self.lock))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _discover(self, space: cython.pointer[Space], start: uint64_t, end: uint64_t) -> cython.int:
        """Queue pages that are present. Faults are answered between one look and the next."""
        regions: ScanRegion[REGIONS]
        entries: uint64_t[CHUNK_PAGES]
        walked: uint64_t = start
        found: cython.int = 0
        count: int64_t = present_regions(space.pagemap, start, end, regions, REGIONS, cython.address(walked))
        i: int64_t
        while count >= 0:
            for i in range(count):
                found += self._queue(space, regions[i].start >> PAGE_BITS, regions[i].end >> PAGE_BITS)
            if walked <= start or walked >= end:
                return found
            start = walked
            count = present_regions(space.pagemap, start, end, regions, REGIONS, cython.address(walked))
        while start < end:                              # a kernel before 6.7
            count = min((end - start) >> PAGE_BITS, cython.cast(uint64_t, CHUNK_PAGES))
            if pread(space.pagemap, entries, count * 8, (start >> PAGE_BITS) * 8) != count * 8:
                return found
            for i in range(count):
                if entries[i] & _PRESENT:
                    found += self._queue(space, (start >> PAGE_BITS) + i, (start >> PAGE_BITS) + i + 1)
            start += cython.cast(uint64_t, count) << PAGE_BITS
        return found

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _queue(self, space: cython.pointer[Space], page: uint64_t, end: uint64_t) -> cython.int:
        """Pages were found in memory. For how many that is news."""
        stop: uint64_t
        found: cython.int = 0
        while page < end:
            stop = min(end, page + RUN_PAGES)
            pthread_mutex_lock(cython.address(self.lock))
            while page < stop:
                found += (not policy_is_in_memory(cython.address(space.policy), page)
                          and policy_arrive(cython.address(space.policy), page, False))
                page += 1
            pthread_mutex_unlock(cython.address(self.lock))
        return found

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _choose(self, space: cython.pointer[Space], want: uint32_t) -> cython.void:
        """The pages that leave next, as runs in the order of their addresses: the space's batch. Locked."""
        count: uint32_t = policy_choose(cython.address(space.policy), self.chosen, want)
        runs: uint32_t = 0
        i: uint32_t
        kept: cython.bint
        qsort(self.chosen, count, 8, _by_number)
        for i in range(count):
            kept = slot_of(cython.address(space.table), self.chosen[i]) != 0
            if (runs and space.batch[runs - 1].first + space.batch[runs - 1].count == self.chosen[i]
                    and space.batch[runs - 1].count < RUN_PAGES and self.kept[runs - 1] == kept):
                space.batch[runs - 1].count += 1
            else:
                space.batch[runs].first, space.batch[runs].count, self.kept[runs] = self.chosen[i], 1, kept
                runs += 1
        space.batch_runs = runs
        space.parked = False
        self.drop_count = 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _evict(self, space: cython.pointer[Space], locked: cython.bint) -> cython.int:
        """Put the batch in swap. 0, or the errno of what stopped it."""
        run: uint32_t
        i: uint32_t
        page: uint64_t
        dirty: uint32_t = 0
        error: cython.int = 0
        self.leaving_count = 0
        for run in range(space.batch_runs):
            self._protect(space, space.batch[run].first, cython.cast(uint32_t, space.batch[run].count), self.kept[run], locked)
        self._acquire(locked)
        for i in range(self.leaving_count):
            page = self.leaving[i]
            self.goes[i] = slot_of(cython.address(space.table), page) != 0
            if self.goes[i]:
                self._clean(space, page)
            else:
                self.dirty[dirty] = i
                dirty += 1
        self._release(locked)
        if dirty:
            error = self._save(space, self._read(space, dirty, locked), locked)
        for i in range(self.leaving_count):
            if self.goes[i]:
                self._add_drop(self.leaving[i])
        return error

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _protect(self, space: cython.pointer[Space], first: uint64_t, count: uint32_t, kept: cython.bint,
                 locked: cython.bint) -> cython.void:
        """What of a run is there and protected may leave. What swap has `kept` is protected already."""
        entries: uint64_t[RUN_PAGES]
        i: uint32_t
        error: cython.int = 0
        if not kept:
            error = uffd_protect(space.fd, first << PAGE_BITS, cython.cast(uint64_t, count) << PAGE_BITS, True)
        if error == ENOENT and count > 1:               # more than one mapping, or a hole
            for i in range(count):
                self._protect(space, first + i, 1, False, locked)
            return
        if error == EAGAIN:                             # a fork or a move is under way
            self._acquire(locked)
            for i in range(count):
                policy_stay(cython.address(space.policy), first + i)
            self._release(locked)
            return
        if error:
            return                                      # not ours to evict any more
        if space.pid == 0:
            for i in range(count):
                entries[i] = _PRESENT_AND_PROTECTED
        elif pread(space.pagemap, entries, count * 8, first * 8) != count * 8:
            return                                      # it has ended
        for i in range(count):
            if entries[i] & _PRESENT_AND_PROTECTED == _PRESENT_AND_PROTECTED:
                self.leaving[self.leaving_count] = first + i
                self.leaving_count += 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _clean(self, space: cython.pointer[Space], page: uint64_t) -> cython.void:
        """A page leaves that swap has as it is. Locked."""
        chunk: cython.pointer[Chunk] = make_chunk(cython.address(space.table), page)
        if chunk != cython.NULL:
            clear_bit(chunk.present, page)
        space.counts.clean_out += 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _read(self, space: cython.pointer[Space], count: uint32_t, locked: cython.bint) -> uint32_t:
        """Copy the dirty pages out; how many could be. One that the kernel took meanwhile is a fault of ours."""
        remote: iovec[BATCH_PAGES]
        local: iovec
        i: uint32_t
        done: uint32_t = 0
        kept: uint32_t = 0
        copied: uint32_t
        got: int64_t
        for i in range(count):
            remote[i].iov_base = cython.cast(cython.p_void, self.leaving[self.dirty[i]] << PAGE_BITS)
            remote[i].iov_len = PAGE
            if space.pid == 0:
                memcpy(self.outgoing + (cython.cast(uint64_t, i) << PAGE_BITS), remote[i].iov_base, PAGE)
        if space.pid == 0:
            return count
        while done < count:
            local.iov_base = self.outgoing + (cython.cast(uint64_t, kept) << PAGE_BITS)
            local.iov_len = cython.cast(uint64_t, count - done) << PAGE_BITS
            got = process_vm_readv(space.pid, cython.address(local), 1, cython.address(remote[done]), count - done, 0)
            copied = cython.cast(uint32_t, got >> PAGE_BITS) if got > 0 else 0
            for i in range(copied):
                self.dirty[kept + i] = self.dirty[done + i]
            kept += copied
            done += copied
            if done < count:
                self._give_up(space, done, done + 1, locked)
                done += 1
        return kept

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _save(self, space: cython.pointer[Space], count: uint32_t, locked: cython.bint) -> cython.int:
        """Give the pages that were copied out slots, and put them there; those that are zero need none.

        0, or why swap does not take the rest.
        """
        failure: Failure
        done: uint32_t = 0
        run: uint32_t
        got: uint32_t
        first: int64_t
        error: cython.int = 0
        while done < count and error == 0:
            run = 0
            while done + run < count and _is_zero(self.outgoing + (cython.cast(uint64_t, done + run) << PAGE_BITS)):
                self.goes[self.dirty[done + run]] = True
                run += 1
            space.counts.zero_out += run
            done += run
            run = 0
            while done + run < count and not _is_zero(self.outgoing + (cython.cast(uint64_t, done + run) << PAGE_BITS)):
                run += 1
            if run == 0:
                continue
            first = self.store.take(run, cython.address(got))
            if first == NONE:
                error = ENOSPC
            elif self.store.write_pages(cython.cast(uint32_t, first), got,
                                        self.outgoing + (cython.cast(uint64_t, done) << PAGE_BITS), cython.address(failure)):
                self.store.release_pages(cython.cast(uint32_t, first), got)
                error = failure.error
            else:
                run = self._note(space, done, cython.cast(uint32_t, first), got, locked)
                done += run
                error = 0 if run == got else ENOMEM
        self._give_up(space, done, count, locked)
        return error

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _note(self, space: cython.pointer[Space], done: uint32_t, slot: uint32_t, count: uint32_t,
              locked: cython.bint) -> uint32_t:
        """Some of the dirty pages, from `done` on, are in slots. For how many there was memory to know it."""
        i: uint32_t
        page: uint64_t
        chunk: cython.pointer[Chunk]
        self._acquire(locked)
        for i in range(count):
            page = self.leaving[self.dirty[done + i]]
            chunk = make_chunk(cython.address(space.table), page)
            if chunk == cython.NULL:
                self.store.release_pages(slot + i, count - i)
                break
            forget_slot(space, page, self.store)
            chunk.slots[page & (CHUNK_PAGES - 1)] = slot + i + 1
            chunk.used += 1
            space.table.swapped += 1
            self.goes[self.dirty[done + i]] = True
        else:
            i = count
        space.counts.pages_out += i
        self._release(locked)
        return i

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _add_drop(self, page: uint64_t) -> cython.void:
        last: cython.pointer[Run] = cython.address(self.drops[self.drop_count - 1]) if self.drop_count else cython.NULL
        if last != cython.NULL and last.first + last.count == page:
            last.count += 1
            return
        self.drops[self.drop_count].first, self.drops[self.drop_count].count = page, 1
        self.drop_count += 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _give_up(self, space: cython.pointer[Space], done: uint32_t, end: uint32_t, locked: cython.bint) -> cython.void:
        """Dirty pages that stay in memory, from `done` up to `end`: they may be written."""
        i: uint32_t
        page: uint64_t
        if done == end:
            return
        self._acquire(locked)
        for i in range(done, end):
            page = self.leaving[self.dirty[i]]
            policy_stay(cython.address(space.policy), page)
            uffd_protect(space.fd, page << PAGE_BITS, PAGE, False)
        self._release(locked)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _end_batch(self, space: cython.pointer[Space]) -> cython.void:
        """Locked."""
        run: uint32_t
        count: uint32_t = space.batch_runs
        space.batch_runs = 0
        if space.pid == 0:                              # of others `set_room` tells, which may have seen it gone already
            for run in range(self.drop_count):
                space.resident -= self.drops[run].count
        self.drop_count = 0
        if self.waits_for_room:
            self._tell(self.wake)
        if space.parked:
            for run in range(count):
                uffd_wake(space.fd, space.batch[run].first << PAGE_BITS, space.batch[run].count << PAGE_BITS)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _balance(self, space: cython.pointer[Space]) -> cython.void:
        """Memory of our own above its limit: evict here and now. Locked, and it is we who would answer faults."""
        run: uint32_t
        i: uint64_t
        error: cython.int
        want: uint32_t
        while space.resident > space.limit and not space.broken:
            want = cython.cast(uint32_t, min(max(space.resident - space.limit, space.limit // 16),
                                             cython.cast(uint64_t, RUN_PAGES)))
            self._choose(space, max(want, 1))
            if space.batch_runs == 0:
                return
            error = self._evict(space, True)
            for run in range(self.drop_count):
                if madvise(cython.cast(cython.p_void, self.drops[run].first << PAGE_BITS),
                           self.drops[run].count << PAGE_BITS, MADV_DONTNEED):
                    error = errno
            self._end_batch(space)
            if error:
                return                                  # above the limit for now; the next fault tries again

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _acquire(self, locked: cython.bint) -> cython.void:
        if not locked:
            pthread_mutex_lock(cython.address(self.lock))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _release(self, locked: cython.bint) -> cython.void:
        if not locked:
            pthread_mutex_unlock(cython.address(self.lock))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _followed(space: cython.pointer[Space], to: uint64_t) -> cython.void:
    """The slots have followed a move. Locked."""
    i: uint32_t
    for i in range(min(space.move_count, cython.cast(uint32_t, MOVES_MOST))):
        if space.moves[i] == to:
            space.move_count -= 1
            space.moves[i] = space.moves[min(space.move_count, MOVES_MOST - 1)]
            return


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _by_number(a: cython.pointer[cython.const[cython.void]], b: cython.pointer[cython.const[cython.void]]) -> cython.int:
    x: uint64_t = cython.cast(cython.pointer[uint64_t], a)[0]
    y: uint64_t = cython.cast(cython.pointer[uint64_t], b)[0]
    return (x > y) - (x < y)


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _is_zero(page: cython.pointer[cython.const[uint8_t]]) -> cython.bint:
    words: cython.pointer[cython.const[uint64_t]] = cython.cast(cython.pointer[cython.const[uint64_t]], page)
    return words[0] == 0 and memcmp(page, page + 8, PAGE - 8) == 0
