"""A port's registers, its engines and its received FISes."""

import struct

from drivers.ahci import registers as r
from tests.models.ahci.commands import GOOD, Answer, Command, Trouble, fetch
from tests.models.ahci.link import PARTIAL, SLUMBER, Link
from tests.models.device import Misuse

ONES = 0xFFFF_FFFF
RECEIVED_DMA_SETUP, RECEIVED_PIO_SETUP, RECEIVED_D2H, RECEIVED_SDB = 0x00, 0x20, 0x40, 0x58
NO_DEVICE = 0x7F
BUSY, DATA_REQUEST = 0x80, 0x08
_SOFT_RESET = 0x04
_READ_ONLY = (r.PxCMD.CR.mask | r.PxCMD.FR.mask | r.PxCMD.CCS.mask | r.PxCMD.MPSS.mask | r.PxCMD.CPS.mask | r.PxCMD.HPCP.mask
              | r.PxCMD.MPSP.mask | r.PxCMD.CPD.mask | r.PxCMD.ESP.mask | r.PxCMD.FBSCP.mask)


class Port:
    """A port's registers and what its device is doing."""

    def __init__(self, hba, index, device):
        self.hba, self.index = hba, index
        self.values = {}
        self.cmd = r.PxCMD()
        self.cause = self.mask = self.sact = self.ci = self.notified = 0
        self.halted = False             # ERR:Fatal, until ST is cleared
        self.stuck_engine = 0           # PxCMD.CR stays set for so many looks
        self.sact_reads = 0
        self.slow_sact = 1              # only at so many reads PxSACT is seen to be clear after its FIS
        self.ending = 0                 # bits of PxSACT that a FIS has told of already
        self.loses_fises = False
        self.link = Link(self, device)
        self.start_device()

    @property
    def drive(self):
        return self.link.device

    def start_device(self):
        self.busy_looks = getattr(self.drive, "spins_up_after", 0)
        self.tfd = NO_DEVICE
        self.sig = ONES
        self.signed = self.resetting = False
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
        return int(r.PxCMD(self.cmd, CR=bool(running), FR=self.cmd.FRE, HPCP=self.hba.hot_plug))

    def read_PxIS(self):
        return self.cause | self.link.causes()

    def read_PxIE(self):
        return self.mask

    def read_PxTFD(self):
        self.first_fis()
        if self.busy_looks > 0:
            self.busy_looks -= 1
            return BUSY
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
        self.sact_reads += 1
        if self.sact_reads % self.slow_sact == 0:
            self.ending = 0
        return self.sact | self.ending

    def read_PxCI(self):
        return self.ci

    def read_PxSNTF(self):
        return self.notified

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

    def write_PxSNTF(self, value):
        self.notified &= ~value

    def write_PxSCTL(self, value):
        self.link.write_control(value)
        self.hba.line()

    def write_PxCMD(self, value):
        new = r.PxCMD(value & ~(_READ_ONLY | r.PxCMD.ICC.mask | r.PxCMD.CLO.mask))
        if value & r.PxCMD.CLO.mask:
            if self.cmd.ST or not r.CAP(self.hba.cap).SCLO:
                raise Misuse("CLO while ST stands, or without CAP.SCLO (AHCI 3.3.7)")
            self.tfd &= ~(BUSY | DATA_REQUEST)
        if new.ST and not self.cmd.ST:
            if not new.FRE:
                raise Misuse("ST without FRE (AHCI 10.3.1)")
            if (self.tfd & (BUSY | DATA_REQUEST) and self.signed) or self.busy_looks or not self.link.up:
                self.hba.forbid("ST while the device is busy or absent (AHCI 10.3.1)")
            if self.values.get("PxCLB", 0) & 0x3FF:
                raise Misuse("a command list that is not aligned")
        if self.cmd.FRE and not new.FRE and self.cmd.ST:
            self.hba.forbid("FRE is cleared while ST stands (AHCI 10.3.2)")
        if self.cmd.ST and not new.ST:
            self.ci = self.sact = self.ending = 0       # AHCI 3.3.14
            self.halted = False
        self.cmd = new
        self._power(r.PxCMD(value).ICC)
        self.first_fis()

    def _power(self, wanted) -> None:
        if wanted == r.Transition.ACTIVE:
            self.link.wake()
        elif wanted in (r.Transition.PARTIAL, r.Transition.SLUMBER):
            self.link.sleep(int(wanted))
        self._doze()

    def _doze(self) -> None:
        """Aggressive link power management: once nothing is outstanding. AHCI 8.3.1.3."""
        if self.cmd.ALPE and not self.ci and not self.sact and self.signed:
            self.link.sleep(SLUMBER if self.cmd.ASP else PARTIAL)

    def first_fis(self):
        """The device's first register FIS, once somebody receives it."""
        if self.drive and self.cmd.FRE and not self.signed and self.link.up:
            self.signed = True
            self.sign(self.drive.signature)

    def sign(self, signature: int, target: int = 0) -> None:
        """A device tells what it is. SATA 3.x 11.4."""
        self.sig, self.tfd = signature, GOOD | 1 << 8
        self.receive(RECEIVED_D2H, bytes([0x34, target, GOOD, 1]) + (signature >> 8).to_bytes(3, "little")
                     + bytes(5) + bytes([signature & 0xFF]) + bytes(7))

    def write_PxSACT(self, value):
        if not self.cmd.ST:
            raise Misuse("PxSACT without ST (AHCI 3.3.13)")
        if value & (self.sact | self.ending):
            raise Misuse(f"slots {value & (self.sact | self.ending):#x} are not free yet, says PxSACT (AHCI 5.6.4)")
        self.sact |= value

    def write_PxCI(self, value):
        if not self.cmd.ST:
            raise Misuse("PxCI without ST (AHCI 3.3.14)")
        if value & self.ci:
            raise Misuse(f"slots {value & self.ci:#x} are issued twice")
        outstanding = [self.fetch(slot) for slot in range(32) if (self.ci | self.sact | self.ending | value) >> slot & 1]
        queued = [c.queued for c in outstanding]
        if any(queued) and not all(queued):
            raise Misuse("queued and other commands together (SATA 13.6)")
        for c in outstanding:
            if value >> c.slot & 1 and c.queued and not self.sact >> c.slot & 1:
                raise Misuse(f"slot {c.slot} is issued without its bit in PxSACT first (AHCI 5.6.4)")
        self.ci |= value
        self.link.wake()
        if not self.hba.lazy:
            self.run()

    # Commands.

    def address(self, low):
        return self.values.get(low, 0) | self.values.get(low + "U", 0) << 32

    def receive(self, at, fis):
        if self.cmd.FRE and not self.loses_fises:
            self.hba.bus.write(self.address("PxFB") + at, fis)

    def fetch(self, slot) -> Command:
        return fetch(self.hba.bus, self.address("PxCLB"), slot)

    def run(self, most: int = 64) -> None:
        """Carry out issued commands, in slot order."""
        for slot in range(32):
            if most and not self.halted and self.ci >> slot & 1 and self.link.up:
                most -= 1
                self.execute(self.fetch(slot))
        self._doze()

    def execute(self, c: Command) -> None:
        if c.control is not None:
            self._control(c)
            return
        try:
            answer = self.drive.execute(c, self.hba.bus)
        except OSError:                 # what the host has not shown
            answer = Answer(trouble=Trouble.BUS)
        if answer.trouble is Trouble.HANG:
            if not c.queued:
                self.tfd = BUSY
            else:
                self.ci &= ~(1 << c.slot)
        elif answer.trouble is not None:
            self.halted = True
            if answer.trouble is Trouble.LINK:
                self.link.garble()
            self.raise_cause(r.PxIS.IFS.mask if answer.trouble is Trouble.LINK else r.PxIS.HBFS.mask)
        elif c.queued:
            self._end_queued(c, answer)
        else:
            self._end(c, answer)

    def _control(self, c: Command) -> None:
        """A FIS that only sets the control register: soft reset while bit 2 stands. SATA 3.x 11.5."""
        self.ci &= ~(1 << c.slot)
        if c.control & _SOFT_RESET:
            self.resetting = True
            self.tfd = GOOD             # the header's C bit: BSY is cleared once the FIS is through
        elif self.resetting:
            self.resetting = False
            if (signature := self.drive.soft_reset(c.target)) is not None:
                self.sign(signature, c.target)

    def _registers(self, kind: int, flags: int, answer: Answer) -> bytes:
        lba = answer.lba.to_bytes(6, "little")
        return (bytes([kind, flags, answer.status, answer.error]) + lba[:3] + bytes([answer.device]) + lba[3:]
                + bytes([0, answer.count & 0xFF, answer.count >> 8]) + bytes(6))

    def _end(self, c: Command, answer: Answer) -> None:
        if not answer.failed:
            self._count(c, answer.moved)
        ends_by_pio = c.by_pio and not c.write and answer.moved and not answer.failed
        if (c.by_pio and answer.moved) or c.packet is not None:
            self._pio_setup(c, answer, last=bool(ends_by_pio))
        self.tfd = answer.status | answer.error << 8
        if ends_by_pio:
            self.ci &= ~(1 << c.slot)
            self.raise_cause(r.PxIS.PSS.mask)
            return
        self.receive(RECEIVED_D2H, self._registers(0x34, 0x40 | c.target, answer))
        if answer.failed:
            self.halted = True
            self.raise_cause(r.PxIS.TFES.mask | r.PxIS.DHRS.mask)
        else:
            self.ci &= ~(1 << c.slot)
            self.raise_cause(r.PxIS.DHRS.mask)

    def _pio_setup(self, c: Command, answer: Answer, *, last: bool) -> None:
        """Announces data, or a packet. With the last data in, its E_STATUS ends the command. SATA 3.x 10.5.11."""
        flags = c.target | (0x40 if last else 0) | (0 if c.write or c.packet is not None else 0x20)
        fis = bytearray(self._registers(0x5F, flags, Answer(status=GOOD | DATA_REQUEST, lba=answer.lba, count=answer.count)))
        fis[15] = answer.status if last else BUSY | GOOD
        fis[16:18] = struct.pack("<H", min(answer.moved or 12, 0xFFFF))
        self.receive(RECEIVED_PIO_SETUP, bytes(fis))

    def _count(self, c: Command, moved: int) -> None:
        """The header's count of octets, which means nothing for queued commands. AHCI 5.4.1."""
        self.hba.bus.write(self.address("PxCLB") + 32 * c.slot + 4, struct.pack("<I", moved))

    def _end_queued(self, c: Command, answer: Answer) -> None:
        self.ci &= ~(1 << c.slot)
        if answer.failed:
            self.halted = True
            self.tfd = answer.status | answer.error << 8
            self.receive(RECEIVED_SDB, bytes([0xA1, 0x40 | c.target, answer.status, answer.error]) + bytes(4))
            self.raise_cause(r.PxIS.TFES.mask | r.PxIS.SDBS.mask)
            return
        self.tfd = GOOD
        if answer.moved:
            setup = struct.pack("<BBHQIIII", 0x41, c.target | (0 if c.write else 0x20), 0, c.slot, 0, 0, answer.moved, 0)
            self.receive(RECEIVED_DMA_SETUP, setup)
        self.receive(RECEIVED_SDB, bytes([0xA1, 0x40 | c.target, GOOD, 0]) + struct.pack("<I", 1 << c.slot))
        self.sact &= ~(1 << c.slot)         # after the FIS is in memory: AHCI 5.3
        self.ending |= 1 << c.slot if self.slow_sact > 1 else 0
        self.raise_cause(r.PxIS.SDBS.mask)

    def notify(self, target: int) -> None:
        """A set device bits FIS with the N bit: something happened at the multiplier's `target`. SATA 3.x 13.7."""
        self.notified |= 1 << target
        self.receive(RECEIVED_SDB, bytes([0xA1, 0xC0 | target, GOOD, 0]) + bytes(4))
        self.raise_cause(r.PxIS.SDBS.mask)

    def raise_cause(self, bits: int) -> None:
        self.cause |= bits
        self.hba.line()
