"""What every disk is to the rest of rustosd: AHCI, a file, memory. The block counterpart of `drivers.nic`."""

from dataclasses import dataclass
from enum import IntFlag
from typing import Final, Protocol

from drivers.device import DmaMemory
from drivers.errors import DeviceError
from drivers.request import CompletionBurst, RequestBurst

GONE: Final = -1
"""`Disk.complete` returns this when the disk has left for good and every request has ended."""


class Feature(IntFlag):
    """What a disk can do."""

    QUEUE = 1
    """Several requests at a time, done in any order."""
    FUA = 2
    """A write that is durable once it is complete."""
    TRIM = 4
    WRITE_CACHE = 8
    """What is written is durable only after a flush."""
    SMART = 16
    ROTATING = 32
    ERROR_LOG = 64
    """After an error the disk tells which of its queued commands it was."""
    READ_ONLY = 128
    WRITE_ZEROES = 256
    FAST_ZEROES = 512
    """WRITE_ZEROES takes less time than writing zeros would."""
    EXTENTS = 1024
    """It knows which sectors are backed by storage, and which read as zeros."""


@dataclass(frozen=True, slots=True)
class DiskInfo:
    """What a disk is."""

    name: str
    """Where it is: "0000:00:04.0/1" is port 1 of that controller."""
    model: str
    serial: str
    firmware: str
    sectors: int
    """Logical ones."""
    sector_octets: int
    """512 or 4096: the unit of `lba` and `sectors`."""
    physical_octets: int
    """What the disk writes at once; writes of less make it read first."""
    queue_depth: int
    """Requests it works on at a time."""
    features: Feature
    max_sectors: int
    """Of one request."""
    max_segments: int
    """Of one request."""
    max_trim_sectors: int = 0
    """Of one TRIM or WRITE_ZEROES; 0: as many as there are."""
    trim_sectors: int = 1
    """What TRIM works on: of a range only whole, aligned multiples of this many sectors may be forgotten."""
    memory_alignment: int = 2
    """Of a segment's address and of its octets; a power of two."""

    @property
    def octets(self) -> int:
        """Its capacity."""
        return self.sectors * self.sector_octets


class DiskError(DeviceError):
    """A request failed; `errno` says how, as in `Disk`."""

    def __init__(self, disk: str, errno: int, message: str):
        super().__init__(disk, message)
        self.errno = errno


class Disk(Protocol):
    """Reads, writes and flushes in bursts, never blocking (but see `FileDisk`), never raising. All from one thread, the loop's.

    Every request that `submit` takes ends exactly once, in `complete`, with the tag it came with and an errno:

        0           done
        EINVAL      beyond the disk's end, or segments that do not fit it: octets unlike sectors, odd, too many
        EOPNOTSUPP  an operation, or FUA, that the disk does not have; FAST zeros that would be slow
        ENOSPC      no room behind it: a file's filesystem is full
        ENODATA     these sectors cannot be read: the medium is damaged there
        ENOMEDIUM   nothing is in the drive, or something else than before
        EROFS       the disk does not let itself be written
        EILSEQ      the cable garbles data, again and again
        EFAULT      the controller could not reach the request's memory
        ETIMEDOUT   no answer; the disk was reset
        ENODEV      the disk has left, or has failed for good
        EIO         the disk says that it failed, no more

    Order: requests under way together are done in any order; a flush is for what was *completed* before it was submitted,
    and a driver may hold back others around it. Sizes: `DiskInfo`. Segments lie in memory of `allocate`, at even
    addresses and with an even number of octets unless `DiskInfo.memory_alignment` is 1, with at most 4194304 octets each.

    To wait: `complete` until it says 0, then `arm`; if that is true sleep until `fileno` is readable or `wake_at` has
    come, whichever is first, then `complete` again. Who polls just goes on calling `complete`.
    Recovery from errors happens inside `complete`, a step at a time; requests under way stay there meanwhile.
    """

    name: str
    info: DiskInfo

    def submit(self, burst: RequestBurst) -> int:
        """Take requests from the burst's front as long as there is room, and out of it; how many."""

    def complete(self, burst: CompletionBurst) -> int:
        """Empty the burst and fill it with requests that have ended; how many, 0 when none has for now, or `GONE`."""

    def room(self) -> int:
        """How many requests `submit` takes now."""

    def fileno(self) -> int:
        """What to wait on for reading once armed."""

    def arm(self) -> bool:
        """Have the next completion make `fileno` readable; False when there is something to complete already."""

    def wake_at(self) -> int | None:
        """When to call `complete` even if nothing was readable, in the clock's ns; None: never."""

    def allocate(self, octets: int, owner: str) -> DmaMemory:
        """Memory for segments. Raises DeviceError."""

    def statistics(self) -> dict[str, int]:
        """Counters since it was opened: at least reads, writes, flushes, sectors_read, sectors_written, failed; then what
        this kind of disk has to tell."""

    def close(self) -> None:
        """Give the disk back; requests under way are forgotten, their memory is out of the disk's reach. Twice is fine."""
