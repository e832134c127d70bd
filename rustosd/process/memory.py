"""The memory of supervised programs: a userfaultfd for each address space, which the pager answers, and the order of things.

The order is what keeps data whole. Pages of an address space leave it only while none of its threads is about to unmap, move
or discard anything there: such calls stop before and behind the kernel's work (`filter.memory_rules`), wait for an eviction
that is under way, and are told to the pager before the program goes on. The supervisor decides that order; the pager asks it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from subprocess import DEVNULL, Popen
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mm.paging.userfault import EVENTS_OF_PROGRAMS, begin
from rustosd.memory_limits import Limits
from rustosd.process import packets, ptrace, userfault
from rustosd.process import syscalls as nr
from rustosd.process.filter import DISCARDING, FOR_CHILDREN, LARGE_OCTETS, MAP_ANONYMOUS, NOT_FOR_CHILDREN
from rustosd.process.helper import Helper, HelperDied
from rustosd.process.ptrace import Borrowed, Kind

if TYPE_CHECKING:
    from rustosd.process.monitor import Monitor

_PAGE: Final = 4096
_KCMP_VM: Final = 1
_ZEROED: Final = (4, 24)                    # advice behind which pages must read zero: DONTNEED, DONTNEED_LOCKED
_MREMAP_DONTUNMAP: Final = 4
_START_S: Final = 60.0
"""For the pager to begin: a Python of its own, on a machine that may be busy."""
_CAP_SYS_PTRACE: Final = 19
_TOLD_OCTETS: Final = 1 << 20
PAGER: Final = (sys.executable, "-P", "-m", "rustosd.process.pager")      # not the modules of where a program is started


class MemoryRefused(Exception):
    """Memory cannot be limited here; the message says what to do."""


@dataclass(eq=False)
class _Space:
    """One address space."""

    key: int
    users: set[int]                                 # processes: several after vfork
    helper: Helper
    fd: int                                         # our own duplicate: without it a pager that dies would turn pages to zero
    managed: bool = False                           # the pager has evicted, or is about to
    evicting: bool = False
    wanted: bool = False                            # the pager waits for running calls
    calling: set[int] = field(default_factory=set)  # threads in a call that changes mappings
    held: list[int] = field(default_factory=list)   # threads that wait before theirs
    top: int = 0                                    # highest end that brk(2) told
    untold: int = 0                                 # octets that its mappings have grown since the pager was told
    not_inherited: list[tuple[int, int]] = field(default_factory=list)      # ranges, by madvise(2)
    unborn: int = 0                                 # forked processes that have not started: the pager finds theirs by this one


class _Call(NamedTuple):
    process: int
    space: _Space
    number: int
    arguments: tuple[int, ...]
    since_ns: int


class Memory:
    """All address spaces of a group. Raises MemoryRefused at once when it cannot be."""

    def __init__(self, monitor: Monitor, limits: Limits, place: dict[str, Any], fd: int,
                 swap_fault: Callable[[int, int, str], None], give_up: Callable[[str], None],
                 pager: Sequence[str] = PAGER) -> None:
        """`place` and `fd`, the caller's: where swap is (`rustosd.swap.place`). `pager`: the command that serves a descriptor.

        `swap_fault(thread, address, why)`: of a page that is lost. `give_up(why)`: the pager has ended, and so must the group.
        """
        check_rights()
        self.limits = limits
        self.cookie = int.from_bytes(os.urandom(4), "little") | 1
        self.attendants: set[int] = set()           # processes of ours among the group's
        self._monitor, self._swap_fault, self._give_up = monitor, swap_fault, give_up
        self._spaces: dict[int, _Space] = {}        # by process
        self._by_key: dict[int, _Space] = {}
        self._parents: dict[int, _Space] = {}       # a process that was forked -> from what, until it starts
        self._starting: dict[int, tuple[int, _Space, Helper | None]] = {}   # key -> process that waits for its space
        self._calls: dict[int, _Call] = {}
        self._last_key = 0
        self._ended = False
        self.unpaged: str = ""                      # why some address space is not paged
        self._end, theirs = packets.pair()
        settings = {"soft": limits.soft, "hard": limits.hard, "place": place, "supervisor": os.getpid()}
        self._pager = Popen([*pager, str(theirs.fileno())], stdin=DEVNULL, pass_fds=(theirs.fileno(),), start_new_session=True)
        theirs.close()
        self.attendants.add(self._pager.pid)
        self._end.settimeout(_START_S)
        try:
            packets.send(self._end, settings, fd)
            answer = packets.receive(self._end)
        except OSError as error:
            answer = ({"error": f"the pager does not answer: {error}"}, -1)
        if answer is None or "error" in answer[0]:
            self.close()
            raise MemoryRefused(answer[0]["error"] if answer else "the pager has ended before it began")
        self._end.setblocking(False)
        monitor.on_exec.append(self._executed)
        monitor.on_fork.append(self._forked)
        monitor.on_start.append(self._started)
        monitor.on_exit.append(self._exited)
        monitor.on_call, monitor.on_call_end = self._call_begins, self._call_ends
        self._verbs: dict[str, Callable[..., None]] = {
            "want": self._want, "drop": self._drop, "cover": self._cover, "done": self._done, "claimed": self._claimed,
            "lost": self._lost, "figures": self._figures}
        self.latest: dict[str, Any] = {}
        """What the pager told last: "memory", "totals" and "swap"."""

    @property
    def socket(self) -> socket.socket:
        """Readable when the pager has something to say: `told`."""
        return self._end

    @property
    def pager_pid(self) -> int:
        return self._pager.pid

    def told(self, _events: int = 0) -> None:
        """Take in what the pager says."""
        while not self._ended:
            try:
                packet = packets.receive(self._end)
            except BlockingIOError:
                return
            if packet is None:
                self._ended = True
                self._give_up("the pager of this program has ended, and with it what was in swap")
                return
            fields, fd = packet
            verb = self._verbs[fields.pop("op")]
            try:
                verb(**fields, fd=fd) if fd >= 0 else verb(**fields)
            except (ProcessLookupError, ptrace.Ended, HelperDied):
                pass                            # it was killed; its end is reported next
            except BrokenPipeError:
                continue

    def refresh(self) -> None:
        """Have the pager tell `latest` anew, before long; now and then it does so unasked."""
        self.latest = {}
        self._send({"op": "tell"})

    def swapped_octets(self, pid: int) -> int:
        """Of one process, as the pager told last."""
        return sum(row["swapped_octets"] for row in self.latest.get("memory", {}).get("spaces", ()) if row["pid"] == pid)

    def close(self) -> None:
        """The group has ended."""
        self._ended = True
        for space in self._by_key.values():
            space.helper.end()
            os.close(space.fd)
        self._by_key.clear()
        self._spaces.clear()
        self._parents.clear()
        self._end.close()
        with contextlib.suppress(ProcessLookupError):
            self._pager.kill()
        self._pager.wait()

    def _send(self, packet: dict[str, Any], fd: int = -1) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):     # its end is told by its socket
            packets.send(self._end, packet, fd)

    # the life of address spaces

    def _executed(self, pid: int) -> None:
        """A new program: a new address space."""
        former = self._leave(pid)
        try:
            with Borrowed(pid, Kind.EXEC) as thread:
                if former is not None:
                    former.end(thread)
                    self.attendants.discard(former.pid)
                self._attach(pid, thread, None)
        except OSError as error:
            self._cannot(pid, error)

    def _attach(self, pid: int, thread: Borrowed, former: Helper | None) -> None:
        """Make a userfaultfd and a helper in a borrowed thread's address space. Raises OSError, ptrace.Ended."""
        fd = userfault.make(thread, pid, self.cookie)
        try:
            begin(fd, EVENTS_OF_PROGRAMS)
            helper = Helper.start(thread, self.cookie, former)
        except BaseException:
            os.close(fd)
            raise
        space = self._enter(pid, helper, fd)
        self._send({"op": "attach", "key": space.key, "pid": pid}, fd)

    def _enter(self, pid: int, helper: Helper, fd: int, key: int = 0) -> _Space:
        self.attendants.add(helper.pid)
        key = key or self._new_key()
        space = self._spaces[pid] = self._by_key[key] = _Space(key, {pid}, helper, fd)
        return space

    def _new_key(self) -> int:
        self._last_key += 1
        return self._last_key

    def _cannot(self, pid: int, error: OSError) -> None:
        """This address space is not paged: it may not make a userfaultfd."""
        first, self.unpaged = not self.unpaged, f"the memory of process {pid} is not limited: {error.strerror}"
        if why := userfault.why_not():
            self.unpaged += f". {why}"
        if first:
            print(f"rustosctl: {self.unpaged}", file=sys.stderr, flush=True)

    def _forked(self, parent: int, child: int, kind: str) -> None:
        """It shares its parent's address space, or needs its own: before it starts the parent may have executed, or ended."""
        space = self._spaces.get(parent)
        if space is None:
            return
        if _same_memory(parent, child, kind):
            space.users.add(child)
            self._spaces[child] = space
        else:
            self._parents[child] = space
            space.unborn += 1

    def _started(self, child: int) -> bool:
        """A forked process is about to run."""
        space = self._parents.get(child)
        if space is None:
            return False
        try:
            if not space.managed:
                self._start_afresh(child, space)
                return False
            key = self._new_key()               # the kernel made a userfaultfd for it, which the pager has
            self._starting[key] = child, space, space.helper
            self._send({"op": "claim", "parent": space.key, "key": key, "pid": child, "forget": space.not_inherited})
            return True
        finally:
            self._born(child)

    def _born(self, child: int) -> None:
        """It needs its parent's space no more, or has ended."""
        if (space := self._parents.pop(child, None)) is not None:
            space.unborn -= 1
            self._end_space(space)

    def _end_space(self, space: _Space) -> None:
        """Tell the pager, unless somebody needs it."""
        if not space.users and not space.unborn:
            self._send({"op": "end", "key": space.key})

    def _start_afresh(self, child: int, parent: _Space) -> None:
        try:
            with Borrowed(child, Kind.TRAPPED) as thread:
                self._attach(child, thread, parent.helper)
        except OSError as error:
            self._cannot(child, error)
        else:
            self._spaces[child].top = parent.top
            self._spaces[child].not_inherited = list(parent.not_inherited)

    def _claimed(self, key: int, fd: int = -1) -> None:
        """The pager has found a forked process's space, or there is none: its parent had nothing registered."""
        child, parent, former = self._starting.pop(key)
        try:
            if fd < 0:
                self._start_afresh(child, parent)
            else:
                with Borrowed(child, Kind.TRAPPED) as thread:
                    space = self._enter(child, Helper.start(thread, self.cookie, former), fd, key)
                space.managed, space.top, space.not_inherited = True, parent.top, list(parent.not_inherited)
            ptrace.go_on(child)
        except (ProcessLookupError, ptrace.Ended):
            if fd >= 0 and child not in self._spaces:
                os.close(fd)
                self._send({"op": "end", "key": key})
            raise

    def _exited(self, pid: int, _status: int) -> None:
        self._born(pid)
        if (helper := self._leave(pid)) is not None:
            helper.end()
            self.attendants.discard(helper.pid)

    def _leave(self, pid: int) -> Helper | None:
        """A process has another address space now, or none. The helper of one that nobody has any more."""
        for tid in [tid for tid, call in self._calls.items() if call.process == pid]:
            space = self._calls.pop(tid).space
            space.calling.discard(tid)
            self._next(space)
        if (space := self._spaces.pop(pid, None)) is None:
            return None
        space.users.discard(pid)
        if space.users:
            return None
        del self._by_key[space.key]
        os.close(space.fd)
        self._end_space(space)
        return space.helper

    # calls that change mappings

    def _call_begins(self, tid: int) -> None:
        """A thread stands before one."""
        process = self._monitor.process_of(tid)
        space = self._spaces.get(process)
        if space is None:
            ptrace.go_on(tid)
            return
        found = ptrace.registers(tid)
        self._calls[tid] = _Call(process, space, found.orig_rax, (found.rdi, found.rsi, found.rdx, found.r10, found.r8),
                                 time.monotonic_ns())
        space.held.append(tid)
        self._next(space)

    def _call_ends(self, tid: int) -> None:
        """The kernel has carried it out: what it did is told to the pager before the thread goes on."""
        call = self._calls.get(tid)
        if call is None:
            ptrace.go_on(tid)
            return
        result = ctypes.c_int64(ptrace.registers(tid).rax).value
        grown, effect, space = _grown(call, result), _effect(call, result), call.space
        if not space.managed:                   # nothing of it is in swap: what matters is how much it may fill
            space.untold += grown[1] - grown[0] if grown else 0
            if space.untold < _TOLD_OCTETS:
                self._finish(tid)
                return
            space.untold, effect = 0, None
        if effect or grown:
            self._send({"op": "call", "key": space.key, "token": tid, "since": call.since_ns, "grown": grown,
                        **(effect or {"forget": []})})
        else:
            self._finish(tid)

    def _done(self, token: int, copied: bool) -> None:
        """The pager knows. `copied`: it may have brought something in while the kernel did away with it."""
        if copied and (call := self._calls.get(token)) is not None and _leaves_zeros(call):
            call.space.helper.drop([(call.arguments[0], _up(call.arguments[1]))])
        self._finish(token)

    def _finish(self, tid: int) -> None:
        if (call := self._calls.pop(tid, None)) is None:
            return
        call.space.calling.discard(tid)
        try:
            ptrace.go_on(tid)
        finally:
            self._next(call.space)

    def _next(self, space: _Space) -> None:
        """Let the pager evict, or whoever waits make his call: one after the other, once there is anything in swap.

        Two at once may be told in another order than they were carried out: one frees addresses, the other one takes them.
        """
        self._grant(space)
        while space.held and not space.evicting and not space.wanted and not (space.managed and space.calling):
            tid = space.held.pop(0)
            if tid in self._calls:
                space.calling.add(tid)
                self._calls[tid] = self._calls[tid]._replace(since_ns=time.monotonic_ns())
                with contextlib.suppress(ProcessLookupError):
                    ptrace.go_on_to_call_end(tid)

    # eviction

    def _want(self, key: int) -> None:
        if (space := self._by_key.get(key)) is not None:
            space.wanted = space.managed = True
            self._grant(space)

    def _cover(self, key: int) -> None:
        """The pager is to answer for all mappings of a space. From now on it is told of calls, and finds its children."""
        if (space := self._by_key.get(key)) is not None:
            space.managed = True
            self._send({"op": "cover", "key": key})

    def _grant(self, space: _Space) -> None:
        """The pager may evict, once nobody changes mappings."""
        if space.wanted and not space.calling and space.key in self._by_key:
            space.wanted, space.evicting = False, True
            self._send({"op": "grant", "key": space.key})

    def _drop(self, key: int, ranges: list[tuple[int, int]], more: bool = False) -> None:
        """What the pager has put in swap leaves the address space. `more`: it would go on at once, if nobody has to wait."""
        if (space := self._by_key.get(key)) is None:
            return
        failed = []
        if ranges:
            try:
                results = space.helper.drop(ranges)
            except HelperDied:                  # somebody has killed it, and nobody else can do its work
                self._kill(space)
                return
            failed = [place[0] for place, result in zip(ranges, results, strict=True) if result]
        space.evicting = more and not space.held and not space.calling
        self._send({"op": "dropped", "key": key, "failed": failed, "again": space.evicting})
        self._next(space)

    def _lost(self, key: int, thread: int, address: int, why: str) -> None:
        """A page that a thread waits for is lost."""
        space = self._by_key.get(key)
        if space is None:
            return
        try:
            if not thread:
                raise ProcessLookupError
            self._swap_fault(thread, address, why)
        except OSError:                         # nobody of the group's, or gone
            self._kill(space)

    @staticmethod
    def _kill(space: _Space) -> None:
        for pid in space.users:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _figures(self, **figures: Any) -> None:
        self.latest = figures


