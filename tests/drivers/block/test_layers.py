"""Disks that fail on purpose, and the queue's behaviour on top of all of them against a byte array."""

import errno
import itertools
import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from drivers.block.client import Client
from drivers.block.faults import FaultyDisk, Rule
from drivers.block.layer import Layer
from drivers.block.queue import Queue
from drivers.block.ram import RamDisk
from drivers.block.volatile import VolatileDisk
from drivers.disk import GONE, Feature
from drivers.request import CompletionBurst, Flag, Operation
from tests.drivers.block.driver import Driver
from tests.drivers.block.model import PLAIN, ModelDisk

READ, WRITE, FLUSH, TRIM, ZEROES = (Operation.READ, Operation.WRITE, Operation.FLUSH, Operation.TRIM, Operation.WRITE_ZEROES)
MIB = 1 << 20


@pytest.fixture
def ram():
    return RamDisk("ram", MIB)


def test_a_layer_passes_everything_on(ram):
    driver = Driver(Layer(ram))
    assert driver.write(3, b"x" * 1024) == 0 and driver.read(2, 4) == bytes(512) + b"x" * 1024 + bytes(512)
    assert driver.flush() == 0 and driver.do(TRIM, 3, 1) == 0 and driver.do(READ, 4000, 1) == errno.EINVAL
    assert driver.extents(0, 8)[0][0] == 8
    driver.close()
    driver.disk.close()
    assert driver.disk.complete(CompletionBurst()) == GONE and driver.disk.fileno() == -1


def test_errors_come_where_and_as_often_as_the_rule_says(ram):
    faulty = FaultyDisk(ram, [Rule("error", {READ}, 10, 19, skip=1, times=2, error=errno.ENODATA)])
    driver = Driver(faulty)
    results = [driver.do(READ, lba, 2, [(driver.memory, 0, 1024)]) for lba in (0, 9, 9, 18, 18, 20)]
    assert results == [0, 0, errno.ENODATA, errno.ENODATA, 0, 0]
    assert driver.write(10, bytes(512)) == 0 and faulty.rules[0].happened == 2
    driver.close()


def test_a_probability_is_repeatable(ram):
    def run():
        driver = Driver(FaultyDisk(RamDisk("r", MIB), [Rule("error", probability=0.3)], chance=random.Random(5)))
        return [driver.do(READ, n, 1, [(driver.memory, 0, 512)]) for n in range(100)]
    first = run()
    assert first == run() and 15 < first.count(errno.EIO) < 45


def test_a_delay_is_kept_in_virtual_time(ram):
    now = [0]
    driver = Driver(FaultyDisk(ram, [Rule("delay", {READ}, delay_ns=1000)], clock=lambda: now[0]))
    tag, other = driver.post(READ, 0, 1, [(driver.memory, 0, 512)]), driver.post(FLUSH)
    driver.collect()
    assert driver.results == {other: 0} and driver.disk.wake_at() == 1000
    now[0] = 1000
    driver.collect()
    assert driver.results[tag] == 0
    driver.close()


def test_a_torn_write_leaves_a_prefix_of_its_sectors(ram):
    faulty = FaultyDisk(ram, [Rule("torn", times=20)], chance=random.Random(1))
    driver = Driver(faulty)
    seen = set()
    for n in range(20):
        data = bytes([n + 1]) * 8 * 512
        assert driver.write(100, data) == errno.EIO
        found = driver.read(100, 8)
        arrived = sum(found[i * 512] == n + 1 for i in range(8))
        assert found[:arrived * 512] == data[:arrived * 512] and arrived < 8
        seen.add(arrived)
    assert len(seen) > 3 and driver.write(100, b"y" * 4096) == 0
    driver.close()


