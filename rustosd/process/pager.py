"""The pager of a group of programs: a process of its own, locked in memory, that owns what of theirs is in swap.

    python -m rustosd.process.pager FD

One thread answers faults (`mm.paging.faults`); this one watches how much is in memory and evicts, when the supervisor lets
it. It never waits for the supervisor, which may itself touch a page that is in swap.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import select
import socket
import struct
import sys
import threading
import time
from collections import Counter
from typing import Any, Final

from mm.paging.pager import BATCH, SPACES, Pager
from rustosd import open_files
from rustosd.process import packets
from rustosd.process.inventory import proc_text
from rustosd.process.pressure import Pressure
from rustosd.swap.opening import open_store
from rustosd.swap.place import from_builtins
from rustosd.swap.report import report

_PAGE: Final = 4096
_MCL_CURRENT_AND_FUTURE: Final = 3
_BUSY_MS, _NEAR_MS, _QUIET_MS = 1, 3, 20
_SCAN_AGAIN_S: Final = 0.5          # for pages that came where we do not answer; many of them are noticed at once
_UNSEEN_PAGES: Final = 256
_NOTHING_FOUND_S: Final = 0.05
_SLACK_PARTS: Final = 16            # of the limit: how much more than must is evicted
_NEAR_PARTS: Final = 2              # of the limit: from where on it is watched closely
_PACKETS_MOST: Final = 64           # of the supervisor's, before we look at memory again
_SPARE_PARTS: Final = 4             # of the slots: with fewer free, pages in memory keep none
_NICE: Final = -10
_TELL_EVERY_S: Final = 1.0
_ROWS_MOST: Final = 128
_ADDRESSES: Final = 1 << 56
_PRESENT, _PROTECTED_BIT = 1 << 63, 57      # of an entry of /proc/PID/pagemap
_LOOK_OCTETS: Final = 1 << 28         # of one mapping, for a page that is there, or is not
_ENDED: Final = (errno.ENOENT, errno.ESRCH)     # what /proc says of a process that is no more
_OF_A_SPACE, _OTHERS = 2, 64        # descriptors
_RESERVED: Final = "---p"           # a mapping that is to become one that is evicted, piece by piece


class Group:
    """The address spaces of one group, and how much of them may be in memory."""

    def __init__(self, end: socket.socket, pager: Pager, soft: int, hard: int, untold: int, supervisor: int) -> None:
        """`untold`: how much more programs may map before we are told of it, in octets like the others."""
        self._end, self._pager = end, pager
        self._soft, self._hard, self._untold, self._supervisor = soft // _PAGE, hard // _PAGE, untold // _PAGE, supervisor
        self._pressure = Pressure()
        self._keys: dict[int, int] = {}         # the supervisor's number of a space -> the pager's
        self._pids: dict[int, int] = {}
        self._resident: dict[int, int] = {}     # pages
        self._mapped: dict[int, int] = {}       # pages that may become resident
        self._covered: dict[int, int] = {}      # of those, for which faults are answered; whoever is not here has none
        self._asked: set[int] = set()           # spaces that we have asked to cover
        self._growing: dict[int, bool] = {}     # threads that have more to fill, and wait until that is within the limit
        self._wanted: int | None = None         # the space that an eviction is asked for, or under way in
        self._scanned: dict[int, float] = {}
        self._idle_until: dict[int, float] = {}
        self._peak = 0
        self._failed = ""
        self._told_at = 0.0
        self._of_ended: Counter[str] = Counter()        # what spaces counted that are no more
        self._verbs = {"attach": self._attach, "claim": self._claim, "started": self._started, "end": self._ended,
                       "call": self._call, "cover": self._cover, "grant": self._grant, "dropped": self._dropped,
                       "tell": self._tell}

    def run(self) -> None:
        """Until the supervisor has gone."""
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        poll.register(self._pager.told_fd, select.POLLIN)
        self._pressure.register(poll)
        while True:
            for fd, _events in poll.poll(self._pause()):
                if fd == self._pager.told_fd:
                    os.eventfd_read(fd)
                    self._tell_lost()
                elif fd == self._end.fileno():
                    if not self._take():
                        return
                else:
                    self._pressure.felt()
            self._watch()
            if time.monotonic() - self._told_at >= _TELL_EVERY_S:
                self._tell()

    def _pause(self) -> int:
        total = sum(self._resident.values())
        if self._pager.waiting:
            return _BUSY_MS
        return _NEAR_MS if total > self._soft // _NEAR_PARTS else _QUIET_MS

    def _take(self) -> bool:
        """What the supervisor has to say; False: it has gone."""
        for _ in range(_PACKETS_MOST):
            try:
                packet = packets.receive(self._end)
            except BlockingIOError:
                return True
            if packet is None:
                return False
            fields, fd = packet
            verb = self._verbs[fields.pop("op")]
            verb(**fields, fd=fd) if fd >= 0 else verb(**fields)
        return True

    def _say(self, op: str, fd: int = -1, **fields: Any) -> None:
        packets.send(self._end, {"op": op, **fields}, fd)

    # spaces

    def _attach(self, key: int, pid: int, token: int, fd: int = -1) -> None:
        """A space that nothing of is in swap. Its thread waits: it may have much to fill at once."""
        if fd < 0:                              # the kernel had none to give us
            return self._refuse(key, errno.ENFILE)
        try:
            self._enter(key, pid, self._pager.add(fd, pid))
        except OSError as error:
            os.close(fd)
            if error.errno not in _ENDED:
                return self._refuse(key, error.errno)
        self._has_grown(token, False)

    def _refuse(self, key: int, number: int) -> None:
        why = self._full if number == errno.EMFILE else os.strerror(number)
        self._say("refused", key=key, why=f"its memory cannot be limited: {why}")

    def _enter(self, key: int, pid: int, index: int) -> None:
        self._keys[key], self._pids[key] = index, pid
        self._look(key)

    def _claim(self, parents: list[tuple[int, list[tuple[int, int]]]], key: int, pid: int) -> None:
        """A forked process's space. It has none if it was forked before its parent had anything that we answer for.

        `parents`: those that it may be forked from, and what each does not leave to its children.
        """
        index, parent, forget = None, 0, []
        try:
            for parent, forget in parents:      # noqa: B007
                if parent in self._keys and (index := self._own(self._pager.unclaimed(self._keys[parent]), pid)) is not None:
                    self._pager.claim(index, pid)
                    break
        except OSError as error:
            if error.errno not in _ENDED:
                return self._refuse(key, error.errno)
        if index is None:
            if any(parent in self._keys and self._pager.has_lost_track(self._keys[parent]) for parent, _ in parents):
                return self._refuse(key, errno.EMFILE)
            return self._say("claimed", key=key)
        for start, end in [*self._strange(index, pid), *forget]:
            self._pager.forget(index, start, end, 0)
        self._enter(key, pid, index)
        self._answer_for(key)
        self._say("claimed", self._pager.descriptor(index), key=key, parent=parent)

    def _started(self, key: int) -> None:
        """A process whose space we have found begins to run."""
        if (index := self._keys.get(key)) is not None:
            self._pager.started(index)

    def _own(self, spaces: list[int], pid: int) -> int | None:
        """Which of these is a process's. Raises OSError.

        Even the only one may be another child's, that was forked later and will ask for it. The end of whoever has a space
        closes its userfaultfd, and what the other one had in swap would turn to zero.
        """
        return next((index for index in spaces if self._belongs(index, pid)), None)

    def _strange(self, index: int, pid: int) -> list[tuple[int, int]]:
        """What of a forked process's memory is not what its parent had in swap: all but the mappings that came with its space.

        Another thread of the parent may have unmapped something that we were told of only after the fork, and the one that
        forked may have had new memory there already: small mappings do not stop it.
        """
        gaps, at = [], 0
        with contextlib.suppress(OSError):
            for line in proc_text(pid, "maps").splitlines():
                start, end = (int(number, 16) for number in line.split(" ", 1)[0].split("-"))
                if self._pager.answers(index, start):
                    gaps.append((at, start))
                    at = end
        gaps.append((at, _ADDRESSES))
        return [gap for gap in gaps if gap[0] < gap[1]]

    def _belongs(self, index: int, pid: int) -> bool:
        """Whether a space is a process's that has not run yet: what we do to a page of the one is seen at the other.

        A page that is there is protected, if need be for a moment; without any that we answer for, one is brought in. Raises
        OSError.
        """
        places = mappings(pid)[::-1]
        with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
            for there, protected in ((True, False), (True, True), (False, False)):
                for start, end in places:
                    entries = os.pread(pagemap.fileno(), min(end - start, _LOOK_OCTETS) // _PAGE * 8, start // _PAGE * 8)
                    state = _PRESENT * there | protected << _PROTECTED_BIT
                    for number, (entry,) in enumerate(struct.iter_unpack("=Q", entries)):
                        if (entry & (_PRESENT | there << _PROTECTED_BIT)) == state:
                            page = start // _PAGE + number
                            belongs = self._pager.marks(index, pid, page, protected) if there else self._pager.brings(
                                index, pid, page)
                            if belongs is not None:
                                return belongs
                            break
        return False                            # nor is there anything that could be in swap

    def _ended(self, key: int) -> None:
        index = self._keys.pop(key, None)
        for table in (self._pids, self._resident, self._mapped, self._covered, self._scanned, self._idle_until):
            table.pop(key, None)
        self._asked.discard(key)
        if self._wanted == key:
            self._wanted = None
        if index is not None:
            self._of_ended.update(self._counted(index))
            self._pager.end(index)
        self._settle()

    def _call(self, key: int, token: int, since: int, forget: list[tuple[int, int]], grown: bool,
              move: tuple[int, int, int] | None = None, unmapped: bool = False) -> None:
        """A thread has changed mappings. `grown`: there is more to fill than we know of, in its space and in others."""
        copied = False
        if (index := self._keys.get(key)) is not None:
            for start, end in self._holes(self._pids[key]) if unmapped else forget:
                copied |= self._pager.forget(index, start, end, since)
            if move is not None:
                self._pager.move(index, *move)
        if grown:
            self._has_grown(token, copied)
        else:
            self._say("done", token=token, copied=copied)

    def _has_grown(self, token: int, copied: bool) -> None:
        """A thread is to wait until all that programs may fill unseen is within the limit."""
        self._growing[token] = copied
        self._count()
        self._settle()

    def _settle(self) -> None:
        """Answer for as much as need be: then who has more to fill may go on."""
        if self._pager.waiting or not self._fits():
            for key in self._covered:
                if self._mapped[key] > self._covered[key]:
                    self._answer_for(key)
        if not self._fits():
            others = [key for key in self._keys if key not in self._covered and self._unseen_of(key)]
            if others:
                key = max(others, key=self._unseen_of)
                if key not in self._asked:
                    self._asked.add(key)
                    self._say("cover", key=key)         # the supervisor must know first
                return
        for token, copied in self._growing.items():
            self._say("done", token=token, copied=copied)
        self._growing.clear()

    def _fits(self) -> bool:
        unseen = self._unseen()
        return unseen <= self._unseen_most() and self._pager.expected + unseen + self._untold <= self._hard

    def _cover(self, key: int) -> None:
        """Answer for all of a space's mappings: what comes into memory there is seen as it comes."""
        self._asked.discard(key)
        if key in self._keys:
            self._answer_for(key)
        self._count()
        self._settle()

    def _answer_for(self, key: int) -> None:
        """The same, of one whose calls we are told of."""
        self._covered[key] = self._mapped[key]
        with contextlib.suppress(OSError):      # it has ended
            for start, end in mappings(self._pids[key], reserved=True):
                self._pager.register(self._keys[key], start, end)

    def _look(self, key: int) -> None:
        self._resident[key], self._mapped[key] = anonymous_pages(self._pids[key])
        if key in self._covered:
            self._covered[key] = min(self._covered[key], self._mapped[key])

    def _count(self) -> int:
        """See what is in memory, in pages, and let come in what may."""
        expected = self._pager.expected
        for key in self._keys:
            self._look(key)
        total = sum(self._resident.values())
        if total > expected + _UNSEEN_PAGES:
            self._scanned.clear()               # memory that we do not answer for has grown
        self._peak = max(self._peak, total)
        slots = self._pager.store.slots
        unseen = min(self._unseen(), self._unseen_most()) + self._untold
        self._pager.set_room(total, expected, self._hard - unseen, self._supervisor, slots.free < slots.count // _SPARE_PARTS)
        return total

    def _unseen_of(self, key: int) -> int:
        return max(0, self._mapped[key] - max(self._resident[key], self._covered.get(key, 0)))

    def _unseen(self) -> int:
        """Pages that may come into memory before we know, for nobody answers for where they are."""
        return sum(map(self._unseen_of, self._keys))

    def _unseen_most(self) -> int:
        return (self._hard - self._soft) // 2

    @staticmethod
    def _holes(pid: int) -> list[tuple[int, int]]:
        """Where a process has nothing mapped."""
        holes, at = [], 0
        with contextlib.suppress(OSError):
            for line in proc_text(pid, "maps").splitlines():
                start, _, end = line.split(" ", 1)[0].partition("-")
                holes.append((at, int(start, 16)))
                at = int(end, 16)
        return [hole for hole in holes if hole[0] < hole[1]]

    def _tell_lost(self) -> None:
        keys = {index: key for key, index in self._keys.items()}
        for one in self._pager.lost():
            if one.index in keys:
                self._say("lost", key=keys[one.index], thread=one.thread, address=one.address, why=self._why(one))

    @property
    def _full(self) -> str:
        return (f"its group has {self._pager.spaces_most} processes, and its pager can look after no more "
                f"({_OF_A_SPACE} descriptors each, see ulimit -n; {SPACES} at most)")

    def _why(self, one: Any) -> str:
        device = self._pager.store.device.describe()
        if one.errno in (errno.EMFILE, errno.ENFILE):
            return f"the memory of what it forks cannot be limited: {self._full}"
        if one.errno == errno.EBADMSG:
            return f"{device}: slot {one.slot} is not what was written"
        if one.errno == errno.ENOMEM:
            return (f"the memory limit is reached and nothing more can be swapped out"
                    f"{': ' + self._failed if self._failed else ''}")
        return f"{device}: {os.strerror(one.errno)}{f', slot {one.slot}' if one.slot >= 0 else ''}"

    # limits

    def _watch(self) -> None:
        """See what is in memory, and ask for an eviction if it is too much."""
        total = self._count()
        self._settle()
        if self._wanted is not None or total <= self._pressure.lowered(self._soft):
            return
        now = time.monotonic()
        ready = [key for key in self._keys if self._idle_until.get(key, 0) <= now]
        if ready:
            self._wanted = max(ready, key=lambda key: self._resident[key])
            self._say("want", key=self._wanted)

    def _grant(self, key: int) -> None:
        """Evict: nobody changes mappings now."""
        if key != self._wanted:
            return self._say("drop", key=key, ranges=[])
        index, pid = self._keys[key], self._pids[key]
        soft = self._pressure.lowered(self._soft)
        want = min(BATCH, max(1, sum(self._resident.values()) - soft + soft // _SLACK_PARTS))
        now = time.monotonic()
        found = 1
        if self._pager.stats(index).queued < 2 * want or self._scanned.get(key, 0) + _SCAN_AGAIN_S < now:
            found = self._scan(key, index, pid)
            self._scanned[key] = time.monotonic()
        ranges: list[tuple[int, int]] = []
        try:
            ranges = self._pager.begin_batch(index, want)
        except OSError as error:
            self._failed = f"{self._pager.store.device.describe()}: {error.strerror}"
            found = 0
        if not ranges and not found:
            self._idle_until[key] = now + _NOTHING_FOUND_S
        total = sum(self._resident.values()) - sum(octets for _, octets in ranges) // _PAGE
        self._say("drop", key=key, ranges=ranges, more=bool(ranges) and total > soft)

    def _scan(self, key: int, index: int, pid: int) -> int:
        """Answer for all mappings that can be evicted, and find what is in memory of them."""
        found = 0
        self._covered[key] = self._mapped[key]
        with contextlib.suppress(OSError):
            for start, end in mappings(pid):
                if self._pager.register(index, start, end) == 0:
                    found += self._pager.discover(index, start, end)
        return found

    def _dropped(self, key: int, failed: list[int], again: bool) -> None:
        """The batch is gone. `again`: nobody changes mappings still."""
        self._count()
        if (index := self._keys.get(key)) is not None:
            self._pager.end_batch(index, not failed)
        if failed:
            self._idle_until[key] = time.monotonic() + _NOTHING_FOUND_S
        elif again and self._wanted == key:
            self._grant(key)
            return
        if self._wanted == key:
            self._wanted = None
        if again:
            self._say("drop", key=key, ranges=[])

    # figures

    def _tell(self) -> None:
        """All there is to know, for people."""
        self._told_at = time.monotonic()
        self._pager.unclaimed()             # ends those whose process has ended before it began
        counted, rows = self._of_ended.copy(), []
        for key, index in self._keys.items():
            figures = {"pid": self._pids[key], "resident_octets": self._resident[key] * _PAGE,
                       "swapped_octets": self._pager.stats(index).swapped * _PAGE}
            one = self._counted(index)
            counted.update(one)
            rows.append(figures | one)
        now = {name: sum(row[name] for row in rows) for name in ("resident_octets", "swapped_octets")}
        memory = {
            "limit_octets": self._soft * _PAGE, "most_octets": self._hard * _PAGE,
            "lowered_octets": self._pressure.lowered(self._soft) * _PAGE,
            "resident_octets": now["resident_octets"], "peak_octets": self._peak * _PAGE, "failure": self._failed,
            "spaces": rows[:_ROWS_MOST]}
        self._say("figures", memory=memory, totals={**now, **counted},
                  swap=report(self._pager.store, **{name: counted[name] for name in ("faults", "ahead_pages", "ahead_used")}))

    def _counted(self, index: int) -> dict[str, int]:
        """What a space has counted since it began."""
        one = self._pager.stats(index)
        return {"faults": one.faults, "zero_faults": one.zero_faults, "write_faults": one.write_faults, "again": one.again,
                "waited": one.waited, "in_octets": one.pages_in * _PAGE, "out_octets": one.pages_out * _PAGE,
                "clean_octets": (one.clean_out + one.zero_out) * _PAGE, "ahead_pages": one.pages_ahead,
                "ahead_used": one.ahead_used}


def anonymous_pages(pid: int) -> tuple[int, int]:
    """What is in memory of a process that no file has, and what could be without another system call, in pages.

    (0, 0): it has ended.
    """
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as statm:
            fields = statm.read(128).split()
        return max(0, int(fields[1]) - int(fields[2])), int(fields[5])
    except (OSError, IndexError):
        return 0, 0


def mappings(pid: int, reserved: bool = False) -> list[tuple[int, int]]:
    """Private anonymous memory of a process, without its first stack; also what it has only reserved. Raises OSError."""
    found = []
    with open(f"/proc/{pid}/maps", errors="replace") as maps:
        for line in maps:
            fields = line.split(None, 5)
            if (fields[1][3] == "p" and (reserved or fields[1] != _RESERVED) and fields[4] == "0"
                    and (len(fields) == 5 or fields[5].startswith(("[heap]", "[anon:")))):
                start, _, end = fields[0].partition("-")
                found.append((int(start, 16), int(end, 16)))
    return found


def main(argv: list[str]) -> int:
    """Serve the supervisor at the other end of a descriptor."""
    end = socket.socket(fileno=int(argv[0]))
    first = packets.receive(end)
    if first is None:
        return 1
    settings, fd = first
    try:
        place = from_builtins(settings["place"])
        store = open_store(place, fd)
    except (OSError, ValueError) as error:
        packets.send(end, {"error": f"no swap: {error}"})
        return 1
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT_AND_FUTURE):
        packets.send(end, {"error": f"the pager cannot be locked in memory: {os.strerror(ctypes.get_errno())}"})
        return 1
    with contextlib.suppress(OSError):  # threads wait for us: we go first
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    pager = Pager(store)
    open_files.raise_limit(_OF_A_SPACE * SPACES + _OTHERS)
    pager.set_spaces_most(max(1, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHERS) // _OF_A_SPACE))
    if place.keep_awake:
        pager.keep_awake()
    threading.Thread(target=pager.serve, name="faults", daemon=True).start()
    packets.send(end, {"op": "ready"})
    end.setblocking(False)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        Group(end, pager, settings["soft"], settings["hard"], settings["untold"], settings["supervisor"]).run()
    os._exit(0)                         # the programs have ended, and what is in swap is nobody's


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
