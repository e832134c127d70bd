"""The device manager on a kernel made of Python, with our real driver on models of the cards."""

import asyncio
import itertools
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace

import msgspec
import pytest

from drivers.e1000.nic import E1000
from drivers.errors import DeviceError, DeviceRefused
from netstack.stack import Stack
from rustosd.config import DeviceConfig, RouteConfig
from rustosd.devices import hostlink, kinds
from rustosd.devices.kernel import Kernel, Plan, Wish
from rustosd.devices.linkstate import Hop, KernelAddress, KernelRoute, LinkState
from rustosd.devices.manager import DeviceManager
from rustosd.hostnet import HostNetworkError
from rustosd.journal import DeviceTaken, Journal
from rustosd.pump import Pump
from rustosd.values import Address, InterfaceName, Mac, PciAddress, Prefix
from tests.models.device import FakeDevice
from tests.models.e1000 import MAC, Model

A, B, C, SATA, SLOT = "0000:01:00.0", "0000:02:00.0", "0000:03:00.0", "0000:00:1f.2", "0000:09:00.0"
LINK = LinkState(name="eth0", mac=MAC.hex(":"), mtu=1400, up=True, read_at_s=0.0,
                 addresses=(KernelAddress(address="10.0.0.2/24"), KernelAddress(address="fd00::2/64")),
                 routes=(KernelRoute(to="0.0.0.0/0", hops=(Hop(gateway="10.0.0.1"),)),))
DEADLINE_S = 60


class Card(FakeDevice):
    """A device whose life is written down."""

    def __init__(self, bdf, diary):
        super().__init__(Model(0x10D3), bdf, ("msix",))
        self.diary = diary
        self.asked = None
        self.deaf = False

    def on_release_request(self, callback):
        if self.deaf:
            raise DeviceError(self.name, "VFIO does not tell")
        self.asked = callback

    def close(self):
        if not self.closed:
            self.diary.append(f"close {self.name}")
        super().close()


@dataclass
class Slot:
    """A place on the bus and what is in it."""

    kind: str = kinds.NIC
    driver: str | None = "e1000e"
    link: LinkState | None = None
    group: str | None = None


class FakeKernel(Kernel):
    """Says yes, and writes down what it was asked; `fails` are the words it answers with an error."""

    def __init__(self, journal):
        super().__init__()
        self.journal = journal
        self.diary = []
        self.fails = set()
        self.slots = {A: Slot(link=LINK), B: Slot(link=msgspec.structs.replace(LINK, name="eth1", addresses=(), routes=())),
                      C: Slot(kind=kinds.OTHER, driver=None), SATA: Slot(kinds.AHCI, "ahci")}
        self.cards = {}
        self.unbound = {}

    def does(self, what):
        self.diary.append(what)
        if what in self.fails:
            raise DeviceError(what.split()[1], f"{what.split()[0]} does not work")

    def resolve(self, wanted):
        return [Wish(str(rule.bdf), rule, rule.backend, rule.force) for rule in wanted
                if rule.bdf in self.slots or not rule.optional]

    def rule_for(self, bdf, wanted, *, patient=False):
        slot = self.slots[bdf]
        return next((rule for rule in wanted if rule.bdf == bdf or (slot.link and rule.mac == slot.link.mac)), None)

    def look(self, wishes):
        for wish in wishes:
            self.does(f"look {wish.bdf}")
        return [Plan(wish, self.slots[wish.bdf].kind, DeviceTaken(
            wish.bdf, self.slots[wish.bdf].driver, wish.backend, None, self.slots[wish.bdf].link)) for wish in wishes]

    def bind(self, plan):
        on_disk = self.journal.path.read_text()
        assert f'"bdf":"{plan.taken.bdf}"' in on_disk, "in the journal before the first write to sysfs"
        self.does(f"bind {plan.taken.bdf}")

    def open(self, plan):
        self.does(f"open {plan.taken.bdf}")
        self.cards[plan.taken.bdf] = Card(plan.taken.bdf, self.diary)
        self.cards[plan.taken.bdf].deaf = "tell" in self.fails
        return self.cards[plan.taken.bdf]

    def give_back(self, taken):
        card = self.cards.get(taken.bdf)
        assert card is None or card.closed, "closed before it is given back, or this would never return"
        self.does(f"back {taken.bdf}")
        return []

    def lost(self, bdf, backend):
        return self.unbound.get(bdf)

    def present(self, bdf):
        return bdf in self.slots

    def group_of(self, bdf):
        return self.slots[bdf].group


