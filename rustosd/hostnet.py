"""The kernel's side of a TAP: its address, MTU and IP addresses on this host, and nothing else of the host.

All settings belong to the interface, and the interface disappears with the process that holds the TAP; so there is
nothing to restore but the interface itself. Functions block for some milliseconds and may be called from anywhere.
"""

import errno
import hashlib
import ipaddress
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from drivers.tap import Tap
from rustosd import netlink
from rustosd.journal import Entry, Journal, TapMade

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

ALIAS = "rustosd"
"""Marks an interface as ours, so that `remove` never deletes one that somebody else made under the same name."""
QUEUE_FRAMES = 4096
"""What the kernel keeps for us while we are busy. By default 1000: eight plain TCP streams lost frames in masses."""
_SYSCTL = Path("/proc/sys/net/ipv6/conf")
_IFA_F_NODAD = 0x02
_RTN_UNICAST = 1
_RT_TABLE_LOCAL = 255
_AF_INET6 = 10


class HostNetworkError(Exception):
    """The host's network does not allow what was asked; the message says why and what to change."""


class HostTap:
    """A TAP with its kernel side configured, entered in the journal. Raises what keeps it from being made, and then
    leaves nothing behind: HostNetworkError, OSError, ValueError."""

    def __init__(self, journal: Journal, name: str, *, mtu: int, addresses: Sequence[Interface], offload: bool = True,
                 mac: bytes | None = None) -> None:
        """`addresses` are the kernel's. `mac` is the stack's (default: stable for this machine and name)."""
        check_free(addresses)
        self._name, self._mac, self._mtu, self._offload = name, mac or stable_mac(name, "stack"), mtu, offload
        self._journal = journal
        self._entry = journal.take(TapMade(name))
        try:
            self.nic = self._made(addresses)
        except BaseException:
            journal.given_back(self._entry)
            raise

    def _made(self, addresses: Sequence[Interface]) -> Tap:
        nic = Tap.open(self._name, self._mac, self._mtu, self._offload)
        try:
            configure(nic.name, mac=stable_mac(self._name, "host"), mtu=self._mtu, addresses=addresses)
        except BaseException:
            nic.close()
            raise
        return nic

    def make_again(self, addresses: Sequence[Interface]) -> None:
        """Somebody has deleted the interface, and `nic` is detached from the pump: there is another then.

        Raises as the constructor does; then try again later.
        """
        self.nic.close()
        check_free(addresses)
        self.nic = self._made(addresses)

    def close(self) -> None:
        """Close the NIC, which takes the interface with it. Detach it from the pump before. May be called twice."""
        self.nic.close()
        if self._entry:
            remove(self.nic.name)
            self._journal.given_back(self._entry)
            self._entry = 0


def stable_mac(name: str, side: str) -> bytes:
    """A locally administered unicast MAC address that is the same at every start on this machine.

    `name` is the interface's, `side` tells the two ends of its wire apart ("host" or "stack").
    """
    # The machine id is confidential (machine-id(5)), hence a keyed hash; the boot id at least outlives the daemon.
    machine = _machine_id().encode()
    digest = hashlib.blake2b(f"{name}\0{side}".encode(), digest_size=6, key=machine, person=b"rustosd mac").digest()
    return bytes([digest[0] & 0xFC | 0x02]) + digest[1:]


def check_free(addresses: Iterable[Interface], but: str = "") -> None:
    """Make sure that the host uses none of these subnets. Raises HostNetworkError that names the interface that does.

    Default routes do not count, nor what is as good as one (a prefix up to /1, or /3 for IPv6), nor link-local subnets, nor
    what is of the interface `but`.
    """
    used = netlink.ask(lambda route: _subnets_in_use(route, but))
    for address in addresses:
        for network, what in used:
            if network.version == address.version and network.overlaps(address.network):
                raise HostNetworkError(f"the subnet {address.network} overlaps {what} on this host: configure another "
                                       "subnet for both ends of the TAP")


def configure(name: str, *, mac: bytes, mtu: int, addresses: Sequence[Interface]) -> None:
    """Give the interface `name` its MAC, MTU and addresses and bring it up. It is usable when this returns.

    Raises HostNetworkError, and leaves the interface to be removed by the caller.
    """
    if any(address.version == 6 for address in addresses) and not _SYSCTL.exists():
        raise HostNetworkError("this kernel has no IPv6: remove the IPv6 addresses from the configuration, or boot "
                               "without ipv6.disable=1")
    _quiet_ipv6(name, wanted=any(address.version == 6 for address in addresses))

    def apply(route: IPRoute) -> None:
        index = _index(route, name)
        route.link("set", index=index, address=mac.hex(":"), mtu=mtu, txqlen=QUEUE_FRAMES, ifalias=ALIAS)
        for address in addresses:
            flags = {"flags": _IFA_F_NODAD} if address.version == 6 else {}
            route.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen, **flags)
        route.link("set", index=index, state="up")

    try:
        netlink.ask(apply)
    except NetlinkError as error:
        advice = "run as root or with CAP_NET_ADMIN" if error.code == errno.EPERM else "check mtu and addresses"
        raise HostNetworkError(f"cannot configure the interface {name}: {error.args[1]}; {advice}") from None


