"""An NBD export as a device for swap, asked without the GIL: disks of the daemon's for other processes.

Each call is one request on one of a few connections. A connection that failed stays broken, and with it the device: what was
being written may or may not be there, and swap must not guess.
"""

import struct

import cython
from cython.cimports.libc.errno import ECONNRESET, EINVAL, EIO, ENOMEM, ENOSPC, EPERM, EPROTO
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memset
from cython.cimports.mm.hw import get32, get64, put16, put32, put64
from cython.cimports.mm.swap.device import PAGE, UNIT, Device
from cython.cimports.mm.swap.sys import (
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from cython.cimports.rustosd.nbd.exchange import receive_all, send_all
from cython.cimports.rustosd.nbd.wire import (
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    NBD_EINVAL,
    NBD_ENOMEM,
    NBD_ENOSPC,
    NBD_EPERM,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
)

from rustosd.nbd import wire
from rustosd.nbd.client import open_export

if not cython.compiled:
    raise ImportError("rustosd.nbd.device must be compiled: python setup.py build_ext --inplace")

PATIENCE_S = 60
"""How long a request may take; the daemon's own disks tell of a stall before."""


@cython.final
@cython.cclass
class NbdDevice(Device):
    """An export, or a part of it, on a unix socket."""

    def __cinit__(self):
        i: cython.int
        for i in range(CONNECTIONS):
            self.lines[i].fd = -1
            pthread_mutex_init(cython.address(self.lines[i].lock), cython.NULL)

    def __init__(self, path: str, export: str, *, begin: int = 0, octets: int = 0, connections: int = 2):
        """`octets` from `begin` on are all that is used; 0: all there are. Raises OSError that says what to do."""
        first = open_export(path, export)
        self._adopt(first.connection)
        there = first.octets - begin
        if first.read_only:
            raise OSError(EPERM, f"the export {export} is read-only: swap must be written")
        if begin % PAGE or begin < 0 or there < PAGE or octets > there:
            raise OSError(ENOSPC, f"the export {export} has {first.octets} octets; {octets or PAGE} from {begin} on are wanted")
        if first.block_octets > PAGE:
            raise OSError(EINVAL, f"the export {export} takes blocks of {first.block_octets} octets only")
        self.name, self.export = f"{export} on {path}", export
        self.begin = begin
        self.octets = (octets or there) // PAGE * PAGE
        self.granule = max(first.block_octets, UNIT)
        self.trims = bool(first.flags & wire.FLAG_SEND_TRIM)
        while first.shareable and self.line_count < min(connections, CONNECTIONS):
            self._adopt(open_export(path, export).connection)

    def _adopt(self, connection):
        patience = struct.pack("ll", PATIENCE_S, 0)
        connection.setsockopt(1, 20, patience)      # SOL_SOCKET, SO_RCVTIMEO
        connection.setsockopt(1, 21, patience)      # SO_SNDTIMEO
        self.lines[self.line_count].fd = connection.detach()
        self.line_count += 1

    def __dealloc__(self):
        i: cython.int
        for i in range(CONNECTIONS):
            if self.lines[i].fd >= 0:
                close_fd(self.lines[i].fd)
            pthread_mutex_destroy(cython.address(self.lines[i].lock))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def read(self, data: cython.pointer[uint8_t], at: uint64_t, octets: uint64_t) -> cython.int:
        return self._ask(CMD_READ, data, at, octets)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def write(self, data: cython.pointer[cython.const[uint8_t]], at: uint64_t, octets: uint64_t) -> cython.int:
        return self._ask(CMD_WRITE, cython.cast(cython.pointer[uint8_t], data), at, octets)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def discard(self, at: uint64_t, octets: uint64_t) -> cython.int:
        return self._ask(CMD_TRIM, cython.NULL, at, octets) if self.trims else 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _ask(self, command: uint16_t, data: cython.pointer[uint8_t], at: uint64_t, octets: uint64_t) -> cython.int:
        line: cython.pointer[Line]
        step: uint64_t
        error: cython.int = 0
        if octets > self.octets or at > self.octets - octets:
            return EINVAL
        line = self._line()
        while octets and error == 0:
            step = min(octets, cython.cast(uint64_t, REQUEST_MOST))
            error = self._exchange(line, command, data, self.begin + at, step)
            at += step
            octets -= step
            if data != cython.NULL:
                data += step
        pthread_mutex_unlock(cython.address(line.lock))
        return error

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _line(self) -> cython.pointer[Line]:
        """A connection of our own, locked: one that nobody uses, or else the next one to be free."""
        i: uint32_t
        for i in range(self.line_count):
            if pthread_mutex_trylock(cython.address(self.lines[i].lock)) == 0:
                return cython.address(self.lines[i])
        self.turn += 1
        i = self.turn % self.line_count
        pthread_mutex_lock(cython.address(self.lines[i].lock))
        return cython.address(self.lines[i])

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _exchange(self, line: cython.pointer[Line], command: uint16_t, data: cython.pointer[uint8_t], at: uint64_t,
                  octets: uint64_t) -> cython.int:
        """One request and its reply."""
        header: uint8_t[28]
        error: cython.int
        if line.error:
            return line.error
        line.cookie += 1
        put32(header, REQUEST_MAGIC)
        put16(header + 4, 0)
        put16(header + 6, command)
        put64(header + 8, line.cookie)
        put64(header + 16, at)
        put32(header + 24, cython.cast(uint32_t, octets))
        error = send_all(line.fd, header, 28, data, octets if command == CMD_WRITE else 0)
        if error == 0:
            error = receive_all(line.fd, header, 16)
        if error == 0 and (get32(header) != SIMPLE_REPLY_MAGIC or get64(header + 8) != line.cookie):
            error = EPROTO
        if error == 0 and get32(header + 4):
            return _errno_of(get32(header + 4))
        if error == 0 and command == CMD_READ:
            error = receive_all(line.fd, data, octets)
        line.error = error
        return error

    def close(self) -> None:
        header: uint8_t[28]
        i: uint32_t
        for i in range(self.line_count):
            if self.lines[i].fd >= 0:
                pthread_mutex_lock(cython.address(self.lines[i].lock))
                if self.lines[i].error == 0:
                    memset(header, 0, 28)
                    put32(header, REQUEST_MAGIC)
                    put16(header + 6, wire.CMD_DISC)
                    send_all(self.lines[i].fd, header, 28, cython.NULL, 0)
                close_fd(self.lines[i].fd)
                self.lines[i].fd, self.lines[i].error = -1, ECONNRESET
                pthread_mutex_unlock(cython.address(self.lines[i].lock))

    def describe(self) -> str:
        return f"export {self.export}"


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _errno_of(error: uint32_t) -> cython.int:
    """NBD's errors are some of Linux's; any other is EIO."""
    if error == NBD_EPERM:
        return EPERM
    if error == NBD_ENOMEM:
        return ENOMEM
    if error == NBD_EINVAL:
        return EINVAL
    if error == NBD_ENOSPC:
        return ENOSPC
    return EIO
