"""What the tests of the ways to a device run in the guest: QEMU's edu card, taken with all of its group, by each."""

import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from drivers import acpi, binding
from drivers.errors import DeviceError
from drivers.pci.config import open_config, open_sysfs
from drivers.pci.sysfs import Bdf
from drivers.uio import UioDevice
from drivers.vfio import Container
from tests.lab.inside_vfio import drop_ipc_lock
from tests.support import edu


@contextmanager
def taken(bdf: str, driver: str) -> Iterator[None]:
    """The device and those the IOMMU cannot tell from it, with a userspace driver meanwhile."""
    before = [(member.bdf, binding.bind(member.bdf, driver)) for member in binding.group_members(bdf)]
    try:
        yield
    finally:
        for name, was in before:
            binding.give_back(name, was)


def container(way: str) -> Container:
    """By "vfio", the kernel's best; by "group"; by "iommufd"; or by "vfio-noiommu"."""
    if way == "vfio-noiommu":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Container(no_iommu=True)
    return Container("auto" if way == "vfio" else way)


def prove(bdf: str, way: str, kinds: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Which way it was, and what was seen."""
    if way == "uio":
        with taken(bdf, "uio_pci_generic"):
            return "uio", edu.prove(UioDevice(bdf), kinds)
    with taken(bdf, "vfio-pci"):
        held = container(way)
        try:
            device = held.open(bdf)
            return held.way, edu.prove(device, kinds)
        finally:
            held.close()


def complain(bdf: str, way: str) -> str:
    """What opening it says, bound as it is."""
    try:
        held = container(way)
        try:
            return held.open(bdf).path
        finally:
            held.close()
    except DeviceError as error:
        return str(error)


def complain_taken(bdf: str, way: str) -> str:
    """What opening it says when it is bound to vfio-pci."""
    with taken(bdf, "vfio-pci"):
        return complain(bdf, way)


def warned() -> list[str]:
    """What a container without an IOMMU warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Container(no_iommu=True).close()
    return [f"{warning.category.__name__}: {warning.message}" for warning in caught]


def two_processes_worth(bdf: str) -> dict[str, str]:
    """What a second container says of a device that a first one has, by each way."""
    with taken(bdf, "vfio-pci"):
        first = Container("iommufd")
        try:
            first.open(bdf)
            return {way: complain(bdf, way) for way in ("iommufd", "group")}
        finally:
            first.close()


def little_memlock(bdf: str) -> str:
    """What DMA memory says when only 64 KiB may be locked, without the privilege to lock more."""
    with taken(bdf, "vfio-pci"):
        held = Container("iommufd")
        device = held.open(bdf)
        limits = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, limits[1]))
        drop_ipc_lock()
        try:
            device.dma_alloc(4096, "ring")
        except DeviceError as error:
            return str(error)
        finally:
            held.close()
        return "allocated"


def ranges(bdf: str) -> list[tuple[int, int]]:
    """Addresses the card may be given."""
    with taken(bdf, "vfio-pci"):
        held = Container("iommufd")
        try:
            held.open(bdf)
            return held.ranges
        finally:
            held.close()


def config_space(bdf: str) -> tuple[str, tuple[str, ...], bytes, bytes]:
    """By which way it is reached and why not another; its 4096 octets by that way, and by the kernel's file."""
    address = Bdf.parse(bdf)
    reached, kernels = open_config(address, acpi.table("MCFG")), open_sysfs(address)
    try:
        spaces = [b"".join(config.read(at, 4).to_bytes(4, "little") for at in range(0, config.size, 4))
                  for config in (reached.config, kernels)]
        return reached.config.how, reached.passed_over, *spaces
    finally:
        reached.config.close()
        kernels.close()
