"""An io_uring for reads, writes, syncs and allocations of files, by its bare system calls.

One thread submits and takes; the kernel is the other side. The submission queue has room for all work that its owner ever
has under way, so nothing here is ever full. The eventfd is written only while armed: see `io_uring_register_eventfd(3)`.
"""

import os

import cython
from cython.cimports.drivers.block.sys import (
    ALLOCATE,
    IORING_CQ_EVENTFD_DISABLED,
    IORING_ENTER_GETEVENTS,
    IORING_FEAT_NODROP,
    IORING_FEAT_SINGLE_MMAP,
    IORING_FSYNC_DATASYNC,
    IORING_OFF_SQ_RING,
    IORING_OFF_SQES,
    IORING_OP_FALLOCATE,
    IORING_OP_FSYNC,
    IORING_OP_READV,
    IORING_OP_WRITEV,
    IORING_REGISTER_EVENTFD,
    IORING_SETUP_CLAMP,
    PREADV,
    SYNC,
    Work,
    __NR_io_uring_enter,
    __NR_io_uring_register,
    __NR_io_uring_setup,
    io_uring_cqe,
    io_uring_params,
    io_uring_sqe,
    syscall,
)
from cython.cimports.libc.errno import EAGAIN, EBUSY, EINTR
from cython.cimports.libc.errno import errno as c_errno
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.string import memset
from cython.cimports.mm.hw import full_fence, load_acquire32, store_release32
from cython.cimports.posix.mman import MAP_FAILED, MAP_POPULATE, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

if not cython.compiled:
    raise ImportError("drivers.block.ring must be compiled: python setup.py build_ext --inplace")


