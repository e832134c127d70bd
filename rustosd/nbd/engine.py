"""Serves the connections of one export from its disk, a burst at a time, on the event loop.

One breath: look which sockets have news (an epoll of its own), read requests straight into the disk's memory, hand the disk a
burst, take what it has completed, send the replies, one sendmsg for each connection. Python is entered once per breath to
call the disk. When work ends the engine keeps looking for some microseconds, as `rustosd.pump` does, and then sleeps until a
socket or the disk wakes it.
"""

import errno

import cython
from cython.cimports.drivers.request import REQUESTS, CompletionBurst, Request, RequestBurst, Segment
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.errno import ENODEV
from cython.cimports.libc.stdlib import calloc, free, realloc
from cython.cimports.libc.string import memset
from cython.cimports.mm.hw import now_ns
from cython.cimports.rustosd.epoll import (
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLLERR,
    EPOLLET,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    EPOLLRDHUP,
    close_descriptor,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    epoll_wait,
)
from cython.cimports.rustosd.nbd.peer import (
    ARENA_WORDS,
    ENDED_LOST,
    ENDED_SHUTDOWN,
    ENDED_STALLED,
    P_ACTIVE,
    P_BROKEN,
    P_DRAINING,
    P_EOF,
    P_FULL,
    P_GROW,
    P_HUNG_UP,
    P_READABLE,
    P_SMALL,
    P_TRY,
    PAGE,
    PART_MOST,
    SECTORS_MOST,
    SLOTS,
    Peer,
    peer_break,
    peer_busy,
    peer_init,
    peer_over,
    peer_set_arena,
)
from cython.cimports.rustosd.nbd.reply import send_replies
from cython.cimports.rustosd.nbd.request import next_part, part_ended, part_handed, receive_requests

from drivers.disk import GONE, DiskError, Feature
from drivers.request import Operation
from rustosd.nbd import wire

if not cython.compiled:
    raise ImportError("rustosd.nbd.engine must be compiled: python setup.py build_ext --inplace")

BUDGET = 16
"""Breaths in one turn, before the loop's other callbacks get their share ..."""
TURN_NS = cython.declare(int64_t, 500_000)
"""... and how long one may begin for: a breath takes longer where its disk reads and writes itself, from and to memory."""
BUSY_POLL_US = 50
ARENA_OCTETS = 64 * PAGE
"""Memory of a connection at first; four times as much each time it wants more than it has."""
CONNECTION_OCTETS = cython.sizeof(Peer) + ARENA_OCTETS
"""What a connection takes at first."""
MAX_PAYLOAD = 32 << 20
REASON_LABELS = ("disconnect", "eof", "lost", "bad_magic", "oversize", "mid_read_error", "stalled", "shutdown")
"""Why connections ended, as metrics call it: `Reason` in peer.pxd."""
COMMAND_LABELS = ("read", "write", "disconnect", "flush", "trim", "cache", "write_zeroes", "block_status", "unknown")
ERRORS = {name: getattr(wire, f"NBD_{name}")
          for name in ("EPERM", "EIO", "ENOMEM", "EINVAL", "ENOSPC", "EOVERFLOW", "ENOTSUP", "ESHUTDOWN")}
RETRY_S = 0.001
_FLUSH_TAG = cython.declare(uint64_t, cython.cast(uint64_t, 1) << 63)


