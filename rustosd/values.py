"""Text that was checked: addresses, prefixes, names. Each a `str` in its canonical form; bad text is a ValueError."""

import ipaddress
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from drivers.pci.sysfs import Bdf

SUN_PATH_OCTETS = 107   # unix(7): sockaddr_un.sun_path holds 108 with its zero
PROCESSOR_MOST = 8191   # the kernel's, of x86-64
_RANGE = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", re.ASCII)
_QUOTA = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(%)?", re.ASCII)
_SIZE = re.compile(r"(0x[0-9a-f]+|[0-9]+)(?:([kmgtp])(?:i?b)?|b)?", re.IGNORECASE | re.ASCII)


class Address(str):
    """An IP address of either family, `10.77.0.1` or `fd77::1`."""

    __slots__ = ()

    def __new__(cls, text: str):
        try:
            return super().__new__(cls, ipaddress.ip_address(text))
        except ValueError:
            raise ValueError(f"{text!r} is no IP address") from None

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self else 4


class Cidr(str):
    """The address of an interface with the length of its prefix, `10.77.0.2/24`."""

    __slots__ = ()

    def __new__(cls, text: str):
        try:
            parsed = ipaddress.ip_interface(text)
        except ValueError:
            raise ValueError(f"{text!r} is no address with a prefix length, such as 10.77.0.2/24") from None
        if "/" not in text:
            length = 64 if parsed.version == 6 else 24
            raise ValueError(f"{text!r} lacks its prefix length, for example {text}/{length}")
        if parsed.is_multicast or parsed.is_unspecified or str(parsed.ip) == "255.255.255.255":
            raise ValueError(f"{text!r} cannot be the address of an interface")
        return super().__new__(cls, parsed)

    @property
    def parsed(self) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
        return ipaddress.ip_interface(str(self))


class Prefix(str):
    """The destination of a route, `192.0.2.0/24`; an address alone is a host route, `default` is 0.0.0.0/0."""

    __slots__ = ()

    def __new__(cls, text: str):
        try:
            return super().__new__(cls, ipaddress.ip_network("0.0.0.0/0" if text == "default" else text))
        except ValueError as error:
            if "host bits" in str(error):
                exact = ipaddress.ip_network(text, strict=False)
                raise ValueError(f"{text!r} has bits set behind the prefix; did you mean {exact}?") from None
            raise ValueError(f"{text!r} is no prefix, such as 192.0.2.0/24 or 2001:db8::/32") from None

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self else 4


class HostPort(str):
    """An IP address and a TCP port to listen on, `127.0.0.1:9477` or `[::1]:9477`."""

    __slots__ = ()

    def __new__(cls, text: str):
        host, _, port = text.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        try:
            address = ipaddress.ip_address(bare)
            if (address.version == 6) != (bare != host) or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
                raise ValueError
        except ValueError:
            raise ValueError(f"{text!r} is no address and port, such as 127.0.0.1:9477 or [::1]:9477") from None
        return super().__new__(cls, f"[{address}]:{int(port)}" if address.version == 6 else f"{address}:{int(port)}")

    @property
    def host(self) -> str:
        return self.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.rpartition(":")[2])


class Mac(str):
    """A unicast Ethernet address, `02:00:5e:10:00:01`."""

    __slots__ = ()

    def __new__(cls, text: str):
        if not re.fullmatch(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}", text):
            raise ValueError(f"{text!r} is no MAC address; write six octets as 02:00:5e:10:00:01")
        octets = bytes.fromhex(text.replace(":", "").replace("-", ""))
        if octets[0] & 1:
            raise ValueError(f"{text!r} is a multicast MAC address; clear the lowest bit of its first octet")
        if not any(octets):
            raise ValueError(f"{text!r} belongs to nobody; write six octets as 02:00:5e:10:00:01")
        return super().__new__(cls, octets.hex(":"))

    @property
    def octets(self) -> bytes:
        return bytes.fromhex(self.replace(":", ""))


class PciAddress(str):
    """Segment, bus, device and function of a PCI device, `0000:03:00.0`; the segment may be left out."""

    __slots__ = ()

    def __new__(cls, text: str):
        return super().__new__(cls, Bdf.parse(text))


