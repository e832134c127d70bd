"""The host bus adapter: taken over from firmware, reset, its ports brought up side by side, its interrupt shared out."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from drivers.ahci.disk import AhciDisk
from drivers.ahci.internal import InternalCommand
from drivers.ahci.life import Adapter, AhciPort
from drivers.ahci.line import Line
from drivers.ahci.options import Options
from drivers.ahci.port import Port
from drivers.ahci.queue import PORT_MEMORY_OCTETS
from drivers.ahci.registers import MAX_PORTS, PORT_OCTETS, PORTS_AT, PortRegisters, ahci_map
from drivers.ahci.states import State
from drivers.ahci.steps import LOOK_NS, Steps
from drivers.device import Device, Interrupt
from drivers.errors import DeviceError, DeviceGone, DeviceRefused, DeviceTimeout
from drivers.mmio import Mmio
from drivers.registers import MS, RegisterFile

ABAR: Final = 5
CLASS_SATA_AHCI: Final = 0x010601
HANDOFF_NS: Final = 25 * MS
BUSY_NS: Final = 2_000 * MS
"""Firmware lets go within HANDOFF_NS, or says that it is busy, and then within this. AHCI 10.6.3."""
RESET_NS: Final = 1_000 * MS
"""AHCI 10.4.3."""
EVERYTHING: Final = 0xFFFF_FFFF
STOP_NS: Final = 10_000 * MS
"""What stopping takes at most, caches that go to their media included. Then bus mastering is switched off all the same."""
TEND_NS: Final = 1_000 * MS
"""How often ports without disks are looked at, whether or not an interrupt came."""
_KINDS: Final = ("msi", "intx")
_DEFAULTS: Final = Options()


class AhciController:
    """One adapter with its disks. They are READY when the constructor returns; it owns its device.

    Disks come and go: whoever wants to see that calls `tend` when `fileno` is readable, and at `wake_at`.
    """

    def __init__(self, device: Device, *, interrupts: tuple[str, ...] = _KINDS, options: Options = _DEFAULTS,
                 timeout_ns: int | None = None, queued: bool = True, clock: Callable[[], int] = time.monotonic_ns,
                 sleep: Callable[[float], None] = time.sleep) -> None:
        """`interrupts`: kinds, best first; none: poll. `timeout_ns` and `queued` (False: no NCQ) stand for those `options`.

        Waits for disks that start up. On failure the device stays the caller's to close.
        Raises DeviceRefused: no AHCI controller; DeviceError when it does not work. A port that does not work is no
        failure: see `ports`.
        """
        self.name = device.name
        if device.config.read(0, 2) == 0xFFFF:
            raise DeviceGone(device.name)
        if device.config.read(8, 4) >> 8 != CLASS_SATA_AHCI:
            raise DeviceRefused(device.name, f"its class is {device.config.read(8, 4) >> 8:06x}, not that of an AHCI "
                                             "controller, 010601: is it in RAID or IDE mode in the firmware?")
        self._device, self._clock, self._sleep = device, clock, sleep
        self._closed = self._stopped = False
        self.options = replace(options, timeout_ns=timeout_ns or options.timeout_ns, depth=options.depth if queued else 1)
        self.ports: list[AhciPort] = []
        """All ports, also those without a disk; see their `state` and `reason`."""
        self.on_disk: Callable[[AhciDisk, bool], None] = lambda disk, there: None
        """Called when a disk has come (True) or left. It must not call into the controller or its disks."""
        bar = device.bar(ABAR)
        self._mmio = Mmio(bar)
        self.registers = RegisterFile(bar, ahci_map(_highest_port(bar)), device.name, clock=clock, sleep=sleep)
        self._line: Line | None = None
        device.enable_bus_master(False)
        try:
            self._take_over()
            self._reset()
            interrupt = device.interrupts(1, interrupts)[0] if interrupts else None
            device.enable_bus_master(True)
            self._start_ports(interrupt)
            if interrupt is not None:
                self.registers.IS.write(EVERYTHING)
                self.registers.GHC.modify(IE=1)
        except BaseException:
            self._halt()
            raise

    @property
    def disks(self) -> list[AhciDisk]:
        """Those there are now."""
        return [disk for port in self.ports for disk in port.disks if not disk.gone]

    @property
    def interrupt_kind(self) -> str:
        """"msi", "intx", or "polled"."""
        return self._line.interrupt.kind if self._line and self._line.interrupt else "polled"

    def statistics(self) -> dict[str, int]:
        """The sums over all disks and ports."""
        sums: dict[str, int] = {}
        for counts in (*(disk.queue.statistics() for disk in self.disks), *(port.counts for port in self.ports)):
            for name, count in counts.items():
                sums[name] = sums.get(name, 0) + count
        return sums

    # Ports without disks.

    def fileno(self) -> int:
        """Readable when a port without a disk has something for `tend`; -1 once closed."""
        return -1 if self._closed or self._line is None else self._line.own.fileno()

    def wake_at(self) -> int | None:
        """When to call `tend` at the latest."""
        if self._closed:
            return None
        now = self._clock()
        return min([now + TEND_NS, *(at for port in self._empty_ports() if (at := port.wake_at(now)) is not None)])

    def tend(self) -> None:
        """See to the ports without disks: something was plugged in, a drive has got a medium. Never blocks, raises nothing."""
        if self._closed or self._stopped or self._line is None:
            return
        pending = self._line.take()
        for port in self._empty_ports():
            if pending >> port.index & 1:
                port.port.regs.IE.write(0)
                self.registers.IS.write(1 << port.index)
            port.look(self._clock())
            if pending >> port.index & 1 and port.state in (State.ABSENT, State.FAILED):
                port.port.watch()

    def _empty_ports(self) -> list[AhciPort]:
        return [port for port in self.ports if all(disk.gone for disk in port.disks)]

    # The end.

    def stop(self, *, flush: bool = True) -> None:
        """No more DMA: what was written goes to the media first. All ports at once, so that those that hang add nothing up.

        May be called twice; `close` does it, too.
        """
        if self._stopped:
            return
        self._stopped = True
        with suppress(DeviceError, OSError):
            self.registers.GHC.modify(IE=0)
        left = [(port, Steps(port.name, port.shut_down(flush=flush))) for port in self.ports if port.state is not State.GONE]
        limit = self._clock() + STOP_NS
        while left and self._clock() < limit:
            left = [(port, steps) for port, steps in left if not self._ended(port, steps)]
            if left:
                self._sleep(LOOK_NS / 1e9)
        for port in self.ports:
            port.closed()
        with suppress(DeviceError, OSError):
            self._device.enable_bus_master(False)

    def _ended(self, port: AhciPort, steps: Steps) -> bool:
        try:
            return steps.advance(self._clock())
        except (DeviceError, OSError):      # it hangs: bus mastering is switched off in a moment
            return True

    def close(self) -> None:
        """Stop, then give memory and device back. May be called twice."""
        if not self._closed:
            self._halt()
            self._closed = True
            self._mmio.close()
            self._device.close()

    # The start.

    def _take_over(self) -> None:
        """Firmware lets go, where it holds on. AHCI 10.6.3."""
        regs = self.registers
        if regs.CAP.read() == EVERYTHING:
            raise DeviceGone(self.name)
        regs.GHC.modify(AE=1)       # before any other register; AHCI 10.1.2
        if not regs.CAP2.read().BOH:
            return
        regs.BOHC.modify(OOS=1)
        try:
            regs.BOHC.wait(BOS=0, timeout_ns=HANDOFF_NS)
        except DeviceTimeout:
            if regs.BOHC.read().BB:
                with suppress(DeviceTimeout):       # it had its time; the reset takes the controller
                    regs.BOHC.wait(BOS=0, BB=0, timeout_ns=BUSY_NS)

    def _reset(self) -> None:
        """AHCI 10.1.2 step 1, 10.4.3. What firmware has written once, and some adapters forget, is written again."""
        regs = self.registers
        implemented = regs.PI.read()
        regs.GHC.modify(HR=1)
        regs.GHC.wait(HR=0, timeout_ns=RESET_NS)
        regs.GHC.modify(AE=1, IE=0)
        if regs.PI.read() != implemented:
            regs.PI.write(implemented)

    def _start_ports(self, interrupt: Interrupt | None) -> None:
        regs, device = self.registers, self._device
        cap = regs.CAP.read()
        self._line = Line(interrupt, regs)
        adapter = Adapter(
            device.name, device, self._mmio, self._line, self._clock, options=self.options,
            slots=min(cap.NCS + 1, self.options.depth) if cap.SNCQ else 1, multipliers=bool(cap.SPM),
            sleeps=bool(cap.SALP and cap.PSC and cap.SSC),
            reach=(1 << 64) - 1 if cap.S64A else 1 << 32)
        for index in range(len(regs.PxCMD)):
            if not regs.PI.read() >> index & 1:
                continue
            offset = PORTS_AT + index * PORT_OCTETS
            memory = device.dma_alloc(PORT_MEMORY_OCTETS, f"ahci port {index}", below_4g=adapter.below_4g)
            internal = InternalCommand(self._mmio, offset, memory)
            port = Port(f"{device.name}/{index}", PortRegisters(regs, index), memory, internal)
            self.ports.append(AhciPort(adapter, port, index, offset))
        # One after the other where power is short, else all at once. AHCI 10.10.1.
        groups = [[port] for port in self.ports] if cap.SSS else [self.ports]
        for group in groups:
            for port in group:
                port.begin()
            left = group
            while left := [port for port in left if not port.advance(self._clock())]:
                self._sleep(LOOK_NS / 1e9)
        if any(port.state is State.GONE for port in self.ports):
            raise DeviceGone(self.name)
        for port in self.ports:
            port.on_disk = self._tell

    def _tell(self, disk: AhciDisk, there: bool) -> None:
        self.on_disk(disk, there)

    def _halt(self) -> None:
        """No interrupts, no DMA, no memory of ours in its hands."""
        self.stop()
        for port in self.ports:
            for disk in list(port.disks):
                disk.close()
            port.free()
        if self._line is not None:
            self._line.close()


def _highest_port(bar) -> int:
    """How many ports' registers there are: as many as implemented ones, numbers and BAR allow."""
    cap, implemented = bar.read32(0), bar.read32(0x0C)
    count = max((cap & 0x1F) + 1, (implemented & 0xFFFF_FFFF).bit_length())
    return max(1, min(count, MAX_PORTS, (bar.size - PORTS_AT) // PORT_OCTETS))
