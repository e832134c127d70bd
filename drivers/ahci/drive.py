"""A disk is set up: asked what it is, and told how it shall be. ACS-3 7.12, 7.37, 7.45."""

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from drivers.ahci import commands
from drivers.ahci.identify import Identity, parse, queued_trim
from drivers.ahci.options import LinkPower
from drivers.ahci.port import Refused
from drivers.ahci.steps import Procedure

if TYPE_CHECKING:
    from drivers.ahci.life import AhciPort


def bring_up_disk(life: "AhciPort", pm: int | None) -> Procedure:
    """Ask a disk what it is, and set it up: an Identity. Raises Refused, IdentifyError, DeviceTimeout."""
    port, at, options = life.port, pm or 0, life.adapter.options
    found: Identity = parse((yield from port.internal(commands.identify(), at)).data, options.zeroing_trim)
    if found.send_queued:
        with suppress(Refused):
            answer = yield from port.internal(commands.read_log(commands.QUEUED_SEND_LOG), at)
            found = replace(found, queued_trim=queued_trim(answer.data))
    if options.security_freeze and found.security.supported and not found.security.frozen:
        yield from _set(life, commands.security_freeze(), at)
    wanted = life.write_cache.get(at, options.write_cache)
    switch = wanted is not None and found.has_write_cache and wanted != found.write_cache
    if switch and (yield from _set(life, commands.write_cache(wanted), at)):
        found = found.with_write_cache(wanted)
    if found.device_power:
        yield from _set(life, commands.device_power(options.link_power is LinkPower.SLUMBER and pm is None), at)
    return found


def _set(life: "AhciPort", own: commands.Own, pm: int) -> Procedure:
    """A setting that is good to have; whether the drive took it."""
    try:
        yield from life.port.internal(own, pm)
    except Refused as why:
        life.note("setting refused", str(why))
        return False
    return True
