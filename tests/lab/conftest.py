"""The guest that all lab tests of a session share. It boots for the first that asks and ends with the last."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.guest import Guest
from tests.lab.image import LabUnavailable

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test in this directory is a `lab` test, so that `-m "not lab"` leaves QEMU alone."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("lab")


@pytest.fixture(scope="session")
def guest() -> Iterator[Guest]:
    """A booted guest with an IOMMU, shared: leave its devices with their kernel drivers, its memory free."""
    try:
        booted = Guest()
    except LabUnavailable as why:
        pytest.skip(str(why))
    with booted:
        booted.run("modprobe vfio-pci && modprobe e1000e && modprobe e1000")
        yield booted
