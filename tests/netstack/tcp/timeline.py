"""TCP tests as virtual-time timelines against one Stack, in the manner of packetdrill.

The peer is scripted: `inject` builds its segments with scapy, `expect` checks what the stack sends, dissected by scapy.
Sequence numbers count from each side's SYN (seq=0); times are seconds since the timeline began. Nothing may go unsaid:
a segment that is missing, not expected, or sent at another time fails the test and prints all that happened.

    t = Timeline()
    t.listen()
    t.inject("S", seq=0, win=65535, mss=1460)
    t.expect("SA", seq=0, ack=1)
    t.inject("A", seq=1, ack=1)
    t.news("ACCEPTED")
    t.write(b"hello")
    t.expect("PA", seq=1, ack=1, payload=b"hello")
    t.at(1.0)       # runs the timers up to that moment; what they send is expected next
"""

import errno
import struct
from contextlib import contextmanager
from dataclasses import dataclass

from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from mm.frame import Feature, RxBurst, TxBurst
from netstack.stack import Stack

S = 1_000_000_000
OUR_MAC, PEER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:99"
OURS = {4: "10.77.0.2", 6: "fd77::2"}
PEERS = {4: "10.77.0.1", 6: "fd77::1"}
PREFIX = {4: 24, 6: 64}
NEWS = {"CONNECTED": 1, "ACCEPTED": 2, "READABLE": 4, "WRITABLE": 8, "EOF": 16, "CLOSED": 32}
AUTO = object()     # "what a well-behaved peer would put there"
IMPLIED = ("tcp_segments_sent", "tcp_segments_received")    # the timeline itself says how many


def _sum(octets):
    """RFC 1071: 0 when the checksum within is right."""
    total = sum(struct.unpack(f"!{(len(octets) + 1) // 2}H", octets + b"\0" * (len(octets) & 1)))
    return total % 0xFFFF


@dataclass
class Seg:
    """One segment, its numbers relative."""

    time: int
    flags: str
    seq: int
    ack: int
    win: int
    payload: bytes = b""
    mss: int | None = None
    wscale: int | None = None
    sack_ok: bool = False
    ts: tuple | None = None
    sack: tuple = ()
    urgent: int = 0
    size: int = 0               # of the segments a super-segment is to be split into

    def __str__(self):
        text = f"{self.flags or '-'} {self.seq}:{self.seq + len(self.payload)} ack {self.ack} win {self.win}"
        for name in ("mss", "wscale", "ts", "size", "urgent"):
            if getattr(self, name):
                text += f" {name} {getattr(self, name)}"
        if self.sack_ok:
            text += " sack_ok"
        if self.sack:
            text += " sack " + " ".join(f"{a}:{b}" for a, b in self.sack)
        return text


