"""The recorder: rates from what was counted, two minutes of them, whatever a device does."""

import asyncio
from types import SimpleNamespace

import pytest

from rustosd.health import Nic
from rustosd.status import recorder as recorder_module
from rustosd.status.recorder import POINTS, Rates, Recorder, figures, memory_octets, resident_octets
from tests.rustosd.fake import FakeCore, FakeNic


@pytest.fixture(autouse=True)
def waited(monkeypatch):
    """How long the kernel let this thread wait, for the figures not to depend on it."""
    monkeypatch.setattr(recorder_module.waits, "own", lambda: SimpleNamespace(wait_ns=7_900_000))


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def recorded(steps, seconds=2.0):
    """A recorder that took figures every so often, while interface 1 received `steps` more octets each time."""
    core, clock = FakeCore(), Clock()
    recorder = Recorder(core, clock)
    for step in steps:
        recorder.taken.append(figures(core, clock()))
        core.stack.nics[1]["rx_octets"] += step
        clock.now += seconds
    return core, clock, recorder


def test_figures_are_what_was_counted():
    taken = figures(FakeCore(), 5.0)
    assert taken.nics["rustos0"] == Nic(1536, 5 << 30, 1200, 7, 3, 0) and taken.nics["lo"] == Nic()
    assert taken.ended == {"delivered": 1000, "answered": 3, "ipv4_checksum": 4} and taken.unsent == {"no_route": 9}
    assert taken.counters == {"tcp_retransmits": 5} and taken.pump == {"wakeups": 5, "wait_ms": 7} and taken.at_s == 5.0


def test_history_is_rates_between_figures():
    _, _, recorder = recorded([100, 300, 0, 50])
    assert recorder.history("rustos0") == [Rates(50.0), Rates(150.0), Rates(0.0)]
    assert recorder.history("no such") == []


def test_history_is_bounded_and_the_oldest_goes():
    _, _, recorder = recorded(range(10 * POINTS))
    history = recorder.history("rustos0")
    assert len(history) == POINTS and history[-1].rx_octets == (10 * POINTS - 2) / 2


def test_a_counter_that_falls_is_no_negative_rate():
    core, _, recorder = recorded([100])
    core.stack.nics[1]["rx_octets"] = 0             # the interface went, and another came by its name
    recorder.taken.append(figures(core, 200.0))
    assert recorder.history("rustos0") == [Rates(0.0)]


def test_before_lies_a_minute_back_at_most():
    _, clock, recorder = recorded([0] * 61)
    facts = recorder.facts()
    assert 58 <= facts.now.at_s - facts.before.at_s <= 60 and facts.now.at_s == clock.now
    assert [row["name"] for row in facts.interfaces] == ["rustos0"]
    facts = Recorder(FakeCore(), clock).facts()
    assert facts.before == facts.now


def test_a_device_in_trouble_costs_its_own_figures_only():
    core = FakeCore()

    class Broken(FakeNic):
        def statistics(self):
            raise OSError("gone")

    core.pump.nics[1] = Broken()
    assert figures(core, 0.0).nics["rustos0"] == Nic(1536, 5 << 30, 1200, 7, 0, 0)


async def test_it_goes_on_after_an_error_and_stops_when_told(monkeypatch):
    monkeypatch.setattr(recorder_module, "INTERVAL_S", 0.01)
    core = FakeCore()
    recorder = Recorder(core, asyncio.get_running_loop().time)
    verdicts, core.stack.verdicts = core.stack.verdicts, lambda: 1 / 0
    recorder.start(asyncio.get_running_loop())
    assert not recorder.taken
    core.stack.verdicts = verdicts
    async with asyncio.timeout(20):
        while len(recorder.taken) < 3:
            await asyncio.sleep(0.01)
    recorder.stop()
    recorder.stop()
    count = len(recorder.taken)
    await asyncio.sleep(0.05)
    assert len(recorder.taken) == count


def test_memory_is_told_in_octets():
    assert 1 << 20 < resident_octets() < memory_octets()
