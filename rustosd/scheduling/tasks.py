"""Policies, nice values and affinity, thread by thread: sched(7). What a thread starts, thread or process, has what it has."""

import contextlib
import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}
_ATTR: Final = struct.Struct("=IIQiIQQQ")       # struct sched_attr, its first version
_ROUNDS: Final = 8
"""How often all threads are gone through; those that start meanwhile have what their maker had."""
POLICIES: Final = {os.SCHED_OTHER: "other", os.SCHED_BATCH: "batch", os.SCHED_IDLE: "idle", os.SCHED_RR: "round robin",
                   os.SCHED_FIFO: "fifo", 6: "deadline"}
NEEDS_RIGHT: Final = "it needs CAP_SYS_NICE: run it as root, or give the service that capability"

_libc = ctypes.CDLL(None, use_errno=True)


def threads(pid: int) -> Iterator[int]:
    """Those of a process; none when it has ended."""
    with contextlib.suppress(OSError):
        yield from map(int, os.listdir(f"/proc/{pid}/task"))


def for_all(processes: Callable[[], Iterable[int]], act: Callable[[int], None]) -> None:
    """Do it to every thread of some processes, and to those that come meanwhile. Raises OSError.

    A thread that ended is passed over.
    """
    done: set[int] = set()
    for _ in range(_ROUNDS):
        fresh = {tid for pid in processes() for tid in threads(pid)} - done
        if not fresh:
            return
        for tid in fresh:
            with contextlib.suppress(ProcessLookupError):
                act(tid)
        done |= fresh


def set_policy(tid: int, policy: int, nice: int, realtime: int = 0, slice_ns: int = 0, *, reset_on_fork: bool = False) -> None:
    """`realtime`: sched_priority, for SCHED_RR. Raises OSError; a kernel that knows no slices passes over them."""
    flags = os.SCHED_RESET_ON_FORK if reset_on_fork else 0
    fair = policy in (os.SCHED_OTHER, os.SCHED_BATCH)
    number = _SCHED_SETATTR.get(platform.machine())
    try:
        if number is not None and fair:
            attributes = _ATTR.pack(_ATTR.size, policy, int(reset_on_fork), nice, 0, slice_ns, 0, 0)
            if _libc.syscall(number, tid, attributes, 0) == 0:
                return
            if (failure := ctypes.get_errno()) != errno.ENOSYS:
                raise OSError(failure, os.strerror(failure))
        os.sched_setscheduler(tid, policy | flags, os.sched_param(realtime))
        if policy != os.SCHED_RR:
            os.setpriority(os.PRIO_PROCESS, tid, nice)
    except PermissionError:
        raise PermissionError(errno.EPERM, f"the daemon may not change how process {tid} is scheduled: {NEEDS_RIGHT}") from None


def set_affinity(tid: int, processors: Iterable[int]) -> None:
    """Raises OSError."""
    try:
        os.sched_setaffinity(tid, processors)
    except PermissionError:
        raise PermissionError(errno.EPERM, f"the daemon may not choose processors for process {tid}: {NEEDS_RIGHT}") from None


def weigh_session(pid: int, nice: int) -> None:
    """Give the session that a process leads a nice value, where the kernel weighs sessions first (sched_autogroup_enabled).

    Nice values count only within a session then. The setting ends with the session; a process that leads none is left alone.
    """
    with contextlib.suppress(OSError):
        if os.getsid(pid) == pid:
            Path(f"/proc/{pid}/autogroup").write_text(str(nice))


def policy_of(tid: int) -> tuple[str, int]:
    """Its policy's name and its sched_priority. Raises OSError."""
    policy = os.sched_getscheduler(tid) & ~os.SCHED_RESET_ON_FORK
    return POLICIES.get(policy, str(policy)), os.sched_getparam(tid).sched_priority


def pressure(path: Path = Path("/proc/pressure/cpu")) -> float | None:
    """Percent of the last ten seconds in which somebody waited for a processor (PSI); None: the kernel does not count it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return float(path.read_text().split("avg10=")[1].split()[0])
    return None


def busy_ticks(text: str | None = None) -> dict[int, tuple[int, int]]:
    """For each processor, the ticks it was busy and all ticks, since the boot (/proc/stat)."""
    found = {}
    for line in (Path("/proc/stat").read_text() if text is None else text).splitlines():
        if line.startswith("cpu") and line[3:4].isdigit():
            name, *ticks = line.split()
            counts = [int(each) for each in ticks[:8]]      # guests' time is in user's already
            found[int(name[3:])] = (sum(counts) - counts[3] - counts[4], sum(counts))
    return found
