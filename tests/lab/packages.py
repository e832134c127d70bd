"""Packages of distributions that are not this machine's, by apt, kept under build/lab and never installed."""

import fcntl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / "build" / "lab"
_DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class LabUnavailable(Exception):
    """The lab cannot run on this machine; the message says why and what to do."""


@contextmanager
def alone() -> Iterator[None]:
    """One process at a time fills the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def debian(suite: str) -> str:
    """A source of Debian's, checked by the keys that this machine has of it."""
    return f"deb [signed-by={_DEBIAN_KEYRING}] http://deb.debian.org/debian {suite} main"


def apt(home: Path, *sources: str) -> list[str]:
    """Options that let apt work with these sources only, and leave the machine's own alone; its lists are fetched."""
    for name in ("lists/partial", "cache/archives/partial"):
        (home / name).mkdir(parents=True)
    (home / "sources.list").write_text("".join(f"{source}\n" for source in sources))
    options = [f"Dir::State::lists={home}/lists", f"Dir::Cache={home}/cache", f"Dir::Etc::sourcelist={home}/sources.list",
               "Dir::Etc::sourceparts=-"]
    words = [word for option in options for word in ("-o", option)]
    run_apt(home, words, "update")
    return words


def run_apt(directory: Path, options: list[str], *command: str) -> None:
    """One command of apt-get's. Raises LabUnavailable."""
    done = subprocess.run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", *options, *command], cwd=directory,
                          capture_output=True, text=True, check=False)
    if done.returncode or (command == ("update",) and done.stderr):        # apt calls unreachable sources a warning
        raise LabUnavailable(f"cannot fetch {' '.join(command)}: {done.stderr.strip()}. Run `apt-get update` and try again")


def closure(home: Path, options: list[str], *names: str) -> Iterator[Path]:
    """Fetch packages and all they need, as if nothing were installed; their files."""
    (home / "nothing").touch()
    run_apt(home, [*options, "-o", f"Dir::State::status={home}/nothing"], "install", "--download-only", "--yes",
            "--no-install-recommends", *names)
    return (home / "cache" / "archives").glob("*.deb")


def unpack(archive: Path, home: Path, *exclude: str) -> None:
    """A package's files, less those whose path begins with one of `exclude` ("./usr/share/doc")."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as tar:
        subprocess.run(["tar", "-x", "-C", home, *(f"--exclude={name}" for name in exclude)], stdin=tar.stdout, check=True)
