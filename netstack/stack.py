"""A dual-stack host without I/O: frames in, frames and news out, time as an argument.

The verbs are `receive`, `advance`, `wake_at`, `transmit`, `loop`, `tell`, and the news of `tcp.ready` and `udp.ready`.
"""

import ipaddress

import cython
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t
from cython.cimports.libc.stdlib import malloc, free
from cython.cimports.libc.string import memcpy
from cython.cimports.mm.frame import MAX_FRAME, RX_CHECKSUM, RxBurst, RxFrame, TxBurst, TxFrame
from cython.cimports.mm.hw import get16, get32
from cython.cimports.netstack.icmp import (
    PARAMETER_PROBLEM, UNREACHABLE_PORT, UNREACHABLE_PROTOCOL, IcmpError, icmp_answered, icmp_input, icmp_send_error)
from cython.cimports.netstack.ip import (
    ETHERNET_HEADER, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, IpView, ipv4_parse, ipv6_parse)
from cython.cimports.netstack.neighbor import (
    arp_input, ndp_input, neighbor_start_address, neighbors_advance, neighbors_create, neighbors_forget_interface,
    neighbors_wake_at)
from cython.cimports.netstack.net import (
    ADDRESS_FREE, LOOPBACK, MAX_ADDRESSES, MAX_INTERFACES, Interface, NetState,
    Packet, is_local, is_subnet_broadcast, packet_free, queue_pop)
from cython.cimports.netstack.route import routes_create
from cython.cimports.netstack.tcp.due import tcp_advance, tcp_wake_at
from cython.cimports.netstack.tcp.input import tcp_error, tcp_input
from cython.cimports.netstack.tcp.output import tcp_forget_interface, tcp_transmit
from cython.cimports.netstack.udp import udp_error, udp_input
from cython.cimports.netstack.verbs import MOVED, NEWS
from cython.cimports.netstack.verdict import (
    ETHERNET_NOT_FOR_US, ETHERNET_OVERSIZE, ETHERNET_TRUNCATED, ETHERNET_TYPE_UNKNOWN, ICMP_CHECKSUM,
    INTERFACE_DOWN, IP_PROTOCOL_UNKNOWN, IPV4_NOT_FOR_US, IPV4_SOURCE, IPV6_EXTENSION_HEADER, IPV6_NOT_FOR_US,
    IPV6_SOURCE, UDP_PORT_CLOSED)
from cython.cimports.netstack.wire.address import Addr, is_limited_broadcast, is_loopback, is_v4
from cython.cimports.netstack.wire.checksum import fold, sum_octets, sum_pseudo

from netstack import icmp as icmp_module
from netstack import neighbor as neighbor_module
from netstack import route as route_module
from netstack.tcp.api import Tcp
from netstack.udp import Udp

ETHERTYPE_IPV4 = cython.declare(cython.int, 0x0800)
ETHERTYPE_ARP = cython.declare(cython.int, 0x0806)
ETHERTYPE_IPV6 = cython.declare(cython.int, 0x86DD)
NEVER = cython.declare(int64_t, 0x7FFFFFFFFFFFFFFF)
LOOP_FRAMES = cython.declare(uint32_t, 16)      # that loopback carries at once
FIRST_NDP_TYPE = cython.declare(cython.int, 133)        # router solicitation ... redirect (RFC 4861 4)
LAST_NDP_TYPE = cython.declare(cython.int, 137)


