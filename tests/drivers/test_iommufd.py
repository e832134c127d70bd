"""iommufd's structures and numbers, its answers of no fixed length, and what its refusals are told as."""

import ctypes
import errno
import fcntl
import re
import struct
from ctypes import sizeof
from pathlib import Path

import pytest

from drivers import iommufd, iommufd_abi, vfio_abi
from drivers.binding import Holder, Member

RANGES = [(0, 0xFEDFFFFF), (0xFEF00000, 0x7FFFFFFFFF)]


@pytest.mark.parametrize(("structure", "size"), [
    (iommufd_abi._Destroy, 8), (iommufd_abi._IoasAlloc, 12), (iommufd_abi._IovaRanges, 32), (iommufd_abi._Map, 40),
    (iommufd_abi._Unmap, 24), (vfio_abi._BindIommufd, 16), (vfio_abi._AttachIommufd, 12),
])
def test_structures_are_as_long_as_the_kernels(structure, size):
    assert sizeof(structure) == size


def test_the_numbers_of_the_calls_are_the_kernels():
    assert (iommufd_abi._DESTROY, iommufd_abi._IOAS_ALLOC, iommufd_abi._IOAS_IOVA_RANGES, iommufd_abi._IOAS_MAP,
            iommufd_abi._IOAS_UNMAP) == (0x3B80, 0x3B81, 0x3B84, 0x3B85, 0x3B86)
    assert (vfio_abi._DEVICE_BIND_IOMMUFD, vfio_abi._DEVICE_ATTACH_IOMMUFD_PT) == (0x3B76, 0x3B77)


@pytest.fixture
def kernel(monkeypatch):
    """An iommufd of a kernel that has `ranges`; every call is kept in `calls`."""
    class Kernel:
        def __init__(self):
            self.ranges, self.calls = RANGES, []

        def ioctl(self, fd, number, request):
            self.calls.append((number, bytes(request)))
            if number == iommufd_abi._IOAS_ALLOC:
                request.out_ioas_id = 7
            elif number == iommufd_abi._IOAS_IOVA_RANGES:
                room, request.num_iovas = request.num_iovas, len(self.ranges)
                if room < len(self.ranges):
                    raise OSError(errno.EMSGSIZE, "too long")
                octets = b"".join(struct.pack("QQ", *pair) for pair in self.ranges)
                ctypes.memmove(request.allowed_iovas, octets, len(octets))
            return 0

    made = Kernel()
    monkeypatch.setattr(fcntl, "ioctl", made.ioctl)
    return made


def test_ranges_are_asked_for_again_with_as_much_room_as_they_need(kernel):
    assert iommufd_abi.iova_ranges(3, 7) == RANGES
    kernel.ranges = [(index << 20, (index << 20) + 0xFFF) for index in range(100)]
    assert iommufd_abi.iova_ranges(3, 7) == kernel.ranges
    kernel.ranges = [(0, 1)] * 5000
    with pytest.raises(OSError, match="too long"):
        iommufd_abi.iova_ranges(3, 7)


def test_memory_is_mapped_where_it_was_said_for_reading_and_writing(kernel):
    assert iommufd_abi.ioas_alloc(3) == 7
    iommufd_abi.ioas_map(3, 7, 0x7F0000000000, 0x200000, 0x400000)
    iommufd_abi.ioas_unmap(3, 7, 0x200000, 0x400000)
    assert kernel.calls[1:] == [
        (0x3B85, struct.pack("=IIIIQQQ", 40, 7, 7, 0, 0x7F0000000000, 0x400000, 0x200000)),
        (0x3B86, struct.pack("=IIQQ", 24, 7, 0x200000, 0x400000))]


@pytest.mark.parametrize(("number", "others", "holders", "says"), [
    (errno.EPERM, [], [], "cannot remap interrupts.*of the module iommufd"),
    (errno.EPERM, [Member("0000:05:01.0", "e1000")], [], r"still drives 0000:05:01\.0 \(e1000\)"),
    (errno.EBUSY, [], [Holder(12, "qemu")], r"in use by qemu \(process 12\)"),
    (errno.EINVAL, [], [Holder(12, "qemu")], r"in use by qemu \(process 12\)"),
    (errno.EADDRINUSE, [], [], "reserves addresses.*take it before"),
    (errno.ENODEV, [], [], "cannot join the address space of /dev/iommu: No such device"),
])
def test_a_refusal_says_what_to_do(monkeypatch, number, others, holders, says):
    for module in (iommufd, iommufd.not_viable.__globals__):
        names = module if isinstance(module, dict) else vars(module)
        monkeypatch.setitem(names, "in_the_way", lambda _bdf: others)
        monkeypatch.setitem(names, "group_holders", lambda _bdf: holders)
    monkeypatch.setitem(iommufd.not_viable.__globals__, "group_of", lambda _bdf: "5")
    error = iommufd._bind_error("0000:05:02.0", OSError(number, {errno.ENODEV: "No such device"}.get(number, "")))
    assert re.search(says, str(error))


def test_a_kernel_without_it_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(iommufd, "IOMMU", str(tmp_path / "iommu"))
    assert not iommufd.available("0000:00:02.0")
    Path(iommufd.IOMMU).touch()
    monkeypatch.setattr(iommufd, "device_file", lambda _bdf: None)
    assert not iommufd.available("0000:00:02.0")
    monkeypatch.setattr(iommufd, "device_file", lambda _bdf: "/dev/vfio/devices/vfio0")
    assert iommufd.available("0000:00:02.0")
