"""UDP: who gets a datagram, what its checksum must be, what the Python face says."""

import errno
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.layers.l2 import Ether

from mm.frame import Feature
from netstack import udp as udp_module
from netstack.wire.checksum import checksum, pseudo_header
from tests.support.host import BROADCAST, MAC, PEER_MAC, PEER_V4, PEER_V6, V4, V6, Host


def datagram(data=b"hello", *, family=4, source=None, to=None, sport=4000, dport=5000, mac=MAC, **fields):
    ip = IP(src=source or PEER_V4, dst=to or V4) if family == 4 else IPv6(src=source or PEER_V6, dst=to or V6)
    return Ether(src=PEER_MAC, dst=mac) / ip / UDP(sport=sport, dport=dport, **fields) / data


@pytest.fixture
def host():
    host = Host()
    host.know_peer()
    host.moved()
    return host


@pytest.fixture
def udp(host):
    return host.stack.udp


both = pytest.mark.parametrize("family", [4, 6])


def peer(family):
    return PEER_V4 if family == 4 else PEER_V6


def refused(code, call, *args, **kwargs):
    with pytest.raises(OSError) as caught:
        call(*args, **kwargs)
    assert caught.value.errno == code, caught.value
    return caught.value


# --- in -------------------------------------------------------------------------------------------------------------

@both
@pytest.mark.parametrize("size", [0, 1, 2, 1001, 1400])
def test_datagram_reaches_its_endpoint(host, udp, family, size):
    data = bytes(i & 0xFF for i in range(size))
    id = udp.bind(None, 5000)
    assert udp.ready() == []
    assert host.receive(datagram(data, family=family)) == "delivered"
    assert udp.ready() == [id] and udp.ready() == []
    assert udp.receive(id) == [(data, peer(family), 4000)]
    assert udp.receive(id) == []
    assert host.moved() == {"delivered": 1, "#udp_datagrams_received": 1}


def test_senders_are_told_apart(host, udp):
    id = udp.bind(None, 5000)
    senders = [PEER_V4, PEER_V6, PEER_V4, "10.77.0.3", PEER_V6, PEER_V6]
    for n, source in enumerate(senders):
        family = 6 if ":" in source else 4
        host.receive(datagram(bytes([n]), family=family, source=source, sport=4000 + n))
    assert udp.receive(id) == [(bytes([n]), source, 4000 + n) for n, source in enumerate(senders)]


def test_receive_takes_no_more_than_asked_and_stays_ready(host, udp):
    id = udp.bind(None, 5000)
    for n in range(5):
        host.receive(datagram(bytes([n])))
    assert udp.ready() == [id]
    assert [row[0] for row in udp.receive(id, 2)] == [b"\0", b"\1"]
    assert udp.ready() == [id]
    assert udp.receive(id, 0) == [] and udp.ready() == [id]
    assert [row[0] for row in udp.receive(id, 64)] == [b"\2", b"\3", b"\4"]
    assert udp.ready() == []


@both
def test_datagram_shorter_than_its_packet_is_cut(host, udp, family):
    id = udp.bind(None, 5000)
    packet = datagram(b"hello, trailer", family=family, len=8 + 5)
    octets = bytes(packet[UDP])
    source, to = (PEER_V4, V4) if family == 4 else (PEER_V6, V6)
    header = octets[:6] + bytes(2) + octets[8:13]
    octets = header[:6] + checksum(header, pseudo_header(source, to, 17, 13)).to_bytes(2, "big") + octets[8:]
    packet[IP if family == 4 else IPv6].remove_payload()
    if family == 4:
        packet[IP].proto = 17
    else:
        packet[IPv6].nh = 17
    assert host.receive(packet / octets) == "delivered"
    assert udp.receive(id)[0][0] == b"hello"


@pytest.mark.parametrize(("packet", "verdict"), [
    (datagram(len=7), "udp_length"), (datagram(len=0), "udp_length"), (datagram(len=14), "udp_length"),
    (datagram(len=65535), "udp_length"), (datagram(chksum=1), "udp_checksum"),
    (datagram(family=6, chksum=1), "udp_checksum"), (datagram(family=6, chksum=0), "udp_checksum_missing"),
    (datagram(family=6, len=0), "udp_length"), (datagram(dport=5001), "udp_port_closed"),
    (datagram(dport=0), "udp_port_closed"),
])
def test_bad_datagram_is_dropped(host, udp, packet, verdict):
    id = udp.bind(None, 5000)
    assert host.receive(packet) == verdict
    assert udp.ready() == [] and udp.receive(id) == []
    host.sent()
    moved = host.moved()
    moved.pop("#icmp_errors_sent", None)
    assert moved == {verdict: 1}


