"""Programs that an exception ended: what their supervisors tell, in the audit log, in reports, and counted.

A supervisor runs as its program's user, who may have made it say anything. So every field is checked and bounded, who it is is
the kernel's word, and reports are bounded in size, number and how fast they come.
"""

import contextlib
import os
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import structlog

from rustosd.audit import AuditLog
from rustosd.control.fault_protocol import KEPT, FaultKind

TEXT_MOST: Final = 60_000
REPEATED: Final = 3
WITHIN_S: Final = 600.0
"""A program that was ended so often within this time is worth a note."""
REASON: Final = "fault"
HANDLED: Final = "fault_handled"
_Pid = Annotated[int, msgspec.Meta(ge=1, le=1 << 22)]
_PRINTABLE: Final = r"^[ -~]*\Z"
_Hex = Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-f]{1,16}\Z")]

log = structlog.get_logger(__name__)


class FaultNotice(msgspec.Struct, forbid_unknown_fields=True, tag_field="notice", tag="fault"):
    """A supervisor's word: an exception ends one of its processes."""

    pid: _Pid
    thread: _Pid
    program: Annotated[str, msgspec.Meta(max_length=64, pattern=_PRINTABLE)]
    kind: FaultKind
    signal: Annotated[int, msgspec.Meta(ge=1, le=64)]
    trap: Annotated[int, msgspec.Meta(ge=0, le=255)] | None
    error_code: _Hex | None
    address: _Hex | None
    words: Annotated[str, msgspec.Meta(max_length=500, pattern=_PRINTABLE)]
    text: Annotated[str, msgspec.Meta(max_length=TEXT_MOST, pattern=r"^[\n -~]*\Z")]


class HandledNotice(msgspec.Struct, forbid_unknown_fields=True, tag_field="notice", tag="handled"):
    """And: programs have handled so many exceptions of a kind themselves since it last said so."""

    kind: FaultKind
    count: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]


class Record(msgspec.Struct, frozen=True):
    """One program that was ended."""

    id: int
    at: str
    pid: int
    thread: int
    program: str
    kind: str
    signal: int
    trap: int | None
    error_code: str | None
    address: str | None
    words: str
    uid: int
    """The supervisor's user, by the kernel's word."""
    supervisor: int
    report: str | None
    """The file with all of it; None: there were too many at a time, or no room."""


class Faults:
    """All that is known of programs' exceptions. `directory` keeps the newest `keep` reports."""

    def __init__(self, audit: AuditLog, directory: Path, keep: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.audit = audit
        self.directory = directory
        self.keep = keep
        self.counts: Counter[tuple[str, str]] = Counter()      # (kind, outcome), since the start
        self._clock = clock
        self._records: deque[Record] = deque(maxlen=KEPT)
        self._lately: deque[tuple[float, str]] = deque(maxlen=KEPT)
        self._last = 0

    def load(self) -> None:
        """Know again what former daemons have written down."""
        for line in self.audit.lines(REASON):
            with contextlib.suppress(msgspec.ValidationError):
                self._records.append(msgspec.convert(line, Record))
                self._last = max(self._last, self._records[-1].id)

    def ended(self, notice: FaultNotice, supervisor: int, uid: int) -> Record:
        """An exception ends a process."""
        self._last += 1
        self.counts[notice.kind, "terminated"] += 1
        self._lately.append((self._clock(), notice.program))
        name = f"program-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{self._last}.txt"
        facts = {field: getattr(notice, field) for field in notice.__struct_fields__ if field != "text"}
        facts |= {"id": self._last, "uid": uid, "supervisor": supervisor, "outcome": "terminated"}
        written = self.audit.write(REASON, **facts, report=name)
        report = name if written and self._write(name, notice.text, supervisor, uid) else None
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = msgspec.convert({**facts, "at": at, "report": report}, Record)
        self._records.append(record)
        if written:
            log.warning("program_ended", id=record.id, pid=notice.pid, program=notice.program, kind=notice.kind,
                        words=notice.words, uid=uid)
        return record

    def handled(self, notice: HandledNotice, supervisor: int, uid: int) -> None:
        """Programs of a supervisor have handled exceptions themselves."""
        self.counts[notice.kind, "handled"] += notice.count
        self.audit.write(HANDLED, kind=notice.kind, count=notice.count, supervisor=supervisor, uid=uid)

    def records(self, kind: str | None = None, pid: int | None = None, limit: int = KEPT) -> list[Record]:
        """The newest first."""
        found = [one for one in reversed(self._records) if kind in (None, one.kind) and pid in (None, one.pid)]
        return found[:limit]

    def text(self, identity: int) -> tuple[Record, str]:
        """A record and its report. Raises LookupError with what to do."""
        record = next((one for one in self._records if one.id == identity), None)
        if record is None:
            raise LookupError(f"there is no record {identity}; see: rustosctl faults")
        if record.report is None:
            return record, ""
        try:
            return record, (self.directory / os.path.basename(record.report)).read_text(errors="replace")
        except OSError:
            return record, ""

    def repeated(self) -> list[tuple[str, int]]:
        """Programs that exceptions end again and again, and how often lately."""
        now = self._clock()
        lately = Counter(program for at, program in self._lately if now - at <= WITHIN_S)
        return [(program, count) for program, count in lately.most_common() if count >= REPEATED]

    def _write(self, name: str, text: str, supervisor: int, uid: int) -> bool:
        octets = f"supervisor: {supervisor}, of user {uid}\n{text}".encode()
        path = self.directory / name
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(path, "xb", opener=lambda place, flags: os.open(place, flags | os.O_NOFOLLOW, 0o600)) as file:
                file.write(octets)
            found = sorted(self.directory.glob("program-*.txt"), key=_number)
            for old in found[:-self.keep]:
                old.unlink(missing_ok=True)
        except OSError as error:
            log.error("fault_report_failed", path=str(path), error=error.strerror)
            return False
        return True


def samples(faults: Faults, sample: Callable[..., Any]) -> list[Any]:
    """For the metrics, by kind and outcome: both are of this module's lists."""
    return [sample("rustos_program_faults_total", "counter", "Exceptions of programs, by what became of them.", count,
                   {"kind": kind, "outcome": outcome}) for (kind, outcome), count in sorted(faults.counts.items())]


def _number(path: Path) -> int:
    text = path.stem.rpartition("-")[2]
    return int(text) if text.isdecimal() else 0
