"""Every way to a device that needs a kernel, by the same proof: VFIO's groups, iommufd, no IOMMU, UIO.

iommufd and VFIO without an IOMMU are not in Debian's kernels; Ubuntu's stands in, where it can be fetched.
`tests/drivers/test_vfio_user.py` has the same proof for the way that needs none.
"""

import pytest

from tests.lab import inside_reach as inside
from tests.lab import inside_take, inside_vfio
from tests.lab.guest import CARDS, EDU, Guest
from tests.lab.image import Image, ubuntu_image
from tests.lab.packages import LabUnavailable
from tests.lab.test_take import TAKE, V6, Nic, driver_of, end, start
from tests.support import edu

E1000, E1000E = CARDS["e1000"], CARDS["e1000e"]
KINDS = ("intx", "msi")
HUGE = "sysctl -q vm.nr_hugepages=8"


def by_groups(guest, way):
    group = guest.run(f"basename $(readlink /sys/bus/pci/devices/{EDU}/iommu_group)").stdout.strip()
    chosen, seen = guest.call(inside.prove, EDU, way, KINDS)
    assert (chosen, seen.pop("path")) == ("group", f"/dev/vfio/{group}")
    assert seen == edu.expected("vfio", "vfio", KINDS)


def keeps_windows_of_drivers(image: Image) -> bool:
    """Whether a kernel lets nobody map what a driver of its has, unless booted with iomem=relaxed: not all of Ubuntu's do."""
    config = image.kernel.parent / "boot" / f"config-{image.version}"
    return "CONFIG_IO_STRICT_DEVMEM=y" in config.read_text().splitlines()


def booted(**options):
    try:
        guest = Guest(cpus=1, memory_mib=768, kernel=ubuntu_image(), **options)
    except LabUnavailable as why:
        pytest.skip(str(why))
    with guest:
        guest.run(f"{HUGE}; modprobe -a vfio-pci e1000 e1000e")
        guest.preload("tests.lab.inside_reach")
        yield guest


@pytest.fixture(scope="module")
def debian(guest):
    guest.preload("tests.lab.inside_reach")
    guest.run(f"{HUGE} && modprobe uio_pci_generic")
    yield guest
    guest.run("sysctl -q vm.nr_hugepages=0")


@pytest.fixture(scope="module")
def ubuntu():
    yield from booted()


@pytest.fixture(scope="module")
def bare():
    """Without an IOMMU."""
    yield from booted(iommu=False)


def test_by_groups_where_the_kernel_has_nothing_newer(debian):
    by_groups(debian, "vfio")


def test_by_uio(debian):
    way, seen = debian.call(inside.prove, EDU, "uio", ("intx",))
    assert (way, seen.pop("path")[:-1]) == ("uio", "/dev/uio")
    assert seen == edu.expected("uio", "sysfs", ("intx",))


def test_a_kernel_without_iommufd_and_one_without_no_iommu_mode_are_told(debian):
    assert "/dev/iommu: No such file or directory" in debian.call(inside.complain, EDU, "iommufd")
    assert "this kernel is built without VFIO's no-IOMMU mode" in debian.call(inside.complain, EDU, "vfio-noiommu")


def test_configuration_space_is_reached_by_ecam_where_the_kernel_allows_it(debian):
    """The guest is booted with iomem=relaxed."""
    for bdf in (E1000E.bdf, E1000.bdf):
        how, passed_over, ours, kernels = debian.call(inside.config_space, bdf)
        assert (how, passed_over, len(ours)) == ("ecam", (), 4096)
        assert ours[:len(kernels)] == kernels


@pytest.mark.parametrize("way", ["vfio", "iommufd"])
def test_by_iommufd_of_itself_where_the_kernel_has_it(ubuntu, way):
    ubuntu.run("modprobe iommufd")
    chosen, seen = ubuntu.call(inside.prove, EDU, way, KINDS)
    assert (chosen, seen.pop("path")[:-1]) == ("iommufd", "/dev/vfio/devices/vfio")
    assert seen == edu.expected("vfio", "vfio", KINDS)


def test_by_groups_there_when_asked_for(ubuntu):
    by_groups(ubuntu, "group")


def test_an_address_space_of_iommufd_has_the_iommus_holes(ubuntu):
    found = ubuntu.call(inside.ranges, EDU)
    assert found[0][0] == 0 and found[0][1] < 0xFEE00000 < found[1][0]     # where interrupts live


def test_devices_of_two_groups_share_an_iommufd(ubuntu):
    seen = ubuntu.call(inside_vfio.share, E1000.bdf, E1000E.bdf)
    assert "it is open in this container already" in seen["twice"]
    assert (seen["same group"], seen["allowed"], seen["again"], seen["left by one"], seen["pool"]) == (
        False, True, True, [("shared", 1, 8192)], 0)


