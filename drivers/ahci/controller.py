"""The host bus adapter: taken over from firmware, reset, its ports brought up side by side, its interrupt shared out."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from drivers.ahci.disk import TIMEOUT_NS, AhciDisk
from drivers.ahci.line import Line
from drivers.ahci.port import Port
from drivers.ahci.queue import MEMORY_OCTETS, CommandQueue
from drivers.ahci.registers import MAX_PORTS, PORT_OCTETS, PORTS_AT, PortRegisters, ahci_map
from drivers.ahci.states import State
from drivers.ahci.steps import LOOK_NS
from drivers.device import Device
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
_KINDS: Final = ("msi", "intx")


class AhciController:
    """One adapter with its disks. They are READY when the constructor returns; it owns its device."""

    def __init__(self, device: Device, *, interrupts: tuple[str, ...] = _KINDS, timeout_ns: int = TIMEOUT_NS,
                 queued: bool = True, clock: Callable[[], int] = time.monotonic_ns,
                 sleep: Callable[[float], None] = time.sleep) -> None:
        """`interrupts`: kinds, best first; none: poll. `queued` False: no NCQ. `timeout_ns`: how long a command may take.

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
        self._closed = False
        self.ports: list[AhciDisk] = []
        """All ports, also those without a disk; see their `state` and `reason`."""
        bar = device.bar(ABAR)
        self._mmio = Mmio(bar)
        self.registers = RegisterFile(bar, ahci_map(_highest_port(bar)), device.name, clock=clock, sleep=sleep)
        device.enable_bus_master(False)
        try:
            self._take_over()
            self._reset()
            interrupt = device.interrupts(1, interrupts)[0] if interrupts else None
            device.enable_bus_master(True)
            self._start_ports(interrupt, timeout_ns, queued)
            if interrupt is not None:
                self.registers.IS.write(EVERYTHING)
                self.registers.GHC.modify(IE=1)
        except BaseException:
            self._halt()
            raise

    @property
    def disks(self) -> list[AhciDisk]:
        """The ports with a disk that works."""
        return [port for port in self.ports if port.identity is not None]

    @property
    def interrupt_kind(self) -> str:
        """"msi", "intx", or "polled"."""
        return self._line.interrupt.kind if self._line.interrupt else "polled"

    def statistics(self) -> dict[str, int]:
        """The sums over all disks."""
        sums: dict[str, int] = {}
        for disk in self.disks:
            for name, count in disk.statistics().items():
                sums[name] = sums.get(name, 0) + count
        return sums

    def close(self) -> None:
        """Stop DMA, then give memory and device back. May be called twice."""
        if not self._closed:
            self._closed = True
            self._halt()
            self._mmio.close()
            self._device.close()

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

    def _start_ports(self, interrupt, timeout_ns: int, queued: bool) -> None:
        regs, device = self.registers, self._device
        cap = regs.CAP.read()
        below_4g = not cap.S64A
        self._line = Line(interrupt, regs, below_4g)
        depth = cap.NCS + 1 if cap.SNCQ and queued else 1
        for index in range(len(regs.PxCMD)):
            if not regs.PI.read() >> index & 1:
                continue
            memory = device.dma_alloc(MEMORY_OCTETS, f"ahci port {index}", below_4g=below_4g)
            queue = CommandQueue(self._mmio, PORTS_AT + index * PORT_OCTETS, memory, 1 << 32 if below_4g else (1 << 64) - 1)
            port = Port(f"{device.name}/{index}", PortRegisters(regs, index), memory, queue)
            self.ports.append(AhciDisk(device, port, index, self._line, timeout_ns=timeout_ns, clock=self._clock, depth=depth))
        # One after the other where power is short, else all at once. AHCI 10.10.1.
        groups = [[disk] for disk in self.ports] if cap.SSS else [self.ports]
        for group in groups:
            for disk in group:
                disk.begin()
            left = group
            while left := [disk for disk in left if not disk.advance(self._clock())]:
                self._sleep(LOOK_NS / 1e9)
        if any(disk.state is State.GONE for disk in self.ports):
            raise DeviceGone(self.name)

    def _halt(self) -> None:
        """No interrupts, no DMA, no memory of ours in its hands."""
        with suppress(DeviceError, OSError):
            self.registers.GHC.modify(IE=0)
        for disk in self.ports:
            disk.close()
        with suppress(DeviceError, OSError):
            self._device.enable_bus_master(False)
        for disk in self.ports:
            disk.port.memory.free()


def _highest_port(bar) -> int:
    """How many ports' registers there are: as many as implemented ones, numbers and BAR allow."""
    cap, implemented = bar.read32(0), bar.read32(0x0C)
    count = max((cap & 0x1F) + 1, (implemented & 0xFFFF_FFFF).bit_length())
    return max(1, min(count, MAX_PORTS, (bar.size - PORTS_AT) // PORT_OCTETS))