@both
def test_truncated_header_is_dropped(host, udp, family):
    whole = datagram(family=family)
    ip = whole[IP if family == 4 else IPv6]
    octets = bytes(ip.payload)
    ip.remove_payload()
    if family == 4:
        ip.proto = 17
    else:
        ip.nh = 17
    for n in range(8):
        assert host.receive(whole / octets[:n]) == "udp_truncated"


def test_zero_checksum_is_none_in_ipv4(host, udp):
    id = udp.bind(None, 5000)
    assert host.receive(datagram(chksum=0)) == "delivered"
    assert udp.receive(id)[0][0] == b"hello"


@both
def test_checksum_the_device_vouches_for_is_not_looked_at(host, udp, family):
    # a datagram that never left the machine has only the pseudo header's sum in it
    id = udp.bind(None, 5000)
    assert host.receive(datagram(family=family, chksum=1), flags=Feature.RX_CHECKSUM) == "delivered"
    assert udp.receive(id)[0][0] == b"hello"


def test_broadcast_reaches_an_endpoint_of_any_address(host, udp):
    any_id = udp.bind("0.0.0.0", 5000)
    assert host.receive(datagram(to="10.77.0.255", mac=BROADCAST)) == "delivered"
    assert udp.ready() == [any_id]


def test_most_specific_endpoint_gets_the_datagram(host, udp):
    connected = udp.bind("0.0.0.0", 5000, reuse=True)      # the oldest first: among equals the newest would win
    udp.connect(connected, PEER_V4, 4000)
    bound = udp.bind(V4, 5000, reuse=True)
    v4 = udp.bind("0.0.0.0", 5000, reuse=True)
    everything = udp.bind("::", 5000, reuse=True)
    host.receive(datagram(family=6), datagram(source="10.77.0.9"), datagram(), datagram(sport=4001),
                 datagram(to="10.77.0.255", mac=BROADCAST, source="10.77.0.9"))
    got = {id: [(row[1], row[2]) for row in udp.receive(id)] for id in (everything, v4, bound, connected)}
    assert got == {
        everything: [(PEER_V6, 4000)], v4: [("10.77.0.9", 4000)],
        bound: [("10.77.0.9", 4000), (PEER_V4, 4001)], connected: [(PEER_V4, 4000)]}


def test_any_address_of_ipv6_alone_stands_beside_any_of_ipv4(host, udp):
    six = udp.bind("::", 5000, v6only=True)
    with pytest.raises(OSError, match="in use"):
        udp.bind("::", 5000)
    with pytest.raises(OSError, match="in use"):
        udp.bind(V6, 5000)
    four = udp.bind("0.0.0.0", 5000)
    host.receive(datagram(family=6), datagram())
    assert [(row[1], row[2]) for row in udp.receive(six)] == [(PEER_V6, 4000)]
    assert [(row[1], row[2]) for row in udp.receive(four)] == [(PEER_V4, 4000)]
    udp.close(four)
    assert host.receive(datagram()) == "udp_port_closed"
    with pytest.raises(OSError, match="of another family"):
        udp.send(six, b"no", PEER_V4, 4000)


def test_newest_of_equal_endpoints_gets_the_datagram(host, udp):
    ids = [udp.bind(None, 5000, reuse=True) for _ in range(3)]
    host.receive(datagram())
    assert udp.ready() == [ids[2]]
    udp.close(ids[2])
    host.receive(datagram())
    assert udp.ready() == [ids[1]]


def test_connected_endpoint_hears_only_its_peer(host, udp):
    id = udp.bind(None, 5000)
    udp.connect(id, PEER_V4, 4000)
    assert host.receive(datagram(source="10.77.0.9"), datagram(sport=4001), datagram(family=6), datagram()) == [
        "udp_port_closed"] * 3 + ["delivered"]
    assert [row[1:] for row in udp.receive(id)] == [(PEER_V4, 4000)]


