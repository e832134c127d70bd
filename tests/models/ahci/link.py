"""The PHY and the link of a port: presence, COMRESET, errors. AHCI 3.3.10 to 3.3.12, 10.4.2."""

from drivers.ahci import registers as r
from tests.models.device import Misuse

UP, SPEED_MAX = 0x103, 3


class Link:
    """PxSSTS, PxSCTL and PxSERR."""

    def __init__(self, port):
        self.port = port
        self.control = self.errors = 0
        self.reset_since = 0

    @property
    def up(self) -> bool:
        return self.status() & 0xF == 3

    def status(self) -> int:
        if self.port.drive is None or self.control & 0xF:
            return 0
        return UP | min(self.control >> 4 & 0xF or SPEED_MAX, SPEED_MAX, 2) << 4

    def write_control(self, value: int) -> None:
        port, before = self.port, self.control & 0xF
        if value & 0xF and port.cmd.ST:
            raise Misuse("COMRESET while ST stands (AHCI 10.4.2)")
        if value & 0xF == 1 and before == 0:
            self.reset_since = port.hba.clock()
            port.ci = port.sact = 0
        if before == 1 and value & 0xF == 0:
            if port.hba.clock() - self.reset_since < 1_000_000:
                raise Misuse("COMRESET of less than a millisecond (AHCI 10.4.2)")
            port.hba.resets += 1
            port.start_device()
            self.errors |= r.PxSERR.X.mask | r.PxSERR.N.mask
        self.control = value

    def clear_errors(self, bits: int) -> None:
        self.errors &= ~bits

    def causes(self) -> int:
        """What of PxIS is PxSERR's. AHCI 3.3.5."""
        return ((r.PxIS.PRCS.mask if self.errors & r.PxSERR.N.mask else 0)
                | (r.PxIS.PCS.mask if self.errors & r.PxSERR.X.mask else 0))
