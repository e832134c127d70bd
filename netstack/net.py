"""The state all protocols share: interfaces and their addresses, packets, randomness, counters."""

import errno
import ipaddress
import re

import cython
from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cython.cimports.libc.stdint import int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free, malloc
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.mm.frame import RX_CHECKSUM, TSO4, TSO6, TX_CHECKSUM
from cython.cimports.mm.hw import get32
from cython.cimports.netstack.counters import COUNTERS
from cython.cimports.netstack.verdict import INTERFACE_DOWN, INTERFACE_QUEUE_FULL, VERDICTS
from cython.cimports.netstack.wire.address import Addr, address_from, address_text, is_loopback, is_v4, same_address

from netstack.counters import LABELS as COUNTER_LABELS
from netstack.verdict import LABELS as VERDICT_LABELS

_ALL_FEATURES = RX_CHECKSUM | TX_CHECKSUM | TSO4 | TSO6
_FEATURE_NAMES = {RX_CHECKSUM: "rx_checksum", TX_CHECKSUM: "tx_checksum", TSO4: "tso4", TSO6: "tso6"}
_STATE_NAMES = {ADDRESS_TENTATIVE: "tentative", ADDRESS_PREFERRED: "preferred", ADDRESS_DUPLICATE: "duplicate"}
_NAME = re.compile(r"[!-.0-9;-~]{1,15}")        # what Linux takes: no slash, no colon, no space
_RANDOM_DOMAIN = cython.declare(uint64_t, 0x72616E646F6D3634)   # keeps random64 apart from other uses of the key


# --- SipHash-2-4 and what is made of it -----------------------------------------------------------------------------

@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _rotate(x: uint64_t, n: cython.int) -> uint64_t:
    return (x << n) | (x >> (64 - n))


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _round(v: cython.pointer[uint64_t]) -> cython.void:
    v[0] += v[1]
    v[2] += v[3]
    v[1] = _rotate(v[1], 13) ^ v[0]
    v[3] = _rotate(v[3], 16) ^ v[2]
    v[0] = _rotate(v[0], 32)
    v[2] += v[1]
    v[0] += v[3]
    v[1] = _rotate(v[1], 17) ^ v[2]
    v[3] = _rotate(v[3], 21) ^ v[0]
    v[2] = _rotate(v[2], 32)


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _absorb(v: cython.pointer[uint64_t], m: uint64_t) -> cython.void:
    v[3] ^= m
    _round(v)
    _round(v)
    v[0] ^= m


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def siphash(key: cython.pointer[cython.const[Key]], m0: uint64_t, m1: uint64_t, m2: uint64_t, m3: uint64_t,
            m4: uint64_t) -> uint64_t:
    """SipHash-2-4 of 40 octets: the words in little-endian order (Aumasson and Bernstein 2012)."""
    v: uint64_t[4]
    p: cython.pointer[uint64_t] = cython.address(v[0])
    v[0] = key.k0 ^ cython.cast(uint64_t, 0x736F6D6570736575)
    v[1] = key.k1 ^ cython.cast(uint64_t, 0x646F72616E646F6D)
    v[2] = key.k0 ^ cython.cast(uint64_t, 0x6C7967656E657261)
    v[3] = key.k1 ^ cython.cast(uint64_t, 0x7465646279746573)
    _absorb(p, m0)
    _absorb(p, m1)
    _absorb(p, m2)
    _absorb(p, m3)
    _absorb(p, m4)
    _absorb(p, cython.cast(uint64_t, 40) << 56)
    v[2] ^= 0xFF
    _round(p)
    _round(p)
    _round(p)
    _round(p)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def random64(net: cython.pointer[Net]) -> uint64_t:
    net.random_count += 1
    return siphash(cython.address(net.key), net.random_count, 0, 0, 0, _RANDOM_DOMAIN)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def random_below(net: cython.pointer[Net], bound: uint32_t) -> uint32_t:
    """Uniform in 0 .. bound - 1; 0 for a bound of 0. Draws again, at worst every second time, rather than be biased."""
    # Lemire 2019, "Fast random integer generation in an interval"
    product: uint64_t = cython.cast(uint64_t, cython.cast(uint32_t, random64(net))) * bound
    if cython.cast(uint32_t, product) < bound:
        biased: uint32_t = (0 - bound) % bound      # 2^32 mod bound
        while cython.cast(uint32_t, product) < biased:
            product = cython.cast(uint64_t, cython.cast(uint32_t, random64(net))) * bound
    return cython.cast(uint32_t, product >> 32)


