"""What hosts on the links of a World say: answers to what the stack sent, segments of its connections, and everything
else a frame can be, all of it valid."""

import random
from ipaddress import ip_address
from struct import pack

from tests.fuzz.check import Seen
from tests.fuzz.frames import (
    ACK,
    ARP,
    BROADCAST,
    DESTINATION,
    FIN,
    FRAGMENT,
    HOP_BY_HOP,
    ICMP,
    ICMPV6,
    IPV4,
    IPV6,
    PSH,
    ROUTING,
    RST,
    SYN,
    TCP,
    UDP,
    URG,
    arp,
    ether,
    group_mac,
    icmp,
    icmpv6,
    ip,
    ipv4,
    ipv6,
    solicited_node,
    tcp,
    udp,
    with_checksum,
)
from tests.fuzz.world import Flow, World, mac_of, v4_of, v6_of

OPEN_PORTS = (7, 80, 5201)
PORTS = (*OPEN_PORTS, 9, 50000, 0)
ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
V4_OPTIONS = (b"\x94\x04\0\0", b"\x07\x07\x04\0\0\0\0\0", b"\1\1\1\0", b"\x83\x07\x04\x0a\0\0\1\0", b"\x44\x08\x05\0\0\0\0\0",
              b"\x88\x04\0\1")
SYN_OPTIONS = (b"", b"\2\4\x05\xb4", b"\2\4\x05\xb4\4\2\x08\x0a\0\0\0\1\0\0\0\0\1\3\3\x07", b"\2\4\x02\x18\3\3\x0e",
               b"\2\4\0\1\4\2", b"\2\4\xff\xff\4\2\x08\x0a\x7f\xff\xff\xff\0\0\0\0", b"\3\3\0\2\4\x22\xd8")
Frame = tuple[int, bytes]           # interface and octets


def packed(address: str) -> bytes:
    return ip_address(address).packed


# packed once: parsing text is slow
OURS4 = {i: packed(v4_of(i, 2)) for i in range(1, 4)}
OURS6 = {i: packed(v6_of(i, 2)) for i in range(1, 4)}
LINK6 = {i: bytes.fromhex("fe80000000000000000000fffe00") + bytes((i, 0)) for i in range(1, 4)}     # EUI-64 of mac_of(i)
PEERS4 = {(i, p): packed(v4_of(i, p)) for i in range(1, 4) for p in range(1, 20)}
PEERS6 = {(i, p): packed(v6_of(i, p)) for i in range(1, 4) for p in range(1, 20)}
FAR4, FAR6 = packed("198.51.100.7"), packed("2001:db8::7")


