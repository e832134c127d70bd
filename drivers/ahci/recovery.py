"""What is done when something goes wrong on a port.

What goes wrong and what follows (AHCI 6.2, 10.4; SATA 13.6):

    the drive reports an error      the command engine is restarted. Of queued commands, the drive's error log tells which it
                                    was: that one ends, the others are issued again. A drive without that log is reset, and
                                    the commands run again one by one, not queued, so that each has its own result
    the link garbles data           COMRESET; all commands again one by one, each at most TRIES times
    the host bus refuses            COMRESET; all commands one by one, and whose error comes back ends with EFAULT
    a command does not end          COMRESET; the one that was longest under way ends with ETIMEDOUT, the others go again
    PhyRdy or COMINIT               once the link has settled, COMRESET: the same drive goes on, another one is a new disk, and
                                    if nobody is there for RETURN_NS, its requests end with ENODEV
    all ones                        the controller is gone: everything ends with ENODEV

What comes again is met by harder measures: see `drivers.ahci.ladder`.
"""

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from drivers.ahci import commands
from drivers.ahci.identify import parse_error_log
from drivers.ahci.ladder import RESETS, Ladder, Measure, Trouble
from drivers.ahci.packet import AGAIN
from drivers.ahci.port import Port, Refused
from drivers.ahci.registers import PxIS, PxTFD
from drivers.ahci.states import Event
from drivers.ahci.steps import Procedure
from drivers.disk import Feature
from drivers.errors import DeviceError, DeviceTimeout
from drivers.request import Operation

if TYPE_CHECKING:
    from drivers.ahci.disk import AhciDisk

TRIES: Final = 3
_LINK: Final = PxIS.IFS.mask | PxIS.UFS.mask | PxIS.OFS.mask
_BUS: Final = PxIS.HBFS.mask | PxIS.HBDS.mask
_ICRC, _UNC, _IDNF = 0x80, 0x40, 0x10       # of the error register
_FAILED: Final = PxTFD.ERR.mask | PxTFD.DF.mask


