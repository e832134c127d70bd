"""The captures of a daemon: begun and ended, by the reader, a limit or the clock; slow readers and dead ones."""

import asyncio
import errno
import socket

import pytest
import uvloop

from mm.frame import RxBurst, TxBurst
from netstack.bpf import INSTRUCTION
from rustosd.capture import captures as module
from rustosd.capture.captures import MOST, Captures, Wish
from rustosd.capture.pcapng import Reader, Tally

ROWS = [{"name": "lo", "index": 0, "mac": "00:00:00:00:00:00"}, {"name": "eth0", "index": 1, "mac": "02:00:00:00:00:01"},
        {"name": "eth1", "index": 2, "mac": "02:00:00:00:00:02"}]


class House:
    """Captures with a stack that has `ROWS`, and a pump that remembers whom it shows frames to."""

    def __init__(self):
        self.rows = list(ROWS)
        self.watcher = None
        self.captures = Captures(self, self, "tests")
        self.looped = RxBurst()

    def interfaces(self):
        return self.rows

    def show_frames(self, watcher):
        self.watcher = watcher

    def send(self, index=1, octets=60, frames=1):
        burst = TxBurst()
        for _ in range(frames):
            burst.append(bytes(14), bytes(octets - 14))
        if self.watcher is not None:
            self.watcher.sent(index, burst, frames)


class Taker:
    """A reader that takes all there is until the end."""

    def __init__(self, end):
        self.end = end
        self.reader = Reader()
        self.packets = []
        end.setblocking(False)

    async def take(self):
        loop = asyncio.get_running_loop()
        while octets := await asyncio.wait_for(loop.sock_recv(self.end, 1 << 16), 10):
            self.packets += self.reader.feed(octets)[1]
        self.end.close()
        return self.packets


def on_loop(test):
    def run():
        uvloop.run(asyncio.wait_for(test(), 20))
    run.__name__ = test.__name__
    return run


@on_loop
async def test_the_reader_ends_a_capture_and_gets_the_rest():
    house = House()
    names, end = house.captures.start(Wish(interfaces=("eth0",)))
    assert names == ["eth0"] and house.watcher is house.captures
    house.send(frames=3)
    house.send(index=2)
    end.shutdown(socket.SHUT_WR)
    taker = Taker(end)
    assert len(await taker.take()) == 3 and taker.reader.complete and taker.reader.tallies == {"eth0": Tally(3, 3, 0)}
    await asyncio.sleep(0)
    assert len(house.captures) == 0 and house.watcher is None


@on_loop
async def test_without_names_all_interfaces_are_captured():
    house = House()
    names, end = house.captures.start(Wish())
    assert names == ["lo", "eth0", "eth1"]
    house.send(index=2)
    house.send(index=1)
    end.shutdown(socket.SHUT_WR)
    assert [packet.interface for packet in await Taker(end).take()] == ["eth1", "eth0"]


@on_loop
async def test_a_few_frames_reach_the_reader_soon():
    house = House()
    _, end = house.captures.start(Wish())
    end.setblocking(False)
    loop = asyncio.get_running_loop()
    reader = Reader()
    reader.feed(await loop.sock_recv(end, 1 << 16))
    house.send()
    assert len(reader.feed(await asyncio.wait_for(loop.sock_recv(end, 1 << 16), 5))[1]) == 1
    end.close()


@on_loop
async def test_a_count_and_a_duration_end_it():
    house = House()
    _, counted = house.captures.start(Wish(count=5))
    _, timed = house.captures.start(Wish(duration_s=0.05))
    for _ in range(9):
        house.send()
    assert len(await Taker(counted).take()) == 5
    assert len(await Taker(timed).take()) == 9
    await asyncio.sleep(0)
    assert house.watcher is None and len(house.captures) == 0


@on_loop
async def test_a_slow_reader_loses_frames_which_are_told_and_holds_up_nobody():
    house = House()
    _, slow = house.captures.start(Wish(buffer_octets=65536))
    _, quick = house.captures.start(Wish(buffer_octets=1 << 24))
    for _ in range(2000):
        house.send(octets=9000)
    await asyncio.sleep(0.05)
    slow.shutdown(socket.SHUT_WR)
    quick.shutdown(socket.SHUT_WR)
    taker, other = Taker(slow), Taker(quick)
    kept = await taker.take()
    tally = taker.reader.tallies["eth0"]
    assert tally.received == 2000 and tally.lost == 2000 - len(kept) > 100 and taker.reader.complete
    house.send()
    assert len(await other.take()) + other.reader.tallies["eth0"].lost == 2000


@on_loop
async def test_a_reader_that_dies_ends_its_capture():
    house = House()
    _, end = house.captures.start(Wish())
    end.close()
    for _ in range(100):
        house.send()
        await asyncio.sleep(0.01)
        if not len(house.captures):
            break
    assert len(house.captures) == 0 and house.watcher is None


@on_loop
async def test_a_reader_that_never_reads_is_given_up():
    house = House()
    patience, module.FAREWELL_S = module.FAREWELL_S, 0.05
    try:
        _, end = house.captures.start(Wish())
        for _ in range(1000):
            house.send(octets=9000)
        end.shutdown(socket.SHUT_WR)
        for _ in range(200):
            await asyncio.sleep(0.01)
            if not len(house.captures):
                break
        assert len(house.captures) == 0
        end.close()
    finally:
        module.FAREWELL_S = patience


@on_loop
async def test_an_interface_is_followed_by_its_name():
    house = House()
    _, end = house.captures.start(Wish(interfaces=("eth0",)))
    house.rows = [ROWS[0], ROWS[2] | {"index": 1}, ROWS[1] | {"index": 7}]
    house.captures.attached()
    house.send(index=1)
    house.send(index=7, octets=77)
    end.shutdown(socket.SHUT_WR)
    assert [packet.length for packet in await Taker(end).take()] == [77]


@on_loop
async def test_what_cannot_be_captured_is_refused():
    house = House()
    with pytest.raises(ValueError, match="there is no interface eth9; there is lo, eth0, eth1"):
        house.captures.start(Wish(interfaces=("eth9",)))
    with pytest.raises(ValueError, match="leads beyond the end"):
        house.captures.start(Wish(program=INSTRUCTION.pack(0, 0, 0, 0)))
    ends = [house.captures.start(Wish())[1] for _ in range(MOST)]
    with pytest.raises(OSError, match=f"{MOST} captures run already") as refused:
        house.captures.start(Wish())
    assert refused.value.errno == errno.EBUSY
    house.captures.close()
    house.captures.close()
    assert len(house.captures) == 0 and house.watcher is None
    for end in ends:
        end.close()
