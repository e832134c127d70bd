"""A running daemon takes a changed configuration: all of what can change, or nothing.

`config_changes.RULES` says which step applies which key. A step changes the daemon and leaves with `undo` what takes it back;
what cannot be taken back waits with `last` until every step has succeeded.
"""

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import structlog

from rustosd import config as configuration
from rustosd import config_changes, hostnet
from rustosd.config import Config, ConfigError
from rustosd.config_changes import Change
from rustosd.control.groups import groups_of
from rustosd.errors import REFUSALS

if TYPE_CHECKING:
    from rustosd.daemon import Daemon

log = structlog.get_logger(__name__)


class ReloadFailed(Exception):
    """The configuration was not taken, and nothing has changed; the text says why."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a reload did, or would do."""

    changes: list[Change]
    done: bool

    def of(self, *hows: Literal["now", "later", "restart"]) -> list[Change]:
        """The changes that are taken in one of these ways."""
        return [change for change in self.changes if change.rule.how in hows]


class Reconfigurer:
    """Keeps what is in force apart from what the file says, and brings the first to the second as far as it goes."""

    def __init__(self, daemon: "Daemon", path: Path | None) -> None:
        self.path = path
        self.waiting: list[Change] = []
        """What the file says and only a restart will bring."""
        self.failed = ""
        """Why the last reload was not taken; empty when it was."""
        self._daemon = daemon
        self._running = config_changes.flatten(daemon.config)
        self._lock = asyncio.Lock()
        self._old = self._new = daemon.config
        self._undo = contextlib.AsyncExitStack()
        self._last: list[Callable[[], object]] = []

    async def reload(self, check: bool = False) -> Outcome:
        """Read the file again and take what has changed. `check`: only say what that would be.

        Raises ReloadFailed; then everything is as it was.
        """
        async with self._lock:
            try:
                outcome = await self._reload(check)
            except ReloadFailed as failure:
                if not check:
                    self.failed = str(failure)
                    log.error("reload_failed", error=str(failure))
                raise
            if not check:
                self.failed = ""
                self.waiting = outcome.of("restart")
                log.info("reloaded", changed=[change.key for change in outcome.of("now", "later")],
                         needs_restart=[change.key for change in self.waiting])
            return outcome

    async def _reload(self, check: bool) -> Outcome:
        if self.path is None:
            raise ReloadFailed("this daemon runs on the built-in configuration: there is no file to read again; "
                               "start it with --config FILE")
        try:
            new = await asyncio.to_thread(configuration.load, self.path)
        except ConfigError as error:
            raise ReloadFailed(str(error)) from None
        wanted = config_changes.flatten(new)
        outcome = Outcome(changes=config_changes.differences(self._running, wanted), done=not check)
        if not check:
            taken = outcome.of("now", "later")
            await self._apply(new, taken)
            self._running = config_changes.taken_over(self._running, wanted, taken)
        return outcome

    async def _apply(self, new: Config, changes: Sequence[Change]) -> None:
        """All the steps that these changes need, or none."""
        self._old, self._new, self._last = self._daemon.config, new, []
        async with contextlib.AsyncExitStack() as undo:
            self._undo = undo
            for name, step in STEPS.items():
                concerned = [change for change in changes if change.rule.step == name]
                if concerned:
                    try:
                        await step(self, concerned)
                    except REFUSALS as error:
                        keys = ", ".join(change.key for change in concerned)
                        why = getattr(error, "strerror", None) or str(error)
                        raise ReloadFailed(f"{keys}: {why}; nothing was changed") from None
            undo.pop_all()
        self._daemon.config = new
        for act in self._last:
            act()
        self._daemon.kick()

    # Steps

    async def _logs(self, _: Sequence[Change]) -> None:
        for config, do in ((self._old.log, self._undo.callback), (self._new.log, lambda act, *words: act(*words))):
            do(self._daemon.logs.setup, config.level, config.format, config.levels)

    async def _pump(self, _: Sequence[Change]) -> None:
        pump = self._daemon.pump
        self._undo.callback(pump.set_busy_poll, self._old.pump.busy_poll_us)
        self._undo.callback(pump.set_coalesce, self._old.pump.coalesce_us)
        pump.set_busy_poll(self._new.pump.busy_poll_us)
        pump.set_coalesce(self._new.pump.coalesce_us)

    async def _limits(self, _: Sequence[Change]) -> None:
        self._undo.callback(set_limits, self._daemon, self._old)
        set_limits(self._daemon, self._new)

    async def _new_interfaces(self, changes: Sequence[Change]) -> None:
        names = {change.path[1] for change in changes}
        piece = await self._undo.enter_async_context(contextlib.AsyncExitStack())
        for interface in self._new.interface:
            if interface.name in names:
                self._daemon.start_tap(interface, piece)
        late = piece.pop_all()
        self._undo.push_async_callback(late.aclose)
        self._last.append(lambda: self._daemon.late_interfaces.push_async_callback(late.aclose))

    async def _addresses(self, changes: Sequence[Change]) -> None:
        for change in changes:
            stack, index = self._daemon.stack, self._daemon.index_of(change.path[1])
            for cidr in set(change.old) - set(change.new):
                if any(row["interface"] == index and _host(row["address"]) == _host(cidr) for row in stack.addresses()):
                    stack.remove_address(index, str(cidr))
                    self._undo.callback(stack.add_address, index, str(cidr))
            for cidr in _ordered(change.new, change.old):
                if not any(row["address"] == str(cidr) and row["interface"] == index for row in stack.addresses()):
                    stack.add_address(index, str(cidr))
                    self._undo.callback(stack.remove_address, index, str(cidr))

    async def _kernel_addresses(self, changes: Sequence[Change]) -> None:
        for change in changes:
            add = [cidr.parsed for cidr in _ordered(change.new, change.old)]
            gone = [cidr.parsed for cidr in _ordered(change.old, change.new)]
            self._undo.callback(_forgiving, hostnet.change_addresses, change.path[1], gone, add)
            hostnet.change_addresses(change.path[1], add, gone)

    async def _gateways(self, changes: Sequence[Change]) -> None:
        for change in changes:
            interface = self._daemon.index_of(change.path[1])
            for gateway in _ordered(change.old, change.new):
                self._remove_route(_default(gateway), str(gateway), interface, 0)
            for gateway in _ordered(change.new, change.old):
                self._add_route(_default(gateway), str(gateway), interface, 0)

    async def _devices(self, _: Sequence[Change]) -> None:
        devices = self._daemon.devices
        self._undo.callback(devices.set_rules, self._old.device, self._old.route)
        devices.set_rules(self._new.device, self._new.route)
        if self._new.device:
            self._daemon.watch.start()

    async def _routes(self, changes: Sequence[Change]) -> None:
        """The old ones first: one with another gateway would be replaced, and then removed."""
        devices = self._daemon.devices
        self._undo.callback(devices.set_rules, self._old.device, self._old.route)
        devices.set_rules(self._new.device, self._new.route)
        names = {change.path[-1] for change in changes}
        for old, new, act in ((self._old, self._new, self._remove_route), (self._new, self._old, self._add_route)):
            kept = {route.which for route in new.route}
            for route in old.route:
                if route.which in names and route.which not in kept:
                    there = route.interface is None or route.interface in self._daemon.interface_names()
                    if there:       # else it comes with its device
                        index = None if route.interface is None else self._daemon.index_of(route.interface)
                        act(str(route.to), None if route.via is None else str(route.via), index, route.metric)

    def _add_route(self, to: str, gateway: str | None, interface: int | None, metric: int) -> None:
        stack = self._daemon.stack
        stack.add_route(to, gateway=gateway, interface=interface, metric=metric)
        self._undo.callback(lambda: self._find_route(to, gateway, interface, metric, remove=True))

    def _remove_route(self, to: str, gateway: str | None, interface: int | None, metric: int) -> None:
        """If somebody has removed it by hand already, that is as well."""
        for row in self._find_route(to, gateway, interface, metric, remove=True):
            self._undo.callback(self._daemon.stack.add_route, to, gateway=gateway, interface=row["interface"], metric=metric)

    def _find_route(self, to: str, gateway: str | None, interface: int | None, metric: int, remove: bool) -> list:
        stack = self._daemon.stack
        rows = [row for row in stack.routes()
                if row["kind"] == "static" and (row["prefix"], row["gateway"] or None, row["metric"]) == (to, gateway, metric)
                and interface in (None, row["interface"])]
        for row in rows if remove else ():
            stack.remove_route(to, row["interface"], metric)
        return rows

    async def _services(self, changes: Sequence[Change]) -> None:
        """The new ones first, so that one that cannot be leaves all as it was; the old ones keep their connections."""
        daemon, names = self._daemon, {change.path[1] for change in changes}
        for service in [each for each in daemon.make_services(self._new) if each.name in names]:
            try:
                await service.start(daemon.network)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise OSError(error.errno, f"port {service.port} is in use; see who listens with: rustosctl conn") from None
                raise
            self._undo.push_async_callback(service.stop, 0.0)
            self._last.append(lambda service=service: daemon.running_services.append(service))
        for service in [each for each in daemon.running_services if each.name in names]:
            self._last.append(lambda service=service: daemon.retire(service, daemon.running_services))

    async def _metrics(self, changes: Sequence[Change]) -> None:
        """The kernel's port may be the same with another address: the old one lets go of it first."""
        daemon = self._daemon
        kinds = {change.path[1] for change in changes}
        for service in [each for each in daemon.host_services if each.name in ("metrics", "metrics_unix")]:
            if ("listen" if service.name == "metrics" else "socket") in kinds:
                service.close_listeners()
                self._undo.push_async_callback(service.reopen, asyncio.get_running_loop())
                self._last.append(lambda service=service: daemon.retire(service, daemon.host_services))
        for service in daemon.make_host_services(self._new):
            if ("listen" if service.name == "metrics" else "socket") in kinds:
                await daemon.start_on_kernel(service, self._new)
                self._undo.push_async_callback(service.stop, 0.0)
                self._last.append(lambda service=service: daemon.host_services.append(service))

    async def _control(self, _: Sequence[Change]) -> None:
        control = self._daemon.control
        self._undo.callback(control.admit, control.groups, control.max_clients)
        control.admit(groups_of(self._new), self._new.control.max_clients)

    async def _sockets(self, _: Sequence[Change]) -> None:
        """Switched off, programs keep the sockets they have and get no more."""
        self._undo.callback(self._daemon.set_handoff, self._old.sockets)
        self._daemon.set_handoff(self._new.sockets)

    async def _scheduler(self, _: Sequence[Change]) -> None:
        scheduler = self._daemon.scheduler
        self._undo.push_async_callback(scheduler.configure, self._old.scheduler)
        await scheduler.configure(self._new.scheduler)

    async def _policies(self, _: Sequence[Change]) -> None:
        self._undo.callback(self._daemon.set_policies, self._old)
        self._daemon.set_policies(self._new)

    async def _programs(self, _: Sequence[Change]) -> None:
        self._last.append(lambda: self._daemon.programs.change(self._new.program))

    async def _swap(self, _: Sequence[Change]) -> None:
        """Whoever asks for a place for swap is given what the configuration in force says."""

    async def _pages(self, _: Sequence[Change]) -> None:
        self._last.append(lambda: setattr(self._daemon.reporter, "list_connections", self._new.status.connections))


