"""What an operator can have a drive do besides reading and writing: procedures for `AhciDisk.perform`.

What destroys data asks for a token that names the drive: its serial number, or its place if it has none. So nobody destroys
the drive beside the one he means, nor by a slip.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from drivers.ahci import commands
from drivers.ahci.port import Refused
from drivers.ahci.steps import Procedure
from drivers.errors import DeviceError

if TYPE_CHECKING:
    from drivers.ahci.disk import AhciDisk

MINUTE_NS: Final = 60 * commands.SECOND
UNTOLD_MINUTES: Final = 24 * 60
"""What a drive may take to erase itself that does not say how long that is."""
SPARE_MINUTES: Final = 10
PASSWORD: Final = b"rustosd"
"""While a drive erases itself. If power fails meanwhile, the drive is locked, and this opens it."""
MODES: Final = {0x00: "standby", 0x01: "standby", 0x40: "active", 0x41: "active", 0x80: "idle", 0x81: "idle", 0x82: "idle",
                0x83: "idle", 0xFF: "active or idle"}
"""CHECK POWER MODE. ACS-3 7.3.3."""


class WrongToken(DeviceError):
    """Something that destroys data was asked for without naming the drive."""


def token_of(disk: "AhciDisk") -> str:
    """What names the drive."""
    return disk.identity.serial or disk.name


def check_token(disk: "AhciDisk", token: str) -> None:
    """Raises WrongToken."""
    if token != token_of(disk):
        raise WrongToken(disk.name, f"this destroys what is on it: repeat its serial number, {token_of(disk)}, to have it done")


def set_write_cache(disk: "AhciDisk", on: bool) -> Procedure:
    """Switch it; what is in it goes to the medium first. It stays so until the controller is given back. Raises Refused."""
    if disk.pack is not None or not disk.identity.has_write_cache:
        raise Refused(disk.name, "it has no write cache that can be switched")
    if not on:
        yield from disk.life.port.internal(commands.flush(), disk.pm)
        disk.queue.dirty = False
    yield from disk.life.port.internal(commands.write_cache(on), disk.pm)
    disk.life.write_cache[disk.pm] = on
    disk.write_cache = on


def standby(disk: "AhciDisk") -> Procedure:
    """Empty the cache and stop the medium; the next request that needs it starts it. Raises Refused."""
    if disk.pack is not None:
        raise Refused(disk.name, "a drive for media cannot be put to standby")
    yield from disk.life.port.internal(commands.standby(), disk.pm)
    disk.queue.dirty = False


def power_mode(disk: "AhciDisk") -> Procedure:
    """In words; asking does not wake it. Raises Refused."""
    answer = yield from disk.life.port.internal(commands.check_power(), disk.pm)
    return MODES.get(answer.count & 0xFF, f"mode {answer.count & 0xFF:#04x}")


def erase(disk: "AhciDisk", token: str, *, enhanced: bool = False) -> Procedure:
    """Have the drive erase all of itself; requests wait until it is done, which can take hours. ACS-3 4.18, 7.36.

    Raises WrongToken, Refused, DeviceError.
    """
    check_token(disk, token)
    own = disk.identity.security
    if not own.supported:
        raise Refused(disk.name, "it cannot erase itself: trim it, if it has trim, or write over it")
    if enhanced and not own.enhanced:
        raise Refused(disk.name, "it has no enhanced erase; the ordinary one may do")
    if own.frozen or disk.frozen:
        raise Refused(disk.name, "its security is frozen until its power is off: set security_freeze = false under "
                                 "[device.ahci], switch the drive off and on, and take the controller again")
    if own.enabled:
        raise Refused(disk.name, "somebody has set a password on it, which is needed to erase it")
    minutes = own.enhanced_minutes if enhanced else own.erase_minutes
    limit_ns = ((2 * minutes or UNTOLD_MINUTES) + SPARE_MINUTES) * MINUTE_NS
    port, pm = disk.life.port, disk.pm
    yield from port.internal(commands.security_set_password(PASSWORD), pm)
    try:
        yield from port.internal(commands.security_erase_prepare(), pm)
        yield from port.internal(commands.security_erase(PASSWORD, enhanced, limit_ns), pm)
    except Refused:
        yield from port.internal(commands.security_disable(PASSWORD), pm)
        raise
    disk.queue.dirty = False
    disk.identity = replace(disk.identity, security=replace(own, enabled=False, locked=False))
