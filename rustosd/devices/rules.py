"""Which PCI device a [[device]] rule means."""

from collections.abc import Iterable, Iterator
from typing import Final

from drivers.errors import DeviceError, DeviceRefused
from drivers.pci.capabilities import SerialNumber, read_capabilities
from drivers.pci.config import open_sysfs
from drivers.pci.sysfs import PciBus, PciDevice
from drivers.pci.uses import HostUses
from rustosd.config import DeviceConfig

_NETWORK: Final = 0x02      # base class


def matches(rule: DeviceConfig, device: PciDevice, bus: PciBus, host: HostUses) -> bool:
    """Whether the rule means this device. A MAC address is known while a kernel driver shows it."""
    if device.is_bridge:
        return False
    if rule.bdf is not None:
        return device.name == rule.bdf
    if rule.mac is not None:
        return any(interface.mac.lower() == rule.mac for interface in host.of(device).interfaces)
    wanted = _plain(rule.serial or "")
    return any(_plain(serial) == wanted for serial in _serials(device, bus, host))


def find(rule: DeviceConfig, bus: PciBus, host: HostUses) -> PciDevice | None:
    """The device a rule means; None: it is not there. Raises DeviceRefused when there are several."""
    found = [device for device in bus.devices() if matches(rule, device, bus, host)]
    if len(found) > 1:
        raise DeviceRefused(found[0].name, f"{rule.which} means {' and '.join(device.name for device in found)}: name the "
                                           "one you mean by bdf")
    return found[0] if found else None


def missing(rule: DeviceConfig, bus: PciBus) -> DeviceError:
    """What to say when `find` finds nothing."""
    advice = "`rustosctl device list` shows what there is; optional = true waits for it to be plugged in"
    if rule.mac is not None:
        silent = [device.name for device in bus.devices()
                  if device.class_code >> 16 == _NETWORK and not _has_interface(device)]
        if silent:
            advice = f"{', '.join(silent)} shows no MAC address without its kernel driver: name it by bdf; else {advice}"
    return DeviceError(rule.which, f"there is no such device: {advice}")


def choose(rules: Iterable[DeviceConfig], device: PciDevice, bus: PciBus, host: HostUses) -> DeviceConfig | None:
    """The first rule that means this device."""
    return next((rule for rule in rules if matches(rule, device, bus, host)), None)


def _has_interface(device: PciDevice) -> bool:
    return any((device.path / "net").glob("*"))


def _serials(device: PciDevice, bus: PciBus, host: HostUses) -> Iterator[str]:
    """The card's own (PCIe device serial number) and its disks'."""
    yield from (disk.serial for disk in host.of(device).disks if disk.serial)
    try:
        config = open_sysfs(device.bdf, bus.root)
    except DeviceError:
        return
    try:
        found = read_capabilities(config).get(SerialNumber)
        if found is not None:
            yield str(found[1])
    except DeviceError:
        return
    finally:
        config.close()


def _plain(serial: str) -> str:
    """However it is punctuated: "00-1b-21-ff-ff-12-34-56", "001B21FFFF123456"."""
    return "".join(c for c in serial.lower() if c.isalnum())
