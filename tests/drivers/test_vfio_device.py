"""What a VFIO device does in its configuration space; the rest is proven on real VFIO, in the lab."""

import struct

import pytest

from drivers.vfio_device import VfioDevice


class Config:
    """256 octets with a chain of capabilities."""

    size = 256

    def __init__(self, *capabilities):
        self.octets = bytearray(256)
        at = 0x34
        for place, identity in capabilities:
            self.octets[at] = place
            self.octets[place] = identity
            at = place + 1

    def read(self, offset, octets):
        return int.from_bytes(self.octets[offset:offset + octets], "little")

    def write(self, offset, octets, value):
        self.octets[offset:offset + octets] = value.to_bytes(octets, "little")


def device(config, tells):
    made = object.__new__(VfioDevice)
    made.config = config
    made._on_signal = lambda _kind, _callback: tells
    return made


@pytest.mark.parametrize(("capabilities", "tells", "control"), [
    ([(0x50, 0x01), (0xE0, 0x10)], True, 0x0816),       # non-fatal and fatal errors, and what was set before
    ([(0x50, 0x01), (0xE0, 0x10)], False, 0x0810),
    ([(0x50, 0x01)], True, 0x0810),
])
def test_a_device_is_let_report_its_errors_when_somebody_listens(capabilities, tells, control):
    config = Config(*capabilities)
    struct.pack_into("<H", config.octets, 0xE8, 0x0810)
    assert device(config, tells).on_error(lambda: None) is tells
    assert config.read(0xE8, 2) == control
