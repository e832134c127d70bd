"""What the kernel says of the machine, as it says it: /dev/kmsg, read without waiting.

Each read gives one record, `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS[,...];TEXT` and a line end, then continuation lines that
begin with a space (Documentation/ABI/testing/dev-kmsg). The priority holds the facility, by which the kernel marks what a
process wrote; that is not believed.
"""

import errno
import os
import re
from collections import Counter
from typing import Final, NamedTuple

KMSG: Final = "/dev/kmsg"
LONGEST: Final = 8192
"""CONSOLE_EXT_LOG_MAX; into a smaller buffer the kernel does not read."""
_HEADER: Final = re.compile(rb"(\d{1,10}),(\d{1,20}),(\d{1,20}),[^;\n]{1,64};", re.ASCII)
_ESCAPED: Final = re.compile(r"\\x([0-9a-f]{2})", re.ASCII)
_FACILITY: Final = 3        # shift


class Record(NamedTuple):
    """One message of the kernel's own."""

    sequence: int
    time_us: int
    """Since boot."""
    level: int
    """0 emergency to 7 debug."""
    text: str


def parse(octets: bytes) -> Record | None:
    """One record; None when it is not well-formed or not the kernel's own."""
    header = _HEADER.match(octets)
    if header is None or len(octets) > LONGEST:
        return None
    priority, sequence, time_us = (int(number) for number in header.groups())
    if priority >> _FACILITY:
        return None
    line = octets[header.end():].partition(b"\n")[0].decode("utf-8", "replace")
    return Record(sequence, time_us, priority, _ESCAPED.sub(lambda match: chr(int(match[1], 16)), line))


class KernelLog:
    """The kernel's log from now on, to be waited for with `fileno`."""

    def __init__(self, path: str = KMSG) -> None:
        """Raises OSError: PermissionError without CAP_SYSLOG where dmesg is restricted."""
        self.counts: Counter[str] = Counter()
        """Records "read" and "skipped" (a process wrote them), and how often some were "overwritten" before we came."""
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._fd, 0, os.SEEK_END)

    def fileno(self) -> int:
        """Readable while records wait; -1 once closed."""
        return self._fd

    def read(self, limit: int = 64) -> list[Record]:
        """What has been said since the last time, at most `limit` records."""
        records = []
        for _ in range(limit):
            try:
                octets = os.read(self._fd, LONGEST)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.EPIPE:      # the next read goes on with the oldest there is
                    raise
                self.counts["overwritten"] += 1
                continue
            if (record := parse(octets)) is None:
                self.counts["skipped"] += 1
            else:
                self.counts["read"] += 1
                records.append(record)
        return records

    def close(self) -> None:
        """May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
