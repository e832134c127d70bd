"""What hangs on network interfaces that a userspace driver cannot carry on with, and whether it comes back afterwards.

Interfaces made on a card go when its kernel driver goes. VLANs are made again when the card is given back; the rest is
lost for good, as are queueing disciplines, filters and XDP programs, so an operator is told before it is.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from pyroute2 import IPRoute

_INGRESS: Final = frozenset({"ingress", "clsact"})
_PAIRS: Final = frozenset({"veth", "netkit"})
"""Their link is their other end, on which they are not made."""


@dataclass(frozen=True, slots=True)
class Hangers:
    """What was made on one interface: `vlans` by name, `lost` in words."""

    vlans: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


NOTHING: Final = Hangers()


def hangers() -> Mapping[int, Hangers]:
    """By the index of the interface; one on which nothing hangs is left out. Blocks for some milliseconds."""
    def call() -> Mapping[int, Hangers]:
        with IPRoute() as netlink:
            return sorted_out(list(netlink.get_links()), netlink.get_qdiscs())

    with ThreadPoolExecutor(1) as executor:      # pyroute2 cannot run in a thread where a loop runs already
        return executor.submit(call).result()


def sorted_out(links: Iterable[Any], qdiscs: Iterable[Any]) -> dict[int, Hangers]:
    """What netlink tells of links and queueing disciplines, by the interface it hangs on."""
    names = {link["index"]: link.get("ifname") for link in links}
    vlans: dict[int, list[int]] = {}
    lost = _disciplines(qdiscs)
    for link in links:
        if (link.get("xdp") or {}).get("attached"):
            lost.setdefault(link["index"], []).append("an XDP program")
        kind = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or ""
        for below in _below(link, kind):
            if kind == "vlan":
                vlans.setdefault(below, []).append(link["index"])
            else:
                lost.setdefault(below, []).append(f"{names[link['index']]} ({kind})")
    return {index: Hangers(tuple(names[vlan] for vlan in vlans.get(index, ())), tuple(_lost(index, lost, vlans, names)))
            for index in {*vlans, *lost}}


def _lost(index: int, own: Mapping[int, list[str]], vlans: Mapping[int, list[int]], names: Mapping[int, str]) -> Iterator[str]:
    """What is lost with an interface: its own, and that of its VLANs, which are made again without what is on them."""
    yield from own.get(index, ())
    for vlan in vlans.get(index, ()):
        for what in _lost(vlan, own, vlans, names):
            yield f"{what} on {names[vlan]}"


def _below(link: Any, kind: str) -> Iterator[int]:
    """The interfaces that this one goes with: IFLA_LINK of our namespace, and a VXLAN's device."""
    if kind in _PAIRS:
        return
    if kind and link.get("link") and link.get("link") != link["index"] and link.get("link_netnsid") is None:
        yield link.get("link")
    elif kind == "vxlan" and (below := (link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA") or {}).get("vxlan_link")):
        yield below


def _disciplines(qdiscs: Iterable[Any]) -> dict[int, list[str]]:
    """Those that somebody has set: the kernel gives those it makes by itself no handle."""
    found: dict[int, dict[str, None]] = {}
    for qdisc in qdiscs:
        if qdisc["handle"]:
            kind = qdisc.get("kind")
            what = f"filters on what comes in ({kind})" if kind in _INGRESS else f"the queueing discipline {kind}"
            found.setdefault(qdisc["index"], {})[what] = None
    return {index: list(words) for index, words in found.items()}
