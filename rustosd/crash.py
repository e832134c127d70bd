"""What is left of a daemon that died: its last log lines, its figures and the stacks of its threads, in one report.

While it runs, a daemon has a box in the crash directory: a file that is written to at once, so that it is there however it
ends, and a file for faulthandler, which writes the stacks when a signal kills it. A clean end removes both. The box is on a
disk, for the machine may stop as well. It is not mapped into memory, where a disk that is full, or fails, would be a signal
that kills. An exception that nobody caught becomes a report at once; of a box whose daemon is dead the next start makes one.
"""

import asyncio
import contextlib
import faulthandler
import fcntl
import io
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from rustosd.log_ring import Line, spoken, trace_of

HEADER_OCTETS: Final = 32 << 10
FIGURES_OCTETS: Final = 64 << 10
LINES_OCTETS: Final = 128 << 10
_SIZE: Final = 8                    # before each part: how much of it is used
_FIGURES_AT: Final = _SIZE + HEADER_OCTETS
_LINES_AT: Final = _FIGURES_AT + _SIZE + FIGURES_OCTETS
BOX_OCTETS: Final = _LINES_AT + _SIZE + LINES_OCTETS
MAX_REPORT_OCTETS: Final = 512 << 10
REPORT_LINES: Final = 500
MAX_TASKS: Final = 200
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

log = structlog.get_logger(__name__)


class Header(msgspec.Struct):
    """Which daemon a box belongs to."""

    version: str = "unknown"
    pid: int = 0
    started_at: str = ""
    boot: str = ""
    config: str = ""
    """Its configuration without secrets."""


class Report(msgspec.Struct, frozen=True):
    """One report in the directory."""

    name: str
    at: str
    reason: str
    octets: int


