"""The policy: who leaves, against a model in plain Python, and how often that is right."""

import random
from collections import OrderedDict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mm.swap.policy import Replacement

FRESH, PROVEN, FRESH_GONE, PROVEN_GONE = range(4)


class Model:
    """The same in ordered dicts."""

    def __init__(self):
        self.queues = [OrderedDict() for _ in range(4)]
        self.returns, self.probe = [0.5, 0.5], 0

    def where(self, page):
        return next((queue for queue in range(4) if page in self.queues[queue]), None)

    def resident(self):
        return len(self.queues[FRESH]) + len(self.queues[PROVEN])

    def has_room(self):
        return len(self.queues[PROVEN]) + (self.resident() + 1) // 8 < self.resident() + 1

    def learn(self, gone, came_back):
        self.returns[gone - 2] += (came_back - self.returns[gone - 2]) / 128

    def arrive(self, page, asked):
        where = self.where(page)
        if where in (FRESH, PROVEN):
            return
        if where is not None:
            if asked:
                self.learn(where, True)
            del self.queues[where][page]
        self.queues[PROVEN if where is not None and asked and self.has_room() else FRESH][page] = True

    def touch(self, page):
        if (where := self.where(page)) in (FRESH, PROVEN):
            del self.queues[where][page]
            self.queues[PROVEN if self.has_room() else where][page] = True

    def choose(self, want):
        found = []
        while len(found) < want and self.resident():
            self.probe += 1
            fresh, proven = len(self.queues[FRESH]), len(self.queues[PROVEN])
            stale = self.returns[1] < self.returns[0] - 0.1
            queue = FRESH
            if proven and (fresh < self.resident() // 8 or not fresh or stale or self.probe >= 16):
                queue, self.probe = PROVEN, 0
            page, _ = self.queues[queue].popitem(last=False)
            self.queues[queue + 2][page] = True
            found.append(page)
        resident = self.resident() + len(found)
        for gone, most in ((FRESH_GONE, resident + resident // 8), (PROVEN_GONE, resident // 4)):
            while len(self.queues[gone]) > most:
                self.queues[gone].popitem(last=False)
                self.learn(gone, False)
        return found


class Policy(RuleBasedStateMachine):
    """Against the model, with pages far apart and near."""

    pages = st.one_of(st.integers(0, 60), st.integers(0, (1 << 64) - 1).map(lambda n: n & ~0xFFF), st.integers(0, 3000))

    @initialize()
    def begin(self):
        self.policy, self.model = Replacement(), Model()

    @rule(page=pages, asked=st.booleans())
    def arrive(self, page, asked):
        self.policy.arrive(page, asked)
        self.model.arrive(page, asked)

    @rule(first=st.integers(0, 3000), count=st.integers(1, 700))
    def arrive_many(self, first, count):
        for page in range(first, first + count):
            self.arrive(page, True)

    @rule(page=pages)
    def touch(self, page):
        self.policy.touch(page)
        self.model.touch(page)

    @rule(want=st.integers(1, 256))
    def choose(self, want):
        found = self.policy.choose(want)
        assert found == self.model.choose(want)
        if found:
            self.policy.stay(found[0])
            queue = self.model.where(found[0])
            if queue is not None:
                del self.model.queues[queue][found[0]]
                self.model.queues[FRESH][found[0]] = True

    @rule(first=st.integers(0, 3000), count=st.integers(1, 5000))
    def forget(self, first, count):
        self.policy.forget(first, count)
        for queue in self.model.queues:
            for page in [page for page in queue if first <= page < first + count]:
                del queue[page]

    @invariant()
    def the_same_pages_are_there(self):
        if hasattr(self, "policy"):
            assert self.policy.queues() == tuple(map(len, self.model.queues))
            assert len(self.policy) == self.model.resident()
            assert all((page in self.policy) == (self.model.where(page) in (FRESH, PROVEN)) for page in range(0, 3600, 37))


TestPolicy = Policy.TestCase
TestPolicy.settings = settings(max_examples=60, deadline=None)


def hits(trace, memory: int) -> float:
    """The share of uses that find their page in memory."""
    policy, found = Replacement(), 0
    for page in trace:
        if page in policy:
            found += 1
        else:
            if len(policy) >= memory:
                policy.choose(1)
            policy.arrive(page)
    return found / len(trace)


def test_of_a_loop_larger_than_memory_most_stays():
    assert hits([i % 1200 for i in range(60_000)], 1000) > 0.65      # oldest first: none ever


def test_of_a_loop_twice_as_large_some_stays():
    assert hits([i % 2000 for i in range(60_000)], 1000) > 0.3


def test_a_scan_does_not_push_out_what_is_in_use():
    some = random.Random(1)
    trace, cold = [], 10_000
    for _ in range(60_000):
        if some.random() < 0.5:
            trace.append(some.randrange(500))
        else:
            trace.append(cold)
            cold += 1
    assert hits(trace, 1000) > 0.40         # 0.5 is all there is; oldest first: 0.32


def test_what_was_in_use_and_is_no_more_leaves():
    some = random.Random(1)
    trace = [base + some.randrange(900) for base in (0, 5000, 10_000, 15_000) for _ in range(20_000)]
    assert hits(trace, 1000) > 0.9


@pytest.mark.parametrize("n", [0, 3])
def test_nothing_leaves_where_nothing_is(n):
    policy = Replacement()
    for page in range(n):
        policy.arrive(page)
    assert policy.choose(10) == list(range(n)) and policy.choose(10) == [] and len(policy) == 0
