"""Reading what a network interface is to the kernel, and putting that back once its driver has made it anew.

Everything goes over netlink, ioctl(2), /proc/sys/net and /sys, blocks for milliseconds, and may run in any thread. What
cannot be put back (queueing disciplines, macvlans and the like) is told before anything is taken: `drivers.pci.unkept`.
"""

import errno
import ipaddress
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from drivers.binding import PCI
from rustosd import netlink
from rustosd.devices import ethtool, uppers
from rustosd.devices.linkstate import NO_PREFIX_ROUTE, TEMPORARY, Hop, KernelAddress, KernelRoute, LinkState, Vlan
from rustosd.hostnet import HostNetworkError

APPEAR_S: Final = 10.0
"""How long a driver may take from its probe to its interface."""
RENAME_S: Final = 2.0
"""How long udev may take to rename it before we do."""
DAD_S: Final = 3.0
"""A source address can be used in a route only once it is known to be unique; RFC 4862 5.4 takes 1 to 2 s."""
_POLL_S: Final = 0.02
_UDEV: Final = Path("/run/udev/control")
_SYSCTL: Final = Path("/proc/sys/net")
_FOLLOWS_ITSELF: Final = frozenset({"ipv6/mtu"})        # set with the interface's own

# linux/if.h, linux/if_addr.h, linux/rtnetlink.h
_IFF_UP = 0x1
_SETTABLE_FLAGS = 0x02 | 0x10 | 0x100 | NO_PREFIX_ROUTE | 0x400     # NODAD, HOMEADDRESS, MANAGETEMPADDR, MCAUTOJOIN
_IFAPROT_KERNEL_LL = 3
_RTPROT_KERNEL = 2
_RTN_UNICAST = 1
_RT_TABLE_LOCAL = 255
_RTM_F_CLONED = 0x200
_RTNH_F_ONLINK = 4
_AF = {4: 2, 6: 10}
_USER_HZ = 100
_FOREVER = 0xFFFFFFFF
_KERNEL_MADE = (ipaddress.ip_network("fe80::/64"), ipaddress.ip_network("ff00::/8"))


def interface_of(bdf: str) -> str | None:
    """The interface the kernel has made of a PCI function, in this network namespace."""
    try:
        names = sorted(path.name for path in (PCI / "devices" / bdf / "net").iterdir())
    except OSError:
        return None
    return names[0] if names else None


def await_interface(bdf: str, timeout_s: float = APPEAR_S) -> str:
    """The same, once it is there. Raises HostNetworkError when it does not come."""
    limit = time.monotonic() + timeout_s
    while (name := interface_of(bdf)) is None:
        if time.monotonic() > limit:
            raise HostNetworkError(f"{bdf}: its driver has made no interface within {timeout_s:.0f} s: `dmesg | tail` may say "
                                   "why; then run `rustosd recover` again")
        time.sleep(_POLL_S)
    return name


def read(name: str) -> LinkState:
    """All of an interface that `restore` puts back. Raises HostNetworkError when there is none of this name."""

    return netlink.ask(lambda route: _read(route, name))


def restore(state: LinkState, name: str) -> list[str]:
    """Make the interface that is now called `name` what `state` says; in words, what could not be restored.

    What is there already is left as it is. Raises HostNetworkError when there is no such interface.
    """
    return netlink.ask(lambda route: _Restoring(route, _index(route, name), state).run())


