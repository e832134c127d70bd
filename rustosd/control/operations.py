"""What an operator can ask of a running daemon and change in it; each method of the protocol is one function here."""

import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from rustosd.control import protocol as p
from rustosd.control.acpi_operations import AcpiOperations
from rustosd.control.capture_operations import CaptureOperations
from rustosd.control.device_operations import DeviceOperations, Devices
from rustosd.control.disk_operations import DiskOperations
from rustosd.control.fault_operations import FaultOperations
from rustosd.control.memory_operations import MemoryOperations
from rustosd.control.names import LOOPBACK_INDEX, USEFUL_ENDS, connection_id, endpoint, version
from rustosd.control.nbd_operations import NbdOperations
from rustosd.control.network_operations import NetworkOperations
from rustosd.control.policy_operations import PolicyOperations
from rustosd.control.process_operations import ProcessOperations
from rustosd.control.program_operations import ProgramOperations
from rustosd.control.sata_operations import SataOperations
from rustosd.control.sched_operations import SchedOperations
from rustosd.control.server import Handed, OperationFailed, Peer
from rustosd.control.swap_operations import SwapOperations
from rustosd.control.trace_operations import TraceOperations
from rustosd.control.upkeep_operations import UpkeepCore, UpkeepOperations
from rustosd.pinger import Answer
from rustosd.policy import Policies, Subject
from rustosd.processes import Processes


class Core(UpkeepCore, Protocol):
    """What the operations need of the daemon; a test can be one without a device."""

    stack: Any
    """`netstack.stack.Stack` or its like: its rows and verbs are plain Python."""
    verdict_help: Mapping[str, str]
    counter_help: Mapping[str, str]
    devices: Devices | None
    """The PCI devices of the daemon; None where it can have none."""
    exports: Any
    """`rustosd.nbd.exports.Exports`; None when NBD is switched off."""
    captures: Any
    """`rustosd.capture.captures.Captures` or its like."""
    tracer: Any
    """`rustosd.tracer.Tracer` or its like."""
    pump: Any
    """`rustosd.pump.Pump` or its like."""
    processes: Processes
    faults: Any
    """`rustosd.faults.Faults`."""
    scheduler: Any
    """`rustosd.scheduling.scheduler.Scheduler` or its like."""
    policies: Policies
    programs: Any
    """`rustosd.programs.Programs` or its like."""
    swap_places: Any
    """`rustosd.swap.places.Places`: where programs' swap is kept."""
    swap_watch: Any
    """`rustosd.swap.watch.SwapWatch`: what is known of it."""
    kernel_swap: Any
    """`rustosd.swap.kernel.KernelSwap`: Linux's own."""
    storage: Iterable[Any]
    """`rustosd.storage.Storage`: its disks, those of devices among them."""

    def kick(self) -> None:
        """The stack was changed from outside the pump: let out what it has to say."""

    def nic_facts(self, name: str) -> Mapping[str, Any]:
        """What the device of an interface knows better than the stack: kind, rx_dropped. Empty for loopback."""

    def nic_details(self, name: str) -> Mapping[str, Any]:
        """All that the device of an interface knows: `rustosd.control.network_operations.NetworkCore`."""

    def resident_octets(self) -> int:
        """The process's memory that is in RAM."""

    @property
    def users(self) -> Mapping[int, Any]:
        """Who uses a connection, by its handle."""

    def services(self) -> Iterable[str]:
        """The running services with their ports, as "http/80"."""

    def nbd_uris(self) -> list[str]:
        """Where NBD clients reach the first export; another's name goes behind the path's slash."""

    async def ping(self, address: str, identifier: int, sequence: int, octets: int, timeout_s: float) -> Answer | None:
        """Send an echo request and wait; None when nothing came in time. Raises OSError when it cannot be sent."""

    def open_session(self, pid: int, subject: Subject) -> socket.socket:
        """The end for process `pid` of a new session on which it can ask for sockets. Raises OSError."""


