"""Port multipliers: several disks behind one port, of which one at a time has commands under way. SATA 16, AHCI 9.

Command-based switching: the port's FISes say which device they are for. FIS-based switching (PxFBS) is not used.
"""

from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from drivers.ahci import commands
from drivers.ahci.commands import CONTROL_PORT, multiplier_value
from drivers.ahci.drive import bring_up_disk
from drivers.ahci.identify import IdentifyError
from drivers.ahci.options import LinkPower
from drivers.ahci.port import COMRESET_NS, LINK_NS, PRESENCE_NS, Refused
from drivers.ahci.registers import Detection, PxSERR, Signature
from drivers.ahci.steps import Pause, Procedure
from drivers.errors import DeviceTimeout
from drivers.registers import MS

if TYPE_CHECKING:
    from drivers.ahci.life import AhciPort

MOST_PORTS: Final = 15
_CHANGE: Final = PxSERR.N.mask | PxSERR.X.mask
_EVERYTHING: Final = 0xFFFF_FFFF
_NO_SLEEP: Final = 3 << 8       # of SControl


class General(IntEnum):
    """General status and control registers, of port 15. SATA 16.5.1."""

    PRODUCT = 0
    REVISION = 1
    PORTS = 2
    ERRORS = 32
    """A bit for each port whose SError has one of those of ERRORS_SEEN."""
    ERRORS_SEEN = 33


class OfPort(IntEnum):
    """Port status and control registers. SATA 16.5.2."""

    STATUS = 0
    ERROR = 1
    CONTROL = 2


class Multiplier:
    """One that is attached."""

    kind = "port multiplier"
    link_power = LinkPower.ACTIVE
    asks = True

    def __init__(self, ports: int, product: int) -> None:
        self.ports, self.product = ports, product
        self.problems: dict[int, str] = {}
        """Why a device behind it is no disk of ours, by port."""

    def ask(self, life: "AhciPort") -> Procedure:
        """Has something been plugged or unplugged behind it?"""
        news = yield from self._read(life, CONTROL_PORT, General.ERRORS)
        for port in range(self.ports):
            if news >> port & 1 and (yield from self._read(life, port, OfPort.ERROR)) & _CHANGE:
                life.note("link changed", f"behind port {port} of the multiplier")
                yield from self.bring_up(life, port)

    def bring_up(self, life: "AhciPort", port: int) -> Procedure:
        """Reset what is behind a port; if it is a disk, it is placed."""
        self.problems.pop(port, None)
        try:
            if (yield from self._link(life, port)):
                kind = yield from life.port.software_reset(port)
                if kind == Signature.DISK:
                    life.place((yield from bring_up_disk(life, port)), port)
                    return
                self.problems[port] = f"a device that is no disk: signature {int(kind):#010x}"
            life.remove(port, "it was unplugged")
        except (Refused, IdentifyError) as why:
            self.problems[port] = str(why)
            life.note("device failed", f"behind port {port} of the multiplier: {why}")
            life.remove(port, str(why))

    def _link(self, life: "AhciPort", port: int) -> Procedure:
        """Reset the link of a port; whether somebody is there. As of the controller's own ports, AHCI 10.4.2."""
        yield from self._write(life, port, OfPort.CONTROL, 1 | _NO_SLEEP)
        yield Pause(COMRESET_NS)
        yield from self._write(life, port, OfPort.CONTROL, _NO_SLEEP)
        waited = 0
        detection = 0
        while detection != Detection.UP and waited < (LINK_NS if detection else PRESENCE_NS):
            yield Pause(10 * MS)
            waited += 10 * MS
            detection = (yield from self._read(life, port, OfPort.STATUS)) & 0xF
        yield from self._write(life, port, OfPort.ERROR, _EVERYTHING)
        return detection == Detection.UP

    def _read(self, life: "AhciPort", port: int, register: int) -> Procedure:
        answer = yield from life.port.internal(commands.read_multiplier(port, register), CONTROL_PORT)
        return multiplier_value(answer)

    def _write(self, life: "AhciPort", port: int, register: int, value: int) -> Procedure:
        yield from life.port.internal(commands.write_multiplier(port, register, value), CONTROL_PORT)


def attach(life: "AhciPort") -> Procedure:
    """Bring up all that is behind a multiplier. A Multiplier. Raises Refused, DeviceTimeout."""
    yield from life.port.is_multiplier()
    made = Multiplier(0, 0)
    made.product = yield from made._read(life, CONTROL_PORT, General.PRODUCT)
    made.ports = min((yield from made._read(life, CONTROL_PORT, General.PORTS)) & 0xF, MOST_PORTS)
    yield from made._write(life, CONTROL_PORT, General.ERRORS_SEEN, _CHANGE)
    for port in range(made.ports):
        with suppress(DeviceTimeout):       # that device is dead; the others are not
            yield from made.bring_up(life, port)
    return made
