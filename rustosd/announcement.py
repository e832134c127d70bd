"""What to try next, for the person who has just started the daemon on a terminal."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rustosd.config import Config
from rustosd.control.names import version

NBD_PORT: Final = 10809
"""The one that URIs need not name."""


def announce(hosts: Sequence[str], behind: Sequence[str], config: Config) -> str:
    """`hosts`: addresses at which the daemon is reached; `behind`: the interfaces, in words."""
    lines = [f"rustosd {version()} is up: {' and '.join(hosts) or 'without addresses'} "
             f"behind {', '.join(behind) or 'no interface yet'}"]
    if hosts:
        lines += ["Try, in another terminal:", *_suggestions(hosts, config)]
    return "\n".join([*lines, "Ctrl-C stops it."])


def _suggestions(hosts: Sequence[str], config: Config) -> list[str]:
    service, host = config.service, hosts[0]
    one_of_each = {":" in each: each for each in reversed(hosts)}
    commands = [(f"ping {each}", "") for each in reversed(one_of_each.values())]
    if service.http.enabled:
        port = "" if service.http.port == 80 else f":{service.http.port}"
        commands.append((f"curl http://{in_url(host)}{port}/metrics", "in a browser: / without /metrics"))
    if service.iperf3.enabled:
        port = "" if service.iperf3.port == 5201 else f" -p {service.iperf3.port}"
        commands.append((f"iperf3 -c {host}{port}", "-R for the other way, -P 4 for four at once"))
    if config.nbd.enabled and config.nbd.port and config.export:
        port = "" if config.nbd.port == NBD_PORT else f":{config.nbd.port}"
        commands.append((f"nbdinfo nbd://{in_url(host)}{port}/", "disks: nbdcopy, qemu-img, nbd-client; docs/nbd.md"))
    commands.append((f"{_rustosctl()} status", "or nic, conn, drops, ping; --help tells"))
    width = max(len(command) for command, _ in commands)
    return [f"  {command:<{width}}   {'# ' if note else ''}{note}".rstrip() for command, note in commands]


def _rustosctl() -> str:
    """How to call rustosctl from here: the one beside us, unless the shell finds it anyway."""
    beside = Path(sys.argv[0]).absolute().with_name("rustosctl")
    if shutil.which("rustosctl") == str(beside) or not beside.exists():
        return "rustosctl"
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)


def in_url(host: str) -> str:
    """An address as URLs have it."""
    return f"[{host}]" if ":" in host else host
