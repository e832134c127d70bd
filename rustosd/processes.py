"""The process table: the supervisors that run programs on the stack, asked what there is. Number 0 is the daemon itself."""

import asyncio
import contextlib
import errno
import json
import os
import socket
from collections import OrderedDict
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from rustosd.faults import FaultNotice, Faults, HandledNotice
from rustosd.process import inventory
from rustosd.process.channel import PACKET_MOST
from rustosd.scheduling import waits
from rustosd.scheduling.waits import BUCKETS, Spent

PATIENCE_S: Final = 2.0
GROUPS_MOST: Final = 1024
ENDED_MOST: Final = 256
DAEMON: Final = 0
_DEEPEST: Final = 4096              # a process below its supervisor


class Started(msgspec.Struct, forbid_unknown_fields=True, tag_field="notice", tag="started"):
    """A supervisor's word, unasked, when its program was executed."""

    pid: Annotated[int, msgspec.Meta(ge=1, le=1 << 22)]
    name: Annotated[str, msgspec.Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9._@+-]{0,63})?\Z")]


class Ended(msgspec.Struct, forbid_unknown_fields=True, tag_field="notice", tag="ended"):
    """And when it has ended, with its exit status as shells have it."""

    status: Annotated[int, msgspec.Meta(ge=0, le=255)]


_notices = msgspec.json.Decoder(Started | Ended | FaultNotice | HandledNotice)
_answers = msgspec.json.Decoder(dict[str, Any])


_Amount = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class _Rows(msgspec.Struct):
    """What a supervisor answers when asked for a list."""

    processes: list[dict[str, Any]] = []


class _Figures(msgspec.Struct):
    """What a supervisor answers when asked for figures."""

    spent: tuple[_Amount, _Amount, _Amount]
    waits: Annotated[list[_Amount], msgspec.Meta(min_length=BUCKETS, max_length=BUCKETS)]


class End(NamedTuple):
    """How a program ended; `status` None: nobody was told."""

    pid: int
    name: str
    status: int | None


