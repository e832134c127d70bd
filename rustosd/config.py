"""The configuration: TOML in, frozen typed structs out, and one clear line for whatever is wrong with it."""

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import msgspec

from rustosd.values import Address, Cidr, FilePath, InterfaceName, Mac, Prefix, SocketPath

PortNumber = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
BufferOctets = Annotated[int, msgspec.Meta(ge=4096, le=1 << 30)]

IPV6_MIN_MTU = 1280     # RFC 8200 5
IPV4_MIN_MTU = 576      # RFC 1122 3.3.3, what every host can receive
MAX_MTU = 65535


class ConfigError(ValueError):
    """What is wrong with a configuration, as one line: `file:line: key: what, and what to do`."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class StackLimits(_Section):
    """How much the stack may hold. Everything is bounded; what does not fit is refused and counted."""

    max_connections: Count
    max_listeners: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    max_half_open: Count
    max_time_wait: Count
    max_datagram_sockets: Annotated[int, msgspec.Meta(ge=1, le=65536)]
    max_routes: Count
    max_neighbors: Count
    receive_buffer_octets: BufferOctets
    send_buffer_octets: BufferOctets
    buffers_octets: Annotated[int, msgspec.Meta(ge=1 << 20, le=1 << 46)]
    time_wait_s: Annotated[float, msgspec.Meta(ge=0, le=600)]
    icmp_errors_per_second: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
    challenge_acks_per_second: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class PumpConfig(_Section):
    """How the event loop moves frames."""

    busy_poll_us: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class InterfaceConfig(_Section):
    """One interface of the stack and, for a TAP, the kernel's end of it."""

    name: InterfaceName
    kind: Literal["tap"] = "tap"
    mtu: Annotated[int, msgspec.Meta(ge=IPV4_MIN_MTU, le=MAX_MTU)] = 1500
    offload: bool = True
    mac: Mac | None = None
    address: tuple[Cidr, ...] = ()
    gateway: tuple[Address, ...] = ()
    kernel_address: tuple[Cidr, ...] = ()


class RouteConfig(_Section):
    """One static route of the stack: by a gateway, or straight on to an interface."""

    to: Prefix
    via: Address | None = None
    interface: str | None = None
    metric: Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFE)] = 0


class ServiceConfig(_Section):
    enabled: bool
    port: PortNumber


class ServicesConfig(_Section):
    echo: ServiceConfig
    iperf3: ServiceConfig
    http: ServiceConfig


class ControlConfig(_Section):
    socket: SocketPath
    max_clients: Annotated[int, msgspec.Meta(ge=1, le=4096)]


class SocketsConfig(_Section):
    """Sockets for other processes."""

    enabled: bool
    group: str
    max_sockets: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    max_sockets_per_process: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    buffer_octets: Annotated[int, msgspec.Meta(ge=262144, le=1 << 24)]


class MetricsConfig(_Section):
    enabled: bool


class HostConfig(_Section):
    """Where we write down what we took from this machine."""

    journal: FilePath


class LogConfig(_Section):
    level: Literal["debug", "info", "warning", "error"]
    format: Literal["auto", "console", "json"]


class Config(_Section):
    """All of it. Made by `load` and `default`, never changed."""

    stack: StackLimits
    pump: PumpConfig
    interface: tuple[InterfaceConfig, ...]
    service: ServicesConfig
    control: ControlConfig
    sockets: SocketsConfig
    metrics: MetricsConfig
    host: HostConfig
    log: LogConfig
    route: tuple[RouteConfig, ...] = ()


def default_text() -> str:
    """The built-in configuration as commented TOML."""
    return resources.files("rustosd").joinpath("default.toml").read_text()


def default() -> Config:
    """The built-in configuration."""
    return parse(default_text(), "default.toml")


def load(path: str | Path | None) -> Config:
    """The configuration in a file, completed from the built-in one; None: the built-in one.

    Raises ConfigError, also when the file cannot be read.
    """
    if path is None:
        return default()
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; `rustosd config default` prints one to start from") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None
    return parse(text, str(path))


