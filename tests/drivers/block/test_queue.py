"""The queue in virtual time, over a strict disk that ends requests when the test says so."""

import errno
import random
import select

import pytest

from drivers.block.client import Client
from drivers.block.commands import OPERATION_NAMES
from drivers.block.queue import Queue
from drivers.block.ram import RamDisk
from drivers.disk import GONE, Feature
from drivers.request import CompletionBurst, ExtentFlag, Flag, Operation, RequestBurst
from tests.drivers.block.driver import Driver
from tests.drivers.block.model import ALL, PLAIN, ModelDisk

S = 10**9
READ, WRITE, FLUSH, TRIM, ZEROES = (Operation.READ, Operation.WRITE, Operation.FLUSH, Operation.TRIM, Operation.WRITE_ZEROES)


class World:
    """A model disk, its queue in virtual time, and drivers of the queue's clients."""

    def __init__(self, **options):
        self.now = 1 * S
        names = ("retries", "timeout_ns", "merge")
        chosen = {name: options.pop(name) for name in names if name in options}
        self.disk = ModelDisk(**options)
        self.queue = Queue(self.disk, clock=lambda: self.now, **chosen)

    def client(self, name="client", **options):
        return Driver(Client(self.queue, name, **options))

    def asked(self):
        return [(each.operation, each.lba, each.sectors) for each in self.disk.asked]

    def end_all(self):
        while self.disk.asked or self.disk.ended:
            while self.disk.asked:
                self.disk.end()
            self.queue.turn_now()


@pytest.fixture
def world():
    return World(lazy=True)


def segments(driver, octets, offset=0):
    return [(driver.memory, offset, octets)]


def test_a_request_goes_through_and_its_client_is_told():
    world = World()
    a = world.client()
    assert a.write(5, b"x" * 1024) == 0
    assert a.read(4, 4) == bytes(512) + b"x" * 1024 + bytes(512)
    assert a.flush() == 0 and world.disk.durable[5 * 512:7 * 512] == b"x" * 1024
    statistics = a.disk.statistics()
    assert (statistics["reads"], statistics["writes"], statistics["flushes"]) == (1, 1, 1)
    assert (statistics["sectors_read"], statistics["sectors_written"]) == (4, 2)
    assert world.queue.statistics()["read_commands"] == 1
    assert sum(a.disk.histograms()["write"][1]) == 1 and set(a.disk.histograms()) == set(OPERATION_NAMES)


def test_neighbours_become_one_command(world):
    a = world.client()
    # The disk is full first, so that a backlog forms.
    full = [a.post(READ, 1000 + 2 * n, 1, segments(a, 512)) for n in range(32)]
    order = (0, 1, 2, 5, 4, 6)
    tags = [a.post(WRITE, n, 1, segments(a, 512, 512 * n)) for n in order]
    with a.memory.view() as view:
        view[:4096] = bytes(range(8)) * 512
    while world.disk.asked[:1] and world.disk.asked[0].lba >= 1000:
        world.disk.end()
    world.queue.turn_now()
    assert world.asked() == [(WRITE, 0, 3), (WRITE, 5, 2), (WRITE, 4, 1)]
    world.end_all()
    a.collect()
    assert {a.results[tag] for tag in (*tags, *full)} == {0}
    assert a.disk.statistics()["merged"] == 3
    with a.memory.view() as view:
        assert world.disk.data[:3 * 512] == view[:3 * 512] and world.disk.data[4 * 512:7 * 512] == view[4 * 512:7 * 512]


def test_an_error_of_a_merged_command_is_only_the_guilty_requests():
    world = World(lazy=True, depth=1, retries=0)
    a = world.client()
    first = a.post(READ, 100, 1, segments(a, 512))
    tags = [a.post(WRITE, n, 1, segments(a, 512, 512 * n)) for n in range(4)]
    world.disk.end()
    world.queue.turn_now()
    assert world.asked() == [(WRITE, 0, 4)]
    world.disk.end(error=errno.EIO)
    world.disk.fail[WRITE, 2] = errno.ENOSPC
    world.queue.turn_now()
    world.end_all()
    a.collect()
    assert [a.results[tag] for tag in (first, *tags)] == [0, 0, 0, errno.ENOSPC, 0]


