"""SMART: what a drive knows of its health, as plain values. ACS-3 7.48, A; attributes as ATA/ATAPI-3 has them.

What is damaged or missing is left out, never guessed.
"""

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from drivers.ahci import commands
from drivers.ahci.commands import Answer
from drivers.ahci.port import Refused
from drivers.ahci.steps import Procedure

if TYPE_CHECKING:
    from drivers.ahci.disk import AhciDisk

OCTETS: Final = 512
ATTRIBUTES: Final = 30
TESTS: Final = {"short": 0x01, "long": 0x02, "abort": 0x7F}
"""SMART EXECUTE OFF-LINE IMMEDIATE."""
HOT_CELSIUS: Final = 100
"""What is hotter is no temperature but something else in that octet."""

_GOOD, _BAD = 0xC24F, 0x2CF4
_PREFAILURE: Final = 1
_NEVER_FAILS: Final = 0         # a threshold
_TEMPERATURES: Final = (194, 190)
_HOURS: Final = 9
_RUNNING: Final = 15
_TEST_ENTRIES: Final = 21
_SUMMARY_LOG, _TEST_LOG = 0x01, 0x06
_KINDS: Final = {0x01: "short", 0x02: "long", 0x03: "conveyance", 0x04: "selective", 0x81: "short, captive",
                 0x82: "long, captive"}
RESULTS: Final = {
    0: "passed", 1: "aborted by the host", 2: "interrupted by a reset", 3: "ended by a fatal error", 4: "failed",
    5: "failed: electrical part", 6: "failed: servo part", 7: "failed: read element", 8: "failed: handling damage",
    _RUNNING: "running",
}
NAMES: Final = {
    1: "read error rate", 3: "spin-up time", 4: "start and stop count", 5: "reallocated sectors", 7: "seek error rate",
    9: "power-on hours", 10: "spin retries", 12: "power cycles", 170: "reserved space", 171: "program failures",
    172: "erase failures", 173: "wear levelling", 174: "power losses", 177: "wear levelling", 179: "reserved blocks used",
    181: "program failures", 182: "erase failures", 183: "link downshifts", 184: "end-to-end errors",
    187: "uncorrectable errors reported", 188: "command timeouts", 190: "airflow temperature", 191: "shocks",
    192: "power-off retracts", 193: "load cycles", 194: "temperature", 195: "errors corrected", 196: "reallocation events",
    197: "pending sectors", 198: "uncorrectable sectors", 199: "link CRC errors", 200: "write error rate",
    231: "life left", 232: "reserved space left", 233: "media wear", 240: "head flying hours", 241: "sectors written",
    242: "sectors read",
}
"""What most makers mean by a number."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """One figure. A `value` at or below its `threshold` has failed."""

    number: int
    value: int
    worst: int
    threshold: int
    """0: it never fails, or there is none."""
    raw: int
    prefailure: bool
    """Failing means that the drive is about to; else that it is old."""

    @property
    def name(self) -> str:
        """As most makers mean it."""
        return NAMES.get(self.number, f"attribute {self.number}")

    @property
    def failed(self) -> bool:
        """Now."""
        return self.threshold > _NEVER_FAILS and self.value <= self.threshold


@dataclass(frozen=True, slots=True)
class SelfTest:
    """One of the drive's tests of itself."""

    kind: str
    result: str
    hours: int
    """Power-on hours when it ended."""


@dataclass(frozen=True, slots=True)
class Smart:
    """All of it."""

    healthy: bool | None
    """None: the drive does not say."""
    attributes: tuple[Attribute, ...] = ()
    error_count: int | None = None
    """Errors that the drive has written down."""
    test: str = ""
    """How the last self-test ended, or that one runs."""
    test_left_percent: int = 0
    short_minutes: int = 0
    long_minutes: int = 0
    tests: tuple[SelfTest, ...] = ()
    """The newest first."""

    @property
    def celsius(self) -> int | None:
        """None: not told."""
        return next((found for number in _TEMPERATURES if (raw := self.raw(number)) is not None
                     and 0 < (found := raw & 0xFF) < HOT_CELSIUS), None)

    @property
    def hours(self) -> int | None:
        """Power-on hours."""
        raw = self.raw(_HOURS)
        return None if raw is None else raw & 0xFFFF_FFFF

    @property
    def test_runs(self) -> bool:
        """Whether one runs now."""
        return self.test == RESULTS[_RUNNING]

    def raw(self, number: int) -> int | None:
        """An attribute's raw figure; None without it."""
        return next((attribute.raw for attribute in self.attributes if attribute.number == number), None)


