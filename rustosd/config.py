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

from rustosd import policy as policies
from rustosd import program_config
from rustosd.scheduling.settings import CLASSES, ClassName
from rustosd.secrets import without_secrets
from rustosd.values import (
    Address,
    Cidr,
    CpuQuota,
    DiskName,
    ExportName,
    FilePath,
    HostPort,
    InterfaceName,
    Mac,
    PciAddress,
    Prefix,
    Processors,
    Size,
    SocketPath,
)

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
    coalesce_us: Annotated[int, msgspec.Meta(ge=0, le=10_000)]


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


RingSize = Annotated[int, msgspec.Meta(ge=64, le=4096, multiple_of=8)]


class E1000Config(_Section):
    """How the driver of Intel's gigabit cards runs one; what is left out is the driver's choice."""

    interrupts: tuple[Literal["msix", "msi", "intx"], ...] = ()
    moderation_us: Annotated[int, msgspec.Meta(ge=0, le=10_000)] | None = None
    rx_ring: RingSize | None = None
    tx_ring: RingSize | None = None
    mac: Mac | None = None


class AhciConfig(_Section):
    """How the driver of AHCI controllers runs one, with all of its disks."""

    interrupts: tuple[Literal["msi", "intx"], ...] = ()
    depth: Annotated[int, msgspec.Meta(ge=1, le=32)] = 32
    timeout_s: Annotated[float, msgspec.Meta(ge=1, le=600)] = 30.0
    link_power: Literal["active", "partial", "slumber"] = "active"
    write_cache: Literal["keep", "on", "off"] = "keep"
    security_freeze: bool = True
    zeroing_trim: Literal["auto", "always", "never"] = "auto"


class DeviceConfig(_Section):
    """One PCI device to take from the kernel, now or when it is plugged in, named in exactly one of three ways."""

    bdf: PciAddress | None = None
    mac: Mac | None = None
    serial: str | None = None
    optional: bool = False
    backend: Literal["vfio", "uio", "vfio-noiommu"] = "vfio"
    force: bool = False
    name: InterfaceName | None = None
    adopt: bool = True
    mtu: Annotated[int, msgspec.Meta(ge=IPV4_MIN_MTU, le=MAX_MTU)] | None = None
    address: tuple[Cidr, ...] = ()
    gateway: tuple[Address, ...] = ()
    e1000: E1000Config = E1000Config()
    ahci: AhciConfig = AhciConfig()

    @property
    def which(self) -> str:
        """The device in words, which no other [[device]] has: "bdf 0000:03:00.0"."""
        key = next(key for key in DEVICE_KEYS if getattr(self, key) is not None)
        return f"{key} {getattr(self, key)}"


DEVICE_KEYS = ("bdf", "mac", "serial")


class RouteConfig(_Section):
    """One static route of the stack: by a gateway, or straight on to an interface."""

    to: Prefix
    via: Address | None = None
    interface: str | None = None
    metric: Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFE)] = 0

    @property
    def which(self) -> str:
        """The route in words: "192.0.2.0/24 via 10.77.0.1 metric 7"."""
        via = f" via {self.via}" if self.via else ""
        interface = f" dev {self.interface}" if self.interface else ""
        return f"{self.to}{via}{interface} metric {self.metric}"


class DiskConfig(_Section):
    """One disk that is kept in a file, in memory, or on a block device of the host."""

    name: DiskName
    kind: Literal["file", "ram", "device"] = "file"
    path: FilePath | None = None
    size: Size | None = None
    sector_octets: Literal[512, 4096] = 512
    read_only: bool = False
    direct: bool = False
    write_in_loop: bool = True
    optional: bool = False
    client_requests_per_s: Annotated[int, msgspec.Meta(ge=0, le=100_000_000)] = 0
    client_octets_per_s: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 0


class ServiceConfig(_Section):
    enabled: bool
    port: PortNumber


class ServicesConfig(_Section):
    echo: ServiceConfig
    iperf3: ServiceConfig
    http: ServiceConfig


class ControlConfig(_Section):
    """The control socket, and who may use it beside root."""

    socket: SocketPath
    max_clients: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    read_group: str
    change_group: str


class SocketsConfig(_Section):
    """Sockets for other processes."""

    enabled: bool
    group: str
    max_sockets: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    max_sockets_per_process: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    buffer_octets: Annotated[int, msgspec.Meta(ge=262144, le=1 << 24)]


class MetricsConfig(_Section):
    """Metrics, and where this machine reaches them and the status page besides the stack's own HTTP service."""

    enabled: bool
    listen: HostPort | None = None
    socket: SocketPath | None = None


