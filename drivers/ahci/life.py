"""One port's life: who is attached, what runs on it, and what is done when something goes wrong or is unplugged.

Errors are `drivers.ahci.recovery`'s.
"""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from drivers.ahci import attach, commands
from drivers.ahci.disk import AhciDisk
from drivers.ahci.identify import IdentifyError
from drivers.ahci.ladder import Ladder
from drivers.ahci.line import Line
from drivers.ahci.options import Options
from drivers.ahci.port import EVERYTHING, PLUG, Port, Refused
from drivers.ahci.queue import SUSPECT, TROUBLE
from drivers.ahci.recovery import Recovery
from drivers.ahci.states import Event, State, after
from drivers.ahci.steps import LOOK_NS, Procedure, Steps, run
from drivers.device import Device
from drivers.errors import DeviceError, DeviceGone, DeviceTimeout
from drivers.mmio import Mmio
from drivers.registers import MS

if TYPE_CHECKING:
    from drivers.ahci.identify import Identity
    from drivers.ahci.packet import PacketDrive

RETURN_NS: Final = 5_000 * MS
"""A drive whose link went is waited for that long: a loose plug, or power that failed for a moment."""
ASK_NS: Final = 2_000 * MS
"""How often a drive for media is asked for one, and a port multiplier for news."""
EVENTS: Final = 64
"""So many of the last events are kept."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What ports need of their controller."""

    name: str
    device: Device
    mmio: Mmio
    line: Line
    clock: Callable[[], int]
    slots: int
    """Queued commands that it takes; 1: none."""
    reach: int
    """The first address it does not reach."""
    multipliers: bool
    """CAP.SPM."""
    sleeps: bool
    """CAP.SALP, with partial and slumber."""
    options: Options

    @property
    def below_4g(self) -> bool:
        """Whether memory for it lies there."""
        return self.reach <= 1 << 32


@dataclass(frozen=True, slots=True)
class PortEvent:
    """Something that happened to a port, for the log."""

    at_ns: int
    what: str
    why: str


@dataclass(slots=True)
class _Service:
    """Commands of our own that somebody asked for."""

    procedure: Procedure
    ended: Callable[[Any, Exception | None], None]
    routine: bool = False
    """Nobody asked for it but we ourselves, every now and then."""


