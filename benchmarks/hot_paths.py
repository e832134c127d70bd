"""Nanoseconds and instructions per packet of the stack's hot paths: verbs over prepared bursts, in process, no I/O.

A path makes its frames first, then times only the verbs it is about. `python -m benchmarks.hot_paths PATH LOOPS` runs one
path for an observer such as callgrind, which counts the instructions of the same verbs.
"""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import packets
from benchmarks.lab import ROOT, BenchError
from benchmarks.packets import ACK, PSH, SYN
from benchmarks.ports import ECHO, SINK
from benchmarks.report import Report, Row
from mm.frame import BURST, Feature, RxBurst, TxBurst
from netstack.stack import Stack

RX_CHECKSUM, TX_CHECKSUM, TSO4 = Feature.RX_CHECKSUM, Feature.TX_CHECKSUM, Feature.TSO4
MSS = 1448              # of a path of MTU 1500, with timestamps
SEGMENTS = 44           # of a super-segment below 64 KiB
LOOPS = 400
CALLGRIND_LOOPS = (10, 40)
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


def burst(frames: list[bytes], flags: int, segment_size: int = 0) -> RxBurst:
    """Frames as a driver hands them over."""
    made = RxBurst()
    for frame in frames:
        made.append(frame, segment_size, flags)
    return made


@dataclass(frozen=True)
class Path_:
    """One hot path: `run(loops)` yields (ns, packets) of each burst; `verbs` are the compiled functions that count."""

    name: str
    title: str
    verbs: tuple[str, ...]
    run: Callable[[int], Iterator[tuple[int, int]]]


def _receive(flags: int, per_burst: int, segments: int) -> Callable[[int], Iterator[tuple[int, int]]]:
    """In-order data up to the application's buffer, and the ACKs for it."""
    def run(loops: int) -> Iterator[tuple[int, int]]:
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
            began = time.perf_counter_ns()
            host.take(one)
            tcp.ready()
            count = tcp.read_into(handle, buffer)
            host.transmit()
            yield time.perf_counter_ns() - began, per_burst
            if count != per_burst * len(payload):
                raise BenchError(f"{count} octets arrived instead of {per_burst * len(payload)}")
    return run


def _send(features: int, acks: bool) -> Callable[[int], Iterator[tuple[int, int]]]:
    """Data out, 256 KiB at a time; or only what its acknowledgments cost, one for two segments."""
    def run(loops: int) -> Iterator[tuple[int, int]]:
        host = Host(features)
        host.stack.tcp.listen(None, SINK)
        connection = Connection(host, 40000)
        tcp, handle = host.stack.tcp, connection.handle
        block = bytes(64 * MSS if acks or not features & TSO4 else 4 * SEGMENTS * MSS)
        for loop in range(WARM_UP + loops):     # the congestion window opens first
            host.now += _SECOND // 1000
            sizes = []
            began = time.perf_counter_ns()
            if tcp.write(handle, block) != len(block):
                raise BenchError("the send buffer is full")
            frames = host.transmit()
            took = time.perf_counter_ns() - began
            sizes = [len(frame) for frame in host.tx.frames_bytes()]
            sizes += [len(frame) for frame in host.sent()]
            answers = burst(_acks(connection, sizes), RX_CHECKSUM)
            began = time.perf_counter_ns()
            host.take(answers)
            if acks:
                took, frames = time.perf_counter_ns() - began, len(answers)
            while tcp.unsent(handle):
                host.take(burst(_acks(connection, [len(frame) for frame in host.sent()]), RX_CHECKSUM))
            tcp.ready()
            if loop >= WARM_UP:
                yield took, frames
    return run


def _acks(connection: Connection, sizes: list[int]) -> list[bytes]:
    """Acknowledgments of frames of such sizes, one for each two segments."""
    frames = []
    for octets in sizes:
        for part in range(0, octets - 66, 2 * MSS):
            connection.ack += min(2 * MSS, octets - 66 - part)
            frames.append(connection.segment())
    return frames[-BURST:] if len(frames) > BURST else frames


def _answered(frames: list[bytes]) -> Callable[[int], Iterator[tuple[int, int]]]:
    """Requests that the stack answers by itself."""
    def run(loops: int) -> Iterator[tuple[int, int]]:
        host = Host(0)
        one = burst(frames, 0)
        for _ in range(loops):
            host.now += _SECOND // 1000
            began = time.perf_counter_ns()
            host.take(one)
            count = host.transmit()
            yield time.perf_counter_ns() - began, count
            if count != len(frames):
                raise BenchError(f"{count} answers to {len(frames)} requests: {host.stack.verdicts()}")
    return run


def _udp(loops: int) -> Iterator[tuple[int, int]]:
    """Datagrams up to the application and back, each as a Python object."""
    host = Host(0)
    udp = host.stack.udp
    endpoint = udp.bind(None, ECHO)
    one = burst([packets.udp(5000 + i, ECHO, bytes(64)) for i in range(BURST)], 0)
    for _ in range(loops):
        host.now += _SECOND // 1000
        began = time.perf_counter_ns()
        host.take(one)
        for ready in udp.ready():
            for data, sender, port in udp.receive(ready, BURST):
                udp.send(endpoint, data, sender, port)
        count = host.transmit()
        yield time.perf_counter_ns() - began, count