def test_a_large_request_is_split_by_sectors_and_by_segments(world):
    a = world.client()
    tag = a.post(READ, 10, 600, segments(a, 600 * 512))
    assert world.asked() == [(READ, 10, 256), (READ, 266, 256), (READ, 522, 88)]
    world.end_all()
    assert a.wait(tag) == 0
    pieces = [(a.memory, 1024 * n, 256) for n in range(40)]
    tag = a.post(WRITE, 0, 20, pieces)
    assert world.asked() == [(WRITE, 0, 8), (WRITE, 8, 8), (WRITE, 16, 4)]
    world.disk.end(1, errno.ENOSPC)
    world.end_all()
    assert a.wait(tag) == errno.ENOSPC
    assert a.disk.statistics()["split"] == 4


def test_trims_are_split_and_cut_to_what_can_be_forgotten():
    world = World(lazy=True, max_trim_sectors=100, trim_sectors=8)
    a = world.client()
    tag = a.post(TRIM, 3, 250)
    assert world.asked() == [(TRIM, 8, 96), (TRIM, 104, 96), (TRIM, 200, 48)]
    world.end_all()
    assert a.wait(tag) == 0
    assert a.do(TRIM, 9, 10) == 0 and world.asked() == []


def test_a_flush_is_shared_and_the_next_ones_gather_while_it_runs(world):
    a, b = world.client("a"), world.client("b")
    first = a.post(FLUSH)
    assert world.asked() == [(FLUSH, 0, 0)]
    others = [(a, a.post(FLUSH)), (b, b.post(FLUSH)), (b, b.post(FLUSH))]
    assert len(world.disk.asked) == 1
    world.disk.end()
    world.queue.turn_now()
    a.collect()
    assert a.results == {first: 0}
    assert world.asked() == [(FLUSH, 0, 0)]
    world.end_all()
    assert [driver.wait(tag) for driver, tag in others] == [0, 0, 0]
    assert world.queue.statistics()["flush_commands"] == 2


def test_fua_without_the_disks_help_is_a_write_and_then_a_flush():
    world = World(lazy=True, features=PLAIN)
    a = world.client()
    tag = a.post(WRITE, 7, 1, segments(a, 512), fua=True)
    assert world.asked() == [(WRITE, 7, 1)]
    world.disk.end()
    world.queue.turn_now()
    a.collect()
    assert a.results == {} and world.asked() == [(FLUSH, 0, 0)]
    world.disk.end(error=errno.EIO)
    assert a.wait(tag) == errno.EIO
    assert world.queue.statistics()["flush_commands"] == 1      # a failed flush is not tried again


def test_zeros_are_written_where_the_disk_has_no_command_for_them():
    world = World(features=PLAIN, max_sectors=64)
    a = world.client()
    world.disk.data[:] = b"x" * len(world.disk.data)
    assert a.do(ZEROES, 3, 500, fua=True) == 0
    assert world.disk.durable == b"x" * 1536 + bytes(500 * 512) + b"x" * (1545 * 512)
    assert a.do(ZEROES, 3, 500, flags=Flag.FAST) == errno.EOPNOTSUPP
    assert a.do(TRIM, 3, 500) == errno.EOPNOTSUPP
    world = World()
    world.disk.refuse_zeroes = True
    world.disk.data[:] = b"x" * len(world.disk.data)
    a = world.client()
    assert a.do(ZEROES, 1, 2000) == 0       # it said it could, and then could not
    assert world.disk.data == b"x" * 512 + bytes(2000 * 512) + b"x" * (47 * 512)


def test_what_may_pass_is_tried_again_and_what_cannot_is_not(world):
    a = world.client()
    tag = a.post(READ, 0, 1, segments(a, 512))
    world.disk.end(error=errno.EIO)
    world.queue.turn_now()
    assert world.asked() == [(READ, 0, 1)]
    world.disk.end(error=errno.EIO)
    assert a.wait(tag) == errno.EIO
    for code in (errno.ENODATA, errno.ENOSPC, errno.EROFS):
        tag = a.post(READ, 0, 1, segments(a, 512))
        world.disk.end(error=code)
        assert a.wait(tag) == code
    assert a.disk.statistics()["retried"] == 1


