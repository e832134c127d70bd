"""The audit log: what was refused and what was ended on this machine by the daemon's word, one JSON object a line.

Lines are appended and never changed. A full file gets a number behind its name, the oldest goes. One writer: the daemon.
What others report is written with who they are by the kernel's word. Of one reason and user at most a few lines a second are
written; how many were left out is in the next one.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

LINE_MOST: Final = 4096
KINDS_MOST: Final = 256
BURST: Final = 20
LINES_PER_S: Final = 2.0
_TEXT_MOST: Final = 512

log = structlog.get_logger(__name__)
_encode = msgspec.json.Encoder(enc_hook=str).encode


class AuditLog:
    """Lines in `path`; a file has at most `octets`, and `keep` full ones stay beside it.

    Nothing is raised: what cannot be written is counted in `lost`, and logged once.
    """

    def __init__(self, path: Path, octets: int, keep: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self.octets, self.keep = octets, keep
        self.written = self.lost = self.held_back = 0
        self._clock = clock
        self._fd = -1
        self._size = 0
        self._failing = False
        # By reason and user: how many lines may be written, as of when; and how many were not.
        self._allowances: dict[tuple[str, Any], tuple[float, float]] = {}
        self._left_out: dict[tuple[str, Any], int] = {}

    def write(self, reason: str, **facts: Any) -> bool:
        """Append a line, unless there were too many of its reason just now, of `uid` where there is one.

        `facts`: texts, numbers, and lists of them.
        """
        kind = reason, facts.get("uid")
        if not self._allowed(kind):
            self.held_back += 1
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        line: dict[str, Any] = {"at": _now(), "reason": reason, **{key: _bounded(value) for key, value in facts.items()}}
        if left_out := self._left_out.pop(kind, 0):
            line["left_out"] = left_out
        octets = _encode(line)
        if len(octets) > LINE_MOST:
            octets = _encode({"at": line["at"], "reason": reason, "error": f"{len(octets)} octets are too many for a line"})
        return self._append(octets + b"\n")

    def lines(self, reason: str | None = None) -> Iterator[dict[str, Any]]:
        """Those that are kept, the oldest first; of one reason or all. What is no JSON is left out."""
        for path in (*reversed([self._full(number) for number in range(1, self.keep + 1)]), self.path):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                for octets in file:
                    with contextlib.suppress(msgspec.DecodeError):
                        line = msgspec.json.decode(octets)
                        if isinstance(line, dict) and reason in (None, line.get("reason")):
                            yield line

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _allowed(self, kind: tuple[str, Any]) -> bool:
        now = self._clock()
        if len(self._allowances) >= KINDS_MOST and kind not in self._allowances:
            self._allowances.clear()
            self._left_out.clear()
        allowance, since = self._allowances.get(kind, (float(BURST), now))
        allowance = min(float(BURST), allowance + (now - since) * LINES_PER_S)
        self._allowances[kind] = (allowance - 1 if allowance >= 1 else allowance, now)
        return allowance >= 1

    def _append(self, octets: bytes) -> bool:
        try:
            if self._fd < 0:
                self._open()
            elif self._size + len(octets) > self.octets:
                self._rotate()
            self._size += os.write(self._fd, octets)
        except OSError as error:
            self.lost += 1
            if not self._failing:
                log.error("audit_failed", path=str(self.path), error=error.strerror,
                          advice="name another file with file = ... under [audit], or make room")
            self._failing = True
            return False
        self._failing = False
        self.written += 1
        return True

    def _open(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._size = os.fstat(self._fd).st_size
        if self._size:
            self._size += os.write(self._fd, b"\n")     # the machine may have stopped in the middle of a line

    def _rotate(self) -> None:
        self.close()
        for number in range(self.keep, 0, -1):
            former = self._full(number - 1) if number > 1 else self.path
            with contextlib.suppress(FileNotFoundError):
                former.replace(self._full(number))
        self._open()

    def _full(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def _bounded(value: Any) -> Any:
    return value[:_TEXT_MOST] if isinstance(value, str) else value


def _now() -> str:
    seconds = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03}Z"