def now_s() -> float:
    """The clock of `LinkState.read_at_s`, which goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# Reading

def _read(route: IPRoute, name: str) -> LinkState:
    index = _index(route, name)
    (link,) = route.link("get", index=index)
    names = {each["index"]: each.get("ifname") for each in route.get_links()}
    addresses = tuple(_addresses(route.get_addr(index=index), link.get("address") or ""))
    return LinkState(
        name=name, mac=link.get("address") or "", mtu=link.get("mtu"), up=bool(link["flags"] & _IFF_UP),
        read_at_s=now_s(), queue_frames=link.get("txqlen") or 0, alias=link.get("ifalias"),
        port=uppers.read_port(route, link, names), addresses=addresses,
        routes=tuple(_routes(route.get_routes(), index, names, addresses)), settings=dict(_settings(name)),
        hardware=ethtool.read(name), vlans=tuple(uppers.read_vlans(route, index, _read)))


def _addresses(rows: Iterable[Any], mac: str) -> Iterator[KernelAddress]:
    for row in rows:
        local, address = row.get("local") or row.get("address"), row.get("address")
        flags = row.get("flags") or 0
        found = KernelAddress(
            address=f"{local}/{row['prefixlen']}", peer=address if address != local else None,
            broadcast=row.get("broadcast"), label=row.get("label"), scope=row["scope"], flags=flags,
            metric=row.get("rt_priority"), protocol=row.get("proto"),
            valid_s=_lifetime(row, "ifa_valid"), preferred_s=_lifetime(row, "ifa_preferred"))
        if not _made_by_kernel(found, mac):
            yield found


def _lifetime(row: Any, which: str) -> int | None:
    seconds = (row.get("cacheinfo") or {}).get(which, _FOREVER)
    return None if seconds == _FOREVER else seconds


def _made_by_kernel(address: KernelAddress, mac: str) -> bool:
    """Whether it comes by itself with the interface: its link-local address, its temporary ones (RFC 8981)."""
    ip = address.parsed.ip
    if ip.version != 6:
        return False
    if address.flags & TEMPORARY:
        return True
    # Kernels before 5.18 do not say who made it.
    return ip.is_link_local and (address.protocol == _IFAPROT_KERNEL_LL or ip.packed[8:] == _eui64(mac))


def _eui64(mac: str) -> bytes:
    octets = bytes.fromhex(mac.replace(":", ""))
    return bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]]) if len(octets) == 6 else b""


def _routes(rows: Iterable[Any], index: int, names: dict[int, str], addresses: Iterable[KernelAddress]
            ) -> Iterator[KernelRoute]:
    """The unicast routes that lead over interface `index`, but for those that come with its addresses."""
    connected = {*_KERNEL_MADE, *(_connected(a) for a in addresses if not a.flags & NO_PREFIX_ROUTE)}
    for row in rows:
        several = row.get("multipath") or ()
        ways = [row.get("oif")] if not several else [hop["oif"] for hop in several]
        table = row.get("table") or row["table"]
        if row["type"] != _RTN_UNICAST or row["flags"] & _RTM_F_CLONED or table == _RT_TABLE_LOCAL or index not in ways:
            continue
        version = 4 if row["family"] == _AF[4] else 6
        to = f"{row.get('dst') or ('0.0.0.0' if version == 4 else '::')}/{row['dst_len']}"
        if row["proto"] == _RTPROT_KERNEL and ipaddress.ip_network(to) in connected:
            continue
        hops = [_hop(hop, hop["oif"], index, names, hop["hops"] + 1) for hop in several] or [
            _hop(row, row.get("oif"), index, names, 1)]
        yield KernelRoute(
            to=to, hops=tuple(hops), table=table, metric=row.get("priority") or 0, protocol=row["proto"], scope=row["scope"],
            tos=row["tos"], source=row.get("prefsrc"), metrics=_metrics(row.get("metrics")), preference=row.get("pref") or 0,
            expires_s=_expires(row.get("cacheinfo")))


def _connected(address: KernelAddress) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if address.peer is None:
        return address.parsed.network
    return ipaddress.ip_network(f"{address.peer}/{address.parsed.network.prefixlen}", strict=False)


def _hop(row: Any, oif: int, index: int, names: dict[int, str], weight: int) -> Hop:
    via = row.get("via") or {}
    return Hop(gateway=row.get("gateway") or via.get("addr"), interface=None if oif == index else names.get(oif),
               flags=row["flags"] & _RTNH_F_ONLINK, weight=weight)


def _metrics(nested: Any) -> dict[str, int]:
    pairs = nested["attrs"] if nested else ()
    return {name.removeprefix("RTAX_").lower(): value for name, value in pairs if isinstance(value, int)}


def _expires(cache: Any) -> int:
    return max(1, cache["rta_expires"] // _USER_HZ) if cache and cache["rta_expires"] > 0 else 0


def _settings(name: str) -> Iterator[tuple[str, str]]:
    """The interface's knobs that somebody has turned."""
    for family in ("ipv4", "ipv6"):
        conf = _SYSCTL / family / "conf"
        for path in sorted((conf / name).glob("*")):
            key = f"{family}/{path.name}"
            try:
                value = path.read_text().strip()
                if key not in _FOLLOWS_ITSELF and value != (conf / "default" / path.name).read_text().strip():
                    yield key, value
            except OSError:     # some cannot be read, such as a stable_secret that is not set
                continue


