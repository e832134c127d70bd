"""What hangs on an interface: told from Linux's own interfaces here, from VLANs and macvlans in tests/lab/test_take.py."""

import socket

import pytest

from drivers.pci.unkept import NOTHING, Hangers, hangers, sorted_out


class Link(dict):
    """As pyroute2 shows one."""

    def get_nested(self, _info, what):
        return self.get({"IFLA_INFO_KIND": "kind", "IFLA_INFO_DATA": "data"}[what])


def link(index, name, kind=None, **more):
    return Link(index=index, ifname=name, kind=kind, **more)


def qdisc(index, kind, handle=0x80010000):
    return {"index": index, "kind": kind, "handle": handle}


ETH0 = link(2, "eth0")


@pytest.mark.parametrize(("links", "qdiscs", "found"), [
    ([], [qdisc(2, "mq", 0), qdisc(2, "fq_codel", 0)], NOTHING),
    ([], [qdisc(2, "htb"), qdisc(2, "pfifo"), qdisc(2, "htb")],
     Hangers(lost=("the queueing discipline htb", "the queueing discipline pfifo"))),
    ([], [qdisc(2, "clsact", 0xFFFF0000)], Hangers(lost=("filters on what comes in (clsact)",))),
    ([link(3, "eth0.5", "vlan", link=2)], [], Hangers(vlans=("eth0.5",))),
    ([link(3, "mv0", "macvlan", link=2), link(4, "vx0", "vxlan", data={"vxlan_link": 2})], [],
     Hangers(lost=("mv0 (macvlan)", "vx0 (vxlan)"))),
    ([link(3, "eth0.5", "vlan", link=2), link(4, "eth0.5.6", "vlan", link=3), link(5, "mv0", "macvlan", link=4)],
     [qdisc(3, "htb")],
     Hangers(vlans=("eth0.5",), lost=("the queueing discipline htb on eth0.5", "mv0 (macvlan) on eth0.5.6 on eth0.5"))),
    ([link(3, "veth0", "veth", link=2, link_netnsid=1)], [], NOTHING),
])
def test_what_comes_back_and_what_is_lost(links, qdiscs, found):
    assert sorted_out([ETH0, *links], qdiscs).get(2, NOTHING) == found


def test_an_xdp_program_is_lost():
    assert sorted_out([link(2, "eth0", xdp={"attached": 2}), link(3, "eth1", xdp={"attached": None})], []) == {
        2: Hangers(lost=("an XDP program",))}


def test_linuxs_own_interfaces(netns):
    for line in ("link add v0 type veth peer name v1", "link set v0 up", "link set v1 up", "link add b0 type bridge",
                 "link set v0 master b0"):
        netns.run("ip", *line.split())
    assert netns.call(hangers) == {}
    netns.run("tc", "qdisc", "add", "dev", "v0", "root", "tbf", "rate", "1mbit", "burst", "10kb", "latency", "10ms")
    netns.run("tc", "qdisc", "add", "dev", "v0", "ingress")
    assert netns.call(hangers) == {netns.call(socket.if_nametoindex, "v0"): Hangers(
        lost=("the queueing discipline tbf", "filters on what comes in (ingress)"))}
    netns.run("tc", "qdisc", "del", "dev", "v0", "root")
    netns.run("tc", "qdisc", "del", "dev", "v0", "ingress")
    assert netns.call(hangers) == {}
