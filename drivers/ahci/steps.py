"""Procedures that wait for hardware without blocking: a generator that yields what it waits for.

    def stop(self):
        self.regs.CMD.modify(ST=0)
        yield Until(self.regs.CMD.read, lambda cmd: not cmd.CR, 500 * MS, "PxCMD.CR clear")

`Steps` runs one, a look at a time, so that a checklist reads from top to bottom and yet holds nobody up.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final

from drivers.errors import DeviceGone, DeviceTimeout

LOOK_NS: Final = 500_000
"""How long between two looks at what is waited for."""


@dataclass(slots=True)
class Until:
    """Wait until `done(read())`, at most `timeout_ns`: then DeviceTimeout is raised where it was yielded."""

    read: Callable[[], int]
    done: Callable[[Any], bool]
    timeout_ns: int
    what: str
    gone: int | None = 0xFFFF_FFFF
    """The value that says that nobody is there any more."""


@dataclass(slots=True)
class Pause:
    """Wait so long."""

    ns: int


Procedure = Generator[Until | Pause, Any, Any]


class Steps:
    """A procedure under way."""

    def __init__(self, device: str, procedure: Procedure) -> None:
        self._device, self._procedure = device, procedure
        self._wait: Until | Pause | None = None
        self._since = 0
        self._begun: int | None = None
        """When a pause began: at the first look after it was asked for, as `now` may then be long ago."""
        self.value: Any = None
        """What the procedure returned."""

    def advance(self, now: int) -> bool:
        """Go on as far as that is possible now; whether it has ended. Raises what the procedure raises."""
        try:
            if self._begun is None:
                self._begun = now
            if self._wait is None:
                self._next(self._procedure.send(None), now)
            while True:
                wait = self._wait
                if isinstance(wait, Pause):
                    if self._begun is None or now - self._begun < wait.ns:
                        return False
                    self._next(self._procedure.send(None), now)
                    continue
                waited = now - self._since
                value = wait.read()
                if value == wait.gone:
                    self._next(self._procedure.throw(DeviceGone(self._device)), now)
                elif wait.done(value):
                    self._next(self._procedure.send(value), now)
                elif waited >= wait.timeout_ns:
                    error = DeviceTimeout(self._device, wait.what, int(value), waited / 1e9)
                    self._next(self._procedure.throw(error), now)
                else:
                    return False
        except StopIteration as end:
            self.value = end.value
            return True

    def _next(self, wait: Until | Pause, now: int) -> None:
        self._wait, self._since, self._begun = wait, now, None


def run(device: str, procedure: Procedure, clock: Callable[[], int], sleep: Callable[[float], None]) -> Any:
    """Run one to its end, blocking; what it returns. Raises what it raises."""
    steps = Steps(device, procedure)
    while not steps.advance(clock()):
        sleep(LOOK_NS / 1e9)
    return steps.value
