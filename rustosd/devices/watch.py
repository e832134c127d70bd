"""What happens to devices from outside: plugged, unplugged, failing, reaching too far.

The watch listens to the kernel and tells the device manager what to do; it holds nothing itself. What the kernel asks of a
single device (VFIO's requests) goes to the manager straight away, since a kernel thread waits for the answer.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

import structlog

from drivers import iommu_fault
from drivers.errors import DeviceError
from drivers.hotplug.tracker import News, Tell, Tracker
from drivers.hotplug.uevent import UeventSocket, present
from drivers.iommu_fault import IommuFault
from drivers.kernel_log import KernelLog
from rustosd.services.base import Sample

FAULTS: Final = 5
"""IOMMU faults of one device that are logged in `FAULTS_S`; all are counted. One lost page brings thousands."""
FAULTS_S: Final = 10.0
RESETS: Final = 3
"""Resets of one device in `RESETS_S` after PCIe errors; one that needs more is let go."""
RESETS_S: Final = 60.0
MOST_REMEMBERED: Final = 256
"""Devices with counters, the latest."""

log = structlog.get_logger(__name__)


class Held(Protocol):
    """A device that is ours, as the watch sees it."""

    bdf: str
    state: str
    device: Any
    driver: Any


class Devices(Protocol):
    """What the watch asks of `rustosd.devices.manager.DeviceManager`."""

    held: Mapping[str, Any]

    async def appeared(self, bdf: str) -> Any:
        """A device is there: take it if a rule means it."""

    def vanished(self, bdf: str) -> None:
        """The device is no longer there."""

    def lost(self, bdf: str, reason: str) -> None:
        """The device is there and does not work: let go of it."""


class Watch:
    """Listens to the kernel for a device manager, on the running loop. `close` it before the manager.

    It begins with `start`, or with the first device: a daemon without devices need not hear of any.
    """

    def __init__(self, devices: Devices, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._devices = devices
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._started = False
        self._uevents: UeventSocket | None = None
        self._kernel_log: KernelLog | None = None
        self._tracker = Tracker({})
        self._timer: asyncio.TimerHandle | None = None
        self._appeared: set[str] = set()                    # and not yet looked at
        self._taking: dict[str, asyncio.Task[None]] = {}    # both no more than the tracker's functions
        self._faults = _Tally(FAULTS, FAULTS_S)
        self._errors = _Tally(RESETS, RESETS_S)

    def start(self) -> None:
        """Listen from now on, if that was not done. What the host does not let us hear is logged, and the rest works."""
        if self._started:
            return
        self._started = True
        try:
            self._uevents = UeventSocket()
            self._tracker = Tracker(present())      # after the socket: what comes in between is heard
            self._loop.add_reader(self._uevents.fileno(), self._on_uevents)
        except OSError as error:
            log.warning("hotplug_unavailable", error=error.strerror, advice="plugged devices need `rustosctl device take`")
        try:
            self._kernel_log = KernelLog()
            self._loop.add_reader(self._kernel_log.fileno(), self._on_kernel_log)
        except OSError as error:
            log.warning("iommu_faults_unreported", error=error.strerror,
                        advice="/dev/kmsg needs CAP_SYSLOG where kernel.dmesg_restrict is set")

    async def close(self) -> None:
        """Listen no more and see what is being taken to its end. May be called twice."""
        for source in (self._uevents, self._kernel_log):
            if source is not None and source.fileno() >= 0:
                self._loop.remove_reader(source.fileno())
                source.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await asyncio.gather(*self._taking.values(), return_exceptions=True)

    def guard(self, held: Held) -> None:
        """Have the kernel tell when this device fails. Call once it is held; the device's end is the end of that, too."""
        self.start()
        if (on_error := getattr(held.device, "on_error", None)) is not None:
            try:
                on_error(lambda: self._on_pcie_error(held))
            except DeviceError as error:        # it works all the same
                log.warning("pcie_errors_unreported", device=held.bdf, error=str(error))

    def samples(self) -> Iterator[Sample]:
        """For metrics: what was heard, and what became of it."""
        uevents = self._uevents.counts if self._uevents else {}
        for ending, count in sorted(uevents.items()):
            yield Sample("rustos_hotplug_messages_total", "counter", "Kernel messages about devices by how they ended.", count,
                         {"ended": ending})
        for news, count in sorted(self._tracker.counts.items()):
            yield Sample("rustos_hotplug_changes_total", "counter", "What has happened to PCI devices.", count, {"news": news})
        for name, text, tally in (("rustos_device_iommu_faults_total", "Accesses the IOMMU has stopped.", self._faults),
                                  ("rustos_device_pcie_errors_total", "Uncorrectable PCIe errors.", self._errors)):
            for bdf in {*self._devices.held, *tally.totals}:
                yield Sample(name, "counter", text, tally.totals[bdf], {"device": bdf})

    # Plugged and unplugged.

    def _on_uevents(self) -> None:
        assert self._uevents is not None
        events, lost = self._uevents.read()
        now = self._clock()
        for event in events:
            self._hear(self._tracker.event(now, event))
        if lost:
            log.warning("uevents_lost", advice="sysfs was read again")
            self._hear(self._tracker.rescan(now, present()))
        self._arm()

    def _on_timer(self) -> None:
        self._timer = None
        self._hear(self._tracker.advance(self._clock()))
        self._arm()

    def _arm(self) -> None:
        due = self._tracker.wake_at()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer = self._loop.call_later(max(0, due - self._clock()) / 1e9, self._on_timer)

    def _hear(self, told: list[Tell]) -> None:
        for each in told:
            log.debug(f"device_{each.news.value}", device=each.bdf, driver=each.driver)
            if each.news is News.APPEARED:
                self._appeared.add(each.bdf)
                if each.bdf not in self._taking:
                    self._taking[each.bdf] = self._loop.create_task(self._take(each.bdf))
            elif each.news is News.VANISHED:
                self._devices.vanished(each.bdf)

    async def _take(self, bdf: str) -> None:
        """Take it if it is to be taken; once more if it has left and come back meanwhile."""
        while bdf in self._appeared:
            self._appeared.discard(bdf)
            since = self._clock()
            try:
                if await self._devices.appeared(bdf) is not None:
                    log.info("plugged_device_runs", device=bdf, after_ms=(self._clock() - since) // 1_000_000)
            except Exception:
                log.exception("plugged_device_failed", device=bdf)
        del self._taking[bdf]

    # Failing.

    def _on_pcie_error(self, held: Held) -> None:
        """An uncorrectable error of its link or of itself: a reset is what there is against it."""
        if held.state != "running":
            return
        few = self._errors.count(held.bdf, self._clock())
        log.error("pcie_error", device=held.bdf, total=self._errors.totals[held.bdf], advice="`dmesg` has the details (AER)")
        if not few:
            self._devices.lost(held.bdf, f"more than {RESETS} PCIe errors in {RESETS_S:.0f} s, so look at its seat and cable")
            return
        if (reset := getattr(held.driver, "reset", None)) is None:
            self._devices.lost(held.bdf, "its requests may have been lost to a PCIe error")
            return
        try:
            reset()
        except DeviceError as error:
            self._devices.lost(held.bdf, f"after a PCIe error it could not be reset ({error})")
        else:
            log.warning("device_reset", device=held.bdf, reason="a PCIe error")

    # Reaching too far.

    def _on_kernel_log(self) -> None:
        assert self._kernel_log is not None
        for record in self._kernel_log.read():
            if (fault := iommu_fault.parse(record.text)) is not None and fault.bdf in self._devices.held:
                self._on_fault(fault)

    def _on_fault(self, fault: IommuFault) -> None:
        """One of ours has reached for memory that nobody gave it. The kernel tells of some ten in five seconds."""
        if self._faults.count(fault.bdf, self._clock()):
            log.error("iommu_fault", device=fault.bdf, access=fault.access.value, address=hex(fault.address),
                      reason=fault.reason, total=self._faults.totals[fault.bdf])


class _Tally:
    """How often something has happened to each device, and whether it is still few times in a while."""

    def __init__(self, few: int, while_s: float) -> None:
        self.totals: Counter[str] = Counter()
        self._few, self._while_ns = few, round(while_s * 1e9)
        self._recent: dict[str, tuple[int, int]] = {}       # since when, how many

    def count(self, bdf: str, now: int) -> bool:
        """Once more; whether these are still few."""
        if bdf not in self.totals and len(self.totals) >= MOST_REMEMBERED:
            oldest = next(iter(self.totals))
            del self.totals[oldest]
            self._recent.pop(oldest, None)
        self.totals[bdf] += 1
        since, number = self._recent.get(bdf, (now, 0))
        if now - since >= self._while_ns:
            since, number = now, 0
        self._recent[bdf] = since, number + 1
        return number < self._few
