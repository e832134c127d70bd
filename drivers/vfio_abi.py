"""VFIO's system calls: structures, numbers and one function per call. From the kernel's include/uapi/linux/vfio.h.

Every function raises OSError. What comes back from the kernel in variable length is bounded and checked all the same.
"""

import fcntl
import os
import struct
from ctypes import Structure, c_int32, c_uint32, c_uint64, sizeof
from enum import IntEnum, IntFlag
from typing import NamedTuple

_BASE = ord(";") << 8 | 100     # _IO(';', 100 + n): no direction, no size
(_GET_API_VERSION, _CHECK_EXTENSION, _SET_IOMMU, _GROUP_GET_STATUS, _GROUP_SET_CONTAINER, _GROUP_UNSET_CONTAINER,
 _GROUP_GET_DEVICE_FD, _DEVICE_GET_INFO, _DEVICE_GET_REGION_INFO, _DEVICE_GET_IRQ_INFO, _DEVICE_SET_IRQS, _DEVICE_RESET,
 _IOMMU_GET_INFO, _IOMMU_MAP_DMA, _IOMMU_UNMAP_DMA) = range(_BASE, _BASE + 15)
(_DEVICE_BIND_IOMMUFD, _DEVICE_ATTACH_IOMMUFD_PT) = range(_BASE + 18, _BASE + 20)

API_VERSION = 0
TYPE1V2_IOMMU = 3
NOIOMMU_IOMMU = 8
CONFIG_REGION = 7
"""Index of the configuration space among a PCI device's regions; 0 to 5 are its BARs."""
GROUP_VIABLE = 1
_MAX_INFO = 1 << 16
"""No answer of the kernel is longer."""


class Irq(IntEnum):
    """Index of an interrupt kind of a PCI device."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


class DeviceFlag(IntFlag):
    """What a device can do."""

    RESET = 1
    PCI = 2


class RegionFlag(IntFlag):
    """What a region can do."""

    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


class IrqFlag(IntFlag):
    """What an interrupt can do."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


class _SetFlag(IntFlag):
    NONE = 1            # data: there is none
    EVENTFD = 4         # data: eventfds, -1 to take one away
    MASK = 8            # actions
    UNMASK = 16
    TRIGGER = 32


class _GroupStatus(Structure):
    _fields_ = (("argsz", c_uint32), ("flags", c_uint32))


class _DeviceInfo(Structure):
    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("num_regions", c_uint32), ("num_irqs", c_uint32),
                ("cap_offset", c_uint32))


class _RegionInfo(Structure):
    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("index", c_uint32), ("cap_offset", c_uint32), ("size", c_uint64),
                ("offset", c_uint64))


class _IrqInfo(Structure):
    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("index", c_uint32), ("count", c_uint32))


class _IrqSet(Structure):
    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("index", c_uint32), ("start", c_uint32), ("count", c_uint32))


class _IommuInfo(Structure):
    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("page_sizes", c_uint64), ("cap_offset", c_uint32))


class _DmaMap(Structure):
    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("address", c_uint64), ("iova", c_uint64), ("size", c_uint64))


class _DmaUnmap(Structure):
    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("iova", c_uint64), ("size", c_uint64))


class _BindIommufd(Structure):
    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("iommufd", c_int32), ("out_devid", c_uint32))


class _AttachIommufd(Structure):
    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("pt_id", c_uint32))


class DeviceInfo(NamedTuple):
    """How many regions and interrupt kinds a device has at most."""

    flags: DeviceFlag
    regions: int
    irqs: int


class RegionInfo(NamedTuple):
    """Where a region lies in the device's file; `areas` are the mappable parts, (offset, size), if not all is."""

    flags: RegionFlag
    size: int
    offset: int
    areas: list[tuple[int, int]] | None


class IrqInfo(NamedTuple):
    """How many vectors of a kind there are."""

    flags: IrqFlag
    count: int


class IommuInfo(NamedTuple):
    """What an IOMMU maps: page sizes as a bit map, addresses as (first, last), and how many more mappings it takes."""

    page_sizes: int
    ranges: list[tuple[int, int]]
    mappings_left: int | None


def api_version(container: int) -> int:
    """The version the kernel speaks."""
    return fcntl.ioctl(container, _GET_API_VERSION)


def has_extension(container: int, extension: int) -> bool:
    """Whether the kernel knows this kind of IOMMU."""
    return fcntl.ioctl(container, _CHECK_EXTENSION, extension) > 0


def set_iommu(container: int, kind: int) -> None:
    """Choose the kind of IOMMU; a container with a group in it."""
    fcntl.ioctl(container, _SET_IOMMU, kind)


def group_flags(group: int) -> int:
    """Whether a group is viable."""
    status = _GroupStatus(sizeof(_GroupStatus))
    fcntl.ioctl(group, _GROUP_GET_STATUS, status)
    return status.flags


def group_set_container(group: int, container: int) -> None:
    """Let a group's devices use the container's addresses."""
    fcntl.ioctl(group, _GROUP_SET_CONTAINER, struct.pack("i", container))


def group_device(group: int, bdf: str) -> int:
    """Open a device: its file descriptor."""
    fd = fcntl.ioctl(group, _GROUP_GET_DEVICE_FD, bytearray(bdf.encode() + b"\0"))      # of bytes it would return bytes
    os.set_inheritable(fd, False)
    return fd


def device_info(device: int) -> DeviceInfo:
    """Its flags and counts."""
    info = _DeviceInfo(sizeof(_DeviceInfo))
    fcntl.ioctl(device, _DEVICE_GET_INFO, info)
    return DeviceInfo(DeviceFlag(info.flags & 3), info.num_regions, info.num_irqs)


