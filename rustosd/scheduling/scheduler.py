"""Programs on the stack get the share of the processors that was said for them, by whatever the kernel lets us use for that.

Where the daemon may make control groups, each program has one below its class's: classes share by their weights however many
programs there are in each. Elsewhere there are nice values, policies and affinity, and no quotas.
"""

import asyncio
import contextlib
import os
import select
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import structlog

from rustosd.config import SchedulerConfig
from rustosd.journal import GroupsMade, Journal
from rustosd.process import inventory
from rustosd.scheduling import groups as kernel
from rustosd.scheduling import tasks
from rustosd.scheduling.ahead import Ahead
from rustosd.scheduling.groups import Groups, NoGroups
from rustosd.scheduling.settings import (
    ALL_WEIGHT,
    CLASSES,
    WAYS,
    ClassName,
    Settings,
    nice_of,
    realtime_priority,
    weight,
)
from rustosd.scheduling.waits import BUCKETS, Spent

PROGRAMS_MOST: Final = 1024
_DYING_MS: Final = 1000

log = structlog.get_logger(__name__)


class Figures(Protocol):
    """Whoever can be asked what programs have spent: `rustosd.processes.Processes`."""

    async def figures(self) -> dict[int, tuple[Spent, list[int]]]: ...


@dataclass
class Program:
    """One supervisor's program, and all that it has started."""

    supervisor: int
    first: int
    settings: Settings
    """Complete: nothing in it is None."""
    homes: dict[kernel.Controller, Path]
    nice: int
    """Its nice value at the start, which stays its own business inside its group."""
    pidfd: int = -1
    name: str | None = None
    """Of its group; None: it has none."""
    pinned: bool = False
    suspended: bool = False
    seen: tuple[Spent, list[int]] = field(default_factory=lambda: (Spent(), [0] * BUCKETS))