def test_a_barrier_waits_for_all_before_it_and_holds_all_behind_it(world):
    a, b = world.client("a"), world.client("b")
    before = [a.post(WRITE, n, 1, segments(a, 512)) for n in (10, 20)]
    barrier = a.post(WRITE, 30, 1, segments(a, 512), flags=Flag.BARRIER)
    behind = a.post(WRITE, 40, 1, segments(a, 512))
    b.post(READ, 50, 1, segments(b, 512))       # another client's is not held
    assert world.asked() == [(WRITE, 10, 1), (WRITE, 20, 1), (READ, 50, 1)]
    world.disk.end(1)
    world.queue.turn_now()
    assert (WRITE, 30, 1) not in world.asked()
    world.disk.end(0)
    world.queue.turn_now()
    assert world.asked() == [(READ, 50, 1), (WRITE, 30, 1)]
    world.disk.end(1)
    world.queue.turn_now()
    assert world.asked() == [(READ, 50, 1), (WRITE, 40, 1)]
    world.end_all()
    assert [a.wait(tag) for tag in (*before, barrier, behind)] == [0, 0, 0, 0]


def keep_busy(driver, operation, sectors, count):
    """Have so many random requests under way; how many ended since the last time."""
    driver.collect()
    ended = len(driver.results)
    driver.results.clear()
    driver.busy = getattr(driver, "busy", 0) - ended
    while driver.busy < count and driver.disk.room():
        driver.post(operation, random.randrange(0, 1800), sectors, segments(driver, sectors * 512))
        driver.busy += 1
    return ended


def shares(world, drivers, rounds, per_round=4):
    """Sectors that each driver got, when the disk does so many commands a round."""
    got = [0] * len(drivers)
    for _ in range(rounds):
        for number, (driver, sectors) in enumerate(drivers):
            got[number] += keep_busy(driver, READ, sectors, 32) * sectors
        for _ in range(min(per_round, len(world.disk.asked))):
            world.disk.end()
        world.now += 1_000_000
    return got


def test_clients_share_a_busy_disk_by_octets_and_weights():
    world = World(lazy=True, depth=4, merge=False)
    a, b = world.client("a"), world.client("b")
    got = shares(world, [(a, 128), (b, 8)], 4000)
    # What counts is octets and 16 KiB a request: 80 KiB against 20 KiB.
    assert 0.85 < (got[0] / 128 * 80) / (got[1] / 8 * 20) < 1.15
    world = World(lazy=True, depth=4, merge=False)
    a, b, c = world.client("a"), world.client("b", weight=3), world.client("c")
    got = shares(world, [(a, 64), (b, 64), (c, 64)], 4000)
    assert 2.7 < got[1] / got[0] < 3.3 and 0.85 < got[2] / got[0] < 1.15


def test_one_client_alone_has_all_of_it():
    world = World(lazy=True, depth=4, merge=False)
    a, _ = world.client("a"), world.client("b", weight=50)
    assert shares(world, [(a, 8)], 100)[0] >= 95 * 4 * 8


def test_a_limit_of_requests_lets_a_burst_and_then_the_rate_pass():
    world = World()
    a = world.client(requests_per_s=100, burst_requests=5)
    done = 0
    for _ in range(3000):
        done += keep_busy(a, READ, 1, 10)
        if a.disk.arm() and (at := a.disk.wake_at()) is not None:
            world.now = max(world.now, at)
        if world.now >= 3 * S:
            break
    assert 200 <= done <= 206       # two seconds of virtual time
    assert a.disk.statistics()["throttled"] >= 190


def test_a_limit_of_octets_holds_over_time_and_others_are_not_held():
    world = World()
    a, b = world.client("a", octets_per_s=1_000_000, burst_octets=65536), world.client("b")
    done = 0
    while world.now < 5 * S:
        done += keep_busy(a, WRITE, 16, 4) * 8192
        assert b.do(READ, 0, 1, segments(b, 512)) == 0
        world.now += 1_000_000
    assert 4_000_000 <= done <= 4_000_000 + 65536 + 2 * 8192


