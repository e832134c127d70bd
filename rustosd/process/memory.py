"""The memory of supervised programs: a userfaultfd for each address space, which the pager answers, and the order of things.

The order is what keeps data whole. Pages of an address space leave it only while none of its threads is about to unmap, move
or discard anything there: such calls stop before and behind the kernel's work (`filter.memory_rules`), wait for an eviction
that is under way, and are told to the pager before the program goes on. The supervisor decides that order; the pager asks it.

The order is also what keeps the limit: nobody has more to fill than the pager knows of, but for little (`Limits.untold`).
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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from subprocess import DEVNULL, Popen
from typing import TYPE_CHECKING, Any, Final

from mm.paging.userfault import EVENTS_OF_PROGRAMS, begin
from rustosd.memory_limits import Limits
from rustosd.process import packets, ptrace, userfault
from rustosd.process import syscalls as nr
from rustosd.process.helper import Helper, HelperDied
from rustosd.process.memory_calls import (
    FORKING,
    MAP_POPULATE,
    Call,
    effect,
    emptied,
    grown,
    growth,
    only_grows,
    populates,
    shares_memory,
)
from rustosd.process.monitor import TELLS_WITHIN_S
from rustosd.process.ptrace import Borrowed, Kind
from rustosd.process.say import say

if TYPE_CHECKING:
    from rustosd.process.monitor import Monitor

_KCMP_VM: Final = 1
_START_S: Final = 60.0
"""For the pager to begin: a Python of its own, on a machine that may be busy."""
_PACKETS_MOST: Final = 64       # of one call: who floods us must not keep the others waiting
_CAP_SYS_PTRACE: Final = 19
_HELPER_KILLED: Final = "the task that drops pages in its memory was killed, and nobody else can"
_NO_DESCRIPTOR: Final = "its memory cannot be limited: its supervisor has no descriptor left (ulimit -n)"
_COMES_WITHIN_S: Final = 3 * TELLS_WITHIN_S
"""A child whose parent was killed in the middle of the fork, if there is one."""
PAGER: Final = (sys.executable, "-P", "-m", "rustosd.process.pager")      # not the modules of where a program is started


class MemoryRefused(Exception):
    """Memory cannot be limited here; the message says what to do."""


@dataclass(eq=False)
class Space:
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
    not_inherited: list[tuple[int, int]] = field(default_factory=list)      # ranges, by madvise(2)
    unborn: int = 0                                 # forked processes that have not started: the pager finds theirs by this one


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
        self._spaces: dict[int, Space] = {}         # by process
        self._by_key: dict[int, Space] = {}
        self._parents: dict[int, Space] = {}        # a process that was forked -> from what, until it starts
        self._orphans: set[int] = set()             # such of which nobody has told whose they are
        self._cut_short: list[tuple[Space, float]] = []     # forks whose thread was ended in them; each may have a child, until
        self._starting: dict[int, tuple[int, list[Space]]] = {}     # key -> process that waits for its space, and from what
        self._calls: dict[int, Call] = {}
        self._last_key = 0
        self._untold = 0                            # octets that may come into memory and that the pager does not know of
        self._ended = False
        self.unpaged: str = ""                      # why some address space is not paged
        self._end, theirs = packets.pair()
        settings = {"soft": limits.soft, "hard": limits.hard, "untold": limits.untold, "place": place,
                    "supervisor": os.getpid()}
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
        monitor.on_other_exit = self._helper_ended
        monitor.on_call, monitor.on_call_end, monitor.on_fork_end = self._call_begins, self._call_ends, self._fork_ends
        self._verbs: dict[str, Callable[..., None]] = {
            "want": self._want, "drop": self._drop, "cover": self._cover, "done": self._done, "claimed": self._claimed,
            "lost": self._lost, "refused": self._refused, "figures": self._figures}
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
        """Take in some of what the pager says, which is something every second."""
        if not self._ended:
            self._expire()
        for _ in range(_PACKETS_MOST):
            if self._ended:
                return
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
            except (ProcessLookupError, ptrace.Ended):
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

    def _executed(self, pid: int) -> bool:
        """A new program: a new address space. Whether it is to wait until the pager knows how much it may fill."""
        former = self._leave(pid)
        try:
            with Borrowed(pid, Kind.EXEC) as thread:
                if former is not None:
                    former.end(thread)
                    self.attendants.discard(former.pid)
                self._attach(pid, thread, None)
        except OSError as error:
            self._cannot(pid, error)
            return False
        return True

    def _attach(self, pid: int, thread: Borrowed, former: Helper | None) -> None:
        """Make a userfaultfd and a helper in a borrowed thread's address space. It goes on when the pager says so.

        Raises OSError, ptrace.Ended.
        """
        helper = Helper.start(thread, self.cookie, former)
        try:
            with Borrowed(helper.pid, Kind.TRAPPED) as other:       # the program may have as many descriptors as it may
                fd = userfault.make(other, helper.pid, self.cookie)
            try:
                begin(fd, EVENTS_OF_PROGRAMS)
            except BaseException:
                os.close(fd)
                raise
        except BaseException:
            helper.end(thread)
            raise
        space = self._enter(pid, helper, fd)
        self._calls[pid] = Call(pid, space, nr.EXECVE, (0,) * 5, 0)
        space.calling.add(pid)
        self._send({"op": "attach", "key": space.key, "pid": pid, "token": pid}, fd)

    def _enter(self, pid: int, helper: Helper, fd: int, key: int = 0) -> Space:
        self.attendants.add(helper.pid)
        key = key or self._new_key()
        space = self._spaces[pid] = self._by_key[key] = Space(key, {pid}, helper, fd)
        return space

    def _new_key(self) -> int:
        self._last_key += 1
        return self._last_key

    def _cannot(self, pid: int, error: OSError) -> None:
        """This address space is not paged: it may not make a userfaultfd."""
        if isinstance(error, ProcessLookupError):
            return                              # it was killed
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return self._end_with_reason([pid], _NO_DESCRIPTOR)
        first, self.unpaged = not self.unpaged, f"the memory of process {pid} is not limited: {error.strerror}"
        if why := userfault.why_not():
            self.unpaged += f". {why}"
        if first:
            say(self.unpaged)

    def _refused(self, key: int, why: str) -> None:
        """The pager cannot take it in, and without it nothing limits it."""
        if (space := self._by_key.get(key)) is not None:
            self._end_with_reason(space.users, why)
        elif (starting := self._starting.pop(key, None)) is not None:
            self._end_with_reason([starting[0]], why)

    def _end_with_reason(self, pids: Iterable[int], why: str) -> None:
        for pid in pids:
            say(f"process {pid} was killed: {why}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _forked(self, parent: int, child: int, kind: str) -> None:
        """It shares its parent's address space, or needs its own: before it starts the parent may have executed, or ended."""
        if not parent:
            self._found(child)
            return
        space = self._spaces.get(parent)
        if space is None:
            return
        if _same_memory(parent, child, kind):
            space.users.add(child)
            self._spaces[child] = space
        else:
            self._parents[child] = space
            space.unborn += 1

    def _found(self, child: int) -> None:
        """Somebody has forked it and was ended in the middle of that."""
        for space in self._by_key.values():
            if _same_memory(space.helper.pid, child, ""):
                space.users.add(child)
                self._spaces[child] = space
                return
        self._orphans.add(child)

    def _started(self, child: int) -> bool:
        """A forked process is about to run."""
        space = self._parents.get(child)
        if space is None:
            return child in self._orphans and self._orphan_started(child)
        try:
            if not space.managed:
                return self._start_afresh(child, space)
            self._ask_for(child, [space])       # the kernel made a userfaultfd for it, which the pager has
            return True
        finally:
            self._born(child)

    def _orphan_started(self, child: int) -> bool:
        """One of these has forked it: threads that are ended in a fork, or were; what they share with it tells which."""
        spaces = [call.space for tid, call in self._calls.items() if call.number in FORKING and tid in call.space.calling]
        spaces = list(dict.fromkeys([*spaces, *(space for space, _ in self._cut_short)]))
        if spaces:
            self._ask_for(child, spaces)
        elif self.unpaged:                      # its parent may have had no limit
            return False
        else:
            self._end_with_reason([child], "whoever forked it was killed in the middle of that, and nothing tells what of its "
                                           "memory is in swap")
        return True

    def _ask_for(self, child: int, spaces: list[Space]) -> None:
        """Which userfaultfd is a child's, and from which of these spaces it was forked."""
        key = self._new_key()
        self._starting[key] = child, spaces
        self._send({"op": "claim", "parents": [(space.key, space.not_inherited) for space in spaces], "key": key, "pid": child})

    def _born(self, child: int) -> None:
        """It needs its parent's space no more, or has ended."""
        if (space := self._parents.pop(child, None)) is not None:
            self._let_go(space)

    def _let_go(self, space: Space) -> None:
        """One that was forked from it, or might have been, needs it no more."""
        space.unborn -= 1
        self._end_space(space)

    def _end_space(self, space: Space) -> None:
        """Tell the pager, unless somebody needs it."""
        if not space.users and not space.unborn:
            self._send({"op": "end", "key": space.key})

    def _start_afresh(self, child: int, parent: Space) -> bool:
        """Nothing of its parent's is in swap, nor registered. Whether it is to wait until the pager knows of it."""
        try:
            with Borrowed(child, Kind.TRAPPED) as thread:
                self._attach(child, thread, parent.helper)
        except OSError as error:
            self._cannot(child, error)
            return False
        self._spaces[child].top = parent.top
        self._spaces[child].not_inherited = list(parent.not_inherited)
        return True

    def _claimed(self, key: int, parent: int = 0, fd: int = -1) -> None:
        """The pager has found a forked process's space, or there is none (0): its parent had nothing registered."""
        child, spaces = self._starting.pop(key)
        former = next((space for space in spaces if space.key == parent), spaces[0])
        try:
            if fd < 0:
                if parent:                      # we have no descriptor left to receive it
                    self._send({"op": "end", "key": key})
                    self._end_with_reason([child], _NO_DESCRIPTOR)
                elif len(spaces) > 1:
                    self._end_with_reason([child], "whoever forked it was killed in the middle of that, and so were others")
                elif not self._start_afresh(child, former):
                    ptrace.go_on(child)
                return
            with Borrowed(child, Kind.TRAPPED) as thread:
                space = self._enter(child, Helper.start(thread, self.cookie, former.helper), fd, key)
            space.managed, space.top, space.not_inherited = True, former.top, list(former.not_inherited)
            self._send({"op": "started", "key": key})
            ptrace.go_on(child)
        except (ProcessLookupError, ptrace.Ended):
            if fd >= 0 and child not in self._spaces:
                os.close(fd)
                self._send({"op": "end", "key": key})
            raise
        finally:
            if child in self._orphans:
                self._orphans.discard(child)
                self._has_come(former)

    def _has_come(self, space: Space) -> None:
        """The child of a fork that was cut short, or is about to be found so."""
        for place, (parent, _) in enumerate(self._cut_short):
            if parent is space:
                del self._cut_short[place]
                self._let_go(space)
                return
        for tid in space.calling & self._calls.keys():
            if self._calls[tid].number in FORKING:
                del self._calls[tid]
                space.calling.discard(tid)
                self._next(space)
                return

    def _expire(self) -> None:
        """Forks that were cut short and had no child after all."""
        now = time.monotonic()
        while self._cut_short and self._cut_short[0][1] <= now:
            self._let_go(self._cut_short.pop(0)[0])

    def _exited(self, pid: int, _status: int) -> None:
        self._born(pid)
        self._orphans.discard(pid)
        if (helper := self._leave(pid)) is not None:
            helper.end()
            self.attendants.discard(helper.pid)

    def _helper_ended(self, pid: int) -> None:
        """Somebody has killed it, if it was one, and nobody else can do its work."""
        for space in self._by_key.values():
            if space.helper.pid == pid:
                space.helper.ended = True
                self.attendants.discard(pid)
                self._end_with_reason(space.users, _HELPER_KILLED)

    def _leave(self, pid: int) -> Helper | None:
        """A process has another address space now, or none. The helper of one that nobody has any more."""
        for tid in [tid for tid, call in self._calls.items() if call.process == pid]:
            call = self._calls.pop(tid)
            space = call.space
            if call.number in FORKING and tid in space.calling:
                self._cut_short.append((space, time.monotonic() + _COMES_WITHIN_S))
                space.unborn += 1
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
        """A thread stands before one. Little growth is counted, and told when it has become much."""
        process = self._monitor.process_of(tid)
        space = self._spaces.get(process)
        if space is None:
            ptrace.go_on(tid)
            return
        found = ptrace.registers(tid)
        call = Call(process, space, found.orig_rax, (found.rdi, found.rsi, found.rdx, found.r10, found.r8), time.monotonic_ns())
        if only_grows(call) and self._untold + growth(call) < self.limits.untold:
            self._untold += growth(call)
            ptrace.go_on(tid)
            return
        if call.number == nr.CLONE3 and shares_memory(tid, call):
            ptrace.go_on(tid)
            return
        if populates(call):
            found.r10 &= ~MAP_POPULATE
            ptrace.set_registers(tid, found)
        self._calls[tid] = call
        space.held.append(tid)
        self._next(space)

    def _call_ends(self, tid: int) -> None:
        """The kernel has carried it out: what it did is told to the pager before the thread goes on."""
        call = self._calls.get(tid)
        if call is None:
            ptrace.go_on(tid)
            return
        found = ptrace.registers(tid)
        if populates(call):                     # as it was
            found.r10 = call.arguments[3]
            ptrace.set_registers(tid, found)
        result = ctypes.c_int64(found.rax).value
        self._untold += grown(call, result)
        what = effect(call, result)
        if not call.space.managed:              # nothing of it is in swap: what matters is how much it may fill
            what = None
        if much := self._untold >= self.limits.untold:
            self._untold = 0
        if what or much:
            self._send({"op": "call", "key": call.space.key, "token": tid, "since": call.since_ns, "grown": much,
                        **(what or {"forget": []})})
        else:
            self._finish(tid)

    def _fork_ends(self, tid: int) -> None:
        """A thread has forked, or has started one."""
        if tid in self._calls:
            self._finish(tid)
        else:
            ptrace.go_on(tid)

    def _done(self, token: int, copied: bool) -> None:
        """The pager knows. `copied`: it may have brought something in while the kernel did away with it."""
        if copied and (call := self._calls.get(token)) is not None and (span := emptied(call)) is not None:
            try:
                call.space.helper.drop([span])
            except HelperDied:
                self._end_with_reason(call.space.users, _HELPER_KILLED)
        self._finish(token)

    def _finish(self, tid: int) -> None:
        if (call := self._calls.pop(tid, None)) is None:
            return
        call.space.calling.discard(tid)
        try:
            ptrace.go_on(tid)
        finally:
            self._next(call.space)

    def _next(self, space: Space) -> None:
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

    def _grant(self, space: Space) -> None:
        """The pager may evict, once nobody changes mappings, or copies them."""
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
            except HelperDied:
                self._end_with_reason(space.users, _HELPER_KILLED)
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
            if thread:
                self._swap_fault(thread, address, why)
            else:                               # it has been killed already
                self._end_with_reason(space.users, why)
        except OSError:                         # nobody of the group's, or gone
            self._kill(space)

    @staticmethod
    def _kill(space: Space) -> None:
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


def _same_memory(parent: int, child: int, kind: str) -> bool:
    """Whether two processes have one address space. `kind`: how the child was made, for kernels without kcmp(2)."""
    try:
        return nr.call(nr.KCMP, parent, child, _KCMP_VM, 0, 0) == 0
    except OSError:
        return kind == "vfork"
