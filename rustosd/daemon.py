"""The daemon: builds everything from a configuration, runs until told to stop, and gives everything back.

What is started is put on one stack of things to undo, so that every way out (a signal, an error half-way through the
start, a crash of a part) takes the same road back, last first.
"""

import asyncio
import contextlib
import grp
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import structlog
import uvloop

from netstack import counters as counter_table
from netstack import verdict as verdict_table
from netstack.sockets import AsyncStack
from netstack.stack import Stack
from rustosd import hostnet, metrics
from rustosd.config import Config, InterfaceConfig
from rustosd.control.operations import Operations, version
from rustosd.control.server import ControlServer
from rustosd.handoff import Handoff, Limits
from rustosd.hostnet import HostNetworkError, HostTap
from rustosd.journal import DEFAULT_PATH, Journal, JournalError
from rustosd.pinger import Answer, Pinger
from rustosd.pump import Pump
from rustosd.services.base import Service
from rustosd.services.echo import EchoService
from rustosd.services.http import HttpService
from rustosd.services.index_page import About, Entry
from rustosd.services.iperf3 import Iperf3Service

GRACE_S = 3.0
"""How long connections may take to end by themselves once the daemon is told to stop."""

StartFailed: Final = (HostNetworkError, JournalError, OSError, ValueError)
"""What keeps a daemon from starting; each carries one line for the operator."""

log = structlog.get_logger()


