"""`scripts/bench --lab`: our drivers against Linux's in one QEMU guest; cards in `lab_nic`, disks in `lab_disk`."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from benchmarks import lab_disk, lab_nic
from benchmarks.lab import BenchError
from benchmarks.report import Report, Row
from tests.lab.guest import Guest, GuestError
from tests.lab.packages import LabUnavailable


def measure(seconds: float, rounds: int, report: Report, say: Callable[[str], None]) -> None:
    """Boot a guest, add a row for each goal. Raises BenchError."""
    if not shutil.which("iperf3"):
        raise BenchError("missing: iperf3. As root: apt-get install iperf3")
    try:
        say("booting the guest")
        with Guest() as guest:
            guest.run("modprobe vfio-pci && modprobe e1000e && modprobe e1000")
            # Disks first: a request takes everybody a third longer in a guest whose cards have been at work.
            say("disks: fio on Linux's driver, then ours, polling and by interrupt")
            for load in lab_disk.measure(guest, seconds):
                report.rows += _disk_rows(load)
            lab_nic.measure(guest, seconds, rounds, report, say)
    except (GuestError, LabUnavailable) as error:
        raise BenchError(str(error)) from error


def _disk_rows(load: lab_disk.Row) -> list[Row]:
    """Ours against Linux's, and interrupts against polling, as rows of the common table."""
    name = f"AHCI, {load.load.name}"
    random = load.load.pattern == "random"
    slower = load.polled_iops / load.interrupt_iops
    at_load = load.load.depth > 1       # a request at a time measures wake-ups, see docs/performance.md
    return [
        Row(name, "reads/s", load.polled_iops, "Linux's driver, fio", load.linux_iops, load.polled_ratio,
            f">= {lab_disk.GOAL:.0f}" if random else "", load.polled_ratio >= lab_disk.GOAL if random else None),
        Row(f"{name}, by interrupt", "reads/s", load.interrupt_iops, "rustosd, polling", load.polled_iops, 1 / slower,
            f">= 1 / {lab_disk.INTERRUPT_GOAL}" if at_load else "", slower <= lab_disk.INTERRUPT_GOAL if at_load else None),
    ]
