"""The timer heap against a dict: whatever is set, moved or cleared, the earliest is the earliest."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from netstack.timers import Timers

LIMIT = 300     # more than the first capacity, so that growth happens
ids = st.integers(0, LIMIT - 1)
times = st.integers(-(1 << 63), (1 << 63) - 2) | st.integers(0, 20)


class TimerModel(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.timers = Timers(LIMIT)
        self.model = {}

    @rule(id=ids, at=times)
    def set(self, id, at):
        self.timers.set(id, at)
        self.model[id] = at

    @rule(id=ids | st.just(LIMIT) | st.just(0xFFFFFFFF))
    def clear(self, id):
        self.timers.clear(id)
        self.model.pop(id, None)

    @rule()
    def drain_some(self):
        for _ in range(3):
            if self.model:
                at, id = self.timers.earliest()
                assert at == min(self.model.values())
                assert self.model.pop(id) == at
                self.timers.clear(id)

    @invariant()
    def agrees(self):
        assert len(self.timers) == len(self.model)
        earliest = self.timers.earliest()
        if not self.model:
            assert earliest is None
        else:
            at, id = earliest
            assert at == min(self.model.values()) == self.model[id]

    @invariant()
    def each_deadline_is_kept(self):
        assert {id: at for id in range(LIMIT) if (at := self.timers.at(id)) is not None} == self.model


TestTimerModel = TimerModel.TestCase


def test_drains_in_order():
    timers = Timers(5000)
    order = [(i * 7919) % 5000 for i in range(5000)]
    for id in order:
        timers.set(id, id // 3)
    seen = []
    while (first := timers.earliest()) is not None:
        seen.append(first[0])
        timers.clear(first[1])
    assert seen == sorted(id // 3 for id in order)


def test_ids_are_bounded():
    timers = Timers(100)
    timers.set(99, 1)
    for id in (100, 0xFFFFFFFF):
        with pytest.raises(OSError, match="limit is 100"):
            timers.set(id, 1)
    assert timers.earliest() == (1, 99)
    with pytest.raises(ValueError):
        Timers(0)


def test_the_largest_limit_costs_nothing_until_used():
    timers = Timers(0xFFFFFFFF)
    timers.set(3, 10)
    assert timers.earliest() == (10, 3)