class NbdTlsConfig(_Section):
    """TLS for NBD: what the server shows, whom it lets in, and who must use it."""

    mode: Literal["off", "optional", "required"] = "off"
    certificate: FilePath | None = None
    key: FilePath | None = None
    client_ca: FilePath | None = None
    psk: FilePath | None = None


class NbdConfig(_Section):
    """Where NBD clients come in, and what they may use."""

    enabled: bool
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    listen: tuple[HostPort, ...]
    max_connections: Annotated[int, msgspec.Meta(ge=1, le=16384)]
    handshake_s: Annotated[float, msgspec.Meta(gt=0, le=600)]
    stalled_s: Annotated[float, msgspec.Meta(gt=0, le=86400)]
    buffers_octets: Annotated[int, msgspec.Meta(ge=1 << 20, le=1 << 40)]
    max_request_octets: Annotated[int, msgspec.Meta(ge=1 << 20, le=32 << 20, multiple_of=4096)]
    busy_poll_us: Annotated[int, msgspec.Meta(ge=0, le=1000)]
    unix: str | None = None
    tls: NbdTlsConfig = NbdTlsConfig()


class SwapConfig(_Section):
    """Where memory of programs goes that they may have no more of: a file for each of them, or a part of one export."""

    path: FilePath
    size: Size
    compression: Literal["none", "lz4", "zstd"]
    encryption: bool
    direct: bool
    export: ExportName | None = None


class ExportConfig(_Section):
    """One disk for NBD clients."""

    name: ExportName
    disk: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    read_only: bool = False
    description: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    tls_only: bool = False


class StatusConfig(_Section):
    """What the status page tells whoever opens it."""

    connections: bool


class HostConfig(_Section):
    """Where we write down what we took from this machine."""

    journal: FilePath


class ClassConfig(_Section):
    """One class of programs: its weight beside the others, and what its programs have that ask for nothing else."""

    weight: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    processors: Processors = Processors("")
    cpu_quota: CpuQuota = CpuQuota("")


class SchedulerConfig(_Section):
    """How programs on the stack share the processors with each other and with the daemon."""

    cgroup: str
    default_class: ClassName
    daemon_weight: Annotated[int, msgspec.Meta(ge=0, le=10_000)]
    reserved_processors: Processors
    keep_awake: bool
    realtime: ClassConfig
    interactive: ClassConfig
    normal: ClassConfig
    batch: ClassConfig
    idle: ClassConfig

    def of(self, name: ClassName) -> ClassConfig:
        """One of its classes."""
        return getattr(self, name)


LogLevel = Literal["debug", "info", "warning", "error"]


class LogConfig(_Section):
    """What is logged and how; `levels` by logger, for it and those below it."""

    level: LogLevel
    format: Literal["auto", "console", "json"]
    levels: dict[str, LogLevel]


class CrashConfig(_Section):
    """Where reports of crashes are kept."""

    directory: FilePath
    keep: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    keep_programs: Annotated[int, msgspec.Meta(ge=1, le=10_000)]


class AuditConfig(_Section):
    """The audit log: what was refused and what was ended."""

    octets: Annotated[int, msgspec.Meta(ge=65536, le=1 << 30)]
    keep: Annotated[int, msgspec.Meta(ge=1, le=100)]
    file: FilePath | None = None


class Config(_Section):
    """All of it. Made by `load` and `default`, never changed."""

    stack: StackLimits
    pump: PumpConfig
    interface: tuple[InterfaceConfig, ...]
    service: ServicesConfig
    control: ControlConfig
    sockets: SocketsConfig
    metrics: MetricsConfig
    status: StatusConfig
    host: HostConfig
    log: LogConfig
    crash: CrashConfig
    audit: AuditConfig
    scheduler: SchedulerConfig
    nbd: NbdConfig
    swap: SwapConfig
    export: tuple[ExportConfig, ...] = ()
    device: tuple[DeviceConfig, ...] = ()
    route: tuple[RouteConfig, ...] = ()
    disk: tuple[DiskConfig, ...] = ()
    policy: tuple[policies.PolicyConfig, ...] = ()
    program: tuple[program_config.ProgramConfig, ...] = ()


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

    Tables are completed key by key; arrays ([[interface]], [[device]], [[route]], [[disk]]) are taken whole or not at all.
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