def parse(text: str, name: str) -> Config:
    """The configuration in a text, completed from the built-in one. Raises ConfigError, which calls it `name`.

    Tables are completed key by key; arrays ([[interface]], [[route]]) are taken whole or not at all.
    """
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_place_of_syntax_error(str(error), name)) from None
    try:
        _refuse_unknown_keys(given, Config, ())
        merged = _completed(given, tomllib.loads(default_text()))
        config = msgspec.convert(merged, Config, dec_hook=_decode)
        _check(config)
    except _Wrong as wrong:
        raise ConfigError(f"{name}:{line_of(text, wrong.path)}: {wrong}") from None
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        keys = _path_of(path)
        where = f"{_spoken(keys)}: " if keys else ""
        raise ConfigError(f"{name}:{line_of(text, keys)}: {where}{_plain(message)}{_choices(keys)}") from None
    return config


def to_toml(config: Config) -> str:
    """A configuration as TOML, all defaults spelled out: `parse(to_toml(c)) == c`."""
    import tomli_w
    values = msgspec.to_builtins(config, enc_hook=str)
    for interface in values["interface"]:
        if interface["mac"] is None:
            del interface["mac"]
    for route in values["route"]:
        for key in [key for key, value in route.items() if value is None]:
            del route[key]
    if not values["route"]:
        del values["route"]
    return tomli_w.dumps(values)


class _Wrong(Exception):
    def __init__(self, path: tuple, message: str):
        self.path = path
        super().__init__(f"{_spoken(path)}: {message}" if path else message)


def _decode(kind: type, value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, got {value!r}")
    return kind(value)


def _completed(given: dict, base: dict) -> dict:
    merged = dict(base)
    for key, value in given.items():
        known = base.get(key)
        merged[key] = _completed(value, known) if isinstance(value, dict) and isinstance(known, dict) else value
    return merged


def _refuse_unknown_keys(given: dict, section: type, path: tuple) -> None:
    fields = {field.name: field.type for field in msgspec.structs.fields(section)}
    for key, value in given.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(fields)}"
            raise _Wrong((*path, key), f"unknown; {hint}")
        kind = fields[key]
        element = getattr(kind, "__args__", (None,))[0]
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            _refuse_unknown_keys(value, kind, (*path, key))
        elif isinstance(value, list) and isinstance(element, type) and issubclass(element, msgspec.Struct):
            for i, item in enumerate(value):
                if isinstance(item, dict):
                    _refuse_unknown_keys(item, element, (*path, key, i))


def _check(config: Config) -> None:
    """What no single field can tell: names twice, addresses twice, gateways nobody can reach."""
    if not config.interface:
        raise _Wrong(("interface",), "at least one [[interface]] is needed")
    names: set[str] = set()
    addresses: set[str] = set()
    for i, interface in enumerate(config.interface):
        path = ("interface", i)
        if interface.name in names:
            raise _Wrong((*path, "name"), f"{interface.name} is the name of another interface already")
        names.add(interface.name)
        _check_interface(interface, path)
        for j, cidr in enumerate(interface.address):
            if str(cidr.parsed.ip) in addresses:
                raise _Wrong((*path, "address", j), f"{cidr.parsed.ip} is there twice")
            addresses.add(str(cidr.parsed.ip))
    _check_routes(config, names)
    services = [(name, getattr(config.service, name)) for name in ("echo", "iperf3", "http")]
    ports: dict[int, str] = {}
    for name, service in services:
        if service.enabled and (other := ports.setdefault(service.port, name)) != name:
            raise _Wrong(("service", name, "port"), f"{service.port} is the port of service {other} already")


def _check_interface(interface: InterfaceConfig, path: tuple) -> None:
    connected = [cidr.parsed.network for cidr in interface.address]
    if any(network.version == 6 for network in connected) and interface.mtu < IPV6_MIN_MTU:
        message = f"{interface.mtu} is too small for IPv6, which needs {IPV6_MIN_MTU} (RFC 8200 5)"
        raise _Wrong((*path, "mtu"), message)
    own = {str(cidr.parsed.ip) for cidr in interface.address}
    for j, cidr in enumerate(interface.kernel_address):
        if str(cidr.parsed.ip) in own:
            message = f"{cidr.parsed.ip} is the stack's own address on this interface"
            raise _Wrong((*path, "kernel_address", j), message)
    families: set[int] = set()
    for j, gateway in enumerate(interface.gateway):
        _check_gateway(gateway, connected, own, (*path, "gateway", j))
        version = ipaddress.ip_address(gateway).version
        if version in families:
            raise _Wrong((*path, "gateway", j), f"a second IPv{version} gateway; use [[route]] with a metric")
        families.add(version)


