"""VFIO as every kernel has it: IOMMU groups brought into one container, an IOMMU of type 1 or none at all."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from drivers import vfio_abi as abi
from drivers.binding import group_holders, group_of, in_the_way
from drivers.errors import DeviceRefused
from mm.dma import HostMemory

VFIO: Final = "/dev/vfio/vfio"
_UNSAFE = Path("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
_GROUPS = Path("/sys/kernel/iommu_groups")


class GroupSpace:
    """The address space of a container; see drivers.vfio.Space. Without an IOMMU it has no addresses of its own."""

    def __init__(self, *, no_iommu: bool = False) -> None:
        """Raises DeviceRefused where there is no VFIO."""
        self.way = "no-iommu" if no_iommu else "group"
        self._kind = abi.NOIOMMU_IOMMU if no_iommu else abi.TYPE1V2_IOMMU
        self._groups: dict[str, tuple[int, set[str]]] = {}
        try:
            self._fd = os.open(VFIO, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise DeviceRefused(VFIO, "does not exist: load the module with `modprobe vfio-pci`") from None
        except OSError as error:
            raise DeviceRefused(VFIO, f"{error.strerror}: run as root, or give this user the file and the group's") from None
        try:
            if abi.api_version(self._fd) != abi.API_VERSION:
                raise DeviceRefused(VFIO, "this kernel speaks another version of VFIO than 0")
            if no_iommu:
                need_unsafe(VFIO)
            elif not abi.has_extension(self._fd, abi.TYPE1V2_IOMMU):
                raise DeviceRefused(VFIO, "this kernel lacks VFIO for IOMMUs of type 1: `modprobe vfio_iommu_type1`")
        except BaseException:
            os.close(self._fd)
            raise

    def open(self, bdf: str) -> tuple[int, str]:
        """Bring the device's group into the container if need be; the device's file descriptor and the group's path."""
        group = group_of(bdf)
        if group is None:
            raise uncovered(bdf) if self._kind == abi.TYPE1V2_IOMMU else _ungrouped(bdf)
        if is_no_iommu(group) != (self._kind == abi.NOIOMMU_IOMMU):
            raise _other_kind(bdf, no_iommu=is_no_iommu(group))
        path = group_path(group)
        group_fd, devices = self._groups.get(group) or self._join(bdf, group, path)
        try:
            fd = abi.group_device(group_fd, bdf)
        except OSError as error:
            self._leave(group)
            raise DeviceRefused(bdf, f"VFIO does not open it: {error.strerror}; `dmesg | tail` may say why") from None
        devices.add(bdf)
        return fd, path

    def let_go(self, bdf: str) -> None:
        """The device has been closed. With the last one the kernel forgets all mappings."""
        for group, (_, devices) in list(self._groups.items()):
            if bdf in devices:
                devices.discard(bdf)
                self._leave(group)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Addresses (first, last) that the IOMMU and the devices allow."""
        return abi.iommu_info(self._fd).ranges if self._kind == abi.TYPE1V2_IOMMU else []

    @property
    def mappings_left(self) -> int | None:
        """How many more chunks of memory the kernel maps; None when it does not say."""
        return abi.iommu_info(self._fd).mappings_left

    def map(self, memory: HostMemory, iova: int) -> None:
        """Let the devices reach memory. Raises OSError."""
        abi.dma_map(self._fd, memory.address, iova, memory.size)

    def unmap(self, iova: int, size: int) -> None:
        """Take it away again."""
        with suppress(OSError):     # without devices there are no mappings either
            abi.dma_unmap(self._fd, iova, size)

    def close(self) -> None:
        """Once every device has been let go."""
        os.close(self._fd)

    def _join(self, bdf: str, group: str, path: str) -> tuple[int, set[str]]:
        """Bring a group into the container."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise open_error(bdf, path, error) from None
        try:
            if not abi.group_flags(fd) & abi.GROUP_VIABLE:
                raise not_viable(bdf)
            try:
                abi.group_set_container(fd, self._fd)
                if not self._groups:
                    abi.set_iommu(self._fd, self._kind)
            except OSError as error:
                raise _attach_error(bdf, group, error) from None
        except BaseException:
            os.close(fd)
            raise
        self._groups[group] = fd, set()
        return self._groups[group]

    def _leave(self, group: str) -> None:
        fd, devices = self._groups[group]
        if not devices:
            del self._groups[group]
            os.close(fd)


