"""What crosses the control socket about one interface, one connection, and the whole at a glance."""

from typing import Annotated

import msgspec

from rustosd.control.base import Done, Method, Parameters, Row
from rustosd.values import InterfaceName

CONNECTION_ID = r"^[0-9]{1,10}\.[0-9]{1,10}$"
MOST_BUSIEST = 64


class Ring(Row):
    """Descriptors between the driver and the device."""

    name: str
    descriptors: int


class NicDetails(Row):
    """All about one interface. What its kind does not have is null or empty."""

    name: str
    kind: str                       # loopback, tap, or the driver's name
    link: str
    speed_mbps: int | None
    duplex: str | None              # full, half
    mac: str | None
    mtu: int
    features: list[str]             # what the device does for the stack: rx_checksum, tx_checksum, tso4, tso6
    addresses: list[str]
    device: str | None              # its PCI address
    model: str | None
    backend: str | None             # vfio, uio
    rings: list[Ring]
    interrupts: str | None          # msix, msi, intx
    moderation_us: int | None       # between two interrupts, at least
    interrupt_statistics: dict[str, int]
    rx_frames: int
    rx_octets: int
    tx_frames: int
    tx_octets: int
    output_queued: int              # frames that wait for the device
    statistics: dict[str, int]      # the driver's


class Timer(Row):
    """A timer of a connection that runs."""

    name: str
    in_ms: float                    # below zero: it is due


class ConnectionDetails(Row):
    """All about one TCP connection. Sizes are in octets."""

    id: str
    state: str
    local: str
    remote: str
    nic: str
    owner: str                      # in words
    service: str | None
    pid: int | None
    age_s: float
    rx_octets: int
    tx_octets: int
    unread: int
    unsent: int                     # written and not acknowledged
    in_flight: int
    retransmits: int
    send_window: int
    receive_window: int
    cwnd: int
    ssthresh: int | None            # none yet
    pipe: int
    recovery: str | None            # fast, rto
    rtt_us: float | None
    rtt_variance_us: float | None
    rto_ms: float
    backoff: int                    # time-outs in a row
    mss: int
    peer_mss: int
    sack: bool
    timestamps: bool
    window_scale: list[int] | None  # the peer's and ours, when agreed
    nodelay: bool
    keepalive: bool
    send_memory: int
    send_limit: int
    receive_memory: int
    receive_limit: int
    out_of_order_ranges: int
    sacked_ranges: int
    timers: list[Timer]
    error: str | None               # what an ICMP error said last, or what ended it


class Busy(Row):
    """A connection that moves octets."""

    id: str
    local: str
    remote: str
    state: str
    owner: str
    pid: int | None             # the process that has it, or the supervisor of the one that has
    rx_octets: int
    tx_octets: int
    rtt_us: float | None
    retransmits: int


class Traffic(Row):
    """An interface's counters."""

    name: str
    link: str
    rx_frames: int
    rx_octets: int
    tx_frames: int
    tx_octets: int
    rx_dropped: int
    tx_dropped: int


class Sample(Row):
    """The daemon's counters at one moment; of two of them rates are made."""

    version: str
    uptime_s: float
    at_ns: int                      # on a clock that never goes back
    nics: list[Traffic]
    connections: int
    busiest: list[Busy]
    drops: dict[str, int]           # reason -> frames, both directions
    buffer_octets: int
    buffer_limit_octets: int
    resident_octets: int
    pump: dict[str, int]


class NicQuery(Parameters):
    name: InterfaceName


class ConnectionQuery(Parameters):
    id: Annotated[str, msgspec.Meta(pattern=CONNECTION_ID)]


class ConnectionEnd(Parameters):
    id: Annotated[str, msgspec.Meta(pattern=CONNECTION_ID)]
    reset: bool = False
    """At once, and the peer sees RST; else what was written still goes out, then FIN."""


class SampleQuery(Parameters):
    most: Annotated[int, msgspec.Meta(ge=0, le=MOST_BUSIEST)] = 20


METHODS = (
    Method("nic.show", NicQuery, NicDetails, False, "All about one interface."),
    Method("conn.show", ConnectionQuery, ConnectionDetails, False, "All about one TCP connection."),
    Method("conn.close", ConnectionEnd, Done, True, "End a TCP connection."),
    Method("top.sample", SampleQuery, Sample, False, "The daemon's counters at this moment."),
)
