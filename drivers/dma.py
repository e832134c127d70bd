"""One device's share of a pool of DMA memory: what its drivers were given, and what they left when it was closed."""

from drivers.errors import DeviceError
from mm.dma import PAGE, DmaBlock, DmaExhausted, DmaPool, Owned, account


class DeviceMemory:
    """Allocates for one device, and frees at its end what was not freed."""

    def __init__(self, device: str, pool: DmaPool) -> None:
        self._device, self._pool = device, pool
        self._blocks: list[DmaBlock] = []

    def allocate(self, octets: int, owner: str, *, align: int = PAGE, below_4g: bool = False) -> DmaBlock:
        """See `drivers.device.Device.dma_alloc`. Raises DeviceError."""
        try:
            block = self._pool.allocate(octets, owner, align=align, below_4g=below_4g)
        except DmaExhausted as error:
            raise DeviceError(self._device, str(error)) from None
        self._blocks = [known for known in self._blocks if not known.freed]
        self._blocks.append(block)
        return block

    def owned(self) -> list[Owned]:
        """What it has now."""
        return account(block for block in self._blocks if not block.freed)

    def release(self) -> list[Owned]:
        """Free all that is left, whose device has stopped using it; what that was. May be called twice."""
        left = self.owned()
        for block in self._blocks:
            block.free()
        self._blocks.clear()
        return left
