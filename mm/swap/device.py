"""What swap is kept on: a file, memory, or whatever else has `read`, `write` and `discard` without the GIL.

A request is answered when the call returns, with 0 or an errno, and several threads may ask at once.
"""

import contextlib
import os
import stat

import cython
from cython.cimports.cpython.bytes import PyBytes_FromStringAndSize
from cython.cimports.libc.errno import EINTR, EIO, EOPNOTSUPP, errno
from cython.cimports.libc.stdint import int64_t, uint8_t, uint64_t
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.mm.swap.sys import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    fallocate,
    madvise,
    mmap,
    munmap,
    pread,
    pwrite,
)

if not cython.compiled:
    raise ImportError("mm.swap.device must be compiled: python setup.py build_ext --inplace")


@cython.cclass
class Device:
    """A place for octets. Requests are multiples of `granule`, which is 512 or 4096, and stay within `octets`."""

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def read(self, data: cython.pointer[uint8_t], at: uint64_t, octets: uint64_t) -> cython.int:
        """0, or why not: an errno."""
        return EOPNOTSUPP

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def write(self, data: cython.pointer[cython.const[uint8_t]], at: uint64_t, octets: uint64_t) -> cython.int:
        """0, or why not: an errno; then some of it may be written all the same."""
        return EOPNOTSUPP

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def discard(self, at: uint64_t, octets: uint64_t) -> cython.int:
        """What was there is needed no more. 0, or why not: an errno, which nobody needs to mind."""
        return 0

    def close(self) -> None:
        """Give it back; what was on it is lost. May be called twice."""

    def describe(self) -> str:
        """What it is, for people."""
        return self.name


