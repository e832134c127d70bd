"""VFIO against Linux's own vfio-pci, an emulated IOMMU and Intel's cards; UIO beside it where it applies."""

import json
import re

import pytest

from tests.lab import inside_vfio as inside
from tests.lab.guest import CARDS, EDU, Guest
from tests.lab.packages import LabUnavailable

E1000, E1000E, E1000_45, RTL8139 = (CARDS[name] for name in ("e1000", "e1000e", "e1000-45", "rtl8139"))
BACKENDS = ("vfio", "uio")


@pytest.fixture(scope="module", autouse=True)
def prepared(guest):
    """Our code imported once, a few huge pages; afterwards every card with the driver it came with."""
    guest.preload("tests.lab.inside_vfio")
    guest.run("sysctl -q vm.nr_hugepages=16 && modprobe uio_pci_generic")
    yield
    guest.run("sysctl -q vm.nr_hugepages=0")
    for card, driver in ((E1000, "e1000"), (E1000E, "e1000e"), (E1000_45, "e1000")):
        assert driver_of(guest, card.bdf) == driver


def driver_of(guest, bdf):
    return guest.run(f"basename $(readlink /sys/bus/pci/devices/{bdf}/driver)").stdout.strip()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("card", [E1000, E1000E], ids=lambda card: card.name)
def test_an_open_card_shows_its_registers_and_does_no_dma(guest, card, backend):
    assert guest.call(inside.look, card.bdf, backend) == {
        "device": True, "ids": {"e1000": 0x100E8086, "e1000e": 0x10D38086}[card.name],
        "how": {"vfio": "vfio", "uio": "sysfs"}[backend], "config": {"e1000": 256, "e1000e": 4096}[card.name],
        "bar": 0x20000, "mapped": True, "mac": card.mac, "master": 0,
        "driver": {"vfio": "vfio-pci", "uio": "uio_pci_generic"}[backend],
    }
    assert driver_of(guest, card.bdf) == card.name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index", [0, 1], ids=["ports", "memory"])
def test_an_access_reaches_the_device_once_and_with_its_own_width(guest, index, backend):
    """The rtl8139 takes every width, so QEMU's trace shows them as they come; its BARs are smaller than a page."""
    with guest.traced("memory_region_ops_write", "memory_region_ops_read") as lines:
        size, mapped, octets, widths_agree = guest.call(inside.small_bar, RTL8139.bdf, index, backend)
    assert (size, octets, widths_agree) == (256, list(bytes.fromhex(RTL8139.mac.replace(":", ""))), True)
    assert index == 1 or not mapped
    assert (index, backend) != (1, "uio") or mapped
    seen = [(match[1], int(match[2], 16) & 0xFF, int(match[3])) for line in lines if "'rtl8139'" in line
            and (match := re.search(r"ops_(\w+) .*addr (0x\w+) value 0x\w+ size (\d)", line))]
    table = [access for access in seen if 0x8 <= access[1] < 0x10]
    assert table == [("write", 0x8, 4), ("write", 0xC, 2), ("write", 0xE, 1),
                     ("read", 0x8, 4), ("read", 0xC, 2), ("read", 0xE, 1)]


@pytest.mark.parametrize(("card", "kind", "backend"), [
    (E1000E, "intx", "vfio"), (E1000E, "msi", "vfio"), (E1000E, "msix", "vfio"), (E1000, "intx", "vfio"),
    (E1000E, "intx", "uio"), (E1000, "intx", "uio"),
], ids=lambda value: getattr(value, "name", value))
def test_each_kind_of_interrupt_arrives_where_it_should(guest, card, kind, backend):
    seen = guest.call(inside.interrupt, card.bdf, kind, backend)
    arrived = seen.pop("arrived")
    if kind == "msix":
        assert seen == {"kinds": ["msix", "msix"], "early": [0, 0], "intx after": ["intx"]}
        (first, wrong), (wrong_too, second) = arrived
        assert 0 < first < 1000 and 0 < second < 1000 and wrong == wrong_too == 0
    elif kind == "msi":
        assert seen == {"kinds": ["msi"], "early": [0], "intx after": ["intx"]}
        assert 0 < arrived[0][0] < 1000
    else:
        # Held back until unmasked; then the line that is still up comes; masked by us it does not, until unmasked.
        assert seen == {"kinds": ["intx"], "early": [0], "again": [0, 1, 0, 1]}
        assert arrived == [[1]]


