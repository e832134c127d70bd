"""Runs a program and answers its socket calls until it has ended: one process, one thread, one epoll.

The calls of the program and of everything it starts come one after the other. None of them may hold up the others: what has
to wait is put aside with a descriptor that becomes ready, and the call is answered then. A call that a signal interrupted is
found out before anything is done for it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from rustosd import open_files
from rustosd.memory_limits import Limits
from rustosd.process import inventory, ptrace, report
from rustosd.process.answers import HANDLERS
from rustosd.process.call import Call
from rustosd.process.calls import Calls
from rustosd.process.channel import Channel
from rustosd.process.exceptions import Exceptions, Fault
from rustosd.process.filter import RULES, Rule, assemble, joined, memory_rules
from rustosd.process.launch import LaunchFailed, Program, identity_of, launch
from rustosd.process.link import Link
from rustosd.process.memory import Memory, MemoryRefused, check_rights
from rustosd.process.monitor import Monitor
from rustosd.process.notify import Notifications
from rustosd.process.opening import Opening
from rustosd.process.output import Output
from rustosd.process.say import say
from rustosd.process.sockets import Table
from rustosd.process.threads import Threads
from rustosd.scheduling.waits import Meter

_TICK_NS: Final = 1_000_000_000
_RETRY_NS: Final = 2_000_000
_ALONE_S: Final = 0.01
_DESCRIPTORS: Final = 16384
"""For each call that waits, and for each process whose memory is limited."""
GRACE_S: Final = 5.0
_KILLED_S: Final = 5.0
"""For what was killed to be gone: it may be in the middle of something in the kernel."""
FORWARDED: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals to the supervisor that are meant for the program. Those of the terminal reach it anyway."""


@dataclass
class _Waiting:
    """A call that is put aside."""

    call: Call
    attempt: Callable[[int], bool]