@cython.final
@cython.cclass
class FileDevice(Device):
    """A sparse file that nobody else sees: it has no name any more, so that it goes with the last process that has it open.

    What was discarded takes no room. Through the page cache unless `direct`.
    """

    def __cinit__(self):
        self.fd = -1

    def __init__(self, path: str, octets: int, *, direct: bool = False, fd: int = -1):
        """`octets`: whole pages. `fd`: a file that is open already, which is ours from now on; else one is made at `path`.

        Raises OSError; FileExistsError when there is something of that name already.
        """
        if octets < PAGE or octets % PAGE:
            raise ValueError(f"{octets} octets: whole pages of {PAGE} are possible")
        self.fd = fd if fd >= 0 else nameless(path)
        try:
            os.ftruncate(self.fd, octets)
            self.name, self.octets, self.granule = path, octets, UNIT
            if direct:
                self._go_direct()
        except BaseException:
            self.close()
            raise

    def __dealloc__(self):
        if self.fd >= 0:
            os.close(self.fd)

    @cython.cfunc
    def _go_direct(self):
        """Past the page cache, if the file system lets us."""
        flags = os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC
        again = os.open(f"/proc/self/fd/{self.fd}", flags)
        os.dup2(again, self.fd, inheritable=False)
        os.close(again)
        self.direct = True
        self.granule = UNIT if self._takes(UNIT) else PAGE

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _takes(self, octets: uint64_t) -> cython.int:
        at: cython.pointer[cython.void] = mmap(cython.NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if at == MAP_FAILED:
            raise MemoryError
        fits: cython.bint = pread(self.fd, at, octets, octets) == cython.cast(int64_t, octets)
        munmap(at, PAGE)
        return fits

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def read(self, data: cython.pointer[uint8_t], at: uint64_t, octets: uint64_t) -> cython.int:
        done: int64_t
        while octets:
            done = pread(self.fd, data, octets, at)
            if done <= 0:
                if done < 0 and errno == EINTR:
                    continue
                return errno if done < 0 else EIO       # EIO: somebody has cut it short
            data += done
            at += done
            octets -= done
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def write(self, data: cython.pointer[cython.const[uint8_t]], at: uint64_t, octets: uint64_t) -> cython.int:
        done: int64_t
        while octets:
            done = pwrite(self.fd, data, octets, at)
            if done <= 0:
                if done < 0 and errno == EINTR:
                    continue
                return errno if done < 0 else EIO
            data += done
            at += done
            octets -= done
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def discard(self, at: uint64_t, octets: uint64_t) -> cython.int:
        return errno if fallocate(self.fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, at, octets) else 0

    def allocated(self) -> int:
        """Octets of the file system that it takes."""
        return os.fstat(self.fd).st_blocks * 512

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def describe(self) -> str:
        return f"file {self.name}{' (direct)' if self.direct else ''}"


@cython.final
@cython.cclass
class RamDevice(Device):
    """Memory as a device. It can be told to fail, to tear writes and to change what it holds, for those who test."""

    def __init__(self, octets: int, name: str = "memory"):
        if octets < PAGE or octets % PAGE:
            raise ValueError(f"{octets} octets: whole pages of {PAGE} are possible")
        at = mmap(cython.NULL, octets, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if at == MAP_FAILED:
            raise MemoryError(f"no {octets} octets of memory for swap")
        self.base = cython.cast(cython.pointer[uint8_t], at)
        self.name, self.octets, self.granule = name, octets, UNIT

    def __dealloc__(self):
        if self.base != cython.NULL:
            munmap(self.base, self.octets)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def read(self, data: cython.pointer[uint8_t], at: uint64_t, octets: uint64_t) -> cython.int:
        if self.base == cython.NULL or octets > self.octets or at > self.octets - octets:
            return EIO
        if self._fails(self.fault_reads, at, octets):
            return self.fault
        memcpy(data, self.base + at, octets)
        if self.misreads and at <= self.misread_at and self.misread_at < at + octets:
            data[self.misread_at - at] ^= self.misread_bits
            self.misreads -= 1
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def write(self, data: cython.pointer[cython.const[uint8_t]], at: uint64_t, octets: uint64_t) -> cython.int:
        if self.base == cython.NULL or octets > self.octets or at > self.octets - octets:
            return EIO
        if self._fails(self.fault_writes, at, octets):
            memcpy(self.base + at, data, min(self.torn, octets))
            return self.fault
        memcpy(self.base + at, data, octets)
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def discard(self, at: uint64_t, octets: uint64_t) -> cython.int:
        """Whole pages of the host go back to it; what is left of the first and the last reads zeros as well."""
        first: uint64_t = (at + PAGE - 1) // PAGE * PAGE
        last: uint64_t = (at + octets) // PAGE * PAGE
        if first >= last:
            memset(self.base + at, 0, octets)
            return 0
        memset(self.base + at, 0, first - at)
        memset(self.base + last, 0, at + octets - last)
        return errno if madvise(self.base + first, last - first, MADV_DONTNEED) else 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _fails(self, asked: cython.bint, at: uint64_t, octets: uint64_t) -> cython.bint:
        return asked and self.fault != 0 and at < self.fault_end and at + octets > self.fault_at

    def fail(self, error: int, *, reads: bool = True, writes: bool = True, at: int = 0, octets: int = 1 << 62,
             torn: int = 0) -> None:
        """From now on requests that touch these octets end with this errno, writes with their first `torn` octets done.

        0: they are answered again.
        """
        self.fault, self.fault_reads, self.fault_writes = error, reads, writes
        self.fault_at, self.fault_end, self.torn = at, at + octets, torn

    def flip(self, at: int, bits: int) -> None:
        """Change some bits of one octet."""
        if not 0 <= at < self.octets:
            raise IndexError(at)
        self.base[at] ^= cython.cast(uint8_t, bits)

    def misread(self, at: int, bits: int, times: int) -> None:
        """Some bits of one octet are not as they are for the next so many readers."""
        self.misread_at, self.misread_bits, self.misreads = at, bits, times

    def peek(self, at: int, octets: int) -> bytes:
        """What it holds."""
        if at < 0 or octets < 0 or at + octets > self.octets:
            raise IndexError(at)
        where: cython.p_char = cython.cast(cython.p_char, self.base) + cython.cast(uint64_t, at)
        return PyBytes_FromStringAndSize(where, octets)

    def close(self) -> None:
        if self.base != cython.NULL:
            munmap(self.base, self.octets)
            self.base = cython.NULL


def nameless(path: str) -> int:
    """A new file at the place where `path` says, for us alone and without a name. Raises OSError."""
    if os.path.lexists(path) and not stat.S_ISDIR(os.lstat(path).st_mode):
        raise FileExistsError(17, "there is something already; swap takes a file of its own", path)
    flags = os.O_RDWR | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        return os.open(os.path.dirname(path) or ".", flags | os.O_TMPFILE, 0o600)
    fd: cython.int = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(path)
    return fd
