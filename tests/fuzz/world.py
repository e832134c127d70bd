"""A stack under test: it is told what to do by operations, watched after each of them, and its links are listened to.

An operation is a list: a name and arguments that JSON can hold, frames as bytes. `World.apply` carries it out and raises
Violation when the stack breaks a promise, so that a list of operations is a test that replays anywhere.

    ["receive", interface, [[frame, segment_size, flags], ...]]     ["advance", now]    ["call", method, argument, ...]
    ["transmit", interface, capacity]                               ["loop"]            ["finish"]

Times are absolute, so that whatever is left out of a list the initial sequence numbers stay what they were.
"""

import ctypes
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

from mm.frame import BURST, RxBurst, TxBurst
from netstack.stack import Stack
from netstack.verdict import LABELS
from tests.fuzz.check import PATTERN, PATTERN_LENGTH, Link, Seen, Violation, check_frame, check_stream, require
from tests.fuzz.frames import ACK, FIN, RST, SYN, TCP

CLOSED_NEWS = 32
FLOWS, HEARD, SAMPLE = 96, 256, 4
KINDS = ("plain", "offload", "small")
HOUR_NS = 3600 * 10**9

Operation = list


def mac_of(interface: int, peer: int = 0) -> bytes:
    """Of the stack's interface of that number, or of a peer on its link."""
    return bytes((2, 0, 0, 0, interface, peer))


def v4_of(interface: int, host: int) -> str:
    return f"10.0.{interface}.{host}"


def v6_of(interface: int, host: int) -> str:
    return f"fd00:0:0:{interface}::{host:x}"


@dataclass(slots=True)
class Flow:
    """A TCP connection between a peer and the stack as the peer's end knows it."""

    interface: int
    us: bytes
    peer: bytes
    our_port: int
    peer_port: int
    seq: int = 0            # the peer's next
    ack: int = 0            # what the peer expects from the stack
    first: int | None = None        # the stack's SYN, once it was seen
    timestamp: int | None = None    # the last one of the stack's
    flags: int = 0          # of the stack's last segment
    opened: bool = False


