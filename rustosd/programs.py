"""The programs of the configuration: started when what they wait for is there, started again, stopped in reverse order.

Each has a supervisor, a child of the daemon in a session of its own (`rustosd.process.service`), which ends with the daemon
whatever happens to it. Nothing here waits without letting the loop go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import pwd
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Any, Final

import structlog

from rustosd.process.service import NAME_TAKEN
from rustosd.program_config import ProgramConfig
from rustosd.services.base import Sample

LOOK_S: Final = 0.2
WAITS_LONG_S: Final = 30.0
"""How long something may be missing before it is worth a health note."""
KILL_SPARE_S: Final = 5.0
"""A supervisor takes up to twice its program's time to stop; then it is killed, and all below it."""
_REPORT_MOST: Final = 4096

log = structlog.get_logger(__name__)


class State(StrEnum):
    """How far a program is."""

    OFF = "off"                 # nobody has asked for it
    WAITING = "waiting"         # for an interface or another program
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"         # it has ended, and is started again in a moment
    STOPPING = "stopping"
    STOPPED = "stopped"         # by somebody's word
    ENDED = "ended"             # by itself, and that is all right
    FAILED = "failed"           # by itself, and it is not started again


class _NotExecuted(Exception):
    """The text says why; `status` what a shell would end with."""

    def __init__(self, why: str, status: int) -> None:
        super().__init__(why)
        self.status = status