class CrashBox:
    """The box of this process and the reports of former ones, in `directory`; at most `keep` reports stay."""

    def __init__(self, directory: Path, keep: int, version: str, config: str) -> None:
        self.directory = directory
        self.keep = keep
        self.header = Header(version, os.getpid(), _now(), _boot(), config)
        self._reports: list[Report] | None = None       # as they were when somebody last asked
        self._box_fd = self._fault_fd = -1
        self._lines_octets = 0                          # of all lines so far
        self._directory_is_ours = False
        self._lock = threading.Lock()

    def open(self, catch_signals: bool = True) -> list[Report]:
        """Make reports of what dead daemons left, and a box for this one. `catch_signals`: faulthandler writes to it.

        Returns the new reports. A directory that cannot be used is logged, and then nothing is kept.
        """
        try:
            self._directory_is_ours = not self.directory.exists()
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = [report for path in sorted(self.directory.glob("running-*.box")) if (report := self._former(path))]
            self._make_box(catch_signals)
        except OSError as error:
            log.warning("crash_reports_off", directory=str(self.directory), error=error.strerror,
                        advice="name another with directory = ... under [crash]")
            self.close()
            return []
        return found

    def _make_box(self, catch_signals: bool) -> None:
        path = self.directory / f"running-{os.getpid()}.box"
        self._box_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._box_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.posix_fallocate(self._box_fd, 0, BOX_OCTETS)         # for when the disk is full
        self._store(0, HEADER_OCTETS, msgspec.json.encode(self.header))
        if catch_signals:
            self._fault_fd = os.open(path.with_suffix(".fault"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            faulthandler.enable(self._fault_fd, all_threads=True)

    def close(self) -> None:
        """A clean end: the box goes, and the directory if it was made for it and is empty. May be called twice."""
        box = self.directory / f"running-{os.getpid()}.box"
        if self._fault_fd >= 0:
            faulthandler.disable()
            os.close(self._fault_fd)
            box.with_suffix(".fault").unlink(missing_ok=True)
        with self._lock:
            if self._box_fd >= 0:
                box.unlink(missing_ok=True)
                os.close(self._box_fd)
            self._box_fd = self._fault_fd = -1
        if self._directory_is_ours:
            with contextlib.suppress(OSError):      # there are reports in it
                self.directory.rmdir()

    def configured(self, config: str) -> None:
        """The configuration has changed."""
        self.header.config = config
        self._store(0, HEADER_OCTETS, msgspec.json.encode(self.header))

    def line(self, line: Line) -> None:
        """Keep a log line; any thread may call this."""
        octets = (spoken(line) + "\n").encode(errors="replace")[-LINES_OCTETS:]
        with self._lock, self._careless():
            for at, part in _ring_parts(self._lines_octets, octets):
                os.pwrite(self._box_fd, part, _LINES_AT + _SIZE + at)
            os.pwrite(self._box_fd, (self._lines_octets + len(octets)).to_bytes(_SIZE), _LINES_AT)
            self._lines_octets += len(octets)

    def figures(self, octets: bytes) -> None:
        """Keep what is counted now in place of what was before."""
        self._store(_FIGURES_AT, FIGURES_OCTETS, octets)

    def _store(self, at: int, most: int, octets: bytes) -> None:
        """A part that does not fit is left out: half of it would be no JSON."""
        if len(octets) > most:
            return
        with self._lock, self._careless():
            os.pwrite(self._box_fd, bytes(_SIZE), at)
            os.pwrite(self._box_fd, octets, at + _SIZE)
            os.pwrite(self._box_fd, len(octets).to_bytes(_SIZE), at)

    @staticmethod
    def _careless() -> contextlib.suppress:
        """What is not kept is missing in a report that may never be; a log line about it would come here, too."""
        return contextlib.suppress(OSError)

    # Reports

    def report(self, error: BaseException, lines: list[Line], figures: bytes) -> Report | None:
        """Write a report of an exception that ends this process, called where it is handled. None: it could not be."""
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        stacks = f"{trace_of(error)}\n{_threads()}\n{_tasks()}"
        return self._write(reason, self.header, stacks, "\n".join(map(spoken, lines[-REPORT_LINES:])), figures)

    def _former(self, path: Path) -> Report | None:
        """A report of what the daemon of a box left, unless it lives; box and stacks are removed."""
        with open(path, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            content = file.read(BOX_OCTETS)
            fault_path = path.with_suffix(".fault")
            fault = fault_path.read_text(errors="replace")[:MAX_REPORT_OCTETS] if fault_path.exists() else ""
            report = None
            if len(content) == BOX_OCTETS:
                header = Header()
                with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError):
                    header = msgspec.json.decode(_part(content, 0, HEADER_OCTETS), type=Header)
                report = self._write(_reason(fault, header), header, fault, _ring_text(content),
                                     _part(content, _FIGURES_AT, FIGURES_OCTETS))
            fault_path.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            return report

    def _write(self, reason: str, header: Header, stacks: str, lines: str, figures: bytes) -> Report | None:
        at = _now()
        name = f"crash-{at.replace(':', '').replace('-', '')}-{header.pid}.txt"
        with contextlib.suppress(msgspec.DecodeError):
            figures = msgspec.json.format(figures, indent=1)
        sections = (("stacks", stacks or "none was written"), ("last log lines", lines or "none"),
                    ("figures", figures.decode(errors="replace") or "none"),
                    ("configuration, without secrets", header.config or "unknown"))
        text = (f"reason: {reason}\nat: {at}\nversion: {header.version}\npid: {header.pid}\nstarted: {header.started_at}\n"
                + "".join(f"\n=== {title} ===\n{content.rstrip()}\n" for title, content in sections))
        octets = text.encode(errors="replace")[:MAX_REPORT_OCTETS]
        path = self.directory / name
        self._reports = None
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(path.with_suffix(".new"), "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(octets)
            path.with_suffix(".new").replace(path)
            for old in sorted(self.directory.glob("crash-*.txt"))[:-self.keep]:
                old.unlink(missing_ok=True)
        except OSError as error:
            log.error("crash_report_failed", path=str(path), error=error.strerror)
            return None
        return Report(name, at, reason, len(octets))

    def reports(self) -> list[Report]:
        """Those there are, the newest first."""
        if self._reports is None:
            self._reports = self._found()
        return list(self._reports)

    def _found(self) -> list[Report]:
        rows = []
        for path in sorted(self.directory.glob("crash-*.txt"), reverse=True):
            with contextlib.suppress(OSError, UnicodeDecodeError), open(path) as file:
                facts = dict(line.rstrip("\n").partition(": ")[::2] for line in (file.readline(), file.readline()))
                rows.append(Report(path.name, facts.get("at", ""), facts.get("reason", "unknown"), path.stat().st_size))
        return rows

    def text(self, name: str) -> str:
        """One report. Raises ValueError when there is none of that name."""
        self._known(name)
        return (self.directory / name).read_text(errors="replace")

    def remove(self, name: str | None = None) -> int:
        """Remove one report, or all; how many. Raises ValueError when there is none of that name."""
        names = [report.name for report in self.reports()] if name is None else [self._known(name)]
        self._reports = None
        for each in names:
            (self.directory / each).unlink(missing_ok=True)
        return len(names)

    def _known(self, name: str) -> str:
        if name not in [report.name for report in self.reports()]:
            raise ValueError(f"there is no crash report {name}; see: rustosctl crash list")
        return name


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _reason(fault: str, header: Header) -> str:
    """What ended a daemon that left a box."""
    if fault:
        return fault.splitlines()[0]
    if header.boot != _boot():
        return "the machine stopped while it ran"
    return "it was killed from outside, without a trace of its own: SIGKILL, or memory ran out (see: journalctl -k)"


def _part(content: bytes, at: int, most: int) -> bytes:
    used = min(int.from_bytes(content[at:at + _SIZE]), most)
    return content[at + _SIZE:at + _SIZE + used]


def _ring_parts(written: int, octets: bytes) -> Iterator[tuple[int, bytes]]:
    """Where the next octets of a ring go."""
    at = written % LINES_OCTETS
    first = octets[:LINES_OCTETS - at]
    yield at, first
    if len(first) < len(octets):
        yield 0, octets[len(first):]


def _ring_text(content: bytes) -> str:
    written = int.from_bytes(content[_LINES_AT:_LINES_AT + _SIZE])
    ring = content[_LINES_AT + _SIZE:]
    if written <= LINES_OCTETS:
        return ring[:written].decode(errors="replace")
    at = written % LINES_OCTETS
    return (ring[at:] + ring[:at]).partition(b"\n")[2].decode(errors="replace")     # the first line is cut


def _threads() -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(f"Thread {names.get(ident, ident)}:\n" + "".join(traceback.format_stack(frame))
                     for ident, frame in sys._current_frames().items())


def _tasks() -> str:
    """Where every task of the loop waits."""
    try:
        tasks: list[asyncio.Task[Any]] = sorted(asyncio.all_tasks(), key=lambda task: task.get_name())
    except RuntimeError:        # no loop runs
        return "no tasks"
    out = io.StringIO()
    for task in tasks[:MAX_TASKS]:
        task.print_stack(limit=20, file=out)
    return out.getvalue() + (f"... and {len(tasks) - MAX_TASKS} more tasks\n" if len(tasks) > MAX_TASKS else "")
