"""VFIO without groups and containers: a file per device under /dev/vfio/devices, its addresses kept by /dev/iommu.

Kernels from 6.6 on have it if built with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV, which Debian's are not.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from drivers import iommufd_abi, vfio_abi
from drivers.binding import device_file, group_holders, in_the_way
from drivers.errors import DeviceRefused
from drivers.vfio_group import in_use, no_remapping, not_viable, open_error
from mm.dma import HostMemory

IOMMU: Final = "/dev/iommu"


def available(bdf: str) -> bool:
    """Whether this device, bound to vfio-pci, can be opened so."""
    return Path(IOMMU).exists() and device_file(bdf) is not None


class IommufdSpace:
    """An address space of an iommufd; see drivers.vfio.Space."""

    way = "iommufd"
    mappings_left = None

    def __init__(self) -> None:
        """Raises DeviceRefused where there is no iommufd."""
        try:
            self._fd = os.open(IOMMU, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise DeviceRefused(IOMMU, f"{error.strerror}: run as root, or `modprobe iommufd`") from None
        try:
            self._ioas = iommufd_abi.ioas_alloc(self._fd)
        except OSError as error:
            os.close(self._fd)
            raise DeviceRefused(IOMMU, f"it gives no address space: {error.strerror}") from None

    def open(self, bdf: str) -> tuple[int, str]:
        """The device's file descriptor and path, bound and attached to the address space."""
        path = device_file(bdf)
        if path is None:
            raise DeviceRefused(bdf, "VFIO has made no file for it under /dev/vfio/devices, and the container already works "
                                     "through /dev/iommu: close its other devices first")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise open_error(bdf, path, error) from None
        try:
            vfio_abi.bind_iommufd(fd, self._fd)
            vfio_abi.attach_iommufd(fd, self._ioas)
        except OSError as error:
            os.close(fd)
            raise _bind_error(bdf, error) from None
        return fd, path

    def let_go(self, bdf: str) -> None:
        """Closing its file has detached the device."""

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Addresses (first, last) that the IOMMU and the devices allow."""
        return iommufd_abi.iova_ranges(self._fd, self._ioas)

    def map(self, memory: HostMemory, iova: int) -> None:
        """Let the devices reach memory. Raises OSError."""
        iommufd_abi.ioas_map(self._fd, self._ioas, memory.address, iova, memory.size)

    def unmap(self, iova: int, size: int) -> None:
        """Take it away again."""
        with suppress(OSError):
            iommufd_abi.ioas_unmap(self._fd, self._ioas, iova, size)

    def close(self) -> None:
        """Once every device has been closed; the address space goes with the file."""
        os.close(self._fd)


def _bind_error(bdf: str, error: OSError) -> DeviceRefused:
    if error.errno in (errno.EPERM, errno.EBUSY, errno.EINVAL):     # all three where somebody else has the group or the device
        if in_the_way(bdf):
            return not_viable(bdf)
        if group_holders(bdf):
            return in_use(bdf)
    if error.errno == errno.EPERM:
        return no_remapping(bdf, "iommufd")
    if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
        return DeviceRefused(bdf, "it reserves addresses where other devices of this process have their memory: take it before "
                                  "them")
    return DeviceRefused(bdf, f"it cannot join the address space of /dev/iommu: {error.strerror}; `dmesg | tail` may say why")
