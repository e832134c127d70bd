"""What is told of functions that come, go, flap and are lost sight of, in virtual time."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from drivers.hotplug.tracker import LONGEST_NS, STEADY_NS, UNDRIVEN_NS, News, Tell, Tracker
from drivers.hotplug.uevent import Action, PciEvent

A, B = "0000:02:00.0", "0000:03:00.0"
MS = 1_000_000
APPEARED, VANISHED, BOUND, UNBOUND = News.APPEARED, News.VANISHED, News.BOUND, News.UNBOUND


def run(tracker, *timeline):
    """Feed (ms, action, driver) for A; everything told, with its time in ms, timers served as they fall due."""
    told = []

    def serve(until):
        while (due := tracker.wake_at()) is not None and due <= until:
            news = tracker.advance(due)
            assert news, "woken for nothing"
            told.extend((due // MS, each.news, each.driver) for each in news)

    for ms, action, *driver in timeline:
        serve(ms * MS)
        news = tracker.event(ms * MS, PciEvent(Action(action), A, *driver))
        told.extend((ms, each.news, each.driver) for each in news)
    serve(1 << 62)
    return told


@pytest.mark.parametrize(("timeline", "told"), [
    # The kernel's driver has it: a moment later it is told of.
    ([(0, "add"), (80, "bind", "e1000e")], [(130, APPEARED, "e1000e")]),
    # Nobody drives it: not without end.
    ([(0, "add")], [(300, APPEARED, None)]),
    # The driver comes later than we wait.
    ([(0, "add"), (500, "bind", "e1000e")], [(300, APPEARED, None), (500, BOUND, "e1000e")]),
    # A bouncing contact.
    ([(0, "add"), (10, "remove"), (15, "add"), (20, "remove")], []),
    ([(0, "add"), (10, "remove"), (290, "add"), (300, "bind", "e1000e")], [(350, APPEARED, "e1000e")]),
    ([(0, "add"), (10, "bind", "e1000e"), (40, "unbind"), (45, "remove")], []),
    # Drivers that come and go all the time put it off only so long.
    ([(0, "add"), *((ms, ("bind", "unbind")[ms // 40 % 2], "x") for ms in range(40, 2000, 40))][:25], [(1000, APPEARED, "x")]),
    # Its life: taken by us, given back, unplugged, plugged again.
    ([(0, "add"), (100, "bind", "e1000e"), (200, "unbind"), (210, "bind", "vfio-pci"), (900, "unbind"),
      (901, "bind", "e1000e"), (950, "unbind"), (960, "remove"), (2000, "add"), (2100, "bind", "e1000e")],
     [(150, APPEARED, "e1000e"), (200, UNBOUND, None), (210, BOUND, "vfio-pci"), (900, UNBOUND, None),
      (901, BOUND, "e1000e"), (950, UNBOUND, None), (960, VANISHED, None), (2150, APPEARED, "e1000e")]),
    # Lost: the add; the removal.
    ([(0, "bind", "e1000e")], [(50, APPEARED, "e1000e")]),
    ([(0, "remove"), (1, "remove")], []),
    ([(0, "add"), (400, "add")], [(300, APPEARED, None), (400, VANISHED, None), (700, APPEARED, None)]),
])
def test_a_timeline_tells(timeline, told):
    tracker = Tracker({})
    assert run(tracker, *timeline) == told


def test_what_is_there_at_the_start_is_not_told_of_until_it_changes():
    tracker = Tracker({A: "e1000e", B: None})
    assert tracker.wake_at() is None
    assert tracker.known == {A: "e1000e", B: None}
    assert run(tracker, (5, "unbind"), (6, "remove")) == [(5, UNBOUND, None), (6, VANISHED, None)]
    assert tracker.known == {B: None}


def test_after_an_overrun_sysfs_decides():
    tracker = Tracker({A: "e1000e"})
    tracker.event(0, PciEvent(Action.ADD, B))
    told = tracker.rescan(1 * MS, {B: "e1000e", "0000:04:00.0": None})
    assert told == [Tell(VANISHED, A)]
    assert tracker.advance(1 * MS + STEADY_NS) == [Tell(APPEARED, B, "e1000e")]
    assert tracker.advance(1 * MS + UNDRIVEN_NS) == [Tell(APPEARED, "0000:04:00.0")]
    assert tracker.wake_at() is None


def test_after_an_overrun_what_is_still_there_is_told_of_again_since_it_may_be_another():
    tracker = Tracker({A: "e1000e"})
    assert tracker.rescan(0, {A: None}) == [Tell(APPEARED, A)]
    assert tracker.known == {A: None}


def test_a_function_that_never_appeared_does_not_vanish_by_an_overrun():
    tracker = Tracker({})
    tracker.event(0, PciEvent(Action.ADD, A))
    assert tracker.rescan(1, {}) == []
    assert tracker.known == {}


def test_a_full_table_is_a_counter():
    tracker = Tracker({A: None}, most=2)
    for number in range(10):
        assert tracker.event(0, PciEvent(Action.ADD, f"0000:{number:02x}:1f.0")) == []
    assert len(tracker.known) == 2
    assert tracker.counts["table_full"] == 9
    assert tracker.event(0, PciEvent(Action.REMOVE, A)) == [Tell(VANISHED, A)]
    assert tracker.event(0, PciEvent(Action.ADD, B)) == []
    assert B in tracker.known


def test_counters_name_what_was_told_and_what_was_not():
    tracker = Tracker({})
    run(tracker, (0, "add"), (10, "remove"), (20, "add"), (30, "bind", "x"), (90, "unbind"), (100, "remove"))
    assert tracker.counts == {"bounced": 1, "appeared": 1, "unbound": 1, "vanished": 1}


class AnyEvents(RuleBasedStateMachine):
    """Whatever comes in whatever order: appeared and vanished take turns, and timers are neither lost nor spun on."""

    def __init__(self):
        super().__init__()
        self.tracker = Tracker({A: "e1000e"}, most=3)
        self.now = 0
        self.there = {A}
        self.since = {}

    def hear(self, told, again=()):
        for each in told:
            if each.news is APPEARED:
                assert each.bdf not in self.there or each.bdf in again
                self.there.add(each.bdf)
            elif each.news is VANISHED:
                self.there.remove(each.bdf)
            else:
                assert each.bdf in self.there

    @rule(bdf=st.sampled_from([A, B, "0000:04:00.0", "0000:05:00.0"]), action=st.sampled_from(Action),
          driver=st.sampled_from(["e1000e", None]))
    def event(self, bdf, action, driver):
        self.hear(self.tracker.event(self.now, PciEvent(action, bdf, driver)))

    @rule(present=st.dictionaries(st.sampled_from([A, B, "0000:06:00.0"]), st.sampled_from([None, "ahci"])))
    def rescan(self, present):
        self.hear(self.tracker.rescan(self.now, present), again=self.there & present.keys())
        assert set(self.tracker.known) <= present.keys()

    @rule(ms=st.integers(0, 2000))
    def time(self, ms):
        self.now += ms * MS
        self.hear(self.tracker.advance(self.now))
        assert self.tracker.wake_at() is None or self.tracker.wake_at() > self.now

    @invariant()
    def bounded(self):
        assert self.there <= set(self.tracker.known)
        assert len(self.tracker.known) <= 3
        waiting = set(self.tracker.known) - self.there
        assert bool(waiting) == (self.tracker.wake_at() is not None)
        if waiting:
            assert self.tracker.wake_at() <= self.now + LONGEST_NS


TestAnyEvents = AnyEvents.TestCase
TestAnyEvents.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