def test_full_queue_drops_by_count_and_by_octets(host, udp):
    id = udp.bind(None, 5000)
    small, large = datagram(b""), datagram(bytes(1400))
    ends = host.receive(*[small] * (udp_module.UDP_QUEUE_DATAGRAMS + 3))
    assert ends == ["delivered"] * udp_module.UDP_QUEUE_DATAGRAMS + ["udp_queue_full"] * 3
    assert len(udp.receive(id, 10_000)) == udp_module.UDP_QUEUE_DATAGRAMS
    assert udp.rows()[0]["queued_octets"] == 0
    ends = host.receive(*[large] * 300)
    delivered = ends.count("delivered")
    assert ends == ["delivered"] * delivered + ["udp_queue_full"] * (300 - delivered)
    assert 170 < delivered < udp_module.UDP_QUEUE_OCTETS // 1400
    row = udp.rows()[0]
    assert (row["queued"], row["dropped"]) == (delivered, 3 + 300 - delivered)
    assert row["queued_octets"] <= udp_module.UDP_QUEUE_OCTETS
    udp.receive(id, 1)
    assert host.receive(large) == "delivered"


@settings(max_examples=200, deadline=None)
@given(family=st.sampled_from([4, 6]), octets=st.binary(max_size=60), vouched=st.booleans())
def test_any_octets_are_judged(family, octets, vouched):
    host = Host()
    for port in range(0, 3):
        if port:
            host.stack.udp.bind(None, port)
    ip = IP(src=PEER_V4, dst=V4, proto=17) if family == 4 else IPv6(src=PEER_V6, dst=V6, nh=17)
    end = host.receive(Ether(src=PEER_MAC, dst=MAC) / ip / octets, flags=Feature.RX_CHECKSUM if vouched else 0)
    assert end.startswith("udp_") or end == "delivered"


# --- out ------------------------------------------------------------------------------------------------------------

@both
@pytest.mark.parametrize("size", [0, 1, 2, 1001, 1400])
def test_datagram_goes_out_with_the_right_checksum(host, udp, family, size):
    data = bytes(i & 0xFF for i in range(size))
    id = udp.bind(None, 5000)
    udp.send(id, data, peer(family), 4000)
    (frame,) = host.sent()
    layer = frame[IP] if family == 4 else frame[IPv6]
    assert (frame.src, frame.dst, layer.src, layer.dst) == (MAC, PEER_MAC, V4 if family == 4 else V6, peer(family))
    assert (layer.ttl if family == 4 else layer.hlim) == 64
    sent = frame[UDP]
    assert (sent.sport, sent.dport, sent.len, bytes(sent)[8:]) == (5000, 4000, 8 + size, data)
    fresh = frame.copy()
    del fresh[UDP].chksum
    assert Ether(bytes(fresh))[UDP].chksum == sent.chksum
    assert host.moved() == {"#udp_datagrams_sent": 1}


@pytest.mark.parametrize("family", [4, 6])
def test_checksum_that_comes_out_zero_is_sent_as_all_ones(host, udp, family):
    # RFC 768, RFC 8200 8.1
    id = udp.bind(None, 5000)
    source = V4 if family == 4 else V6
    header = (5000).to_bytes(2, "big") + (4000).to_bytes(2, "big") + (10).to_bytes(2, "big") + bytes(2)
    data = checksum(header + bytes(2), pseudo_header(source, peer(family), 17, 10)).to_bytes(2, "big")
    udp.send(id, data, peer(family), 4000)
    assert host.sent()[0][UDP].chksum == 0xFFFF
    udp.send(id, bytes([data[0], data[1] ^ 1]), peer(family), 4000)
    assert host.sent()[0][UDP].chksum not in (0, 0xFFFF)


@both
def test_device_that_completes_checksums_gets_the_pseudo_header_sum(family):
    host = Host(features=Feature.TX_CHECKSUM)
    host.know_peer()
    id = host.stack.udp.bind(None, 5000)
    host.stack.udp.send(id, b"hello", peer(family), 4000)
    (frame,) = host.sent()
    source = V4 if family == 4 else V6
    partial = checksum(b"", pseudo_header(source, peer(family), 17, 13)) ^ 0xFFFF
    assert frame[UDP].chksum == partial


