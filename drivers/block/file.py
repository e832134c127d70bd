"""A file as a disk.

What the page cache has is read within `submit`, by preadv2 with RWF_NOWAIT, and what it takes is written so, too, where the
filesystem can say so instead of blocking; on ext4, which cannot, as `loop_writes` allows. All else goes to an io_uring, or to
helper threads where there is none.

Flush is fdatasync; a write with FUA is one with RWF_DSYNC. A failed fdatasync may have lost what was written before it and
says so only once, so from then on every flush fails (PostgreSQL's "fsyncgate", and what QEMU does).
"""

import os
import time
from contextlib import suppress

import cython
from cython.cimports.drivers.block.host_disk import DEPTH, HostDisk
from cython.cimports.drivers.block.loop_writes import LoopWrites
from cython.cimports.drivers.block.pool import Pool
from cython.cimports.drivers.block.ring import Ring
from cython.cimports.drivers.block.sys import (
    ALLOCATE,
    EXT4_SUPER_MAGIC,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    MAP,
    PREADV,
    PWRITEV,
    RWF_DSYNC,
    RWF_NOWAIT,
    SYNC,
    Work,
    fallocate,
    fstatfs,
    preadv2,
    pwritev2,
    read,
    statfs,
)
from cython.cimports.drivers.request import (
    EXTENTS,
    FAST,
    FLUSH,
    FUA,
    KEEP_ALLOCATED,
    READ,
    REQUESTS,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Request,
    Segment,
)
from cython.cimports.libc.errno import (
    EAGAIN,
    EBADF,
    EDQUOT,
    EFBIG,
    EILSEQ,
    EINTR,
    EINVAL,
    EIO,
    ENODATA,
    ENODEV,
    ENOSPC,
    ENXIO,
    EOPNOTSUPP,
    EROFS,
    ETIMEDOUT,
)
from cython.cimports.libc.errno import errno as c_errno
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.stdlib import calloc, free, malloc
from cython.cimports.posix.uio import iovec

from drivers.block.host_file import open_file
from drivers.disk import Feature

if not cython.compiled:
    raise ImportError("drivers.block.file must be compiled: python setup.py build_ext --inplace")

ENGINES = ("auto", "ring", "threads")
THREADS = 8
MAX_OCTETS = 32 << 20
"""Of one read or write."""
RETRY_NS = 1_000_000
"""When the kernel had no memory for a request, how soon to try again."""


