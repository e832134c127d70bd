"""Edge-triggered epoll of the ends whose other ends programs have: a splice is woken without Python objects in between."""

import os

import cython
import structlog
from cython.cimports.libc.errno import errno as c_errno
from cython.cimports.libc.stdint import uint32_t
from cython.cimports.rustosd.descriptors import End
from cython.cimports.rustosd.epoll import (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLET, close_descriptor, epoll_create1, epoll_ctl, epoll_event, epoll_wait)
from cython.cimports.rustosd.handoff.splice import DatagramSplice, StreamSplice
from cython.cimports.rustosd.pump import Source

if not cython.compiled:
    raise ImportError("rustosd.handoff.watch must be compiled: python setup.py build_ext --inplace")

log = structlog.get_logger(__name__)


@cython.final
@cython.cclass
class Watch(Source):
    """Tells splices, and whatever else has `woken(events)`, what happens to their descriptors."""

    def __cinit__(self):
        self.epoll = -1

    def __init__(self) -> None:
        self.watchers, self.closing = [], []
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(c_errno, os.strerror(c_errno))

    def __dealloc__(self):
        self.close()

    def fileno(self) -> int:
        """Readable while there is something to tell; -1 once closed."""
        return self.epoll

    @cython.ccall
    def watch(self, fd: cython.int, who: object, wanted: uint32_t = 0):
        """From now on, until the descriptor is closed, tell `who`, instead of anybody before, and at once what is the case.

        Splices say themselves what they wait for; others are told of an end that is gone, and of events `wanted` besides.
        """
        event: epoll_event
        event.data.fd = fd
        if isinstance(who, StreamSplice):
            event.events = cython.cast(StreamSplice, who).wanted(self.epoll)
        elif isinstance(who, DatagramSplice):
            event.events = cython.cast(DatagramSplice, who).wanted(self.epoll)
        else:
            event.events = wanted | cython.cast(uint32_t, EPOLLET)
        if fd >= len(self.watchers):
            self.watchers.extend([None] * (fd + 1 - len(self.watchers)))
        verb: cython.int = EPOLL_CTL_ADD if self.watchers[fd] is None else EPOLL_CTL_MOD
        if epoll_ctl(self.epoll, verb, fd, cython.address(event)) < 0:
            raise OSError(c_errno, os.strerror(c_errno))
        self.watchers[fd] = who

    @cython.ccall
    def forget(self, end: End):
        """Close it, and tell nobody any more. While events are told it is closed after them: they name it by its number."""
        fd: cython.int = end.fd
        if fd < len(self.watchers):
            self.watchers[fd] = None
        if self.looking:
            self.closing.append(end)
        else:
            end.close()

    def catch_up(self) -> None:
        """Tell everything there is to tell.

        Until there is no news: when a splice has read what a client wrote, then what the client did before, such as closing
        another socket, has happened too.
        """
        _round: cython.int
        for _round in range(ROUNDS_MOST):
            if self.look_once() == 0:
                return

    @cython.cfunc
    @cython.exceptval(check=False)
    def look(self) -> cython.int:
        return self.look_once()

    @cython.cfunc
    @cython.exceptval(check=False)
    def look_once(self) -> cython.int:
        """Tell a burst of what there is; how much that was."""
        events: epoll_event[EVENTS_MOST]
        count: cython.int
        k: cython.int
        if self.looking:
            return 0
        count = epoll_wait(self.epoll, events, EVENTS_MOST, 0)
        if count <= 0:
            return 0
        self.looking = True
        for k in range(count):
            self.tell(events[k].data.fd, events[k].events)
        self.looking = False
        self.close_ends()
        return count

    @cython.cfunc
    @cython.exceptval(check=False)
    def close_ends(self) -> cython.void:
        end: End
        for end in self.closing:
            end.close()
        self.closing.clear()

    @cython.cfunc
    @cython.exceptval(check=False)
    def tell(self, fd: cython.int, events: uint32_t) -> cython.void:
        who: object = self.watchers[fd]
        try:
            if isinstance(who, StreamSplice):
                cython.cast(StreamSplice, who).wake(events)
            elif isinstance(who, DatagramSplice):
                cython.cast(DatagramSplice, who).wake(events)
            elif who is not None:
                who.woken(events)
        except Exception:
            log.exception("handoff_failed", descriptor=fd)

    def close(self) -> None:
        """Tell nobody any more. May be called twice."""
        if self.epoll >= 0:
            close_descriptor(self.epoll)
            self.epoll = -1
