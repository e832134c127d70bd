"""One disk for many clients: their requests are split, merged, put in order, limited, shared out fairly and counted.

A request of a client sits in a slot of its lane. What the disk is asked is a command: a slot, a piece of one, or several
slots that are neighbours on the disk. Lanes take turns by deficit round robin (Shreedhar and Varghese, 1996), by octets and
requests. Odd octets at either end of a request, and memory the disk cannot reach, go by way of a buffer: such a write reads
whole sectors, changes some octets and writes them, while nothing else changes these sectors.

A flush of the disk is shared by all who wait for one; while it runs the next ones gather. A write with FUA to a disk that has
none is a write and then a flush.
"""

import cython
from cython.cimports.drivers.block.check import check
from cython.cimports.drivers.block.records import (
    BOUNCE_OCTETS,
    BOUNCES,
    COMMANDS,
    LOOK_AHEAD,
    MAX_SEGMENTS,
    NEAR,
    Command,
    Ends,
    Lane,
    Slot,
    allowed_at,
    append,
    charge,
    cost,
    count,
    prepend,
    segments_of,
    unlink,
)
from cython.cimports.drivers.block.slots import copy_bounced, direct_octets, in_units, is_odd, tell
from cython.cimports.drivers.block.sys import write
from cython.cimports.drivers.request import (
    BARRIER,
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
    CompletionBurst,
    Request,
    RequestBurst,
    Segment,
)
from cython.cimports.libc.errno import EILSEQ, EIO, ENODEV, ENOMEM, EOPNOTSUPP, ETIMEDOUT
from cython.cimports.libc.stdint import int32_t, int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import malloc
from cython.cimports.libc.string import memcpy
from cython.cimports.mm.histogram import histogram_add, histogram_row
from cython.cimports.mm.hw import now_ns

from drivers.block.commands import OPERATION_NAMES
from drivers.disk import GONE

if not cython.compiled:
    raise ImportError("drivers.block.queue must be compiled: python setup.py build_ext --inplace")

TIMEOUT_NS = 60 * 10**9
"""How long a disk may answer nothing before those who wait for their turn are told ETIMEDOUT. Longer than any driver's own."""
RETRIES = 1
"""Drivers try again themselves, as often as their hardware is known to need it."""
_ROUNDS = cython.declare(cython.int, 8)
_FLUSH_COST = cython.declare(uint64_t, 1 << 16)


