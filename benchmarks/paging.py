"""A program that touches twice the memory it may have: under our limits, and under Linux's with a swap file of its own.

Rounds go through both in turn. Linux has a memory cgroup (v1 or v2) and a file on the same disk for it; where there is none
to be had, a note says why. Our swap is once in the page cache, as it is by default, and once past it (`direct`), as Linux's is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.lab import ROOT, BenchError, run
from benchmarks.report import Report, Row, paired
from mm.region import PAGE, SwappedRegion
from mm.swap.aes_gcm import aes_gcm
from mm.swap.device import FileDevice
from mm.swap.seal import Checksum, Sealer
from mm.swap.store import SwapStore
from rustosd.process.memory import MemoryRefused, check_rights
from tests.rustosd.process.paged import Paged

_MIB = 1 << 20
LIMIT_MIB = 128
TOUCHES = 60_000
_CGROUPS = Path("/sys/fs/cgroup")
_PATIENCE_S = 280
_OURS, _DIRECT, _LINUX = "rustosd", "rustosd, direct", "Linux's swap"
FAULT_GOAL_US, CLUSTER_GOAL, EVICTION_GOAL = 12, 2000, 500

Figures = dict[str, float]


def measure(rounds: int, report: Report, say: Callable[[str], None]) -> None:
    """Fill the report. Raises BenchError."""
    if not shutil.which("cc"):
        raise BenchError("missing: gcc. As root: apt-get install gcc")
    try:
        check_rights()
    except MemoryRefused as refused:
        report.notes.append(f"programs were left out: {refused}")
        return
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build", prefix="bench-swap-") as name:
        folder = Path(name)
        program = str(folder / "touch_memory")
        run("cc", "-O2", "-o", program, str(Path(__file__).with_name("touch_memory.c")))
        say("swap: pages in order, of our own memory")
        for sealer in (aes_gcm, Checksum):
            report.rows.append(_clusters(folder, sealer, rounds))
        report.notes.append(f"AES-256-GCM is by {aes_gcm().by}")
        ways: dict[str, Callable[[], Figures]] = {
            _OURS: lambda: _ours(program, folder, {}), _DIRECT: lambda: _ours(program, folder, {"direct": True})}
        with contextlib.ExitStack() as undo:
            try:
                group = undo.enter_context(_limited(folder))
                ways[_LINUX] = lambda: _linux(program, group)
            except BenchError as error:
                report.notes.append(f"Linux's own swap was left out: {error}")
            _compare(ways, rounds, report, say)


def _compare(ways: dict[str, Callable[[], Figures]], rounds: int, report: Report, say: Callable[[str], None]) -> None:
    found: dict[str, list[Figures]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[::1 if number % 2 else -1]:
            say(f"swap: programs, round {number + 1}, {name}")
            found[name].append(ways[name]())
    for ours in (_OURS, _DIRECT):
        for title, unit, key, goal, most in _MEASURES:
            values = {name: [figures[key] for figures in found[name]] for name in (ours, _LINUX) if name in found}
            middle, peer = statistics.median(values[ours]), values.get(_LINUX)
            ratio = paired(values[ours], peer) if peer else None
            met = None
            if goal == "<= Linux":
                met = ratio <= 1 if ratio is not None else None
            elif goal and ours == _OURS:        # without the disk
                met = middle <= most if goal.startswith("<") else middle >= most
            shown = goal if met is not None else ""
            report.rows.append(Row(f"{title}{' (direct)' if ours == _DIRECT else ''}", unit, middle, _LINUX if peer else "",
                                   statistics.median(peer) if peer else None, ratio, shown, met, values))


_MEASURES = (
    ("fault at random, median", "us", "read_fault_p50_us", f"<= {FAULT_GOAL_US}", FAULT_GOAL_US),
    ("touch at random over twice the limit, read", "us", "read_touch_us", "<= Linux", 0),
    ("the same, write", "us", "write_touch_us", "<= Linux", 0),
    ("eviction, while memory is filled", "MB/s", "evict_mb_per_s", f">= {EVICTION_GOAL}", EVICTION_GOAL),
    ("read in order, over twice the limit", "MB/s", "in_order_mb_per_s", "", 0),
)


def _figures(printed: str) -> Figures:
    """What the program took, in units of the report."""
    took = {name: int(number) for name, number in (line.split() for line in printed.splitlines())}
    octets = 2 * LIMIT_MIB * _MIB
    return {"evict_mb_per_s": octets / 2 / took["fill_ns"] * 1e3,
            "in_order_mb_per_s": octets / statistics.median((took["in_order_0_ns"], took["in_order_1_ns"])) * 1e3,
            **{f"{way}_{what}_us": took[f"{way}_{what}_ns"] / 1e3 for way in ("read", "write")
               for what in ("touch", "fault_p50", "fault_p99")}}


def _ours(program: str, folder: Path, place: dict[str, Any]) -> Figures:
    with open(folder / "printed", "w+") as printed:
        one = Paged(program, str(2 * LIMIT_MIB), str(TOUCHES), soft=LIMIT_MIB * _MIB, hard=LIMIT_MIB * _MIB * 5 // 4,
                    folder=folder, octets=4 * LIMIT_MIB * _MIB, stdout=printed.fileno(), place=place)
        try:
            if one.run(_PATIENCE_S):
                raise BenchError(f"the program under our limit ended with {one.status} {one.gave_up}")
        finally:
            one.end()
        printed.seek(0)
        return _figures(printed.read())


def _linux(program: str, group: Path) -> Figures:
    join = f'echo $$ >{group}/cgroup.procs && exec "$@"'
    return _figures(run("sh", "-c", join, "sh", program, str(2 * LIMIT_MIB), str(TOUCHES), timeout=_PATIENCE_S))


@contextlib.contextmanager
def _limited(folder: Path) -> Iterator[Path]:
    """A memory cgroup with the limit, and a swap file for it. Raises BenchError."""
    one = _CGROUPS / "memory" if (_CGROUPS / "memory" / "memory.limit_in_bytes").exists() else _CGROUPS
    name = "memory.limit_in_bytes" if one != _CGROUPS else "memory.max"
    if one == _CGROUPS and "memory" not in _controllers():
        raise BenchError("there is no memory controller among the cgroups")
    file = folder / "linux-swap"
    with contextlib.ExitStack() as undo:
        try:
            with open(file, "wb") as made:
                os.fchmod(made.fileno(), 0o600)
                os.posix_fallocate(made.fileno(), 0, 4 * LIMIT_MIB * _MIB)
            run("mkswap", str(file))
            run("swapon", str(file))
            undo.callback(subprocess.run, ["swapoff", str(file)], check=False)
            group = one / f"rustosd-bench-{os.getpid()}"
            group.mkdir()
            undo.callback(group.rmdir)
            (group / name).write_text(str(LIMIT_MIB * _MIB))
        except OSError as error:
            raise BenchError(f"{error.filename or file}: {error.strerror}") from None
        yield group


def _controllers() -> list[str]:
    with contextlib.suppress(OSError):
        return (_CGROUPS / "cgroup.subtree_control").read_text().split()
    return []


def _clusters(folder: Path, sealer: Callable[[], Sealer], rounds: int) -> Row:
    """How fast pages come back in order, while nothing has to leave for them."""
    rates = []
    octets = 2 * LIMIT_MIB * _MIB
    for _ in range(rounds):
        store = SwapStore(FileDevice(str(folder / "region"), 2 * octets), sealer=sealer())
        with SwappedRegion(octets, octets // 16, store, keep_awake=True) as region:
            rates.append(_read_back(region))
        store.close()
    rate = statistics.median(rates)
    return Row(f"swap-in in order, {store.sealer.name}", "MB/s", rate, goal=f">= {CLUSTER_GOAL}", met=rate >= CLUSTER_GOAL,
               rounds={_OURS: rates})


def _read_back(region: SwappedRegion) -> float:
    """MB/s."""
    content = os.urandom(PAGE)
    with memoryview(region.memory) as view:
        for at in range(0, region.size, PAGE):
            view[at:at + PAGE] = content
            view[at:at + 8] = at.to_bytes(8, "little")
        region.set_limit(0)
        away = region.size // PAGE - region.stats.resident
        begin = time.perf_counter()
        bytes(view[::PAGE])                 # an octet of each page, in one call
        return away * PAGE / (time.perf_counter() - begin) / 1e6
