"""The watch with a kernel and a device manager that write down what happens: no root, no devices."""

import asyncio
import os
from collections import Counter
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from drivers.errors import DeviceTimeout
from drivers.hotplug.uevent import Action, PciEvent
from drivers.kernel_log import Record
from rustosd.devices import watch as watch_module
from rustosd.devices.watch import FAULTS, MOST_REMEMBERED, RESETS, Watch

A, B = "0000:02:00.0", "0000:03:00.0"
S = 1_000_000_000


class Source:
    """Something of the kernel's to be read."""

    def __init__(self):
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.waiting = []
        self.counts = Counter()

    def fileno(self):
        return self.fd

    def say(self, *what):
        self.waiting += what
        os.eventfd_write(self.fd, 1)

    def close(self):
        os.close(self.fd)
        self.fd = -1


class Uevents(Source):
    def read(self):
        os.eventfd_read(self.fd)
        events, self.waiting = self.waiting, []
        return [event for event in events if event != "lost"], "lost" in events


class Log(Source):
    def read(self):
        os.eventfd_read(self.fd)
        texts, self.waiting = self.waiting, []
        return [Record(1, 2, 3, text) for text in texts]


class Devices:
    """A manager that takes everything, slowly if told to."""

    def __init__(self):
        self.held = {}
        self.calls = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure = None

    async def appeared(self, bdf):
        self.calls.append(("appeared", bdf))
        await self.gate.wait()
        if self.failure:
            raise self.failure
        return object()

    def vanished(self, bdf):
        self.calls.append(("vanished", bdf))

    def lost(self, bdf, reason):
        self.calls.append(("lost", bdf, reason))
        self.held[bdf].state = "gone"


class House:
    """A watch in its surroundings. Time stands still but for the loop's timers."""

    def __init__(self, monkeypatch, there=None):
        self.uevents, self.log, self.devices = Uevents(), Log(), Devices()
        self.there = dict(there or {})
        self.now = None
        monkeypatch.setattr(watch_module, "UeventSocket", lambda: self.uevents)
        monkeypatch.setattr(watch_module, "KernelLog", lambda: self.log)
        monkeypatch.setattr(watch_module, "present", lambda: dict(self.there))
        self.watch = Watch(self.devices, clock=self.clock)

    def clock(self):
        return round(asyncio.get_running_loop().time() * S) if self.now is None else self.now

    async def until(self, true):
        """Wait until it is true, without end: pytest ends it."""
        while not true():
            await asyncio.sleep(0.002)

    async def called(self, number):
        await self.until(lambda: len(self.devices.calls) >= number)
        return self.devices.calls

    def hold(self, bdf, **parts):
        held = self.devices.held[bdf] = SimpleNamespace(bdf=bdf, state="running", device=Card(), driver=Card(), **parts)
        self.watch.guard(held)
        return held

    def totals(self):
        return {(sample.name.removeprefix("rustos_").removesuffix("_total"), *sample.labels.values()): sample.value
                for sample in self.watch.samples()}


class Card:
    """Device and driver."""

    failure = None

    def __init__(self):
        self.resets = 0

    def on_error(self, callback):
        self.fail = callback

    def reset(self):
        self.resets += 1
        if self.failure:
            raise self.failure


@pytest.fixture
async def house(monkeypatch):
    made = House(monkeypatch, {A: "e1000e"})
    made.watch.start()
    yield made
    made.devices.gate.set()
    await made.watch.close()


async def test_a_plugged_device_is_offered_once_its_driver_has_it_and_its_end_is_told(house):
    house.uevents.say(PciEvent(Action.ADD, B), PciEvent(Action.BIND, B, "e1000e"))
    assert await house.called(1) == [("appeared", B)]
    house.uevents.say(PciEvent(Action.UNBIND, B), PciEvent(Action.REMOVE, B))
    assert await house.called(2) == [("appeared", B), ("vanished", B)]
    assert house.totals() == {("hotplug_changes", news): 1 for news in ("appeared", "unbound", "vanished")}


async def test_what_was_there_at_the_start_is_not_offered(house):
    house.uevents.say(PciEvent(Action.UNBIND, A), PciEvent(Action.BIND, A, "vfio-pci"), PciEvent(Action.REMOVE, A))
    assert await house.called(1) == [("vanished", A)]


async def test_a_device_that_comes_back_while_it_is_being_taken_is_offered_again(house):
    house.devices.gate.clear()
    house.uevents.say(PciEvent(Action.ADD, B), PciEvent(Action.BIND, B, "x"))
    await house.called(1)
    house.uevents.say(PciEvent(Action.REMOVE, B), PciEvent(Action.ADD, B), PciEvent(Action.BIND, B, "x"))
    await house.until(lambda: house.totals()["hotplug_changes", "appeared"] == 2)
    house.devices.gate.set()
    assert await house.called(3) == [("appeared", B), ("vanished", B), ("appeared", B)]


async def test_a_manager_that_fails_ends_nothing(house):
    house.devices.failure = RuntimeError("oh")
    with capture_logs() as logs:
        house.uevents.say(PciEvent(Action.BIND, B, "x"))
        await house.called(1)
        await house.until(lambda: logs)
    assert [(entry["event"], entry["device"]) for entry in logs if entry["log_level"] != "debug"] == [
        ("plugged_device_failed", B)]
    house.devices.failure = None
    house.uevents.say(PciEvent(Action.REMOVE, B), PciEvent(Action.BIND, B, "x"))
    assert (await house.called(3))[1:] == [("vanished", B), ("appeared", B)]


