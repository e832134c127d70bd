"""What the tests of VFIO and UIO run in the guest: bind, open, touch the card, and answer with what was seen.

The card is programmed as far as a proof needs: interrupts raised by its own "cause set" register, one frame sent.
"""

import asyncio
import ctypes
import gc
import os
import resource
import select
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drivers import binding
from drivers.device import Device
from drivers.errors import DeviceError
from drivers.uio import UioDevice
from drivers.vfio import Container
from tests.lab.agent import tell

CTRL, STATUS, ICR, ICS, IMS, IMC, IVAR, TCTL = 0x0, 0x8, 0xC0, 0xC8, 0xD0, 0xD8, 0xE4, 0x400
TDBAL, TDBAH, TDLEN, TDH, TDT, RAL, RAH = 0x3800, 0x3804, 0x3808, 0x3810, 0x3818, 0x5400, 0x5404
SET_LINK_UP, LINK_UP = 1 << 6, 1 << 1
LINK_CHANGE = 1 << 2
QUEUES = (1 << 20, 1 << 22)
"""Causes of the 82574: receive queue 0, transmit queue 0."""
ARRIVES_S, SILENT_S = 60.0, 0.2
"""How long an interrupt or anything else of the card's may take, and how long is waited for one that must not come."""
DRIVERS = {"vfio": "vfio-pci", "uio": "uio_pci_generic"}


@contextmanager
def opened(bdf: str, backend: str = "vfio") -> Iterator[Device]:
    """The device, bound and open; given back to its driver at the end."""
    before = binding.bind(bdf, DRIVERS[backend])
    try:
        if backend == "uio":
            device = UioDevice(bdf)
            try:
                yield device
            finally:
                device.close()
        else:
            container = Container()
            try:
                yield container.open(bdf)
            finally:
                container.close()
    finally:
        binding.give_back(bdf, before)


def look(bdf: str, backend: str = "vfio") -> dict[str, Any]:
    """What a card says of itself."""
    with opened(bdf, backend) as device:
        bar = device.bar(0)
        low, high = bar.read32(RAL), bar.read32(RAH)
        return {
            "device": isinstance(device, Device), "ids": device.config.read(0, 4), "how": device.config.how,
            "config": device.config.size, "bar": bar.size, "mapped": bar.address != 0,
            "mac": struct.pack("<IH", low, high & 0xFFFF).hex(":"), "master": device.config.read(4, 2) >> 2 & 1,
            "driver": binding.driver_of(bdf),
        }


def small_bar(bdf: str, index: int, backend: str) -> tuple[int, bool, list[int], bool]:
    """An rtl8139's registers, through the BAR with this number: its size, whether it is mapped, its MAC.

    Then to the multicast table one write and one read of each width.
    """
    with opened(bdf, backend) as device:
        bar = device.bar(index)
        octets = [bar.read8(offset) for offset in range(6)]
        agree = (bar.read16(0), bar.read32(0)) == tuple(int.from_bytes(octets[:width], "little") for width in (2, 4))
        bar.write32(0x8, 0x11223344)
        bar.write16(0xC, 0x5566)
        bar.write8(0xE, 0x77)
        bar.read32(0x8)
        bar.read16(0xC)
        bar.read8(0xE)
        return bar.size, bar.address != 0, octets, agree


def interrupt(bdf: str, kind: str, backend: str = "vfio") -> dict[str, Any]:
    """Raise interrupts by the card's own hand; by which vectors each arrived."""
    with opened(bdf, backend) as device:
        vectors = device.interrupts(2, (kind,))
        bar = device.bar(0)
        bar.write32(IMC, 0xFFFFFFFF)
        bar.read32(ICR)
        causes = (LINK_CHANGE,)
        if kind == "msix":
            device.enable_bus_master(True)
            bar.write32(IVAR, 0x8 | 0x9 << 8)
            causes = QUEUES
        elif kind == "msi":
            device.enable_bus_master(True)
        seen: dict[str, Any] = {"kinds": [vector.kind for vector in vectors], "early": [vector.drain() for vector in vectors]}
        arrived = [raised(bar, vectors, cause) for cause in causes]
        seen["arrived"] = arrived
        if kind == "intx":
            seen["again"] = intx_again(bar, vectors[0])
        else:
            seen["intx after"] = [vector.kind for vector in device.interrupts(1, ("intx",))]
        return seen


def raised(bar: Any, vectors: list[Any], cause: int) -> list[int]:
    """How often each vector interrupts for a cause that happens once; what comes once it is over counts a thousand.

    More than once is right, too: when QEMU's 82574 has held one message back for its throttling interval, it repeats every
    message at that interval (128 us) for as long as the cause is pending. So it is masked and acknowledged first.
    """
    bar.write32(IMS, cause)
    bar.write32(ICS, cause)
    select.select([vector.fd for vector in vectors], [], [], ARRIVES_S)
    bar.write32(IMC, cause)
    bar.write32(ICR, bar.read32(ICR))
    time.sleep(SILENT_S)        # for what is on its way, also to the wrong vector
    counts = [vector.drain() for vector in vectors]
    time.sleep(SILENT_S)
    return [count + 1000 * vector.drain() for count, vector in zip(counts, vectors, strict=True)]


