"""What an operator can ask about programs on the stack; the methods of `process_protocol`."""

import contextlib
import os
import signal
from typing import Any

import msgspec

from rustosd.control import process_protocol as p
from rustosd.control.base import Done, Nothing
from rustosd.control.server import Handed, OperationFailed, Peer
from rustosd.processes import DAEMON


class ProcessOperations:
    """The methods of `process_protocol.METHODS`."""

    core: Any
    """Its `processes` is a `rustosd.processes.Processes`, its `scheduler` a `rustosd.scheduling.scheduler.Scheduler`."""
    sched_list: Any
    """`SchedOperations.sched_list`."""

    async def process_list(self, _: Nothing) -> list[p.Process]:
        found = []
        for row in await self.core.processes.rows():
            with contextlib.suppress(msgspec.ValidationError):      # its supervisor may say anything
                found.append(msgspec.convert(self._scheduled(row), p.Process))
        return found

    async def process_show(self, which: p.ProcessId) -> p.ProcessDetails:
        if which.pid == DAEMON:
            raise OperationFailed("0 is the daemon itself; see: rustosctl status")
        group, answer = await self.core.processes.ask(which.pid, "show")
        answer["process"] |= {"group": group, "program": self.core.processes.name_of(group)}
        rows = [row for row in await self.sched_list(Nothing()) if row.supervisor == group]
        more = {"process": self._scheduled(answer["process"]), "scheduling": rows[0] if rows else None}
        return msgspec.convert({**answer, **more}, p.ProcessDetails)

    async def process_fds(self, which: p.ProcessId) -> list[p.Descriptor]:
        _, answer = await self.core.processes.ask(which.pid, "descriptors")
        rows = []
        for row in answer["descriptors"]:
            names = {end: _endpoint(row[end]) for end in ("local", "remote")}
            rows.append(msgspec.convert({**row, **names}, p.Descriptor))
        return rows

    async def process_signal(self, which: p.ProcessSignal) -> Done:
        self._refuse_daemon(which.pid, "stopped by the service manager, or with Ctrl-C")
        group, _ = await self.core.processes.ask(which.pid, "signal", number=int(getattr(signal, f"SIG{which.signal}")))
        if which.signal == "KILL":
            await self.core.scheduler.let_die(group, which.pid)
        return Done()

    async def process_suspend(self, which: p.ProcessId) -> Done:
        await self._halt(which.pid, True)
        return Done()

    async def process_resume(self, which: p.ProcessId) -> Done:
        await self._halt(which.pid, False)
        return Done()

    async def _halt(self, pid: int, wanted: bool) -> None:
        """A whole program by its group, if it has one; a part of one by signals, which its parents are told of."""
        self._refuse_daemon(pid, "stopped by the service manager, or with Ctrl-C")
        group, _ = await self.core.processes.ask(pid, "show")
        program = self.core.scheduler.programs.get(group)
        whole = program is not None and (program.first == pid or not wanted)
        frozen = whole and await self.core.scheduler.freeze(group, wanted)
        if not (wanted and frozen):
            await self.core.processes.ask(pid, "suspend" if wanted else "resume")

    def _scheduled(self, row: dict[str, Any]) -> dict[str, Any]:
        program = self.core.scheduler.programs.get(row["group"])
        state = {"state": "suspended"} if program is not None and program.suspended else {}
        return row | state | {"sched_class": program.settings.sched_class if program is not None else ""}

    async def process_nice(self, which: p.ProcessNice) -> Done:
        self._refuse_daemon(which.pid, "given its nice value by the service manager (Nice= in the unit)")
        await self.core.processes.ask(which.pid, "nice", nice=which.nice)
        return Done()

    async def process_wait(self, which: p.ProcessWait) -> p.ProcessEnd:
        if which.program == str(DAEMON):
            raise OperationFailed("0 is the daemon itself; see: rustosctl status")
        end = await self.core.processes.wait(which.program, which.seconds)
        if end is None:
            return p.ProcessEnd(ended=False, pid=None, name="", status=None)
        return p.ProcessEnd(ended=True, pid=end.pid or None, name=end.name, status=end.status)

    def process_attach(self, _: Nothing, peer: Peer) -> Handed:
        return Handed(Done(), self.core.processes.attach(peer.pid, peer.uid))

    @staticmethod
    def _refuse_daemon(pid: int, instead: str) -> None:
        if pid in (DAEMON, os.getpid()):
            raise OperationFailed(f"process 0 is the daemon: it cannot be signalled here, it is {instead}")


def _endpoint(pair: Any) -> str | None:
    if pair is None:
        return None
    host, port = pair
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