def check_rights(root: bool = True) -> None:
    """Raises MemoryRefused: whoever pages others' memory needs a right that root has. `root`: whether the program is root's."""
    with open("/proc/self/status") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    if not effective >> _CAP_SYS_PTRACE & 1:
        raise MemoryRefused("memory limits are for root: to be told of the page faults of programs that fork, Linux wants "
                            "CAP_SYS_PTRACE. Run it with sudo")
    if not root and (why := userfault.why_not()):
        raise MemoryRefused(why)


def _effect(call: _Call, result: int) -> dict[str, Any] | None:
    """What a call has done to pages that may be in swap, for the pager; None: nothing. Ranges are forgotten, then moved."""
    a, b, c = call.arguments[:3]
    space = call.space
    if call.number == nr.BRK:
        former, space.top = space.top, result
        return {"forget": [(_up(result), _up(former))]} if result < former else None
    if call.number == nr.MADVISE:
        if -result == errno.ENOMEM or result == 0:
            span = a, a + _up(b)
            if c in NOT_FOR_CHILDREN:
                space.not_inherited.append(span)
            elif c in FOR_CHILDREN:
                space.not_inherited = [part for whole in space.not_inherited for part in _without(whole, span)]
            elif c in DISCARDING:
                return {"forget": [span]}
        return None
    if -4096 < result < 0:
        return {"forget": [], "unmapped": True}         # some of it may have been done before it failed
    if call.number == nr.MUNMAP:
        return {"forget": [(a, a + _up(b))]}
    if call.number == nr.MMAP:
        return {"forget": [(result, result + _up(b))]}
    old, new = _up(b), _up(c)                           # mremap
    if result == a:
        return {"forget": [(a + min(old, new), a + max(old, new))]} if old != new else None
    return {"forget": [(result, result + new), *([(a + new, a + old)] if new < old else [])],
            "move": (a, a + min(old, new), result)}


