"""The PHY behind MDIC: reset, auto-negotiation and what came of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from drivers.e1000.registers import MAP_PHY, MdiOperation
from drivers.errors import DeviceError
from drivers.registers import MS, Reg, RegisterFile, wait_until

ADDRESS: Final = 1
"""Of the internal PHY. 8254x 8.8; 82574 10.2.2."""
MDI_NS: Final = 10 * MS
RESET_NS: Final = 600 * MS
"""IEEE 802.3 22.2.4.1.1 allows half a second."""
OWNERSHIP_NS: Final = 200 * MS
EVERYTHING: Final = 0xFFFF_FFFF


@dataclass(frozen=True)
class Negotiation:
    """What the PHY says of the link."""

    up: bool
    complete: bool
    maker: int
    """Identifier of its maker and model, registers 2 and 3."""
    partner: int
    """What the peer advertises, register 5."""


class Phy:
    """The PHY's registers, as `regs`, and what is done with them."""

    size = 64

    def __init__(self, mac: RegisterFile, shared: bool) -> None:
        """`shared`: the controller's firmware uses MDIC, too (82574), so it is claimed for each access."""
        self._mac, self._shared = mac, shared
        self.regs = RegisterFile(self, MAP_PHY, f"{mac.device} PHY", clock=mac.clock, sleep=mac.sleep)

    def reset(self) -> None:
        """Reset it and start auto-negotiation of all it can but PAUSE. Does not wait for the link: that takes seconds.

        Raises DeviceTimeout, DeviceError.
        """
        self.regs.BMCR.modify(RESET=1)
        self.regs.BMCR.wait(RESET=0, timeout_ns=RESET_NS)
        self.regs.ANAR.modify(SELECTOR=1, T10=1, T10_FD=1, TX100=1, TX100_FD=1, PAUSE=0, ASYMMETRIC_PAUSE=0)
        self.regs.GBCR.modify(T1000=0, T1000_FD=1)
        self.restart()

    def restart(self) -> None:
        """Negotiate anew."""
        self.regs.BMCR.modify(ANENABLE=1, RESTART=1, POWER_DOWN=0, ISOLATE=0, LOOPBACK=0)

    def negotiation(self) -> Negotiation:
        """How far it is."""
        self.regs.BMSR.read()               # a link that was lost once stays so until it is read
        status = self.regs.BMSR.read()
        maker = self.regs.PHYID1.read() << 16 | self.regs.PHYID2.read()
        return Negotiation(status.LINK, status.ANCOMPLETE, maker, int(self.regs.ANLPAR.read()))

    # What a RegisterFile asks of a BAR.

    def read16(self, register: int) -> int:
        return self._access(MdiOperation.READ, register, 0)

    def write16(self, register: int, value: int) -> None:
        self._access(MdiOperation.WRITE, register, value)

    def _access(self, operation: MdiOperation, register: int, value: int) -> int:
        with self._owned():
            self._mac.MDIC.write(DATA=value, REGADD=register, PHYADD=ADDRESS, OP=operation)
            done = self._mac.MDIC.wait(READY=1, timeout_ns=MDI_NS)
        if done.ERROR:
            raise DeviceError(self._mac.device, f"its PHY does not answer for register {register}: is this the right device?")
        return done.DATA

    @contextmanager
    def _owned(self) -> Iterator[None]:
        """Claim MDIC from the firmware. 82574 10.2.2: it is ours once the bit reads back as 1."""
        if not self._shared:
            yield
            return
        wait_until(self._claim, lambda control: control.MDIO_SW, OWNERSHIP_NS, device=self._mac.device,
                   what="EXTCNF_CTRL.MDIO_SW=1", gone=EVERYTHING, clock=self._mac.clock, sleep=self._mac.sleep)
        try:
            yield
        finally:
            self._mac.EXTCNF_CTRL.modify(MDIO_SW=0)

    def _claim(self) -> Reg:
        self._mac.EXTCNF_CTRL.modify(MDIO_SW=1)
        return self._mac.EXTCNF_CTRL.read()
