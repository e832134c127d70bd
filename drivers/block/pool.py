"""Helper threads for what would block: system calls on files, without the GIL and without any Python in them.

They are made as work comes and wait in between. A thread that is in a system call can be neither hurried nor ended.
"""

import cython
from cython.cimports.drivers.block.sys import (
    ALLOCATE,
    PREADV,
    PWRITEV,
    SEEK_DATA,
    SEEK_END,
    SEEK_HOLE,
    SYNC,
    Work,
    fallocate,
    fdatasync,
    lseek,
    preadv2,
    pwritev2,
    write,
)
from cython.cimports.drivers.request import HOLE, ZERO, Extent
from cython.cimports.libc.errno import EAGAIN, EINTR, EINVAL, ENXIO
from cython.cimports.libc.errno import errno as c_errno
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.mm.hw import exchange32, full_fence, load_acquire32, store_release32

if not cython.compiled:
    raise ImportError("drivers.block.pool must be compiled: python setup.py build_ext --inplace")


@cython.final
@cython.cclass
class Pool:
    """The verbs of `drivers.block.ring.Ring`."""

    def __cinit__(self):
        pthread_mutex_init(cython.address(self.shared.mutex), cython.NULL)
        pthread_cond_init(cython.address(self.shared.more), cython.NULL)
        self.alive = True

    def __init__(self, most: cython.int, eventfd: cython.int):
        """At most so many threads, 1 to 16."""
        if not 1 <= most <= MAX_THREADS:
            raise ValueError(f"{most} threads: 1 to {MAX_THREADS} are possible")
        self.most = most
        self.shared.eventfd = eventfd

    def __dealloc__(self):
        self._end()

    def close(self) -> None:
        """Wait until all work is done and the threads have ended. May be called twice."""
        with cython.nogil:
            self._end()
            while self.take() != cython.NULL:
                pass

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _end(self) -> cython.void:
        i: cython.int
        if not self.alive:
            return
        self.alive = False
        self.submit()
        pthread_mutex_lock(cython.address(self.shared.mutex))
        self.shared.ending = True
        pthread_cond_broadcast(cython.address(self.shared.more))
        pthread_mutex_unlock(cython.address(self.shared.mutex))
        for i in range(self.count):
            pthread_join(self.threads[i], cython.NULL)
        self.count = 0
        pthread_cond_destroy(cython.address(self.shared.more))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def put(self, work: cython.pointer[Work]) -> cython.void:
        """Prepare work for the next `submit`."""
        work.next = cython.NULL
        if self.queued:
            self.last.next = work
        else:
            self.first = work
        self.last = work
        self.queued += 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def submit(self) -> cython.int:
        """Give the threads what was put, and make another thread when all are busy; 0, or EAGAIN when there is none."""
        s: cython.pointer[Shared] = cython.address(self.shared)
        wake: uint32_t
        pthread_mutex_lock(cython.address(s.mutex))
        if self.queued == 0:
            pass
        elif s.first == cython.NULL:
            s.first = self.first
            s.last = self.last
        else:
            s.last.next = self.first
            s.last = self.last
        s.waiting += self.queued
        wake = min(s.idle, s.waiting)
        while wake:
            pthread_cond_signal(cython.address(s.more))
            wake -= 1
        wake = s.waiting - s.idle if s.waiting > s.idle else 0
        pthread_mutex_unlock(cython.address(s.mutex))
        self.under_way += self.queued
        self.queued = 0
        while wake and self.count < self.most and self.alive:
            if pthread_create(cython.address(self.threads[self.count]), cython.NULL, _thread, s):
                break
            self.count += 1
            wake -= 1
        return 0 if self.count else EAGAIN

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def stuck(self) -> cython.bint:
        """Whether there is work and no thread could be made for it: `submit` tries again."""
        return self.count == 0 and self.under_way != 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def take(self) -> cython.pointer[Work]:
        """Work that is done, with its result; NULL when there is none."""
        s: cython.pointer[Shared] = cython.address(self.shared)
        work: cython.pointer[Work]
        newest: cython.pointer[Work]
        if self.taken == cython.NULL:
            if self.under_way == 0:
                return cython.NULL
            pthread_mutex_lock(cython.address(s.mutex))
            newest = s.done
            s.done = cython.NULL
            pthread_mutex_unlock(cython.address(s.mutex))
            while newest != cython.NULL:        # turn the list round: oldest first
                work = newest
                newest = work.next
                work.next = self.taken
                self.taken = work
        work = self.taken
        if work != cython.NULL:
            self.taken = work.next
            self.under_way -= 1
        return work

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def arm(self) -> cython.bint:
        """Have the next completion write the eventfd; False when there is one already."""
        found: cython.bint
        if self.taken != cython.NULL:
            return False
        store_release32(cython.address(self.shared.armed), 1)
        full_fence()
        pthread_mutex_lock(cython.address(self.shared.mutex))
        found = self.shared.done != cython.NULL
        pthread_mutex_unlock(cython.address(self.shared.mutex))
        return not found

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def disarm(self) -> cython.void:
        """Completions are not told any more."""
        store_release32(cython.address(self.shared.armed), 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _thread(argument: cython.p_void) -> cython.p_void:
    """One helper: work after work."""
    s: cython.pointer[Shared] = cython.cast(cython.pointer[Shared], argument)
    work: cython.pointer[Work]
    one: uint64_t = 1
    pthread_mutex_lock(cython.address(s.mutex))
    while True:
        while s.first == cython.NULL and not s.ending:
            s.idle += 1
            pthread_cond_wait(cython.address(s.more), cython.address(s.mutex))
            s.idle -= 1
        work = s.first
        if work == cython.NULL:
            break
        s.first = work.next
        s.waiting -= 1
        pthread_mutex_unlock(cython.address(s.mutex))
        work.result = _carry_out(work)
        pthread_mutex_lock(cython.address(s.mutex))
        work.next = s.done
        s.done = work
        if load_acquire32(cython.address(s.armed)) and exchange32(cython.address(s.armed), 0):
            write(s.eventfd, cython.address(one), 8)
    pthread_mutex_unlock(cython.address(s.mutex))
    return cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _carry_out(work: cython.pointer[Work]) -> int64_t:
    """What the system call says, or -errno."""
    result: int64_t
    while True:
        if work.kind == PREADV:
            result = preadv2(work.fd, work.iov, work.iov_count, work.offset, work.flags)
        elif work.kind == PWRITEV:
            result = pwritev2(work.fd, work.iov, work.iov_count, work.offset, work.flags)
        elif work.kind == SYNC:
            result = fdatasync(work.fd)
        elif work.kind == ALLOCATE:
            result = fallocate(work.fd, work.flags, work.offset, work.octets)
        else:
            return _map(work)
        if result >= 0:
            return result
        if c_errno != EINTR:
            return -c_errno


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _map(work: cython.pointer[Work]) -> int64_t:
    """Fill the buffer with extents; the octets told of, or -errno. A sector with any data is one of data."""
    out: cython.pointer[Extent] = cython.cast(cython.pointer[Extent], work.iov.iov_base)
    room: uint64_t = work.iov.iov_len // cython.sizeof(Extent)
    unit: int64_t = work.unit
    at: int64_t = work.offset
    end: int64_t = work.offset + work.octets
    data: int64_t
    until: int64_t
    count: uint64_t = 0
    while at < end and count < room:
        data = lseek(work.fd, at, SEEK_DATA)
        if data < 0:
            if c_errno != ENXIO:
                return -c_errno
            data = lseek(work.fd, 0, SEEK_END)      # no more data to the file's end
            if data < 0:
                return -c_errno
            if data - data % unit <= at:            # the file has become shorter: whoever reads there is told
                count = _extent(out, count, (end - at) // unit, 0)
                at = end
                break
        data -= data % unit
        if data > at:
            until = min(data, end)
            count = _extent(out, count, (until - at) // unit, HOLE | ZERO)
        else:
            until = lseek(work.fd, at, SEEK_HOLE)
            if until < 0:
                return -c_errno
            until = min((until + unit - 1) // unit * unit, end)
            if until <= at:
                return -EINVAL              # it changes under our feet
            count = _extent(out, count, (until - at) // unit, 0)
        at = until
    if count < room:
        out[count].sectors = 0
        out[count].flags = 0
    return at - work.offset


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _extent(out: cython.pointer[Extent], count: uint64_t, sectors: int64_t, flags: uint32_t) -> uint64_t:
    """One more, or more of the same; how many there are."""
    if count and out[count - 1].flags == flags:
        out[count - 1].sectors += cython.cast(uint32_t, sectors)
        return count
    out[count].sectors = cython.cast(uint32_t, sectors)
    out[count].flags = flags
    return count + 1