def is_no_iommu(group: str) -> bool:
    """Whether this group is one that VFIO made up for a device without an IOMMU."""
    try:
        return (_GROUPS / group / "name").read_text().strip() == "vfio-noiommu"
    except OSError:
        return False


def group_path(group: str) -> str:
    """The group's file."""
    return f"/dev/vfio/{'noiommu-' if is_no_iommu(group) else ''}{group}"


def need_unsafe(device: str) -> None:
    """Before a device without an IOMMU can even be bound to vfio-pci. Raises DeviceRefused with what the kernel lacks."""
    try:
        on = _UNSAFE.read_text().strip() == "Y"
    except OSError:
        why = "this kernel is built without VFIO's no-IOMMU mode" if Path("/sys/module/vfio").is_dir() else (
            "VFIO is not loaded: `modprobe vfio enable_unsafe_noiommu_mode=1`, then try again; if that fails this kernel has "
            "no no-IOMMU mode")
        raise DeviceRefused(device, f"{why}. Without an IOMMU there is also backend \"uio\"") from None
    if not on:
        raise DeviceRefused(device, f"VFIO's no-IOMMU mode is off: `echo 1 >{_UNSAFE}` turns it on. It lets this process, "
                                    "through the device, read and write all memory of the machine")


def open_error(bdf: str, path: str, error: OSError) -> DeviceRefused:
    """What to say when a file of VFIO's does not open."""
    if error.errno == errno.EBUSY:
        return in_use(bdf)
    if error.errno in (errno.EACCES, errno.EPERM):
        return DeviceRefused(bdf, f"no permission to open {path}: run as root, or give this user the file")
    return DeviceRefused(bdf, f"cannot open {path}: {error.strerror}")


def in_use(bdf: str) -> DeviceRefused:
    """Somebody else has it."""
    who = ", ".join(f"{holder.command} (process {holder.pid})" for holder in group_holders(bdf))
    return DeviceRefused(bdf, f"it or another device of its group is in use by {who or 'another process'}: stop that first")


def uncovered(bdf: str) -> DeviceRefused:
    """It has no IOMMU group."""
    return DeviceRefused(bdf, "no IOMMU covers it: turn VT-d or AMD-Vi on in the firmware and boot with intel_iommu=on, or use "
                              "backend \"uio\"")


def not_viable(bdf: str) -> DeviceRefused:
    """The kernel has another device of the group."""
    others = in_the_way(bdf)
    names = ", ".join(f"{member.bdf} ({member.driver})" for member in others) or "a device that has just come"
    advice = " and ".join(f"`rustosctl device take {member.bdf}`" for member in others) or "try again"
    return DeviceRefused(bdf, f"the kernel still drives {names}, which the IOMMU cannot tell apart from it (group "
                              f"{group_of(bdf)}): take all of the group, {advice}, or move the card to another slot")


def no_remapping(bdf: str, module: str) -> DeviceRefused:
    """The IOMMU lets devices forge interrupts."""
    return DeviceRefused(bdf, "the IOMMU cannot remap interrupts, so a device could forge them: turn interrupt remapping on in "
                              "the firmware, or accept that risk with the parameter allow_unsafe_interrupts=1 of the module "
                              f"{module}")


def _attach_error(bdf: str, group: str, error: OSError) -> DeviceRefused:
    if error.errno == errno.EPERM and is_no_iommu(group):
        return DeviceRefused(bdf, "VFIO's no-IOMMU mode needs CAP_SYS_RAWIO: run as root")
    if error.errno == errno.EPERM:
        return no_remapping(bdf, "vfio_iommu_type1")
    return DeviceRefused(bdf, f"its IOMMU group {group} cannot join the others: {error.strerror}")


def _ungrouped(bdf: str) -> DeviceRefused:
    return DeviceRefused(bdf, "VFIO has made no group for it: was it bound to vfio-pci before the no-IOMMU mode was turned on? "
                              f"`rustosctl device give {bdf}` and take it again")


def _other_kind(bdf: str, *, no_iommu: bool) -> DeviceRefused:
    if no_iommu:
        return DeviceRefused(bdf, "no IOMMU covers it, and VFIO holds it in its no-IOMMU mode: ask for that by name (backend "
                                  "\"vfio-noiommu\"), knowing that the device then reaches all of memory")
    return DeviceRefused(bdf, "an IOMMU covers it: use backend \"vfio\", which confines it")
