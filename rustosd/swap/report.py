"""What is told of a program's swap: by its pager to its supervisor, by that to the daemon, and on to whoever looks."""

from typing import Annotated, Any

import msgspec

from mm.swap.store import SwapStore
from rustosd.swap.place import Compression

_Amount = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All figures since the beginning but those of what is there now: `octets`, `used_octets`, `stored_octets`.

    A supervisor is its user's and may say anything: what makes no sense is refused by type.
    """

    device: Annotated[str, msgspec.Meta(max_length=4096, pattern=r"^[^\x00-\x1f\x7f-\x9f]*\Z")]
    encryption: bool
    compression: Compression
    octets: Annotated[int, msgspec.Meta(ge=1, le=1 << 62)]                 # what the slots hold at most
    used_octets: _Amount            # pages in slots
    stored_octets: _Amount          # that these take on the device
    same_octets: _Amount            # pages in slots that are one word all over, and take nothing
    table_octets: _Amount           # memory that this needs
    in_octets: _Amount              # pages that were brought in
    out_octets: _Amount
    read_octets: _Amount            # from the device
    written_octets: _Amount
    corrupt: _Amount = 0            # pages that were not what was written
    read_again: _Amount = 0
    failed: _Amount = 0             # requests that the device did not do
    full: _Amount = 0               # times that there was no room
    faults: _Amount = 0             # that waited for swap
    ahead_pages: _Amount = 0        # brought in before anybody asked
    ahead_used: _Amount = 0         # of those, the ones that somebody asked for then

    @property
    def ratio(self) -> float:
        """Octets of pages for each octet on the device."""
        return (self.used_octets - self.same_octets) / self.stored_octets if self.stored_octets else 1.0


def report(store: SwapStore, **paging: int) -> dict[str, Any]:
    """The report on a store, ready for JSON; `paging`: `faults`, `ahead_pages`, `ahead_used`."""
    s = store.stats()
    packer = store.packer
    return msgspec.to_builtins(Report(
        device=store.device.describe(), encryption=store.sealer.encrypts, compression="none" if packer is None else packer.name,
        octets=s.slots * 4096, used_octets=s.slots_used * 4096, stored_octets=s.octets_stored, same_octets=s.pages_same * 4096,
        table_octets=s.memory_octets, in_octets=s.pages_read * 4096, out_octets=s.pages_written * 4096,
        read_octets=s.octets_read, written_octets=s.octets_written, corrupt=s.corrupt, read_again=s.read_again - s.corrupt,
        failed=s.failed, full=s.full, **paging))
