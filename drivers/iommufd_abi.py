"""iommufd's system calls: structures, numbers and one function per call. From the kernel's include/uapi/linux/iommufd.h.

Every function raises OSError. What comes back in variable length is bounded.
"""

import ctypes
import errno
import fcntl
import struct
from ctypes import Structure, c_uint32, c_uint64, sizeof

_BASE = ord(";") << 8 | 0x80        # _IO(';', 0x80 + n): no direction, no size
_DESTROY, _IOAS_ALLOC, _IOAS_IOVA_RANGES, _IOAS_MAP, _IOAS_UNMAP = _BASE, _BASE + 1, _BASE + 4, _BASE + 5, _BASE + 6
_FIXED, _WRITEABLE, _READABLE = 1, 2, 4
_MAX_RANGES = 4096
"""No platform reserves more holes."""


class _Destroy(Structure):
    _fields_ = (("size", c_uint32), ("id", c_uint32))


class _IoasAlloc(Structure):
    _fields_ = (("size", c_uint32), ("flags", c_uint32), ("out_ioas_id", c_uint32))


class _IovaRanges(Structure):
    _fields_ = (("size", c_uint32), ("ioas_id", c_uint32), ("num_iovas", c_uint32), ("reserved", c_uint32),
                ("allowed_iovas", c_uint64), ("out_iova_alignment", c_uint64))


class _Map(Structure):
    _fields_ = (("size", c_uint32), ("flags", c_uint32), ("ioas_id", c_uint32), ("reserved", c_uint32), ("user_va", c_uint64),
                ("length", c_uint64), ("iova", c_uint64))


class _Unmap(Structure):
    _fields_ = (("size", c_uint32), ("ioas_id", c_uint32), ("iova", c_uint64), ("length", c_uint64))


def ioas_alloc(iommufd: int) -> int:
    """A new, empty address space: its number."""
    request = _IoasAlloc(sizeof(_IoasAlloc))
    fcntl.ioctl(iommufd, _IOAS_ALLOC, request)
    return request.out_ioas_id


def destroy(iommufd: int, number: int) -> None:
    """Give an object back that nothing uses any more."""
    fcntl.ioctl(iommufd, _DESTROY, _Destroy(sizeof(_Destroy), number))


def iova_ranges(iommufd: int, ioas: int) -> list[tuple[int, int]]:
    """Addresses (first, last) that the devices attached so far allow."""
    room = 16
    while True:
        array = ctypes.create_string_buffer(16 * room)
        request = _IovaRanges(sizeof(_IovaRanges), ioas, room, 0, ctypes.addressof(array))
        try:
            fcntl.ioctl(iommufd, _IOAS_IOVA_RANGES, request)
        except OSError as error:
            if error.errno != errno.EMSGSIZE or not room < request.num_iovas <= _MAX_RANGES:
                raise
            room = request.num_iovas
            continue
        return [struct.unpack_from("QQ", array, 16 * index) for index in range(min(request.num_iovas, room))]


def ioas_map(iommufd: int, ioas: int, address: int, iova: int, size: int) -> None:
    """Let the devices read and write this process's memory at `address` through `iova`."""
    fcntl.ioctl(iommufd, _IOAS_MAP, _Map(sizeof(_Map), _FIXED | _WRITEABLE | _READABLE, ioas, 0, address, size, iova))


def ioas_unmap(iommufd: int, ioas: int, iova: int, size: int) -> int:
    """Take that away; how many octets were mapped there."""
    request = _Unmap(sizeof(_Unmap), ioas, iova, size)
    fcntl.ioctl(iommufd, _IOAS_UNMAP, request)
    return request.length
