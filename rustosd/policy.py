"""What programs on the stack may connect to, send to and listen on: `[[policy]]`, looked up by who asks.

A policy is for the users and members of groups that it names, the first one in the file counts; and for who asks for it by
its name, which only takes away. A port below 1024 is for root, and for those whose own policy says so, as on Linux. What is
denied is counted by policy. No I/O here but the names of users and groups, once.
"""

import functools
import grp
import ipaddress
import pwd
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Final, Literal, NamedTuple

import msgspec

Protocol = Literal["tcp", "udp"]
PRIVILEGED: Final = "privileged-ports"
"""Whose denials are those of ports that only root has."""
PORTS_OF_ROOT: Final = 1024
VERDICTS_MOST: Final = 4096
"""Destinations of datagrams whose verdict one socket remembers."""

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Ranges = tuple[tuple[int, int], ...]
PolicyName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]


class Ports(str):
    """Ports that may be bound: `80`, `tcp 80,443`, `udp 5000-5999`, `any`."""

    __slots__ = ()

    def __new__(cls, text: str):
        protocol, rest = _protocol_of(text.split())
        if len(rest) != 1:
            raise ValueError(f"{text!r} are no ports, such as 80, tcp 80,443 or udp 5000-5999")
        return super().__new__(cls, " ".join([protocol, _spoken(_ranges(rest[0]))]).strip())

    def allow(self, protocol: Protocol, port: int) -> bool:
        wanted, (ports,) = _protocol_of(self.split())
        return wanted in ("", protocol) and _within(_ranges(ports), port)


class Destination(str):
    """Where connections and datagrams may go: `10.77.0.0/24`, `tcp 10.0.0.0/8 80,443`, `udp any 53`, `fd77::1`."""

    __slots__ = ()

    def __new__(cls, text: str):
        protocol, rest = _protocol_of(text.split())
        if not 1 <= len(rest) <= 2:
            raise ValueError(f"{text!r} is no destination, such as 10.77.0.0/24, tcp 10.0.0.1 80,443 or udp any 53")
        network = _network(rest[0])
        ports = [_spoken(_ranges(rest[1]))] if len(rest) == 2 else []
        where = "any" if network is None else str(network).removesuffix(f"/{network.max_prefixlen}")
        return super().__new__(cls, " ".join([*([protocol] if protocol else []), where, *ports]))

    def allow(self, protocol: Protocol, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> bool:
        wanted, rest = _protocol_of(self.split())
        network = _network(rest[0])
        return (wanted in ("", protocol) and (network is None or (address.version == network.version and address in network))
                and (len(rest) == 1 or _within(_ranges(rest[1]), port)))


def _protocol_of(words: list[str]) -> tuple[str, list[str]]:
    return (words[0], words[1:]) if words and words[0] in ("tcp", "udp") else ("", words)


@functools.lru_cache(maxsize=1024)
def _network(text: str) -> _Network | None:
    if text == "any":
        return None
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        if "host bits" in str(error):
            raise ValueError(f"{text!r} has bits set behind the prefix; did you mean "
                             f"{ipaddress.ip_network(text, strict=False)}?") from None
        raise ValueError(f"{text!r} is no address, no prefix and not any") from None


@functools.lru_cache(maxsize=1024)
def _ranges(text: str) -> _Ranges:
    if text == "any":
        return ((0, 65535),)
    found = []
    for piece in text.split(","):
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", piece)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not 0 < first <= last <= 65535:
            raise ValueError(f"{piece!r} is no port from 1 to 65535 and no range of them, such as 8000-8999")
        found.append((first, last))
    return tuple(found)


def _spoken(ranges: _Ranges) -> str:
    return ",".join("any" if pair == (0, 65535) else str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}-{pair[1]}"
                    for pair in ranges)


def _within(ranges: _Ranges, port: int) -> bool:
    return any(first <= port <= last for first, last in ranges)


class PolicyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One policy; what it leaves out it does not restrict."""

    name: PolicyName
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    connect: tuple[Destination, ...] | None = None
    bind: tuple[Ports, ...] | None = None


def mistakes(policies: Sequence[PolicyConfig]) -> Iterator[tuple[int, str, str]]:
    """(which, key, what is wrong) of what no single field can tell."""
    names: set[str] = set()
    for i, policy in enumerate(policies):
        if policy.name in names:
            yield i, "name", f"{policy.name} is the name of another policy already"
        if policy.name == PRIVILEGED:
            yield i, "name", f"{PRIVILEGED} is what denials without a policy are called; choose another"
        names.add(policy.name)


class Subject(NamedTuple):
    """Who asks."""

    uid: int
    groups: frozenset[int] = frozenset()
    own: str = ""
    """The policy that counts as his own; empty: the first one that is for him."""
    named: tuple[str, ...] = ()
    """Policies he has put himself under besides."""


ROOT: Final = Subject(0)


class Permit:
    """What one subject may. `connect`, `bind` and `listen` give the policy that denies it; None: it is allowed."""

    def __init__(self, own: PolicyConfig | None, others: Sequence[PolicyConfig], privileged: bool) -> None:
        self._own = own
        self._all = [*([own] if own is not None else []), *others]
        self._privileged = privileged
        self.restricts = any(policy.connect is not None for policy in self._all)
        """Whether there is a destination that it denies."""

    def connect(self, protocol: Protocol, host: str, port: int) -> str | None:
        """Also of what is sent as a datagram."""
        if not self.restricts:
            return None
        address = ipaddress.ip_address(host.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        for policy in self._all:
            if policy.connect is not None and not any(each.allow(protocol, address, port) for each in policy.connect):
                return policy.name
        return None

    def bind(self, protocol: Protocol, port: int) -> str | None:
        """Port 0, any free one, is nobody's business until somebody listens there."""
        if port == 0:
            return None
        if (denied := self.listen(protocol, port)) is not None:
            return denied
        if port < PORTS_OF_ROOT and not self._privileged and not self._grants(protocol, port):
            return self._own.name if self._own is not None else PRIVILEGED
        return None

    def listen(self, protocol: Protocol, port: int) -> str | None:
        for policy in self._all:
            if policy.bind is not None and not any(each.allow(protocol, port) for each in policy.bind):
                return policy.name
        return None

    def _grants(self, protocol: Protocol, port: int) -> bool:
        return (self._own is not None and self._own.bind is not None
                and any(each.allow(protocol, port) for each in self._own.bind))


class Policies:
    """All policies of a configuration, and what they have denied so far."""

    def __init__(self, configured: Sequence[PolicyConfig] = (), superusers: Collection[int] = (0,),
                 denied: Counter[tuple[str, str]] | None = None) -> None:
        """`superusers`: who has all ports. Raises ValueError: there is no user or group of a name."""
        self.configured = {policy.name: policy for policy in configured}
        self.denied = Counter() if denied is None else denied
        """By policy and by what it was: connect, send, bind, listen."""
        self._superusers = frozenset(superusers)
        self._users = {name: {_uid(each) for each in policy.users} for name, policy in self.configured.items()}
        self._groups = {name: {_gid(each) for each in policy.groups} for name, policy in self.configured.items()}
        self._permits: dict[Subject, Permit] = {}

    def check_name(self, name: str) -> None:
        """Raises ValueError when there is no such policy."""
        if name not in self.configured:
            raise ValueError(f"there is no policy {name}; there is {', '.join(self.configured) or 'none'}: [[policy]]")

    def permit(self, who: Subject) -> Permit:
        """What somebody may. A policy that has gone since he was put under it allows nothing."""
        found = self._permits.get(who)
        if found is None:
            if len(self._permits) >= VERDICTS_MOST:
                self._permits.clear()
            own = self._named(who.own) if who.own else self._of(who)
            found = self._permits[who] = Permit(own, [self._named(name) for name in who.named], who.uid in self._superusers)
        return found

    def _named(self, name: str) -> PolicyConfig:
        return self.configured.get(name) or PolicyConfig(name=name, connect=(), bind=())

    def _of(self, who: Subject) -> PolicyConfig | None:
        for name, policy in self.configured.items():
            if who.uid in self._users[name] or who.groups & self._groups[name]:
                return policy
        return None


def _uid(name: str) -> int:
    try:
        return int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ValueError(f"there is no user {name}, whom users = ... of a [[policy]] names") from None


def _gid(name: str) -> int:
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {name}, which groups = ... of a [[policy]] names; "
                         f"make it: groupadd {name}") from None
