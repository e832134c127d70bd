"""What an interface was to the kernel, read from Linux, and restored to one that has come anew under another name."""

import itertools
import re
import shutil
import subprocess
import time
from pathlib import Path

import msgspec
import pytest

from rustosd.devices import hostlink
from rustosd.devices.linkstate import Hop, KernelAddress, KernelRoute, LinkState
from rustosd.hostnet import HostNetworkError

FULL = """
link set v0 up mtu 1400 alias hi txqueuelen 333
addr add 10.1.0.2/24 brd + dev v0
addr add 10.1.0.3/24 dev v0 label v0:x valid_lft 1000 preferred_lft 500
addr add 10.2.0.1 peer 10.2.0.9 dev v0 metric 77
addr add fd01::2/64 dev v0 nodad
addr add fd01::3/64 dev v0 nodad
addr add fd02::2/64 dev v0 nodad noprefixroute valid_lft 3000 preferred_lft 0
addr add fe80::1234/64 dev v0 nodad
route add 10.9.0.0/16 via 10.1.0.1 metric 50 src 10.1.0.3 mtu 1300 advmss lock 1000
route add default via 10.1.0.1
route add 10.10.0.0/16 dev v0 scope link proto 99
route add 10.11.0.0/16 via inet6 fe80::1 dev v0
route add 10.12.0.0/16 via 10.1.0.5 table 77
route add 10.13.0.0/16 nexthop via 10.1.0.1 dev v0 weight 3 nexthop via 10.1.0.2 dev v0
route add 10.14.0.0/16 via 172.16.0.1 dev v0 onlink
route add 10.15.0.0/16 tos 8 via 10.1.0.1
route add 10.60.0.0/16 nexthop via 10.50.0.9 dev o0 nexthop via 10.1.0.77 dev v0 weight 5
-6 route add fd09::/64 via fd01::1 src fd01::2
-6 route add fd0a::/64 nexthop via fd01::5 dev v0 weight 2 nexthop via fd01::4 dev v0
-6 route add fd0c::/64 nexthop via fd50::9 dev o0 nexthop via fd01::6 dev v0 weight 3
-6 route add fd0b::/64 via fe80::7 dev v0 expires 300 pref high
-6 route add fd02::/64 dev v0 proto kernel metric 512
-6 route add default via fe80::8 dev v0 metric 10
"""


def ip(line):
    return subprocess.run(["ip", *line.split()], check=True, capture_output=True, text=True).stdout


def host(lines=FULL):
    """An interface v0 with all that, and another one, o0."""
    for name in ("v", "o"):
        ip(f"link add {name}0 type veth peer name {name}1")
        ip(f"link set {name}1 up")
    ip("link set o0 up")
    ip("addr add 10.50.0.1/24 dev o0")
    ip("addr add fd50::1/64 dev o0 nodad")
    for line in lines.strip().splitlines():
        ip(line)
    for path, value in (("ipv4/conf/v0/rp_filter", "2"), ("ipv6/conf/v0/accept_ra", "0")):
        (Path("/proc/sys/net") / path).write_text(value)


def shown():
    """What ip(8) tells of v0, without what time changes and without numbers of interfaces.

    Nor with routes that the kernel makes of addresses by itself, which settle late and in any order.
    """
    lines = itertools.chain.from_iterable(ip(words).splitlines() for words in (
        "addr show v0", "route show table all dev v0", "-6 route show table all dev v0", "-4 route show table main",
        "-6 route show table main"))
    lines = [line for line in lines if not re.search(r"table local proto kernel|^fe80::/64 dev \S+ proto kernel", line)]
    return [re.sub(r"^\d+: |(expires|valid_lft|preferred_lft) \d+sec| tentative|@\S+", "", line).strip() for line in lines]


def anew(mac):
    """The driver has made the interface again, with another name, as a fresh driver does."""
    ip("link del v0")
    ip(f"link add v9 address {mac} type veth peer name v1")
    ip("link set v1 up")