@cython.final
@cython.cclass
class Queue(Commands):
    """The one user of a disk. Its clients are `drivers.block.client.Client`s."""

    def __init__(self, disk, *, clock=None, retries: cython.int = RETRIES, timeout_ns: int64_t = TIMEOUT_NS,
                 merge: cython.bint = True):
        """`disk`: any `drivers.disk.Disk`, closed with the queue. `clock`: monotonic ns, else the machine's; `retries` of a
        command that failed in a way that may pass; `timeout_ns`: 0 is for ever.
        """
        Commands.__init__(self, disk)
        self.clock, self.retries, self.timeout_ns, self.merges = clock, retries, timeout_ns, merge
        self.names = []
        self.completions = CompletionBurst()

    @property
    def info(self):
        """The disk's."""
        return self.disk.info

    def turn_now(self) -> None:
        """Look what the disk has done, and ask it for more: what every client's `complete` does."""
        if not self.closed:
            self.turn_over(self.now(), cython.NULL)

    def statistics(self) -> dict:
        """Of the commands to the disk: how many of each operation, and what went wrong. Clients have their own."""
        return self.command_statistics() | {"stalls": self.stalls}

    def requests_ended(self) -> dict:
        """Of all its clients, also those that have left, by operation: (requests, octets, histogram's row); with failures."""
        e: cython.pointer[Ends] = cython.address(self.ends)
        ended = {name: (e.requests[i], e.octets[i], histogram_row(cython.address(e.latency[i])))
                 for i, name in enumerate(OPERATION_NAMES)}
        return {"failed": e.failed, "operations": ended}

    def waiting(self) -> int:
        """Requests of which nothing is with the disk yet."""
        lanes = [i for i in range(self.lane_count) if self.lanes[i] != cython.NULL]
        return sum(self.lanes[i].waiting for i in lanes) + self.flush_waiting

    def close(self) -> None:
        """Close the disk; clients find it gone. May be called twice."""
        if self.closed:
            return
        self.closed = True
        self.disk.close()       # from here on no memory of a client's is the disk's
        self._lose(self.now())
        self._rearm(cython.NULL)
        self.free_buffers()

    @cython.cfunc
    @cython.exceptval(-1, check=True)
    def now(self) -> int64_t:
        """The time."""
        if self.clock is None:
            return now_ns()
        return self.clock()

    # From clients.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def forget(self, lane: cython.pointer[Lane]) -> cython.void:
        """What waits in the lane and is not with the disk; what is ends, and no new pieces of it begin."""
        s: cython.pointer[Slot] = lane.first
        then: cython.pointer[Slot]
        while s != cython.NULL:
            then = s.next
            s.error = ENODEV
            if s.pieces == 0:
                unlink(lane, s)
                self.finish(s, ENODEV, self.looked)
            s = then

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def accept(self, lane: cython.pointer[Lane], burst: RequestBurst, now: int64_t) -> cython.void:
        """Take requests from the burst's front as long as the lane has room; `dispatch` follows."""
        taken: cython.int = 0
        error: cython.int
        r: cython.pointer[Request]
        s: cython.pointer[Slot]
        segments: cython.pointer[Segment]
        while taken < burst.count and lane.free != cython.NULL and lane.ended_count < lane.depth:
            r = cython.address(burst.requests[taken])
            segments = cython.address(burst.segments[r.first_segment])
            s = lane.free
            if r.segment_count > NEAR and s.apart == cython.NULL:
                s.apart = cython.cast(cython.pointer[Segment], malloc(MAX_SEGMENTS * cython.sizeof(Segment)))
            taken += 1
            lane.free = s.next
            lane.free_count -= 1
            s.tag, s.operation, s.flags, s.sectors, s.submitted = r.tag, r.operation, r.flags, r.sectors, now
            s.error, s.pieces, s.cursor, s.segment_count = 0, 0, 0, 0
            s.started = s.alone = s.odd = s.waits = False
            s.at = lane.begin + r.lba * lane.unit
            s.octets = cython.cast(uint64_t, r.sectors) * lane.unit
            error = ENODEV if self.gone or self.closed else check(cython.address(lane.bounds), r, segments)
            if error == 0 and r.segment_count > NEAR and s.apart == cython.NULL:
                error = ENOMEM
            if error == 0 and self.stalled:
                error = ETIMEDOUT
            if error:
                lane.counters.refused += 1
                tell(lane, s, error)
                continue
            s.segment_count = r.segment_count
            memcpy(segments_of(s), segments, r.segment_count * cython.sizeof(Segment))
            s.odd = self.memory_alignment > 1 and is_odd(segments, r.segment_count, self.memory_alignment)
            append(lane, s)
        lane.counters.full += taken < burst.count
        burst.drop(taken)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def turn_over(self, now: int64_t, asking: cython.pointer[Lane]) -> cython.int:
        """Harvest what the disk has done and give it more, a bounded number of times. `asking`: needs no signal."""
        i: cython.int
        _rounds: cython.int
        count: cython.int
        done: cython.pointer[Command]
        for _rounds in range(_ROUNDS):
            if self.gone:
                break
            count = self.disk.complete(self.completions)
            if count == GONE:
                self._lose(now)
                break
            if count:
                self.progress = now
                self.stalled = False
                for i in range(self.completions.count):
                    done = cython.address(self.commands[self.completions.completions[i].tag])
                    self._ended(done, self.completions.completions[i].error, now)
            elif (self.timeout_ns and self.under_way and now - self.progress >= self.timeout_ns and not self.stalled):
                self.stalled = True
                self.stalls += 1
                self._fail_waiting(ETIMEDOUT, now)
            if self.dispatch(now) == 0 and count == 0:
                break
        self._rearm(asking)
        return 0

    @cython.cfunc
    def _rearm(self, asking: cython.pointer[Lane]):
        """Tell who sleeps what there is for him; when he still waits for the disk, see that the disk wakes him."""
        i: cython.int
        lane: cython.pointer[Lane]
        sleeps: cython.bint = False
        for i in range(self.lane_count):
            lane = self.lanes[i]
            if lane == cython.NULL or lane == asking or not lane.armed:
                continue
            if lane.ended_count or self.gone:
                self.signal(lane)
            else:
                sleeps = sleeps or lane.under_way != 0 or lane.waiting != 0
        if sleeps and not self.disk.arm():
            self.signal_all()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def signal_all(self) -> cython.void:
        """Have everybody who sleeps look."""
        i: cython.int
        for i in range(self.lane_count):
            if self.lanes[i] != cython.NULL and self.lanes[i].armed:
                self.signal(self.lanes[i])

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def signal(self, lane: cython.pointer[Lane]) -> cython.void:
        """Make a client's descriptor readable."""
        one: uint64_t = 1
        lane.armed = False
        if not lane.signalled:
            lane.signalled = True
            write(lane.eventfd, cython.address(one), 8)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def next_deadline(self) -> int64_t:
        """When the queue itself has something to do: a limit lets a request pass, or the disk is given up; 0: never."""
        i: cython.int
        at: int64_t
        found: int64_t = 0
        lane: cython.pointer[Lane]
        waits: cython.bint = False
        for i in range(self.lane_count):
            lane = self.lanes[i]
            if lane == cython.NULL or lane.first == cython.NULL:
                continue
            waits = True
            at = allowed_at(lane)
            if at > self.looked and (found == 0 or at < found):
                found = at
        if waits and self.under_way and self.timeout_ns and not self.stalled:
            at = self.progress + self.timeout_ns
            if found == 0 or at < found:
                found = at
        return found

    # To the disk.

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def dispatch(self, now: int64_t) -> cython.int:
        """Give the disk what it has room for and lanes may ask for now; how many commands."""
        room: cython.int
        taken: cython.int
        given: cython.int = 0
        self.looked = now
        while self._has_work() and not self.gone:
            room = self.disk.room()
            if room <= 0:
                break
            self._fill(room, now)
            if self.requests.count == 0:
                break
            taken = self.disk.submit(self.requests)
            given += taken
            if taken == 0 or self.requests.count:
                break
        return given

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _has_work(self) -> cython.bint:
        i: cython.int
        if self.ready_first != cython.NULL or self.requests.count or (self.flush_first != cython.NULL and not self.flushing):
            return True
        for i in range(self.lane_count):
            if self.lanes[i] != cython.NULL and self.lanes[i].first != cython.NULL:
                return True
        return False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _fill(self, room: cython.int, now: int64_t) -> cython.void:
        """Put commands into the burst until the disk's room is used up."""
        idle: cython.int = 0
        spent: int64_t
        blocked: cython.bint
        lane: cython.pointer[Lane]
        c: cython.pointer[Command]
        room = min(room, REQUESTS)
        while self.ready_first != cython.NULL and self.requests.count < room:
            c = self.ready_first
            if not self.send(c, now):
                return
            self.ready_first = c.next
        if self.requests.count < room and not self._flush_command(now):
            return
        while self.requests.count < room and idle < self.lane_count:
            lane = self.lanes[self.turn]
            blocked = True
            if lane != cython.NULL and self._ready(lane, now):
                if not self.visited:
                    lane.deficit += lane.quantum
                    self.visited = True
                blocked = False
                while lane.deficit > 0 and self._ready(lane, now):
                    if self.requests.count >= room:
                        return
                    spent = self._issue(lane, now)
                    if spent < 0:
                        return
                    if spent == 0:
                        blocked = True
                        break
                    lane.deficit -= spent
            elif lane != cython.NULL and lane.first == cython.NULL:
                lane.deficit = min(lane.deficit, 0)
            idle = idle + 1 if blocked else 0
            self.turn = self.turn + 1 if self.turn + 1 < self.lane_count else 0
            self.visited = False
        if self.requests.count < room:
            self._flush_command(now)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _flush_command(self, now: int64_t) -> cython.bint:
        """One flush for all who wait for one, unless one is under way; False when there is no room for it."""
        c: cython.pointer[Command]
        if self.flush_first == cython.NULL or self.flushing:
            return True
        c = self.take_command(self.flush_first, FLUSH)
        if c == cython.NULL:
            return False
        c.parents = self.flush_waiting
        self.flush_first = self.flush_last = cython.NULL
        self.flush_waiting = 0
        self.flushing = True
        if not self.send(c, now):
            self.push_ready(c)
            return False
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _ready(self, lane: cython.pointer[Lane], now: int64_t) -> cython.bint:
        """Whether the lane's first request may go on, as far as the lane itself is concerned."""
        s: cython.pointer[Slot] = lane.first
        if s == cython.NULL:
            return False
        if s.started:
            return s.error == 0         # else it only waits for what is under way of it
        if lane.barrier or (s.flags & BARRIER and lane.under_way):
            return False
        if allowed_at(lane) > now:
            if lane.held != s:
                lane.held = s
                lane.counters.throttled += 1
            return False
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _issue(self, lane: cython.pointer[Lane], now: int64_t) -> int64_t:
        """The next command of the lane's first request; what it costs, 0 when others are in its way, -1 without room."""
        s: cython.pointer[Slot] = lane.first
        c: cython.pointer[Command]
        if s.operation == FLUSH:
            self._begin(lane, s, now)
            unlink(lane, s)
            self._settle(s, now)
            return _FLUSH_COST
        if s.operation == WRITE_ZEROES and s.flags & FAST and not self.has_fast_zeroes:
            self._begin(lane, s, now)
            s.error = EOPNOTSUPP
            self._settle(s, now)
            return cost(0)
        if self.free_count == 0:
            return -1
        c = self._next_command(lane, s)
        if c == cython.NULL:
            if s.error or s.cursor == s.octets:     # there is nothing whole to trim, or no memory
                if not s.started:
                    self._begin(lane, s, now)
                self._settle(s, now)
                return cost(0)
            return 0
        if not s.started:
            self._begin(lane, s, now)
        elif s.cursor:
            lane.counters.split += 1
        s.cursor = c.offset + c.octets
        s.pieces += 1
        if s.cursor == s.octets:
            unlink(lane, s)
            if self.merges and c.offset == 0 and c.bounce < 0 and c.operation == s.operation:
                self._merge(lane, c, now)
        if not self.send(c, now):
            self.push_ready(c)
            return -1
        return cost(c.octets if c.operation == READ or c.operation == WRITE else 0)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _begin(self, lane: cython.pointer[Lane], s: cython.pointer[Slot], now: int64_t) -> cython.void:
        """The request is under way from now on."""
        s.started = True
        lane.under_way += 1
        lane.barrier = lane.barrier or s.flags & BARRIER != 0
        charge(lane, s.octets if s.operation == READ or s.operation == WRITE else 0, now)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _next_command(self, lane: cython.pointer[Lane], s: cython.pointer[Slot]) -> cython.pointer[Command]:
        """For what of the request lies behind its cursor; NULL: not now, or the request's cursor or error say why."""
        c: cython.pointer[Command]
        at: uint64_t = s.at + s.cursor
        left: uint64_t = s.octets - s.cursor
        octets: uint64_t
        operation: uint8_t = s.operation
        if operation == EXTENTS:
            c = self.take_command(s, EXTENTS)
            c.octets, c.at = left, at // self.sector * self.sector
            c.span = (at + left + self.sector - 1) // self.sector * self.sector - c.at
            return c
        if operation == TRIM:
            octets = (at + self.trim_octets - 1) // self.trim_octets * self.trim_octets - at    # up to what can be forgotten
            if octets >= left or (left - octets) < self.trim_octets:
                s.cursor = s.octets
                return cython.NULL
            s.cursor += octets
            at += octets
            left = (left - octets) // self.trim_octets * self.trim_octets
            octets = min(left, self.max_trim // self.trim_octets * self.trim_octets)
        elif not self._direct(s):
            return self._bounce(s)
        elif operation == WRITE_ZEROES and self.has_zeroes:
            octets = min(left, self.max_trim) // self.sector * self.sector
        elif operation == WRITE_ZEROES:
            if not self.need_zeros():
                s.error = EIO
                return cython.NULL
            operation = WRITE
            octets = min(min(left, self.max_octets), self.max_segments * cython.cast(uint64_t, BOUNCE_OCTETS))
            octets = octets // self.sector * self.sector
        else:
            octets = direct_octets(s, self.sector, self.max_octets, self.max_segments)
            if octets == 0:
                return self._bounce(s)
        if self.bounce_writes and operation != READ and self.conflicts(at, octets, True):
            return cython.NULL
        c = self.take_command(s, operation)
        c.at, c.octets, c.span = at, octets, octets
        c.changes = operation != READ
        c.flags = s.flags & (KEEP_ALLOCATED | FAST) if operation == WRITE_ZEROES else 0
        if operation == WRITE and s.flags & FUA and self.has_fua:
            c.flags = FUA
        if operation == TRIM and c.offset + c.octets + self.trim_octets > s.octets:
            c.octets = s.octets - c.offset      # the odd end with it
        return c

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _merge(self, lane: cython.pointer[Lane], c: cython.pointer[Command], now: int64_t) -> cython.void:
        """Let the command be for the lane's next requests, too, as long as each begins on the disk where the last one ends."""
        looked: cython.int = 0
        segments: uint32_t = c.slot.segment_count
        last: cython.pointer[Slot] = c.slot
        s: cython.pointer[Slot] = lane.first
        found: cython.pointer[Slot]
        if c.slot.alone or c.slot.odd or (c.operation != READ and c.operation != WRITE) or c.slot.flags & BARRIER:
            return
        while s != cython.NULL and looked < LOOK_AHEAD:
            found, s = s, s.next
            looked += 1
            if found.flags & BARRIER or found.started:
                return
            if (found.operation != c.operation or found.flags != c.slot.flags or found.at != c.at + c.span or found.odd
                    or found.alone or found.octets % self.sector or c.span + found.octets > self.max_octets
                    or segments + found.segment_count > self.max_segments):
                continue
            if allowed_at(lane) > now or (self.bounce_writes and c.changes and self.conflicts(found.at, found.octets, True)):
                return
            self._begin(lane, found, now)
            unlink(lane, found)
            found.cursor = found.octets
            found.pieces = 1
            last.next = found
            last = found
            segments += found.segment_count
            c.span += found.octets
            c.parents += 1
            lane.counters.merged += 1
            looked = 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _direct(self, s: cython.pointer[cython.const[Slot]]) -> cython.bint:
        """Whether the rest of the request begins with at least a whole sector, in memory that the disk reaches."""
        if (s.at + s.cursor) % self.sector or s.octets - s.cursor < self.sector:
            return False
        return s.operation == WRITE_ZEROES or not (s.odd or s.cursor % self.memory_alignment)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _bounce(self, s: cython.pointer[Slot]) -> cython.pointer[Command]:
        """By way of a buffer: one sector if only that is odd, else as much as the buffer holds. NULL: none is free."""
        c: cython.pointer[Command]
        at: uint64_t = s.at + s.cursor
        begin: uint64_t = at // self.sector * self.sector
        room: uint64_t = min(cython.cast(uint64_t, BOUNCE_OCTETS), self.max_octets)
        whole: cython.bint
        end: uint64_t
        number: int32_t
        if not self.need_bounce_memory():
            s.error = EIO
            return cython.NULL
        if at != begin and not s.odd and (begin + self.sector - s.at) % self.memory_alignment == 0:
            room = self.sector          # what follows needs no buffer
        end = min(s.at + s.octets, begin + room)
        whole = at == begin and (end - begin) % self.sector == 0
        for number in range(BOUNCES):
            if not self.bounce_used[number]:
                break
        else:
            return cython.NULL
        room = (end + self.sector - 1) // self.sector * self.sector - begin
        if s.operation != READ and self.conflicts(begin, room, False):
            return cython.NULL
        c = self.take_command(s, READ)
        c.bounce, c.at, c.span, c.octets = number, begin, room, end - at
        self.bounce_used[number] = True
        s.lane.counters.bounced += 1
        if s.operation != READ:
            c.changes = True
            self.bounce_writes += 1
            c.then_write = not whole
            if whole:
                c.operation = WRITE
                c.flags = FUA if s.flags & FUA and self.has_fua else 0
                copy_bounced(c, self.buffer(c), False)
        return c

    # Back from the disk.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _ended(self, c: cython.pointer[Command], error: cython.int, now: int64_t) -> cython.void:
        """A command has ended."""
        s: cython.pointer[Slot] = c.slot
        then: cython.pointer[Slot]
        _i: uint32_t
        if not c.active:
            return
        self.under_way -= 1
        histogram_add(cython.address(self.latency[c.operation]), now - c.started)
        if error:
            self.failed += 1
            if self._again(c, error):
                return
        elif c.then_write:
            c.then_write = False
            c.operation = WRITE
            c.tries = 0
            c.flags = FUA if s.flags & FUA and self.has_fua else 0
            copy_bounced(c, self.buffer(c), False)
            self.push_ready(c)
            return
        elif c.bounce >= 0 and c.operation == READ:
            copy_bounced(c, self.buffer(c), True)
        elif c.operation == EXTENTS:
            in_units(s, c, self.sector)
        if c.operation == FLUSH:
            self.flushing = False
        for _i in range(c.parents):
            then = s.next if c.parents > 1 else cython.NULL
            if c.operation == FLUSH:
                self.finish(s, error, now)
            else:
                self._piece_done(s, error, now)
            s = then
        self.give_command(c)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _again(self, c: cython.pointer[Command], error: cython.int) -> cython.bint:
        """Whether a command that failed has another try, maybe in another form."""
        if c.operation == FLUSH:
            return False        # what a failed flush has lost no second one brings back: see `drivers.block.file`
        if c.parents > 1:
            self._unmerge(c)
            return True
        if error == EOPNOTSUPP and c.operation == WRITE_ZEROES and not c.flags & FAST:
            self.has_zeroes = False
            c.slot.cursor = c.offset            # once more from here, with zeros to write
            c.slot.pieces -= 1
            if not c.slot.waits:
                prepend(c.slot.lane, c.slot)
            self.give_command(c)
            return True
        if c.tries < self.retries and (error == EIO or error == EILSEQ or error == ETIMEDOUT):
            c.tries += 1
            c.slot.lane.counters.retried += 1
            self.push_ready(c)
            return True
        return False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _unmerge(self, c: cython.pointer[Command]) -> cython.void:
        """Each of its requests again by itself, so that an error is one request's."""
        s: cython.pointer[Slot] = c.slot
        then: cython.pointer[Slot]
        _i: uint32_t
        for _i in range(c.parents):
            then = s.next
            s.alone = True
            s.cursor = 0
            s.pieces = 0
            prepend(s.lane, s)
            s = then
        self.give_command(c)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _piece_done(self, s: cython.pointer[Slot], error: cython.int, now: int64_t) -> cython.void:
        """One command of the request has ended."""
        s.pieces -= 1
        if error and not s.error:
            s.error = error
        self._settle(s, now)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _settle(self, s: cython.pointer[Slot], now: int64_t) -> cython.void:
        """When nothing of the request is under way: end it if it is done or failed; have it flushed if that is left."""
        if s.pieces or (s.cursor < s.octets and not s.error):
            return
        if s.waits:
            unlink(s.lane, s)
        if s.error == 0 and (s.operation == FLUSH or (s.flags & FUA and self.caches
                                                      and not (s.operation == WRITE and self.has_fua))):
            s.next = cython.NULL
            if self.flush_first == cython.NULL:
                self.flush_first = s
            else:
                self.flush_last.next = s
            self.flush_last = s
            self.flush_waiting += 1
            return
        self.finish(s, s.error, now)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def finish(self, s: cython.pointer[Slot], error: cython.int, now: int64_t) -> cython.void:
        """The request has ended; its lane is told and counts it."""
        lane: cython.pointer[Lane] = s.lane
        if s.started:
            lane.under_way -= 1
            if s.flags & BARRIER:
                lane.barrier = False
        count(cython.address(lane.ends), s, error, now)
        count(cython.address(self.ends), s, error, now)
        tell(lane, s, error)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _fail_waiting(self, error: cython.int, now: int64_t) -> cython.void:
        """End every request of which nothing is with the disk."""
        i: cython.int
        lane: cython.pointer[Lane]
        s: cython.pointer[Slot]
        then: cython.pointer[Slot]
        for i in range(self.lane_count):
            lane = self.lanes[i]
            if lane == cython.NULL:
                continue
            s = lane.first
            while s != cython.NULL:
                then = s.next
                s.error = error
                if s.pieces == 0:
                    unlink(lane, s)
                    lane.counters.timeouts += error == ETIMEDOUT
                    self.finish(s, error, now)
                s = then
        while self.flush_first != cython.NULL:
            s = self.flush_first
            self.flush_first = s.next
            self.finish(s, error, now)
        self.flush_last = cython.NULL
        self.flush_waiting = 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _lose(self, now: int64_t) -> cython.void:
        """The disk has left: everything ends."""
        i: cython.int
        _j: uint32_t
        c: cython.pointer[Command]
        s: cython.pointer[Slot]
        then: cython.pointer[Slot]
        self.gone = True
        self.ready_first = cython.NULL
        self.requests.count = self.requests.segment_count = 0
        for i in range(COMMANDS):
            c = cython.address(self.commands[i])
            if not c.active:
                continue
            s = c.slot
            for _j in range(c.parents):
                then = s.next if c.parents > 1 else cython.NULL
                s.error = ENODEV
                s.pieces = 0 if c.operation == FLUSH else s.pieces - 1
                if s.pieces == 0:
                    if s.waits:
                        unlink(s.lane, s)
                    self.finish(s, ENODEV, now)
                s = then
            self.give_command(c)
        self.under_way = 0
        self.flushing = False
        self._fail_waiting(ENODEV, now)

