"""Where a program's swap is kept: the daemon says so and hands over a descriptor; `opening` makes a store of both."""

from typing import Any, Literal

import msgspec

Compression = Literal["none", "lz4", "zstd"]


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon says, with a descriptor beside it.

    A file: the descriptor is the file. An export: this part of it is ours for as long as the descriptor is open.
    """

    kind: Literal["file", "export"]
    name: str
    """A path, for people; or the export's name."""
    octets: int
    begin: int = 0
    socket: str = ""
    """Where the export is served."""
    compression: Compression = "none"
    encryption: bool = True
    direct: bool = False
    keep_awake: bool = True
    """Processors, while faults come often."""


def from_builtins(place: dict[str, Any]) -> Place:
    """A place that was sent on as JSON. Raises ValueError."""
    return msgspec.convert(place, Place)
