"""What the tests of the AHCI driver run in the guest: take the controller from the kernel, use its disks, give it back."""

import asyncio
import random
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop

from drivers.ahci import service, smart
from drivers.ahci.controller import AhciController
from drivers.ahci.disk import AhciDisk
from drivers.ahci.options import Options
from drivers.disk import GONE, Feature
from drivers.errors import DeviceError
from drivers.request import CompletionBurst, Operation, RequestBurst
from rustosd.disks import AsyncDisk, BenchResult
from tests.lab.agent import tell
from tests.lab.guest import AHCI
from tests.lab.inside_vfio import opened

POLL: tuple[str, ...] = ()
GO = Path("/run/ahci-go")
"""The host puts this file there once it has done what `ask` asked for."""
SECTOR = 512


@contextmanager
def controller(backend: str = "vfio", interrupts: tuple[str, ...] = ("msi", "intx"),
               **options: Any) -> Iterator[AhciController]:
    """The adapter, ours meanwhile."""
    with opened(AHCI, backend) as device:
        made = AhciController(device, interrupts=tuple(interrupts), **options)
        try:
            yield made
        finally:
            made.close()


def ask(what: str) -> None:
    """Have the host do something, and wait until it has."""
    GO.unlink(missing_ok=True)
    tell(what)
    limit = time.monotonic() + 30
    while not GO.exists():
        if time.monotonic() > limit:
            raise TimeoutError(f"the host did not {what}")
        time.sleep(0.01)


class Direct:
    """A disk used without a loop: requests one burst at a time."""

    def __init__(self, disk: AhciDisk) -> None:
        self.disk = disk
        self.requests, self.completions = RequestBurst(), CompletionBurst()

    def run(self, *requests: tuple, limit_s: float = 20) -> list[int]:
        """Do these (operation, lba, sectors, segments) together; the errno of each."""
        results: dict[int, int] = {}
        for tag, (operation, lba, sectors, segments) in enumerate(requests):
            assert self.requests.append(operation, tag, lba, sectors, segments)
        limit = time.monotonic() + limit_s
        while len(results) < len(requests):
            self.disk.submit(self.requests)
            count = self.disk.complete(self.completions)
            results.update(self.completions.items())
            if count == GONE or time.monotonic() > limit:
                raise TimeoutError(f"{results} of {len(requests)}; {self.disk.state.name} {self.disk.statistics()}")
            if not count and self.disk.arm():
                at = self.disk.wake_at()
                select.select([self.disk.fileno()], [], [],
                              1.0 if at is None else max(0.0, (at - time.monotonic_ns()) / 1e9))
        return [results[tag] for tag in range(len(requests))]


def look() -> dict[str, Any]:
    """What the controller and its disks say of themselves."""
    with controller() as made:
        return {
            "ports": [(port.state.name, port.reason) for port in made.ports],
            "disks": [disk.info for disk in made.disks], "kind": made.interrupt_kind,
            "dump": {row.name: row.text for row in made.registers.dump()},
        }


def move(backend: str, interrupts: tuple[str, ...], queued: bool = True) -> dict[str, Any]:
    """Both disks at once: the first 64 KiB read and copied to the end of the other disk, flushed."""
    with controller(backend, interrupts, queued=queued) as made:
        return {"kind": made.interrupt_kind, **uvloop.run(_move(made))}


async def _move(made: AhciController) -> dict[str, Any]:
    disks = [AsyncDisk(disk) for disk in made.disks[:2]]
    end = disks[0].info.sectors - 128
    first = await asyncio.gather(*(disk.read(0, 128) for disk in disks))
    await asyncio.gather(*(disk.write(end, octets) for disk, octets in zip(disks, reversed(first), strict=True)))
    await asyncio.gather(*(disk.flush() for disk in disks))
    again = await asyncio.gather(*(disk.read(end, 128) for disk in disks))
    statistics = [disk.statistics() for disk in disks]
    for disk in disks:
        disk.close()
    return {"first": first, "again": again, "statistics": statistics}


def model(seed: int, operations: int, interrupts: tuple[str, ...]) -> dict[str, Any]:
    """A random mix at full depth against a reference in memory: reads, writes with and without FUA, flushes."""
    with controller(interrupts=interrupts) as made:
        return uvloop.run(_model(made, random.Random(seed), operations))