class Time:
    """Goes on by being asked, so that a busy machine makes no driver's patience end."""

    now = 10**12

    def clock(self):
        self.now += 1000
        return self.now

    def sleep(self, seconds):
        self.now += round(seconds * 1e9)


def e1000(kind, device, rule, link):
    """Our driver, on virtual time."""
    time = Time()
    device.model.clock = lambda: time.now / 1e9
    return E1000(device, rx_ring=64, tx_ring=64, clock=time.clock, sleep=time.sleep)


class World:
    """A manager and all around it."""

    def __init__(self, path, rules=(), routes=(), **options):
        self.stack = Stack(bytes(16), now=time.monotonic_ns())
        self.pump = Pump(asyncio.get_running_loop(), self.stack, lambda: None)
        self.journal = Journal(path / "journal.jsonl")
        self.kernel = FakeKernel(self.journal)
        self.manager = DeviceManager(self.stack, self.pump, self.journal, rules, routes, kernel=self.kernel,
                                     **{"watch_s": 0.02, "make_driver": e1000} | options)

    @property
    def diary(self):
        return self.kernel.diary

    def names(self):
        return [row["name"] for row in self.stack.interfaces() if row["name"] != "lo"]

    def index(self, name):
        return next(row["index"] for row in self.stack.interfaces() if row["name"] == name)

    def addresses(self):
        return {row["address"] for row in self.stack.addresses() if not row["address"].startswith(("fe80:", "127.", "::1"))}

    def pending(self):
        return [entry.bdf for entry in self.journal.pending.values()]

    def nothing_left(self):
        assert (self.names(), self.pending(), dict(self.manager.held)) == ([], [], {})
        assert all(card.closed for card in self.kernel.cards.values())

    async def until(self, condition):
        limit = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < limit, self.diary
            await asyncio.sleep(0.005)


@pytest.fixture
def world(tmp_path):
    """Run an async function with a World, and see that afterwards nothing is left."""
    def run(scenario, **options):
        async def main():
            made = World(tmp_path, **options)
            try:
                await scenario(made)
            finally:
                await made.manager.close()
                made.pump.close()
                made.journal.close()
            assert all(card.closed for card in made.kernel.cards.values())
        asyncio.run(main())
    return run


def test_a_nic_is_taken_with_what_it_was_and_given_back(world):
    async def scenario(w):
        held, = await w.manager.take([A])
        assert (held.bdf, held.kind, held.backend, held.before, held.interface, held.state) == (
            A, "nic", "vfio", "e1000e", "eth0", "running")
        assert held.device is w.kernel.cards[A] and held.driver.mac == MAC and dict(w.manager.held) == {A: held}
        row, = (row for row in w.stack.interfaces() if row["name"] == "eth0")
        assert (row["mtu"], row["mac"]) == (1400, MAC.hex(":"))
        assert w.addresses() == {"10.0.0.2/24", "fd00::2/64"}
        assert [(r["prefix"], r["gateway"]) for r in w.stack.routes() if r["kind"] == "static"] == [("0.0.0.0/0", "10.0.0.1")]
        assert w.pending() == [A]
        await w.manager.give(A)
        assert w.diary == [f"look {A}", f"bind {A}", f"open {A}", f"close {A}", f"back {A}"]
        w.nothing_left()
    world(scenario)


