"""A drive, or a medium in one, as a `drivers.disk.Disk`: requests by bursts, sleep, and a look when something seems wrong."""

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from drivers.ahci.identify import Identity
from drivers.ahci.queue import (
    MAX_REQUEST_SECTORS,
    MAX_SEGMENTS,
    MAX_TRIM_SECTORS,
    MEMORY_OCTETS,
    SUSPECT,
    CommandQueue,
)
from drivers.ahci.registers import DONE
from drivers.ahci.states import State
from drivers.ahci.steps import Procedure
from drivers.device import DmaMemory
from drivers.disk import GONE, DiskInfo, Feature
from drivers.errors import DeviceError
from drivers.registers import MS
from drivers.request import CompletionBurst, RequestBurst

if TYPE_CHECKING:
    from drivers.ahci.life import AhciPort
    from drivers.ahci.packet import PacketDrive

LOOKS: Final = 16
"""Every so many vain looks, one asks the controller's registers, too: for errors, and for what no FIS has told."""
SUSPICION: Final = 8
"""A command that has taken this part of its time, on a link with errors, is not waited for any longer."""
TICK_NS: Final = 250 * MS
"""How often a request that does not end is looked at."""


class AhciDisk:
    """One disk of a port, which makes it. It lives until its drive leaves; the drive that comes then is another one."""

    def __init__(self, life: "AhciPort", identity: Identity, pm: int | None = None, pack: "PacketDrive | None" = None) -> None:
        """`pm`: its port behind a port multiplier. `pack`: the packet device whose medium it is. Raises DeviceError."""
        adapter = life.adapter
        self.name = life.name if pm is None else f"{life.name}.{pm}"
        self.life, self.index, self.identity, self.pack = life, life.index, identity, pack
        self.multiplied = pm is not None
        self.pm = pm or 0
        self.gone = ""
        """Why it is no more."""
        self.unused = False
        self.write_cache = Feature.WRITE_CACHE in identity.features
        self.frozen = life.adapter.options.security_freeze and identity.security.supported
        """Whether its security has been frozen."""
        self._line, self._clock, self._timeout_ns = adapter.line, adapter.clock, adapter.options.timeout_ns
        self._memory = adapter.device.dma_alloc(MEMORY_OCTETS, f"ahci {self.name}", below_4g=adapter.below_4g)
        self.queue = CommandQueue(adapter.mmio, life.offset, life.port.memory, self._memory, adapter.reach, pm)
        self._configure()
        self._wake = self._line.join(self.index)
        self._armed = self._closed = False
        self._looks = 0
        self._tick = 0                          # when to look for a request that does not end
        self._oldest, self._oldest_since = 0, 0
        self._wakeups = 0

    def __repr__(self) -> str:
        return f"<AhciDisk {self.name} {self.identity.model} {self.state.name}>"

    def _configure(self) -> None:
        found, adapter = self.identity, self.life.adapter
        queued = found.queued and adapter.slots > 1 and self.life.ladder.queuing
        depth = min(found.queue_depth, adapter.slots) if queued else 1
        self.queue.configure(depth, queued, found.plain_fua, found.sectors, found.sector_octets,
                             Feature.TRIM in found.features, found.queued_trim, Feature.WRITE_ZEROES in found.features,
                             self.pack is not None)

    @property
    def state(self) -> State:
        """Its port's; of one that is no more, FAILED or GONE."""
        if not self.gone or self.life.state in (State.GONE, State.FAILED):
            return self.life.state
        return State.GONE

    @property
    def reason(self) -> str:
        """Why it cannot be used."""
        return self.gone or self.life.reason

    @property
    def features(self) -> Feature:
        """As they are now: the write cache can be switched."""
        return self.identity.with_write_cache(self.write_cache).features

    # drivers.disk.Disk

    @property
    def info(self) -> DiskInfo:
        """What the drive is."""
        found = self.identity
        return DiskInfo(self.name, found.model, found.serial, found.firmware, found.sectors, found.sector_octets,
                        found.physical_octets, self.queue.depth, self.features, MAX_REQUEST_SECTORS, MAX_SEGMENTS,
                        MAX_TRIM_SECTORS if Feature.TRIM in found.features else 0)

    def submit(self, burst: RequestBurst) -> int:
        """Take requests from the burst's front as long as there is room; how many."""
        count = self.queue.submit(burst)
        if self.multiplied and count:
            self.life.rotate()
        return count

    def room(self) -> int:
        """How many requests `submit` takes now."""
        return self.queue.room()

    def complete(self, burst: CompletionBurst) -> int:
        """Empty the burst and fill it with requests that have ended; how many, 0, or `GONE`."""
        woken = self._armed and self._line.came(self.index, self._wake)
        if woken:
            self._disarm()
        due = self._clock() >= self._tick if self._armed else self._looks % LOOKS == LOOKS - 1
        count = self.queue.harvest(burst, closely=woken or due)
        if self.multiplied:
            self.life.rotate()
        if count > 0:
            self._looks = 0
            return count
        if count == 0 and not woken and not self.gone and self.life.quiet:
            self._looks += 1
            if not due:
                return 0
        if woken:
            self._line.tell_others(self.index)
        return self._look_closer(count, burst)

    def arm(self) -> bool:
        """Have the next completion make `fileno` readable; False when there is something to complete already."""
        if self.gone or self.life.state is not State.READY:
            return not self.gone and self.life.state > State.ABSENT     # who has failed tells it at the next look
        if self._line.interrupt is None:
            return not self.queue.active            # there is nothing to sleep on
        if self._armed:
            return True                             # since it was armed nothing has come, or it is readable
        self._armed = True
        return self.queue.arm(DONE | self.life.port.error_causes, DONE)      # an error that stands already interrupts at once

    def fileno(self) -> int:
        """What to wait on; -1 once closed."""
        return -1 if self._closed else self._wake.fileno()

    def wake_at(self) -> int | None:
        """When to call `complete` at the latest."""
        if self.gone:
            return None
        now = self._clock()
        if self.life.state is State.READY and self.queue.active and self.life.quiet:
            return self._tick if self._tick else now + TICK_NS
        return self.life.wake_at(now)

    def allocate(self, octets: int, owner: str) -> DmaMemory:
        """Memory for segments. Raises DeviceError."""
        adapter = self.life.adapter
        return adapter.device.dma_alloc(octets, owner, below_4g=adapter.below_4g)

    def statistics(self) -> dict[str, int]:
        """Counters since it was opened; those of errors are its port's."""
        return self.queue.statistics() | self.life.counts | {"wakeups": self._wakeups}

    def close(self) -> None:
        """Stop the port's DMA; requests under way are forgotten. May be called twice. The controller does it, too."""
        if self._closed:
            return
        self._armed = False
        if not self.gone:
            self.life.close()
        self._closed = True
        self._line.leave(self.index, self._wake)
        self._wake.close()
        self.life.forget(self)
        if self.life.stopped or self.unused:        # else it stays until the controller does no DMA any more
            self._memory.free()

    def perform(self, procedure: Procedure, ended: Callable[[Any, Exception | None], None]) -> None:
        """Have commands of our own carried out (`smart`, `service`); `ended` gets their result or error, within `complete`."""
        if self.gone:
            ended(None, DeviceError(self.name, f"there is no disk: {self.gone}"))
        else:
            self.life.perform(procedure, ended)

    # For the port.

    def free(self) -> None:
        """Its memory: the controller does no DMA any more."""
        self._memory.free()

    def call(self) -> None:
        """Have its owner look: there is something to do."""
        if not self._closed:
            self._wake.call()

    def same(self, found: Identity) -> bool:
        """Whether it is the drive that this says it is."""
        own = self.identity
        return (found.model, found.serial, found.sectors, found.sector_octets) == (
            own.model, own.serial, own.sectors, own.sector_octets)

    def back(self, found: Identity) -> None:
        """It has been reset, and is asked again who it is."""
        self.identity = found
        self.write_cache = Feature.WRITE_CACHE in found.features
        if self.queue.queued and not self.life.ladder.queuing:
            self.queue.give_up_queuing()

    def resume(self, held: bool) -> None:
        """Go on with what waits; `held`: another device has the port."""
        self._oldest = self._tick = 0
        self.queue.held = held
        self.queue.thaw()

    def lose(self, why: str, unused: bool) -> None:
        """It is no more: everything ends with ENODEV, also what is still to come. `unused`: nobody reads its memory."""
        self.gone, self.unused = why, unused
        self.queue.kill(errno.ENODEV)
        self.call()

    def hung(self, now: int) -> tuple["AhciDisk", int, bool] | None:
        """Every TICK_NS: is the request that is longest under way still the same as `timeout_ns` ago? (self, its slot, whether
        it is only suspected.)"""
        if now < self._tick or not self.queue.active:
            return None
        self._tick = now + min(TICK_NS, self._timeout_ns // 4)
        mask, serial = self.queue.oldest()
        if serial != self._oldest:
            self._oldest, self._oldest_since = serial, now
            return None
        waited = now - self._oldest_since
        if waited >= self._timeout_ns:
            return self, mask, False
        if waited >= self._timeout_ns // SUSPICION and self.life.port.link_errors():
            # The link had errors, and the command may have been lost with them. (QEMU before 8.1 tells of a queued command's
            # error nowhere else once another has succeeded.)
            return self, mask, True
        return None

    def _look_closer(self, code: int, burst: CompletionBurst) -> int:
        """Whatever `complete` does when there was nothing to harvest."""
        if not self.gone:
            self.life.look(self._clock(), code, self)
        count = self.queue.harvest(burst, trust=code == SUSPECT)
        return GONE if count <= 0 and self.gone else max(count, 0)

    def _disarm(self) -> None:
        self._armed = False
        self._wakeups += 1
        self.queue.disarm(1 << self.index)
        self._line.unmask()

