"""libnbd on an export, run by Debian's own Python, where its module is: `python3 -m tests.lab.nbd_client URI WORD...`

Words: "read:SECTOR", "write:SECTOR", "flush", one after the other; the answer is the errno of each, 0 for done. Or
"load:SECONDS": reads and writes, 16 at a time, until the time is over or the connection has ended; the answer is how many ended
with which errno, and whether the connection is there still. As JSON.
"""

import errno
import json
import sys
import time
from collections import Counter

import nbd

SECTOR = 512
DEPTH = 16


def connect(uri: str) -> nbd.NBD:
    handle = nbd.NBD()
    handle.connect_uri(uri)
    return handle


def one(handle: nbd.NBD, word: str) -> int:
    """A request's errno."""
    kind, _, sector = word.partition(":")
    try:
        if kind == "read":
            handle.pread(SECTOR, int(sector) * SECTOR)
        elif kind == "write":
            handle.pwrite(bytes(SECTOR), int(sector) * SECTOR)
        else:
            handle.flush()
    except nbd.Error as error:
        return getattr(errno, error.errno or "EPROTO")
    return 0


def load(handle: nbd.NBD, seconds: float) -> dict:
    """Keep requests under way."""
    ended: Counter[int] = Counter()

    def end(error) -> int:      # nbd.CompletionCallback: 1 retires the command
        ended[error.value if hasattr(error, "value") else error] += 1
        return 1

    limit, number = time.monotonic() + seconds, 0
    octets = nbd.Buffer.from_bytearray(bytearray(b"load" * 1024))
    try:
        while time.monotonic() < limit and not (handle.aio_is_dead() or handle.aio_is_closed()):
            while handle.aio_in_flight() < DEPTH:
                number += 1
                at = number % 512 * 4096
                if number % 2:
                    handle.aio_pread(nbd.Buffer(4096), at, end)
                else:
                    handle.aio_pwrite(octets, at, end)
            handle.poll(100)
    except nbd.Error:
        pass
    return {"ended": ended, "there": handle.aio_is_ready() or handle.aio_is_processing()}


def main(uri: str, *words: str) -> None:
    handle = connect(uri)
    kind, _, seconds = words[0].partition(":")
    print(json.dumps(load(handle, float(seconds)) if kind == "load" else [one(handle, word) for word in words]))


if __name__ == "__main__":
    main(*sys.argv[1:])
