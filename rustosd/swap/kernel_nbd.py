"""Linux's nbd driver and its swap: /dev/nbdN is joined to a socket, made swap, and given back."""

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PAGE: Final = 4096
BLOCK: Final = Path("/sys/block")
DEVICES: Final = 16
_SET_SOCK, _SET_BLKSIZE, _DO_IT, _CLEAR_SOCK = 0xAB00, 0xAB01, 0xAB03, 0xAB04
_SET_SIZE_BLOCKS, _DISCONNECT, _SET_FLAGS = 0xAB07, 0xAB08, 0xAB0A
_FLAGS: Final = 0x0001 | 0x0004 | 0x0020        # has flags, flush, trim: those of rustosd.nbd.wire
_SWAP_FLAG_PREFER, _SWAP_FLAG_DISCARD = 0x8000, 0x10000
_APPEAR_S: Final = 20.0
_HEADER: Final = struct.Struct("=III16s16s")

_libc = ctypes.CDLL(None, use_errno=True)


def free_device() -> str:
    """The path of one that nobody uses. Raises OSError that says what to do."""
    if not (BLOCK / "nbd0").exists():
        with contextlib.suppress(OSError):
            subprocess.run(["modprobe", "nbd"], check=False, capture_output=True, timeout=30)
    if not (BLOCK / "nbd0").exists():
        raise OSError(errno.ENODEV, "this kernel has no nbd driver (module nbd, CONFIG_BLK_DEV_NBD), which swap for the whole "
                                    "machine needs; swap of single programs does not: rustosctl run --memory")
    for number in range(DEVICES):
        block = BLOCK / f"nbd{number}"
        if block.exists() and not (block / "pid").exists() and (block / "size").read_text().strip() == "0":
            return f"/dev/nbd{number}"
    raise OSError(errno.EBUSY, "every nbd device is in use: let go of one (nbd-client -d), or load nbd with a larger nbds_max")


class Joined:
    """A device joined to our socket. `run` in a thread of its own; `make_swap` once it runs."""

    def __init__(self, device: str, sock: int, octets: int) -> None:
        """Raises OSError."""
        self.device, self.octets = device, octets // PAGE * PAGE
        self._fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(self._fd, _SET_BLKSIZE, PAGE)
            fcntl.ioctl(self._fd, _SET_SIZE_BLOCKS, self.octets // PAGE)
            fcntl.ioctl(self._fd, _SET_FLAGS, _FLAGS)
            fcntl.ioctl(self._fd, _SET_SOCK, sock)
        except BaseException:
            os.close(self._fd)
            raise

    def run(self) -> None:
        """Until it is let go of."""
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._fd, _DO_IT)

    def make_swap(self, priority: int) -> None:
        """Write swap's header and switch it on. Raises OSError."""
        limit = time.monotonic() + _APPEAR_S
        size = BLOCK / Path(self.device).name / "size"
        while int(size.read_text()) * 512 != self.octets:       # the driver tells it when it runs
            if time.monotonic() > limit:
                raise OSError(errno.ETIMEDOUT, f"{self.device} does not come up")
            time.sleep(0.01)
        header = bytearray(PAGE)
        _HEADER.pack_into(header, 1024, 1, self.octets // PAGE - 1, 0, uuid.uuid4().bytes, b"rustosd")
        header[-10:] = b"SWAPSPACE2"
        with contextlib.closing(_Descriptor(self.device)) as block:
            os.pwrite(block.fd, header, 0)
            os.fsync(block.fd)
        flags = _SWAP_FLAG_DISCARD if priority < 0 else _SWAP_FLAG_DISCARD | _SWAP_FLAG_PREFER | min(priority, 0x7FFF)
        if _libc.swapon(self.device.encode(), flags):
            error = ctypes.get_errno()
            raise OSError(error, f"swapon {self.device}: {os.strerror(error)}")

    def let_go(self) -> None:
        """The device is nobody's. May be called twice."""
        if self._fd >= 0:
            for request in (_DISCONNECT, _CLEAR_SOCK):
                with contextlib.suppress(OSError):
                    fcntl.ioctl(self._fd, request)
            os.close(self._fd)
            self._fd = -1


class _Descriptor:
    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.fd)


def swaps() -> Iterator[tuple[str, int, int, int]]:
    """What Linux swaps to: (device, octets, octets in use, priority)."""
    for line in Path("/proc/swaps").read_text().splitlines()[1:]:
        device, _, size, used, priority = line.split()
        yield device, int(size) * 1024, int(used) * 1024, int(priority)


def switch_off(device: str) -> None:
    """Take back all that is there, which can take long; nothing to do if it is no swap. Raises OSError (ENOMEM: no room)."""
    if any(each[0] == device for each in swaps()) and _libc.swapoff(device.encode()):
        error = ctypes.get_errno()
        raise OSError(error, f"swapoff {device}: {os.strerror(error)}"
                             + (": what is there does not fit into memory; end something" if error == errno.ENOMEM else ""))


def give_back(device: str) -> None:
    """After a crash: no swap, and joined to nobody. Raises OSError."""
    if not os.path.exists(device):
        return
    switch_off(device)
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        for request in (_DISCONNECT, _CLEAR_SOCK):
            with contextlib.suppress(OSError):
                fcntl.ioctl(fd, request)
    finally:
        os.close(fd)