class AhciPort(Recovery):
    """A port and its disks, as a table of states (`drivers.ahci.states`) and procedures between them."""

    def __init__(self, adapter: Adapter, port: Port, index: int, offset: int) -> None:
        """`offset`: where its registers begin in the BAR."""
        self.adapter, self.port, self.index, self.offset = adapter, port, index, offset
        self.name = f"{adapter.name}/{index}"
        self.state = State.RESETTING
        self.reason = ""
        """Why it is ABSENT or FAILED."""
        self.disks: list[AhciDisk] = []
        """Those there are, and those that have left and whose owner has not closed them."""
        self.attached: attach.Attached | None = None
        """What is at the other end of the link."""
        self.ladder = Ladder()
        self.write_cache: dict[int, bool] = {}
        """What an operator wants, by the port behind a multiplier."""
        self.counts = {"errors_device": 0, "errors_link": 0, "errors_bus": 0, "timeouts": 0, "recoveries": 0, "resets": 0,
                       "slowdowns": 0, "queuing_off": 0, "plugs": 0}
        self.events: deque[PortEvent] = deque(maxlen=EVENTS)
        self.event_count = 0
        self.on_disk: Callable[[AhciDisk, bool], None] = lambda disk, there: None
        """Called when a disk has come (True) or left: not within a call into it."""
        self._steps: Steps | None = None        # what is going on while it is not READY
        self._services: deque[_Service] = deque()
        self._told: list[AhciDisk] = []
        self._holder: AhciDisk | None = None
        self._leftovers: list[AhciDisk] = []    # closed ones whose memory the controller may still use
        self._done_before = 0
        self._ask_at = 0
        self.asks_multiplier = True
        """A disk that does not answer what is addressed to a port multiplier is not asked again."""
        self._closed = False
        self.stopped = False
        """Its engines are off: nothing of its memory is used any more."""

    # What goes on.

    def begin(self) -> None:
        """Bring the port up, by calls of `advance`. `state` and `reason` say how it ended."""
        self._steps = Steps(self.name, self._guarded(self._bring_up()))

    def advance(self, now: int) -> bool:
        """Go on with what is under way; whether nothing is. Raises nothing."""
        steps = self._steps
        if steps is not None and steps.advance(now) and self._steps is steps:
            self._steps = None
        return self._steps is None

    @property
    def quiet(self) -> bool:
        """Whether requests flow, and nothing else waits to be done."""
        return self._steps is None and self.state is State.READY and not self._services

    def look(self, now: int, code: int = 0, disk: AhciDisk | None = None) -> None:
        """Whatever is to be done besides harvesting. `code`: what the harvest of `disk` said."""
        if self._steps is not None:
            self.advance(now)
        elif self.state is State.READY:
            status = self._status()
            if status == EVERYTHING or (code == SUSPECT and not self._present()):
                self.left(str(DeviceGone(self.adapter.name)))
            elif status & self.port.plug_causes:
                self._start(self._plugged("the link went or came"), now)
            elif code == TROUBLE or status & self.port.error_causes:
                self._start(self._recover(status), now)
            elif self._services:
                self._serve_when_idle(now)
            elif disk is not None and (hung := disk.hung(now)) is not None:
                self._start(self._hung(*hung), now)
            elif self.attached is not None and self.attached.asks and now >= self._ask_at:
                self._ask_at = now + ASK_NS
                self._enqueue(_Service(self.attached.ask(self), lambda value, error: None, routine=True))
        elif self.state in (State.ABSENT, State.FAILED) and not self._closed:
            status = self._status()
            if status == EVERYTHING:
                self.left(str(DeviceGone(self.adapter.name)))
            elif status & PLUG:
                self._start(self._plugged("something was plugged in"), now)

    def wake_at(self, now: int) -> int | None:
        """When to call `look` at the latest, as far as the port itself has something to do."""
        if self._steps is not None:
            return now + LOOK_NS
        if self.state is State.READY and self._services:
            return now + LOOK_NS
        if self.state is State.READY and self.attached is not None and self.attached.asks:
            return self._ask_at
        return None

    def perform(self, procedure: Procedure, ended: Callable[[Any, Exception | None], None]) -> None:
        """Carry out commands of our own once nothing else runs; `ended` gets what the procedure returned, or its error."""
        if self.state <= State.ABSENT or self._closed:
            ended(None, DeviceError(self.name, f"there is no disk: {self.reason or self.state.name.lower()}"))
            return
        self._enqueue(_Service(procedure, ended))

    def _enqueue(self, service: _Service) -> None:
        """Nothing is issued any more until it has been done, or requests without end would keep it waiting."""
        self._services.append(service)
        for disk in self._live():
            disk.queue.held = True
            disk.call()

    def ask_soon(self) -> None:
        """The device seems to have news."""
        self._ask_at = 0

    def try_again(self, now: int) -> None:
        """Give a port that was given up, or is empty, another chance, with all limits lifted. Raises DeviceError."""
        if self.state not in (State.FAILED, State.ABSENT) or self._steps is not None:
            raise DeviceError(self.name, f"it is {self.state.name.lower()}; one that has failed or is empty can be tried again")
        self._forget_errors()
        self.note("tried again", "the operator asked for it")
        self._start(self._plugged("the operator asked for it"), now)

    def note(self, what: str, why: str) -> None:
        """Something happened: keep it for the log."""
        self.events.append(PortEvent(self.adapter.clock(), what, why))
        self.event_count += 1

    def _status(self) -> int:
        return int(self.port.regs.IS.read())

    def _present(self) -> bool:
        """Whether the controller answers as one that runs: neither ones nor zeros."""
        cmd = self.port.regs.CMD.read()
        return bool(cmd != EVERYTHING and cmd.ST and cmd.FRE)

    # From state to state.

    def to(self, event: Event) -> None:
        """The state that follows. Raises ImpossibleTransition."""
        self.state = after(self.state, event)

    def _start(self, procedure: Procedure, now: int) -> None:
        """Begin to mend what is wrong."""
        self._steps = Steps(self.name, self._guarded(procedure))
        self.advance(now)

    def _guarded(self, procedure: Procedure) -> Procedure:
        """The procedure; its errors are the port's end."""
        try:
            yield from procedure
        except DeviceGone as error:
            self.left(str(error))
        except (DeviceError, IdentifyError) as error:
            self._give_up(str(error))

    def _give_up(self, why: str) -> None:
        self.reason = why
        self.note("given up", why)
        self.to(Event.GIVE_UP)
        self._lose_all(why)
        with suppress(DeviceError, OSError):
            self.port.watch()

    def left(self, why: str) -> None:
        """The controller has gone, or was closed."""
        self.reason = why
        self._steps = None
        self.to(Event.LEFT)
        self._lose_all(why)

    def _lose(self, disks: list[AhciDisk], why: str) -> None:
        """These disks are no more."""
        for disk in disks:
            # Of what is not under way the controller reads no tables, and neither does one whose engine is off.
            unused = not disk.queue.active and (self.state in (State.READY, State.SERVING) or not self._runs())
            disk.lose(why, unused)
            self.on_disk(disk, False)

    def _runs(self) -> bool:
        """Whether the command engine may run, as far as can be told."""
        try:
            return bool(self.port.regs.CMD.read().CR)
        except (DeviceError, OSError):
            return True

    def _lose_all(self, why: str) -> None:
        """Nobody is attached any more, so nothing can be asked of the port."""
        self._lose(self._live(), why)
        self.attached = None
        while self._services:
            self._services.popleft().ended(None, DeviceError(self.name, why))

    def _bring_up(self) -> Procedure:
        """From whatever firmware has left to READY, or ABSENT."""
        with suppress(DeviceTimeout):       # a hung engine is what a COMRESET is for
            yield from self.port.stop()
        try:
            yield from self.port.prepare()
            if not (yield from self.port.link()):
                self._empty("nothing is attached")
            else:
                yield from self._attach()
        except (DeviceTimeout, Refused) as why:
            yield from self._reset(why=str(why))

    def _forget_errors(self) -> None:
        """Whoever comes next begins at full speed."""
        self.ladder.forget()
        self.port.speed_limit = 0

    def _empty(self, why: str) -> None:
        """Nobody is there: wait for somebody."""
        self.reason = why
        self._forget_errors()
        self.to(Event.NO_DISK)
        self._lose_all(why)
        self.port.watch()

    def _attach(self) -> Procedure:
        """The device is idle: find out what it is, and go on with what waits."""
        self.to(Event.STARTED)
        self.reason = ""
        found = yield from attach.attach(self)
        if found is None:
            yield from self.port.stop_commands()
            self._empty(self.reason)
            return
        self.attached = found
        self.port.sleep(found.link_power)
        self.to(Event.IDENTIFIED)
        self._ask_at = self.adapter.clock() + ASK_NS
        self.resume()
        self.announce()

    def announce(self) -> None:
        """Tell of disks that are new."""
        for disk in self._live():
            if disk not in self._told:
                self._told.append(disk)
                self.on_disk(disk, True)

    def place(self, identity: "Identity", pm: int | None = None, pack: "PacketDrive | None" = None) -> None:
        """This is attached now: the disk that we know, or another one."""
        before = next((disk for disk in self._live() if disk.pm == (pm or 0)), None)
        if before is not None and before.same(identity):
            before.back(identity)
            return
        if before is not None:
            self._lose([before], f"another one is there now: {identity.model} {identity.serial}")
            self._forget_errors()
        self.disks.append(AhciDisk(self, identity, pm, pack))

    def remove(self, pm: int, why: str) -> None:
        """Nobody is there any more."""
        self._lose([disk for disk in self._live() if disk.pm == pm], why)

    def _live(self) -> list[AhciDisk]:
        return [disk for disk in self.disks if not disk.gone]

    # Taking turns behind a port multiplier: commands of one device at a time. AHCI 9.3.1.

    def resume(self) -> None:
        """Requests flow again."""
        live = self._live()
        if self._holder not in live:
            self._holder = live[0] if live else None
        for disk in live:
            disk.resume(held=bool(self._services) or (disk.multiplied and disk is not self._holder))

    def rotate(self) -> None:
        """Give the port to the next device that has something to do, once the one that has it has nothing under way."""
        if self._steps is not None or self.state is not State.READY or self._services:
            return
        live = self._live()
        at = live.index(self._holder) if self._holder in live else 0
        others = [disk for disk in (*live[at + 1:], *live[:at]) if disk.queue.waiting]
        holder = live[at]
        if not others:
            if holder.queue.held:
                holder.queue.resume()
        elif holder.queue.active:
            holder.queue.held = True        # it drains
        else:
            holder.queue.held = True
            self._holder = others[0]
            self._holder.queue.resume()
            self._holder.call()

    # Hotplug.

    def _plugged(self, why: str) -> Procedure:
        """The link went or came: once it has settled, see who is there. AHCI 6.2.2.3, 10.10."""
        self.counts["plugs"] += 1
        self.note("link changed", why)
        self._freeze()
        self.to(Event.PLUG)
        with suppress(DeviceTimeout):
            yield from self.port.stop_commands()
        self._requeue()
        waited_since = self.adapter.clock()
        while not (yield from self.port.settled()):
            if not self._live() or self.adapter.clock() - waited_since >= RETURN_NS:
                self.port.regs.SERR.write(EVERYTHING)
                self._empty("it was unplugged" if self._live() else "nothing is attached")
                return
        self.ladder.resets = 0
        yield from self._reset(why=why)

    def _freeze(self) -> None:
        for disk in self._live():
            disk.queue.freeze()

    def _requeue(self) -> None:
        for disk in self._live():
            disk.queue.requeue()

    # Commands of our own.

    def _serve_when_idle(self, now: int) -> None:
        """Once nothing runs any more, let our own commands have the port."""
        for disk in self._live():
            if disk.queue.active:
                if (hung := disk.hung(now)) is not None:
                    self._start(self._hung(*hung), now)
                return
        self._start(self._serve(self._services.popleft()), now)

    def _serve(self, service: _Service) -> Procedure:
        self.to(Event.SERVE)
        value: Any = None
        error: Exception | None = None
        try:
            value = yield from service.procedure
        except DeviceGone as gone:
            service.ended(None, gone)
            raise
        except (DeviceTimeout, Refused, DeviceError, ValueError) as why:
            error = why
        if isinstance(error, DeviceTimeout) or self.port.busy():
            if not service.routine:
                self.ladder.resets = 0      # a drive that cannot do this can do others
            yield from self._reset(why=str(error or "the device is busy after a command of ours"))
        elif self.state is State.SERVING:
            self.to(Event.SERVED)
            self.resume()
            self.announce()
        service.ended(value, error)

    # The end.

    def shut_down(self, *, flush: bool) -> Procedure:
        """What was written goes to the medium, then both engines stop."""
        self._freeze()
        if flush and self.state is State.READY and self._steps is None:
            for disk in self._live():
                if disk.queue.dirty and not any(other.queue.active for other in self._live()):
                    with suppress(DeviceTimeout, Refused):
                        yield from self.port.internal(commands.flush(), disk.pm)
                        disk.queue.dirty = False
        self._closed = True
        self._steps = None
        self.port.regs.IE.write(0)
        yield from self.port.stop()
        self.stopped = True

    def close(self) -> None:
        """Stop its DMA at once, without a flush: what is under way is forgotten. May be called twice."""
        if not self._closed:
            with suppress(DeviceError, OSError):
                run(self.name, self.shut_down(flush=False), self.adapter.clock, self.port.regs.sleep)
            self.closed()

    def closed(self) -> None:
        """It has been shut down, or that was tried."""
        self._closed = True
        if self.state is not State.GONE:
            self.left(self.reason or "it was closed")

    def forget(self, disk: AhciDisk) -> None:
        """Its owner has closed it."""
        if disk.gone:
            self.disks.remove(disk)
            if not disk.unused:
                self._leftovers.append(disk)

    def free(self) -> None:
        """All memory: the controller does no DMA any more."""
        for disk in (*self.disks, *self._leftovers):
            disk.free()
        self.port.memory.free()
