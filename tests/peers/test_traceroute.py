"""`rustosctl traceroute` over Linux: three namespaces in a row, of which two are routers, for both families."""

import re
import subprocess
import sys
import time

import pytest

from tests.peers.conftest import CONTROL, need
from tests.support.netns import Netns

HOPS = {4: ["10.77.0.1", "10.88.1.2", "10.88.2.3"], 6: ["fd77::1", "fd88:1::2", "fd88:2::3"]}
TARGET = {family: hops[-1] for family, hops in HOPS.items()}
# Routers that do not want to: what they answer, and the sign for it.
WRONG = {4: {"unreachable": ("10.99.1.1", "!H"), "prohibit": ("10.99.2.1", "!X"), "throw": ("10.99.3.1", "!N")},
         6: {"unreachable": ("fd99:1::1", "!N"), "prohibit": ("fd99:2::1", "!X")}}


def wire(left, right, name, number):
    """A veth between two namespaces: address .1 or .2 on the left and one more on the right."""
    for side in (left, right):
        # While Linux tests its link-local address for duplicates, up to two seconds, it forwards to nobody it has to ask for.
        side.run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
    subprocess.run(["ip", "link", "add", name, "netns", left.name, "type", "veth", "peer", "name", name, "netns", right.name],
                   check=True)
    for side, end in ((left, number), (right, number + 1)):
        side.run("ip", "addr", "add", f"10.88.{number}.{end}/24", "dev", name)
        side.run("ip", "addr", "add", f"fd88:{number}::{end}/64", "dev", name, "nodad")
        side.run("ip", "link", "set", name, "up")


def forward(netns):
    for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        netns.run("sysctl", "-qw", f"{key}=1")
    # what is measured is the way, not the limits on how much of it a router tells
    netns.run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0")
    netns.run("sysctl", "-qw", "net.ipv6.icmp.ratelimit=0")


@pytest.fixture(scope="module")
def way(peer):
    """The daemon, behind it the router that is its peer, another, and the host at the end."""
    need("sysctl")
    first = peer.netns
    with Netns() as second, Netns() as last:
        wire(first, second, "way1", 1)
        wire(second, last, "way2", 2)
        for router in (first, second):
            forward(router)
        for version, prefix, via in (("-4", "10.77.0.0/24", "10.88.1.1"), ("-6", "fd77::/64", "fd88:1::1")):
            second.run("ip", version, "route", "add", prefix, "via", via)
        for version, prefix, via in (("-4", "10.0.0.0/8", "10.88.2.2"), ("-6", "fd00::/8", "fd88:2::2")):
            last.run("ip", version, "route", "add", prefix, "via", via)
        for version, prefix, via in (("-4", "10.88.2.0/24", "10.88.1.2"), ("-6", "fd88:2::/64", "fd88:1::2"),
                                     ("-4", "10.99.0.0/16", "10.88.1.2"), ("-6", "fd99::/16", "fd88:1::2")):
            first.run("ip", version, "route", "add", prefix, "via", via)
        for family, kinds in WRONG.items():
            for kind, (address, _) in kinds.items():
                second.run("ip", f"-{family}", "route", "add", kind, address)
        for prefix, via in (("10.88.0.0/16", "10.77.0.1"), ("10.99.0.0/16", "10.77.0.1"), ("fd88::/16", "fd77::1"),
                            ("fd99::/16", "fd77::1")):
            control(peer, "route", "add", prefix, "via", via)
        peer.last = last
        yield peer


def control(peer, *words):
    done = peer.netns.run(sys.executable, "-c", CONTROL, "--socket", str(peer.control), *words, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("method", [(), ("--icmp",)], ids=["udp", "icmp"])
@pytest.mark.parametrize("family", [4, 6])
def test_every_router_and_the_host(way, family, method):
    trace = way.ctl("traceroute", TARGET[family], *method)["traceroute"]
    assert trace["reached"] and trace["address"] == TARGET[family]
    assert [{probe["address"] for probe in hop["probes"]} for hop in trace["hops"]] == [{hop} for hop in HOPS[family]]
    assert [[probe["reached"] for probe in hop["probes"]] for hop in trace["hops"]] == [[False] * 3] * 2 + [[True] * 3]
    assert all(probe["error"] is None and 0 < probe["rtt_us"] < 1e6 for hop in trace["hops"] for probe in hop["probes"])


@pytest.mark.parametrize("family", [4, 6])
def test_it_reads_as_traceroute_does(way, family):
    status, out, _ = control(way, "traceroute", TARGET[family], "-q", "2")
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == f"traceroute to {TARGET[family]}, 30 hops at most, 32 octets of data"
    for number, (line, hop) in enumerate(zip(lines[1:], HOPS[family], strict=True), 1):
        assert re.fullmatch(rf" {number}  {re.escape(hop)}  \d+\.\d{{3}} ms  \d+\.\d{{3}} ms", line)


@pytest.mark.parametrize(("family", "kind", "method"), [
    *((family, kind, ()) for family in WRONG for kind in WRONG[family]), *((family, "prohibit", ("-I",)) for family in WRONG)])
def test_what_routers_refuse_is_named(way, family, kind, method):
    address, sign = WRONG[family][kind]
    for _ in range(5):
        status, out, _ = control(way, "traceroute", address, "-q", "1", *method)
        assert status == 1
        if "*" not in out:
            break
        time.sleep(1.1)     # Linux owes itself a second for each such error (net.ipv4.route.error_cost, not to be set here)
    assert re.fullmatch(rf" 2  {re.escape(HOPS[family][1])}  \d+\.\d{{3}} ms {re.escape(sign)}", out.splitlines()[-1])
    assert len(out.splitlines()) == 3


@pytest.mark.parametrize("family", [4, 6])
def test_a_host_that_is_not_there_is_the_last_routers_to_tell(way, family):
    absent = {4: "10.88.2.99", 6: "fd88:2::99"}[family]     # Linux asks for its MAC address for three seconds
    status, out, _ = control(way, "traceroute", absent, "-q", "1", "-f", "3", "-w", "10")
    assert status == 1
    assert re.fullmatch(rf" 3  {re.escape(HOPS[family][1])}  \d+\.\d{{3}} ms !H", out.splitlines()[-1])


ECHO = """
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(("::", 33434))
print("ready", flush=True)
while True:
    s.sendto(*s.recvfrom(2048))
"""


@pytest.mark.parametrize("family", [4, 6])
def test_a_port_that_is_open_answers_for_the_host(way, family):
    with way.last.popen(sys.executable, "-c", ECHO, stdout=subprocess.PIPE) as server:
        try:
            server.stdout.readline()
            status, out, _ = control(way, "traceroute", TARGET[family], "-q", "1", "-f", "3")
        finally:
            server.kill()
    assert status == 0 and re.fullmatch(rf" 3  {re.escape(TARGET[family])}  \d+\.\d{{3}} ms", out.splitlines()[-1])


def test_silence_is_a_star_and_the_end_a_bound(way):
    status, out, _ = control(way, "traceroute", "10.77.0.99", "-m", "2", "-q", "2", "-w", "0.2")
    assert status == 1 and out.splitlines()[1:] == [" 1  *  *", " 2  *  *"]


def test_without_a_route_it_says_so(way):
    assert control(way, "traceroute", "0.0.0.0")[::2] == (1, "rustosctl: 0.0.0.0: no route to the destination\n")
