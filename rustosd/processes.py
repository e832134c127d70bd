"""The process table: the supervisors that run programs on the stack, asked what there is. Number 0 is the daemon itself."""

import asyncio
import contextlib
import errno
import json
import os
import socket
from typing import Any, Final

from rustosd.process import inventory
from rustosd.process.channel import PACKET_MOST

PATIENCE_S: Final = 2.0
GROUPS_MOST: Final = 1024
DAEMON: Final = 0


class Group:
    """One supervisor. Questions go out one at a time."""

    def __init__(self, pid: int, end: socket.socket) -> None:
        self.pid = pid
        self.end = end
        self._turn = asyncio.Lock()

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Raises OSError: what the answer says; ETIMEDOUT, ECONNRESET when there is none."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await loop.sock_sendall(self.end, json.dumps({"op": op, **fields}).encode())
                    packet = await loop.sock_recv(self.end, PACKET_MOST)
            except TimeoutError:
                self.end.close()        # a late answer would be taken for the next one's
                raise OSError(errno.ETIMEDOUT, f"the supervisor {self.pid} does not answer") from None
        if not packet:
            raise OSError(errno.ECONNRESET, f"the supervisor {self.pid} has ended")
        answer = json.loads(packet)
        if answer.get("errno"):
            raise OSError(answer["errno"], answer["error"])
        return answer


class Processes:
    """All groups. What a supervisor says is data of its user's and is checked by the types of the protocol."""

    def __init__(self) -> None:
        self._groups: dict[int, Group] = {}

    def attach(self, pid: int) -> socket.socket:
        """The end for the supervisor `pid`. Raises OSError (EMFILE)."""
        self._drop_closed()
        if len(self._groups) >= GROUPS_MOST:
            raise OSError(errno.EMFILE, f"{GROUPS_MOST} programs run on the stack already")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        if (before := self._groups.pop(pid, None)) is not None:
            before.end.close()
        self._groups[pid] = Group(pid, ours)
        return theirs

    async def rows(self) -> list[dict[str, Any]]:
        """Every process, the daemon first; those of supervisors that do not answer are left out."""
        groups = list(self._groups.values())
        answers = await asyncio.gather(*(group.ask("list") for group in groups), return_exceptions=True)
        found = [_daemon()]
        for group, answer in zip(groups, answers, strict=True):
            if isinstance(answer, Exception):
                self._forget(group)
            else:
                found += [{**row, "group": group.pid} for row in answer["processes"]]
        return found

    async def ask(self, pid: int, op: str, **fields: Any) -> tuple[int, dict[str, Any]]:
        """Ask whoever supervises a process; its group and the answer. Raises OSError (ESRCH: nobody does)."""
        for group in list(self._groups.values()):
            try:
                return group.pid, await group.ask(op, pid=pid, **fields)
            except OSError as error:
                if error.errno in (errno.ETIMEDOUT, errno.ECONNRESET, errno.EPIPE):
                    self._forget(group)
                elif error.errno != errno.ESRCH:
                    raise
        raise OSError(errno.ESRCH, f"no program on the stack has the number {pid}; see: rustosctl ps")

    def close(self) -> None:
        """Let go of the supervisors; they see that the daemon has ended by their sockets."""
        for group in list(self._groups.values()):
            self._forget(group)

    def _forget(self, group: Group) -> None:
        if self._groups.get(group.pid) is group:
            del self._groups[group.pid]
        group.end.close()

    def _drop_closed(self) -> None:
        for group in list(self._groups.values()):
            with contextlib.suppress(BlockingIOError):
                try:
                    if group.end.recv(1, socket.MSG_PEEK):
                        continue
                except ConnectionError:
                    pass
                self._forget(group)


def _daemon() -> dict[str, Any]:
    row = inventory.describe(os.getpid())
    assert row is not None
    return {**row, "pid": DAEMON, "parent": DAEMON, "group": DAEMON, "name": "rustosd", "sockets": 0}