def allocated() -> int:
    """Octets on the heap: by AddressSanitizer where it runs, else by glibc; 0 where neither tells."""
    this = ctypes.CDLL(None)
    if hasattr(this, "__sanitizer_get_current_allocated_bytes"):
        count = this.__sanitizer_get_current_allocated_bytes
        count.restype = ctypes.c_size_t
        return count()
    if hasattr(this, "mallinfo2"):
        class Info(ctypes.Structure):
            _fields_ = [(name, ctypes.c_size_t) for name in (
                "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

        this.mallinfo2.restype = Info
        info = this.mallinfo2()
        return info.uordblks + info.hblkhd
    return 0


class World:
    """One stack with interfaces of each kind, what it has sent, and what it must still keep.

    `setting`: secret (hex), now, mtu and features of each interface, keyword arguments for Stack, Tcp and Udp.
    """

    def __init__(self, setting: dict):
        self.setting = setting
        self.now = setting["now"]
        self.stack = Stack(bytes.fromhex(setting["secret"]), now=self.now, **setting["stack"],
                           tcp=setting["tcp"], udp=setting["udp"])
        self.links: dict[int, Link] = {}
        self.own: set[bytes] = set()
        self.flows: dict[tuple, Flow] = {}
        self.heard: deque[tuple[int, Seen]] = deque(maxlen=HEARD)   # (interface, frame) nobody has answered yet
        self.handles: list[int] = []
        self.gone: deque[int] = deque(maxlen=64)            # handles that were released
        self.written: dict[int, int] = {}
        self.listeners: list[int] = []
        self.endpoints: list[int] = []
        self.sample: list[bytes] = []
        self.received = 0
        self.transmitted = 0
        self.ended = 0
        self.rounds = 0
        self._rx, self._tx = RxBurst(), TxBurst()
        for kind in range(len(KINDS)):
            self.call("add_interface", kind)
        self.call("add_route", "0.0.0.0/0", v4_of(1, 1), None)
        self.call("add_route", "::/0", "fe80::1", 1)

    # -- operations --------------------------------------------------------------------------------

    def apply(self, operation: Operation) -> None:
        """Carry out one operation. Raises Violation."""
        name, *arguments = operation
        getattr(self, name)(*arguments)
        self._check_bounds()

    def receive(self, interface: int, frames: list) -> None:
        if interface not in self.links:
            return
        for octets, segment_size, flags in frames:
            self._rx.append(octets, segment_size, flags)
        self.stack.receive(interface, self.now, self._rx)
        self.received += len(frames)
        self.ended += len(frames)
        self._rx.clear()        # what the stack still points to is gone now, and AddressSanitizer knows
        self._check_ended()

    def advance(self, now: int) -> None:
        self.now = max(self.now, now)
        self.stack.advance(self.now)
        at = self.stack.wake_at()
        require(at is None or at > self.now, "wake-at", f"{at} at {self.now}")

    def transmit(self, interface: int, capacity: int) -> None:
        if interface not in self.links:
            return
        self._tx.limit(capacity)
        n = self.stack.transmit(interface, self.now, self._tx)
        require(n == len(self._tx) <= capacity, "tx-count", f"{n} of {capacity}")
        self.transmitted += n
        link = self.links[interface]
        for frame, order in zip(self._tx.frames_bytes(), self._tx.orders(), strict=True):
            seen = check_frame(frame, order, link, self.own)
            self._listen(interface, seen)
            if not order[1] and (self.transmitted % 509 == 0 or not self.sample) and len(self.sample) < SAMPLE:
                self.sample.append(frame)
        self._tx.clear()

    def loop(self) -> None:
        for _ in range(200):
            n = self.stack.loop(self.now)
            self.ended += n
            self._check_ended()
            if not n:
                return

    def call(self, method: str, *arguments) -> None:
        """One call of the API; what a caller may expect for bad arguments is no violation."""
        with suppress(ValueError, OSError):
            getattr(self, f"_{method}")(*arguments)

    # -- calls -------------------------------------------------------------------------------------

    def _add_interface(self, kind: int) -> None:
        mtu, features = self.setting["interfaces"][kind]
        mac = mac_of(kind + 1)
        index = self.stack.add_interface(KINDS[kind], mac, mtu, features)
        self.links[index] = Link(mac, mtu, features)
        self._note_own()
        self.call("add_address", index, f"{v4_of(index, 2)}/24")
        self.call("add_address", index, f"{v6_of(index, 2)}/64")

    def _remove_interface(self, index: int) -> None:
        self.stack.remove_interface(index)
        del self.links[index]

    def _set_link(self, index: int, up: bool) -> None:
        self.stack.set_link(index, up)

    def _add_address(self, index: int, address: str) -> None:
        self.stack.add_address(index, address)
        self._note_own()

    def _note_own(self) -> None:
        self.own.update(ip_address(row["address"].partition("/")[0]).packed for row in self.stack.addresses())

    def _remove_address(self, index: int, address: str) -> None:
        self.stack.remove_address(index, address)

    def _add_route(self, prefix: str, gateway: str | None, interface: int | None, metric: int = 0) -> None:
        self.stack.add_route(prefix, gateway, interface, metric)

    def _remove_route(self, prefix: str, interface: int) -> None:
        self.stack.remove_route(prefix, interface)

    def _set_neighbor(self, interface: int, address: str, mac: str) -> None:
        self.stack.set_neighbor(interface, address, mac)

    def _remove_neighbor(self, interface: int, address: str) -> None:
        self.stack.remove_neighbor(interface, address)

    def _ping(self, host: str, identifier: int, sequence: int, size: int) -> None:
        self.stack.ping_send(self.now, host, identifier, sequence, size)

    def _ping_replies(self) -> None:
        self.stack.ping_replies()

    def _facts(self) -> None:
        """Everything that lists something: none may fail, whatever state things are in."""
        stack = self.stack
        for facts in (stack.interfaces, stack.addresses, stack.routes, stack.neighbors, stack.connections,
                      stack.listeners, stack.unsent, stack.counters, stack.udp.rows):
            facts()
        for handle in self.handles[:4]:
            stack.tcp.info(handle), stack.tcp.local(handle), stack.tcp.remote(handle), stack.tcp.listener_of(handle)

    def _listen_on(self, host: str | None, port: int, backlog: int) -> None:
        self.listeners.append(self.stack.tcp.listen(host, port, backlog))

    def _close_listener(self, handle: int) -> None:
        self.stack.tcp.close_listener(handle)
        self.listeners.remove(handle)

    def _connect(self, host: str, port: int, source: str | None, source_port: int) -> None:
        self.handles.append(self.stack.tcp.connect(self.now, host, port, source, source_port))

    def _ready(self) -> None:
        for handle, news, _error in self.stack.tcp.ready():
            require(news, "news-empty", handle)
            if handle not in self.handles:
                self.handles.append(handle)
            if news & CLOSED_NEWS:
                require(self.stack.tcp.info(handle)["state"] == "CLOSED", "news-closed", handle)
        require(not self.stack.tcp.pending, "pending-after-ready", self.stack.tcp.pending)

    def _write(self, handle: int, octets: int) -> None:
        at = self.written.get(handle, 0) % PATTERN_LENGTH
        taken = self.stack.tcp.write(handle, PATTERN[at:at + min(octets, len(PATTERN) - at)])
        self.written[handle] = self.written.get(handle, 0) + taken

    def _read(self, handle: int, octets: int) -> None:
        before = self.stack.tcp.unread(handle)
        got = len(self.stack.tcp.read(handle, octets))
        require(got == min(before, octets), "read-short", f"{got} of {octets}, {before} waited")

    def _read_into(self, handle: int, octets: int) -> None:
        self.stack.tcp.read_into(handle, bytearray(octets))

    def _shutdown(self, handle: int) -> None:
        self.stack.tcp.shutdown(handle)

    def _abort(self, handle: int) -> None:
        self.stack.tcp.abort(handle)
        self._let_go(handle)

    def _release(self, handle: int) -> None:
        self.stack.tcp.release(handle)
        self._let_go(handle)

    def _let_go(self, handle: int) -> None:
        if handle in self.handles:
            self.handles.remove(handle)
        self.written.pop(handle, None)
        self.gone.append(handle)

    def _set_nodelay(self, handle: int, on: bool) -> None:
        self.stack.tcp.set_nodelay(handle, on)

    def _set_keepalive(self, handle: int, on: bool) -> None:
        self.stack.tcp.set_keepalive(handle, on)

    def _udp_bind(self, host: str | None, port: int, reuse: bool) -> None:
        self.endpoints.append(self.stack.udp.bind(host, port, reuse))

    def _udp_connect(self, endpoint: int, host: str, port: int) -> None:
        self.stack.udp.connect(endpoint, host, port)

    def _udp_send(self, endpoint: int, octets: int, host: str | None, port: int) -> None:
        self.stack.udp.send(endpoint, PATTERN[:octets], host, port)

    def _udp_ready(self) -> None:
        for endpoint in self.stack.udp.ready():
            require(endpoint in self.endpoints, "udp-ready-unknown", endpoint)
            self.stack.udp.receive(endpoint, 3)
            self.stack.udp.error(endpoint)

    def _udp_close(self, endpoint: int) -> None:
        self.stack.udp.close(endpoint)
        self.endpoints.remove(endpoint)

    # -- listening ---------------------------------------------------------------------------------

    def _listen(self, interface: int, seen: Seen) -> None:
        """Follow the stack's side of the connections, and keep the frame for the peers to answer."""
        self.heard.append((interface, seen))
        if seen.protocol != TCP or not seen.family:
            return
        key = (seen.source, seen.destination, seen.source_port, seen.port)
        flow = self.flows.get(key)
        if flow is None:
            if len(self.flows) >= FLOWS:
                del self.flows[next(iter(self.flows))]
            flow = self.flows[key] = Flow(interface, *key)
        flow.interface = interface
        flow.timestamp, flow.flags = seen.timestamp, seen.flags
        if seen.flags & SYN and flow.first != seen.seq:
            flow.first, flow.ack = seen.seq, seen.seq + 1 & 0xFFFFFFFF
        if seen.data and flow.first is not None:
            try:
                check_stream(seen, flow.first)
            except Violation:
                if not self._is_another(flow):
                    raise
                flow.first = None
        if seen.flags & ACK:
            flow.seq = seen.ack
            flow.opened = flow.opened or not seen.flags & SYN
        end = seen.seq + len(seen.data) + (1 if seen.flags & (SYN | FIN) else 0) & 0xFFFFFFFF
        if (end - flow.ack) & 0xFFFFFFFF < 1 << 31:
            flow.ack = end
        if seen.flags & RST:
            del self.flows[key]

    def _is_another(self, flow: Flow) -> bool:
        """Is the connection another than the one whose SYN was heard last? A SYN may have been dropped while it waited for
        its neighbor, or have waited there until the next one was sent."""
        ends = (str(ip_address(flow.us)), flow.our_port, str(ip_address(flow.peer)), flow.peer_port)
        return not any((row["local_host"], row["local_port"], row["remote_host"], row["remote_port"]) == ends
                       and row["state"] != "CLOSED" and row["iss"] == flow.first for row in self.stack.connections())

    # -- invariants --------------------------------------------------------------------------------

    def _check_ended(self) -> None:
        """Every received frame has ended exactly once."""
        verdicts = self.stack.verdicts()
        require(sum(verdicts.values()) == self.ended, "ended-once", f"{self.ended} frames: {verdicts}")

    def _check_bounds(self) -> None:
        """Every table is within its bounds; now and then those are counted that take long."""
        tcp = self.stack.tcp
        usage = tcp.usage()
        for what in ("connections", "buffer_octets"):
            require(usage[what] <= usage[f"{what}_limit"], "bounds", f"{what}: {usage}")
        self.rounds += 1
        if self.rounds % 64 == 0:
            self._check_tables(usage)

    def _check_tables(self, usage: dict) -> None:
        stack, setting = self.stack, self.setting
        require(stack.counters()["tcp_impossible_transitions"] == 0, "impossible-transition")
        require(stack.verdicts()["forwarded"] == 0 and tuple(stack.verdicts()) == LABELS, "verdicts", stack.verdicts())
        rows = stack.connections()
        require(len(rows) == usage["connections"], "connection-count", f"{len(rows)}: {usage}")
        require(sum(row["state"] == "TIME_WAIT" for row in rows) == usage["time_wait"], "time-wait-count", usage)
        for row in rows:
            limit = setting["tcp"]["receive_buffer"]    # and what rounding a scaled window up can add
            require(row["unread"] <= limit + (limit >> 12) + 2, "receive-buffer", row)
            require(row["unsent"] <= setting["tcp"]["send_buffer"], "send-buffer", row)
        for row in stack.listeners():
            require(row["half_open"] <= setting["tcp"]["embryos"] and row["waiting"] <= row["backlog"], "backlog", row)
        half_open = sum(row["half_open"] for row in stack.listeners())
        require(half_open <= sum(row["state"] == "SYN_RECEIVED" for row in rows), "embryos", f"{half_open}: {rows}")
        neighbors = stack.neighbors()
        require(len(neighbors) <= setting["stack"]["neighbors"], "neighbors", len(neighbors))
        require(all(row["waiting"] <= 16 for row in neighbors), "neighbor-waiting", neighbors)
        require(len(stack.udp) == len(self.endpoints), "udp-count", f"{len(stack.udp)} of {len(self.endpoints)}")
        require(all(row["output_queued"] <= 1024 for row in stack.interfaces()), "output-queue")

    def finish(self) -> None:
        """Close everything; when its timers have run out the stack must hold nothing any more. Raises Violation."""
        for index in list(self.links):
            self.call("set_link", index, True)
        for listener in list(self.listeners):
            self.call("close_listener", listener)
        for endpoint in list(self.endpoints):
            self.call("udp_close", endpoint)
        self._tx.limit(BURST)
        tcp, end = self.stack.tcp, self.now + 24 * HOUR_NS
        while True:
            self.call("ready")
            for handle in list(self.handles):
                self.call("release", handle)
            for index in list(self.links):
                while self.stack.transmit(index, self.now, self._tx):
                    self._tx.clear()
            self.loop()
            at = self.stack.wake_at()
            if at is None or at > end:
                break
            self.advance(at)
        usage = tcp.usage()
        require(usage["connections"] == usage["time_wait"] == usage["buffer_octets"] == 0, "left-over",
                f"{usage}: {self.stack.connections()}")
        require(not self.stack.listeners() and not len(self.stack.udp), "left-over", self.stack.listeners())
        require(not any(row["waiting"] for row in self.stack.neighbors()), "left-over", self.stack.neighbors())
        require(not any(row["output_queued"] for row in self.stack.interfaces()), "left-over", self.stack.interfaces())

