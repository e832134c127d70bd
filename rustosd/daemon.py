"""The daemon: builds everything from a configuration, runs until told to stop, and gives everything back.

What is started is put on one stack of things to undo, so that every way out (a signal, an error half-way through the
start, a crash of a part) takes the same road back, last first.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
import uvloop
from prometheus_client.core import Metric

from drivers.disk import Disk
from netstack import counters as counter_table
from netstack import verdict as verdict_table
from netstack.sockets import AsyncStack
from netstack.stack import Stack
from rustosd import block_metrics, health, metrics, sched_metrics
from rustosd import log as logging
from rustosd.audit import AuditLog
from rustosd.capture.captures import Captures
from rustosd.config import Config, InterfaceConfig, RouteConfig, SocketsConfig, to_toml
from rustosd.control.groups import groups_of
from rustosd.control.names import LOOPBACK_INDEX, version
from rustosd.control.operations import Operations
from rustosd.control.server import ControlServer
from rustosd.crash import REPORT_LINES, CrashBox
from rustosd.devices.kernel import undo as give_back
from rustosd.devices.manager import DeviceManager
from rustosd.devices.watch import Watch
from rustosd.errors import REFUSALS
from rustosd.facts import Facts
from rustosd.faults import Faults
from rustosd.handoff import Handoff, Limits
from rustosd.hostnet import HostTap
from rustosd.journal import DEFAULT_PATH, Journal
from rustosd.log_output import Output
from rustosd.memory_metrics import MemoryWatch
from rustosd.nbd import tls as nbd_tls
from rustosd.nbd.exports import Exports
from rustosd.nbd.negotiation import Tls
from rustosd.nbd.server import Limits as NbdLimits
from rustosd.nbd.server import NbdServer
from rustosd.pinger import Pinger
from rustosd.policy import Policies
from rustosd.processes import Processes
from rustosd.programs import Programs
from rustosd.pump import Pump
from rustosd.reconfigure import Reconfigurer, ReloadFailed
from rustosd.scheduling.scheduler import Scheduler
from rustosd.services.base import Service
from rustosd.services.echo import EchoService
from rustosd.services.http import HttpService, UnixHttpService
from rustosd.services.iperf3 import Iperf3Service
from rustosd.status.document import Reporter
from rustosd.status.site import site
from rustosd.storage import Storage
from rustosd.supervisor import Supervisor
from rustosd.swap.kernel import KernelSwap
from rustosd.swap.places import Places
from rustosd.swap.watch import SwapWatch
from rustosd.tracer import Tracer

HOST_CLIENTS = 64
"""Connections at once to the metrics' own port and socket."""
GRACE_S = 3.0
"""How long connections may take to end by themselves once the daemon is told to stop."""
LINK_PATIENCE_S = 30.0
"""How long a service manager waits for the first link. A copper link takes some 3 s; without any the daemon serves all the
same, and takes a cable later."""
LINK_LOOK_S = 0.1
UPKEEP_S = 1.0
FIGURES_EVERY = 10
"""Rounds of upkeep between two notes of the figures, for a report should the daemon die."""
GATHER_EVERY: Final = 5
"""And between two questions to all programs what they have spent, and two looks whether rustosctl finds us."""

TAP_RETRY_S: Final = 1.0
TAP_RETRY_MOST_S: Final = 60.0
"""How long to wait before a TAP that was deleted is tried again, twice as long after each failure."""

StartFailed: Final = REFUSALS
"""What keeps a daemon from starting; each carries one line for the operator."""

log = structlog.get_logger(__name__)