def journalled(state):
    """Through the journal's form and back."""
    return msgspec.json.decode(msgspec.json.encode(state), type=LinkState)


def round_trip():
    host()
    state, before = hostlink.read("v0"), shown()
    anew(state.mac)
    assert hostlink.restore(journalled(state), "v9") == []
    after = shown()
    assert after == before
    assert state.up and (state.mtu, state.alias, state.queue_frames) == (1400, "hi", 333)
    for path, value in (("ipv4/conf/v0/rp_filter", "2"), ("ipv6/conf/v0/accept_ra", "0")):
        assert (Path("/proc/sys/net") / path).read_text().strip() == value
    assert hostlink.restore(state, "v0") == [] and shown() == before, "what is there is left as it is"
    return state


def test_everything_comes_back(netns):
    state = netns.call(round_trip)
    assert [a.address for a in state.addresses if a.valid_s is None and ":" not in a.address] == ["10.1.0.2/24", "10.2.0.1/32"]
    lease = next(a for a in state.addresses if a.label == "v0:x")
    assert 900 < lease.valid_s <= 1000 and 400 < lease.preferred_s <= 500
    routes = {route.to: route for route in state.routes}
    assert "10.1.0.0/24" not in routes and "fe80::/64" not in routes, "what the kernel makes by itself is not kept"
    assert "fd02::/64" in routes, "what somebody made for an address without its own prefix route is kept"
    assert routes["10.60.0.0/16"].hops == (Hop(gateway="10.50.0.9", interface="o0"), Hop(gateway="10.1.0.77", weight=5))
    assert routes["10.9.0.0/16"].metrics == {"lock": 1 << 8, "mtu": 1300, "advmss": 1000}


def down_and_other_mac():
    host("addr add 10.1.0.2/24 dev v0\nlink set v0 address 02:00:00:00:00:77")
    state = hostlink.read("v0")
    assert not state.up and state.routes == ()
    anew("02:00:00:00:00:78")
    ip("link set v9 up")        # a network manager was faster
    assert hostlink.restore(state, "v9") == []
    said = ip("link show v0")
    return state.mac, "02:00:00:00:00:77" in said, "10.1.0.2/24" in ip("addr show v0")


def test_an_interface_that_was_down_keeps_its_mac_and_addresses(netns):
    assert netns.call(down_and_other_mac) == ("02:00:00:00:00:77", True, True)


def leases_end():
    host("link set v0 up\naddr add 10.1.0.2/24 dev v0 valid_lft 50 preferred_lft 20\naddr add 10.2.0.2/24 dev v0 valid_lft 5 "
         "preferred_lft 5\n-6 route add fd0b::/64 via fe80::7 dev v0 expires 20")
    state = hostlink.read("v0")
    anew(state.mac)
    passed = msgspec.structs.replace(state, read_at_s=state.read_at_s - 30)
    assert hostlink.restore(passed, "v9") == []
    return ip("addr show v0"), ip("-6 route show dev v0")


def test_leases_go_on_while_we_have_the_device(netns):
    addresses, routes = netns.call(leases_end)
    valid, preferred = map(int, re.search(r"valid_lft (\d+)sec preferred_lft (\d+)sec", addresses).groups())
    assert 0 < valid <= 20 and preferred == 0
    assert "10.2.0.2" not in addresses and "fd0b::" not in routes


def a_port_of_a_bridge():
    ip("link add v0 type veth peer name v1")
    ip("link add b0 type bridge")
    ip("link set v0 master b0")
    state = hostlink.read("v0")
    anew(state.mac)
    assert hostlink.restore(state, "v9") == []
    assert "master b0" in ip("link show v0")
    ip("link del b0")
    return hostlink.restore(state, "v0")


def test_a_port_goes_back_to_its_bridge(netns):
    try:
        netns.run("ip", "link", "add", "b9", "type", "bridge")
    except AssertionError:
        pytest.skip("this kernel has no bridges")
    netns.run("ip", "link", "del", "b9")
    assert netns.call(a_port_of_a_bridge) == ["v0 is not part of b0, which is gone"]


