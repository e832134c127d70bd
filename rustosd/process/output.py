"""What a program without a terminal writes: to a file that is bounded, the older half of which is given up when it is full."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

LOG_OCTETS: Final = 1 << 20
"""Of one file; there are two, FILE and FILE.1, which is the older."""
ENVIRONMENT: Final = "RUSTOSD_PROGRAM_LOGS"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_READ_MOST: Final = 65536
_PIPE_OCTETS: Final = 1 << 20      # no pipe holds more, unless root makes it


class NameTaken(Exception):
    """Another program of that name runs; the text says what to do."""


def directory() -> Path:
    """Where the files are: $RUSTOSD_PROGRAM_LOGS, else /var/log/rustosd for root and below the home of others."""
    if (given := os.environ.get(ENVIRONMENT)):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/log/rustosd")
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "rustosd" / "logs"


def check_name(name: str) -> str:
    """The name, which may be that of a file. Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a program: letters, digits and . _ @ + -, at most 64")
    if name.isdecimal():
        raise ValueError(f"{name!r} is no name for a program: it could be a process's number")
    return name


def path_of(name: str) -> Path:
    """The file of the program of this name. Raises ValueError."""
    return directory() / f"{check_name(name)}.log"


class Output:
    """The file of one program, which is ours alone as long as we have it: two of one name cannot run.

    The program writes to `end`, a pipe; `written` is to be called when `source` is readable.
    """

    def __init__(self, name: str) -> None:
        """Raises NameTaken, ValueError, OSError."""
        self.path = path_of(name)
        self.path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._file = _locked(self.path)
        if self._file < 0:
            raise NameTaken(f"a program called {name} runs already; choose another with --name, or end it: rustosctl ps")
        self._octets = os.fstat(self._file).st_size
        self.source, self.end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.source, False)

    def began(self, pid: int, argv: Sequence[str]) -> None:
        """The program runs, and has the only other end."""
        os.close(self.end)
        self.end = -1
        self._mark(f"process {pid}: {shlex.join(argv)[:1000]}")

    def written(self) -> bool:
        """Take what the program has written. False: nobody will write any more."""
        try:
            octets = os.read(self.source, _READ_MOST)
        except BlockingIOError:
            return True
        self._write(octets)
        return bool(octets)

    def ended(self, status: int) -> None:
        """The last of it, and the end."""
        for _ in range(_PIPE_OCTETS // _READ_MOST + 1):
            if not self.written():
                break
        self._mark(f"ended with status {status}")
        self.close()

    def discard(self) -> None:
        """There is no program: leave no file without a word in it."""
        if self._file >= 0 and not os.fstat(self._file).st_size:
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """May be called twice."""
        for fd in (self.source, self.end, self._file):
            if fd >= 0:
                os.close(fd)
        self.source = self.end = self._file = -1

    def _mark(self, text: str) -> None:
        self._write(os.fsencode(f"--- {time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}\n"))

    def _write(self, octets: bytes) -> None:
        with contextlib.suppress(OSError):      # a full disk: the program goes on, what it said is lost
            if self._octets and self._octets + len(octets) > LOG_OCTETS:
                self._turn_over()
            self._octets += os.write(self._file, octets)

    def _turn_over(self) -> None:
        """A new file in place of the full one, which is at every moment one that we have locked."""
        fresh, old = self.path.with_suffix(".new"), self.path.with_suffix(".log.1")
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        file = _locked(fresh)
        with contextlib.suppress(FileNotFoundError):
            old.unlink()
        os.link(self.path, old)
        fresh.rename(self.path)
        os.close(self._file)
        self._file, self._octets = file, 0


def _locked(path: Path) -> int:
    """The file, opened to append and locked; -1: somebody else has it. Raises OSError."""
    while True:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return -1
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(file).st_ino:
                return file
        os.close(file)      # it was turned over in between