class Daemon:
    """A stack with its devices, services and control socket, as one configuration says: the `Core` of operations."""

    def __init__(self, config: Config):
        self.config = config
        self.verdict_help = dict(zip(verdict_table.LABELS, verdict_table.HELP, strict=True))
        self.counter_help = dict(zip(counter_table.LABELS, counter_table.HELP, strict=True))
        self.stack = _stack(config)
        self.taps: dict[str, HostTap] = {}
        self.running_services: list[Service] = []
        self.stop_asked = asyncio.Event()
        self.stop_at_once = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.pump = Pump(self._loop, self.stack, self._on_events, busy_poll_us=config.pump.busy_poll_us)
        self.network = AsyncStack(self.stack, self._loop, self.pump.kick)
        self.handoff: Handoff | None = None
        self.pinger = Pinger(self.stack, self.pump.kick)
        self.metrics = metrics.registry(metrics.StackCollector(
            self.stack, self.counter_help, version(), self._service_samples))

    async def run(self, announce: bool = True) -> None:
        """Start, serve until asked to stop, give everything back. Raises one of StartFailed when it cannot start."""
        async with contextlib.AsyncExitStack() as undo:
            self._take_signals(undo)
            await self._start(undo)
            log.info("started", version=version(), interfaces=list(self.taps), services=list(self.services()))
            if announce:
                print(self.announcement(), flush=True)
            await self.stop_asked.wait()
            log.info("stopping", grace_s=GRACE_S)
        log.info("stopped")

    async def _start(self, undo: contextlib.AsyncExitStack) -> None:
        journal = undo.enter_context(_journal(Path(self.config.host.journal)))
        undo.callback(self.pump.close)
        for interface in self.config.interface:
            self._start_tap(interface, journal, undo)
        for route in self.config.route:
            index = None if route.interface is None else self._index(route.interface)
            self.stack.add_route(str(route.to), gateway=None if route.via is None else str(route.via), interface=index,
                                 metric=route.metric)
        undo.callback(self.network.abort)
        if self.config.sockets.enabled:
            limits = self.config.sockets
            self.handoff = Handoff(self.network, Limits(limits.max_sockets, limits.max_sockets_per_process,
                                                        limits.buffer_octets))
            undo.callback(self.handoff.close)
        control = ControlServer(self.config.control.socket, Operations(self), self.config.control.max_clients,
                                _group_id(self.config))
        await control.start()
        undo.push_async_callback(control.stop)
        undo.push_async_callback(self._stop_services)
        for service in self._services():
            await service.start(self.network)
            self.running_services.append(service)
        self.pump.kick()

    def _start_tap(self, interface: InterfaceConfig, journal: Journal, undo: contextlib.AsyncExitStack) -> None:
        name = str(interface.name)      # plain, as journal and kernel take it
        tap = HostTap(journal, name, mtu=interface.mtu, offload=interface.offload,
                      addresses=[cidr.parsed for cidr in interface.kernel_address],
                      mac=interface.mac.octets if interface.mac else None)
        undo.callback(tap.close)
        self.taps[name] = tap
        index = self.stack.add_interface(name, tap.nic.mac, interface.mtu, tap.nic.features)
        self.pump.attach(tap.nic, index)
        undo.callback(self.pump.detach, index)
        for cidr in interface.address:
            self.stack.add_address(index, str(cidr))
        for gateway in interface.gateway:
            self.stack.add_route("::/0" if gateway.version == 6 else "0.0.0.0/0", gateway=str(gateway), interface=index)

    def _services(self) -> list[Service]:
        wanted = self.config.service
        services: list[Service] = []
        if wanted.echo.enabled:
            services.append(EchoService(port=wanted.echo.port))
        if wanted.iperf3.enabled:
            services.append(Iperf3Service(port=wanted.iperf3.port))
        if wanted.http.enabled:
            services.append(HttpService(port=wanted.http.port, metrics=self._exposition, about=self._about))
        return services

    async def _stop_services(self) -> None:
        """All at the same time, and at once when a second signal comes."""
        stops = asyncio.gather(*(service.stop(GRACE_S) for service in self.running_services), return_exceptions=True)
        impatience = asyncio.ensure_future(self.stop_at_once.wait())
        await asyncio.wait((stops, impatience), return_when=asyncio.FIRST_COMPLETED)
        impatience.cancel()
        stops.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            for outcome in await stops:
                if isinstance(outcome, Exception):
                    log.error("service_stop_failed", error=repr(outcome))
        self.running_services.clear()

    def _take_signals(self, undo: contextlib.AsyncExitStack) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.stop)
            undo.callback(self._loop.remove_signal_handler, number)

    def stop(self) -> None:
        """Ask for a graceful end; asked again, end at once."""
        if self.stop_asked.is_set():
            self.stop_at_once.set()
        self.stop_asked.set()

    def _on_events(self) -> None:
        self.network.dispatch()
        self.pinger.dispatch()

    # rustosd.control.operations.Core

    def kick(self) -> None:
        self.pump.kick()

    def nic_facts(self, name: str) -> Mapping[str, Any]:
        if (tap := self.taps.get(name)) is None:
            return {}
        return {"kind": "tap", "rx_dropped": tap.nic.statistics()["rx_dropped"]}

    def services(self) -> Iterable[str]:
        return [f"{service.name}/{service.port}" for service in self.running_services]

    async def ping(self, address: str, identifier: int, sequence: int, octets: int, timeout_s: float) -> Answer | None:
        return await self.pinger.ping(address, identifier, sequence, octets, timeout_s)

    def open_session(self, pid: int) -> socket.socket:
        if self.handoff is None:
            raise OSError(95, "sockets for other processes are switched off: enabled = false under [sockets]")
        return self.handoff.open_session(pid)

    # what the HTTP service shows

    def _service_samples(self) -> Iterable[Any]:
        for service in self.running_services:
            yield from service.statistics()
        if self.handoff is not None:
            yield from self.handoff.statistics()

    def _exposition(self) -> tuple[bytes, str]:
        if not self.config.metrics.enabled:
            return b"# metrics are switched off: enabled = false under [metrics]\n", metrics.CONTENT_TYPE
        return metrics.exposition(self.metrics), metrics.CONTENT_TYPE

    def _about(self) -> About:
        host = next(iter(self._own_addresses()), "this host")
        site = f"http://{_url(host)}:{self.config.service.http.port}".removesuffix(":80")
        tries = {"echo": f"nc {host} {{}}", "iperf3": f"iperf3 -c {host} -p {{}}", "http": f"curl {site}/"}
        entries = [Entry(service.name, f"port {service.port}", tries[service.name].format(service.port))
                   for service in self.running_services]
        entries.append(Entry("bytes", "/bytes/N", f"curl -o /dev/null {site}/bytes/100000000", "/bytes/1000"))
        if self.config.metrics.enabled:
            entries.append(Entry("metrics", "/metrics", f"curl {site}/metrics", "/metrics"))
        return About("rustosd", self._own_addresses(), entries)

    def _own_addresses(self) -> list[str]:
        return [str(cidr.parsed.ip) for interface in self.config.interface for cidr in interface.address]

    def _index(self, name: str) -> int:
        return next(row["index"] for row in self.stack.interfaces() if row["name"] == name)

    def announcement(self) -> str:
        """What to try next, for the person who has just started us."""
        hosts = self._own_addresses()
        names = " and ".join(hosts) or "without addresses"
        lines = [f"rustosd {version()} is up: {names} behind {', '.join(self.taps)}"]
        if hosts:
            lines += ["Try, in another terminal:", *_suggestions(hosts, self.config)]
        return "\n".join([*lines, "Ctrl-C stops it."])


