"""What a NIC was to the kernel in the stack's terms: which addresses, routes and MTU the stack takes over, and doing so."""

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from netstack.stack import Stack
from rustosd.config import DeviceConfig, RouteConfig
from rustosd.devices.linkstate import DAD_FAILED, MAIN_TABLE, KernelAddress, KernelRoute, LinkState

MTU = 1500
IPV6_MIN_MTU = 1280     # RFC 8200 5

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StackRoute:
    """A route as `Stack.add_route` takes it."""

    to: str
    gateway: str | None = None
    metric: int = 0
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """An address that the kernel had for a time, from DHCP or a router, and that nobody renews while the NIC is ours."""

    address: str
    ends_s: float
    """CLOCK_BOOTTIME, see `LinkState.read_at_s`."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an interface of the stack shall have."""

    mtu: int = MTU
    addresses: tuple[str, ...] = ()
    routes: tuple[StackRoute, ...] = ()
    left_out: tuple[str, ...] = ()
    """In words, what of the kernel's the stack cannot take over."""
    leases: tuple[Lease, ...] = ()
    """Of the addresses, those to be taken away at some time."""


def wanted(link: LinkState | None, rule: DeviceConfig, routes: tuple[RouteConfig, ...], nic_mtu: int) -> Wanted:
    """All that the stack's interface shall have: the rule's, the kernel's if it adopts, and the static `routes` over it.

    Raises ValueError for an MTU that the NIC does not carry.
    """
    kernel = link if rule.adopt else None
    left_out: list[str] = []
    leases: list[Lease] = []
    if rule.mtu is not None and rule.mtu > nic_mtu:
        raise ValueError(f"mtu = {rule.mtu}: this NIC carries at most {nic_mtu}")
    mtu = rule.mtu or min(kernel.mtu if kernel else MTU, nic_mtu)
    if kernel and rule.mtu is None and kernel.mtu > nic_mtu:
        left_out.append(f"the MTU {kernel.mtu}: this NIC's driver carries {nic_mtu}")
    addresses = {str(cidr.parsed.ip): str(cidr) for cidr in rule.address}
    chosen = [StackRoute("::/0" if gateway.version == 6 else "0.0.0.0/0", str(gateway)) for gateway in rule.gateway]
    chosen += [StackRoute(str(route.to), str(route.via) if route.via else None, route.metric) for route in routes]
    if kernel:
        for address in kernel.addresses:
            if why := _why_not_address(address, mtu):
                left_out.append(f"{address.address}: {why}")
                continue
            if address.valid_s is not None and str(address.parsed.ip) not in addresses:
                left_out.append(f"the renewal of {address.address}: its lease ends in {address.valid_s} s, and then it is "
                                f"taken away; to keep it, say address = [\"{address.address}\"] under the NIC's [[device]]")
                leases.append(Lease(str(address.parsed.ip), kernel.read_at_s + address.valid_s))
            # The stack knows no point-to-point links: the peer is one neighbor more.
            addresses.setdefault(str(address.parsed.ip), address.address if address.peer is None else _alone(address))
            if address.peer is not None:
                chosen.append(StackRoute(str(ipaddress.ip_network(
                    f"{address.peer}/{address.parsed.network.prefixlen}", strict=False))))
        for route in kernel.routes:
            if why := _why_not_route(route, mtu):
                left_out.append(f"the route to {route.to}: {why}")
                continue
            if route.expires_s:
                left_out.append(f"the end of the route to {route.to}, which came from a router and is over in "
                                f"{route.expires_s} s unless that speaks again: the stack keeps it")
            source = route.source if route.source in addresses else None
            chosen.append(StackRoute(route.to, route.hops[0].gateway, route.metric, source))
    return Wanted(mtu, tuple(addresses.values()), tuple(dict.fromkeys(chosen)), tuple(left_out),
                  tuple(leases))


def _alone(address: KernelAddress) -> str:
    return f"{address.parsed.ip}/{address.parsed.ip.max_prefixlen}"


def _why_not_address(address: KernelAddress, mtu: int) -> str:
    ip = address.parsed.ip
    if ip.version == 6 and mtu < IPV6_MIN_MTU:
        return f"IPv6 needs an MTU of {IPV6_MIN_MTU}"
    if address.flags & DAD_FAILED:
        return "another host has it"
    if ip.is_loopback or ip.is_unspecified or ip.is_multicast:
        return "no address for a NIC"
    return ""


def _why_not_route(route: KernelRoute, mtu: int) -> str:
    if route.table != MAIN_TABLE:
        return f"it is in table {route.table}, the stack has one"
    if len(route.hops) > 1:
        return "it leads several ways at once"
    if route.tos:
        return "it is for one type of service"
    if route.version == 6 and mtu < IPV6_MIN_MTU:
        return f"IPv6 needs an MTU of {IPV6_MIN_MTU}"
    if route.version == 4 and ":" in (route.hops[0].gateway or ""):
        return "its gateway is of the other family"
    return ""


def apply(stack: Stack, index: int, want: Wanted, interface: str) -> None:
    """Give the stack's interface what it shall have and has not; what the stack refuses is logged and left out."""
    have = {row["address"].partition("/")[0] for row in stack.addresses() if row["interface"] == index}
    for address in want.addresses:
        if address.partition("/")[0] not in have:
            _attempt(interface, f"address {address}", partial(stack.add_address, index, address))
    for route in want.routes:
        _attempt(interface, f"route to {route.to}", partial(
            stack.add_route, route.to, gateway=route.gateway, interface=index, metric=route.metric, source=route.source))


def _attempt(interface: str, what: str, add: Callable[[], None]) -> None:
    try:
        add()
    except (OSError, ValueError) as error:
        log.warning("not_taken_over", nic=interface, what=what, error=getattr(error, "strerror", None) or str(error))


def place(stack: Stack, name: str, mac: bytes, mtu: int, features: int) -> int:
    """The index of the stack's interface `name`, made or, where it waits for its NIC to come back, taken up again.

    A NIC that is not like the one before gets an interface of its own with all that the old one had.
    """
    old = _row(stack, name)
    if old is None:
        return stack.add_interface(name, mac, mtu, features)
    if (bytes.fromhex(old["mac"].replace(":", "")), old["mtu"], old["features"]) == (mac, mtu, features):
        return old["index"]
    addresses = [row for row in stack.addresses() if row["interface"] == old["index"]]
    routes = [row for row in stack.routes() if row["interface"] == old["index"] and row["kind"] == "static"]
    stack.remove_interface(old["index"])
    index = stack.add_interface(name, mac, mtu, features)
    kept = tuple(row["address"] for row in addresses if not ipaddress.ip_interface(row["address"]).ip.is_link_local)
    apply(stack, index, Wanted(mtu, kept, tuple(StackRoute(row["prefix"], row["gateway"] or None, row["metric"],
                                                            row.get("source") or None) for row in routes)), name)
    return index


def _row(stack: Stack, name: str) -> Mapping[str, Any] | None:
    return next((row for row in stack.interfaces() if row["name"] == name), None)
