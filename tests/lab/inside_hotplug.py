"""What the hotplug tests run in the guest: the daemon, with ears for what it logs and how long things took."""

import asyncio
import gc
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import structlog
import uvloop

from drivers import binding
from drivers.hotplug.uevent import UeventSocket
from rustosd import config
from rustosd.daemon import Daemon
from tests.lab.agent import tell

CONFIG = """
interface = []
[service.iperf3]
enabled = false
[control]
socket = "/run/rustosd-lab-hotplug/control.sock"
[host]
journal = "/run/rustosd-lab-hotplug/journal.jsonl"
"""
UNMAPPED = 0x7000_0000


def serve(rules: str) -> dict[str, Any]:
    """Run the daemon with these [[device]] tables until SIGTERM, reading all disks it takes; answers with what was counted.

    Tells every event that is logged, as a dict with its time in ms, the kernel's messages as `uevent`, and at SIGUSR1 what
    the process holds; SIGUSR2 has the NICs reach for memory that is not theirs.
    """
    structlog.configure(processors=[_tell_event], logger_factory=structlog.ReturnLoggerFactory(),
                        wrapper_class=structlog.make_filtering_bound_logger(20))
    return uvloop.run(_Served().run(rules))


class _Served:
    async def run(self, rules: str) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        self.daemon = Daemon(config.parse(CONFIG + rules, "lab"))
        uevents = UeventSocket()
        loop.add_reader(uevents.fileno(), lambda: [
            _say("uevent", action=event.action.value, device=event.bdf, driver=event.driver) for event in uevents.read()[0]])
        loop.add_signal_handler(signal.SIGUSR1, lambda: _say("holdings", **self.holdings()))
        loop.add_signal_handler(signal.SIGUSR2, self.reach_too_far)
        running = loop.create_task(self.daemon.run(announce=False))
        while not hasattr(self.daemon, "watch") and not running.done():
            await asyncio.sleep(0)
        self._time_releases()
        reading = loop.create_task(self.read_disks())
        await running
        reading.cancel()
        loop.remove_reader(uevents.fileno())
        uevents.close()
        return {"pump": self.daemon.pump.statistics(), "samples": self.samples()}

    def samples(self) -> dict[tuple[str, ...], float]:
        return {(sample.name, *sample.labels.values()): sample.value for sample in self.daemon.watch.samples()}

    def holdings(self) -> dict[str, Any]:
        """What a leak would show in."""
        gc.collect()
        maps = Path("/proc/self/maps").read_text().splitlines()
        status = Path("/proc/self/status").read_text()
        rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        return {"pid": os.getpid(), "fds": len(os.listdir("/proc/self/fd")), "rss_kib": rss,
                "maps": sum(any(word in line for word in ("vfio", "hugepage", "/dev/zero")) for line in maps),
                "all_maps": len(maps), "tasks": len(asyncio.all_tasks()), "objects": len(gc.get_objects()),
                "threads": len(os.listdir("/proc/self/task")), "interfaces": len(self.daemon.stack.interfaces()),
                "samples": self.samples(),
                "held": {bdf: (held.state, held.interface, held.entry) for bdf, held in self.daemon.devices.held.items()}}

    def reach_too_far(self) -> None:
        """Have every NIC fetch a transmit descriptor where nothing is mapped, then set it right."""
        for held in self.daemon.devices.held.values():
            if held.state == "running":
                registers = held.driver.controller.regs
                registers.TDBAL.write(UNMAPPED)
                registers.TDBAH.write(0)
                registers.TDT.write((registers.TDT.read() + 1) % 1024)
                asyncio.get_running_loop().call_later(0.2, held.driver.reset)

    async def read_disks(self) -> None:
        """Keep 32 reads under way on each disk; tell of the first success and the first failure."""
        known: set[Any] = set()
        while True:
            for held in self.daemon.devices.held.values() if hasattr(self.daemon, "devices") else ():
                for disk in set(held.disks.values()) - known:
                    known.add(disk)
                    asyncio.get_running_loop().create_task(self._read(disk))
            await asyncio.sleep(0.1)

    async def _read(self, disk: Any) -> None:
        _say("disk_read", disk=disk.info.name, octets=len(await disk.read(0, 8)))
        try:
            while True:
                await asyncio.gather(*(disk.read(lba, 8) for lba in range(0, 256, 8)))
        except Exception as error:
            _say("disk_error", disk=disk.info.name, kind=type(error).__name__, errno=getattr(error, "errno", 0),
                 message=str(error))

    def _time_releases(self) -> None:
        """Tell how long each device took to be let go."""
        release = self.daemon.devices._release

        def timed(held: Any) -> None:
            start = time.perf_counter()
            had = held.device is not None
            release(held)
            if had:
                _say("released", device=held.bdf, took_ms=(time.perf_counter() - start) * 1e3)

        self.daemon.devices._release = timed


def _tell_event(_logger: Any, level: str, event: dict[str, Any]) -> str:
    """The last processor of structlog's: every event to the host."""
    if (error := event.pop("exc_info", None)) is not None:
        event["exception"] = repr(sys.exc_info()[1] if error is True else error)
    _say(event.pop("event"), level=level, **event)
    return ""


def _say(event: str, **facts: Any) -> None:
    tell({"event": event, "at_ms": time.monotonic() * 1e3, **facts})


def unbind(bdf: str) -> float:
    """Unbind it from vfio-pci, as an operator might; how long that took, in ms."""
    with open(f"/sys/bus/pci/devices/{bdf}/driver/unbind", "w") as file:
        start = time.perf_counter()
        file.write(bdf)
        file.flush()
        return (time.perf_counter() - start) * 1e3


def give_back(bdf: str, driver: str | None) -> None:
    """After a daemon that could not."""
    binding.give_back(bdf, driver)


def port_of(bdf: str) -> str:
    """The port above a card."""
    return os.path.basename(os.path.dirname(os.path.realpath(binding.PCI / "devices" / bdf)))


def power(port: str, on: bool) -> None:
    """Cut the power of a slot, or give it back, without a word to the kernel: what a card is like once it was pulled."""
    _control_slot(port, _ON if on else _OFF)


def pull(port: str) -> None:
    """Have the card vanish and the kernel hear of it. On a guest with one processor only.

    The kernel believes in a surprise only while the slot has power, so it shall not run between off and on.
    """
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
    _control_slot(port, _OFF, _ON)


_OFF, _ON, _POWER_BITS = 0x0700, 0x0100, 0x0700
"""Slot Control: power controller and power indicator; PCIe 7.5.3.10."""


def _control_slot(port: str, *states: int) -> None:
    fd = os.open(binding.PCI / "devices" / port / "config", os.O_RDWR)
    at = os.pread(fd, 1, 0x34)[0]
    while os.pread(fd, 1, at)[0] != 0x10:       # the PCI Express capability
        at = os.pread(fd, 1, at + 1)[0]
    control = int.from_bytes(os.pread(fd, 2, at + 0x18), "little") & ~_POWER_BITS
    for state in states:
        os.pwrite(fd, (control | state).to_bytes(2, "little"), at + 0x18)
    os.close(fd)
