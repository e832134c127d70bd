"""Nanoseconds and instructions per packet of the stack's hot paths: verbs over prepared bursts, in process, no I/O.

A path makes its frames first, then has a `Meter` look at the verbs it is about. That stretch of code is timed, and in
another run counted by callgrind: `python -m benchmarks.hot_paths PATH LOOPS`.
"""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import packets
from benchmarks.compiled import compiled
from benchmarks.lab import ROOT, BenchError
from benchmarks.packets import ACK, PSH, SYN
from benchmarks.ports import ECHO, SINK
from benchmarks.report import Cost, Report
from mm.frame import BURST, Feature, RxBurst, TxBurst
from netstack.stack import Stack

RX_CHECKSUM, TX_CHECKSUM, TSO4 = Feature.RX_CHECKSUM, Feature.TX_CHECKSUM, Feature.TSO4
MSS = 1448              # of a path of MTU 1500, with timestamps
HEADERS = 66            # Ethernet, IPv4, TCP with timestamps
SEGMENTS = 44           # of a super-segment below 64 KiB
LOOPS = 400
CALLGRIND_LOOPS = 20
WARM_UP = 20
_SECOND = 1_000_000_000


class Host:
    """A stack with one interface, whose neighbor is known."""

    def __init__(self, features: int, routes: int = 0) -> None:
        self.now = _SECOND
        self.stack = Stack(bytes(range(32)), now=self.now, icmp_errors_per_second=1_000_000)
        self.index = self.stack.add_interface("nic0", packets.SERVER_MAC, 1500, features)
        self.stack.add_address(self.index, "10.77.0.2/24")
        self.stack.set_neighbor(self.index, "10.77.0.1", packets.CLIENT_MAC.hex(":"))
        self.tx = TxBurst()
        self.spent = 0
        self.transmit()         # what announces the addresses

    def take(self, burst: RxBurst) -> None:
        self.stack.receive(self.index, self.now, burst)

    def transmit(self) -> int:
        """Fill a burst; how many frames."""
        return self.stack.transmit(self.index, self.now, self.tx)

    def sent(self) -> list[bytes]:
        """What there is to send, copied."""
        frames: list[bytes] = []
        while self.transmit():
            frames += self.tx.frames_bytes()
        return frames


class Connection:
    """A TCP connection to a host, whose peer is made of `packets`."""

    def __init__(self, host: Host, port: int) -> None:
        self.host = host
        self.port = port
        self.seq = 1000
        host.take(burst([packets.tcp(port, SINK, self.seq, 0, SYN)], 0))
        (answer,) = host.sent()
        self.ack = int.from_bytes(answer[38:42]) + 1        # what we have of the stack's octets
        self.seq += 1
        host.take(burst([self.segment()], 0))
        ((self.handle, _, _),) = host.stack.tcp.ready()
        host.stack.tcp.set_nodelay(self.handle, True)

    def segment(self, payload: bytes = b"") -> bytes:
        """The next frame of the peer."""
        frame = packets.tcp(self.port, SINK, self.seq, self.ack, ACK | (PSH if payload else 0), payload)
        self.seq += len(payload)
        return frame

    def acks(self, sent: list[bytes]) -> list[bytes]:
        """Acknowledgments of these frames of the stack, one for every second segment."""
        frames = []
        for octets in map(len, sent):
            for part in range(0, octets - HEADERS, 2 * MSS):
                self.ack += min(2 * MSS, octets - HEADERS - part)
                frames.append(self.segment())
        return frames

    def acknowledge(self, sent: list[bytes]) -> None:
        """Acknowledge these frames of the stack, then all that it has yet to send."""
        tcp = self.host.stack.tcp
        while tcp.unsent(self.handle):
            frames = self.acks(sent + self.host.sent())
            sent = []
            if not frames:
                raise BenchError(f"the stack does not send its last {tcp.unsent(self.handle)} octets")
            for some in range(0, len(frames), BURST):
                self.host.take(burst(frames[some:some + BURST], RX_CHECKSUM))
        tcp.ready()


def burst(frames: list[bytes], flags: int, segment_size: int = 0) -> RxBurst:
    """Frames as a driver hands them over."""
    made = RxBurst()
    for frame in frames:
        if not made.append(frame, segment_size, flags):
            raise BenchError(f"{len(frames)} frames are no burst")
    return made