class Scheduler:
    """Of one daemon. What takes the kernel long is done on another thread, one thing after the other."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.programs: dict[int, Program] = {}
        """By their supervisors."""
        self.ahead = Ahead()
        self.groups: Groups | None = None
        self.spent: dict[ClassName, Spent] = dict.fromkeys(CLASSES, Spent())
        self.waits: dict[ClassName, list[int]] = {name: [0] * BUCKETS for name in CLASSES}
        self.why_no_groups = ""
        self._made = 0
        self._journal: Journal | None = None
        self._turn = asyncio.Lock()
        self._ends: set[asyncio.Task] = set()
        try:
            self._place: kernel.Place | None = kernel.find(config.cgroup)
        except NoGroups as error:
            self._place, self.why_no_groups = None, str(error)

    # the daemon's side

    def open(self, journal: Journal) -> None:
        """What is taken from the host is written down there. Raises OSError, ValueError."""
        self._journal = journal
        self._check_reserved(self.config)
        self.ahead.keep_to(self.config.reserved_processors.numbers)

    async def close(self) -> None:
        """Let go of everything: programs go on where they were, and so does the daemon."""
        async with self._turn:
            for program in list(self.programs.values()):
                await self._release(program)
            self.ahead.be("as started", 0)
            self.ahead.keep_to(())
            if self.groups is not None:
                await _aside(self._remove_groups)

    async def configure(self, config: SchedulerConfig) -> None:
        """Take another configuration, for programs that run too. Raises ValueError."""
        self._check_reserved(config)
        async with self._turn:
            for program in self.programs.values():
                self._check_processors(program.settings, config)
            self.config = config
            self.ahead.keep_to(config.reserved_processors.numbers)
            if self.groups is not None:
                await _aside(self._set_up_groups)
            for program in list(self.programs.values()):
                with contextlib.suppress(ProcessLookupError):
                    await _aside(self._apply, program, program.settings)
            self._stay_ahead()

    @property
    def place(self) -> str:
        """Where groups are, in words; "none" with the reason why."""
        return self._place.text if self._place is not None else f"none: {self.why_no_groups}"

    def ways(self) -> dict[str, str]:
        """By what each thing is done here."""
        groups = self.groups
        there = self._place
        v1 = there is not None and there.version == 1

        def by(controller: kernel.Controller, first: str, second: str, otherwise: str) -> str:
            has = groups.has(controller) if groups is not None else there is not None and controller in there.homes
            return (first if v1 else second) if has else otherwise

        return {"share": by("cpu", "cpu.shares", "cpu.weight", "nice values"),
                "quota": by("cpu", "cpu.cfs_quota_us", "cpu.max", "none"),
                "processors": by("cpuset", "cpuset", "cpuset", "affinity"),
                "suspend": by("freezer", "freezer", "cgroup.freeze", "SIGSTOP")}

    # programs

    async def enter(self, supervisor: int, first: int, wanted: Settings, *, anything: bool) -> Program | None:
        """A program that is about to begin. Raises OSError, ValueError that say what to do.

        `anything`: whether who asks may also take from others, as `Settings.beyond_anybody` has it. One that asks for nothing
        is left as it is, and None, where the kernel does not let us do anything for it.
        """
        try:
            return await self._enter(supervisor, first, wanted, anything)
        except (OSError, ValueError) as error:
            if wanted != Settings():
                raise
            log.warning("not_scheduled", pid=first, error=getattr(error, "strerror", None) or str(error))
            return None

    async def _enter(self, supervisor: int, first: int, wanted: Settings, anything: bool) -> Program:
        if inventory.parent_of(first) != supervisor:
            raise ValueError(f"process {first} is no child of process {supervisor}, which asks for it")
        if not anything and wanted.beyond_anybody:
            raise PermissionError(1, "class realtime and priorities above 0 are for root and for members of the group that "
                                     "change_group under [control] names")
        async with self._turn:
            if len(self.programs) >= PROGRAMS_MOST:
                raise OSError(24, f"{PROGRAMS_MOST} programs are scheduled already")
            if (before := self.programs.get(supervisor)) is not None:
                await self._release(before)
            program = Program(supervisor, first, self._complete(wanted), {}, os.getpriority(os.PRIO_PROCESS, first),
                              os.pidfd_open(supervisor))
            try:
                self.ahead.let_go(supervisor, first)
                await self._prepare(program)
                await _aside(self._apply, program, program.settings)
            except BaseException:
                os.close(program.pidfd)
                raise
            self.programs[supervisor] = program
            asyncio.get_running_loop().add_reader(program.pidfd, self._on_end, program)
            self._stay_ahead()
        return program

    async def change(self, supervisor: int, wanted: Settings) -> Program:
        """Schedule a program, with all it has started, in another way. Raises KeyError, OSError, ValueError."""
        async with self._turn:
            program = self.programs[supervisor]
            settings = wanted.over(program.settings)
            if settings.sched_class == "realtime":
                self.ahead.be("realtime", self.config.daemon_weight)        # before it is
            try:
                await _aside(self._apply, program, settings)
                program.settings = settings
            finally:
                self._stay_ahead()
        return program

    async def freeze(self, supervisor: int, wanted: bool) -> bool:
        """Suspend a whole program, or have it go on; False: it has no group that can be frozen. Raises OSError."""
        async with self._turn:
            program = self.programs.get(supervisor)
            if program is None or program.name is None or self.groups is None or not self.groups.has("freezer"):
                return False
            await _aside(self.groups.freeze, program.name, wanted)
            program.suspended = wanted
        return True

    async def let_die(self, supervisor: int, pid: int) -> None:
        """A process of this program was killed: in a frozen group of version 1 it dies when that thaws."""
        async with self._turn:
            program = self.programs.get(supervisor)
            if program is not None and program.suspended and program.name is not None and self.groups is not None:
                await _aside(self._thaw_for_one, self.groups, program.name, pid)

    @staticmethod
    def _thaw_for_one(groups: Groups, name: str, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        with open(pidfd, "rb", buffering=0):
            dead = select.poll()
            dead.register(pidfd, select.POLLIN)
            groups.freeze(name, False)
            dead.poll(_DYING_MS)
            groups.freeze(name, True)

    def statistics(self, program: Program) -> dict[str, int]:
        """What the kernel counts for its group."""
        return self.groups.statistics(program.name) if self.groups is not None and program.name is not None else {}

    async def gather(self, figures: Figures) -> None:
        """Add what programs have spent since the last time to their classes."""
        if not self.programs:
            return
        for supervisor, seen in (await figures.figures()).items():
            if (program := self.programs.get(supervisor)) is None:
                continue
            name = program.settings.sched_class
            more = seen[0].minus(program.seen[0])
            if min(more) >= 0:      # a supervisor is its user's: what it says may be anything, but counters never fall
                self.spent[name] = self.spent[name].plus(more)
                self.waits[name] = [mine + max(0, now - before) for mine, now, before in
                                    zip(self.waits[name], seen[1], program.seen[1], strict=True)]
            program.seen = seen

    def processors(self, settings: Settings) -> tuple[int, ...]:
        """Those a program may use."""
        return settings.processors or self._allowed()

    # what is settled before the kernel is asked

    def _complete(self, wanted: Settings) -> Settings:
        name = wanted.sched_class or self.config.default_class
        usual = self.config.of(name)
        return wanted.over(Settings(sched_class=name, priority=0, processors=usual.processors.numbers,
                                    quota_percent=usual.cpu_quota.percent))

    def _allowed(self, config: SchedulerConfig | None = None) -> tuple[int, ...]:
        reserved = (config or self.config).reserved_processors.numbers
        return tuple(number for number in self.ahead.processors if number not in reserved)

    def _check_reserved(self, config: SchedulerConfig) -> None:
        reserved, there = set(config.reserved_processors.numbers), set(self.ahead.processors)
        if not reserved <= there:
            raise ValueError(f"scheduler.reserved_processors: the daemon has no processor {min(reserved - there)}, "
                             f"but {_spoken(there)}")
        if reserved == there:
            raise ValueError("scheduler.reserved_processors: none is left for programs")

    def _check_processors(self, settings: Settings, config: SchedulerConfig) -> None:
        allowed = self._allowed(config)
        if strange := set(settings.processors) - set(allowed):
            raise ValueError(f"programs cannot run on processor {min(strange)}; they have {_spoken(allowed)}")

    def _check(self, settings: Settings) -> None:
        self._check_processors(settings, self.config)
        if settings.quota_percent and settings.sched_class == "realtime":
            raise ValueError("the kernel holds no quota against realtime programs: choose another class, or no quota")
        if settings.quota_percent and self.groups is None:
            raise ValueError(f"there can be no quota without control groups, and there are none: {self.why_no_groups}")

    # what is asked of the kernel, off the loop

    async def _prepare(self, program: Program) -> None:
        """Groups are made when the first program comes, not before."""
        if self._place is not None and self.groups is None:
            groups = Groups(self._place, f"rustosd-{os.getpid()}")
            if self._journal is not None:
                self._made = self._journal.take(GroupsMade(tuple(map(str, groups.roots)), groups.new))
            self.groups = groups
            try:
                await _aside(groups.make_all, os.getpid())
                await _aside(self._set_up_groups)
            except OSError as error:
                log.warning("no_groups", error=error.strerror)
                await _aside(self._remove_groups)
                self._place, self.why_no_groups = None, error.strerror or str(error)
        if self.groups is not None:
            program.homes = kernel.homes_of(program.first, self.groups.place)

    def _set_up_groups(self) -> None:
        assert self.groups is not None
        self.groups.set_daemon_weight(self.config.daemon_weight or ALL_WEIGHT)
        if self.groups.has("cpuset"):
            self._narrow()
        for name in CLASSES:
            with contextlib.suppress(FileNotFoundError):        # there was no program of it yet
                self._set_up_class(name)

    def _narrow(self) -> None:
        """All programs keep off the reserved processors; in version 1 no group may have what the one above it has not."""
        assert self.groups is not None
        names = [*CLASSES, *(program.name for program in self.programs.values() if program.name is not None)]
        for wanted in (self.ahead.processors, self._allowed()):
            for name in ["", *names] if wanted is self.ahead.processors else [*reversed(names), ""]:
                with contextlib.suppress(FileNotFoundError):
                    self.groups.set_processors(name, wanted)

    def _set_up_class(self, name: ClassName) -> None:
        assert self.groups is not None
        if name == "realtime":
            self.groups.allow_realtime(name)
        elif name == "idle":
            self.groups.set_idle(name)
        else:
            self.groups.set_weight(name, self.config.of(name).weight)

    def _apply(self, program: Program, settings: Settings) -> None:
        """Raises OSError, ValueError; then it is as it was, as far as the kernel lets it be."""
        self._check(settings)
        way = WAYS[settings.sched_class]
        processes = self._processes(program)
        act = self._policy(program, settings)
        if settings.sched_class == "realtime":          # only who is in a group with a share of it can have that policy
            self._place_in_group(program, settings, processes)
            tasks.for_all(processes, act)
        else:
            tasks.for_all(processes, act)
            self._place_in_group(program, settings, processes)
        if self.groups is None:
            tasks.weigh_session(program.supervisor, nice_of(self._weighs(settings)))
        if self.groups is None or not self.groups.has("cpuset"):
            wanted = self.processors(settings)
            if program.pinned or wanted != self.ahead.processors:
                tasks.for_all(processes, lambda tid: tasks.set_affinity(tid, wanted))
                program.pinned = True
        log.debug("scheduled", pid=program.first, sched_class=settings.sched_class, policy=tasks.POLICIES[way.policy])

    def _processes(self, program: Program) -> Callable[[], Iterable[int]]:
        def found() -> Iterable[int]:
            members = self.groups.processes(program.name) if self.groups is not None and program.name is not None else []
            return members or inventory.below(program.supervisor)
        return found

    def _policy(self, program: Program, settings: Settings) -> Callable[[int], None]:
        way = WAYS[settings.sched_class]
        grouped = self.groups is not None
        nice = 0
        if not grouped and settings.sched_class not in ("realtime", "idle"):
            nice = max(-20, min(19, program.nice + nice_of(self._weighs(settings))))

        def act(tid: int) -> None:
            tasks.set_policy(tid, way.policy, os.getpriority(os.PRIO_PROCESS, tid) if grouped else nice,
                             realtime_priority(settings.priority) if settings.sched_class == "realtime" else 0, way.slice_ns)
        return act

    def _weighs(self, settings: Settings) -> float:
        """Beside a program of class normal and priority 0."""
        least = settings.sched_class == "idle"
        return weight(1 if least else self.config.of(settings.sched_class).weight, 0 if least else settings.priority)

    def _place_in_group(self, program: Program, settings: Settings, processes: Callable[[], Iterable[int]]) -> None:
        if self.groups is None:
            return
        realtime = settings.sched_class == "realtime"
        name = f"{settings.sched_class}/{program.supervisor}"
        self.groups.make(name)
        self._set_up_class(settings.sched_class)
        self.groups.set_weight(name, weight(ALL_WEIGHT, settings.priority))
        self.groups.set_quota(name, settings.quota_percent)
        if self.groups.has("cpuset"):
            self.groups.set_processors(name, self.processors(settings))
        if program.name == name:
            return
        if program.suspended and self.groups.has("freezer"):        # who goes into a frozen group freezes
            self.groups.freeze(name, True)
        former, moved = program.name, set()
        try:
            while fresh := set(processes()) - moved:        # they may fork meanwhile
                for pid in fresh:
                    with contextlib.suppress(ProcessLookupError):
                        self.groups.move(name, pid, realtime=realtime)
                moved |= fresh
        except OSError:
            self._remove(name, program.homes if former is None else self.groups.directories(former))
            raise
        program.name = name
        if former is not None:
            self._remove(former, program.homes)

    def _remove(self, name: str, homes: dict[kernel.Controller, Path]) -> None:
        assert self.groups is not None
        try:
            self.groups.remove(name, homes)
        except OSError as error:
            log.warning("group_not_removed", group=name, error=error.strerror)

    def _remove_groups(self) -> None:
        groups, self.groups = self.groups, None
        assert groups is not None
        try:
            kernel.remove_all(groups.roots, groups.new)
        except OSError as error:
            log.warning("groups_not_removed", error=error.strerror, remedy="rustosd recover")
            return
        if self._journal is not None:
            self._journal.given_back(self._made)

    # the end of a program

    def _on_end(self, program: Program) -> None:
        """Its supervisor has ended."""
        asyncio.get_running_loop().remove_reader(program.pidfd)
        task = asyncio.ensure_future(self._end(program))
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)

    async def _end(self, program: Program) -> None:
        async with self._turn:
            if self.programs.get(program.supervisor) is program:
                await self._release(program)

    async def _release(self, program: Program) -> None:
        self._forget(program)
        if self.groups is not None and program.name is not None:
            await _aside(self._remove, program.name, program.homes)
        self._stay_ahead()

    def _forget(self, program: Program) -> None:
        del self.programs[program.supervisor]
        asyncio.get_running_loop().remove_reader(program.pidfd)
        os.close(program.pidfd)

    def _stay_ahead(self) -> None:
        if any(program.settings.sched_class == "realtime" for program in self.programs.values()):
            self.ahead.be("realtime", self.config.daemon_weight)
        else:
            self.ahead.be("weighted" if self.programs else "as started", self.config.daemon_weight)


async def _aside(act: Callable[..., object], *arguments: object) -> None:
    """On a thread that waits for the kernel: a process changes its group in a millisecond or ten."""
    await asyncio.get_running_loop().run_in_executor(None, act, *arguments)


def _spoken(processors: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(processors)))