class InterfaceName(str):
    """A name the kernel takes for an interface: 1 to 15 letters, digits and `_.-`."""

    __slots__ = ()

    def __new__(cls, text: str):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}", text):
            raise ValueError(f"{text!r} is no interface name: 1 to 15 letters, digits, _, . and -, such as rustos0")
        return super().__new__(cls, text)


class ExportName(str):
    """What NBD clients ask for: 1 to 255 octets of printable text."""

    __slots__ = ()

    def __new__(cls, text: str):
        if not text.isprintable() or not 1 <= len(text.encode()) <= 255:
            raise ValueError(f"{text!r} is no name of an export: 1 to 255 octets of printable text, such as disk0")
        return super().__new__(cls, text)


class FilePath(str):
    """The absolute path of a file."""

    __slots__ = ()

    def __new__(cls, text: str):
        if not PurePosixPath(text).is_absolute() or "\0" in text:
            raise ValueError(f"{text!r} is no absolute path, such as /run/rustosd/control.sock")
        return super().__new__(cls, text)


class SocketPath(FilePath):
    """The absolute path of a unix socket, at most 107 octets long."""

    __slots__ = ()

    def __new__(cls, text: str):
        if len(text.encode()) > SUN_PATH_OCTETS:
            raise ValueError(f"a socket's path has at most {SUN_PATH_OCTETS} octets, this one {len(text.encode())}")
        return super().__new__(cls, text)


class Size(str):
    """An amount of octets in words, `10GiB`; at least 1."""

    __slots__ = ()

    def __new__(cls, text: str):
        if parse_size(text) == 0:
            raise ValueError(f"{text!r} is nothing at all")
        return super().__new__(cls, text.strip())

    @property
    def octets(self) -> int:
        return parse_size(self)


class DiskName(str):
    """What a disk is called: 1 to 32 letters, digits and `_.-`."""

    __slots__ = ()

    def __new__(cls, text: str):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}", text):
            raise ValueError(f"{text!r} is no name of a disk: 1 to 32 letters, digits, _, . and -, such as disk0")
        return super().__new__(cls, text)


class Processors(str):
    """Numbers of processors, `0-1,3`; empty: none are named."""

    __slots__ = ()

    def __new__(cls, text: str):
        numbers: set[int] = set()
        for part in filter(None, (part.strip() for part in text.split(","))):
            match = _RANGE.fullmatch(part)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if not first <= last <= PROCESSOR_MOST:
                raise ValueError(f"{text!r} names no processors; write numbers and ranges, such as 0-1,3")
            numbers.update(range(first, last + 1))
        return super().__new__(cls, spoken_processors(numbers))

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(number for part in filter(None, self.split(","))
                     for number in range(int(part.partition("-")[0]), int(part.rpartition("-")[2]) + 1))


def spoken_processors(numbers: Iterable[int]) -> str:
    """`0-1,3` for 0, 1 and 3."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


class CpuQuota(str):
    """How much processor time there is at most: `50%` or `1.5`, of one processor; `none` and empty: no limit."""

    __slots__ = ()

    def __new__(cls, text: str):
        match = _QUOTA.fullmatch(text.strip())
        if text.strip() not in ("", "none"):
            percent = float(match[1]) * (1 if match[2] else 100) if match else 0
            if not 1 <= percent <= 100 * (PROCESSOR_MOST + 1):
                raise ValueError(f"{text!r} is no amount of processor time, such as 50% or 1.5 (of one processor); least is 1%")
        return super().__new__(cls, text.strip())

    @property
    def percent(self) -> float:
        match = _QUOTA.fullmatch(self)
        return float(match[1]) * (1 if match[2] else 100) if match else 0.0


def parse_size(text: str) -> int:
    """An amount of octets, `4096`, `0x1000`, `64K`, `1MiB`; a K is 1024. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no amount of octets, such as 4096, 64K or 1MiB")
    number, unit = match.groups()
    value = int(number, 16 if number[:2].lower() == "0x" else 10) << 10 * (" kmgtp".index(unit.lower()) if unit else 0)
    if value >= 1 << 62:
        raise ValueError(f"{text!r} is more octets than any disk has")
    return value
