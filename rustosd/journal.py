"""What was taken from the host, written down before it is taken, so that after a kill the next daemon gives it back.

One JSON object a line: `{"id": 1, "taken": {...}}` before the act, `{"id": 1, "given_back": true}` after it was undone.
What was taken and not given back is pending.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from rustosd.devices.linkstate import LinkState

DEFAULT_PATH = Path("/run/rustosd/journal.jsonl")
"""/run is emptied by a reboot, and a reboot gives everything back, so that a power cut needs no more than this file."""

DYING_S = 5.0
"""How long a killed holder may take to go: the kernel unpins the memory of its devices."""
LONG_OCTETS = 1 << 16
"""From here on what was given back is taken out of the file."""
_NOTICE_S = 0.1
_PF_EXITING = 0x4

log = structlog.get_logger(__name__)


class Taken(msgspec.Struct, tag_field="kind", frozen=True):
    """Something of the host's that the daemon uses or made. Its subclasses say what, and enough to undo it."""


class TapMade(Taken, tag="tap", frozen=True):
    """A network interface made on the host, which normally disappears with the process."""

    name: str


class DeviceTaken(Taken, tag="device", frozen=True):
    """A PCI device taken from its kernel driver, and what its interface was, if it had one."""

    bdf: str
    driver: str | None
    """Who drove it before; None: nobody."""
    backend: str
    """"vfio" or "uio"."""
    override: str | None = None
    """What driver_override said before."""
    link: LinkState | None = None


class GroupsMade(Taken, tag="groups", frozen=True):
    """Control groups made for programs, with all that is in them."""

    roots: tuple[str, ...]
    new: tuple[str, ...] = ()
    """Controllers that were switched on in the group above, in version 2."""


class KernelSwapMade(Taken, tag="kernel-swap", frozen=True):
    """Linux's own swap on a disk of ours, by its nbd driver."""

    device: str
    """/dev/nbd0."""


Entry = TapMade | DeviceTaken | GroupsMade | KernelSwapMade
"""The union of all kinds: what a journal line may hold."""


class _Line(msgspec.Struct, omit_defaults=True):
    id: int
    taken: Entry | None = None
    given_back: bool = False


class JournalError(Exception):
    """The journal cannot be used; the message says why and what to do."""


class Journal:
    """The journal file, held by one process at a time. A context manager.

    Every method that writes has the line on disk when it returns. A line is appended; when nothing is pending the file is
    emptied, and on opening, or when it has become long, it is replaced as a whole by a rename: it never grows without end
    and is never half new.
    """

    def __init__(self, path: Path = DEFAULT_PATH) -> None:
        """Open or make the journal. Raises JournalError when another process holds it or it cannot be read."""
        self.path = path
        self._lock = _locked(path)
        try:
            self._pending = _pending_of(path)
            self._next_id = max(self._pending, default=0) + 1
            self._fd = self._replaced()
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def pending(self) -> dict[int, Entry]:
        """What was taken and not given back, by id, oldest first."""
        return dict(self._pending)

    def take(self, entry: Entry) -> int:
        """Write down that `entry` is about to be taken; call before doing it. The id is for `give_back`."""
        number = self._next_id
        self._append(_Line(number, taken=entry))
        self._next_id += 1
        self._pending[number] = entry
        return number

    def given_back(self, number: int) -> None:
        """Write down that the host has it again; call after undoing it. Raises KeyError for an id not pending."""
        if number not in self._pending:
            raise KeyError(number)
        if len(self._pending) == 1:
            os.ftruncate(self._fd, 0)       # says the same, and needs no room on a full disk
            os.fsync(self._fd)
        else:
            self._append(_Line(number, given_back=True))
        del self._pending[number]
        if os.fstat(self._fd).st_size > LONG_OCTETS:
            self._shorten()

    def _shorten(self) -> None:
        """Keep only what is pending. It can wait: the long file says the same."""
        try:
            fd = self._replaced()
        except OSError as error:
            log.warning("journal_stays_long", error=str(error))
        else:
            os.close(self._fd)
            self._fd = fd

    def give_back_all(self, undo: Callable[[Entry], None]) -> list[tuple[Entry, Exception]]:
        """Undo all that is pending, the last taken first; what failed stays pending and is returned with its reason.

        After a crash nobody knows how far the act got, so `undo` must also do for what was never taken.
        """
        failed = []
        for number, entry in reversed(self.pending.items()):
            try:
                undo(entry)
            except Exception as error:
                log.exception("give_back_failed", entry=msgspec.to_builtins(entry))
                failed.append((entry, error))
            else:
                self.given_back(number)
        return failed

    def close(self) -> None:
        """Let go of the file, which stays only while something is pending. May be called twice."""
        if self._lock >= 0:
            if not self._pending:
                self.path.unlink(missing_ok=True)
                self.path.with_suffix(".lock").unlink(missing_ok=True)      # last: until then nobody else may begin
            os.close(self._fd)
            os.close(self._lock)
            self._lock = -1

    def _append(self, line: _Line) -> None:
        size = os.fstat(self._fd).st_size
        try:
            _write_all(self._fd, msgspec.json.encode(line) + b"\n")
            os.fsync(self._fd)
        except BaseException:
            os.ftruncate(self._fd, size)        # no half line in front of the next one
            raise

    def _replaced(self) -> int:
        """Put a file with only what is pending in the journal's place; its descriptor, for appending.

        Raises OSError, and then the former file is still the journal.
        """
        fresh = self.path.with_suffix(".new")
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                for number, entry in self._pending.items():
                    _write_all(fd, msgspec.json.encode(_Line(number, taken=entry)) + b"\n")
                os.fsync(fd)
                os.replace(fresh, self.path)
            except BaseException:
                os.close(fd)
                raise
            with contextlib.suppress(OSError):      # whichever is found after a power failure, both say the same
                os.fsync(directory)
            return fd
        finally:
            os.close(directory)


