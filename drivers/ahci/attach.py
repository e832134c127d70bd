"""Who is at the other end of a link that has come up, and how it is set up. AHCI 3.3.9, SATA 11.4, 16."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from drivers.ahci import multiplier, packet
from drivers.ahci.commands import CONTROL_PORT
from drivers.ahci.drive import bring_up_disk
from drivers.ahci.options import LinkPower
from drivers.ahci.registers import Signature
from drivers.ahci.steps import Procedure
from drivers.errors import DeviceTimeout

if TYPE_CHECKING:
    from drivers.ahci.life import AhciPort

_WHAT: Final = {
    Signature.ENCLOSURE: "an enclosure, which is not driven",
    Signature.NONE: "a device that did not say what it is",
}


class Attached(Protocol):
    """What is at the other end."""

    kind: str
    link_power: LinkPower
    """How far the link may sleep."""
    asks: bool
    """Whether the device must be asked for news every now and then, by `ask`."""

    def ask(self, life: "AhciPort") -> Procedure:
        """Look for news, while nothing else runs."""


@dataclass(frozen=True, slots=True)
class SingleDisk:
    """An ordinary disk."""

    link_power: LinkPower
    kind = "disk"
    asks = False

    def ask(self, _life: "AhciPort") -> Procedure:
        """There is nothing to ask."""
        yield from ()


def attach(life: "AhciPort") -> Procedure:
    """The device is idle: what it is, with its disks placed in the port; None when it cannot be used, see `life.reason`.

    Raises DeviceTimeout, Refused, IdentifyError.
    """
    port = life.port
    port.start_commands()
    kind = yield from _kind(life)
    if kind == Signature.DISK:
        found = yield from bring_up_disk(life, None)
        life.place(found)
        adapter = life.adapter
        return SingleDisk(adapter.options.link_power if adapter.sleeps and found.host_power else LinkPower.ACTIVE)
    if kind == Signature.PACKET:
        port.is_packet(True)
        return (yield from packet.attach(life))
    if kind == Signature.PORT_MULTIPLIER and life.adapter.multipliers:
        return (yield from multiplier.attach(life))
    if kind == Signature.PORT_MULTIPLIER:
        life.reason = "a port multiplier, which this controller cannot work with: attach the disks directly"
    else:
        life.reason = _WHAT.get(kind) or f"a device that is no disk: signature {int(kind):#010x}"
    return None


def _kind(life: "AhciPort") -> Procedure:
    """Its signature. A port multiplier gives that of the device behind its port 0, unless it is asked itself. SATA 16.2."""
    if life.adapter.multipliers and life.asks_multiplier:
        try:
            return (yield from life.port.software_reset(CONTROL_PORT))
        except DeviceTimeout:
            # A disk may not answer what is not for it. It is reset, and not asked again.
            life.asks_multiplier = False
            raise
    return life.port.kind()
