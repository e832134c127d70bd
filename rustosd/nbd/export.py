"""An export: a disk under a name, and what its clients are told about it."""

from dataclasses import dataclass
from typing import Final

from drivers.disk import Disk, Feature
from rustosd.nbd import wire

PREFERRED_OCTETS: Final = 4096
CONTEXT: Final = "base:allocation"
CONTEXT_ID: Final = 1


@dataclass(frozen=True, slots=True)
class Export:
    """What the handshake tells of a disk. `name` is what clients ask for."""

    name: str
    disk: Disk
    read_only: bool = False
    description: str = ""
    tls_only: bool = False
    """Served to nobody who has not begun TLS."""

    @property
    def octets(self) -> int:
        """Its size."""
        return self.disk.info.octets

    @property
    def writable(self) -> bool:
        """Whether clients may change it."""
        return not (self.read_only or Feature.READ_ONLY & self.disk.info.features)

    @property
    def has_status(self) -> bool:
        """Whether the disk knows which of it is allocated."""
        return bool(self.disk.info.features & Feature.EXTENTS)

    def block_sizes(self, max_payload: int) -> tuple[int, int, int]:
        """The least, the preferred and the largest request, in octets."""
        info = self.disk.info
        preferred = max(PREFERRED_OCTETS, info.physical_octets, info.sector_octets)
        return info.sector_octets, preferred, max(preferred, max_payload)

    def flags(self, structured: bool) -> int:
        """The transmission flags. All connections share the disk, so a flush on one covers what any has written."""
        has = self.disk.info.features
        flags = (wire.FLAG_HAS_FLAGS | wire.FLAG_SEND_FLUSH | wire.FLAG_SEND_FUA | wire.FLAG_CAN_MULTI_CONN
                 | wire.FLAG_SEND_CACHE)
        if structured:
            flags |= wire.FLAG_SEND_DF
        if has & Feature.ROTATING:
            flags |= wire.FLAG_ROTATIONAL
        if not self.writable:
            return flags | wire.FLAG_READ_ONLY
        if has & Feature.TRIM:
            flags |= wire.FLAG_SEND_TRIM
        if has & Feature.WRITE_ZEROES:
            flags |= wire.FLAG_SEND_WRITE_ZEROES | wire.FLAG_SEND_FAST_ZERO
        return flags
