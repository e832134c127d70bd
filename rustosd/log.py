"""Logs of the shell around the stack: `log.info("link_up", nic=name)`, past facts with units in their keys."""

import logging
import sys
from typing import Literal, TextIO

import structlog

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(level: str = "info", form: Literal["auto", "console", "json"] = "auto", to: TextIO | None = None) -> None:
    """Send log lines to `to` (default: stderr): for people on a terminal, else one JSON object a line."""
    to = to or sys.stderr
    people = form == "console" or (form == "auto" and to.isatty())
    shared = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if people else "iso", utc=not people),
    ]
    if people:
        # No local variables: they are many, and may be somebody's data.
        trace = structlog.dev.RichTracebackFormatter(show_locals=False)
        last = [structlog.dev.ConsoleRenderer(colors=to.isatty(), pad_event_to=24, exception_formatter=trace)]
    else:
        traces = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
        last = [traces, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=shared + last,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=to),
        cache_logger_on_first_use=False,
    )
    # asyncio and the libraries speak through logging: from warning on, in the same form and place.
    logging.root.handlers[:] = [_Forward()]
    logging.root.setLevel(max(LEVELS[level], logging.WARNING))


class _Forward(logging.Handler):
    """A record of the logging module as a line of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)
