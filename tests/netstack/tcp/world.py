"""Two Stacks and the link between them, in virtual time: delay, loss, duplication, reordering, middleboxes, a seed."""

import heapq
import random

from mm.frame import Feature, RxBurst, TxBurst
from netstack.stack import Stack

S, MS = 1_000_000_000, 1_000_000
ALL_FEATURES = Feature.TX_CHECKSUM | Feature.TSO4 | Feature.TSO6
ADDRESSES = {4: ("10.0.0.1", "10.0.0.2"), 6: ("fd00::1", "fd00::2")}
CONNECTED, ACCEPTED, READABLE, WRITABLE, EOF, CLOSED = 1, 2, 4, 8, 16, 32


class Host:
    """One stack, its interface, and the application on it: sends `outgoing`, collects what comes, closes, lets go."""

    def __init__(self, number, family, mtu, features, dice, limits):
        self.dice, self.features = dice, features
        self.stack = Stack(dice.randbytes(16), tcp=limits)
        mac = bytes([2, 0, 0, 0, 0, number + 1])
        peer = bytes([2, 0, 0, 0, 0, 2 - number])
        self.interface = self.stack.add_interface(f"t{number}", mac, mtu, features, link_local=False)
        self.stack.add_address(self.interface, f"{ADDRESSES[family][number]}/{24 if family == 4 else 64}")
        self.stack.set_neighbor(self.interface, ADDRESSES[family][1 - number], peer.hex(":"))
        self.tx, self.rx = TxBurst(), RxBurst()
        self.handle = None
        self.outgoing, self.sent, self.shut = b"", 0, False
        self.incoming = bytearray()
        self.eof = self.released = False
        self.lazy = 0.0             # how often there is something to read and it does not
        self.error = None

    def work(self):
        """Take the news, write and read as the fancy takes it."""
        tcp = self.stack.tcp
        for handle, news, error in tcp.ready():
            if news & (ACCEPTED | CONNECTED):
                self.handle = handle
            self.eof = self.eof or bool(news & EOF)
            if news & CLOSED:
                self.error = error
        if self.handle is None or self.released:
            return
        if self.sent < len(self.outgoing) and self.error is None:
            step = self.dice.choice([1, 100, 1460, 10_000, 100_000])
            self.sent += tcp.write(self.handle, self.outgoing[self.sent:self.sent + step])
        if self.dice.random() >= self.lazy:
            self.incoming += tcp.read(self.handle, self.dice.choice([1000, 50_000, 1 << 20]))
        if self.sent == len(self.outgoing) and not self.shut:
            tcp.shutdown(self.handle)
            self.shut = True
        if self.shut and self.eof:
            tcp.release(self.handle)
            self.released = True


class World:
    """Frames leave one host and reach the other after `delay`, unless the dice say otherwise."""

    def __init__(self, seed, *, family=4, mtu=1500, features=(0, 0), delay=5 * MS, jitter=0, loss=0.0, duplicate=0.0,
                 strip=(), **limits):
        self.dice = random.Random(seed)
        self.family, self.delay, self.jitter = family, delay, jitter
        self.loss, self.duplicate, self.strip = loss, duplicate, strip
        self.hosts = [Host(i, family, mtu, features[i], self.dice, limits) for i in range(2)]
        self.now = 0
        self.queue = []
        self.count = self.frames = self.lost = 0
        self.run(lambda: False, 3 * S)

    def carry(self, sender):
        """Put what a host sends on the link."""
        host = self.hosts[sender]
        sent = 0
        while host.stack.loop(self.now):
            pass
        while host.stack.transmit(host.interface, self.now, host.tx):
            for frame, size in zip(host.tx.frames_bytes(), host.tx.segment_sizes(), strict=True):
                sent += 1
                self.frames += 1
                if self.dice.random() < self.loss:
                    self.lost += 1
                    continue
                flags = Feature.RX_CHECKSUM if host.features or self.strip else 0
                if self.strip:
                    frame = strip_syn(frame, self.strip)
                for _ in range(1 + (self.dice.random() < self.duplicate)):
                    self.count += 1
                    late = self.dice.randrange(self.jitter) if self.jitter else 0
                    heapq.heappush(self.queue, (self.now + self.delay + late, self.count, 1 - sender, frame, size, flags))
        return sent

    def run(self, done, limit=600 * S):
        """Let time pass until `done()` or for so long; returns whether it was done."""
        end = self.now + limit
        while not done():
            for i, host in enumerate(self.hosts):
                host.work()
                self.carry(i)
            if done():
                return True
            times = [at for at in (host.stack.wake_at() for host in self.hosts) if at is not None]
            if self.queue:
                times.append(self.queue[0][0])
            if any(not host.released and host.handle is not None for host in self.hosts):
                times.append(self.now + 10 * MS)        # the application looks again
            if not times or min(times) > end:
                self.now = end
                return done()
            self.now = max(self.now, min(times))
            for i, host in enumerate(self.hosts):
                self.deliver(i)
                at = host.stack.wake_at()
                if at is not None and at <= self.now:
                    host.stack.advance(self.now)
                    at = host.stack.wake_at()
                    assert at is None or at > self.now, "wake_at() is not later than the advance() before it"
        return True

    def deliver(self, receiver):
        """Hand a host a burst of what is there by now."""
        host, kept = self.hosts[receiver], []
        host.rx.clear()
        while self.queue and self.queue[0][0] <= self.now and len(host.rx) < 64:
            item = heapq.heappop(self.queue)
            if item[2] == receiver:
                host.rx.append(item[3], item[4], item[5])
            else:
                kept.append(item)
        for item in kept:
            heapq.heappush(self.queue, item)
        if len(host.rx):
            host.stack.receive(host.interface, self.now, host.rx)

    def open(self, first=b"", second=b""):
        """Host 0 connects to host 1; each has so much to say."""
        a, b = self.hosts
        a.outgoing, b.outgoing = first, second
        b.stack.tcp.listen(None, 80)
        a.handle = a.stack.tcp.connect(self.now, ADDRESSES[self.family][1], 80)

    def settle(self):
        """Both ends are closed and released: nothing may be left once 2 MSL have passed."""
        assert self.run(lambda: not any(host.stack.connections() for host in self.hosts), 1000 * S), [
            host.stack.connections() for host in self.hosts]
        for host in self.hosts:
            usage = host.stack.tcp.usage()
            assert (usage["buffer_octets"], usage["connections"], usage["time_wait"]) == (0, 0, 0), usage
            assert host.stack.counters()["tcp_impossible_transitions"] == 0


def strip_syn(frame, kinds):
    """A middlebox that writes NOPs over options of these kinds in SYNs (the checksum is not kept right)."""
    v4 = frame[12:14] == b"\x08\x00"
    at = 34 if v4 else 54
    if (frame[23] if v4 else frame[20]) != 6 or not frame[at + 13] & 2:
        return frame
    out = bytearray(frame)
    i, end = at + 20, at + 4 * (frame[at + 12] >> 4)
    while i < end and out[i]:
        length = 1 if out[i] == 1 else out[i + 1]
        if out[i] in kinds:
            out[i:i + length] = b"\x01" * length
        i += length
    return bytes(out)
