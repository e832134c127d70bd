"""NBD's transmission phase for Linux's own driver, with a swap store behind it: no Python, no memory, no page fault in between.

What is swapped out is asked for here while there is no memory left; so everything that is needed is there before the first
request comes.
"""

import cython
from cython.cimports.libc.errno import ECONNRESET
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import free
from cython.cimports.libc.string import memset
from cython.cimports.mm.hw import get16, get32, get64, put32
from cython.cimports.mm.swap.device import PAGE
from cython.cimports.mm.swap.store import EMPTY, Failure, SwapStore
from cython.cimports.mm.swap.sys import aligned_alloc
from cython.cimports.rustosd.nbd.exchange import receive_all, send_all
from cython.cimports.rustosd.nbd.wire import (
    CMD_DISC,
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    NBD_EINVAL,
    NBD_EIO,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
)

if not cython.compiled:
    raise ImportError("rustosd.swap.kernel_serve must be compiled: python setup.py build_ext --inplace")

_HEADER = cython.declare(cython.int, 28)
_REPLY = cython.declare(cython.int, 16)


@cython.final
@cython.cclass
class KernelServer:
    """Answers on one end of a socketpair whose other end the kernel has. All slots of the store are the kernel's pages."""

    def __init__(self, fd: int, store: SwapStore):
        self.fd, self.store = fd, store
        self.data = cython.cast(cython.pointer[uint8_t], aligned_alloc(PAGE, MOST))
        if self.data == cython.NULL:
            raise MemoryError
        memset(self.data, 0, MOST)

    def __dealloc__(self):
        free(self.data)

    def serve(self) -> int:
        """Until the kernel lets go: 0, or the errno of what ended it."""
        ended: cython.int
        with cython.nogil:
            ended = self._serve()
        return ended

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _serve(self) -> cython.int:
        header: uint8_t[28]
        error: cython.int
        octets: uint32_t
        command: uint16_t
        while True:
            error = receive_all(self.fd, header, _HEADER)
            if error:
                return error
            command, octets = get16(header + 6), get32(header + 24)
            if get32(header) != REQUEST_MAGIC:
                return ECONNRESET
            if command == CMD_DISC:
                return 0
            if command == CMD_WRITE:
                error = receive_all(self.fd, self.data, octets) if octets <= MOST else self._drain(octets)
                if error:
                    return error
            error = self._do(command, get64(header + 16), octets)
            self.errors += error != 0
            put32(header, SIMPLE_REPLY_MAGIC)       # the cookie is where it was
            put32(header + 4, error)
            error = send_all(self.fd, header, _REPLY, self.data, octets if command == CMD_READ and error == 0 else 0)
            if error:
                return error

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _do(self, command: uint16_t, at: uint64_t, octets: uint32_t) -> cython.int:
        """One request; 0, or NBD's number of an error."""
        failure: Failure
        pages: uint64_t = self.store.slots.runs.count
        first: uint32_t
        count: uint32_t
        if command == CMD_FLUSH:
            return 0                        # what is in swap is needed no longer than the machine runs
        if at % PAGE or octets % PAGE or octets == 0 or at // PAGE + octets // PAGE > pages:
            return NBD_EINVAL
        first, count = cython.cast(uint32_t, at // PAGE), octets // PAGE
        if command == CMD_TRIM:
            self.store.clear_pages(first, count)
            self.store.device.discard(at, octets)
            return 0
        if octets > MOST:
            return NBD_EINVAL
        if command == CMD_WRITE:
            self.writes += 1
            return NBD_EIO if self.store.write_pages(first, count, self.data, cython.address(failure)) else 0
        if command == CMD_READ:
            self.reads += 1
            return self._read(first, count)
        return NBD_EINVAL

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _read(self, first: uint32_t, count: uint32_t) -> cython.int:
        """What was never written reads as zeros."""
        failure: Failure
        at: uint32_t = 0
        run: uint32_t
        empty: cython.bint
        data: cython.pointer[uint8_t]
        while at < count:
            empty = self.store.records[first + at].kind == EMPTY
            run = 1
            while at + run < count and (self.store.records[first + at + run].kind == EMPTY) == empty:
                run += 1
            data = self.data + cython.cast(uint64_t, at) * PAGE
            if empty:
                memset(data, 0, cython.cast(uint64_t, run) * PAGE)
            elif self.store.read_pages(first + at, run, data, cython.address(failure)):
                return NBD_EIO
            at += run
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _drain(self, octets: uint64_t) -> cython.int:
        """Take in what is too much to be done."""
        step: uint64_t
        error: cython.int = 0
        while octets and error == 0:
            step = min(octets, cython.cast(uint64_t, MOST))
            error = receive_all(self.fd, self.data, step)
            octets -= step
        return error