def intx_again(bar: Any, vector: Any) -> list[int]:
    """A line is held back once it came; unmasking lets it come again; `mask` holds it back by our own hand."""
    bar.write32(IMS, LINK_CHANGE)
    bar.write32(ICS, LINK_CHANGE)
    held = count(vector, SILENT_S)
    vector.unmask()
    pending = count(vector, ARRIVES_S)
    bar.read32(ICR)
    vector.unmask()
    vector.mask()
    bar.write32(ICS, LINK_CHANGE)
    masked = count(vector, SILENT_S)
    vector.unmask()
    after = count(vector, ARRIVES_S)
    bar.write32(IMC, LINK_CHANGE)
    bar.read32(ICR)
    return [held, pending, masked, after]


def count(vector: Any, timeout: float) -> int:
    """How many interrupts came within a time."""
    select.select([vector.fd], [], [], timeout)
    return vector.drain()


def send_frame(bdf: str, backend: str = "vfio", payload: bytes = b"") -> dict[str, Any]:
    """Have the card fetch one frame from our memory and send it; whether it said done, and what a reset is made of."""
    with opened(bdf, backend) as device:
        seen: dict[str, Any] = {"reset": device.reset()}
        ring, done = transmit(device, payload)
        seen["done"] = done
        seen["iova"] = ring.iova
        seen["low"] = device.dma_alloc(4096, "low", below_4g=True).iova
        device.bar(0).write32(TCTL, 0)
        device.close()
        seen["leaked"] = [tuple(owned) for owned in device.leaked]
        seen["twice"] = device.close()
        return seen


def transmit(device: Device, payload: bytes, *, unmapped: bool = False) -> tuple[Any, bool]:
    """One descriptor, one doorbell. The ring and whether the card wrote back DD."""
    bar = device.bar(0)
    bar.write32(IMC, 0xFFFFFFFF)
    bar.write32(CTRL, bar.read32(CTRL) | SET_LINK_UP)
    device.enable_bus_master(True)
    binding.wait_until(device.name, lambda: bool(bar.read32(STATUS) & LINK_UP), "link up", ARRIVES_S)
    ring, buffer = device.dma_alloc(4096, "tx ring"), device.dma_alloc(2048, "tx buffer")
    mac = struct.pack("<IH", bar.read32(RAL), bar.read32(RAH) & 0xFFFF)
    frame = (b"\xff" * 6 + mac + b"\x88\xb5" + payload).ljust(60, b"\0")
    with buffer.view() as view:
        view[:len(frame)] = frame
    with ring.view() as view:
        address = 0x7000_0000 if unmapped else buffer.iova
        struct.pack_into("<QHBBBBH", view, 0, address, len(frame), 0, 0x0B, 0, 0, 0)     # EOP IFCS RS
    for register, value in ((TDBAL, ring.iova & 0xFFFFFFFF), (TDBAH, ring.iova >> 32), (TDLEN, 256), (TDH, 0), (TDT, 0)):
        bar.write32(register, value)
    bar.write32(TCTL, 1 << 1 | 1 << 3)
    bar.write32(TDT, 1)
    with ring.view() as view:
        limit = time.monotonic() + ARRIVES_S
        while not view[12] & 1 and time.monotonic() < limit:
            time.sleep(0.01)
        return ring, bool(view[12] & 1)


def provoke_fault(bdf: str) -> bool:
    """Have the card read where nothing is mapped."""
    with opened(bdf) as device:
        return transmit(device, b"", unmapped=True)[1]


def share(first: str, second: str) -> dict[str, Any]:
    """Two devices in one container see the same memory at the same address."""
    befores = [binding.bind(bdf, "vfio-pci") for bdf in (first, second)]
    container = Container()
    try:
        one, other = container.open(first), container.open(second)
        try:
            container.open(first)
        except DeviceError as error:
            seen_twice = str(error)
        before = container.mappings_left
        block = one.dma_alloc(8192, "shared")
        seen = {"same group": binding.group_of(first) == binding.group_of(second), "ranges": container.ranges,
                "mappings": None if before is None else before - container.mappings_left,     # iommufd does not say
                "allowed": any(a <= block.iova <= b for a, b in container.ranges)}
        seen["twice"] = seen_twice
        one.close()
        seen["left by one"] = [tuple(owned) for owned in one.leaked]
        mine = other.dma_alloc(64, "other's")
        seen["other goes on"] = mine.iova > 0
        other.close()
        again = container.open(first)
        seen["again"] = again.dma_alloc(64, "again").iova > 0
        seen["owned"] = [tuple(owned) for owned in container.pool.owned()]
    finally:
        container.close()
        for bdf, before in zip((first, second), befores, strict=True):
            binding.give_back(bdf, before)
    seen["pool"] = container.pool.octets
    return seen


