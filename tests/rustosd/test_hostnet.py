"""The kernel's side of a TAP, in a network namespace."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import time
from ipaddress import ip_interface
from pathlib import Path

import pytest

from drivers.tap import Tap
from mm.frame import RxBurst
from rustosd import hostnet
from rustosd.hostnet import HostNetworkError, HostTap, check_free, configure, remove, stable_mac
from rustosd.journal import Journal, TapMade

ADDRESSES = [ip_interface("10.77.0.1/24"), ip_interface("fd77::1/64")]


def ip(*argv: str) -> str:
    return subprocess.run(["ip", *argv], check=True, capture_output=True, text=True).stdout


def usable_at_once(directory: Path) -> None:
    with Journal(directory / "journal.jsonl") as journal:
        tap = HostTap(journal, "t0", mtu=1400, addresses=ADDRESSES)
        assert list(journal.pending.values()) == [TapMade("t0")]
        assert tap.nic.mac == stable_mac("t0", "stack") and tap.nic.mtu == 1400 and tap.nic.link_up

        shown = ip("address", "show", "t0")
        assert f"link/ether {stable_mac('t0', 'host').hex(':')}" in shown
        assert "mtu 1400" in shown and "qlen 4096" in shown and "10.77.0.1/24" in shown and "fd77::1/64" in shown
        assert "tentative" not in shown
        assert "10.77.0.0/24 dev t0" in ip("route") and "fd77::/64 dev t0" in ip("-6", "route")
        for family, address in (socket.AF_INET, "10.77.0.1"), (socket.AF_INET6, "fd77::1"):
            with socket.create_server((address, 80), family=family):
                pass

        tap.close()
        tap.close()
        assert journal.pending == {}
    assert [name for _, name in socket.if_nameindex()] == ["lo"]


def test_usable_at_once_and_gone_afterwards(netns, tmp_path):
    netns.call(usable_at_once, tmp_path)


def no_chatter(directory: Path) -> list[bytes]:
    with Journal(directory / "journal.jsonl") as journal:
        tap = HostTap(journal, "t0", mtu=1500, addresses=ADDRESSES)
        burst, frames = RxBurst(), []
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            tap.nic.receive(burst)
            frames += burst.frames_bytes()
            time.sleep(0.05)
        return frames


def made_again(directory: Path) -> None:
    with Journal(directory / "journal.jsonl") as journal:
        tap = HostTap(journal, "t0", mtu=1400, addresses=ADDRESSES)
        ip("link", "delete", "t0")
        ip("tuntap", "add", "t0", "mode", "tap")
        with pytest.raises(OSError, match="exists already"):
            tap.make_again(ADDRESSES)
        ip("link", "delete", "t0")
        tap.make_again(ADDRESSES[:1])
        shown = ip("address", "show", "t0")
        assert tap.nic.link_up and "mtu 1400" in shown and "10.77.0.1/24" in shown and "fd77" not in shown
        assert len(journal.pending) == 1
        tap.close()
        assert journal.pending == {}
    assert [name for _, name in socket.if_nameindex()] == ["lo"]


def test_made_again_when_somebody_has_deleted_it_and_its_name_is_free(netns, tmp_path):
    netns.call(made_again, tmp_path)


def test_kernel_asks_for_no_router_and_detects_no_duplicates(netns, tmp_path):
    kinds = {frame[54] for frame in netns.call(no_chatter, tmp_path) if frame[20] == 58}
    assert not kinds & {133, 135}, "router solicitation or neighbor solicitation"


def without_ipv6(directory: Path) -> None:
    with Journal(directory / "journal.jsonl") as journal:
        tap = HostTap(journal, "t0", mtu=1500, addresses=ADDRESSES[:1])
        assert "inet6" not in ip("address", "show", "t0")
        tap.close()


def test_without_ipv6_addresses_the_interface_has_no_ipv6(netns, tmp_path):
    netns.call(without_ipv6, tmp_path)


def from_a_running_loop(directory: Path) -> None:
    async def main() -> None:
        with Journal(directory / "journal.jsonl") as journal:
            HostTap(journal, "t0", mtu=1500, addresses=ADDRESSES).close()

    uvloop = pytest.importorskip("uvloop")
    uvloop.run(main())
    asyncio.run(main())


def test_may_be_called_from_a_running_loop(netns, tmp_path):
    netns.call(from_a_running_loop, tmp_path)


def test_mac_is_stable_unicast_and_local():
    macs = {stable_mac(name, side) for name in ("t0", "t1") for side in ("host", "stack")}
    assert len(macs) == 4
    assert all(len(mac) == 6 and mac[0] & 3 == 2 for mac in macs)
    assert stable_mac("t0", "host") in macs


# Conflicts with what the host has.

TAKEN = [
    pytest.param(["addr add 10.77.0.200/28 dev d0"], ADDRESSES,
                 "subnet 10.77.0.0/24 overlaps the address 10.77.0.200/28 of d0", id="address"),
    pytest.param(["addr add 10.77.0.9/32 dev lo"], ADDRESSES, "address 10.77.0.9/32 of lo", id="host address"),
    pytest.param(["addr add 192.0.2.1 peer 10.77.0.9 dev d0"], ADDRESSES, "of d0", id="peer of a point-to-point link"),
    pytest.param(["addr add 192.0.2.1/24 dev d0", "route add 10.0.0.0/8 via 192.0.2.2"], ADDRESSES,
                 "route to 10.0.0.0/8 by d0", id="wider route"),
    pytest.param(["addr add 192.0.2.1/24 dev d0", "route add 10.77.0.128/25 via 192.0.2.2 table 77"], ADDRESSES,
                 "route to 10.77.0.128/25 by d0", id="narrower route in another table"),
    pytest.param(["addr add fd77::9/128 dev d0 nodad"], ADDRESSES, "fd77::/64 overlaps the address fd77::9/128 of d0",
                 id="IPv6 address"),
    pytest.param(["-6 route add fd00::/8 dev d0"], ADDRESSES, "route to fd00::/8 by d0", id="IPv6 route"),
    pytest.param([], [ip_interface("127.0.0.5/24")], "address 127.0.0.1/8 of lo", id="loopback"),
]
FREE = [
    "addr add 10.77.1.1/24 dev d0",
    "addr add 192.0.2.1/24 dev d0|route add default via 192.0.2.2|route add 0.0.0.0/1 via 192.0.2.2",
    "-6 route add 2000::/3 dev d0|-6 route add default dev d0",
    "route add unreachable 10.0.0.0/8",
]


def host_with(commands: list[str], addresses: list) -> None:
    ip("link", "add", "d0", "type", "veth", "peer", "name", "d1")
    ip("link", "set", "d0", "up")
    for command in commands:
        ip(*command.split())
    check_free(addresses)


@pytest.mark.parametrize(("commands", "addresses", "words"), TAKEN)
def test_subnet_in_use_is_refused(netns, commands, addresses, words):
    with pytest.raises(HostNetworkError, match=re.escape(words) + ".*configure another subnet"):
        netns.call(host_with, commands, addresses)


@pytest.mark.parametrize("commands", FREE)
def test_default_routes_and_neighbors_are_no_conflict(netns, commands):
    netns.call(host_with, commands.split("|"), ADDRESSES)


# Failure and recovery.

def failed_set_up(directory: Path) -> None:
    with Journal(directory / "journal.jsonl") as journal:
        with pytest.raises(HostNetworkError, match=r"cannot configure the interface t0: .*check mtu and addresses"):
            HostTap(journal, "t0", mtu=10, addresses=ADDRESSES)
        assert journal.pending == {}
        with pytest.raises(HostNetworkError, match="nowhere does not exist"):
            configure("nowhere", mac=bytes(6), mtu=1500, addresses=[])
    assert [name for _, name in socket.if_nameindex()] == ["lo"]


def test_failed_set_up_leaves_nothing(netns, tmp_path):
    netns.call(failed_set_up, tmp_path)


def killed(directory: Path) -> None:
    """A daemon that dies without a word; its TAP was made persistent by somebody."""
    pid = os.fork()
    if pid == 0:
        HostTap(Journal(directory / "journal.jsonl"), "t0", mtu=1500, addresses=ADDRESSES)
        ip("tuntap", "add", "t1", "mode", "tap")
        ip("link", "set", "t1", "alias", hostnet.ALIAS)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert [name for _, name in socket.if_nameindex()] == ["lo", "t1"], "t0 went with its process"
    with Journal(directory / "journal.jsonl") as journal:
        assert list(journal.pending.values()) == [TapMade("t0")]
        journal.take(TapMade("t1"))
        assert journal.give_back_all(hostnet.undo) == []
        HostTap(journal, "t0", mtu=1500, addresses=ADDRESSES).close()
    assert [name for _, name in socket.if_nameindex()] == ["lo"]


def test_recovery_after_a_kill(netns, tmp_path):
    netns.call(killed, tmp_path)


def not_ours() -> None:
    theirs = Tap.open("t0", bytes(6))
    remove("t0")
    remove("t9")
    assert theirs.link_up is False and "t0" in [name for _, name in socket.if_nameindex()]


def test_remove_leaves_what_is_not_ours(netns):
    netns.call(not_ours)
