"""Which way a container goes to a device, and the no-IOMMU mode, without a kernel that has either; tests/lab has those."""

import errno
import os
from pathlib import Path

import pytest

from drivers import binding, iommufd, vfio, vfio_group
from drivers.binding import Holder, Member
from drivers.errors import DeviceRefused
from mm.physical import PhysicalWindow
from tests.support.descriptors import open_descriptors

BDF = "0000:03:00.0"


class FakeSpace:
    """An address space that opens nothing."""

    def __init__(self, *, way="group", no_iommu=False):
        self.way = "no-iommu" if no_iommu else way
        self.ranges = [(0, (1 << 39) - 1)]
        self.opened, self.gone, self.closed = [], [], False

    def open(self, bdf):
        self.opened.append(bdf)
        return os.open(os.devnull, os.O_RDWR), "/dev/fake"

    def let_go(self, bdf):
        self.gone.append(bdf)

    def close(self):
        self.closed = True


@pytest.fixture
def world(monkeypatch, tmp_path):
    """Both nodes are there, and a device bound to vfio-pci."""
    iommu = tmp_path / "iommu"
    iommu.touch()
    monkeypatch.setattr(iommufd, "IOMMU", str(iommu))
    monkeypatch.setattr(iommufd, "IommufdSpace", lambda: FakeSpace(way="iommufd"))
    monkeypatch.setattr(iommufd, "device_file", lambda _bdf: "/dev/vfio/devices/vfio0")
    monkeypatch.setattr(vfio, "GroupSpace", FakeSpace)
    monkeypatch.setattr(vfio, "group_of", lambda _bdf: "5")
    monkeypatch.setattr(vfio, "driver_of", lambda _bdf: "vfio-pci")
    return monkeypatch


def tried(container):
    """The container's way, after an opening that fails where the kernel is first asked."""
    with pytest.raises(DeviceRefused, match="VFIO does not show it: Inappropriate ioctl"):
        container.open(BDF)
    return container.way


def test_iommufd_is_chosen_where_both_its_files_are_there_and_groups_elsewhere(world):
    container = vfio.Container()
    assert container.way == ""
    assert tried(container) == "iommufd"
    world.setattr(iommufd, "device_file", lambda _bdf: None)
    assert tried(vfio.Container()) == "group"
    Path(iommufd.IOMMU).unlink()
    assert vfio.Container().way == "group"
    assert (vfio.Container("group").way, vfio.Container("iommufd").way) == ("group", "iommufd")


def test_a_device_that_does_not_open_leaves_nothing_behind(world):
    container = vfio.Container()
    before = len(open_descriptors())
    tried(container)
    space = container._space
    assert (space.opened, space.gone, len(open_descriptors())) == ([BDF], [BDF], before)
    container.close()
    container.close()
    assert space.closed


def test_no_iommu_is_only_by_name_and_warns_and_takes_physical_addresses(world):
    with pytest.warns(vfio.UnconfinedDmaWarning, match="overwrite all memory of this machine"):
        container = vfio.Container(no_iommu=True)
    assert (container.way, container.backend) == ("no-iommu", "vfio-noiommu")
    assert isinstance(container.pool._window, PhysicalWindow)
    world.setattr(vfio, "group_of", lambda _bdf: None)
    with pytest.raises(DeviceRefused, match="no IOMMU covers it"):
        vfio.Container().open(BDF)


def test_the_kernels_unsafe_mode_is_needed_and_told_how_to_get(monkeypatch, tmp_path):
    switch = tmp_path / "enable_unsafe_noiommu_mode"
    monkeypatch.setattr(vfio_group, "_UNSAFE", switch)
    with pytest.raises(DeviceRefused, match=r"no-IOMMU mode.*backend \"uio\""):
        vfio_group.need_unsafe(BDF)
    switch.write_text("N\n")
    with pytest.raises(DeviceRefused, match=f"`echo 1 >{switch}` turns it on. It lets this process"):
        vfio_group.need_unsafe(BDF)
    switch.write_text("Y\n")
    vfio_group.need_unsafe(BDF)


def test_a_made_up_group_is_told_from_a_real_one(monkeypatch, tmp_path):
    monkeypatch.setattr(vfio_group, "_GROUPS", tmp_path)
    for group, name in (("3", "vfio-noiommu"), ("4", "")):
        (tmp_path / group).mkdir()
        (tmp_path / group / "name").write_text(f"{name}\n")
    assert [vfio_group.group_path(group) for group in ("3", "4", "5")] == [
        "/dev/vfio/noiommu-3", "/dev/vfio/4", "/dev/vfio/5"]
    assert "ask for that by name" in str(vfio_group._other_kind(BDF, no_iommu=True))
    assert "an IOMMU covers it" in str(vfio_group._other_kind(BDF, no_iommu=False))
    monkeypatch.setattr(vfio_group, "is_no_iommu", lambda _group: True)
    assert "CAP_SYS_RAWIO" in str(vfio_group._attach_error(BDF, "3", OSError(errno.EPERM, "")))


def test_who_holds_a_device_by_its_own_file_or_its_group_is_found(monkeypatch, tmp_path):
    file = tmp_path / "vfio0"
    file.touch()
    monkeypatch.setattr(binding, "group_of", lambda _bdf: None)
    monkeypatch.setattr(binding, "group_members", lambda bdf: [Member(bdf, "vfio-pci")])
    monkeypatch.setattr(binding, "device_file", lambda _bdf: str(file))
    assert binding.group_holders(BDF) == []
    with file.open():
        holder, = binding.group_holders(BDF)
        assert isinstance(holder, Holder) and holder.pid == os.getpid()
        with pytest.raises(DeviceRefused, match="this process has it"):
            binding._refuse_if_we_hold_it(BDF)