def test_limits_change_while_requests_wait():
    world = World()
    a = world.client(requests_per_s=1, burst_requests=1)
    tags = [a.post(READ, n, 1, segments(a, 512)) for n in (0, 2)]
    a.collect()
    assert a.results == {tags[0]: 0} and a.disk.wake_at() == world.now + S
    a.disk.limit()
    assert a.wait(tags[1]) == 0


def test_a_full_client_has_no_room_and_is_counted(world):
    a = world.client(depth=3)
    burst = RequestBurst()
    for n in range(5):
        burst.append(READ, n, 2 * n, 1, segments(a, 512))
    assert a.disk.room() == 3 and a.disk.submit(burst) == 3 and len(burst) == 2 and a.disk.room() == 0
    assert a.disk.statistics()["full"] == 1
    world.disk.end()
    completions = CompletionBurst()
    assert a.disk.complete(completions) == 1 and a.disk.room() == 1


def test_a_disk_that_answers_nothing_costs_those_who_wait_an_error_and_no_more():
    world = World(lazy=True, depth=2, timeout_ns=5 * S)
    a = world.client()
    tags = [a.post(READ, 2 * n, 1, segments(a, 512)) for n in range(4)]
    assert a.disk.wake_at() == world.now + 5 * S
    world.now += 5 * S
    a.collect()
    assert a.results == {tags[2]: errno.ETIMEDOUT, tags[3]: errno.ETIMEDOUT} and world.queue.stalled
    assert a.do(READ, 0, 1, segments(a, 512)) == errno.ETIMEDOUT
    world.end_all()
    assert a.wait(tags[0]) == a.wait(tags[1]) == 0 and not world.queue.stalled
    tag = a.post(READ, 0, 1, segments(a, 512))
    world.end_all()
    assert a.wait(tag) == 0
    assert (a.disk.statistics()["timeouts"], world.queue.statistics()["stalls"]) == (2, 1)


def test_a_disk_that_leaves_ends_everything(world):
    a, b = world.client("a"), world.client("b")
    tags = [a.post(WRITE, 2 * n, 1, segments(a, 512)) for n in range(40)]
    flush = b.post(FLUSH)
    world.disk.asked.clear()
    world.disk.gone = True
    assert a.collect() == GONE and {a.results[tag] for tag in tags} == {errno.ENODEV}
    assert b.collect() == GONE and b.results == {flush: errno.ENODEV}
    assert a.disk.room() > 0
    a.post(READ, 0, 1, segments(a, 512))
    a.collect()
    assert set(a.results.values()) == {errno.ENODEV}


def test_closing_the_queue_closes_the_disk_and_ends_its_clients(world):
    a = world.client()
    tag = a.post(READ, 0, 1, segments(a, 512))
    a.post(WRITE, 1, 1, segments(a, 512), fua=True)
    world.queue.close()
    world.queue.close()
    assert world.disk.closed and a.collect() == GONE and a.results[tag] == errno.ENODEV
    with pytest.raises(Exception, match="closed"):
        Client(world.queue, "late")


def test_a_client_leaves_without_disturbing_others(world):
    a, b = world.client("a"), world.client("b")
    a.disk.close()
    a.disk.close()
    assert a.disk.complete(CompletionBurst()) == GONE and a.disk.fileno() == -1
    tag = b.post(READ, 0, 1, segments(b, 512))
    world.end_all()
    assert b.wait(tag) == 0
    assert world.queue.names == [None, "b"]
    world.client("c")
    assert world.queue.names == ["c", "b"]


def test_a_client_that_leaves_waits_for_what_is_under_way():
    world = World(lazy=True, depth=1)
    a = world.client()
    for n in range(3):
        a.post(READ, 2 * n, 1, segments(a, 512))
    world.disk.lazy = False
    a.disk.close()
    assert len(world.disk.log) == 1 and world.disk.asked == []


def readable(driver):
    return bool(select.select([driver.disk.fileno()], [], [], 0)[0])


