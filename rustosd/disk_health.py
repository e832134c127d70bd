"""What is to be said of the health of disks and their ports: the checks that `rustosd.health` has in its table."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

HOT_CELSIUS: Final = 60
"""Makers give 55 to 70 as the most that a disk stands."""


class DiskState(NamedTuple):
    """A disk of a controller that is driven here."""

    name: str
    model: str
    healthy: bool | None = None
    """SMART's own word; None: unknown."""
    celsius: int | None = None
    failed: Sequence[str] = ()
    """Attributes at or below their threshold."""
    pending_sectors: int = 0
    """That could not be read, and are tried again when they are written."""


class PortState(NamedTuple):
    """A port of such a controller."""

    name: str
    failed: str = ""
    """Why it was given up."""
    speed_limit: int = 0
    """Generation that its link was slowed down to."""
    queuing_off: bool = False


def failing(disks: Sequence[DiskState]) -> Iterator[tuple[str, str]]:
    """Those that say they will not last."""
    for disk in disks:
        if disk.healthy is False or disk.failed:
            which = f": {', '.join(disk.failed)}" if disk.failed else ""
            yield disk.name, f"Disk {disk.name} ({disk.model}) says that it is about to fail{which}."


def hot(disks: Sequence[DiskState]) -> Iterator[tuple[str, str]]:
    """Those that wear out faster."""
    for disk in disks:
        if disk.celsius is not None and disk.celsius >= HOT_CELSIUS:
            yield disk.name, f"Disk {disk.name} ({disk.model}) is {disk.celsius} degrees Celsius hot."


def pending(disks: Sequence[DiskState]) -> Iterator[tuple[str, str]]:
    """Those with sectors that could not be read."""
    for disk in disks:
        if disk.pending_sectors:
            yield disk.name, f"Disk {disk.name} ({disk.model}) has {disk.pending_sectors} sectors that it cannot read."


def given_up(ports: Sequence[PortState]) -> Iterator[tuple[str, str]]:
    """Ports whose drive cannot be used."""
    for port in ports:
        if port.failed:
            yield port.name, f"The drive at port {port.name} cannot be used: {port.failed}."


def slowed(ports: Sequence[PortState]) -> Iterator[tuple[str, str]]:
    """Ports that work worse than they should."""
    for port in ports:
        if port.speed_limit:
            yield port.name, f"The link of port {port.name} was slowed down to generation {port.speed_limit} after errors."
        if port.queuing_off:
            yield port.name, f"Commands of port {port.name} are not queued any more, after errors."