def complaint(bdf: str, backend: str = "vfio") -> str:
    """What opening it says, without binding."""
    try:
        if backend == "uio":
            UioDevice(bdf).close()
        else:
            container = Container()
            try:
                container.open(bdf)
            finally:
                container.close()
    except DeviceError as error:
        return f"{type(error).__name__}: {error}"
    return "opened"


def bind_complaint(bdf: str, driver: str) -> tuple[str, str | None]:
    """What binding it says, and who drives it afterwards."""
    try:
        binding.bind(bdf, driver)
    except DeviceError as error:
        return f"{type(error).__name__}: {error}", binding.driver_of(bdf)
    return "bound", binding.driver_of(bdf)


def little_memlock(bdf: str) -> str:
    """What DMA memory says when only 64 KiB may be locked, without the privilege to lock more."""
    with opened(bdf) as device:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, 64 << 10))
        drop_ipc_lock()
        try:
            device.dma_alloc(4096, "ring")
        except DeviceError as error:
            return str(error)
        return "allocated"


def drop_ipc_lock() -> None:
    """Give up CAP_IPC_LOCK, 14."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    if libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    words = list(struct.unpack("6I", data.raw))
    words[0] &= ~(1 << 14)
    words[1] &= ~(1 << 14)
    if libc.capset(header, struct.pack("6I", *words)):
        raise OSError(ctypes.get_errno(), "capset")


def hold(bdf: str) -> None:
    """Keep it open, deaf to all requests, until killed."""
    binding.bind(bdf, "vfio-pci")
    container = Container()
    container.open(bdf)
    tell("open")
    time.sleep(600)


def give_back_soon(bdf: str, driver: str, timeout_s: float) -> str:
    """Try to give back what another holds."""
    try:
        binding.give_back(bdf, driver, timeout_s=timeout_s)
    except DeviceError as error:
        return f"{type(error).__name__}: {error}"
    return "given back"


def give_back_while_open(bdf: str) -> str:
    """Try to give back what this process holds, which must not hang it."""
    with opened(bdf):
        return give_back_soon(bdf, "e1000e", 2)


def let_go_when_asked(bdf: str) -> list[str]:
    """Hold a plugged card under an event loop until the kernel wants it back."""
    binding.wait_until(bdf, (binding.PCI / "devices" / bdf).is_dir, "the card", ARRIVES_S)
    binding.bind(bdf, "vfio-pci")
    said = []

    async def main() -> None:
        container = Container()
        device = container.open(bdf)
        device.bar(0).read32(STATUS)
        device.dma_alloc(4096, "ring")
        device.interrupts(1, ("msix",))
        asked = asyncio.Event()

        def release() -> None:
            device.close()
            said.append("let go")
            asked.set()

        device.on_release_request(release)
        said.append(f"errors {device.on_error(lambda: None)}")
        tell("open")
        await asyncio.wait_for(asked.wait(), ARRIVES_S)
        container.close()

    asyncio.run(main())
    binding.wait_until(bdf, lambda: not (binding.PCI / "devices" / bdf).exists(), "the card's end", ARRIVES_S)
    said.append("gone")
    return said


def rounds(bdf: str, backend: str, times: int) -> tuple[Any, Any]:
    """What this process holds before and after opening and closing many times, half of them untidily."""
    with opened(bdf, backend) as device:
        use(device)
    before = holdings()
    driver = binding.bind(bdf, DRIVERS[backend])
    for turn in range(times):
        container = Container() if backend == "vfio" else None
        device = container.open(bdf) if container else UioDevice(bdf)
        blocks = use(device)
        if turn % 2:
            for block in blocks:
                block.free()
        device.close()
        if container:
            container.close()
    binding.give_back(bdf, driver)
    return before, holdings()


def use(device: Device) -> list[Any]:
    """A bit of everything."""
    device.bar(0).read32(STATUS)
    device.interrupts(1, ("msix", "intx"))
    return [device.dma_alloc(5000, "round") for _ in range(3)]


def holdings() -> tuple[int, int, int, str]:
    """Open files, mappings, free huge pages, locked memory."""
    gc.collect()
    maps = sum(any(word in line for word in ("vfio", "resource", "memfd"))
               for line in Path("/proc/self/maps").read_text().splitlines())
    free = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("HugePages_Free"))
    status = Path("/proc/self/status").read_text().splitlines()
    locked = " ".join(line for line in status if line.startswith(("VmLck", "VmPin")))
    return len(os.listdir("/proc/self/fd")), maps, int(free.split()[1]), locked