async def _model(made: AhciController, dice: random.Random, operations: int) -> dict[str, Any]:
    disk = AsyncDisk(made.disks[1])
    area, blocks = 1024, 64                     # so many blocks of 8 sectors, from this sector on
    reference = {n: bytes(8 * SECTOR) for n in range(blocks)}
    await disk.write(area, b"".join(reference.values()))
    busy: set[int] = set()                      # what runs together must not overlap, or the order would matter
    wrong: list[int] = []

    async def one() -> None:
        block = dice.choice([n for n in range(blocks) if n not in busy])
        busy.add(block)
        try:
            kind = dice.random()
            if kind < 0.5:
                if await disk.read(area + 8 * block, 8) != reference[block]:
                    wrong.append(block)
            elif kind < 0.97:
                octets = dice.randbytes(8 * SECTOR)
                await disk.write(area + 8 * block, octets, fua=kind < 0.6)
                reference[block] = octets
            else:
                await disk.flush()
        finally:
            busy.discard(block)

    left = operations
    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await one()
    await asyncio.gather(*(worker() for _ in range(32)))
    await disk.flush()
    whole = await disk.read(area, 8 * blocks)
    statistics = disk.statistics()
    disk.close()
    return {"wrong": wrong, "right": whole == b"".join(reference.values()), "octets": whole, "statistics": statistics}


def scatter() -> dict[str, Any]:
    """One read into many odd pieces, one write out of them; and what is refused."""
    with controller(interrupts=POLL) as made:
        disk = made.disks[0]
        direct = Direct(disk)
        memory, copy = disk.allocate(1 << 20, "scatter"), disk.allocate(1 << 20, "gather")
        sizes = [2, 510, 1024, 6, 4090, 512, 8192 - 2, 2] + [128] * 200
        sizes.append(-sum(sizes) % SECTOR or SECTOR)
        pieces, place = [], 2
        for size in sizes:
            pieces.append((memory, place, size))
            place += size + 4
        sectors = sum(sizes) // SECTOR
        done = direct.run((Operation.READ, 16, sectors, pieces))
        with memory.view() as view:
            gathered = b"".join(bytes(view[at:at + size]) for _, at, size in pieces)
            gaps = all(view[at + size:at + size + 4] == bytes(4) for _, at, size in pieces)
        done += direct.run((Operation.WRITE, 8192, sectors, pieces), (Operation.READ, 1, 2048, [(copy, 0, 1 << 20)]))
        one = [(copy, 0, SECTOR)]
        end = disk.info.sectors
        refused = direct.run(
            (Operation.READ, end, 1, one), (Operation.READ, end - 1, 2, [(copy, 0, 2 * SECTOR)]),
            (Operation.READ, 0, 1, [(copy, 1, SECTOR)]), (Operation.READ, 0, 2, one), (Operation.READ, 0, 0, []),
            (Operation.READ, 0, 1, [(copy, 0, 256)] * 3), (Operation.READ, (1 << 64) - 1, 1, one), (7, 0, 1, one),
            (Operation.READ, 0, 1, [(copy, 2 * n, 2) for n in range(249)]), (Operation.READ, end - 1, 1, one))
        memory.free()
        copy.free()
        return {"done": done, "gathered": gathered, "gaps": gaps, "refused": refused, "sectors": sectors}


def errors(index: int, bad_read: int, bad_write: int) -> dict[str, Any]:
    """Reads, writes and flushes that fail in QEMU, each alone and among good ones. Tells when flushes shall fail, or not."""
    with controller() as made:
        disk = made.disks[index]
        direct = Direct(disk)
        memory = disk.allocate(64 << 10, "errors")
        read = lambda lba: (Operation.READ, lba, 1, [(memory, 0, SECTOR)])              # noqa: E731
        write = lambda lba: (Operation.WRITE, lba, 1, [(memory, 4096, SECTOR)])         # noqa: E731
        flush = (Operation.FLUSH, 0, 0, [])
        seen: dict[str, Any] = {"read": direct.run(read(bad_read)), "after": direct.run(read(0), write(8), flush)}
        seen["write"] = direct.run(write(bad_write))
        seen["among"] = direct.run(*(read(n) for n in range(15)), read(bad_read), *(write(n) for n in range(100, 115)),
                                   write(bad_write))
        ask("fail flushes")
        seen["flush"] = direct.run(flush)
        seen["between"] = direct.run(read(1), read(2))
        ask("let flushes pass")
        seen["flush again"] = direct.run(read(3), flush, write(4))
        seen["statistics"] = disk.statistics()
        seen["state"] = disk.state.name
        memory.free()
        return seen


