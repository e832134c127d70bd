"""What can go wrong with swap.

    SwapError
    +-- SwapFull            no slots, or no room on the device: give something back, or make [swap] larger
    +-- SwapFailed          a device did not do what it was asked: `errno`, `first`, `count`, `device`
        +-- SwapCorrupt     it gave back something else than was written
"""

import os


class SwapError(Exception):
    """Of which all others are."""


class SwapFull(SwapError):
    """There is no room; nothing was written."""


class SwapFailed(SwapError):
    """A device failed with the pages of slots `first` to `first + count - 1`."""

    def __init__(self, device: str, what: str, errno: int, first: int, count: int, why: str = "") -> None:
        self.device, self.errno, self.first, self.count = device, errno, first, count
        slots = f"slot {first}" if count == 1 else f"slots {first} to {first + count - 1}"
        super().__init__(f"{device}: cannot {what} {slots}: {why or os.strerror(errno)}")


class SwapCorrupt(SwapFailed):
    """The page of a slot is not what was written there. Whoever needs it cannot go on; the others can."""

    def __init__(self, device: str, errno: int, slot: int) -> None:
        super().__init__(device, "read", errno, slot, 1, "the page is not what was written: its seal does not fit")
