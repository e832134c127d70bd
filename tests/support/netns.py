"""Network namespaces for tests: a private network that is always deleted.

    def test_ping(netns):                           # the fixture, from tests/conftest.py
        netns.run("ip", "addr", "add", "10.0.0.1/24", "dev", "lo")
        assert netns.call(body, "lo") == 1          # body("lo") in a forked child inside the namespace

`Netns` is also a context manager, for tests that need two. A machine where namespaces cannot be made skips such tests
and says why.
"""

import ctypes
import faulthandler
import itertools
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_CLONE_NEWNS = 0x00020000
_MS_SLAVE_REC = 0x00080000 | 0x00004000
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)
_serial = itertools.count()


class ChildDied(Exception):
    """The child of `Netns.call` was killed, ran out of time, or exited without an answer."""


class Netns:
    """A new network namespace with `lo` up. Raises subprocess.CalledProcessError when it cannot be made."""

    def __init__(self) -> None:
        self.name = f"rustosd-test-{os.getpid()}-{next(_serial)}"
        _ip("netns", "add", self.name)
        self.run("ip", "link", "set", "lo", "up")

    def __enter__(self) -> "Netns":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.delete()

    @property
    def path(self) -> Path:
        """The file that stands for the namespace, for setns(2) or `pyroute2`."""
        return _ROOT / self.name

    def run(self, *argv: str, check: bool = True, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess:
        """Run a command inside, to its end; its output is captured as text. A failure shows what it printed."""
        options.setdefault("capture_output", True)
        options.setdefault("text", True)
        done = subprocess.run(self._inside(argv), timeout=timeout, check=False, **options)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(argv)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen:
        """Start a command inside; `delete` kills it if it still runs then."""
        return subprocess.Popen(self._inside(argv), **options)

    def call(self, function: Callable[..., Any], *args: Any, timeout: float = 60) -> Any:
        """Call `function(*args)` in a forked child inside the namespace; return or raise what it does.

        The child sees the namespace's own /sys. Its processes die with it. Result and exception must be picklable.

        Raises ChildDied after `timeout` seconds, with the child's stack on stderr.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            self._child(writer, function, args, timeout)
        os.close(writer)
        try:
            answer = _read_all(reader, timeout + 5)
        finally:
            os.close(reader)
            _end_group(pid)
        if not answer:
            raise ChildDied(f"{function.__name__} in {self.name} ended without an answer (at most {timeout} s)")
        value, error, trace = pickle.loads(answer)
        if error is not None:
            error.add_note(f"in the child:\n{trace}")
            raise error
        return value

    def links(self) -> list[str]:
        """Names of the interfaces inside, without `lo`."""
        return sorted(name for name in self.run("ls", "/sys/class/net").stdout.split() if name != "lo")

    def delete(self) -> None:
        """Kill what runs inside and delete the namespace. May be called twice."""
        if not self.path.exists():
            return
        for pid in _ip("netns", "pids", self.name).split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        _ip("netns", "delete", self.name)

    def _inside(self, argv: tuple[str, ...]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *argv]

    def _child(self, writer: int, function: Callable[..., Any], args: tuple, timeout: float) -> None:
        """The forked child: never returns, never raises."""
        status = 1
        try:
            os.setsid()
            faulthandler.dump_traceback_later(timeout, exit=True, file=sys.__stderr__)
            try:
                self._enter()
                answer = function(*args), None, ""
            except BaseException as error:      # everything the body raises, pytest.skip too, belongs to the caller
                answer = None, error, traceback.format_exc()
            _write_all(writer, _pickled(answer))
            status = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _enter(self) -> None:
        """What `ip netns exec` does: the network namespace, and a /sys that shows it."""
        with open(self.path) as namespace:
            _checked(_libc.setns(namespace.fileno(), _CLONE_NEWNET), "setns")
        _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
        _checked(_libc.mount(b"", b"/", None, _MS_SLAVE_REC, None), "mount --make-rslave /")
        _libc.umount2(b"/sys", _MNT_DETACH)
        _checked(_libc.mount(b"sysfs", b"/sys", b"sysfs", 0, None), "mount /sys")


@pytest.fixture
def netns() -> Iterator[Netns]:
    """A fresh network namespace, deleted after the test whatever happens."""
    if why := unavailable():
        pytest.skip(why)
    with Netns() as namespace:
        yield namespace


def unavailable() -> str:
    """Why no namespace can be made here; empty when it can."""
    if not shutil.which("ip"):
        return "needs iproute2 (apt install iproute2)"
    if os.geteuid():
        return "needs root, for network namespaces"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return f"cannot make a network namespace: {probe.stderr.strip()}" if probe.returncode else ""


def _ip(*argv: str) -> str:
    return subprocess.run(["ip", *argv], check=True, capture_output=True, text=True).stdout


def _checked(result: int, what: str) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def _pickled(answer: tuple[Any, BaseException | None, str]) -> bytes:
    """The answer, or a description of why it cannot travel."""
    try:
        octets = pickle.dumps(answer)
        pickle.loads(octets)        # some exceptions pickle but do not come back
    except Exception as error:
        what = answer[2] or f"the result {answer[0]!r} cannot be pickled: {error}"
        octets = pickle.dumps((None, ChildDied(what), what))
    return octets


def _write_all(fd: int, octets: bytes) -> None:
    while octets:
        octets = octets[os.write(fd, octets):]


def _read_all(fd: int, timeout: float) -> bytes:
    """All that arrives until the end or the deadline."""
    deadline = time.monotonic() + timeout
    chunks = []
    while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            break
        chunks.append(chunk)
    return b"".join(chunks)


def _end_group(pid: int) -> None:
    """Reap the child and kill whatever it left behind."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