def hang(index: int, timeout_s: float) -> dict[str, Any]:
    """A command that takes longer than we let it. Tells when the disk shall be slow, and when it may be fast again."""
    with controller(timeout_ns=int(timeout_s * 1e9)) as made:
        disk = made.disks[index]
        direct = Direct(disk)
        memory = disk.allocate(4 << 20, "hang")
        small = [(Operation.READ, 8 * n, 8, [(memory, 4096 * n, 4096)]) for n in range(4)]
        assert direct.run(*small) == [0] * 4
        ask("be slow")
        began = time.monotonic()
        # QEMU lets the first pass, and has those behind it wait until the average is right again.
        seen = {"first": direct.run((Operation.READ, 0, 2048, [(memory, 0, 1 << 20)]))}
        seen["slow"] = direct.run(small[0], limit_s=60)
        seen["took"] = time.monotonic() - began
        ask("be fast")
        seen["after"] = direct.run(*small, limit_s=60)
        seen["statistics"], seen["state"] = disk.statistics(), disk.state.name
        memory.free()
        return seen


def _perform(disk: AhciDisk, procedure: Any) -> Any:
    """Have a disk do something of its own, without a loop."""
    ended: list[tuple[Any, Exception | None]] = []
    disk.perform(procedure, lambda value, error: ended.append((value, error)))
    completions, limit = CompletionBurst(), time.monotonic() + 30
    while not ended:
        disk.complete(completions)
        if time.monotonic() > limit:
            raise TimeoutError(f"nothing came of it; {disk.state.name}")
    value, error = ended[0]
    if error is not None:
        raise error
    return value


def services(index: int) -> dict[str, Any]:
    """TRIM, SMART, the write cache, standby; an erasing and a self-test, which QEMU's disk does not claim to have."""
    with controller(options=Options(security_freeze=False)) as made:
        disk = made.disks[index]
        direct = Direct(disk)
        memory = disk.allocate(64 << 10, "services")
        seen: dict[str, Any] = {"trim": direct.run((Operation.TRIM, 16384, 8192, []), (Operation.FLUSH, 0, 0, []))}
        seen["health"] = _perform(disk, smart.read(disk))
        seen["cache"] = [disk.write_cache]
        for on in (False, True):
            _perform(disk, service.set_write_cache(disk, on))
            seen["cache"].append(Feature.WRITE_CACHE in disk.info.features)
        seen["between"] = direct.run((Operation.WRITE, 0, 8, [(memory, 0, 4096)]), (Operation.READ, 8, 8, [(memory, 0, 4096)]))
        _perform(disk, service.standby(disk))
        seen["mode"] = _perform(disk, service.power_mode(disk))
        for name, procedure in (("erase", service.erase(disk, disk.identity.serial)),
                                ("test", smart.start_test(disk, "short"))):
            try:
                _perform(disk, procedure)
            except DeviceError as error:
                seen[name] = str(error)
        memory.free()
        return seen


def discs() -> dict[str, Any]:
    """Read a disc; tells when it shall be taken out, and when another one shall be put in."""
    with controller() as made:
        disk = next(disk for disk in made.disks if disk.pack is not None)
        memory = disk.allocate(4096, "discs")

        def read(of: AhciDisk, lba: int) -> bytes:
            assert Direct(of).run((Operation.READ, lba, 2, [(memory, 0, 4096)])) == [0]
            with memory.view() as view:
                return bytes(view)
        seen: dict[str, Any] = {"first": read(disk, 0), "last": read(disk, disk.info.sectors - 2)}
        seen["write"] = Direct(disk).run((Operation.WRITE, 0, 2, [(memory, 0, 4096)]))
        ask("take the disc out")
        completions, limit = CompletionBurst(), time.monotonic() + 30
        while disk.complete(completions) != GONE and time.monotonic() < limit:
            time.sleep(0.01)
        seen["gone"] = disk.reason
        disk.close()
        ask("put another one in")
        new: list[AhciDisk] = []
        while not new and time.monotonic() < limit + 30:
            made.tend()
            new = [each for each in made.disks if each.pack is not None]
            time.sleep(0.01)
        seen["second"] = read(new[0], 0)
        seen["resets"] = new[0].statistics()["resets"]
        memory.free()
        return seen


def bench(pattern: str, block_octets: int, depth: int, seconds: float, interrupts: tuple[str, ...],
          index: int = 0) -> BenchResult:
    """Measure a disk on the loop."""
    with controller(interrupts=interrupts) as made:
        return uvloop.run(_bench(made, index, pattern, block_octets, depth, seconds))


async def _bench(made: AhciController, index: int, *arguments: Any) -> BenchResult:
    disk = AsyncDisk(made.disks[index])
    try:
        return await disk.bench(*arguments)
    finally:
        disk.close()