def read(disk: "AhciDisk") -> Procedure:
    """Ask a drive for all of it: a Smart. SMART is switched on if it is off. Raises Refused."""
    def ask(own: commands.Own) -> Procedure:
        return (yield from disk.life.port.internal(own, disk.pm))

    def ask_perhaps(own: commands.Own) -> Procedure:
        try:
            return (yield from ask(own)).data
        except Refused:
            return b""

    if not disk.identity.has_smart:
        raise Refused(disk.name, "it has no SMART")
    yield from ask(commands.smart_enable())
    healthy = parse_status((yield from ask(commands.smart_status())))
    data = (yield from ask(commands.smart_data())).data
    thresholds = yield from ask_perhaps(commands.smart_thresholds())
    errors = yield from ask_perhaps(commands.smart_log(_SUMMARY_LOG))
    tests = b""
    if disk.identity.has_self_test:
        tests = yield from ask_perhaps(commands.smart_log(_TEST_LOG))
    return parse(healthy, data, thresholds, errors, tests)


def start_test(disk: "AhciDisk", kind: str) -> Procedure:
    """Begin a self-test, "short" or "long", or "abort" the one that runs. The drive works on meanwhile. Raises Refused."""
    if not disk.identity.has_self_test:
        raise Refused(disk.name, "it has no self-test")
    yield from disk.life.port.internal(commands.smart_enable(), disk.pm)
    yield from disk.life.port.internal(commands.smart_test(TESTS[kind]), disk.pm)


def parse_status(answer: Answer) -> bool | None:
    """SMART RETURN STATUS: the address comes back as it was, or changed."""
    return {_GOOD: True, _BAD: False}.get(answer.lba >> 8 & 0xFFFF)


def parse(healthy: bool | None, data: bytes, thresholds: bytes = b"", errors: bytes = b"", tests: bytes = b"") -> Smart:
    """What these pages say together; one whose checksum is wrong says nothing."""
    count = struct.unpack_from("<H", errors, 452)[0] if _whole(errors) else None
    if not _whole(data):
        return Smart(healthy, error_count=count, tests=_tests(tests))
    limits = {}
    if _whole(thresholds):
        limits = {number: limit for number, limit in struct.iter_unpack("<BB10x", thresholds[2:2 + 12 * ATTRIBUTES])}
    attributes = tuple(
        Attribute(number, value, worst, limits.get(number, 0), int.from_bytes(raw, "little"), bool(flags & _PREFAILURE))
        for number, flags, value, worst, raw in struct.iter_unpack("<BHBB6sx", data[2:2 + 12 * ATTRIBUTES]) if number)
    long_minutes = data[373] if data[373] != 0xFF else struct.unpack_from("<H", data, 375)[0]
    return Smart(healthy, attributes, count, RESULTS.get(data[363] >> 4, f"result {data[363] >> 4}"),
                 data[363] % 16 * 10, data[372], long_minutes, _tests(tests))


def _tests(page: bytes) -> tuple[SelfTest, ...]:
    """The self-test log: a circle whose newest entry's number stands at its end. ACS-3 A.13."""
    if not _whole(page) or not 1 <= page[508] <= _TEST_ENTRIES:
        return ()
    entries = list(struct.iter_unpack("<BBH20x", page[2:2 + 24 * _TEST_ENTRIES]))
    newest = page[508] - 1
    return tuple(SelfTest(_KINDS.get(kind, f"kind {kind}"), RESULTS.get(result >> 4, f"result {result >> 4}"), hours)
                 for kind, result, hours in reversed(entries[newest + 1:] + entries[:newest + 1]) if kind)


def _whole(page: bytes) -> bool:
    return len(page) == OCTETS and not sum(page) & 0xFF and any(page)
