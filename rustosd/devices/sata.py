"""What the loop does for an AHCI controller besides its disks' requests: disks that come and go, its log, SMART, commands."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import structlog

from drivers.ahci import service, smart
from drivers.ahci.controller import AhciController
from drivers.ahci.disk import AhciDisk
from drivers.ahci.life import AhciPort
from drivers.ahci.smart import Smart
from drivers.ahci.steps import Procedure
from drivers.errors import DeviceError

HEALTH_S: Final = 1800.0
"""How often a disk is asked for its health. One that stands still is left alone."""
FIRST_HEALTH_S: Final = 5.0
_STANDING: Final = "standby"
_QUIET: Final = frozenset({"tried again"})
"""Events that are no trouble."""

log = structlog.get_logger(__name__)


class SataController:
    """The loop's side of a controller. `close` it before the disks, and these before the controller."""

    def __init__(self, driver: AhciController, loop: asyncio.AbstractEventLoop,
                 on_disk: Callable[[AhciDisk, bool], None]) -> None:
        """`on_disk` is called, on the loop, with each disk that comes (True) or leaves."""
        self.driver = driver
        self.health: dict[str, Smart] = {}
        """What a disk said last, by its name."""
        self._loop, self._on_disk = loop, on_disk
        self._logged = {port.index: 0 for port in driver.ports}
        self._timer: asyncio.TimerHandle | None = None
        self._health_timer: asyncio.TimerHandle | None = loop.call_later(FIRST_HEALTH_S, self._ask_all)
        self._closed = False
        self._fd = driver.fileno()
        driver.on_disk = self._changed
        loop.add_reader(self._fd, self.look)
        self.look()

    def find(self, name: str) -> AhciDisk:
        """The disk of this name. Raises DeviceError when it has left."""
        for disk in self.driver.disks:
            if disk.name == name:
                return disk
        raise DeviceError(name, "there is no such disk any more: was it unplugged?")

    def port(self, name: str) -> AhciPort | None:
        """The port of this name."""
        return next((port for port in self.driver.ports if port.name == name), None)

    async def perform(self, disk: AhciDisk, procedure: Procedure) -> Any:
        """Have a disk carry out commands of its own; what comes of it. Raises DeviceError."""
        future: asyncio.Future = self._loop.create_future()

        def ended(value: Any, error: Exception | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)
        disk.perform(procedure, ended)
        return await future

    async def ask_health(self, disk: AhciDisk) -> Smart:
        """What it says now, which is kept. Raises DeviceError."""
        found = await self.perform(disk, smart.read(disk))
        self.health[disk.name] = found
        return found

    def close(self) -> None:
        """Look after it no more, and stop all its ports at once: its disks, closed one by one, need not wait for each other.

        What was written must have been flushed. May be called twice.
        """
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._fd)
        for timer in (self._timer, self._health_timer):
            if timer is not None:
                timer.cancel()
        self.driver.on_disk = lambda disk, there: None
        self.driver.stop(flush=False)

    def look(self) -> None:
        """See to the ports without disks, and to the log; then again in time."""
        if self._closed:
            return
        self.driver.tend()
        for port in self.driver.ports:
            self._log(port)
        if self._timer is not None:
            self._timer.cancel()
        at = self.driver.wake_at()
        if at is not None:
            self._timer = self._loop.call_later(max(0.001, (at - time.monotonic_ns()) / 1e9), self.look)

    def _log(self, port: AhciPort) -> None:
        new = min(port.event_count - self._logged[port.index], len(port.events))
        self._logged[port.index] = port.event_count
        for event in list(port.events)[len(port.events) - new:]:
            tell = log.info if event.what in _QUIET else log.warning
            tell("disk_port_event", port=port.name, what=event.what, why=event.why)

    def _changed(self, disk: AhciDisk, there: bool) -> None:
        self._loop.call_soon(self._tell, disk, there)

    def _tell(self, disk: AhciDisk, there: bool) -> None:
        if self._closed:
            return
        if there:
            log.info("disk_came", disk=disk.name, model=disk.identity.model, serial=disk.identity.serial)
            self._loop.call_later(FIRST_HEALTH_S, self._ask, disk)
        else:
            self.health.pop(disk.name, None)
            log.error("disk_left", disk=disk.name, serial=disk.identity.serial, reason=disk.gone)
        self._on_disk(disk, there)

    def _ask_all(self) -> None:
        self._health_timer = self._loop.call_later(HEALTH_S, self._ask_all)
        for disk in self.driver.disks:
            self._ask(disk)

    def _ask(self, disk: AhciDisk) -> None:
        """For its health, unless that would wake it."""
        if self._closed or disk.gone or not disk.identity.has_smart or disk.pack is not None:
            return

        def ended(found: Smart | None, error: Exception | None) -> None:
            if error is not None:
                log.warning("disk_health_unknown", disk=disk.name, error=str(error))
            elif found is not None:
                self.health[disk.name] = found
        disk.perform(_unless_standing(disk), ended)


def _unless_standing(disk: AhciDisk) -> Procedure:
    if (yield from service.power_mode(disk)) == _STANDING:
        return None
    return (yield from smart.read(disk))
