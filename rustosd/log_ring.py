"""The last log lines, kept in memory within bounds: for `rustosctl log tail`, crash reports and bug reports."""

import traceback
from collections import deque
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, Final

import msgspec

MAX_LINES: Final = 2000
MAX_OCTETS: Final = 1 << 20
MAX_LINE_OCTETS: Final = 4096
_LINE_OVERHEAD: Final = 200
"""What a line costs beside its text."""


class Line(msgspec.Struct, frozen=True):
    """One line of the log."""

    number: int                 # 1 for the first since the start
    at: str                     # ISO 8601, UTC
    level: str
    logger: str
    event: str
    fields: dict[str, str]


class Ring:
    """The last lines: at most MAX_LINES of them and about MAX_OCTETS together. Any thread may append and read."""

    def __init__(self, on_line: Callable[[Line], None] | None = None) -> None:
        self.on_line = on_line
        """Told of each line, by the thread that logs it; it must not log."""
        self.last = 0
        """The number of the newest line."""
        self._lines: deque[tuple[Line, int]] = deque()
        self._octets = 0
        self._lock = Lock()

    def append(self, at: str, level: str, logger: str, event: str, fields: Mapping[str, Any]) -> None:
        """Keep one more line, cut to MAX_LINE_OCTETS."""
        texts, room = {}, MAX_LINE_OCTETS - len(event)
        for key, value in fields.items():
            text = value if isinstance(value, str) else _text(value)
            texts[key] = text if len(text) <= max(room, 0) else text[:max(room, 0)] + "..."
            room -= len(key) + len(text)
        with self._lock:
            self.last += 1
            line = Line(self.last, at, level, logger, event[:MAX_LINE_OCTETS], texts)
            octets = _LINE_OVERHEAD + len(line.event) + sum(len(key) + len(text) for key, text in texts.items())
            self._lines.append((line, octets))
            self._octets += octets
            while len(self._lines) > MAX_LINES or self._octets > MAX_OCTETS:
                self._octets -= self._lines.popleft()[1]
        if self.on_line is not None:
            self.on_line(line)

    def after(self, number: int, most: int) -> list[Line]:
        """The oldest `most` of the lines behind line `number`."""
        with self._lock:
            behind = min(len(self._lines), max(self.last - number, 0))
            first = len(self._lines) - behind
            return [self._lines[i][0] for i in range(first, min(first + most, len(self._lines)))]

    def tail(self, most: int) -> list[Line]:
        """The newest `most` lines, the oldest of them first."""
        return self.after(self.last - most, most)


def spoken(line: Line) -> str:
    """A line as people read it."""
    fields = "".join(f" {key}={_quoted(value)}" for key, value in line.fields.items() if key != "exception")
    trace = line.fields.get("exception", "")
    return f"{line.at[:23]}Z {line.level:<7} {line.logger} {line.event}{fields}" + (f"\n{trace.rstrip()}" if trace else "")


def trace_of(exc_info: Any) -> str:
    """An exception as text, without local variables, which may be somebody's data."""
    if isinstance(exc_info, BaseException):
        return "".join(traceback.format_exception(exc_info))
    if isinstance(exc_info, tuple) and exc_info[0] is not None:
        return "".join(traceback.format_exception(*exc_info))
    return ""


def _text(value: Any) -> str:
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    try:
        return msgspec.json.encode(value, enc_hook=repr).decode()
    except (TypeError, ValueError, RecursionError):
        return repr(value)


def _quoted(text: str) -> str:
    return text if text and all(c.isprintable() and c not in ' "=' for c in text) else _text(text)
