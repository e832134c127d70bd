"""The pump on uvloop: order, fairness, timers, failures. The stack is a fake; the NIC is a Tap over a socket pair."""

import asyncio
import contextlib
import functools
import socket
import time
from collections.abc import Awaitable, Callable

import pytest
import uvloop
from structlog.testing import capture_logs

from drivers.nic import GONE, Nic
from drivers.tap import Tap
from mm import crowd
from mm.frame import BURST, RxBurst, TxBurst
from netstack.verbs import PacketStack
from rustosd import pump as pump_module
from rustosd.pump import Pump

MAC = bytes.fromhex("02000000000a")


@pytest.fixture(autouse=True)
def an_empty_machine(monkeypatch):
    monkeypatch.setattr(crowd, "or_none", lambda: None)


@pytest.fixture
def a_crowded_machine(monkeypatch, tmp_path):
    (tmp_path / "loadavg").write_text("0 0 0 9/99 1\n")
    monkeypatch.setattr(crowd, "or_none", lambda: crowd.Crowd(str(tmp_path / "loadavg"), 2))


def frame(number: int) -> bytes:
    return bytes(14) + number.to_bytes(4, "big") + bytes(42)


class FakeStack(PacketStack):
    """Answers each frame by itself when told to, and writes down what the pump asks of it."""

    def __init__(self, echo: bool = False) -> None:
        self.echo = echo
        self.received: list[bytes] = []
        self.ready: dict[int, list[bytes]] = {}
        self.calls: list[str] = []
        self.links: list[tuple[int, bool]] = []
        self.deadline: int | None = None
        self.advanced: list[int] = []

    def receive(self, index: int, now: int, burst: RxBurst) -> None:
        self.calls.append("receive")
        frames = burst.frames_bytes()
        self.received += frames
        if self.echo:
            self.ready.setdefault(index, []).extend(frames)

    def advance(self, now: int) -> None:
        self.calls.append("advance")
        if self.deadline is not None and now >= self.deadline:
            self.advanced.append(now)
            self.deadline = None

    def wake_at(self) -> int | None:
        return self.deadline

    def transmit(self, index: int, now: int, burst: TxBurst) -> int:
        self.calls.append("transmit")
        ready = self.ready.get(index, [])
        while ready and burst.append(ready[0][:14], ready[0][14:]):
            ready.pop(0)
        return len(burst)

    def loop(self, now: int) -> int:
        self.calls.append("loop")
        return 0

    def set_link(self, index: int, up: bool) -> None:
        self.links.append((index, up))


class House:
    """A pump with its fake stack, and the far end of NIC 1."""

    def __init__(self, **options) -> None:
        self.stack = FakeStack(echo=options.pop("echo", False))
        self.on_events: Callable[[], None] = lambda: None
        loop = options.pop("loop", asyncio.get_running_loop())
        self.pump = Pump(loop, self.stack, self._deliver, **options)
        self.nic, self.far = self.wire()
        self.pump.attach(self.nic, 1)

    def wire(self) -> tuple[Tap, socket.socket]:
        ours, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in ours, far:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        far.setblocking(False)
        return Tap(ours.detach(), "wire", MAC, offload=False), far

    def _deliver(self) -> None:
        self.stack.calls.append("events")
        self.on_events()

    async def arrive(self, count: int, far: socket.socket | None = None) -> list[bytes]:
        loop = asyncio.get_running_loop()
        return [await asyncio.wait_for(loop.sock_recv(far or self.far, 2048), 5) for _ in range(count)]

    async def settle(self) -> None:
        """Until the pump sleeps."""
        await asyncio.sleep(0.01)
        self.stack.calls.clear()


