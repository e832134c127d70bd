"""The table of commands: what a queue asks its disk, with the buffers some of them go by."""

import cython
from cython.cimports.drivers.block.records import BOUNCE_OCTETS, BOUNCES, COMMANDS, MAX_SEGMENTS, Command, Slot, segments_of
from cython.cimports.drivers.block.slots import memory_of
from cython.cimports.drivers.request import EXTENTS, READ, WRITE, WRITE_ZEROES, Request, RequestBurst, Segment
from cython.cimports.libc.stdint import int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.string import memset
from cython.cimports.mm.histogram import histogram_row

from drivers.disk import Feature
from drivers.errors import DeviceError

if not cython.compiled:
    raise ImportError("drivers.block.commands must be compiled: python setup.py build_ext --inplace")

OPERATION_NAMES = ("read", "write", "flush", "trim", "write_zeroes", "extents")

assert BOUNCE_OCTETS % 4096 == 0


@cython.cclass
class Commands:
    """What `drivers.block.queue.Queue` is built on."""

    def __init__(self, disk):
        i: cython.int
        info = disk.info
        self.disk, self.requests = disk, RequestBurst()
        self.sector, self.octets = info.sector_octets, info.octets
        self.max_octets = cython.cast(uint64_t, info.max_sectors) * self.sector
        self.max_trim = cython.cast(uint64_t, info.max_trim_sectors or 0xFFFF_FFFF) * self.sector
        self.trim_octets = info.trim_sectors * self.sector
        self.max_segments, self.memory_alignment = min(info.max_segments, MAX_SEGMENTS), info.memory_alignment
        features = info.features
        self.caches, self.has_fua = Feature.WRITE_CACHE in features, Feature.FUA in features
        self.has_zeroes = Feature.WRITE_ZEROES in features
        self.has_fast_zeroes = Feature.FAST_ZEROES in features
        for i in range(COMMANDS):
            self.give_command(cython.address(self.commands[i]))

    @cython.cfunc
    def command_statistics(self) -> dict:
        """How many commands of each operation there were, and what became of them."""
        counts = {f"{name}_commands": self.counts[i] for i, name in enumerate(OPERATION_NAMES)}
        return counts | {"failed_commands": self.failed, "commands_under_way": self.under_way}

    def histograms(self) -> dict:
        """How long commands took, in ns: a row of `mm.histogram.Histogram` for each operation."""
        return {name: histogram_row(cython.address(self.latency[i])) for i, name in enumerate(OPERATION_NAMES)}

    @cython.cfunc
    def free_buffers(self):
        """Once the disk is closed."""
        for memory in (self.bounce_memory, self.zero_memory):
            if memory is not None:
                memory.free()
        self.bounce_memory = self.zero_memory = None

    @cython.cfunc
    @cython.nogil
    @cython.inline
    @cython.exceptval(check=False)
    def buffer(self, c: cython.pointer[Command]) -> cython.pointer[uint8_t]:
        return self.bounce_data + c.bounce * BOUNCE_OCTETS

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def need_bounce_memory(self) -> cython.bint:
        """The buffers, made when they are first needed; False when there is no memory for them."""
        if self.bounce_data == cython.NULL:
            with cython.gil:
                try:
                    memory = self.disk.allocate(BOUNCES * BOUNCE_OCTETS, f"{self.disk.info.name} bounce buffers")
                except DeviceError:
                    return False
                self.bounce_memory = memory
                self.bounce_data = cython.cast(cython.pointer[uint8_t], cython.cast(uintptr_t, memory.address))
                self.bounce_iova = memory.iova
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def need_zeros(self) -> cython.bint:
        if self.zero_data == cython.NULL:
            with cython.gil:
                try:
                    memory = self.disk.allocate(BOUNCE_OCTETS, f"{self.disk.info.name} zeros")
                except DeviceError:
                    return False
                self.zero_memory = memory
                self.zero_data = cython.cast(cython.pointer[uint8_t], cython.cast(uintptr_t, memory.address))
                self.zero_iova = memory.iova
                memset(self.zero_data, 0, BOUNCE_OCTETS)
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def take_command(self, s: cython.pointer[Slot], operation: uint8_t) -> cython.pointer[Command]:
        """A command for what is behind the request's cursor; NULL when all are taken."""
        c: cython.pointer[Command] = self.free
        if c == cython.NULL:
            return cython.NULL
        self.free = c.next
        self.free_count -= 1
        c.slot, c.operation, c.offset, c.parents, c.bounce = s, operation, s.cursor, 1, -1
        c.next = cython.NULL
        c.flags = c.tries = 0
        c.at = c.octets = c.span = 0
        c.then_write = c.changes = False
        c.active = True
        return c

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def give_command(self, c: cython.pointer[Command]) -> cython.void:
        if c.active and c.bounce >= 0:
            self.bounce_used[c.bounce] = False
            self.bounce_writes -= c.changes
        c.active = False
        c.next = self.free
        self.free = c
        self.free_count += 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def push_ready(self, c: cython.pointer[Command]) -> cython.void:
        """To be submitted when there is room, before anything else."""
        c.next = cython.NULL
        if self.ready_first == cython.NULL:
            self.ready_first = c
        else:
            self.ready_last.next = c
        self.ready_last = c

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def send(self, c: cython.pointer[Command], now: int64_t) -> cython.bint:
        """Into the burst; False when it has no room."""
        parts: Segment[256]
        r: Request
        r.tag = cython.cast(uint64_t, c - self.commands)
        r.lba = c.at // self.sector
        r.sectors = cython.cast(uint32_t, c.span // self.sector)
        r.operation, r.flags = c.operation, c.flags
        r.segment_count = cython.cast(uint16_t, self._segments(c, parts))
        if not self.requests.add(cython.address(r), parts):
            return False
        c.started = now
        if self.under_way == 0:
            self.progress = now
        self.under_way += 1
        self.counts[c.operation] += 1
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _segments(self, c: cython.pointer[Command], out: cython.pointer[Segment]) -> cython.int:
        """The memory of a command; how many pieces."""
        s: cython.pointer[Slot] = c.slot
        count: cython.int = 0
        left: uint64_t = c.span
        _i: uint32_t
        if c.operation == EXTENTS:
            out[0] = segments_of(s)[0]
            return 1
        if c.operation != READ and c.operation != WRITE:
            return 0
        if c.bounce >= 0:
            out.data = self.buffer(c)
            out.iova = self.bounce_iova + c.bounce * BOUNCE_OCTETS
            out.octets = cython.cast(uint32_t, c.span)
            return 1
        if s.operation == WRITE_ZEROES:
            while left:
                out[count].data, out[count].iova = self.zero_data, self.zero_iova
                out[count].octets = cython.cast(uint32_t, min(left, BOUNCE_OCTETS))
                left -= out[count].octets
                count += 1
            return count
        if c.parents == 1:
            return memory_of(s, c.offset, c.octets, out)
        for _i in range(c.parents):
            count += memory_of(s, 0, s.octets, out + count)
            s = s.next
        return count

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def conflicts(self, at: uint64_t, span: uint64_t, only_bounces: cython.bint) -> cython.bint:
        """Whether a command under way changes some of these sectors; or only such a one that goes by way of a buffer."""
        i: cython.int
        c: cython.pointer[Command]
        for i in range(COMMANDS):
            c = cython.address(self.commands[i])
            if c.active and c.changes and (c.bounce >= 0 or not only_bounces) and c.at < at + span and at < c.at + c.span:
                return True
        return False
