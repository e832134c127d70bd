"""Figures of the disks behind AHCI controllers: for metrics and for health notes, from what is known already."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from drivers.ahci.states import State
from rustosd.disk_health import DiskState, PortState
from rustosd.services.base import Sample

if TYPE_CHECKING:
    from rustosd.devices.sata import SataController

_PENDING: Final = 197
_ERRORS: Final = {"errors_device": "device", "errors_link": "link", "errors_bus": "bus", "timeouts": "timeout"}
_MEASURES: Final = {"recoveries": "restart", "resets": "reset", "slowdowns": "slower link", "queuing_off": "no queuing"}


def disk_states(controllers: "Iterable[SataController]") -> list[DiskState]:
    """Every disk, with what it said last."""
    rows = []
    for controller in controllers:
        for disk in controller.driver.disks:
            found = controller.health.get(disk.name)
            if found is None:
                rows.append(DiskState(disk.name, disk.identity.model))
            else:
                rows.append(DiskState(disk.name, disk.identity.model, found.healthy, found.celsius,
                                      [attribute.name for attribute in found.attributes if attribute.failed],
                                      (found.raw(_PENDING) or 0) & 0xFFFF_FFFF))
    return rows


def port_states(controllers: "Iterable[SataController]") -> list[PortState]:
    """Every port."""
    return [PortState(port.name, port.reason if port.state is State.FAILED else "", port.ladder.speed_limit,
                      not port.ladder.queuing)
            for controller in controllers for port in controller.driver.ports]


def samples(controllers: "Iterable[SataController]") -> Iterator[Sample]:
    """For Prometheus; labels are disks and ports, of which a controller has few."""
    controllers = list(controllers)
    for disk in disk_states(controllers):
        labels = {"disk": disk.name}
        if disk.celsius is not None:
            yield Sample("rustos_disk_temperature_celsius", "gauge", "What the disk's own sensor says.", disk.celsius, labels)
        if disk.healthy is not None:
            yield Sample("rustos_disk_healthy", "gauge", "1 while SMART says that the disk will last.",
                         float(disk.healthy and not disk.failed), labels)
            yield Sample("rustos_disk_pending_sectors", "gauge", "Sectors that the disk could not read.",
                         disk.pending_sectors, labels)
    for controller in controllers:
        for port in controller.driver.ports:
            yield from _of_port(port)


def _of_port(port: Any) -> Iterator[Sample]:
    labels = {"port": port.name}
    yield Sample("rustos_disk_port_up", "gauge", "1 while a device at the port works.", float(port.state > State.ABSENT),
                 labels)
    for name, kind in _ERRORS.items():
        yield Sample("rustos_disk_errors_total", "counter", "Errors, by whose they were.", port.counts[name],
                     labels | {"kind": kind})
    for name, kind in _MEASURES.items():
        yield Sample("rustos_disk_measures_total", "counter", "What was done about errors.", port.counts[name],
                     labels | {"measure": kind})
    yield Sample("rustos_disk_plugs_total", "counter", "Times that the link came or went.", port.counts["plugs"], labels)
