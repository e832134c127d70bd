"""What an operator can ask about exports and do with them."""

from typing import Protocol

from rustosd.control import nbd_protocol as p
from rustosd.control.base import Done, Nothing
from rustosd.control.server import OperationFailed
from rustosd.nbd.exports import Exports
from rustosd.nbd.server import Served


class NbdCore(Protocol):
    """What these operations need of the daemon."""

    exports: Exports | None
    """None when NBD is switched off."""

    def nbd_uris(self) -> list[str]:
        """Where clients reach the first export; another's name goes behind the path's slash."""


class NbdOperations:
    """The methods of `nbd_protocol.METHODS`."""

    core: NbdCore

    async def export_list(self, _: Nothing) -> p.Exports:
        return p.Exports(uris=self.core.nbd_uris(), exports=[_row(served) for served in self._exports().rows()])

    async def export_add(self, wanted: p.ExportDisk) -> p.Export:
        exports = self._exports()
        export = await exports.add(str(wanted.name or wanted.disk), wanted.disk, wanted.read_only, wanted.description,
                             wanted.tls_only)
        return _row(exports.server.served[export.name])

    async def export_del(self, which: p.ExportChoice) -> Done:
        await self._exports().remove(str(which.name))
        return Done()

    def _exports(self) -> Exports:
        if self.core.exports is None:
            raise OperationFailed("NBD is switched off: enabled = false under [nbd]")
        return self.core.exports


def _row(served: Served) -> p.Export:
    export, counts = served.export, served.engine.statistics()
    return p.Export(
        name=export.name, disk=export.disk.info.name, octets=export.octets, read_only=not export.writable,
        tls_only=export.tls_only, description=export.description, connections=len(served.clients),
        reads=counts["requests"]["read"], writes=counts["requests"]["write"], read_octets=counts["read_octets"],
        written_octets=counts["written_octets"], errors=sum(counts["errors"].values()),
        clients=[p.NbdClient(peer=client.peer, tls=client.tls, since=round(client.since, 3),
                             pending=served.engine.pending(index)) for index, client in served.clients.items()])
