"""Logs of the shell around the stack: `log.info("link_up", nic=name)`, past facts with units in their keys.

`configure` makes the `Logs` that everything goes through: levels by logger, which can be changed while the daemon runs; rate
limits; the last lines in memory; a console for people, JSON for programs, and priorities where systemd's journal listens.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

import structlog

from rustosd.log_limit import Limiter, Source
from rustosd.log_output import Output
from rustosd.log_ring import Ring, trace_of
from rustosd.secrets import hidden

Level = Literal["debug", "info", "warning", "error"]
Form = Literal["auto", "console", "json"]
LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}     # sd-daemon(3)
NAMELESS: Final = "rustosd"
MAX_LEVELS: Final = 64

Event = MutableMapping[str, Any]


def configure(level: Level = "info", form: Form = "auto", to: TextIO | None = None,
              levels: Mapping[str, Level] | None = None) -> "Logs":
    """Send log lines to `to` (default: stderr), from `level` on, and from other levels on for the loggers in `levels`."""
    logs = Logs(to or sys.stderr)
    logs.setup(level, form, levels or {})
    return logs


class Logs:
    """All log lines of this process, once it is set up. Levels and form may be changed at any time."""

    def __init__(self, to: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.level: Level = "info"
        self.form: Form = "auto"
        self.levels: dict[str, Level] = {}
        """By logger, for it and all below it; the nearest counts."""
        self.ring = Ring()
        self._to = to
        self._output = Output(to)
        self._journal = is_journal(to, os.environ.get("JOURNAL_STREAM", ""))
        self._clock = clock
        self._limiter = Limiter()
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._render: Callable[..., Any] = structlog.processors.JSONRenderer()
        self._traces: Callable[..., Any] | None = None
        self._stamp: Callable[..., Any] = structlog.processors.TimeStamper(fmt="iso", utc=True)

    def setup(self, level: Level, form: Form, levels: Mapping[str, Level]) -> None:
        """Levels and form as a configuration says."""
        self.level, self.form, self.levels = level, form, dict(levels)
        people = form == "console" or (form == "auto" and self._to.isatty())
        if people:
            # No local variables: they are many, and may be somebody's data.
            trace = structlog.dev.RichTracebackFormatter(show_locals=False)
            self._traces = None
            self._render = structlog.dev.ConsoleRenderer(colors=self._to.isatty(), pad_event_to=24, exception_formatter=trace)
        else:
            self._traces = structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
            self._render = structlog.processors.JSONRenderer()
        self._stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if people else "iso", utc=not people)
        self._install()

    def set_level(self, logger: str | None, level: Level | None) -> None:
        """From now on; None: the level of all loggers, or that of the logger above. Raises ValueError."""
        if logger is None:
            if level is None:
                raise ValueError("the level of all loggers cannot be left out: debug, info, warning or error")
            self.level = level
        elif level is None:
            if logger not in self.levels:
                raise ValueError(f"{logger} has no level of its own; see: rustosctl log")
            del self.levels[logger]
        elif len(self.levels) >= MAX_LEVELS and logger not in self.levels:
            raise ValueError(f"{MAX_LEVELS} loggers have a level of their own already; take one away with: rustosctl log unset")
        else:
            self.levels[logger] = level
        self._install()

    def level_of(self, logger: str) -> Level:
        """From which level on a logger is heard."""
        name = logger
        while name:
            if name in self.levels:
                return self.levels[name]
            name = name.rpartition(".")[0]
        return self.level

    def tell_repeated(self, everything: bool = False) -> None:
        """Say how often was said what was held back. To be called now and then; `everything`: also what is not over."""
        with self._lock:
            bursts = self._limiter.ended(float("inf") if everything else self._clock())
        for burst in bursts:
            structlog.get_logger(burst.source.logger).log(
                LEVELS.get(burst.source.level, logging.ERROR), "repeated", of=burst.source.event, more=burst.count)
        with self._writing:
            lost = self._output.take_lost() if self._output.ready() else 0
        if lost:
            structlog.get_logger(__name__).warning(
                "log_lines_lost", lines=lost,
                advice="whoever reads the log did not, or its disk was full; the last ones: rustosctl log tail")

    def _install(self) -> None:
        lowest = min(LEVELS[level] for level in (self.level, *self.levels.values()))
        structlog.configure(
            processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, self._named_and_wanted,
                        hidden, self._limited, self._kept, self._stamp, *((self._traces,) if self._traces else ()),
                        self._render, self._prioritized],
            wrapper_class=structlog.make_filtering_bound_logger(lowest),
            logger_factory=lambda *name: _Writer(name[0] if name else NAMELESS, self._say),
            cache_logger_on_first_use=False,
        )
        # asyncio and the libraries speak through logging: from warning on unless asked, in the same form and place.
        logging.root.handlers[:] = [_Forward()]
        logging.root.setLevel(max(LEVELS[self.level], logging.WARNING))
        for name, logger in list(logging.root.manager.loggerDict.items()):
            if isinstance(logger, logging.Logger) and not name.startswith("rustosd"):
                logger.setLevel(LEVELS[self.levels[name]] if name in self.levels else logging.NOTSET)

    def _say(self, text: str) -> None:
        with self._writing:
            self._output.write(text)

    # structlog's processors

    def _named_and_wanted(self, writer: "_Writer", _: str, event: Event) -> Event:
        name = event.setdefault("logger", writer.name)
        writer.level = event["level"]
        if logging.getLevelNamesMapping().get(event["level"].upper(), logging.ERROR) < LEVELS[self.level_of(name)]:
            raise structlog.DropEvent
        return event

    def _limited(self, _: "_Writer", __: str, event: Event) -> Event:
        fields = repr(sorted((key, str(value)) for key, value in event.items()))
        source = Source(event["logger"], event["level"], str(event.get("event", "")))
        with self._lock:
            admitted = self._limiter.admit(source, fields, self._clock())
        if not admitted:
            raise structlog.DropEvent
        return event

    def _kept(self, _: "_Writer", __: str, event: Event) -> Event:
        fields = {key: value for key, value in event.items() if key not in ("event", "level", "logger", "exc_info")}
        info = event.get("exc_info")
        if trace := trace_of(sys.exc_info() if info is True else info):
            fields["exception"] = trace
        self.ring.append(datetime.now(UTC).isoformat(timespec="microseconds")[:26], event["level"], event["logger"],
                         str(event.get("event", "")), fields)
        return event

    def _prioritized(self, writer: "_Writer", _: str, text: str) -> str:
        if not self._journal:
            return text
        prefix = f"<{_PRIORITIES.get(writer.level, 6)}>"
        return "\n".join(prefix + line for line in text.split("\n"))


class _Writer:
    """Where structlog sends a line of one logger."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self.name = name
        self.level = "info"
        self._say = say

    def msg(self, text: str) -> None:
        self._say(text)

    log = debug = info = warning = error = critical = exception = fatal = failure = msg


class _Forward(logging.Handler):
    """A record of the logging module as a line of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger(record.name).log(record.levelno, record.getMessage(), exc_info=record.exc_info)


def is_journal(to: TextIO, said: str) -> bool:
    """Whether a stream goes to systemd's journal, as `said` in JOURNAL_STREAM (systemd.exec(5)): device and inode."""
    try:
        found = os.fstat(to.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return said == f"{found.st_dev}:{found.st_ino}"
