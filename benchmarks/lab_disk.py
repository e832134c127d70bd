"""A disk behind AHCI in the lab's guest: Linux's own driver with fio and ours, polled and by interrupt, in turn; ratios.

`python -m benchmarks.lab_disk` boots a guest for it; `measure(guest)` uses one that runs. Needs fio on the host, whose files
the guest sees.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from statistics import median

from benchmarks.report import paired
from tests.lab import inside_ahci as inside
from tests.lab.guest import AHCI, Guest, GuestError
from tests.lab.packages import LabUnavailable

SECONDS, ROUNDS = 2.0, 3
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
class Look:
    """One load, one way: reads per second, and the median of what they took."""

    iops: float
    p50_us: float


@dataclass(frozen=True)
class Row:
    """A load, by Linux's driver and ours; looks at the same place of each list were taken one after the other."""

    load: Load
    linux: list[Look]
    polled: list[Look]
    interrupt: list[Look]

    @property
    def polled_ratio(self) -> float:
        """Ours, polled, to Linux."""
        return paired(iops(self.polled), iops(self.linux))

    @property
    def interrupt_ratio(self) -> float:
        """Ours, by interrupt, to Linux."""
        return paired(iops(self.interrupt), iops(self.linux))

    @property
    def polling_gain(self) -> float:
        """Polled to by interrupt."""
        return paired(iops(self.polled), iops(self.interrupt))


def iops(looks: list[Look]) -> list[float]:
    """Reads per second of each look."""
    return [look.iops for look in looks]


def measure(guest: Guest, seconds: float = SECONDS, rounds: int = ROUNDS) -> list[Row]:
    """A row for each of LOADS. The kernel has its driver back afterwards. Raises GuestError."""
    if not shutil.which("fio"):
        raise GuestError("fio is not installed: apt-get install --no-install-recommends fio")
    guest.run("modprobe ahci; modprobe sd_mod; modprobe vfio-pci; sysctl -q vm.nr_hugepages=8; udevadm settle 2>&- || true")
    guest.preload("tests.lab.inside_ahci")
    rows = []
    try:
        for load in LOADS:
            row = Row(load, [], [], [])
            for _ in range(rounds):
                row.linux.append(_fio(guest, load, seconds))
                row.polled.append(_ours(guest, load, seconds, inside.POLL))
                row.interrupt.append(_ours(guest, load, seconds, ("msi",)))
            rows.append(row)
    finally:
        guest.run("sysctl -q vm.nr_hugepages=0")
    return rows


def _ours(guest: Guest, load: Load, seconds: float, interrupts: tuple[str, ...]) -> Look:
    found = guest.call(inside.bench, load.pattern, load.block_octets, load.depth, seconds, interrupts, timeout=120)
    return Look(found.iops, found.p50_us)


def _fio(guest: Guest, load: Load, seconds: float) -> Look:
    command = ["fio", "--name=lab", f"--filename={guest.kernel_disk(AHCI)}", "--direct=1", "--ioengine=libaio",
               f"--rw={'randread' if load.pattern == 'random' else 'read'}", f"--bs={load.block_octets}",
               f"--iodepth={load.depth}", "--time_based", f"--runtime={seconds}", "--output-format=json", "--randrepeat=0",
               "--lat_percentiles=1"]
    read = json.loads(guest.run(*command, timeout=120).stdout)["jobs"][0]["read"]
    return Look(read["iops"], read["lat_ns"]["percentile"]["50.000000"] / 1e3)


def report(rows: list[Row]) -> str:
    """The rows as text."""
    lines = [f"{'reads/s':28}{'Linux+fio':>12}{'polled':>12}{'interrupt':>12}{'polled/L':>10}{'intr/L':>8}{'poll/intr':>10}"]
    for row in rows:
        ways = (row.linux, row.polled, row.interrupt)
        lines.append(f"{row.load.name:28}" + "".join(f"{median(iops(looks)):12,.0f}" for looks in ways) +
                     f"{row.polled_ratio:10.1f}{row.interrupt_ratio:8.1f}{row.polling_gain:10.2f}")
        lines.append(f"{'  median, us':28}" + "".join(f"{median(look.p50_us for look in looks):12,.0f}" for looks in ways))
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
