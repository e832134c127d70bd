"""What crosses the control socket about the way to a host."""

from typing import Annotated, Literal

import msgspec

from rustosd.control.base import Method, Parameters, Row
from rustosd.values import Address

FIRST_PORT = 33434      # as every traceroute has it
MOST_PROBES = 10


class HopQuery(Parameters):
    """Probes that may take so many hops. They are UDP to `port` and those behind it, or echo requests with `identifier`."""

    address: Address
    hop_limit: Annotated[int, msgspec.Meta(ge=1, le=255)]
    method: Literal["udp", "icmp"] = "udp"
    probes: Annotated[int, msgspec.Meta(ge=1, le=MOST_PROBES)] = 3
    port: Annotated[int, msgspec.Meta(ge=1, le=65535 - MOST_PROBES)] = FIRST_PORT
    identifier: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    sequence: Annotated[int, msgspec.Meta(ge=0, le=65535 - MOST_PROBES)] = 1
    octets: Annotated[int, msgspec.Meta(ge=0, le=65507)] = 32
    timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=60_000)] = 1000


class Probe(Row):
    """What came back for one probe; all null: nothing."""

    address: str | None         # who answered
    rtt_us: float | None
    error: str | None           # what it said, if not that the hops were used up
    reached: bool               # it is the host we look for


class Hop(Row):
    """One hop on the way."""

    hop_limit: int
    probes: list[Probe]


METHODS = (Method("trace.hop", HopQuery, Hop, False, "Probe for the host so many hops away.", guarded=True),)