class Recovery:
    """The part of `drivers.ahci.life.AhciPort` that mends; what it needs of the rest stands first."""

    name: str
    port: Port
    adapter: Any
    ladder: Ladder
    counts: dict[str, int]
    disks: "list[AhciDisk]"
    to: Any
    note: Any
    resume: Any
    _live: Any
    _freeze: Any
    _requeue: Any
    _attach: Any
    _empty: Any
    _done_before: int

    def _recover(self, status: int) -> Procedure:
        """Stop the command engine, find out who is to blame, and go on with the others. AHCI 6.2.2."""
        port = self.port
        self.counts["recoveries"] += 1
        self._freeze()
        self.to(Event.ERROR)
        disk = next((disk for disk in self._live() if disk.queue.active), None)
        if disk is None:
            yield from self._stray(status)
            return
        queue = disk.queue
        told = queue.received_error() or int(port.regs.TFD.read())
        link_errors = port.link_errors()
        if status & PxIS.TFES.mask and not status & (_BUS | _LINK):
            queue.settle()
        active = queue.active
        plain = active & queue.plain
        with suppress(DeviceTimeout):       # it hangs: a reset follows
            yield from port.stop_commands()
        queue.requeue()
        guilty, error = 0, 0
        if status & _BUS:
            self._count(Trouble.BUS, f"{PxIS(status)}", not plain)
            queue.isolate()
            guilty, error = queue.blame(active, 1 if plain else 2), errno.EFAULT
        elif status & _LINK or told >> 8 & _ICRC or not told & _FAILED:
            # An error that nobody owns up to is nobody's: QEMU tells an old one again with the next queued command.
            self._count(Trouble.LINK, f"{PxIS(status)}, PxSERR {link_errors:#x}", not plain)
            queue.isolate()         # whose next try fails, too, is alone then
            guilty, error = queue.blame(active, TRIES), errno.EILSEQ
        else:
            self.counts["errors_device"] += 1
            if plain:
                guilty, error = plain, (yield from self._blame_plain(disk, told >> 8, plain))
            else:
                guilty, error = yield from self._queued_error(disk)
            if error == AGAIN:
                guilty, error = queue.blame(guilty, TRIES), errno.EIO
                understood = True
            else:
                understood = guilty != 0
            if understood and not port.stuck():
                queue.fail(guilty, error)
                port.start_commands()
                self.to(Event.RECOVERED)
                self.resume()
                return
        yield from self._reset(disk, guilty, error, f"status {PxIS(status)}")

    def _stray(self, status: int) -> Procedure:
        """An error while nothing runs: the engine is restarted, the device asked for nothing."""
        with suppress(DeviceTimeout):
            yield from self.port.stop_commands()
        if self.port.stuck():
            yield from self._reset(why=f"status {PxIS(status)} while nothing ran")
            return
        self.port.start_commands()
        self.to(Event.RECOVERED)
        self.resume()

    def _blame_plain(self, disk: "AhciDisk", error: int, slot: int) -> Procedure:
        """The errno of a command that ran alone. A packet device is asked for its sense."""
        if disk.pack is None:
            return self._errno(disk, error, slot)
        if self.port.stuck():
            return errno.EIO
        self.port.start_commands()
        error = yield from disk.pack.why(self, disk)
        yield from self.port.stop_commands()
        return error

    def _queued_error(self, disk: "AhciDisk") -> Procedure:
        """Which of the queued commands, all of which wait now, has failed, and its errno. SATA 13.6.4.

        (0, 0): it is not known, and all are plain commands now.
        """
        queue, port = disk.queue, self.port
        if Feature.ERROR_LOG in disk.features and not port.stuck():
            port.start_commands()
            with suppress(Refused, DeviceTimeout):
                answer = yield from port.internal(commands.read_log(commands.QUEUED_ERROR_LOG), disk.pm)
                log = parse_error_log(answer.data)
                if log is not None and queue.waiting >> log.tag & 1:
                    yield from port.stop_commands()
                    return 1 << log.tag, self._errno(disk, log.error, 1 << log.tag)
        # Without its name: a drive takes no commands until its log is read, so it is reset, and each gets its try alone.
        self._count(Trouble.UNEXPLAINED, "the drive's log does not say which queued command failed", True)
        queue.isolate()
        return 0, 0

    def _errno(self, disk: "AhciDisk", error: int, slot: int) -> int:
        """What the drive's error register says of the command in a slot. ACS-3 6.3."""
        (operation, _, _), = disk.queue.describe(slot)
        if error & _UNC:
            return errno.EROFS if operation == Operation.WRITE else errno.ENODATA   # the bit also says "write protected"
        if error & _IDNF:
            return errno.EINVAL
        return errno.EIO

    def _hung(self, disk: "AhciDisk", mask: int, suspected: bool) -> Procedure:
        """A command does not end: its time is up, or it was perhaps lost with an error of the link."""
        if suspected:
            disk.queue.requeue()
            disk.queue.isolate()
            yield from self._reset(why="a command is late, and the link had errors")
            return
        self._count(Trouble.TIMEOUT, "a command did not end in time", not disk.queue.plain & mask)
        yield from self._reset(disk, mask, errno.ETIMEDOUT, "a command did not end in time")

    def _count(self, trouble: Trouble, why: str, queued: bool) -> None:
        """Count an error, and climb the ladder if it is time to."""
        name = {Trouble.LINK: "errors_link", Trouble.BUS: "errors_bus", Trouble.TIMEOUT: "timeouts"}.get(trouble)
        if name is not None:
            self.counts[name] += 1
        self.note(f"{trouble.name.lower()} error", why)
        speed = int(self.port.regs.SSTS.read()) >> 4 & 0xF
        measure = self.ladder.note(trouble, self.adapter.clock(), queued=queued, speed=speed if speed < 4 else 0)
        if measure is Measure.SLOWER:
            self.counts["slowdowns"] += 1
            self.port.speed_limit = self.ladder.speed_limit
            self.note("link slowed down", f"to generation {self.ladder.speed_limit}, after errors of the link")
        elif measure is Measure.NO_QUEUE:
            self.counts["queuing_off"] += 1
            self.note("NCQ off", "queued commands failed or hung again and again")

    def _reset(self, disk: "AhciDisk | None" = None, guilty: int = 0, error: int = 0, why: str = "") -> Procedure:
        """COMRESET, the end of who is guilty, and everything else again. AHCI 10.4.2.

        Nobody ends before the device has been reset: until then it may write into a request's memory.
        """
        port = self.port
        self._freeze()
        failure: Exception | None = None
        while self.ladder.may_reset(self._progress()):
            self.counts["resets"] += 1
            self.note("reset", why)
            self.to(Event.RESET)
            try:
                with suppress(DeviceTimeout):       # a hung engine is what a COMRESET is for
                    yield from port.stop_commands()
                self._requeue()
                yield from port.comreset()
                if disk is not None:
                    disk.queue.fail(guilty, error)
                if not (yield from port.link()):
                    if not (yield from port.settled()):
                        self._empty("the drive did not come back from a reset: was it unplugged?" if self._live() else
                                    "nothing is attached")
                        return
                    continue
                yield from self._attach()
                return
            except (DeviceTimeout, Refused) as refused:
                failure = refused
                why = str(refused)
        raise DeviceError(self.name, f"{RESETS} resets in a row did not help{f' ({failure})' if failure else ''}: check cable, "
                                     "power and drive, then rustosctl disk retry")

    def _progress(self) -> bool:
        """Whether a request was done since the last time."""
        done = sum(disk.queue.finished for disk in self.disks)
        progress, self._done_before = done != self._done_before, done
        return progress