class Group:
    """One supervisor. Questions go out one at a time; what it says unasked is taken in between."""

    def __init__(self, pid: int, uid: int, end: socket.socket, over: "Processes") -> None:
        self.pid = pid
        self.uid = uid
        self.end = end
        self.program = 0
        """The first process that it runs; 0: not yet."""
        self.name = ""
        self.over: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        """Done when the program has ended, or the supervisor."""
        self._table = over
        self._turn = asyncio.Lock()
        self._answer: asyncio.Future[dict[str, Any]] | None = None
        self._owes = False          # an answer, to a question whose asker may have given up
        asyncio.get_running_loop().add_reader(end.fileno(), self._on_readable)

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Raises OSError: what the answer says; ETIMEDOUT, ECONNRESET when there is none.

        One that does not answer in time is asked nothing more until it has: its late answer is not the next question's.
        """
        loop = asyncio.get_running_loop()
        async with self._turn:
            if self.end.fileno() < 0:
                raise OSError(errno.ECONNRESET, f"the supervisor {self.pid} has ended")
            self._answer = loop.create_future()
            try:
                if self._owes:
                    raise TimeoutError
                async with asyncio.timeout(PATIENCE_S):
                    await loop.sock_sendall(self.end, json.dumps({"op": op, **fields}).encode())
                    self._owes = True
                    answer = await self._answer
            except TimeoutError:
                raise OSError(errno.ETIMEDOUT, f"the supervisor {self.pid} does not answer") from None
            finally:
                self._answer = None
        if answer.get("errno"):
            raise OSError(answer["errno"], str(answer.get("error", "")))
        return answer

    def _on_readable(self) -> None:
        try:
            packet = self.end.recv(PACKET_MOST)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            return self._table.forget(self)
        try:
            if packet.startswith(b'{"notice"'):
                return self._noted(_notices.decode(packet))
            answer = _answers.decode(packet)
        except ValueError:
            return self._table.forget(self)     # of another version, or hostile
        self._owes = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def _noted(self, notice: Started | Ended | FaultNotice | HandledNotice) -> None:
        if isinstance(notice, Started):
            self.program, self.name = notice.pid, notice.name
        elif isinstance(notice, FaultNotice):
            self._table.faults.ended(notice, self.pid, self.uid)
        elif isinstance(notice, HandledNotice):
            self._table.faults.handled(notice, self.pid, self.uid)
        elif not self.over.done():
            self.over.set_result(End(self.program, self.name, notice.status))

    def close(self) -> None:
        """Let go of it. May be called twice."""
        if self.end.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self.end.fileno())
            self.end.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(OSError(errno.ECONNRESET, f"the supervisor {self.pid} has ended"))
        if not self.over.done():
            self.over.set_result(End(self.program, self.name, None))


class Processes:
    """All groups. What a supervisor says is data of its user's and is checked by the types of the protocol."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self._groups: dict[int, Group] = {}
        self._ended: OrderedDict[int, End] = OrderedDict()      # by process, for those who ask late

    def attach(self, pid: int, uid: int) -> socket.socket:
        """The end for the supervisor `pid`, who is of user `uid`. Raises OSError (EMFILE)."""
        if len(self._groups) >= GROUPS_MOST:
            raise OSError(errno.EMFILE, f"{GROUPS_MOST} programs run on the stack already")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        if (before := self._groups.get(pid)) is not None:
            self.forget(before)
        self._groups[pid] = Group(pid, uid, ours, self)
        return theirs

    def groups(self) -> list[Group]:
        """All supervisors."""
        return list(self._groups.values())

    async def rows(self) -> list[dict[str, Any]]:
        """Every process, the daemon first; those of supervisors that do not answer, or not as they should, are left out."""
        groups = list(self._groups.values())
        answers = await asyncio.gather(*(group.ask("list") for group in groups), return_exceptions=True)
        found = [_daemon()]
        for group, answer in zip(groups, answers, strict=True):
            with contextlib.suppress(msgspec.ValidationError):
                rows = msgspec.convert({} if isinstance(answer, BaseException) else answer, _Rows).processes
                found += [{**row, "group": group.pid, "program": group.name} for row in rows]
        return found

    async def ask(self, pid: int, op: str, **fields: Any) -> tuple[int, dict[str, Any]]:
        """Ask whoever supervises a process; its group and the answer. Raises OSError (ESRCH: nobody does)."""
        with contextlib.suppress(ProcessLookupError):
            if (group := self._above(pid)) is not None:
                return group.pid, await group.ask(op, pid=pid, **fields)
        raise _no_program(pid)

    def _above(self, pid: int) -> Group | None:
        """Whose process it is, by the kernel's word: supervisors could claim what is not theirs."""
        seen = 0
        above = inventory.parent_of(pid)
        while above and above not in self._groups and seen < _DEEPEST:
            above, seen = inventory.parent_of(above), seen + 1
        return self._groups.get(above or 0)

    async def figures(self) -> dict[int, tuple[Spent, list[int]]]:
        """What programs have spent so far and how long their turns waited, by supervisor, of those that answer."""
        groups = [group for group in self._groups.values() if group.program]
        answers = await asyncio.gather(*(group.ask("figures") for group in groups), return_exceptions=True)
        found = {}
        for group, answer in zip(groups, answers, strict=True):
            with contextlib.suppress(msgspec.ValidationError):
                figures = msgspec.convert(answer, _Figures) if isinstance(answer, dict) else None
                if figures is not None:
                    found[group.pid] = (Spent(*figures.spent), figures.waits)
        return found

    def name_of(self, group: int) -> str:
        """What the program of a supervisor is called; empty: nothing."""
        return self._groups[group].name if group in self._groups else ""

    async def wait(self, who: str, seconds: float) -> End | None:
        """How the program of that name or number ended, once it has; None: it runs on. Raises OSError (ESRCH, EEXIST)."""
        group = self._named(who)
        if group is None:
            known = [end for end in self._ended.values() if who in (end.name, str(end.pid))]
            if known:
                return known[-1]
            if not who.isdecimal():
                raise OSError(errno.ESRCH, f"no program on the stack is called {who}; see: rustosctl ps")
            return await self._wait_for_process(int(who), seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await asyncio.shield(group.over)
        return None

    def _named(self, who: str) -> Group | None:
        found = [group for group in self._groups.values() if group.program and who in (group.name, str(group.program))]
        if len(found) > 1:
            pids = ", ".join(str(group.program) for group in found)
            raise OSError(errno.EEXIST, f"several programs are called {who}; say which by its number: {pids}")
        return found[0] if found else None

    async def _wait_for_process(self, pid: int, seconds: float) -> End | None:
        """One that a program has started: only its parent is told how it ends."""
        loop = asyncio.get_running_loop()
        try:
            pidfd = os.pidfd_open(pid) if pid else -1
        except (OSError, OverflowError):
            raise _no_program(pid) from None
        try:
            await self.ask(pid, "show")
            gone = loop.create_future()
            loop.add_reader(pidfd, lambda: gone.done() or gone.set_result(None))
            try:
                async with asyncio.timeout(seconds):
                    await gone
            except TimeoutError:
                return None
            finally:
                loop.remove_reader(pidfd)
            return End(pid, "", None)
        finally:
            if pidfd >= 0:
                os.close(pidfd)

    def close(self) -> None:
        """Let go of the supervisors; they see that the daemon has ended by their sockets."""
        for group in list(self._groups.values()):
            self.forget(group)

    def forget(self, group: Group) -> None:
        """Let go of one supervisor; how its program ended is kept for a while."""
        if self._groups.get(group.pid) is group:
            del self._groups[group.pid]
        group.close()
        if group.program:
            self._ended[group.program] = group.over.result()
            self._ended.move_to_end(group.program)
            while len(self._ended) > ENDED_MOST:
                self._ended.popitem(last=False)


def _no_program(pid: int) -> OSError:
    return OSError(errno.ESRCH, f"no program on the stack has the number {pid}; see: rustosctl ps")


def _daemon() -> dict[str, Any]:
    row = inventory.describe(os.getpid())
    assert row is not None
    spent = waits.own()
    return {**row, "pid": DAEMON, "parent": DAEMON, "group": DAEMON, "name": "rustosd", "sockets": 0, "started": 0,
            "program": "", "wait_s": spent.wait_ns / 1e9, "slices": spent.slices}
