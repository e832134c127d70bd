"""A port's registers, its engines and its received FISes."""

import struct

from drivers.ahci import registers as r
from tests.models.ahci.commands import Command, fetch
from tests.models.ahci.link import Link
from tests.models.device import Misuse

ONES = 0xFFFF_FFFF
RECEIVED_D2H, RECEIVED_SDB = 0x40, 0x58
GOOD, BAD = 0x50, 0x41
"""Status: DRDY and DSC; DRDY and ERR."""


class Port:
    """A port's registers and what its device is doing."""

    def __init__(self, hba, index, drive):
        self.hba, self.index, self.drive = hba, index, drive
        self.values = {}
        self.link = Link(self)
        self.cmd = r.PxCMD()
        self.cause = self.mask = self.sact = self.ci = 0
        self.halted = False             # ERR:Fatal, until ST is cleared
        self.stuck_engine = 0           # PxCMD.CR stays set for so many looks
        self.start_device()

    def start_device(self):
        self.busy_looks = self.drive.spins_up_after if self.drive else 0
        self.tfd = 0x7F
        self.sig = ONES
        self.signed = False
        if self.drive:
            self.drive.start()

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
        return self.cause | self.link.causes()

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
        return self.link.status()

    def read_PxSCTL(self):
        return self.link.control

    def read_PxSERR(self):
        return self.link.errors

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
        self.link.clear_errors(value)
        self.hba.line()

    def write_PxSCTL(self, value):
        self.link.write_control(value)

    def write_PxCMD(self, value):
        new = r.PxCMD(value & ~(r.PxCMD.CR.mask | r.PxCMD.FR.mask | r.PxCMD.ICC.mask))
        if new.ST and not self.cmd.ST:
            if not self.cmd.FRE:
                raise Misuse("ST without FRE (AHCI 10.3.1)")
            if self.tfd & 0x88 or self.busy_looks or not self.link.up:
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

    def first_fis(self):
        """The device's first register FIS, once somebody receives it."""
        if self.drive and self.cmd.FRE and not self.signed and self.link.up:
            self.signed, self.sig, self.tfd = True, self.drive.signature, GOOD
            self.receive(RECEIVED_D2H, bytes([0x34, 0x40, GOOD, 1]))

    def write_PxSACT(self, value):
        if not self.cmd.ST:
            raise Misuse("PxSACT without ST (AHCI 3.3.13)")
        self.sact |= value

    def write_PxCI(self, value):
        if not self.cmd.ST:
            raise Misuse("PxCI without ST (AHCI 3.3.14)")
        if value & self.ci:
            raise Misuse(f"slots {value & self.ci:#x} are issued twice")
        queued = [self.fetch(slot).queued for slot in range(32) if (self.ci | self.sact | value) >> slot & 1]
        if any(queued) and not all(queued):
            raise Misuse("queued and other commands together (SATA 13.6)")
        for slot in range(32):
            if value >> slot & 1 and self.fetch(slot).queued and not self.sact >> slot & 1:
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
        return fetch(self.hba.bus, self.address("PxCLB"), slot)

    def run(self, most: int = 64) -> None:
        """Carry out issued commands, in slot order."""
        for slot in range(32):
            if most and not self.halted and self.ci >> slot & 1:
                most -= 1
                self.execute(self.fetch(slot))

    def execute(self, c: Command) -> None:
        bit = 1 << c.slot
        outcome = self.drive.execute(c, self.hba.bus)
        if outcome == "hang":
            return
        if outcome in ("link", "bus"):
            self.halted = True
            self.raise_cause(r.PxIS.IFS.mask if outcome == "link" else r.PxIS.HBFS.mask)
            return
        if outcome is not None:
            self.fail(c, outcome)
            return
        self.tfd = GOOD
        self.ci &= ~bit
        if c.queued:
            self.sact &= ~bit
            self.receive(RECEIVED_SDB, bytes([0xA1, 0x40, GOOD, 0]) + struct.pack("<I", bit))
            self.raise_cause(r.PxIS.SDBS.mask)
        else:
            self.receive(RECEIVED_D2H, bytes([0x34, 0x40, GOOD, 0]))
            self.raise_cause(r.PxIS.DHRS.mask)

    def fail(self, c: Command, error: int) -> None:
        self.tfd = BAD | error << 8
        self.halted = True
        if c.queued:
            self.ci &= ~(1 << c.slot)
            self.receive(RECEIVED_SDB, bytes([0xA1, 0x40, BAD, error]) + bytes(4))
        else:
            self.receive(RECEIVED_D2H, bytes([0x34, 0x40, BAD, error]))
        self.raise_cause(r.PxIS.TFES.mask)

    def raise_cause(self, bits: int) -> None:
        self.cause |= bits
        self.hba.line()
