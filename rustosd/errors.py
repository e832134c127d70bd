"""What the host, a device or an operator refuses: each carries one line that says why and what to do."""

from typing import Final

from drivers.errors import DeviceError
from rustosd.hostnet import HostNetworkError
from rustosd.journal import JournalError

REFUSALS: Final = (DeviceError, HostNetworkError, JournalError, OSError, ValueError)
