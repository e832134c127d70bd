"""One request at a time, or many, to any `drivers.disk.Disk`, waited for as a loop would."""

import select
import time

from drivers.disk import GONE
from drivers.request import CompletionBurst, Operation, RequestBurst


class Driver:
    """Requests by their octets. Its memory is the disk's own."""

    def __init__(self, disk, octets=1 << 20):
        self.disk, self.sector = disk, disk.info.sector_octets
        self.memory = disk.allocate(octets, "test")
        self.requests, self.completions = RequestBurst(), CompletionBurst()
        self.tag = 0
        self.results = {}

    def post(self, operation, lba=0, sectors=0, segments=(), **options):
        """Submit one; its tag."""
        self.tag += 1
        assert self.requests.append(operation, self.tag, lba, sectors, segments, **options)
        assert self.disk.submit(self.requests) == 1
        return self.tag

    def collect(self):
        """Whatever has ended, without waiting."""
        while (count := self.disk.complete(self.completions)) not in (0, GONE):
            assert count == len(self.completions)
            for tag, error in self.completions.items():
                assert tag not in self.results
                self.results[tag] = error
        return count

    def wait(self, tag, timeout_s=10):
        """The errno of one request, once it has ended."""
        deadline = time.monotonic() + timeout_s
        while tag not in self.results:
            assert time.monotonic() < deadline, f"request {tag} does not end"
            gone = self.collect() == GONE
            if tag in self.results:
                break
            assert not gone
            if self.disk.arm():
                select.select([self.disk.fileno()], [], [], 0.05)
        return self.results.pop(tag)

    def do(self, operation, lba=0, sectors=0, segments=(), **options):
        return self.wait(self.post(operation, lba, sectors, segments, **options))

    def write(self, lba, octets, **options):
        with self.memory.view() as view:
            view[:len(octets)] = octets
        return self.do(Operation.WRITE, lba, len(octets) // self.sector, [(self.memory, 0, len(octets))], **options)

    def read(self, lba, sectors):
        octets = sectors * self.sector
        error = self.do(Operation.READ, lba, sectors, [(self.memory, 0, octets)])
        with self.memory.view() as view:
            return error or bytes(view[:octets])

    def flush(self):
        return self.do(Operation.FLUSH)

    def extents(self, lba, sectors, room=64):
        """[(sectors, flags)], or an errno."""
        error = self.do(Operation.EXTENTS, lba, sectors, [(self.memory, 0, 8 * room)])
        if error:
            return error
        with self.memory.view() as view, view[:8 * room].cast("I") as words:
            pairs = list(zip(words[::2], words[1::2], strict=True))
        return pairs[:next((i for i, (length, _) in enumerate(pairs) if length == 0), room)]

    def close(self):
        self.memory.free()
        self.disk.close()
