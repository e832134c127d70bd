"""The part of the protocol that is about memory; see `rustosd.control.protocol`."""

from rustosd.control.base import Method, Nothing, Row


class ProcessMemory(Row):
    """A process whose memory is limited. Only private anonymous memory counts; what comes and goes is since it began."""

    pid: int
    resident_octets: int
    swapped_octets: int         # pages that have a place in swap; some of them are in memory as well
    faults: int                 # that read from swap
    zero_faults: int            # of pages that had nothing in them yet
    write_faults: int           # first writes to pages that swap had as well
    again: int                  # faults of pages that had left not long ago: if these are many, the limit is too low
    waited: int                 # faults that waited because the group had all it may
    in_octets: int
    out_octets: int
    clean_octets: int           # left without being written: swap had them, or they were zero
    ahead_pages: int            # brought in before anybody asked
    ahead_used: int             # of those, the ones that are known to have been used


class ProgramMemory(Row):
    """A program and all it has started, which share one limit, as its pager told last: once a second."""

    group: int                  # the supervisor, `rustosctl run`
    program: str
    limit_octets: int           # above it, pages leave for swap
    most_octets: int            # above it, who needs more waits
    lowered_octets: int         # the limit as it is now: less, while the host is short of memory
    resident_octets: int
    peak_octets: int
    failure: str                # why pages could not leave, the last time that happened; empty: never
    spaces: list[ProcessMemory]


class DmaHolding(Row):
    """Memory that a device reaches."""

    device: str
    owner: str                  # what it is for
    blocks: int
    octets: int


METHODS = (
    Method("memory.list", Nothing, list[ProgramMemory], False, "The memory of programs that have a limit."),
    Method("memory.dma", Nothing, list[DmaHolding], False, "The memory that devices reach, and what it is for."),
)