def test_connected_endpoint_sends_without_an_address(host, udp):
    id = udp.bind(None, 0)
    udp.connect(id, PEER_V6, 4000)
    assert udp.remote(id) == (PEER_V6, 4000)
    assert udp.local(id)[0] == V6
    udp.send(id, b"one")
    udp.send(id, b"two", PEER_V6, 4001)
    assert [(f[UDP].dport, bytes(f[UDP])[8:]) for f in host.sent()] == [(4000, b"one"), (4001, b"two")]


@pytest.mark.parametrize("data", [bytearray(b"octets"), memoryview(b"octets"), memoryview(b"--octets")[2:]])
def test_any_contiguous_buffer_is_sent(host, udp, data):
    udp.send(udp.bind(None, 5000), data, PEER_V4, 4000)
    assert bytes(host.sent()[0][UDP])[8:] == b"octets"


def test_what_is_no_buffer_is_refused(udp):
    id = udp.bind(None, 5000)
    for data in ("text", 5, None):
        with pytest.raises(TypeError):
            udp.send(id, data, PEER_V4, 4000)


@both
def test_datagram_fills_the_mtu_and_no_more(host, udp, family):
    id = udp.bind(None, 5000)
    most = 1500 - (20 if family == 4 else 40) - 8
    udp.send(id, bytes(most), peer(family), 4000)
    assert len(host.sent()[0]) == 1514
    host.moved()
    for size in (most + 1, 65507, 70_000):
        e = refused(errno.EMSGSIZE, udp.send, id, bytes(size), peer(family), 4000)
        assert peer(family) in str(e)
    assert host.sent() == []
    assert host.moved() == {"unsent_too_big": 3}


def test_new_route_is_taken_by_the_next_datagram(host, udp):
    id = udp.bind(None, 5000)
    refused(errno.ENETUNREACH, udp.send, id, b"x", "192.0.2.1", 4000)
    host.stack.add_route("192.0.2.0/24", PEER_V4)
    udp.send(id, b"x", "192.0.2.1", 4000)
    assert host.sent()[0].dst == PEER_MAC
    host.stack.remove_route("192.0.2.0/24")
    refused(errno.ENETUNREACH, udp.send, id, b"x", "192.0.2.1", 4000)


def test_address_that_went_is_no_longer_spoken_from(host, udp):
    id = udp.bind(V4, 5000)
    udp.send(id, b"x", PEER_V4, 4000)
    host.sent()
    host.stack.remove_address(host.index, V4)
    refused(errno.EADDRNOTAVAIL, udp.send, id, b"x", PEER_V4, 4000)
    assert host.sent() == []


def test_many_destinations_from_one_endpoint(host, udp):
    id = udp.bind(None, 5000)
    hosts = [f"10.77.0.{n}" for n in range(10, 20)] + [f"fd77::{n}" for n in range(10, 20)]
    for n, name in enumerate(hosts):
        host.stack.set_neighbor(host.index, name, f"02:00:00:00:01:{n:02x}")
    for name in hosts + hosts[::-1]:
        udp.send(id, name.encode(), name, 4000)
    frames = host.sent()
    assert [bytes(f[UDP])[8:].decode() for f in frames] == hosts + hosts[::-1]
    for f in frames:
        assert (f[IP] if IP in f else f[IPv6]).dst == bytes(f[UDP])[8:].decode()


def test_full_device_queue_says_try_again(host, udp):
    id = udp.bind(None, 5000)
    with pytest.raises(BlockingIOError):
        for _ in range(5000):
            udp.send(id, b"x", PEER_V4, 4000)
    host.sent()
    udp.send(id, b"x", PEER_V4, 4000)


def test_silent_host_is_unreachable_after_a_while(udp, host):
    id = udp.bind(None, 5000)
    udp.send(id, b"x", "10.77.0.9", 4000)
    host.advance(3)
    refused(errno.EHOSTUNREACH, udp.send, id, b"x", "10.77.0.9", 4000)


