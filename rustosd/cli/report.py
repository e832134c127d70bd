"""`rustosctl report`: one file for a bug report, and what is in it. All comes over the control socket but the host's facts.

What could be a secret is hidden where it is known: by the daemon in configuration and log, here in the kernel's command line.
"""

import calendar
import io
import os
import re
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import typer

from rustosd.cli import calls, shell, tables
from rustosd.cli.calls import Json, Settings
from rustosd.cli.tables import Column, Listing
from rustosd.control import capture_protocol as c
from rustosd.control import protocol as p
from rustosd.control import upkeep_protocol as u
from rustosd.control.client import CallFailed, Client, Unreachable
from rustosd.secrets import text_without_secrets

CAPTURED_OCTETS: Final = 128
"""Of each frame: its headers, and little of what it carries."""
MAX_CAPTURE_S: Final = 120
MAX_CAPTURE_OCTETS: Final = 64 << 20
CONNECTIONS: Final = 100
CRASHES: Final = 10
CRASH_DIRECTORY: Final = Path("/var/lib/rustosd/crash")
"""Where to look when there is no daemon to ask."""
HOST_FILES: Final = {
    "cmdline": "/proc/cmdline", "os-release": "/etc/os-release", "meminfo": "/proc/meminfo", "loadavg": "/proc/loadavg",
    "version": "/proc/version", "modules": "/proc/modules",
}
MAX_HOST_FILE_OCTETS: Final = 65536


class Content(NamedTuple):
    """A file of the report."""

    name: str
    octets: bytes
    what: str


class Entry(msgspec.Struct, frozen=True):
    """One line of what is in it."""

    name: str
    octets: int
    what: str


CONTENTS: Final = Listing("contents", "file", "files", (
    Column("NAME", "name"), Column("OCTETS", "octets", True, tables.octets), Column("WHAT", "what", folds=True),
))

_Show = Callable[[Any], bytes]


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=1) + b"\n"


def _toml(answer: u.ConfigText) -> bytes:
    waiting = "".join(f"# waits for a restart: {each.key}: {each.old} -> {each.new}\n" for each in answer.waiting)
    return f"# {answer.file or 'built in'}\n{waiting}{answer.toml}".encode()


def _lines(answer: u.LogLines) -> bytes:
    from rustosd.log_ring import spoken
    return "".join(f"{spoken(line)}\n" for line in answer.lines).encode()


def _connections(answer: p.Connections) -> bytes:
    states = Counter(f"{row.protocol} {row.state}" for row in answer.connections)
    return _json({"total": answer.total, "states_of_these": states, "connections": answer.connections})


ASKED: Final[tuple[tuple[str, str, str, Any, _Show], ...]] = (
    ("about.json", "versions, process, limits", "daemon.about", None, _json),
    ("status.json", "the daemon in one look, health notes", "daemon.status", None, _json),
    ("config.toml", "configuration in force, secrets hidden", "config.show", None, _toml),
    ("log.txt", "the last log lines", "log.tail", u.TailQuery(limit=u.MAX_LINES), _lines),
    ("drops.json", "why frames were dropped", "drops.list", None, _json),
    ("counters.json", "counters of the stack", "counters.list", None, _json),
    ("interfaces.json", "interfaces of the stack", "nic.list", None, _json),
    ("addresses.json", "their addresses", "addr.list", None, _json),
    ("routes.json", "the routing table", "route.list", None, _json),
    ("neighbors.json", "ARP and NDP cache", "neigh.list", None, _json),
    ("connections.json", f"{CONNECTIONS} sockets, and how many there are", "conn.list", p.ConnectionQuery(limit=CONNECTIONS),
     _connections),
    ("devices.json", "PCI devices and who drives them", "device.list", None, _json),
    ("disks.json", "disks of the daemon", "disk.list", None, _json),
)
"""File, what it is, method, parameters, and how the answer is written."""