def _check_gateway(gateway: str, connected: Iterable, own: Iterable[str], path: tuple) -> None:
    address = ipaddress.ip_address(gateway)
    if gateway in own:
        raise _Wrong(path, f"{gateway} is the stack's own address")
    reachable = (address.version == 6 and address.is_link_local) or any(
        address.version == network.version and address in network for network in connected)
    if not reachable:
        prefixes = ", ".join(str(network) for network in connected) or "none"
        raise _Wrong(path, f"{gateway} is in no connected prefix ({prefixes})")


def _check_routes(config: Config, names: set[str]) -> None:
    connected = [cidr.parsed.network for interface in config.interface for cidr in interface.address]
    own = {str(cidr.parsed.ip) for interface in config.interface for cidr in interface.address}
    for i, route in enumerate(config.route):
        path = ("route", i)
        if route.interface is not None and route.interface not in names:
            message = f"no interface is called {route.interface}; there is {', '.join(sorted(names))}"
            raise _Wrong((*path, "interface"), message)
        if route.via is None:
            if route.interface is None:
                raise _Wrong(path, 'needs via = "GATEWAY" or interface = "NAME"')
            continue
        if ipaddress.ip_network(route.to).version != ipaddress.ip_address(route.via).version:
            raise _Wrong((*path, "via"), f"{route.via} is not of the same family as {route.to}")
        _check_gateway(route.via, connected, own, (*path, "via"))


def _plain(message: str) -> str:
    """msgspec's words for a reader of TOML."""
    for theirs, ours in (("`", ""), ("Object missing required field ", "lacks "),
                         ("Expected str | null", "Expected str"), ("array", "a list [...]"), ("object", "a table")):
        message = message.replace(theirs, ours)
    return message[:1].lower() + message[1:]


def _choices(path: tuple) -> str:
    """The values a Literal field takes, to end a message with; nothing for other fields."""
    kind: Any = Config
    for key in path:
        if isinstance(key, int):
            kind = kind.__args__[0]
        else:
            kind = {field.name: field.type for field in msgspec.structs.fields(kind)}[key]
    return f"; one of {', '.join(kind.__args__)}" if get_origin(kind) is Literal else ""


def _path_of(text: str) -> tuple:
    """`$.interface[0].mtu` as ("interface", 0, "mtu")."""
    return tuple(int(index) if index else key for index, key in re.findall(r"\[(\d+)\]|\.(\w+)", text.strip("`")))


def _spoken(path: tuple) -> str:
    """("interface", 0, "mtu") as `interface[0].mtu`."""
    named = (key if isinstance(key, int) or re.fullmatch(r"[\w-]+", key) else repr(key) for key in path)
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in named).lstrip(".")


def _place_of_syntax_error(message: str, name: str) -> str:
    if match := re.fullmatch(r"(.*) \(at line (\d+), column \d+\)", message):
        return f"{name}:{match[2]}: {match[1][:1].lower()}{match[1][1:]}"
    last = re.sub(r" \(at end of document\)", "", message)
    return f"{name}: {last[:1].lower()}{last[1:]}, at the end of the file"


_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+)(?:\s*\.\s*(?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+))*)\s*=""")


def line_of(text: str, path: tuple) -> int:
    """The line, from 1 on, where a path such as ("interface", 0, "mtu") is set; else that of its nearest table."""
    wanted = tuple(path)
    best, best_depth = 1, 0
    table: tuple = ()
    counts: dict[tuple, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = _keys(header[2])
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            else:
                table = _with_indices(table, counts)
            here = table
        elif key := _KEY.match(line):
            here = (*table, *_keys(key[1]))
        else:
            continue
        if len(here) > best_depth and wanted[: len(here)] == here:
            best, best_depth = number, len(here)
    return best


def _keys(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _with_indices(table: tuple, counts: dict[tuple, int]) -> tuple:
    """`[interface.x]` belongs to the latest `[[interface]]`."""
    for end in range(len(table), 0, -1):
        if table[:end] in counts:
            return (*table[:end], counts[table[:end]], *table[end:])
    return table