@pytest.mark.parametrize(("card", "backend", "reset"), [
    (E1000E, "vfio", "device"), (E1000, "vfio", "none"), (E1000E, "uio", "device"), (E1000, "uio", "none"),
], ids=lambda value: getattr(value, "name", value))
def test_the_card_fetches_a_frame_from_our_memory_and_linux_gets_it(guest, card, backend, reset):
    before = received(guest, card)
    seen = guest.call(inside.send_frame, card.bdf, backend, b"from our own memory")
    assert seen.pop("iova") % 4096 == 0
    assert seen.pop("low") < 1 << 32
    assert seen == {"reset": reset, "done": True, "twice": None,
                    "leaked": [("low", 1, 4096), ("tx buffer", 1, 2048), ("tx ring", 1, 4096)]}
    assert received(guest, card) == before + 1


def received(guest, card):
    """Frames that have come out of the card's cable."""
    link, = json.loads(guest.netns.run("ip", "-s", "-j", "link", "show", "dev", card.name).stdout)
    return link["stats64"]["rx"]["packets"]


def test_dma_to_what_is_not_mapped_ends_in_the_iommu(guest):
    guest.run("dmesg --clear")
    guest.call(inside.provoke_fault, E1000E.bdf)
    assert re.search(r"DMAR: .*DMA Read.*01:00\.0.*fault addr 0x70000000", guest.run("dmesg").stdout)


def test_two_devices_of_one_group_share_a_container_and_its_memory(guest):
    seen = guest.call(inside.share, E1000_45.bdf, EDU)
    assert seen.pop("ranges")[0][0] == 0
    assert "it is open in this container already" in seen.pop("twice")
    assert seen == {"same group": True, "mappings": 1, "allowed": True, "left by one": [("shared", 1, 8192)],
                    "other goes on": True, "again": True, "owned": [("again", 1, 64)], "pool": 0}


def test_devices_of_two_groups_share_a_container(guest):
    seen = guest.call(inside.share, E1000.bdf, E1000E.bdf)
    assert (seen["same group"], seen["mappings"], seen["again"], seen["pool"]) == (False, 1, True, 0)


def test_given_back_a_card_serves_the_kernel_again_with_its_addresses(guest):
    guest.netns.run("ip", "addr", "add", "192.0.2.1/24", "dev", E1000E.name)
    name = guest.run(f"ls /sys/bus/pci/devices/{E1000E.bdf}/net").stdout.strip()
    guest.run(f"ip addr add 192.0.2.2/24 dev {name}")
    addresses = addresses_of(guest, name)
    try:
        guest.call(inside.look, E1000E.bdf)
        name = guest.run(f"ls /sys/bus/pci/devices/{E1000E.bdf}/net").stdout.strip()
        for address in addresses:
            guest.run(f"ip addr add {address} dev {name}")
        guest.run(f"ip link set {name} up && until ping -c 1 -W 1 192.0.2.1; do sleep 0.2; done")
        assert addresses_of(guest, name) == addresses == ["192.0.2.2/24"]
        assert guest.run(f"cat /sys/bus/pci/devices/{E1000E.bdf}/driver_override").stdout == "(null)\n"
    finally:
        guest.run(f"ip addr flush dev {name}; ip link set {name} down")
        guest.netns.run("ip", "addr", "flush", "dev", E1000E.name)


def addresses_of(guest, name):
    link, = json.loads(guest.run(f"ip -j -4 addr show dev {name}").stdout)
    return [f"{entry['local']}/{entry['prefixlen']}" for entry in link["addr_info"]]


def test_what_the_kernel_still_drives_is_not_opened(guest):
    assert guest.call(inside.complaint, E1000E.bdf) == (
        "DeviceRefused: 0000:01:00.0: e1000e drives it, not vfio-pci: `rustosctl device take 0000:01:00.0`")
    assert "e1000e drives it, not uio_pci_generic" in guest.call(inside.complaint, E1000E.bdf, "uio")
    assert "there is no such PCI device" in guest.call(inside.complaint, "0000:7f:00.0")


