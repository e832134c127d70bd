"""Whether the host itself is short of memory, as its kernel measures it (PSI): then limits are lowered for a while."""

import os
import select
import time
from typing import Final

_PRESSURE: Final = "/proc/pressure/memory"
_TRIGGER: Final = b"some 100000 1000000\0"       # somebody waited for memory for a tenth of a second
_LOWEST: Final = 0.25
_STEP: Final = 0.8
_RECOVERY_S: Final = 20.0
"""How long until a limit is what it was."""


class Pressure:
    """Of the host; where the kernel does not tell, there never is any."""

    def __init__(self) -> None:
        self._share = 1.0               # of a limit, at `_since`
        self._since = 0.0
        try:
            self._fd = os.open(_PRESSURE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            os.write(self._fd, _TRIGGER)
        except OSError:
            self._fd = -1

    def register(self, poll: select.poll) -> None:
        """Have `poll` wake when there is pressure: call `felt` then."""
        if self._fd >= 0:
            poll.register(self._fd, select.POLLPRI)

    def felt(self, now: float | None = None) -> None:
        """There is."""
        now = time.monotonic() if now is None else now
        self._share = max(_LOWEST, self.share(now) * _STEP)
        self._since = now

    def share(self, now: float | None = None) -> float:
        """The part of a limit that may be used now."""
        now = time.monotonic() if now is None else now
        return min(1.0, self._share + (now - self._since) / _RECOVERY_S)

    def lowered(self, limit: int) -> int:
        """A limit, as it is now."""
        return int(limit * self.share())