class Peers:
    """Frames for a World from everybody around it."""

    def __init__(self, world: World, rng: random.Random):
        self.world, self.rng = world, rng
        self.makers = (
            (30, self.segment), (8, self.syn), (3, self.stray_segment), (8, self.datagram), (5, self.echo),
            (6, self.error), (4, self.arp), (6, self.neighbor), (2, self.router), (3, self.options), (2, self.fragment),
            (4, self.extensions), (2, self.other_protocol), (1, self.noise), (1, self.super_datagram))
        self._weights = [weight for weight, _ in self.makers]
        self._makers = [maker for _, maker in self.makers]

    def frames(self, count: int) -> list[Frame]:
        """A valid frame each: mostly an answer while something waits for one."""
        out: list[Frame] = []
        for maker in self.rng.choices(self._makers, self._weights, k=count):
            frame = None
            if self.world.heard and self.rng.random() < 0.5:
                frame = self.answer(*self.world.heard.popleft())
            out.append(frame or maker())
        return out

    # -- who and where -----------------------------------------------------------------------------

    def _interface(self) -> int:
        return int(self.rng.random() * 3) + 1

    def _ends(self, interface: int) -> tuple[bytes, bytes, bytes]:
        """A peer's MAC and address, and one of the stack's of the same family."""
        rng = self.rng
        peer = rng.choice((1, 10, 11, 12, 13, 14, 19))
        choice = rng.random()
        if choice < 0.5:
            source = PEERS4[interface, peer] if peer != 1 or rng.random() < 0.5 else FAR4
            return mac_of(interface, peer), source, OURS4[interface]
        if choice < 0.9:
            source = PEERS6[interface, peer] if peer != 1 or rng.random() < 0.5 else FAR6
            return mac_of(interface, peer), source, OURS6[interface]
        return mac_of(interface, peer), b"\xfe\x80" + bytes(13) + bytes((peer,)), LINK6[interface]

    def _wrap(self, interface: int, mac: bytes, source: bytes, destination: bytes, protocol: int, payload: bytes,
              **fields) -> Frame:
        group = destination[0] == 0xFF if len(destination) == 16 else destination[0] & 0xF0 == 0xE0
        to = group_mac(destination) if group else mac_of(interface)
        return interface, ether(to, mac, *ip(source, destination, protocol, payload, **fields))

    def _data(self, most: int = 1400) -> bytes:
        n = self.rng.choice((0, 1, 2, 3, 7, 8, 100, 536, most))
        return self.rng.randbytes(8) * (n // 8 + 1) if n > 8 else self.rng.randbytes(n)

    # -- answers -----------------------------------------------------------------------------------

    def answer(self, interface: int, seen: Seen) -> Frame | None:
        """What an honest peer would send back; None: nothing, or it has gone to sleep."""
        if self.rng.random() < 0.1:
            return None
        frame = seen.frame
        peer = frame[:6] if not frame[0] & 1 else mac_of(interface, 10)
        if seen.kind == ARP:
            if frame[20:22] == b"\0\1" and frame[28:32] != frame[38:42]:
                mac = mac_of(interface, frame[41] if frame[38:41] == bytes((10, 0, interface)) else 99)
                return interface, ether(frame[6:12], mac, ARP, arp(2, mac, frame[38:42], frame[6:12], frame[28:32]))
            return None
        if seen.protocol == TCP:
            flow = self.world.flows.get((seen.source, seen.destination, seen.source_port, seen.port))
            return self._answer_segment(flow, seen, peer) if flow else None
        if seen.protocol == ICMPV6 and frame[seen.at] == 135 and any(seen.source):
            return self._advertise(interface, frame[seen.at + 8:seen.at + 24], seen.source)
        if seen.protocol in (ICMP, ICMPV6) and frame[seen.at] in (8, 128):
            body = frame[seen.at + 4:]
            reply = icmp(0, 0, body) if seen.family == 4 else icmpv6(seen.destination, seen.source, 129, 0, body)
            return self._wrap(interface, peer, seen.destination, seen.source, seen.protocol, reply)
        if seen.protocol == UDP and self.rng.random() < 0.5:
            return self._complain(interface, peer, seen)
        return None

    def _advertise(self, interface: int, target: bytes, to: bytes) -> Frame:
        mac = mac_of(interface, target[15])
        flags = self.rng.choice((0x60, 0x60, 0x40, 0x20, 0xE0))
        body = pack("!B3x16s", flags, target) + b"\2\1" + mac
        return self._wrap(interface, mac, target, to, ICMPV6, icmpv6(target, to, 136, 0, body), hop_limit=255)

    def _answer_segment(self, flow: Flow, seen: Seen, mac: bytes) -> Frame | None:
        rng = self.rng
        if seen.flags & RST:
            return None
        if seen.flags & SYN and not seen.flags & ACK:       # the stack connects
            if rng.random() < 0.15:
                return self._segment(flow, mac, 0, RST | ACK)
            flow.seq = rng.getrandbits(32)
            flags = SYN if rng.random() < 0.1 else SYN | ACK
            frame = self._segment(flow, mac, flow.seq, flags, options=rng.choice(SYN_OPTIONS))
            flow.seq += 1
            return frame
        if rng.random() < 0.1:      # lost: the peer says again where it is
            return self._segment(flow, mac, flow.seq, ACK, ack=flow.ack - len(seen.data) - 1, sack=True)
        return self._segment(flow, mac, flow.seq, ACK)

    def _segment(self, flow: Flow, mac: bytes, seq: int, flags: int, *, ack: int | None = None, options: bytes = b"",
                 data: bytes = b"", window: int | None = None, sack: bool = False) -> Frame:
        rng = self.rng
        if flow.timestamp is not None and not flags & SYN and rng.random() < 0.97:
            value = self.world.now // 1_000_000 - (rng.choice((1, 1000, 1 << 31)) if rng.random() < 0.02 else 0)
            options += b"\1\1\x08\x0a" + pack("!II", value & 0xFFFFFFFF, flow.timestamp)
        if sack and len(options) <= 12:
            left = flow.ack + rng.choice((0, 100, 1448, 2896))
            options += b"\1\1\5\x0a" + pack("!II", left & 0xFFFFFFFF, (left + rng.choice((1, 1448, 5000))) & 0xFFFFFFFF)
        if window is None:
            window = rng.choice((65535, 65535, 65535, 8192, 1000, 0))
        segment = tcp(flow.peer, flow.us, flow.peer_port, flow.our_port, seq, flow.ack if ack is None else ack, flags,
                      window, options, data, rng.randrange(100) if flags & URG else 0)
        return self._wrap(flow.interface, mac, flow.peer, flow.us, TCP, segment)

    # -- TCP ---------------------------------------------------------------------------------------

    def _flow(self) -> Flow | None:
        flows = self.world.flows
        return self.rng.choice(list(flows.values())) if flows else None

    def segment(self) -> Frame:
        """The next segment of a connection, or one near it."""
        rng, flow = self.rng, self._flow()
        if flow is None:
            return self.syn()
        mac = mac_of(flow.interface, flow.peer[-1])
        choice = rng.random()
        if choice < 0.45:
            data = self._data()
            frame = self._segment(flow, mac, flow.seq, ACK | PSH, data=data)
            flow.seq += len(data)
            return frame
        if choice < 0.60:       # beyond a gap, or again
            offset = rng.choice((1, 100, 536, 1400, 3000, 60000, -1, -100, -1400))
            return self._segment(flow, mac, flow.seq + offset, ACK, data=self._data())
        if choice < 0.70:
            return self._segment(flow, mac, flow.seq, ACK, sack=rng.random() < 0.5,
                                 ack=flow.ack - rng.choice((0, 0, 1, 1000, 1448, -1)))
        if choice < 0.76:
            return self._segment(flow, mac, flow.seq + rng.choice((0, 0, 1000)), FIN | ACK, data=self._data())
        if choice < 0.79:
            return self._segment(flow, mac, flow.seq + rng.choice((0, 1, 1000, -1)), RST | rng.choice((0, ACK)))
        if choice < 0.82:
            return self._segment(flow, mac, flow.seq + rng.choice((0, -1, 5000)), SYN | rng.choice((0, ACK)),
                                 options=rng.choice(SYN_OPTIONS))
        if choice < 0.85:
            return self._segment(flow, mac, flow.seq, ACK | URG, data=self._data())
        if choice < 0.95 and flow.interface == 2:
            frame = self._segment(flow, mac, flow.seq, ACK, data=rng.randbytes(8) * rng.choice((400, 2000, 8000)))
            flow.seq += 8 * 400
            return frame
        return self._segment(flow, mac, flow.seq, ACK, window=rng.choice((0, 1, 65535)))

    def syn(self) -> Frame:
        interface = self._interface()
        mac, peer, us = self._ends(interface)
        port, peer_port = self.rng.choice(PORTS), self.rng.choice((1024, 1025, 1026, 1027, self.rng.getrandbits(16)))
        segment = tcp(peer, us, peer_port, port, self.rng.getrandbits(32), 0, SYN, options=self.rng.choice(SYN_OPTIONS))
        return self._wrap(interface, mac, peer, us, TCP, segment)

    def stray_segment(self) -> Frame:
        interface = self._interface()
        mac, peer, us = self._ends(interface)
        rng = self.rng
        segment = tcp(peer, us, rng.choice((1024, 4000)), rng.choice(PORTS), rng.getrandbits(32), rng.getrandbits(32),
                      rng.getrandbits(8), rng.getrandbits(16), data=self._data(100))
        return self._wrap(interface, mac, peer, us, TCP, segment)

    # -- UDP and ICMP ------------------------------------------------------------------------------

    def datagram(self) -> Frame:
        interface, rng = self._interface(), self.rng
        mac, peer, us = self._ends(interface)
        if rng.random() < 0.15:
            us = rng.choice((b"\xff" * 4, bytes((10, 0, interface, 255)), b"\xe0\0\0\1")) if len(us) == 4 else ALL_NODES
        data = udp(peer, us, rng.choice((7, 53, 4000)), rng.choice(PORTS), self._data())
        if rng.random() < 0.05:
            data = data[:6] + b"\0\0" + data[8:]
        return self._wrap(interface, mac, peer, us, UDP, data)

    def super_datagram(self) -> Frame:
        """As long as a packet can be."""
        interface = self._interface()
        mac, peer, us = self._ends(interface)
        return self._wrap(interface, mac, peer, us, UDP, udp(peer, us, 4000, 7, bytes(self.rng.choice((1472, 9000, 65507)))))

    def echo(self) -> Frame:
        interface, rng = self._interface(), self.rng
        mac, peer, us = self._ends(interface)
        body = pack("!HH", rng.choice((1, 2, 77)), rng.getrandbits(16)) + self._data()
        kind = rng.random() < 0.7
        if len(us) == 4:
            if rng.random() < 0.1:
                us = b"\xff" * 4
            return self._wrap(interface, mac, peer, us, ICMP, icmp(8 if kind else 0, 0, body))
        if rng.random() < 0.1:
            us = ALL_NODES
        return self._wrap(interface, mac, peer, us, ICMPV6, icmpv6(peer, us, 128 if kind else 129, 0, body))

    def error(self) -> Frame:
        """An error about a packet of a connection, or about the last datagram or ping."""
        interface, rng, flow = self._interface(), self.rng, self._flow()
        if flow and rng.random() < 0.6:
            segment = tcp(flow.us, flow.peer, flow.our_port, flow.peer_port, flow.ack - rng.choice((0, 1, 100, 5000)),
                          flow.seq, ACK)
            kind, packet = ip(flow.us, flow.peer, TCP, segment)
            return self._error(flow.interface, mac_of(flow.interface, 1), flow.us, kind, packet)
        mac, peer, us = self._ends(interface)
        if rng.random() < 0.5:
            inner = (UDP, udp(us, peer, rng.choice(PORTS), 4000, b"data"))
        else:
            body = pack("!HH", 1, 1) + bytes(8)
            inner = (ICMP, icmp(8, 0, body)) if len(us) == 4 else (ICMPV6, icmpv6(us, peer, 128, 0, body))
        return self._error(interface, mac, us, *ip(us, peer, *inner))

    def _complain(self, interface: int, mac: bytes, seen: Seen) -> Frame:
        return self._error(interface, mac, seen.source, seen.kind, seen.frame[14:])

    def _error(self, interface: int, mac: bytes, us: bytes, kind: int, packet: bytes) -> Frame:
        rng = self.rng
        quote = packet[:rng.choice((20, 28, 40, 48, 60, 500))]
        rest = pack("!I", rng.choice((0, 68, 576, 1280, 1499, 0xFFFF, 0xFFFFFFFF)))
        if kind == IPV4:
            message = icmp(rng.choice((3, 3, 3, 4, 5, 11, 12)), rng.randrange(16), rest + quote)
            return self._wrap(interface, mac, PEERS4[interface, 1], us, ICMP, message)
        router = PEERS6[interface, 1]
        message = icmpv6(router, us, rng.choice((1, 1, 2, 3, 4, 100)), rng.randrange(7), rest + quote)
        return self._wrap(interface, mac, router, us, ICMPV6, message)

    # -- ARP and Neighbor Discovery ----------------------------------------------------------------

    def arp(self) -> Frame:
        interface, rng = self._interface(), self.rng
        peer = rng.choice((1, 10, 11, 12, 19, rng.randrange(3, 20)))
        mac, address = mac_of(interface, peer), PEERS4[interface, peer]
        ours = mac_of(interface)
        choice = rng.random()
        if choice < 0.4:
            return interface, ether(BROADCAST, mac, ARP, arp(1, mac, address, bytes(6), OURS4[interface]) + bytes(18))
        if choice < 0.7:
            return interface, ether(ours, mac, ARP, arp(2, mac, address, ours, OURS4[interface]))
        if choice < 0.8:        # gratuitous
            return interface, ether(BROADCAST, mac, ARP, arp(1, mac, address, bytes(6), address))
        if choice < 0.9:        # a probe, or a claim of what is ours
            sender = rng.choice((bytes(4), OURS4[interface]))
            return interface, ether(BROADCAST, mac, ARP, arp(1, mac, sender, bytes(6), OURS4[interface]))
        return interface, ether(BROADCAST, mac, ARP, arp(rng.choice((1, 2)), mac, address, bytes(6), rng.randbytes(4)))

    def neighbor(self) -> Frame:
        interface, rng = self._interface(), self.rng
        peer = rng.randrange(1, 20)
        mac = mac_of(interface, peer)
        source = rng.choice((PEERS6[interface, peer], b"\xfe\x80" + bytes(13) + bytes((peer,))))
        target = rng.choice((OURS6[interface], LINK6[interface], packed_extra(interface)))
        if rng.random() < 0.5:
            if rng.random() < 0.2:      # a duplicate address probe
                source = bytes(16)
            to = solicited_node(target) if rng.random() < 0.7 or not any(source) else target
            body = bytes(4) + target + (b"\1\1" + mac if any(source) and rng.random() < 0.9 else b"")
            return self._wrap(interface, mac, source, to, ICMPV6, icmpv6(source, to, 135, 0, body), hop_limit=255)
        if rng.random() < 0.3:
            source = target
        to = rng.choice((ALL_NODES, OURS6[interface], LINK6[interface]))
        flags = rng.choice((0x20, 0xA0)) if to == ALL_NODES else rng.choice((0x60, 0x40, 0xE0, 0))
        body = pack("!B3x", flags) + source + b"\2\1" + mac
        return self._wrap(interface, mac, source, to, ICMPV6, icmpv6(source, to, 136, 0, body), hop_limit=255)

    def router(self) -> Frame:
        interface, rng = self._interface(), self.rng
        mac, source = mac_of(interface, 1), b"\xfe\x80" + bytes(13) + b"\1"
        kind = rng.choice((133, 134, 137))
        prefix = b"\3\4\x40\xc0" + pack("!III", 3600, 1800, 0) + PEERS6[interface, 1]
        body = {133: bytes(4), 134: pack("!BBHII", 64, 0, 1800, 0, 0) + prefix + b"\5\1\0\0\0\0\x05\xdc",
                137: bytes(4) + PEERS6[interface, 11] + FAR6}[kind] + b"\1\1" + mac
        to = ALL_NODES if kind == 134 else LINK6[interface]
        return self._wrap(interface, mac, source, to, ICMPV6, icmpv6(source, to, kind, 0, body), hop_limit=255)

    # -- the odd ones ------------------------------------------------------------------------------

    def _inner(self, peer: bytes, us: bytes) -> tuple[int, bytes]:
        """Some transport."""
        if self.rng.random() < 0.5:
            return UDP, udp(peer, us, 4000, 7, self._data(200))
        return TCP, tcp(peer, us, 1024, 80, self.rng.getrandbits(32), 0, SYN)

    def options(self) -> Frame:
        interface, rng = self._interface(), self.rng
        peer, us = PEERS4[interface, 10], OURS4[interface]
        options = b"".join(rng.choices(V4_OPTIONS, k=rng.randrange(1, 5)))[:40]
        packet = ipv4(peer, us, *self._inner(peer, us), options=options)
        return interface, ether(mac_of(interface), mac_of(interface, 10), IPV4, packet)

    def fragment(self) -> Frame:
        interface, rng = self._interface(), self.rng
        mac, peer, us = self._ends(interface)
        offset = rng.choice((0, 0, 1, 100, 0x1FFF))
        protocol, payload = self._inner(peer, us)
        if len(us) == 4:
            return self._wrap(interface, mac, peer, us, protocol, payload[8 * min(offset, 1):],
                              fragment=offset | rng.choice((0, 0x2000)), identification=rng.getrandbits(2))
        header = pack("!BBHI", protocol, 0, offset << 3 | rng.getrandbits(1), rng.getrandbits(2))
        return self._wrap(interface, mac, peer, us, protocol, payload, extensions=header, first=FRAGMENT)

    def extensions(self) -> Frame:
        interface, rng = self._interface(), self.rng
        peer, us = PEERS6[interface, 10], OURS6[interface]
        protocol, payload = self._inner(peer, us)
        if rng.random() < 0.2:
            protocol, payload = ICMPV6, with_checksum(peer, us, ICMPV6, bytes((128, 0, 0, 0)) + bytes(12))
        kinds = [rng.choice((HOP_BY_HOP, DESTINATION, DESTINATION, DESTINATION, ROUTING, FRAGMENT, 135))
                 for _ in range(rng.choice((1, 1, 2, 3, 9)))]
        headers = b""
        for i, kind in enumerate(kinds):
            after = kinds[i + 1] if i + 1 < len(kinds) else protocol
            body = rng.choice((b"\1\4\0\0\0\0", b"\5\2\0\0\1\0", b"\0" * 6, b"\xc2\4\0\0\xff\xff", b"\1\x0c" + bytes(12)))
            if kind == FRAGMENT:
                body = bytes(6)
            headers += bytes((after, (len(body) + 2) // 8 - 1)) + body
        packet = ipv6(peer, us, protocol, payload, extensions=headers, first=kinds[0])
        return interface, ether(mac_of(interface), mac_of(interface, 10), IPV6, packet)

    def other_protocol(self) -> Frame:
        interface = self._interface()
        mac, peer, us = self._ends(interface)
        return self._wrap(interface, mac, peer, us, self.rng.choice((2, 41, 47, 50, 59, 132, 255)), self._data(100))

    def noise(self) -> Frame:
        interface = self._interface()
        octets = self.rng.randbytes(self.rng.choice((0, 1, 13, 14, 15, 33, 34, 60, 200)))
        if self.rng.random() < 0.7:
            octets = mac_of(interface) + mac_of(interface, 10) + pack(
                "!H", self.rng.choice((IPV4, IPV6, ARP, 0x8100, 0x88CC))) + octets
        return interface, octets


def packed_extra(interface: int) -> bytes:
    """An address that is added and removed while the fuzzer runs, so that it is often tentative."""
    return OURS6[interface][:15] + b"\3"
