"""Unmodified programs on the stack against the same programs on Linux's sockets, with the same clients, in paired rounds."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lab import BenchError, Child, Lab, run
from benchmarks.report import Report, Row, paired

TOOLS = {"nginx": "nginx-light", "ab": "apache2-utils", "redis-server": "redis-server", "redis-benchmark": "redis-tools",
         "cc": "gcc"}
OURS, LINUX = "rustosd", "Linux"
ADDRESS, CLIENT = "10.77.0.2", "10.77.0.1"
CALL_GOAL_US = 15
_PATIENCE_S = 30
_CONFIG = """
[control]
socket = "{folder}/control.sock"
[host]
journal = "{folder}/journal.jsonl"
[crash]
directory = "{folder}/crash"
[nbd]
enabled = false
[service.http]
enabled = false
"""
_NGINX = """
user root; worker_processes 1; daemon off; error_log {folder}/error.log; pid {folder}/pid;
events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 1000000; server {{ listen 8080; root {folder}/www; }} }}
"""


@dataclass(frozen=True)
class Place:
    """Where a program runs, what comes before its command line, and where its clients are."""

    label: str
    clients: str
    programs: str
    prefix: tuple[str, ...]


@dataclass(frozen=True)
class Load:
    """What clients do: a command, where its result is in what it prints, and what is aimed at."""

    title: str
    unit: str
    command: tuple[str, ...]
    result: str
    goal: float


def _loads(requests: int) -> tuple[Load, ...]:
    url, rate = f"http://{ADDRESS}:8080/", r"Requests per second:\s+([0-9.]+)"
    redis = ("redis-benchmark", "-h", ADDRESS, "-p", "6390", "-t", "set", "--csv")
    return (
        Load("nginx, keep-alive, 16 clients", "1/s", ("ab", "-q", "-k", "-c", "16", "-n", str(4 * requests), url), rate, 0.8),
        Load("nginx, a connection each, 16 clients", "1/s", ("ab", "-q", "-c", "16", "-n", str(requests), url), rate, 0.5),
        Load("redis SET, 50 clients", "1/s", (*redis, "-c", "50", "-n", str(4 * requests)), r'"SET","([0-9.]+)"', 0.8),
    )


def measure(lab: Lab, seconds: float, rounds: int, report: Report, say: Callable[[str], None]) -> None:
    """Fill the report. Raises BenchError when a program is missing or fails."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    if missing := [package for tool, package in TOOLS.items() if not shutil.which(tool, path=path)]:
        raise BenchError(f"missing: {', '.join(missing)}. As root: apt-get install {' '.join(missing)}")
    folder = lab.directory()
    (folder / "www").mkdir()
    (folder / "www" / "index.html").write_text("x" * 612 + "\n")
    say("starting rustosd")
    places = [_ours(lab, folder), _linux(lab)]
    _calls(lab, places, folder, rounds, report, say)
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder))
    for place in places:
        here = lab.directory()
        (here / "www").symlink_to(folder / "www")
        (here / "nginx.conf").write_text(_NGINX.format(folder=here))
        os.chmod(here, 0o755)
        _start(lab, place, 8080, "nginx", "-p", str(here), "-c", str(here / "nginx.conf"))
        _start(lab, place, 6390, "redis-server", "--port", "6390", "--save", "", "--protected-mode", "no", "--daemonize", "no")
    for load in _loads(int(4000 * seconds)):
        say(load.title)
        rates: dict[str, list[float]] = {place.label: [] for place in places}
        for number in range(rounds):
            for place in places[::1 if number % 2 else -1]:
                rates[place.label].append(_ask(lab, place, load))
        ratio = paired(rates[OURS], rates[LINUX])
        report.rows.append(Row(load.title, load.unit, statistics.median(rates[OURS]), LINUX, statistics.median(rates[LINUX]),
                               ratio, f">= {load.goal}", ratio >= load.goal, rates))


def _ours(lab: Lab, folder: Path) -> Place:
    """A daemon as it is installed, on a TAP."""
    namespace, control = lab.namespace(), folder / "control.sock"
    (folder / "rustosd.toml").write_text(_CONFIG.format(folder=folder))
    ctl = (sys.executable, "-c", "from rustosd.cli.control import main; main()", "--socket", str(control))
    lab.server(namespace, sys.executable, "-c", "from rustosd.cli.daemon import main; main()", "run", "--config",
               str(folder / "rustosd.toml")).line(_PATIENCE_S)
    return Place(OURS, namespace, namespace, (*ctl, "run", "--"))


def _linux(lab: Lab) -> Place:
    """A veth pair away, as the kernel sets it up."""
    near, far = lab.namespace(), lab.namespace()
    lab.inside(near, "ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", far)
    for namespace, host in ((near, CLIENT), (far, ADDRESS)):
        lab.inside(namespace, "ip", "address", "add", f"{host}/24", "dev", "veth0")
        lab.inside(namespace, "ip", "link", "set", "veth0", "up")
    return Place(LINUX, near, far, ())


def _start(lab: Lab, place: Place, port: int, *argv: str) -> Child:
    """A server program, once it answers."""
    child = lab.program(place.programs, *place.prefix, *argv)
    limit = time.monotonic() + _PATIENCE_S
    look = f"import socket; socket.create_connection(('{ADDRESS}', {port}), 1)"
    while True:
        try:
            lab.client(place.clients, sys.executable, "-c", look, timeout=5)
            return child
        except BenchError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.1)


def _ask(lab: Lab, place: Place, load: Load) -> float:
    printed = lab.client(place.clients, *load.command, timeout=120)
    if (found := re.search(load.result, printed)) is None:
        raise BenchError(f"{load.command[0]} against {place.label}: {printed[-300:]}")
    return float(found[1])


def _calls(lab: Lab, places: list[Place], folder: Path, rounds: int, report: Report, say: Callable[[str], None]) -> None:
    """The median of each call, us."""
    say("socket calls")
    program = folder / "socket_calls"
    run("cc", "-O2", "-o", str(program), str(Path(__file__).with_name("socket_calls.c")))
    took: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for place in places:
            printed = lab.inside(place.programs, *place.prefix, str(program))
            for name, nanoseconds in (line.split() for line in printed.splitlines()):
                took.setdefault(name, {}).setdefault(place.label, []).append(int(nanoseconds) / 1000)
    for name, of in took.items():
        ours = statistics.median(of[OURS])
        report.rows.append(Row(f"{name}()", "us", ours, LINUX, statistics.median(of[LINUX]), paired(of[OURS], of[LINUX]),
                               f"<= {CALL_GOAL_US} us", ours <= CALL_GOAL_US, of))