def to_toml(config: Config, secrets: bool = True) -> str:
    """A configuration as TOML, all defaults spelled out: `parse(to_toml(c)) == c`. Without `secrets` those are hidden."""
    import tomli_w
    values = msgspec.to_builtins(config, enc_hook=str)
    for key in ("device", "route", "policy", "program"):
        if not values[key]:
            del values[key]
    return tomli_w.dumps(_without_none(values if secrets else without_secrets(values)))


def _without_none(value: Any) -> Any:
    """TOML has no null: what is not set is left out."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list | tuple) else value


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
    if not config.interface and not config.device:
        raise _Wrong(("interface",), "at least one [[interface]] or [[device]] is needed")
    names: set[str] = set()
    addresses: set[str] = set()
    for table, sections in (("interface", config.interface), ("device", config.device)):
        for i, section in enumerate(sections):
            path = (table, i)
            if section.name in names:
                raise _Wrong((*path, "name"), f"{section.name} is the name of another interface already")
            if section.name is not None:
                names.add(section.name)
            (_check_interface if table == "interface" else _check_device)(section, path)
            for j, cidr in enumerate(section.address):
                if str(cidr.parsed.ip) in addresses:
                    raise _Wrong((*path, "address", j), f"{cidr.parsed.ip} is there twice")
                addresses.add(str(cidr.parsed.ip))
    _check_same_device(config)
    _check_routes(config, names)
    _check_nbd(config)
    _check_disks(config)
    _check_scheduler(config.scheduler)
    for i, key, message in policies.mistakes(config.policy):
        raise _Wrong(("policy", i, key), message)
    unnamed = any(device.name is None for device in config.device)
    for path, message in program_config.mistakes(config.program, names, unnamed, [each.name for each in config.policy]):
        raise _Wrong(("program", *path), message)
    services = [(name, getattr(config.service, name)) for name in ("echo", "iperf3", "http")]
    ports: dict[int, str] = {}
    for name, service in services:
        if service.enabled and (other := ports.setdefault(service.port, name)) != name:
            raise _Wrong(("service", name, "port"), f"{service.port} is the port of service {other} already")


def _check_scheduler(scheduler: SchedulerConfig) -> None:
    if scheduler.cgroup not in ("auto", "off") and not scheduler.cgroup.startswith("/"):
        raise _Wrong(("scheduler", "cgroup"), '"auto", "off", or the absolute path of a group of cgroup version 2')
    if scheduler.realtime.cpu_quota.percent:
        raise _Wrong(("scheduler", "realtime", "cpu_quota"), "the kernel holds no quota against realtime programs")
    for name in CLASSES:
        both = set(scheduler.of(name).processors.numbers) & set(scheduler.reserved_processors.numbers)
        if both:
            raise _Wrong(("scheduler", name, "processors"), f"{min(both)} is among reserved_processors")


def _check_interface(interface: InterfaceConfig, path: tuple) -> None:
    _check_mtu(interface, path)
    own = {str(cidr.parsed.ip) for cidr in interface.address}
    for j, cidr in enumerate(interface.kernel_address):
        if str(cidr.parsed.ip) in own:
            message = f"{cidr.parsed.ip} is the stack's own address on this interface"
            raise _Wrong((*path, "kernel_address", j), message)
    _check_gateways(interface, path, adopts=False)


def _check_device(device: DeviceConfig, path: tuple) -> None:
    keys = [key for key in DEVICE_KEYS if getattr(device, key) is not None]
    if len(keys) != 1:
        raise _Wrong((*path, *keys[1:2]), f"needs exactly one of {', '.join(DEVICE_KEYS)}")
    if device.serial is not None and not device.serial.strip():
        raise _Wrong((*path, "serial"), "is empty; see `rustosctl device list`")
    _check_mtu(device, path)
    _check_gateways(device, path, device.adopt)


def _check_mtu(section: InterfaceConfig | DeviceConfig, path: tuple) -> None:
    has_ipv6 = any(cidr.parsed.version == 6 for cidr in section.address)
    if has_ipv6 and section.mtu is not None and section.mtu < IPV6_MIN_MTU:
        raise _Wrong((*path, "mtu"), f"{section.mtu} is too small for IPv6, which needs {IPV6_MIN_MTU} (RFC 8200 5)")


def _check_gateways(section: InterfaceConfig | DeviceConfig, path: tuple, adopts: bool) -> None:
    """`adopts`: the kernel's prefixes come too, and nobody knows them yet."""
    connected = [cidr.parsed.network for cidr in section.address]
    own = {str(cidr.parsed.ip) for cidr in section.address}
    families: set[int] = set()
    for j, gateway in enumerate(section.gateway):
        _check_gateway(gateway, connected, own, (*path, "gateway", j), adopts)
        version = ipaddress.ip_address(gateway).version
        if version in families:
            raise _Wrong((*path, "gateway", j), f"a second IPv{version} gateway; use [[route]] with a metric")
        families.add(version)