def test_a_volatile_disk_loses_what_was_not_flushed_sector_by_sector():
    kept = set()
    for seed in range(20):
        below = RamDisk("ram", MIB)
        volatile = VolatileDisk(below)
        driver = Driver(volatile)
        driver.write(0, b"a" * 4096)
        driver.write(8, b"b" * 512, fua=True)
        assert driver.flush() == 0
        driver.write(0, b"c" * 4096)
        driver.do(TRIM, 8, 1)
        driver.write(20, b"d" * 512, fua=True)
        assert driver.read(0, 9) == b"c" * 4096 + bytes(512)
        volatile.cut_power(random.Random(seed))
        assert driver.collect() == GONE
        found = Driver(below).read(0, 21)
        sectors = [found[i * 512:(i + 1) * 512] for i in range(21)]
        assert all(sector in (b"a" * 512, b"c" * 512) for sector in sectors[:8])
        assert sectors[8] in (b"b" * 512, bytes(512)) and sectors[20] == b"d" * 512
        kept.add(tuple(sector[0] for sector in sectors[:9]))
    assert len(kept) > 10


def test_a_volatile_disk_on_a_slow_one_writes_back_in_order():
    model = ModelDisk(lazy=True, features=PLAIN)
    volatile = VolatileDisk(model)
    driver = Driver(volatile)
    for lba in (5, 6, 9):
        driver.write(lba, bytes([lba]) * 512)
    tag = driver.post(FLUSH)
    for wanted in ((WRITE, 5, 2), (WRITE, 9, 1), (FLUSH, 0, 0)):
        driver.collect()
        assert driver.results == {}
        (asked,) = model.asked
        assert (asked.operation, asked.lba, asked.sectors) == wanted
        model.end()
    assert driver.wait(tag) == 0 and volatile.unflushed == {}
    assert model.durable[5 * 512:7 * 512] == b"\5" * 512 + b"\6" * 512
    driver.write(1, b"x" * 512)
    tag = driver.post(FLUSH)
    driver.collect()
    model.end(error=errno.EIO)
    assert driver.wait(tag) == errno.EIO and list(volatile.unflushed) == [1]


SECTORS = 256
SIZE = SECTORS * 512
PLACES = st.one_of(st.integers(0, 1500), st.integers(0, SIZE - 1))        # so that clients meet in a sector
LENGTHS = st.one_of(st.integers(1, 64), st.integers(1, 64), st.sampled_from([511, 512, 513, 4096]), st.integers(1, 20000))


