"""Which of our drivers drives which PCI device."""

from typing import Any, Final

from drivers.device import Device
from drivers.e1000.chips import CHIPS, INTEL, chip_of
from drivers.pci.sysfs import PciDevice
from rustosd.config import DeviceConfig
from rustosd.devices.linkstate import LinkState

NIC: Final = "nic"
AHCI: Final = "ahci"
OTHER: Final = "other"
"""No driver of ours: such a device only comes along with its IOMMU group, and stays closed."""
_ORDINARY_MTU: Final = 1500
_AHCI_CLASS: Final = 0x010601      # SATA controller with the AHCI interface (AHCI 1.3.1, 2.1.5)


def kind_of(device: PciDevice) -> str:
    """NIC, AHCI, or OTHER when we have no driver for it."""
    if device.vendor == INTEL and device.device in CHIPS:
        return NIC
    return AHCI if device.class_code == _AHCI_CLASS else OTHER


def known() -> str:
    """What we drive, in words."""
    return f"Intel {', '.join(chip.name for chip in CHIPS.values())} and AHCI controllers"


def make_driver(kind: str, device: Device, rule: DeviceConfig, link: LinkState | None) -> Any:
    """Our driver, running; `link` is what a NIC was to the kernel. On failure the device stays the caller's to close.

    Raises DeviceError, ValueError.
    """
    # Imported only where they are needed: a host without such a device starts faster.
    if kind == NIC:
        from drivers.e1000.nic import E1000
        return E1000(device, mtu=_mtu(device, rule, link), **_e1000_options(rule))
    from drivers.ahci.controller import AhciController
    return AhciController(device, **_ahci_options(rule))


def _ahci_options(rule: DeviceConfig) -> dict[str, Any]:
    from drivers.ahci.options import LinkPower, Options, ZeroingTrim
    wanted = rule.ahci
    options = Options(
        timeout_ns=round(wanted.timeout_s * 1e9), depth=wanted.depth, link_power=LinkPower(wanted.link_power),
        write_cache={"keep": None, "on": True, "off": False}[wanted.write_cache], security_freeze=wanted.security_freeze,
        zeroing_trim=ZeroingTrim(wanted.zeroing_trim))
    return {"options": options} | ({"interrupts": wanted.interrupts} if wanted.interrupts else {})


def _mtu(device: Device, rule: DeviceConfig, link: LinkState | None) -> int:
    """For the card, which takes frames of the ordinary size in any case; the stack's interface may have less."""
    if rule.mtu is not None:
        return max(rule.mtu, _ORDINARY_MTU)
    chip = chip_of(device.name, device.config.read(0, 2), device.config.read(2, 2))
    kernels = link.mtu if link is not None and rule.adopt else _ORDINARY_MTU
    return min(max(kernels, _ORDINARY_MTU), chip.largest_mtu)


def _e1000_options(rule: DeviceConfig) -> dict[str, Any]:
    wanted = rule.e1000
    options = {"mac": wanted.mac.octets if wanted.mac else None, "rx_ring": wanted.rx_ring, "tx_ring": wanted.tx_ring,
               "interrupts": wanted.interrupts or None, "moderation_us": wanted.moderation_us}
    return {name: value for name, value in options.items() if value is not None}
