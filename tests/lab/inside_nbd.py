"""An NBD server in the guest, for Linux's own client and libnbd beside it."""

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

from drivers.block.client import Client
from drivers.block.file import FileDisk
from drivers.block.queue import Queue
from rustosd.nbd.export import Export
from rustosd.nbd.server import NbdServer
from tests.lab.agent import tell


def client(uri: str, *words: str) -> Any:
    """What `tests.lab.nbd_client` answers."""
    done = subprocess.run(["/usr/bin/python3", "-m", "tests.lab.nbd_client", uri, *words], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def serve(socket: str, image: str, octets: int) -> dict:
    """Serve a sparse file until its clients have come and gone; what they asked for."""
    async def run() -> dict:
        server = NbdServer(asyncio.get_running_loop())
        queue = Queue(FileDisk.open(image, "disk", create_octets=octets))
        server.add(Export("disk", Client(queue, "nbd", sector_octets=1)))
        server.listen_unix(Path(socket))
        engine = server.served["disk"].engine
        tell("up")
        while not sum(engine.statistics()["ended"].values()) or server.connections():
            await asyncio.sleep(0.05)
        told = engine.statistics()
        await server.stop(1)
        queue.close()
        return told
    return asyncio.run(run())
