"""Slots: every one has as many users as were told, and nobody gets one that somebody has."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from mm.swap.errors import SwapFull
from mm.swap.slots import SlotTable


def test_what_is_taken_together_lies_together_and_behind_what_was_taken_before():
    table = SlotTable(1000)
    assert [table.allocate(n) for n in (1, 63, 64, 100)] == [0, 1, 64, 128]


def test_a_run_is_as_long_as_the_longest_hole_when_none_is_long_enough():
    table = SlotTable(200)
    table.allocate(200)
    table.release(10, 3)
    table.release(60, 20)
    table.release(199, 1)
    assert table.allocate_run(50) == (60, 20)
    assert table.allocate_run(50) == (10, 3)
    with pytest.raises(SwapFull, match="no 2 slots in one run: 1 of 200 are free"):
        table.allocate(2)
    assert table.allocate(1) == 199
    with pytest.raises(SwapFull, match="all 200"):
        table.allocate(1)


def test_a_shared_slot_is_free_when_the_last_has_left():
    table = SlotTable(64)
    first = table.allocate(4)
    table.share(first + 1, 2)
    assert table.release(first, 4) == 2
    assert table.held() == [(first + 1, 2)] and table.free == 62
    assert table.release(first + 1, 2) == 2 and table.held() == []


@pytest.mark.parametrize("wrong", [(-1, 1), (63, 2), (64, 1), (0, 0), (5, 1)])
def test_what_is_nobodys_is_neither_shared_nor_released(wrong):
    table = SlotTable(64)
    table.allocate(5)
    for act in (table.share, table.release):
        with pytest.raises(ValueError):
            act(*wrong)
    assert [table.users_of(slot) for slot in range(6)] == [1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("count", [0, -1, 1 << 32])
def test_a_table_of_no_size_is_refused(count):
    with pytest.raises((ValueError, OverflowError)):
        SlotTable(count)


class Slots(RuleBasedStateMachine):
    """Against a dict of users."""

    held = Bundle("held")

    @initialize(count=st.integers(1, 400))
    def begin(self, count):
        self.table, self.users = SlotTable(count), {}

    @rule(target=held, want=st.integers(1, 150))
    def allocate(self, want):
        try:
            first, got = self.table.allocate_run(min(want, self.table.count))
        except SwapFull:
            assert len(self.users) == self.table.count
            return multiple()
        assert 1 <= got <= want
        assert not self.users.keys() & set(range(first, first + got))
        self.users |= dict.fromkeys(range(first, first + got), 1)
        return first, got

    @rule(run=held)
    def share(self, run):
        slots = range(run[0], sum(run))
        if all(slot in self.users for slot in slots):
            self.table.share(*run)
            for slot in slots:
                self.users[slot] += 1

    @rule(run=held, skip=st.integers(0, 20))
    def release(self, run, skip):
        slots = [slot for slot in range(run[0] + min(skip, run[1] - 1), sum(run))]
        if all(slot in self.users for slot in slots):
            freed = self.table.release(slots[0], len(slots))
            for slot in slots:
                self.users[slot] -= 1
            assert freed == sum(not self.users[slot] for slot in slots)
            self.users = {slot: count for slot, count in self.users.items() if count}

    @invariant()
    def every_slot_has_its_users(self):
        if hasattr(self, "table"):
            assert self.table.free == self.table.count - len(self.users)
            assert {slot for first, count in self.table.held() for slot in range(first, first + count)} == self.users.keys()
            assert all(self.table.users_of(slot) == self.users.get(slot, 0) for slot in range(self.table.count))


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=60, deadline=None)
