"""What every sector of a disk may hold, given what was asked of the disk and what it answered. Pure: no I/O, no clock.

The rules, as SATA, NBD and Linux's block layer have them:

    written, answered                           reads return it from now on
    flushed: answered before the flush was      a power cut does not take it away
      asked for, and the flush was answered
    written with FUA, answered                  the same
    anything else                               after a power cut each sector holds it whole, or what it held before, whole

A sector's content says which sector and which write it is, and carries a checksum, so that a mix of two is told apart.
Whoever drives a disk does not let two changes of one sector be under way together: their order would be anybody's guess.
"""

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

SECTOR = 512
_STAMP = struct.Struct("<8sQQ")
_MAGIC = b"lossless"
ZERO = bytes(SECTOR)


def content(sector: int, version: int) -> bytes:
    """What write number `version` puts into a sector."""
    head = _STAMP.pack(_MAGIC, sector, version)
    filling = zlib.crc32(head).to_bytes(4, "little") * ((SECTOR - len(head) - 4) // 4)
    body = head + filling
    return body + zlib.crc32(body).to_bytes(4, "little")


def version_of(sector: int, octets: bytes) -> int | None:
    """Which write a sector's content is: 0 for zeros; None: of no write, or of another sector's."""
    if octets == ZERO:
        return 0
    magic, where, version = _STAMP.unpack_from(octets)
    return version if magic == _MAGIC and where == sector and octets == content(sector, version) else None


@dataclass(eq=False)
class Change:
    """A write, zeroing or trim of some sectors that was asked for."""

    number: int
    first: int
    count: int
    version: int                # what the sectors hold once it is done: its number, or 0 for zeros
    vague: bool                 # a trim: they may also hold what they held before
    answered: bool = False      # else it may have been done or not

    @property
    def sectors(self) -> range:
        return range(self.first, self.first + self.count)

    def applied(self, versions: set[int]) -> set[int]:
        """What a sector may hold once this was asked for, when it could hold `versions` before."""
        return {self.version} if self.answered and not self.vague else versions | {self.version}


@dataclass
class _Sector:
    durable: set[int] = field(default_factory=lambda: {0})      # one of these is on the medium, whatever happens
    later: list[Change] = field(default_factory=list)           # in the order they were asked for


@dataclass(frozen=True)
class Wrong:
    """A sector that holds what it must not."""

    sector: int
    holds: str
    allowed: str

    def __str__(self) -> str:
        return f"sector {self.sector} holds {self.holds}; allowed: {self.allowed}"


class History:
    """The history of one disk that begins with zeros."""

    def __init__(self) -> None:
        self._sectors: dict[int, _Sector] = {}
        self._under_way: set[int] = set()                       # sectors
        self._unflushed: list[Change] = []                      # answered
        self._number = 0
        self.forgotten = 0
        """Sectors that lost an answered, unflushed change in power cuts: a test in which there are none proves nothing."""

    @property
    def sectors(self) -> list[int]:
        """All that were ever to be changed."""
        return sorted(self._sectors)

    def busy(self, first: int, count: int) -> bool:
        """Whether a change of any of these sectors is under way."""
        return not self._under_way.isdisjoint(range(first, first + count))

    def begin(self, first: int, count: int, *, zeroes: bool = False, trim: bool = False) -> Change:
        """A change is about to be asked for."""
        assert not self.busy(first, count)
        self._number += 1
        change = Change(self._number, first, count, 0 if zeroes or trim else self._number, trim)
        for sector in change.sectors:
            self._sectors.setdefault(sector, _Sector()).later.append(change)
        self._under_way.update(change.sectors)
        return change

    def done(self, change: Change, *, fua: bool = False) -> None:
        """The disk says that it is done."""
        self.failed(change)
        change.answered = True
        if fua:
            self._settle(change)
        else:
            self._unflushed.append(change)

    def failed(self, change: Change) -> None:
        """The disk says that it failed, or nothing more will be heard of it: it may have been done or not."""
        self._under_way.difference_update(change.sectors)

    def flushing(self) -> list[Change]:
        """A flush is about to be asked for; what it covers."""
        return list(self._unflushed)

    def flushed(self, covered: Iterable[Change]) -> None:
        """That flush is done."""
        covered = list(covered)
        for change in covered:
            self._settle(change)
        known = set(map(id, covered))
        self._unflushed = [change for change in self._unflushed if id(change) not in known]

    def allowed(self, sector: int, *, after_cut: bool = False) -> set[int]:
        """The versions the sector may hold: now, or when the power has been cut since it was last read."""
        state = self._sectors.get(sector)
        if state is None:
            return {0}
        versions = set(state.durable)
        for change in state.later:
            versions = versions | {change.version} if after_cut else change.applied(versions)
        return versions

    def check(self, first: int, octets: bytes | memoryview, *, after_cut: bool = False) -> list[Wrong]:
        """Compare what was read; sectors with a change under way are passed over."""
        wrong = []
        for sector, piece in _pieces(first, octets):
            version, allowed = version_of(sector, piece), self.allowed(sector, after_cut=after_cut)
            if version not in allowed and sector not in self._under_way:
                wrong.append(Wrong(sector, _spoken(version, piece), ", ".join(f"version {v}" for v in sorted(allowed))))
        return wrong

    def settle_cut(self, first: int, octets: bytes | memoryview) -> None:
        """After the power was cut and all requests are over: the sectors hold this, and nothing else is there any more."""
        for sector, piece in _pieces(first, octets):
            if (state := self._sectors.get(sector)) is None:
                continue
            version = version_of(sector, piece)
            assert version is not None, "checked before"
            self.forgotten += version not in self.allowed(sector)
            state.durable, state.later = {version}, []
        self._unflushed = [change for change in self._unflushed if self._sectors[change.first].later]

    def _settle(self, change: Change) -> None:
        """The change is durable, and with it all that came before it in the same sectors."""
        for sector in change.sectors:
            state = self._sectors[sector]
            if change in state.later:       # else a later one is durable already
                index = state.later.index(change) + 1
                for older in state.later[:index]:
                    state.durable = older.applied(state.durable)
                del state.later[:index]


def _pieces(first: int, octets: bytes | memoryview) -> Iterable[tuple[int, bytes]]:
    for index in range(len(octets) // SECTOR):
        yield first + index, bytes(octets[index * SECTOR:(index + 1) * SECTOR])


def _spoken(version: int | None, octets: bytes) -> str:
    if version is not None:
        return f"version {version}" if version else "zeros"
    magic, sector, number = _STAMP.unpack_from(octets)
    if magic != _MAGIC:
        return f"no content of ours ({octets[:16].hex()}...)"
    return f"a mix that begins as version {number} of sector {sector}"