@cython.final
@cython.cclass
class Engine:
    """The connections of one export. The disk is its own to drive, not to close: `detach`, close the disk, then `free`.

    `owner.ended(index, reason)` is told of each connection that is over, `owner.gone()` that the disk has left.
    `budget.take(octets)` says whether there is so much memory, `budget.give(octets)` gives it back.
    """

    def __cinit__(self):
        self.epoll = -1

    def __init__(self, loop, disk, owner, budget, *, max_payload: int = MAX_PAYLOAD, busy_poll_us: int = BUSY_POLL_US):
        info = disk.info
        self.name = info.name
        self.loop, self.disk, self.owner, self.budget = loop, disk, owner, budget
        self.submit, self.complete, self.room = disk.submit, disk.complete, disk.room
        self.requests, self.completions = RequestBurst(), CompletionBurst()
        self.memories = []
        self.busy_poll_ns = busy_poll_us * 1000
        self.shape.octets = info.octets
        self.shape.sector_octets = info.sector_octets
        self.shape.max_payload = max_payload
        part: uint64_t = min(info.max_sectors * info.sector_octets, PART_MOST)
        self.shape.part_most = part - part % info.sector_octets
        trim: uint64_t = min(info.max_trim_sectors or SECTORS_MOST, SECTORS_MOST)
        if trim > info.trim_sectors:
            trim -= trim % info.trim_sectors        # each part but the last ends where the disk's units do
        self.shape.trim_most = trim * info.sector_octets
        self.shape.fua = bool(info.features & Feature.FUA)
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno.EMFILE, "no descriptor is left for another export")
        self.disk_fd = disk.fileno()
        loop.add_reader(self.epoll, self.turn)
        loop.add_reader(self.disk_fd, self.turn)

    def __dealloc__(self):
        i: uint32_t
        for i in range(self.capacity):
            if self.peers[i] != cython.NULL:
                free(self.peers[i])
        free(self.peers)
        free(self.active)
        if self.epoll >= 0:
            close_descriptor(self.epoll)

    def add(self, fd: int, leftover: bytes, transmission: int, structured: bool, extended: bool, context: int | None) -> int:
        """Serve a connection whose handshake is done; its index. The descriptor is the engine's from here on.

        `leftover` has come behind the handshake. Raises MemoryError or DeviceError, and then the descriptor is the caller's.
        """
        p: cython.pointer[Peer]
        event: epoll_event
        index: uint32_t = self._free_index()
        pages: uint32_t = ARENA_OCTETS // PAGE
        octets: cython.pointer[cython.const[uint8_t]] = leftover
        count: uint32_t = len(leftover)
        if count > 4096:
            raise ValueError("too much has come behind the handshake")
        if not self.budget.take(CONNECTION_OCTETS):
            raise MemoryError("the memory for connections is used up: buffers_octets under [nbd]")
        p = cython.cast(cython.pointer[Peer], calloc(1, cython.sizeof(Peer)))
        try:
            memory = self.disk.allocate(ARENA_OCTETS, f"nbd {self.name}")
        except BaseException:
            free(p)
            self.budget.give(CONNECTION_OCTETS)
            raise
        peer_init(p, fd, cython.address(self.shape), cython.address(self.counts))
        p.index = index
        p.transmission = transmission
        p.structured = structured
        p.extended = extended
        p.status = context is not None
        p.context = context or 0
        for i in range(count):
            p.input[i] = octets[i]
        p.end = count
        p.progress_ns = now_ns()
        peer_set_arena(p, cython.cast(cython.pointer[uint8_t], cython.cast(uintptr_t, memory.address)), memory.iova, pages)
        if self.draining:
            p.flags |= P_DRAINING
        self.peers[index] = p
        self.memories[index] = memory
        self.connections += 1
        memset(cython.address(event), 0, cython.sizeof(epoll_event))
        event.events = cython.cast(uint32_t, EPOLLIN | EPOLLOUT | EPOLLRDHUP) | cython.cast(uint32_t, EPOLLET)
        event.data.u32 = index
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, cython.address(event)) < 0:
            peer_break(p, ENDED_LOST)
        self._activate(p)
        self._schedule()
        return index

    def turn(self) -> None:
        """Breathe while there is work, within the budget; then give way, keep looking for a moment, or sleep."""
        breaths: cython.int = 0
        late: int64_t
        busy: cython.bint = True
        if self.closed or self.running:
            return
        self.running = True
        self.turns += 1
        late = now_ns() + TURN_NS
        try:
            with cython.nogil:
                self._look()
            while busy and breaths < BUDGET and (breaths == 0 or now_ns() < late):
                busy = self._breathe()
                breaths += busy
        finally:
            self.running = False
        if self.closed:
            return
        if busy or self._polls_on(breaths != 0) or not self._wait():
            self._schedule()

    def tell_all(self) -> None:
        """Send the ends of all requests, as far as clients take them now: nothing is under way any more."""
        breaths: cython.int = 0
        while breaths < BUDGET and self._breathe():
            breaths += 1

    def flush(self):
        """A future that ends when everything that was written is durable, with None or DiskError."""
        if self.flush_ended is None or self.flush_ended.done():
            self.flush_ended = self.loop.create_future()
            if self.gone or self.closed:
                self.flush_ended.set_exception(DiskError(self.name, errno.ENODEV, "the disk is gone"))
            else:
                self.flush_wanted = True
                self._schedule()
        return self.flush_ended

    def drain(self) -> None:
        """Refuse new requests, and end each connection once what it has asked for is done."""
        i: uint32_t
        self.draining = True
        for i in range(self.capacity):
            if self.peers[i] != cython.NULL:
                self.peers[i].flags |= P_DRAINING | P_TRY
                self._activate(self.peers[i])
        self._schedule()

    def abort(self) -> None:
        """End every connection now."""
        i: uint32_t
        for i in range(self.capacity):
            if self.peers[i] != cython.NULL:
                self._end(i, ENDED_SHUTDOWN)
        self._schedule()

    def end(self, index: int) -> None:
        """End one connection now."""
        if 0 <= index < self.capacity and self.peers[index] != cython.NULL:
            self._end(index, ENDED_SHUTDOWN)
            self._schedule()

    @cython.cfunc
    def _end(self, index: uint32_t, reason: uint32_t):
        peer_break(self.peers[index], reason)
        self._activate(self.peers[index])

    def sweep(self, stalled_ns: int) -> None:
        """End connections that have taken nothing of their replies for so long."""
        i: uint32_t
        oldest: int64_t = now_ns() - stalled_ns
        p: cython.pointer[Peer]
        for i in range(self.capacity):
            p = self.peers[i]
            if p != cython.NULL and p.out_count and p.flags & P_FULL and p.progress_ns < oldest:
                self._end(i, ENDED_STALLED)
                self._schedule()

    def pending(self, index: int) -> int:
        """Requests of a connection that are not answered yet."""
        return SLOTS - self.peers[index].free_count if index < self.capacity and self.peers[index] != cython.NULL else 0

    def statistics(self) -> dict:
        """Counters since the export began: by command, by error, by how connections ended, octets read and written."""
        return {
            "requests": {label: self.counts.requests[i] for i, label in enumerate(COMMAND_LABELS) if label != "disconnect"},
            "errors": {label: self.counts.errors[number] for label, number in ERRORS.items()},
            "ended": {label: self.counts.ended[i] for i, label in enumerate(REASON_LABELS)},
            "read_octets": self.counts.read_octets, "written_octets": self.counts.written_octets,
            "holes": self.counts.holes,
        }

    def detach(self) -> None:
        """Let go of the loop and drive the disk no more. May be called twice."""
        if self.closed:
            return
        self.closed = True
        self.loop.remove_reader(self.epoll)
        if not self.gone:
            self.loop.remove_reader(self.disk_fd)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.flush_ended is not None and not self.flush_ended.done():
            self.flush_ended.set_exception(DiskError(self.name, errno.ENODEV, "the export has ended"))

    def free(self) -> None:
        """Close the connections and give back their memory, out of whose reach the disk is by now. May be called twice."""
        i: uint32_t
        for i in range(self.capacity):
            if self.peers[i] != cython.NULL:
                peer_break(self.peers[i], ENDED_SHUTDOWN)
                self._remove(i)

    # One breath.

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _breathe(self) -> cython.bint:
        """Whether anything was done."""
        worked: cython.bint
        room: cython.int
        count: cython.int
        before: cython.int
        with cython.nogil:
            worked = self._receive()
        if self.flush_wanted and self.requests.append(Operation.FLUSH, _FLUSH_TAG):
            self.flush_wanted = False
            self.under_way += 1
        if self.gone:
            with cython.nogil:
                self._refuse_queued()
        elif self.active_count or self.requests.count:
            room = self.room()
            with cython.nogil:
                self._fill(min(room, cython.cast(cython.int, REQUESTS)))
            before = self.requests.count
            if before:
                count = self.submit(self.requests)
                worked |= count > 0
        if self.under_way:
            count = self.complete(self.completions)
            if count == GONE:
                self._lose()
                worked = True
            elif count > 0:
                worked = True
                with cython.nogil:
                    self._take()
                self._end_flush()
        if self.active_count:
            with cython.nogil:
                worked |= self._send()
        if self.attention:
            self._attend()
        return worked

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _look(self) -> cython.void:
        """Take note of what the sockets tell."""
        events: epoll_event[EVENTS]
        count: cython.int
        i: cython.int
        told: uint32_t
        p: cython.pointer[Peer]
        count = epoll_wait(self.epoll, events, EVENTS, 0)
        for i in range(count):
            p = self.peers[events[i].data.u32]
            if p == cython.NULL:
                continue
            told = events[i].events
            if told & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
                p.flags |= P_READABLE
            if told & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
                p.flags |= P_HUNG_UP
            if told & (EPOLLOUT | EPOLLHUP | EPOLLERR):     # who has left does not read: sending will tell
                p.flags &= ~cython.cast(uint32_t, P_FULL)
            self._activate(p)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _receive(self) -> cython.bint:
        i: uint32_t
        worked: cython.bint = False
        for i in range(self.active_count):
            worked |= receive_requests(self.peers[self.active[i]])
        return worked

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _fill(self, room: cython.int) -> cython.void:
        """A burst for the disk, from all connections in turn."""
        request: Request
        segment: Segment
        p: cython.pointer[Peer]
        i: uint32_t
        _k: cython.int
        found: cython.bint = True
        while found:
            found = False
            for i in range(self.active_count):
                p = self.peers[self.active[(i + self.rotation) % self.active_count]]
                for _k in range(SHARE):
                    if self.requests.count >= room or not next_part(p, cython.address(request), cython.address(segment)):
                        break
                    if not self.requests.add(cython.address(request), cython.address(segment)):
                        self.rotation += 1
                        return
                    part_handed(p, cython.address(request))
                    self.under_way += 1
                    found = True
        self.rotation += 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _take(self) -> cython.void:
        """Tell the connections what has ended."""
        i: cython.int
        tag: uint64_t
        p: cython.pointer[Peer]
        for i in range(self.completions.count):
            tag = self.completions.completions[i].tag
            self.under_way -= 1
            if tag & _FLUSH_TAG:
                continue
            p = self.peers[tag >> 16]
            part_ended(p, cython.cast(uint32_t, tag & 0xFFFF), self.completions.completions[i].error)
            self._activate(p)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _send(self) -> cython.bint:
        """Send replies, and keep only those connections in the list that have more to do."""
        p: cython.pointer[Peer]
        i: uint32_t
        kept: uint32_t = 0
        now: int64_t = now_ns()
        worked: cython.bint = False
        for i in range(self.active_count):
            p = self.peers[self.active[i]]
            worked |= send_replies(p, now)
            if peer_over(p) or (p.flags & P_GROW and p.pages_used == 0):
                self.attention = True
            elif not peer_busy(p):
                p.flags &= ~cython.cast(uint32_t, P_ACTIVE)
                continue
            self.active[kept] = p.index
            kept += 1
        self.active_count = kept
        return worked

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _refuse_queued(self) -> cython.void:
        """The disk is gone: so is what waits for it."""
        request: Request
        segment: Segment
        p: cython.pointer[Peer]
        i: uint32_t
        for i in range(self.active_count):
            p = self.peers[self.active[i]]
            while next_part(p, cython.address(request), cython.address(segment)):
                part_handed(p, cython.address(request))
                part_ended(p, cython.cast(uint32_t, request.tag & 0xFFFF), ENODEV)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _activate(self, p: cython.pointer[Peer]) -> cython.void:
        if not p.flags & P_ACTIVE:
            p.flags |= P_ACTIVE
            self.active[self.active_count] = p.index
            self.active_count += 1

    # What happens seldom.

    @cython.cfunc
    def _attend(self):
        """Close connections that are over, and give memory to those that wait for more."""
        i: uint32_t
        kept: uint32_t = 0
        p: cython.pointer[Peer]
        over: list = []
        self.attention = False
        for i in range(self.active_count):
            p = self.peers[self.active[i]]
            if peer_over(p):
                over.append(p.index)
                continue
            if p.flags & P_GROW and p.pages_used == 0:
                self._grow(p)
            self.active[kept] = p.index
            kept += 1
        self.active_count = kept
        for index in over:
            self._remove(index)

    @cython.cfunc
    def _grow(self, p: cython.pointer[Peer]):
        """Four times the memory, if there is so much."""
        pages: uint32_t = min(4 * p.pages, 64 * ARENA_WORDS)
        more = cython.cast(object, (pages - p.pages) * PAGE)
        memory = None
        if self.budget.take(more):
            try:
                memory = self.disk.allocate(pages * PAGE, f"nbd {self.name}")
            except Exception:
                self.budget.give(more)
        if memory is None:
            p.flags = (p.flags & ~cython.cast(uint32_t, P_GROW)) | P_SMALL | P_TRY
            return
        self.memories[p.index].free()
        self.memories[p.index] = memory
        peer_set_arena(p, cython.cast(cython.pointer[uint8_t], cython.cast(uintptr_t, memory.address)), memory.iova, pages)

    @cython.cfunc
    def _remove(self, index: uint32_t):
        p: cython.pointer[Peer] = self.peers[index]
        if p.flags & P_DRAINING and not p.flags & (P_BROKEN | P_EOF):
            p.reason = ENDED_SHUTDOWN
        reason: uint32_t = p.reason
        self.peers[index] = cython.NULL
        self.connections -= 1
        self.counts.ended[reason] += 1
        close_descriptor(p.fd)
        self.budget.give(cython.sizeof(Peer) + p.pages * PAGE)
        free(p)
        self.memories[index].free()
        self.memories[index] = None
        self.owner.ended(index, REASON_LABELS[reason])

    @cython.cfunc
    @cython.exceptval(0xFFFFFFFF, check=True)
    def _free_index(self) -> uint32_t:
        """The index for another connection. Raises MemoryError."""
        i: uint32_t
        more: uint32_t
        for i in range(self.capacity):
            if self.peers[i] == cython.NULL:
                return i
        more = max(2 * self.capacity, cython.cast(uint32_t, 16))
        peers = cython.cast(cython.pointer[cython.pointer[Peer]],
                            realloc(self.peers, more * cython.sizeof(cython.pointer[Peer])))
        if peers == cython.NULL:
            raise MemoryError("no memory for another connection")
        self.peers = peers
        active = cython.cast(cython.pointer[uint32_t], realloc(self.active, more * cython.sizeof(uint32_t)))
        if active == cython.NULL:
            raise MemoryError("no memory for another connection")
        self.active = active
        for i in range(self.capacity, more):
            self.peers[i] = cython.NULL
            self.memories.append(None)
        i = self.capacity
        self.capacity = more
        return i

    @cython.cfunc
    def _lose(self):
        """The disk has left for good; every request at it has ended before."""
        self.gone = True
        self.loop.remove_reader(self.disk_fd)
        self.requests.clear()
        self.under_way = 0
        self._end_flush()
        self.owner.gone()

    @cython.cfunc
    def _end_flush(self):
        if self.flush_ended is None or self.flush_ended.done():
            return
        if self.gone:
            self.flush_ended.set_exception(DiskError(self.name, errno.ENODEV, "the disk is gone"))
            return
        for tag, error in self.completions.items():
            if tag & _FLUSH_TAG and error:
                self.flush_ended.set_exception(DiskError(self.name, error, "the last flush failed"))
            elif tag & _FLUSH_TAG:
                self.flush_ended.set_result(None)

    # Between turns.

    @cython.cfunc
    def _wait(self):
        """See that whatever is next wakes us; False when it is there already."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.gone:
            return True
        if self.under_way:
            if not self.disk.arm():
                return False
            at = self.disk.wake_at()
            if at is not None:
                self.timer = self.loop.call_later(max(0.0, (at - now_ns()) / 1e9), self.turn)
        elif self.active_count or self.requests.count or self.flush_wanted:
            self.timer = self.loop.call_later(RETRY_S, self.turn)      # others have the disk's room
        return True

    @cython.cfunc
    @cython.exceptval(-1, check=True)
    def _polls_on(self, worked: cython.bint) -> cython.bint:
        """Whether to keep looking for a while instead of sleeping, as long as that pays: as `rustosd.pump` does."""
        now: int64_t
        if not (worked or self.poll_until):
            return False
        now = now_ns()
        if self.poll_until and worked:
            self.misses = self.passes = 0
        elif self.poll_until:
            if now < self.poll_until:
                return True
            self.misses = min(2 * self.misses + 1, MAX_PASSES)
            self.passes = self.misses
        self.poll_until = 0
        if worked and self.passes:
            self.passes -= 1
        elif worked and self.busy_poll_ns:
            self.poll_until = now + self.busy_poll_ns
            return True
        return False

    @cython.cfunc
    def _schedule(self):
        if not self.scheduled and not self.closed:
            self.scheduled = True
            self.loop.call_soon(self._scheduled_turn)

    def _scheduled_turn(self) -> None:
        self.scheduled = False
        self.turn()
