"""docs/rpc.md from the types of the control socket: every method with its parameters, result and who may call it.

The comments behind the fields in the source are their descriptions; the examples are what a daemon on a made-up machine
answers (`tests.rustosd.fake`).
"""

import asyncio
import inspect
import json
import re
import typing
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
import structlog

from rustosd.control import protocol as p
from rustosd.control.operations import Operations
from rustosd.control.server import EVERYTHING, IDLE_TIMEOUT_S, MAX_UNTAKEN_OCTETS, REPLY_TIMEOUT_S, ControlServer, Peer
from tests.rustosd.fake import FakeCore

MEMBER = Peer(1, 1000, frozenset({"read"}))
ROOT = Peer(1, 0, EVERYTHING)
EXAMPLES = (
    (ROOT, "Look:", {"id": 1, "method": "addr.list"}),
    (ROOT, "Change:", {"id": 2, "method": "addr.add", "params": {"nic": "rustos0", "address": "10.77.0.3/24"}}),
    (ROOT, "Reload the configuration, or see what that would change:", {"id": 3, "method": "config.check"}),
    (ROOT, "Follow the log: ask for what is behind the `last` line, and wait for it.", {
        "id": 4, "method": "log.tail", "params": {"after": 0, "limit": 100, "wait_ms": 10}}),
    (ROOT, "A parameter that is wrong:", {"id": 5, "method": "addr.add", "params": {"nic": "rustos0", "address": "10.77.0.3"}}),
    (ROOT, "Something that cannot be done:", {"id": 6, "method": "addr.add", "params": {"nic": "eth9",
                                                                                        "address": "10.77.0.3/24"}}),
    (MEMBER, "A member of `read_group` who wants to change something:", {
        "id": 7, "method": "route.del", "params": {"destination": "203.0.113.0/24"}}),
)
ERRORS = (
    (p.PARSE_ERROR, "not JSON"), (p.INVALID_REQUEST, "not a JSON-RPC 2.0 request, or too long; a line too long also ends the "
                                  "connection"),
    (p.METHOD_NOT_FOUND, "no such method"), (p.INVALID_PARAMS, "a parameter is unknown, missing, or not of its type"),
    (p.INTERNAL_ERROR, "a fault of the daemon; its log has the trace"),
    (p.FAILED, "understood and allowed, but it could not be done; the message says why and what to do"),
    (p.FORBIDDEN, "not permitted; the message says who may"), (p.BUSY, "too many clients"),
)
RIGHTS = {"read": "look", "change": "change", "sockets": "sockets"}


def markdown() -> str:
    """The whole document."""
    return "\n".join([*_head(), *_methods(), *_rows(), *_examples()]).rstrip() + "\n"


def _head() -> Iterator[str]:
    yield f"""\
# The control socket

This file is made from the code by `python -m docs.generate`; a test sees that it is up to date.

`/run/rustosd/control.sock` (`[control] socket`) speaks [JSON-RPC 2.0](https://www.jsonrpc.org/specification), one message a
line in UTF-8, without batches. A client is answered in the order in which it asks. `rustosctl` does all it does through it.

**Bounds.** A request has at most {p.MAX_REQUEST_OCTETS} octets with its newline. At most `max_clients` clients are connected at
once, and a few more if they are root. One that asks nothing for {IDLE_TIMEOUT_S:.0f} s, or does not take its answer within
{REPLY_TIMEOUT_S:.0f} s, is disconnected. At most
{MAX_UNTAKEN_OCTETS >> 20} MiB wait for clients that are slow; who asks for more is told to ask again.

**Rights.** The kernel says who a client is. Root, and the user of the daemon, may do everything. Others may do what the groups
they are in may: `read_group` under `[control]` may call what is marked *look*, `change_group` also what is marked *change*, and
`group` under `[sockets]` what is marked *sockets*.

**Versions.** This is schema {p.SCHEMA}, the `schema` in the output of `rustosctl --json`. Within a schema, methods, optional
parameters and fields of results may be added; a client ignores fields that it does not know. Whatever a client relies on that
changes or goes makes the next schema. Parameters that are unknown are refused.

## Errors

| code | when |
|---|---|"""
    for code, when in ERRORS:
        yield f"| {code} | {when} |"