def pumped(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on uvloop; a hang fails it."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        uvloop.run(asyncio.wait_for(test(*args, **kwargs), 20))

    return run


@pumped
async def test_frames_come_in_and_answers_go_out_in_one_breath():
    house = House(echo=True)
    await house.settle()
    for number in range(3):
        house.far.send(frame(number))
    assert await house.arrive(3) == [frame(number) for number in range(3)]
    assert house.stack.calls[:4] == ["receive", "loop", "events", "transmit"]
    statistics = house.pump.statistics()
    assert (statistics["rx_frames"], statistics["tx_frames"], statistics["tx_refused"]) == (3, 3, 0)


@pumped
async def test_bursts_and_turns_are_measured():
    house = House(echo=True, busy_poll_us=0)
    await house.settle()
    assert house.pump.nics == {1: house.nic}
    before = {name: sum(counts) for name, (_, counts) in house.pump.histograms().items()}
    for number in range(3):
        house.far.send(frame(number))
    await house.arrive(3)
    await house.settle()
    histograms, statistics = house.pump.histograms(), house.pump.statistics()
    for way in "rx", "tx":
        frames, counts = histograms[f"{way}_burst"]
        assert frames == statistics[f"{way}_frames"] == 3 and sum(counts) == statistics[f"{way}_bursts"]
    spent_ns, counts = histograms["turn"]
    assert sum(counts) > before["turn"] and 0 < spent_ns < 60_000_000_000
    for _ in range(10):             # turns that find nothing are not counted
        house.pump._on_readable()
    assert house.pump.histograms() == histograms


@pumped
async def test_more_than_a_turn_can_hold_arrives_whole_and_in_order():
    house = House()
    count = 10 * BURST * pump_module.BUDGET // 4
    house.stack.ready[1] = [frame(number) for number in range(count)]
    house.pump.kick()
    assert await house.arrive(count) == [frame(number) for number in range(count)]


@pumped
async def test_each_interface_gets_its_own_frames():
    house = House(echo=True)
    nic, far = house.wire()
    house.pump.attach(nic, 2)
    house.far.send(frame(1))
    far.send(frame(2))
    assert await house.arrive(1) == [frame(1)]
    assert await house.arrive(1, far) == [frame(2)]
    with pytest.raises(ValueError, match="interface 2 has a NIC"):
        house.pump.attach(nic, 2)


# Applications.

@pumped
async def test_kicks_are_coalesced():
    house = House(busy_poll_us=0)
    await house.settle()
    for _ in range(100):
        house.pump.kick()
    assert house.stack.calls == [], "nothing happens inside the caller"
    await asyncio.sleep(0.01)
    assert house.pump.statistics()["kicks"] == 2, "one for attach, one for all of ours"
    assert house.stack.calls == ["loop", "events", "transmit"]


@pumped
async def test_what_an_event_handler_writes_leaves_in_the_same_breath():
    house = House(busy_poll_us=0)
    await house.settle()

    def on_events() -> None:
        house.stack.ready[1] = [frame(7)]
        house.pump.kick()
        house.on_events = lambda: None

    house.on_events = on_events
    house.far.send(frame(1))
    assert await house.arrive(1) == [frame(7)]
    await asyncio.sleep(0.01)
    assert house.stack.calls == ["receive", "loop", "events", "loop", "transmit"], "and no breath more for what is sent already"


@pumped
async def test_what_an_event_handler_writes_to_ourselves_needs_no_nic():
    """Loopback ping-pong: each write becomes the next event at once, not a timer tick later."""
    house = House(busy_poll_us=0)
    house.pump.detach(1)
    await house.settle()
    looping, rounds = False, 0

    def loop(_now: int) -> int:
        nonlocal looping, rounds
        carried, looping = looping, False
        rounds += carried
        return carried

    def on_events() -> None:
        nonlocal looping
        if rounds < 100:
            looping = True
            house.pump.kick()

    house.stack.loop, house.on_events = loop, on_events
    house.pump.kick()
    for _ in range(100):
        await asyncio.sleep(0)
    assert rounds == 100 and house.pump.statistics()["timers"] == 0


@pumped
async def test_handler_may_detach_and_close():
    house = House()
    house.on_events = lambda: house.pump.detach(1)
    house.far.send(frame(1))
    await asyncio.sleep(0.01)
    assert house.stack.links == [(1, True), (1, False)]
    house.pump.attach(house.nic, 1)
    house.on_events = house.pump.close
    house.far.send(frame(2))
    await asyncio.sleep(0.01)
    assert house.stack.links[2:] == [(1, True), (1, False)]


@pumped
async def test_other_callbacks_get_their_turn_under_flood():
    house = House()
    refill = 0

    def refilled(index: int, now: int, burst: RxBurst) -> None:
        nonlocal refill
        refill += 1
        for number in range(len(burst)):
            house.far.send(frame(number))

    house.stack.receive = refilled
    for number in range(BURST):
        house.far.send(frame(number))
    turns = 0
    while refill < 100:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 100 // pump_module.BUDGET - 1
    assert house.pump.statistics()["yields"] >= 100 // pump_module.BUDGET - 1


# Time.

@pumped
async def test_stack_is_woken_when_it_wants():
    house = House(busy_poll_us=0)
    await house.settle()
    due = house.stack.deadline = time.monotonic_ns() + 30_000_000
    house.pump.kick()
    while not house.stack.advanced:
        await asyncio.sleep(0.005)
    assert len(house.stack.advanced) == 1 and house.stack.advanced[0] >= due
    assert house.stack.calls[-4:] == ["advance", "loop", "events", "transmit"]


@pumped
async def test_earlier_deadline_replaces_the_timer_and_later_one_does_not():
    house = House(busy_poll_us=0)
    far_off = time.monotonic_ns() + 3_600_000_000_000
    house.stack.deadline = far_off
    await house.settle()
    due = house.stack.deadline = time.monotonic_ns() + 5_000_000
    house.pump.kick()
    await asyncio.sleep(0)
    house.stack.deadline = due + 10_000_000
    house.pump.kick()
    await asyncio.sleep(0.05)
    assert len(house.stack.advanced) >= 1
    assert house.pump.statistics()["timers"] <= 3


@pumped
async def test_deadline_that_stays_in_the_past_does_not_spin():
    house = House()
    house.stack.wake_at = lambda: 1
    house.pump.kick()
    await asyncio.sleep(0.1)
    assert 2 <= house.stack.calls.count("advance") <= 110


@pumped
async def test_a_deadline_that_has_passed_already_is_met_though_turn_follows_turn():
    house = House()
    await house.settle()
    house.stack.wake_at = lambda: 1
    until = time.monotonic_ns() + 50_000_000
    while time.monotonic_ns() < until:
        house.pump.kick()
        await asyncio.sleep(0)
    assert 10 <= house.stack.calls.count("advance") <= 60


@pumped
async def test_no_timer_is_asked_for_while_turn_follows_turn():
    class CountingLoop:
        def __init__(self) -> None:
            self.timers: list[float] = []

        def __getattr__(self, name: str):
            return getattr(asyncio.get_running_loop(), name)

        def call_later(self, delay: float, *call) -> asyncio.TimerHandle:
            self.timers.append(delay)
            return asyncio.get_running_loop().call_later(delay, *call)

    loop = CountingLoop()
    house = House(busy_poll_us=0, loop=loop)
    await house.settle()
    loop.timers.clear()
    rounds = 0

    def carry(_now: int) -> int:
        nonlocal rounds
        rounds += 1
        house.stack.deadline = time.monotonic_ns() + (2000 - rounds) * 1_000_000_000     # earlier than the one before
        return int(rounds < 1000)

    house.stack.loop = carry
    house.pump.kick()
    while rounds < 1000:
        await asyncio.sleep(0)
    await house.settle()
    assert house.pump.statistics()["yields"] > 100 and len(loop.timers) <= 2


@pumped
async def test_due_work_is_not_left_to_a_late_timer():
    """Sub-millisecond deadlines are met by whatever turn comes first."""
    class LateLoop:
        """Whose timers come later than any turn."""

        def __getattr__(self, name: str):
            return getattr(asyncio.get_running_loop(), name)

        def call_later(self, delay: float, *call) -> asyncio.TimerHandle:
            return asyncio.get_running_loop().call_later(delay + 3600, *call)

    house = House(busy_poll_us=10_000, loop=LateLoop())
    await house.settle()
    start = house.stack.deadline = time.monotonic_ns() + 200_000
    while not house.stack.advanced:
        house.far.send(frame(1))
        await asyncio.sleep(0)
    assert house.stack.advanced[0] >= start


@pumped
async def test_busy_polling_ends_in_sleep():
    house = House(busy_poll_us=2000)
    house.far.send(frame(1))
    await asyncio.sleep(0.02)
    polls = house.pump.statistics()["busy_polls"]
    assert polls > 10
    await asyncio.sleep(0.02)
    assert house.pump.statistics()["busy_polls"] == polls


@pumped
async def test_how_long_to_look_again_can_be_changed():
    house = House(busy_poll_us=0)
    await house.settle()
    for while_us, looks in ((2000, True), (0, False)):
        house.pump.set_busy_poll(while_us)
        before = house.pump.statistics()["busy_polls"]
        house.far.send(frame(1))
        await asyncio.sleep(0.02)
        assert (house.pump.statistics()["busy_polls"] > before) is looks


@pumped
async def test_without_busy_polling_a_turn_looks_once():
    house = House(busy_poll_us=0)
    await house.settle()
    before = house.pump.statistics()["busy_polls"]
    house.far.send(frame(1))
    await asyncio.sleep(0.02)
    assert house.stack.received == [frame(1)]
    assert house.pump.statistics()["busy_polls"] == before


@pumped
async def test_polling_goes_on_while_it_pays():
    house = House(echo=True, busy_poll_us=1_000_000)
    for number in range(50):
        house.far.send(frame(number))
        assert await house.arrive(1) == [frame(number)]
    assert house.pump.statistics()["wakeups"] <= 2


async def bursts(house: House, seconds: float) -> int:
    """Frames come all the time, in another thread; how many that were."""
    until = time.monotonic() + seconds

    def send() -> int:
        number = 0
        while time.monotonic() < until:
            with contextlib.suppress(BlockingIOError):
                house.far.send(frame(number))
                number += 1
        return number

    return await asyncio.to_thread(send)


@pumped
@pytest.mark.usefixtures("a_crowded_machine")
async def test_where_others_wait_for_a_processor_frames_are_taken_several_at_a_time():
    house = House(busy_poll_us=50, coalesce_us=500)
    sent = await bursts(house, 0.1)
    await asyncio.sleep(0.01)
    statistics = house.pump.statistics()
    assert statistics["rests"] > 10
    assert len(house.stack.received) == statistics["rx_frames"] == sent


@pumped
async def test_where_nobody_waits_nothing_is_kept():
    house = House(coalesce_us=500)
    await bursts(house, 0.05)
    assert house.pump.statistics()["rests"] == 0


@pumped
@pytest.mark.usefixtures("a_crowded_machine")
async def test_who_goes_to_and_fro_alone_is_hardly_kept_waiting():
    house = House(echo=True, busy_poll_us=50, coalesce_us=500)
    for number in range(400):
        house.far.send(frame(number))
        assert await house.arrive(1) == [frame(number)]
    assert house.pump.statistics()["rests"] <= 12


@pumped
@pytest.mark.usefixtures("a_crowded_machine")
async def test_rests_can_be_switched_off():
    house = House(busy_poll_us=50, coalesce_us=500)
    house.pump.set_coalesce(0)
    await bursts(house, 0.05)
    assert house.pump.statistics()["rests"] == 0


@pumped
async def test_vain_polling_becomes_rare():
    house = House(busy_poll_us=1000)
    polled = []
    for number in range(12):
        before = house.pump.statistics()["busy_polls"]
        house.far.send(frame(number))
        await asyncio.sleep(0.01)
        polled.append(house.pump.statistics()["busy_polls"] > before)
    assert polled[0] and polled.count(True) <= 4
    assert len(house.stack.received) == 12


# Devices.

@pumped
async def test_link_changes_reach_the_stack(monkeypatch):
    monkeypatch.setattr(pump_module, "LINK_CHECK_S", 0.01)

    class Switched(Nic):
        """A NIC whose cable can be pulled."""
        name, link_up = "switched", True

        def __init__(self, nic: Tap) -> None:
            self.fileno, self.receive, self.transmit, self.room = nic.fileno, nic.receive, nic.transmit, nic.room

    house = House()
    house.pump.detach(1)
    house.stack.links.clear()
    nic = Switched(house.nic)
    house.pump.attach(nic, 1)
    for up in False, True:
        nic.link_up = up
        await asyncio.sleep(0.05)
    assert house.stack.links == [(1, True), (1, False), (1, True)]


@pumped
async def test_a_nic_that_tells_of_its_link_is_asked_at_once(monkeypatch):
    monkeypatch.setattr(pump_module, "LINK_CHECK_S", 1000)

    class Telling(Nic):
        """A NIC with a link interrupt."""
        name, link_up, on_link_change = "telling", True, None

        def __init__(self, nic: Tap) -> None:
            self.fileno, self.receive, self.transmit, self.room = nic.fileno, nic.receive, nic.transmit, nic.room

    house = House()
    house.pump.detach(1)
    nic = Telling(house.nic)
    house.pump.attach(nic, 1)
    house.stack.links.clear()
    nic.link_up = False
    nic.on_link_change()
    await asyncio.sleep(0.01)
    assert house.stack.links == [(1, False)]
    house.pump.detach(1)
    assert nic.on_link_change is None


@pumped
async def test_full_device_is_served_again_when_it_has_room():
    class Narrow(Nic):
        """A NIC with a ring of a few descriptors."""
        name, link_up, free = "narrow", True, 2

        def __init__(self, nic: Tap) -> None:
            self.nic, self.fileno = nic, nic.fileno

        def receive(self, burst: RxBurst) -> int:
            """Only ever interrupts because descriptors became free."""
            self.nic.receive(burst)
            burst.clear()
            return 0

        def room(self) -> int:
            return self.free

        def transmit(self, burst: TxBurst) -> int:
            self.free -= len(burst)
            assert self.free >= 0
            return self.nic.transmit(burst)

    house = House(busy_poll_us=0)
    house.pump.detach(1)
    nic = Narrow(house.nic)
    house.stack.ready[1] = [frame(number) for number in range(5)]
    house.pump.attach(nic, 1)
    assert await house.arrive(2) == [frame(0), frame(1)]
    await asyncio.sleep(0.01)
    assert nic.free == 0 and len(house.stack.ready[1]) == 3
    nic.free = 64
    house.far.send(frame(9))        # the interrupt of the device
    assert await house.arrive(3) == [frame(2), frame(3), frame(4)]


@pumped
async def test_gone_device_is_detached():
    house = House()
    await house.settle()
    with capture_logs() as logs:
        house.far.send(frame(1))
        house.far.close()
        await asyncio.sleep(0.02)
    assert house.stack.received == [frame(1)]
    assert house.stack.links == [(1, True), (1, False)]
    assert [entry["event"] for entry in logs] == ["nic_gone"]
    wakeups = house.pump.statistics()["wakeups"]
    await asyncio.sleep(0.02)
    assert house.pump.statistics()["wakeups"] == wakeups


@pumped
async def test_whoever_owns_a_gone_device_is_told_once_and_may_close_it_and_bring_another():
    house = House()
    await house.settle()
    house.pump.detach(1)
    told = []
    called = asyncio.Event()
    another, _ = house.wire()

    def on_gone() -> None:
        told.append(house.pump.running)
        house.nic.close()
        house.pump.detach(1)
        house.pump.attach(another, 1)
        called.set()

    house.pump.attach(house.nic, 1, on_gone=on_gone)
    house.far.close()
    await called.wait()
    await house.settle()
    assert told == [False]
    assert house.stack.links[-2:] == [(1, False), (1, True)]


@pumped
async def test_a_device_that_goes_while_its_link_is_down_is_noticed(monkeypatch):
    monkeypatch.setattr(pump_module, "LINK_CHECK_S", 0.01)

    class Pulled(Nic):
        """A card that sends no interrupt any more."""
        name, link_up, gone = "pulled", False, False

        def __init__(self, nic: Tap) -> None:
            self.fileno, self.room, self.transmit = nic.fileno, nic.room, nic.transmit

        def receive(self, burst: RxBurst) -> int:
            burst.clear()
            return GONE if self.gone else 0

    house = House()
    house.pump.detach(1)
    told = asyncio.Event()
    nic = Pulled(house.nic)
    house.pump.attach(nic, 1, on_gone=told.set)
    await asyncio.sleep(0.03)
    assert not told.is_set()
    nic.gone = True
    await told.wait()


# Failures.

@pytest.mark.parametrize("callback", ["receive", "advance", "wake_at", "loop", "transmit", "on_events"])
@pumped
async def test_exception_is_logged_once_and_stops_nothing(callback):
    house = House(echo=True)
    await house.settle()
    owner = house if callback == "on_events" else house.stack
    original = getattr(owner, callback)
    failures = 0

    def fail(*_args):
        nonlocal failures
        failures += 1
        raise RuntimeError("boom")

    setattr(owner, callback, fail)
    with capture_logs() as logs:
        for number in range(5):
            house.stack.deadline = time.monotonic_ns()
            house.far.send(frame(number))
            await asyncio.sleep(0.005)
    assert failures >= 2
    assert house.pump.statistics()["errors"] == failures
    assert [(entry["event"], entry["callback"]) for entry in logs] == [("pump_callback_failed", callback)]

    setattr(owner, callback, original)
    house.stack.ready.clear()
    await asyncio.sleep(0.01)
    _empty(house.far)
    house.far.send(frame(99))
    assert await house.arrive(1) == [frame(99)]


@pumped
async def test_the_watchdog_is_fed_by_turns_that_end_well():
    house = House()
    fed = 0

    def alive() -> None:
        nonlocal fed
        fed += 1

    house.pump.watch(0.001, alive)
    async with asyncio.timeout(15):
        while fed < 3:
            await asyncio.sleep(0.001)
    assert house.stack.calls.count("transmit") >= 3, "with nothing to do it takes turns all the same"
    house.stack.transmit = None     # as broken as can be
    before = fed
    with capture_logs():
        async with asyncio.timeout(30):
            while house.pump.statistics()["errors"] < 3:
                await asyncio.sleep(0.001)
    assert fed <= before + 1
    house.pump.close()


def _empty(far: socket.socket) -> None:
    try:
        while True:
            far.recv(2048)
    except BlockingIOError:
        return


@pumped
async def test_close_sends_what_is_ready_and_lets_go():
    house = House()
    await house.settle()
    house.stack.deadline = time.monotonic_ns() + 5_000_000
    house.pump.kick()
    await asyncio.sleep(0)
    house.stack.ready[1] = [frame(number) for number in range(3 * BURST)]
    house.pump.kick()
    house.pump.close()
    house.pump.close()
    assert await house.arrive(3 * BURST) == [frame(number) for number in range(3 * BURST)]
    house.stack.calls.clear()
    house.far.send(frame(1))
    house.pump.kick()
    await asyncio.sleep(0.02)
    assert house.stack.calls == []
    assert house.stack.links == [(1, True), (1, False)]


class Watcher:
    """Writes down what it is shown."""

    def __init__(self) -> None:
        self.shown: list[tuple] = []

    def received(self, index: int, now: int, burst: RxBurst) -> None:
        self.shown.append(("received", index, burst.frames_bytes(), burst.ends_kept()))

    def sent(self, index: int, burst: TxBurst, count: int) -> None:
        self.shown.append(("sent", index, count, burst.refused))

    def attached(self) -> None:
        self.shown.append(("attached",))


@pumped
async def test_a_watcher_is_shown_every_burst_after_it_was_taken():
    house, watcher = House(echo=True), Watcher()
    house.pump.show_frames(watcher)
    house.far.send(frame(1))
    await house.arrive(1)
    assert watcher.shown == [("received", 1, [frame(1)], [0]), ("sent", 1, 1, 0)]
    other, far = house.wire()
    house.pump.attach(other, 2)
    assert watcher.shown.pop() == ("attached",)
    far.shutdown(socket.SHUT_RD)        # the device refuses what is to be sent
    house.stack.ready[2] = [frame(2), frame(3)]
    house.pump.kick()
    await house.settle()
    assert ("sent", 2, 2, 3) in watcher.shown and house.pump.statistics()["tx_refused"] == 2
    house.pump.show_frames(None)
    watcher.shown.clear()
    house.far.send(frame(4))
    await house.arrive(1)
    assert watcher.shown == []