class Meter:
    """Looks at one burst after the other: `start()`, the verbs, `stop(packets)`."""

    def __init__(self) -> None:
        self.packets = 0
        self.ns_per_packet: list[float] = []
        self._began = 0

    def start(self) -> None:
        self._began = time.perf_counter_ns()

    def stop(self, count: int) -> None:
        self.ns_per_packet.append((time.perf_counter_ns() - self._began) / count)
        self.packets += count


class Counter(Meter):
    """Has callgrind count, instead of looking at the clock."""

    def __init__(self) -> None:
        super().__init__()
        self._toggle = compiled("collect").toggle

    def start(self) -> None:
        self._toggle()

    def stop(self, count: int) -> None:
        self._toggle()
        self.packets += count


Run = Callable[[int, Meter], None]


@dataclass(frozen=True)
class HotPath:
    """`run(loops, meter)` has so many bursts metered."""

    name: str
    title: str
    run: Run


def _receive(flags: int, per_burst: int, segments: int) -> Run:
    """In-order data up to the application's buffer, and the ACKs for it."""
    def run(loops: int, meter: Meter) -> None:
        host = Host(flags)
        host.stack.tcp.listen(None, SINK)
        connection = Connection(host, 40000)
        payload = bytes(MSS * segments)
        buffer = bytearray(1 << 20)
        tcp, handle = host.stack.tcp, connection.handle
        for _ in range(WARM_UP):        # the window opens
            host.take(burst([connection.segment(bytes(MSS)) for _ in range(16)], flags))
            tcp.ready()
            tcp.read_into(handle, buffer)
            host.transmit()
        for _ in range(loops):
            one = burst([connection.segment(payload) for _ in range(per_burst)], flags, MSS if segments > 1 else 0)
            host.now += _SECOND // 1000
            meter.start()
            host.take(one)
            tcp.ready()
            count = tcp.read_into(handle, buffer)
            host.transmit()
            meter.stop(per_burst)
            if count != per_burst * len(payload):
                raise BenchError(f"{count} octets arrived instead of {per_burst * len(payload)}")
    return run


def _send(features: int) -> Run:
    """Data out: 4 super-segments or 64 segments at a time, from the application's buffer to finished headers."""
    def run(loops: int, meter: Meter) -> None:
        connection = _sender(features)
        host, tcp, handle = connection.host, connection.host.stack.tcp, connection.handle
        block = bytes((4 * SEGMENTS if features & TSO4 else BURST) * MSS)
        for _ in range(loops):
            host.now += _SECOND // 1000
            meter.start()
            taken = tcp.write(handle, block)
            count = host.transmit()
            meter.stop(count)
            sent = sum(map(len, host.tx.frames_bytes())) - count * HEADERS
            if not taken == sent == len(block):
                raise BenchError(f"of {len(block)} octets {taken} were taken and {sent} sent")
            connection.acknowledge(host.tx.frames_bytes())
    return run


def _acknowledged(loops: int, meter: Meter) -> None:
    """What ACKs cost that come in for every second segment."""
    connection = _sender(TX_CHECKSUM | TSO4)
    host, tcp, handle = connection.host, connection.host.stack.tcp, connection.handle
    for _ in range(loops):
        host.now += _SECOND // 1000
        tcp.write(handle, bytes(2 * (BURST - 4) * MSS))     # each super-segment may end with an odd one
        answers = burst(connection.acks(host.sent()), RX_CHECKSUM)
        meter.start()
        host.take(answers)
        meter.stop(len(answers))
        connection.acknowledge([])


def _sender(features: int) -> Connection:
    """A connection whose congestion window is open."""
    host = Host(features)
    host.stack.tcp.listen(None, SINK)
    connection = Connection(host, 40000)
    for _ in range(WARM_UP):
        host.now += _SECOND // 1000
        host.stack.tcp.write(connection.handle, bytes(8 * BURST * MSS))
        connection.acknowledge([])
    return connection


def _answered(frames: list[bytes]) -> Run:
    """Requests that the stack answers by itself."""
    def run(loops: int, meter: Meter) -> None:
        host = Host(0)
        one = burst(frames, 0)
        for _ in range(loops):
            host.now += _SECOND // 1000
            meter.start()
            host.take(one)
            count = host.transmit()
            meter.stop(count)
            if count != len(frames):
                raise BenchError(f"{count} answers to {len(frames)} requests: {host.stack.verdicts()}")
    return run