def test_who_sleeps_is_woken_whoever_harvests(world):
    a, b = world.client("a"), world.client("b")
    first, second = a.post(READ, 0, 1, segments(a, 512)), b.post(READ, 1, 1, segments(b, 512))
    assert a.disk.arm() and b.disk.arm() and not readable(a) and not readable(b)
    world.disk.end(0)
    world.disk.end(0)
    assert readable(a) and readable(b)
    a.collect()
    assert a.results == {first: 0} and readable(b)
    b.collect()
    assert b.results == {second: 0} and not readable(b)
    assert b.disk.arm()


def test_who_sleeps_is_woken_also_when_the_others_stopped_looking(world):
    a, b = world.client("a"), world.client("b")
    a.post(READ, 0, 1, segments(a, 512))
    tag = b.post(READ, 1, 1, segments(b, 512))
    assert a.disk.arm() and b.disk.arm()
    world.disk.end(0)
    a.collect()             # and never again
    assert not readable(b)
    world.disk.end(0)
    assert readable(b)
    assert b.wait(tag) == 0


def test_who_has_nothing_to_do_is_not_woken_for_others_but_one_always_is(world):
    a, b = world.client("a"), world.client("b")
    assert a.disk.arm() and b.disk.arm()
    for n in range(3):
        tag = a.post(READ, 0, 1, segments(a, 512))
        assert a.disk.arm()
        world.disk.end(0)
        assert readable(a) and readable(b) == (n == 0)
        if n == 0:
            b.collect()             # which finds nothing of its own, and has woken in vain
            assert b.disk.arm()
        assert a.wait(tag) == 0 and a.disk.arm()
    a.disk.close()
    assert readable(b)              # to take over
    b.collect()
    assert b.disk.arm()
    tag = b.post(READ, 0, 1, segments(b, 512))
    assert b.disk.arm()
    world.disk.end(0)
    assert readable(b) and b.wait(tag) == 0


def test_a_request_wakes_also_who_armed_before_it(world):
    a, b = world.client("a"), world.client("b")
    for driver in (b, a):
        assert driver.disk.arm()
    a.post(READ, 0, 1, segments(a, 512))
    world.disk.end(0)
    b.collect()                     # takes what was armed for both
    assert b.disk.arm() and readable(a)
    a.collect()
    assert a.disk.arm()
    a.post(READ, 0, 1, segments(a, 512))
    assert not readable(a)
    world.disk.end(0)
    assert readable(a)
    a.post(READ, 5000, 1, segments(a, 512))
    a.collect()
    assert a.disk.arm()
    a.post(READ, 5000, 1, segments(a, 512))     # refused at once
    assert readable(a)


# Octets

@pytest.mark.parametrize("features", [ALL, PLAIN], ids=["all", "plain"])
@pytest.mark.parametrize("sector", [512, 4096])
def test_single_octets_are_read_and_changed(sector, features):
    world = World(sectors=256, sector_octets=sector, max_sectors=32, features=features)
    a = world.client(sector_octets=1)
    reference = bytearray(random.Random(1).randbytes(256 * sector))
    world.disk.data[:] = reference
    chance = random.Random(2)
    for _ in range(400):
        octets = chance.choice((1, 2, 100, sector - 1, sector, sector + 1, 5 * sector, 40 * sector + 3))
        at = min(chance.randrange(len(reference)), len(reference) - octets)
        if chance.random() < 0.5:
            at = at // sector * sector
        offset = chance.choice((0, 0, 1, 2, 511))
        data = chance.randbytes(octets)
        choice = chance.randrange(3)
        if choice == 0:
            assert a.do(READ, at, octets, segments(a, octets, offset)) == 0
            with a.memory.view() as view:
                assert view[offset:offset + octets] == reference[at:at + octets]
        elif choice == 1:
            with a.memory.view() as view:
                view[offset:offset + octets] = data
            assert a.do(WRITE, at, octets, segments(a, octets, offset), fua=chance.random() < 0.1) == 0
            reference[at:at + octets] = data
        else:
            assert a.do(ZEROES, at, octets) == 0
            reference[at:at + octets] = bytes(octets)
        assert world.disk.data == reference
    assert a.disk.statistics()["bounced"] > 100