def keyed_hash(key: bytes, m0: uint64_t, m1: uint64_t, m2: uint64_t, m3: uint64_t, m4: uint64_t) -> int:
    """SipHash-2-4 of five words under a key of 16 octets: the hash behind sequence numbers, ports and tables."""
    k: Key
    _load_key(cython.address(k), key)
    return siphash(cython.address(k), m0, m1, m2, m3, m4)


@cython.cfunc
@cython.exceptval(-1, check=False)
def _load_key(key: cython.pointer[Key], octets: bytes) -> cython.int:
    if len(octets) < 16:
        raise ValueError(f"the key needs 16 random octets, not {len(octets)}")
    key.k0 = int.from_bytes(octets[:8], "little")
    key.k1 = int.from_bytes(octets[8:16], "little")
    return 0


# --- packets and their queues ---------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def packet_new(capacity: uint32_t, start: uint32_t) -> cython.pointer[Packet]:
    p: cython.pointer[Packet] = cython.cast(cython.pointer[Packet], malloc(cython.sizeof(Packet) + capacity))
    if p == cython.NULL:
        return cython.NULL
    memset(p, 0, cython.sizeof(Packet))
    p.start = start
    return p


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def packet_free(p: cython.pointer[Packet]) -> cython.void:
    free(p)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def queue_push(q: cython.pointer[PacketQueue], p: cython.pointer[Packet]) -> cython.bint:
    if q.count >= q.limit:
        return False
    p.next = cython.NULL
    if q.tail == cython.NULL:
        q.head = p
    else:
        q.tail.next = p
    q.tail = p
    q.count += 1
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def queue_pop(q: cython.pointer[PacketQueue]) -> cython.pointer[Packet]:
    p: cython.pointer[Packet] = q.head
    if p == cython.NULL:
        return cython.NULL
    q.head = p.next
    if q.head == cython.NULL:
        q.tail = cython.NULL
    q.count -= 1
    p.next = cython.NULL
    return p


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def queue_clear(q: cython.pointer[PacketQueue]) -> cython.void:
    p: cython.pointer[Packet] = queue_pop(q)
    while p != cython.NULL:
        packet_free(p)
        p = queue_pop(q)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def packet_unsent(net: cython.pointer[Net], p: cython.pointer[Packet], verdict: cython.int) -> cython.int:
    net.unsent[verdict] += 1
    packet_free(p)
    return verdict


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def interface_send(net: cython.pointer[Net], interface: uint32_t, p: cython.pointer[Packet]) -> cython.int:
    if interface >= MAX_INTERFACES or net.interfaces[interface] == cython.NULL or not net.interfaces[interface].up:
        return packet_unsent(net, p, INTERFACE_DOWN)
    if not queue_push(cython.address(net.interfaces[interface].output), p):
        return packet_unsent(net, p, INTERFACE_QUEUE_FULL)
    return 0


# --- own addresses --------------------------------------------------------------------------------------------------

