"""The capability lists of a PCI function: walked with distrust, decoded where we know the structure.

A list may loop, point into the header or beyond the end, or claim lengths it has not; each of these ends the walk or
drops the one structure, and is said in `problem`. Section numbers are those of the PCI Express Base Specification 6.0.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from drivers.device import ConfigSpace
from drivers.errors import DeviceRefused
from drivers.pci.config import CAPABILITY_POINTER, HEADER_TYPE, LEGACY, STATUS, ConfigBar
from drivers.pci.sysfs import BarInfo
from drivers.registers import RO, W1C, Bits, Reg, RegisterFile, RegisterMap

_FIRST: Final = 0x40
_FIRST_EXTENDED: Final = 0x100
_CARDBUS_POINTER: Final = 0x14
_CARDBUS: Final = 2

_STANDARD: Final = {
    0x01: "power management", 0x02: "AGP", 0x03: "vital product data", 0x04: "slot identification", 0x05: "MSI",
    0x06: "CompactPCI hot swap", 0x07: "PCI-X", 0x08: "HyperTransport", 0x09: "vendor specific", 0x0A: "debug port",
    0x0B: "CompactPCI control", 0x0C: "hot-plug", 0x0D: "bridge subsystem", 0x0E: "AGP 8x", 0x0F: "secure device",
    0x10: "PCI Express", 0x11: "MSI-X", 0x12: "SATA", 0x13: "advanced features", 0x14: "enhanced allocation",
    0x15: "flattening portal bridge",
}
_EXTENDED: Final = {
    0x01: "advanced error reporting", 0x02: "virtual channel", 0x03: "serial number", 0x04: "power budgeting",
    0x05: "root complex link declaration", 0x06: "root complex internal link", 0x07: "root complex event collector",
    0x08: "multi-function virtual channel", 0x09: "virtual channel", 0x0A: "root complex registers",
    0x0B: "vendor specific", 0x0C: "configuration access correlation", 0x0D: "access control services", 0x0E: "ARI",
    0x0F: "address translation", 0x10: "SR-IOV", 0x11: "MR-IOV", 0x12: "multicast", 0x13: "page requests",
    0x15: "resizable BAR", 0x16: "dynamic power allocation", 0x17: "TPH", 0x18: "latency tolerance",
    0x19: "secondary PCI Express", 0x1A: "protocol multiplexing", 0x1B: "PASID", 0x1C: "LN requester",
    0x1D: "downstream port containment", 0x1E: "L1 power substates", 0x1F: "precision time", 0x20: "PCIe over M-PHY",
    0x21: "FRS queueing", 0x22: "readiness time", 0x23: "designated vendor specific", 0x24: "VF resizable BAR",
    0x25: "data link feature", 0x26: "16 GT/s", 0x27: "lane margining", 0x28: "hierarchy ID", 0x29: "native enclosure",
    0x2A: "32 GT/s", 0x2B: "alternate protocol", 0x2C: "system firmware intermediary", 0x2E: "data object exchange",
    0x30: "integrity and encryption",
}


# Registers; each `at` counts from where the capability begins

class PowerState(IntEnum):
    """Device power states."""

    D0 = 0
    D1 = 1
    D2 = 2
    D3HOT = 3


class Pm:
    """Power management (7.5.2)."""

    class PMC(Reg, at=2, width=16, access=RO, spec="7.5.2.1"):
        """What it can."""

        VERSION = Bits(2, 0)
        CLOCK = Bits(3)
        IMMEDIATE = Bits(4)
        DSI = Bits(5, doc="needs its own initialisation after D0")
        AUX_CURRENT = Bits(8, 6)
        D1 = Bits(9)
        D2 = Bits(10)
        PME = Bits(15, 11, doc="states that PME can come from, D0 first")

    class PMCSR(Reg, at=4, width=16, spec="7.5.2.2"):
        """Where it is."""

        STATE = Bits(1, 0, PowerState)
        NO_SOFT_RESET = Bits(3, doc="keeps its registers from D3hot to D0")
        PME_ENABLE = Bits(8)
        DATA_SELECT = Bits(12, 9)
        DATA_SCALE = Bits(14, 13)
        PME_STATUS = Bits(15, access=W1C)


class MsiRegisters:
    """Message signalled interrupts (7.7.1)."""

    class CONTROL(Reg, at=2, width=16, spec="7.7.1.2"):
        """Message control."""

        ENABLE = Bits(0)
        CAPABLE = Bits(3, 1, doc="log2 of the vectors it wants")
        ENABLED = Bits(6, 4, doc="log2 of the vectors it has")
        BITS64 = Bits(7)
        MASKABLE = Bits(8, doc="a mask bit for each vector")


class MsiXRegisters:
    """MSI-X (7.7.2)."""

    class CONTROL(Reg, at=2, width=16, spec="7.7.2.2"):
        """Message control."""

        LAST = Bits(10, 0, doc="vectors less one")
        MASKED = Bits(14, doc="all vectors masked")
        ENABLE = Bits(15)

    class TABLE(Reg, at=4, access=RO):
        """Where the vectors are."""

        BAR = Bits(2, 0)
        OFFSET8 = Bits(31, 3, doc="in units of 8 octets")

    class PENDING(Reg, at=8, access=RO):
        """Where the pending bits are."""

        BAR = Bits(2, 0)
        OFFSET8 = Bits(31, 3, doc="in units of 8 octets")


class PortType(IntEnum):
    """What a PCIe function is in the tree (7.5.3.2)."""

    ENDPOINT = 0
    LEGACY_ENDPOINT = 1
    ROOT_PORT = 4
    UPSTREAM = 5
    DOWNSTREAM = 6
    TO_PCI = 7
    FROM_PCI = 8
    INTEGRATED_ENDPOINT = 9
    EVENT_COLLECTOR = 10


class Express:
    """PCI Express (7.5.3)."""

    class CAPABILITIES(Reg, at=2, width=16, access=RO, spec="7.5.3.2"):
        """What it is."""

        VERSION = Bits(3, 0)
        TYPE = Bits(7, 4, PortType)
        SLOT = Bits(8)
        MESSAGE = Bits(13, 9)

    class DEVICE_CAPABILITIES(Reg, at=4, access=RO, spec="7.5.3.3"):
        """What it can."""

        PAYLOAD = Bits(2, 0, doc="largest payload, 128 << n octets")
        EXTENDED_TAG = Bits(5)
        ROLE_ERRORS = Bits(15)
        FLR = Bits(28, doc="function level reset")

    class DEVICE_CONTROL(Reg, at=8, width=16, spec="7.5.3.4"):
        """What it may."""

        CORRECTABLE = Bits(0)
        NON_FATAL = Bits(1)
        FATAL = Bits(2)
        UNSUPPORTED = Bits(3)
        RELAXED = Bits(4)
        PAYLOAD = Bits(7, 5)
        EXTENDED_TAG = Bits(8)
        AUX_POWER = Bits(10)
        NO_SNOOP = Bits(11)
        READ_REQUEST = Bits(14, 12, doc="largest read request, 128 << n octets")
        FLR = Bits(15, doc="writing 1 resets the function")

    class DEVICE_STATUS(Reg, at=0x0A, width=16, access=W1C, spec="7.5.3.5"):
        """What happened."""

        CORRECTABLE = Bits(0)
        NON_FATAL = Bits(1)
        FATAL = Bits(2)
        UNSUPPORTED = Bits(3)
        AUX_POWER = Bits(4, access=RO)
        PENDING = Bits(5, doc="requests without their completion", access=RO)

    class LINK_CAPABILITIES(Reg, at=0x0C, access=RO, spec="7.5.3.6"):
        """What the link could be."""

        SPEED = Bits(3, 0)
        WIDTH = Bits(9, 4)
        ASPM = Bits(11, 10)
        PORT = Bits(31, 24)

    class LINK_CONTROL(Reg, at=0x10, width=16, spec="7.5.3.7"):
        """What the link may."""

        ASPM = Bits(1, 0)
        DISABLE = Bits(4)
        RETRAIN = Bits(5)
        COMMON_CLOCK = Bits(6)

    class LINK_STATUS(Reg, at=0x12, width=16, access=RO, spec="7.5.3.8"):
        """What the link is."""

        SPEED = Bits(3, 0)
        WIDTH = Bits(9, 4)
        TRAINING = Bits(11)
        SLOT_CLOCK = Bits(12)
        ACTIVE = Bits(13, doc="data link layer up, where the port reports it")


class _Uncorrectable(Reg, spec="7.8.4.2"):
    DATA_LINK = Bits(4)
    SURPRISE_DOWN = Bits(5)
    POISONED = Bits(12)
    FLOW_CONTROL = Bits(13)
    COMPLETION_TIMEOUT = Bits(14)
    COMPLETER_ABORT = Bits(15)
    UNEXPECTED_COMPLETION = Bits(16)
    RECEIVER_OVERFLOW = Bits(17)
    MALFORMED = Bits(18)
    ECRC = Bits(19)
    UNSUPPORTED = Bits(20)
    ACS = Bits(21)
    INTERNAL = Bits(22)


class _Correctable(Reg, spec="7.8.4.5"):
    RECEIVER = Bits(0)
    BAD_TLP = Bits(6)
    BAD_DLLP = Bits(7)
    REPLAY_ROLLOVER = Bits(8)
    REPLAY_TIMEOUT = Bits(12)
    ADVISORY = Bits(13)
    INTERNAL = Bits(14)
    LOG_OVERFLOW = Bits(15)


class AerRegisters:
    """Advanced error reporting (7.8.4)."""

    class UNCORRECTABLE(_Uncorrectable, at=0x04, access=W1C):
        """What went wrong for good."""

    class UNCORRECTABLE_MASK(_Uncorrectable, at=0x08):
        """What of it is not reported."""

    class UNCORRECTABLE_SEVERITY(_Uncorrectable, at=0x0C):
        """What of it is fatal."""

    class CORRECTABLE(_Correctable, at=0x10, access=W1C):
        """What was put right."""

    class CORRECTABLE_MASK(_Correctable, at=0x14):
        """What of it is not reported."""

    class HEADER_LOG(Reg, at=0x1C, access=RO, count=4):
        """The packet that the first uncorrectable error was about."""


# What the structures say

@dataclass(frozen=True, slots=True)
class PowerManagement:
    state: PowerState
    version: int
    d1: bool
    d2: bool
    keeps_registers: bool

    def __str__(self) -> str:
        return f"{self.state.name}, version {self.version}" + (", keeps registers in D3hot" if self.keeps_registers else "")


@dataclass(frozen=True, slots=True)
class Msi:
    vectors: int
    enabled: int
    """How many vectors are on; 0 when it is off."""
    bits64: bool
    maskable: bool

    def __str__(self) -> str:
        return f"{self.vectors} vectors, {self.enabled} on" + (", 64-bit" if self.bits64 else "") \
            + (", maskable" if self.maskable else "")


@dataclass(frozen=True, slots=True)
class MsiX:
    vectors: int
    enabled: bool
    masked: bool
    table_bar: int
    table_offset: int
    pending_bar: int
    pending_offset: int

    def __str__(self) -> str:
        state = "masked" if self.enabled and self.masked else "on" if self.enabled else "off"
        return f"{self.vectors} vectors, {state}, table in BAR {self.table_bar} at {self.table_offset:#x}"


@dataclass(frozen=True, slots=True)
class Pcie:
    version: int
    type: PortType | int
    slot: bool
    flr: bool
    max_payload: int
    payload: int
    read_request: int
    errors: Express.DEVICE_STATUS
    speed: int
    """PCIe generation the link runs at, 1 to 6; 0 where there is no link."""
    width: int
    max_speed: int
    max_width: int

    def __str__(self) -> str:
        kind = self.type.name.lower().replace("_", " ") if isinstance(self.type, PortType) else f"type {self.type}"
        link = f", gen {self.speed} x{self.width} of gen {self.max_speed} x{self.max_width}" if self.max_width else ""
        return f"{kind}{link}, payload {self.payload} of {self.max_payload}" + (", FLR" if self.flr else "")


@dataclass(frozen=True, slots=True)
class Aer:
    uncorrectable: AerRegisters.UNCORRECTABLE
    correctable: AerRegisters.CORRECTABLE
    header_log: tuple[int, ...]

    def __str__(self) -> str:
        return f"uncorrectable {self.uncorrectable}, correctable {self.correctable}"


@dataclass(frozen=True, slots=True)
class Vpd:
    """There is vital product data; reading it takes writes, so it is not read here."""

    def __str__(self) -> str:
        return "present"


@dataclass(frozen=True, slots=True)
class Vendor:
    octets: int
    id: int | None = None
    """In the extended list only."""
    revision: int | None = None

    def __str__(self) -> str:
        return f"{self.octets} octets" if self.id is None else f"{self.id:#06x} revision {self.revision}, {self.octets} octets"


@dataclass(frozen=True, slots=True)
class AdvancedFeatures:
    """FLR for devices without PCI Express (PCI ECN "Advanced Capabilities")."""

    flr: bool
    transactions_pending: bool

    def __str__(self) -> str:
        return "FLR" if self.flr else "no FLR"


@dataclass(frozen=True, slots=True)
class SerialNumber:
    eui64: int

    def __str__(self) -> str:
        return self.eui64.to_bytes(8, "big").hex("-")


@dataclass(frozen=True, slots=True)
class SrIov:
    total: int
    enabled: int

    def __str__(self) -> str:
        return f"{self.enabled} of {self.total} virtual functions"


Detail = PowerManagement | Msi | MsiX | Pcie | Aer | Vpd | Vendor | AdvancedFeatures | SerialNumber | SrIov


@dataclass(frozen=True, slots=True)
class Capability:
    """One structure of a list. `detail` is None for what we do not decode, and when `problem` says what is wrong."""

    id: int
    offset: int
    extended: bool
    version: int
    detail: Detail | None = None
    problem: str = ""

    @property
    def name(self) -> str:
        """In words; the number for what we do not know."""
        return (_EXTENDED if self.extended else _STANDARD).get(self.id, f"unknown {self.id:#04x}")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Both lists in their order, and what was wrong with the lists themselves."""

    entries: tuple[Capability, ...]
    problems: tuple[str, ...]

    def get(self, kind: type[Detail]) -> tuple[Capability, Detail] | None:
        """The first structure of a kind: `get(MsiX)`."""
        return next(((c, c.detail) for c in self.entries if isinstance(c.detail, kind)), None)