@cython.final
@cython.cclass
class Ring:
    """`put` work, `submit` it together, `take` it back with its result."""

    def __cinit__(self):
        self.fd = -1

    def __init__(self, entries: cython.int, eventfd: cython.int):
        """`entries`: how much work may be under way, a power of two. Raises OSError where the kernel has or allows no ring."""
        params: io_uring_params
        memset(cython.address(params), 0, cython.sizeof(params))
        params.flags = IORING_SETUP_CLAMP
        self.fd = syscall(__NR_io_uring_setup, cython.cast(cython.uint, entries), cython.address(params))
        if self.fd < 0:
            raise OSError(c_errno, os.strerror(c_errno), "io_uring")
        if params.sq_entries < cython.cast(uint32_t, entries) or not (
                params.features & IORING_FEAT_SINGLE_MMAP and params.features & IORING_FEAT_NODROP):
            raise OSError(95, "this kernel's rings are too old", "io_uring")
        self._map(cython.address(params))
        if syscall(__NR_io_uring_register, self.fd, cython.cast(cython.uint, IORING_REGISTER_EVENTFD),
                   cython.address(eventfd), cython.cast(cython.uint, 1)) < 0:
            raise OSError(c_errno, os.strerror(c_errno), "io_uring")
        self.disarm()

    def __dealloc__(self):
        if self.rings != cython.NULL:
            munmap(self.rings, self.rings_octets)
        if self.sqes != cython.NULL:
            munmap(self.sqes, self.sqes_octets)
        if self.fd >= 0:
            os.close(self.fd)

    @cython.cfunc
    def _map(self, p: cython.pointer[io_uring_params]):
        """The rings and the table of entries, in our address space."""
        found: cython.p_void
        i: uint32_t
        self.rings_octets = max(p.sq_off.array + p.sq_entries * cython.sizeof(uint32_t),
                                p.cq_off.cqes + p.cq_entries * cython.sizeof(io_uring_cqe))
        self.sqes_octets = p.sq_entries * cython.sizeof(io_uring_sqe)
        found = mmap(cython.NULL, self.rings_octets, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, self.fd,
                     IORING_OFF_SQ_RING)
        if found == MAP_FAILED:
            raise OSError(c_errno, os.strerror(c_errno), "io_uring")
        self.rings = cython.cast(cython.pointer[uint8_t], found)
        found = mmap(cython.NULL, self.sqes_octets, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, self.fd, IORING_OFF_SQES)
        if found == MAP_FAILED:
            raise OSError(c_errno, os.strerror(c_errno), "io_uring")
        self.sqes = cython.cast(cython.pointer[io_uring_sqe], found)
        self.sq_tail = cython.cast(cython.pointer[uint32_t], self.rings + p.sq_off.tail)
        self.sq_array = cython.cast(cython.pointer[uint32_t], self.rings + p.sq_off.array)
        self.sq_mask = cython.cast(cython.pointer[uint32_t], self.rings + p.sq_off.ring_mask)[0]
        self.cq_head = cython.cast(cython.pointer[uint32_t], self.rings + p.cq_off.head)
        self.cq_tail = cython.cast(cython.pointer[uint32_t], self.rings + p.cq_off.tail)
        self.cq_flags = cython.cast(cython.pointer[uint32_t], self.rings + p.cq_off.flags)
        self.cq_mask = cython.cast(cython.pointer[uint32_t], self.rings + p.cq_off.ring_mask)[0]
        self.cqes = cython.cast(cython.pointer[io_uring_cqe], self.rings + p.cq_off.cqes)
        for i in range(p.sq_entries):
            self.sq_array[i] = i

    def close(self) -> None:
        """Wait until nothing is under way and give the ring back. May be called twice."""
        if self.fd < 0:
            return
        with cython.nogil:
            while self.under_way or self.queued:
                self.submit()
                if self.take() == cython.NULL:
                    self._wait()
        os.close(self.fd)
        self.fd = -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def put(self, work: cython.pointer[Work]) -> cython.void:
        """Prepare work for the next `submit`."""
        tail: uint32_t = self.sq_tail[0]
        e: cython.pointer[io_uring_sqe] = cython.address(self.sqes[tail & self.sq_mask])
        memset(e, 0, cython.sizeof(io_uring_sqe))
        e.fd = work.fd
        e.user_data = cython.cast(uint64_t, cython.cast(uintptr_t, work))
        if work.kind == SYNC:
            e.opcode = IORING_OP_FSYNC
            e.fsync_flags = IORING_FSYNC_DATASYNC
        elif work.kind == ALLOCATE:
            e.opcode = IORING_OP_FALLOCATE
            e.off = work.offset
            e.addr = work.octets
            e.len = cython.cast(uint32_t, work.flags)
        else:
            e.opcode = IORING_OP_READV if work.kind == PREADV else IORING_OP_WRITEV
            e.off = work.offset
            e.addr = cython.cast(uint64_t, cython.cast(uintptr_t, work.iov))
            e.len = work.iov_count
            e.rw_flags = work.flags
        store_release32(self.sq_tail, tail + 1)
        self.queued += 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def submit(self) -> cython.int:
        """Give the kernel what was put. What it cannot take for now goes with the next `submit`; 0, or that errno."""
        taken: cython.long
        while self.queued:
            taken = syscall(__NR_io_uring_enter, self.fd, self.queued, cython.cast(cython.uint, 0),
                            cython.cast(cython.uint, 0), cython.NULL, cython.cast(cython.size_t, 0))
            if taken < 0:
                if c_errno == EINTR:
                    continue
                return c_errno
            if taken == 0:
                return EAGAIN
            self.queued -= cython.cast(uint32_t, taken)
            self.under_way += cython.cast(uint32_t, taken)
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def take(self) -> cython.pointer[Work]:
        """Work that is done, with its result; NULL when there is none."""
        head: uint32_t = self.cq_head[0]
        cqe: cython.pointer[io_uring_cqe]
        work: cython.pointer[Work]
        if head == load_acquire32(self.cq_tail):
            return cython.NULL
        cqe = cython.address(self.cqes[head & self.cq_mask])
        work = cython.cast(cython.pointer[Work], cython.cast(uintptr_t, cqe.user_data))
        work.result = cqe.res
        store_release32(self.cq_head, head + 1)
        self.under_way -= 1
        return work

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def arm(self) -> cython.bint:
        """Have the next completion write the eventfd; False when there is one already."""
        store_release32(self.cq_flags, 0)
        full_fence()
        return self.cq_head[0] == load_acquire32(self.cq_tail)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def disarm(self) -> cython.void:
        """Completions are not told any more."""
        store_release32(self.cq_flags, IORING_CQ_EVENTFD_DISABLED)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _wait(self) -> cython.void:
        """Until something is done, or a signal came."""
        if syscall(__NR_io_uring_enter, self.fd, cython.cast(cython.uint, 0), cython.cast(cython.uint, 1),
                   cython.cast(cython.uint, IORING_ENTER_GETEVENTS), cython.NULL, cython.cast(cython.size_t, 0)) < 0 and (
                       c_errno not in (EINTR, EAGAIN, EBUSY)):
            self.under_way = 0
