"""The part of the protocol that is about disks behind controllers we drive, and the ports they are at."""

from typing import Annotated, Literal

import msgspec

from rustosd.control.base import Done, Method, Nothing, Row
from rustosd.control.disk_protocol import LONGEST_NAME, DiskName, Token

Sectors = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]


class PortEvent(Row):
    """Something that happened to a port."""

    age_s: float
    what: str
    why: str


class DiskPort(Row):
    """A port of an AHCI controller that we drive."""

    name: str                   # "0000:00:04.0/1": the controller and its port
    state: str                  # ready, absent, failed, ... as the driver has them
    reason: str                 # why there is no disk, or none that works
    kind: str                   # "disk", "packet", "port multiplier"; empty: nothing
    disks: list[str]
    generation: int | None      # of the link now: 1, 2, 3 for 1.5, 3, 6 Gb/s
    speed_limit: int | None     # that it was slowed down to after errors
    link_power: str             # how far the link may sleep: active, partial, slumber
    queuing: bool               # False: given up after errors
    errors: dict[str, int]      # by whose they were
    measures: dict[str, int]    # what was done about them
    events: list[PortEvent]     # the newest last


class Drive(Row):
    """What a drive says of itself, beyond what every disk has."""

    disk: str
    serial: str
    wwn: str
    form_factor: str
    rotation_rpm: int | None
    fastest_generation: int | None
    generation: int | None      # of its link now
    aligned_at: int             # the first sector that begins one on the medium
    link_power: str
    write_cache: bool | None    # None: it has none that can be switched
    trim: str                   # "none", "plain", "queued"
    after_trim: str             # what is read: "unknown", "the same", "zeros"
    security: str
    healthy: bool | None        # SMART, as it said last; None: unknown
    celsius: int | None
    errors: dict[str, int]


class Attribute(Row):
    """One of SMART's figures."""

    number: int
    name: str
    value: int
    worst: int
    threshold: int
    raw: int
    prefailure: bool
    failed: bool


class SelfTest(Row):
    """One that has ended, or runs."""

    kind: str
    result: str
    hours: int                  # power-on hours when it ended


class Health(Row):
    """SMART, as the disk says now."""

    disk: str
    healthy: bool | None
    celsius: int | None
    hours: int | None
    error_count: int | None
    test: str                   # how the last self-test ended, or "running"
    test_left_percent: int
    short_minutes: int
    long_minutes: int
    attributes: list[Attribute]
    tests: list[SelfTest]       # the newest first


class DiskTest(DiskName):
    """A self-test to begin, or to abort."""

    kind: Literal["short", "long", "abort"]


class DiskCache(DiskName):
    """Its write cache."""

    on: bool


class DiskTrim(DiskName):
    """What is in these sectors is needed no more. `token`: the disk's serial number, or its name if it has none."""

    lba: Sectors
    sectors: Annotated[int, msgspec.Meta(ge=1, lt=1 << 48)]
    token: Token


class DiskErase(DiskName):
    """Everything. `token`: the disk's serial number, or its name if it has none."""

    token: Token
    enhanced: bool = False


class PortName(DiskName):
    """`disk`: the name of a port."""

    disk: Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_NAME)]


METHODS = (
    Method("disk.ports", Nothing, list[DiskPort], False, "The ports of the AHCI controllers that were taken."),
    Method("disk.drive", DiskName, Drive, False, "What the drive of a disk says of itself, and how its link is."),
    Method("disk.health", DiskName, Health, False, "Ask a disk for its health, by SMART."),
    Method("disk.test", DiskTest, Done, False, "Begin a self-test of a disk, or abort it."),
    Method("disk.cache", DiskCache, Done, False, "Switch a disk's write cache."),
    Method("disk.standby", DiskName, Done, False, "Empty a disk's cache and stop its medium until it is needed."),
    Method("disk.trim", DiskTrim, Done, False, "Tell a disk that nobody needs what is in some sectors; destroys it."),
    Method("disk.erase", DiskErase, Done, False, "Have a disk erase itself; destroys all that is on it."),
    Method("disk.retry", PortName, Done, False, "Give a port that has failed another chance, with all limits lifted."),
)
