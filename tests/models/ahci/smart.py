"""SMART: health, attributes, thresholds, self-tests, logs. ACS-3 7.48, ACS-2 4.19, A."""

import struct

from tests.models.ahci.commands import Answer, Command, refused

DATA, THRESHOLDS, AUTOSAVE, EXECUTE, LOG, WRITE_LOG, ENABLE, DISABLE, STATUS = (
    0xD0, 0xD1, 0xD2, 0xD4, 0xD5, 0xD6, 0xD8, 0xD9, 0xDA)
_KEY = 0xC24F
_BAD = 0x2CF4
SHORT, EXTENDED, ABORT = 1, 2, 0x7F
_PASSED, _ABORTED, _RUNNING = 0x0, 0x1, 0xF
_TESTS = 21


class Smart:
    """Of one drive. Attributes: number, value, threshold, raw."""

    def __init__(self, drive):
        self.drive = drive
        self.enabled = True
        self.failing = False
        self.celsius = 31
        self.hours = 1234
        self.attributes = {5: (100, 10, 0), 9: (99, 0, 1234), 12: (100, 0, 56), 194: (69, 0, 31), 197: (100, 0, 0),
                           199: (200, 0, 0)}
        self.tests: list[tuple[int, int, int]] = []
        """Kind, result (0 to 15), hours; the newest last."""
        self.left = 0
        """How many looks a self-test still takes; every one is a tenth of it."""

    def execute(self, c: Command, bus) -> Answer:
        if c.lba >> 8 & 0xFFFF != _KEY or not (self.enabled or c.feature == ENABLE):
            return refused()
        what = c.feature & 0xFF
        if what == DATA:
            return c.scatter(bus, self.data())
        if what == THRESHOLDS:
            return c.scatter(bus, self.thresholds())
        if what == LOG:
            page = {0: self.directory, 1: self.errors, 6: self.test_log, 9: lambda: _summed(b"\1\0")}.get(c.lba & 0xFF)
            return c.scatter(bus, page()) if page else refused()
        if what == EXECUTE:
            return self.begin(c.lba & 0xFF)
        if what == STATUS:
            return Answer(lba=(_BAD if self.failing else _KEY) << 8)
        if what in (ENABLE, DISABLE):
            self.enabled = what == ENABLE
            return Answer()
        return Answer() if what == AUTOSAVE else refused()

    def begin(self, kind: int) -> Answer:
        if kind == ABORT and self.left:
            self.left = 0
            self.tests[-1] = (*self.tests[-1][:1], _ABORTED, self.hours)
        elif kind in (SHORT, EXTENDED):
            if self.left:
                return refused()
            self.left = 3
            self.tests.append((kind, _RUNNING, self.hours))
        return Answer()

    def data(self) -> bytes:
        page = bytearray(512)
        page[0] = 16
        for i, (number, (value, _, raw)) in enumerate(self.attributes.items()):
            if number == 194:
                raw = self.celsius
            page[2 + 12 * i:14 + 12 * i] = struct.pack("<BHBB6sB", number, 3, value, value, raw.to_bytes(6, "little"), 0)
        if self.left:
            self.left -= 1
            if not self.left:
                failed = 7 if self.failing else _PASSED
                self.tests[-1] = (self.tests[-1][0], failed, self.hours)
        result = self.tests[-1][1] if self.tests else 0
        page[363] = result << 4 | self.left
        page[364:366] = struct.pack("<H", 60)
        page[367] = 0x1 | 1 << 4                     # execute off-line immediate, self-tests
        page[368:370] = struct.pack("<H", 3)
        page[370] = 1                                # error logging
        page[372], page[373] = 2, 10                 # minutes that the tests take
        return _summed(page)

    def thresholds(self) -> bytes:
        page = bytearray(512)
        page[0] = 16
        for i, (number, (_, threshold, _)) in enumerate(self.attributes.items()):
            page[2 + 12 * i], page[3 + 12 * i] = number, threshold
        return _summed(page)

    def directory(self) -> bytes:
        words = [0] * 256
        words[0], words[1], words[6], words[9] = 1, 1, 1, 1
        return struct.pack("<256H", *words)

    def errors(self) -> bytes:
        """The summary error log: how many there were, no details."""
        page = bytearray(512)
        page[0] = 1
        page[452:454] = struct.pack("<H", self.drive.error_count)
        return _summed(page)

    def test_log(self) -> bytes:
        page = bytearray(512)
        page[0] = 1
        for i, (kind, result, hours) in enumerate(self.tests[-_TESTS:]):
            page[2 + 24 * i:6 + 24 * i] = struct.pack("<BBH", kind, result << 4 | self.left, hours)
        page[508] = min(len(self.tests), _TESTS)
        return _summed(page)


def _summed(page: bytes) -> bytes:
    """The last octet makes the sum of all zero."""
    page = bytearray(page.ljust(512, b"\0"))
    page[511] = -sum(page[:511]) & 0xFF
    return bytes(page)