@cython.final
@cython.cclass
class FileDisk(HostDisk):
    """A `drivers.disk.Disk` in a file. `FileDisk.open` makes one."""

    def __init__(self, opened, name: str, sector_octets: uint32_t = 512, engine: str = "auto",
                 write_in_loop: cython.bint = True):
        """`opened`: a `drivers.block.host_file.HostFile`, ours from now on. `engine`: one of ENGINES.

        `write_in_loop`: small writes into the page cache happen within `submit` also on ext4, which may then block for a
        moment: see `loop_writes`. Raises OSError.
        """
        i: cython.int
        if engine not in ENGINES:
            raise ValueError(f"the engine {engine!r} is none of {', '.join(ENGINES)}")
        self.opened = opened
        self.fd, self.direct_fd, self.alignment = opened.fd, opened.direct_fd, opened.alignment
        self.vectors = cython.cast(cython.pointer[iovec], malloc(DEPTH * MAX_SEGMENTS * cython.sizeof(iovec)))
        self.zeros = cython.cast(cython.pointer[cython.uchar], calloc(1, ZEROS))
        if self.vectors == cython.NULL or self.zeros == cython.NULL:
            raise MemoryError
        self._describe(name, sector_octets)
        self.write_in_loop = write_in_loop and opened.direct_fd < 0 and self._is_ext4()
        self.loop_writes = LoopWrites()
        self.pool, self.writer = Pool(THREADS, self.eventfd), Pool(1, self.eventfd)
        if engine != "threads":
            try:
                self.ring = Ring(DEPTH, self.eventfd)
                self.by_ring = True
            except OSError:
                if engine == "ring":
                    raise
        for i in range(DEPTH):
            self.free[i] = DEPTH - 1 - i
            self.slots[i].work.index = i
        self.inline_left = INLINE_IN_ALL
        self.changed = 1        # what whoever had the file before wrote may not be durable yet

    @staticmethod
    def open(path: str, name: str = "", *, sector_octets: int = 512, read_only: bool = False, direct: bool = False,
             create_octets: int | None = None, allow_device: bool = False, engine: str = "auto",
             write_in_loop: bool = True) -> FileDisk:
        """A disk in the file at `path`; `drivers.block.host_file.open_file` says what the rest means. Raises DeviceError."""
        opened = open_file(path, sector_octets=sector_octets, read_only=read_only, direct=direct, create_octets=create_octets,
                           allow_device=allow_device)
        try:
            return FileDisk(opened, name or path, sector_octets, engine, write_in_loop)
        except BaseException:
            opened.close()
            raise

    def __dealloc__(self):
        free(self.vectors)
        free(self.zeros)

    @cython.cfunc
    def _describe(self, name: str, sector_octets: uint32_t):
        """Find out what the filesystem can do; nothing is changed by it."""
        opened = self.opened
        features = Feature.QUEUE | Feature.WRITE_CACHE | Feature.EXTENTS
        beyond: int64_t = (opened.octets + (1 << 20)) & -4096
        mode: cython.int = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        if opened.read_only:
            features = (features | Feature.READ_ONLY) & ~Feature.WRITE_CACHE
        else:
            self.punches = opened.is_device or fallocate(self.fd, mode, beyond, 4096) == 0
            # The kernel has it for everything that can punch holes, or refuses it at the first try.
            self.zero_ranges = self.punches
            features |= Feature.FUA | Feature.WRITE_ZEROES
            if self.punches:
                features |= Feature.TRIM | Feature.FAST_ZEROES
        if opened.is_device:
            features &= ~Feature.EXTENTS
        self.nowait_reads = self.nowait_writes = self.direct_fd < 0
        self.describe(name, "device" if opened.is_device else "file", opened.octets, sector_octets,
                      max(opened.physical_octets, sector_octets), features, MAX_OCTETS, MAX_SEGMENTS, DEPTH)

    @cython.cfunc
    def _is_ext4(self) -> cython.bint:
        """Or ext2 or ext3, which the same code drives."""
        of: statfs
        return not self.opened.is_device and fstatfs(self.fd, cython.address(of)) == 0 and of.f_type == EXT4_SUPER_MAGIC

    @cython.cfunc
    def look(self):
        """Go on with what the helpers have done."""
        count: uint64_t
        if self.armed and read(self.eventfd, cython.address(count), 8) == 8:
            self.armed = False
            self.wakeups += 1
            self.pool.disarm()
            self.writer.disarm()
            if self.by_ring:
                self.ring.disarm()
        if self.ended_count < REQUESTS:
            self._harvest()

    def arm(self) -> cython.bint:
        """Have the next completion make `fileno` readable; False when there is something to complete already."""
        if self.ended_count or self.closed:
            return False
        self.armed = True
        return self.pool.arm() and self.writer.arm() and (not self.by_ring or self.ring.arm())

    def wake_at(self) -> int | None:
        """Only when the kernel must be asked again."""
        waits = self.pool.stuck() or self.writer.stuck() or (self.by_ring and self.ring.queued)
        return time.monotonic_ns() + RETRY_NS if waits else None

    def statistics(self) -> dict:
        """Counters since it was opened."""
        return self.totals() | {"at_once": self.at_once, "wakeups": self.wakeups, "held_up": self.loop_writes.held_up,
                                "flush_lost": 1 if self.sync_error else 0}

    def close(self) -> None:
        """Wait for what the kernel is at, make what was written durable, and close the file. May be called twice."""
        if self.closed:
            return
        self.closed = True
        if self.by_ring:
            self.ring.close()
        self.pool.close()
        self.writer.close()
        if not self.bounds.read_only:
            with suppress(OSError):
                os.fdatasync(self.fd)
        self.opened.close()

    # Inside.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def burst_taken(self) -> cython.void:
        """The helpers get what was put, and what may be done at once begins anew."""
        self.inline_left = INLINE_IN_ALL
        self.loop_writes.burst_over()
        self._hand_over()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def begin(self, r: cython.pointer[cython.const[Request]], segments: cython.pointer[cython.const[Segment]]) -> cython.void:
        """Do it at once if that can be, else give it to a helper."""
        s: cython.pointer[Slot]
        v: cython.pointer[iovec]
        i: cython.int
        self.free_count -= 1
        i = self.free[self.free_count]
        s = cython.address(self.slots[i])
        v = self.vectors + i * MAX_SEGMENTS
        s.tag, s.operation, s.flags, s.sectors, s.syncing = r.tag, r.operation, r.flags, r.sectors, False
        s.at = r.lba * self.bounds.sector_octets
        s.left = cython.cast(int64_t, r.sectors) * self.bounds.sector_octets
        s.work.fd, s.work.flags, s.work.iov, s.work.iov_count = self.fd, 0, v, r.segment_count
        for i in range(r.segment_count):
            v[i].iov_base = segments[i].data
            v[i].iov_len = segments[i].octets
        if r.operation == READ or r.operation == WRITE:
            s.work.kind = PREADV if r.operation == READ else PWRITEV
            if not self._try_at_once(s):
                if r.flags & FUA:
                    s.work.flags = RWF_DSYNC
                if self.direct_fd >= 0 and self._suits_direct(s):
                    s.work.fd = self.direct_fd
                self._put(s)
        elif r.operation == FLUSH:
            s.mark = self.changed
            if self.sync_error or self.changed == self.synced:
                self._finish(s, self.sync_error)
            else:
                self._sync(s)
        elif r.operation == EXTENTS:
            s.work.kind = MAP
            s.work.unit = self.bounds.sector_octets
            self._put(s)
        elif r.operation == TRIM:
            s.work.kind = ALLOCATE
            s.work.flags = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
            self._put(s)
        else:
            self._begin_zeroes(s)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _try_at_once(self, s: cython.pointer[Slot]) -> cython.bint:
        """Read from or write to the page cache; whether the request has ended by that. Part of it may be done otherwise."""
        n: int64_t
        if s.left > LONGEST_INLINE or s.left > self.inline_left or s.flags & FUA:
            return False
        if s.operation == READ:
            if not self.nowait_reads:
                return False
            n = preadv2(s.work.fd, s.work.iov, s.work.iov_count, s.at, RWF_NOWAIT)
        elif self.nowait_writes:
            n = pwritev2(s.work.fd, s.work.iov, s.work.iov_count, s.at, RWF_NOWAIT)
        elif self.write_in_loop and not self.changing and self._edges_cached(s) and self.loop_writes.may(s.left):
            n = pwritev2(s.work.fd, s.work.iov, s.work.iov_count, s.at, 0)
            self.loop_writes.wrote()
        else:
            return False
        if n < 0:
            if c_errno == EOPNOTSUPP:
                if s.operation == READ:
                    self.nowait_reads = False
                else:
                    self.nowait_writes = False
            return False        # whatever else it is, the helper finds it, too
        self.inline_left -= n
        if n == s.left:
            self.at_once += 1
            self._finish(s, 0)
            return True
        _advance(s, n)
        return False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _edges_cached(self, s: cython.pointer[cython.const[Slot]]) -> cython.bint:
        """Whether pages that a write changes in part are in the page cache: else it reads them first, and waits."""
        return (s.at % PAGE == 0 or self._cached(s.at)) and ((s.at + s.left) % PAGE == 0 or self._cached(s.at + s.left - 1))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _cached(self, at: int64_t) -> cython.bint:
        octet: cython.uchar = 0
        v: iovec
        v.iov_base = cython.address(octet)
        v.iov_len = 1
        return preadv2(self.fd, cython.address(v), 1, at, RWF_NOWAIT) == 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _begin_zeroes(self, s: cython.pointer[Slot]) -> cython.void:
        """The best way to zeros that is left: a hole, a range marked as zeros, or zeros."""
        s.work.kind = ALLOCATE
        if self.punches and not s.flags & KEEP_ALLOCATED:
            s.work.flags = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        elif self.zero_ranges:
            s.work.flags = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE
        elif s.flags & FAST:
            self._finish(s, EOPNOTSUPP)
            return
        else:
            self._write_zeros(s)
            return
        self._put(s)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _write_zeros(self, s: cython.pointer[Slot]) -> cython.void:
        """The next piece of them."""
        v: cython.pointer[iovec] = self.vectors + s.work.index * MAX_SEGMENTS
        left: int64_t = s.left
        count: cython.int = 0
        while left and count < ZERO_PIECES:
            v[count].iov_base = self.zeros
            v[count].iov_len = min(left, ZEROS)
            left -= v[count].iov_len
            count += 1
        s.work.kind, s.work.iov, s.work.iov_count, s.work.flags = PWRITEV, v, count, 0
        self._put(s)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _sync(self, s: cython.pointer[Slot]) -> cython.void:
        s.work.kind = SYNC
        self._put(s)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _put(self, s: cython.pointer[Slot]) -> cython.void:
        """Give its work to a helper; `submit` of that follows."""
        s.work.offset, s.work.octets = s.at, s.left
        self.changing += s.work.kind != PREADV and s.work.kind != MAP
        if s.work.kind == PWRITEV and s.work.fd == self.fd:
            self.writer.put(cython.address(s.work))
        elif not self.by_ring or s.work.kind == MAP:
            self.pool.put(cython.address(s.work))
        else:
            self.ring.put(cython.address(s.work))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _suits_direct(self, s: cython.pointer[cython.const[Slot]]) -> cython.bint:
        """Whether memory and place are aligned for direct I/O; else the page cache, which the kernel keeps coherent, serves."""
        bits: uint64_t = s.at | s.left
        i: cython.int
        for i in range(s.work.iov_count):
            bits |= cython.cast(uintptr_t, s.work.iov[i].iov_base) | s.work.iov[i].iov_len
        return bits & (self.alignment - 1) == 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _harvest(self) -> cython.void:
        """Go on with what the helpers have done."""
        work: cython.pointer[Work]
        if self.by_ring:
            while True:
                work = self.ring.take()
                if work == cython.NULL:
                    break
                self._proceed(cython.address(self.slots[work.index]))
        while True:
            work = self.writer.take()
            if work == cython.NULL:
                work = self.pool.take()
            if work == cython.NULL:
                break
            self._proceed(cython.address(self.slots[work.index]))
        self._hand_over()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _hand_over(self) -> cython.void:
        """To the helpers, what was put."""
        if self.by_ring and self.ring.queued:
            self.ring.submit()
        if self.pool.queued or self.pool.stuck():
            self.pool.submit()
        if self.writer.queued or self.writer.stuck():
            self.writer.submit()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _proceed(self, s: cython.pointer[Slot]) -> cython.void:
        """The next step of a request one of whose steps is done."""
        result: int64_t = s.work.result
        self.changing -= s.work.kind != PREADV and s.work.kind != MAP
        if result == -EINTR or result == -EAGAIN:
            self._put(s)
        elif s.work.kind == PREADV or s.work.kind == PWRITEV:
            self._moved(s, result)
        elif s.work.kind == ALLOCATE:
            self._allocated(s, result)
        elif s.work.kind == SYNC:
            self._synced(s, result)
        else:
            self._finish(s, _errno(-result) if result < 0 else 0)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _moved(self, s: cython.pointer[Slot], result: int64_t) -> cython.void:
        """So many octets were read or written."""
        if result == -EINVAL and s.work.fd == self.direct_fd:
            s.work.fd = self.fd         # the filesystem wants another alignment than at the start
            self._put(s)
        elif result <= 0:
            self._finish(s, _errno(-result) if result else EIO)     # the file has become shorter
        elif result < s.left:
            if s.operation == WRITE_ZEROES:
                s.at += result
                s.left -= result
                self._write_zeros(s)
                return
            _advance(s, result)
            if s.work.fd == self.direct_fd and not self._suits_direct(s):
                s.work.fd = self.fd
            self._put(s)
        else:
            self._settle(s)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _allocated(self, s: cython.pointer[Slot], result: int64_t) -> cython.void:
        """A hole was punched or a range zeroed, or that cannot be."""
        if result == -EOPNOTSUPP and s.operation == WRITE_ZEROES:
            if s.work.flags & FALLOC_FL_ZERO_RANGE:
                self.zero_ranges = False
            else:
                self.punches = False
            self._begin_zeroes(s)
        elif result < 0:
            self._finish(s, _errno(-result))
        else:
            self._settle(s)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _settle(self, s: cython.pointer[Slot]) -> cython.void:
        """All is done but the FUA of what is no write, for that has RWF_DSYNC."""
        if s.flags & FUA and s.operation != WRITE:
            s.syncing = True
            self._sync(s)
        else:
            self._finish(s, 0)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _synced(self, s: cython.pointer[Slot], result: int64_t) -> cython.void:
        if result < 0:
            self.sync_error = _errno(-result)
        elif not s.syncing:
            self.synced = max(self.synced, s.mark)
        self._finish(s, self.sync_error)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _finish(self, s: cython.pointer[Slot], error: cython.int) -> cython.void:
        """The request ends; count it and give its slot back."""
        if error:
            self.counters.failed += error != EOPNOTSUPP
        else:
            self.count(s.operation, s.sectors)
        if s.operation == WRITE or s.operation == TRIM or s.operation == WRITE_ZEROES:
            self.changed += error != 0 or not s.flags & FUA     # what failed may have changed something as well
        self.free[self.free_count] = cython.cast(cython.int, s.work.index)
        self.free_count += 1
        self.end(s.tag, error)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _advance(s: cython.pointer[Slot], octets: int64_t) -> cython.void:
    """So much of a read or write is done: the vector and the place begin behind it."""
    s.at += octets
    s.left -= octets
    while octets and octets >= cython.cast(int64_t, s.work.iov.iov_len):
        octets -= s.work.iov.iov_len
        s.work.iov += 1
        s.work.iov_count -= 1
    if octets:
        s.work.iov.iov_base = cython.cast(cython.pointer[cython.uchar], s.work.iov.iov_base) + octets
        s.work.iov.iov_len -= octets


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _errno(number: int64_t) -> cython.int:
    """The kernel's errno as one of those `drivers.disk.Disk` names."""
    if number in (ENOSPC, EOPNOTSUPP, EINVAL, EROFS, ENODATA, EILSEQ, ETIMEDOUT, ENODEV):
        return cython.cast(cython.int, number)
    if number == EDQUOT or number == EFBIG:
        return ENOSPC
    return ENODEV if number == ENXIO or number == EBADF else EIO