def _locked(path: Path) -> int:
    """The lock is a file of its own, since the journal is replaced; the kernel drops it however its holder ends."""
    lock = path.with_suffix(".lock")
    while True:
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JournalError(f"cannot open the journal {path}: {error.strerror}; run as root, or choose another path"
                               ) from None
        if not _flocked(fd):
            holder = _holder(fd)
            os.close(fd)
            raise JournalError(f"another rustosd (process {holder}) holds the journal {path}: stop it first, "
                               "or give this one another path") from None
        if lock.exists() and os.path.samestat(os.fstat(fd), os.stat(lock)):
            break
        os.close(fd)        # its holder has removed it as we came
    os.truncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _flocked(fd: int) -> bool:
    """Lock the file; False: its holder lives. One that was killed is waited for, since its devices must close first."""
    start = time.monotonic()
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            waited = time.monotonic() - start
            # A process whose end has begun says so a moment after the signal.
            if waited > DYING_S or (waited > _NOTICE_S and not _ends(_holder(fd))):
                return False
        time.sleep(0.02)


def _holder(fd: int) -> str:
    return os.pread(fd, 32, 0).decode(errors="replace").strip()


def _ends(pid: str) -> bool:
    """Whether a process is on its way out (PF_EXITING of its flags, proc(5)) or gone."""
    if not pid.isdecimal():
        return False        # it has just begun
    try:
        flags = int(Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[6])
    except (OSError, ValueError, IndexError):
        return True
    return bool(flags & _PF_EXITING)


def _pending_of(path: Path) -> dict[int, Entry]:
    """What the file says is pending. A last line without its end was never acted upon: its writer died over it."""
    try:
        octets = path.read_bytes()
    except FileNotFoundError:
        return {}
    pending: dict[int, Entry] = {}
    for number, text in enumerate(octets.split(b"\n")[:-1], 1):
        try:
            line = msgspec.json.decode(text, type=_Line)
        except msgspec.MsgspecError as error:
            raise JournalError(f"{path}, line {number}: {error}. It says what a former rustosd took from this host: "
                               "give that back by hand, then delete the file") from None
        if line.taken is not None:
            pending[line.id] = line.taken
        elif line.given_back:
            pending.pop(line.id, None)
    return pending


def _write_all(fd: int, octets: bytes) -> None:
    while octets:
        octets = octets[os.write(fd, octets):]
