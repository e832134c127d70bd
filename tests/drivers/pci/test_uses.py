"""What the kernel hangs on a function: interfaces, disks, and who relies on them."""

import os
import socket
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.pci.sysfs import PciBus
from drivers.pci.uses import HostUses, Mount, Uses, default_hops, default_route_interfaces, held_exclusively, parse_mount


def uses_of(machine, bdf, **asked) -> Uses:
    return HostUses(machine.root, **asked).of(PciBus(machine.root).device(bdf))


@pytest.fixture
def nic(machine):
    return machine.pci("0000:03:00.0", driver="e1000e")


@pytest.fixture
def ahci(machine):
    return machine.pci("0000:00:1f.2", code=0x010601, driver="ahci")


def test_an_interface_comes_with_its_address_and_state(machine, nic):
    machine.net("eth0", nic / "virtio2")
    machine.net("eth9", machine.pci("0000:04:00.0"))
    uses = uses_of(machine, "0000:03:00.0")
    (eth0,) = uses.interfaces
    assert (eth0.name, eth0.mac, eth0.state, eth0.mtu, eth0.upper, eth0.master) == ("eth0", "52:54:00:00:00:01", "up", 1500,
                                                                                     (), None)
    assert not eth0.carries_default_route and uses.disks == () and uses.words() == ["eth0 52:54:00:00:00:01"]


def test_the_default_route_is_carried_by_whatever_is_below_it(machine, nic):
    machine.net("eth0", nic)
    machine.net("eth1", machine.pci("0000:04:00.0"))
    machine.net("bond0", lower=("eth0",), master="bond0")
    index = machine.net("bond0.7", lower=("bond0",))
    (eth0,) = uses_of(machine, "0000:03:00.0", default_routes=lambda: [index]).interfaces
    (eth1,) = uses_of(machine, "0000:04:00.0", default_routes=lambda: [index]).interfaces
    assert eth0.carries_default_route and not eth1.carries_default_route
    assert eth0.upper == ("bond0",) and eth0.master == "bond0"


def test_interfaces_that_are_below_each_other_end(machine, nic):
    machine.net("eth0", nic)
    index = machine.net("a", lower=("eth0",))
    a, eth0 = ((machine.root / "sys/class/net" / n).resolve() for n in ("a", "eth0"))
    machine.link(eth0 / "lower_a", a)
    assert uses_of(machine, "0000:03:00.0", default_routes=lambda: [index]).interfaces[0].carries_default_route


def test_a_disk_has_model_serial_and_size(machine, ahci):
    page = b"\x00\x80\x00\x10" + b"   WD-WX31234567" + b"trailing"
    machine.block("sda", "8:0", ahci / "ata1/target0", sectors=1953525168, device__vendor="ATA", device__model="WDC WD10",
                  device__vpd_pg80=page)
    uses = uses_of(machine, "0000:00:1f.2")
    (sda,) = uses.disks
    assert (sda.model, sda.serial, sda.octets) == ("WDC WD10", "WD-WX31234567", 1953525168 * 512)
    assert not sda.held and uses.words() == ["sda WDC WD10 1.0 TB serial WD-WX31234567"]


def test_a_mounted_partition_is_found(machine, ahci):
    sda = machine.block("sda", "8:0", ahci)
    machine.block("sda1", "8:1", of=sda)
    machine.mount("8:1", "/mnt/my\\040disk", source="/dev/sda1")
    (disk,) = uses_of(machine, "0000:00:1f.2").disks
    assert disk.layers == ("sda1",) and disk.held
    assert disk.mounts == (Mount("/mnt/my disk", "ext4", "/dev/sda1"),)


def test_a_filesystem_is_found_through_raid_and_encryption(machine, ahci):
    sda = machine.block("sda", "8:0", ahci)
    sda1 = machine.block("sda1", "8:1", of=sda)
    md0 = machine.block("md0", "9:0", holds=(sda1,))
    machine.block("dm-0", "253:0", holds=(md0,))
    machine.mount("253:0", "/", source="/dev/mapper/root")
    (disk,) = uses_of(machine, "0000:00:1f.2").disks
    assert [m.point for m in disk.mounts] == ["/"] and set(disk.layers) == {"sda1", "md0", "dm-0"}


def test_holders_in_a_loop_end(machine, ahci):
    sda = machine.block("sda", "8:0", ahci)
    dm0 = machine.block("dm-0", "253:0", holds=(sda,))
    machine.link(dm0 / "holders/sda", sda)
    assert uses_of(machine, "0000:00:1f.2").disks[0].layers == ("dm-0",)


def test_swap_is_found_on_partitions_and_volumes_but_not_in_files(machine, ahci):
    sda = machine.block("sda", "8:0", ahci)
    machine.block("sda2", "8:2", of=sda)
    machine.block("dm-3", "253:3", holds=(sda,))
    machine.swap("/dev/sda2")
    machine.swap("/dev/dm-3")
    machine.swap("/sdb", kind="file")
    (disk,) = uses_of(machine, "0000:00:1f.2").disks
    assert set(disk.swaps) == {"sda2", "dm-3"}


