"""A port multiplier with its drives. "PM" is Serial ATA 3.x 16, which was the Port Multiplier specification 1.2."""

from drivers.ahci.registers import Signature
from tests.models.ahci import commands as ata
from tests.models.ahci.commands import Answer, Command, Trouble, refused

CONTROL = 15
"""The port where the multiplier itself listens."""
PRODUCT, REVISION, PORTS, ERRORS, ERRORS_ENABLED, FEATURES, FEATURES_ENABLED = 0, 1, 2, 32, 33, 64, 96
STATUS, ERROR, SCONTROL = 0, 1, 2
NOTIFIES = 1 << 3
_N, _X = 1 << 16, 1 << 26


class Fan:
    """A port of the multiplier towards a device: its PHY."""

    def __init__(self, device):
        self.device = device
        self.control = 4        # off, until the host wants it
        self.errors = 0
        self.resets = 0

    def status(self) -> int:
        if self.control & 0xF == 4:
            return 4
        if self.device is None or self.control & 0xF:
            return 0
        return 3 | min(self.control >> 4 & 0xF or 2, 2) << 4 | 1 << 8

    def write(self, register: int, value: int) -> bool:
        if register == ERROR:
            self.errors &= ~value
        elif register == SCONTROL:
            came = self.control & 0xF and not value & 0xF
            self.control = value
            if came and self.device is not None:
                self.resets += 1
                self.errors |= _N | _X
                self.device.start()
        else:
            return False
        return True


class Multiplier:
    """Up to 15 devices on one port of the adapter, one at a time (command-based switching)."""

    signature = int(Signature.PORT_MULTIPLIER)

    def __init__(self, *devices):
        self.fans = [Fan(device) for device in devices]
        self.settings = {ERRORS_ENABLED: _N | _X, FEATURES_ENABLED: 0}
        self.port = None
        self.executed: list[tuple[int, int]] = []
        """Target and command."""
        self.start()

    def join(self, port) -> None:
        """Where it is plugged in."""
        self.port = port

    def start(self) -> None:
        """Power on, or COMRESET. Until it is asked at port 15 only the device at port 0 is to be seen. PM 16.4."""
        for fan in self.fans:
            fan.control = 4
        if self.fans:
            self.fans[0].control = 0
        self.signature = getattr(self.fans[0].device, "signature", 0x101) if self.fans else 0

    def soft_reset(self, target: int) -> int:
        """The signature of whom that was for."""
        if target == CONTROL:
            return int(Signature.PORT_MULTIPLIER)
        fan = self._fan(target)
        return fan.device.soft_reset(0) if fan else 0xFFFF_FFFF

    def execute(self, c: Command, bus) -> Answer:
        """Carry a command out, or have it carried out."""
        self.executed.append((c.target, c.code))
        if c.target != CONTROL:
            fan = self._fan(c.target)
            return fan.device.execute(c, bus) if fan else Answer(trouble=Trouble.HANG)
        register, target = c.feature, c.device & 0xF
        if c.code == ata.READ_MULTIPLIER:
            value = self.read(target, register)
            return refused() if value is None else Answer(count=value & 0xFF, lba=value >> 8)
        if c.code == ata.WRITE_MULTIPLIER:
            return Answer() if self.write(target, register, c.count & 0xFF | (c.lba & 0xFF_FFFF) << 8) else refused()
        return refused()

    def read(self, target: int, register: int) -> int | None:
        """A register of the multiplier's, or of a port."""
        if target == CONTROL:
            pending = sum(1 << i for i, fan in enumerate(self.fans) if fan.errors & self.settings[ERRORS_ENABLED])
            return {PRODUCT: 0xA4C2_1234, REVISION: 0x0000_010E, PORTS: len(self.fans), ERRORS: pending,
                    FEATURES: NOTIFIES, **self.settings}.get(register)
        if target >= len(self.fans):
            return None
        fan = self.fans[target]
        return {STATUS: fan.status(), ERROR: fan.errors, SCONTROL: fan.control}.get(register)

    def write(self, target: int, register: int, value: int) -> bool:
        """The same, written; whether that can be."""
        if target == CONTROL:
            if register not in self.settings:
                return False
            self.settings[register] = value
            return True
        return target < len(self.fans) and self.fans[target].write(register, value)

    def plug(self, target: int, device) -> None:
        """A device comes, or goes (None); the host is notified if it wants to be."""
        fan = self.fans[target]
        fan.device = device
        fan.errors |= _N | (_X if device is not None else 0)
        if device is not None:
            device.start()
        if self.settings[FEATURES_ENABLED] & NOTIFIES and fan.errors & self.settings[ERRORS_ENABLED]:
            self.port.notify(CONTROL)

    def _fan(self, target: int) -> Fan | None:
        fan = self.fans[target] if target < len(self.fans) else None
        return fan if fan and fan.status() & 0xF == 3 else None