def test_loopback(host, udp):
    server = udp.bind(None, 5000)
    client = udp.bind(None, 0)
    for target in ("127.0.0.1", "::1", V4, V6):
        udp.send(client, target.encode(), target, 5000)
        while host.stack.loop(host.now):
            pass
        assert udp.receive(server) == [(target.encode(), target, udp.local(client)[1])]
    assert host.sent() == []


# --- ports and endpoints --------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("first", "second", "conflict"), [
    ("::", "::", True), ("::", "0.0.0.0", True), ("::", V4, True), ("::", V6, True), ("0.0.0.0", "::", True),
    ("0.0.0.0", V4, True), ("0.0.0.0", V6, False), (V4, V4, True), (V4, V6, False), (V4, "127.0.0.1", False),
    (V6, "::", True), (V6, "0.0.0.0", False), (None, "", True),
])
def test_addresses_that_overlap_cannot_share_a_port(udp, first, second, conflict):
    udp.bind(first, 5000)
    udp.bind(second, 5001)
    if conflict:
        refused(errno.EADDRINUSE, udp.bind, second, 5000)
        refused(errno.EADDRINUSE, udp.bind, second, 5000, reuse=True)
    else:
        udp.bind(second, 5000)


def test_port_is_free_again_after_close(host, udp):
    id = udp.bind(None, 5000)
    host.receive(datagram())
    udp.close(id)
    assert udp.ready() == [] and len(udp) == 0
    again = udp.bind(None, 5000)
    assert udp.receive(again) == []
    assert host.receive(datagram()) == "delivered"


@pytest.mark.parametrize(("host_text", "code"), [
    ("10.77.0.9", errno.EADDRNOTAVAIL), ("fd77::9", errno.EADDRNOTAVAIL), ("224.0.0.1", errno.EADDRNOTAVAIL)])
def test_address_that_is_not_ours_cannot_be_bound(udp, host_text, code):
    assert host_text in str(refused(code, udp.bind, host_text, 5000))


def test_tentative_address_cannot_be_bound_yet():
    host = Host(settled=False)
    refused(errno.EADDRNOTAVAIL, host.stack.udp.bind, V6, 5000)
    host.advance(2)
    host.stack.udp.bind(V6, 5000)


def test_ephemeral_ports_are_random_free_and_finite():
    host = Host(udp={"limit": 20_000})
    udp = host.stack.udp
    ports = [udp.local(udp.bind(None, 0))[1] for _ in range(20)]
    assert ports != sorted(ports) and len({b - a for a, b in itertools.pairwise(ports)}) > 10
    ports += [udp.local(udp.bind(None, 0))[1] for _ in range(16384 - 20)]
    assert sorted(ports) == list(range(49152, 65536))
    refused(errno.EADDRINUSE, udp.bind, None, 0)


def test_table_is_bounded():
    host = Host(udp={"limit": 2})
    udp = host.stack.udp
    first = udp.bind(None, 1)
    udp.bind(None, 2)
    refused(errno.EMFILE, udp.bind, None, 3)
    udp.close(first)
    udp.bind(None, 3)


@pytest.mark.parametrize("call", [
    lambda udp, id: udp.send(id, b"x", PEER_V4, 1), lambda udp, id: udp.receive(id), lambda udp, id: udp.close(id),
    lambda udp, id: udp.local(id), lambda udp, id: udp.remote(id), lambda udp, id: udp.error(id),
    lambda udp, id: udp.connect(id, PEER_V4, 1)])
def test_id_that_is_not_open_is_refused(udp, call):
    closed = udp.bind(None, 5000)
    udp.close(closed)
    for id in (closed, 1, -1, 4096, 1 << 40):
        refused(errno.EBADF, call, udp, id)


def test_arguments_that_make_no_sense_are_refused(udp):
    id = udp.bind(None, 5000)
    for call in (lambda: udp.bind(None, -1), lambda: udp.bind(None, 65536), lambda: udp.bind("10.77", 1),
                 lambda: udp.connect(id, PEER_V4, 0), lambda: udp.send(id, b"", PEER_V4, 0),
                 lambda: udp.send(id, b"", PEER_V4, 65536), lambda: udp.send(id, b"", "somewhere", 1)):
        with pytest.raises(ValueError):
            call()
    refused(errno.EDESTADDRREQ, udp.send, id, b"x")
    v4 = udp.bind("0.0.0.0", 5001)
    refused(errno.EAFNOSUPPORT, udp.send, v4, b"x", PEER_V6, 1)
    refused(errno.EAFNOSUPPORT, udp.connect, udp.bind(V6, 5002), PEER_V4, 1)
    refused(errno.ENETUNREACH, udp.connect, id, "192.0.2.1", 1)


