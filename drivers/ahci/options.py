"""What whoever takes a controller can choose, with what is chosen when nobody does."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from drivers.registers import MS

TIMEOUT_NS: Final = 30_000 * MS
"""How long a command may take. Linux's default, too: a drive may try a bad sector again for that long."""


class LinkPower(Enum):
    """How far the link may sleep between commands. AHCI 8.3, SATA 8."""

    ACTIVE = "active"
    """Never: what is asked first waits for no link to wake."""
    PARTIAL = "partial"
    """The controller puts it to the light sleep, some 10 us to wake from."""
    SLUMBER = "slumber"
    """The controller puts it to the deep sleep, some 10 ms to wake from; the drive may, too, if it can."""


class ZeroingTrim(Enum):
    """Whether a drive that says that trimmed sectors read as zeros is believed, and so has WRITE_ZEROES."""

    AUTO = "auto"
    """Those of makers whose drives have kept that promise."""
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Options:
    """For all disks of a controller."""

    timeout_ns: int = TIMEOUT_NS
    depth: int = 32
    """Commands under way at a time; 1: no NCQ."""
    link_power: LinkPower = LinkPower.ACTIVE
    write_cache: bool | None = None
    """None: as the drive has it."""
    security_freeze: bool = True
    """Nobody can set a password or erase the drive until its power is off."""
    zeroing_trim: ZeroingTrim = ZeroingTrim.AUTO