def change_addresses(name: str, add: Sequence[Interface], remove: Sequence[Interface]) -> None:
    """Give the interface `name` more addresses and take others away; what is so already is no error.

    Raises HostNetworkError; then all of it may be half done, and the same call the other way round undoes it.
    """
    check_free(add, but=name)
    if any(address.version == 6 for address in add):
        _quiet_ipv6(name, wanted=True)

    def apply(route: IPRoute) -> None:
        index = _index(route, name)
        for address in add:
            flags = {"flags": _IFA_F_NODAD} if address.version == 6 else {}
            _unless(errno.EEXIST, route.addr, "add", index=index, address=str(address.ip),
                    prefixlen=address.network.prefixlen, **flags)
        for address in remove:
            _unless(errno.EADDRNOTAVAIL, route.addr, "del", index=index, address=str(address.ip),
                    prefixlen=address.network.prefixlen)

    try:
        netlink.ask(apply)
    except NetlinkError as error:
        raise HostNetworkError(f"cannot change the addresses of the interface {name}: {error.args[1]}; see: ip addr show "
                               f"dev {name}") from None


def _unless(code: int, act: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    try:
        act(*arguments, **options)
    except NetlinkError as error:
        if error.code != code:
            raise


def remove(name: str) -> None:
    """Delete the interface if it still exists and `configure` has marked it as ours; else do nothing."""

    def delete(route: IPRoute) -> None:
        for index in route.link_lookup(ifname=name):
            (link,) = route.link("get", index=index)
            if link.get("ifalias") == ALIAS:
                route.link("del", index=index)

    netlink.ask(delete)


def undo(entry: Entry) -> None:
    """Give back to the host what the journal says was taken from its network."""
    if isinstance(entry, TapMade):
        remove(entry.name)


def _index(route: IPRoute, name: str) -> int:
    found = route.link_lookup(ifname=name)
    if not found:
        raise HostNetworkError(f"the interface {name} does not exist")
    return found[0]


def _subnets_in_use(route: IPRoute, but: str) -> list[tuple[Network, str]]:
    """The host's subnets by address and by route, each with the words that describe it."""
    names = {link["index"]: link.get("ifname") for link in route.get_links()}
    used: list[tuple[Network, str]] = []
    for row in route.get_addr():
        if names.get(row["index"]) == but:
            continue
        # On a point-to-point link IFA_ADDRESS is the peer's and IFA_LOCAL ours.
        local, peer = row.get("local") or row.get("address"), row.get("address")
        for text in {local, peer}:
            network = ipaddress.ip_network(f"{text}/{row['prefixlen']}", strict=False)
            used.append((network, f"the address {local}/{row['prefixlen']} of {names[row['index']]}"))
    for row in route.get_routes():
        if row["type"] != _RTN_UNICAST or row.get("table") == _RT_TABLE_LOCAL or not row.get("dst"):
            continue
        if names.get(row.get("oif")) == but:
            continue
        network = ipaddress.ip_network(f"{row.get('dst')}/{row['dst_len']}")
        used.append((network, f"the route to {network} by {names.get(row.get('oif'), 'several interfaces')}"))
    return [(network, what) for network, what in used if _counts(network)]


def _counts(network: Network) -> bool:
    as_good_as_default = 1 if network.version == 4 else 3
    return network.prefixlen > as_good_as_default and not network.is_link_local and not network.is_multicast


def _quiet_ipv6(name: str, *, wanted: bool) -> None:
    """Switch off what IPv6 would do here by itself: nothing without addresses of ours, else no router, no waiting.

    The link-local address stays, for the kernel forwards to us only when it can ask for our MAC from one.
    """
    directory = _SYSCTL / name
    values = {"disable_ipv6": "0", "accept_ra": "0", "accept_dad": "0"} if wanted else {"disable_ipv6": "1"}
    for key, value in values.items():
        try:
            (directory / key).write_text(value)
        except FileNotFoundError:
            if wanted:
                raise HostNetworkError(f"the interface {name} has no IPv6 settings: {directory} is missing") from None
        except OSError as error:
            raise HostNetworkError(f"cannot write {directory / key}: {error.strerror}; /proc/sys must be writable "
                                   "(in a container, run privileged)") from None


def _machine_id() -> str:
    for path in "/etc/machine-id", "/var/lib/dbus/machine-id", "/proc/sys/kernel/random/boot_id":
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text and text != "uninitialized":
            return text
    raise HostNetworkError("cannot read /proc/sys/kernel/random/boot_id: is /proc mounted?")
