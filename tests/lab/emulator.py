"""The QEMU that a guest runs on: the machine's own, or a newer one, which can have devices that are vfio-user servers.

The newer one is Debian's for its stable release, fetched with all its libraries (40 MB, 150 unpacked) into
build/lab/qemu-VERSION and run from there by its own dynamic loader, so that it needs and changes nothing of the machine.
Deleting that directory fetches the newest again.
"""

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.packages import CACHE, LabUnavailable, alone, apt, closure, debian, unpack

_SUITES = "trixie", "trixie-backports"
_PACKAGE = "qemu-system-x86"
_UNWANTED = ("./usr/share/doc", "./usr/share/locale", "./usr/share/man", "./usr/share/perl5", "./usr/share/icons")


@dataclass(frozen=True)
class Emulator:
    """How QEMU is started."""

    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


INSTALLED = Emulator(("qemu-system-x86_64",))


def newer() -> Emulator:
    """One with vfio-user (QEMU 10.1), fetched and unpacked when it is not there yet. Raises LabUnavailable."""
    if os.uname().machine != "x86_64":
        raise LabUnavailable("the QEMU that has vfio-user is fetched for x86-64 machines only")
    with alone():
        found = sorted(CACHE.glob("qemu-*"))
        home = found[-1] if found else _fetch()
    libraries = home / "usr/lib/x86_64-linux-gnu"
    loader = home / "usr/lib64/ld-linux-x86-64.so.2"
    return Emulator((str(loader), "--library-path", str(libraries), str(home / "usr/bin/qemu-system-x86_64"),
                     "-L", str(home / "usr/share/qemu"), "-L", str(home / "usr/share/seabios")),
                    {"QEMU_MODULE_DIR": str(libraries / "qemu")})


def _fetch() -> Path:
    """Put it under CACHE, whole or not at all."""
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        archives = Path(scratch) / "archives"
        archives.mkdir()
        options = apt(archives, *map(debian, _SUITES))
        home = Path(scratch) / "home"
        home.mkdir()
        for archive in closure(archives, [*options, "--target-release", _SUITES[-1]], _PACKAGE):
            unpack(archive, home, *_UNWANTED)
            if archive.name.startswith(f"{_PACKAGE}_"):
                version = archive.name.split("_")[1].rpartition("%3a")[2]
        return home.rename(CACHE / f"qemu-{version}")