@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _bucket(a: cython.pointer[cython.const[Addr]]) -> uint32_t:
    # No key: the table holds what the operator put there, so nobody else can make chains in it grow.
    h: uint64_t = (a.word[0] * cython.cast(uint64_t, 0x2545F4914F6CDD1D)) ^ a.word[1]
    h *= cython.cast(uint64_t, 0x2545F4914F6CDD1D)
    return cython.cast(uint32_t, h >> 40) & (ADDRESS_BUCKETS - 1)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def own_address(net: cython.pointer[Net], a: cython.pointer[cython.const[Addr]]) -> cython.pointer[InterfaceAddress]:
    bucket: uint32_t = _bucket(a)
    entry: uint32_t = net.address_index[bucket]
    found: cython.pointer[InterfaceAddress] = cython.NULL
    own: cython.pointer[InterfaceAddress]
    while entry != 0:
        own = cython.address(net.interfaces[(entry - 1) // MAX_ADDRESSES].addresses[(entry - 1) % MAX_ADDRESSES])
        if own.state != ADDRESS_FREE and same_address(cython.address(own.address), a):
            if own.state == ADDRESS_PREFERRED:
                return own
            if found == cython.NULL:
                found = own
        bucket = (bucket + 1) & (ADDRESS_BUCKETS - 1)
        entry = net.address_index[bucket]
    return found


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def is_local(net: cython.pointer[Net], a: cython.pointer[cython.const[Addr]]) -> cython.bint:
    if is_loopback(a):
        return True
    own: cython.pointer[InterfaceAddress] = own_address(net, a)
    return own != cython.NULL and own.state == ADDRESS_PREFERRED


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def interface_address(interface: cython.pointer[Interface],
                      a: cython.pointer[cython.const[Addr]]) -> cython.pointer[InterfaceAddress]:
    slot: cython.int
    own: cython.pointer[InterfaceAddress]
    for slot in range(MAX_ADDRESSES):
        own = cython.address(interface.addresses[slot])
        if own.state != ADDRESS_FREE and same_address(cython.address(own.address), a):
            return own
    return cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def is_subnet_broadcast(interface: cython.pointer[cython.const[Interface]],
                        a: cython.pointer[cython.const[Addr]]) -> cython.bint:
    # 30 bits of prefix at most leave two of the host, both set: most addresses are told apart here
    if a.octets[15] & 3 != 3 or not is_v4(a):
        return False
    slot: cython.int
    host: uint32_t
    target: uint32_t = get32(cython.address(a.octets[12]))
    own: cython.pointer[cython.const[InterfaceAddress]]
    for slot in range(MAX_ADDRESSES):
        own = cython.address(interface.addresses[slot])
        if own.state == ADDRESS_FREE or own.prefix_length >= 31 or not is_v4(cython.address(own.address)):
            continue
        host = cython.cast(uint32_t, 0xFFFFFFFF) >> own.prefix_length
        if target == (get32(cython.address(own.address.octets[12])) | host):
            return True
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _index_addresses(net: cython.pointer[Net]) -> cython.void:
    """Rebuild the hash index after any change of addresses; bounded by MAX_INTERFACES * MAX_ADDRESSES."""
    i: cython.int
    slot: cython.int
    bucket: uint32_t
    memset(net.address_index, 0, cython.sizeof(net.address_index))
    for i in range(MAX_INTERFACES):
        if net.interfaces[i] == cython.NULL:
            continue
        for slot in range(MAX_ADDRESSES):
            if net.interfaces[i].addresses[slot].state == ADDRESS_FREE:
                continue
            bucket = _bucket(cython.address(net.interfaces[i].addresses[slot].address))
            while net.address_index[bucket] != 0:
                bucket = (bucket + 1) & (ADDRESS_BUCKETS - 1)
            net.address_index[bucket] = cython.cast(uint16_t, i * MAX_ADDRESSES + slot + 1)
    forget_paths(net)


# --- the Python face ------------------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _drop_output(net: cython.pointer[Net], interface: cython.pointer[Interface]) -> cython.void:
    net.unsent[cython.cast(cython.int, INTERFACE_DOWN)] += interface.output.count
    queue_clear(cython.address(interface.output))


@cython.cfunc
def _interface_row(i: cython.pointer[Interface]) -> dict:
    mac: cython.pointer[uint8_t] = cython.address(i.mac[0])
    return {
        "index": i.index, "name": _interface_name(i), "mac": mac[:6].hex(":"), "up": bool(i.up), "mtu": i.mtu,
        "features": [name for bit, name in _FEATURE_NAMES.items() if i.features & bit],
        "addresses": [row["address"] for row in _address_rows(i)],
        "rx_frames": i.rx_frames, "rx_octets": i.rx_octets, "tx_frames": i.tx_frames, "tx_octets": i.tx_octets,
        "output_queued": i.output.count,
    }


@cython.cfunc
def _interface_name(i: cython.pointer[Interface]) -> str:
    name: bytes = i.name
    return name.decode("ascii")


@cython.cfunc
def _address_rows(i: cython.pointer[Interface]) -> list:
    rows: list = []
    slot: cython.int
    own: cython.pointer[InterfaceAddress]
    for slot in range(MAX_ADDRESSES):
        own = cython.address(i.addresses[slot])
        if own.state != ADDRESS_FREE:
            rows.append({
                "interface": i.index, "name": _interface_name(i), "slot": slot,
                "address": f"{address_text(cython.address(own.address))}/{own.prefix_length}",
                "family": 4 if is_v4(cython.address(own.address)) else 6, "state": _STATE_NAMES[own.state],
            })
    return rows


@cython.cfunc
def _interface(net: cython.pointer[Net], index: object) -> cython.pointer[Interface]:
    if not 0 <= index < MAX_INTERFACES or net.interfaces[cython.cast(cython.int, index)] == cython.NULL:
        raise ValueError(f"there is no interface {index}")
    return net.interfaces[cython.cast(cython.int, index)]


@cython.cfunc
def _new_interface(net: cython.pointer[Net], name: str, mac: bytes, mtu: object,
                   features: object) -> cython.pointer[Interface]:
    index: cython.int = 0
    while index < MAX_INTERFACES and net.interfaces[index] != cython.NULL:
        index += 1
    if index == MAX_INTERFACES:
        raise OSError(errno.ENOSPC, f"no room for interface {name}: a stack has at most {MAX_INTERFACES}")
    i: cython.pointer[Interface] = cython.cast(cython.pointer[Interface], calloc(1, cython.sizeof(Interface)))
    if i == cython.NULL:
        raise MemoryError
    encoded: bytes = name.encode("ascii")
    memcpy(i.name, PyBytes_AS_STRING(encoded), len(encoded))
    memcpy(i.mac, PyBytes_AS_STRING(mac), 6)
    i.mtu = mtu
    i.features = features
    i.index = index
    i.output.limit = OUTPUT_LIMIT
    net.interfaces[index] = i
    forget_paths(net)
    return i


def _mac(mac: object) -> bytes:
    """Six octets from b"..." or "02:00:5e:00:00:01". Raises ValueError for what no station can have."""
    try:
        octets = bytes.fromhex(mac.replace(":", "").replace("-", "")) if isinstance(mac, str) else bytes(mac)
    except ValueError:
        octets = b""
    if len(octets) != 6 or octets[0] & 1 or not any(octets):
        raise ValueError(f"{mac!r} is not the MAC address of a station: six octets, not zero, no group bit")
    return octets


def _host_address(text: object, loopback: bool) -> object:
    """An ipaddress interface that a host can have. Raises ValueError that says why not."""
    parsed = ipaddress.ip_interface(text)
    ip, network = parsed.ip, parsed.network
    if ip.is_unspecified or ip.is_multicast or str(ip) == "255.255.255.255":
        raise ValueError(f"{text} is not the address of a host")
    if ip.version == 4 and network.prefixlen < 31 and ip in (network.network_address, network.broadcast_address):
        raise ValueError(f"{text} is the network or broadcast address of {network}")
    if ip.version == 6 and ip.ipv4_mapped:
        raise ValueError(f"{text} is an IPv4-mapped address: use {ip.ipv4_mapped}")
    if ip.is_loopback and not loopback:
        raise ValueError(f"{text} is a loopback address: it belongs on interface {LOOPBACK}")
    return parsed


@cython.final
@cython.cclass
class NetState:
    """The shared state of one stack; interface 0 is the loopback interface "lo".

    `random`: at least 16 unpredictable octets, the secret behind sequence numbers, ports and hash tables. Two states
    made of the same octets behave the same. To keep routes and neighbors in step with interfaces is the Stack's part.
    """

    def __cinit__(self, random: bytes):
        self.net = cython.cast(cython.pointer[Net], calloc(1, cython.sizeof(Net)))
        if self.net == cython.NULL:
            raise MemoryError
        _load_key(cython.address(self.net.key), random)
        self.net.generation = 1
        self.net.ip_id = cython.cast(uint16_t, random64(self.net))
        _new_interface(self.net, "lo", bytes(6), 65535, _ALL_FEATURES)
        self.set_up(LOOPBACK, True)
        self.add_address(LOOPBACK, "127.0.0.1/8")
        self.add_address(LOOPBACK, "::1/128")

    def __dealloc__(self):
        i: cython.int
        net: cython.pointer[Net] = self.net
        if net == cython.NULL:
            return
        if net.neighbors != cython.NULL and net.neighbors_free != cython.NULL:
            net.neighbors_free(net)
        if net.routes != cython.NULL and net.routes_free != cython.NULL:
            net.routes_free(net)
        for i in range(MAX_INTERFACES):
            if net.interfaces[i] != cython.NULL:
                queue_clear(cython.address(net.interfaces[i].output))
                free(net.interfaces[i])
        free(net.echoes)
        free(net.probes)
        free(net)

    def add_interface(self, name: str, mac: object, mtu: int, features: int = 0) -> int:
        """A new interface, down and without addresses; returns its index.

        `mac`: six octets or their text; `mtu`: largest IP packet, 68 to 65535 octets; `features`: mm.frame.Feature.
        Raises ValueError for bad values or a name in use, OSError (ENOSPC) beyond MAX_INTERFACES.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not an interface name: 1 to 15 visible ASCII characters, no slash or colon")
        if any(row["name"] == name for row in self.interfaces()):
            raise ValueError(f"there is already an interface {name}")
        if not IPV4_MIN_MTU <= mtu <= 65535:
            raise ValueError(f"an MTU is {IPV4_MIN_MTU} to 65535 octets, not {mtu}")
        if features & ~_ALL_FEATURES:
            raise ValueError(f"unknown feature bits {features & ~_ALL_FEATURES:#x}")
        return _new_interface(self.net, name, _mac(mac), mtu, features).index

    def remove_interface(self, index: int) -> None:
        """Forget an interface and its addresses; what waits for its device counts as unsent. Raises ValueError."""
        i: cython.pointer[Interface] = _interface(self.net, index)
        if index == LOOPBACK:
            raise ValueError("the loopback interface stays")
        v: cython.uint
        for v in range(VERDICTS):
            self.net.ended_elsewhere[v] += i.ended[v]
        _drop_output(self.net, i)
        self.net.interfaces[i.index] = cython.NULL
        free(i)
        _index_addresses(self.net)

    def set_up(self, index: int, up: bool) -> None:
        """Say whether an interface can carry frames. What waits for a device that goes down counts as unsent."""
        i: cython.pointer[Interface] = _interface(self.net, index)
        if bool(i.up) != bool(up):
            i.up = bool(up)
            if not up:
                _drop_output(self.net, i)
            forget_paths(self.net)

    def interfaces(self) -> list:
        """A row per interface: index, name, mac, up, mtu, features, addresses, and what it has counted."""
        return [_interface_row(self.net.interfaces[i]) for i in range(MAX_INTERFACES)
                if self.net.interfaces[i] != cython.NULL]

    def add_address(self, index: int, address: object, detect: bool = True) -> int:
        """Give an interface an address such as "10.77.0.2/24"; returns its slot.

        IPv4 (and all on loopback) can be used at once, IPv6 is tentative until duplicate address detection is done;
        not `detect`: it is known to be unique.
        Raises ValueError for what no host can have or what is there already, OSError (ENOSPC) beyond MAX_ADDRESSES.
        """
        i: cython.pointer[Interface] = _interface(self.net, index)
        parsed: object = _host_address(address, index == LOOPBACK)
        a: Addr
        address_from(parsed.ip, cython.address(a))
        if parsed.version == 6 and i.mtu < IPV6_MIN_MTU:
            raise ValueError(f"IPv6 needs an MTU of {IPV6_MIN_MTU}, {_interface_name(i)} has {i.mtu}")
        if interface_address(i, cython.address(a)) != cython.NULL:
            raise ValueError(f"{_interface_name(i)} already has {parsed.ip}")
        slot: cython.int
        for slot in range(MAX_ADDRESSES):
            if i.addresses[slot].state == ADDRESS_FREE:
                break
        else:
            raise OSError(errno.ENOSPC, f"no room for {address}: an interface has at most {MAX_ADDRESSES} addresses")
        own: cython.pointer[InterfaceAddress] = cython.address(i.addresses[slot])
        own.address = a
        own.prefix_length = parsed.network.prefixlen
        tentative: cython.bint = detect and parsed.version == 6 and index != LOOPBACK
        own.state = ADDRESS_TENTATIVE if tentative else ADDRESS_PREFERRED
        own.probes_left = 1 if tentative else 0     # RFC 4862 5.1 DupAddrDetectTransmits
        own.probe_at = self.net.now
        _index_addresses(self.net)
        return slot

    def remove_address(self, index: int, address: object) -> None:
        """Take an address from an interface; the prefix length must match when it is given. Raises ValueError."""
        i: cython.pointer[Interface] = _interface(self.net, index)
        parsed: object = ipaddress.ip_interface(address)
        a: Addr
        address_from(parsed.ip, cython.address(a))
        own: cython.pointer[InterfaceAddress] = interface_address(i, cython.address(a))
        if own == cython.NULL or ("/" in str(address) and own.prefix_length != parsed.network.prefixlen):
            raise ValueError(f"{_interface_name(i)} has no address {address}")
        memset(own, 0, cython.sizeof(InterfaceAddress))
        _index_addresses(self.net)

    def addresses(self) -> list:
        """A row per address: interface, name, slot, address ("10.77.0.2/24"), family, state."""
        i: cython.int
        rows: list = []
        for i in range(MAX_INTERFACES):
            if self.net.interfaces[i] != cython.NULL:
                rows.extend(_address_rows(self.net.interfaces[i]))
        return rows

    def is_own(self, address: object) -> bool:
        """Whether a packet to this address is for us: preferred on any interface, or loopback."""
        a: Addr
        address_from(address, cython.address(a))
        return bool(is_local(self.net, cython.address(a)))

    def take_output(self, index: int) -> list:
        """The frames that wait for an interface's device, as bytes; takes them off the queue."""
        i: cython.pointer[Interface] = _interface(self.net, index)
        frames: list = []
        p: cython.pointer[Packet] = queue_pop(cython.address(i.output))
        while p != cython.NULL:
            frames.append(PyBytes_FromStringAndSize(
                cython.cast(cython.p_char, cython.address(p.octets[0])) + p.start, p.length))
            packet_free(p)
            p = queue_pop(cython.address(i.output))
        return frames

    def verdicts(self) -> dict:
        """How the received frames of all interfaces ended, also of those that are gone: label -> count."""
        i: cython.int
        v: cython.uint
        totals: list = [self.net.ended_elsewhere[v] for v in range(VERDICTS)]
        for i in range(MAX_INTERFACES):
            if self.net.interfaces[i] != cython.NULL:
                for v in range(VERDICTS):
                    totals[v] += self.net.interfaces[i].ended[v]
        return dict(zip(VERDICT_LABELS, totals, strict=True))

    def unsent(self) -> dict:
        """Why packets of ours could not be sent: label -> count."""
        v: cython.uint
        return {VERDICT_LABELS[v]: self.net.unsent[v] for v in range(VERDICTS)}

    def counters(self) -> dict:
        """Everything else that is counted: label -> count."""
        c: cython.uint
        return {COUNTER_LABELS[c]: self.net.counters[c] for c in range(COUNTERS)}

    @property
    def now(self) -> int:
        """The time of the verb that runs, ns."""
        return self.net.now

    @now.setter
    def now(self, value: int64_t):
        self.net.now = value

    @property
    def generation(self) -> int:
        """Changes whenever routes, addresses, links or neighbors do."""
        return self.net.generation

    def draw64(self) -> int:
        """The next 64 unpredictable bits."""
        return random64(self.net)

    def draw_below(self, bound: uint32_t) -> int:
        """An unpredictable number of 0 .. bound - 1, each as likely."""
        return random_below(self.net, bound)