def ethtool(*words):
    return subprocess.run(["ethtool", *words], check=True, capture_output=True, text=True).stdout


def settings_by_ethtool():
    host("link set v0 up")
    ethtool("-L", "v0", "rx", "2")
    ethtool("-K", "v0", "tso", "off", "rx", "off")
    before = ethtool("-k", "v0"), ethtool("-l", "v0")
    state = hostlink.read("v0")
    anew(state.mac)
    assert (ethtool("-k", "v9").replace("v9", "v0"), ethtool("-l", "v9").replace("v9", "v0")) != before
    assert hostlink.restore(journalled(state), "v9") == []
    assert (ethtool("-k", "v0"), ethtool("-l", "v0")) == before
    rings = msgspec.structs.replace(state, hardware={"rings": bytes(36).hex()})
    return hostlink.restore(rings, "v0")


def test_what_ethtool_sets_comes_back(netns):
    if not shutil.which("ethtool"):
        pytest.skip("ethtool is not installed")
    assert netns.call(settings_by_ethtool) == ["v0 has not its rings as ethtool showed them: Operation not supported"]


def what_fails_is_said():
    host("link set v0 up\naddr add 10.1.0.2/24 dev v0")
    link = hostlink.read("v0")
    routes = (KernelRoute(to="10.99.0.0/16", hops=(Hop(gateway="172.16.9.9"),)),
              KernelRoute(to="10.98.0.0/16", hops=(Hop(gateway="10.1.0.1"), Hop(gateway="10.3.0.1", interface="gone0"))),
              KernelRoute(to="10.97.0.0/16", hops=(Hop(gateway="10.1.0.1"),)))
    state = msgspec.structs.replace(link, routes=routes, settings={"ipv4/no_such_thing": "1"},
                                    addresses=(KernelAddress(address="10.1.0.2/24", label="other:1"),))
    complaints = hostlink.restore(state, "v0")
    with pytest.raises(HostNetworkError, match="nowhere does not exist"):
        hostlink.restore(state, "nowhere")
    with pytest.raises(HostNetworkError, match="nowhere does not exist"):
        hostlink.read("nowhere")
    return complaints, ip("route")


def test_one_thing_that_fails_keeps_nothing_else_from_coming_back(netns):
    complaints, routes = netns.call(what_fails_is_said)
    setting, unreachable, partial = complaints
    assert "no_such_thing is not 1" in setting
    assert unreachable.startswith("the route to 10.99.0.0/16 over v0 is missing: ")
    assert partial == "the route to 10.98.0.0/16 over v0 is missing: its other way gone0 is gone"
    assert "10.97.0.0/16" in routes


def source_in_duplicate_detection():
    host("link set v0 up\naddr add fd01::2/64 dev v0\naddr add fd01::3/64 dev v0 nodad")
    deadline = time.monotonic() + 10
    while "tentative" in ip("addr show v0"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ip("-6 route add fd09::/64 via fd01::1 src fd01::2")
    state = hostlink.read("v0")
    anew(state.mac)
    return hostlink.restore(state, "v9"), ip("-6 route show dev v0")


def test_a_route_waits_for_its_source_to_be_known_unique(netns):
    complaints, routes = netns.call(source_in_duplicate_detection)
    assert complaints == [] and "src fd01::2" in routes


def test_waiting_for_an_interface_ends(monkeypatch, tmp_path):
    monkeypatch.setattr(hostlink, "PCI", tmp_path)
    device = tmp_path / "devices" / "0000:03:00.0" / "net"
    assert hostlink.interface_of("0000:03:00.0") is None
    with pytest.raises(HostNetworkError, match=r"0000:03:00\.0: its driver has made no interface within 0 s"):
        hostlink.await_interface("0000:03:00.0", 0.05)
    (device / "eth7").mkdir(parents=True)
    assert hostlink.await_interface("0000:03:00.0", 0.05) == "eth7"
