"""A disk behind AHCI in the lab's guest: Linux's own driver with fio, then ours, polled and by interrupt; ratios.

`python -m benchmarks.lab_disk` boots a guest for it; `measure(guest)` uses one that runs. Needs fio on the host, whose files
the guest sees.
"""

import json
import shutil
import sys
from dataclasses import dataclass

from tests.lab import inside_ahci as inside
from tests.lab.guest import AHCI, Guest, GuestError
from tests.lab.packages import LabUnavailable

SECONDS = 3.0
GOAL = 5.0
"""Random reads of 4 KiB: so many times Linux and fio, polled."""
INTERRUPT_GOAL = 1.3
"""At load: polling is at most so many times interrupts."""


@dataclass(frozen=True)
class Load:
    """What is asked of the disk."""

    name: str
    pattern: str
    block_octets: int
    depth: int


LOADS = (
    Load("4 KiB random, depth 1", "random", 4096, 1),
    Load("4 KiB random, depth 32", "random", 4096, 32),
    Load("128 KiB sequential, depth 8", "sequential", 128 << 10, 8),
)


@dataclass(frozen=True)
class Row:
    """A load: reads per second of each way to do it, and ours as multiples of Linux's."""

    load: Load
    linux_iops: float
    polled_iops: float
    interrupt_iops: float
    linux_p50_us: float
    polled_p50_us: float
    interrupt_p50_us: float

    @property
    def polled_ratio(self) -> float:
        """Ours, polled, to Linux."""
        return self.polled_iops / self.linux_iops

    @property
    def interrupt_ratio(self) -> float:
        """Ours, by interrupt, to Linux."""
        return self.interrupt_iops / self.linux_iops

    @property
    def polling_gain(self) -> float:
        """Polled to by interrupt."""
        return self.polled_iops / self.interrupt_iops


def measure(guest: Guest, seconds: float = SECONDS) -> list[Row]:
    """A row for each of LOADS. The kernel has its driver back afterwards. Raises GuestError."""
    if not shutil.which("fio"):
        raise GuestError("fio is not installed: apt-get install --no-install-recommends fio")
    guest.run("modprobe ahci; modprobe sd_mod; modprobe vfio-pci; sysctl -q vm.nr_hugepages=8; udevadm settle 2>&- || true")
    guest.preload("tests.lab.inside_ahci")
    rows = []
    try:
        for load in LOADS:
            linux_iops, linux_p50 = _fio(guest, load, seconds)
            ours = [guest.call(inside.bench, load.pattern, load.block_octets, load.depth, seconds, kinds, timeout=120)
                    for kinds in ((), ("msi",))]
            rows.append(Row(load, linux_iops, ours[0].iops, ours[1].iops, linux_p50, ours[0].p50_us, ours[1].p50_us))
    finally:
        guest.run("sysctl -q vm.nr_hugepages=0")
    return rows


def _fio(guest: Guest, load: Load, seconds: float) -> tuple[float, float]:
    """Linux's reads per second, and its median in microseconds."""
    command = ["fio", "--name=lab", f"--filename={guest.kernel_disk(AHCI)}", "--direct=1", "--ioengine=libaio",
               f"--rw={'randread' if load.pattern == 'random' else 'read'}", f"--bs={load.block_octets}",
               f"--iodepth={load.depth}", "--time_based", f"--runtime={seconds}", "--output-format=json", "--randrepeat=0",
               "--lat_percentiles=1"]
    read = json.loads(guest.run(*command, timeout=120).stdout)["jobs"][0]["read"]
    return read["iops"], read["lat_ns"]["percentile"]["50.000000"] / 1e3


def report(rows: list[Row]) -> str:
    """The rows as text."""
    lines = [f"{'reads/s':28}{'Linux+fio':>12}{'polled':>12}{'interrupt':>12}{'polled/L':>10}{'intr/L':>8}{'poll/intr':>10}"]
    for row in rows:
        lines.append(f"{row.load.name:28}{row.linux_iops:12,.0f}{row.polled_iops:12,.0f}{row.interrupt_iops:12,.0f}"
                     f"{row.polled_ratio:10.1f}{row.interrupt_ratio:8.1f}{row.polling_gain:10.2f}")
        lines.append(f"{'  median, us':28}{row.linux_p50_us:12,.0f}{row.polled_p50_us:12,.0f}{row.interrupt_p50_us:12,.0f}")
    return "\n".join(lines)


def main() -> int:
    """Boot a guest, measure, report."""
    try:
        with Guest() as guest:
            print(report(measure(guest)))
    except (GuestError, LabUnavailable) as error:
        print(f"rustosd: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
