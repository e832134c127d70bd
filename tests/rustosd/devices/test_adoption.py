"""What the stack takes over of what a NIC was to the kernel."""

import pytest

from netstack.stack import Stack
from rustosd.config import DeviceConfig, RouteConfig
from rustosd.devices import adoption
from rustosd.devices.adoption import Lease, StackRoute
from rustosd.devices.linkstate import DAD_FAILED, Hop, KernelAddress, KernelRoute, LinkState
from rustosd.values import Address, Cidr, Prefix

MAC = bytes.fromhex("020000000002")
BDF = "0000:03:00.0"


def link(*addresses, routes=(), mtu=1500):
    return LinkState(name="eth0", mac="02:00:00:00:00:02", mtu=mtu, up=True, read_at_s=0.0, addresses=addresses, routes=routes)


def route(to, gateway=None, **other):
    return KernelRoute(to=to, hops=(Hop(gateway=gateway),), **other)


def rule(**given):
    return DeviceConfig(bdf=BDF, **given)


def test_without_a_kernel_interface_there_is_what_the_rule_says():
    want = adoption.wanted(None, rule(address=(Cidr("192.0.2.2/24"),), gateway=(Address("192.0.2.1"), Address("fe80::1"))),
                           (RouteConfig(to=Prefix("198.51.100.0/24"), via=Address("192.0.2.9"), metric=3),), 1500)
    assert want == adoption.Wanted(1500, ("192.0.2.2/24",), (
        StackRoute("0.0.0.0/0", "192.0.2.1"), StackRoute("::/0", "fe80::1"), StackRoute("198.51.100.0/24", "192.0.2.9", 3)))


def test_addresses_routes_and_mtu_of_the_kernel_are_taken_over():
    kernel = link(KernelAddress(address="10.0.0.2/24"), KernelAddress(address="10.9.0.1/32", peer="10.9.0.2"),
                  KernelAddress(address="fd00::2/64"), mtu=1400, routes=(
                      route("0.0.0.0/0", "10.0.0.1", metric=100, source="10.0.0.2"), route("10.5.0.0/16"),
                      route("::/0", "fe80::1", metric=1024, source="fd00::99")))
    want = adoption.wanted(kernel, rule(), (), 1500)
    assert want == adoption.Wanted(1400, ("10.0.0.2/24", "10.9.0.1/32", "fd00::2/64"), (
        StackRoute("10.9.0.2/32"), StackRoute("0.0.0.0/0", "10.0.0.1", 100, "10.0.0.2"), StackRoute("10.5.0.0/16"),
        StackRoute("::/0", "fe80::1", 1024)))
    assert adoption.wanted(kernel, rule(adopt=False), (), 1500) == adoption.Wanted()


def test_the_rule_goes_before_the_kernel():
    kernel = link(KernelAddress(address="10.0.0.2/24"), KernelAddress(address="10.0.0.3/24"), mtu=1300)
    want = adoption.wanted(kernel, rule(address=(Cidr("10.0.0.2/16"),), mtu=1450), (), 1500)
    assert (want.mtu, want.addresses) == (1450, ("10.0.0.2/16", "10.0.0.3/24"))


@pytest.mark.parametrize(("kernel", "left_out"), [
    (link(mtu=9000), "the MTU 9000: this NIC's driver carries 1500"),
    (link(KernelAddress(address="fd00::2/64"), mtu=1200), "fd00::2/64: IPv6 needs an MTU of 1280"),
    (link(KernelAddress(address="fd00::2/64", flags=DAD_FAILED)), "fd00::2/64: another host has it"),
    (link(KernelAddress(address="127.0.0.2/8")), "127.0.0.2/8: no address for a NIC"),
    (link(routes=(route("10.0.0.0/8", "10.0.0.1", table=77),)),
     "the route to 10.0.0.0/8: it is in table 77, the stack has one"),
    (link(routes=(KernelRoute(to="10.0.0.0/8", hops=(Hop(gateway="10.0.0.1"), Hop(gateway="10.0.0.2"))),)),
     "the route to 10.0.0.0/8: it leads several ways at once"),
    (link(routes=(route("10.0.0.0/8", "10.0.0.1", tos=8),)), "the route to 10.0.0.0/8: it is for one type of service"),
    (link(routes=(route("10.0.0.0/8", "fe80::1"),)), "the route to 10.0.0.0/8: its gateway is of the other family"),
    (link(routes=(route("fd00::/8", "fe80::1"),), mtu=1200), "the route to fd00::/8: IPv6 needs an MTU of 1280"),
])
def test_what_the_stack_cannot_have_is_left_out_and_said(kernel, left_out):
    want = adoption.wanted(kernel, rule(), (), 1500)
    assert (want.left_out, want.addresses, want.routes) == ((left_out,), (), ())
    assert want.mtu == min(kernel.mtu, 1500)


