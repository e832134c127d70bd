"""An AHCI host bus adapter with SATA disks, as strict as its specification: what a driver must not do raises Misuse.

Commands are carried out when `run` is called, or at once while `lazy` is False; a `Drive` decides what becomes of each.
"""

import struct
from dataclasses import dataclass, field

from drivers.ahci import registers as r
from drivers.ahci.registers import ahci_map
from drivers.registers import W1C, W1S, Access
from tests.models.device import Misuse

ONES = 0xFFFF_FFFF
SECTOR = 512
READ_FPDMA, WRITE_FPDMA, READ_DMA, WRITE_DMA, WRITE_FUA, FLUSH, IDENTIFY, READ_LOG = (
    0x60, 0x61, 0x25, 0x35, 0x3D, 0xEA, 0xEC, 0x2F)
QUEUED = (READ_FPDMA, WRITE_FPDMA)


def identification(sectors=4096, model="STRICT DISK", serial="S-1", firmware="1.0", depth=32, ncq=True, log=False, fua=False,
                   words=None) -> bytes:
    """512 octets of IDENTIFY DEVICE data; `words` are put over it last."""
    word = [0] * 256
    def text(at, octets, said):
        swapped = said.ljust(octets).encode()
        for i in range(octets // 2):
            word[at + i] = swapped[2 * i] << 8 | swapped[2 * i + 1]
    text(10, 20, serial)
    text(23, 8, firmware)
    text(27, 40, model)
    word[49] = 1 << 9 | 1 << 8
    word[75], word[76] = depth - 1, (1 << 8 if ncq else 0) | 1 << 1
    word[82], word[83], word[84] = 1 << 5 | 1, 1 << 14 | 1 << 13 | 1 << 10, 1 << 14 | (1 << 5 if log else 0) | fua << 6
    word[85], word[87] = 1 << 5 | 1, 1 << 14
    for i in range(4):
        word[100 + i] = sectors >> 16 * i & 0xFFFF
    word[106] = 1 << 14
    for at, value in (words or {}).items():
        word[at] = value
    return struct.pack("<256H", *word)


@dataclass
class Command:
    """What a slot holds."""

    slot: int
    code: int
    lba: int
    sectors: int
    fua: bool
    write: bool
    pieces: list[tuple[int, int]]


@dataclass
class Drive:
    """A disk: its contents, and what shall go wrong."""

    sectors: int = 4096
    identity: bytes = b""
    signature: int = 0x101
    log: bool = False
    fail: dict = field(default_factory=dict)
    """By LBA: the error register's bits, or "hang", "link", "bus", or a function of the Command that says which."""
    broken: dict = field(default_factory=dict)
    """The same by a command's code."""
    media: dict = field(default_factory=dict)
    durable: dict = field(default_factory=dict)
    spins_up_after: int = 0
    """So many looks at PxTFD are answered with BSY after a reset."""
    executed: list = field(default_factory=list)

    def __post_init__(self):
        self.identity = self.identity or identification(self.sectors, log=self.log)

    def sector(self, lba: int) -> bytes:
        return self.media.get(lba, bytes(SECTOR))


class Port:
    """A port's registers and what its device is doing."""

    def __init__(self, hba, index, drive):
        self.hba, self.index, self.drive = hba, index, drive
        self.power_on()

    def power_on(self):
        self.values = {}
        self.cmd = r.PxCMD()
        self.cause = self.mask = self.serr = self.sact = self.ci = 0
        self.error_log = None
        self.halted = False             # ERR:Fatal, until ST is cleared
        self.was_queued_error = False   # the device takes nothing but READ LOG EXT and resets
        self.stuck_engine = 0           # PxCMD.CR stays set for so many looks
        self.start_device()

    def start_device(self):
        self.busy_looks = self.drive.spins_up_after if self.drive else 0
        self.tfd = 0x7F
        self.sig = ONES
        self.signed = False
        self.was_queued_error = False

    # Registers.

    def read(self, name):
        special = getattr(self, f"read_{name}", None)
        return special() if special else self.values.get(name, 0)

    def read_PxCMD(self):
        running = self.cmd.ST or self.stuck_engine > 0
        if not self.cmd.ST and self.stuck_engine:
            self.stuck_engine -= 1
        return int(r.PxCMD(self.cmd, CR=bool(running), FR=self.cmd.FRE))

    def read_PxIS(self):
        return self.cause | (1 << 22 if self.serr >> 16 & 1 else 0) | (1 << 6 if self.serr >> 26 & 1 else 0)

    def read_PxIE(self):
        return self.mask

    def read_PxTFD(self):
        self.first_fis()
        if self.busy_looks > 0:
            self.busy_looks -= 1
            return 0x80
        return self.tfd

    def read_PxSIG(self):
        return self.sig

    def read_PxSSTS(self):
        if self.drive is None or self.values.get("PxSCTL", 0) & 0xF:
            return 0
        return 0x123

    def read_PxSERR(self):
        return self.serr

    def read_PxSACT(self):
        return self.sact

    def read_PxCI(self):
        return self.ci

    def write(self, name, value):
        special = getattr(self, f"write_{name}", None)
        if special:
            special(value)
        else:
            if name in ("PxCLB", "PxCLBU", "PxFB", "PxFBU") and (self.cmd.ST if "CL" in name else self.cmd.FRE):
                raise Misuse(f"{name} is written while its engine runs (AHCI 3.3.1)")
            self.values[name] = value

    def write_PxIS(self, value):
        self.cause &= ~value
        self.hba.line()

    def write_PxIE(self, value):
        self.mask = value
        self.hba.line()

    def write_PxSERR(self, value):
        self.serr &= ~value
        self.hba.line()

    def write_PxCMD(self, value):
        new = r.PxCMD(value & ~(r.PxCMD.CR.mask | r.PxCMD.FR.mask | r.PxCMD.ICC.mask))
        if new.ST and not self.cmd.ST:
            if not self.cmd.FRE:
                raise Misuse("ST without FRE (AHCI 10.3.1)")
            if self.tfd & 0x88 or self.busy_looks or self.read_PxSSTS() & 0xF != 3:
                raise Misuse("ST while the device is busy or absent (AHCI 10.3.1)")
            if self.values.get("PxCLB", 0) & 0x3FF:
                raise Misuse("a command list that is not aligned")
        if self.cmd.FRE and not new.FRE and self.cmd.ST:
            raise Misuse("FRE is cleared while ST stands (AHCI 10.3.2)")
        if self.cmd.ST and not new.ST:
            self.ci = self.sact = 0         # AHCI 3.3.14
            self.halted = False
        self.cmd = new
        self.first_fis()

    def write_PxSCTL(self, value):
        before = self.values.get("PxSCTL", 0) & 0xF
        if value & 0xF and self.cmd.ST:
            raise Misuse("COMRESET while ST stands (AHCI 10.4.2)")
        if value & 0xF == 1 and before == 0:
            self.reset_at = self.hba.clock()
            self.ci = self.sact = 0
        if before == 1 and value & 0xF == 0:
            if self.hba.clock() - self.reset_at < 1_000_000:
                raise Misuse("COMRESET of less than a millisecond (AHCI 10.4.2)")
            self.hba.resets += 1
            self.start_device()
            self.serr |= 1 << 26 | 1 << 16
        self.values["PxSCTL"] = value

    def first_fis(self):
        """The device's first register FIS, once somebody receives it."""
        if self.drive and self.cmd.FRE and not self.signed and self.read_PxSSTS():
            self.signed, self.sig, self.tfd = True, self.drive.signature, 0x50
            self.receive(0x40, bytes([0x34, 0x40, 0x50, 1]))

    def write_PxSACT(self, value):
        if not self.cmd.ST:
            raise Misuse("PxSACT without ST (AHCI 3.3.13)")
        self.sact |= value

    def write_PxCI(self, value):
        if not self.cmd.ST:
            raise Misuse("PxCI without ST (AHCI 3.3.14)")
        if value & self.ci:
            raise Misuse(f"slots {value & self.ci:#x} are issued twice")
        queued = [self.fetch(slot).code in QUEUED for slot in range(32) if (self.ci | self.sact | value) >> slot & 1]
        if any(queued) and not all(queued):
            raise Misuse("queued and other commands together (SATA 13.6)")
        for slot in range(32):
            if value >> slot & 1 and self.fetch(slot).code in QUEUED and not self.sact >> slot & 1:
                raise Misuse(f"slot {slot} is issued without its bit in PxSACT first (AHCI 5.6.4)")
        self.ci |= value
        if not self.hba.lazy:
            self.run()

    # Commands.

    def address(self, low):
        return self.values.get(low, 0) | self.values.get(low + "U", 0) << 32

    def receive(self, at, fis):
        if self.cmd.FRE:
            self.hba.bus.write(self.address("PxFB") + at, fis)

    def fetch(self, slot) -> Command:
        bus = self.hba.bus
        flags, prds, _, table = struct.unpack("<HHIQ", bus.read(self.address("PxCLB") + 32 * slot, 16))
        if flags & 0x1F != 5 or flags & ~0x5F or table & 0x7F:
            raise Misuse(f"command header {flags:#x}, table {table:#x}")
        fis = bus.read(table, 20)
        if fis[0] != 0x27 or fis[1] != 0x80 or not fis[7] & 0x40 or any(fis[14:]):
            raise Misuse(f"command FIS {fis.hex()}")
        lba = int.from_bytes(fis[4:7] + fis[8:11], "little")
        feature, count = fis[3] | fis[11] << 8, fis[12] | fis[13] << 8
        queued = fis[2] in QUEUED
        if queued and count >> 3 != slot:
            raise Misuse(f"tag {count >> 3} in slot {slot}")
        pieces = []
        for i in range(prds):
            address, _, octets = struct.unpack("<QII", bus.read(table + 128 + 16 * i, 16))
            if address & 1 or not octets & 1 or octets >> 22:
                raise Misuse(f"PRD {address:#x}, {octets:#x}")
            pieces.append((address, octets + 1))
        sectors = (feature if queued else count) or 65536
        write = fis[2] in (WRITE_FPDMA, WRITE_DMA, WRITE_FUA)
        if write != bool(flags & 1 << 6):
            raise Misuse("the header's W bit does not fit the command")
        if fis[2] not in (FLUSH, IDENTIFY, READ_LOG) and sum(octets for _, octets in pieces) != sectors * SECTOR:
            raise Misuse("PRDs do not fit the sectors")
        return Command(slot, fis[2], lba, sectors, bool(queued and fis[7] & 0x80) or fis[2] == WRITE_FUA, write, pieces)

    def run(self, most: int = 64) -> None:
        """Carry out issued commands, in slot order."""
        for slot in range(32):
            if most and not self.halted and self.ci >> slot & 1:
                most -= 1
                self.execute(self.fetch(slot))

    def execute(self, c: Command) -> None:
        drive, bit = self.drive, 1 << c.slot
        if self.was_queued_error and c.code != READ_LOG:
            raise Misuse("a command after a queued error, before the log was read (SATA 13.6.4)")
        drive.executed.append((c.code, c.lba, c.sectors))
        fate = drive.broken.get(c.code)
        if fate is None and c.code not in (IDENTIFY, READ_LOG, FLUSH):
            fate = next((drive.fail[lba] for lba in range(c.lba, c.lba + c.sectors) if lba in drive.fail), None)
        if callable(fate):
            fate = fate(c)
        if fate == "hang":
            return
        if fate in ("link", "bus"):
            self.halted = True
            self.raise_cause(1 << 27 if fate == "link" else 1 << 29)
            return
        if fate is not None:
            self.fail(c, fate)
            return
        self.transfer(c)
        self.tfd = 0x50
        self.ci &= ~bit
        if c.code in QUEUED:
            self.sact &= ~bit
            self.receive(0x58, bytes([0xA1, 0x40, 0x50, 0]) + struct.pack("<I", bit))
            self.raise_cause(1 << 3)
        else:
            self.receive(0x40, bytes([0x34, 0x40, 0x50, 0]))
            self.raise_cause(1)

    def fail(self, c: Command, error: int) -> None:
        self.tfd = 0x41 | error << 8
        self.halted = True
        if c.code in QUEUED:
            self.ci &= ~(1 << c.slot)
            self.was_queued_error = True
            page = bytearray(512)
            page[0], page[2], page[3] = c.slot, 0x41, error
            page[511] = -sum(page) & 0xFF
            self.error_log = bytes(page)
            self.receive(0x58, bytes([0xA1, 0x40, 0x41, error]) + bytes(4))
        else:
            self.receive(0x40, bytes([0x34, 0x40, 0x41, error]))
        self.raise_cause(1 << 30)

    def transfer(self, c: Command) -> None:
        drive, bus = self.drive, self.hba.bus
        if c.code == FLUSH:
            drive.durable.update(drive.media)
        elif c.code == IDENTIFY:
            bus.write(c.pieces[0][0], drive.identity)
        elif c.code == READ_LOG:
            if not drive.log or c.lba != 0x10:
                raise Misuse("READ LOG EXT of a drive without that log")
            self.was_queued_error = False
            bus.write(c.pieces[0][0], self.error_log)
        elif c.write:
            data = b"".join(bus.read(*piece) for piece in c.pieces)
            for i in range(c.sectors):
                drive.media[c.lba + i] = data[SECTOR * i:SECTOR * (i + 1)]
                if c.fua:
                    drive.durable[c.lba + i] = drive.media[c.lba + i]
        else:
            data = b"".join(drive.sector(c.lba + i) for i in range(c.sectors))
            for address, octets in c.pieces:
                bus.write(address, data[:octets])
                data = data[octets:]

    def raise_cause(self, bits: int) -> None:
        self.cause |= bits
        self.hba.line()


class Model:
    """The adapter. BAR 5 is the model itself."""

    size, address = 0x1100, 0

    def __init__(self, *drives, cap=None, ports=None, handoff=False):
        self.drives = drives
        self.implemented = ports if ports is not None else (1 << max(len(drives), 1)) - 1
        self.cap = int(r.CAP(NP=3, NCS=31, SAM=1, SNCQ=1, S64A=1) if cap is None else cap)
        self.map = ahci_map(32)
        self.cap2, self.bohc = int(handoff), int(handoff)
        self.gone = self.zeros = self.lazy = False
        self.resets = 0
        self.writes = []
        self.device = self.bus = None
        self.clock = lambda: 0
        self.power_on()

    def attach(self, device):
        self.device = device

    def power_on(self):
        self.ghc = 1 << 31 if r.CAP(self.cap).SAM else 0
        self.status = 0
        self.ports = [Port(self, i, self.drives[i] if i < len(self.drives) else None) for i in range(32)]

    def run(self, most: int = 64) -> None:
        """Carry out what is issued."""
        for port in self.ports:
            port.run(most)

    def line(self) -> None:
        for port in self.ports:
            if port.read_PxIS() & port.mask:
                self.status |= 1 << port.index
        interrupt = self.device and self.device.interrupt
        if interrupt:
            interrupt.line(bool(self.status and self.ghc & 2))

    def read32(self, at):
        if self.gone or self.zeros:
            return ONES if self.gone else 0
        found = self.map.find(at)
        if found is None:
            raise Misuse(f"read of {at:#x}, where no register is")
        register, index = found
        name = register.__name__
        if name.startswith("Px"):
            return self.ports[index].read(name) & ONES
        return {"CAP": self.cap, "GHC": self.ghc, "IS": self.status, "PI": self.implemented, "VS": 0x10301,
                "CAP2": self.cap2, "BOHC": self.bohc}.get(name, 0)

    def write32(self, at, value):
        if not 0 <= value <= ONES:
            raise Misuse(f"{value:#x} does not fit 32 bits")
        if self.gone or self.zeros:
            return
        found = self.map.find(at, writing=True)
        if found is None or not found[0].access.writable:
            raise Misuse(f"write to {self.map.name_at(at, True)}, which cannot be written")
        register, index = found
        name = register.__name__
        if (value & ~register.known & ONES and register.access not in (W1C, W1S)) or register.access is Access.RO:
            raise Misuse(f"{name}: reserved bits in {value:#x}")
        self.writes.append((register.label(index) if name.startswith("Px") else name, value))
        if not self.ghc >> 31 and name != "GHC":
            raise Misuse(f"{name} before GHC.AE (AHCI 3.1.2)")
        if name.startswith("Px"):
            if not self.implemented >> index & 1:
                raise Misuse(f"port {index} is not implemented")
            self.ports[index].write(name, value)
        elif name == "GHC":
            if value & 1:
                self.power_on()
            else:
                self.ghc = value
            self.line()
        elif name == "IS":
            self.status &= ~value
            self.line()
        elif name == "BOHC":
            self.bohc = value & ~1 if value & 2 else value