class Supervisor:
    """One program and all that it starts."""

    def __init__(self, link: Link, name: str = "", output: Output | None = None, grace_s: float = GRACE_S,
                 traced: bool = True, limits: Limits | None = None) -> None:
        """`name`: what people call the program; `output`: where what it writes goes, instead of to where ours does.

        `grace_s`: how long it has to end when it is told to. `traced`: own the programs by ptrace, too, to know of their lives
        and exceptions; then none of them can trace. `limits`: of their memory; what is above goes to swap.
        """
        self.link = link
        self.name = name
        self.grace_s = grace_s
        self.dies_with_daemon = False
        self.before_exec: Callable[[int], bool] = lambda _pid: False
        """Called with the program's number when it is about to begin; what it raises keeps it from that.

        True: processors are kept awake while its calls come often.
        """
        self.meter = Meter()
        self.monitor = Monitor()
        self.monitor.on_exit.append(self._ended)
        self.exceptions = Exceptions(self.monitor.threads, self._terminating)
        self.monitor.judge = self.exceptions.judge
        self._traced = traced
        self._limits = limits
        self.memory: Memory | None = None
        self.table = Table(self._held)
        self.refused: Counter[str] = Counter()
        """What a program asked for and cannot have, by name."""
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._waiting: dict[int, _Waiting] = {}             # by descriptor
        self._later: list[Callable[[], None]] = []
        self._threads = Threads()
        self._opening = Opening(self, self.table, self._tidy)
        self._calls: Calls | None = None
        self._channel: Channel | None = None
        self._child = 0
        self._status: int | None = None
        self._output = output
        self._kill_at = float("inf")
        self._alone = False                 # the daemon has ended
        self.roots_own = False              # the daemon takes it for root, whatever it makes of itself
        self.network = -1
        self._probe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def run(self, program: Program, executed: Callable[[int], None] = lambda _pid: None) -> int:
        """Run it to its end; its exit status, or 128 and the number of the signal that killed it. Raises LaunchFailed.

        `executed` is told its number when it runs.
        """
        self._restrict(program)
        rules = RULES if self._limits is None else joined(self._page(self._limits, self.roots_own), RULES)
        if self.memory is not None:
            program = replace(program, huge_pages=False)        # they cannot leave in parts
        started = launch(program, assemble(rules), -1 if self._output is None else self._output.end)
        open_files.raise_limit(_DESCRIPTORS)        # not the program's
        self._calls = Calls(Notifications(started.listener), self._threads, self._epoll.fileno(), self.table.sockets, HANDLERS,
                            self._opening.socket)
        self._child, self.network = started.pid, started.network
        wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        previous = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, self._on_signal) for number in (*FORWARDED, signal.SIGCHLD)}
        handlers |= {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGQUIT)}
        try:
            self._epoll.register(started.listener, select.EPOLLIN)
            self._watch_signals(wake)
            self._channel = Channel.open(self, self.link.path)
            if self.before_exec(started.pid):
                self._calls.keep_awake()
            if self._traced:
                self._seize()
            started.go(self._reap)
            if self._output is not None:
                self._output.began(started.pid, program.argv)
                self.watch(self._output.source, select.EPOLLIN, self._on_output)
            self._channel.tell_started(started.pid, self.name)
            executed(started.pid)
            gc.freeze()         # what is there by now stays: collections need not look at it
            with _programs_first():
                return self._loop()
        finally:
            self._end_all()
            self._tell_handled()
            if self._status is not None and self._channel is not None:
                self._channel.tell_ended(self._status)
                if self._output is not None:
                    self._output.ended(self._status)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous)
            os.close(wake)
            os.close(waker)
            self._close(started.listener)
            os.close(self.network)

    def _restrict(self, program: Program) -> None:
        """Have the daemon judge by who the program is. Raises LaunchFailed, OSError."""
        identity = identity_of(program.user)
        if identity is not None:
            groups = os.getgrouplist(identity.pw_name, identity.pw_gid)
            self.link.ask("restrict", uid=identity.pw_uid, groups=groups, policy=program.policy)
        elif program.policy:
            self.link.ask("restrict", policy=program.policy)
        self.roots_own = identity is None and os.geteuid() == 0

    def _page(self, limits: Limits, root: bool) -> dict[int, list[Rule]]:
        """Start the pager; what its programs' filter has besides. Raises LaunchFailed."""
        from rustosd.swap.opening import ask  # not for those without a limit: it brings all of swap along
        if not self._traced:
            raise LaunchFailed("a program whose memory is limited must be traced: leave out --untraced, or --memory")
        fd = -1
        try:
            check_rights(root)
            place, fd = ask(self.link.path)
            self.memory = Memory(self.monitor, limits, msgspec.to_builtins(place), fd, self._lost, self._end_with)
        except (MemoryRefused, OSError) as refused:
            raise LaunchFailed(getattr(refused, "strerror", None) or str(refused)) from None
        finally:
            if fd >= 0:
                os.close(fd)
        self.watch(self.memory.socket.fileno(), select.EPOLLIN, self.memory.told)
        return memory_rules(self.memory.cookie)

    def _end_with(self, why: str) -> None:
        """Nothing of the group can go on."""
        say(why)
        for pid in self.programs():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def programs(self) -> list[int]:
        """Every process of the group: what runs below us and is not ours."""
        return inventory.below(os.getpid(), self.memory.attendants if self.memory is not None else ())

    def _loop(self) -> int:
        tick = time.monotonic_ns() + _TICK_NS
        while self._status is None:
            if self._alone:         # listening sockets of before are readable for ever, and who accepts gets an error at once
                self._calls.hurry()
                time.sleep(_ALONE_S)
            for fd, events in self._calls.wait(time.monotonic_ns() + _RETRY_NS if self._later else tick):
                if (waiting := self._waiting.get(fd)) is not None:
                    self._attempt(fd, waiting, events)
                elif (told := self._watched.get(fd)) is not None:
                    told(events)
            later, self._later = self._later, []
            for action in later:
                action()
            if time.monotonic_ns() >= tick:
                tick = time.monotonic_ns() + _TICK_NS
                self._tidy()
        return self._status

    @property
    def calls(self) -> Counter[int]:
        """How many socket calls of each number there were."""
        return Counter() if self._calls is None else self._calls.counted

    def _on_output(self, _events: int) -> None:
        if not self._output.written():
            self.forget(self._output.source)

    def stop(self) -> None:
        """Tell the program to end, and end it when it has not within its time."""
        self._kill_at = time.monotonic() + self.grace_s
        self._send(signal.SIGTERM)

    def daemon_ended(self) -> None:
        """The channel is closed. A program that is a person's own goes on, without its sockets, and without haste."""
        self._alone = True
        if self.dies_with_daemon:
            self.stop()

    # sockets.Loop

    def wait(self, call: Call, fd: int, events: int, attempt: Callable[[int], bool]) -> None:
        self._waiting[fd] = _Waiting(call, attempt)
        self._epoll.register(fd, events)

    def watch(self, fd: int, events: int, told: Callable[[int], None]) -> None:
        self._watched[fd] = told
        self._epoll.register(fd, events)

    def forget(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def later(self, action: Callable[[], None]) -> None:
        """Call it in a moment."""
        self._later.append(action)
        self._calls.hurry()

    # calls

    def _attempt(self, fd: int, waiting: _Waiting, events: int) -> None:
        if not waiting.call.valid:
            self._put_down(fd)
            return
        try:
            done = waiting.attempt(events)
        except Exception as wrong:
            waiting.call.fail(wrong)
            done = True
        if done:
            self._put_down(fd)

    def _put_down(self, fd: int) -> None:
        if self._waiting.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            os.close(fd)

    # processes

    def _watch_signals(self, wake: int) -> None:
        def drain(_events: int) -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
            self._reap()
        self.watch(wake, select.EPOLLIN, drain)

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGTERM and self.dies_with_daemon:
            self.stop()
        elif number != signal.SIGCHLD:
            self._send(number)

    def _send(self, number: int) -> None:
        if self._status is None:        # else its number may be another's
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, number)

    def _seize(self) -> None:
        try:
            self.monitor.seize(self._child)
        except OSError as refused:
            if self.memory is not None:
                os.kill(self._child, signal.SIGKILL)
                raise LaunchFailed("a program whose memory is limited must be traced: ptrace says "
                                   f"{refused.strerror}") from None
            say(f"the program runs untraced, its exceptions are not explained: ptrace says {refused.strerror}. Something else "
                 "traces it already, or a container or security module forbids it; --untraced silences this")

    def _terminating(self, fault: Fault) -> None:
        """An exception is about to end a process: say so to the daemon, and to whoever looks at our terminal."""
        summary, program = report.summary(fault), report.program_of(fault)
        code, address = fault.error_code, fault.address
        self._channel.tell_fault(
            pid=fault.process, thread=fault.tid, program=program, kind=fault.kind, signal=fault.info.number, trap=fault.trap,
            error_code=None if code is None else f"{code:#x}", address=None if address is None else f"{address:#x}",
            words=summary[:500], text=report.compose(fault, self._calls.recent))
        say(f"{program} ({fault.process}) ends by {summary}; more: rustosctl faults")

    def _tell_handled(self) -> None:
        for kind, count in self.exceptions.take_handled().items():
            self._channel.tell_handled(kind, count)

    def _reap(self) -> None:
        """Take in all that has happened to processes and threads."""
        while True:
            try:
                tid, status = os.waitpid(-1, os.WNOHANG | ptrace.WALL)
            except ChildProcessError:
                return
            if not tid:
                return
            self.monitor.take(tid, status)

    def _lost(self, thread: int, address: int, why: str) -> None:
        """A page of a program's memory cannot be brought in. Raises OSError: the thread is not one of the group's."""
        self.exceptions.swap_fault(thread, address, why)

    def _ended(self, pid: int, status: int) -> None:
        """The first process's end is ours."""
        self._threads.forget(pid)
        if pid == self._child:
            code = os.waitstatus_to_exitcode(status)
            self._status = code if code >= 0 else 128 - code

    def _held(self) -> set[int]:
        """The inodes of all sockets that the group's processes hold."""
        return set().union(*map(inventory.socket_inodes, self.programs()))

    def _tidy(self) -> None:
        """Let go of what programs have let go of without a call of ours; end what was told to end and does not."""
        if time.monotonic() >= self._kill_at:
            self._send(signal.SIGKILL)
        for fd, waiting in list(self._waiting.items()):
            if not waiting.call.valid:
                self._put_down(fd)
        self.meter.sample(self.programs())
        self.monitor.tidy()
        self.exceptions.tidy()
        self._tell_handled()
        self.table.forget_closed(self._probe)
        self._threads.tidy()

    # the end

    def _end_all(self) -> None:
        """The first process has ended: the others are told, and have a moment."""
        for number, patience_s in ((signal.SIGTERM, self.grace_s), (signal.SIGKILL, _KILLED_S)):
            limit = time.monotonic() + patience_s
            for pid in self.programs():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            while self.programs() and time.monotonic() < limit:
                self._reap()
                self.monitor.tidy()
                self._calls.take_waiting()
                if self.memory is not None:
                    self.memory.told()
                time.sleep(0.005)
        self._reap()

    def _close(self, listener: int) -> None:
        if self.memory is not None:
            self.forget(self.memory.socket.fileno())
            self.memory.close()
        if self._channel is not None:
            self._channel.close()
        for fd in list(self._waiting):
            self._put_down(fd)
        self.table.close()
        self._opening.close()
        self._threads.close()
        self._probe.close()
        self._epoll.close()
        os.close(listener)
        self.link.close()


@contextlib.contextmanager
def _programs_first() -> Iterator[None]:
    """A program that we wake goes on at once, while we finish what is left of its call: who is batch does not preempt."""
    policy = os.sched_getscheduler(0)
    if policy != os.SCHED_OTHER:
        yield               # somebody has said how we are to run
        return
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, os.sched_param(0))
