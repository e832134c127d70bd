"""Page faults that a program answers: userfaultfd(2) for address spaces, ours and others', and which pages are there.

A range is registered for what is missing and for writes to what is protected. Who touches such a page waits until it is copied
in, or the protection is taken away. Ranges are whole mappings: to register a part would split it, which its owner would notice.
"""

import ctypes
import errno as errors
import os

import cython
from cython.cimports.libc.errno import ENOTTY, errno
from cython.cimports.libc.stdint import int64_t, uint8_t, uint64_t
from cython.cimports.libc.string import memset

if not cython.compiled:
    raise ImportError("mm.paging.userfault must be compiled: python setup.py build_ext --inplace")

_NUMBER = {"x86_64": 323, "aarch64": 282}
_DEVICE = "/dev/userfaultfd"
_IOC_NEW = cython.declare(uint64_t, 0xAA00)                       # USERFAULTFD_IOC_NEW
_PAGEMAP_SCAN = cython.declare(uint64_t, 0xC0606610)
_IS_PRESENT = cython.declare(uint64_t, 1 << 3)
_IS_ZERO_PAGE = cython.declare(uint64_t, 1 << 5)
FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
EVENTS_OF_PROGRAMS = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_THREAD_ID

assert cython.sizeof(Message) == 32 and cython.sizeof(ScanRequest) == 96


def open_own() -> int:
    """A userfaultfd for this process, also for faults inside system calls. Raises OSError with what to do."""
    try:
        device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        device = -1
    if device >= 0:
        flags: cython.int = FLAGS
        made: cython.int = ioctl(device, _IOC_NEW, flags)
        number: cython.int = errno
        os.close(device)
        if made >= 0:
            return made
        raise OSError(number, os.strerror(number), _DEVICE)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(_NUMBER[os.uname().machine], FLAGS)
    if fd < 0:
        error = ctypes.get_errno()
        hint = ": be root, have the right to open /dev/userfaultfd, or set vm.unprivileged_userfaultfd=1"
        raise OSError(error, os.strerror(error) + (hint if error == errors.EPERM else ""))
    return fd


def begin(fd: int, features: int = 0) -> None:
    """Agree with the kernel upon what the descriptor does, once. Raises OSError: this kernel does not know it all."""
    asked: uffdio_api
    memset(cython.address(asked), 0, cython.sizeof(asked))
    asked.api = UFFD_API
    asked.features = features | UFFD_FEATURE_PAGEFAULT_FLAG_WP
    if ioctl(fd, UFFDIO_API, cython.address(asked)) < 0:
        raise OSError(errno, f"userfaultfd of this kernel does less than is needed (Linux 5.10 or later): {os.strerror(errno)}")


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def uffd_register(fd: cython.int, start: uint64_t, octets: uint64_t) -> cython.int:
    asked: uffdio_register
    memset(cython.address(asked), 0, cython.sizeof(asked))
    asked.range.start = start
    asked.range.len = octets
    asked.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP
    return errno if ioctl(fd, UFFDIO_REGISTER, cython.address(asked)) < 0 else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def uffd_copy(fd: cython.int, to: uint64_t, data: cython.pointer[cython.const[uint8_t]], octets: uint64_t,
              protect: cython.bint, done: cython.pointer[uint64_t]) -> cython.int:
    asked: uffdio_copy
    failed: cython.bint
    asked.dst = to
    asked.src = cython.cast(uint64_t, data)
    asked.len = octets
    asked.mode = UFFDIO_COPY_MODE_WP if protect else 0
    asked.copy = 0
    failed = ioctl(fd, UFFDIO_COPY, cython.address(asked)) < 0
    done[0] = asked.copy if asked.copy > 0 else 0
    return errno if failed else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def uffd_zero(fd: cython.int, start: uint64_t, octets: uint64_t, done: cython.pointer[uint64_t]) -> cython.int:
    asked: uffdio_zeropage
    failed: cython.bint
    asked.range.start = start
    asked.range.len = octets
    asked.mode = 0
    asked.zeropage = 0
    failed = ioctl(fd, UFFDIO_ZEROPAGE, cython.address(asked)) < 0
    done[0] = asked.zeropage if asked.zeropage > 0 else 0
    return errno if failed else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def uffd_protect(fd: cython.int, start: uint64_t, octets: uint64_t, protect: cython.bint) -> cython.int:
    asked: uffdio_writeprotect
    asked.range.start = start
    asked.range.len = octets
    asked.mode = UFFDIO_WRITEPROTECT_MODE_WP if protect else 0
    return errno if ioctl(fd, UFFDIO_WRITEPROTECT, cython.address(asked)) < 0 else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def uffd_wake(fd: cython.int, start: uint64_t, octets: uint64_t) -> cython.int:
    asked: uffdio_range
    asked.start = start
    asked.len = octets
    return errno if ioctl(fd, UFFDIO_WAKE, cython.address(asked)) < 0 else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def present_regions(pagemap: cython.int, start: uint64_t, end: uint64_t, found: cython.pointer[ScanRegion], most: uint64_t,
                    walked: cython.pointer[uint64_t]) -> int64_t:
    asked: ScanRequest
    got: int64_t
    memset(cython.address(asked), 0, cython.sizeof(asked))
    asked.size = cython.sizeof(asked)
    asked.start = start
    asked.end = end
    asked.vector = cython.cast(uint64_t, found)
    asked.vector_length = most
    asked.required = _IS_PRESENT | _IS_ZERO_PAGE
    asked.inverted = _IS_ZERO_PAGE                      # which takes no memory
    asked.told = _IS_PRESENT
    got = ioctl(pagemap, _PAGEMAP_SCAN, cython.address(asked))
    if got < 0:
        walked[0] = start
        return -1 if errno == ENOTTY else 0
    walked[0] = asked.walk_end
    return got