def test_a_lease_is_taken_over_to_its_end_and_the_operator_told():
    kernel = link(KernelAddress(address="10.0.0.2/24", valid_s=600))
    want = adoption.wanted(kernel, rule(), (), 1500)
    assert want.addresses == ("10.0.0.2/24",) and want.leases == (Lease("10.0.0.2", 600.0),)
    assert want.left_out == (
        'the renewal of 10.0.0.2/24: its lease ends in 600 s, and then it is taken away; to keep it, say address = '
        '["10.0.0.2/24"] under the NIC\'s [[device]]',)
    kept = adoption.wanted(kernel, rule(address=(Cidr("10.0.0.2/24"),)), (), 1500)
    assert kept.addresses == ("10.0.0.2/24",) and kept.leases == kept.left_out == ()


def test_a_routers_route_is_taken_over_for_good_and_the_operator_told():
    want = adoption.wanted(link(routes=(route("::/0", "fe80::1", expires_s=1800),)), rule(), (), 1500)
    assert want.routes == (StackRoute("::/0", "fe80::1"),)
    assert want.left_out == ("the end of the route to ::/0, which came from a router and is over in 1800 s unless that speaks "
                             "again: the stack keeps it",)


def test_an_mtu_beyond_the_nic_is_an_error():
    with pytest.raises(ValueError, match="mtu = 9000: this NIC carries at most 1500"):
        adoption.wanted(None, rule(mtu=9000), (), 1500)


@pytest.fixture
def stack():
    return Stack(bytes(16))


def facts(stack, name):
    """Addresses and static routes of an interface."""
    return ({row["address"] for row in stack.addresses() if row["name"] == name and not row["address"].startswith("fe80:")},
            {(row["prefix"], row["gateway"], row["metric"]) for row in stack.routes() if row["kind"] == "static"})


def test_what_the_stack_refuses_keeps_nothing_else_out(stack):
    index = adoption.place(stack, "eth0", MAC, 1500, 0)
    want = adoption.Wanted(1500, ("10.0.0.2/24", "10.0.0.2/24", "fd00::2/64"), (
        StackRoute("10.5.0.0/16", "10.0.0.2"), StackRoute("10.6.0.0/16", "10.0.0.1", 7, "fd00::2"),
        StackRoute("10.7.0.0/16", "10.0.0.1", 7, "10.0.0.2")))
    for _ in range(2):      # again, as when its NIC comes back
        adoption.apply(stack, index, want, "eth0")
        assert facts(stack, "eth0") == ({"10.0.0.2/24", "fd00::2/64"}, {("10.7.0.0/16", "10.0.0.1", 7)})


@pytest.mark.parametrize("changed", [False, True])
def test_an_interface_that_waited_keeps_all_it_had(stack, changed):
    index = adoption.place(stack, "eth0", MAC, 1500, 0)
    stack.add_address(index, "10.0.0.2/24")
    stack.add_address(index, "fd00::2/64")
    stack.add_route("0.0.0.0/0", gateway="10.0.0.1", interface=index, metric=5)
    stack.set_link(index, False)
    mac = MAC if not changed else bytes.fromhex("020000000003")
    again = adoption.place(stack, "eth0", mac, 1500, 0)
    assert changed or again == index
    assert facts(stack, "eth0") == ({"10.0.0.2/24", "fd00::2/64"}, {("0.0.0.0/0", "10.0.0.1", 5)})
    row, = (row for row in stack.interfaces() if row["name"] == "eth0")
    assert (row["index"], row["mac"]) == (again, mac.hex(":"))
