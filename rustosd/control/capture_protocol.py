"""What crosses the control socket about capturing frames."""

from typing import Annotated, Final, Literal

import msgspec

from rustosd.control.base import Method, Parameters, Row
from rustosd.values import InterfaceName

BUFFER_KIB: Final = 4096
"""What may wait for a slow reader unless more, or less, is asked for."""
SNAP_OCTETS: Final = 262144
"""As tcpdump has it: more than the longest frame."""


class CaptureRequest(Parameters):
    """What to capture. A descriptor comes with the answer; what is read from it is pcapng. Its reader shuts down its
    writing side to end the capture, and then reads the rest."""

    interfaces: Annotated[tuple[InterfaceName, ...], msgspec.Meta(max_length=32)] = ()
    """None: all there are now."""
    program: Annotated[bytes, msgspec.Meta(max_length=32768)] = b""
    """The filter, classic BPF: code (2 octets), jump_true, jump_false, k (4 octets) for each instruction, little-endian."""
    expression: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    """... and as it was written."""
    snap_octets: Annotated[int, msgspec.Meta(ge=14, le=SNAP_OCTETS)] = SNAP_OCTETS
    direction: Literal["both", "in", "out"] = "both"
    drops: bool = False
    """Only frames that were dropped."""
    reasons: Annotated[tuple[str, ...], msgspec.Meta(max_length=256)] = ()
    """... and only for these reasons."""
    count: Annotated[int, msgspec.Meta(ge=1)] | None = None
    duration_ms: Annotated[int, msgspec.Meta(ge=1, le=7 * 86_400_000)] | None = None
    buffer_kib: Annotated[int, msgspec.Meta(ge=64, le=65536)] = BUFFER_KIB


class CaptureStarted(Row):
    """A capture runs."""

    interfaces: list[str]


METHODS = (
    Method("capture.start", CaptureRequest, CaptureStarted, False, "Frames as pcapng, on a descriptor that comes along.",
           guarded=True),
)