class Runner:
    """One program, from the first start to the last stop."""

    def __init__(self, wanted: ProgramConfig, socket: str, ready: Callable[[Sequence[str]], str]) -> None:
        """`ready(after)` says what of it is missing; empty: nothing."""
        self.wanted = wanted
        self.state = State.OFF
        self.detail = ""
        """What it waits for, or why it has failed."""
        self.pid = 0
        self.starts = 0
        self.status: int | None = None
        """Of its last end, as shells have it."""
        self.since = time.monotonic()
        self._socket, self._ready = socket, ready
        self._recent: deque[float] = deque(maxlen=10_000)
        self._supervisor: subprocess.Popen | None = None
        self._over: asyncio.Future[int] | None = None
        self._life: asyncio.Task[None] | None = None
        self._stop: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs, or will by itself."""
        return self._life is not None and not self._life.done()

    @property
    def stopping(self) -> bool:
        """Whether somebody has said that it shall end, and it has not yet."""
        return self._stop is not None and not self._stop.done()

    def start(self) -> None:
        """Begin, unless it has. Earlier failures count no longer."""
        if not self.alive:
            self._recent.clear()
            self._stop = None
            self._life = asyncio.get_running_loop().create_task(self._live())

    def stop(self) -> asyncio.Task[None]:
        """Have it end and stay so; the task is done when it has."""
        if self._stop is None:
            self._stop = asyncio.get_running_loop().create_task(self._end())
        return self._stop

    def _go(self, state: State, detail: str = "") -> None:
        if state != self.state:
            self.since = time.monotonic()
        self.state, self.detail = state, detail

    async def _live(self) -> None:
        while self._stop is None:
            await self._wait_until_ready()
            try:
                status = await self._run()
            except _NotExecuted as failed:
                if failed.status == NAME_TAKEN:
                    self._go(State.WAITING, "a former run of it has not quite ended")
                    await asyncio.sleep(LOOK_S)
                    continue
                status, self.detail = failed.status, str(failed)
            self.status = status
            if self._stop is not None or not self._again(status):
                return
            self._go(State.PAUSING, self.detail)
            await asyncio.sleep(self.wanted.restart_delay_s)

    async def _wait_until_ready(self) -> None:
        while missing := self._ready(self.wanted.after):
            self._go(State.WAITING, missing)
            await asyncio.sleep(LOOK_S)

    def _again(self, status: int) -> bool:
        """Whether it is to be started again; else it is noted how it has ended."""
        wanted, now = self.wanted, time.monotonic()
        why = self.detail or f"it ended with status {status}"
        log.log(20 if status == 0 else 30, "program_ended", program=wanted.name, status=status, detail=self.detail or None)
        if wanted.restart == "no" or (wanted.restart == "on-failure" and status == 0):
            self._go(State.FAILED if status else State.ENDED, why if status else "")
            return False
        self._recent.append(now)
        often = sum(now - at <= wanted.restart_window_s for at in self._recent)
        if often > wanted.restart_limit:
            self._go(State.FAILED, f"it ended {often} times within {wanted.restart_window_s:g} s; at last: {why}")
            log.error("program_given_up", program=wanted.name, detail=self.detail)
            return False
        return True

    async def _run(self) -> int:
        """Once; its exit status. Raises _NotExecuted."""
        self._go(State.STARTING, self.detail if self.state == State.PAUSING else "")    # why it did not begin the last time
        loop = asyncio.get_running_loop()
        self._supervisor = supervisor = _spawn(self.wanted, self._socket)
        pidfd, report = os.pidfd_open(supervisor.pid), supervisor.stdout.fileno()
        self._over = over = loop.create_future()
        told: list[bytes] = []
        loop.add_reader(pidfd, lambda: over.done() or over.set_result(supervisor.wait()))
        loop.add_reader(report, self._on_report, report, told)
        try:
            status = await asyncio.shield(over)
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            self._on_report(report, told)
            loop.remove_reader(report)
            supervisor.stdout.close()
            self._supervisor, self.pid = None, 0
        facts = _facts(told)
        if "pid" not in facts:
            raise _NotExecuted(facts.get("error") or "its supervisor died; the daemon's log may say why", status or 1)
        return status if status >= 0 else 128 - status

    def _on_report(self, report: int, told: list[bytes]) -> None:
        with contextlib.suppress(BlockingIOError):
            if not (octets := os.read(report, _REPORT_MOST)):
                asyncio.get_running_loop().remove_reader(report)
            told.append(octets)
        if self.state == State.STARTING and (pid := _facts(told).get("pid")):
            self.pid, self.starts = pid, self.starts + 1
            self._go(State.RUNNING)
            log.info("program_started", program=self.wanted.name, pid=pid)

    async def _end(self) -> None:
        await asyncio.sleep(0)      # `stop` has returned, and who looks sees that it is under way
        if self._supervisor is not None and self._over is not None:
            self._go(State.STOPPING)
            self._supervisor.terminate()
            try:
                async with asyncio.timeout(2 * self.wanted.stop_s + KILL_SPARE_S):
                    await asyncio.shield(self._over)
            except TimeoutError:
                log.error("program_killed", program=self.wanted.name, waited_s=2 * self.wanted.stop_s + KILL_SPARE_S)
                self._supervisor.kill()
                await self._over
            await asyncio.wait([self._life])
        elif self._life is not None:
            self._life.cancel()
            await asyncio.wait([self._life])
        self._go(State.STOPPED)

    @property
    def supervisor(self) -> int:
        """The process that looks after it; 0: none."""
        return self._supervisor.pid if self._supervisor is not None else 0

    def kill(self) -> None:
        """Its supervisor at once, and all below it."""
        if self._supervisor is not None:
            self._supervisor.kill()

    def trouble(self) -> tuple[str, str, str] | None:
        """(name, the health check's code, what is wrong)."""
        if self.state == State.FAILED:
            return self.wanted.name, "program-failed", f"failed: {self.detail}"
        if self.state == State.WAITING and time.monotonic() - self.since > WAITS_LONG_S:
            return self.wanted.name, "program-waits", f"waits: {self.detail}"
        return None

    def row(self) -> dict[str, Any]:
        """As `rustosd.control.program_protocol.ProgramRow`."""
        wanted = self.wanted
        return {"name": wanted.name, "state": str(self.state), "pid": self.pid or None, "user": wanted.user or _own_name(),
                "since_s": round(time.monotonic() - self.since, 1), "starts": self.starts, "status": self.status,
                "detail": self.detail, "command": list(wanted.command), "after": list(wanted.after), "restart": wanted.restart,
                "policy": wanted.policy or None}


class Programs:
    """All of them, by name."""

    def __init__(self, socket: str, interfaces: Callable[[], Iterable[dict[str, Any]]]) -> None:
        """`socket`: the control socket, on which supervisors ask; `interfaces`: the stack's rows without loopback."""
        self.runners: dict[str, Runner] = {}
        self._socket, self._interfaces = socket, interfaces
        self._background: set[asyncio.Task[None]] = set()

    def start(self, configured: Sequence[ProgramConfig]) -> None:
        """Begin with those that are enabled."""
        for wanted in configured:
            self._add(wanted)

    def find(self, name: str) -> Runner:
        """Raises LookupError that names those there are."""
        if name not in self.runners:
            there = f"there is {', '.join(self.runners)}" if self.runners else "add it to the configuration, as [[program]]"
            raise LookupError(f"there is no program {name}; {there}")
        return self.runners[name]

    def supervised_by(self, pid: int) -> str:
        """The name of the program that a process supervises; empty: none of ours."""
        return next((name for name, runner in self.runners.items() if runner.supervisor == pid), "")

    def change(self, configured: Sequence[ProgramConfig]) -> None:
        """As another configuration has them: those that have changed are started anew, if they ran."""
        names = {wanted.name for wanted in configured}
        for name in [name for name in self.runners if name not in names]:
            self._watch(self.runners.pop(name).stop())
        for wanted in configured:
            runner = self.runners.get(wanted.name)
            if runner is None:
                self._add(wanted)
            elif runner.wanted != wanted:
                self._watch(asyncio.get_running_loop().create_task(self._anew(runner, wanted)))

    async def begin(self, name: str) -> None:
        """Start it, unless it runs; once it has ended, if it is being stopped. Raises LookupError."""
        runner = self.find(name)
        if runner.stopping:
            await asyncio.shield(runner.stop())
        runner.start()

    async def restart(self, name: str) -> None:
        """Stop it, if it runs, and start it. Raises LookupError."""
        await self._anew(self.find(name), None)

    async def close(self) -> None:
        """Stop all, those first that wait for others."""
        stops: dict[str, asyncio.Task[None]] = {}

        def stop(name: str) -> asyncio.Task[None]:
            if name not in stops:
                users = [other for other, runner in self.runners.items() if name in runner.wanted.after]
                stops[name] = asyncio.get_running_loop().create_task(_stop_after(self.runners[name], list(map(stop, users))))
            return stops[name]

        waits = [stop(name) for name in self.runners]
        await asyncio.gather(*waits, *self._background, return_exceptions=True)

    def kill(self) -> None:
        """Let none that is being stopped take more time."""
        for runner in self.runners.values():
            runner.kill()

    def rows(self) -> list[dict[str, Any]]:
        return [runner.row() for runner in self.runners.values()]

    def troubles(self) -> list[tuple[str, str, str]]:
        """For the health checks."""
        return [found for runner in self.runners.values() if (found := runner.trouble()) is not None]

    def samples(self) -> Iterator[Sample]:
        """For Prometheus."""
        for name, runner in self.runners.items():
            labels = {"program": name}
            up, failed = (int(runner.state == state) for state in (State.RUNNING, State.FAILED))
            yield Sample("rustos_program_up", "gauge", "Whether the program runs.", up, labels)
            yield Sample("rustos_program_failed", "gauge", "Whether it was given up.", failed, labels)
            yield Sample("rustos_program_starts_total", "counter", "How often it was started.", runner.starts, labels)

    def _add(self, wanted: ProgramConfig) -> None:
        runner = self.runners[wanted.name] = Runner(wanted, self._socket, self._missing)
        if wanted.enabled:
            runner.start()

    async def _anew(self, runner: Runner, wanted: ProgramConfig | None) -> None:
        """With another configuration, unless somebody had stopped it; without one, in any case."""
        stopped = runner.state in (State.STOPPING, State.STOPPED)
        await asyncio.shield(runner.stop())
        if wanted is not None:
            runner.wanted = wanted
            if stopped or not wanted.enabled:
                return
        runner.start()

    def _missing(self, after: Sequence[str]) -> str:
        """What of it is not there yet; without any, one interface must be."""
        up = [row["name"] for row in self._interfaces() if row["up"]]
        if not after:
            return "" if up else "no interface is up"
        for name in after:
            if name in self.runners:
                if self.runners[name].state != State.RUNNING:
                    return f"program {name} is {self.runners[name].state}"
            elif name not in up:
                return f"interface {name} is not up"
        return ""

    def _watch(self, task: asyncio.Task[None]) -> None:
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _stop_after(runner: Runner, others: Sequence[asyncio.Task[None]]) -> None:
    if others:
        await asyncio.wait(others)
    await runner.stop()


def _spawn(wanted: ProgramConfig, socket: str) -> subprocess.Popen:
    """The supervisor. Raises _NotExecuted."""
    try:
        environment = _environment(wanted)
        what = {"environment": environment, "socket": socket} | {key: getattr(wanted, key) for key in (
            "name", "command", "directory", "user", "host_network", "policy", "stop_s", "sched_class", "priority", "processors",
            "cpu_quota", "memory", "memory_max")}
        spec = os.memfd_create("program")       # a pipe could be full, and is read when the child is there
        try:
            os.write(spec, json.dumps(what).encode())
            os.lseek(spec, 0, os.SEEK_SET)
            made = subprocess.Popen([sys.executable, "-P", "-m", "rustosd.process.service"], stdin=spec,
                                    stdout=subprocess.PIPE, start_new_session=True)
        finally:
            os.close(spec)
    except (OSError, KeyError) as error:
        raise _NotExecuted(getattr(error, "strerror", None) or str(error.args[0]), errno.EPERM) from None
    os.set_blocking(made.stdout.fileno(), False)
    return made


def _environment(wanted: ProgramConfig) -> dict[str, str]:
    """As a login would have it, and what the configuration adds. Raises KeyError."""
    name = wanted.user or str(os.geteuid())
    try:
        who = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError:
        raise KeyError(f"there is no user {wanted.user}") from None
    kept = {key: os.environ[key] for key in ("LANG", "TZ") if key in os.environ}
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": who.pw_dir, "USER": who.pw_name,
            "LOGNAME": who.pw_name, **kept, **wanted.environment}


def _facts(told: Sequence[bytes]) -> dict[str, Any]:
    line = b"".join(told)
    return json.loads(line) if line.endswith(b"\n") else {}


def _own_name() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name
