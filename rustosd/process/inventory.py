"""What /proc tells of the processes below us: their tree, their state, what they use, what they have open (proc(5))."""

import contextlib
import os
import pwd
import time
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, Final

from rustosd.scheduling import tasks

STATES: Final = {"R": "running", "S": "sleeping", "D": "waiting", "T": "stopped", "t": "traced", "Z": "zombie", "X": "dead",
                 "I": "idle", "P": "parked"}
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_CAP_NET_BIND_SERVICE: Final = 10
_COMMAND_MOST: Final = 1024
# Fields of /proc/PID/stat behind the name, from 0 on.
_STATE, _PARENT, _UTIME, _STIME, _NICE, _THREADS, _START, _RSS = 0, 1, 11, 12, 16, 17, 19, 21


def below(root: int, without: Container[int] = ()) -> list[int]:
    """Every process below one, children before their own; `without` some, which have no children."""
    found, unseen = [], [root]
    while unseen:
        pid = unseen.pop()
        if pid in without:
            continue
        found.append(pid)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):      # this thread has ended, and another has its children
                    unseen += map(int, (task / "children").read_text().split())
    return found[1:]


def proc_text(pid: int, what: str) -> str:
    """/proc/PID/`what`, where a program's name may be octets of no encoding. Raises OSError when it has ended."""
    return Path(f"/proc/{pid}/{what}").read_text(errors="replace")


def process_of(thread: int) -> int | None:
    """The process a thread belongs to; None: it has ended."""
    try:
        return int(status(thread)["Tgid"])
    except (OSError, KeyError):
        return None


def parent_of(pid: int) -> int | None:
    """The process that started one, or takes care of it since; None: it has ended."""
    try:
        text = proc_text(pid, "stat")
    except OSError:
        return None
    return int(text[text.rindex(")") + 2:].split()[_PARENT])


def describe(pid: int) -> dict[str, Any] | None:
    """One process as a row of `rustosd.control.process_protocol.Process`, without its group; None: it has ended."""
    try:
        text = proc_text(pid, "stat")
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        swapped = status(pid).get("VmSwap", "0 kB")
        owner = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
    name = text[text.index("(") + 1:text.rindex(")")]
    fields = text[text.rindex(")") + 2:].split()
    words = [word.decode(errors="replace") for word in command[:_COMMAND_MOST].split(b"\0") if word]
    return {
        "pid": pid, "parent": int(fields[_PARENT]), "state": STATES.get(fields[_STATE], fields[_STATE]), "name": name,
        "command": " ".join(words) or f"[{name}]", "user": user_name(owner), "nice": int(fields[_NICE]),
        "threads": int(fields[_THREADS]), "rss_octets": int(fields[_RSS]) * _PAGE,
        "swap_octets": int(swapped.split()[0]) * 1024, "cpu_s": (int(fields[_UTIME]) + int(fields[_STIME])) / _TICKS,
        "age_s": round(max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[_START]) / _TICKS), 2),
    }


def more_about(pid: int) -> dict[str, Any]:
    """What only a look at one process is worth. Raises OSError when it has ended, or is not ours to look at."""
    facts = status(pid)
    policy, priority = tasks.policy_of(pid)
    limits = {line[:26].strip(): line[26:47].strip() for line in proc_text(pid, "limits").splitlines()[1:]}
    return {
        "executable": _target(pid, "exe"), "directory": _target(pid, "cwd"),
        "session": os.getsid(pid), "affinity": sorted(os.sched_getaffinity(pid)), "policy": policy, "sched_priority": priority,
        "peak_rss_octets": int(facts.get("VmHWM", "0 kB").split()[0]) * 1024,
        "context_switches": sum(int(facts.get(f"{kind}_ctxt_switches", 0)) for kind in ("voluntary", "nonvoluntary")),
        "limits": limits,
    }


def status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status, of a process or thread. Raises OSError when it has ended."""
    return dict(line.split(":", 1) for line in proc_text(pid, "status").split("\n") if ":" in line)


def _target(pid: int, what: str) -> str:
    """Where a link of /proc/PID leads. Raises OSError."""
    return os.readlink(f"/proc/{pid}/{what}".encode()).decode(errors="replace")


def maps(pid: int) -> str:
    """What is mapped where (/proc/PID/maps); empty when it has ended."""
    try:
        return proc_text(pid, "maps")
    except OSError:
        return ""


def may_bind_ports_of_root(thread: int) -> bool:
    """Whether it has CAP_NET_BIND_SERVICE (capabilities(7)). Raises OSError when it has ended."""
    return bool(int(status(thread)["CapEff"], 16) >> _CAP_NET_BIND_SERVICE & 1)


def descriptors(pid: int) -> Iterator[tuple[int, str]]:
    """(number, what it is) of all that a process has open. Raises OSError."""
    for name in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
        with contextlib.suppress(OSError):
            yield int(name), _target(pid, f"fd/{name}")


def socket_inodes(pid: int) -> set[int]:
    """Of all sockets that a process holds; empty when it has ended."""
    try:
        return {int(target[8:-1]) for _, target in descriptors(pid) if target.startswith("socket:[")}
    except OSError:
        return set()


def user_name(number: int) -> str:
    """What a user is called; the number where nobody says."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
