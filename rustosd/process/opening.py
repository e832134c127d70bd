"""Answers socket(2) of supervised programs. Compiled: it runs per call."""

import errno
import os
import socket
from collections.abc import Callable

import cython
from cython.cimports.rustosd.process.call import Call
from cython.cimports.rustosd.process.threads import close_descriptor

from rustosd.process.datagrams import DatagramSocket, Senders
from rustosd.process.sockets import CLOSE_ON_EXEC, NON_BLOCKING, GuestSocket, Loop, Table, error
from rustosd.process.streams import StreamSocket

if not cython.compiled:
    raise ImportError("rustosd.process.opening must be compiled: python setup.py build_ext --inplace")

_TYPE_MASK = cython.declare(cython.int, 0xF)
_NON_BLOCKING = cython.declare(cython.int, NON_BLOCKING)
_CLOSE_ON_EXEC = cython.declare(cython.int, CLOSE_ON_EXEC)
_STREAM = cython.declare(cython.int, socket.SOCK_STREAM)
_PROTOCOLS = {int(socket.SOCK_STREAM): (0, socket.IPPROTO_TCP), int(socket.SOCK_DGRAM): (0, socket.IPPROTO_UDP)}


class Opening:
    """Makes the sockets of one group of programs."""

    def __init__(self, loop: Loop, table: Table, tidy: Callable[[], None]) -> None:
        """`tidy`: let go of what the programs have let go of."""
        self._loop, self._table, self._tidy = loop, table, tidy
        self._senders = Senders()

    def socket(self, call: Call) -> None:
        """Raises LookupError, OSError."""
        kind: cython.int = call.int(1) & _TYPE_MASK
        flags: cython.int = call.int(1) & ~_TYPE_MASK
        fd: cython.int
        if flags & ~(_NON_BLOCKING | _CLOSE_ON_EXEC):
            raise error(errno.EINVAL)
        protocols = _PROTOCOLS.get(kind)
        if protocols is None:
            self._loop.refused[f"socket type {kind}"] += 1
            raise error(errno.EPERM if kind == socket.SOCK_RAW else errno.ESOCKTNOSUPPORT)
        if call.int(2) not in protocols:
            self._loop.refused[f"socket protocol {call.int(2)}"] += 1
            raise error(errno.EPROTONOSUPPORT)
        one, fd = self._make(call.int(0), kind)
        try:
            if flags & _NON_BLOCKING:
                os.set_blocking(fd, False)
            self._table.add(one)
            number = call.give(fd, flags & _CLOSE_ON_EXEC != 0)     # last: whoever has it asks about it at once
        except BaseException:
            self._table.remove(one)
            one.close()
            close_descriptor(fd)
            raise
        call.threads.keep(call.thread, number, one.inode, fd)

    def _make(self, family: int, kind: int) -> tuple[GuestSocket, int]:
        """A socket and the program's descriptor. Raises OSError."""
        try:
            return self._open(family, kind)
        except OSError as failed:
            if failed.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        self._tidy()
        self._table.sweep()
        return self._open(family, kind)

    def _open(self, family: int, kind: cython.int) -> tuple[GuestSocket, int]:
        if kind == _STREAM:
            return StreamSocket.open(self._loop, self._table, family)
        one = DatagramSocket(self._loop, family, self._senders)
        return one, one.program_end().detach()

    def close(self) -> None:
        """The sockets live on."""
        self._senders.close()
