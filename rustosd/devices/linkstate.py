"""What a network interface was to the kernel, as data: enough for the journal to put it back, readable for a person."""

import ipaddress

import msgspec

MAIN_TABLE = 254        # linux/rtnetlink.h

# linux/if_addr.h
PERMANENT = 0x80
SECONDARY = TEMPORARY = 0x01
DAD_FAILED = 0x08
NO_PREFIX_ROUTE = 0x200


class _Fact(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    pass


class KernelAddress(_Fact):
    """One address. Lifetimes in seconds, as they were when it was read; None is for ever."""

    address: str
    """With its prefix length: "192.0.2.1/24"."""
    peer: str | None = None
    """The other end of a point-to-point address; the prefix length is then the peer's."""
    broadcast: str | None = None
    label: str | None = None
    scope: int = 0
    flags: int = 0
    metric: int | None = None
    protocol: int | None = None
    valid_s: int | None = None
    preferred_s: int | None = None

    @property
    def parsed(self) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
        return ipaddress.ip_interface(self.address)


class Hop(_Fact):
    """One way a route leads. `interface` None is the interface whose state this is."""

    gateway: str | None = None
    interface: str | None = None
    flags: int = 0
    weight: int = 1


class KernelRoute(_Fact):
    """One unicast route; several hops are a multipath route."""

    to: str
    """"192.0.2.0/24"; a default route is "0.0.0.0/0" or "::/0"."""
    hops: tuple[Hop, ...]
    table: int = MAIN_TABLE
    metric: int = 0
    protocol: int = 0
    scope: int = 0
    tos: int = 0
    source: str | None = None
    metrics: dict[str, int] = {}
    """The kernel's RTAX_... by name: mtu, advmss, initcwnd and so on."""
    preference: int = 0
    """IPv6 router preference (RFC 4191)."""
    expires_s: int = 0
    """0: never."""

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.to else 4


class Port(_Fact):
    """Being a port of a bridge, a bond or the like."""

    master: str
    kind: str = ""
    """"bridge", "bond"."""
    mac: str = ""
    """The master's, which a bond forgets with its last port."""
    settings: dict[str, str] = {}
    """A bridge's of this port: "path_cost", "hairpin_mode"."""


class Vlan(_Fact, kw_only=True):
    """A VLAN interface, which goes with the interface it is made on."""

    id: int
    protocol: int = 0x8100
    """Its EtherType: 0x8100 (802.1Q) or 0x88a8 (802.1ad)."""
    flags: int = 0
    """VLAN_FLAG_..., linux/if_vlan.h."""
    ingress: tuple[tuple[int, int], ...] = ()
    egress: tuple[tuple[int, int], ...] = ()
    link: "LinkState"


class LinkState(_Fact):
    """All of one interface that is put back when its device is given back."""

    name: str
    mac: str
    mtu: int
    up: bool
    read_at_s: float
    """CLOCK_BOOTTIME when it was read: lifetimes count from there."""
    queue_frames: int = 1000
    alias: str | None = None
    port: Port | None = None
    addresses: tuple[KernelAddress, ...] = ()
    routes: tuple[KernelRoute, ...] = ()
    settings: dict[str, str] = {}
    """What differs from the defaults below /proc/sys/net: "ipv4/rp_filter", "ipv6/accept_ra"."""
    hardware: dict[str, str] = {}
    """What ethtool sets: see `rustosd.devices.ethtool`."""
    vlans: tuple[Vlan, ...] = ()