def report(
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to; else here, named after the "
                                                                                       "time.")] = None,
    capture: Annotated[str | None, typer.Option("--capture", metavar="SECONDS", help="Also what passes meanwhile: of each "
                                                f"frame the first {CAPTURED_OCTETS} octets.")] = None,
    json: Json = False,
) -> int:
    """Put all that a bug report needs into one file, and say what is in it: rustosctl report --capture 10s

    No passwords and no keys are in it. Without a daemon it has the host's facts and the crash reports; then the exit
    status is 3.
    """
    capture_ms = round(1000 * calls.checked(_seconds, capture)) if capture else 0
    at = time.gmtime()
    name = time.strftime("rustosd-report-%Y%m%dT%H%M%SZ", at)
    path = output or Path(f"{name}.tar.gz")
    missing = ""
    contents: list[Content] = []
    try:
        with Client(Settings.socket) as daemon:
            contents += _asked(daemon)
            if capture_ms:
                contents.append(_captured(daemon, capture_ms))
    except Unreachable as error:
        missing = str(error)
        contents += _left_crashes(CRASH_DIRECTORY)
    contents += _host()
    rows = [Entry(content.name, len(content.octets), content.what) for content in contents]
    _write(path, name, [Content("CONTENTS", _table(rows), "this list"), *contents], calendar.timegm(at))
    if json:
        tables.print_json("report", {"file": str(path), "octets": path.stat().st_size, "contents": rows})
    else:
        tables.show(CONTENTS, rows, False)
        print(f"{path}: {tables.octets(path.stat().st_size)}. Secrets are hidden, addresses are not: look before you send it.")
    if missing:
        print(f"rustosctl: without the daemon's own facts: {missing}", file=sys.stderr)
        return shell.UNREACHABLE
    return shell.OK


def _asked(daemon: Client) -> Iterator[Content]:
    """What the daemon says; where it refuses, its refusal."""
    for name, what, method, params, show in ASKED:
        try:
            yield Content(name, show(daemon.call(method, params)), what)
        except CallFailed as error:
            yield Content(f"{name}.error", f"{error}\n".encode(), what)
    try:
        for crash in daemon.call("crash.list")[:CRASHES]:
            yield Content(crash.name, daemon.call("crash.show", u.ReportName(name=crash.name)).text.encode(), crash.reason)
    except CallFailed as error:
        yield Content("crashes.error", f"{error}\n".encode(), "crash reports")


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]+)?)s?", text)
    if match is None or not 0.001 <= float(match[1]) <= MAX_CAPTURE_S:
        raise ValueError(f"{text!r} is no time to capture, such as 10s; at most {MAX_CAPTURE_S}s")
    return float(match[1])


def _captured(daemon: Client, duration_ms: int) -> Content:
    """What passes while we wait; after MAX_CAPTURE_OCTETS the rest is left out."""
    what = f"{duration_ms / 1000:g} s of frames, the first {CAPTURED_OCTETS} octets of each"
    try:
        _, end = daemon.take("capture.start", c.CaptureRequest(snap_octets=CAPTURED_OCTETS, duration_ms=duration_ms))
    except CallFailed as error:
        return Content("capture.pcapng.error", f"{error}\n".encode(), what)
    octets = bytearray()
    with end:
        while len(octets) < MAX_CAPTURE_OCTETS and (part := end.recv(1 << 18)):
            octets += part
    return Content("capture.pcapng", bytes(octets), what)


def _left_crashes(directory: Path) -> Iterator[Content]:
    for path in sorted(directory.glob("crash-*.txt"), reverse=True)[:CRASHES]:
        try:
            yield Content(path.name, path.read_bytes(), "a daemon that died")
        except OSError as error:
            yield Content(f"{path.name}.error", f"{error.strerror}\n".encode(), "a daemon that died")


def _host() -> Iterator[Content]:
    for name, path in HOST_FILES.items():
        try:
            with open(path, errors="replace") as file:
                text = text_without_secrets(file.read(MAX_HOST_FILE_OCTETS))
        except OSError as error:
            text = f"{path}: {error.strerror}\n"
        yield Content(f"host/{name}", text.encode(), path)


def _table(rows: list[Entry]) -> bytes:
    width = max(len(row.name) for row in rows)
    return "".join(f"{row.name:<{width}}  {row.octets:>9}  {row.what}\n" for row in rows).encode()


def _write(path: Path, name: str, contents: list[Content], at: int) -> None:
    """A tar file that only its owner may read; never over another one."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise shell.Stop(f"{path}: {error.strerror}; name another file with -o") from None
    with os.fdopen(fd, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for content in contents:
            member = tarfile.TarInfo(f"{name}/{content.name}")
            member.size, member.mtime, member.mode = len(content.octets), at, 0o600
            archive.addfile(member, io.BytesIO(content.octets))
