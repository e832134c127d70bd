"""What an operator can ask about disks behind controllers of ours and have them do, besides reading and writing."""

import time
from collections.abc import Iterator
from typing import Any, Final

import structlog

from drivers.errors import DeviceError
from rustosd.control import sata_protocol as p
from rustosd.control.base import Done, Nothing
from rustosd.control.device_operations import DeviceCore
from rustosd.control.disk_protocol import DiskName
from rustosd.control.server import OperationFailed

log = structlog.get_logger(__name__)

_ERRORS: Final = {"errors_device": "device", "errors_link": "link", "errors_bus": "bus", "timeouts": "timeout"}
_MEASURES: Final = {"recoveries": "restart", "resets": "reset", "slowdowns": "slower_link", "queuing_off": "no_queuing"}
_GENERATIONS: Final = (1, 2, 3)


class SataOperations:
    """The methods of `sata_protocol.METHODS`. `_find` is that of `DiskOperations`."""

    core: DeviceCore
    _find: Any

    async def disk_ports(self, _: Nothing) -> list[p.DiskPort]:
        return [_port(port) for sata in self._controllers() for port in sata.driver.ports]

    async def disk_drive(self, which: DiskName) -> p.Drive:
        sata, disk = self._drive(which.disk)
        return _drive(disk, sata.health.get(disk.name))

    async def disk_health(self, which: DiskName) -> p.Health:
        sata, disk = self._drive(which.disk)
        return _health(disk.name, await sata.ask_health(disk))

    async def disk_test(self, request: p.DiskTest) -> Done:
        from drivers.ahci import smart
        sata, disk = self._drive(request.disk)
        await sata.perform(disk, smart.start_test(disk, request.kind))
        return Done()

    async def disk_cache(self, request: p.DiskCache) -> Done:
        from drivers.ahci import service
        sata, disk = self._drive(request.disk)
        await sata.perform(disk, service.set_write_cache(disk, request.on))
        return Done()

    async def disk_standby(self, which: DiskName) -> Done:
        from drivers.ahci import service
        sata, disk = self._drive(which.disk)
        await sata.perform(disk, service.standby(disk))
        return Done()

    async def disk_trim(self, request: p.DiskTrim) -> Done:
        from drivers.ahci import service
        from drivers.request import Operation
        _, disk = self._drive(request.disk)
        service.check_token(disk, request.token)
        wrapped = self._find(request.disk)
        if not disk.info.max_trim_sectors:
            raise OperationFailed(f"{disk.name} has no trim")
        most = wrapped.info.max_trim_sectors or request.sectors
        if request.lba + request.sectors > wrapped.info.sectors:
            raise OperationFailed(f"{disk.name} has {wrapped.info.sectors} sectors: it ends before sector "
                                  f"{request.lba + request.sectors}; nothing was trimmed")
        log.info("disk_trim_begins", disk=disk.name, lba=request.lba, sectors=request.sectors)
        for lba in range(request.lba, request.lba + request.sectors, most):
            await wrapped.submit(Operation.TRIM, lba, min(most, request.lba + request.sectors - lba))
        return Done()

    async def disk_erase(self, request: p.DiskErase) -> Done:
        from drivers.ahci import service
        sata, disk = self._drive(request.disk)
        log.info("disk_erase_begins", disk=disk.name, enhanced=request.enhanced)
        await sata.perform(disk, service.erase(disk, request.token, enhanced=request.enhanced))
        log.info("disk_erased", disk=disk.name)
        return Done()

    async def disk_retry(self, which: p.PortName) -> Done:
        for sata in self._controllers():
            if (port := sata.port(which.disk)) is not None:
                port.try_again(time.monotonic_ns())
                sata.look()
                return Done()
        known = ", ".join(port.name for sata in self._controllers() for port in sata.driver.ports)
        raise OperationFailed(f"there is no port {which.disk}; {f'there is {known}' if known else 'no controller is ours'}")

    def _controllers(self) -> Iterator[Any]:
        devices = self.core.devices
        if devices is not None:
            for held in devices.held.values():
                if getattr(held, "sata", None) is not None:
                    yield held.sata

    def _has_drive(self, name: str) -> bool:
        """Whether a disk of this name is behind a controller of ours."""
        return any(disk.name == name for sata in self._controllers() for disk in sata.driver.disks)

    def _drive(self, name: str) -> tuple[Any, Any]:
        """The controller's loop side and the drive of a disk. Raises OperationFailed."""
        found = self._find(name).info.name
        for sata in self._controllers():
            for disk in sata.driver.disks:
                if disk.name == found:
                    return sata, disk
        raise OperationFailed(f"{found} is no drive behind a controller of ours, and only those know more than to read "
                              "and write; see: rustosctl disk ports")


def _port(port: Any) -> p.DiskPort:
    now = port.adapter.clock()
    return p.DiskPort(
        name=port.name, state=port.state.name.lower(), reason=port.reason,
        disks=[disk.name for disk in port.disks if not disk.gone],
        kind=port.attached.kind if port.attached is not None else "", generation=_generation(port),
        speed_limit=port.ladder.speed_limit or None, queuing=port.ladder.queuing,
        link_power=port.attached.link_power.value if port.attached is not None else "active",
        errors={name: port.counts[key] for key, name in _ERRORS.items()},
        measures={name: port.counts[key] for key, name in _MEASURES.items()},
        events=[p.PortEvent(age_s=(now - event.at_ns) / 1e9, what=event.what, why=event.why) for event in port.events])


def _generation(port: Any) -> int | None:
    """Of the link; None when there is none."""
    try:
        speed = int(port.port.regs.SSTS.read()) >> 4 & 0xF
    except (DeviceError, OSError):
        return None
    return speed if speed in _GENERATIONS else None


def _drive(disk: Any, health: Any) -> p.Drive:
    found, life = disk.identity, disk.life
    own = found.security
    words = [word for word, so in (("frozen", own.frozen or disk.frozen), ("locked", own.locked), ("password set", own.enabled),
                                   ("enhanced erase", own.enhanced)) if so]
    trim = "none" if not disk.info.max_trim_sectors else "queued" if found.queued_trim else "plain"
    return p.Drive(
        disk=disk.name, serial=found.serial, wwn=found.wwn, form_factor=found.form_factor,
        rotation_rpm=found.rotation_rpm or None, fastest_generation=found.fastest or None, generation=_generation(life),
        aligned_at=found.aligned_at, link_power=life.attached.link_power.value if life.attached is not None else "active",
        write_cache=disk.write_cache if found.has_write_cache else None, trim=trim, after_trim=found.trim_is or "unknown",
        security=", ".join(words) or ("open" if own.supported else "none"),
        healthy=None if health is None else health.healthy, celsius=None if health is None else health.celsius,
        errors={name: life.counts[key] for key, name in _ERRORS.items()})


def _health(name: str, found: Any) -> p.Health:
    return p.Health(
        disk=name, healthy=found.healthy, celsius=found.celsius, hours=found.hours, error_count=found.error_count,
        test=found.test, test_left_percent=found.test_left_percent, short_minutes=found.short_minutes,
        long_minutes=found.long_minutes,
        attributes=[p.Attribute(number=each.number, name=each.name, value=each.value, worst=each.worst,
                                threshold=each.threshold, raw=each.raw, prefailure=each.prefailure, failed=each.failed)
                    for each in found.attributes],
        tests=[p.SelfTest(kind=each.kind, result=each.result, hours=each.hours) for each in found.tests])
