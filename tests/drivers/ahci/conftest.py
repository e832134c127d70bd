"""An adapter with its driver, in virtual time."""

from types import SimpleNamespace

import pytest

from drivers.ahci.controller import AhciController
from drivers.disk import GONE
from drivers.errors import DeviceError
from drivers.request import CompletionBurst, Operation, RequestBurst
from tests.models.ahci import SECTOR, Drive, Model
from tests.models.device import FakeDevice


class AhciDevice(FakeDevice):
    """A function with the model in BAR 5."""

    def __init__(self, model, kinds=("msi",)):
        model.chip = SimpleNamespace(device=0x2922)
        super().__init__(model, "0000:00:1f.2", kinds)
        self.config.words |= {8: 0x01060102}

    def bar(self, index):
        if index != 5:
            raise DeviceError(self.name, f"it has no BAR {index}")
        return self.model


class Rig:
    """The model, its driver and the first disk. Time goes on by a microsecond at each look, and when somebody sleeps."""

    def __init__(self, *drives, kind="msi", lazy=False, cap=None, ports=None, firmware=None, **options):
        self.now = 1_000_000_000
        extra = {} if cap is None else {"cap": cap}
        self.model = Model(*(drives or (Drive(),)), ports=ports, firmware=firmware, **extra)
        self.model.clock = lambda: self.now
        self.device = AhciDevice(self.model, (kind,) if kind else ())
        self.controller = AhciController(self.device, interrupts=(kind,) if kind else (), clock=self.clock, sleep=self.sleep,
                                         **options)
        self.disk = self.controller.disks[0] if self.controller.disks else None
        self.model.lazy = lazy
        self.requests, self.completions = RequestBurst(), CompletionBurst()
        self.tag = 0
        self.ended = {}

    @property
    def port(self):
        """The model's."""
        return self.model.ports[0]

    @property
    def drive(self):
        return self.model.drives[0]

    def clock(self):
        self.now += 1000
        return self.now

    def sleep(self, seconds):
        self.now += round(seconds * 1e9)

    def wait(self, seconds, step_s=0.01):
        """Let time pass while everybody does what they have to."""
        end = self.now + round(seconds * 1e9)
        while self.now < end:
            self.look()
            self.controller.tend()
            self.now += round(step_s * 1e9)

    def until(self, done, seconds=120):
        """The same until something is so."""
        end = self.now + round(seconds * 1e9)
        while not done():
            assert self.now < end, f"{[(port.state.name, port.reason) for port in self.controller.ports]}"
            self.wait(0.02)

    def perform(self, procedure, disk=None):
        """Have a disk do something of its own; what comes of it, or raises."""
        ended = []
        (disk or self.disk).perform(procedure, lambda value, error: ended.append((value, error)))
        self.until(lambda: ended, 100_000)
        (value, error), = ended
        if error is not None:
            raise error
        return value

    def use(self, disk):
        """From now on `look` and the like are about this disk."""
        self.disk = disk
        return disk

    def memory(self, octets=64 << 10):
        return self.disk.allocate(octets, "test")

    def ask(self, operation, lba=0, sectors=0, segments=(), fua=False):
        """Add a request to the burst; its tag."""
        self.tag += 1
        assert self.requests.append(operation, self.tag, lba, sectors, segments, fua=fua)
        return self.tag

    def look(self, times=1):
        """Submit and complete; how many ended. What `complete` said last when it was GONE."""
        if self.disk is None:
            return 0
        before = len(self.ended)
        for _ in range(times):
            self.disk.submit(self.requests)
            count = self.disk.complete(self.completions)
            for tag, code in self.completions.items():
                assert tag not in self.ended, "ended twice"
                self.ended[tag] = code
            if count == GONE:
                return GONE
            assert count == len(self.completions)
            self.now += 600_000 if self.disk.state.name != "READY" else 1000
        return len(self.ended) - before

    def finish(self, *tags, looks=20_000):
        """Go on until these have ended; their errnos."""
        for _ in range(looks):
            if all(tag in self.ended for tag in tags):
                return [self.ended[tag] for tag in tags]
            self.look()
        raise AssertionError(f"{self.ended}, {self.disk.state.name} {self.disk.reason} {self.disk.statistics()}")

    def do(self, *arguments, **named):
        """One request to its end; its errno."""
        return self.finish(self.ask(*arguments, **named))[0]

    def read(self, memory, lba, sectors=1):
        code = self.do(Operation.READ, lba, sectors, [(memory, 0, SECTOR * sectors)])
        return code or bytes(memory.view()[:SECTOR * sectors])


@pytest.fixture
def rig():
    """Makes rigs, closes them."""
    made = []

    def make(*drives, **options):
        made.append(Rig(*drives, **options))
        return made[-1]

    yield make
    for one in made:
        for block in one.device.bus.blocks:
            if block.owner == "test":
                block.free()
        one.controller.close()
        assert one.device.closed == 1