class Timeline:
    """One Stack, one peer, one connection between them (more by `port`)."""

    def __init__(self, family=4, *, mtu=1500, features=0, random=bytes(range(16)), peer_iss=0xFFFF_F000, port=80,
                 peer_port=40000, start=0, challenge_acks_per_second=1000, **limits):
        self.family, self.port, self.peer_port, self.peer_iss = family, port, peer_port, peer_iss
        self.features, self.mtu = features, mtu
        self.log = []
        self.outbox = []
        self.others = []            # frames that are not TCP
        self.stack = Stack(random, now=start, challenge_acks_per_second=challenge_acks_per_second, tcp=limits)
        self.tcp = self.stack.tcp
        self.interface = self.stack.add_interface("t0", bytes.fromhex(OUR_MAC.replace(":", "")), mtu, features,
                                                  link_local=False)
        self.stack.add_address(self.interface, f"{OURS[family]}/{PREFIX[family]}")
        self.stack.set_neighbor(self.interface, PEERS[family], PEER_MAC)
        self._tx, self._rx = TxBurst(), RxBurst()
        self._now = start
        self._start = start
        self._run_until(start + 3 * S)      # duplicate address detection
        self._start = self._now
        self.outbox.clear()
        self.others.clear()
        self.log.clear()
        self.our_iss = None
        self.ts_base = None         # what our timestamp clock would show at time 0
        self.last_ts = 0            # our timestamp that the peer echoes
        self.peer_ts = None         # the peer's timestamp clock at time 0, once it uses timestamps
        self.win = 65535
        self.peer_next = 0          # the sequence number the peer would use next, and what it would acknowledge
        self.our_next = 0
        self.handle = None
        self.listener = None
        self.written = bytearray()  # the stream we should see, from sequence number 1 on
        self._held = None
        self._verdicts, self._counters = self.stack.verdicts(), self.stack.counters()

    # -- failing -----------------------------------------------------------------------------------

    def fail(self, why):
        """Fail with the whole timeline."""
        lines = "\n".join(self.log[-60:])
        raise AssertionError(f"{why}\n--- timeline ---\n{lines}\n--- {self._stamp()} {why}")

    def _stamp(self, at=None):
        return f"{((self._now if at is None else at) - self._start) / S:12.6f}"

    def _note(self, mark, text, at=None):
        self.log.append(f"{self._stamp(at)} {mark} {text}")

    def _nothing_unsaid(self):
        if self.outbox:
            self.fail(f"unexpected segment: {self.outbox[0]} at {self._stamp(self.outbox[0].time)}")
        if self.others:
            self.fail(f"unexpected frame: {self.others[0].summary()}")

    # -- time --------------------------------------------------------------------------------------

    @property
    def now(self):
        """Seconds since the beginning."""
        return (self._now - self._start) / S

    def at(self, seconds):
        """Run all timers up to a moment; what is sent before it is unexpected."""
        self.at_ns(round(seconds * S))

    def at_ns(self, ns):
        """The same in ns since the beginning."""
        self._nothing_unsaid()
        target = ns + self._start
        assert target >= self._now, "timelines go forward"
        self._run_until(target)
        early = [seg for seg in self.outbox if seg.time < target]
        if early:
            self.fail(f"segment too early: {early[0]} at {self._stamp(early[0].time)}")

    def after(self, seconds):
        """The same, from now on."""
        self.at_ns(self._now - self._start + round(seconds * S))

    def quiet(self, seconds=0):
        """Nothing is sent, now and for so long."""
        self._nothing_unsaid()
        if seconds:
            self._run_until(self._now + round(seconds * S))
            self._nothing_unsaid()

    def wait(self, seconds=3600):
        """Run until something is sent. Returns when, in seconds."""
        self._nothing_unsaid()
        limit = self._now + round(seconds * S)
        while not self.outbox:
            due = self.stack.wake_at()
            if due is None or due > limit:
                self.fail(f"nothing is sent within {seconds} s")
            self._run_until(due)
        return self.now

    def drain(self, seconds=0):
        """Run for so long and take whatever is sent, as a list."""
        if seconds:
            self._run_until(self._now + round(seconds * S))
        taken, self.outbox = self.outbox, []
        return taken

    def _run_until(self, target):
        for _ in range(1_000_000):
            due = self.stack.wake_at()
            if due is None or due > target:
                break
            self._now = max(self._now, due)
            self.stack.advance(self._now)
            self._still_later()
            self._collect()
        else:
            self.fail("the timers never end")
        self._now = target

    def _still_later(self):
        due = self.stack.wake_at()
        if due is not None and due <= self._now:
            self.fail(f"wake_at() is {due} after advance({self._now}): the loop would spin")

    # -- segments ----------------------------------------------------------------------------------

    def build(self, flags, *, seq=AUTO, ack=AUTO, win=AUTO, payload=b"", mss=None, wscale=None, sack_ok=False, ts=AUTO,
              sack=(), urgent=0, raw_options=None, port=None, peer_port=None, checksum=None):
        """The peer's segment as a scapy packet; what is not given is what would come next."""
        if isinstance(payload, int):
            payload = bytes(i % 251 for i in range(payload))
        seq = self.peer_next if seq is AUTO else seq
        if ack is AUTO:
            ack = self.our_next if "A" in flags else 0
        elif "A" in flags:
            self.our_next = max(self.our_next, ack) if ack < 1 << 31 else self.our_next
        end = seq + len(payload) + ("S" in flags) + ("F" in flags)
        if "R" not in flags and end < 1 << 31:
            self.peer_next = max(self.peer_next, end)
        if ts is AUTO:
            ts = None if self.peer_ts is None else self.peer_ts + (self._now - self._start) // 1_000_000
        if isinstance(ts, int):
            ts = (ts, None)
        options = []
        if mss is not None:
            options.append(("MSS", mss))
        if wscale is not None:
            options.append(("WScale", wscale))
        if sack_ok:
            options.append(("SAckOK", b""))
        if ts is not None:
            echo = self.last_ts if ts[1] is None else (ts[1] + (self.ts_base or 0)) & 0xFFFFFFFF
            options.append(("Timestamp", (ts[0] & 0xFFFFFFFF, echo if "A" in flags or "S" not in flags else 0)))
        if sack:
            base = self.our_iss or 0
            options.append(("SAck", tuple((edge + base) & 0xFFFFFFFF for block in sack for edge in block)))
        if raw_options is not None:
            options = raw_options
        segment = TCP(sport=peer_port or self.peer_port, dport=port or self.port,
                      seq=(seq + self.peer_iss) & 0xFFFFFFFF,
                      ack=(ack + (self.our_iss or 0)) & 0xFFFFFFFF if "A" in flags else 0,
                      flags=flags, window=self.win if win is AUTO else win, options=options, urgptr=urgent)
        if checksum is not None:
            segment.chksum = checksum
        network = (IP if self.family == 4 else IPv6)(src=PEERS[self.family], dst=OURS[self.family])
        self._note("<", Seg(0, flags, seq, ack, segment.window, bytes(payload), mss, wscale, sack_ok, ts, tuple(sack),
                            urgent))
        packet = Ether(src=PEER_MAC, dst=OUR_MAC) / network / segment
        return packet / Raw(bytes(payload)) if payload else packet

    def inject(self, flags, **fields):
        """A segment arrives from the peer; see `build`. Inside `burst` it waits for the others."""
        if self._held is None:
            self._nothing_unsaid()
        self.receive(bytes(self.build(flags, **fields)))

    def feed(self, times, flags, **fields):
        """Inject a segment so many times, one after the other; returns all that is sent in answer."""
        sent = []
        for _ in range(times):
            self.inject(flags, **fields)
            sent += self.drain()
        return sent

    def receive(self, frame, flags=0, segment_size=0):
        """A raw frame arrives."""
        if self._held is not None:
            self._held.append((frame, flags, segment_size))
            return
        self._rx.clear()
        self._rx.append(frame, segment_size, flags)
        self.stack.receive(self.interface, self._now, self._rx)
        self._collect()

    @contextmanager
    def burst(self):
        """What is injected inside arrives at once: the stack sends only after the last."""
        self._nothing_unsaid()
        self._held = []
        yield
        held, self._held = self._held, None
        self._rx.clear()
        for frame, flags, size in held:
            self._rx.append(frame, size, flags)
        self.stack.receive(self.interface, self._now, self._rx)
        self._collect()

    def _collect(self):
        """Take everything the stack sends now."""
        for _ in range(10_000):
            while self.stack.loop(self._now):
                pass
            if self.interface is None or not self.stack.transmit(self.interface, self._now, self._tx):
                return
            for frame, size in zip(self._tx.frames_bytes(), self._tx.segment_sizes(), strict=True):
                self._dissect(frame, size)
        self.fail("transmit never ends")

    def _dissect(self, frame, size):
        packet = Ether(frame)
        if TCP not in packet:
            self.others.append(packet)
            self._note(">", packet.summary())
            return
        network, tcp = packet.payload, packet[TCP]
        if (packet.dst, packet.src, network.src, network.dst) != (
                PEER_MAC, OUR_MAC, OURS[self.family], PEERS[self.family]):
            self.fail(f"wrong addresses: {packet.summary()}")
        payload = bytes(tcp.payload)
        if not self.features:
            self._check_sums(packet, network)
        options = dict(option for option in tcp.options if option[0] not in ("NOP", "EOL"))
        flags = str(tcp.flags)
        if "S" in flags and self.our_iss is None:
            self.our_iss = tcp.seq
        ts = options.get("Timestamp")
        if ts:
            if self.ts_base is None:
                self.ts_base = (ts[0] - (self._now - self._start) // 1_000_000) & 0xFFFFFFFF
            self.last_ts = ts[0]
            ts = ((ts[0] - self.ts_base) & 0xFFFFFFFF, ts[1])
        edges = options.get("SAck", ())
        seg = Seg(self._now, flags, self._relative(tcp.seq, self.our_iss), self._relative(tcp.ack, self.peer_iss)
                  if "A" in flags else 0, tcp.window, payload, options.get("MSS"), options.get("WScale"),
                  "SAckOK" in options, ts,
                  tuple((self._relative(a, self.peer_iss), self._relative(b, self.peer_iss))
                        for a, b in zip(edges[::2], edges[1::2], strict=True)), tcp.urgptr, size)
        self._note(">", seg)
        if payload and self.written and bytes(self.written[seg.seq - 1:seg.seq - 1 + len(payload)]) != payload:
            self.fail("the octets sent are not the octets written")
        if tcp.sport == self.port and tcp.dport == self.peer_port and "R" not in flags:
            self.our_next = max(self.our_next, seg.seq + len(payload) + ("S" in flags) + ("F" in flags))
        self.outbox.append(seg)

    def _check_sums(self, packet, network):
        octets = packet.original[14:]
        if self.family == 4:
            right = network.len == len(octets) and not _sum(octets[:20]) and network.flags.DF
            pseudo, segment = octets[12:20], octets[20:]
        else:
            right = network.plen == len(octets) - 40
            pseudo, segment = octets[8:40], octets[40:]
        if not right or len(octets) > self.mtu or _sum(pseudo + struct.pack("!HH", 6, len(segment)) + segment):
            self.fail(f"wrong checksum, length or flags: {packet.summary()}")

    @staticmethod
    def _relative(number, base):
        return (number - (base or 0)) & 0xFFFFFFFF

    def expect(self, flags, *, seq=None, ack=None, win=None, payload=None, length=None, mss=AUTO, wscale=AUTO,
               sack_ok=None, ts=AUTO, sack=(), size=None, at=None):
        """The next segment, sent at this very moment; `P` counts only where it is named. Returns the Seg."""
        if at is not None:
            self.at(at)
        if not self.outbox:
            self.fail(f"missing segment: {flags} seq={seq} ack={ack} length={length}")
        seg = self.outbox.pop(0)
        wrong = []
        if set(flags) != set(seg.flags) - ({"P"} if "P" not in flags else set()):
            wrong.append(f"flags {flags}")
        if length is not None and len(seg.payload) != length:
            wrong.append(f"length {length}")
        for name, value, other in (("seq", seq, None), ("ack", ack, None), ("win", win, None),
                                   ("payload", payload, None), ("sack_ok", sack_ok, None), ("mss", mss, AUTO),
                                   ("wscale", wscale, AUTO), ("ts", ts, AUTO), ("sack", tuple(sack), None),
                                   ("size", size, None)):
            if value is not other and getattr(seg, name) != value:
                wrong.append(f"{name} {value}")
        if seg.time != self._now:
            wrong.append(f"time {self._stamp()}")
        if wrong:
            self.fail(f"expected {', '.join(wrong)}, not {seg} at {self._stamp(seg.time)}")
        return seg

    # -- the application ---------------------------------------------------------------------------

    def _act(self, what):
        self._nothing_unsaid()
        self._note("!", what)

    def listen(self, backlog=128, host=None):
        """Listen on the port; `news("ACCEPTED")` makes the connection the current one."""
        self._act(f"listen backlog {backlog}")
        self.listener = self.tcp.listen(host, self.port, backlog)

    def close_listener(self):
        """Stop listening."""
        self._act("close listener")
        self.tcp.close_listener(self.listener)
        self.listener = None
        self._collect()

    def connect(self):
        """Begin an active open from `port` to the peer's port."""
        self._act("connect")
        self.handle = self.tcp.connect(self._now, PEERS[self.family], self.peer_port, source_port=self.port)
        self._collect()

    def news(self, *names, error=0):
        """Exactly these news came since last asked, of one connection, which ended with `error`."""
        rows = self.tcp.ready()
        found = [(" ".join(n for n, bit in NEWS.items() if row[1] & bit), row[2]) for row in rows]
        self._note("?", f"news {found}")
        if not names:
            if rows:
                self.fail(f"unexpected news: {found}")
            return
        bits = sum(NEWS[name] for name in names)
        if len(rows) != 1 or rows[0][1] != bits or rows[0][2] != error:
            self.fail(f"expected news {names} error {errno.errorcode.get(error, 0)}, not {found}")
        if "ACCEPTED" in names:
            self.handle = rows[0][0]
        if self.handle is not None and rows[0][0] != self.handle:
            self.fail("the news are of another connection")

    def write(self, data, taken=None):
        """Write octets, or so many octets of a pattern; all are taken unless `taken` says how many."""
        if isinstance(data, int):
            data = bytes((len(self.written) + i) % 253 for i in range(data))
        self._act(f"write {len(data)}")
        n = self.tcp.write(self.handle, data)
        if n != (len(data) if taken is None else taken):
            self.fail(f"write took {n} of {len(data)} octets")
        self.written += data[:n]
        self._collect()

    def read(self, expected=None, most=1 << 24):
        """Read; `expected`: the octets, or how many of them."""
        self._act("read")
        data = self.tcp.read(self.handle, most)
        if expected is not None and expected != (len(data) if isinstance(expected, int) else data):
            self.fail(f"read {len(data)} octets: {data[:64]!r}")
        self._collect()
        return data

    def shutdown(self):
        """Close our side."""
        self._act("shutdown")
        self.tcp.shutdown(self.handle)
        self._collect()

    def release(self):
        """Let go of the connection."""
        self._act("release")
        self.tcp.release(self.handle)
        self.handle = None
        self._collect()

    def abort(self):
        """Reset it."""
        self._act("abort")
        self.tcp.abort(self.handle)
        self.handle = None
        self._collect()

    # -- short cuts --------------------------------------------------------------------------------

    def accept(self, *, mss=1460, wscale=None, sack_ok=False, ts=None, win=AUTO, quick=False):
        """A connection from the peer with these options, ready for use. `quick`: its first ACKs are not delayed."""
        if self.listener is None:
            self.listen()
        if win is not AUTO:
            self.win = win
        if ts is not None:
            self.peer_ts = ts
        self.inject("S", seq=0, win=win, mss=mss, wscale=wscale, sack_ok=sack_ok)
        self.expect("SA", seq=0, ack=1)
        self.inject("A", seq=1, ack=1, win=win)
        self.news("ACCEPTED")
        if not quick:
            self.spend_quick_acks()
        return self._settled()

    def connected(self, *, mss=1460, wscale=None, sack_ok=False, ts=None, win=AUTO, quick=False):
        """A connection to the peer, ready for use."""
        self.connect()
        self.expect("S", seq=0)
        if win is not AUTO:
            self.win = win
        if ts is not None:
            self.peer_ts = ts
        self.inject("SA", seq=0, ack=1, win=win, mss=mss, wscale=wscale, sack_ok=sack_ok)
        self.expect("A", seq=1, ack=1)
        self.news("CONNECTED")
        if not quick:
            self.spend_quick_acks()
        return self._settled()

    def spend_quick_acks(self):
        """Use up the ACKs that are not delayed while a connection is young."""
        length = len(self.log)
        frame = bytes(self.build("A", payload=b"q"))
        at = 38 if self.family == 4 else 58     # of the sequence number
        with self.burst():
            for i in range(16):                 # the device vouches for the checksum
                number = (1 + i + self.peer_iss) & 0xFFFFFFFF
                self.receive(frame[:at] + number.to_bytes(4, "big") + frame[at + 4:], Feature.RX_CHECKSUM)
        self.peer_next = 17
        self.expect("A", ack=17)
        self.read(16)
        self.tcp.ready()
        del self.log[length:]
        self._note("!", "16 octets have used up the quick ACKs")

    def _settled(self):
        self.mark()
        return self

    def to(self, state):
        """Bring an established connection to a state by the shortest way; sequence numbers are the next ones."""
        if state in ("FIN_WAIT_1", "FIN_WAIT_2", "CLOSING", "TIME_WAIT"):
            self.shutdown()
            self.expect("FA", seq=self.our_next - 1)
        if state in ("FIN_WAIT_2", "TIME_WAIT"):
            self.inject("A", ack=self.our_next)
        if state == "CLOSING":
            self.inject("FA", ack=self.our_next - 1)
            self.expect("A", ack=self.peer_next)
        if state in ("CLOSE_WAIT", "LAST_ACK", "TIME_WAIT"):
            self.inject("FA")
            self.expect("A", ack=self.peer_next)
        if state == "LAST_ACK":
            self.shutdown()
            self.expect("FA", seq=self.our_next - 1)
        if self.state() != state:
            self.fail(f"{self.state()} instead of {state}")
        self.tcp.ready()
        return self._settled()

    # -- facts -------------------------------------------------------------------------------------

    def state(self):
        """The connection's state, or those of all connections when there is no current one; None when there is none."""
        if self.handle is not None:
            return self.tcp.info(self.handle)["state"]
        rows = self.stack.connections()
        return rows[0]["state"] if len(rows) == 1 else [row["state"] for row in rows] or None

    def info(self, name=None):
        """What the stack knows of the connection, released or not."""
        rows = self.stack.connections()
        if self.handle is not None:
            rows = [self.tcp.info(self.handle)]
        if len(rows) != 1:
            self.fail(f"there are {len(rows)} connections")
        return rows[0][name] if name else rows[0]

    def mark(self):
        """`verdicts` and `counters` count from here."""
        self._verdicts, self._counters = self.stack.verdicts(), self.stack.counters()

    def verdicts(self):
        """How the frames since the last call (or `mark`) ended, all of them."""
        before, self._verdicts = self._verdicts, self.stack.verdicts()
        return {k: v - before[k] for k, v in self._verdicts.items() if v != before[k]}

    def counters(self):
        """Every counter that moved since the last call (or `mark`), but those of segments."""
        before, self._counters = self._counters, self.stack.counters()
        return {k: v - before[k] for k, v in self._counters.items() if v != before[k] and k not in IMPLIED}

    def icmp(self, code, quoted_seq, kind=None, payload=8, port=None, peer_port=None):
        """An ICMP unreachable about a segment of ours with this relative sequence number."""
        self._nothing_unsaid()
        quoted = TCP(sport=port or self.port, dport=peer_port or self.peer_port,
                     seq=(quoted_seq + (self.our_iss or 0)) & 0xFFFFFFFF, flags="A")
        self._note("<", f"unreachable code {code} about seq {quoted_seq}")
        link = Ether(src=PEER_MAC, dst=OUR_MAC)
        if self.family == 4:
            inner = IP(src=OURS[4], dst=PEERS[4]) / quoted
            packet = link / IP(src=PEERS[4], dst=OURS[4]) / ICMP(type=3 if kind is None else kind, code=code)
            packet = packet / Raw(bytes(inner)[:20 + payload])
        else:
            inner = IPv6(src=OURS[6], dst=PEERS[6]) / quoted
            packet = link / IPv6(src=PEERS[6], dst=OURS[6]) / ICMPv6DestUnreach(code=code) / Raw(bytes(inner))
        self.receive(bytes(packet))

    # -- the end -----------------------------------------------------------------------------------

    def finish(self):
        """Everything ends: what still lives is aborted, time passes, and nothing may be left."""
        self._nothing_unsaid()
        if self.listener is not None:
            self.tcp.close_listener(self.listener)
        for handle, *_ in self.tcp.ready():
            if handle != self.handle:
                self.tcp.abort(handle)
        for row in self.stack.connections():
            if not row["released"]:
                self.tcp.abort(row["handle"])
        self.tcp.ready()
        for _ in range(200):
            if not self.stack.connections():
                break
            self._run_until(self._now + 60 * S)
            self._collect()
            self.tcp.ready()
        left = self.stack.connections()
        if left:
            self.fail(f"connections are left: {left}")
        usage = self.tcp.usage()
        if usage["buffer_octets"] or usage["time_wait"] or usage["connections"]:
            self.fail(f"something leaked: {usage}")
        if self.stack.counters()["tcp_impossible_transitions"]:
            self.fail("the state machine was asked for an impossible transition")
