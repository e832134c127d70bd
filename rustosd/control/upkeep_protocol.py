"""What upkeep asks over the control socket: configuration, log, health, crash reports, and what this daemon is."""

from typing import Annotated, Literal

import msgspec

from rustosd.control.base import Done, Method, Nothing, Parameters, Row

LogLevel = Literal["debug", "info", "warning", "error"]
MAX_LINES = 2000
MAX_WAIT_MS = 30_000


class HealthNote(Row):
    """One thing that needs attention."""

    code: str                   # docs/status.md has all of them
    severity: Literal["error", "warning", "note"]
    subject: str | None         # the interface, address, reason or service it is about
    text: str
    advice: str                 # what to do


class ConfigChange(Row):
    """One key that differs between what is in force and what the file says."""

    key: str                    # interface[rustos0].mtu
    old: str                    # "-" when there is none
    new: str
    taken: Literal["now", "later", "restart"]
    when: str | None            # from when on, or why it needs a restart


class Reload(Row):
    """What a reload changed, or would change."""

    file: str
    done: bool                  # False: it was only checked
    changes: list[ConfigChange]


class ConfigText(Row):
    """The configuration in force, secrets hidden."""

    file: str | None            # where it is from; None: it is the built-in one
    toml: str
    waiting: list[ConfigChange] # what the file said at the last reload and only a restart brings


class LoggerLevel(Row):
    """From which level on a logger is heard."""

    logger: str | None          # None: all that have no level of their own
    level: LogLevel


class LogLine(Row):
    """A line of the log."""

    number: int                 # 1 for the daemon's first
    at: str                     # ISO 8601, UTC
    level: str
    logger: str
    event: str
    fields: dict[str, str]


class LogLines(Row):
    """Some lines, the oldest first."""

    lines: list[LogLine]
    last: int                   # ask for those after it next
    missed: int                 # lines in between that are not in memory any more


class CrashReport(Row):
    """A report of a daemon that died."""

    name: str
    at: str
    reason: str
    octets: int


class CrashText(Row):
    """All of one report."""

    name: str
    text: str


class Removed(Row):
    """How many there were."""

    removed: int


class About(Row):
    """What this daemon is and what it runs on."""

    version: str
    python: str
    kernel: str
    machine: str
    packages: dict[str, str]
    pid: int
    started_by: str             # systemd, or a person
    uptime_s: float
    config_file: str | None
    processors: int
    resident_octets: int
    memory_octets: int          # what it may have; 0: unknown
    descriptors: int
    threads: int


class LevelChange(Parameters):
    logger: Annotated[str, msgspec.Meta(max_length=100)] | None = None      # None: all that have no level of their own
    level: LogLevel | None = None                                           # None: that of the logger above


class TailQuery(Parameters):
    after: Annotated[int, msgspec.Meta(ge=0)] | None = None     # lines behind this one; None: the newest
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_LINES)] = 50
    wait_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_WAIT_MS)] = 0        # for a line, when there is none yet


class ReportName(Parameters):
    name: Annotated[str, msgspec.Meta(max_length=100)]


class ReportChoice(Parameters):
    name: Annotated[str, msgspec.Meta(max_length=100)] | None = None        # None: all


METHODS = (
    Method("daemon.about", Nothing, About, False, "What this daemon is and what it runs on."),
    Method("health.list", Nothing, list[HealthNote], False, "What needs attention, the worst first."),
    Method("config.show", Nothing, ConfigText, False, "The configuration in force."),
    Method("config.check", Nothing, Reload, False, "What a reload would change; nothing is changed."),
    Method("config.reload", Nothing, Reload, True, "Read the configuration file again and take what has changed, or nothing."),
    Method("log.levels", Nothing, list[LoggerLevel], False, "From which level on is logged."),
    Method("log.set", LevelChange, Done, True, "Change from which level on is logged, until the next start."),
    Method("log.tail", TailQuery, LogLines, False, "The last log lines, or those behind one."),
    Method("crash.list", Nothing, list[CrashReport], False, "Reports of daemons that died."),
    Method("crash.show", ReportName, CrashText, False, "One report of a daemon that died."),
    Method("crash.clear", ReportChoice, Removed, True, "Remove one report of a daemon that died, or all."),
)
