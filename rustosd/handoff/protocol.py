"""What a program can ask on its session: one JSON object a packet, answered by one.

An answer is the object a request is said to give, or {"errno": ..., "error": "what, and why"}. Ids are unguessable, so
whoever knows one may use it: sockets can be passed on to other processes as any descriptor can.
"""

from typing import Annotated, Any, Literal

import msgspec

from rustosd.client.wire import MORE_MOST, SPARES_MOST
from rustosd.client.wire import REQUEST_MOST as REQUEST_MOST

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Host = Annotated[str, msgspec.Meta(max_length=64)]
Id = Annotated[str, msgspec.Meta(min_length=16, max_length=16)]

Option = Literal["nodelay", "keepalive", "keepalive_idle", "keepalive_interval", "keepalive_probes", "user_timeout",
                 "reset_on_close", "receive_buffer", "reuse_port"]
Value = Annotated[int, msgspec.Meta(ge=0, le=1 << 30)]


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag=str.lower):
    pass


class Restrict(_Request):
    """From here on this session may less: it asks for a user whom root names, or is under one more policy: {}

    For a user whom root names `policy` counts as that user's own, which may allow him ports below 1024.
    """

    uid: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFE)] | None = None
    groups: Annotated[list[int], msgspec.Meta(max_length=256)] = []
    policy: Annotated[str, msgspec.Meta(max_length=64)] = ""


class May(_Request):
    """Whether a datagram may be sent there: {}"""

    id: Id
    host: Host
    port: Port


class Open(_Request):
    """A new socket: {"id": ..., "buffer": the SO_SNDBUF it has}, with its descriptor.

    "policed" is true where a policy says where datagrams may go. Up to `more` others of its kind may come along: their ids in
    "more", their descriptors behind the first. With `ports` each stream socket has a port kept for it, which nobody else is
    given who asks for any: in "ports", 0 for none.
    """

    type: Literal["stream", "datagram"]
    family: Literal[4, 6]
    more: Annotated[int, msgspec.Meta(ge=0, le=MORE_MOST)] = 0
    ports: bool = False


class Bind(_Request):
    """Choose the local address ("" is any) and port (0 is any free one): as Names."""

    id: Id
    host: Host
    port: Port
    v6only: bool = False
    options: dict[Option, Value] = {}       # set before


class Connect(_Request):
    """Begin to connect a stream, or choose the peer of a datagram socket: as Names.

    The program writes `chaff` octets before, until its end takes no more: the daemon drops them when the connection is
    established, so that the descriptor becomes writable just then. `bound`: as for Listen.
    """

    id: Id
    host: Host
    port: Port
    chaff: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 0
    options: dict[Option, Value] = {}       # set before
    bound: bool = False
    v6only: bool = False


class Listen(_Request):
    """Accept connections; they come as descriptors on the socket itself: as Names.

    `bound`: the program was told before that it is bound to any address, with the port that was kept for it.
    """

    id: Id
    backlog: int
    bound: bool = False
    v6only: bool = False
    options: dict[Option, Value] = {}       # set before, and inherited by what is accepted


class Spare(_Request):
    """Ends for the next connections of a listening socket, ahead: {"ids": [...]}, with their descriptors in this order.

    Many at a time they travel cheaper. They count as sockets, there are as many as fit, and they go with the listening socket.
    """

    id: Id
    count: Annotated[int, msgspec.Meta(ge=1, le=SPARES_MOST)]


class Names(_Request):
    """{"local": [host, port], "remote": [host, port] or null}"""

    id: Id


class Error(_Request):
    """How the connection ended, told once: {"fate": errno}, 0 when nothing went wrong."""

    id: Id


class Set(_Request):
    """Set an option: {}, or nothing at all where the program does not want to hear of it."""

    id: Id
    option: Option
    value: Value
    quiet: bool = False


class Facts(_Request):
    """What the stack knows of a connection (`netstack.tcp.api.Tcp.info`) or of a datagram socket."""

    id: Id


class Addresses(_Request):
    """The host's own addresses: {"addresses": [...]}, without those of loopback and of the link."""


Request = Addresses | Restrict | May | Open | Bind | Connect | Listen | Spare | Names | Error | Set | Facts
decode = msgspec.json.Decoder(Request).decode
encode = msgspec.json.Encoder().encode
Answer = dict[str, Any]
