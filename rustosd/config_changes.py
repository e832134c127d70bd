"""What differs between two configurations, and for every key how a running daemon takes a change of it.

`RULES` is the one table: a key that is not in it, nor the section it is in, needs a restart.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec

from rustosd.config import Config
from rustosd.secrets import HIDDEN, is_secret

How = Literal["now", "later", "restart"]


class Rule(NamedTuple):
    """`step`: the part of `rustosd.reconfigure` that applies it; `when`, for people: from when on, or why not."""

    how: How
    step: str = ""
    when: str = ""


def _now(step: str) -> Rule:
    return Rule("now", step)


def _later(step: str, when: str) -> Rule:
    return Rule("later", step, when)


def _restart(why: str) -> Rule:
    return Rule("restart", "", why)


_TABLE = _restart("the table is made at the start")
_LINK = _restart("the link is made with it")
_TAKE = _later("devices", "when the device is taken next")

RULES: Final[Mapping[str, Rule]] = {
    "log.level": _now("logs"), "log.format": _now("logs"), "log.levels": _now("logs"),
    "pump.busy_poll_us": _now("pump"), "pump.coalesce_us": _now("pump"),
    "stack.max_connections": _TABLE, "stack.max_listeners": _TABLE, "stack.max_half_open": _TABLE,
    "stack.max_datagram_sockets": _TABLE, "stack.max_routes": _TABLE, "stack.max_neighbors": _TABLE,
    "stack.max_time_wait": _now("limits"), "stack.time_wait_s": _now("limits"),
    "stack.receive_buffer_octets": _later("limits", "for connections opened from now on"),
    "stack.send_buffer_octets": _now("limits"), "stack.buffers_octets": _now("limits"),
    "stack.icmp_errors_per_second": _now("limits"), "stack.challenge_acks_per_second": _now("limits"),
    "interface[+]": _now("new_interfaces"), "interface[-]": _restart("its connections would end"),
    "interface.name": _restart("another name is another interface"), "interface.kind": _LINK,
    "interface.mtu": _LINK, "interface.offload": _LINK, "interface.mac": _LINK,
    "interface.address": _now("addresses"), "interface.gateway": _now("gateways"),
    "interface.kernel_address": _now("kernel_addresses"),
    "device[+]": _later("devices", "when it is plugged in, or with: rustosctl device take"),
    "device[-]": _later("devices", "for what is plugged in; what it took stays taken: rustosctl device give"),
    "device.bdf": _TAKE, "device.mac": _TAKE, "device.serial": _TAKE, "device.optional": _TAKE, "device.backend": _TAKE,
    "device.force": _TAKE, "device.name": _TAKE, "device.adopt": _TAKE, "device.mtu": _TAKE, "device.address": _TAKE,
    "device.gateway": _TAKE, "device.e1000": _TAKE, "device.ahci": _TAKE,
    "route[+]": _now("routes"), "route[-]": _now("routes"),
    "service": _now("services"),
    "control.socket": _restart("rustosctl would lose it"),
    "control.max_clients": _now("control"), "control.read_group": _now("control"), "control.change_group": _now("control"),
    "sockets.group": _now("control"),
    "sockets.enabled": _now("sockets"), "sockets.max_sockets": _now("sockets"),
    "sockets.max_sockets_per_process": _now("sockets"),
    "sockets.buffer_octets": _later("sockets", "for sockets handed out from now on"),
    "scheduler": _now("scheduler"), "scheduler.keep_awake": _later("scheduler", "for programs that start from now on"),
    "scheduler.cgroup": _restart("groups are made in one place"),
    "policy[+]": _now("policies"), "policy[-]": _now("policies"), "policy": _now("policies"),
    "program[+]": _now("programs"), "program[-]": _now("programs"), "program": _now("programs"),
    "metrics.listen": _now("metrics"), "metrics.socket": _now("metrics"), "metrics.enabled": _now("pages"),
    "status.connections": _now("pages"),
    "disk[+]": _restart("disks are opened at the start"), "disk[-]": _restart("its clients would lose it"),
    "disk": _restart("disks are opened at the start"),
    "swap": _later("swap", "for programs that start from now on"),
    "nbd": _restart("the server is made at the start"),
    "export[+]": _restart("exports are made at the start"),
    "export[-]": _restart("its clients would lose it"),
    "export": _restart("its clients have been told"),
    "host.journal": _restart("it says what this daemon has taken"),
    "crash.directory": _restart("it is opened at the start"), "crash.keep": _later("pages", "at the next start"),
    "crash.keep_programs": _later("pages", "at the next start"), "audit": _restart("it is opened at the start"),
}
"""By key; `x[+]` and `x[-]`: one more and one less of [[x]]. A key counts for all below it."""

UNKNOWN: Final = _restart("it is read at the start")


class Item(str):
    """The part of a path that says which of several."""

    __slots__ = ()


Path = tuple[str, ...]


class Absent:
    """What a key is when its section is not there."""

    def __repr__(self) -> str:
        return "absent"


ABSENT: Final = Absent()


class Change(NamedTuple):
    """One key that differs; a section that is there only once counts as one."""

    path: Path
    old: Any
    new: Any

    @property
    def key(self) -> str:
        """As people read it: `interface[rustos0].mtu`."""
        return "".join(f"[{part}]" if isinstance(part, Item) else f".{part}" for part in self.path).lstrip(".")

    @property
    def rule(self) -> Rule:
        """How a running daemon takes it."""
        key = ".".join(part for part in self.path if not isinstance(part, Item))
        if isinstance(self.path[-1], Item):
            key += "[+]" if self.old is ABSENT else "[-]"
        return rule_of(key)


def rule_of(key: str) -> Rule:
    """The rule of a key, or of the nearest section around it that has one."""
    while key:
        if key in RULES:
            return RULES[key]
        key = key.rpartition(".")[0]
    return UNKNOWN


def flatten(config: Config) -> dict[Path, Any]:
    """Every value by its path; those of arrays under the name of their section."""
    return dict(_leaves(config, ()))


def _leaves(value: msgspec.Struct, path: Path) -> Iterator[tuple[Path, Any]]:
    for field in msgspec.structs.fields(value):
        inner, here = getattr(value, field.name), (*path, field.name)
        if isinstance(inner, msgspec.Struct):
            yield from _leaves(inner, here)
        elif isinstance(inner, tuple) and inner and all(isinstance(each, msgspec.Struct) for each in inner):
            for i, each in enumerate(inner):
                yield from _leaves(each, (*here, Item(name_of(each, i))))
        elif not (inner == () and _holds_sections(field.type)):
            yield here, inner


def _holds_sections(kind: Any) -> bool:
    first = getattr(kind, "__args__", (None,))[0]
    return isinstance(first, type) and issubclass(first, msgspec.Struct)


def name_of(section: msgspec.Struct, index: int) -> str:
    """Which of several sections it is, however they are ordered."""
    return str(getattr(section, "which", None) or getattr(section, "name", None) or index)


def differences(old: Mapping[Path, Any], new: Mapping[Path, Any]) -> list[Change]:
    """What differs, in the order of the keys; a whole section that came or went is one change."""
    changes: dict[Path, Change] = {}
    old_items, new_items = _items(old), _items(new)
    for path in dict.fromkeys((*old, *new)):
        before, after = old.get(path, ABSENT), new.get(path, ABSENT)
        if before == after:
            continue
        whole = next((path[:end] for end in range(1, len(path) + 1)
                      if isinstance(path[end - 1], Item) and (path[:end] in old_items) != (path[:end] in new_items)), None)
        if whole is not None:
            there = "present"
            changes[whole] = Change(whole, there if whole in old_items else ABSENT, there if whole in new_items else ABSENT)
        else:
            changes[path] = Change(path, before, after)
    return list(changes.values())


def _items(flat: Iterable[Path]) -> set[Path]:
    return {path[:end] for path in flat for end in range(1, len(path) + 1) if isinstance(path[end - 1], Item)}


def taken_over(running: Mapping[Path, Any], new: Mapping[Path, Any], done: Iterable[Change]) -> dict[Path, Any]:
    """What is in force once `done` is: `running`, with what `new` says of the paths that changed."""
    paths = [change.path for change in done]

    def covered(path: Path) -> bool:
        return any(path[:len(changed)] == changed for changed in paths)

    kept = {path: value for path, value in running.items() if not covered(path)}
    return kept | {path: value for path, value in new.items() if covered(path)}


def spoken(path: Path, value: Any) -> str:
    """A value as people write it in the file; a secret is not said."""
    if value is ABSENT or value is None:
        return "-"
    if path and is_secret(path[-1]) and value:
        return HIDDEN
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return ", ".join(str(each) for each in value) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} = {HIDDEN if is_secret(str(key)) else each}" for key, each in value.items()) or "-"
    return str(value) if value != "" else "-"
