"""A SATA drive as a `drivers.disk.Disk`: its port's life, requests by bursts, and what is done when something goes wrong.

What goes wrong and what follows (AHCI 6.2, 10.4; SATA 13.6):

    the drive reports an error      the command engine is restarted. Of queued commands, the drive's error log tells which it
                                    was: that one ends, the others are issued again. A drive without that log is reset, and
                                    the commands run again one by one, not queued, so that each has its own result
    the link garbles data           COMRESET; all commands again one by one, each at most TRIES times
    the host bus refuses            COMRESET; all commands one by one, and whose error comes back ends with EFAULT
    a command does not end          COMRESET; the one that was longest under way ends with ETIMEDOUT, the others go again
    all ones                        the controller is gone: everything ends with ENODEV
"""

import errno
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from drivers.ahci.identify import IdentifyError, Identity, parse_error_log
from drivers.ahci.line import Line, Wake
from drivers.ahci.port import Port, Refused
from drivers.ahci.queue import MAX_REQUEST_SECTORS, MAX_SEGMENTS, SUSPECT, TROUBLE
from drivers.ahci.registers import DONE, ERRORS, PxIS, PxTFD, Signature
from drivers.ahci.states import Event, State, after
from drivers.ahci.steps import LOOK_NS, Procedure, Steps, run
from drivers.device import Device, DmaMemory
from drivers.disk import GONE, DiskInfo, Feature
from drivers.errors import DeviceError, DeviceGone, DeviceTimeout
from drivers.registers import MS
from drivers.request import CompletionBurst, Operation, RequestBurst

TIMEOUT_NS: Final = 30_000 * MS
"""How long a command may take. Linux's default, too: a drive may try a bad sector again for that long."""
TRIES: Final = 3
RESETS: Final = 3
"""So many times in a row a device is reset without a request done in between before it is given up."""
LOOKS: Final = 16
"""Every so many vain looks, one asks the controller's registers, too: for errors, and for what no FIS has told."""
SUSPICION: Final = 8
"""A command that has taken this part of its time, on a link with errors, is not waited for any longer."""
TICK_NS: Final = 250 * MS
"""How often a request that does not end is looked at."""
_LINK: Final = PxIS.IFS.mask | PxIS.UFS.mask | PxIS.OFS.mask
_BUS: Final = PxIS.HBFS.mask | PxIS.HBDS.mask
_PLUG: Final = PxIS.PCS.mask | PxIS.PRCS.mask | PxIS.CPDS.mask
_ICRC, _UNC, _IDNF = 0x80, 0x40, 0x10       # of the error register
_FAILED: Final = PxTFD.ERR.mask | PxTFD.DF.mask


