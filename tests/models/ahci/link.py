"""The PHY and the link of a port: presence, COMRESET, speed, sleep, errors. AHCI 3.3.10 to 3.3.12, 8.3, 10.4.2."""

from drivers.ahci import registers as r
from tests.models.device import Misuse

SPEED_MAX = 3
ACTIVE, PARTIAL, SLUMBER = 1, 2, 6


class Link:
    """PxSSTS, PxSCTL and PxSERR, and what is plugged in."""

    def __init__(self, port, device):
        self.port, self.device = port, device
        self.control = self.errors = 0
        self.reset_since = 0
        self.power = ACTIVE
        self.naps = 0
        """How often it went to sleep."""

    @property
    def up(self) -> bool:
        return self.status() & 0xF == 3

    @property
    def spun_up(self) -> bool:
        """Where spin-up is staggered, the device gets COMRESET with PxCMD.SUD. AHCI 10.10.1."""
        return bool(self.port.cmd.SUD) or not r.CAP(self.port.hba.cap).SSS

    def status(self) -> int:
        if self.control & 0xF == 4:
            return 4
        if self.device is None or self.control & 0xF or not self.spun_up:
            return 0
        return 3 | self.speed() << 4 | self.power << 8

    def speed(self) -> int:
        """The generation that was agreed on."""
        return min(self.control >> 4 & 0xF or SPEED_MAX, r.CAP(self.port.hba.cap).ISS or SPEED_MAX)

    def write_control(self, value: int) -> None:
        port, before = self.port, self.control & 0xF
        if value & 0xF and port.cmd.ST:
            port.hba.forbid("COMRESET while ST stands (AHCI 10.4.2)")
        if value & 0xF == 1 and before == 0:
            self.reset_since = port.hba.clock()
            port.ci = port.sact = 0
        if before == 1 and value & 0xF == 0:
            if port.hba.clock() - self.reset_since < 1_000_000:
                raise Misuse("COMRESET of less than a millisecond (AHCI 10.4.2)")
            port.hba.resets += 1
            self.control = value
            self.come_up()
        self.control = value

    def come_up(self) -> None:
        """COMINIT is answered, and the device begins anew."""
        self.power = ACTIVE
        self.port.start_device()
        if self.device is not None:
            self.errors |= r.PxSERR.X.mask | r.PxSERR.N.mask
            self.port.first_fis()

    def plug(self, device) -> None:
        """A device comes, with power."""
        self.device = device
        self.come_up()
        self.port.hba.line()

    def unplug(self):
        """The device goes, and is given back. Its commands are never heard of again."""
        device, self.device = self.device, None
        self.power = ACTIVE
        self.errors |= r.PxSERR.N.mask
        self.port.hba.line()
        return device

    def clear_errors(self, bits: int) -> None:
        self.errors &= ~bits

    def garble(self) -> None:
        """A frame with a wrong CRC."""
        self.errors |= r.PxSERR.C.mask | r.PxSERR.TRANSIENT.mask

    def sleep(self, state: int) -> None:
        """To partial or slumber, where PxSCTL.IPM lets it and the device is not busy."""
        barred = self.control >> 8 & 0xF
        if self.up and not barred & (1 if state == PARTIAL else 2) and self.power == ACTIVE:
            self.power = state
            self.naps += 1

    def wake(self) -> None:
        """COMWAKE. AHCI 8.3.1.4: PhyRdy changes, which says nothing about the device."""
        if self.power != ACTIVE:
            self.power = ACTIVE
            self.errors |= r.PxSERR.N.mask | r.PxSERR.W.mask

    def causes(self) -> int:
        """What of PxIS is PxSERR's. AHCI 3.3.5."""
        return ((r.PxIS.PRCS.mask if self.errors & r.PxSERR.N.mask else 0)
                | (r.PxIS.PCS.mask if self.errors & r.PxSERR.X.mask else 0))