def device_reset(device: int) -> None:
    """Reset the function by what the kernel knows."""
    fcntl.ioctl(device, _DEVICE_RESET)


def bind_iommufd(device: int, iommufd: int) -> int:
    """Let an iommufd rule a device opened by its own file, which can be used only from then on; its number there."""
    request = _BindIommufd(sizeof(_BindIommufd), 0, iommufd)
    fcntl.ioctl(device, _DEVICE_BIND_IOMMUFD, request)
    return request.out_devid


def attach_iommufd(device: int, address_space: int) -> None:
    """Let a bound device see an address space of its iommufd."""
    fcntl.ioctl(device, _DEVICE_ATTACH_IOMMUFD_PT, _AttachIommufd(sizeof(_AttachIommufd), 0, address_space))


def region_info(device: int, index: int) -> RegionInfo:
    """One region; its size is 0 when there is none."""
    return decode_region(_with_capabilities(device, _DEVICE_GET_REGION_INFO, _RegionInfo(sizeof(_RegionInfo), index=index)))


def decode_region(answer: bytes) -> RegionInfo:
    """A region's description, at least 32 octets, with its list of capabilities; a vfio-user server's has the same form."""
    info = _RegionInfo.from_buffer_copy(answer)
    flags = RegionFlag(info.flags & 15)
    areas = None
    if flags & RegionFlag.CAPS and (found := _capability(answer, info.cap_offset, 1)) is not None:     # sparse mmap
        areas = _pairs(answer, found + 8, found + 16)
    return RegionInfo(flags, info.size, info.offset, areas)


def irq_info(device: int, index: int) -> IrqInfo:
    """One interrupt kind."""
    info = _IrqInfo(sizeof(_IrqInfo), index=index)
    fcntl.ioctl(device, _DEVICE_GET_IRQ_INFO, info)
    return IrqInfo(IrqFlag(info.flags & 15), info.count)


def irq_eventfds(device: int, index: int, fds: list[int]) -> int:
    """Enable a kind with one eventfd per vector; 0, or how many vectors the kernel could give when it has too few."""
    head = _IrqSet(sizeof(_IrqSet) + 4 * len(fds), _SetFlag.EVENTFD | _SetFlag.TRIGGER, index, 0, len(fds))
    return fcntl.ioctl(device, _DEVICE_SET_IRQS, bytearray(head) + struct.pack(f"{len(fds)}i", *fds))


def irq_disable(device: int, index: int) -> None:
    """Switch a kind off."""
    fcntl.ioctl(device, _DEVICE_SET_IRQS, bytes(_IrqSet(sizeof(_IrqSet), _SetFlag.NONE | _SetFlag.TRIGGER, index, 0, 0)))


def irq_mask(device: int, index: int, *, masked: bool) -> None:
    """Mask or unmask vector 0 of a kind that is maskable."""
    action = _SetFlag.MASK if masked else _SetFlag.UNMASK
    fcntl.ioctl(device, _DEVICE_SET_IRQS, bytes(_IrqSet(sizeof(_IrqSet), _SetFlag.NONE | action, index, 0, 1)))


def iommu_info(container: int) -> IommuInfo:
    """What may be mapped; the ranges are all 64 bits where the kernel does not say."""
    answer = _with_capabilities(container, _IOMMU_GET_INFO, _IommuInfo(sizeof(_IommuInfo)))
    info = _IommuInfo.from_buffer_copy(answer)
    ranges, left = [(0, (1 << 64) - 1)], None
    if info.flags & 2:
        if (found := _capability(answer, info.cap_offset, 1)) is not None:
            ranges = _pairs(answer, found + 8, found + 16)
        if (found := _capability(answer, info.cap_offset, 3)) is not None and found + 12 <= len(answer):
            left, = struct.unpack_from("I", answer, found + 8)
    return IommuInfo(info.page_sizes if info.flags & 1 else 4096, ranges, left)


def dma_map(container: int, address: int, iova: int, size: int) -> None:
    """Let the devices read and write this process's memory at `address` through `iova`."""
    fcntl.ioctl(container, _IOMMU_MAP_DMA, _DmaMap(sizeof(_DmaMap), 3, address, iova, size))


def dma_unmap(container: int, iova: int, size: int) -> int:
    """Take that away; how many octets were mapped there."""
    request = _DmaUnmap(sizeof(_DmaUnmap), 0, iova, size)
    fcntl.ioctl(container, _IOMMU_UNMAP_DMA, request)
    return request.size


def _with_capabilities(fd: int, call: int, request: Structure) -> bytes:
    """The answer with what follows it: asked again with the room the kernel says it needs."""
    answer = bytearray(request)
    fcntl.ioctl(fd, call, answer)
    needed, = struct.unpack_from("I", answer)
    if len(answer) < needed <= _MAX_INFO:
        answer = bytearray(request).ljust(needed, b"\0")
        struct.pack_into("I", answer, 0, needed)
        fcntl.ioctl(fd, call, answer)
    return bytes(answer)


def _capability(answer: bytes, offset: int, wanted: int) -> int | None:
    """Where in the answer's list of capabilities the one with this number is. Ends on any list, looped or cut short."""
    for _ in range(64):
        if not 0 < offset <= len(answer) - 8:
            return None
        number, _version, following = struct.unpack_from("HHI", answer, offset)
        if number == wanted:
            return offset
        offset = following
    return None


def _pairs(answer: bytes, count_at: int, at: int) -> list[tuple[int, int]]:
    """A counted array of pairs of 64 bits, as far as it is there."""
    if at > len(answer):
        return []
    count, = struct.unpack_from("I", answer, count_at)
    count = min(count, (len(answer) - at) // 16)
    return [struct.unpack_from("QQ", answer, at + 16 * index) for index in range(count)]
