"""The table of all sockets that other processes have, and their limits. Compiled: each connection that is handed out enters it.

A socket's id is unguessable: who knows it may use the socket.
"""

import errno as errors
import os
import socket
from typing import Any

import cython
from cython.cimports.rustosd.descriptors import End, make_pair
from cython.cimports.rustosd.handoff.splice import StreamSplice
from cython.cimports.rustosd.handoff.watch import Watch

if not cython.compiled:
    raise ImportError("rustosd.handoff.table must be compiled: python setup.py build_ext --inplace")

TIDY_S = 0.02           # how long small messages that were passed on may take up room in our queue
ANCHOR = b"\0"          # the octet that rustosd.handoff.splice holds, before the client has written one
STREAM = cython.declare(cython.int, socket.SOCK_STREAM)


@cython.cclass
class SocketTable:
    """Those on one stack. Everything happens on the loop's thread."""

    def __init__(self, network: Any, limits: Any) -> None:
        """`limits`: a rustosd.handoff.Limits, which may be replaced."""
        self.network, self.limits, self.bound = network, limits, "there may be"
        self.tcp, self.connections = network.tcp, network.connections
        self.sockets, self.held_by = {}, {}
        self.sessions, self.starved = set(), set()
        self.drawn = b""
        self.ends, self.untidy = Watch(), []

    @cython.ccall
    def check_room(self, pid: cython.int):
        """Raises OSError (EMFILE, ENFILE): a process, or all of them, may have no more."""
        held: cython.int = self.held_by.get(pid, 0)
        every: cython.Py_ssize_t = len(self.sockets) + len(self.sessions) + self.spares
        if held >= self.limits.sockets_per_process:
            self.refused += 1
            raise OSError(errors.EMFILE, f"process {pid} has {held} sockets, as many as max_sockets_per_process under "
                                         "[sockets] allows")
        if every >= self.limits.sockets:
            self.refused += 1
            raise OSError(errors.ENFILE, f"there are {every} sockets, as many as {self.bound}")

    def held(self, pid: int) -> int:
        """How many sockets and sessions a process has."""
        return self.held_by.get(pid, 0)

    @cython.ccall
    def one_more(self, pid: cython.int):
        """A process has one more socket, or session."""
        self.held_by[pid] = self.held_by.get(pid, 0) + 1

    @cython.ccall
    def one_less(self, pid: cython.int):
        """... and one less: who waited for room may have some now."""
        held: cython.int = self.held_by[pid] - 1
        if held:
            self.held_by[pid] = held
        else:
            del self.held_by[pid]
        if self.starved:
            self.network.loop.call_soon(_deliver, self.network, tuple(self.starved))
            self.starved.clear()

    @cython.ccall
    def pair(self, pid: cython.int, kind: cython.int, anchored: cython.bint = True) -> tuple:
        """An id for a new socket, our end and the client's. Raises OSError (EMFILE, ENFILE).

        `anchored`: a stream's queue has the octet that is held.
        """
        ours: End
        theirs: End
        self.check_room(pid)
        ours, theirs = make_pair(kind, self.limits.buffer_octets // 2)
        if anchored and kind == STREAM:
            theirs.send(ANCHOR)
        return self.draw(), ours, theirs

    @cython.cfunc
    def draw(self) -> bytes:
        """A new id."""
        if self.used == len(self.drawn):
            self.drawn, self.used = os.urandom(ID_OCTETS * IDS_AT_ONCE), 0
        self.used += ID_OCTETS
        return self.drawn[self.used - ID_OCTETS:self.used]

    @cython.ccall
    def add(self, identity: bytes, pid: cython.int, one: object):
        """Enter a socket that has a pair from `pair`; `remove` takes it out. Whatever it becomes has its end watched."""
        self.one_more(pid)
        self.sockets[identity] = one
        self.opened += 1

    @cython.cfunc
    def lay_by(self, pid: cython.int) -> tuple:
        """As `pair`, of a stream, for a socket that is not there yet; it counts already."""
        made = self.pair(pid, STREAM, False)
        self.one_more(pid)
        self.spares += 1
        return made

    @cython.cfunc
    def enter(self, identity: bytes, one: object):
        """As `add`, with a pair from `lay_by`."""
        self.spares -= 1
        self.sockets[identity] = one
        self.opened += 1

    @cython.cfunc
    def let_spare_go(self, pid: cython.int, end: End):
        """Close our end of a pair from `lay_by`, of which there was no use."""
        self.spares -= 1
        self.one_less(pid)
        end.close()

    @cython.ccall
    @cython.exceptval(-1, check=True)
    def remove(self, identity: bytes, pid: cython.int, end: End) -> cython.bint:
        """Close our end: the client sees that the socket is over. False: it was removed already."""
        if self.sockets.pop(identity, None) is None:
            return False
        self.one_less(pid)
        self.ends.forget(end)
        return True

    @cython.cfunc
    def let_go(self, handle: object, reset: cython.bint):
        """As `AsyncStack.release`, or `reset`."""
        self.connections.pop(handle, None)
        if reset:
            self.tcp.abort(handle)
        else:
            self.tcp.release(handle)
        self.network.kick()

    @cython.cfunc
    def tidy_later(self, splice: StreamSplice):
        """Call `tidy` of it in a while."""
        if not self.untidy:
            self.network.loop.call_later(TIDY_S, self._tidy)
        self.untidy.append(splice)

    def _tidy(self) -> None:
        splice: StreamSplice
        untidy: list = self.untidy
        self.untidy = []
        for splice in untidy:
            splice.tidy()


def _deliver(network: Any, listeners: Any) -> None:
    """There may be room for connections of theirs."""
    for listener in listeners:
        if listener.owner.listener is listener:
            listener.deliver()
    network.kick()
