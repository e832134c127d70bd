"""`python -m tests.fuzz.nbd`: requests of any kind, whole and damaged, to the NBD engine; see docs/fuzzing.md.

The engine runs on a loop of ours, one turn at a time, so the same seed makes the same run. A reader that knows NBD takes every
reply apart and holds it against what was asked.
"""

import argparse
import random
import socket
import struct
import subprocess
import sys
import time
from collections import Counter, deque

from drivers.block.ram import RamDisk
from rustosd.nbd import wire
from rustosd.nbd.engine import Engine
from tests.fuzz import sanitize

OCTETS = 1 << 20
FLAGS = (wire.FLAG_HAS_FLAGS | wire.FLAG_SEND_FLUSH | wire.FLAG_SEND_FUA | wire.FLAG_SEND_TRIM | wire.FLAG_SEND_WRITE_ZEROES
         | wire.FLAG_SEND_DF | wire.FLAG_CAN_MULTI_CONN | wire.FLAG_SEND_CACHE | wire.FLAG_SEND_FAST_ZERO)
ODD = (0, 1, 2, 511, 512, 4095, 4096, 65535, 65536, OCTETS - 512, OCTETS, 1 << 25, (1 << 25) + 512, 2**31, 2**32 - 1, 2**32,
       2**63, 2**64 - 512, 2**64 - 1)


class Loop:
    """As much of an event loop as the engine asks for; nothing happens by itself."""

    def __init__(self):
        self.soon = deque()

    def add_reader(self, fd, callback, *arguments): ...

    def remove_reader(self, fd): ...

    def call_soon(self, callback):
        self.soon.append(callback)

    def call_later(self, seconds, callback):
        self.soon.append(callback)
        return self

    def cancel(self): ...

    def run(self, most=64):
        """What waits, and what follows from it, a bounded amount."""
        for _ in range(most):
            if not self.soon:
                return
            self.soon.popleft()()


class Budget:
    """Memory, as the server has it."""

    def __init__(self, octets):
        self.octets, self.used = octets, 0

    def take(self, octets):
        if self.used + octets > self.octets:
            return False
        self.used += octets
        return True

    def give(self, octets):
        self.used -= octets
        assert self.used >= 0


class Owner:
    """Whom the engine tells of connections that are over."""

    def __init__(self):
        self.over = {}

    def ended(self, index, reason):
        self.over[index] = reason

    def gone(self): ...


class Reader:
    """Takes replies apart, and knows which are owed."""

    def __init__(self, structured, extended):
        self.structured, self.extended = structured, extended
        self.owed = {}          # cookie -> (command, offset, length, octets of content so far)
        self.octets = b""
        self.answered = 0

    def feed(self, octets):
        self.octets += octets
        while (used := self._one()):
            self.octets = self.octets[used:]

    def _one(self):
        """How many octets the first reply has; 0: it is not all there."""
        o = self.octets
        if len(o) < 32 and (self.extended or len(o) < 16):
            return 0
        magic = int.from_bytes(o[:4], "big")
        if magic == wire.SIMPLE_REPLY_MAGIC:
            assert not self.extended, "a simple reply among extended ones"
            error, cookie = struct.unpack_from(">IQ", o, 4)
            command, _, length, _ = self.owed[cookie]
            assert not (self.structured and command == wire.CMD_READ), "a simple reply to a structured READ"
            size = 16 + (length if command == wire.CMD_READ and not error else 0)
            return self._end(cookie, size) if len(o) >= size else 0
        assert magic == (wire.EXTENDED_REPLY_MAGIC if self.extended else wire.STRUCTURED_REPLY_MAGIC), hex(magic)
        if self.extended:
            flags, kind, cookie, offset, octets = struct.unpack_from(">HHQQQ", o, 4)
            assert offset == self.owed[cookie][1], "not the request's offset"
            head = 32
        elif len(o) < 20:
            return 0
        else:
            flags, kind, cookie, octets = struct.unpack_from(">HHQI", o, 4)
            head = 20
        if len(o) < head + octets:
            return 0
        self._check(kind, cookie, o[head:head + octets])
        return self._end(cookie, head + octets) if flags & wire.REPLY_FLAG_DONE else head + octets

    def _check(self, kind, cookie, payload):
        command, offset, length, seen = self.owed[cookie]
        if kind in (wire.CHUNK_OFFSET_DATA, wire.CHUNK_OFFSET_HOLE):
            assert command == wire.CMD_READ
            at = int.from_bytes(payload[:8], "big")
            size = len(payload) - 8 if kind == wire.CHUNK_OFFSET_DATA else struct.unpack(">QI", payload)[1]
            assert size and offset <= at and at + size <= offset + length, "content outside what was asked"
            self.owed[cookie] = command, offset, length, seen + size
        elif kind in (wire.CHUNK_BLOCK_STATUS, wire.CHUNK_BLOCK_STATUS_EXT):
            assert command == wire.CMD_BLOCK_STATUS and len(payload) > 8
        elif kind == wire.CHUNK_ERROR:
            assert len(payload) == 6 and payload[:4] != bytes(4)
        else:
            assert kind == wire.CHUNK_NONE and not payload

    def _end(self, cookie, size):
        del self.owed[cookie]       # a second answer is a KeyError
        self.answered += 1
        return size