@dataclass(frozen=True, slots=True)
class CapabilityRow:
    """A line of `rustosctl device show`."""

    offset: int
    name: str
    version: int | None
    text: str


def read_capabilities(config: ConfigSpace, bars: Iterable[BarInfo] = ()) -> Capabilities:
    """Walk both lists: at most 48 and 960 structures. With `bars`, MSI-X tables outside of them are a problem.

    Raises DeviceGone when the function leaves meanwhile.
    """
    found: list[Capability] = []
    problems: list[str] = []
    sizes = {bar.index: bar.size for bar in bars}
    for walk in (_standard, _extended):
        try:
            for capability in walk(config, problems.append):
                found.append(_decode(config, capability, sizes))
        except DeviceRefused as error:
            problems.append(str(error))
    return Capabilities(tuple(found), tuple(problems))


def registers(config: ConfigSpace, capability: Capability, device: str = "") -> RegisterFile | None:
    """The registers of a capability we know, with their verbs: `registers(c, msix).CONTROL.modify(ENABLE=1)`."""
    known = MAPS.get((capability.extended, capability.id))
    if known is None or capability.problem:
        return None
    return RegisterFile(ConfigBar(config), known, device, base=capability.offset)


def rows(capabilities: Capabilities) -> list[CapabilityRow]:
    """As `rustosctl device show` prints them."""
    return [CapabilityRow(c.offset, c.name, c.version if c.extended else None,
                          f"broken: {c.problem}" if c.problem else str(c.detail or "")) for c in capabilities.entries]


