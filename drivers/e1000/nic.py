"""The card as a `drivers.nic.Nic`: rings and controller together, interrupts by NAPI's rules, recovery from a hang.

Interrupts are in one of two states. Armed: the device may interrupt, and the loop sleeps on the eventfd. Polling: the
device is masked, since frames are coming anyway. The first frame or interrupt leads from armed to polling, an empty ring
back, after which the ring is looked at once more so that no frame slips in between.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from drivers.device import Device, DmaMemory
from drivers.e1000.chips import Chip, chip_of
from drivers.e1000.controller import EVERYTHING, ORDINARY_MTU, Controller, Filters
from drivers.e1000.receive import RxRing, buffer_octets
from drivers.e1000.registers import RDT, TDT, Cause
from drivers.e1000.transmit import BLOCK_COUNT, SLOT_OCTETS, TxRing
from drivers.errors import DeviceError, DeviceGone
from drivers.mmio import Mmio
from drivers.nic import GONE, Nic
from drivers.registers import RegisterFile
from mm.frame import RxBurst, TxBurst

RX_RING: Final = 512
TX_RING: Final = 1024
TX_SLOTS: Final = 31
"""Super-segments that a block of the transmit memory holds: just below 2 MiB, the large page it comes from."""
SMALLEST_MTU: Final = 68
"""RFC 791 3.2."""
MODERATION_US: Final = 20
"""Masking bounds the interrupts under load already; this only keeps a trickle of frames from costing one each."""
HANG_NS: Final = 2_000_000_000
"""How long the device may have descriptors and a link without moving before it is reset."""
ROUNDS: Final = 8
"""Bursts of nothing but dropped frames that one `receive` looks at."""
_KINDS: Final = ("msix", "msi", "intx")


class E1000(Nic):
    """One Intel gigabit card. It is up, but for its link, when the constructor returns, and owns its device."""

    def __init__(self, device: Device, *, mac: bytes | None = None, mtu: int = ORDINARY_MTU, rx_ring: int = RX_RING,
                 tx_ring: int = TX_RING, interrupts: tuple[str, ...] = _KINDS, moderation_us: int = MODERATION_US,
                 legacy: bool = False, clock: Callable[[], int] = time.monotonic_ns,
                 sleep: Callable[[float], None] = time.sleep) -> None:
        """`mac` in place of the NVM's; ring sizes are multiples of 8 from 64 to 4096; `interrupts`: kinds, best first;
        `legacy`: no extended receive descriptors, though the chip has them.

        Takes about 20 ms. On failure the device stays the caller's to close.
        Raises DeviceError (its subclasses say which kind), ValueError.
        """
        vendor, identity = device.config.read(0, 2), device.config.read(2, 2)
        if vendor == 0xFFFF:
            raise DeviceGone(device.name)
        if mac is not None and (len(mac) != 6 or mac[0] & 1 or not any(mac)):
            raise ValueError(f"{mac.hex(':')} is no unicast MAC address")
        self.name = device.name
        self.chip: Chip = chip_of(device.name, vendor, identity)
        self.features = self.chip.features
        self._legacy = legacy
        self._device, self._clock = device, clock
        self._moderation_us = moderation_us
        self._memory: list[DmaMemory] = []
        self._gone = self._closed = False
        self._armed = self._polling = False
        self._wants_room = False        # an interrupt shall come when frames have been sent
        self._moved: tuple[int, int, int] | None = None
        self._carried: dict[str, int] = {}      # what rings had counted that `resize` replaced
        self._counts = {"wakeups": 0, "resets": 0, "link_changes": 0, "receiver_overruns": 0, "tx_dropped_gone": 0}
        self.on_link_change: Callable[[], None] | None = None
        """Called out of `receive` when the device says that its link has changed; it takes note and returns."""
        self.controller = Controller(device, self.chip, clock=clock, sleep=sleep)
        self.controller.mtu = self._possible(mtu)
        self._mmio = Mmio(device.bar(0))
        device.enable_bus_master(False)
        try:
            self.controller.reset()
            self.mac: bytes = mac or self.controller.read_mac()
            self._rx, self._tx = self._make_rings(rx_ring, tx_ring)
            self._interrupt = device.interrupts(1, tuple(k for k in interrupts if k != "msix" or self.chip.express))[0]
            self._start(reset_phy=True)
            self.controller.clear_statistics()
        except BaseException:
            self._halt()
            raise

    # drivers.nic.Nic

    def fileno(self) -> int:
        """The eventfd of its interrupt; -1 once closed."""
        return -1 if self._closed else self._interrupt.fd

    def receive(self, burst: RxBurst) -> int:
        """Empty the burst and fill it with frames that wait; how many, 0 when none waits, or `GONE`."""
        if self._gone:
            burst.clear()
            return GONE
        count = self._rx.harvest(burst)
        if self._polling:
            return count
        if self._armed:
            if count == 0 and not self._rx.waiting and not self._interrupt.drain():
                return 0
            self._disarm()
        for _ in range(ROUNDS):
            if count:
                return count
            if not self._rx.waiting:
                break
            count = self._rx.harvest(burst)
        if count:
            return count
        try:
            self._arm()
        except DeviceGone:
            self._gone = True
            return GONE
        return self._rx.harvest(burst)

    def transmit(self, burst: TxBurst) -> int:
        """Take all frames of the burst and empty it; how many the device refused, which are lost and counted."""
        if self._gone:
            self._counts["tx_dropped_gone"] += len(burst)
            return burst.refuse()
        return self._tx.transmit(burst)

    def room(self) -> int:
        """How many frames `transmit` can take now. When it is 0, the interrupt comes once there is room again."""
        if self._gone:
            return 0
        room = self._tx.room()
        if room == 0 and not self._wants_room:
            self._wants_room = True
            if self._armed:
                self.controller.unmask(self._causes())
                room = self._tx.room()      # what was sent before the mask was lifted interrupts, too, but later
        return room

    @property
    def link_up(self) -> bool:
        """Whether frames can pass. One register read; also where a hang is noticed, and the device reset."""
        if self._gone:
            return False
        try:
            up = self.controller.link_up()
            return self._healthy(up) and up
        except DeviceGone:
            self._gone = True
            return False

    def statistics(self) -> dict[str, int]:
        """Counters since it was opened; what the device counts itself begins with `hw_`. Some 40 register reads."""
        rx, tx = self._sums(self._rx.statistics()), self._sums(self._tx.statistics())
        hw = self.controller.counts if self._gone else self.controller.statistics()
        missed = hw.get("missed_frames", 0)
        totals = {"rx_dropped": missed + sum(n for name, n in rx.items() if name.startswith("rx_dropped")),
                  "tx_dropped": sum(n for name, n in (tx | self._counts).items() if name.startswith("tx_dropped"))}
        return rx | tx | totals | self._counts | {f"hw_{name}": count for name, count in hw.items()}

    def close(self) -> None:
        """Stop DMA, then give memory and device back. May be called twice."""
        if not self._closed:
            self._closed = self._gone = True
            self._halt()
            self._mmio.close()
            self._device.close()

    @property
    def mtu(self) -> int:
        """Octets of the largest IP packet; see `set_mtu`."""
        return self.controller.mtu

    # What the operator may ask for.

    @property
    def registers(self) -> RegisterFile:
        """Its registers, to look at and to trace."""
        return self.controller.regs

    @property
    def polling(self) -> bool:
        """Whether it never interrupts: then `receive` is to be called all the time, for `fileno` tells nothing."""
        return self._polling

    @polling.setter
    def polling(self, on: bool) -> None:
        self._polling = on
        if on:
            self.controller.mask(EVERYTHING)
            self._armed = False
        else:
            self._arm()

    def set_filters(self, *, promiscuous: bool = False, multicast: Iterable[bytes] | None = None,
                    vlans: Iterable[int] | None = None) -> None:
        """Which frames to receive besides broadcasts and ours: see `controller.Filters`. Raises ValueError."""
        groups = None if multicast is None else frozenset(multicast)
        tags = None if vlans is None else frozenset(vlans)
        if wrong := [g for g in groups or () if len(g) != 6 or not g[0] & 1]:
            raise ValueError(f"{wrong[0].hex(':')} is no multicast address")
        if wrong := [tag for tag in tags or () if not 0 <= tag < 4096]:
            raise ValueError(f"{wrong[0]} is no VLAN: 0 to 4095")
        self.controller.set_filters(Filters(promiscuous, groups, tags))

    def reset(self) -> None:
        """Reset the device and go on; frames under way are lost, connections are not. The link takes its time.

        Raises DeviceError: the device is of no use any more.
        """
        self._counts["resets"] += 1
        try:
            self.controller.statistics()        # a reset clears the device's counters
            self.controller.reset()
            self._rx.rewind()
            self._tx.rewind()
            self._start(reset_phy=False)
        except DeviceError:
            self._gone = True
            raise

    def set_mtu(self, mtu: int) -> None:
        """Another largest IP packet, by a reset. Raises ValueError, naming what is possible, and DeviceError."""
        self.controller.mtu = self._possible(mtu)
        self._tx.longest = self.controller.longest
        self.reset()

    def resize(self, rx_ring: int, tx_ring: int) -> None:
        """Rings of other sizes, by a reset. Raises ValueError, DeviceError; when memory is short the old ones stay."""
        old = list(self._memory)
        rings = self._make_rings(rx_ring, tx_ring)
        self.controller.stop()
        for ring in (self._rx, self._tx):
            self._carried = self._carried | self._sums(ring.statistics())
        self._rx, self._tx = rings
        self.reset()
        for memory in old:
            memory.free()
            self._memory.remove(memory)

    @property
    def link(self) -> tuple[int, bool] | None:
        """Megabits a second, and whether full duplex; None without a link. One register read."""
        try:
            return None if self._gone else self.controller.link()
        except DeviceGone:
            self._gone = True
            return None

    @property
    def rings(self) -> tuple[int, int]:
        """Descriptors for receiving and for transmitting."""
        return self._rx.size, self._tx.size

    @property
    def moderation_us(self) -> int:
        """Microseconds between interrupts, at least."""
        return self._moderation_us

    @property
    def interrupt_kind(self) -> str:
        """"msix", "msi" or "intx"."""
        return self._interrupt.kind

    # Inside.

    def _make_rings(self, rx: int, tx: int) -> tuple[RxRing, TxRing]:
        parts: list[DmaMemory] = []
        try:
            for what, octets in (("rx ring", rx * 16), ("rx buffers", buffer_octets(rx)), ("tx ring", tx * 16),
                                 *[("tx buffers", TX_SLOTS * SLOT_OCTETS)] * BLOCK_COUNT):
                parts.append(self._device.dma_alloc(octets, f"e1000 {what}"))
            rings = (RxRing(self._mmio, parts[0], parts[1], rx, RDT.at, self.chip.express and not self._legacy),
                     TxRing(self._mmio, parts[2], parts[3:], tx, TDT.at, self.controller.longest))
        except BaseException:
            for memory in parts:
                memory.free()
            raise
        self._memory += parts
        return rings

    def _start(self, reset_phy: bool) -> None:
        """Steps 6 to 10 of the bring-up, from a controller that was reset."""
        self.controller.start_link(reset_phy)
        self._device.enable_bus_master(True)
        self.controller.start_receive(self.mac, self._rx)
        self.controller.start_transmit(self._tx)
        self.controller.start_interrupts(self._interrupt.kind, self._moderation_us)
        self._moved = None
        self._arm()

    def _possible(self, mtu: int) -> int:
        if not SMALLEST_MTU <= mtu <= self.chip.largest_mtu:
            raise ValueError(f"{self.name} is an {self.chip.name}: an MTU of {mtu} is not possible, {SMALLEST_MTU} to "
                             f"{self.chip.largest_mtu} are")
        return mtu

    def _sums(self, counts: dict[str, int]) -> dict[str, int]:
        return {name: count + self._carried.get(name, 0) for name, count in counts.items()}

    def _causes(self) -> int:
        """What shall interrupt now."""
        if self._interrupt.kind == "msix":
            queues = Cause.RXQ0.mask | (Cause.TXQ0.mask if self._wants_room else 0)
            return queues | Cause.OTHER.mask | Cause.LSC.mask | Cause.RXO.mask
        sent = Cause.TXDW.mask if self._wants_room else 0
        return sent | Cause.RXT0.mask | Cause.RXDMT0.mask | Cause.LSC.mask | Cause.RXO.mask

    def _disarm(self) -> None:
        """Work has come: no interrupts until it is done."""
        self.controller.mask(EVERYTHING)
        self._armed = self._wants_room = False
        self._counts["wakeups"] += 1

    def _arm(self) -> None:
        """Sleep may follow. What happened before is known and forgotten, so that it does not wake us. Raises DeviceGone."""
        self._interrupt.drain()
        causes = self.controller.acknowledge()
        if causes.LSC:
            self._counts["link_changes"] += 1
            if self.on_link_change is not None:
                self.on_link_change()
        self._counts["receiver_overruns"] += causes.RXO
        if self._polling:
            return
        self._armed = True
        self._interrupt.unmask()
        self.controller.unmask(self._causes())
        if self._rx.waiting:        # only after ROUNDS of dropped frames, or one that came this moment: wake us for it
            self.controller.kick(self._causes() & (Cause.RXT0.mask | Cause.RXQ0.mask))

    def _healthy(self, up: bool) -> bool:
        """Whether the device does its work. A hang, or a loss of its state, is mended by a reset, and the link is down."""
        now = self._clock()
        hung = False
        if up and self._tx.outstanding and not self.controller.paused():
            place = (self.controller.regs.TDH.read(), self._tx.outstanding)
            if self._moved is None or self._moved[:2] != place:
                self._moved = (*place, now)
            hung = now - self._moved[2] >= HANG_NS
        else:
            self._moved = None
        if not hung and self.controller.running():
            return True
        try:
            self.reset()
        except DeviceError:
            return False
        if not self.controller.running():       # it forgets what it is told: QEMU answers zeros for a card that is gone
            self._gone = True
        return False

    def _halt(self) -> None:
        """No interrupts, no DMA, no memory of ours in its hands."""
        with suppress(DeviceError):
            self.controller.mask(EVERYTHING)
            self.controller.stop()
        with suppress(DeviceError, OSError):
            self._device.enable_bus_master(False)
        for memory in self._memory:
            memory.free()
        self._memory.clear()