def test_an_address_goes_when_its_lease_ends(world):
    async def scenario(w):
        leased = (KernelAddress(address="10.0.0.2/24"), KernelAddress(address="10.0.0.7/24", valid_s=30),
                  KernelAddress(address="10.0.0.8/24", valid_s=3000))
        read_at_s = hostlink.now_s() - 29.9
        w.kernel.slots[A].link = msgspec.structs.replace(LINK, addresses=leased, read_at_s=read_at_s)
        held, = await w.manager.take([A])
        assert ["renewal of 10.0.0.7/24" in what for what in held.left_out] == [True, False]
        await w.until(lambda: w.addresses() == {"10.0.0.2/24", "10.0.0.8/24"})
        await w.manager.give(A)
        assert not w.manager._leases, "nor does a timer wait for what is gone"
    world(scenario)


def test_frames_flow(world):
    async def scenario(w):
        await w.manager.take([A])
        model = w.kernel.cards[A].model
        await w.until(lambda: next(row["up"] for row in w.stack.interfaces() if row["name"] == "eth0"))
        asks = bytes.fromhex("ffffffffffff 020000000001 0806 0001080006040001 020000000001 0a000001 000000000000 0a000002")
        model.deliver(asks.ljust(60, b"\0"))
        await w.until(lambda: any(frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2" for frame in model.wire))
    world(scenario)


@pytest.mark.parametrize(("fails", "undone"), [
    (f"look {B}", []), (f"bind {A}", [f"back {B}", f"back {A}"]), (f"bind {B}", [f"back {B}", f"back {A}"]),
    (f"open {A}", [f"back {B}", f"back {A}"]), (f"open {B}", [f"close {A}", f"back {B}", f"back {A}"]),
])
def test_several_are_taken_all_or_none(world, fails, undone):
    async def scenario(w):
        w.kernel.fails.add(fails)
        with pytest.raises(DeviceError, match=f"{fails.split()[1]}: {fails.split()[0]} does not work"):
            await w.manager.take([A, B])
        assert w.diary[w.diary.index(fails) + 1:] == undone
        w.nothing_left()
        w.kernel.fails.clear()
        assert [held.bdf for held in await w.manager.take([A, B])] == [A, B]
        assert w.pending() == [A, B]
    world(scenario)


def test_a_driver_that_does_not_start_and_a_name_that_is_taken(world):
    async def scenario(w):
        w.kernel.slots[B].link = LINK
        with pytest.raises(DeviceRefused, match="the stack has an interface eth0 already"):
            await w.manager.take([A, B])
        w.nothing_left()
    world(scenario)

    def make(kind, device, rule, link):
        raise DeviceRefused(device.name, "no driver today")

    async def second(w):
        with pytest.raises(DeviceRefused, match="no driver today"):
            await w.manager.take([A])
        assert w.diary[-2:] == [f"close {A}", f"back {A}"]
        w.nothing_left()
    world(second, make_driver=make)


def test_what_cannot_be_given_back_stays_known_and_can_be_given_again(world):
    async def scenario(w):
        w.kernel.fails |= {f"open {B}", f"back {A}"}
        with pytest.raises(DeviceError, match="open does not work"):
            await w.manager.take([A, B])
        assert w.pending() == [A] and w.manager.held[A].state == "gone"
        assert "taking it failed, and so did giving it back" in w.manager.held[A].reason
        with pytest.raises(DeviceError, match="back does not work"):
            await w.manager.give(A)
        with pytest.raises(DeviceRefused, match="rustosd has it already"):
            await w.manager.take([A])
        w.kernel.fails.clear()
        await w.manager.give(A)
        w.nothing_left()
    world(scenario)


def test_what_is_refused_changes_nothing(world):
    async def scenario(w):
        await w.manager.take([A])
        for bdf, error, words in ((A, DeviceRefused, "already"), ("nonsense", ValueError, "no PCI address")):
            with pytest.raises(error, match=words):
                await w.manager.take([bdf])
        with pytest.raises(DeviceRefused, match="rustosd does not have it"):
            await w.manager.give(B)
        with pytest.raises(ValueError, match="no backend"):
            await w.manager.take([B], backend="usb")
        assert list(w.manager.held) == [A] == w.pending()
    world(scenario)


def test_asked_back_it_is_closed_at_once_and_without_the_kernel(world):
    async def scenario(w):
        held, = await w.manager.take([A])
        before = list(w.diary)
        w.kernel.cards[A].asked()
        assert w.diary == [*before, f"close {A}"], "in the callback itself, and nothing else"
        assert (held.state, held.device, held.driver) == ("gone", None, None)
        assert "the kernel has asked for it back" in held.reason and "rustosctl device give" in held.reason
        assert w.pending() == [A] and w.names() == ["eth0"]
        await w.manager.give(A)
        w.nothing_left()
    world(scenario)


def test_unplugged_and_plugged_in_again_it_carries_on(world):
    async def scenario(w):
        await w.manager.start()
        index = w.index("wan0")
        w.stack.add_address(index, "10.0.0.77/24")
        w.manager.vanished(A)
        w.manager.vanished(A)
        held = w.manager.held[A]
        assert (held.state, held.reason, w.pending(), w.names()) == ("gone", "it was unplugged", [], ["wan0"])
        w.kernel.slots[A].link = msgspec.structs.replace(LINK, name="eth5", addresses=(), routes=())
        again = await w.manager.appeared(A)
        assert (again.state, again.index, w.manager.held[A]) == ("running", index, again)
        assert w.addresses() == {"10.0.0.2/24", "fd00::2/64", "10.0.0.77/24"}
        assert await w.manager.appeared(A) is None, "it is there already"
    world(scenario, rules=[DeviceConfig(bdf=PciAddress(A), name=InterfaceName("wan0"))])


def test_plugged_into_another_slot_the_interface_moves_along(world):
    async def scenario(w):
        await w.manager.take([A])
        w.kernel.slots[SLOT] = w.kernel.slots.pop(A)
        w.manager.vanished(A)
        held = await w.manager.appeared(SLOT)
        assert (held.interface, w.names(), list(w.manager.held)) == ("eth0", ["eth0"], [SLOT])
        assert "10.0.0.2/24" in w.addresses()
    world(scenario, rules=[DeviceConfig(mac=Mac(MAC.hex(":")))])


def test_a_plugged_device_that_fails_is_logged_and_its_interface_goes_on_waiting(world):
    async def scenario(w):
        await w.manager.start()
        for fails in (f"open {A}", f"bind {A}", f"look {A}", "tell"):
            w.manager.vanished(A)
            w.kernel.fails = {fails}
            assert await w.manager.appeared(A) is None
            assert (w.names(), w.pending(), w.manager.held[A].state) == (["eth0"], [], "gone")
            w.kernel.fails = set()
            assert (await w.manager.appeared(A)).state == "running"
        await w.manager.give(A)
        w.nothing_left()
    world(scenario, rules=[DeviceConfig(bdf=PciAddress(A))])


def test_what_no_rule_means_is_left_alone(world):
    async def scenario(w):
        assert await w.manager.appeared(B) is None
        assert w.diary == []
    world(scenario, rules=[DeviceConfig(bdf=PciAddress(A))])


def test_one_that_was_unplugged_is_forgotten_when_it_is_given(world):
    async def scenario(w):
        await w.manager.take([A])
        w.manager.vanished(A)
        await w.manager.give(A)
        assert f"back {A}" not in w.diary
        w.nothing_left()
    world(scenario)


def test_registers_that_read_all_ones_end_it(world):
    async def scenario(w):
        held, = await w.manager.take([A])
        w.kernel.cards[A].model.gone = True
        await w.until(lambda: held.state == "gone")
        assert w.kernel.cards[A].closed and w.pending() == [A]
    world(scenario)


def test_a_device_that_does_not_say_who_it_is_any_more_is_let_go_though_nothing_else_tells(world):
    async def scenario(w):
        held, = await w.manager.take([A])
        await w.manager.start()
        w.kernel.cards[A].config.read = lambda _offset, octets: (1 << 8 * octets) - 1
        await w.until(lambda: held.state == "gone")
        assert held.reason.startswith("it answers no more") and w.kernel.cards[A].closed and w.pending() == [A]
    world(scenario)


def test_whoever_watches_hears_of_each_device_that_is_taken(world):
    async def scenario(w):
        taken = []
        w.manager.on_taken = lambda held: taken.append((held.bdf, held.driver is not None, held.interface))
        await w.manager.take([A])
        assert taken == [(A, True, "eth0")]
    world(scenario)


def test_a_driver_unbound_by_somebody_is_noticed(world):
    async def scenario(w):
        held, = await w.manager.take([A], backend="uio")
        await w.manager.start()
        w.kernel.unbound[A] = "somebody has unbound it from uio_pci_generic"
        await w.until(lambda: held.state == "gone")
        assert held.reason.startswith("somebody has unbound it") and w.kernel.cards[A].closed and w.pending() == [A]
        del w.kernel.slots[A]
        await w.until(lambda: not w.pending())
        assert held.reason == "it was unplugged"
    world(scenario)


def test_a_group_goes_back_together(world):
    async def scenario(w):
        w.kernel.slots[A].group = w.kernel.slots[C].group = "7"
        held = await w.manager.take([A, C])
        assert [(one.kind, one.device is None) for one in held] == [("nic", False), ("other", True)]
        assert f"open {C}" not in w.diary
        await w.manager.take([B])
        await w.manager.give(C)
        assert w.diary[-3:] == [f"close {A}", f"back {C}", f"back {A}"]
        assert list(w.manager.held) == [B] == w.pending()
    world(scenario)


def test_closing_gives_all_back_and_takes_no_more(world):
    async def scenario(w):
        await w.manager.take([A])
        await w.manager.take([B])
        await w.manager.close()
        assert w.diary[-4:] == [f"close {A}", f"close {B}", f"back {B}", f"back {A}"]
        w.nothing_left()
        with pytest.raises(DeviceRefused, match="stopping"):
            await w.manager.take([A])
    world(scenario)


def test_a_take_whose_caller_is_gone_is_finished_and_then_given_back(world):
    async def scenario(w):
        asked = asyncio.ensure_future(w.manager.take([A, B]))
        while not w.diary:
            await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await w.manager.close()
        assert sorted(w.diary) == sorted(f"{what} {bdf}" for what, bdf in itertools.product(
            ("look", "bind", "open", "close", "back"), (A, B)))
        w.nothing_left()
    world(scenario)


def test_static_routes_over_a_device_come_and_go_with_it(world):
    async def scenario(w):
        await w.manager.start()
        assert ("198.51.100.0/24", "10.0.0.9") in [(r["prefix"], r["gateway"]) for r in w.stack.routes()]
        await w.manager.give(A)
        assert [r for r in w.stack.routes() if r["kind"] == "static"] == []
    route = RouteConfig(to=Prefix("198.51.100.0/24"), via=Address("10.0.0.9"), interface="wan0")
    world(scenario, rules=[DeviceConfig(bdf=PciAddress(A), name=InterfaceName("wan0"))], routes=[route])


def test_a_start_takes_all_that_is_there_or_nothing(world):
    rules = [DeviceConfig(bdf=PciAddress(bdf), optional=bdf == SLOT) for bdf in (A, SLOT, B)]

    async def scenario(w):
        w.kernel.fails.add(f"open {B}")
        with pytest.raises(DeviceError, match="open does not work"):
            await w.manager.start()
        w.nothing_left()
        w.kernel.fails.clear()
        assert [held.bdf for held in await w.manager.start()] == [A, B]
    world(scenario, rules=rules)


class FakeAhci:
    """A controller with two disks."""

    def __init__(self, device):
        self.device = device
        self.disks = [f"{device.name}/{port}" for port in (0, 1)]
        self.ports = []

    def close(self):
        self.device.diary.append("close controller")
        self.device.close()


class FakeSata:
    """Its disks come and go when a test says so."""

    def __init__(self, driver, loop, on_disk):
        self.driver, self.on_disk = driver, on_disk

    def close(self):
        self.driver.device.diary.append("stop controller")


class FakeDisk:
    def __init__(self, disk, loop):
        self.info = SimpleNamespace(name=disk)
        self.closed = self.flushed = False

    async def flush(self):
        assert not self.closed
        self.flushed = True
        if self.info.name.endswith("/0"):
            raise OSError("the medium is worn out")

    def close(self):
        self.closed = True


def test_the_disks_of_a_controller_are_there_while_it_is(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "rustosd.storage", SimpleNamespace(SharedDisk=FakeDisk))
    monkeypatch.setitem(sys.modules, "rustosd.devices.sata", SimpleNamespace(SataController=FakeSata))

    async def scenario(w):
        held, = await w.manager.take([SATA])
        disks = dict(held.disks)
        assert list(disks) == [f"{SATA}/0", f"{SATA}/1"] and held.interface is None
        await w.manager.give(SATA)
        assert all(disk.flushed and disk.closed for disk in disks.values()), "flushed, and closed though one failed to"
        assert w.diary[-4:] == ["stop controller", "close controller", f"close {SATA}", f"back {SATA}"]
        w.nothing_left()
    world(scenario, make_driver=lambda kind, device, rule, link: FakeAhci(device))


def test_a_disk_that_is_plugged_in_or_pulled_comes_and_goes_alone(world, monkeypatch):
    class Named(FakeDisk):
        def __init__(self, disk, loop):
            super().__init__(getattr(disk, "name", disk), loop)
    monkeypatch.setitem(sys.modules, "rustosd.storage", SimpleNamespace(SharedDisk=Named))
    monkeypatch.setitem(sys.modules, "rustosd.devices.sata", SimpleNamespace(SataController=FakeSata))

    async def scenario(w):
        held, = await w.manager.take([SATA])
        first, third = SimpleNamespace(name=f"{SATA}/0"), SimpleNamespace(name=f"{SATA}/3")
        before = held.disks[first.name]
        held.sata.on_disk(first, False)
        held.sata.on_disk(third, True)
        assert before.closed and sorted(held.disks) == [f"{SATA}/1", f"{SATA}/3"]
        held.sata.on_disk(first, True)
        assert held.disks[first.name] is not before and len(held.disks) == 3
        on_disk = held.sata.on_disk
        await w.manager.give(SATA)
        on_disk(first, True)        # told too late
        assert held.disks == {}
        w.nothing_left()
    world(scenario, make_driver=lambda kind, device, rule, link: FakeAhci(device))


def test_complaints_of_the_kernel_do_not_keep_it_from_being_back(world):
    async def scenario(w):
        await w.manager.take([A])
        monkey = ["the route to 10.0.0.0/8 over eth0 is missing"]
        w.kernel.give_back = lambda taken: monkey
        await w.manager.give(A)
        w.nothing_left()

        await w.manager.take([B])

        def never(taken):
            raise HostNetworkError("its driver has made no interface")
        w.kernel.give_back = never
        with pytest.raises(HostNetworkError):
            await w.manager.give(B)
        assert w.pending() == [B] and "giving it back failed" in w.manager.held[B].reason
    world(scenario)