def _routes(count: int) -> Callable[[int], Iterator[tuple[int, int]]]:
    """Longest-prefix match among so many routes."""
    def run(loops: int) -> Iterator[tuple[int, int]]:
        from benchmarks.compiled import route_loop
        loop = route_loop()
        host = Host(0)
        for i in range(count - 1):
            host.stack.add_route(f"{11 + i // 65536}.{i // 256 % 256}.{i % 256}.0/24", "10.77.0.1", host.index)
        targets = [f"{11 + i // 65536}.{i // 256 % 256}.{i % 256}.7" for i in range(0, count - 1, max(1, count // 512))]
        addresses = loop.Destinations([*targets, "10.77.0.9"])
        for _ in range(loops):
            began = time.perf_counter_ns()
            looked_up = addresses.look_up(host.stack.state)
            yield time.perf_counter_ns() - began, looked_up
    return run


_RX, _TX = "stack_5Stack_*receive", "stack_5Stack_*transmit"
_READ, _READY, _WRITE = "api_3Tcp_*read_into", "api_3Tcp_*ready", "api_3Tcp_*write"
_PINGS = [packets.echo_request(i, bytes(56)) for i in range(BURST)]
PATHS = (
    Path_("tcp-receive", "TCP segment in, read, acknowledged", (_RX, _READ, _READY, _TX), _receive(RX_CHECKSUM, BURST, 1)),
    Path_("tcp-receive-sum", "the same, checksum verified", (_RX, _READ, _READY, _TX), _receive(0, BURST, 1)),
    Path_("tcp-receive-super", f"TCP super-segment in ({SEGMENTS} x {MSS})", (_RX, _READ, _READY, _TX),
          _receive(RX_CHECKSUM, 8, SEGMENTS)),
    Path_("tcp-send", "TCP segment out", (_WRITE, _TX), _send(TX_CHECKSUM, False)),
    Path_("tcp-send-sum", "the same, checksum computed", (_WRITE, _TX), _send(0, False)),
    Path_("tcp-send-super", f"TCP super-segment out ({SEGMENTS} x {MSS})", (_WRITE, _TX),
          _send(TX_CHECKSUM | TSO4, False)),
    Path_("tcp-ack", "TCP ACK in", (_RX,), _send(TX_CHECKSUM | TSO4, True)),
    Path_("udp", "UDP datagram in, to Python, and out", (_RX, _TX, "udp_3Udp_*ready", "udp_3Udp_*receive",
                                                        "udp_3Udp_*send"), _udp),
    Path_("icmp", "ICMP echo answered", (_RX, _TX), _answered(_PINGS)),
    Path_("arp", "ARP request answered", (_RX, _TX), _answered([packets.arp_request()] * BURST)),
    Path_("route-2", "route lookup, 2 routes", ("route_loop_12Destinations_*look_up",), _routes(2)),
    Path_("route-10000", "route lookup, 10,000 routes", ("route_loop_12Destinations_*look_up",), _routes(10_000)),
)


def measure(report: Report, rounds: int, say: Callable[[str], None]) -> None:
    """Add two rows for each path: ns and instructions per packet."""
    counted = shutil.which("valgrind") is not None
    if not counted:
        report.notes.append("instructions are not counted: valgrind is not installed")
    for path in PATHS:
        say(f"hot path: {path.title}")
        figures = [_ns(path) for _ in range(rounds)]
        report.rows.append(Row(path.title, "ns", statistics.median(figures), rounds={"ns": figures}))
        if counted:
            report.rows.append(Row(path.title, "instructions", _instructions(path)))


def _ns(path: Path_) -> float:
    """The median burst's nanoseconds per packet."""
    return statistics.median(ns / count for ns, count in path.run(LOOPS))


def _instructions(path: Path_) -> float:
    """Per packet, as callgrind counts them inside the path's verbs: a long run less a short one, so that none starts."""
    (less, fewer), (more, many) = (_callgrind(path, loops) for loops in CALLGRIND_LOOPS)
    return (more - less) / (many - fewer)


def _callgrind(path: Path_, loops: int) -> tuple[int, int]:
    """(instructions, packets) of a run."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out"
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--collect-atstart=no",
             *(f"--toggle-collect=__pyx_pw_*{verb}" for verb in path.verbs),
             sys.executable, "-m", "benchmarks.hot_paths", path.name, str(loops)],
            cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise BenchError(f"callgrind: {done.stderr.strip().splitlines()[-1]}")
        total = re.search(r"^(?:totals|summary): (\d+)", out.read_text(), re.MULTILINE)
    return int(total[1]), int(done.stdout)


if __name__ == "__main__":
    chosen = next(path for path in PATHS if path.name == sys.argv[1])
    print(sum(count for _, count in chosen.run(int(sys.argv[2]))))
