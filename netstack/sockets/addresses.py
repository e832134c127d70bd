"""Host names, literals and the address tuples of the socket API; no I/O here."""

import itertools
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any

AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]    # one entry of getaddrinfo


def family_of(host: str) -> int:
    """AF_INET or AF_INET6 of an address literal (a zone such as `%eth0` may follow), 0 when `host` is a name."""
    if ":" in host:
        family, literal = socket.AF_INET6, host.partition("%")[0]
    else:
        family, literal = socket.AF_INET, host
    try:
        socket.inet_pton(family, literal)
    except (OSError, ValueError):       # ValueError: a NUL inside
        return 0
    return family


def socket_address(host: str, port: int) -> tuple[Any, ...]:
    """(host, port) as the socket API writes it: a 4-tuple with flow and scope for IPv6."""
    return (host, port, 0, 0) if ":" in host else (host, port)


def port_number(port: int | str | bytes | None) -> int | None:
    """The port as a number, None when it is a service name for the resolver. Raises OverflowError outside 0-65535."""
    if port is None or port == "" or port == b"":
        return 0
    if not isinstance(port, int):
        text = port.decode("ascii") if isinstance(port, bytes) else port
        if not (text.isascii() and text.isdigit()):
            return None
        port = int(text)
    if not 0 <= port <= 65535:
        raise OverflowError(f"port must be 0-65535, not {port}")
    return port


def literal(host: str, port: int | str | None, family: int, kind: int) -> list[AddressInfo] | None:
    """What getaddrinfo would say of an address literal, without asking; None when the resolver is needed."""
    number = port_number(port)
    found = family_of(host)
    if not found or number is None or (family and family != found):
        return None
    protocol = socket.IPPROTO_TCP if kind == socket.SOCK_STREAM else socket.IPPROTO_UDP
    return [(found, kind, protocol, "", socket_address(host, number))]


def interleave(infos: Sequence[AddressInfo], first_family_count: int) -> list[AddressInfo]:
    """Alternate the families, the first family `first_family_count` times at the start (RFC 8305 4)."""
    by_family: dict[int, list[AddressInfo]] = {}
    for info in infos:
        by_family.setdefault(info[0], []).append(info)
    lists = list(by_family.values())
    head = lists[0][:first_family_count - 1] if first_family_count > 1 else []
    if head:
        del lists[0][:first_family_count - 1]
    rounds = itertools.zip_longest(*lists)
    return head + [info for row in rounds for info in row if info is not None]


def text(host: str | None, port: int) -> str:
    """host:port for people; IPv6 in brackets."""
    if not host:
        return f"*:{port}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def fate(code: int, what: str) -> OSError:
    """The exception an errno stands for (ConnectionRefusedError, TimeoutError ...), saying what was attempted."""
    return OSError(code, f"{what}: {os.strerror(code).lower()}")


def combined(errors: Iterable[OSError]) -> OSError:
    """One exception for several failed attempts: the first when all say the same, else all texts in one OSError."""
    errors = list(errors)
    if len({str(error) for error in errors}) == 1:
        return errors[0]
    return OSError("Multiple exceptions: " + ", ".join(str(error) for error in errors))