def _methods() -> Iterator[str]:
    yield from ("", "## Methods", "")
    for method in sorted(p.METHODS.values(), key=lambda method: method.name):
        yield from (f"### {method.name}", "", f"{method.help} *{RIGHTS[method.right]}*", "")
        fields = list(_fields(method.takes))
        if fields:
            yield from ("| parameter | type | default | |", "|---|---|---|---|")
            yield from (f"| `{name}` | {kind} | {default} | {words} |" for name, kind, default, words in fields)
            yield ""
        yield from (f"Result: {_kind(method.gives)}", "")


def _rows() -> Iterator[str]:
    """Every struct that a result is made of, once."""
    yield from ("## Results", "")
    found: dict[str, type] = {}
    for method in p.METHODS.values():
        for row in _structs(method.gives):
            found.setdefault(row.__name__, row)
    for name, row in sorted(found.items()):
        yield from (f"### {name}", "", " ".join((inspect.getdoc(row) or "").split()), "")
        fields = list(_fields(row))
        if fields:
            yield from ("| field | type | |", "|---|---|---|")
            yield from (f"| `{field}` | {kind} | {words} |" for field, kind, _, words in fields)
            yield ""


def _fields(struct: type) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default, and the comment behind it in the source."""
    for field in msgspec.structs.fields(struct):
        default = "required" if field.required else json.dumps(msgspec.to_builtins(field.default, enc_hook=str)) if (
            field.default is not msgspec.NODEFAULT) else "[]"
        yield field.name, _kind(field.type), default, _comment(struct, field.name)


def _comment(struct: type, name: str) -> str:
    for owner in struct.__mro__:
        if name in inspect.get_annotations(owner):
            found = re.search(rf"^    {name}: [^#\n]*(?:#\s*(.+))?$", inspect.getsource(owner), re.MULTILINE)
            return (found[1] or "").replace("|", "\\|") if found else ""
    return ""


def _kind(kind: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if hasattr(kind, "__metadata__"):
        return _kind(kind.__origin__) + "".join(_bounds(each) for each in kind.__metadata__)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(each)}`" for each in arguments)
    if origin in (list, tuple):
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return f"object of {_kind(arguments[1])}"
    if arguments:
        return " or ".join(_kind(each) for each in arguments)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    plain = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null", bytes: "text in Base64",
             Any: "anything"}
    return plain.get(kind) or f"text: {_first_line(kind)}"


def _bounds(meta: msgspec.Meta) -> str:
    words = [f"at least {meta.ge}"] * (meta.ge is not None) + [f"at most {meta.le}"] * (meta.le is not None)
    words += [f"more than {meta.gt}"] * (meta.gt is not None) + [f"less than {meta.lt}"] * (meta.lt is not None)
    words += [f"at least {meta.min_length} long"] * (meta.min_length is not None)
    words += [f"at most {meta.max_length} long"] * (meta.max_length is not None)
    return f", {', '.join(words)}" if words else ""


def _first_line(kind: type) -> str:
    text = (inspect.getdoc(kind) or kind.__name__).splitlines()[0].rstrip(".")
    return text[:1].lower() + text[1:]


def _structs(kind: Any) -> Iterator[type]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
        for field in msgspec.structs.fields(kind):
            yield from _structs(field.type)
    for each in typing.get_args(kind):
        yield from _structs(each)


def exchange(request: dict[str, Any], peer: Peer) -> tuple[str, str]:
    """A request and what the made-up daemon answers, as they cross the socket."""
    core = FakeCore()
    core.logs.ring.append("2026-11-28T18:00:00.000000", "info", "rustosd.daemon", "started", {"version": "0.1.0"})
    server = ControlServer("/nowhere", Operations(core, clock=lambda: 0.0))
    line = json.dumps({"jsonrpc": "2.0", **request})
    with structlog.testing.capture_logs():
        reply = asyncio.run(server.answer(line.encode(), peer))
    return line, msgspec.json.encode(reply).decode()


def _examples() -> Iterator[str]:
    yield from ("## Examples", "", "`-->` goes to the daemon, `<--` comes back.", "")
    for peer, words, request in EXAMPLES:
        line, reply = exchange(request, peer)
        yield from (words, "", f"    --> {line}", f"    <-- {reply}", "")
    yield from ("In a shell, as root:", "", """    echo '{"jsonrpc": "2.0", "id": 1, "method": "daemon.status"}' | nc -NU """
                "/run/rustosd/control.sock")
