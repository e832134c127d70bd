"""Random reads and changes on an NBD export by libnbd, with a `History` of what they must leave behind.

It runs in Debian's own interpreter, where libnbd's Python module is; `Load` in `loads.py` starts and drives it. Each line of
its standard input is an order as JSON, each line of its output the answer. What is wrong with the disk is in the answers;
this program ends with an error only when it is used wrongly.
"""

import ctypes
import errno
import json
import os
import random
import select
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, TextIO

import nbd

from tests.lossless.history import SECTOR, Change, History, Wrong, content

LONGEST = 256
"""Sectors of one request."""
CHUNK = 2048
"""Sectors of one read while everything is compared."""
LOUD = 20
"""So many wrong sectors are told; there is no need for more."""
MIX = {"write": 40, "read": 25, "fua": 8, "flush": 8, "zero": 8, "trim": 8, "zero_fua": 3}
_libc = ctypes.CDLL(None, use_errno=True)


class Request(NamedTuple):
    """One that has no answer yet."""

    place: range                            # sectors that no other request may touch meanwhile
    end: Callable[[int], int]


class Load:
    """One disk's load. Sizes in sectors of 512 octets."""

    def __init__(self, sectors: int, seed: int, unit: int = 1) -> None:
        """Uses the disk's first `sectors`; `unit`: requests begin and end at multiples of it, 8 on a disk of 4 KiB sectors."""
        self.mix = MIX
        self.history = History()
        self.sectors, self.unit = sectors, unit
        self.random = random.Random(seed)
        self.handles: list[nbd.NBD] = []
        self.under_way: dict[int, Request] = {}     # by serial number
        self.serial = 0
        self.done = 0
        self.errors: Counter[str] = Counter()
        self.wrong: list[Wrong] = []

    def enter(self, namespace: str) -> dict[str, Any]:
        """From now on connect inside this network namespace, a file."""
        with open(namespace) as file:
            if _libc.setns(file.fileno(), 0):
                return {"error": f"setns to {namespace}: {os.strerror(ctypes.get_errno())}"}
        return {}

    def connect(self, uri: str, connections: int, patience_s: float) -> dict[str, Any]:
        """Open the export, as often as asked for; tries again until the time is over."""
        limit = time.monotonic() + patience_s
        while True:
            self.handles = []
            try:
                for _ in range(connections):
                    handle = nbd.NBD()
                    self.handles.append(handle)
                    handle.connect_uri(uri)
                break
            except nbd.Error as error:
                if time.monotonic() > limit:
                    return {"error": error.string}
                time.sleep(0.02)
        first = self.handles[0]
        if connections > 1 and not first.can_multi_conn():
            return {"error": "the export does not promise that several connections see the same"}
        return {"octets": first.get_size(), "flush": first.can_flush(), "fua": first.can_fua(), "trim": first.can_trim(),
                "zero": first.can_zero()}

    def run(self, operations: int, depth: int, seconds: float, slack_s: float, without: list[str]) -> dict[str, Any]:
        """That many requests, of all kinds but those `without`, or until nobody answers any more, or until the time is over.

        Those under way then have `slack_s` to end; what has not by then is `stuck`, and may have been done or not.
        """
        self.done, self.errors, self.wrong = 0, Counter(), []
        self.mix = {kind: weight for kind, weight in MIX.items() if kind not in without}
        limit = time.monotonic() + seconds
        begun = 0
        while self.done < operations and time.monotonic() < limit:
            while begun < operations and len(self.under_way) < depth and self._ask():
                begun += 1
            if not self._wait():
                break
        while self.under_way and time.monotonic() < limit + slack_s and self._wait():
            pass
        answered, stuck = self.done, len(self.under_way)
        for request in list(self.under_way.values()):
            request.end(errno.ETIMEDOUT)
        self.handles = []               # closes them
        return {"done": answered, "errors": dict(self.errors), "wrong": self._told(), "stuck": stuck}

    def verify(self, uri: str, cut: bool, patience_s: float) -> dict[str, Any]:
        """Compare all sectors; with `cut` as after a loss of power, after which only what was found counts."""
        if "error" in (opened := self.connect(uri, 1, patience_s)):
            return opened
        self.wrong = []
        before = self.history.forgotten
        for first in range(0, self.sectors, CHUNK):
            count = min(CHUNK, self.sectors - first)
            octets = self.handles[0].pread(count * SECTOR, first * SECTOR)
            wrong = self.history.check(first, octets, after_cut=cut)
            self.wrong += wrong
            if cut and not wrong:
                self.history.settle_cut(first, octets)
        self.handles[0].shutdown()
        self.handles = []
        return {"wrong": self._told(), "forgotten": self.history.forgotten - before, "sectors": len(self.history.sectors)}

    def _alive(self) -> list[nbd.NBD]:
        return [handle for handle in self.handles if not (handle.aio_is_dead() or handle.aio_is_closed())]

    def _told(self) -> list[str]:
        return [str(wrong) for wrong in self.wrong[:LOUD]]

    # One request.

    def _ask(self) -> bool:
        """Begin a request of a random kind; False when the disk has died or no free sectors were found."""
        if not (alive := self._alive()):
            return False
        handle = self.random.choice(alive)
        kind = self.random.choices(list(self.mix), list(self.mix.values()))[0]
        place = range(0) if kind == "flush" else self._place()
        if place is None:
            return False
        try:
            getattr(self, f"_ask_{kind.removesuffix('_fua')}")(handle, kind, place)
        except nbd.Error as error:
            self.errors[f"{kind}: not taken: {error.errno}"] += 1
            return False
        return True

    def _place(self) -> range | None:
        """Sectors that no request is about."""
        for _ in range(8):
            count = self.random.choice((1, 8, 8, 8, 16, self.random.randint(1, LONGEST))) * self.unit
            first = self.random.randrange(0, self.sectors - count + 1, self.unit)
            if not any(first < other.place.stop and other.place.start < first + count for other in self.under_way.values()):
                return range(first, first + count)
        return None

    def _ask_read(self, handle: nbd.NBD, kind: str, place: range) -> None:
        buffer = nbd.Buffer(len(place) * SECTOR)

        def compare(error: int) -> None:
            if not error:
                self.wrong += self.history.check(place.start, buffer.to_bytearray())
        handle.aio_pread(buffer, place.start * SECTOR, completion=self._completion(kind, place, compare))

    def _ask_flush(self, handle: nbd.NBD, kind: str, place: range) -> None:
        covered = self.history.flushing()

        def settle(error: int) -> None:
            if not error:
                self.history.flushed(covered)
        handle.aio_flush(completion=self._completion(kind, place, settle))

    def _ask_write(self, handle: nbd.NBD, kind: str, place: range) -> None:
        change = self.history.begin(place.start, len(place))
        octets = b"".join(content(sector, change.version) for sector in place)
        self._change(kind, place, change, lambda end: handle.aio_pwrite(
            nbd.Buffer.from_bytearray(bytearray(octets)), place.start * SECTOR, completion=end,
            flags=nbd.CMD_FLAG_FUA if kind == "fua" else 0))

    _ask_ = _ask_fua = _ask_write

    def _ask_zero(self, handle: nbd.NBD, kind: str, place: range) -> None:
        flags = self.random.choice((0, nbd.CMD_FLAG_NO_HOLE)) | (nbd.CMD_FLAG_FUA if kind.endswith("fua") else 0)
        change = self.history.begin(place.start, len(place), zeroes=True)
        self._change(kind, place, change, lambda end: handle.aio_zero(
            len(place) * SECTOR, place.start * SECTOR, completion=end, flags=flags))

    def _ask_trim(self, handle: nbd.NBD, kind: str, place: range) -> None:
        change = self.history.begin(place.start, len(place), trim=True)
        self._change(kind, place, change, lambda end: handle.aio_trim(
            len(place) * SECTOR, place.start * SECTOR, completion=end))

    def _change(self, kind: str, place: range, change: Change, ask: Callable[[Any], Any]) -> None:
        def settle(error: int) -> None:
            if error:
                self.history.failed(change)
            else:
                self.history.done(change, fua=kind.endswith("fua"))
        try:
            ask(self._completion(kind, place, settle))
        except nbd.Error:
            self.history.failed(change)
            raise

    def _completion(self, kind: str, place: range, settle: Callable[[int], None]) -> Callable[[int], int]:
        self.serial += 1
        serial = self.serial

        def end(error: int) -> int:
            if self.under_way.pop(serial, None) is None:
                return 1                # given up already
            settle(error)
            self.done += 1
            if error:
                self.errors[f"{kind}: {error}"] += 1
            return 1                    # retired
        self.under_way[serial] = Request(place, end)
        return end

    def _wait(self) -> bool:
        """Let the connections move for a moment; whether there is any."""
        poll = select.poll()
        by_fd = {}
        for handle in self._alive():
            direction, fd = handle.aio_get_direction(), handle.aio_get_fd()
            by_fd[fd] = handle
            poll.register(fd, (select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0)
                          | (select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0))
        for fd, events in poll.poll(100):
            handle = by_fd[fd]
            try:
                if events & (select.POLLIN | select.POLLHUP) and handle.aio_get_direction() & nbd.AIO_DIRECTION_READ:
                    handle.aio_notify_read()
                elif events & select.POLLOUT:
                    handle.aio_notify_write()
                elif events & (select.POLLERR | select.POLLHUP):
                    self.handles.remove(handle)
            except nbd.Error:
                pass            # the handle is dead now, and its requests have ended with an error
        return bool(by_fd)


def main(orders: TextIO, answers: TextIO) -> None:
    """Carry out orders until there are no more."""
    made = json.loads(orders.readline())
    load = Load(**made)
    verbs: dict[str, Callable[..., dict[str, Any]]] = {
        "enter": load.enter, "connect": load.connect, "run": load.run, "verify": load.verify}
    for line in orders:
        order = json.loads(line)
        print(json.dumps(verbs[order.pop("do")](**order)), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)
