"""The part of the protocol that is about programs' exceptions; see `rustosd.control.protocol`."""

from typing import Annotated, Final, Literal

import msgspec

from rustosd.control.base import Method, Parameters, Row

KEPT: Final = 1000
"""Records that can be listed."""

FaultKind = Literal["divide-error", "debug", "breakpoint", "overflow", "bound-range", "invalid-opcode", "segment-not-present",
                    "stack-segment", "general-protection", "page-fault", "x87-error", "alignment-check", "simd-error",
                    "swap-fault", "unknown"]

class Fault(Row):
    """A program that an exception of the processor ended."""

    id: int
    at: str
    pid: int
    thread: int                 # the one that raised it
    program: str
    user: str                   # whose supervisor told of it
    kind: str
    signal: str                 # what it ended by
    trap: int | None            # the processor's number for it; None: only the signal is known
    error_code: str | None
    address: str | None         # what was accessed
    words: str                  # what has happened
    reported: bool              # there is a report of it


class FaultReport(Row):
    """All of one."""

    fault: Fault
    text: str                   # empty: there is none, or none any more


class FaultQuery(Parameters):
    kind: FaultKind | None = None
    pid: Annotated[int, msgspec.Meta(ge=1, le=1 << 22)] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=KEPT)] = 100


class FaultId(Parameters):
    id: Annotated[int, msgspec.Meta(ge=1, le=1 << 60)]


METHODS = (
    Method("faults.list", FaultQuery, list[Fault], False, "Programs that exceptions of the processor ended, the newest first."),
    Method("faults.read", FaultId, FaultReport, False, "All about one of them: registers, back-trace, stack, mappings.",
           guarded=True),
)