class Operations(DeviceOperations, AcpiOperations, SataOperations, DiskOperations, NbdOperations, CaptureOperations,
                 TraceOperations, NetworkOperations, ProcessOperations, FaultOperations, SchedOperations, PolicyOperations,
                 ProgramOperations, SwapOperations, MemoryOperations, UpkeepOperations):
    """The methods of `protocol.METHODS` on a daemon; what they read of the host is below `root`.

    Errors are raised as ValueError, OSError, DeviceError or OperationFailed.
    """

    def __init__(self, core: Core, clock: Callable[[], float] = time.monotonic, root: Path = Path("/")):
        super().__init__()
        self.core = core
        self.root = root
        self.clock = clock
        self.started_at = clock()

    def daemon_status(self, _: p.Nothing) -> p.Status:
        stack = self.core.stack
        interfaces = stack.interfaces()
        return p.Status(
            version=version(), pid=os.getpid(), uptime_s=round(self.clock() - self.started_at, 3),
            interfaces=sum(row["index"] != LOOPBACK_INDEX for row in interfaces),
            connections=stack.tcp.usage()["connections"], listeners=len(stack.listeners()),
            rx_frames=sum(row["rx_frames"] for row in interfaces),
            tx_frames=sum(row["tx_frames"] for row in interfaces),
            dropped_frames=sum(drop.frames for drop in self.drops_list(p.Nothing())),
            services=list(self.core.services()),
            programs=[f"{row['name']} {row['state']}" for row in self.core.programs.rows()],
            health=self.health_list(p.Nothing()),
        )

    def nic_list(self, _: p.Nothing) -> list[p.Nic]:
        return [self._nic(row) for row in self.core.stack.interfaces()]

    def _nic(self, row: Mapping[str, Any]) -> p.Nic:
        facts = self.core.nic_facts(row["name"])
        loopback = row["index"] == LOOPBACK_INDEX
        return p.Nic(
            name=row["name"], kind=facts.get("kind", "loopback" if loopback else "unknown"),
            link="up" if row["up"] else "down", mac=None if loopback else row["mac"], mtu=row["mtu"],
            offload=bool(row["features"]), addresses=list(row["addresses"]),
            rx_frames=row["rx_frames"], rx_octets=row["rx_octets"],
            tx_frames=row["tx_frames"], tx_octets=row["tx_octets"], rx_dropped=facts.get("rx_dropped", 0),
        )

    def addr_list(self, _: p.Nothing) -> list[p.InterfaceAddress]:
        return [p.InterfaceAddress(nic=row["name"], address=row["address"], state=row["state"])
                for row in self.core.stack.addresses()]

    def addr_add(self, change: p.AddressChange) -> p.Done:
        self.core.stack.add_address(self._index(change.nic), str(change.address))
        return self._done()

    def addr_del(self, change: p.AddressChange) -> p.Done:
        try:
            self.core.stack.remove_address(self._index(change.nic), str(change.address))
        except ValueError as error:
            raise OperationFailed(f"{error}; see: rustosctl addr list") from None
        return self._done()

    def route_list(self, _: p.Nothing) -> list[p.Route]:
        names = self._names()
        return [p.Route(destination=row["prefix"], gateway=row["gateway"] or None,
                        nic=names.get(row["interface"], f"#{row['interface']}"), source=row.get("source") or None,
                        metric=row["metric"], kind=row["kind"])
                for row in self.core.stack.routes()]

    def route_add(self, change: p.RouteChange) -> p.Done:
        if change.gateway is None and change.nic is None:
            raise OperationFailed("a route needs a gateway (via ADDRESS) or an interface (dev NAME)")
        if change.gateway is not None and change.gateway.version != change.destination.version:
            raise OperationFailed(f"{change.gateway} is not of the same family as {change.destination}")
        self.core.stack.add_route(str(change.destination), gateway=_text(change.gateway),
                                  interface=self._index(change.nic), metric=change.metric)
        return self._done()

    def route_del(self, change: p.RouteRemoval) -> p.Done:
        stack, index = self.core.stack, self._index(change.nic)
        doomed = [row for row in stack.routes()
                  if row["kind"] == "static" and row["prefix"] == change.destination
                  and change.gateway in (None, row["gateway"]) and index in (None, row["interface"])
                  and change.metric in (None, row["metric"])]
        if not doomed:
            raise OperationFailed(f"there is no such static route to {change.destination}; see: rustosctl route list")
        for row in doomed:
            stack.remove_route(row["prefix"], row["interface"], row["metric"])
        return self._done()

    def neigh_list(self, _: p.Nothing) -> list[p.Neighbor]:
        names = self._names()
        return [p.Neighbor(address=row["address"], mac=row["mac"] or None,
                           nic=names.get(row["interface"], f"#{row['interface']}"), state=row["state"])
                for row in self.core.stack.neighbors()]

    def neigh_add(self, change: p.NeighborChange) -> p.Done:
        self.core.stack.set_neighbor(self._index(change.nic), str(change.address), str(change.mac))
        return self._done()

    def neigh_del(self, change: p.NeighborRemoval) -> p.Done:
        if self.core.stack.remove_neighbor(self._index(change.nic), str(change.address)) is False:
            raise OperationFailed(f"there is no neighbor {change.address} on {change.nic}; see: rustosctl neigh list")
        return self._done()

    def conn_list(self, query: p.ConnectionQuery) -> p.Connections:
        stack = self.core.stack
        rows = [*map(_listener, stack.listeners()), *map(_datagram_socket, stack.udp.rows())]
        connections = stack.connections()
        rows += map(_connection, connections[: max(0, query.limit - len(rows))])
        return p.Connections(total=len(rows) + len(connections) - sum(row.id is not None for row in rows),
                             connections=rows[: query.limit])

    def drops_list(self, _: p.Nothing) -> list[p.Drop]:
        words, ended, unsent = self.core.verdict_help, self.core.stack.verdicts(), self.core.stack.unsent()
        received = [p.Drop(reason=reason, direction="in", frames=count, help=words.get(reason, ""))
                    for reason, count in ended.items() if reason not in USEFUL_ENDS]
        return received + [p.Drop(reason=reason, direction="out", frames=count, help=words.get(reason, ""))
                           for reason, count in unsent.items() if reason not in USEFUL_ENDS]

    def counters_list(self, _: p.Nothing) -> list[p.Count]:
        return [p.Count(counter=name, count=count, help=self.core.counter_help.get(name, ""))
                for name, count in self.core.stack.counters().items()]

    async def ping_echo(self, request: p.EchoRequest) -> p.Echo:
        answer, error = None, None
        try:
            answer = await self.core.ping(str(request.address), request.identifier, request.sequence, request.octets,
                                          request.timeout_ms / 1000)
        except OSError as failure:
            error = failure.strerror or str(failure)
        if answer is not None and answer.error is not None:
            answer, error = None, f"{answer.error}, says {answer.source}"
        return p.Echo(address=str(request.address), sequence=request.sequence, octets=request.octets, error=error,
                      rtt_us=round(answer.round_trip_s * 1e6, 1) if answer else None,
                      hop_limit=answer.hop_limit if answer else None)

    def socket_session(self, _: p.Nothing, peer: Peer) -> Handed:
        return Handed(p.Done(), self.core.open_session(peer.pid, Subject(peer.uid, peer.groups)))

    def _done(self) -> p.Done:
        self.core.kick()
        return p.Done()

    def _names(self) -> dict[int, str]:
        return {row["index"]: row["name"] for row in self.core.stack.interfaces()}

    def _index(self, name: str | None) -> int | None:
        if name is None:
            return None
        indices = {row["name"]: row["index"] for row in self.core.stack.interfaces()}
        if name not in indices:
            raise OperationFailed(f"there is no interface {name}; there is {', '.join(indices)}")
        return indices[name]