# Restoring

class _Restoring:
    """One interface on its way back. Each step goes on without what fails, and says so."""

    def __init__(self, route: IPRoute, index: int, state: LinkState) -> None:
        self.route, self.index, self.state = route, index, state
        self.passed_s = max(0, int(now_s() - state.read_at_s))
        self.complaints: list[str] = []

    def run(self) -> list[str]:
        state = self.state
        self._link()
        self._settings()
        self.complaints += ethtool.restore(state.name, state.hardware)
        self._port()
        if state.up:
            self._do(f"{state.name} is not up", self.route.link, "set", index=self.index, state="up")
        for address in _in_order(state.addresses):
            self._address(address)
        for route in state.routes:
            self._route(route)
        for vlan in state.vlans:
            self._vlan(vlan)
        return self.complaints

    def _port(self) -> None:
        """Part of its bridge or bond, before it is up: a bond wants its ports down, a VRF moves what is up already."""
        state, port = self.state, self.state.port
        if port is None:
            return
        if not (masters := self.route.link_lookup(ifname=port.master)):
            self.complaints.append(f"{state.name} is not part of {port.master}, which is gone")
            return
        decides = uppers.decides(port)
        if decides and self._now()["flags"] & _IFF_UP:
            self._do(f"{state.name} cannot be changed", self.route.link, "set", index=self.index, state="down")
        self._do(f"{state.name} is not part of {port.master}", self.route.link, "set", index=self.index, master=masters[0])
        if decides and self._now(masters[0]).get("address") != port.mac:
            self._do(f"{port.master} has not its MAC address {port.mac}", self.route.link, "set", index=masters[0],
                     address=port.mac)
        self.complaints += uppers.set_port(state.name, port)

    def _vlan(self, vlan: Vlan) -> None:
        try:
            index = uppers.make_vlan(self.route, self.index, vlan)
        except NetlinkError as error:
            self.complaints.append(f"the VLAN {vlan.link.name} on {self.state.name} is missing: {error.args[1]}")
            return
        self.complaints += _Restoring(self.route, index, vlan.link).run()

    def _link(self) -> None:
        """Name, MAC, MTU and queue, which some kernels and drivers let be changed only while it is down."""
        state = self.state
        if self._now().get("ifname") != state.name and _UDEV.exists():
            limit = time.monotonic() + RENAME_S
            while self._now().get("ifname") != state.name and time.monotonic() < limit:
                time.sleep(_POLL_S)
        now = self._now()
        renamed = now.get("ifname") != state.name
        readdressed = (now.get("address") or "") != state.mac and not uppers.decides(state.port)
        if (renamed or readdressed) and now["flags"] & _IFF_UP:
            self._do(f"{state.name} cannot be changed", self.route.link, "set", index=self.index, state="down")
        if renamed:
            self._do(f"{now.get('ifname')} is not called {state.name}", self.route.link, "set", index=self.index,
                     ifname=state.name)
        if readdressed:
            self._do(f"{state.name} has not its MAC address {state.mac}", self.route.link, "set", index=self.index,
                     address=state.mac)
        if now.get("mtu") != state.mtu:
            self._do(f"{state.name} has not its MTU {state.mtu}", self.route.link, "set", index=self.index, mtu=state.mtu)
        if now.get("txqlen") != state.queue_frames:
            self._do(f"{state.name} has not its queue length", self.route.link, "set", index=self.index,
                     txqlen=state.queue_frames)
        if state.alias and now.get("ifalias") != state.alias:
            self._do(f"{state.name} has not its alias", self.route.link, "set", index=self.index, ifalias=state.alias)

    def _now(self, index: int | None = None) -> Any:
        (link,) = self.route.link("get", index=index or self.index)
        return link

    def _settings(self) -> None:
        name = self._now().get("ifname")
        for key, value in self.state.settings.items():
            family, _, leaf = key.partition("/")
            path = _SYSCTL / family / "conf" / name / leaf
            try:
                if path.read_text().strip() != value:
                    path.write_text(value)
            except OSError as error:
                self.complaints.append(f"{path} is not {value}: {error.strerror}")

    def _address(self, address: KernelAddress) -> None:
        valid, preferred = (self._remaining(seconds) for seconds in (address.valid_s, address.preferred_s))
        if valid == 0:
            return      # its lease ended while we had the device
        wanted: dict[str, Any] = {
            "family": _AF[address.parsed.version], "prefixlen": address.parsed.network.prefixlen, "scope": address.scope,
            "local": str(address.parsed.ip), "address": address.peer or str(address.parsed.ip),
            "flags": address.flags & _SETTABLE_FLAGS, "broadcast": address.broadcast, "label": self._label(address.label),
            "rt_priority": address.metric, "proto": address.protocol}
        if valid is not None or preferred is not None:
            valid = _FOREVER if valid is None else valid
            wanted |= {"valid_lft": valid, "preferred_lft": valid if preferred is None else min(preferred, valid)}
        self._do(f"{self.state.name} has not its address {address.address}", self.route.addr, "add", index=self.index,
                 **{key: value for key, value in wanted.items() if value is not None})

    def _label(self, label: str | None) -> str | None:
        """Labels begin with the interface's name, which may be another one now."""
        return label if label and label.partition(":")[0] == self._now().get("ifname") else None

    def _remaining(self, seconds: int | None) -> int | None:
        return None if seconds is None else max(0, seconds - self.passed_s)

    def _route(self, route: KernelRoute) -> None:
        if route.expires_s and route.expires_s <= self.passed_s:
            return
        what = f"the route to {route.to} over {self.state.name} is missing"
        hops = [self._way(hop, route.version) for hop in route.hops]
        if None in hops:
            gone = ", ".join(str(hop.interface) for hop, way in zip(route.hops, hops, strict=True) if way is None)
            self.complaints.append(f"{what}: its other way {gone} is gone")
            return
        to = ipaddress.ip_network(route.to)
        wanted: dict[str, Any] = {
            "family": _AF[route.version], "dst_len": to.prefixlen, "table": route.table, "proto": route.protocol,
            "scope": route.scope, "tos": route.tos, "type": _RTN_UNICAST, "priority": route.metric or None,
            "prefsrc": route.source, "metrics": dict(route.metrics) or None, "pref": route.preference or None,
            "dst": str(to.network_address) if to.prefixlen else None}
        if route.expires_s:
            wanted["expires"] = (route.expires_s - self.passed_s).to_bytes(4, "little")
        if len(hops) == 1:
            wanted |= {key: value for key, value in hops[0].items() if key != "hops"}
        else:
            wanted["multipath"] = hops
        patience = DAD_S if route.version == 6 and route.source else 0.0
        # What is left of a route with several ways while one was gone makes room for the whole.
        self._do(what, self.route.route, "add" if len(hops) == 1 else "replace", patience_s=patience,
                 **{key: value for key, value in wanted.items() if value is not None})

    def _way(self, hop: Hop, version: int) -> dict[str, Any] | None:
        """One hop as netlink wants it; None when its interface is gone."""
        found = [self.index] if hop.interface is None else self.route.link_lookup(ifname=hop.interface)
        if not found:
            return None
        way: dict[str, Any] = {"oif": found[0], "flags": hop.flags, "hops": hop.weight - 1}
        if hop.gateway and version == 4 and ":" in hop.gateway:
            way["via"] = {"family": _AF[6], "addr": hop.gateway}
        elif hop.gateway:
            way["gateway"] = hop.gateway
        return way

    def _do(self, complaint: str, verb: Callable[..., Any], *words: str, patience_s: float = 0.0, **fields: Any) -> None:
        """One request; what exists already is as good as made."""
        limit = time.monotonic() + patience_s
        while True:
            try:
                verb(*words, **fields)
                return
            except NetlinkError as error:
                if error.code == errno.EEXIST:
                    return
                if time.monotonic() >= limit:
                    self.complaints.append(f"{complaint}: {error.args[1]}")
                    return
            time.sleep(10 * _POLL_S)


def _in_order(addresses: tuple[KernelAddress, ...]) -> list[KernelAddress]:
    """So that the kernel lists them as before: IPv4 in the order they came, IPv6 the other way round."""
    return [*(a for a in addresses if a.parsed.version == 4), *reversed([a for a in addresses if a.parsed.version == 6])]


def _index(route: IPRoute, name: str) -> int:
    found = route.link_lookup(ifname=name)
    if not found:
        raise HostNetworkError(f"the interface {name} does not exist")
    return found[0]