def test_changes_of_one_sector_by_two_clients_lose_nothing(world):
    a, b = world.client("a", sector_octets=1), world.client("b", sector_octets=1)
    with a.memory.view() as view:
        view[:4] = b"aaaa"
    with b.memory.view() as view:
        view[:4] = b"bbbb"
    first, second = a.post(WRITE, 0, 4, segments(a, 4)), b.post(WRITE, 4, 4, segments(b, 4))
    whole = b.post(WRITE, 512, 512, segments(b, 512))
    assert world.asked() == [(READ, 0, 1)]          # b's would read what a has not written yet, and what follows waits behind
    world.disk.end()
    world.queue.turn_now()
    assert world.asked() == [(WRITE, 0, 1)]
    world.disk.end()
    world.queue.turn_now()
    assert world.asked() == [(READ, 0, 1), (WRITE, 1, 1)]
    world.end_all()
    assert a.wait(first) == b.wait(second) == b.wait(whole) == 0
    assert world.disk.data[:12] == b"aaaabbbb" + bytes(4)


def test_a_whole_sector_waits_for_the_change_of_a_part_of_it_under_way(world):
    a, b = world.client("a", sector_octets=1), world.client("b")
    part = a.post(WRITE, 1, 1, segments(a, 1))
    whole = b.post(WRITE, 0, 1, segments(b, 512))
    assert world.asked() == [(READ, 0, 1)]
    world.end_all()
    assert a.wait(part) == b.wait(whole) == 0


def test_sectors_of_512_on_a_disk_of_4096():
    world = World(sectors=128, sector_octets=4096)
    a = world.client(sector_octets=512)
    assert a.disk.info.sectors == 1024 and a.disk.info.physical_octets == 4096
    assert a.write(3, b"y" * 1024) == 0
    assert a.read(2, 4) == bytes(512) + b"y" * 1024 + bytes(512)
    assert a.write(8, b"z" * 8192) == 0
    assert a.disk.statistics()["bounced"] == 2
    assert a.extents(0, 1024) == [(24, 0), (1000, ExtentFlag.HOLE | ExtentFlag.ZERO)]
    assert a.extents(3, 10) == [(10, 0)]
    assert a.extents(20, 10) == [(4, 0), (6, 3)]
    assert a.do(TRIM, 9, 15) == 0 and world.disk.data[4096:8192] == b"z" * 4096 and world.disk.data[8192:12288] == bytes(4096)


def test_more_odd_requests_than_there_are_buffers_take_turns(world):
    a = world.client(sector_octets=1)
    tags = [a.post(READ, 1000 * n + 1, 7, segments(a, 7, 8 * n)) for n in range(20)]
    assert len(world.disk.asked) == 8
    world.end_all()
    assert [a.wait(tag) for tag in tags] == [0] * 20


def test_a_read_only_client_of_a_disk_that_others_write():
    world = World()
    a, b = world.client("a", read_only=True), world.client("b")
    assert a.write(0, bytes(512)) == errno.EROFS and a.do(TRIM, 0, 1) == errno.EROFS
    assert b.write(0, b"x" * 512) == 0 and a.read(0, 1) == b"x" * 512
    assert Feature.READ_ONLY in a.disk.info.features and Feature.READ_ONLY not in b.disk.info.features


def test_a_client_is_a_disk_that_a_queue_can_be_made_of():
    ram = RamDisk("ram", 1 << 20)
    lower = Queue(ram)
    upper = Queue(Client(lower, "lower"))
    a = Driver(Client(upper, "upper", sector_octets=1))
    assert a.write(1000, b"hello") == 0 and a.read(998, 9) == bytes(2) + b"hello" + bytes(2)
    a.close()
    upper.close()
    lower.close()


@pytest.mark.parametrize("wrong", [{"sector_octets": 1024}, {"depth": 0}, {"weight": 0}, {"requests_per_s": -1}])
def test_what_a_client_cannot_be(world, wrong):
    with pytest.raises(ValueError):
        Client(world.queue, "wrong", **wrong)