def _standard(config: ConfigSpace, complain: Callable[[str], None]) -> Iterator[Capability]:
    if not STATUS(config.read(STATUS.at, 2)).CAPABILITIES:
        return
    cardbus = HEADER_TYPE(config.read(HEADER_TYPE.at, 1)).LAYOUT == _CARDBUS
    at = config.read(_CARDBUS_POINTER if cardbus else CAPABILITY_POINTER.at, 1) & 0xFC
    seen = set()
    while at:
        if at < _FIRST:
            return complain(f"the list leads into the header, to {at:#04x}")
        if at in seen:
            return complain(f"the list loops at {at:#04x}")
        seen.add(at)
        head = config.read(at, 2)
        if head == 0xFFFF:
            return complain(f"nothing answers at {at:#04x}")
        yield Capability(head & 0xFF, at, False, 0)
        at = head >> 8 & 0xFC


def _extended(config: ConfigSpace, complain: Callable[[str], None]) -> Iterator[Capability]:
    if config.size <= LEGACY:
        return
    at, seen = _FIRST_EXTENDED, set()
    while at:
        if at < _FIRST_EXTENDED:
            return complain(f"the extended list leads out of its space, to {at:#05x}")
        if at in seen:
            return complain(f"the extended list loops at {at:#05x}")
        head = config.read(at, 4)
        if head in (0, 0xFFFF_FFFF):
            # At the very beginning that is how an empty list looks, or a bus without extended space.
            return complain(f"nothing answers at {at:#05x}") if seen else None
        seen.add(at)
        if head & 0xFFFF:      # ID 0 is a placeholder that only carries the link (7.6.3)
            yield Capability(head & 0xFFFF, at, True, head >> 16 & 0xF)
        at = head >> 20 & 0xFFC


