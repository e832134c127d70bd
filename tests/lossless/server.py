"""An NBD server of ours on a disk whose unflushed data are lost when this process is killed.

    server.py FILE SOCKET [--lie]       serve FILE as the export "disk"; --lie: a disk that says it flushed, and did not

The file is what is on the medium; the cache before it is this process's memory (`drivers.block.volatile`). Everything between
is as in the daemon: the queue, a client of it, the server.
"""

import asyncio
import sys
from pathlib import Path

import uvloop

from drivers.block.file import FileDisk
from drivers.block.layer import Asked, Layer
from drivers.block.volatile import VolatileDisk
from drivers.request import Operation, RequestBurst
from rustosd import log
from rustosd.nbd.export import Export
from rustosd.nbd.server import NbdServer
from rustosd.storage import SharedDisk


class LyingDisk(Layer):
    """Flushes are done at once, by doing nothing; FUA is forgotten."""

    def begin(self, burst: RequestBurst, asked: Asked) -> bool:
        if asked.operation == Operation.FLUSH:
            self.tell(asked.tag, 0)
            return True
        return self.pass_on(burst, asked._replace(flags=0))


async def serve(file: str, socket: str, lies: bool) -> None:
    """Until killed; says when it is ready."""
    disk = VolatileDisk(FileDisk.open(file, "medium"))
    shared = SharedDisk(LyingDisk(disk) if lies else disk)
    server = NbdServer(asyncio.get_running_loop())
    server.add(Export("disk", shared.client("nbd")))
    server.listen_unix(Path(socket))
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    log.configure("warning")
    uvloop.run(serve(sys.argv[1], sys.argv[2], "--lie" in sys.argv[3:]))