def test_error_of_a_closed_endpoint_is_forgotten(host, udp):
    id = udp.bind(None, 5000)
    udp.connect(id, PEER_V6, 4000)
    udp.send(id, b"x")
    (sent,) = host.sent()
    error = Ether(src=PEER_MAC, dst=MAC) / IPv6(src=PEER_V6, dst=V6) / ICMPv6DestUnreach(code=4) / sent[IPv6]
    host.receive(error)
    udp.close(id)
    assert udp.ready() == []
    again = udp.bind(None, 5000)
    assert udp.error(again) is None
    assert host.receive(error) == "delivered", "an unconnected endpoint does not hear of it"
    assert udp.error(again) is None and udp.ready() == []


def test_error_about_a_datagram_of_an_unconnected_endpoint_is_not_told(host, udp):
    id = udp.bind(None, 5000)
    udp.send(id, b"x", PEER_V4, 4000)
    (sent,) = host.sent()
    assert host.receive(Ether(src=PEER_MAC, dst=MAC) / IP(src=PEER_V4, dst=V4) / ICMP(type=3, code=3) / sent[IP]) == (
        "delivered")
    assert udp.error(id) is None
    udp.send(id, b"x", PEER_V4, 4000)


def test_rows_say_what_went_through(host, udp):
    id = udp.bind(V4, 5000)
    udp.connect(id, PEER_V4, 4000)
    host.receive(datagram(b"12345"))
    udp.send(id, b"123")
    (row,) = udp.rows()
    assert row == {
        "id": id, "local": V4, "local_port": 5000, "remote": PEER_V4, "remote_port": 4000, "queued": 1,
        "queued_octets": row["queued_octets"], "dropped": 0, "rx_datagrams": 1, "rx_octets": 5, "tx_datagrams": 1,
        "tx_octets": 3}


class Endpoints(RuleBasedStateMachine):
    """Endpoints that come, go and receive, against a dict of what each must hold."""

    def __init__(self):
        super().__init__()
        self.host = Host(udp={"limit": 4})
        self.udp = self.host.stack.udp
        self.held = {}          # id -> (port, [data])
        self.told = set()

    @rule(port=st.integers(5000, 5004))
    def bind(self, port):
        taken = any(port == other for other, _ in self.held.values())
        try:
            id = self.udp.bind(None, port)
        except OSError as e:
            assert e.errno in ((errno.EADDRINUSE, errno.EMFILE) if taken else (errno.EMFILE,))
            assert taken or len(self.held) == 4
        else:
            assert not taken and id not in self.held
            self.held[id] = (port, [])

    @rule(port=st.integers(5000, 5004), data=st.binary(max_size=4))
    def receive(self, port, data):
        owner = next((id for id, (other, _) in self.held.items() if other == port), None)
        assert self.host.receive(datagram(data, dport=port)) == ("udp_port_closed" if owner is None else "delivered")
        if owner is not None:
            self.held[owner][1].append(data)
            self.told.add(owner)

    @rule(pick=st.integers(0, 3), most=st.integers(0, 3))
    def take(self, pick, most):
        if pick in self.held:
            got = [row[0] for row in self.udp.receive(pick, most)]
            assert got == self.held[pick][1][:most]
            del self.held[pick][1][:most]
            if self.held[pick][1]:
                self.told.add(pick)

    @rule(pick=st.integers(0, 3))
    def close(self, pick):
        if pick in self.held:
            self.udp.close(pick)
            del self.held[pick]
            self.told.discard(pick)

    @rule()
    def ready(self):
        assert set(self.udp.ready()) == self.told
        self.told = set()

    @invariant()
    def counts(self):
        assert len(self.udp) == len(self.held)
        assert {row["id"]: row["queued"] for row in self.udp.rows()} == {k: len(v[1]) for k, v in self.held.items()}


Endpoints.TestCase.settings = settings(max_examples=50, deadline=None, stateful_step_count=40)
TestEndpoints = Endpoints.TestCase
