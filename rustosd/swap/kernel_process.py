"""The process that serves Linux's own swap from an export of ours: small, locked in memory, and alone with it.

It is started by the daemon with a JSON object as its argument, says on stdout one line for each thing that has happened, and is
told on stdin to end; when stdin ends, the daemon has.
"""

import json
import os
import signal
import socket
import sys
import threading
from typing import Any

from mm.swap.seal import LibraryMissing
from mm.swap.store import SwapStore
from rustosd.nbd.device import NbdDevice
from rustosd.swap.kernel_nbd import Joined, switch_off
from rustosd.swap.kernel_serve import KernelServer
from rustosd.swap.locked import Locked
from rustosd.swap.sealing import sealer

NEVER = -1000
_WARM_UP = 64


def _say(**words: Any) -> None:
    try:
        sys.stdout.write(json.dumps(words) + "\n")
        sys.stdout.flush()
    except OSError:
        pass            # nobody listens any more


def _open(wanted: dict[str, Any]) -> SwapStore:
    """With all slots taken, for they are the kernel's pages, and everything that is needed to use them."""
    store = SwapStore(NbdDevice(wanted["socket"], wanted["export"]), sealer=sealer(wanted["encryption"]))
    store.allocate(store.slots.count)
    pages = os.urandom(_WARM_UP * 4096)
    store.write(0, pages)
    store.read_into(0, _WARM_UP, bytearray(pages))
    store.release(0, _WARM_UP)
    store.allocate(_WARM_UP)
    return store


def serve(wanted: dict[str, Any]) -> None:
    """Swap on `wanted["device"]` until stdin says otherwise. Raises OSError."""
    store = _open(wanted)
    ours, kernels = socket.socketpair()
    server = KernelServer(ours.fileno(), store)
    Locked().begin(NEVER, whole=True)
    joined = Joined(wanted["device"], kernels.fileno(), store.slots.count * 4096)
    threads = [threading.Thread(target=work, daemon=True) for work in (server.serve, joined.run)]
    for thread in threads:
        thread.start()
    try:
        joined.make_swap(wanted["priority"])
        _say(ready=wanted["device"], octets=joined.octets)
        _until_told(wanted["device"])
    finally:
        joined.let_go()
        kernels.close()
        for thread in threads:
            thread.join(5)
    _say(off=True, reads=server.reads, writes=server.writes, errors=server.errors)


def _until_told(device: str) -> None:
    """Until swap is off: when somebody says so, and again until it works; when nobody is there any more, once."""
    while True:
        line = sys.stdin.readline()
        try:
            switch_off(device)
            return
        except OSError as error:
            _say(error=error.strerror)
            if not line:
                raise


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # the terminal's is for the daemon, which tells us
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        serve(json.loads(sys.argv[1]))
    except (OSError, LibraryMissing) as error:
        _say(failed=getattr(error, "strerror", None) or str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
