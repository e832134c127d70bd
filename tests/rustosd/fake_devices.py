"""A made-up machine with devices, some of them the daemon's: what control and CLI show of devices is tested on it."""

import asyncio
import struct
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any

from drivers.errors import DeviceError, DeviceRefused
from drivers.registers import RC, RO, Bits, Reg, RegisterFile, RegisterMap
from mm.dma import Owned
from tests.drivers.pci.test_capabilities import Space
from tests.drivers.pci.tree import Machine
from tests.drivers.test_acpi import ALL as ACPI_TABLES

NIC, OURS, AHCI, OUR_AHCI, EDU, LEGACY = ("0000:00:02.0", "0000:01:00.0", "0000:00:1f.2", "0000:00:04.0", "0000:05:02.0",
                                          "0000:05:01.0")
PCI_IDS = """\
8086  Intel Corporation
\t100e  82540EM Gigabit Ethernet Controller
\t10d3  82574L Gigabit Network Connection
\t\t8086 a01f  Gigabit CT Desktop Adapter
\t2922  82801IR/IO/IH (ICH9R/DO/DH) 6 port SATA Controller [AHCI mode]
\t29c0  82G33/G31/P35/P31 Express DRAM Controller
1234  Nobody
\t11e8  QEMU Educational Device
C 01  Mass storage controller
\t06  SATA controller
C 02  Network controller
\t00  Ethernet controller
C 06  Bridge
\t00  Host bridge
"""


def fill(machine: Machine) -> None:
    """Six functions: a bridge, a NIC with the default route, a NIC and a controller of ours, a mounted disk, a shared group."""
    machine.write("usr/share/misc/pci.ids", PCI_IDS)
    machine.pci("0000:00:00.0", device=0x29C0, code=0x060000, group=0)
    machine.net("eth0", machine.pci(NIC, device=0x100E, driver="e1000", group=2))
    machine.pci(OUR_AHCI, device=0x2922, code=0x010601, driver="vfio-pci", group=4)
    sata = machine.pci(AHCI, device=0x2922, code=0x010601, driver="ahci", group=5)
    machine.block("sda", "8:0", sata, sectors=131072, device__model="QEMU HARDDISK", serial="LAB-DISK9")
    machine.mount("8:0", "/srv", source="/dev/sda")
    bridge = machine.pci("0000:00:11.0", device=0x0C01, code=0x060400, driver="pcieport", group=10)
    ours = machine.pci(OURS, below=bridge, driver="vfio-pci", group=12, numa_node="0", reset_method="flr bus",
                       current_link_speed="2.5 GT/s PCIe", max_link_speed="5.0 GT/s PCIe", current_link_width="1",
                       max_link_width="1", resource="0xfe840000 0xfe85ffff 0x40200\n0x0 0x0 0x0\n0xc000 0xc01f 0x40101\n")
    for path in (ours, sata):
        machine.write(path / "config", bytes(config_space().octets))
    machine.pci(LEGACY, device=0x100F, driver="e1000", group=7)
    machine.net("eth2", machine.root / f"sys/bus/pci/devices/{LEGACY}")
    machine.pci(EDU, vendor=0x1234, device=0x11E8, code=0x00FF00, driver="edu", group=7)
    machine.write("sys/bus/pci/slots/1/address", "0000:01:00")
    for name in ("APIC", "FACP", "MCFG", "DMAR"):
        machine.write(f"sys/firmware/acpi/tables/{name}", ACPI_TABLES[name])
    machine.write("sys/firmware/acpi/tables/SSDT", ACPI_TABLES["APIC"][:-1] + b"\xee")


def config_space() -> Space:
    space = Space().standard((0xC8, 0x01, struct.pack("<HH", 0xC823, 0x2000)),
                             (0xD0, 0x05, struct.pack("<HIIH", 0x80, 0, 0, 0)),
                             (0xA0, 0x11, struct.pack("<HII", 0x8004, 0x3, 0x2003)))
    space.extended((0x100, 0x03, 1, struct.pack("<Q", 0x001B21FFFF123456)))
    return space


class Feature(IntFlag):
    QUEUE = 1
    WRITE_CACHE = 8


class CTRL(Reg, at=0x00):
    """Control."""

    SLU = Bits(6)
    RST = Bits(26)


class STATUS(Reg, at=0x08, access=RO):
    """Status."""

    LU = Bits(1)


class ICR(Reg, at=0xC0, access=RC):
    """What happened."""


class RAL(Reg, at=0x5400, count=4, stride=8):
    """Addresses."""


MAP = RegisterMap.of("82574", globals())


class FakeBar:
    """Registers of nothing; counts its reads."""

    address = 0
    size = 1 << 17

    def __init__(self):
        self.words = {0x00: 0x40, 0x08: 0x8000_0002, 0x5400: 0x12005452}
        self.reads: list[int] = []

    def read32(self, offset):
        self.reads.append(offset)
        return self.words.get(offset, 0)

    def write32(self, offset, value):
        self.words[offset] = value


class FakeDriver:
    interrupt_kind = "msix"

    def __init__(self, name):
        self.bar = FakeBar()
        self.registers = RegisterFile(self.bar, MAP, name)

    def statistics(self):
        return {"rx_frames": 1200, "tx_frames": 7, "rx_dropped": 0}


