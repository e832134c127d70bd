"""What this process is and what it runs on, for whoever has to find out why it does what it does."""

import os
import platform
import threading
from importlib import metadata
from pathlib import Path
from typing import Final

from rustosd.control.upkeep_protocol import About
from rustosd.status.recorder import memory_octets, resident_octets

PACKAGES: Final = ("msgspec", "prometheus-client", "pyroute2", "rich", "structlog", "tomli-w", "typer", "uvloop")


def about(version: str, uptime_s: float, config_file: Path | None, supervised: bool) -> About:
    """All of it, as it is now."""
    system = os.uname()
    return About(
        version=version, python=f"{platform.python_implementation()} {platform.python_version()}",
        kernel=f"{system.sysname} {system.release}", machine=system.machine,
        packages={name: _version(name) for name in PACKAGES}, pid=os.getpid(),
        started_by="systemd" if supervised else "a person", uptime_s=round(uptime_s, 3),
        config_file=None if config_file is None else str(config_file), processors=os.cpu_count() or 1,
        resident_octets=resident_octets(), memory_octets=memory_octets(), descriptors=_descriptors(),
        threads=threading.active_count())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _descriptors() -> int:
    try:
        return len(os.listdir("/proc/self/fd")) - 1     # the one that reads the directory
    except OSError:
        return 0
