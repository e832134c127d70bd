"""How the rows of all methods call things."""

from importlib import metadata

# Verdicts that are no drops: the frame did what it came for.
USEFUL_ENDS = frozenset({"delivered", "answered", "forwarded"})
LOOPBACK_INDEX = 0
_HALF = 0xFFFFFFFF


def version() -> str:
    """The version of the installed package."""
    try:
        return metadata.version("rustosd")
    except metadata.PackageNotFoundError:
        return "unknown"


def endpoint(host: str | None, port: int) -> str:
    """`192.0.2.1:80`, `[2001:db8::1]:80` (RFC 5952 6), or `*:80` for any address of both families."""
    if host is None:
        return f"*:{port}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def connection_id(handle: int) -> str:
    """How operators call a connection, for as long as it lives."""
    return f"{handle & _HALF}.{handle >> 32}"


def handle_of(identity: str) -> int:
    """The other way round, for two numbers with a point between them. Raises ValueError for what no connection is called."""
    index, generation = map(int, identity.split("."))
    if index > _HALF or generation > _HALF:
        raise ValueError(f"no connection is called {identity}")
    return index | generation << 32
