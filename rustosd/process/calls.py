"""Takes in the calls of supervised programs, one after the other, and hands each to what answers it.

Compiled: it runs per call.
"""

import os
from collections import Counter

import cython
from cython.cimports.cpython.exc import PyErr_CheckSignals
from cython.cimports.libc.errno import EINTR, ENOENT
from cython.cimports.libc.errno import errno as c_errno
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.mm.awake import LULL_MS
from cython.cimports.mm.hw import now_ns
from cython.cimports.rustosd.process.accepted import Accepted

from mm.awake import or_none

if not cython.compiled:
    raise ImportError("rustosd.process.calls must be compiled: python setup.py build_ext --inplace")


@cython.final
@cython.cclass
class Calls:
    """The calls of one group of programs."""

    def __init__(self, notifications: Notifications, threads: Threads, epoll: int, sockets: dict, handlers: dict,
                 open: object) -> None:
        """`epoll` watches the listener, and what else `wait` tells of. `sockets`: ours, by inode.

        `handlers`: what to call with a socket and a call about it, by the call's number. `open`: with one that makes a socket.
        """
        self.notifications, self.threads = notifications, threads
        self.epoll = epoll
        self.sockets = sockets
        self.handlers = [handlers.get(number) for number in range(max(handlers) + 1)]
        self.open = open

    def wait(self, until: int64_t) -> list:
        """Answer calls until something else has happened or it is this late (monotonic, ns): (descriptor, events) of that."""
        events: epoll_event[EVENTS_MOST]
        others: list = []
        count: cython.int
        k: cython.int
        while True:
            count = 0
            if self.threads.kept.fd >= 0:       # the next call is often there by now, and about the same socket
                count = epoll_wait(self.epoll, events, EVENTS_MOST, 0)
                if count > 0 and self.awake is not None:
                    self.awake.paused(0)
            if count == 0:
                self.threads.let_go()
                count = self.sleep(events, until)
            if count < 0:
                if c_errno != EINTR:
                    raise OSError(c_errno, os.strerror(c_errno))
                PyErr_CheckSignals()
                break
            for k in range(count):
                if events[k].data.fd != self.notifications.fd:
                    others.append((events[k].data.fd, events[k].events))
                elif events[k].events & EPOLLIN:
                    self.take()
            if others or self.hurried or now_ns() >= until:
                break
        self.hurried = False
        self.threads.let_go()
        return others

    @cython.cfunc
    @cython.exceptval(check=False)
    def sleep(self, events: cython.pointer[epoll_event], until: int64_t) -> cython.int:
        """What epoll_wait says once something has happened, or it is this late."""
        began: int64_t = now_ns()
        pause: int64_t = max(0, until - began + 999_999) // 1_000_000
        count: cython.int
        if self.awake is not None and self.awake.holds:
            pause = min(pause, LULL_MS)
        with cython.nogil:
            count = epoll_wait(self.epoll, events, EVENTS_MOST, cython.cast(cython.int, pause))
        if self.awake is not None and (count > 0 or (count == 0 and self.awake.holds)):
            self.awake.paused(now_ns() - began)
        return count

    def keep_awake(self) -> None:
        """The processors, from now on while calls come often, where that is ours to ask for."""
        self.awake = or_none()

    def hurry(self) -> None:
        """Have `wait` return after the call that is being answered."""
        self.hurried = True

    def take_waiting(self) -> None:
        """Answer the calls that wait by now."""
        _k: cython.int
        for _k in range(EVENTS_MOST):
            if not self.notifications.waiting():
                break
            self.take()
        self.threads.let_go()

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def take(self) -> cython.int:
        """Answer the next call, or put it aside. What a handler raises is told by `Call.fail`."""
        raw: seccomp_notif
        call: Call
        memset(cython.address(raw), 0, cython.sizeof(seccomp_notif))
        if ioctl(self.notifications.fd, SECCOMP_IOCTL_NOTIF_RECV, cython.address(raw)) < 0:
            if c_errno in (ENOENT, EINTR):
                return 0                # it was over before we looked
            raise OSError(c_errno, os.strerror(c_errno))
        call = Call.__new__(Call)
        call.notifications, call.threads = self.notifications, self.threads
        call.id, call.thread, call.number = raw.id, raw.pid, raw.data.nr
        memcpy(call.words, raw.data.args, cython.sizeof(raw.data.args))
        self.note(call)
        try:
            self.answer(call)
        except Exception as wrong:
            call.fail(wrong)
        call.let_go()
        return 0

    @cython.cfunc
    def answer(self, call: Call):
        inode: uint64_t
        handler = self.handlers[call.number]
        if handler is None:
            self.threads.let_go()
            self.open(call)
            return
        inode = self.threads.socket(call.thread, call.int(0), cython.address(call.end))
        one = self.sockets.get(inode)
        if one is None:
            call.proceed()              # it is none of ours
            return
        if isinstance(one, Accepted):
            one = cython.cast(Accepted, one).whole()
        handler(one, call)
        if call.end >= 0:
            self.threads.keep(call.thread, call.int(0), inode, call.end)
            call.end = -1

    @cython.cfunc
    @cython.exceptval(check=False)
    def note(self, call: Call) -> cython.void:
        recent: cython.pointer[Recent] = cython.address(self.ring[self.taken % RECENT])
        recent.thread, recent.number, recent.fd = call.thread, call.number, cython.cast(cython.int, call.words[0])
        self.taken += 1
        if call.number < NUMBERS:
            self.counts[call.number] += 1

    @property
    def counted(self) -> Counter:
        """How many of each number there were."""
        return Counter({number: self.counts[number] for number in range(NUMBERS) if self.counts[number]})

    @property
    def recent(self) -> list:
        """The last ones, the latest last: (thread, number, first argument)."""
        count: cython.int = min(self.taken, cython.cast(uint32_t, RECENT))
        first: uint32_t = self.taken - count
        rows = [self.ring[(first + k) % RECENT] for k in range(count)]
        return [(row.thread, row.number, row.fd) for row in rows]
