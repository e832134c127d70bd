"""A stack on a link where the test is everybody else: scapy packets in and out, virtual time, all counters compared."""

from scapy.compat import raw
from scapy.layers.l2 import Ether

from mm.frame import RxBurst, TxBurst
from netstack.stack import Stack

SECOND = 1_000_000_000
MAC = "02:00:00:00:00:02"
V4, V6 = "10.77.0.2", "fd77::2"
PEER_MAC = "02:00:00:00:00:01"
PEER_V4, PEER_V6 = "10.77.0.1", "fd77::1"
BROADCAST = "ff:ff:ff:ff:ff:ff"


class Host:
    """One `Stack` with an interface "tap0" that has `V4`, `V6` and the link-local `self.link_local`.

    When `settled`, duplicate address detection and announcements are over and `moved()` starts from there.
    """

    def __init__(self, *, mtu=1500, features=0, addresses=(f"{V4}/24", f"{V6}/64"), settled=True, **stack):
        self.now = SECOND
        self.stack = Stack(bytes(range(16)), now=self.now, **stack)
        self.state = self.stack.state
        self.index = self.stack.add_interface("tap0", bytes.fromhex(MAC.replace(":", "")), mtu, features)
        for address in addresses:
            self.stack.add_address(self.index, address)
        self._before = {}
        if settled:
            self.advance(3)
            self.sent()
        self.moved()

    def receive(self, *packets, flags=0, segment_size=0):
        """Hand frames (scapy packets or bytes) in as one burst; returns how each ended."""
        ends = []
        for packet in packets:
            burst = RxBurst()
            burst.append(raw(packet), segment_size, flags)
            before = self.stack.verdicts()
            self.stack.receive(self.index, self.now, burst)
            ends += [label for label, count in self.stack.verdicts().items() if count != before[label]]
        assert len(ends) == len(packets), "a frame ended more than once, or never"
        return ends if len(ends) > 1 else ends[0]

    def sent(self):
        """What the stack wants to send now, dissected from its octets."""
        frames, burst = [], TxBurst()
        while self.stack.transmit(self.index, self.now, burst):
            frames += [Ether(frame) for frame in burst.frames_bytes()]
            burst.clear()
        return frames

    def advance(self, seconds):
        """Let time pass, stopping wherever the stack wants to be woken."""
        end = self.now + round(seconds * SECOND)
        while (wake_at := self.stack.wake_at()) is not None and wake_at <= end:
            assert wake_at > self.now or self.now == SECOND, "the stack would spin"
            self.now = max(wake_at, self.now)
            self.stack.advance(self.now)
        self.now = end
        self.stack.advance(end)
        assert (self.stack.wake_at() or end + 1) > end

    def moved(self):
        """Every count that changed since the last call, and by how much: verdicts, unsent_..., counters."""
        counts = {**self.stack.verdicts(), **{f"unsent_{k}": v for k, v in self.stack.unsent().items()},
                  **{f"#{k}": v for k, v in self.stack.counters().items()}}
        changes = {k: v - self._before.get(k, 0) for k, v in counts.items() if v != self._before.get(k, 0)}
        self._before = counts
        return changes

    def neighbor(self, address):
        """The row of one neighbor, None when it is not known."""
        return next((row for row in self.stack.neighbors() if row["address"] == address), None)

    def ping(self, host, sequence=1, size=8, hop_limit=64):
        """Have the stack send an echo request, as `rustosctl ping` does."""
        self.stack.ping_send(self.now, host, 0x7777, sequence, size, hop_limit)

    @property
    def link_local(self):
        return "fe80::ff:fe00:2"

    def know_peer(self):
        """Make the peer's addresses REACHABLE neighbors that are fixed, so that answers leave at once."""
        self.stack.set_neighbor(self.index, PEER_V4, PEER_MAC)
        self.stack.set_neighbor(self.index, PEER_V6, PEER_MAC)