@dataclass
class Info:
    name: str
    serial: str
    model: str = "QEMU HARDDISK"
    firmware: str = "2.5+"
    sectors: int = 2048
    sector_octets: int = 512
    physical_octets: int = 4096
    queue_depth: int = 32
    features: Feature = Feature.QUEUE | Feature.WRITE_CACHE

    @property
    def octets(self):
        return self.sectors * self.sector_octets


@dataclass
class Result:
    """A BenchResult: 900 requests a second below 64 us, 90 below 128, 10 below 1024."""

    seconds: float
    errors: int = 0
    mean_us: float = 60.0
    longest_us: float = 1000.0

    @property
    def operations(self):
        return round(1000 * self.seconds)

    @property
    def histogram(self):
        return [(48.0, round(400 * self.seconds)), (60.0, round(500 * self.seconds)), (128.0, round(90 * self.seconds)),
                (1000.0, round(10 * self.seconds))]


class FakeClient:
    """The operator, as a client of a queue."""

    name = "rustosctl"

    def __init__(self, info):
        self.info = info

    def statistics(self):
        return dict.fromkeys(("writes", "flushes", "trims", "zeroes", "extents", "sectors_written", "waiting_requests",
                              "requests_under_way", "throttled", "failed"), 0) | {"reads": 3, "sectors_read": 24}


class FakeDisk:
    """A disk in memory. `log` has what was done to it."""

    def __init__(self, name, serial):
        self.info = Info(name, serial)
        self.octets = bytearray(self.info.sectors * 512)
        self.log: list[tuple] = []
        self.fails: Exception | None = None

    @property
    def queue(self):
        return self

    def requests_ended(self):
        nothing = (0, 0, (0, [0] * 65))
        return {"failed": 0, "operations": {"read": (3, 12288, (300_000, [0] * 16 + [2, 1] + [0] * 47)), "write": nothing}}

    def all_clients(self):
        return [FakeClient(self.info)]

    async def table(self):
        return None

    async def read(self, lba, sectors):
        self.log.append(("read", lba, sectors))
        assert lba >= 0 and sectors >= 1 and lba + sectors <= self.info.sectors
        await asyncio.sleep(0)
        return bytes(self.octets[lba * 512:(lba + sectors) * 512])

    async def write(self, lba, octets):
        self.log.append(("write", lba, len(octets) // 512))
        assert len(octets) % 512 == 0 and lba * 512 + len(octets) <= len(self.octets)
        if self.fails:
            raise self.fails
        await asyncio.sleep(0)
        self.octets[lba * 512:lba * 512 + len(octets)] = octets

    async def flush(self):
        self.log.append(("flush",))

    async def bench(self, pattern, block_octets, depth, seconds):
        self.log.append(("bench", pattern, block_octets, depth, seconds))
        return Result(seconds)

    def statistics(self):
        return {"reads": 3, "writes": 0}


@dataclass
class FakeHeld:
    bdf: str
    kind: str
    before: str | None
    interface: str | None = None
    backend: str = "vfio"
    device: Any = None
    driver: Any = None
    disks: dict[str, FakeDisk] = field(default_factory=dict)
    state: str = "running"
    reason: str = ""
    left_out: tuple[str, ...] = ()


class FakeDevice:
    def __init__(self, name):
        self.name = name
        self.config = config_space()
        self.config.how = "vfio"

    def dma_owned(self):
        return [Owned("receive ring", 1, 4096), Owned("transmit buffers", 4, 8 << 20)]


class FakeDevices:
    """A `DeviceManager`: a NIC and a controller with two disks are ours from the start."""

    def __init__(self, machine: Machine | None = None):
        self.machine = machine
        self.taken: list[tuple] = []
        names = [f"{OUR_AHCI}/{port}" for port in (0, 1)]
        self.held = {
            OURS: FakeHeld(OURS, "nic", "e1000e", "rustos0", device=FakeDevice(OURS), driver=FakeDriver(OURS)),
            OUR_AHCI: FakeHeld(OUR_AHCI, "ahci", "ahci", device=FakeDevice(OUR_AHCI), driver=FakeDriver(OUR_AHCI),
                               disks={name: FakeDisk(name, f"LAB-DISK{i}") for i, name in enumerate(names)}),
        }

    async def take(self, bdfs, *, force=False, backend="vfio"):
        self.taken.append((bdfs, force, backend))
        for bdf in bdfs:
            if bdf in self.held:
                raise DeviceRefused(bdf, "it is ours already")
        if NIC in bdfs and not force:
            raise DeviceRefused(NIC, "eth0 carries the default route: give the host another way out first, or name the device "
                                     "with --force")
        if backend == "uio":
            raise ValueError("uio needs huge pages: sysctl vm.nr_hugepages=64")
        made = [FakeHeld(bdf, "nic" if bdf in (NIC, LEGACY) else "ahci", "e1000" if bdf in (NIC, LEGACY) else "ahci",
                         "rustos0" if bdf in (NIC, LEGACY) else None, driver=FakeDriver(bdf),
                         left_out=("the route to 10.0.0.0/8: it is in table 77",) if bdf == NIC else ()) for bdf in bdfs]
        self.held |= {held.bdf: held for held in made}
        return made

    async def give(self, bdf):
        if self.held[bdf].state == "stuck":
            raise DeviceError(bdf, "it does not let go")
        del self.held[bdf]
        if self.machine is not None:
            path = self.machine.root / f"sys/bus/pci/devices/{bdf}"
            (path / "driver").unlink()
            (path / "driver").symlink_to("../drivers/e1000e")
            (path / "net/eth1").mkdir(parents=True)