def test_a_group_that_is_not_viable_names_who_is_in_the_way(guest):
    assert guest.call(inside.bind_complaint, EDU, "vfio-pci") == ("bound", "vfio-pci")
    try:
        said = guest.call(inside.complaint, EDU)
    finally:
        assert guest.call(inside.give_back_soon, EDU, None, 60.0) == "given back"
    assert "the kernel still drives 0000:05:01.0 (e1000)" in said
    assert "`rustosctl device take 0000:05:01.0`" in said


def test_locked_memory_that_is_too_little_is_told_with_how_much_is_needed(guest):
    said = guest.call(inside.little_memlock, E1000E.bdf)
    assert "may lock 64 KiB where 2048 KiB are needed" in said
    assert "LimitMEMLOCK=2097152" in said


def test_huge_pages_that_are_missing_are_told_by_number_for_uio_and_done_without_by_vfio(guest):
    guest.run("sysctl -q vm.nr_hugepages=0")
    try:
        assert guest.call(inside.send_frame, E1000E.bdf, "vfio")["done"]
        with pytest.raises(Exception, match=r"1 more free huge pages of 2 MiB are needed: raise vm\.nr_hugepages"):
            guest.call(inside.send_frame, E1000E.bdf, "uio")
    finally:
        guest.run("sysctl -q vm.nr_hugepages=16")


def test_a_driver_that_does_not_exist_leaves_everything_as_it_was(guest):
    said, driver = guest.call(inside.bind_complaint, E1000E.bdf, "no-such-driver")
    assert "this kernel has no driver no-such-driver" in said
    assert driver == "e1000e"


def test_a_driver_that_will_not_have_the_device_leaves_it_with_the_one_before(guest):
    said, driver = guest.call(inside.bind_complaint, E1000E.bdf, "pcieport")
    assert "the driver pcieport does not take it" in said
    assert driver == "e1000e"
    assert guest.run(f"cat /sys/bus/pci/devices/{E1000E.bdf}/driver_override").stdout == "(null)\n"


def test_nobody_waits_without_end_for_a_process_that_does_not_let_go(guest):
    assert "this process has it, or another device" in guest.call(inside.give_back_while_open, E1000E.bdf)
    holder = guest.start(inside.hold, E1000E.bdf)
    assert holder.next() == "open"
    busy = guest.call(inside.complaint, E1000E.bdf)
    said = guest.call(inside.give_back_soon, E1000E.bdf, "e1000e", 1.0)
    holder.kill()
    holder.finished()
    assert re.search(r"in use by \S+ \(process \d+\): stop that first", busy)
    assert re.search(r"DeviceTimeout: .*waits for \S+ \(\d+\) to let go", said)
    assert guest.call(inside.give_back_soon, E1000E.bdf, "e1000e", 60.0) == "given back"


def test_a_card_that_is_to_be_unplugged_is_let_go_when_the_kernel_asks(guest):
    guest.plug("slot1", mac="52:54:00:1a:b0:11")
    call = guest.start(inside.let_go_when_asked, "0000:03:00.0")
    assert call.next() == "open"
    guest.unplug("slot1")
    assert call.result() == ["errors True", "let go", "gone"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_opening_and_closing_leaves_nothing_behind(guest, backend):
    before, after = guest.call(inside.rounds, E1000E.bdf, backend, 10)
    assert after == before


def test_without_an_iommu_vfio_says_so_and_uio_works():
    try:
        bare = Guest(iommu=False, cpus=1, memory_mib=512)
    except LabUnavailable as why:
        pytest.skip(str(why))
    with bare:
        bare.run("sysctl -q vm.nr_hugepages=4 && modprobe e1000e")
        bare.preload("tests.lab.inside_vfio")
        said, driver = bare.call(inside.bind_complaint, E1000E.bdf, "vfio-pci")
        assert "No IOMMU covers it" in said
        assert driver == "e1000e"
        before = received(bare, E1000E)
        assert bare.call(inside.send_frame, E1000E.bdf, "uio")["done"]
        assert received(bare, E1000E) == before + 1
