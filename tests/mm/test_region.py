"""Regions of our own memory that are in swap in parts: whoever touches them sees what was written, whatever thread it is."""

import ctypes
import errno
import os
import random
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mm import awake
from mm.paging.userfault import begin, open_own
from mm.region import PAGE, SwappedRegion
from mm.swap.device import FileDevice, RamDevice
from mm.swap.store import SwapStore

PAGES = 2048
LIMIT = 128 * PAGE
AWAKE, ASLEEP = 0, 2_000_000_000        # microseconds that a processor may take to wake


def possible() -> str:
    """Empty, or why this machine has no page faults for us."""
    try:
        fd = open_own()
    except OSError as error:
        return str(error)
    try:
        begin(fd)
    except OSError as error:
        return str(error)
    finally:
        os.close(fd)
    return ""


pytestmark = pytest.mark.skipif(bool(possible()), reason=f"no userfaultfd: {possible()}")


@pytest.fixture
def device() -> RamDevice:
    return RamDevice(2 * PAGES * PAGE)


@pytest.fixture
def store(device: RamDevice) -> SwapStore:
    return SwapStore(device)


@pytest.fixture
def region(store: SwapStore) -> Iterator[SwappedRegion]:
    with SwappedRegion(PAGES * PAGE, LIMIT, store) as region:
        yield region
    assert store.held() == []           # no slot was forgotten


def touch(view: memoryview) -> None:
    for page in range(PAGES):
        view[page * PAGE] = 1


def said(asked: Path) -> list[int]:
    """What PM QoS was asked for so far."""
    return [us for us, in struct.iter_unpack("=i", asked.read_bytes())]


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until


def mark(number: int) -> bytes:
    return b"%016d" % number


def test_memory_that_was_never_written_is_zero(region: SwappedRegion) -> None:
    with memoryview(region.memory) as view:
        assert all(view[page * PAGE] == 0 for page in range(PAGES))


def test_every_page_comes_back_and_no_more_than_the_limit_is_in_memory(region: SwappedRegion) -> None:
    with memoryview(region.memory) as view:
        for order in (range(PAGES), range(PAGES - 1, -1, -1), random.Random(1).sample(range(PAGES), PAGES)):
            for page in order:
                view[page * PAGE:page * PAGE + 16] = mark(page)
            for page in order:
                assert view[page * PAGE:page * PAGE + 16] == mark(page)
                assert view[(page + 1) * PAGE - 1] == 0
    assert region.stats.resident <= LIMIT // PAGE
    assert region.stats.pages_out >= PAGES - LIMIT // PAGE


