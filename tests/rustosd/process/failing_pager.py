"""A pager whose swap fails: "corrupt", "read-error" or "write-error", as the place it is given says."""

import os
import sys
import threading
import time
from types import SimpleNamespace

from mm.swap.device import RamDevice
from mm.swap.store import SwapStore
from rustosd.process import pager

OCTETS = 256 << 20


def open_store(place: SimpleNamespace, fd: int) -> SwapStore:
    os.close(fd)
    device = RamDevice(OCTETS)
    store = SwapStore(device)
    if place.fails == "write-error":
        device.fail(5, reads=False)
    else:
        threading.Thread(target=spoil, args=(device, store, place.fails), daemon=True).start()
    return store


def spoil(device: RamDevice, store: SwapStore, how: str) -> None:
    """Once much is in swap, there is something wrong with all of it."""
    while store.stats().slots_used < 4096:
        time.sleep(0.01)
    if how == "read-error":
        device.fail(5, writes=False)
        return
    while True:
        for slot in range(8192):
            device.flip(slot * 4096, 1)
        time.sleep(60)


pager.open_store, pager.from_builtins = open_store, lambda place: SimpleNamespace(**place, keep_awake=False)
if __name__ == "__main__":
    sys.exit(pager.main(sys.argv[1:]))
