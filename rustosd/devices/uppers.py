"""VLANs made on an interface, and the bridge or bond it is a port of: read, and made again.

What else can be made on one (macvlan, VXLAN, queueing disciplines) is not made again; `drivers.pci.unkept` names it first.
"""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from pyroute2 import IPRoute

from rustosd.devices.linkstate import LinkState, Port, Vlan

VLAN: Final = "vlan"
_CHANGED_MASK: Final = 0x1F     # all of VLAN_FLAG_..., linux/if_vlan.h
_DECIDES: Final = frozenset({"bond", "team"})
"""Masters that give their ports a MAC address of their choice, and take them only while they are down."""
_NET: Final = Path("/sys/class/net")
_DONE: Final = frozenset({"flush", "config_pending", "config_complete", "change_ack", "hold_timer", "forward_delay_timer",
                          "message_age_timer", "state", "designated_bridge", "designated_cost", "designated_port",
                          "designated_root", "port_id", "port_no"})
"""Files of a bridge's port that no person sets: they act, or tell how things stand."""


def read_vlans(route: IPRoute, index: int, read: Callable[[IPRoute, str], LinkState]) -> Iterator[Vlan]:
    """Every VLAN on interface `index`, each with all that `read` finds of it."""
    for link in route.get_links():
        if link.get("link") != index or kind_of(link) != VLAN:
            continue
        data = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
        flags = data.get("vlan_flags") or {}
        yield Vlan(id=data.get("vlan_id"), protocol=data.get("vlan_protocol"), flags=flags.get("flags", 0),
                   ingress=_priorities(data.get("vlan_ingress_qos")), egress=_priorities(data.get("vlan_egress_qos")),
                   link=read(route, link.get("ifname")))


def make_vlan(route: IPRoute, index: int, vlan: Vlan) -> int:
    """Make a VLAN again on interface `index`, or find it made already; its own index. Raises NetlinkError."""
    found = route.link_lookup(ifname=vlan.link.name)
    if not found:
        wanted: dict[str, Any] = {"vlan_id": vlan.id, "vlan_protocol": vlan.protocol, "vlan_flags": (vlan.flags, _CHANGED_MASK)}
        for key, pairs in (("vlan_ingress_qos", vlan.ingress), ("vlan_egress_qos", vlan.egress)):
            if pairs:
                wanted[key] = {"attrs": [("IFLA_VLAN_QOS_MAPPING", {"from": before, "to": after}) for before, after in pairs]}
        route.link("add", ifname=vlan.link.name, kind=VLAN, link=index, **wanted)
        found = route.link_lookup(ifname=vlan.link.name)
    return found[0]


def read_port(route: IPRoute, link: Any, names: dict[int, str]) -> Port | None:
    """What the interface is a port of; None when it is none."""
    master = link.get("master")
    if not master:
        return None
    (above,) = route.link("get", index=master)
    return Port(master=names.get(master) or "", kind=kind_of(above), mac=above.get("address") or "",
                settings=dict(_port_settings(link.get("ifname"))))


def decides(port: Port | None) -> bool:
    """Whether its master decides on the port's MAC address, and wants it down first."""
    return port is not None and port.kind in _DECIDES


def set_port(name: str, port: Port) -> Iterator[str]:
    """Set again what was set of a bridge's port; in words, what cannot be."""
    for leaf, value in port.settings.items():
        path = _NET / name / "brport" / leaf
        try:
            if path.read_text().strip() != value:
                path.write_text(value)
        except OSError as error:
            yield f"{path} is not {value}: {error.strerror}"


def kind_of(link: Any) -> str:
    """"vlan", "bridge", "bond"; empty for a card's own interface."""
    return link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or ""


def _port_settings(name: str) -> Iterator[tuple[str, str]]:
    for path in sorted((_NET / name / "brport").glob("*")):
        try:
            if path.name not in _DONE and path.is_file() and path.stat().st_mode & 0o200:
                yield path.name, path.read_text().strip()
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EACCES, errno.ENOENT):
                raise


def _priorities(nested: Any) -> tuple[tuple[int, int], ...]:
    """Pairs of an 802.1p priority and Linux's own, in the direction of the map."""
    return tuple((pair["from"], pair["to"]) for pair in nested.get_attrs("IFLA_VLAN_QOS_MAPPING")) if nested else ()
