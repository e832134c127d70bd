"""Our NBD server against nbdkit and qemu-nbd: the same file, each on a unix socket, fio as the client, in paired rounds."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lab import BenchError
from benchmarks.report import Report, Row, paired

TOOLS = {"fio": "fio", "nbdkit": "nbdkit", "qemu-nbd": "qemu-utils"}
OCTETS = 256 << 20
START_S = 20
TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")
OURS, PEERS = "rustosd", ("nbdkit", "qemu-nbd")


@dataclass(frozen=True)
class Load:
    """What fio asks for."""

    title: str
    pattern: str
    block: str
    depth: int
    clients: int = 1


LOADS = (
    *(Load(f"4 KiB random {what}, depth {depth}", f"rand{what}", "4k", depth)
      for what in ("read", "write") for depth in (1, 16, 64)),
    Load("256 KiB sequential read, depth 8", "read", "256k", 8),
    Load("256 KiB sequential write, depth 8", "write", "256k", 8),
    Load("4 KiB random read, 4 clients at depth 16", "randread", "4k", 16, 4),
)


@dataclass
class Server:
    """A server that runs."""

    name: str
    process: subprocess.Popen
    socket: Path
    export: str

    def cpu_ticks(self) -> int:
        """Of user and kernel, so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])


def measure(seconds: float, rounds: int, report: Report, say: Callable[[str], None]) -> None:
    """Fill the report. Raises BenchError when a program is missing or fails."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    if missing := [package for tool, package in TOOLS.items() if not shutil.which(tool, path=path)]:
        raise BenchError(f"missing: {', '.join(missing)}. As root: apt-get install {' '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="rustosd-bench-") as folder, _servers(Path(folder)) as servers:
        for load in LOADS:
            say(load.title)
            rates: dict[str, list[float]] = {server.name: [] for server in servers}
            costs: dict[str, list[float]] = {server.name: [] for server in servers}
            for number in range(rounds):
                for server in servers[number % len(servers):] + servers[:number % len(servers)]:
                    rate, cost = _run(server, load, seconds)
                    rates[server.name].append(rate)
                    costs[server.name].append(cost)
            report.rows += _rows(load, rates, costs)


def _rows(load: Load, rates: dict[str, list[float]], costs: dict[str, list[float]]) -> Iterator[Row]:
    for peer in PEERS:
        ratio = paired(rates[OURS], rates[peer])
        yield Row(f"NBD {load.title}", "1/s", statistics.median(rates[OURS]), peer, statistics.median(rates[peer]), ratio,
                  ">= 1", ratio >= 1, {name: rates[name] for name in (OURS, peer)})
    for peer in PEERS:
        yield Row("  server's CPU for each", "us", statistics.median(costs[OURS]), peer, statistics.median(costs[peer]),
                  paired(costs[OURS], costs[peer]), rounds={name: costs[name] for name in (OURS, peer)})


@contextmanager
def _servers(folder: Path) -> Iterator[list[Server]]:
    """All of them on one file of random octets."""
    image = folder / "image"
    with image.open("wb") as file:
        for _ in range(OCTETS >> 20):
            file.write(os.urandom(1 << 20))
    commands = {
        OURS: ([sys.executable, "-m", "benchmarks.nbd_server", str(image), str(folder / OURS)], "disk"),
        "nbdkit": (["nbdkit", "--foreground", "--unix", str(folder / "nbdkit"), "file", str(image)], ""),
        "qemu-nbd": (["qemu-nbd", "--socket", str(folder / "qemu-nbd"), "--format", "raw", "--export-name", "", "--shared", "8",
                      "--persistent", str(image)], ""),
    }
    running: list[Server] = []
    try:
        for name, (command, export) in commands.items():
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            running.append(Server(name, process, folder / name, export))
        limit = time.monotonic() + START_S
        for server in running:
            while not server.socket.exists():
                if server.process.poll() is not None or time.monotonic() > limit:
                    server.process.kill()
                    raise BenchError(f"{server.name} does not start: {server.process.communicate()[1].decode().strip()}")
                time.sleep(0.05)
        yield running
    finally:
        for server in running:
            server.process.terminate()
        for server in running:
            server.process.wait(10)


def _run(server: Server, load: Load, seconds: float) -> tuple[float, float]:
    """Operations a second, and the server's microseconds of CPU for each."""
    before = server.cpu_ticks()
    done = subprocess.run(
        ["fio", "--name=bench", "--thread", "--ioengine=nbd", f"--uri=nbd+unix:///{server.export}?socket={server.socket}",
         f"--rw={load.pattern}", f"--bs={load.block}", f"--iodepth={load.depth}", f"--numjobs={load.clients}",
         f"--size={OCTETS}", "--norandommap", "--time_based", f"--runtime={seconds}", "--group_reporting",
         "--output-format=json"], capture_output=True, text=True, timeout=60 + 4 * seconds)
    spent = server.cpu_ticks() - before
    try:
        job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
        operations = job["read"]["total_ios"] + job["write"]["total_ios"]
        rate = job["read"]["iops"] + job["write"]["iops"]
    except (ValueError, KeyError, IndexError):
        raise BenchError(f"fio on {server.name}: {done.stderr.strip()[-300:] or done.stdout[-300:]}") from None
    if job["error"] or not operations:
        raise BenchError(f"fio on {server.name} failed with error {job['error']}: {done.stderr.strip()[-300:]}")
    return rate, spent * TICK_US / operations
