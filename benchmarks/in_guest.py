"""`scripts/bench --lab`: our drivers against Linux's in one QEMU guest; cards in `lab_nic`, disks in `lab_disk`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from statistics import median

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
            lab_nic.measure(guest, seconds, rounds, report, say)
            say("disks: fio on Linux's driver and ours, polling and by interrupt, in turn")
            for load in lab_disk.measure(guest, seconds, rounds):
                report.rows += _disk_rows(load)
    except (GuestError, LabUnavailable) as error:
        raise BenchError(str(error)) from error


def _disk_rows(load: lab_disk.Row) -> list[Row]:
    """Ours against Linux's, and interrupts against polling, as rows of the common table."""
    name = f"AHCI, {load.load.name}"
    linux, polled, interrupt = map(lab_disk.iops, (load.linux, load.polled, load.interrupt))
    random = load.load.pattern == "random"
    slower = load.polling_gain
    at_load = load.load.depth > 1       # a request at a time measures wake-ups, see docs/performance.md
    return [
        Row(name, "reads/s", median(polled), "Linux's driver, fio", median(linux), load.polled_ratio,
            f">= {lab_disk.GOAL:.0f}" if random else ">= 1",
            load.polled_ratio >= (lab_disk.GOAL if random else 1), {"rustosd": polled, "Linux": linux}),
        Row(f"{name}, by interrupt", "reads/s", median(interrupt), "rustosd, polling", median(polled), 1 / slower,
            f">= 1 / {lab_disk.INTERRUPT_GOAL}" if at_load else "", slower <= lab_disk.INTERRUPT_GOAL if at_load else None,
            {"rustosd": interrupt, "polling": polled}),
    ]
