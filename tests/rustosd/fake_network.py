"""What captures, traceroute, `conn show`, `nic show` and `top` find behind a fake daemon core."""

import socket
from types import SimpleNamespace

from mm.frame import RxBurst, TxBurst
from rustosd.capture import pcapng
from rustosd.capture.pcapng import Tally
from rustosd.capture.tape import Tape
from rustosd.tracer import Step
from tests.support.host import Host

NOON_NS = 1_764_331_200_123_456_789
ROUTERS = ["10.77.0.1", "192.0.2.1", "203.0.113.9"]


class FakeCaptures:
    """Gives each who asks the same three frames, and remembers the wish."""

    def __init__(self):
        self.wish = None

    def start(self, wish):
        self.wish = wish
        if "eth9" in wish.interfaces:
            raise ValueError("there is no interface eth9; there is lo, rustos0")
        names = list(wish.interfaces or ("lo", "rustos0"))
        tape = Tape(1 << 16)
        tape.put(pcapng.section("fake"))
        for name in names:
            tape.put(pcapng.interface(name, "", None, wish.snap_octets, wish.expression))
        tape.follow({1: len(names) - 1})
        rx, tx, host = RxBurst(), TxBurst(), Host()
        rx.keep_ends(True)
        arp = bytes.fromhex("ffffffffffff 020000000001 0806 0001 0800 06 04 0001 020000000001 0a4d0001 000000000000 0a4d0063")
        rx.append(arp)
        rx.append(bytes.fromhex("020000000077") + bytes(6) + b"\x08\x00" + bytes(46))
        host.stack.receive(host.index, host.now, rx)
        tape.received(1, NOON_NS, rx)
        tx.append(arp[:14], arp[14:])
        tape.sent(1, NOON_NS + 1000, tx, 1)
        for number in range(len(names)):
            tally = Tally(4, 3, 0) if number == len(names) - 1 else Tally(0, 0, 0)
            tape.put(pcapng.statistics(number, NOON_NS, NOON_NS, tally))
        ours, theirs = socket.socketpair()
        tape.drain(ours.fileno())
        ours.close()
        return names, theirs


class FakeTracer:
    """Two routers before 203.0.113.9; 203.0.113.7 is behind one that does not want to, 203.0.113.8 behind silence."""

    async def udp(self, address, hop_limit, ports, octets, timeout_s):
        if address == "198.51.100.1":
            raise OSError(101, "198.51.100.1: no route to the destination")
        if address == "203.0.113.8" and hop_limit > 1:
            return [None] * len(ports)
        error = "administratively prohibited" if address == "203.0.113.7" and hop_limit == 2 else None
        router = ROUTERS[hop_limit - 1]
        steps = [Step(router, 0.001 * hop_limit + 0.0001 * i, error, router == address) for i in range(len(ports))]
        if hop_limit == 2 and len(steps) > 1 and error is None:
            steps[1:] = [None, *([steps[2]._replace(source="192.0.2.2")] if len(steps) > 2 else [])]
        return steps

    async def icmp(self, address, hop_limit, identifier, sequences, octets, timeout_s):
        return await self.udp(address, hop_limit, sequences, octets, timeout_s)


class User:
    """Who has a connection: here a process, by its splice."""

    def __init__(self, pid=None):
        self.owner, self.calls = SimpleNamespace(pid=pid), []

    def close(self):
        self.calls.append("close")

    def abort(self):
        self.calls.append("abort")


class ServiceUser(User):
    """... and here a service, by its transport."""

    def get_protocol(self):
        return SimpleNamespace(service=SimpleNamespace(name="http"))


DETAILS = {
    "interface": 1, "released": False, "unread": 0, "unsent": 512, "in_flight": 512, "rttvar_ns": 50_000,
    "rto_ns": 200_000_000, "backoff": 0, "mss": 1428, "cwnd": 14280, "ssthresh": None, "pipe": 512, "send_window": 65536,
    "receive_window": 1 << 20, "sack": True, "timestamps": True, "window_scale": (7, 5), "recovery": None, "error": None,
    "age_ns": 61_000_000_000, "peer_mss": 1440, "nodelay": True, "keepalive": False, "send_memory": 4096,
    "send_limit": 1 << 20, "receive_memory": 0, "receive_limit": 1 << 20, "out_of_order_ranges": 0, "sacked_ranges": 0,
    "soft_error": None, "timers": {"retransmission": 150_000_000, "keepalive": 7_200_000_000_000},
}
NICS = {
    "rustos0": {"kind": "tap", "statistics": {"rx_frames": 1200, "rx_dropped": 2, "rx_dropped_too_short": 2}},
    "eth0": {"kind": "e1000", "device": "0000:00:03.0", "model": "Intel 82574L", "backend": "vfio", "speed_mbps": 1000,
             "duplex": "full", "rings": {"receive": 512, "transmit": 1024}, "interrupts": "msix", "moderation_us": 20,
             "statistics": {"rx_frames": 9, "wakeups": 5, "link_changes": 1, "resets": 0, "hw_crc_errors": 3}},
}


class NetworkFakes:
    """Part of `FakeCore`."""

    def __init__(self):
        self.captures = FakeCaptures()
        self.tracer = FakeTracer()
        self.users = {7 | 2 << 32: ServiceUser()}

    def nic_details(self, name):
        return NICS.get(name, {})

    def resident_octets(self):
        return 64 << 20

