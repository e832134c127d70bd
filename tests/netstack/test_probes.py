"""UDP probes with a hop limit, and the ICMP errors that quote them."""

import pytest
from scapy.all import ICMP, IP, UDP, Ether, ICMPv6DestUnreach, ICMPv6TimeExceeded, IPv6

from netstack import icmp
from tests.support.host import MAC, PEER_MAC, PEER_V4, PEER_V6, V4, V6, Host

FAR = {4: "192.0.2.9", 6: "2001:db8::9"}
ROUTER = {4: "198.51.100.1", 6: "2001:db8:ffff::1"}


@pytest.fixture(params=[4, 6])
def family(request):
    return request.param


@pytest.fixture
def host():
    made = Host()
    made.know_peer()
    made.stack.add_route("0.0.0.0/0", PEER_V4)
    made.stack.add_route("::/0", PEER_V6)
    return made


def probe(host, family, hop_limit=3, port=33434):
    """An endpoint that has sent a probe, and the probe."""
    endpoint = host.stack.udp.bind("::" if family == 6 else "0.0.0.0", 0)
    host.stack.udp.probe(endpoint, hop_limit)
    host.stack.udp.send(endpoint, b"probe", FAR[family], port)
    (sent,) = host.sent()
    return endpoint, sent


def error(family, quoted, kind="exceeded"):
    """What a router says of a frame."""
    frame = Ether(dst=MAC, src=PEER_MAC)
    if family == 4:
        types = {"exceeded": (11, 0), "prohibited": (3, 13), "port": (3, 3)}
        return frame / IP(src=ROUTER[4], dst=V4) / ICMP(type=types[kind][0], code=types[kind][1]) / bytes(quoted[IP])[:28]
    said = ICMPv6TimeExceeded() if kind == "exceeded" else ICMPv6DestUnreach(code={"prohibited": 1, "port": 4}[kind])
    return frame / IPv6(src=ROUTER[6], dst=V6) / said / bytes(quoted[IPv6])


def test_a_probe_has_its_hop_limit_and_others_have_theirs(host, family):
    _, sent = probe(host, family, hop_limit=3)
    assert (sent[IP].ttl if family == 4 else sent[IPv6].hlim) == 3
    other = host.stack.udp.bind(None, 0)
    host.stack.udp.send(other, b"x", FAR[family], 9)
    (sent,) = host.sent()
    assert (sent[IP].ttl if family == 4 else sent[IPv6].hlim) == 64


@pytest.mark.parametrize(("kind", "words"), [("exceeded", "time exceeded"), ("prohibited", "administratively prohibited"),
                                             ("port", "port unreachable")])
def test_an_error_about_a_probe_is_kept_with_who_sent_it(host, family, kind, words):
    _, sent = probe(host, family)
    assert host.receive(error(family, sent, kind)) == "delivered"
    ((identifier, port, source, at, _, _, said),) = host.stack.probe_answers()
    assert (identifier, port, source, at, said) == (sent[UDP].sport, 33434, ROUTER[family], host.now, words)
    assert host.stack.probe_answers() == [] and host.stack.ping_replies() == []


def test_errors_about_other_datagrams_are_no_answers(host, family):
    _, sent = probe(host, family)
    other = host.stack.udp.bind(None, 0)
    host.stack.udp.send(other, b"x", FAR[family], 33434)
    (mine,) = host.sent()
    host.receive(error(family, mine))
    mine[UDP].sport = sent[UDP].sport
    (mine[IP] if family == 4 else mine[IPv6]).src = "10.77.0.77" if family == 4 else "fd77::77"      # not one of ours
    host.receive(error(family, mine))
    assert host.stack.probe_answers() == []


def test_answers_are_bounded_and_the_oldest_go_first(host):
    endpoint = host.stack.udp.bind("0.0.0.0", 0)
    host.stack.udp.probe(endpoint, 1)
    for port in range(1, icmp.ANSWER_ROWS + 11):
        host.stack.udp.send(endpoint, b"", FAR[4], port)
        host.receive(error(4, host.sent()[0]))
    answers = host.stack.probe_answers()
    assert [row[1] for row in answers] == list(range(11, icmp.ANSWER_ROWS + 11))


def test_a_hop_limit_has_bounds(host):
    endpoint = host.stack.udp.bind(None, 0)
    for wrong in (0, 256, -1):
        with pytest.raises(ValueError, match="a hop limit is 1 to 255"):
            host.stack.udp.probe(endpoint, wrong)
