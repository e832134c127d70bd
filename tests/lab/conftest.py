"""The guest that all lab tests of a session share. It boots for the first that asks and ends with the last."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.guest import Guest
from tests.lab.packages import LabUnavailable

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 1200
"""For one test, with the guest's boot where it is the first: a machine may be several times slower than ours."""
OTHER_KERNEL = {"ubuntu", "bare"}
"""Fixtures that boot a kernel with iommufd and no-IOMMU mode, which has to be fetched first."""
FIRST = ("test_systemd.py", "test_take.py", "test_hotplug.py", "test_memory.py")
"""The files that take longest come first, so that of two guests at a time (-n 2) none ends long before the other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test in this directory is a `lab` test, so that `-m "not lab"` leaves QEMU alone, and may take its time."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("lab")
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))
            if OTHER_KERNEL.intersection(getattr(item, "fixturenames", ())):
                item.add_marker("long")
    items.sort(key=lambda item: item.path.name not in FIRST)


@pytest.fixture(scope="session")
def guest() -> Iterator[Guest]:
    """A booted guest with an IOMMU, shared: leave its devices with their kernel drivers, its memory free."""
    try:
        booted = Guest(append="iomem=relaxed")     # configuration space can be mapped by ECAM
    except LabUnavailable as why:
        pytest.skip(str(why))
    with booted:
        booted.run("modprobe vfio-pci && modprobe e1000e && modprobe e1000")
        yield booted