Step = Callable[[Reconfigurer, Sequence[Change]], Awaitable[None]]
STEPS: Final[dict[str, Step]] = {
    "logs": Reconfigurer._logs, "pump": Reconfigurer._pump, "limits": Reconfigurer._limits,
    "new_interfaces": Reconfigurer._new_interfaces, "addresses": Reconfigurer._addresses,
    "kernel_addresses": Reconfigurer._kernel_addresses, "gateways": Reconfigurer._gateways,
    "devices": Reconfigurer._devices, "routes": Reconfigurer._routes, "services": Reconfigurer._services,
    "metrics": Reconfigurer._metrics, "control": Reconfigurer._control, "sockets": Reconfigurer._sockets,
    "scheduler": Reconfigurer._scheduler, "policies": Reconfigurer._policies, "programs": Reconfigurer._programs,
    "swap": Reconfigurer._swap,
    "pages": Reconfigurer._pages,
}
"""In the order in which they are taken: what others need first."""


def set_limits(daemon: "Daemon", config: Config) -> None:
    """The stack's limits that need no larger table."""
    limits = config.stack
    daemon.stack.tcp.set_limits(
        time_wait=limits.max_time_wait, send_buffer=limits.send_buffer_octets, receive_buffer=limits.receive_buffer_octets,
        memory=limits.buffers_octets, time_wait_ns=round(limits.time_wait_s * 1e9))
    daemon.stack.set_rates(icmp_errors_per_second=limits.icmp_errors_per_second,
                           challenge_acks_per_second=limits.challenge_acks_per_second)


def _ordered(these: Sequence, but: Sequence) -> list:
    return [each for each in these if each not in but]


def _host(cidr: str) -> str:
    return str(cidr).partition("/")[0]


def _default(gateway: configuration.Address) -> str:
    return "::/0" if gateway.version == 6 else "0.0.0.0/0"


def _forgiving(change: Callable[..., None], *arguments: object) -> None:
    """The way back goes as far as it can."""
    try:
        change(*arguments)
    except REFUSALS as error:
        log.error("reload_not_undone", error=str(error))
