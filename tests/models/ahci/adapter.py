"""The adapter: registers in BAR 5, its interrupt, its ports.

Commands are carried out when `run` is called, or at once while `lazy` is False; the devices decide what becomes of each.
"""

from drivers.ahci import registers as r
from drivers.ahci.registers import ahci_map
from drivers.registers import W1C, W1S, Access
from tests.models.ahci.firmware import Firmware
from tests.models.ahci.port import ONES, Port
from tests.models.device import Misuse


class Model:
    """The adapter. BAR 5 is the model itself."""

    size, address = 0x1100, 0

    def __init__(self, *drives, cap=None, ports=None, firmware=None, strict=True, hot_plug=False):
        """`firmware`: who has it at first. `strict` False: what is unwise goes into `habits` and is done. Linux has some."""
        self.drives, self.strict, self.hot_plug = drives, strict, hot_plug
        self.habits = set()
        self.implemented = ports if ports is not None else (1 << max(len(drives), 1)) - 1
        self.cap = int(r.CAP(NP=3, NCS=31, SAM=1, SNCQ=1, S64A=1) if cap is None else cap)
        self.map = ahci_map(32)
        self.firmware: Firmware | None = firmware
        self.gone = self.zeros = self.lazy = False
        self.resets = 0
        self.writes = []
        self.ports = []
        self.device = self.bus = None
        self.clock = lambda: 0
        self.power_on()

    def attach(self, device):
        self.device = device

    def forbid(self, what: str) -> None:
        """The specification forbids it, and yet adapters do what they were told."""
        if self.strict:
            raise Misuse(what)
        self.habits.add(what)

    def power_on(self):
        self.ghc = 1 << 31 if r.CAP(self.cap).SAM else 0
        self.status = 0
        plugged = [port.drive for port in self.ports] or [*self.drives, *[None] * (32 - len(self.drives))]
        self.ports = [Port(self, i, device) for i, device in enumerate(plugged)]
        for port in self.ports:
            if port.drive is not None:
                port.drive.join(port)

    def run(self, most: int = 64) -> None:
        """Carry out what is issued."""
        for port in self.ports:
            port.run(most)

    def line(self) -> None:
        for port in self.ports:
            if port.read_PxIS() & port.mask:
                self.status |= 1 << port.index
        interrupt = self.device and self.device.interrupt
        if interrupt:
            interrupt.line(bool(self.status and self.ghc & 2))

    def read32(self, at):
        if self.gone or self.zeros:
            return ONES if self.gone else 0
        found = self.map.find(at)
        if found is None:
            raise Misuse(f"read of {at:#x}, where no register is")
        register, index = found
        name = register.__name__
        if name.startswith("Px"):
            return self.ports[index].read(name) & ONES
        return {"CAP": self.cap, "GHC": self.ghc, "IS": self.status, "PI": self.implemented, "VS": 0x10301,
                "CAP2": int(self.firmware is not None),
                "BOHC": self.firmware.read(self.clock()) if self.firmware else 0}.get(name, 0)

    def write32(self, at, value):
        if not 0 <= value <= ONES:
            raise Misuse(f"{value:#x} does not fit 32 bits")
        if self.gone or self.zeros:
            return
        found = self.map.find(at, writing=True)
        if found is None:
            raise Misuse(f"write to {at:#x}, where no register is")
        if not found[0].access.writable:
            self.forbid(f"write to {self.map.name_at(at, True)}, which cannot be written")
            return
        register, index = found
        name = register.__name__
        if (value & ~register.known & ONES and register.access not in (W1C, W1S)) or register.access is Access.RO:
            raise Misuse(f"{name}: reserved bits in {value:#x}")
        self.writes.append((register.label(index) if name.startswith("Px") else name, value))
        if not self.ghc >> 31 and name != "GHC":
            raise Misuse(f"{name} before GHC.AE (AHCI 3.1.2)")
        own = name == "BOHC" or (name == "GHC" and value == 1 << 31)
        if self.firmware and not own and (wrong := self.firmware.used(self.clock())):
            self.forbid(wrong)
        if name.startswith("Px"):
            if not self.implemented >> index & 1:
                raise Misuse(f"port {index} is not implemented")
            self.ports[index].write(name, value)
        elif name == "GHC":
            if value & 1:
                self.power_on()
            else:
                self.ghc = value
            self.line()
        elif name == "IS":
            self.status &= ~value
            if self.device and self.device.interrupt:
                self.device.interrupt.line(False)       # what is still pending is told again. AHCI 10.7.2.1
            self.line()
        elif name == "BOHC" and self.firmware:
            self.firmware.write(value, self.clock())
