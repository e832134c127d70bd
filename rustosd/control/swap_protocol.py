"""The part of the protocol that is about swap; see `rustosd.control.protocol`."""

from typing import Annotated

import msgspec

from rustosd.control.base import Done, Method, Nothing, Parameters, Row
from rustosd.swap.place import Place
from rustosd.values import ExportName


class ProgramSwap(Row):
    """The swap of the programs of one supervisor. Without a unit: pages, or times, since they began."""

    group: int                  # the supervisor, `rustosctl run`
    program: str
    device: str
    compression: str
    encryption: bool
    octets: int                 # what fits at most
    used_octets: int            # pages that are there
    stored_octets: int          # that these take on the device
    ratio: float                # pages for each octet on the device; those of one word all over do not count
    table_octets: int           # memory that swap needs for itself
    in_octets: int              # pages that were brought in
    out_octets: int
    in_octets_per_s: float
    out_octets_per_s: float
    corrupt: int                # that were not what was written
    read_again: int             # that were, when they were read once more
    failed: int                 # requests that the device did not do
    full: int                   # times that there was no room
    faults: int                 # that waited for swap
    ahead_pages: int            # brought in before anybody asked for them
    ahead_used: int             # of those, the ones that somebody asked for then


class KernelSwap(Row):
    """Linux's own swap on a disk of ours."""

    device: str                 # /dev/nbd0
    export: str
    octets: int
    used_octets: int
    priority: int
    encryption: bool
    server: int                 # the process that serves it


class KernelSwapOn(Parameters):
    """`priority`: among Linux's swaps, the highest first; -1: after those that have one."""

    export: ExportName
    priority: Annotated[int, msgspec.Meta(ge=-1, le=32767)] = -1
    encryption: bool = True


METHODS = (
    Method("kernelswap.show", Nothing, KernelSwap | None, False, "Linux's own swap on a disk of ours, if it is on."),
    Method("kernelswap.on", KernelSwapOn, KernelSwap, True, "Have Linux swap to an export of ours, whose content is lost."),
    Method("kernelswap.off", Nothing, Done, True, "Bring back to memory what Linux has there, and give the disk back."),
    Method("swap.list", Nothing, list[ProgramSwap], False, "The swap of programs whose memory is limited."),
    Method("swap.take", Nothing, Place, False, "A place for a program's swap, with a descriptor: rustosd.swap.place.",
           for_programs=True),
)
