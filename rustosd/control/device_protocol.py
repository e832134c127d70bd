"""The part of the protocol that is about PCI devices and the firmware's tables; see `rustosd.control.protocol`."""

from typing import Annotated, Literal

import msgspec

from rustosd.control.base import Method, Nothing, Parameters, Row
from rustosd.values import PciAddress

MOST_DEVICES = 64
"""How many devices one take may name."""
LONGEST_TRACE_S = 60.0
TRACE_CAPACITY = 4096
"""How many different accesses in a row a trace keeps; the oldest go first."""

Scalar = str | int | float | bool | None


class Obstacle(Row):
    """One thing that stands in the way of taking a device."""

    why: str                    # drivers.pci.taking.Why: default_route, mounted, no_iommu, ...; or no_driver
    text: str
    advice: str
    forcible: bool              # --force goes past it


class Holding(Row):
    """A device that is ours."""

    backend: str                # vfio, uio, vfio-noiommu
    kind: str                   # nic, ahci, other
    before: str | None          # the kernel's driver, which gets it back
    interface: str | None       # the stack's, of a NIC
    disks: list[str]
    state: str                  # running, gone
    reason: str | None          # why it is gone


class DeviceEntry(Row):
    """A PCI function, who drives it, what hangs on it, and whether it can be taken."""

    bdf: str
    kind: str                   # the class in words
    name: str                   # vendor and model
    bridge: bool
    driver: str | None
    iommu_group: int | None
    interfaces: list[str]       # the kernel's
    disks: list[str]            # the kernel's
    held: Holding | None
    takeable: bool
    obstacles: list[Obstacle]


class LinkState(Row):
    """A PCIe link as it is and as it could be."""

    speed_gts: float | None
    width: int | None
    max_speed_gts: float | None
    max_width: int | None
    degraded: bool


class Bar(Row):
    """A base address register; index 6 is the expansion ROM."""

    index: int
    kind: str                   # mem32, mem64, io, rom
    address: int
    octets: int
    prefetch: bool


class DeviceCapability(Row):
    """A structure of the capability lists."""

    offset: int
    name: str
    version: int | None         # of extended ones
    text: str


class ConfigAccess(Row):
    """How configuration space was reached, and why not in a better way."""

    how: str | None             # ecam, vfio, sysfs; null: not at all
    octets: int
    passed_over: list[str]


class DeviceDetails(Row):
    """All about one PCI function."""

    device: DeviceEntry
    vendor_id: int
    device_id: int
    subsystem_vendor_id: int
    subsystem_id: int
    subsystem: str | None
    class_code: int
    revision: int
    numa_node: int | None
    slot: str | None
    upstream: str | None
    irq: int | None
    virtual_functions: int | None
    virtual_functions_total: int | None
    physical_function: str | None
    link: LinkState | None
    bars: list[Bar]
    capabilities: list[DeviceCapability]
    capability_problems: list[str]
    group_members: list[str]    # with itself
    reset_methods: list[str]    # the kernel's, best first
    config: ConfigAccess
    users: list[str]            # the kernel's interfaces and disks in words
    interrupts: str | None      # intx, msi, msix; of a device that is ours
    statistics: dict[str, int]  # the driver's, of a device that is ours


class Taken(Row):
    """A device that has just become ours, and what came with it."""

    bdf: str
    kind: str
    backend: str
    before: str | None
    interface: str | None
    addresses: list[str]
    routes: list[str]           # destinations, without those that come with the addresses
    disks: list[str]
    left_out: list[str]         # in words, what of the kernel's was not taken over, such as the renewal of a lease


class Given(Row):
    """A device that is ours no more, and what the kernel has made of it."""

    bdf: str
    present: bool               # false: it had left, and is forgotten
    driver: str | None
    interfaces: list[str]       # the kernel's


class RegisterValue(Row):
    """A register; `value` is null for one that was not read, and `text` says why."""

    offset: int
    name: str
    access: str
    value: int | None
    text: str


class RegisterDump(Row):
    """Registers as they stood, none changed by being read."""

    bdf: str
    source: str                 # the map: "82574", "configuration space"
    registers: list[RegisterValue]


class RegisterAccess(Row):
    """One access of the driver's, or several equal ones in a row."""

    time_us: float              # since the trace began
    verb: str                   # read, write
    offset: int
    name: str
    value: int
    text: str
    times: int


class RegisterTrace(Row):
    """What the driver did to its registers for a while; its bursts go past the trace."""

    bdf: str
    source: str
    seconds: float
    lost: int                   # accesses that no longer fit
    accesses: list[RegisterAccess]


class AcpiTable(Row):
    """A table of the firmware; what cannot be read has no length."""

    name: str
    octets: int | None
    revision: int | None
    oem: str | None
    decoded: bool
    problem: str | None         # what is wrong with it: its checksum, its length, that we may not read it


class AcpiDetails(Row):
    """What a table says: single values, and lists of alike rows."""

    table: AcpiTable
    facts: dict[str, Scalar]
    sections: dict[str, list[dict[str, Scalar]]]


Patterns = Annotated[tuple[Annotated[str, msgspec.Meta(max_length=64)], ...], msgspec.Meta(max_length=64)]


class DeviceQuery(Parameters):
    bridges: bool = True


class DeviceName(Parameters):
    bdf: PciAddress


class DeviceTake(Parameters):
    bdfs: Annotated[list[PciAddress], msgspec.Meta(min_length=1, max_length=MOST_DEVICES)]
    force: bool = False
    backend: Literal["vfio", "uio", "vfio-noiommu"] = "vfio"


class RegisterQuery(Parameters):
    """`names`: patterns as of a shell, none for all. `config`: configuration space, also of a device that is ours."""

    bdf: PciAddress
    names: Patterns = ()
    config: bool = False


class TraceQuery(Parameters):
    bdf: PciAddress
    seconds: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_TRACE_S)] = 1.0
    names: Patterns = ()


class AcpiQuery(Parameters):
    table: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


METHODS = (
    Method("device.list", DeviceQuery, list[DeviceEntry], False, "PCI devices: who drives each, and can it be taken."),
    Method("device.show", DeviceName, DeviceDetails, False, "All about one PCI device."),
    Method("device.take", DeviceTake, list[Taken], True, "Take devices from the kernel, all of them or none."),
    Method("device.give", DeviceName, list[Given], True, "Give a device, and the rest of its group, to the kernel."),
    Method("device.regs", RegisterQuery, RegisterDump, False, "The registers of a device, decoded."),
    Method("device.trace", TraceQuery, RegisterTrace, False, "What the driver does to the registers for some seconds.",
           guarded=True),
    Method("acpi.list", Nothing, list[AcpiTable], False, "The firmware's ACPI tables."),
    Method("acpi.show", AcpiQuery, AcpiDetails, False, "What one ACPI table says."),
)
