"""What can go wrong with hardware.

    DeviceError             hardware's fault, or the way to it; every message says what to do next
        DeviceTimeout       it did not answer in time
        DeviceGone          it answers all ones, or not at all: unplugged, or its power is off
        DeviceRefused       the kernel does not let us have it
        TableError          a table of the firmware is not what its specification says
"""


class DeviceError(Exception):
    """A device or the way to it failed. `device` is its BDF or path, `errno` the number that came with it, or 0."""

    def __init__(self, device: str, message: str, errno: int = 0):
        super().__init__(f"{device}: {message}")
        self.device, self.errno = device, errno


class DeviceTimeout(DeviceError):
    """What was waited for did not come."""

    def __init__(self, device: str, what: str, last_value: int, waited_s: float):
        super().__init__(device, f"{what} did not come within {waited_s:.3f} s (last value {last_value:#x})")
        self.what, self.last_value, self.waited_s = what, last_value, waited_s


class DeviceGone(DeviceError):
    """Reads answer all ones, or the process that was the device has ended."""

    def __init__(self, device: str, why: str = "reads answer all ones. Was it unplugged?"):
        super().__init__(device, f"the device is gone: {why}")


class DeviceRefused(DeviceError):
    """The kernel or its configuration stands in the way."""


class TableError(DeviceError):
    """A firmware table does not hold. `fault` is "truncated", "signature", "length", "checksum" or "entry"."""

    def __init__(self, table: str, fault: str, message: str):
        super().__init__(f"ACPI table {table}", f"{fault}: {message}")
        self.table, self.fault, self.message = table, fault, f"{fault}: {message}"