def _text(value: str | None) -> str | None:
    return None if value is None else str(value)


def _listener(row: Mapping[str, Any]) -> p.Connection:
    return _row("tcp", "listen", endpoint(row["host"], row["port"]))


def _datagram_socket(row: Mapping[str, Any]) -> p.Connection:
    remote = endpoint(row["remote"], row["remote_port"]) if row["remote_port"] else None
    return _row("udp", "connected" if remote else "open", endpoint(row["local"], row["local_port"]), remote=remote,
                unread_octets=row["queued_octets"], rx_octets=row["rx_octets"], tx_octets=row["tx_octets"])


def _connection(row: Mapping[str, Any]) -> p.Connection:
    return _row(
        "tcp", row["state"].lower(), endpoint(row["local_host"], row["local_port"]),
        id=connection_id(row["handle"]), remote=endpoint(row["remote_host"], row["remote_port"]),
        unread_octets=row["unread"], unsent_octets=row["unsent"], rx_octets=row["octets_received"],
        tx_octets=row["octets_sent"], rtt_us=row["srtt_ns"] / 1000 if row["srtt_ns"] else None,
        retransmits=row["retransmits"],
    )


def _row(protocol: str, state: str, local: str, **known: Any) -> p.Connection:
    missing = dict.fromkeys(("id", "remote", "unread_octets", "unsent_octets", "rx_octets", "tx_octets", "rtt_us",
                             "retransmits"))
    return p.Connection(protocol=protocol, state=state, local=local, **missing | known)

