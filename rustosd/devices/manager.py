"""The devices the daemon holds: every way in (a rule, an operator, a plug) and every way out leads through here.

All of it runs on the loop. What blocks (sysfs, netlink, opening, bringing a chip up) runs in a thread, one take or give at
a time; letting go of a device that the kernel wants back, or that is gone, waits for neither and touches no sysfs.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol, TypeVar

import structlog

from drivers.device import Device
from drivers.errors import DeviceError, DeviceRefused
from netstack.stack import Stack
from rustosd.config import DeviceConfig, RouteConfig
from rustosd.devices import adoption, hostlink, kinds
from rustosd.devices.kernel import DRIVERS, Kernel, Plan, Wish, canonical
from rustosd.devices.linkstate import LinkState
from rustosd.hostnet import HostNetworkError
from rustosd.journal import DeviceTaken, Journal
from rustosd.pump import Pump

WATCH_S: Final = 1.0
"""How often to look whether a device is still ours; hot-unplug and VFIO's requests are told at once."""
_VENDOR: Final = 0x00
_NOBODY: Final = 0xFFFF
"""What a read of the vendor ID gives where there is no device; PCI Local Bus 3.0, 6.1."""
_T = TypeVar("_T")

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Held:
    """A device that we have, or had until it went away."""

    bdf: str
    kind: str
    """"nic", "ahci", or "other": one without a driver of ours, held because its IOMMU group goes together."""
    backend: str
    before: str | None
    """The kernel driver it came from."""
    rule: DeviceConfig
    interface: str | None = None
    """The stack's interface, of a NIC."""
    device: Device | None = None
    driver: Any = None
    """`E1000`, `AhciController`, or None for "other"."""
    disks: dict[str, Any] = field(default_factory=dict)
    """`SharedDisk` by name, of an AHCI controller."""
    sata: Any = None
    """`rustosd.devices.sata.SataController`, of an AHCI controller."""
    state: Literal["running", "gone"] = "running"
    reason: str = ""
    """Why it is gone, and what to do."""
    group: str | None = None
    """Its IOMMU group, where that matters."""
    entry: int = 0
    """Its line in the journal; 0: nothing to give back any more."""
    taken: DeviceTaken | None = None
    index: int = -1
    """The stack's interface."""
    left_out: tuple[str, ...] = ()
    """In words, what the stack did not take over of what the kernel had."""


class MakeDisk(Protocol):
    """What turns a driver's disk into one for the loop."""

    def __call__(self, disk: Any, loop: asyncio.AbstractEventLoop) -> Any: ...


