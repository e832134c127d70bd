"""The daemon's questions to a supervisor: what runs below it, what it has open, and signals for it.

Two things the supervisor tells unasked: that its program was executed, and how it ended.

One JSON object a packet, answered by one, as on a session of `rustosd.handoff`; but here the daemon asks. What it asks about a
process that is not below the supervisor is refused, so that nobody's signal reaches a stranger.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from rustosd.client.session import Door
from rustosd.process import inventory
from rustosd.process.syscalls import NAMES
from rustosd.scheduling.waits import Spent

if TYPE_CHECKING:
    from rustosd.process.supervisor import Supervisor

ROWS_MOST: Final = 128
"""Processes in one answer: what fits a packet, with commands of the usual length."""
PACKET_MOST: Final = 128 << 10
_REQUEST_MOST: Final = 4096


class Channel:
    """Answers on a descriptor from `process.attach`. It ends with the daemon, and is missed by nobody."""

    def __init__(self, supervisor: Supervisor, end: socket.socket) -> None:
        self._supervisor, self._end = supervisor, end
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * PACKET_MOST)
        supervisor.watch(end.fileno(), select.EPOLLIN, self._asked)
        self._verbs: dict[str, Callable[..., dict[str, Any]]] = {
            "list": self._list, "show": self._show, "descriptors": self._descriptors, "signal": self._signal,
            "nice": self._nice, "suspend": self._suspend, "resume": self._resume, "figures": self._figures,
            "memory": self._memory, "memory_totals": self._memory_totals, "swap": self._swap}

    @classmethod
    def open(cls, supervisor: Supervisor, path: str) -> Channel:
        """Raises OSError when the daemon has none to give."""
        session = Door(path, "process.attach").open()
        return cls(supervisor, session.detach())

    def tell_started(self, pid: int, name: str) -> None:
        """The program runs."""
        self._tell({"notice": "started", "pid": pid, "name": name})

    def tell_ended(self, status: int) -> None:
        """It has ended, with this exit status."""
        self._tell({"notice": "ended", "status": status})

    def tell_fault(self, **facts: Any) -> None:
        """An exception ends one of its processes: `rustosd.faults.FaultNotice`."""
        self._tell({"notice": "fault", **facts})

    def tell_handled(self, kind: str, count: int) -> None:
        """Programs have handled so many exceptions themselves."""
        self._tell({"notice": "handled", "kind": kind, "count": count})

    def _tell(self, notice: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):      # the daemon has ended
            self._end.send(json.dumps(notice).encode())

    def close(self) -> None:
        if self._end.fileno() >= 0:
            self._supervisor.forget(self._end.fileno())
            self._end.close()

    def _asked(self, _events: int) -> None:
        try:
            packet = self._end.recv(_REQUEST_MOST)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self.close()
            return self._supervisor.daemon_ended()
        try:
            request = json.loads(packet)
            answer = self._verbs[request.pop("op")](**request)
        except OSError as error:
            answer = {"errno": error.errno or errno.EIO, "error": error.strerror or str(error)}
        except (KeyError, TypeError, ValueError) as error:
            answer = {"errno": errno.EPROTO, "error": f"not a question: {error}"}
        try:
            self._end.send(json.dumps(answer).encode())
        except OSError:
            self.close()

    def _list(self) -> dict[str, Any]:
        ours = self._supervisor.table.inodes()
        rows, pids = [], self._supervisor.programs()
        meter = self._supervisor.meter
        meter.sample(pids)
        for pid in pids[:ROWS_MOST]:
            if (row := self._row(pid)) is not None:
                row |= {**_waits(meter.of(pid)), "sockets": len(inventory.socket_inodes(pid) & ours)}
                rows.append(_shortened(row, PACKET_MOST // min(len(pids), ROWS_MOST)))
        return {"processes": rows, "total": len(pids)}

    def _show(self, pid: int) -> dict[str, Any]:
        self._check(pid)
        row = self._row(pid)
        if row is None:
            raise OSError(errno.ESRCH, f"process {pid} has ended")
        self._supervisor.meter.sample(self._supervisor.programs())
        row |= _waits(self._supervisor.meter.of(pid))
        row["sockets"] = len(inventory.socket_inodes(pid) & self._supervisor.table.inodes())
        monitor = self._supervisor.monitor
        return {"process": row, **inventory.more_about(pid), "traced": monitor.traced,
                "life": dict(monitor.life), "ended": [f"{end.pid} {end.name}: {end}" for end in monitor.ended],
                "exceptions": {f"{kind} {outcome}": count
                               for (kind, outcome), count in self._supervisor.exceptions.counts.items()},
                "calls": {NAMES[number]: count for number, count in self._supervisor.calls.most_common()},
                "refused": dict(self._supervisor.refused.most_common(64))}

    def _row(self, pid: int) -> dict[str, Any] | None:
        """As `inventory.describe`, with its state as it would be if we did not trace it."""
        row, monitor = inventory.describe(pid), self._supervisor.monitor
        if row is not None:
            row["started"] = monitor.started[pid]
            if self._supervisor.memory is not None:     # of what we swap Linux knows nothing
                row["swap_octets"] += self._supervisor.memory.swapped_octets(pid)
            if row["state"] == "traced":
                row["state"] = "stopped" if pid in monitor.stopped else "running"
        return row

    def _descriptors(self, pid: int) -> dict[str, Any]:
        self._check(pid)
        rows = []
        for number, target in inventory.descriptors(pid):
            one = None
            if target.startswith("socket:["):
                one = self._supervisor.table.by_inode(int(target[8:-1]))
            row = {"fd": number, "target": target, "protocol": None, "state": None, "local": None, "remote": None}
            if one is not None:
                one.settle()
                row |= {"protocol": "tcp" if one.kind == socket.SOCK_STREAM else "udp", "state": one.state.name.lower(),
                        "local": list(one.name()), "remote": list(one.remote) if one.remote else None}
            rows.append(row)
        return {"descriptors": _fitting(rows), "total": len(rows)}

    def _signal(self, pid: int, number: int) -> dict[str, Any]:
        self._check(pid)
        os.kill(pid, signal.Signals(number))
        return {}

    def _suspend(self, pid: int) -> dict[str, Any]:
        """Parents before their children: who is stopped starts nothing more."""
        self._check(pid)
        stopped: set[int] = set()
        while fresh := [each for each in (pid, *inventory.below(pid)) if each not in stopped]:
            for each in fresh:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGSTOP)
            stopped.update(fresh)
        return {}

    def _resume(self, pid: int) -> dict[str, Any]:
        """Children before their parents, who may look for them at once."""
        self._check(pid)
        for each in reversed((pid, *inventory.below(pid))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGCONT)
        return {}

    def _figures(self) -> dict[str, Any]:
        meter = self._supervisor.meter
        meter.sample(self._supervisor.programs())
        return {"spent": list(meter.total), "waits": meter.waits}

    def _nice(self, pid: int, nice: int) -> dict[str, Any]:
        self._check(pid)
        os.setpriority(os.PRIO_PROCESS, pid, nice)
        return {}

    def _memory(self) -> dict[str, Any]:
        return {"memory": self._paged()["memory"]}

    def _memory_totals(self) -> dict[str, Any]:
        return {"totals": self._paged()["totals"]}

    def _swap(self) -> dict[str, Any]:
        return {"swap": self._paged()["swap"]}

    def _paged(self) -> dict[str, Any]:
        """What the pager told last."""
        if self._supervisor.memory is None or not self._supervisor.memory.latest:
            raise OSError(errno.ENODATA, "the memory of these programs is not limited")
        return self._supervisor.memory.latest

    def _check(self, pid: int) -> None:
        if pid not in self._supervisor.programs():
            raise OSError(errno.ESRCH, f"process {pid} is none of ours")


def _shortened(row: dict[str, Any], octets: int) -> dict[str, Any]:
    """A process's row that takes so many octets in a packet, at most: its command may be long."""
    while len(json.dumps(row)) > octets - len(", ") and row["command"]:
        row["command"] = row["command"][:len(row["command"]) // 2]
    return row


def _fitting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many rows, from the first on, as fit a packet."""
    room, count = PACKET_MOST - 1024, 0
    for row in rows:
        room -= len(json.dumps(row)) + len(", ")
        count += room >= 0
    return rows[:count]


def _waits(spent: Spent) -> dict[str, Any]:
    return {"wait_s": spent.wait_ns / 1e9, "slices": spent.slices}
