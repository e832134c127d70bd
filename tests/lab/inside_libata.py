"""What the tests of the AHCI model run in the guest: plain requests to the disks that Linux has made of it."""

import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def _direct(device: str, flags: int):
    fd = os.open(device, os.O_DIRECT | flags)
    try:
        yield fd
    finally:
        os.close(fd)


def read(device: str, offsets: list[int], octets: int = 4096) -> list[bytes | int]:
    """Read past the page cache at all these offsets at the same time; what is there, or the errno."""
    with _direct(device, os.O_RDONLY) as fd, ThreadPoolExecutor(len(offsets)) as pool:
        return list(pool.map(lambda offset: _read(fd, offset, octets), offsets))


def _read(fd: int, offset: int, octets: int) -> bytes | int:
    with mmap.mmap(-1, octets) as buffer:
        try:
            os.preadv(fd, [buffer], offset)
        except OSError as error:
            return error.errno or -1
        return bytes(buffer)


def write(device: str, offset: int, octets: bytes, durable: bool = False) -> int:
    """Write past the page cache; `durable` waits for the medium. The errno, or 0."""
    with _direct(device, os.O_WRONLY | (os.O_DSYNC if durable else 0)) as fd, mmap.mmap(-1, len(octets)) as buffer:
        buffer[:] = octets
        try:
            os.pwritev(fd, [buffer], offset)
        except OSError as error:
            return error.errno or -1
        return 0
