"""Our NBD server in a process of its own, as the daemon has it: `python -m benchmarks.nbd_server FILE SOCKET`."""

import asyncio
import signal
import sys
from pathlib import Path

import uvloop

from drivers.block.client import Client
from drivers.block.file import FileDisk
from drivers.block.queue import Queue
from rustosd.log import configure
from rustosd.nbd.export import Export
from rustosd.nbd.server import NbdServer


async def serve(image: str, path: str) -> None:
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    server = NbdServer(loop)
    queue = Queue(FileDisk.open(image, "disk"))
    server.add(Export("disk", Client(queue, "nbd", sector_octets=1)))
    server.listen_unix(Path(path))
    await over.wait()
    await server.stop(1)
    queue.close()


if __name__ == "__main__":
    configure("error", "json")
    uvloop.run(serve(sys.argv[1], sys.argv[2]))
