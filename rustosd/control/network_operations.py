"""What an operator can find out about one interface or connection, and how to end one."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from rustosd.control import network_protocol as p
from rustosd.control.base import Done
from rustosd.control.names import LOOPBACK_INDEX, USEFUL_ENDS, connection_id, endpoint, handle_of, version
from rustosd.control.server import OperationFailed

_INTERRUPT_COUNTS = ("wakeups", "receiver_overruns", "link_changes", "resets")
_CLOSING = ("TIME_WAIT", "LAST_ACK", "CLOSING", "FIN_WAIT_1", "FIN_WAIT_2")


class NetworkCore(Protocol):
    """What these operations need of the daemon."""

    stack: Any
    pump: Any
    """`rustosd.pump.Pump` or its like: `nics` and `statistics`."""

    @property
    def users(self) -> Mapping[int, Any]:
        """Who uses a connection, by its handle: `netstack.sockets.AsyncStack.connections`."""

    def kick(self) -> None: ...

    def nic_details(self, name: str) -> Mapping[str, Any]:
        """What the device of an interface knows: kind, device, model, backend, speed_mbps, duplex, rings, interrupts,
        moderation_us, statistics. Empty for loopback."""

    def resident_octets(self) -> int:
        """The process's memory that is in RAM."""


class NetworkOperations:
    """The methods of `network_protocol.METHODS`."""

    core: NetworkCore
    root: Path
    clock: Callable[[], float]
    started_at: float

    def nic_show(self, query: p.NicQuery) -> p.NicDetails:
        rows = {row["name"]: row for row in self.core.stack.interfaces()}
        row = rows.get(str(query.name))
        if row is None:
            raise OperationFailed(f"there is no interface {query.name}; there is {', '.join(rows)}")
        facts = self.core.nic_details(row["name"])
        loopback = row["index"] == LOOPBACK_INDEX
        statistics = facts.get("statistics", {})
        return p.NicDetails(
            name=row["name"], kind=facts.get("kind", "loopback" if loopback else "unknown"), link="up" if row["up"] else "down",
            speed_mbps=facts.get("speed_mbps"), duplex=facts.get("duplex"), mac=None if loopback else row["mac"],
            mtu=row["mtu"], features=list(row["features"]), addresses=list(row["addresses"]), device=facts.get("device"),
            model=facts.get("model"), backend=facts.get("backend"),
            rings=[p.Ring(name=name, descriptors=count) for name, count in facts.get("rings", {}).items()],
            interrupts=facts.get("interrupts"), moderation_us=facts.get("moderation_us"),
            interrupt_statistics={name: statistics[name] for name in _INTERRUPT_COUNTS if name in statistics},
            rx_frames=row["rx_frames"], rx_octets=row["rx_octets"], tx_frames=row["tx_frames"], tx_octets=row["tx_octets"],
            output_queued=row["output_queued"],
            statistics={name: count for name, count in statistics.items() if name not in _INTERRUPT_COUNTS})

    def conn_show(self, query: p.ConnectionQuery) -> p.ConnectionDetails:
        handle, row = self._connection(query.id)
        names = {each["index"]: each["name"] for each in self.core.stack.interfaces()}
        service, pid = self._user(handle)
        return p.ConnectionDetails(
            id=query.id, state=row["state"].lower(), local=endpoint(row["local_host"], row["local_port"]),
            remote=endpoint(row["remote_host"], row["remote_port"]), nic=names.get(row["interface"], f"#{row['interface']}"),
            owner=self._owner(handle, row), service=service, pid=pid, age_s=round(row["age_ns"] / 1e9, 3),
            rx_octets=row["octets_received"], tx_octets=row["octets_sent"], unread=row["unread"], unsent=row["unsent"],
            in_flight=row["in_flight"], retransmits=row["retransmits"], send_window=row["send_window"],
            receive_window=row["receive_window"], cwnd=row["cwnd"], ssthresh=row["ssthresh"], pipe=row["pipe"],
            recovery=row["recovery"], rtt_us=_us(row["srtt_ns"]),
            rtt_variance_us=_us(row["rttvar_ns"]) if row["srtt_ns"] else None, rto_ms=row["rto_ns"] / 1e6,
            backoff=row["backoff"], mss=row["mss"], peer_mss=row["peer_mss"], sack=row["sack"], timestamps=row["timestamps"],
            window_scale=list(row["window_scale"]) if row["window_scale"] else None, nodelay=row["nodelay"],
            keepalive=row["keepalive"], send_memory=row["send_memory"], send_limit=row["send_limit"],
            receive_memory=row["receive_memory"], receive_limit=row["receive_limit"],
            out_of_order_ranges=row["out_of_order_ranges"], sacked_ranges=row["sacked_ranges"],
            timers=[p.Timer(name=name, in_ms=round(left / 1e6, 1)) for name, left in row["timers"].items()],
            error=row["error"] or row["soft_error"])

    def conn_close(self, request: p.ConnectionEnd) -> Done:
        handle, row = self._connection(request.id)
        user = self.core.users.get(handle)
        if user is not None and request.reset:
            user.abort()
        elif user is not None:
            user.close()
        elif request.reset:
            self.core.stack.tcp.cut(handle)
        elif row["released"] or row["state"] in _CLOSING:
            raise OperationFailed(f"{request.id} is closing already, {row['state'].lower()}; --reset ends it at once")
        else:
            raise OperationFailed(f"{request.id} is {row['state'].lower()} and nobody's yet; --reset ends it at once")
        self.core.kick()
        return Done()

    def _connection(self, identity: str) -> tuple[int, Mapping[str, Any]]:
        try:
            handle = handle_of(identity)
            return handle, self.core.stack.tcp.details(handle, time.monotonic_ns())
        except ValueError:
            raise OperationFailed(f"there is no connection {identity}; see: rustosctl conn list") from None

    def top_sample(self, query: p.SampleQuery) -> p.Sample:
        stack = self.core.stack
        usage = stack.tcp.usage()
        drops: dict[str, int] = {}
        for counts in (stack.verdicts(), stack.unsent()):
            for reason, count in counts.items():
                if count and reason not in USEFUL_ENDS:
                    drops[reason] = drops.get(reason, 0) + count
        return p.Sample(
            version=version(), uptime_s=round(self.clock() - self.started_at, 3), at_ns=time.monotonic_ns(),
            nics=[self._traffic(row) for row in stack.interfaces()], connections=usage["connections"],
            busiest=[self._busy(row) for row in stack.tcp.busiest(query.most, True)], drops=drops,
            buffer_octets=usage["buffer_octets"], buffer_limit_octets=usage["buffer_octets_limit"],
            resident_octets=self.core.resident_octets(), pump=self.core.pump.statistics())

    def _traffic(self, row: Mapping[str, Any]) -> p.Traffic:
        nic = self.core.pump.nics.get(row["index"])
        statistics = nic.statistics() if nic is not None else {}
        return p.Traffic(name=row["name"], link="up" if row["up"] else "down", rx_frames=row["rx_frames"],
                         rx_octets=row["rx_octets"], tx_frames=row["tx_frames"], tx_octets=row["tx_octets"],
                         rx_dropped=statistics.get("rx_dropped", 0), tx_dropped=statistics.get("tx_dropped", 0))

    def _busy(self, row: Mapping[str, Any]) -> p.Busy:
        handle = row["handle"]
        return p.Busy(id=connection_id(handle), local=endpoint(row["local_host"], row["local_port"]),
                      remote=endpoint(row["remote_host"], row["remote_port"]), state=row["state"].lower(),
                      owner=self._owner(handle, row), pid=self._user(handle)[1],
                      rx_octets=row["octets_received"], tx_octets=row["octets_sent"],
                      rtt_us=_us(row["srtt_ns"]), retransmits=row["retransmits"])

    def _user(self, handle: int) -> tuple[str | None, int | None]:
        """The service, or the process, that has a connection."""
        user = self.core.users.get(handle)
        if hasattr(user, "get_protocol"):
            return getattr(getattr(user.get_protocol(), "service", None), "name", None), None
        return None, getattr(user, "pid", None) or getattr(getattr(user, "owner", None), "pid", None)

    def _owner(self, handle: int, row: Mapping[str, Any]) -> str:
        service, pid = self._user(handle)
        if service is not None:
            return f"service {service}"
        if pid is not None:
            return f"{self._process_name(pid)}[{pid}]"
        if handle in self.core.users:
            return "the daemon"
        return "nobody any more" if row["released"] else "a listener"

    def _process_name(self, pid: int) -> str:
        try:
            return (self.root / f"proc/{pid}/comm").read_text(errors="replace").strip() or "?"
        except OSError:
            return "?"


def _us(ns: int) -> float | None:
    return ns / 1000 if ns else None

