"""Where log lines go: a stream whose reader may have gone, or not read, or a file whose disk is full.

None of that is a reason to stop what we do, so such lines are left out, and counted. They are in memory all the same
(`rustosd.log_ring`).
"""

import os
import select
from typing import Final, TextIO

_AT_ONCE: Final = 4096          # PIPE_BUF: what is writable takes so much without waiting


class Output:
    """Writes lines to a stream, and never waits for who reads it. For one thread at a time."""

    def __init__(self, to: TextIO) -> None:
        self._to = to
        self._lost = 0
        self._cut = False           # the last line has no end
        self._look: select.poll | None = select.poll()
        try:
            self._look.register(to.fileno(), select.POLLOUT)
        except (OSError, ValueError):
            self._look = None       # in memory

    def write(self, line: str) -> None:
        """A line without its end. Never raises OSError."""
        try:
            self._to.flush()        # of others' before us
            if self._look is None:
                self._to.write(line + "\n")
            else:
                self._write((("\n" if self._cut else "") + line + "\n").encode(errors="replace"))
        except (OSError, ValueError):           # ValueError: it is closed
            self._lost += 1

    def _write(self, octets: bytes) -> None:
        written = 0
        try:
            while written < len(octets):
                if not self.ready():
                    raise BlockingIOError
                written += os.write(self._to.fileno(), octets[written:written + _AT_ONCE])
        finally:
            if written:
                self._cut = written < len(octets)

    def ready(self) -> bool:
        """Whether a line could go now."""
        return self._look is None or any(events & select.POLLOUT for _, events in self._look.poll(0))

    def take_lost(self) -> int:
        """How many lines were left out, as a whole or in part, since this was asked last."""
        lost, self._lost = self._lost, 0
        return lost
