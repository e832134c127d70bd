"""Which device a rule means, on made-up machines."""

import struct

import pytest

from drivers.errors import DeviceError, DeviceRefused
from drivers.pci.sysfs import PciBus
from drivers.pci.uses import HostUses
from rustosd.config import DeviceConfig
from rustosd.devices import rules
from rustosd.values import Mac, PciAddress
from tests.drivers.pci.tree import Machine

SERIAL = 0x001B21FFFF123456


@pytest.fixture
def machine(tmp_path):
    """A NIC with a serial number, one without a driver, a SATA controller with a disk, a bridge with a NIC behind it."""
    made = Machine(tmp_path)
    config = bytearray(4096)
    struct.pack_into("<HH", config, 0, 0x8086, 0x10D3)
    struct.pack_into("<IQ", config, 0x100, 0x0003 | 1 << 16, SERIAL)
    nic = made.pci("0000:01:00.0", driver="e1000e")
    made.write(nic / "config", bytes(config))
    made.net("eth0", nic)
    made.pci("0000:02:00.0")
    sata = made.pci("0000:00:1f.2", device=0x2922, code=0x010601, driver="ahci")
    made.block("sda", "8:0", sata, device__serial="WD-123 456")
    bridge = made.pci("0000:00:1e.0", device=0x244E, code=0x060400, driver="pcieport")
    made.net("eth1", made.pci("0000:05:00.0", below=bridge, driver="e1000"))
    return made


def look(machine):
    return PciBus(machine.root), HostUses(machine.root)


@pytest.mark.parametrize(("rule", "bdf"), [
    ({"bdf": PciAddress("01:00.0")}, "0000:01:00.0"), ({"bdf": PciAddress("0000:09:00.0")}, None),
    ({"bdf": PciAddress("0000:00:1e.0")}, None),
    ({"mac": Mac("52-54-00-00-00-01")}, "0000:01:00.0"), ({"mac": Mac("52:54:00:00:00:02")}, "0000:05:00.0"),
    ({"mac": Mac("52:54:00:00:00:09")}, None),
    ({"serial": "00-1b-21-ff-ff-12-34-56"}, "0000:01:00.0"), ({"serial": "001B21FFFF123456"}, "0000:01:00.0"),
    ({"serial": "WD-123 456"}, "0000:00:1f.2"), ({"serial": "wd123456"}, "0000:00:1f.2"), ({"serial": "other"}, None),
])
def test_a_rule_means_one_device_or_none(machine, rule, bdf):
    found = rules.find(DeviceConfig(**rule), *look(machine))
    assert (found and found.name) == bdf


def test_the_first_rule_that_means_a_device_counts(machine):
    bus, host = look(machine)
    first, second = DeviceConfig(mac=Mac("52:54:00:00:00:01")), DeviceConfig(bdf=PciAddress("0000:01:00.0"))
    device = bus.device("0000:01:00.0")
    assert rules.choose([first, second], device, bus, host) is first
    assert rules.choose([second, first], device, bus, host) is second
    assert rules.choose([first, second], bus.device("0000:02:00.0"), bus, host) is None


def test_one_serial_number_on_two_cards_is_refused(machine):
    other = machine.pci("0000:06:00.0")
    machine.write(other / "config", (machine.root / "sys/bus/pci/devices/0000:01:00.0/config").read_bytes())
    with pytest.raises(DeviceRefused, match=r"means 0000:01:00\.0 and 0000:06:00\.0: name the one you mean by bdf"):
        rules.find(DeviceConfig(serial="001B21FFFF123456"), *look(machine))


def test_what_is_missing_is_said_with_what_to_do(machine):
    bus, _ = look(machine)
    by_mac = rules.missing(DeviceConfig(mac=Mac("52:54:00:00:00:09")), bus)
    assert isinstance(by_mac, DeviceError)
    assert str(by_mac).startswith("mac 52:54:00:00:00:09: there is no such device: 0000:02:00.0 shows no MAC address without "
                                  "its kernel driver: name it by bdf; else ")
    by_bdf = str(rules.missing(DeviceConfig(bdf=PciAddress("0000:09:00.0")), bus))
    assert by_bdf.startswith("bdf 0000:09:00.0: there is no such device: `rustosctl device list`")
    assert "optional = true" in by_bdf
