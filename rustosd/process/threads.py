"""Reaches the descriptors of supervised threads. Compiled: it runs per call.

What tells a program's socket from all others is the inode in sockfs, whatever its descriptors are called and whoever has them.
A duplicate of the descriptor tells it fastest, and is the very one that was looked at if something is to be done with it.
"""

import errno
import os

import cython
from cython.cimports.libc.errno import EBADF, EINVAL, ESRCH
from cython.cimports.libc.errno import errno as c_errno
from cython.cimports.libc.stdint import uint64_t
from cython.cimports.libc.stdio import snprintf

if not cython.compiled:
    raise ImportError("rustosd.process.threads must be compiled: python setup.py build_ext --inplace")

PIDFDS_MOST = cython.declare(cython.int, 256)


@cython.final
@cython.cclass
class Threads:
    """Every thread that has made a call, by a pidfd: it never stands for another one that has its number since."""

    def __cinit__(self) -> None:
        self.kept.fd = -1

    def __dealloc__(self) -> None:
        self.let_go()

    def __init__(self, whole: bool = False) -> None:
        """`whole`: of processes, as before Linux 6.9."""
        self.own = os.getpid()
        self.pidfds = {}
        self.whole = whole

    def duplicate(self, thread: cython.int, number: cython.int) -> int:
        """A thread's descriptor as one of ours. Raises OSError (EBADF)."""
        fd: cython.int = self.reach(thread, number)
        if fd < 0:
            raise OSError(-fd, os.strerror(-fd))
        return fd

    @cython.cfunc
    @cython.exceptval(-1000, check=False)
    def reach(self, thread: cython.int, number: cython.int) -> cython.int:
        """As `duplicate`, or minus an errno."""
        fd: cython.int = -ESRCH
        _k: cython.int
        for _k in range(2):
            key = thread if not self.whole or thread in self.pidfds else _process_of(thread)
            pidfd = self.pidfds.get(key)
            if pidfd is None:
                pidfd = self._open(key)
            fd = cython.cast(cython.int, syscall(SYS_pidfd_getfd, cython.cast(cython.int, pidfd), number, 0))
            if fd >= 0:
                break
            fd = -c_errno
            if fd != -ESRCH:
                break
            self.forget(key)            # its number belongs to another one now
        return fd

    def _open(self, thread: cython.int) -> int:
        fd: cython.int = -1
        if not self.whole:
            fd = cython.cast(cython.int, syscall(SYS_pidfd_open, thread, PIDFD_THREAD))
            if fd < 0 and c_errno == EINVAL:
                self.whole = True
                thread = _process_of(thread)
        if self.whole:
            fd = os.pidfd_open(thread)
        if fd < 0:
            raise OSError(c_errno, os.strerror(c_errno))
        if len(self.pidfds) >= PIDFDS_MOST:
            self.close()
        self.pidfds[thread] = fd
        return fd

    @cython.cfunc
    @cython.exceptval(0, check=True)
    def socket(self, thread: cython.int, number: cython.int, end: cython.p_int) -> uint64_t:
        """The inode of a thread's socket, and a duplicate of the descriptor (-1: none); 0: it is no socket, or closed."""
        found: struct_stat
        fd: cython.int
        end[0] = -1
        if self.kept.fd >= 0:
            if (thread == self.kept.thread and number == self.kept.number
                    and syscall(SYS_kcmp, thread, self.own, KCMP_FILE, number, self.kept.fd) == 0):
                end[0], self.kept.fd = self.kept.fd, -1
                return self.kept.inode
            self.let_go()
        try:
            fd = self.reach(thread, number)
        except OSError:
            fd = -ESRCH                 # it has ended, or we have no descriptor left
        if fd == -EBADF:
            return 0
        if fd < 0:
            return _inode_by_name(thread, number)
        if look_at(fd, cython.address(found)) < 0 or not S_ISSOCK(found.st_mode):
            close_descriptor(fd)
            return 0
        end[0] = fd
        return found.st_ino

    @cython.cfunc
    @cython.exceptval(check=False)
    def keep(self, thread: cython.int, number: cython.int, inode: uint64_t, fd: cython.int) -> cython.void:
        """A duplicate that `socket` has told of, ours from here on, for the next call, unless that is about another one.

        To see that it is the same file still (kcmp) takes a third of the time of another duplicate.
        """
        self.let_go()
        self.kept.thread, self.kept.number, self.kept.inode, self.kept.fd = thread, number, inode, fd

    @cython.cfunc
    @cython.exceptval(check=False)
    def let_go(self) -> cython.void:
        """Of what is kept: before anything else is done, and before we sleep. The program may have closed it."""
        if self.kept.fd >= 0:
            close_descriptor(self.kept.fd)
            self.kept.fd = -1

    def forget(self, thread: int) -> None:
        """It has ended."""
        fd = self.pidfds.pop(thread, None)
        if fd is not None:
            os.close(fd)

    def tidy(self) -> None:
        """Forget all that have ended."""
        for thread in list(self.pidfds):
            if not os.path.exists(f"/proc/{thread}"):
                self.forget(thread)

    def close(self) -> None:
        """Forget all."""
        for thread in list(self.pidfds):
            self.forget(thread)


@cython.ccall
@cython.exceptval(0, check=True)
def inode_of(fd: cython.int) -> uint64_t:
    """Of a descriptor of ours. Raises OSError."""
    found: struct_stat
    if look_at(fd, cython.address(found)) < 0:
        raise OSError(c_errno, os.strerror(c_errno))
    return found.st_ino


def _process_of(thread: int) -> int:
    """The process a thread belongs to. Raises OSError (ESRCH)."""
    try:
        with open(f"/proc/{thread}/status", errors="replace") as status:      # a name may be octets of no encoding
            for line in status:
                if line.startswith("Tgid:"):
                    return int(line.split()[1])
    except FileNotFoundError:
        pass
    raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))


@cython.cfunc
def _inode_by_name(thread: cython.int, number: cython.int) -> uint64_t:
    """For a thread whose descriptors we may not have but see."""
    path: cython.char[64]
    found: struct_stat
    snprintf(path, cython.sizeof(path), "/proc/%d/fd/%d", thread, number)
    if stat(path, cython.address(found)) < 0 or not S_ISSOCK(found.st_mode):
        return 0
    return found.st_ino
