"""The part of the protocol that is about disks; see `rustosd.control.protocol`."""

from typing import Annotated, Literal

import msgspec

from rustosd.control.base import Done, Method, Nothing, Parameters, Row

MAX_READ_OCTETS = 128 << 10
MAX_WRITE_OCTETS = 32 << 10
"""In base64 it fits a request."""
LONGEST_ROUND_S = 10.0
LONGEST_NAME = 128
LONGEST_TOKEN = 128
MAX_DEPTH = 128

Offset = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_NAME)]
Token = Annotated[str, msgspec.Meta(max_length=LONGEST_TOKEN)]


class Disk(Row):
    """A disk of ours."""

    name: str                   # "disk0" in the configuration, or "0000:00:04.0/1": the controller and its port
    model: str
    serial: str
    firmware: str
    octets: int
    sector_octets: int
    physical_octets: int
    queue_depth: int


class DiskPartition(Row):
    """One partition; its name can be used in place of a disk's for exports."""

    name: str                   # "disk0/p1"
    octets: int
    offset: int
    kind: str                   # GPT: the type's GUID; MBR: its number, "0x83"
    label: str


class DiskUser(Row):
    """Who uses a disk: an export, or the operator's commands."""

    user: str
    disk: str                   # the disk, or a partition of it
    requests: int
    octets: int
    waiting: int
    under_way: int
    throttled: int              # requests that had to wait for the user's limits
    failed: int


class OperationLatency(Row):
    """How long requests of one kind took; percentiles are the upper ends of buckets that double."""

    operation: str
    requests: int
    mean_us: float
    p50_us: float
    p99_us: float


class DiskDetails(Row):
    """All about one disk."""

    disk: Disk
    drive: bool                 # it is behind a controller of ours: disk.drive and disk.health know more
    features: list[str]
    holds: list[str]            # what its first octets look like: partition tables, filesystems
    statistics: dict[str, int]
    partitions: list[DiskPartition]
    table: str                  # what is wrong with the partition table; empty: nothing, or there is none
    users: list[DiskUser]
    latency: list[OperationLatency]


class Octets(Row):
    """What was read."""

    octets: bytes               # in base64


class LatencyBucket(Row):
    """How many requests took less than `below_us`, and not less than the bucket before."""

    below_us: float
    requests: int


class BenchRound(Row):
    """One round of a benchmark."""

    disk: str
    pattern: str
    block_octets: int
    depth: int                  # what the disk can, when that is less than was asked for
    seconds: float
    requests: int
    errors: int
    mean_us: float
    longest_us: float
    histogram: list[LatencyBucket]


class Bench(Row):
    """The rounds of a benchmark together."""

    disk: str
    pattern: str
    block_octets: int
    depth: int
    seconds: float
    requests: int
    errors: int
    requests_per_second: float
    octets_per_second: float
    mean_us: float
    longest_us: float
    percentiles_us: dict[str, float]    # "50", "90", "99", "99.9": the upper end of the bucket that holds it
    histogram: list[LatencyBucket]
    rounds: list[float]                 # requests a second in each


class DiskName(Parameters):
    """`disk`: a disk's name, its serial number, or a beginning that only one of them has."""

    disk: Name


class DiskRead(DiskName):
    """Need not be whole sectors."""

    offset: Offset
    octets: Annotated[int, msgspec.Meta(ge=1, le=MAX_READ_OCTETS)]


class DiskWrite(DiskName):
    """Need not be whole sectors: the rest of the first and the last is read before and written again. Not flushed.

    `token`: the disk's serial number, or its name if it has none.
    """

    token: Token
    offset: Offset
    octets: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_WRITE_OCTETS)]


class DiskBench(DiskName):
    """It only reads."""

    pattern: Literal["random", "sequential"] = "random"
    block_octets: Annotated[int, msgspec.Meta(ge=512, le=1 << 20)] = 4096
    depth: Annotated[int, msgspec.Meta(ge=1, le=MAX_DEPTH)] = 1
    seconds: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_ROUND_S)] = 1.0


METHODS = (
    Method("disk.list", Nothing, list[Disk], False, "The disks: files, memory, and those of the controllers that were taken."),
    Method("disk.show", DiskName, DiskDetails, False, "All about one disk."),
    Method("disk.read", DiskRead, Octets, False, "Read from a disk.", guarded=True),
    Method("disk.write", DiskWrite, Done, False, "Write to a disk.", guarded=True),
    Method("disk.flush", DiskName, Done, False, "Have the disk put what it was given onto its medium.", guarded=True),
    Method("disk.bench", DiskBench, BenchRound, False, "Measure a disk for some seconds.", guarded=True),
)
