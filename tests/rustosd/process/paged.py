"""A supervisor with a pager and without sockets: a program whose memory is limited, and all it starts."""

import contextlib
import ctypes
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from mm.swap.device import nameless
from rustosd.memory_limits import Limits
from rustosd.process import syscalls as nr
from rustosd.process.exceptions import Exceptions, Fault
from rustosd.process.filter import assemble, memory_rules
from rustosd.process.memory import PAGER, Memory
from rustosd.process.monitor import Monitor
from tests.rustosd.process.traced import LIMIT_S, Traced

FAILING: Final = (sys.executable, "-m", "tests.rustosd.process.failing_pager")
BLIND: Final = (sys.executable, "-m", "tests.rustosd.process.blind_pager")
FEW: Final = (sys.executable, "-m", "tests.rustosd.process.few_pager")
FULL: Final = (sys.executable, "-m", "tests.rustosd.process.full_pager")
LATE: Final = (sys.executable, "-m", "tests.rustosd.process.late_pager")
_NO_NEW_PRIVS, _THP_DISABLE = 38, 41


class Paged(Traced):
    """A program that waits at its first instruction until `run`."""

    def __init__(self, *argv: str, soft: int, hard: int, folder: Path, octets: int = 512 << 20, stdout: int | None = None,
                 pager: Sequence[str] = PAGER, place: dict[str, Any] | None = None) -> None:
        """`folder`: for a swap file of so many `octets`."""
        self.lost: list[Fault] = []
        self.gave_up = ""
        self.monitor = Monitor()
        self.exceptions = Exceptions(self.monitor.threads, self.lost.append)
        self.monitor.judge = self.exceptions.judge
        fd = nameless(str(folder / "swap"))
        place = {"kind": "file", "name": "swap", "octets": octets, **(place or {})}
        try:
            self.memory = Memory(self.monitor, Limits(soft, hard), place, fd, self.exceptions.swap_fault, self._give_up, pager)
        finally:
            os.close(fd)
        super().__init__(*argv, monitor=self.monitor, stdout=stdout, before=self._restrict)

    def _restrict(self) -> None:
        nr.prctl(_THP_DISABLE, 1)
        nr.prctl(_NO_NEW_PRIVS, 1)
        filtering = assemble(memory_rules(self.memory.cookie))
        code = ctypes.create_string_buffer(filtering, len(filtering))
        program = ctypes.create_string_buffer(struct.pack("=H6xQ", len(filtering) // 8, ctypes.addressof(code)))
        nr.call(nr.SECCOMP, 1, 0, ctypes.addressof(program))

    def _give_up(self, why: str) -> None:
        self.gave_up = why
        for pid in set(self.monitor.threads.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def turn(self) -> bool:
        alive = super().turn()
        self.memory.told()
        return alive

    def until(self, done: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
        """Take in what comes until it is done. Fails when that takes long."""
        limit, tick = time.monotonic() + limit_s, time.monotonic() + 0.2
        wake, waker = os.pipe2(os.O_NONBLOCK)
        former = signal.set_wakeup_fd(waker), signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        poll.register(self.memory.socket, select.POLLIN)
        try:
            while not done():
                assert time.monotonic() < limit
                poll.poll(50)
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
                self.turn()
                if time.monotonic() > tick:
                    self.monitor.tidy()
                    self.exceptions.tidy()
                    tick = time.monotonic() + 0.2
        finally:
            signal.set_wakeup_fd(former[0])
            signal.signal(signal.SIGCHLD, former[1])
            os.close(wake)
            os.close(waker)

    def run(self, limit_s: float = LIMIT_S) -> int:
        """To the first process's end."""
        self.until(lambda: self.status is not None, limit_s)
        return self.status

    def figures(self) -> dict[str, Any]:
        """What the pager tells: "memory" and "swap"."""
        self.memory.refresh()
        self.until(lambda: bool(self.memory.latest))
        return self.memory.latest

    def swap_total(self, name: str) -> int:
        return self.figures()["swap"][name]

    def peak_octets(self) -> int:
        return self.figures()["memory"]["peak_octets"]

    def unclaimed_slots(self) -> int:
        """Octets in swap that no process has."""
        figures = self.figures()
        return 0 if figures["memory"]["spaces"] else figures["swap"]["used_octets"]

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.memory.close()
        super().end()
