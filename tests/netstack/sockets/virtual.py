"""An event loop whose clock jumps to the next timer, and two hosts on a wire in that time."""

import asyncio
import selectors

from mm.frame import RxBurst, TxBurst
from netstack.sockets import AsyncStack
from netstack.stack import Stack

SECOND = 1_000_000_000


class JumpingSelector(selectors.SelectSelector):
    """Where others would sleep, it moves the clock."""

    def __init__(self):
        super().__init__()
        self.now = 0.0

    def select(self, timeout=None):
        found = super().select(0)
        if not found:
            assert timeout is not None, "everything waits and nothing will come"
            self.now += max(timeout, 0)
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)
        self._clock_resolution = 1e-9

    def time(self):
        return self._jumping.now

    def time_ns(self):
        return round(self._jumping.now * SECOND)


class Host:
    """One stack with one interface, its sockets and a pump for virtual time."""

    def __init__(self, loop, number, **options):
        self.loop = loop
        self.wire = None
        self.scheduled = False
        self.timer = None
        self.address = f"10.0.0.{number}"
        self.address6 = f"fd00::{number}"
        self.stack = Stack(bytes([number]) * 16, now=loop.time_ns(), **options)
        self.index = self.stack.add_interface("eth0", bytes([2, 0, 0, 0, 0, number]), 1500)
        self.stack.add_address(self.index, self.address + "/24")
        self.stack.add_address(self.index, self.address6 + "/64")
        self.sockets = AsyncStack(self.stack, loop, self.kick, clock=loop.time_ns)
        self.kick()

    def kick(self):
        if not self.scheduled:
            self.scheduled = True
            self.loop.call_soon(self.run)

    def receive(self, frames):
        burst = RxBurst()
        for frame in frames:
            burst.append(frame)
        self.stack.receive(self.index, self.loop.time_ns(), burst)
        self.kick()

    def run(self):
        self.scheduled = False
        now = self.loop.time_ns()
        self.stack.advance(now)
        while self.stack.loop(now):
            pass
        self.sockets.dispatch()
        burst = TxBurst()
        while self.stack.transmit(self.index, now, burst):
            if self.wire is not None:
                self.wire.carry(self, burst.frames_bytes())
        if self.timer is not None:
            self.timer.cancel()
        if (wake := self.stack.wake_at()) is not None:
            self.timer = self.loop.call_at(max(wake, now + 1) / SECOND, self.kick)


class Wire:
    """Joins two hosts; frames take `delay` seconds, and none arrives while it is cut."""

    def __init__(self, left, right, delay=0.001):
        self.ends = (left, right)
        self.delay = delay
        self.cut = False
        left.wire = right.wire = self

    def carry(self, sender, frames):
        other = self.ends[self.ends[0] is sender]
        if not self.cut:
            sender.loop.call_later(self.delay, other.receive, frames)
