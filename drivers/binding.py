"""Which kernel driver a PCI device has, and changing that: to vfio-pci and back.

Plain functions over sysfs without memory: whoever calls `bind` writes down what it answers with, before and after.
The kernel's writes can block beyond SIGKILL (unbinding a device that its own process still holds), so a child process
does each and is left behind if it hangs; nothing here waits without end.
"""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from drivers.errors import DeviceRefused, DeviceTimeout

PCI = Path("/sys/bus/pci")
USERSPACE_DRIVERS = frozenset({"vfio-pci", "uio_pci_generic", "pci-stub"})
"""Drivers that do nothing with a device by themselves."""
WRITE_S = 10.0
MODPROBE_S = 30.0
_BRIDGE = 0x0604


class Member(NamedTuple):
    """A device of an IOMMU group and who drives it."""

    bdf: str
    driver: str | None


class Holder(NamedTuple):
    """A process that has a file open."""

    pid: int
    command: str


def device_path(bdf: str) -> Path:
    """Its directory in sysfs. Raises DeviceRefused when there is no such device."""
    path = PCI / "devices" / bdf
    if "/" in bdf or not path.is_dir():
        raise DeviceRefused(bdf, "there is no such PCI device: see `rustosctl device list`")
    return path


def driver_of(bdf: str) -> str | None:
    """The kernel driver that has the device. Raises DeviceRefused when there is no such device."""
    return _link_name(device_path(bdf) / "driver")


def group_of(bdf: str) -> str | None:
    """The number of its IOMMU group; None where no IOMMU covers it."""
    return _link_name(device_path(bdf) / "iommu_group")


def group_members(bdf: str) -> list[Member]:
    """All devices of its IOMMU group, itself included, without bridges; only itself where there is no IOMMU."""
    devices = device_path(bdf) / "iommu_group" / "devices"
    names = sorted(path.name for path in devices.iterdir()) if devices.is_dir() else [bdf]
    return [Member(name, driver_of(name)) for name in names if not _is_bridge(name)]


def in_the_way(bdf: str) -> list[Member]:
    """Other devices of its group that a kernel driver works with: while they are, VFIO opens none of the group."""
    return [member for member in group_members(bdf)
            if member.bdf != bdf and member.driver is not None and member.driver not in USERSPACE_DRIVERS]


def device_file(bdf: str) -> str | None:
    """Its own file of VFIO's, /dev/vfio/devices/vfioN, where the kernel makes such and vfio-pci drives it."""
    for entry in device_path(bdf).glob("vfio-dev/*"):
        path = f"/dev/vfio/devices/{entry.name}"
        if os.path.exists(path):
            return path
    return None


def group_holders(bdf: str) -> list[Holder]:
    """Processes that have its VFIO group open, or a device of the group by its own file."""
    group = group_of(bdf)
    paths = [f"/dev/vfio/{group}", f"/dev/vfio/noiommu-{group}"] if group is not None else []
    files = [device_file(member.bdf) for member in group_members(bdf)]
    return holders(*paths, *(file for file in files if file is not None))


def holders(*paths: str) -> list[Holder]:
    """Processes that have one of these files open, as far as we may see."""
    found = []
    for directory in Path("/proc").glob("[0-9]*") if paths else ():
        try:
            if any(os.readlink(fd) in paths for fd in (directory / "fd").iterdir()):
                found.append(Holder(int(directory.name), (directory / "comm").read_text(errors="replace").strip()))
        except OSError:
            continue        # it ended meanwhile, or is not ours to see
    return sorted(found)


def bind(bdf: str, driver: str, *, timeout_s: float = WRITE_S) -> str | None:
    """Have `driver` drive the device, loading its module; which one drove it before.

    If it will not, the device is left with the driver it had. Raises DeviceRefused with what stands in the way,
    DeviceTimeout when the driver before does not let go.
    """
    before = driver_of(bdf)
    if before == driver:
        return before
    _refuse_if_we_hold_it(bdf)
    _need_driver(bdf, driver)
    override = override_of(bdf)
    _write(bdf, device_path(bdf) / "driver_override", driver, timeout_s)
    try:
        _unbind(bdf, timeout_s)
        _probe(bdf, driver, timeout_s)
    except BaseException:
        give_back(bdf, before, override, timeout_s=timeout_s)
        raise
    return before


def override_of(bdf: str) -> str | None:
    """The driver that the device is reserved for (driver_override). Raises DeviceRefused when there is no such device."""
    text = (device_path(bdf) / "driver_override").read_text().strip()
    return None if text in ("", "(null)") else text


