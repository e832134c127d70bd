"""What every way of reaching a device must do, proved on QEMU's `edu` card: the real one in the lab, or a model of it.

`prove` tells what it saw; `expected` what it must have seen. The card: docs/specs/edu.rst of QEMU.
"""

import select
import time
from typing import Any

from drivers.device import Bar, Device, Interrupt

IDS = 0x11E81234
IDENTITY, LIVENESS, STATUS, RAISE, ACKNOWLEDGE = 0x00, 0x04, 0x20, 0x60, 0x64
DMA_SOURCE, DMA_TARGET, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
START, TO_MEMORY = 1, 2
BUFFER, BUFFER_OCTETS = 0x40000, 4096
COPY_OCTETS = 2048
"""Not all of the buffer: QEMU takes a transfer up to its last octet for one beyond it, and ends."""
BAR_OCTETS = 1 << 20
WAIT_S = 10.0


def prove(device: Device, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Use all of a device, which is closed at the end."""
    seen: dict[str, Any] = {
        "device": isinstance(device, Device), "backend": device.backend, "path": device.path,
        "how": device.config.how, "ids": device.config.read(0, 4), "master": device.config.read(4, 2) >> 2 & 1,
    }
    bar = device.bar(0)
    seen["bar"] = bar.size, device.bar(0) is bar
    seen["identity"] = bar.read32(IDENTITY) & 0xFF
    bar.write32(LIVENESS, 0x12345678)
    seen["liveness"] = bar.read32(LIVENESS)
    seen["refused"] = [refusal(lambda offset=offset: bar.read32(offset)) for offset in (2, BAR_OCTETS)]
    seen["no bar"] = refusal(lambda: device.bar(5))
    seen["interrupts"] = {kind: interrupts(device, bar, kind) for kind in kinds}
    device.enable_bus_master(True)
    seen["dma"] = transfer(device, bar)
    keep = device.dma_alloc(100, "kept")
    seen["zeroed"] = not any(keep.view())
    device.enable_bus_master(False)
    seen["stopped"] = device.config.read(4, 2) >> 2 & 1
    device.close()
    seen["leaked"] = [tuple(owned) for owned in device.leaked]
    seen["twice"] = device.close()
    return seen


def expected(backend: str, how: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    """What `prove` must have seen, but for the path."""
    arrived = {"intx": {"kinds": ["intx"], "early": 0, "counts": [1, 0, 1, 0, 1]}}
    return {
        "device": True, "backend": backend, "how": how, "ids": IDS, "master": 0, "bar": (BAR_OCTETS, True),
        "identity": 0xED, "liveness": 0xEDCBA987, "refused": ["ValueError", "IndexError"], "no bar": "DeviceError",
        "interrupts": {kind: arrived.get(kind, {"kinds": [kind], "early": 0, "counts": [1, 1]}) for kind in kinds},
        "dma": True, "zeroed": True, "stopped": 0, "leaked": [("kept", 1, 100)], "twice": None,
    }


def interrupts(device: Device, bar: Bar, kind: str) -> dict[str, Any]:
    """Raised by the card's own register.

    A line is held back once it came (the second count); unmasked it comes again while it is up; masked by hand it does not.
    A message comes as often as it is sent.
    """
    vector, = vectors = device.interrupts(1, (kind,))
    device.enable_bus_master(True)      # messages are DMA
    early = vector.drain()
    bar.write32(RAISE, 1)
    counts = [count(vector, WAIT_S)]
    if kind == "intx":
        bar.write32(ACKNOWLEDGE, 1)
        bar.write32(RAISE, 2)
        counts.append(count(vector, 0.3))
        vector.unmask()
        counts.append(count(vector, WAIT_S))
        bar.write32(ACKNOWLEDGE, 2)
        vector.unmask()
        vector.mask()
        bar.write32(RAISE, 4)
        counts.append(count(vector, 0.3))
        vector.unmask()
        counts.append(count(vector, WAIT_S))
    else:
        bar.write32(RAISE, 2)
        counts.append(count(vector, WAIT_S))
    bar.write32(ACKNOWLEDGE, 7)
    device.enable_bus_master(False)
    return {"kinds": [vector.kind for vector in vectors], "early": early, "counts": counts}


def count(vector: Interrupt, timeout: float) -> int:
    """How many interrupts came within a time."""
    select.select([vector.fd], [], [], timeout)
    return vector.drain()


def transfer(device: Device, bar: Bar) -> bool:
    """Have the card copy our memory into its buffer and back to another place."""
    source = device.dma_alloc(COPY_OCTETS, "source", below_4g=True)
    target = device.dma_alloc(COPY_OCTETS, "target", below_4g=True)
    pattern = bytes(index * 7 & 0xFF for index in range(COPY_OCTETS))
    with source.view() as view:
        view[:] = pattern
    copy(device, bar, source.iova, BUFFER, START)
    copy(device, bar, BUFFER, target.iova, START | TO_MEMORY)
    with target.view() as view:
        same = bytes(view) == pattern
    source.free()
    target.free()
    return same


def copy(device: Device, bar: Bar, source: int, target: int, command: int) -> None:
    """One transfer, waited for."""
    bar.write32(DMA_SOURCE, source)
    bar.write32(DMA_TARGET, target)
    bar.write32(DMA_COUNT, COPY_OCTETS)
    bar.write32(DMA_COMMAND, command)
    limit = time.monotonic() + WAIT_S
    while bar.read32(DMA_COMMAND) & START:
        if time.monotonic() > limit:
            raise TimeoutError(f"{device.name}: DMA does not end")
        time.sleep(0.01)


def refusal(act: Any) -> str:
    """The name of what is raised."""
    try:
        act()
    except Exception as error:
        return type(error).__name__
    return "nothing"