class Client:
    """One connection that asks at random, and reads or does not."""

    def __init__(self, source, engine, loop):
        self.source, self.engine = source, engine
        self.end, theirs = socket.socketpair()
        for end in (self.end, theirs):
            end.setblocking(False)
        self.extended = source.random() < 0.4
        self.structured = not self.extended and source.random() < 0.6
        self.reader = Reader(self.structured, self.extended)
        self.cookie = source.getrandbits(32)
        self.waiting = bytearray()
        self.damaged = False
        context = 7 if (self.structured or self.extended) and source.random() < 0.7 else None
        self.index = engine.add(theirs.detach(), b"", FLAGS & ~(source.getrandbits(12) if source.random() < 0.2 else 0),
                                self.structured, self.extended, context)

    def ask(self):
        """Make up a request; now and then damage it."""
        source = self.source
        command = source.choice((0, 0, 0, 1, 1, 1, 3, 4, 5, 6, 7, 7, source.getrandbits(16)))
        if command == wire.CMD_DISC:
            command = 0
        flags = source.choice((0, 0, 0, 1, 2, 4, 8, 16, source.getrandbits(16)))
        offset = source.randrange(OCTETS // 512) * 512 if source.random() < 0.8 else source.choice(ODD)
        length = source.choice((512, 4096, 65536, 512 * source.randrange(600)))
        if source.random() < 0.15:
            length = source.choice(ODD)
        if not self.extended:
            length &= 0xFFFFFFFF
        if self.extended and command == wire.CMD_WRITE and source.random() < 0.95:
            flags |= wire.CMD_FLAG_PAYLOAD_LEN
        carries = command == wire.CMD_WRITE or (self.extended and flags & wire.CMD_FLAG_PAYLOAD_LEN)
        if carries and length > 1 << 20:
            length = 512 * source.randrange(1 << 11) if source.random() < 0.9 else length
        self.cookie += 1
        self.reader.owed[self.cookie] = command, offset, length, 0
        magic = wire.EXTENDED_REQUEST_MAGIC if self.extended else wire.REQUEST_MAGIC
        header = struct.pack(">IHHQQQ" if self.extended else ">IHHQQI", magic, flags, command, self.cookie, offset, length)
        if source.random() < 0.003:
            header = bytearray(header)
            header[source.randrange(len(header))] ^= 1 << source.randrange(8)
            self.damaged = True     # what comes after may be read as anything
        self.waiting += header
        if carries:
            self.waiting += source.randbytes(512) * (length // 512) + bytes(length % 512) if length <= 1 << 21 else b""
            self.damaged |= length > 1 << 21

    def push(self):
        """Send a piece of what waits."""
        if not self.waiting:
            return
        try:
            sent = self.end.send(self.waiting[:self.source.choice((1, 27, 28, 100, 5000, 1 << 20))])
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return
        del self.waiting[:sent]

    def pull(self):
        """Read some."""
        try:
            octets = self.end.recv(self.source.choice((1, 16, 1000, 1 << 20)))
        except (BlockingIOError, ConnectionResetError):
            return
        if not self.damaged:
            self.reader.feed(octets)


def episode(source, totals):
    """One engine with a few clients, from their coming to the end of everything."""
    loop, owner, budget = Loop(), Owner(), Budget(source.choice((2 << 20, 64 << 20)))
    disk = RamDisk("fuzz", OCTETS)
    engine = Engine(loop, disk, owner, budget, busy_poll_us=0)
    clients = [Client(source, engine, loop) for _ in range(source.randrange(1, 4))]
    for _ in range(source.randrange(50, 400)):
        client = source.choice(clients)
        if len(client.waiting) < 1 << 21 and len(client.reader.owed) < 600:
            for _ in range(source.choice((1, 1, 1, 20))):
                client.ask()
        client.push()
        if source.random() < 0.7:
            client.pull()
        engine.turn()
        loop.run()
        if source.random() < 0.01:
            engine.sweep(1 if source.random() < 0.05 else 1 << 60)
    for _ in range(4000):       # who was not damaged is owed all answers
        busy = False
        for client in clients:
            if client.index not in owner.over and not client.damaged and (client.waiting or client.reader.owed):
                busy = True
                client.push()
                client.pull()
        if not busy:
            break
        engine.turn()
        loop.run()
    for client in clients:
        if client.index not in owner.over and not client.damaged:
            assert not client.reader.owed, f"{len(client.reader.owed)} requests were never answered"
        totals["answered"] += client.reader.answered
        client.end.close()
    for _ in range(200):
        engine.turn()
        loop.run()
    totals.update(owner.over.values())
    engine.detach()
    disk.close()
    engine.free()
    assert budget.used == 0, f"{budget.used} octets of memory were never given back"
    totals["episodes"] += 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.nbd", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--episodes", type=int, default=0, help="stop after so many instead")
    parser.add_argument("--seed", default="0", help="the same seed makes the same run")
    parser.add_argument("--first", type=int, default=0, help="the number of the first episode, to repeat one")
    parser.add_argument("--sanitize", action="store_true", help="run on a build with ASan and UBSan")
    options = parser.parse_args()
    if options.sanitize:
        words = [word for word in sys.argv[1:] if word != "--sanitize"]
        return subprocess.run([sys.executable, "-m", "tests.fuzz.nbd", *words], env=sanitize.environment(),
                              cwd=sanitize.ROOT).returncode
    totals, number, end = Counter(), options.first, time.monotonic() + options.seconds
    while number - options.first < options.episodes if options.episodes else time.monotonic() < end:
        try:
            episode(random.Random(f"{options.seed} {number}"), totals)
        except BaseException:
            print(f"FINDING in episode {number}: --seed {options.seed} --first {number} --episodes 1", flush=True)
            raise
        number += 1
    print(", ".join(f"{name} {count}" for name, count in sorted(totals.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