def _udp(loops: int, meter: Meter) -> None:
    """Datagrams up to the application and back, each as a Python object."""
    host = Host(0)
    udp = host.stack.udp
    endpoint = udp.bind(None, ECHO)
    one = burst([packets.udp(5000 + i, ECHO, bytes(64)) for i in range(BURST)], 0)
    for _ in range(loops):
        host.now += _SECOND // 1000
        meter.start()
        host.take(one)
        for ready in udp.ready():
            for data, sender, port in udp.receive(ready, BURST):
                udp.send(endpoint, data, sender, port)
        count = host.transmit()
        meter.stop(count)


def _routes(count: int) -> Run:
    """Longest-prefix match among so many routes, for destinations spread over them."""
    def run(loops: int, meter: Meter) -> None:
        host = Host(0)
        prefixes = [f"{11 + i // 65536}.{i // 256 % 256}.{i % 256}" for i in range(count - 1)]
        for prefix in prefixes:
            host.stack.add_route(f"{prefix}.0/24", "10.77.0.1", host.index)
        chosen = prefixes[::max(1, count // 512)] * max(1, 512 // count)
        destinations = compiled("route_loop").Destinations([f"{prefix}.7" for prefix in chosen])
        for _ in range(loops):
            meter.start()
            looked_up = destinations.look_up(host.stack.state)
            meter.stop(looked_up)
    return run


PATHS = (
    HotPath("tcp-receive", f"TCP segment of {MSS} in, read, acknowledged", _receive(RX_CHECKSUM, BURST, 1)),
    HotPath("tcp-receive-sum", "the same, checksum verified", _receive(0, BURST, 1)),
    HotPath("tcp-receive-super", f"TCP super-segment in ({SEGMENTS} x {MSS})", _receive(RX_CHECKSUM, 8, SEGMENTS)),
    HotPath("tcp-send", f"TCP segment of {MSS} out", _send(TX_CHECKSUM)),
    HotPath("tcp-send-sum", "the same, checksum computed", _send(0)),
    HotPath("tcp-send-super", f"TCP super-segment out ({SEGMENTS} x {MSS})", _send(TX_CHECKSUM | TSO4)),
    HotPath("tcp-ack", "TCP ACK in", _acknowledged),
    HotPath("udp", "UDP datagram of 64 in, to Python, and out", _udp),
    HotPath("icmp", "ICMP echo of 56 answered", _answered([packets.echo_request(i, bytes(56)) for i in range(BURST)])),
    HotPath("arp", "ARP request answered", _answered([packets.arp_request()] * BURST)),
    HotPath("route-2", "route lookup among 2", _routes(2)),
    HotPath("route-10000", "route lookup among 10,000", _routes(10_000)),
)


def measure(report: Report, rounds: int, say: Callable[[str], None]) -> None:
    """Add what each path costs per packet."""
    counted = shutil.which("valgrind") is not None
    if counted:
        compiled("collect")     # here, not under callgrind
    else:
        report.notes.append("instructions are not counted: valgrind is not installed")
    for path in PATHS:
        say(f"hot path: {path.title}")
        figures = [_ns(path) for _ in range(rounds)]
        report.costs.append(Cost(path.title, statistics.median(figures), _instructions(path) if counted else None,
                                 figures))


def _ns(path: HotPath) -> float:
    """The median burst's nanoseconds per packet."""
    path.run(LOOPS, meter := Meter())
    return statistics.median(meter.ns_per_packet)


def _instructions(path: HotPath) -> float:
    """Per packet, as callgrind counts them."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out"
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--collect-atstart=no",
             sys.executable, "-m", "benchmarks.hot_paths", path.name, str(CALLGRIND_LOOPS)],
            cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise BenchError(f"callgrind: {done.stderr.strip().splitlines()[-1]}")
        total = re.search(r"^(?:totals|summary): (\d+)", out.read_text(), re.MULTILINE)
    return int(total[1]) / int(done.stdout)


if __name__ == "__main__":
    next(path for path in PATHS if path.name == sys.argv[1]).run(int(sys.argv[2]), counter := Counter())
    print(counter.packets)