def test_threads_that_write_the_same_pages_lose_nothing(region: SwappedRegion) -> None:
    """A page may leave between the write that is held up and the answer: what its slot has is all there is of it then.

    By libc, for Python has one thread at a time in its own hands.
    """
    libc = ctypes.CDLL(None)
    wrong: list[tuple[int, int, int]] = []

    def work(column: int) -> None:
        chosen, held, seen = random.Random(column), [0] * PAGES, ctypes.c_uint8()
        for _ in range(20_000):
            page = chosen.randrange(PAGES)
            word = ctypes.c_void_p(region.address + page * PAGE + 64 * column)
            libc.memcpy(ctypes.byref(seen), word, 1)
            if seen.value != held[page]:
                wrong.append((page, seen.value, held[page]))
            if chosen.random() < 0.5:
                held[page] = held[page] % 255 + 1
                libc.memset(word, held[page], 1)

    threads = [threading.Thread(target=work, args=(column,)) for column in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_processors_are_kept_awake_while_faults_come_often(
        store: SwapStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = tmp_path / "cpu_dma_latency"
    asked.touch()
    monkeypatch.setattr(awake, "DEVICE", str(asked))
    with SwappedRegion(PAGES * PAGE, LIMIT, store, keep_awake=True) as region, memoryview(region.memory) as view:
        wait_for(lambda: touch(view) or AWAKE in said(asked))       # a busy machine may make pauses
        wait_for(lambda: said(asked)[-1:] == [ASLEEP])


def test_where_that_is_not_ours_to_ask_nothing_changes(store: SwapStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awake, "DEVICE", "/nowhere/cpu_dma_latency")
    with SwappedRegion(PAGES * PAGE, LIMIT, store, keep_awake=True) as region, memoryview(region.memory) as view:
        touch(view)
        assert view[0] == 1


def test_what_is_only_read_leaves_without_being_written_again(region: SwappedRegion) -> None:
    with memoryview(region.memory) as view:
        for page in range(PAGES):
            view[page * PAGE] = 1
        for _ in range(3):
            assert all(view[page * PAGE] for page in range(PAGES))
    stats = region.stats
    assert stats.pages_out <= PAGES + LIMIT // PAGE
    assert stats.clean_out > PAGES


def test_pages_used_in_order_come_many_at_a_time(region: SwappedRegion) -> None:
    with memoryview(region.memory) as view:
        for page in range(PAGES):
            view[page * PAGE] = 1
        before = region.stats.faults
        assert all(view[page * PAGE] for page in range(PAGES))
    assert region.stats.faults - before < PAGES // 8
    assert region.stats.ahead_used > region.stats.pages_ahead // 2


def test_who_writes_each_page_that_he_reads_pays_for_one_fault(region: SwappedRegion) -> None:
    """And who stops it has his pages leave without being written again before long."""
    order = random.Random(1).sample(range(PAGES), PAGES)
    with memoryview(region.memory) as view:
        for page in range(PAGES):
            view[page * PAGE] = 1
        before = region.stats
        for page in 2 * order:
            view[page * PAGE] += 1
        assert region.stats.faults - before.faults > PAGES
        assert region.stats.write_faults - before.write_faults < PAGES // 2
        for _ in range(2):
            assert all(view[page * PAGE] == 3 for page in order)
        before = region.stats
        assert all(view[page * PAGE] == 3 for page in order)
    assert region.stats.pages_out - before.pages_out < PAGES // 8


def test_threads_see_their_own_words(region: SwappedRegion) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        chance, known = random.Random(number), {}
        for _ in range(4000):
            at = (chance.randrange(PAGES // 4) * 4 + number) * PAGE + 64 * number
            if view[at:at + 16] != known.get(at, bytes(16)):
                wrong.append(at)
            known[at] = mark(chance.randrange(1 << 40))
            view[at:at + 16] = known[at]
        wrong.extend(at for at, octets in known.items() if view[at:at + 16] != octets)

    with memoryview(region.memory) as view:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_system_calls_may_read_and_write_it(region: SwappedRegion, tmp_path: Path) -> None:
    octets = random.Random(7).randbytes(PAGES * PAGE)
    with memoryview(region.memory) as view, open(tmp_path / "file", "w+b", buffering=0) as file:
        view[:] = octets
        assert file.write(view) == len(octets)
        view[:] = bytes(len(octets))
        file.seek(0)
        assert file.readinto(view) == len(octets)
        assert view == octets


def test_several_regions_share_a_file(tmp_path: Path) -> None:
    store = SwapStore(FileDevice(str(tmp_path / "swap"), 2 * PAGES * PAGE))
    regions = [SwappedRegion(256 * PAGE, 16 * PAGE, store) for _ in range(3)]
    for number, region in enumerate(regions):
        region.memory[:] = bytes([number + 1]) * len(region)
    for number, region in enumerate(regions):
        assert region.memory[:] == bytes([number + 1]) * len(region)
        region.close()
    assert store.held() == []


def test_a_region_with_a_view_cannot_be_closed(region: SwappedRegion) -> None:
    view = memoryview(region.memory)
    with pytest.raises(BufferError, match="somebody still has a view"):
        region.close()
    view[5 * PAGE] = 9
    for page in range(PAGES):
        view[page * PAGE + 1] = 1
    assert view[5 * PAGE] == 9
    view.release()


def test_swap_that_is_full_leaves_more_in_memory_and_loses_nothing() -> None:
    store = SwapStore(RamDevice(256 * PAGE))
    with SwappedRegion(1024 * PAGE, LIMIT, store) as region, memoryview(region.memory) as view:
        for page in range(1024):
            view[page * PAGE:page * PAGE + 16] = mark(page + 1)
        assert all(view[page * PAGE:page * PAGE + 16] == mark(page + 1) for page in range(1024))
        assert region.stats.resident > LIMIT // PAGE


LOSES = """
import sys, threading
from mm.region import SwappedRegion
from mm.swap.device import RamDevice
from mm.swap.store import SwapStore
device = RamDevice(1024 * 4096)
region = SwappedRegion(512 * 4096, 64 * 4096, SwapStore(device), on_failure=lambda why: (print(why, flush=True), over.set()))
over = threading.Event()
for page in range(512):
    region.memory[page * 4096] = 1
if sys.argv[1] == "corrupt":
    for octet in range(0, 1024 * 4096, 64):
        device.flip(octet, 1)
else:
    device.fail(5)
import ctypes
touch = ctypes.CDLL(None).memchr        # without the GIL
threading.Thread(target=touch, args=(ctypes.c_void_p(region.address), 2, ctypes.c_size_t(512 * 4096)), daemon=True).start()
assert over.wait(20)
import os
os._exit(0)
"""


@pytest.mark.parametrize(("how", "number"), [("corrupt", errno.EBADMSG), ("broken", errno.EIO)])
def test_a_page_that_cannot_be_had_is_told_and_never_made_up(how: str, number: int) -> None:
    done = subprocess.run([sys.executable, "-c", LOSES, how], capture_output=True, text=True, timeout=60, check=True)
    assert os.strerror(number) in done.stdout


ONE_LOST = """
import ctypes, os, sys, threading
from mm.region import SwappedRegion
from mm.swap.device import RamDevice
from mm.swap.store import SwapStore
device, over, told = RamDevice(1024 * 4096), threading.Event(), []
region = SwappedRegion(512 * 4096, 16 * 4096, SwapStore(device), on_failure=lambda why: (told.append(why), over.set()))
for page in range(512):
    region.memory[page * 4096:page * 4096 + 2] = (page % 200 + 3).to_bytes(2, "little")
region.set_limit(0)                     # from now on pages only come
device.flip(int(sys.argv[1]) * 4096, 1)
touch = ctypes.CDLL(None).memchr        # without the GIL
threading.Thread(target=touch, args=(ctypes.c_void_p(region.address), 255, ctypes.c_size_t(512 * 4096)), daemon=True).start()
assert over.wait(20)
lost = int(told[0].split()[2].rstrip(":"), 16) // 4096
found = [int.from_bytes(region.memory[page * 4096:page * 4096 + 2], "little") if page != lost else 0 for page in range(512)]
got = [page for page in range(512) if page != lost and found[page] != page % 200 + 3]
print(lost, got, told[0], flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("slot", [100, 200, 211, 256, 300])     # in first and second halves of runs, and at their ends
def test_one_damaged_page_takes_no_other_along(slot: int) -> None:
    done = subprocess.run([sys.executable, "-c", ONE_LOST, str(slot)],
                          capture_output=True, text=True, timeout=60, check=True)
    lost, got, why = done.stdout.split(maxsplit=2)
    assert abs(int(lost) - slot) <= 16 and got == "[]" and os.strerror(errno.EBADMSG) in why


@pytest.mark.parametrize(("size", "limit"), [(0, LIMIT), (PAGE + 1, LIMIT), (64 * PAGE, PAGE)])
def test_sizes_that_make_no_sense_are_refused(store: SwapStore, size: int, limit: int) -> None:
    with pytest.raises(ValueError, match="whole pages"):
        SwappedRegion(size, limit, store)


def test_a_write_in_order_up_to_a_mapping_that_is_not_answered_for_is_not_lost(region: SwappedRegion) -> None:
    half, libc = PAGES // 2 * PAGE, ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    view = memoryview(region.memory)
    touch(view)
    region.set_limit(0)
    for page in range(PAGES):                           # they come back in order, and keep their slots
        assert view[page * PAGE] == 1
    # Behind our back half of it is another mapping, as when a thread unmaps and the other one maps before we are told.
    rest = ctypes.c_void_p(region.address + half)
    assert libc.mmap(rest, ctypes.c_size_t(half), 3, 0x32, -1, ctypes.c_long(0)) == region.address + half
    for page in range(PAGES // 2 - 16, PAGES // 2):
        view[page * PAGE] = 2
    region.set_limit(16 * PAGE)
    for page in range(128):                             # all others leave
        view[page * PAGE] = 3
    assert [view[page * PAGE] for page in range(PAGES // 2 - 16, PAGES // 2)] == [2] * 16
    view.release()