def test_every_device_of_a_btrfs_is_mounted(machine, ahci):
    sda, sdb = machine.block("sda", "8:0", ahci), machine.block("sdb", "8:16", ahci)
    for name, path in (("sda", sda), ("sdb", sdb)):
        machine.link(f"sys/fs/btrfs/0a1b/devices/{name}", path)
    machine.mount("0:44", "/data", "btrfs", "/dev/sda")
    first, second = uses_of(machine, "0000:00:1f.2").disks
    assert first.mounts == (Mount("/data", "btrfs", "/dev/sda"),) and second.mounts[0].filesystem == "btrfs"


def test_a_path_of_a_multipath_nvme_stands_for_its_head(machine):
    nvme = machine.pci("0000:05:00.0", code=0x010802, driver="nvme")
    machine.block("nvme0c0n1", "259:1", nvme / "nvme/nvme0")
    machine.block("nvme0n1", "259:0", device__model="Samsung", device__serial="S4")
    machine.mount("259:0", "/srv")
    (disk,) = uses_of(machine, "0000:05:00.0").disks
    assert (disk.name, disk.serial, [m.point for m in disk.mounts]) == ("nvme0n1", "S4", ["/srv"])


def test_a_mount_only_init_can_see_counts(machine, ahci):
    machine.block("sda", "8:0", ahci)
    machine.write("proc/1/mountinfo", "36 27 8:0 / /hidden rw - ext4 /dev/sda rw")
    assert [m.point for m in uses_of(machine, "0000:00:1f.2").disks[0].mounts] == ["/hidden"]


def test_a_disk_somebody_holds_is_held_though_nothing_shows(machine, ahci):
    machine.block("sda", "8:0", ahci)
    (disk,) = uses_of(machine, "0000:00:1f.2", held=lambda name: name == "sda").disks
    assert disk.held and not disk.mounts and not disk.layers


@given(st.text(max_size=100))
def test_any_line_of_mountinfo_is_survived(line):
    number, mount = parse_mount(line)
    assert mount is None or isinstance(number, str)


def route(family=2, dst_len=0, kind=1, **attributes):
    return {"family": family, "dst_len": dst_len, "type": kind} | attributes


@pytest.mark.parametrize(("message", "hops"), [
    (route(oif=3), [3]),
    (route(family=10, oif=4), [4]),
    (route(multipath=[{"oif": 5}, {"oif": 6}]), [5, 6]),
    (route(dst_len=1, oif=7), [7]),
    (route(family=10, dst_len=3, oif=7), [7]),
    (route(dst_len=8, oif=7), []),
    (route(kind=7), []),
])
def test_which_routes_are_default_routes(message, hops):
    assert default_hops(message) == hops


# The real thing

def test_the_kernels_default_route_is_found(netns):
    netns.run("ip", "link", "add", "up0", "type", "veth", "peer", "up1")
    for name, address in (("up0", "10.9.0.1/24"), ("up1", "10.9.1.1/24")):
        netns.run("ip", "addr", "add", address, "dev", name)
        netns.run("ip", "link", "set", name, "up")
    assert netns.call(default_route_interfaces) == set()
    netns.run("ip", "route", "add", "default", "nexthop", "via", "10.9.0.2", "nexthop", "via", "10.9.1.2")
    assert len(netns.call(default_route_interfaces)) == 2
    netns.run("ip", "route", "del", "default")
    netns.run("ip", "route", "add", "default", "via", "10.9.1.2", "table", "77")
    assert netns.call(default_route_interfaces) == {netns.call(socket.if_nametoindex, "up1")}


def test_this_machines_root_disk_is_mounted_and_held():
    root = f"{os.major(os.stat('/').st_dev)}:{os.minor(os.stat('/').st_dev)}"
    host = HostUses()
    disks = [disk for device in PciBus().devices() for disk in host.of(device).disks]
    if root not in host._mounts or not disks:
        pytest.skip("the root filesystem is on no PCI disk here")
    mounted = [disk for disk in disks if "/" in {mount.point for mount in disk.mounts}]
    assert mounted and all(disk.held and disk.octets for disk in mounted)


def test_an_exclusive_holder_is_noticed(tmp_path):
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    made = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop device here: {made.stderr.strip()}")
    name = made.stdout.strip().removeprefix("/dev/")
    try:
        assert not held_exclusively(name)
        holder = os.open(f"/dev/{name}", os.O_RDONLY | os.O_EXCL)
        assert held_exclusively(name)
        os.close(holder)
        assert not held_exclusively(name) and not held_exclusively("no-such-disk")
    finally:
        subprocess.run(["losetup", "--detach", f"/dev/{name}"], check=True)