class Daemon(Facts):
    """A stack with its devices, services and control socket, as one configuration says: the `Core` of operations."""

    devices: DeviceManager
    """Made when the daemon starts, for it needs the journal."""
    watch: Watch
    control: ControlServer
    journal: Journal
    late_interfaces: contextlib.AsyncExitStack
    """Closes the interfaces that came after the start."""

    def __init__(self, config: Config, supervisor: Supervisor | None = None, logs: logging.Logs | None = None,
                 path: Path | None = None):
        """`path`: the file that the configuration is from; `logs`: where log lines go, if `log.configure` was called."""
        self.config = config
        self.supervisor = supervisor or Supervisor({})
        self.logs = logs or logging.Logs(sys.stderr)
        self.verdict_help = dict(zip(verdict_table.LABELS, verdict_table.HELP, strict=True))
        self.counter_help = dict(zip(counter_table.LABELS, counter_table.HELP, strict=True))
        self.stack = _stack(config)
        self.taps: dict[str, HostTap] = {}
        self.running_services: list[Service] = []
        self.host_services: list[Service] = []      # on the kernel's sockets
        self.retired_services: list[Service] = []   # with connections that were there before they were switched off
        self.stop_asked = asyncio.Event()
        self.stop_at_once = asyncio.Event()
        self.started_at = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self.pump = Pump(self._loop, self.stack, self._on_events, busy_poll_us=config.pump.busy_poll_us,
                         coalesce_us=config.pump.coalesce_us)
        self.network = AsyncStack(self.stack, self._loop, self.pump.kick)
        self.storage = Storage(self._loop, self._device_disks)
        self.handoff: Handoff | None = None
        self.exports: Exports | None = None
        self.captures = Captures(self.stack, self.pump, f"rustosd {version()}")
        self.audit = AuditLog(Path(config.audit.file or Path(config.crash.directory) / "audit.jsonl"), config.audit.octets,
                              config.audit.keep)
        self.faults = Faults(self.audit, Path(config.crash.directory), config.crash.keep_programs)
        self.processes = Processes(self.faults)
        self.scheduler = Scheduler(config.scheduler)
        self.policies = Policies()
        self.programs = Programs(config.control.socket, self._interfaces)
        self.memory_watch = MemoryWatch(self.processes, self.programs)
        self.swap_places = Places(lambda: self.config.swap, self.swap_export,
                                  lambda: self.config.scheduler.keep_awake)
        self.swap_watch = SwapWatch(self.processes)
        self.kernel_swap = KernelSwap(self.swap_export, lambda: self.journal)
        self.pinger = Pinger(self.stack, self.pump.kick)
        self.tracer = Tracer(self.stack, self.pump.kick, self.pinger)
        self.reporter = Reporter(self, version(), time.monotonic, addresses=self.own_addresses, services=self._service_rows,
                                 list_connections=config.status.connections)
        self.metrics = metrics.registry(metrics.StackCollector(
            self.stack, self.counter_help, version(), self._service_samples, pump=self.pump,
            notes=lambda: health.by_severity(self.reporter.notes()), disks=self._storage_metrics,
            scheduling=lambda: sched_metrics.collect(self.scheduler)))
        self.crashes = CrashBox(Path(config.crash.directory), config.crash.keep, version(), to_toml(config, secrets=False))
        self.reconfigurer = Reconfigurer(self, path)
        self._background: set[asyncio.Task] = set()
        self._started = False
        self._rounds = 0

    async def run(self, announce: bool = True) -> None:
        """Start, serve until asked to stop, give everything back. Raises one of StartFailed when it cannot start."""
        try:
            await self._run(announce)
        except Exception as error:
            if self._started or not isinstance(error, StartFailed):
                self._report_crash(error)
            raise

    async def _run(self, announce: bool) -> None:
        async with contextlib.AsyncExitStack() as undo:
            self._take_signals(undo)
            self._open_crash_box(undo)
            await self._start(undo)
            self._started = True
            log.info("started", version=version(), interfaces=self.interface_names(), services=list(self.services()))
            if announce:
                Output(sys.stdout).write(self.announcement())
            await self._report_ready()
            await self.stop_asked.wait()
            self.supervisor.tell("STOPPING=1")
            log.info("stopping", grace_s=GRACE_S)
        log.info("stopped")

    async def _report_ready(self) -> None:
        """Tell the service manager that we serve, once frames can pass somewhere: a link takes seconds, or has no cable."""
        if not self.supervisor.listens:
            return
        limit = self._loop.time() + LINK_PATIENCE_S
        while not self._links_up() and not self.stop_asked.is_set():
            if self._loop.time() > limit:
                log.warning("no_link", waited_s=LINK_PATIENCE_S, interfaces=self.interface_names())
                break
            await asyncio.sleep(LINK_LOOK_S)
        self._tell_ready()
        if self.supervisor.watchdog_s:
            self.pump.watch(self.supervisor.watchdog_s / 4, self.supervisor.alive)

    def _tell_ready(self) -> None:
        up = ", ".join(self._links_up()) or "no interface yet"
        self.supervisor.tell("READY=1", f"STATUS=serving {' and '.join(self.own_addresses()) or 'no address'} behind {up}")

    def _links_up(self) -> list[str]:
        return [row["name"] for row in self._interfaces() if row["up"]]

    def _interfaces(self) -> list[Any]:
        return [row for row in self.stack.interfaces() if row["index"] != LOOPBACK_INDEX]

    async def _start(self, undo: contextlib.AsyncExitStack) -> None:
        self.journal = undo.enter_context(_journal(Path(self.config.host.journal)))
        self.scheduler.open(self.journal)
        undo.push_async_callback(self.scheduler.close)
        undo.callback(self.pump.close)
        for interface in self.config.interface:
            self.start_tap(interface, undo)
        self.late_interfaces = await undo.enter_async_context(contextlib.AsyncExitStack())
        self.devices = DeviceManager(self.stack, self.pump, self.journal, self.config.device, self.config.route)
        undo.push_async_callback(self.devices.close)
        self.watch = Watch(self.devices)
        self.devices.on_taken = self.watch.guard
        undo.push_async_callback(self.watch.close)
        if self.config.device:
            self.watch.start()      # before the devices: none shall come unseen in between
        await self.devices.start()
        undo.callback(self.storage.close)
        self.storage.open(self.config.disk)
        for route in self.config.route:
            self._add_route(route)
        undo.callback(self.captures.close)
        undo.callback(self.pump.flush)      # while the NICs are still there to carry the last resets away
        undo.callback(self.network.abort)
        undo.callback(self._close_handoff)
        self.set_handoff(self.config.sockets)
        self.control = ControlServer(self.config.control.socket, Operations(self), self.config.control.max_clients,
                                     self.supervisor.socket("control"), groups_of(self.config))
        self.faults.load()
        undo.callback(self.audit.close)
        undo.callback(self.processes.close)
        undo.callback(self.swap_places.close)
        self.swap_watch.start()
        undo.callback(self.swap_watch.stop)
        await self.control.start()
        undo.push_async_callback(self.control.stop)
        undo.push_async_callback(self._stop_services)
        if self.config.nbd.enabled:
            self.exports = Exports(self._nbd_server(undo), self._open_disk)
            undo.push_async_callback(self.exports.stop, GRACE_S)
            await self.exports.start(self.config.export)
            undo.push_async_callback(self.kernel_swap.close)
        for service in self.make_services(self.config):
            await service.start(self.network)
            self.running_services.append(service)
        for service in self.make_host_services(self.config):
            await self.start_on_kernel(service, self.config)
            self.host_services.append(service)
        undo.push_async_callback(self._stop_programs)
        self.programs.start(self.config.program)
        self.reporter.recorder.start(self._loop)
        undo.callback(self.reporter.recorder.stop)
        self._upkeep(undo)
        self.pump.kick()

    def _storage_metrics(self) -> Iterator[Metric]:
        yield from block_metrics.collect(self.storage)
        yield from self.memory_watch.metrics()
        yield from self.swap_watch.metrics()

    def _nbd_server(self, undo: contextlib.AsyncExitStack) -> NbdServer:
        """Listening wherever the configuration says. Raises OSError, ValueError."""
        wanted, secure = self.config.nbd, self.config.nbd.tls
        modes = {"off": Tls.NONE, "optional": Tls.SELECTIVE, "required": Tls.FORCED}
        context = None
        if secure.mode != "off":
            context = nbd_tls.context(secure.certificate, secure.key, secure.client_ca, secure.psk)
        server = NbdServer(self._loop, NbdLimits(wanted.max_connections, wanted.handshake_s, wanted.stalled_s,
                                                 wanted.buffers_octets, wanted.max_request_octets),
                           tls=modes[secure.mode], tls_context=context, busy_poll_us=wanted.busy_poll_us)
        undo.push_async_callback(server.stop, 0.0)      # when what follows fails
        if wanted.port:
            server.listen_stack(self.network, wanted.port)
        beside = str(Path(self.config.control.socket).with_name("nbd.sock"))
        if path := beside if wanted.unix is None else wanted.unix:
            Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            server.listen_unix(Path(path))
        for place in wanted.listen:
            server.listen_tcp(place.host, place.port)
        return server

    def start_tap(self, interface: InterfaceConfig, undo: contextlib.AsyncExitStack) -> None:
        """Make a TAP and its interface of the stack; `undo` takes both away. Raises one of StartFailed."""
        name = str(interface.name)      # plain, as journal and kernel take it
        tap = HostTap(self.journal, name, mtu=interface.mtu, offload=interface.offload,
                      addresses=[cidr.parsed for cidr in interface.kernel_address],
                      mac=interface.mac.octets if interface.mac else None)
        undo.callback(tap.close)
        self.taps[name] = tap
        undo.callback(self.taps.pop, name)
        index = self.stack.add_interface(name, tap.nic.mac, interface.mtu, tap.nic.features)
        undo.callback(self.stack.remove_interface, index)
        self._attach_tap(name, tap, index)
        undo.callback(self.pump.detach, index)
        for cidr in interface.address:
            self.stack.add_address(index, str(cidr))
        for gateway in interface.gateway:
            self.stack.add_route("::/0" if gateway.version == 6 else "0.0.0.0/0", gateway=str(gateway), interface=index)

    def _attach_tap(self, name: str, tap: HostTap, index: int) -> None:
        self.pump.attach(tap.nic, index, on_gone=lambda: self._restore_tap(name, tap, index, TAP_RETRY_S))

    def _restore_tap(self, name: str, tap: HostTap, index: int, retry_s: float) -> None:
        """Somebody has deleted the interface on the host. What is on the stack stays: addresses, routes, connections."""
        wanted = next((interface for interface in self.config.interface if str(interface.name) == name), None)
        if self.taps.get(name) is not tap or wanted is None:
            return
        try:
            tap.make_again([cidr.parsed for cidr in wanted.kernel_address])
        except StartFailed as error:
            log.error("tap_deleted", interface=name, error=str(error), next_try_s=retry_s)
            self._loop.call_later(retry_s, self._restore_tap, name, tap, index, min(2 * retry_s, TAP_RETRY_MOST_S))
        else:
            self._attach_tap(name, tap, index)
            log.warning("tap_made_again", interface=name, advice="somebody deleted it on the host; to be rid of it, take its "
                                                                 "[[interface]] out of the configuration and restart")

    def _add_route(self, route: RouteConfig) -> None:
        """A static route; those over a device's interface come and go with the device."""
        devices = self.config.device
        if route.interface is not None and any(device.name == route.interface for device in devices):
            return
        index = None if route.interface is None else self.index_of(route.interface)
        try:
            self.stack.add_route(str(route.to), gateway=None if route.via is None else str(route.via), interface=index,
                                 metric=route.metric)
        except ValueError as error:
            if not any(device.optional for device in devices):
                raise
            log.warning("route_left_out", to=str(route.to), error=f"{error}; name the device's interface in the [[route]], and "
                                                                  "it is added when the device is there")

    def make_services(self, config: Config) -> list[Service]:
        """Those that a configuration switches on, not started."""
        wanted = config.service
        services: list[Service] = []
        if wanted.echo.enabled:
            services.append(EchoService(port=wanted.echo.port))
        if wanted.iperf3.enabled:
            services.append(Iperf3Service(port=wanted.iperf3.port))
        if wanted.http.enabled:
            services.append(HttpService(port=wanted.http.port, pages=site(self.reporter, self._exposition)))
        return services

    def make_host_services(self, config: Config) -> list[Service]:
        """The status page and metrics again, on the kernel's own sockets, not started."""
        wanted = config.metrics
        pages = site(self.reporter, self._exposition, own_stack=False)
        services: list[Service] = []
        if wanted.listen is not None:
            services.append(HttpService(pages=pages, port=wanted.listen.port, hosts=(wanted.listen.host,), pattern=False,
                                        max_connections=HOST_CLIENTS))
            services[-1].name = "metrics"
        if wanted.socket is not None:
            services.append(UnixHttpService(Path(wanted.socket), "choose another with socket = ... under [metrics]",
                                            pages=pages, max_connections=HOST_CLIENTS))
            services[-1].name = "metrics_unix"
        return services

    async def start_on_kernel(self, service: Service, config: Config) -> None:
        """Raises OSError that says what to do."""
        try:
            await service.start(self._loop)
        except OSError as error:
            if isinstance(service, UnixHttpService):        # says what to do already
                raise
            where, why = config.metrics.listen, os.strerror(error.errno or 0)
            raise OSError(error.errno, f"cannot serve metrics on {where}: {why}; "
                                       "choose another with listen = ... under [metrics]") from None

    def retire(self, service: Service, out_of: list[Service]) -> None:
        """A service that is switched off or replaced: it takes no more connections, and ends with the last it has."""
        out_of.remove(service)
        service.retire()
        self.retired_services = [each for each in (*self.retired_services, service) if each.connections()]

    async def _stop_programs(self) -> None:
        """Before what they use. A second signal ends those at once that take their time."""
        stops = asyncio.ensure_future(self.programs.close())
        impatience = asyncio.ensure_future(self.stop_at_once.wait())
        await asyncio.wait((stops, impatience), return_when=asyncio.FIRST_COMPLETED)
        impatience.cancel()
        if not stops.done():
            self.programs.kill()
            await stops

    async def _stop_services(self) -> None:
        """All at the same time, and at once when a second signal comes."""
        services = (*self.running_services, *self.host_services, *self.retired_services)
        stops = asyncio.gather(*(service.stop(GRACE_S) for service in services), return_exceptions=True)
        impatience = asyncio.ensure_future(self.stop_at_once.wait())
        await asyncio.wait((stops, impatience), return_when=asyncio.FIRST_COMPLETED)
        impatience.cancel()
        stops.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            for outcome in await stops:
                if isinstance(outcome, Exception):
                    log.error("service_stop_failed", error=repr(outcome))
        self.running_services.clear()
        self.host_services.clear()
        self.retired_services.clear()

    def _take_signals(self, undo: contextlib.AsyncExitStack) -> None:
        on_terminal = os.isatty(0)
        for number, act in ((signal.SIGTERM, self.stop), (signal.SIGINT, self.stop),
                            (signal.SIGHUP, lambda: self._on_hangup(on_terminal))):
            self._loop.add_signal_handler(number, act)
            undo.callback(self._loop.remove_signal_handler, number)

    def _on_hangup(self, on_terminal: bool) -> None:
        """Reload, unless it was our terminal that has gone."""
        if on_terminal and not os.isatty(0):
            self.stop()
        elif not self._started or self.stop_asked.is_set():
            log.warning("reload_ignored", reason="the daemon is starting or stopping")
        else:
            self._in_background(self._reload())

    async def _reload(self) -> None:
        self.supervisor.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        with contextlib.suppress(ReloadFailed):     # it is logged, and a health note
            await self.reconfigurer.reload()
        self._tell_ready()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # Upkeep

    def _open_crash_box(self, undo: contextlib.AsyncExitStack) -> None:
        for report in self.crashes.open():
            log.warning("former_run_died", report=str(self.crashes.directory / report.name), reason=report.reason)
        undo.callback(self.crashes.close)
        self.logs.ring.on_line = self.crashes.line
        undo.callback(setattr, self.logs.ring, "on_line", None)

    def _upkeep(self, undo: contextlib.AsyncExitStack) -> None:
        """Once a second: what rate limits held back is told; now and then the figures are put where a crash finds them.

        And programs are asked what they have spent, and it is seen to that rustosctl finds us.
        """
        timer: list[asyncio.TimerHandle] = []

        def round_() -> None:
            timer[:] = [self._loop.call_later(UPKEEP_S, round_)]
            self.logs.tell_repeated()
            if self._rounds % FIGURES_EVERY == 0:
                self.crashes.figures(self.figures())
            if self._rounds % GATHER_EVERY == 0:
                self._in_background(self.scheduler.gather(self.processes))
                self._in_background(self.memory_watch.gather())
                self._in_background(self._keep_control())
            self._rounds += 1

        round_()
        undo.callback(self.logs.tell_repeated, True)
        undo.callback(lambda: timer[0].cancel())

    async def _keep_control(self) -> None:
        """Without the file of its socket the daemon could not be asked anything."""
        try:
            if await self.control.make_again():
                log.warning("control_socket_made_again", path=str(self.control.path), advice="somebody removed the file")
        except OSError as error:
            log.error("control_socket_removed", error=str(error), next_try_s=GATHER_EVERY * UPKEEP_S)

    def figures(self) -> bytes:
        """What is counted now, as JSON."""
        recorder = self.reporter.recorder
        return msgspec.json.encode({"figures": recorder.figures(), "usage": self.stack.tcp.usage(),
                                    "states": self.stack.tcp.states(), "waiting_changes": len(self.reconfigurer.waiting)})

    def _report_crash(self, error: Exception) -> None:
        """Before anything is taken down: the stacks are worth most where it happened."""
        log.error("crashed", error=repr(error), exc_info=error)
        try:
            figures = self.figures()
        except Exception as failure:
            figures = msgspec.json.encode({"figures": f"none: {failure!r}"})
        report = self.crashes.report(error, self.logs.ring.tail(REPORT_LINES), figures)
        if report is not None:
            log.error("crash_reported", report=str(self.crashes.directory / report.name))

    def stop(self) -> None:
        """Ask for a graceful end; asked again, end at once."""
        if self.stop_asked.is_set():
            self.stop_at_once.set()
        self.stop_asked.set()

    def _on_events(self) -> None:
        self.network.dispatch()
        self.pinger.dispatch()
        self.tracer.dispatch()

    async def _open_disk(self, name: str, user: str, read_only: bool) -> Disk:
        """An end of a disk that counts in octets, as NBD does. Raises DeviceError when there is none of that name."""
        client = await self.storage.client(name, user, sector_octets=1, read_only=read_only)
        shared = self.storage.find(name) or self.storage.find(name.rpartition("/p")[0])
        if shared is not None and self.exports is not None:
            shared.on_close = self.exports.disk_closes
        return client

    def set_handoff(self, wanted: SocketsConfig) -> None:
        """Sockets for other processes as a configuration has them. What was handed out stays with who has it."""
        limits = Limits(wanted.max_sockets, wanted.max_sockets_per_process, wanted.buffer_octets)
        if self.handoff is not None:
            self.handoff.set_limits(limits)
        elif wanted.enabled:
            self.handoff = Handoff(self.network, limits, audit=self.audit.write, pump=self.pump)
            self.set_policies(self.config)

    def set_policies(self, config: Config) -> None:
        """What programs may reach. Raises ValueError: there is no user or group of a name."""
        self.policies = Policies(config.policy, {0, os.geteuid()}, self.policies.denied)
        if self.handoff is not None:
            self.handoff.set_policies(self.policies)

    def _close_handoff(self) -> None:
        if self.handoff is not None:
            self.handoff.close()