async def test_after_lost_messages_sysfs_is_read_again(house):
    house.there = {B: "e1000e"}
    with capture_logs() as logs:
        house.uevents.say("lost")
        assert await house.called(2) == [("vanished", A), ("appeared", B)]
    assert "uevents_lost" in [entry["event"] for entry in logs]


async def test_closing_waits_for_what_is_being_taken_and_hears_no_more(house):
    house.devices.gate.clear()
    house.uevents.say(PciEvent(Action.BIND, B, "x"))
    await house.called(1)
    closing = asyncio.ensure_future(house.watch.close())
    await asyncio.sleep(0)
    assert not closing.done() and (house.uevents.fd, house.log.fd) == (-1, -1)
    house.devices.gate.set()
    await closing
    await house.watch.close()


FAULT = "DMAR: [DMA Read NO_PASID] Request device [02:00.0] fault addr 0x7000 [fault reason 0x06] PTE Read access is not set"


async def test_a_fault_of_a_device_that_is_ours_is_logged_and_counted(house):
    house.hold(A)
    with capture_logs() as logs:
        house.log.say("something else", FAULT.replace("02:00.0", "07:00.0"), FAULT)
        await house.until(lambda: logs)
    assert logs == [{"event": "iommu_fault", "log_level": "error", "device": A, "access": "read", "address": "0x7000",
                     "reason": "PTE Read access is not set", "total": 1}]
    assert house.totals()["device_iommu_faults", A] == 1
    assert ("device_iommu_faults", "0000:07:00.0") not in house.totals()


async def test_a_flood_of_faults_is_counted_and_logged_a_few_times(house):
    house.hold(A)
    house.now = 0
    with capture_logs() as logs:
        house.log.say(*[FAULT] * 1000)
        await house.until(lambda: house.totals()["device_iommu_faults", A] == 1000)
        assert len(logs) == FAULTS
        house.now = 11 * S
        house.log.say(FAULT)
        await house.until(lambda: len(logs) > FAULTS)
    assert logs[-1]["total"] == 1001


async def test_devices_with_counters_do_not_grow_without_end(house):
    for number in range(MOST_REMEMBERED + 10):
        house.devices.held = {}
        house.hold(f"0000:{number >> 5 & 0xFF:02x}:{number & 31:02x}.0")
        house.log.say(FAULT.replace("02:00.0", f"{number >> 5 & 0xFF:02x}:{number & 31:02x}.0"))
        await house.until(lambda: not house.log.waiting)
    assert sum(name == "device_iommu_faults" for name, *_ in house.totals()) == MOST_REMEMBERED


async def test_a_pcie_error_resets_the_device_and_too_many_end_it(house):
    house.now = 0
    held = house.hold(A)
    for _ in range(RESETS):
        held.device.fail()
    assert (held.driver.resets, house.devices.calls) == (RESETS, [])
    held.device.fail()
    held.device.fail()
    assert held.driver.resets == RESETS
    assert [call[:2] for call in house.devices.calls] == [("lost", A)]
    assert house.totals()["device_pcie_errors", A] == RESETS + 1


async def test_pcie_errors_far_apart_are_each_worth_a_reset(house):
    held = house.hold(A)
    for turn in range(RESETS + 5):
        house.now = turn * 61 * S
        held.device.fail()
    assert (held.driver.resets, house.devices.calls) == (RESETS + 5, [])


async def test_a_device_that_does_not_survive_its_reset_is_let_go(house):
    held = house.hold(A)
    held.driver.failure = DeviceTimeout(A, "CTRL.RST clear", 1, 0.1)
    held.device.fail()
    (call,) = house.devices.calls
    assert call[:2] == ("lost", A) and "CTRL.RST clear did not come" in call[2]


async def test_a_device_whose_driver_cannot_reset_it_is_let_go(house):
    held = house.hold(A)
    held.driver = object()
    held.device.fail()
    (call,) = house.devices.calls
    assert call[:2] == ("lost", A)


async def test_a_device_that_cannot_tell_of_its_errors_is_held_all_the_same(house):
    class Mute:
        def on_error(self, _callback):
            raise DeviceTimeout(A, "an eventfd", 0, 0.1)

    with capture_logs() as logs:
        house.watch.guard(SimpleNamespace(bdf=A, state="running", device=Mute(), driver=None))
        house.watch.guard(SimpleNamespace(bdf=B, state="running", device=object(), driver=None))
    assert [(entry["event"], entry["device"]) for entry in logs] == [("pcie_errors_unreported", A)]


async def test_it_begins_with_the_first_device(monkeypatch):
    house = House(monkeypatch)
    assert house.watch._uevents is None
    house.hold(A)
    house.uevents.say(PciEvent(Action.BIND, B, "x"))
    assert await house.called(1) == [("appeared", B)]
    await house.watch.close()


async def test_a_host_that_lets_us_hear_nothing_is_told_and_the_rest_works(monkeypatch):
    house = House(monkeypatch)

    def refuse():
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(watch_module, "UeventSocket", refuse)
    monkeypatch.setattr(watch_module, "KernelLog", refuse)
    with capture_logs() as logs:
        house.watch.start()
    assert [entry["event"] for entry in logs] == ["hotplug_unavailable", "iommu_faults_unreported"]
    assert house.totals() == {}
    await house.watch.close()
