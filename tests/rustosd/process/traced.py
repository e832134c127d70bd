"""A supervisor without sockets: runs a program under a monitor until all of it has ended."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from rustosd.process import inventory, ptrace
from rustosd.process import syscalls as nr
from rustosd.process.monitor import Monitor

LIMIT_S = 60


class Traced:
    """A program that waits at its first instruction until `run`."""

    def __init__(self, *argv: str, monitor: Monitor | None = None, stdin: int | None = None, stdout: int | None = None,
                 before: Callable[[], None] = lambda: None) -> None:
        self.monitor = monitor or Monitor()
        self.monitor.on_exit.append(self._ended)
        self.status: int | None = None
        self.tidy: Callable[[], None] = lambda: None
        self._others = _children()      # daemons of other tests, which stay
        nr.prctl(36, 1)                 # PR_SET_CHILD_SUBREAPER
        waits, gate = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(gate)
                if stdin is not None:
                    os.dup2(stdin, 0)
                if stdout is not None:
                    os.dup2(stdout, 1)
                before()
                os.read(waits, 1)
                os.execvp(argv[0], argv)
            finally:
                os._exit(127)
        os.close(waits)
        self.monitor.seize(self.pid)
        os.write(gate, b"x")
        os.close(gate)

    def _ended(self, pid: int, status: int) -> None:
        if pid == self.pid:
            self.status = os.waitstatus_to_exitcode(status)

    def turn(self) -> bool:
        """Take in what there is; whether anything lives."""
        with contextlib.suppress(ChildProcessError):
            while (report := os.waitpid(-1, os.WNOHANG | ptrace.WALL))[0]:
                self.monitor.take(*report)
        return not _children() <= self._others

    def until(self, done: Callable[[], bool]) -> None:
        """Take in what comes until it is done. Fails when that takes long."""
        limit, tick = time.monotonic() + LIMIT_S, time.monotonic() + 0.2
        while not done():
            assert time.monotonic() < limit
            if not self.turn() and not done():
                raise AssertionError("all of it has ended")
            if time.monotonic() > tick:
                self.monitor.tidy()
                self.tidy()
                tick = time.monotonic() + 0.2
            time.sleep(0.0005)

    def run(self) -> int:
        """To the first process's end, and all others'."""
        self.until(lambda: self.status is not None and not self.turn())
        return self.status

    def end(self) -> None:
        for pid in [*inventory.below(self.pid), self.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while self.turn():
            for pid in _children() - self._others:      # one that was forked meanwhile
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.001)


def _children() -> set[int]:
    """Of this process, zombies too."""
    while True:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):    # a thread has ended; another has its children
            return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}