class QueueMachine(RuleBasedStateMachine):
    """Several clients of different sector sizes over one disk; requests under way together never overlap, but for reads of
    sectors that others change in part. What is flushed is on the medium; faults are told, and told to nobody else."""

    CLIENTS = (1, 512, 1)

    def __init__(self):
        super().__init__()
        self.chance = random.Random(3)
        self.model = ModelDisk(SECTORS, features=self.chance.choice([PLAIN, PLAIN | Feature.TRIM | Feature.WRITE_ZEROES]),
                               max_sectors=16, max_segments=4, depth=4, lazy=True, trim_sectors=4, max_trim_sectors=64)
        self.faulty = FaultyDisk(self.model, chance=self.chance)
        self.now = 0
        self.queue = Queue(self.faulty, clock=lambda: self.now, retries=1, timeout_ns=0)
        self.clients = [Driver(Client(self.queue, f"c{n}", sector_octets=unit, depth=16)) for n, unit in
                        enumerate(self.CLIENTS)]
        self.reference = bytearray(SIZE)
        self.unknown = set()            # octets that a failed change may or may not have changed
        self.busy = []                  # (begin, end) of requests under way
        self.waiting = {}               # (client, tag): what is to be checked

    def overlaps(self, begin, end):
        return any(begin < other_end and other_begin < end for other_begin, other_end in self.busy)

    @rule(client=st.integers(0, 2), at=PLACES, octets=LENGTHS, operation=st.sampled_from([READ, WRITE, WRITE, TRIM, ZEROES]),
          pieces=st.integers(1, 5), fua=st.booleans(), seed=st.integers(0, 255))
    def ask(self, client, at, octets, operation, pieces, fua, seed):
        driver = self.clients[client]
        unit = driver.sector
        at, octets = at // unit * unit, max(octets // unit * unit, unit)
        octets = min(octets, SIZE - at)
        if not octets or self.overlaps(at, at + octets) or not driver.disk.room() or len(self.waiting) > 30:
            return
        memory = driver.disk.allocate(octets + 16, "test")
        cuts = sorted({0, octets, *(self.chance.randrange(octets) for _ in range(pieces))})
        segments = [(memory, begin, end - begin) for begin, end in itertools.pairwise(cuts)]
        data = bytes([seed]) * octets
        if operation is WRITE:
            with memory.view() as view:
                view[:octets] = data
        refused = errno.EOPNOTSUPP if operation is TRIM and Feature.TRIM not in driver.disk.info.features else 0
        tag = driver.post(operation, at // unit, octets // unit, segments if operation in (READ, WRITE) else (),
                          fua=fua and operation is not READ)
        self.busy.append((at, at + octets))
        self.waiting[client, tag] = (operation, at, octets, data, memory, refused, fua)

    @rule(client=st.integers(0, 2), barrier=st.booleans())
    def flush(self, client, barrier):
        driver = self.clients[client]
        if driver.disk.room() and not any(key[0] == "flush" for key in self.waiting):
            tag = driver.post(FLUSH, flags=Flag.BARRIER if barrier else 0)
            self.waiting[client, tag] = (FLUSH, 0, 0, bytes(self.reference), None, 0, False)

    @rule(which=st.integers(0, 3), fail=st.sampled_from([0] * 20 + [errno.EIO, errno.ENOSPC]))
    def disk_answers(self, which, fail):
        if self.model.asked:
            self.model.end(min(which, len(self.model.asked) - 1), fail or None)
            self.check()

    @rule(error=st.sampled_from([errno.EIO, errno.ENODATA]))
    def next_command_fails(self, error):
        self.faulty.rules[:] = [Rule("error", times=1, error=error)]

    @precondition(lambda self: self.waiting)
    @rule()
    def all_answers(self):
        for _ in range(2000):
            if not self.waiting:
                break
            while self.model.asked:
                self.model.end()
            self.check()
        assert not self.waiting

    def check(self):
        for number, driver in enumerate(self.clients):
            driver.collect()
            for tag, error in list(driver.results.items()):
                self.ended(self.waiting.pop((number, tag)), error)
                del driver.results[tag]

    def ended(self, what, error):
        operation, at, octets, data, memory, expected, fua = what
        if operation is FLUSH:
            if not error:
                self.check_durable(data)
            return
        self.busy.remove((at, at + octets))
        if expected:
            assert error == expected
        elif operation is READ:
            if not error:
                with memory.view() as view:
                    for i in range(octets):
                        assert at + i in self.unknown or view[i] == self.reference[at + i], (at, i)
        elif error:
            self.unknown.update(range(at, at + octets))
        elif operation is TRIM:
            self.unknown.update(range(at, at + octets))     # the model makes zeros of whole units; the rest is as it was
        else:
            self.reference[at:at + octets] = data if operation is WRITE else bytes(octets)
            self.unknown.difference_update(range(at, at + octets))
            if fua:
                assert self.model.durable[at:at + octets] == self.reference[at:at + octets]
        if memory is not None:
            memory.free()

    def check_durable(self, then):
        """What had been completed when the flush was asked for, unless it was changed since."""
        for i in range(0, SIZE, 97):
            if i not in self.unknown and then[i] == self.reference[i] and not self.overlaps(i, i + 1):
                assert self.model.durable[i] == then[i] or then[i] != self.reference[i]

    @invariant()
    def nothing_is_lost(self):
        for number, driver in enumerate(self.clients):
            statistics = driver.disk.statistics()
            mine = sum(client == number for client, _ in self.waiting)
            assert statistics["waiting_requests"] <= mine and statistics["requests_under_way"] <= mine

    def teardown(self):
        self.faulty.rules.clear()
        if self.waiting:
            self.all_answers()
        for i in range(SIZE):
            assert i in self.unknown or self.model.data[i] == self.reference[i]
        self.queue.close()


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=40, stateful_step_count=60, deadline=None,
                              suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
