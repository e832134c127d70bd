"""What the daemon tells of itself: to the operations of the control socket, to metrics, to the status page.

`Daemon` puts it together and runs it; here is only what is read from it.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rustosd import about, faults, health, metrics
from rustosd.announcement import NBD_PORT, announce, in_url
from rustosd.control.names import version
from rustosd.control.upkeep_protocol import About
from rustosd.devices import sata_figures
from rustosd.devices.manager import Held
from rustosd.devices.manager import interfaces as device_interfaces
from rustosd.disk_health import DiskState, PortState
from rustosd.health import Note
from rustosd.pinger import Answer
from rustosd.services.base import Sample
from rustosd.status import document
from rustosd.status.recorder import resident_octets

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from netstack.sockets import AsyncStack
    from netstack.stack import Stack
    from rustosd.config import Config
    from rustosd.crash import CrashBox
    from rustosd.devices.manager import DeviceManager
    from rustosd.devices.watch import Watch
    from rustosd.faults import Faults
    from rustosd.handoff import Handoff
    from rustosd.hostnet import HostTap
    from rustosd.nbd.exports import Exports
    from rustosd.pinger import Pinger
    from rustosd.policy import Subject
    from rustosd.programs import Programs
    from rustosd.pump import Pump
    from rustosd.reconfigure import Reconfigurer
    from rustosd.services.base import Service
    from rustosd.status.document import Reporter
    from rustosd.storage import Storage
    from rustosd.supervisor import Supervisor
    from rustosd.swap.watch import SwapWatch

class Facts:
    """Half of `Daemon`: the `Core` of `rustosd.control.operations`, and the rows of the status page and the metrics."""

    config: Config
    stack: Stack
    pump: Pump
    pinger: Pinger
    network: AsyncStack
    devices: DeviceManager
    watch: Watch
    storage: Storage
    handoff: Handoff | None
    programs: Programs
    exports: Exports | None
    swap_watch: SwapWatch
    taps: dict[str, HostTap]
    reporter: Reporter
    reconfigurer: Reconfigurer
    crashes: CrashBox
    faults: Faults
    supervisor: Supervisor
    metrics: CollectorRegistry
    running_services: list[Service]
    host_services: list[Service]        # on the kernel's sockets
    started_at: float

    # rustosd.control.operations.Core

    def notes(self) -> list[Note]:
        return self.reporter.notes()

    def upkeep(self) -> health.Upkeep:
        return health.Upkeep(self.reconfigurer.failed, [change.key for change in self.reconfigurer.waiting],
                             [report.name for report in self.crashes.reports()], self.programs.troubles(),
                             self.faults.repeated())

    def about(self) -> About:
        return about.about(version(), time.monotonic() - self.started_at, self.reconfigurer.path, self.supervisor.listens)

    def kick(self) -> None:
        self.pump.kick()

    def nic_facts(self, name: str) -> Mapping[str, Any]:
        if (tap := self.taps.get(name)) is not None:
            return {"kind": "tap", "rx_dropped": tap.nic.statistics()["rx_dropped"]}
        if (held := device_interfaces(self.devices.held.values()).get(name)) is not None:
            return {"kind": type(held.driver).__name__.lower(), "rx_dropped": held.driver.statistics()["rx_dropped"]}
        return {}

    def disk_states(self) -> list[DiskState]:
        return sata_figures.disk_states(self._sata_controllers())

    def port_states(self) -> list[PortState]:
        return sata_figures.port_states(self._sata_controllers())

    def _sata_controllers(self) -> list[Any]:
        return [held.sata for held in self.devices.held.values() if held.sata is not None]

    def nic_details(self, name: str) -> Mapping[str, Any]:
        if (tap := self.taps.get(name)) is not None:
            return {"kind": "tap", "statistics": tap.nic.statistics()}
        held = device_interfaces(self.devices.held.values()).get(name)
        return {} if held is None else _device_details(held)

    def resident_octets(self) -> int:
        return resident_octets()

    @property
    def users(self) -> Mapping[int, Any]:
        return self.network.connections

    def _device_disks(self) -> Iterator[Any]:
        for held in self.devices.held.values():
            yield from held.disks.values()

    def disk_troubles(self) -> list[tuple[str, str, str]]:
        return list(self.storage.troubles())

    def socket_usage(self) -> dict[str, int]:
        return {} if self.handoff is None else self.handoff.usage()

    def swap_troubles(self) -> list[tuple[str, str, str]]:
        return list(self.swap_watch.troubles())

    def swap_export(self, name: str) -> tuple[str, int]:
        """The socket where an export is served to this machine, and its octets. Raises OSError."""
        server = self.exports.server if self.exports is not None else None
        path = next((place for place in server.places if place.startswith("/")), None) if server is not None else None
        if server is None or path is None:
            raise OSError(errno.ENOENT, f"swap on export {name} needs the NBD server and its unix socket: see [nbd]")
        if name not in server.served:
            raise OSError(errno.ENOENT, f"there is no export {name} for swap; add it: rustosctl disk export DISK --name {name}")
        return path, server.served[name].export.octets

    def gone_devices(self) -> list[tuple[str, str]]:
        return [(held.bdf, held.reason) for held in self.devices.held.values() if held.state == "gone"]

    def services(self) -> Iterable[str]:
        nbd = self.exports.server.port if self.exports is not None else 0
        return [f"{service.name}/{service.port}" for service in self.running_services] + ([f"nbd/{nbd}"] if nbd else [])

    def nbd_uris(self) -> list[str]:
        if self.exports is None:
            return []
        server = self.exports.server
        hosts = self.own_addresses() if server.port else []
        port = "" if server.port == NBD_PORT else f":{server.port}"
        return [f"nbd://{in_url(host)}{port}/" for host in hosts] + server.uris()

    async def ping(self, address: str, identifier: int, sequence: int, octets: int, timeout_s: float) -> Answer | None:
        return await self.pinger.ping(address, identifier, sequence, octets, timeout_s)

    def open_session(self, pid: int, subject: Subject) -> socket.socket:
        if self.handoff is None or not self.config.sockets.enabled:
            raise OSError(95, "sockets for other processes are switched off: enabled = false under [sockets]")
        return self.handoff.open_session(pid, subject)

    # what the HTTP service shows

    def _service_samples(self) -> Iterable[Any]:
        for service in (*self.running_services, *self.host_services):
            yield from service.statistics()
        if self.handoff is not None:
            yield from self.handoff.statistics()
        if self.exports is not None:
            yield from self.exports.server.statistics()
        yield from self.programs.samples()
        yield from self.watch.samples()
        yield from faults.samples(self.faults, Sample)
        yield from sata_figures.samples(self._sata_controllers())

    def _exposition(self) -> tuple[bytes, str]:
        if not self.config.metrics.enabled:
            return b"# metrics are switched off: enabled = false under [metrics]\n", metrics.CONTENT_TYPE
        return metrics.exposition(self.metrics), metrics.CONTENT_TYPE

    def _service_rows(self) -> list[document.Service]:
        host = next(iter(self.own_addresses()), "this host")
        url = f"http://{in_url(host)}:{self.config.service.http.port}".removesuffix(":80")
        tries = {"echo": f"nc {host} {{}}", "iperf3": f"iperf3 -c {host} -p {{}}",
                 "http": f"curl -o /dev/null {url}/bytes/100000000"}
        return [document.Service(service.name, f"port {service.port}", service.connections(),
                                 tries[service.name].format(service.port))
                for service in self.running_services] + self._nbd_row()

    def _nbd_row(self) -> list[document.Service]:
        if self.exports is None or not (uris := self.nbd_uris()):
            return []
        server = self.exports.server
        return [document.Service("nbd", f"port {server.port}" if server.port else server.places[0], server.connections(),
                                 f"nbdinfo {uris[0]}")]

    def own_addresses(self) -> list[str]:
        """Where we can be reached: configured, taken over, or added since."""
        hosts = [ipaddress.ip_interface(row["address"]).ip for row in self.stack.addresses()]
        return [str(host) for host in hosts if not host.is_loopback and not host.is_link_local]

    def interface_names(self) -> list[str]:
        return [*self.taps, *device_interfaces(self.devices.held.values())]

    def index_of(self, name: str) -> int:
        """The stack's number for an interface that is there."""
        return next(row["index"] for row in self.stack.interfaces() if row["name"] == name)

    def announcement(self) -> str:
        held = device_interfaces(self.devices.held.values())
        behind = [*self.taps, *(f"{name} ({one.bdf}, until now {one.before}'s)" if one.before else f"{name} ({one.bdf})"
                                for name, one in held.items())]
        return announce(self.own_addresses(), behind, self.config)


def _device_details(held: Held) -> dict[str, Any]:
    """What a NIC's driver knows; every driver tells its statistics, not every one of the rest."""
    driver = held.driver
    link, rings = getattr(driver, "link", None), getattr(driver, "rings", None)
    chip = getattr(driver, "chip", None)
    return {
        "kind": type(driver).__name__.lower(), "device": held.bdf, "backend": held.backend,
        "model": None if chip is None else f"Intel {chip.name}",
        "speed_mbps": link[0] if link else None, "duplex": ("full" if link[1] else "half") if link else None,
        "rings": dict(zip(("receive", "transmit"), rings, strict=True)) if rings else {},
        "interrupts": getattr(driver, "interrupt_kind", None), "moderation_us": getattr(driver, "moderation_us", None),
        "statistics": driver.statistics(),
    }