def _decode(config: ConfigSpace, c: Capability, sizes: dict[int, int]) -> Capability:
    """The capability with its detail, or with what keeps us from decoding it."""
    least, read = _DECODERS.get((c.extended, c.id), (0, None))
    if read is None:
        return c
    end = config.size if c.extended else LEGACY
    detail, problem = None, ""
    if c.offset + least > end:
        problem = f"it needs {least} octets and configuration space ends after {end - c.offset}"
    else:
        detail = read(config, c.offset)
        problem = _implausible(detail, end - c.offset, sizes)
    return Capability(c.id, c.offset, c.extended, c.version, None if problem else detail, problem)


def _implausible(detail: Detail, room: int, sizes: dict[int, int]) -> str:
    """What cannot be true of it; empty when it can."""
    if isinstance(detail, Vendor) and not (12 if detail.id is not None else 3) <= detail.octets <= room:
        return f"it claims {detail.octets} octets"
    if isinstance(detail, Msi) and (detail.vectors > 32 or detail.enabled > detail.vectors):
        return f"it claims {detail.vectors} vectors and {detail.enabled} enabled"
    if isinstance(detail, MsiX):
        areas = (("table", detail.table_bar, detail.table_offset, 16 * detail.vectors),
                 ("pending bits", detail.pending_bar, detail.pending_offset, (detail.vectors + 63) // 64 * 8))
        for what, bar, offset, octets in areas:
            if bar > 5:
                return f"{what} in BAR {bar}, which cannot be"
            if sizes and offset + octets > sizes.get(bar, 0):
                return f"{what} up to {offset + octets:#x} of BAR {bar}, which has {sizes.get(bar, 0):#x} octets"
    return ""


def _pm(config: ConfigSpace, at: int) -> PowerManagement:
    can, now = Pm.PMC(config.read(at + 2, 2)), Pm.PMCSR(config.read(at + 4, 2))
    return PowerManagement(now.STATE, can.VERSION, can.D1, can.D2, now.NO_SOFT_RESET)


def _msi(config: ConfigSpace, at: int) -> Msi:
    control = MsiRegisters.CONTROL(config.read(at + 2, 2))
    return Msi(1 << control.CAPABLE, 1 << control.ENABLED if control.ENABLE else 0, control.BITS64, control.MASKABLE)


def _msix(config: ConfigSpace, at: int) -> MsiX:
    control = MsiXRegisters.CONTROL(config.read(at + 2, 2))
    table, pending = MsiXRegisters.TABLE(config.read(at + 4, 4)), MsiXRegisters.PENDING(config.read(at + 8, 4))
    return MsiX(control.LAST + 1, control.ENABLE, control.MASKED, table.BAR, table.OFFSET8 * 8, pending.BAR,
                pending.OFFSET8 * 8)


def _pcie(config: ConfigSpace, at: int) -> Pcie:
    is_, can = Express.CAPABILITIES(config.read(at + 2, 2)), Express.DEVICE_CAPABILITIES(config.read(at + 4, 4))
    control, status = Express.DEVICE_CONTROL(config.read(at + 8, 2)), Express.DEVICE_STATUS(config.read(at + 0x0A, 2))
    could, link = Express.LINK_CAPABILITIES(config.read(at + 0x0C, 4)), Express.LINK_STATUS(config.read(at + 0x12, 2))
    return Pcie(is_.VERSION, is_.TYPE, is_.SLOT, can.FLR, 128 << can.PAYLOAD, 128 << control.PAYLOAD,
                128 << control.READ_REQUEST, status, link.SPEED, link.WIDTH, could.SPEED, could.WIDTH)


def _aer(config: ConfigSpace, at: int) -> Aer:
    log = tuple(config.read(at + AerRegisters.HEADER_LOG.offset(i), 4) for i in range(4))
    return Aer(AerRegisters.UNCORRECTABLE(config.read(at + 4, 4)), AerRegisters.CORRECTABLE(config.read(at + 0x10, 4)), log)


def _vendor_extended(config: ConfigSpace, at: int) -> Vendor:
    head = config.read(at + 4, 4)
    return Vendor(head >> 20, head & 0xFFFF, head >> 16 & 0xF)


def _advanced(config: ConfigSpace, at: int) -> AdvancedFeatures:
    return AdvancedFeatures(bool(config.read(at + 3, 1) & 2), bool(config.read(at + 5, 1) & 1))


# (extended, id) -> (octets it must have, decoder)
_DECODERS: Final[dict[tuple[bool, int], tuple[int, Callable[[ConfigSpace, int], Detail]]]] = {
    (False, 0x01): (8, _pm),
    (False, 0x03): (8, lambda config, at: Vpd()),
    (False, 0x05): (10, _msi),
    (False, 0x09): (3, lambda config, at: Vendor(config.read(at + 2, 1))),
    (False, 0x10): (0x14, _pcie),
    (False, 0x11): (12, _msix),
    (False, 0x13): (6, _advanced),
    (True, 0x01): (0x2C, _aer),
    (True, 0x03): (12, lambda config, at: SerialNumber(config.read(at + 8, 4) << 32 | config.read(at + 4, 4))),
    (True, 0x0B): (8, _vendor_extended),
    (True, 0x10): (0x40, lambda config, at: SrIov(config.read(at + 0x0E, 2), config.read(at + 0x10, 2))),
}

MAPS: Final[dict[tuple[bool, int], RegisterMap]] = {
    (False, 0x01): RegisterMap.of("power management", vars(Pm)),
    (False, 0x05): RegisterMap.of("MSI", vars(MsiRegisters)),
    (False, 0x10): RegisterMap.of("PCI Express", vars(Express)),
    (False, 0x11): RegisterMap.of("MSI-X", vars(MsiXRegisters)),
    (True, 0x01): RegisterMap.of("AER", vars(AerRegisters)),
}