def give_back(bdf: str, driver: str | None, override: str | None = None, *, timeout_s: float = WRITE_S) -> bool:
    """Have `driver` drive the device again, None for no driver; False when the device is no longer there.

    `override` is what driver_override said before. Does for what was never taken, too. Raises DeviceRefused, DeviceTimeout.
    """
    if not (PCI / "devices" / bdf).is_dir():
        return False
    now = driver_of(bdf)
    path = device_path(bdf) / "driver_override"
    if now != driver:
        _refuse_if_we_hold_it(bdf)
        if driver is not None:
            _need_driver(bdf, driver)
            _write(bdf, path, driver, timeout_s)
        _unbind(bdf, timeout_s)
        if driver is not None:
            _probe(bdf, driver, timeout_s)
    if override_of(bdf) != override:
        _write(bdf, path, override or "\n", timeout_s)      # an empty write changes nothing
    return True


def wait_until(bdf: str, true: Callable[[], bool], what: str, timeout_s: float, poll_s: float = 0.01) -> None:
    """Wait for what the kernel does in its own time. Raises DeviceTimeout."""
    start = time.monotonic()
    while not true():
        waited = time.monotonic() - start
        if waited > timeout_s:
            raise DeviceTimeout(bdf, what, 0, waited)
        time.sleep(poll_s)


def _probe(bdf: str, driver: str, timeout_s: float) -> None:
    """Let the kernel match the device; see that `driver` took it."""
    complaint = ""
    try:
        _write(bdf, PCI / "drivers_probe", bdf, timeout_s)
    except DeviceRefused as error:
        complaint = f" ({error})"
    try:
        wait_until(bdf, lambda: driver_of(bdf) is not None, f"the driver {driver}", 1.0)
    except DeviceTimeout:
        raise DeviceRefused(bdf, f"the driver {driver} does not take it{complaint}: `dmesg | tail` says why"
                                 f"{_no_iommu_hint(bdf, driver)}") from None
    if (taker := driver_of(bdf)) != driver:
        raise DeviceRefused(bdf, f"{taker} took it instead of {driver}: is something else binding drivers? Try again")


def _unbind(bdf: str, timeout_s: float) -> None:
    if (now := driver_of(bdf)) is None:
        return
    try:
        _write(bdf, device_path(bdf) / "driver" / "unbind", bdf, timeout_s)
    except DeviceRefused:
        if driver_of(bdf) is not None:      # else it went by itself between our look and our write
            raise
    wait_until(bdf, lambda: driver_of(bdf) is None, f"the end of {now}'s hold", timeout_s)


def _refuse_if_we_hold_it(bdf: str) -> None:
    """Unbinding what this very process has open would never return, and no signal would end it."""
    if any(holder.pid == os.getpid() for holder in group_holders(bdf)):
        raise DeviceRefused(bdf, "this process has it, or another device of its group, open through VFIO: close that "
                                 "before its driver changes")


def _need_driver(bdf: str, driver: str) -> None:
    if (PCI / "drivers" / driver).is_dir():
        return
    try:
        done = subprocess.run(["modprobe", driver], capture_output=True, text=True, timeout=MODPROBE_S, check=False,
                              env={**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"})
    except FileNotFoundError:
        raise DeviceRefused(bdf, f"the driver {driver} is not loaded and there is no modprobe: install kmod") from None
    except subprocess.TimeoutExpired:
        raise DeviceTimeout(bdf, f"modprobe {driver}", 0, MODPROBE_S) from None
    if not (PCI / "drivers" / driver).is_dir():
        raise DeviceRefused(bdf, f"this kernel has no driver {driver}: {done.stderr.strip() or 'modprobe says nothing'}")


def _write(bdf: str, path: Path, text: str, timeout_s: float) -> None:
    """One write to sysfs by a child, which alone hangs if the kernel does."""
    script = 'printf %s "$1" >"$2"'
    with open(os.devnull, "r+b") as null:
        child = subprocess.Popen(["/bin/sh", "-c", script, "sh", text, str(path)], stdin=null, stdout=null,
                                 stderr=subprocess.PIPE, text=True, start_new_session=True, env={"LC_ALL": "C"})
    try:
        _, complaint = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        if child.stderr:
            child.stderr.close()
        child.kill()        # for the day it comes back; it is not waited for
        others = ", ".join(f"{holder.command} ({holder.pid})" for holder in group_holders(bdf))
        raise DeviceTimeout(bdf, f"an answer to writing {path}, which waits for {others or 'the driver'} to let go,", 0,
                            timeout_s) from None
    if child.returncode:
        raise DeviceRefused(bdf, f"the kernel refuses {text.strip()!r} in {path}: {complaint.strip().rpartition(': ')[2]}"
                                 f"{'' if os.geteuid() == 0 else '; run as root'}")


def _no_iommu_hint(bdf: str, driver: str) -> str:
    if driver == "vfio-pci" and group_of(bdf) is None:
        return (". No IOMMU covers it: turn VT-d or AMD-Vi on in the firmware and boot with intel_iommu=on, or use "
                "backend \"uio\"")
    return ""


def _is_bridge(bdf: str) -> bool:
    return int((PCI / "devices" / bdf / "class").read_text(), 16) >> 8 == _BRIDGE


def _link_name(link: Path) -> str | None:
    try:
        return os.path.basename(os.readlink(link))
    except OSError:
        return None