def _check_disks(config: Config) -> None:
    names: set[str] = set()
    paths: dict[str, str] = {}
    for i, disk in enumerate(config.disk):
        path = ("disk", i)
        if disk.name in names:
            raise _Wrong((*path, "name"), f"{disk.name} is the name of another disk already")
        names.add(disk.name)
        if disk.kind == "ram":
            for key in ("path", "direct", "read_only"):
                if getattr(disk, key):
                    raise _Wrong((*path, key), 'is for kind = "file" and "device", not for memory')
            if disk.size is None:
                raise _Wrong(path, 'needs size = "..." for kind = "ram"')
        elif disk.path is None:
            raise _Wrong(path, f'needs path = "..." for kind = "{disk.kind}"')
        elif disk.kind == "device" and disk.size is not None:
            raise _Wrong((*path, "size"), "a device has its own")
        elif (other := paths.setdefault(disk.path, disk.name)) != disk.name:
            raise _Wrong((*path, "path"), f"{disk.path} is disk {other} already")


def _check_same_device(config: Config) -> None:
    first: dict[str, int] = {}
    for i, device in enumerate(config.device):
        if (other := first.setdefault(device.which, i)) != i:
            raise _Wrong(("device", i, device.which.split()[0]), f"device[{other}] is the same one")


def _check_gateway(gateway: str, connected: Iterable, own: Iterable[str], path: tuple, adopts: bool) -> None:
    address = ipaddress.ip_address(gateway)
    if gateway in own:
        raise _Wrong(path, f"{gateway} is the stack's own address")
    reachable = (address.version == 6 and address.is_link_local) or any(
        address.version == network.version and address in network for network in connected)
    if not reachable and not adopts:
        prefixes = ", ".join(str(network) for network in connected) or "none"
        raise _Wrong(path, f"{gateway} is in no connected prefix ({prefixes})")


def _check_routes(config: Config, names: set[str]) -> None:
    sections = (*config.interface, *config.device)
    connected = [cidr.parsed.network for section in sections for cidr in section.address]
    own = {str(cidr.parsed.ip) for section in sections for cidr in section.address}
    adopts = any(device.adopt for device in config.device)
    for i, route in enumerate(config.route):
        path = ("route", i)
        if route.interface is not None and route.interface not in names:
            message = f"no interface is called {route.interface}; there is {', '.join(sorted(names)) or 'none with a name'}"
            raise _Wrong((*path, "interface"), message)
        if route.via is None:
            if route.interface is None:
                raise _Wrong(path, 'needs via = "GATEWAY" or interface = "NAME"')
            continue
        if ipaddress.ip_network(route.to).version != ipaddress.ip_address(route.via).version:
            raise _Wrong((*path, "via"), f"{route.via} is not of the same family as {route.to}")
        _check_gateway(route.via, connected, own, (*path, "via"), adopts)


def _check_nbd(config: Config) -> None:
    tls = config.nbd.tls
    if config.nbd.unix:
        try:
            SocketPath(config.nbd.unix)
        except ValueError as error:
            raise _Wrong(("nbd", "unix"), str(error)) from None
    if tls.mode != "off" and tls.certificate is None and tls.psk is None:
        raise _Wrong(("nbd", "tls", "mode"), f'{tls.mode} needs certificate = "FILE" or psk = "FILE"; docs/nbd.md shows how to '
                                             "make either")
    if tls.client_ca is not None and tls.certificate is None:
        raise _Wrong(("nbd", "tls", "client_ca"), "only a server with a certificate = ... can ask clients for theirs")
    first: dict[str, int] = {}
    for i, export in enumerate(config.export):
        if (other := first.setdefault(export.name, i)) != i:
            raise _Wrong(("export", i, "name"), f"{export.name} is the name of export[{other}] already")
        if export.tls_only and tls.mode == "off":
            raise _Wrong(("export", i, "tls_only"), 'needs TLS: mode = "optional" or "required" under [nbd.tls]')


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
        elif get_origin(kind) is dict:
            kind = kind.__args__[1]
        else:
            kind = {field.name: field.type for field in msgspec.structs.fields(kind)}[key]
    if get_origin(kind) is dict:
        kind = kind.__args__[1]
    return f"; one of {', '.join(map(str, kind.__args__))}" if get_origin(kind) is Literal else ""


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