def test_a_card_sends_from_memory_of_an_iommufd_and_each_vector_arrives(ubuntu):
    assert ubuntu.call(inside_vfio.send_frame, E1000E.bdf, "vfio", b"by iommufd")["done"]
    assert ubuntu.call(inside_vfio.interrupt, E1000E.bdf, "msix")["kinds"] == ["msix", "msix"]


def test_dma_to_what_is_not_mapped_ends_in_the_iommu(ubuntu):
    ubuntu.run("dmesg --clear")
    ubuntu.call(inside_vfio.provoke_fault, E1000E.bdf)
    assert "fault addr 0x70000000" in ubuntu.run("dmesg").stdout


def test_who_stands_in_the_way_of_iommufd_is_told(ubuntu):
    assert ubuntu.call(inside_vfio.bind_complaint, EDU, "vfio-pci") == ("bound", "vfio-pci")
    try:
        said = ubuntu.call(inside.complain, EDU, "iommufd")
    finally:
        assert ubuntu.call(inside_vfio.give_back_soon, EDU, None, 10) == "given back"
    assert "the kernel still drives 0000:05:01.0 (e1000)" in said
    for said in ubuntu.call(inside.two_processes_worth, EDU).values():
        assert "in use by python" in said and "stop that first" in said
    assert "may lock 64 KiB where 2048 KiB are needed" in ubuntu.call(inside.little_memlock, EDU)
    assert "this process has it, or another device" in ubuntu.call(inside_vfio.give_back_while_open, E1000E.bdf)


def test_opening_and_closing_by_iommufd_leaves_nothing_behind(ubuntu):
    before, after = ubuntu.call(inside_vfio.rounds, E1000E.bdf, "vfio", 6)
    assert after == before


def test_without_an_iommu_only_by_name_and_only_in_the_kernels_unsafe_mode(bare):
    how, passed_over, ours, kernels = bare.call(inside.config_space, E1000E.bdf)
    if keeps_windows_of_drivers(ubuntu_image()):
        why, = passed_over
        assert how == "sysfs" and "boot the kernel with iomem=relaxed" in why
    else:
        assert (how, passed_over) == ("ecam", ()) and ours[:len(kernels)] == kernels
    assert "No IOMMU covers it" in bare.call(inside_vfio.bind_complaint, EDU, "vfio-pci")[0]
    assert "no-IOMMU mode is off: `echo 1 >/sys/module/vfio/parameters/enable_unsafe_noiommu_mode`" in bare.call(
        inside.complain, EDU, "vfio-noiommu")
    bare.run("echo 1 >/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
    warning, = bare.call(inside.warned)
    assert "UnconfinedDmaWarning: VFIO without an IOMMU" in warning and "overwrite all memory" in warning
    assert "ask for that by name" in bare.call(inside.complain_taken, EDU, "vfio")
    way, seen = bare.call(inside.prove, EDU, "vfio-noiommu", KINDS)
    assert (way, seen.pop("path")[:-1]) == ("no-iommu", "/dev/vfio/noiommu-")
    assert seen == edu.expected("vfio-noiommu", "vfio", KINDS)
    with pytest.raises(Exception, match=r"1 more free huge pages"):
        bare.run("sysctl -q vm.nr_hugepages=0")
        bare.call(inside.prove, EDU, "vfio-noiommu", ())


def test_the_daemon_takes_and_serves_without_an_iommu_when_told_so_by_name(bare):
    """Last here: it leaves the kernel in its unsafe mode."""
    bare.preload("tests.lab.inside_take")
    bare.run("sysctl -q vm.nr_hugepages=24; echo 0 >/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
    nic = Nic(bare, E1000E.name)
    before = nic.shown()
    rule = TAKE.format(f'bdf = "{E1000E.bdf}"\nbackend = "vfio-noiommu"')
    assert "no-IOMMU mode is off: `echo 1 >/sys/module/vfio" in bare.call(inside_take.refused, rule)
    assert "no IOMMU confines its DMA" in bare.call(inside_take.refused, TAKE.format(f'bdf = "{E1000E.bdf}"'))
    assert nic.shown() == before
    bare.run("echo 1 >/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
    call, hello = start(bare, rule)
    assert driver_of(bare, nic.card) == "vfio-pci"
    nic.serves(240)
    nic.answers(V6)
    finished = end(bare, call, hello)
    assert finished.status == 0
    assert '"event": "dma_unconfined"' in finished.stderr and "can overwrite all memory of this machine" in finished.stderr
    assert nic.shown() == before