def _grown(call: _Call, result: int) -> tuple[int, int] | None:
    """Where a call has made room for new memory, if it has. Before `_effect`."""
    if call.number == nr.BRK:
        return (call.space.top or result - LARGE_OCTETS, result) if result > call.space.top else None
    if -4096 < result < 0:
        return None
    if call.number == nr.MMAP and call.arguments[3] & MAP_ANONYMOUS:
        return result, result + _up(call.arguments[1])
    if call.number == nr.MREMAP and call.arguments[2] > call.arguments[1]:
        return result, result + _up(call.arguments[2])
    return None


def _leaves_zeros(call: _Call) -> bool:
    """Whether its first range is still mapped afterwards, and must read zero."""
    return ((call.number == nr.MADVISE and call.arguments[2] in _ZEROED)
            or (call.number == nr.MREMAP and bool(call.arguments[3] & _MREMAP_DONTUNMAP)))


def _without(whole: tuple[int, int], part: tuple[int, int]) -> list[tuple[int, int]]:
    """What is left of a range."""
    pieces = [(whole[0], min(whole[1], part[0])), (max(whole[0], part[1]), whole[1])]
    return [(start, end) for start, end in pieces if start < end]


def _up(octets: int) -> int:
    return (octets + _PAGE - 1) & -_PAGE


def _same_memory(parent: int, child: int, kind: str) -> bool:
    """Whether two processes have one address space. `kind`: how the child was made, for kernels without kcmp(2)."""
    try:
        return nr.call(nr.KCMP, parent, child, _KCMP_VM, 0, 0) == 0
    except OSError:
        return kind == "vfork"