def _suggestions(hosts: Sequence[str], config: Config) -> list[str]:
    service, host = config.service, hosts[0]
    one_of_each = {":" in each: each for each in reversed(hosts)}
    commands = [(f"ping {each}", "") for each in reversed(one_of_each.values())]
    if service.http.enabled:
        port = "" if service.http.port == 80 else f":{service.http.port}"
        commands.append((f"curl http://{_url(host)}{port}/metrics", "also /, and /bytes/N for N octets"))
    if service.iperf3.enabled:
        port = "" if service.iperf3.port == 5201 else f" -p {service.iperf3.port}"
        commands.append((f"iperf3 -c {host}{port}", "-R for the other way, -P 4 for four at once"))
    commands.append((f"{_rustosctl()} status", "or nic, conn, drops, ping; --help tells"))
    width = max(len(command) for command, _ in commands)
    return [f"  {command:<{width}}   {'# ' if note else ''}{note}".rstrip() for command, note in commands]


def _rustosctl() -> str:
    """How to call rustosctl from here: the one beside us, unless the shell finds it anyway."""
    beside = Path(sys.argv[0]).absolute().with_name("rustosctl")
    if shutil.which("rustosctl") == str(beside) or not beside.exists():
        return "rustosctl"
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)


def _url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextlib.contextmanager
def _journal(path: Path) -> Iterator[Journal]:
    """The journal, opened, with what a killed daemon left on the host given back. Raises JournalError."""
    directory_is_ours = not path.parent.exists()
    try:
        with Journal(path) as journal:
            for entry in journal.pending.values():
                log.warning("left_by_a_former_run", entry=repr(entry))
            for entry, error in journal.give_back_all(hostnet.undo):
                log.error("could_not_give_back", entry=repr(entry), error=str(error))
            yield journal
    finally:
        if directory_is_ours or path.parent == DEFAULT_PATH.parent:
            with contextlib.suppress(OSError):      # somebody else uses it too
                path.parent.rmdir()


def _group_id(config: Config) -> int | None:
    """Of the group whose members may use sockets. Raises ValueError when there is none of that name."""
    if not (config.sockets.enabled and config.sockets.group):
        return None
    try:
        return grp.getgrnam(config.sockets.group).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {config.sockets.group}, which group = ... under [sockets] names; "
                         f"make it: groupadd {config.sockets.group}") from None


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


def serve(config: Config, announce: bool = True) -> None:
    """Run a daemon on a loop of its own until a signal ends it. Raises one of StartFailed when it cannot start."""
    async def main() -> None:
        await Daemon(config).run(announce)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
