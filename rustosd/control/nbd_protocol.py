"""The part of the protocol that is about exports of disks to NBD clients; see `rustosd.control.protocol`."""

from typing import Annotated

import msgspec

from rustosd.control.base import Done, Method, Nothing, Parameters, Row
from rustosd.control.disk_protocol import Name
from rustosd.values import ExportName


class NbdClient(Row):
    """A connection to an export."""

    peer: str                   # "unix", "stack", or an address and port of the kernel's
    tls: bool
    since: float                # when it came, in seconds since 1970
    pending: int                # requests that are not answered yet


class Export(Row):
    """A disk that NBD clients can use."""

    name: str
    disk: str
    octets: int
    read_only: bool
    tls_only: bool
    description: str
    connections: int
    reads: int
    writes: int
    read_octets: int
    written_octets: int
    errors: int                 # requests that were answered by one
    clients: list[NbdClient]


class Exports(Row):
    """All of them, and where clients reach them."""

    uris: list[str]             # of the first export; another's name goes behind the path's slash
    exports: list[Export]


class ExportDisk(Parameters):
    """`name`: what clients ask for; the disk's name when it is left out."""

    disk: Name
    name: ExportName | None = None
    read_only: bool = False
    tls_only: bool = False
    description: Annotated[str, msgspec.Meta(max_length=1024)] = ""


class ExportChoice(Parameters):
    """An export by its name."""

    name: ExportName


METHODS = (
    Method("export.list", Nothing, Exports, False, "The disks that NBD clients can use, and who does."),
    Method("export.add", ExportDisk, Export, True, "Let NBD clients use a disk."),
    Method("export.del", ExportChoice, Done, True, "Let them use it no more: their requests end, then all is flushed."),
)
