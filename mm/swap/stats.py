"""What is told about swap."""

from typing import NamedTuple


class StoreStats(NamedTuple):
    """What a store holds, and what it has done since it was made."""

    slots: int
    slots_used: int
    device_octets: int
    octets_stored: int          # that the pages in the slots take on the device
    pages_same: int             # in slots, that are one word all over and take nothing there
    pages_packed: int           # in slots, that take less than a page
    memory_octets: int          # that the store itself needs for its tables
    pages_written: int
    octets_written: int         # to the device
    writes: int
    pages_read: int
    octets_read: int
    reads: int
    octets_discarded: int
    corrupt: int                # pages that were not what was written
    read_again: int             # that were, when read once more
    failed: int                 # requests that the device did not do
    full: int                   # times that there was no room
    shared: int                 # times that a slot got one user more

    @property
    def ratio(self) -> float:
        """Octets of pages for each octet on the device, with all that rounding costs; pages of one word do not count."""
        pages = self.slots_used - self.pages_same
        return pages * 4096 / self.octets_stored if self.octets_stored else 1.0
