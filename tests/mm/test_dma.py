"""Laws of the DMA allocator: blocks never overlap, stay where they may be, and leave nothing behind."""

import mmap
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mm.dma import CACHE_LINE, HUGE_PAGE, LOW_END, AddressRange, DmaExhausted, DmaPool, HostMemory, IovaSpace, Owned

RANGES = [AddressRange(0, 0xFEDFFFFF), AddressRange(0xFEF00000, 0x7FFFFFFFFF)]
"""As an Intel IOMMU of 39 bits says: a hole where its interrupts live."""


class FakeWindow:
    """Addresses without devices."""

    largest = 1 << 30
    need_huge = False

    def __init__(self, ranges=RANGES):
        self.space = IovaSpace(ranges)
        self.mapped: dict[int, int] = {}

    def map(self, memory, below_4g):
        iova = self.space.take(memory.size, end=LOW_END if below_4g else 1 << 64)
        self.mapped[iova] = memory.size
        return iova

    def unmap(self, iova, size):
        assert self.mapped.pop(iova) == size
        self.space.give(iova)


@given(st.lists(st.tuples(st.integers(1, 64), st.sampled_from([0x1000, 0x10000, HUGE_PAGE]), st.booleans()), max_size=30),
       st.randoms(use_true_random=False))
def test_addresses_are_aligned_allowed_and_disjoint_and_come_back(wanted, random):
    space = IovaSpace(RANGES)
    before = space.take(HUGE_PAGE)
    space.give(before)
    taken = []
    for pages, align, low in wanted:
        size = pages << 20
        start = space.take(size, align, LOW_END if low else 1 << 64)
        assert start % align == 0
        assert any(first <= start and start + size - 1 <= last for first, last in RANGES)
        assert start >= 1 << 20
        assert not low or start + size <= LOW_END
        assert all(start + size <= other or other + length <= start for other, length in taken)
        taken.append((start, size))
        if random.random() < 0.4:
            space.give(taken.pop(random.randrange(len(taken)))[0])
    for start, _ in taken:
        space.give(start)
    assert space.take(HUGE_PAGE) == before


def test_addresses_run_out_with_a_word_and_obey_new_ranges():
    space = IovaSpace([AddressRange(0, 0x3FFFFF)])
    assert space.take(HUGE_PAGE) == HUGE_PAGE
    with pytest.raises(DmaExhausted, match="no 2048 KiB of free addresses below 4 GiB"):
        space.take(HUGE_PAGE, end=LOW_END)
    space.restrict([AddressRange(0x800000, 0xFFFFFF)])
    assert space.take(HUGE_PAGE) == 0x800000
    with pytest.raises(ValueError, match="not taken"):
        space.give(0x900000)


def test_a_block_is_zero_again_when_its_memory_is_used_again():
    pool = DmaPool(FakeWindow())
    keep = pool.allocate(64, "keep")
    block = pool.allocate(5000, "ring")
    with block.view() as view:
        assert len(view) == 5000
        view[:] = b"\xff" * 5000
    iova = block.iova
    block.free()
    block.free()
    again = pool.allocate(5000, "ring")
    assert again.iova == iova
    assert bytes(again.view()) == bytes(5000)
    keep.free()


def test_what_nobody_freed_is_told_by_owner_and_freed_at_last():
    window = FakeWindow()
    pool = DmaPool(window)
    for _ in range(2):
        pool.allocate(4096, "e1000 rx ring")
    pool.allocate(10, "ahci command list", below_4g=True)
    assert pool.owned() == [Owned("ahci command list", 1, 10), Owned("e1000 rx ring", 2, 8192)]
    assert pool.octets == HUGE_PAGE
    assert pool.clear() == [Owned("ahci command list", 1, 10), Owned("e1000 rx ring", 2, 8192)]
    assert (pool.owned(), pool.octets, window.mapped) == ([], 0, {})


def test_a_view_that_outlives_its_block_stays_readable():
    pool = DmaPool(FakeWindow())
    block = pool.allocate(4096, "late")
    view = block.view()
    block.free()
    view[0] = 1
    assert view[0] == 1
    with pytest.raises(ValueError, match="freed"):
        block.view()


@pytest.mark.parametrize(("octets", "align"), [(0, 64), (-1, 64), (1 << 41, 64), (64, 48), (64, 0), (64, 2 * HUGE_PAGE)])
def test_senseless_sizes_are_refused(octets, align):
    with pytest.raises(ValueError, match="aligned to"):
        DmaPool(FakeWindow()).allocate(octets, "x", align=align)


def test_a_window_that_refuses_leaves_nothing_behind():
    window = FakeWindow([AddressRange(0, 0x3FFFFF)])
    pool = DmaPool(window)
    pool.allocate(HUGE_PAGE, "all there is")
    with pytest.raises(DmaExhausted, match="free addresses"):
        pool.allocate(64, "one more")
    window.largest = HUGE_PAGE
    with pytest.raises(DmaExhausted, match="at most 2048 KiB are contiguous"):
        pool.allocate(HUGE_PAGE + 1, "too much")
    assert pool.octets == HUGE_PAGE
    pool.clear()


def test_huge_pages_are_missed_only_where_they_are_needed():
    memory = HostMemory(HUGE_PAGE)
    assert memory.page_size in (4096, HUGE_PAGE)
    memory.close()
    with pytest.raises(DmaExhausted, match=r"vm\.nr_hugepages"):
        HostMemory(1 << 45, need_huge=True)


def test_memory_is_a_file_that_nobody_can_cut_short_and_a_close_ends():
    memory = HostMemory(HUGE_PAGE)
    with mmap.mmap(memory.fd, HUGE_PAGE) as other:      # as a device in another process does
        other[5] = 7
        with memory.view() as view:
            assert view[5] == 7
    for size in (0, HUGE_PAGE // 2, 2 * HUGE_PAGE):
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(memory.fd, size)
    fd = memory.fd
    memory.close()
    memory.close()
    with pytest.raises(OSError):
        os.fstat(fd)


class PoolMachine(RuleBasedStateMachine):
    """Random allocations and frees against the simplest account of them."""

    def __init__(self):
        super().__init__()
        self.window = FakeWindow()
        self.pool = DmaPool(self.window)
        self.blocks = []

    def teardown(self):
        self.pool.clear()
        assert self.window.mapped == {}

    @rule(octets=st.integers(1, 3 << 20), shift=st.integers(0, 21), low=st.booleans(), owner=st.sampled_from("abc"))
    def allocate(self, octets, shift, low, owner):
        block = self.pool.allocate(octets, owner, align=1 << shift, below_4g=low)
        assert block.iova % (1 << shift) == 0
        assert not low or block.iova + octets <= LOW_END
        assert block.size == octets
        self.blocks.append(block)

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def free(self, data):
        self.blocks.pop(data.draw(st.integers(0, len(self.blocks) - 1))).free()

    @invariant()
    def blocks_are_disjoint_and_mapped(self):
        ends = 0
        for block in sorted(self.blocks, key=lambda block: block.iova):
            assert block.iova >= ends
            ends = block.iova + -(-block.size // CACHE_LINE) * CACHE_LINE
            assert any(start <= block.iova and ends <= start + size for start, size in self.window.mapped.items())

    @invariant()
    def the_account_is_right(self):
        assert sum(owned.octets for owned in self.pool.owned()) == sum(block.size for block in self.blocks)
        assert self.pool.octets == sum(self.window.mapped.values())
        if not self.blocks:
            assert self.window.mapped == {}


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
