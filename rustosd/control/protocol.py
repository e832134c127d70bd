"""What crosses the control socket: every method once, with the types of its parameters and its result.

JSON-RPC 2.0, one message a line. The server decodes by these types, the client too, and a row printed as a table
or as JSON is one of these structs. Optional values are null when there is nothing to tell. What is about devices, disks,
captures, processes, upkeep and routes traced is in the other `*_protocol` modules here.
"""

from typing import Annotated, Any, Literal

import msgspec

from rustosd.control import (
    capture_protocol,
    device_protocol,
    disk_protocol,
    fault_protocol,
    memory_protocol,
    nbd_protocol,
    network_protocol,
    policy_protocol,
    process_protocol,
    program_protocol,
    sata_protocol,
    sched_protocol,
    swap_protocol,
    trace_protocol,
    upkeep_protocol,
)
from rustosd.control.base import Done, Method, Nothing, Parameters, Row
from rustosd.values import Address, Cidr, InterfaceName, Mac, Prefix

SCHEMA = 1
"""The version of all methods and rows: it grows when something a client relies on changes or goes."""

MAX_REQUEST_OCTETS = 65536
"""The longest line a client may send, its newline included."""

PARSE_ERROR = -32700        # JSON-RPC 2.0, 5.1
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
FAILED = -32000             # understood and allowed, but it could not be done; the message says why
FORBIDDEN = -32001
BUSY = -32002               # too many clients


class Status(Row):
    """The daemon in one look."""

    version: str
    pid: int
    uptime_s: float
    interfaces: int
    connections: int            # TCP, in any state but LISTEN
    listeners: int
    rx_frames: int
    tx_frames: int
    dropped_frames: int
    services: list[str]         # name and port, "http/80"
    programs: list[str]         # name and state, "nginx running"
    health: list[upkeep_protocol.HealthNote]        # the worst first


class Nic(Row):
    """An interface of the stack; counters since it was made."""

    name: str
    kind: str                   # tap, loopback
    link: Literal["up", "down"]
    mac: str | None
    mtu: int
    offload: bool
    addresses: list[str]
    rx_frames: int
    rx_octets: int
    tx_frames: int
    tx_octets: int
    rx_dropped: int


class InterfaceAddress(Row):
    """An address of an interface."""

    nic: str
    address: str                # with its prefix length
    state: str                  # tentative, preferred, duplicate


class Route(Row):
    """A way to a prefix."""

    destination: str
    gateway: str | None
    nic: str
    source: str | None
    metric: int
    kind: str                   # connected, static, local


class Neighbor(Row):
    """What ARP or NDP knows of a host on a link."""

    address: str
    mac: str | None
    nic: str
    state: str


class Connection(Row):
    """A TCP connection, a listener, or a UDP socket; what a kind does not have is null."""

    id: str | None              # of a connection, for as long as it lives
    protocol: Literal["tcp", "udp"]
    state: str                  # RFC 9293 3.3.2, in lower case; for UDP open or connected
    local: str                  # address:port, [address]:port, *:port for any address of both families
    remote: str | None
    unread_octets: int | None   # arrived, and the application has not read them
    unsent_octets: int | None   # written, and the peer has not acknowledged them
    rx_octets: int | None
    tx_octets: int | None
    rtt_us: float | None
    retransmits: int | None


class Connections(Row):
    """Some or all of them; `total` counts also those that were not asked for."""

    total: int
    connections: list[Connection]


class Drop(Row):
    """A reason why frames ended without use."""

    reason: str
    direction: Literal["in", "out"]
    frames: int
    help: str


class Count(Row):
    """A counter that is not the end of a frame."""

    counter: str
    count: int
    help: str


class Echo(Row):
    """What became of one echo request."""

    address: str
    sequence: int
    octets: int
    rtt_us: float | None        # None: no answer
    hop_limit: int | None       # of the answer when it arrived
    error: str | None           # why there was none: what an ICMP error says, or what keeps us from sending


class ConnectionQuery(Parameters):
    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000


class AddressChange(Parameters):
    nic: InterfaceName
    address: Cidr


class RouteChange(Parameters):
    destination: Prefix
    gateway: Address | None = None
    nic: InterfaceName | None = None
    metric: Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFE)] = 0


class RouteRemoval(Parameters):
    destination: Prefix
    gateway: Address | None = None
    nic: InterfaceName | None = None
    metric: Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFE)] | None = None


class NeighborChange(Parameters):
    address: Address
    mac: Mac
    nic: InterfaceName


class NeighborRemoval(Parameters):
    address: Address
    nic: InterfaceName


class EchoRequest(Parameters):
    address: Address
    identifier: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    sequence: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    octets: Annotated[int, msgspec.Meta(ge=0, le=65507)] = 56
    timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=60_000)] = 1000


METHODS = {method.name: method for method in (
    Method("daemon.status", Nothing, Status, False, "The daemon in one look."),
    Method("nic.list", Nothing, list[Nic], False, "The interfaces of the stack."),
    Method("addr.list", Nothing, list[InterfaceAddress], False, "The addresses of all interfaces."),
    Method("addr.add", AddressChange, Done, True, "Give an interface one more address."),
    Method("addr.del", AddressChange, Done, True, "Take an address from an interface."),
    Method("route.list", Nothing, list[Route], False, "The routing table."),
    Method("route.add", RouteChange, Done, True, "Add a static route."),
    Method("route.del", RouteRemoval, Done, True, "Remove static routes."),
    Method("neigh.list", Nothing, list[Neighbor], False, "The ARP and NDP cache."),
    Method("neigh.add", NeighborChange, Done, True, "Add a permanent neighbor."),
    Method("neigh.del", NeighborRemoval, Done, True, "Forget a neighbor."),
    Method("conn.list", ConnectionQuery, Connections, False, "Connections, listeners and UDP sockets."),
    Method("drops.list", Nothing, list[Drop], False, "Why frames were dropped, every reason."),
    Method("counters.list", Nothing, list[Count], False, "The counters of the stack."),
    Method("ping.echo", EchoRequest, Echo, False, "Send one echo request and wait for its answer.", guarded=True),
    Method("socket.session", Nothing, Done, False, "A descriptor on which to ask for sockets: rustosd.handoff.protocol.",
           for_programs=True),
    *capture_protocol.METHODS, *device_protocol.METHODS, *disk_protocol.METHODS, *sata_protocol.METHODS, *nbd_protocol.METHODS,
    *network_protocol.METHODS, *process_protocol.METHODS, *fault_protocol.METHODS, *sched_protocol.METHODS,
    *policy_protocol.METHODS, *program_protocol.METHODS, *swap_protocol.METHODS, *memory_protocol.METHODS,
    *trace_protocol.METHODS, *upkeep_protocol.METHODS,
)}


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON-RPC request; without an id it is a notification and gets no answer."""

    jsonrpc: Literal["2.0"]
    method: str
    params: msgspec.Raw = msgspec.Raw(b"{}")
    id: int | str | msgspec.UnsetType | None = msgspec.UNSET


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    code: int
    message: str


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A JSON-RPC response: a result or an error."""

    jsonrpc: Literal["2.0"]
    id: int | str | None
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: Failure | msgspec.UnsetType = msgspec.UNSET


def decode_value(kind: type, value: Any) -> Any:
    """msgspec's dec_hook for the checked texts of `rustosd.values`."""
    if not isinstance(value, str):
        raise ValueError(f"expected a text, got {value!r}")
    return kind(value)
