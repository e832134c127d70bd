"""Firmware that has the adapter before an operating system does, and the register by which it lets go. AHCI 3.1.11, 10.6."""

from drivers.ahci import registers as r
from tests.models.device import Misuse

MS = 1_000_000
ANSWER_NS = 25 * MS
"""Within this it lets go or says that it is busy; else the operating system may take over."""
BUSY_NS = 2000 * MS
"""So long it may be busy."""


class Firmware:
    """When it is asked, it is busy from `busy_after_ns` on, and lets go after `lets_go_after_ns`; None: never.

    With `smi` it hears of that by the interrupt that SOOE lets through.
    """

    def __init__(self, lets_go_after_ns=0, busy_after_ns=None, smi=False):
        self.lets_go_after_ns, self.busy_after_ns, self.smi = lets_go_after_ns, busy_after_ns, smi
        self.written = r.BOHC(BOS=1, SOOE=smi)
        self.asked_at = None
        self.taken_at = None
        """When the operating system first used the adapter."""

    def _asked_for(self, now, after_ns) -> bool:
        return self.asked_at is not None and after_ns is not None and now - self.asked_at >= after_ns

    def read(self, now) -> int:
        owns = not self._asked_for(now, self.lets_go_after_ns)
        return int(r.BOHC(BOS=owns, OOS=self.written.OOS, SOOE=self.written.SOOE, OOC=self.written.OOC,
                          BB=owns and self._asked_for(now, self.busy_after_ns)))

    def write(self, value, now) -> None:
        wanted, before = r.BOHC(value), r.BOHC(self.read(now))
        if wanted.BOS != before.BOS or wanted.BB != before.BB:
            raise Misuse("BOS and BB are the firmware's (AHCI 3.1.11)")
        if wanted.SOOE != before.SOOE:
            raise Misuse("SOOE is the firmware's, which hears of nothing without it (AHCI 3.1.11)")
        if wanted.OOS and not before.OOS:
            self.asked_at = now
        rises = wanted.OOS and not before.OOS
        self.written = r.BOHC(OOS=wanted.OOS, SOOE=wanted.SOOE, OOC=rises or (before.OOC and not wanted.OOC))

    def used(self, now) -> str:
        """The operating system changes something else of the adapter; what is wrong with that."""
        if self.taken_at is not None:
            return ""
        self.taken_at = now
        if self.asked_at is None:
            return "the adapter was taken before its firmware was asked to let go (AHCI 10.6.3)"
        busy = self.busy_after_ns is not None and self.busy_after_ns <= ANSWER_NS
        in_time = now - self.asked_at < (BUSY_NS if busy else ANSWER_NS)
        if in_time and not self._asked_for(now, self.lets_go_after_ns):
            return "the adapter was taken while its firmware had its time to let go (AHCI 10.6.3)"
        return ""
