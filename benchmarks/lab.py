"""Network namespaces and the processes in them, all of which end with the `Lab` that made them."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "rustosd-bench-"
_NAMESPACES = Path("/run/netns")


class BenchError(Exception):
    """Something the measurements need is missing or went wrong; the text says what to do."""


class Lab:
    """Makes namespaces and runs programs in them; leaving the context kills the programs and deletes the namespaces."""

    def __init__(self, cpus: Sequence[int] | None) -> None:
        """`cpus`: the processors that serve and that ask, as (server, client); None leaves placement to the kernel."""
        self.cpus = cpus
        self._undo = contextlib.ExitStack()
        self._serial = 0

    def __enter__(self) -> Lab:
        _delete_orphans()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._undo.close()

    def namespace(self) -> str:
        """A new namespace with `lo` up, and with ports enough for a client that connects all the time."""
        name = f"{PREFIX}{os.getpid()}-{self._serial}"
        self._serial += 1
        run("ip", "netns", "add", name)
        self._undo.callback(_delete, name)
        self.inside(name, "ip", "link", "set", "lo", "up")
        self.inside(name, "sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65000", "net.ipv4.tcp_tw_reuse=1",
                    "net.core.somaxconn=4096", "net.ipv4.tcp_max_syn_backlog=4096")
        return name

    def inside(self, namespace: str, *argv: str) -> str:
        """Run a command in a namespace to its end; what it printed."""
        return run("ip", "netns", "exec", namespace, *argv)

    def client(self, namespace: str, *argv: str, timeout: float) -> str:
        """Run a client program in a namespace, on the clients' processor; what it printed."""
        return run("ip", "netns", "exec", namespace, *self._placed(1), *argv, timeout=timeout)

    def server(self, namespace: str, *argv: str) -> Child:
        """Start a server in a namespace, on the servers' processor."""
        return self._start(namespace, 0, argv)

    def program(self, namespace: str, *argv: str) -> Child:
        """Start a program that uses a server, on a processor of its own if there is one, else wherever the kernel puts it."""
        return self._start(namespace, 2, argv)

    def directory(self) -> Path:
        """A new directory for sockets."""
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._undo.callback(shutil.rmtree, path, ignore_errors=True)
        return path

    def background(self, namespace: str, *argv: str) -> Child:
        """Start a client that stays."""
        return self._start(namespace, 1, argv)

    def _start(self, namespace: str, place: int, argv: Sequence[str]) -> Child:
        child = Child(["ip", "netns", "exec", namespace, *self._placed(place), *argv])
        self._undo.callback(child.stop)
        return child

    def _placed(self, place: int) -> list[str]:
        if not self.cpus:
            return []
        if place < len(self.cpus):
            return ["taskset", "-c", str(self.cpus[place])]
        others = os.sched_getaffinity(0) - set(self.cpus)
        return ["taskset", "-c", ",".join(map(str, others))] if others else []


class Child:
    """A program that prints a line when it is ready and ends when its standard input does."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._process = subprocess.Popen(argv, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         start_new_session=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def line(self, timeout: float) -> str:
        """The next line it prints. Raises BenchError when none comes in time or it ended."""
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            raise BenchError(f"{self._name}: silent for {timeout:.0f} s")
        text = self._process.stdout.readline()
        if not text:
            raise BenchError(f"{self._name}: ended with status {self._process.wait(10)}; its own words are above")
        return text.strip()

    def rss(self) -> int:
        """Resident memory, octets."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        """End it, kindly first. May be called twice."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    @property
    def _name(self) -> str:
        return " ".join(self._process.args[4:])


def run(*argv: str, timeout: float = 60) -> str:
    """Run a command to its end; what it printed. Raises BenchError with what it complained about."""
    try:
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError:
        raise BenchError(f"{argv[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise BenchError(f"{' '.join(argv)}: not done after {timeout:.0f} s") from None
    if done.returncode:
        raise BenchError(f"{' '.join(argv)}: exit status {done.returncode}\n{done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def signals_unwind() -> Iterator[None]:
    """Within, the signals that end a program raise SystemExit instead, so that everything is put back."""
    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, leave) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _delete(namespace: str) -> None:
    """Kill what still runs in a namespace and delete it."""
    for _ in range(10):
        pids = run("ip", "netns", "pids", namespace).split()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if not pids:
            break
        time.sleep(0.05)
    run("ip", "netns", "delete", namespace)


def _delete_orphans() -> None:
    """Delete what runs that were killed have left."""
    for path in _NAMESPACES.glob(f"{PREFIX}*-*"):
        if not Path(f"/proc/{path.name.removeprefix(PREFIX).split('-')[0]}").exists():
            _delete(path.name)
