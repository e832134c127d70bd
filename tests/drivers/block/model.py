"""A disk that does what a test says: strict about what it is asked, late, out of order, and forgetful when its power fails."""

import ctypes
import errno
import os

from drivers.block.memory import HostBuffer
from drivers.disk import GONE, DiskInfo, Feature
from drivers.request import Flag, Operation

ALL = (Feature.QUEUE | Feature.FUA | Feature.TRIM | Feature.WRITE_CACHE | Feature.WRITE_ZEROES | Feature.FAST_ZEROES
       | Feature.EXTENTS)
PLAIN = Feature.QUEUE | Feature.WRITE_CACHE


class Asked:
    """A request it has, with its memory."""

    def __init__(self, operation, tag, lba, sectors, flags, segments):
        self.operation, self.tag, self.lba, self.sectors = Operation(operation), tag, lba, sectors
        self.flags, self.segments = Flag(flags), segments

    def __repr__(self):
        return f"<{self.operation.name} {self.lba}+{self.sectors} {self.flags!r} {[octets for _, octets in self.segments]}>"

    @property
    def changes(self):
        return self.operation in (Operation.WRITE, Operation.TRIM, Operation.WRITE_ZEROES)


class ModelDisk:
    """`lazy`: requests end only when the test says so, by `end`; else at the next `complete`, in order."""

    name = "model"

    def __init__(self, sectors=2048, sector_octets=512, *, features=ALL, depth=32, max_sectors=256, max_segments=16,
                 max_trim_sectors=0, trim_sectors=1, memory_alignment=2, lazy=False):
        self.info = DiskInfo("model", "model", "M1", "1", sectors, sector_octets, sector_octets, depth, features, max_sectors,
                             max_segments, max_trim_sectors, trim_sectors, memory_alignment)
        self.lazy, self.gone, self.closed = lazy, False, False
        self.data, self.durable = bytearray(self.info.octets), bytearray(self.info.octets)
        self.asked, self.log = [], []           # what it has; all it ever had
        self.ended = []
        self.fail = {}                          # errno by what `fail_key` makes of a request, each once
        self.refuse_zeroes = False
        self.armed, self._fd = False, os.eventfd(0, os.EFD_NONBLOCK)
        self.allocated = []

    def submit(self, burst):
        taken = burst.items()[:self.room()]
        for item in taken:
            asked = Asked(*item)
            self._check(asked)
            self.asked.append(asked)
            self.log.append(asked)
        burst.take(len(taken))
        return len(taken)

    def _check(self, asked):
        """No client may make the queue break the disk's rules."""
        info, octets = self.info, sum(octets for _, octets in asked.segments)
        assert not asked.flags & Flag.BARRIER
        assert asked.lba + asked.sectors <= info.sectors
        if asked.operation in (Operation.READ, Operation.WRITE):
            assert 0 < asked.sectors <= info.max_sectors and len(asked.segments) <= info.max_segments
            assert octets == asked.sectors * info.sector_octets
            for address, length in asked.segments:
                assert length and (address | length) % info.memory_alignment == 0
        elif asked.operation is Operation.EXTENTS:
            assert Feature.EXTENTS in info.features
        else:
            assert not asked.segments
        if asked.operation is Operation.TRIM:
            assert Feature.TRIM in info.features and asked.lba % info.trim_sectors == asked.sectors % info.trim_sectors == 0
        if asked.operation in (Operation.TRIM, Operation.WRITE_ZEROES):
            assert 0 < asked.sectors <= (info.max_trim_sectors or info.sectors)
        if asked.operation is Operation.WRITE_ZEROES:
            assert Feature.WRITE_ZEROES in info.features
        if asked.flags & Flag.FUA:
            assert Feature.FUA in info.features and asked.operation is Operation.WRITE
        if asked.operation is Operation.FLUSH:
            assert asked.sectors == 0 and not any(each.operation is Operation.FLUSH for each in self.asked)

    def end(self, which=0, error=None):
        """End the request at this place of `asked`, and wake who sleeps."""
        asked = self.asked.pop(which)
        code = self.fail.pop((asked.operation, asked.lba), 0) if error is None else error
        self.ended.append((asked.tag, code or self._carry_out(asked)))
        if self.armed:
            self.armed = False
            os.eventfd_write(self._fd, 1)

    def _carry_out(self, asked):
        size = self.info.sector_octets
        at, end = asked.lba * size, (asked.lba + asked.sectors) * size
        if asked.operation is Operation.FLUSH:
            self.durable[:] = self.data
        elif asked.operation is Operation.READ:
            for address, octets in asked.segments:
                ctypes.memmove(address, bytes(self.data[at:at + octets]), octets)
                at += octets
        elif asked.operation is Operation.WRITE:
            for address, octets in asked.segments:
                self.data[at:at + octets] = ctypes.string_at(address, octets)
                at += octets
            if asked.flags & Flag.FUA or Feature.WRITE_CACHE not in self.info.features:
                self.durable[asked.lba * size:end] = self.data[asked.lba * size:end]
        elif asked.operation is Operation.EXTENTS:
            (address, octets), = asked.segments
            extents = [(sector, self.data[sector * size:(sector + 1) * size].count(0) == size)
                       for sector in range(asked.lba, asked.lba + asked.sectors)]
            runs = []
            for _, empty in extents:
                if runs and runs[-1][1] == 3 * empty:
                    runs[-1][0] += 1
                else:
                    runs.append([1, 3 * empty])
            words = [word for run in [*runs, [0, 0]] for word in run][:octets // 4]
            ctypes.memmove(address, b"".join(word.to_bytes(4, "little") for word in words), len(words) * 4)
        elif asked.operation is Operation.WRITE_ZEROES and self.refuse_zeroes:
            return errno.EOPNOTSUPP
        else:
            self.data[at:end] = bytes(end - at)
        return 0

    def cut_power(self):
        """What was not flushed is lost."""
        self.data[:] = self.durable
        self.asked.clear()

    def complete(self, burst):
        burst.clear()
        if self.gone and not self.ended:
            return GONE
        if self._fd >= 0:
            try:
                os.eventfd_read(self._fd)
                self.armed = False
            except BlockingIOError:
                pass
        while self.asked and not self.lazy:
            self.end()
        while self.ended and burst.append(*self.ended[0]):
            self.ended.pop(0)
        return len(burst)

    def room(self):
        return 0 if self.gone else self.info.queue_depth - len(self.asked) - len(self.ended)

    def fileno(self):
        return self._fd

    def arm(self):
        if self.ended or self.gone or (self.asked and not self.lazy):
            return False
        self.armed = True
        return True

    def wake_at(self):
        return None

    def allocate(self, octets, owner):
        self.allocated.append(HostBuffer(octets, owner))
        return self.allocated[-1]

    def statistics(self):
        return {}

    def close(self):
        self.closed = self.gone = True
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
