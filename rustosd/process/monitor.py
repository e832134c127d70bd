"""The life of every process and thread below a supervisor: who started whom, what was executed, who has ended and how.

A traced program stops when it forks, clones, executes, is about to get a signal, or is stopped by one; it is told here, and
goes on from here. Its system calls do not stop it. What waitpid(2) reports comes in by `take`; nothing here waits.
"""

import contextlib
import os
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from rustosd.process import inventory, ptrace
from rustosd.process.ptrace import Kind
from rustosd.process.signals import signal_name

ENDED_KEPT: Final = 32
TELLS_WITHIN_S: Final = 10.0
"""A parent that lives tells of its child, on a busy machine too; a thread of it that another one's exec has ended does not."""


class End(NamedTuple):
    """How a process has ended: `code` is its exit status, below 0 the signal that killed it."""

    pid: int
    name: str
    code: int

    def __str__(self) -> str:
        return f"exit status {self.code}" if self.code >= 0 else signal_name(-self.code)


class Monitor:
    """Everything below one supervisor. Without `seize` it knows of ends only.

    Hooks are called in the order in which they were added, before the thread that they are about runs on:
    `on_fork(parent, child, kind)` with kind fork, vfork or clone, for processes, not for threads; parent 0: who forked it was
    ended before it could tell. `on_exec(pid)` at the first instruction of a new program; `on_exit(pid, status)`, with a status
    of waitpid(2), when a process is gone with all its threads; `on_other_exit(pid)` when it was none of the programs. A hook
    may use `ptrace.Borrowed`, with Kind.EXEC in on_exec, and on the parent with the kind of event in on_fork.
    `on_start(pid)`: a process that was forked is about to run its first instruction; it may be borrowed with Kind.TRAPPED. Who
    answers True there or in on_exec lets it go on himself, by `ptrace.go_on`.
    `on_call(tid)` and `on_call_end(tid)` take over a thread before and behind a call that its filter tells of (`filter.TRACE`);
    `on_fork_end(tid)` one that has forked, or started a thread, instead of on_call_end.
    `judge(tid, number)` says which signal is delivered in place of one that is about to be, 0 for none.
    """

    def __init__(self) -> None:
        self.traced = False
        self.threads: dict[int, int] = {}       # of what is traced: thread -> its process
        self.stopped: set[int] = set()          # threads that stand still with their processes
        self.life: Counter[str] = Counter()     # forks, vforks, clones (of processes), threads, execs, exits, signals
        self.started: Counter[int] = Counter()  # by process that lives: how many others it has started
        self.ended: deque[End] = deque(maxlen=ENDED_KEPT)
        self.on_fork: list[Callable[[int, int, str], None]] = []
        self.on_exec: list[Callable[[int], bool | None]] = []
        self.on_exit: list[Callable[[int, int], None]] = []
        self.on_start: list[Callable[[int], bool]] = []
        self.on_other_exit: Callable[[int], None] = lambda _tid: None
        self.on_call: Callable[[int], None] = ptrace.go_on
        self.on_call_end: Callable[[int], None] = ptrace.go_on
        self.on_fork_end: Callable[[int], None] = ptrace.go_on
        self.judge: Callable[[int, int], int] = lambda _tid, number: number
        self._names: dict[int, str] = {}
        self._unborn: set[int] = set()          # processes whose parents have told of them, and that have not stopped yet
        self._early: dict[int, float] = {}      # stopped before their parents told of them, since when
        self._untold: set[int] = set()          # let go without that
        self._verbs: dict[Kind, Callable[[int, int], None]] = {
            Kind.SIGNAL: self._signalled, Kind.SYSCALL: self._call_ended, Kind.CALL: self._called,
            Kind.STOPPED: self._stopped, Kind.TRAPPED: self._trapped,
            Kind.FORK: self._forked, Kind.VFORK: self._forked, Kind.CLONE: self._forked, Kind.EXEC: self._executed}
        self._kind = Kind.TRAPPED

    def seize(self, pid: int) -> None:
        """Trace a child that waits to be let go, and all it starts. Raises OSError."""
        ptrace.seize(pid)
        self.traced = True
        self.threads[pid] = pid

    def take(self, tid: int, status: int) -> None:
        """One report of waitpid(2)."""
        kind, number = ptrace.decode(status)
        if kind is Kind.ENDED:
            self._gone(tid, status)
            return
        self._kind = kind
        try:
            self._verbs[kind](tid, number)
        except ProcessLookupError:
            pass                        # killed while it stood; its end is reported next
        except ptrace.Ended as ended:
            self._gone(ended.tid, ended.status)

    def tidy(self) -> None:
        """Now and then: let go those whose parents were killed before they could tell of them; forget who left unseen."""
        for tid, since in list(self._early.items()):
            process = inventory.process_of(tid)
            parent = inventory.parent_of(tid) if process == tid else process
            if parent not in self.threads.values():
                self._enter(tid, 0, "fork")
            elif time.monotonic() >= since + TELLS_WITHIN_S:
                self._untold.add(tid)
                self._enter(tid, parent, "fork", told=False)
        for tid in [tid for tid in self.threads if not Path(f"/proc/{tid}").exists()]:
            self._forget(tid)

    def process_of(self, tid: int) -> int:
        """The process of a thread that is traced; the thread's own number for any other."""
        return self.threads.get(tid, tid)

    def _called(self, tid: int, _number: int) -> None:
        self.on_call(tid)

    def _call_ended(self, tid: int, _number: int) -> None:
        self.on_call_end(tid)

    def _signalled(self, tid: int, number: int) -> None:
        self.life["signals"] += 1
        ptrace.go_on(tid, self.judge(tid, number))

    def _stopped(self, tid: int, _number: int) -> None:
        self.stopped.add(tid)
        ptrace.listen(tid)

    def _trapped(self, tid: int, _number: int) -> None:
        self.stopped.discard(tid)
        if tid in self._unborn:
            self._unborn.discard(tid)
            self._start(tid)
        elif tid in self.threads:
            ptrace.go_on(tid)
        else:
            self._early[tid] = time.monotonic()

    def _start(self, tid: int) -> None:
        if not any([told(tid) for told in self.on_start]):
            ptrace.go_on(tid)

    def _forked(self, tid: int, _number: int) -> None:
        kind = self._kind.value
        if (child := ptrace.event_message(tid)) not in self._untold:
            self._enter(child, self.process_of(tid), kind)
        self.on_fork_end(tid)

    def _enter(self, child: int, parent: int, kind: str, told: bool = True) -> None:
        early = self._early.pop(child, None) is not None
        process = inventory.process_of(child)
        if process is None:
            return
        self.threads[child] = process
        if process == child:
            self.life[f"{kind}s"] += 1
            self.started[parent] += 1
            self._names[child] = self._names.get(parent, "")
            for hook in self.on_fork:
                hook(parent if told else 0, child, kind)
            if not early:
                self._unborn.add(child)
        else:
            self.life["threads"] += 1
        if early:
            with contextlib.suppress(ProcessLookupError):
                self._start(child) if process == child else ptrace.go_on(child)

    def _executed(self, tid: int, _number: int) -> None:
        if (former := ptrace.event_message(tid)) != tid:        # a thread has taken the place of its process's first
            self.threads.pop(former, None)
        self.life["execs"] += 1
        with contextlib.suppress(OSError):
            self._names[tid] = inventory.proc_text(tid, "comm").rstrip("\n")
        if not any([told(tid) for told in self.on_exec]):
            ptrace.go_on(tid)

    def _gone(self, tid: int, status: int) -> None:
        known = self.threads.get(tid)
        name = self._names.get(tid, "")
        self._early.pop(tid, None)
        self._forget(tid)
        # A process is reported once to its tracer; one that its own parent then left to us comes a second time.
        if known == tid or (known is None and not self.traced):
            self.life["exits"] += 1
            self.ended.append(End(tid, name, os.waitstatus_to_exitcode(status)))
            for told in self.on_exit:
                told(tid, status)
        elif known is None:
            self.on_other_exit(tid)

    def _forget(self, tid: int) -> None:
        self._unborn.discard(tid)
        self._untold.discard(tid)
        self.threads.pop(tid, None)
        self.stopped.discard(tid)
        self.started.pop(tid, None)
        self._names.pop(tid, None)