class AhciDisk:
    """The drive of one port. `AhciController` makes it; `state` says whether there is one."""

    def __init__(self, device: Device, port: Port, index: int, line: Line, *, timeout_ns: int, clock: Callable[[], int],
                 depth: int) -> None:
        """`depth`: how many queued commands the controller takes, 1 for none queued."""
        self.name = f"{device.name}/{index}"
        self.port, self.index = port, index
        self.state = State.RESETTING
        self.reason = ""
        """Why it is ABSENT or FAILED."""
        self.identity: Identity | None = None
        self._device, self._queue, self._line, self._clock = device, port.queue, line, clock
        self._timeout_ns, self._controller_depth = timeout_ns, depth
        self._armed = self._closed = False
        self._steps: Steps | None = None        # what is going on while it is not READY
        self._looks = 0
        self._tick = 0                          # when to look for a request that does not end
        self._oldest, self._oldest_since = 0, 0
        self._resets = 0                        # in a row
        self._done_before = 0
        self._counts = {"errors_device": 0, "errors_link": 0, "errors_bus": 0, "timeouts": 0, "recoveries": 0, "resets": 0,
                        "wakeups": 0}
        self._wake: Wake | None = None

    # drivers.disk.Disk

    @property
    def info(self) -> DiskInfo:
        """What the drive is. Raises DeviceError when there is none."""
        found = self.identity
        if found is None:
            raise DeviceError(self.name, f"there is no disk: {self.reason or self.state.name.lower()}")
        return DiskInfo(self.name, found.model, found.serial, found.firmware, found.sectors, found.sector_octets,
                        found.physical_octets, self._queue.depth, found.features, MAX_REQUEST_SECTORS, MAX_SEGMENTS)

    def submit(self, burst: RequestBurst) -> int:
        """Take requests from the burst's front as long as there is room; how many."""
        return self._queue.submit(burst)

    def room(self) -> int:
        """How many requests `submit` takes now."""
        return self._queue.room()

    def complete(self, burst: CompletionBurst) -> int:
        """Empty the burst and fill it with requests that have ended; how many, 0, or `GONE`."""
        woken = self._armed and self._line.came(self.index)
        if woken:
            self._disarm()
        due = self._clock() >= self._tick if self._armed else self._looks % LOOKS == LOOKS - 1
        count = self._queue.harvest(burst, closely=woken or due)
        if count > 0:
            self._looks = 0
            return count
        if count == 0 and not woken and self._steps is None and self.state is State.READY:
            self._looks += 1
            if not due:
                return 0
        return self._look_closer(count, burst)

    def arm(self) -> bool:
        """Have the next completion make `fileno` readable; False when there is something to complete already."""
        if self.state is not State.READY:
            return self.state > State.ABSENT        # who has failed tells it at the next look
        if self._line.interrupt is None:
            return not self._queue.active           # there is nothing to sleep on
        if self._armed:
            return True                             # since it was armed nothing has come, or it is readable
        self._armed = True
        return self._queue.arm(DONE | ERRORS, DONE)     # an error that stands already interrupts at once

    def fileno(self) -> int:
        """What to wait on; -1 once closed."""
        return -1 if self._wake is None or self._closed else self._wake.fileno()

    def wake_at(self) -> int | None:
        """When to call `complete` at the latest."""
        if self._steps is not None:
            return self._clock() + LOOK_NS
        if self.state is State.READY and self._queue.active:
            return self._tick if self._tick else self._clock() + TICK_NS
        return None

    def allocate(self, octets: int, owner: str) -> DmaMemory:
        """Memory for segments. Raises DeviceError."""
        return self._device.dma_alloc(octets, owner, below_4g=self._line.below_4g)

    def statistics(self) -> dict[str, int]:
        """Counters since it was opened."""
        return self._queue.statistics() | self._counts

    def close(self) -> None:
        """Stop the drive's DMA; requests under way are forgotten. May be called twice. The controller does it, too."""
        if self._closed:
            return
        self._closed = True
        self._armed = False
        self._steps = None
        self._queue.freeze()
        self._line.leave(self.index)
        with suppress(DeviceError, OSError):
            self.port.regs.IE.write(0)
            run(self.name, self.port.stop(), self._clock, self.port.regs.sleep)
            self.port.memory.free()     # else it stays until the controller does no DMA any more
        if self._wake is not None:
            self._wake.close()
        self._left(self.reason or "it was closed")

    # The port's life.

    def begin(self) -> None:
        """Bring the drive up, by calls of `advance`. `state` and `reason` say how it ended."""
        self._steps = Steps(self.name, self._guarded(self._bring_up()))

    def advance(self, now: int) -> bool:
        """Go on with what is under way; whether nothing is. Raises nothing."""
        steps = self._steps
        if steps is not None and steps.advance(now) and self._steps is steps:
            self._steps = None
        return self._steps is None

    def _to(self, event: Event) -> None:
        self.state = after(self.state, event)

    def _give_up(self, why: str) -> None:
        self.reason = why
        self._to(Event.GIVE_UP)
        self._queue.kill(errno.ENODEV)

    def _guarded(self, procedure: Procedure) -> Procedure:
        """The procedure; its errors are the port's end."""
        try:
            yield from procedure
        except DeviceGone as error:
            self._left(str(error))
        except (DeviceError, IdentifyError) as error:
            self._give_up(str(error))

    def _left(self, why: str) -> None:
        self.reason = why
        self._steps = None
        self._to(Event.LEFT)
        self._queue.kill(errno.ENODEV)

    def _bring_up(self) -> Procedure:
        """From whatever firmware has left to READY, or ABSENT."""
        yield from self.port.stop()
        yield from self.port.prepare()
        try:
            if not (yield from self.port.link()):
                self.reason = "nothing is attached"
                self._to(Event.NO_DISK)
            elif not self._is_disk():
                self._to(Event.NO_DISK)
            else:
                yield from self._identify()
        except (DeviceTimeout, Refused):
            yield from self._reset()

    def _is_disk(self) -> bool:
        kind = self.port.kind()
        if kind != Signature.DISK:
            what = kind.name.lower().replace("_", " ") if isinstance(kind, Signature) else f"signature {kind:#010x}"
            self.reason = f"a device that is no disk: {what}"
        return kind == Signature.DISK

    def _identify(self) -> Procedure:
        """Ask who it is, and go on with what waits. A drive that was exchanged meanwhile is not the one that was ours."""
        self._to(Event.STARTED)
        self.port.start_commands()
        found = yield from self.port.identify()
        if self.identity is None:
            self.identity = found
            self._wake = self._line.join(self.index)
            depth = min(found.queue_depth, self._controller_depth)
            queued = found.queued and self._controller_depth > 1
            self._queue.configure(depth if queued else 1, queued, found.plain_fua, found.sectors, found.sector_octets)
        elif (found.model, found.serial, found.sectors) != (self.identity.model, self.identity.serial, self.identity.sectors):
            raise IdentifyError(f"another drive is there now, {found.model} {found.serial}: take the controller again")
        self._to(Event.IDENTIFIED)
        self._resume()

    def _resume(self) -> None:
        self._oldest = self._tick = 0
        self._queue.thaw()

    # Looking for trouble.

    def _look_closer(self, code: int, burst: CompletionBurst) -> int:
        """Whatever `complete` does when there was nothing to harvest."""
        now = self._clock()
        if self._steps is not None:
            self.advance(now)
        elif self.state is State.READY:
            status = self._queue.status()
            if status == 0xFFFF_FFFF or (code == SUSPECT and not self._present()):
                self._left(str(DeviceGone(self._device.name)))
            elif code == TROUBLE or status & ERRORS:
                self._start(self._recover(status), now)
            else:
                self._find_hung(now)
        count = self._queue.harvest(burst, trust=code == SUSPECT)
        if count > 0 or self.state > State.FAILED:
            return max(count, 0)
        return GONE

    def _present(self) -> bool:
        """Whether the controller answers as one that runs: neither ones nor zeros."""
        cmd = self.port.regs.CMD.read()
        return cmd != 0xFFFF_FFFF and cmd.ST and cmd.FRE

    def _find_hung(self, now: int) -> None:
        """Every TICK_NS: is the request that is longest under way still the same as `timeout_ns` ago?"""
        if now < self._tick or not self._queue.active:
            return
        self._tick = now + min(TICK_NS, self._timeout_ns // 4)
        mask, serial = self._queue.oldest()
        if serial != self._oldest:
            self._oldest, self._oldest_since = serial, now
            return
        waited = now - self._oldest_since
        if waited >= self._timeout_ns:
            self._counts["timeouts"] += 1
            self._start(self._reset(mask, errno.ETIMEDOUT), now)
        elif waited >= self._timeout_ns // SUSPICION and self.port.regs.SERR.read():
            # The link had errors, and the command may have been lost with them. (QEMU before 8.1 tells of a queued command's
            # error nowhere else once another has succeeded.)
            self._queue.requeue()
            self._queue.isolate()
            self._start(self._reset(), now)

    def _start(self, procedure: Procedure, now: int) -> None:
        """Begin to mend what is wrong."""
        self._steps = Steps(self.name, self._guarded(procedure))
        self.advance(now)

    # Recovery.

    def _recover(self, status: int) -> Procedure:
        """Stop the command engine, find out who is to blame, and go on with the others. AHCI 6.2.2."""
        queue, port = self._queue, self.port
        self._counts["recoveries"] += 1
        queue.freeze()
        self._to(Event.ERROR)
        told = queue.received_error() or int(port.regs.TFD.read())
        active = queue.active
        plain = active & queue.plain
        with suppress(DeviceTimeout):       # it hangs: a reset follows
            yield from port.stop_commands()
        queue.requeue()
        guilty, error = 0, 0
        if status & _PLUG:
            self._counts["errors_link"] += 1
        elif status & _BUS:
            self._counts["errors_bus"] += 1
            queue.isolate()
            guilty, error = queue.blame(active, 1 if plain else 2), errno.EFAULT
        elif status & _LINK or told >> 8 & _ICRC or not told & _FAILED:
            # An error that nobody owns up to is nobody's: QEMU tells an old one again with the next queued command.
            self._counts["errors_link"] += 1
            queue.isolate()         # whose next try fails, too, is alone then
            guilty, error = queue.blame(active, TRIES), errno.EILSEQ
        else:
            self._counts["errors_device"] += 1
            if plain:
                guilty, error = plain, self._errno(told >> 8, plain)
            else:
                guilty, error = yield from self._queued_error()
            if guilty and not port.stuck():
                queue.fail(guilty, error)
                port.start_commands()
                self._to(Event.RECOVERED)
                self._resume()
                return
        yield from self._reset(guilty, error)

    def _queued_error(self) -> Procedure:
        """Which of the queued commands, all of which wait now, has failed, and its errno. SATA 13.6.4.

        (0, 0): it is not known, and all are plain commands now.
        """
        queue, port = self._queue, self.port
        if Feature.ERROR_LOG in self.identity.features and not port.stuck():
            port.start_commands()
            with suppress(Refused, DeviceTimeout):
                log = parse_error_log((yield from port.read_error_log()))
                if log is not None and queue.waiting >> log.tag & 1:
                    yield from port.stop_commands()
                    return 1 << log.tag, self._errno(log.error, 1 << log.tag)
        # Without its name: a drive takes no commands until its log is read, so it is reset, and each gets its try alone.
        queue.isolate()
        return 0, 0

    def _reset(self, guilty: int = 0, error: int = 0) -> Procedure:
        """COMRESET, the end of who is guilty, and everything else again. AHCI 10.4.2.

        Nobody ends before the device has been reset: until then it may write into a request's memory.
        """
        queue, port = self._queue, self.port
        queue.freeze()
        done = queue.finished
        self._resets = self._resets if done == self._done_before else 0
        self._done_before = done
        failure: DeviceError | None = None
        while self._resets < RESETS:
            self._resets += 1
            self._counts["resets"] += 1
            self._to(Event.RESET)
            try:
                with suppress(DeviceTimeout):       # a hung engine is what a COMRESET is for
                    yield from port.stop_commands()
                queue.requeue()
                yield from port.comreset()
                queue.fail(guilty, error)
                if not (yield from port.link()) or not self._is_disk():
                    raise DeviceError(self.name, "the drive did not come back from a reset: was it unplugged?")
                yield from self._identify()
                return
            except (DeviceTimeout, Refused) as why:
                failure = why
        raise DeviceError(self.name, f"{RESETS} resets in a row did not help{f' ({failure})' if failure else ''}: check cable, "
                                     "power and drive, then take the controller again")

    def _errno(self, error: int, slot: int) -> int:
        """What the drive's error register says of the command in a slot. ACS-3 6.3."""
        (operation, _, _), = self._queue.describe(slot)
        if error & _UNC:
            return errno.EROFS if operation == Operation.WRITE else errno.ENODATA   # the bit also says "write protected"
        if error & _IDNF:
            return errno.EINVAL
        return errno.EIO

    def _disarm(self) -> None:
        self._armed = False
        self._counts["wakeups"] += 1
        self._queue.disarm(1 << self.index)
        self._line.unmask()

