"""What an operator can ask about scheduling, and change; the methods of `sched_protocol`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rustosd.control import sched_protocol as p
from rustosd.control.base import Done, Nothing
from rustosd.control.server import OperationFailed, Peer
from rustosd.processes import DAEMON
from rustosd.scheduling import tasks, waits
from rustosd.scheduling.scheduler import Program
from rustosd.scheduling.settings import CLASSES, ClassName, Settings
from rustosd.values import spoken_processors


class SchedOperations:
    """The methods of `sched_protocol.METHODS`."""

    core: Any
    """Its `scheduler` is a `rustosd.scheduling.scheduler.Scheduler`, its `processes` a `rustosd.processes.Processes`."""

    _busy_before: Mapping[int, tuple[int, int]] = {}

    async def sched_show(self, _: Nothing) -> p.SchedStatus:
        scheduler = self.core.scheduler
        await scheduler.gather(self.core.processes)
        ways = scheduler.ways()
        return p.SchedStatus(
            groups=scheduler.place, share_by=ways["share"], quota_by=ways["quota"], processors_by=ways["processors"],
            suspend_by=ways["suspend"], default_class=scheduler.config.default_class,
            classes=[self._class(name) for name in CLASSES], processors=self._processors(), daemon=self._daemon_thread(),
            pressure_percent=tasks.pressure(), runnable=_runnable())

    async def sched_list(self, _: Nothing) -> list[p.SchedProgram]:
        scheduler = self.core.scheduler
        await scheduler.gather(self.core.processes)
        return [self._program(program) for program in scheduler.programs.values()]

    async def sched_set(self, wanted: p.SchedChange) -> Done:
        if wanted.pid in (DAEMON, os.getpid()):
            raise OperationFailed("process 0 is the daemon: daemon_weight under [scheduler] says how it is scheduled")
        group, _ = await self.core.processes.ask(wanted.pid, "show")
        if group not in self.core.scheduler.programs:
            raise OperationFailed(f"the program of process {wanted.pid} has not asked to be scheduled: run it again")
        await self.core.scheduler.change(group, _settings(wanted))
        return Done()

    async def sched_enter(self, wanted: p.SchedChange, peer: Peer) -> p.SchedEntered:
        await self.core.scheduler.enter(peer.pid, wanted.pid, _settings(wanted), anything="change" in peer.rights)
        return p.SchedEntered(keep_awake=self.core.scheduler.config.keep_awake)

    def _class(self, name: ClassName) -> p.SchedClass:
        scheduler = self.core.scheduler
        run_ns, wait_ns, slices = scheduler.spent[name]
        return p.SchedClass(
            name=name, weight=None if name in ("realtime", "idle") else scheduler.config.of(name).weight,
            programs=sum(program.settings.sched_class == name for program in scheduler.programs.values()),
            run_s=run_ns / 1e9, wait_s=wait_ns / 1e9, slices=slices,
            wait_p50_us=_quantile(scheduler.waits[name], 0.5), wait_p99_us=_quantile(scheduler.waits[name], 0.99))

    def _program(self, program: Program) -> p.SchedProgram:
        scheduler, settings = self.core.scheduler, program.settings
        run_ns, wait_ns, slices = program.seen[0]
        counts = scheduler.statistics(program)
        return p.SchedProgram(
            pid=program.first, supervisor=program.supervisor, program=self.core.processes.name_of(program.supervisor),
            sched_class=settings.sched_class, priority=settings.priority,
            processors=spoken_processors(scheduler.processors(settings)),
            cpu_quota_percent=settings.quota_percent, suspended=program.suspended, group=program.name,
            run_s=run_ns / 1e9, wait_s=wait_ns / 1e9, slices=slices,
            throttled=counts.get("throttled", 0), throttled_s=counts.get("throttled_us", 0) / 1e6)

    def _processors(self) -> list[p.Processor]:
        before, now = self._busy_before, tasks.busy_ticks()
        self._busy_before = now
        reserved = self.core.scheduler.config.reserved_processors.numbers
        return [p.Processor(number=number, reserved=number in reserved, busy_percent=_percent(before.get(number), now[number]))
                for number in sorted(now)]

    def _daemon_thread(self) -> p.DaemonThread:
        run_ns, wait_ns, slices = waits.own()
        policy, priority = tasks.policy_of(0)
        ahead = self.core.scheduler.ahead
        return p.DaemonThread(
            level=ahead.level, policy=policy, nice=os.getpriority(os.PRIO_PROCESS, 0), sched_priority=priority,
            processors=spoken_processors(os.sched_getaffinity(0)), complaint=ahead.complaint,
            run_s=run_ns / 1e9, wait_s=wait_ns / 1e9, slices=slices)


def _settings(wanted: p.SchedChange) -> Settings:
    return Settings(sched_class=wanted.sched_class, priority=wanted.priority,
                    processors=None if wanted.processors is None else wanted.processors.numbers,
                    quota_percent=None if wanted.cpu_quota is None else wanted.cpu_quota.percent)


def _quantile(buckets: list[int], part: float) -> int | None:
    """The upper bound of the bucket of powers of two of nanoseconds that it is in, in microseconds."""
    left = part * sum(buckets)
    if not left:
        return None
    for k, count in enumerate(buckets):
        left -= count
        if left <= 0:
            return max(1, (1 << k) // 1000)
    return None


def _percent(before: tuple[int, int] | None, now: tuple[int, int]) -> float | None:
    if before is None or now[1] <= before[1]:
        return None
    return round(100 * (now[0] - before[0]) / (now[1] - before[1]), 1)


def _runnable() -> int:
    """Threads that run or want to (/proc/loadavg)."""
    return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
