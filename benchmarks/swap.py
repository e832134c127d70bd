"""What swap costs, sealed and packed, in the page cache; how often its policy has what is used in memory; programs on it."""

from __future__ import annotations

import json
import os
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks import paging, swap_traces
from benchmarks.report import Report
from mm.swap.aes_gcm import aes_gcm
from mm.swap.device import FileDevice
from mm.swap.pack import Lz4, Packer, Zstd
from mm.swap.seal import Checksum, Sealer
from mm.swap.store import SwapStore

PAGE = 4096
PAGES = 4096            # 16 MiB at a time
USES = 200_000


class Speed(NamedTuple):
    """One kind of store with one kind of page."""

    sealed: str
    packed: str
    pages: str
    write_mb_per_s: float
    read_mb_per_s: float
    page_us: float      # to read one page alone
    ratio: float


def speeds(rounds: int) -> list[Speed]:
    """Every way to seal and pack, with pages that do not pack and with those of a program."""
    kinds: tuple[tuple[Callable[[], Sealer], type[Packer] | None], ...] = (
        (aes_gcm, None), (aes_gcm, Lz4), (aes_gcm, Zstd), (Checksum, None), (Checksum, Lz4))
    found = []
    for sealer, packer in kinds:
        for name, pages in _pages().items():
            with tempfile.TemporaryDirectory() as folder:
                store = SwapStore(FileDevice(str(Path(folder, "swap")), 2 * PAGES * PAGE), sealer=sealer(),
                                  packer=packer and packer())
                looks = [_look(store, pages) for _ in range(rounds)]
                store.close()
            medians = [statistics.median(look[i] for look in looks) for i in range(4)]
            found.append(Speed(store.sealer.name, store.packer.name if store.packer else "-", name, *medians))
    return found


def _pages() -> dict[str, bytes]:
    library = Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LDLIBRARY"))
    code = (library if library.exists() else Path(sys.executable).resolve()).read_bytes()
    code = code[:len(code) // PAGE * PAGE]
    return {"random": os.urandom(PAGES * PAGE), "program": (code * (PAGES * PAGE // len(code) + 1))[:PAGES * PAGE]}


def _look(store: SwapStore, pages: bytes) -> tuple[float, float, float, float]:
    count, memory, one = len(pages) // PAGE, bytearray(len(pages)), bytearray(PAGE)
    first = store.allocate(count)
    begin = time.perf_counter()
    store.write(first, pages)
    written = time.perf_counter()
    store.read_into(first, count, memory)
    read = time.perf_counter()
    for slot in range(first, first + count, 3):
        store.read_into(slot, 1, one)
    alone = time.perf_counter()
    ratio = store.stats().ratio
    store.release(first, count)
    if memory != pages:
        raise AssertionError("what was read is not what was written")
    return len(pages) / (written - begin) / 1e6, len(pages) / (read - written) / 1e6, (alone - read) / (count / 3) * 1e6, ratio


def main(rounds: int, as_json: bool, say: Callable[[str], None]) -> int:
    """Measure and print."""
    say("swap: stores")
    rows = speeds(rounds)
    say("swap: policies")
    rates = dict(swap_traces.hit_rates(USES))
    programs = Report()
    paging.measure(rounds, programs, say)
    if as_json:
        print(json.dumps({"stores": [row._asdict() for row in rows], "hit_rates": rates,
                          "programs": json.loads(programs.json())}, indent=2))
        return 0
    print(f"{'SEAL':12} {'PACK':5} {'PAGES':8} {'WRITE':>11} {'READ':>11} {'ONE PAGE':>9} {'RATIO':>6}")
    for row in rows:
        print(f"{row.sealed:12} {row.packed:5} {row.pages:8} {row.write_mb_per_s:6.0f} MB/s {row.read_mb_per_s:6.0f} MB/s "
              f"{row.page_us:6.2f} us {row.ratio:6.2f}")
    print(f"\n{'HITS IN PERCENT':34}" + "".join(f"{name:>15}" for name in swap_traces.POLICIES))
    for name, by_policy in rates.items():
        print(f"{name:34}" + "".join(f"{100 * rate:15.1f}" for rate in by_policy.values()))
    print()
    programs.show()
    return 0