@cython.final
@cython.cclass
class Stack(PacketStack):
    """One host: interfaces, addresses, routes, neighbors, and TCP and UDP above them.

    `random`: at least 16 unpredictable octets; the same octets make the same stack. `now`: ns on any clock that never
    goes back. `tcp` and `udp` hold keyword arguments for `Tcp` and `Udp`, their limits. Not thread-safe.
    """

    def __init__(self, random: bytes, *, now: int = 0, routes: int = 65536, neighbors: int = 4096,
                 icmp_errors_per_second: int = 1000, challenge_acks_per_second: int = 1000,
                 tcp: dict | None = None, udp: dict | None = None):
        self.state = NetState(random)
        self.state.net.now = now
        self.state.net.icmp_errors_per_second = icmp_errors_per_second
        self.state.net.challenge_acks_per_second = challenge_acks_per_second
        routes_create(self.state.net, routes)
        neighbors_create(self.state.net, neighbors)
        self.tcp = Tcp(self.state, **(tcp or {}))
        self.udp = Udp(self.state, **(udp or {}))
        self.loop_burst = TxBurst(LOOP_FRAMES)

    def __dealloc__(self):
        self.take_back()
        free(self.loop_octets)

    def set_rates(self, *, icmp_errors_per_second: int, challenge_acks_per_second: int) -> None:
        """Change how much is said at most in answer to what is wrong."""
        self.state.net.icmp_errors_per_second = icmp_errors_per_second
        self.state.net.challenge_acks_per_second = challenge_acks_per_second

    # -- verbs -------------------------------------------------------------------------------------

    @cython.ccall
    def receive(self, index: cython.int, now: int64_t, burst: RxBurst):
        """Take in the frames of a burst, each of which ends in exactly one verdict of this interface."""
        i: cython.pointer[Interface] = self.interface(index)
        self.take_back()
        self.state.net.now = now
        with cython.nogil:
            self.frames(i, burst)

    @cython.ccall
    def advance(self, now: int64_t):
        """Let time pass: do what timers ask for. Afterwards `wake_at()` is later than `now`."""
        self.take_back()
        self.state.net.now = now
        tcp_advance(cython.address(self.tcp.table))
        neighbors_advance(self.state.net)

    @cython.ccall
    def wake_at(self):
        """When `advance` is due, ns; None: nothing runs. It may be a little early, never late."""
        at: int64_t = min(tcp_wake_at(cython.address(self.tcp.table)), neighbors_wake_at(self.state.net))
        return None if at == NEVER else at

    @cython.ccall
    @cython.exceptval(-1, check=True)
    def transmit(self, index: cython.int, now: int64_t, burst: TxBurst) -> cython.int:
        """Fill an empty burst with what is to be sent on an interface; returns the number of frames.

        Their octets stay valid until the next verb: a driver takes them all before that.
        """
        i: cython.pointer[Interface] = self.interface(index)
        self.take_back()
        self.state.net.now = now
        burst.count = self.fill(i, burst.frames, burst.capacity) if i.up else 0
        return burst.count

    @cython.ccall
    @cython.exceptval(-1, check=True)
    def tell(self) -> cython.int:
        """Tell news to those who follow connections; NEWS if there are others, MOVED if there may be more to send."""
        told: cython.int = NEWS if self.tcp.tell_followers() else 0
        if self.udp.table.ready_count or icmp_answered(self.state.net):
            told |= NEWS
        if self.tcp.touched:
            self.tcp.touched = False
            told |= MOVED
        return told

    @cython.ccall
    @cython.exceptval(-1, check=True)
    def loop(self, now: int64_t) -> cython.int:
        """Carry one burst over the loopback interface; returns its frames. Call until it returns 0."""
        lo: cython.pointer[Interface] = self.state.net.interfaces[LOOPBACK]
        f: cython.pointer[RxFrame]
        tx: cython.pointer[TxFrame]
        n: uint32_t
        k: uint32_t
        self.take_back()
        if lo.output.count == 0 and self.tcp.table.dirty_head[LOOPBACK] < 0:
            return 0
        self.state.net.now = now
        if self.loop_octets is cython.NULL:
            self.loop_octets = cython.cast(cython.pointer[uint8_t], malloc(LOOP_FRAMES * MAX_FRAME))
            if self.loop_octets is cython.NULL:
                raise MemoryError("no memory for the loopback interface")
        n = self.fill(lo, self.loop_burst.frames, LOOP_FRAMES)
        for k in range(n):      # all copies first: receiving one frame may free what the next one points to
            tx = cython.address(self.loop_burst.frames[k])
            f = cython.address(self.looped.frames[k])
            f.data = self.loop_octets + k * MAX_FRAME
            f.length = tx.length
            f.segment_size = tx.segment_size
            f.flags = RX_CHECKSUM
            _copy(f.data, tx)
        self.looped.count = n
        self.frames(lo, self.looped)
        return n

    # -- interfaces and addresses ------------------------------------------------------------------

    @cython.cfunc
    def interface(self, index: cython.int) -> cython.pointer[Interface]:
        if not 0 <= index < MAX_INTERFACES or self.state.net.interfaces[index] is cython.NULL:
            raise ValueError(f"there is no interface {index}")
        return self.state.net.interfaces[index]

    def add_interface(self, name: str, mac: bytes, mtu: int, features: int = 0, *, link_local: bool = True) -> int:
        """A new interface that is up; with its IPv6 link-local address unless that is not wanted. Returns its index.

        `features`: mm.frame.Feature bits. Raises ValueError, or OSError (ENOSPC) when there is no room.
        """
        index = self.state.add_interface(name, mac, mtu, features)
        self.state.set_up(index, True)
        if link_local and mtu >= 1280:
            self.add_address(index, f"{_link_local(bytes(mac))}/64")
        return index

    def remove_interface(self, index: int) -> None:
        """Forget an interface with its addresses, routes and neighbors; connections look for another way."""
        self.interface(index)
        self.take_back()
        self.state.remove_interface(index)      # first: it refuses loopback
        route_module.forget_interface(self.state, index)
        neighbors_forget_interface(self.state.net, index)
        tcp_forget_interface(cython.address(self.tcp.table), index)

    def set_link(self, index: int, up: bool) -> None:
        """The link came or went. Its addresses are announced, and IPv6 ones tried, whenever it comes (RFC 4862 5.4)."""
        i: cython.pointer[Interface] = self.interface(index)
        slot: cython.int
        self.take_back()
        if bool(i.up) == bool(up):
            return
        self.state.set_up(index, up)
        if not up:
            neighbors_forget_interface(self.state.net, index)
            tcp_forget_interface(cython.address(self.tcp.table), index)
            return
        for slot in range(MAX_ADDRESSES):
            if i.addresses[slot].state != ADDRESS_FREE:
                neighbor_start_address(self.state.net, index, slot)

    def add_address(self, index: int, address: str) -> None:
        """Give an interface an address such as "10.77.0.2/24" and the route to its prefix.

        An IPv6 address is tentative for about a second (RFC 4862). Raises ValueError, or OSError (ENOSPC).
        """
        self.interface(index)
        slot = self.state.add_address(index, address)
        try:
            route_module.add_route(self.state, str(ipaddress.ip_interface(address).network), None, index,
                                   kind="connected")
        except OSError:
            self.state.remove_address(index, address)
            raise
        neighbor_start_address(self.state.net, index, slot)

    def remove_address(self, index: int, address: str) -> None:
        """Take an address away, and the route to its prefix with the last one in it. Raises ValueError."""
        row = next((r for r in self.state.addresses() if r["interface"] == index
                    and _same_host(r["address"], address)), None)
        self.state.remove_address(index, address)
        network = ipaddress.ip_interface(row["address"]).network
        if not any(r["interface"] == index and ipaddress.ip_interface(r["address"]).network == network
                   for r in self.state.addresses()):
            route_module.remove_route(self.state, str(network), index, 0)

    def interfaces(self) -> list:
        """A row for each interface, with its counters."""
        return self.state.interfaces()

    def addresses(self) -> list:
        """A row for each address."""
        return self.state.addresses()

    # -- routes and neighbors ----------------------------------------------------------------------

    def add_route(self, prefix: str, gateway: str | None = None, interface: int | None = None, metric: int = 0,
                  source: str | None = None) -> None:
        """Send what matches `prefix` (0.0.0.0/0 and ::/0 for the defaults) to a gateway or an interface's link.

        Without `interface` the gateway's own route says which. Raises ValueError, or OSError.
        """
        if interface is None:
            if gateway is None:
                raise ValueError(f"a route to {prefix} needs a gateway or an interface")
            found = route_module.lookup(self.state, gateway)
            if found is None or found["gateway"] is not None:
                raise ValueError(f"gateway {gateway} is on no connected prefix: add an address next to it first")
            interface = found["interface"]
        route_module.add_route(self.state, prefix, gateway, interface, metric, source)

    def remove_route(self, prefix: str, interface: int = -1, metric: int | None = None) -> int:
        """Remove the routes to a prefix, all or those that match; returns how many went."""
        return route_module.remove_route(self.state, prefix, interface, metric)

    def routes(self) -> list:
        """A row for each route."""
        return route_module.routes(self.state)

    def neighbors(self) -> list:
        """A row for each neighbor."""
        return neighbor_module.neighbors(self.state)

    def set_neighbor(self, interface: int, address: str, mac: str) -> None:
        """A neighbor that does not expire."""
        neighbor_module.set_neighbor(self.state, interface, address, mac)

    def remove_neighbor(self, interface: int, address: str) -> bool:
        """Forget a neighbor; False: it was not known."""
        return neighbor_module.remove_neighbor(self.state, interface, address)

    # -- facts -------------------------------------------------------------------------------------

    def connections(self) -> list:
        """A row for each TCP connection."""
        return self.tcp.connections()

    def listeners(self) -> list:
        """A row for each TCP listener."""
        return self.tcp.listeners()

    def verdicts(self) -> dict:
        """How received frames ended: label -> count, over all interfaces."""
        return self.state.verdicts()

    def unsent(self) -> dict:
        """Why frames of ours could not be sent: label -> count."""
        return self.state.unsent()

    def counters(self) -> dict:
        """Everything else that is counted: label -> count."""
        return self.state.counters()

    def ping_send(self, now: int, host: str, identifier: int, sequence: int, size: int = 56,
                  hop_limit: int = 64) -> None:
        """Send an echo request with `size` octets of payload. Raises OSError when there is no way to send it."""
        icmp_module.send_echo(self.state, now, host, identifier, sequence, size, hop_limit)

    def ping_replies(self) -> list:
        """What came back for echo requests since the last call; see netstack.icmp.echo_replies."""
        return icmp_module.echo_replies(self.state)

    def probe_answers(self) -> list:
        """What ICMP errors said of UDP probes since the last call; see netstack.icmp.probe_answers."""
        return icmp_module.probe_answers(self.state)

    # -- inside ------------------------------------------------------------------------------------

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def take_back(self) -> cython.void:
        """The octets handed out by the last verb are ours again."""
        p: cython.pointer[Packet]
        while self.handed is not cython.NULL:
            p = self.handed
            self.handed = p.next
            packet_free(p)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def fill(self, i: cython.pointer[Interface], frames: cython.pointer[TxFrame], capacity: uint32_t) -> uint32_t:
        """Queued packets first, then what TCP has to send."""
        n: uint32_t = 0
        k: uint32_t
        p: cython.pointer[Packet]
        while n < capacity and i.output.count:
            p = queue_pop(cython.address(i.output))
            _hand_out(cython.address(frames[n]), p)
            p.next = self.handed
            self.handed = p
            n += 1
        n += tcp_transmit(cython.address(self.tcp.table), i.index, frames + n, capacity - n)
        for k in range(n):
            i.tx_octets += frames[k].length
        i.tx_frames += n
        return n

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def frames(self, i: cython.pointer[Interface], burst: RxBurst) -> cython.void:
        """Take in every frame, and note how it ended if somebody wants to know."""
        k: cython.int
        verdict: cython.int
        if burst.ends is cython.NULL:
            for k in range(burst.count):
                verdict = self.frame(i, cython.address(burst.frames[k]))
                i.ended[verdict] += 1
                i.rx_octets += burst.frames[k].length
        else:
            for k in range(burst.count):
                verdict = self.frame(i, cython.address(burst.frames[k]))
                burst.ends[k] = cython.cast(uint8_t, verdict)
                i.ended[verdict] += 1
                i.rx_octets += burst.frames[k].length
        i.rx_frames += burst.count

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def frame(self, i: cython.pointer[Interface], f: cython.pointer[cython.const[RxFrame]]) -> cython.int:
        """One received frame. Returns its Verdict."""
        view: IpView
        verdict: cython.int
        kind: cython.int
        if not i.up:
            return INTERFACE_DOWN
        if f.length < ETHERNET_HEADER:
            return ETHERNET_TRUNCATED
        if f.length > MAX_FRAME:
            return ETHERNET_OVERSIZE
        view.link_multicast = f.data[0] & 1
        if not view.link_multicast and (get32(f.data) != get32(i.mac)
                                        or get16(f.data + 4) != get16(cython.address(i.mac[4]))):
            return ETHERNET_NOT_FOR_US
        kind = get16(f.data + 12)
        if kind == ETHERTYPE_ARP:
            return arp_input(self.state.net, i.index, f.data, f.length)
        view.segment_size = f.segment_size
        view.interface = cython.cast(uint8_t, i.index)
        view.checksum_ok = f.flags & RX_CHECKSUM != 0
        if kind == ETHERTYPE_IPV4:
            verdict = ipv4_parse(cython.address(view), f.data + ETHERNET_HEADER, f.length - ETHERNET_HEADER)
        elif kind == ETHERTYPE_IPV6:
            verdict = ipv6_parse(cython.address(view), f.data + ETHERNET_HEADER, f.length - ETHERNET_HEADER)
        else:
            return ETHERNET_TYPE_UNKNOWN
        if verdict and verdict != IPV6_EXTENSION_HEADER:
            return verdict
        kind = _judge_addresses(self.state, i, cython.address(view))
        if kind:
            return kind
        if verdict:             # RFC 8200 4: an extension header that is not understood
            icmp_send_error(self.state.net, cython.address(view), PARAMETER_PROBLEM,
                            cython.cast(uint32_t, view.payload - view.header))
            return verdict
        if view.protocol == PROTOCOL_ICMP or view.protocol == PROTOCOL_ICMPV6:
            return self.icmp(f, cython.address(view))
        return self.packet(i, cython.address(view))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def packet(self, i: cython.pointer[Interface], view: cython.pointer[IpView]) -> cython.int:
        """A packet for us: hand it to its protocol."""
        verdict: cython.int
        if view.protocol == PROTOCOL_TCP:
            return tcp_input(cython.address(self.tcp.table), view)
        if view.protocol == PROTOCOL_UDP:
            verdict = udp_input(cython.address(self.udp.table), view)
            if verdict == UDP_PORT_CLOSED:
                icmp_send_error(self.state.net, view, UNREACHABLE_PORT, 0)
            return verdict
        icmp_send_error(self.state.net, view, UNREACHABLE_PROTOCOL, 0)
        return IP_PROTOCOL_UNKNOWN

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def icmp(self, f: cython.pointer[cython.const[RxFrame]], view: cython.pointer[IpView]) -> cython.int:
        """ICMP of both families; what is neighbor discovery, and whom an error message concerns."""
        error: IcmpError
        verdict: cython.int
        if (view.family == 6) != (view.protocol == PROTOCOL_ICMPV6):
            return IP_PROTOCOL_UNKNOWN
        if view.family == 6 and view.length >= 4 and FIRST_NDP_TYPE <= view.payload[0] <= LAST_NDP_TYPE:
            if fold(sum_octets(view.payload, view.length, sum_pseudo(
                    cython.address(view.source), cython.address(view.destination), PROTOCOL_ICMPV6, view.length))):
                return ICMP_CHECKSUM
            return ndp_input(self.state.net, view.interface, f.data, view.header, view.payload, view.length)
        error.protocol = 0
        verdict = icmp_input(self.state.net, view, cython.address(error))
        if error.protocol == PROTOCOL_TCP:
            tcp_error(cython.address(self.tcp.table), cython.address(error))
        elif error.protocol == PROTOCOL_UDP:
            udp_error(cython.address(self.udp.table), cython.address(error))
        return verdict


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _hand_out(f: cython.pointer[TxFrame], p: cython.pointer[Packet]) -> cython.void:
    """A frame that is one part: the packet's octets."""
    f.head_length = 0
    f.part[0] = p.octets + p.start
    f.part_length[0] = p.length
    f.part_length[1] = 0
    f.length = p.length
    f.segment_size = p.segment_size
    f.checksum_start = p.checksum_start
    f.checksum_offset = p.checksum_offset
    f.l3_offset = p.l3_offset
    f.family = p.family


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _copy(to: cython.pointer[uint8_t], f: cython.pointer[cython.const[TxFrame]]) -> cython.void:
    memcpy(to, f.head, f.head_length)
    if f.part_length[0]:        # an unused part may be NULL
        memcpy(to + f.head_length, f.part[0], f.part_length[0])
    if f.part_length[1]:
        memcpy(to + f.head_length + f.part_length[0], f.part[1], f.part_length[1])


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _judge_addresses(state: NetState, i: cython.pointer[Interface], view: cython.pointer[IpView]) -> cython.int:
    """May this source be, and is this destination us? 0, or the Verdict. Completes view.multicast."""
    real: cython.bint = i.index != LOOPBACK
    if real and (is_loopback(cython.address(view.source)) or is_local(state.net, cython.address(view.source))):
        return IPV4_SOURCE if view.family == 4 else IPV6_SOURCE
    if is_subnet_broadcast(i, cython.address(view.source)):     # RFC 1122 3.2.1.3: an answer would go to everybody
        return IPV4_SOURCE
    if view.multicast:
        if view.family == 4:
            return 0 if _hears_v4(cython.address(view.destination)) else IPV4_NOT_FOR_US
        return 0 if _hears_v6(i, cython.address(view.destination)) else IPV6_NOT_FOR_US
    if is_subnet_broadcast(i, cython.address(view.destination)):
        view.multicast = 1
        return 0
    if is_local(state.net, cython.address(view.destination)) and not (
            real and is_loopback(cython.address(view.destination))):
        return 0
    return IPV4_NOT_FOR_US if view.family == 4 else IPV6_NOT_FOR_US


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _hears_v4(group: cython.pointer[cython.const[Addr]]) -> cython.bint:
    """Broadcast, and all-hosts, the one group every host is in (RFC 1112 4)."""
    return is_limited_broadcast(group) or get32(cython.address(group.octets[12])) == cython.cast(uint32_t, 0xE0000001)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _hears_v6(i: cython.pointer[Interface], group: cython.pointer[cython.const[Addr]]) -> cython.bint:
    """All-nodes, and the solicited-node groups of the interface's addresses, tentative ones too (RFC 4291 2.8)."""
    k: cython.int
    tail: uint32_t = get32(cython.address(group.octets[12]))
    if get16(cython.address(group.octets[0])) & 0xFFF0 != 0xFF00:
        return False
    if (get32(cython.address(group.octets[0])) & 0xFFFF == 0 and get32(cython.address(group.octets[4])) == 0
            and get32(cython.address(group.octets[8])) == 0 and tail == 1):
        return (group.octets[1] & 0x0F) == 1 or (group.octets[1] & 0x0F) == 2
    if (get32(cython.address(group.octets[0])) != cython.cast(uint32_t, 0xFF020000)
            or get32(cython.address(group.octets[4])) != 0 or get32(cython.address(group.octets[8])) != 1
            or tail >> 24 != 0xFF):
        return False
    for k in range(MAX_ADDRESSES):
        if (i.addresses[k].state != ADDRESS_FREE and not is_v4(cython.address(i.addresses[k].address))
                and get32(cython.address(i.addresses[k].address.octets[12])) & 0xFFFFFF == tail & 0xFFFFFF):
            return True
    return False


def _link_local(mac: bytes) -> str:
    """fe80:: with the modified EUI-64 of a MAC address (RFC 4291 appendix A)."""
    return str(ipaddress.IPv6Address(
        b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]))


def _same_host(a: str, b: str) -> bool:
    return ipaddress.ip_interface(a).ip == ipaddress.ip_interface(b).ip
