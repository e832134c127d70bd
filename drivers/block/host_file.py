"""Opening what a file-backed disk is kept in: a regular or sparse file, or, when asked by name, a block device of the host."""

import errno
import fcntl
import mmap
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from drivers.errors import DeviceError

_BLKSSZGET: Final = 0x1268
_BLKPBSZGET: Final = 0x127B
_ALIGNMENTS: Final = (512, 4096)
_PAGE: Final = 4096
SECTOR_SIZES: Final = (512, 4096)


@dataclass(slots=True)
class HostFile:
    """An open and locked file. Its owner closes it."""

    path: str
    fd: int
    octets: int
    is_device: bool
    read_only: bool
    physical_octets: int
    direct_fd: int = -1
    alignment: int = 0
    """Of memory and offsets, for `direct_fd`."""

    def close(self) -> None:
        """May be called twice."""
        for fd in (self.direct_fd, self.fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.direct_fd = -1


def open_file(path: str, *, sector_octets: int = 512, read_only: bool = False, direct: bool = False,
              create_octets: int | None = None, allow_device: bool = False) -> HostFile:
    """Open it for ourselves alone: another rustosd that has it, or anybody who locks it by flock(2), is an error.

    `create_octets`: make it, sparse and of that size, if it does not exist; a smaller one that exists grows to it.
    Raises DeviceError, with what to do about it.
    """
    if sector_octets not in SECTOR_SIZES:
        raise DeviceError(path, f"sectors of {sector_octets} octets: 512 or 4096 are possible")
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    with suppress(OSError):
        if stat.S_ISBLK(os.stat(path).st_mode):
            flags |= os.O_EXCL
    if create_octets is not None and not read_only:
        flags |= os.O_CREAT
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise _explained(error, path, read_only) from None
    opened = HostFile(path, fd, 0, False, read_only, sector_octets)
    try:
        _examine(opened, sector_octets, allow_device, create_octets)
        if direct:
            _open_direct(opened, flags & ~os.O_CREAT, sector_octets)
    except OSError as error:
        opened.close()
        raise _explained(error, path, read_only) from None
    except BaseException:
        opened.close()
        raise
    return opened


def _examine(opened: HostFile, sector_octets: int, allow_device: bool, create_octets: int | None) -> None:
    """Lock it and find its size."""
    path, fd = opened.path, opened.fd
    status = os.fstat(fd)
    opened.is_device = stat.S_ISBLK(status.st_mode)
    if not opened.is_device and not stat.S_ISREG(status.st_mode):
        raise DeviceError(path, "it is neither a regular file nor a block device")
    if opened.is_device and not allow_device:
        raise DeviceError(path, "it is a block device of this machine, what is on it would be overwritten. If that is "
                                "meant, say kind = \"device\" in its [[disk]]")
    fcntl.flock(fd, (fcntl.LOCK_SH if opened.read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    if opened.is_device:
        logical, opened.physical_octets = (int.from_bytes(fcntl.ioctl(fd, request, bytes(4)), "little")
                                           for request in (_BLKSSZGET, _BLKPBSZGET))
        if logical > sector_octets:
            raise DeviceError(path, f"its sectors have {logical} octets: a disk on it must have sector_octets = {logical}")
    elif create_octets is not None and not opened.read_only and status.st_size < create_octets:
        os.ftruncate(fd, create_octets)
    opened.octets = os.lseek(fd, 0, os.SEEK_END)
    if opened.octets < sector_octets:
        raise DeviceError(path, f"it has {opened.octets} octets, no sector of {sector_octets}. For a new disk give its "
                                "size, for example size = \"1GiB\"")


def _open_direct(opened: HostFile, flags: int, sector_octets: int) -> None:
    """A second descriptor that goes past the page cache, and what alignment it wants."""
    try:
        opened.direct_fd = os.open(f"/proc/self/fd/{opened.fd}", flags & ~os.O_EXCL | os.O_DIRECT)
        with mmap.mmap(-1, 2 * _PAGE) as buffer, memoryview(buffer) as view:
            for alignment in _ALIGNMENTS:
                with suppress(OSError), view[alignment:2 * alignment] as part:
                    if alignment < opened.octets:
                        os.preadv(opened.direct_fd, [part], alignment if opened.octets >= 2 * alignment else 0)
                    opened.alignment = alignment
                    break
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    if not opened.alignment:
        raise DeviceError(opened.path, "its filesystem knows no direct I/O: leave out direct = true")
    opened.physical_octets = max(opened.physical_octets, opened.alignment, sector_octets)


def _explained(error: OSError, path: str, read_only: bool) -> DeviceError:
    """What went wrong and what to do next."""
    advice = {
        errno.ENOENT: "it, or its directory, does not exist. To make the file give its size, for example size = \"1GiB\"",
        errno.EACCES: "no permission: run as root, or change the file's owner or mode",
        errno.EPERM: "no permission: run as root, or change the file's owner or mode (is it immutable, see lsattr?)",
        errno.EISDIR: "it is a directory; name a file in it",
        errno.EROFS: "its filesystem is read-only: say read_only = true, or put it elsewhere",
        errno.EWOULDBLOCK: "another program has it locked: end that, or open it read-only in both" if not read_only
                           else "another program writes to it: end that first",
        errno.EBUSY: "it is in use, by a mounted filesystem, a RAID or another program: see lsblk",
        errno.ETXTBSY: "it is a program that runs, or swap space in use",
        errno.ENOSPC: "there is no room for it on its filesystem",
        errno.EFBIG: "its filesystem has no files as large as that: give a smaller size",
        errno.ENXIO: "there is no device behind it",
    }
    return DeviceError(path, f"cannot be opened: {advice.get(error.errno, error.strerror)}", error.errno or 0)