class DeviceManager:
    """Takes devices from the kernel and gives them back. Nothing is taken that the journal does not know."""

    def __init__(self, stack: Stack, pump: Pump, journal: Journal, rules: Sequence[DeviceConfig] = (),
                 routes: Sequence[RouteConfig] = (), *, kernel: Kernel | None = None, watch_s: float = WATCH_S,
                 make_driver: Callable[[str, Device, DeviceConfig, LinkState | None], Any] = kinds.make_driver) -> None:
        """`routes` are the static ones, of which those over a device's interface come and go with it."""
        self._loop = asyncio.get_running_loop()
        self._stack, self._pump, self._journal = stack, pump, journal
        self._rules, self._routes = tuple(rules), tuple(routes)
        self._kernel = kernel or Kernel()
        self._make_driver = make_driver
        self._held: dict[str, Held] = {}
        self.held: Mapping[str, Held] = MappingProxyType(self._held)
        """By BDF; also those that are gone and whose interface waits for them."""
        self.on_taken: Callable[[Held], None] = lambda held: None
        """Called on the loop with each device whose driver has begun to work."""
        self._lock = asyncio.Lock()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="devices")
        self._tasks: set[asyncio.Task] = set()
        self._leases: dict[str, list[asyncio.TimerHandle]] = {}
        """Ends of addresses, by the stack's interface."""
        self._watch_s = watch_s
        self._watch: asyncio.TimerHandle | None = None
        self._closed = False

    def set_rules(self, rules: Sequence[DeviceConfig], routes: Sequence[RouteConfig]) -> None:
        """For what is taken from now on; what is held stays as it is, and is still its rule's device."""
        by_name = {rule.which: rule for rule in rules}
        for held in self._held.values():
            if held.rule in self._rules:
                held.rule = by_name.get(held.rule.which, held.rule)
        self._rules, self._routes = tuple(rules), tuple(routes)

    # In

    async def start(self) -> list[Held]:
        """Take what the rules mean; all or nothing. Raises DeviceError, HostNetworkError, ValueError."""
        return await self._unhurt(self._start())

    async def take(self, bdfs: Sequence[str], *, force: bool = False, backend: str = "vfio") -> list[Held]:
        """Take devices from the kernel, all or nothing; a rule that means one says how it is set up.

        `force` overrules what an operator can answer for, such as the default route. Raises DeviceError,
        HostNetworkError, ValueError; then all is as it was.
        """
        if backend not in DRIVERS:
            raise ValueError(f"{backend!r} is no backend: {', '.join(DRIVERS)}")
        wanted = list(dict.fromkeys(canonical(bdf) for bdf in bdfs))
        return await self._unhurt(self._take_named(wanted, force, backend))

    async def appeared(self, bdf: str) -> Held | None:
        """A device has been plugged in: take it if a rule means it. A failure is logged; the answer is then None."""
        try:
            return await self._unhurt(self._take_plugged(canonical(bdf)))
        except (DeviceError, HostNetworkError, OSError, ValueError) as error:
            log.error("plugged_device_not_taken", device=bdf, error=str(error))
            return None

    async def _start(self) -> list[Held]:
        async with self._lock:
            self._arm_watch()
            if not self._rules:
                return []
            return await self._take(await self._in_thread(self._kernel.resolve, self._rules))

    async def _take_named(self, bdfs: list[str], force: bool, backend: str) -> list[Held]:
        async with self._lock:
            if self._closed:
                raise DeviceRefused(", ".join(bdfs), "the daemon is stopping")
            for bdf in bdfs:
                if bdf in self._held and (self._held[bdf].state == "running" or self._held[bdf].entry):
                    raise DeviceRefused(bdf, "rustosd has it already: see `rustosctl device show`")
            wishes = []
            for bdf in bdfs:
                rule = await self._in_thread(self._kernel.rule_for, bdf, self._rules) or DeviceConfig(bdf=bdf)
                wishes.append(Wish(bdf, rule, backend, force or rule.force))
            return await self._take(wishes)

    async def _take_plugged(self, bdf: str) -> Held | None:
        async with self._lock:
            before = self._held.get(bdf)
            if self._closed or (before is not None and (before.state == "running" or before.entry)):
                return None
            rule = await self._in_thread(lambda: self._kernel.rule_for(bdf, self._rules, patient=True))
            if rule is None or any(held.rule is rule and held.state == "running" for held in self._held.values()):
                return None
            return (await self._take([Wish(bdf, rule, rule.backend, rule.force)]))[0]

    async def _take(self, wishes: Sequence[Wish]) -> list[Held]:
        """All or nothing. The lock is held."""
        plans = await self._in_thread(self._kernel.look, wishes)
        fresh: list[Held] = []
        try:
            for plan in plans:      # on disk before the first write to sysfs
                fresh.append(self._entered(plan))
            for plan in plans:
                await self._in_thread(self._kernel.bind, plan)
            for plan, held in zip(plans, fresh, strict=True):
                if plan.kind != kinds.OTHER:
                    await self._in_thread(self._bring_up, plan, held)
                    self._wire(plan, held)
            self._held.update((held.bdf, held) for held in fresh)
        except BaseException as error:
            log.error("take_failed", devices=[plan.taken.bdf for plan in plans], error=str(error))
            await self._roll_back(fresh)
            raise
        for held in fresh:
            for other in self._waiting_for(held):       # elsewhere, before it was plugged in here
                self._held.pop(other.bdf, None)
            log.info("device_taken", device=held.bdf, kind=held.kind, backend=held.backend, before=held.before,
                     nic=held.interface)
        return fresh

    async def _roll_back(self, fresh: Sequence[Held]) -> None:
        """After a take that failed half-way: everything back, the last taken first. The lock is held."""
        for held in fresh:
            self._release(held)
        for held in reversed(fresh):
            if waiting := self._waiting_for(held):      # the interface goes on waiting
                waiting[0].index, held.index = held.index, -1
            self._forget_interface(held)
            if (error := await self._back_to_kernel(held)) is not None:
                held.state, held.reason = "gone", f"taking it failed, and so did giving it back: {error}"
                self._held[held.bdf] = held
        self._tidy()

    def _waiting_for(self, held: Held) -> list[Held]:
        """Those that are gone whose interface `held` has taken up."""
        return [other for other in self._held.values()
                if other is not held and held.index >= 0 and other.state == "gone" and other.interface == held.interface]

    def _entered(self, plan: Plan) -> Held:
        taken = plan.taken
        group = self._kernel.group_of(taken.bdf) if taken.backend == "vfio" else None
        return Held(taken.bdf, plan.kind, taken.backend, taken.driver, plan.wish.rule, group=group,
                    entry=self._journal.take(taken), taken=taken)

    def _bring_up(self, plan: Plan, held: Held) -> None:
        """In the thread: open the device and start its driver."""
        held.device = self._kernel.open(plan)
        held.driver = self._make_driver(plan.kind, held.device, plan.wish.rule, plan.taken.link)

    def _wire(self, plan: Plan, held: Held) -> None:
        """On the loop: give a running driver its place in the daemon."""
        assert held.device is not None
        if plan.kind == kinds.NIC:
            self._wire_nic(plan, held)
        else:
            self._wire_disks(held)
        held.device.on_release_request(lambda: self._asked_back(held))
        self.on_taken(held)

    def _wire_disks(self, held: Held) -> None:
        from rustosd.devices.sata import SataController  # late: a host without disks of ours needs none of it
        for disk in held.driver.disks:
            self._add_disk(held, disk)
        held.sata = SataController(held.driver, self._loop, lambda disk, there: self._disk_changed(held, disk, there))

    def _add_disk(self, held: Held, disk: Any) -> None:
        from rustosd.storage import SharedDisk
        make_disk: MakeDisk = SharedDisk
        made = make_disk(disk, self._loop)
        held.disks[made.info.name] = made

    def _disk_changed(self, held: Held, disk: Any, there: bool) -> None:
        """A drive was plugged into a controller that stays, or was unplugged."""
        if held.sata is None:       # told while it was given back
            return
        if (before := held.disks.pop(disk.name, None)) is not None:
            before.close()
        if there:
            self._add_disk(held, disk)

    def _wire_nic(self, plan: Plan, held: Held) -> None:
        rule, link, nic = plan.wish.rule, plan.taken.link, held.driver
        name = str(rule.name or self._name_before(rule, held.bdf) or (link.name if link else _made_name(held.bdf)))
        routes = tuple(route for route in self._routes if route.interface == name)
        want = adoption.wanted(link, rule, routes, nic.mtu)
        for what in want.left_out:
            log.warning("not_taken_over", device=held.bdf, nic=name, what=what)
        self._claim(name, held)
        held.interface = name
        held.index = adoption.place(self._stack, name, nic.mac, want.mtu, nic.features)
        adoption.apply(self._stack, held.index, want, name)
        held.left_out = want.left_out
        self._forget_leases(name)
        self._leases[name] = [
            self._loop.call_later(max(0.0, lease.ends_s - hostlink.now_s()), self._end_lease, name, lease.address)
            for lease in want.leases]
        self._pump.attach(nic, held.index, on_gone=lambda: self.lost(held.bdf, "its registers read all ones"))

    def _end_lease(self, interface: str, address: str) -> None:
        """Nobody has renewed it; another host may be given it now (RFC 2131 4.4.5)."""
        for row in self._stack.addresses():
            if row["name"] == interface and row["address"].partition("/")[0] == address:
                self._stack.remove_address(row["interface"], row["address"])
                self._pump.kick()
                log.warning("lease_ended", nic=interface, address=row["address"])

    def _forget_leases(self, interface: str) -> None:
        for timer in self._leases.pop(interface, ()):
            timer.cancel()

    def _name_before(self, rule: DeviceConfig, bdf: str) -> str | None:
        """The interface that waits for the device of this rule, or for the one at this place, to come back."""
        waiting = [held for held in self._held.values() if held.state == "gone" and held.interface]
        return next((held.interface for held in waiting if held.bdf == bdf or held.rule is rule), None)

    def _claim(self, name: str, held: Held) -> None:
        """See that the stack's interface `name` is free, or waits for this device. Raises DeviceRefused."""
        if all(row["name"] != name for row in self._stack.interfaces()):
            return
        if any(other.interface == name and other.state == "gone" for other in self._held.values()):
            return
        raise DeviceRefused(held.bdf, f"the stack has an interface {name} already: give this one another name, name = \"...\" "
                                      "under its [[device]]")

    # Out

    async def give(self, bdf: str) -> None:
        """Give a device back to the kernel with its addresses and routes, and with it the rest of its IOMMU group.

        One that is gone is forgotten. Raises DeviceError, HostNetworkError: it is not back, and can be given again.
        """
        await self._unhurt(self._give(canonical(bdf)))

    async def close(self) -> None:
        """Give everything back; what cannot be stays in the journal, and is logged. Afterwards nothing can be taken."""
        await self._unhurt(self._close())

    def vanished(self, bdf: str) -> None:
        """The device has been unplugged: let go of what is left of it. Its interface waits for its return."""
        if (held := self._held.get(bdf)) is None:
            return
        self._go(held, "it was unplugged")
        if held.entry:
            self._journal.given_back(held.entry)
            held.entry = 0
        if not self._lock.locked():     # else a device may be on its way in
            self._tidy()

    def lost(self, bdf: str, reason: str) -> None:
        """The device does not work any more, but may still be there: let go. `give` returns it to the kernel."""
        held = self._held.get(bdf)
        if held is not None and held.state == "running":
            self._go(held, f"{reason}: `rustosctl device give {bdf}`, then take it again")

    def _asked_back(self, held: Held) -> None:
        """VFIO's request: somebody unbinds or unplugs it, and hangs until we have closed it."""
        if held.state == "running":
            self._go(held, "the kernel has asked for it back, since somebody unplugs it or unbinds its driver: "
                           f"`rustosctl device give {held.bdf}` returns it to {held.before or 'no driver'}")

    def _go(self, held: Held, reason: str) -> None:
        """Let go at once, without touching sysfs."""
        was_running = held.state == "running"
        self._release(held)
        held.state, held.reason = "gone", reason
        if was_running:
            log.error("device_gone", device=held.bdf, nic=held.interface, reason=reason)

    async def _give(self, bdf: str) -> None:
        async with self._lock:
            held = self._held.get(bdf)
            if held is None:
                raise DeviceRefused(bdf, "rustosd does not have it: see `rustosctl device list`")
            together = [other for other in self._held.values() if other is held or (
                held.group is not None and other.group == held.group and other.entry)]
            failed = await self._hand_over(together)
            self._tidy()
            if failed:
                raise failed[0]

    async def _hand_over(self, together: Sequence[Held]) -> list[Exception]:
        """From us to the kernel, the last first; what keeps some from being given back. The lock is held."""
        failed = []
        await self._flush_disks(together)
        for held in together:       # of a group, all must be closed before the kernel takes one
            self._release(held)
        for held in reversed(together):
            self._forget_interface(held)
            if (error := await self._back_to_kernel(held)) is None:
                self._held.pop(held.bdf, None)
            else:
                held.state, held.reason = "gone", f"giving it back failed: {error}"
                failed.append(error)
        return failed

    async def _flush_disks(self, together: Sequence[Held]) -> None:
        """What a drive still has in its cache goes to the medium first. One that fails to is given back all the same."""
        disks = [disk for held in together if held.state == "running" for disk in held.disks.values()]
        for disk, error in zip(disks, await asyncio.gather(*(disk.flush() for disk in disks), return_exceptions=True),
                               strict=True):
            if error is not None:
                log.error("flush_failed", disk=disk.info.name, error=str(error))

    async def _back_to_kernel(self, held: Held) -> Exception | None:
        """What kept it from being given back, in which case the journal remembers it."""
        if not held.entry:
            return None
        assert held.taken is not None
        try:
            complaints = await self._in_thread(self._kernel.give_back, held.taken)
        except (DeviceError, HostNetworkError, OSError) as error:
            log.error("give_back_failed", device=held.bdf, error=str(error))
            return error
        for complaint in complaints:
            log.warning("not_restored", device=held.bdf, what=complaint)
        if held.entry:      # it may have been unplugged meanwhile
            self._journal.given_back(held.entry)
            held.entry = 0
        log.info("device_given_back", device=held.bdf, to=held.before, nic=held.taken.link.name if held.taken.link else None)
        return None

    async def _close(self) -> None:
        async with self._lock:
            self._closed = True
            if self._watch is not None:
                self._watch.cancel()
            await self._hand_over(list(self._held.values()))        # what fails is logged, and in the journal
            self._kernel.close()
        self._executor.shutdown(wait=False)

    def _release(self, held: Held) -> None:
        """Close driver and device, which stops its DMA. No sysfs, and no harm when it was done before."""
        if held.index >= 0:
            self._pump.detach(held.index)
        with self._kernel.lock:
            for part in (held.sata, *held.disks.values(), held.driver, held.device):
                if part is not None:
                    try:
                        part.close()
                    except Exception:       # a device that is gone fails as it likes; the rest must be closed all the same
                        log.exception("close_failed", device=held.bdf, part=type(part).__name__)
        for left in getattr(held.device, "leaked", ()):
            log.warning("dma_leaked", device=held.bdf, owner=left.owner, blocks=left.blocks, octets=left.octets)
        held.sata, held.disks, held.driver, held.device = None, {}, None, None

    def _forget_interface(self, held: Held) -> None:
        if held.index >= 0:
            self._forget_leases(held.interface or "")
            self._stack.remove_interface(held.index)
            self._pump.kick()
            held.index = -1

    def _tidy(self) -> None:
        """Without devices there is no need for an address space."""
        if all(held.device is None for held in self._held.values()):
            self._kernel.close()

    # Watching

    def _arm_watch(self) -> None:
        self._watch = self._loop.call_later(self._watch_s, self._look_after)

    def _look_after(self) -> None:
        """Notice what nobody tells us: UIO has no requests, and an unbound driver sends no event we wait for."""
        self._arm_watch()
        for held in list(self._held.values()):
            if held.entry and not self._lock.locked():
                if not self._kernel.present(held.bdf):
                    self.vanished(held.bdf)
                elif held.state == "running" and (why := self._kernel.lost(held.bdf, held.backend) or _silent(held)):
                    self.lost(held.bdf, why)

    # How it runs

    async def _in_thread(self, function: Callable[..., _T], *arguments: Any) -> _T:
        return await self._loop.run_in_executor(self._executor, function, *arguments)

    async def _unhurt(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do it to its end, also when whoever asked is cancelled: half a take is no state to be in."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)


def _made_name(bdf: str) -> str:
    """For a NIC that had no interface, after its place: "pci3s0f0"."""
    _, bus, rest = bdf.split(":")
    device, function = rest.split(".")
    return f"pci{int(bus, 16)}s{int(device, 16)}f{function}"


def _silent(held: Held) -> str | None:
    """Why a device does not even say who it is any more; None while it does."""
    try:
        vendor = held.device.config.read(_VENDOR, 2) if held.device is not None else 0
    except OSError as error:
        return f"its configuration space cannot be read ({error.strerror})"
    return "it answers no more, as if it were pulled or had no power" if vendor == _NOBODY else None


def interfaces(held: Iterable[Held]) -> dict[str, Held]:
    """The NICs that run, by the stack's name for them."""
    return {one.interface: one for one in held if one.interface is not None and one.state == "running"}