@contextlib.contextmanager
def _journal(path: Path) -> Iterator[Journal]:
    """The journal, opened, with what a killed daemon left on the host given back. Raises JournalError."""
    directory_is_ours = not path.parent.exists()
    try:
        with Journal(path) as journal:
            for entry in journal.pending.values():
                log.warning("left_by_a_former_run", entry=repr(entry))
            for entry, error in journal.give_back_all(give_back):
                log.error("could_not_give_back", entry=repr(entry), error=str(error))
            yield journal
    finally:
        if directory_is_ours or path.parent == DEFAULT_PATH.parent:
            with contextlib.suppress(OSError):      # somebody else uses it too
                path.parent.rmdir()


def _stack(config: Config) -> Stack:
    limits = config.stack
    return Stack(
        os.urandom(32), now=time.monotonic_ns(), routes=limits.max_routes, neighbors=limits.max_neighbors,
        icmp_errors_per_second=limits.icmp_errors_per_second,
        challenge_acks_per_second=limits.challenge_acks_per_second,
        tcp={"connections": limits.max_connections, "listeners": limits.max_listeners, "embryos": limits.max_half_open,
             "time_wait": limits.max_time_wait, "send_buffer": limits.send_buffer_octets,
             "receive_buffer": limits.receive_buffer_octets, "memory": limits.buffers_octets,
             "time_wait_ns": round(limits.time_wait_s * 1e9)},
        udp={"limit": limits.max_datagram_sockets},
    )


def serve(config: Config, announce: bool = True, logs: logging.Logs | None = None, path: Path | None = None) -> None:
    """Run a daemon on a loop of its own until a signal ends it. Raises one of StartFailed when it cannot start."""
    async def main() -> None:
        with contextlib.closing(Supervisor()) as supervisor:
            await Daemon(config, supervisor, logs, path).run(announce)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
